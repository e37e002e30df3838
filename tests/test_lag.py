"""Notebook 2's tools: the live picture of lag, the load, slow disks, the plots and the exercises."""

from __future__ import annotations

import asyncio
import re
import threading
import time
from collections.abc import Awaitable, Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from ipywidgets.widgets.widget import _instances

from ondisk import Cluster, NoLeader, lab
from ondisk.lab.exercises import chapter_02 as exercises_02
from ondisk.lab.exercises.check import check, exercises, hint
from ondisk.lab.experiments.absence import Absence
from ondisk.lab.experiments.load import Cost
from ondisk.lab.pictures import lag as lag_picture
from ondisk.lab.pictures.figures import figure_picture, new_figure
from ondisk.observe import Lag, LagRecorder, Note, Reading, wait_until_level
from tests.pictures import svg_of, texts
from tests.waiting import wait_until


@pytest.fixture
def disks() -> dict[int, lab.SlowDisk]:
    return {replica_id: lab.SlowDisk() for replica_id in (1, 2, 3)}


@pytest.fixture
def cluster(tmp_path: Path, disks: dict[int, lab.SlowDisk]) -> Iterator[Cluster]:
    with Cluster(tmp_path / "data", disks=disks) as cluster:
        cluster.wait_for_leader()
        yield cluster


def followers(cluster: Cluster) -> list[int]:
    return [i for i in cluster.members if i != cluster.wait_for_leader()]


# The live picture

LEVEL, LATE = Lag(0, 0.0), Lag(1, 3.0)
READINGS = [
    Reading(
        time=100 + number / 10,
        commit_index=number,
        applied={1: number, 2: number, 3: 0},
        lags={
            1: LEVEL,
            2: LATE if number in (70, 149) else LEVEL,
            3: Lag(number, number * 100.0),
        },
    )
    for number in range(1, 151)
]
NOTES = [Note(50.0, "long ago"), Note(105.0, "links of <3> cut off")]


def test_the_live_picture_names_every_line_and_says_its_value() -> None:
    """A name and a number at the end of each line, and a dash of its own: colour says nothing."""
    svg = svg_of(lag_picture.lag_picture(READINGS, READINGS[-1], NOTES, 1, 15.0))
    said = texts(svg)
    assert said.count("1 (leader): 0") == said.count("2: 0") == 2
    assert "3: 150" in said
    assert "3: 15000" in said
    lines = list(svg.iter("polyline"))
    assert len(lines) == 6
    assert len({line.attrib["stroke-dasharray"] for line in lines}) == 3
    places = [
        (float(t.attrib["x"]), float(t.attrib["y"])) for t in svg.iter("text") if ": 0" in (t.text or "")
    ]
    assert len({y for _, y in places}) == 2  # names make room for each other


def test_a_line_of_the_live_picture_ends_with_the_newest_reading() -> None:
    """Its name says what the table says, however bad it was just before."""
    said = texts(svg_of(lag_picture.lag_picture(READINGS, READINGS[-1], NOTES, 1, 15.0)))
    assert "2: 0" in said
    assert "2: 1" not in said


def test_the_live_picture_stays_within_its_bounds() -> None:
    """Whatever the values are: nothing is drawn outside of it."""
    for readings in (READINGS[:1], READINGS):
        svg = svg_of(lag_picture.lag_picture(readings[:-1], readings[-1], NOTES, None, 15.0))
        width, height = float(svg.attrib["width"]), float(svg.attrib["height"])
        for line in svg.iter("polyline"):
            for point in line.attrib["points"].split():
                x, y = map(float, point.split(","))
                assert 0 <= x <= width
                assert 0 <= y <= height


def test_what_was_done_is_written_under_the_live_picture() -> None:
    """Numbered, escaped, and only as long as it can be seen."""
    said = texts(svg_of(lag_picture.lag_picture(READINGS, READINGS[-1], NOTES, 1, 15.0)))
    assert "1: links of <3> cut off (10.0 s ago)" in said
    assert not any("long ago" in text for text in said)


def test_the_live_picture_says_its_values_again_as_text_and_as_a_table() -> None:
    """role=img with the numbers in words; the table has the same ones."""
    svg = svg_of(lag_picture.lag_picture(READINGS, READINGS[-1], NOTES, 1, 15.0))
    assert svg.attrib["role"] == "img"
    assert (
        svg.attrib["aria-label"]
        == svg.findtext("desc")
        == lag_picture.lag_in_words(READINGS, READINGS[-1], 1, 15.0)
    )
    assert "Replica 3 is 150 entries and 15000 ms behind" in svg.attrib["aria-label"]
    assert (
        "Replica 2 is 0 entries and 0 ms behind, at most it was 1 entries and 3 ms"
        in svg.attrib["aria-label"]
    )
    rows = re.findall(r"<tr>(.*?)</tr>", lag_picture.lag_table(READINGS, READINGS[-1], 1, 15.0))
    cells = [re.sub(r"<[^>]+>", " ", row).split() for row in rows]
    assert cells[1:] == [
        ["1", "leader", "0", "0", "0", "0"],
        ["2", "0", "0", "1", "3"],
        ["3", "150", "15000", "150", "15000"],
    ]


@pytest.mark.parametrize(
    ("value", "full"), [(10, 10), (11, 20), (21, 50), (51, 100), (101, 200), (999, 1000)]
)
def test_an_axis_ends_with_a_round_number(value: float, full: float) -> None:
    """1, 2 or 5 times a power of ten."""
    assert lag_picture._round_up(value) == full


# The panel of lag

OnLoop = Callable[[Callable[[], Awaitable[None]]], None]


def test_the_lag_panel_follows_the_cluster_and_writes_on_request(cluster: Cluster) -> None:
    """The picture moves by itself; the toggle begins and ends the load."""

    async def main() -> None:
        panel = lab.LagPanel(cluster, every=0.02)
        follower = followers(cluster)[0]
        lab.stall(cluster, follower)
        panel.write.value = True
        while not re.search(rf"Replica {follower} is [1-9]\d* entries", panel.picture.value):
            await asyncio.sleep(0.01)
        assert f'<th scope="row">{follower}</th>' in panel.table.value
        cluster.network.reconnect(follower)
        panel.write.value = False
        assert "ondisk-load" not in {thread.name for thread in threading.enumerate()}
        await asyncio.to_thread(wait_until_level, cluster)
        panel.refresh()
        assert f"Replica {follower} is 0 entries and 0 ms behind" in panel.picture.value
        panel.close()
        panel.close()

    asyncio.run(main())


def test_a_new_lag_panel_closes_the_former_one_and_nothing_grows(tmp_path: Path) -> None:
    """Threads, tasks and widgets: as many after the third as after the first, even while one writes."""

    async def main() -> None:
        counts = []
        for _ in range(3):
            cluster = Cluster(tmp_path / "data")
            await asyncio.to_thread(cluster.wait_for_leader)
            panel = lab.LagPanel(cluster)
            panel.write.value = True
            await asyncio.sleep(0)  # cancelled tasks end
            counts.append((threading.active_count(), len(asyncio.all_tasks()), len(_instances)))
        assert counts[0] == counts[1] == counts[2]
        panel.close()
        cluster.close()

    asyncio.run(main())


# Load, and what it costs


def test_the_load_keeps_its_pace_and_stores_the_time(cluster: Cluster) -> None:
    """It does not wait for answers: while the cluster cannot commit it goes on, and loses nothing."""
    leader = cluster.wait_for_leader()
    with lab.Load(cluster, per_second=500, value_bytes=100) as load:
        wait_until(lambda: load.done >= 20)
        cluster.network.isolate(leader)
        done = load.done
        wait_until(lambda: cluster.status()[leader].waiting >= 20)
        cluster.network.heal()
        wait_until(lambda: load.done > done)
    value = cluster.get("clock", timeout=10)
    assert value is not None
    assert len(value) == 100
    assert 0 <= cluster.network.clock() - float(value) < 60
    assert re.match(r"\d+ puts done, \d+ failed", repr(load))


def test_the_load_counts_what_fails(cluster: Cluster) -> None:
    """By the name of the error; it raises nothing."""
    with lab.Load(cluster, per_second=200) as load:
        for replica_id in cluster.members:
            cluster.stop(replica_id)
        wait_until(lambda: load.failed["ReplicaStopped"] >= 3)
    assert "ReplicaStopped" in repr(load)


def test_one_put_at_a_time_has_an_fsync_to_itself_and_many_share_one(cluster: Cluster) -> None:
    """Group commit, as the leader counts its fsyncs."""

    async def main() -> None:
        alone = await lab.measure_puts(cluster, 1, seconds=0.2)
        together = await lab.measure_puts(cluster, 64, seconds=0.2)
        assert 0.9 <= alone.puts_per_sync <= 1.1
        assert together.puts_per_sync > 4
        assert together.puts_per_second > alone.puts_per_second

    asyncio.run(main())


def test_a_measurement_that_cannot_be_made_is_an_error(cluster: Cluster) -> None:
    """Without a majority there is nothing to measure."""
    for replica_id in followers(cluster):
        cluster.stop(replica_id)
    wait_until(lambda: cluster.leader_id is None)
    cluster_waits = cluster.wait_for_leader
    cluster.wait_for_leader = lambda timeout=0.1: cluster_waits(timeout)  # type: ignore[method-assign]
    with pytest.raises(NoLeader):
        asyncio.run(lab.measure_puts(cluster, 1))


def test_the_leader_and_the_faster_follower_decide_how_long_a_put_takes(
    cluster: Cluster, disks: dict[int, lab.SlowDisk]
) -> None:
    """A slow follower is outvoted; a slow leader costs one fsync, and so do both followers, or all three."""
    leader = cluster.wait_for_leader()
    one, other = followers(cluster)

    async def latency(*who: int, below: float = float("inf")) -> float:
        """A busy machine only adds to it: so of some tries one must stay below."""
        for _ in range(10):
            with lab.slow(disks, who, seconds=0.05):
                cost = await lab.measure_puts(cluster, 1, seconds=0.2)
            assert all(disk.at_least == 0 for disk in disks.values())
            if cost.latency < below:
                break
        return cost.latency

    async def main() -> None:
        assert await latency(one, below=0.05) < 0.05
        for who in ((leader,), (one, other), (leader, one), (leader, one, other)):
            assert 0.05 <= await latency(*who, below=0.1) < 0.1

    asyncio.run(main())


def test_a_slow_disk_is_as_slow_as_it_is_told_and_not_slower() -> None:
    """A sync that takes longer by itself is not made longer still; each is timed."""
    disk = lab.SlowDisk()
    disk.at_least = 0.3
    disk.sync(lambda: None)
    disk.sync(lambda: time.sleep(0.35))
    fast, slow = disk.took
    assert fast >= 0.3
    assert 0.35 <= slow < 0.6
    disk.at_least = 0.0
    disk.sync(lambda: None)
    assert disk.took[2] < fast


# Away: stalled or cut off


def go_away(cluster: Cluster, fault: Any) -> Absence:
    with LagRecorder(cluster) as recorder:
        absence = asyncio.run(lab.go_away(cluster, recorder, fault, seconds=0.5, value_bytes=1_000))
        assert [note.text for note in recorder.notes] == [
            f"links of replica {absence.follower} {fault}",
            "links work again",
        ]
    assert not cluster.network.cut_links()
    assert not cluster.network.stalled_links()
    assert absence.behind.entries > 20
    assert absence.behind.milliseconds > 200
    return absence


def test_a_stalled_follower_gets_the_old_messages_late(cluster: Cluster) -> None:
    """Nothing is lost and nothing is sent again."""
    absence = go_away(cluster, "stalled")
    assert absence.sent >= absence.late > 0
    assert (absence.lost, absence.again) == (0, 0)


def test_a_follower_that_was_cut_off_gets_many_entries_in_few_messages(cluster: Cluster) -> None:
    """All messages are lost; the log is sent again, not the messages."""
    absence = go_away(cluster, "cut off")
    assert absence.sent == absence.lost > 0
    assert absence.late == 0
    assert 0 < absence.again < absence.lost
    assert absence.most_entries > 20
    assert 0 < absence.log_syncs < absence.behind.entries


def test_a_follower_that_does_not_come_back_is_an_error_and_is_reconnected(
    cluster: Cluster, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The experiment leaves no fault behind."""
    monkeypatch.setattr("ondisk.lab.experiments.absence._CATCH_UP_WITHIN", 0.2)
    follower = followers(cluster)[0]
    reconnect = cluster.network.reconnect
    calls: list[int] = []

    def only_the_second_time(replica_id: int) -> None:
        calls.append(replica_id)
        if len(calls) == 2:
            reconnect(replica_id)

    monkeypatch.setattr(cluster.network, "reconnect", only_the_second_time)
    with LagRecorder(cluster) as recorder, pytest.raises(TimeoutError, match=f"replica {follower}"):
        asyncio.run(lab.go_away(cluster, recorder, "cut off", seconds=0.2))
    assert not cluster.network.cut_links()
    assert "ondisk-load" not in {thread.name for thread in threading.enumerate()}


def test_two_absences_stand_side_by_side() -> None:
    """One column each, and the same as text."""
    stalled = Absence("stalled", 2, Lag(400, 2000.0), 300, 0, 300, 0, 3, 1, 0.01)
    cut_off = Absence("cut off", 2, Lag(410, 2010.0), 310, 310, 0, 4, 130, 2, 0.3)
    picture = lab.compare_absences(stalled, cut_off)
    assert '<th scope="col">stalled</th><th scope="col">cut off</th>' in picture.html
    assert "<td>300</td><td>310</td>" in picture.html
    assert "lost for good: 0, 310" in str(picture)


# Plots


def alternative_text(html: str) -> str:
    found = re.search(r'<img alt="([^"]*)" src="data:image/png;base64,iVBOR', html)
    assert found
    return found[1]


def test_the_plot_of_a_record_says_what_happened_and_how_finely_it_was_read(cluster: Cluster) -> None:
    """Alternative text with the numbers; a table with the same ones; the resolution in its caption."""
    follower = followers(cluster)[0]
    wait_until_level(cluster)
    with LagRecorder(cluster) as recorder:
        cluster.network.isolate(follower)
        recorder.note("cut <off>")
        for number in range(3):
            cluster.put("k", str(number))
        wait_until(lambda: recorder.read().lags[follower].milliseconds > 20)
    picture = lab.plot_lag(recorder, cluster.leader_id)
    most = max(reading.lags[follower].milliseconds for reading in recorder.readings)
    said = alternative_text(picture.html)
    assert "cut &lt;off&gt; at 0." in said
    assert f"replica {follower}: at most 3 entries and " in said
    assert picture.words in str(picture)
    row = re.search(rf'<th scope="row">{follower}</th>(.*?)</tr>', picture.html)
    assert row
    cells = re.findall(r"<td>(.*?)</td>", row[1])
    assert cells[3] == "3"
    assert cells[6] == f"{most:.0f}"
    assert re.search(r"\d+ readings, one every [\d.]+ ms \(median\), the longest gap \d+ ms", picture.html)


def test_a_record_without_readings_is_said_to_be_empty(cluster: Cluster) -> None:
    """Plotted too early, it raises nothing."""
    with LagRecorder(cluster, every=3600) as recorder:
        recorder.begin()
        assert "Nothing was read yet" in str(lab.plot_lag(recorder, None))


def test_the_plots_of_costs_say_their_numbers() -> None:
    """As alternative text and as a table."""
    costs = [Cost(1, 100, 1.0, 100, 0.01), Cost(64, 5000, 1.0, 100, 0.0128)]
    bars = lab.plot_latencies({"nobody's": costs[0], "<the> leader's": costs[1]})
    assert "nobody&#x27;s: 10.0 ms; &lt;the&gt; leader&#x27;s: 12.8 ms" in alternative_text(bars.html)
    assert "<td>100</td><td>10.0</td>" in bars.html
    group = lab.plot_group_commit({"this disk": costs})
    assert "this disk, 64 under way: 5000 puts per second, 50.0 puts per fsync" in alternative_text(
        group.html
    )
    assert "<td>64</td><td>5,000</td><td>100</td><td>0.020</td><td>50.0</td><td>12.8</td>" in group.html


def test_a_figure_leaves_nothing_behind_in_matplotlib() -> None:
    """No figure is kept by pyplot, so none piles up when cells are run again."""
    import matplotlib.pyplot as plt

    figure = new_figure(2, 2)
    figure.subplots().plot([1, 2])
    assert alternative_text(figure_picture(figure, "A line.").html) == "A line."
    assert plt.get_fignums() == []


# The exercises


def test_every_exercise_has_three_hints_and_an_answer_that_is_not_there_yet() -> None:
    """The notebook runs from top to bottom before anything is solved."""
    assert exercises(2) == ["2.1", "2.2", "2.3", "2.4"]
    for number in exercises(2):
        assert not check(number, ...).right
        assert {hint(number).text[:6] for _ in range(3)} == {"Hint 1", "Hint 2", "Hint 3"}
        assert "no more hints" in hint(number).text
    for number in ("2.1", "2.2"):
        assert "no number yet" in check(number, lambda *_: ...).text


def since_the_newest_commit(readings: list[Reading], replica_id: int) -> float:
    last = readings[-1]
    newest = next(r.time for r in readings if r.commit_index == last.commit_index)
    return 0 if last.applied[replica_id] == last.commit_index else 1000 * (last.time - newest)


def since_it_last_moved(readings: list[Reading], replica_id: int) -> float:
    last = readings[-1]
    moved = next(r.time for r in readings if r.applied[replica_id] == last.applied[replica_id])
    return 0 if last.applied[replica_id] == last.commit_index else 1000 * (last.time - moved)


def since_the_first_reading_that_was_behind(readings: list[Reading], replica_id: int) -> float:
    last = readings[-1]
    behind = [r.time for r in readings if r.applied[replica_id] < r.commit_index]
    return 0 if last.applied[replica_id] == last.commit_index else 1000 * (last.time - behind[0])


@pytest.mark.parametrize(
    ("wrong", "told"),
    [
        (since_the_newest_commit, "none of them arrives"),
        (since_it_last_moved, "time without puts"),
        (since_the_first_reading_that_was_behind, "half-way"),
        (lambda readings, _: 1000 * (readings[-1].time - readings[0].time), "nothing is written any more"),
        (lambda readings, _: readings[-1].lags[2].milliseconds, "could not be checked"),
    ],
)
def test_a_wrong_definition_of_lag_is_told_where_it_is_wrong(wrong: Any, told: str) -> None:
    """Each plausible mistake fails in a case that shows it."""
    feedback = check("2.1", wrong)
    assert not feedback.right
    assert told in feedback.text


def test_the_definition_in_seconds_is_told_about_the_unit() -> None:
    """The rest of it is right."""

    def seconds(readings: list[Reading], replica_id: int) -> float:
        for reading in readings:
            if reading.commit_index > readings[-1].applied[replica_id]:
                return readings[-1].time - reading.time
        return 0

    assert "Milliseconds are asked for" in check("2.1", seconds).text


@pytest.mark.parametrize(
    ("wrong", "told"),
    [
        (lambda leader, followers: leader + min(followers, default=0), "equal disks"),
        (lambda leader, f: sorted([leader, *f])[(1 + len(f)) // 2], "the leader's disk is slow"),
        (lambda leader, followers: max(leader, max(followers, default=0)), "one of two followers"),
        (lambda leader, followers: max(leader, min(followers, default=0)), "five replicas"),
        (lambda leader, f: max(leader, sorted(f)[len(f) // 2 - 1]) if f else leader, "four replicas"),
        (lambda leader, f: max(leader, sorted(f)[(1 + len(f)) // 2 - 1]), "could not be checked"),
    ],
)
def test_a_wrong_rule_for_the_latency_is_told_where_it_is_wrong(wrong: Any, told: str) -> None:
    """Each plausible mistake fails in a case that shows it."""
    feedback = check("2.2", wrong)
    assert not feedback.right
    assert told in feedback.text


def test_a_wrong_number_of_puts_is_told_why() -> None:
    """And never which number is right."""
    for wrong, told in (
        (100, "fsyncs to itself"),
        (5_000, "while the leader does"),
        (50, "More is possible"),
        (1e6, "that fast"),
        ("10000 per second", "without a unit"),
    ):
        feedback = check("2.3", wrong)
        assert not feedback.right
        assert told in feedback.text
        assert "10,000" not in feedback.text


def test_readings_without_the_wanted_lag_are_told_what_they_lack() -> None:
    """Nobody behind, not long enough, or by too many entries."""
    for lag, told in (
        (Lag(0, 0.0), "Nobody was behind"),
        (Lag(2, 900.0), "900 ms is the most"),
        (Lag(4, 1500.0), "by 4 entries"),
    ):
        feedback = check("2.4", [Reading(1.0, 5, {1: 5}, {1: lag})])
        assert not feedback.right
        assert told in feedback.text
    assert check("2.4", [Reading(1.0, 5, {1: 5}, {1: Lag(3, 1001.0)})]).right


def test_the_cases_of_an_exercise_differ() -> None:
    """No case is there twice."""
    assert len(set(map(str, exercises_02._CASES.values()))) == len(exercises_02._CASES) == 5


def test_a_measurement_ends_with_its_experiment(tmp_path: Path) -> None:
    """Whoever reads on before looking at the plot sees the same as after Run All."""
    with Cluster(tmp_path) as cluster, LagRecorder(cluster) as recorder:
        recorder.note("before the beginning")
        recorder.begin()
        recorder.note("in it")
        last = recorder.read().time
        recorder.end()
        recorder.note("too late")
        assert recorder.read().time > last
        assert recorder.readings[-1].time <= recorder.ended
        assert [note.text for note in recorder.notes] == ["in it"]
        recorder.begin()
        assert recorder.read() in recorder.readings
