"""A run is traced in a bounded number of moments, a moment becomes a picture, the player steps through."""

from __future__ import annotations

import asyncio
import itertools
from collections.abc import Iterator

import pytest

from ondisk.lab import runs
from ondisk.lab.experiments import seeds
from ondisk.lab.experiments.trace import Member, Moment, Trace, Tracer, trace
from ondisk.lab.pictures.trace import event_table, in_words, moment_state, moment_table
from ondisk.lab.player import FORKS, KINDS, Player
from ondisk.simulation.faults import Fault
from ondisk.simulation.run import Report, Setting, run
from ondisk.simulation.world import TraceEvent
from tests.lengths import short_and_long

CALM = Setting(replicas=3, seconds=4)


def moment(**changes: object) -> Moment:
    members = (
        Member(1, "leader", 2, 9, 9, 9, 8, coming=("from 2: equal to 9 t2",)),
        Member(2, "follower", 2, 9, 9, 8, 8, deaf_to=(3,)),
        Member(3, "down", 1, 4, 4, 4, 4, coming=("from 1: append <b>", "two", "three"), more=2),
    )
    return Moment(1.25, 7, members, 9, (1, 2, 3))._replace(**changes)


@pytest.fixture(scope="module")
def lossy() -> Trace:
    """A run of stock PySyncObj that loses what it acknowledged."""
    calm = runs.trace_with_an_exposure()
    exposure = runs.longest(calm)
    crash = runs.crash_the_leader((exposure.since + exposure.until) / 2)
    return trace(calm.report.seed, runs.STOCK, [*runs.BUSY, crash])


@pytest.fixture
def player(lossy: Trace) -> Iterator[Player]:
    yield Player(lossy, "a test")


# Moments


def test_what_a_majority_holds_is_not_exposed() -> None:
    """Voters count, up or down, as far as their logs are durable; others do not."""
    assert moment().holders == (1, 2) and not moment().too_few
    assert moment(committed=10).too_few
    assert moment(voters=(1, 3)).too_few
    shorter = moment().members[1]._replace(durable=8)
    assert moment(members=(moment().members[0], shorter, moment().members[2])).too_few


def test_a_trace_shows_what_the_record_tells() -> None:
    """A crash and a restart are in both, and times do not go back."""
    traced = trace(0, CALM, (Fault(2.0, "crash", 1.0),))
    roles = {member.role for each in traced.moments for member in each.members}
    assert {"leader", "follower", "down"} <= roles
    times = [each.time for each in traced.moments]
    assert times == sorted(times)
    assert traced.moments[-1].lines == len(traced.report.trace)
    assert any(each.members[0].coming for each in traced.moments)
    assert traced.report == run(0, CALM, (Fault(2.0, "crash", 1.0),))  # who looks on changes nothing


def test_a_trace_is_bounded_and_a_part_of_it_can_be_had_in_full() -> None:
    """Whoever wants to look closer traces the part again."""
    rough = trace(0, CALM, (), most=60)
    assert 30 <= len(rough.moments) <= 62
    close = rough.closer(1.0, 1.5)
    assert len(close.moments) > sum(1.0 <= each.time <= 1.5 for each in rough.moments)
    assert all(1.0 <= each.time <= 1.5 for each in close.moments)


def test_a_violation_is_the_last_moment() -> None:
    """What it looked like when it was found, and the whole record."""
    traced = trace(0, Setting(without=("restart-keeps-log",)))
    assert traced.report.rule is not None
    assert traced.moments[-1].time == traced.report.seconds
    assert traced.report.trace[traced.moments[-1].lines - 1].kind == "violation"


def test_stock_pysyncobj_exposes_and_loses_what_ours_keeps(lossy: Trace) -> None:
    """The same faults, the same crash."""
    assert lossy.report.rule == "acknowledged write lost"
    assert lossy.exposures()
    assert any(member.last < before.last for member, before in _successive(lossy) if member.role != "down")
    ours = trace(lossy.report.seed, runs.OURS, lossy.report.faults)
    assert ours.report.rule is None
    assert ours.exposures() == []


def _successive(traced: Trace) -> Iterator[tuple[Member, Member]]:
    for before, after in itertools.pairwise(traced.moments):
        yield from zip(after.members, before.members, strict=True)


def test_acknowledged_keys_are_counted_in_every_replica(lossy: Trace) -> None:
    """At the end none has all of them."""
    last = lossy.moments[-1]
    assert last.acknowledged
    for member in last.members:
        assert member.keys is not None and member.keys < last.acknowledged


def test_watching_does_not_change_the_run(lossy: Trace) -> None:
    assert run(lossy.report.seed, runs.STOCK, lossy.report.faults).trace == lossy.report.trace
    tracer = Tracer(until=-1)
    run(lossy.report.seed, runs.STOCK, lossy.report.faults, tracer)
    assert tracer.moments == []


# Pictures


def test_the_words_say_everything_that_the_picture_shows() -> None:
    words = in_words(moment())
    for said in (
        "1.250 s",
        "Replica 2: follower, term 2, log to 9",
        "hears nothing from 3",
        "its log lacks 5 committed",
        "from 1: append <b>",
        "and 2 more messages",
    ):
        assert said in words


def test_a_moment_is_drawn_as_the_panel_draws_a_cluster(lossy: Trace) -> None:
    """What the logs hold, who lacks what, and nothing that could be done with it."""
    number = next(n for n, each in enumerate(lossy.moments) if each.too_few and each.view)
    drawn = moment_state(lossy.moments[number])
    assert "no majority" in drawn["recorded"] and drawn["words"] == in_words(lossy.moments[number])
    notes = [each["note"] for each in drawn["replicas"]]
    assert any("its log lacks" in note for note in notes) and all(
        "acknowledged keys" in note for note in notes
    )
    texts = {cell["text"] for each in drawn["replicas"] for cell in each["cells"]}
    assert any(text.startswith("put k") for text in texts) and "not here" in texts
    assert not any(each["actions"] for each in drawn["replicas"] + drawn["links"])
    assert any(moment_state(each)["flights"] for each in lossy.moments[:number])


def test_too_few_copies_are_told_in_words() -> None:
    """Not by colour alone."""
    assert "no majority" in in_words(moment(committed=10))
    assert "no majority" not in in_words(moment())
    assert "Nothing is committed yet" in in_words(moment(committed=0))


def test_the_table_has_the_same_numbers() -> None:
    assert "acknowledged keys" not in moment_table(moment())
    with_keys = tuple(member._replace(keys=3) for member in moment().members)
    assert "acknowledged keys" in moment_table(moment(members=with_keys, acknowledged=4))


def test_the_record_marks_what_is_now_and_leaves_out_what_is_not_wanted() -> None:
    record = [
        TraceEvent(number / 10, "sent" if number % 2 else "fault", f"<{number}>") for number in range(40)
    ]
    html = event_table(record, 20, 22, lambda line: True)
    assert html.count("▶ now") == 2
    assert "&lt;20&gt;" in html and "&lt;22&gt;" in html and "&lt;39&gt;" not in html
    assert "sent" not in event_table(record, 20, 22, lambda line: line.kind == "fault")
    assert "no such line" in event_table(record, 20, 22, lambda line: False)


# The player


def test_back_and_forward_and_the_slider_show_other_moments(player: Player) -> None:
    assert player.back.disabled and player.beginning.disabled
    player.forward.click()
    assert player.place.value == 2 and f"{player.moment.time:.3f} s" in player.picture.value
    player.back.click()
    assert player.place.value == 1
    player.place.value = 30
    assert player.moment is player.trace.moments[29]
    assert f"At {player.moment.time:.3f} s" in player.table.value
    player.end.click()
    assert player.end.description == "Violation"
    assert player.forward.disabled and "acknowledged write lost" in player.record.value


def test_the_next_fault_and_the_next_exposure_are_found(player: Player) -> None:
    """In order; after the last one the player says so and stays."""
    seen = []
    while "none" not in player.answer.value:
        player.next_fault.click()
        seen.append(player.moment.time)
    assert len(set(seen)) >= 7
    assert seen[-1] == seen[-2]
    player.beginning.click()
    assert "none" not in player.answer.value
    player.next_exposure.click()
    assert player.moment.too_few and "no majority" in player.picture.value


def test_a_time_is_shown_as_the_moment_at_or_before_it(player: Player) -> None:
    player.go_to(3.5)
    number = player.place.value
    assert player.trace.moments[number - 1].time <= 3.5 < player.trace.moments[number].time
    assert player.go_to(1e9).forward.disabled
    assert player.go_to(-1).back.disabled


def test_the_record_is_filtered_by_kind_and_by_words(player: Player) -> None:
    player.go_to(3.6)
    assert ">sent<" in player.record.value
    player.kinds["Messages"].value = False
    assert ">sent<" not in player.record.value and ">delivered<" not in player.record.value
    player.kinds["Messages"].value = True
    player.words.value = "3 -> 2 append"
    assert "3 -&gt; 2 append" in player.record.value and "2 -&gt; 3" not in player.record.value


def test_every_kind_of_line_can_be_filtered(lossy: Trace) -> None:
    """Or is always shown."""
    known = {kind for kinds in KINDS.values() for kind in kinds} | {"violation"}
    ours = {line.kind for seed in (0, 2) for line in run(seed).trace}
    assert {line.kind for line in lossy.report.trace} | ours <= known


def test_the_timeline_has_faults_crashes_elections_and_when_too_few_had_what_was_committed(
    player: Player, lossy: Trace
) -> None:
    line = player.timeline.state
    assert {"fault", "replica", "election", "violation"} <= {mark["kind"] for mark in line["marks"]}
    assert line["bands"] == [[each.since, each.until] for each in lossy.exposures()]
    player.timeline._handle_custom_msg({"do": "go", "on": line["marks"][2]["time"]}, [])
    assert player.moment.time <= line["marks"][2]["time"] == pytest.approx(player.moment.time, abs=0.2)
    number = player.place.value
    player.timeline._handle_custom_msg({"do": "forward", "on": None}, [])
    assert player.place.value == number + 1 and player.timeline.state["at"] == player.moment.time


def test_a_run_is_played_until_its_end(lossy: Trace) -> None:
    """On the loop of whoever shows it; the messages are those that were under way."""

    async def play() -> None:
        player = Player(lossy, "a test")
        player.end.click()
        player.back.click()
        player.timeline._handle_custom_msg({"do": "speed", "on": 4.0}, [])
        player.timeline._handle_custom_msg({"do": "play", "on": None}, [])
        assert player.picture.state["rate"] == player.timeline.state["speed"] == 4.0
        async with asyncio.timeout(60):
            while player.timeline.state["playing"]:
                await asyncio.sleep(0.01)
        assert player.place.value == player.place.max
        assert player.picture.state["rate"] == 0

    asyncio.run(play())


def test_a_run_goes_on_from_a_moment_with_another_fault(lossy: Trace) -> None:
    """Up to there it is the same, line for line; then what was chosen happens, and nothing else."""
    player = Player(lossy, "a test").go_to(2.9)
    player.fault.value, player.who.value = "crash", 2
    player.fork_here.click()
    assert player.forked is not None and player.box.children[-1] is player.forked.box
    ours, theirs = player.forked.trace.report, lossy.report
    at = player.moment.time
    assert [line for line in ours.trace if line.time < at] == [
        line for line in theirs.trace if line.time < at
    ]
    after = [line for line in ours.trace if line.time >= at]
    assert next(line for line in after if line.kind == "crash").words == "replica 2"
    assert [fault.kind for fault in ours.faults if fault.at >= at] == ["crash"]
    assert player.forked.moment.time == pytest.approx(at, abs=0.1)
    first = player.forked
    player.fork()  # nothing more goes wrong: the group comes to rest
    assert first.box.comm is None
    assert player.forked.trace.report.rule is None


@pytest.mark.parametrize("kinds", short_and_long(["crash", "partition"], list(FORKS)))
def test_our_own_group_goes_on_with_each_of_the_faults(kinds: list[str]) -> None:
    """Of every kind that the player offers."""
    run_of_ours = trace(2, CALM, ())
    before = [line for line in run_of_ours.report.trace if line.time < 3]
    for kind in kinds:
        lasts, size = FORKS[kind]
        forked = run_of_ours.fork(3.0, Fault(3.0, kind, lasts, 1, 2, size), seconds=1.0)
        assert forked.report.trace[: len(before)] == tuple(before)
        assert any(line.kind == "fault" and line.words.endswith(kind) for line in forked.report.trace)
        assert forked.report.rule is None


def test_a_second_player_of_the_same_title_closes_the_first(player: Player, lossy: Trace) -> None:
    """So that a cell can be run again."""
    other = Player(lossy, "a test")
    assert player.box.comm is None
    assert "text/plain" in other._repr_mimebundle_()


def test_a_trace_without_moments_is_refused(lossy: Trace) -> None:
    with pytest.raises(ValueError, match="no moment"):
        Player(lossy._replace(moments=()))


# Many runs


def test_the_digest_is_that_of_the_whole_record() -> None:
    report = run(0, CALM, ())
    assert runs.digest(report) == runs.digest(run(0, CALM, ()))
    assert runs.digest(report) != runs.digest(report._replace(trace=report.trace[:-1]))


def test_seeds_are_tried_until_time_is_over_or_one_is_found() -> None:
    """And what they amount to is computed from faults that took place."""
    one = runs.try_seeds(range(5), CALM, seconds=0)
    assert (one.seeds, one.violations) == (1, ())
    found = runs.try_seeds(range(5), Setting(without=("restart-keeps-log",)), first=True)
    assert found.violations and found.years == found.faults / 12
    assert "years of a group" in found._repr_html_()


def test_a_run_that_is_interrupted_leaves_what_was_found(monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupted(*_: object, **__: object) -> Report:
        raise KeyboardInterrupt

    monkeypatch.setattr(seeds, "run", interrupted)
    assert runs.try_seeds(range(5), CALM).seeds == 0
    report = run(0, CALM, ())
    monkeypatch.setattr(seeds.runs, "reduce", interrupted)
    monkeypatch.setattr(seeds.runs, "run", interrupted)
    assert runs.reduce(report, CALM) is report


def test_the_table_of_rules_names_every_rule_that_can_be_violated() -> None:
    """As the source has them."""
    import inspect
    import re

    from ondisk.simulation import checked, invariants, verdict

    source = "".join(map(inspect.getsource, (checked, invariants, verdict)))
    raised = set(re.findall(r'Violation\(\s*"([^"]+)"', source))
    assert raised == runs.INVARIANTS.keys()
    assert all(name in runs.show_invariants().html for name in raised)


def test_exposure_is_a_part_of_the_time_under_load() -> None:
    stock, ours = (
        runs.measure_exposure(range(3), setting, seconds=60) for setting in (runs.STOCK, runs.OURS)
    )
    assert 0 < stock.part < 0.5 and stock.times
    assert ours.part == 0
    assert "part of the time" in repr(stock)
