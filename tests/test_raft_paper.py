"""Figure 2 of the Raft paper as it can be read (``ondisk/lab/raft_paper.py``), in real replicas."""

from __future__ import annotations

import ast
import inspect
import re
from pathlib import Path

import pytest

from ondisk.lab import raft_paper
from ondisk.lab.raft_paper_replica import PAPER_FAULTS, PaperRaft, PaperRaftThatStepsDown, PaperReplica
from ondisk.raft import Raft
from ondisk.raft.messages import AppendEntries, AppendEntriesRejection
from ondisk.raft.records import LogEntry
from ondisk.replica import Replica
from ondisk.simulation.faults import KINDS
from ondisk.simulation.run import Report, Setting, run
from tests import scenario
from tests.lengths import LONG, short_and_long
from tests.virtual import World, fill, put

ROOT = Path(__file__).parents[1]
PAGE = (ROOT / "docs" / "raft-paper.md").read_text(encoding="utf-8")
SCRIPTS = sorted((ROOT / "tests" / "scenarios").glob("*.txt"))

# What the other scenarios need beyond the paper's figure.
NEEDS_MORE = {
    "07-prevote": "PreVote",
    "08-lost-majority": "CheckQuorum",
    "09-figure-8": "PreVote",
    "11-leadership-transfer": "leadership transfer",
    "12-snapshot": "PreVote",
    "14-add": "changes of members",
    "15-remove": "changes of members",
    "16-wiped": "lost disks",
    "17-replaced-disk": "lost disks",
    "19-deaf-leader": "CheckQuorum",
    "20-two-groups": "changes of members",
}


# The file


def test_it_is_short_and_does_nothing_but_take_and_give_messages() -> None:
    """No thread, socket, clock, file or chance: it imports nothing that has one."""
    source = inspect.getsource(raft_paper)
    assert len(source.splitlines()) <= 420
    imported = {each.module for each in ast.walk(ast.parse(source)) if isinstance(each, ast.ImportFrom)}
    assert imported == {"__future__", "collections.abc", "enum", "typing", "ondisk.raft.records"}
    assert not [each for each in ast.walk(ast.parse(source)) if isinstance(each, ast.Import)]


def test_it_has_the_names_of_the_figure() -> None:
    """In Python's spelling, and its parts in the figure's order."""
    source = inspect.getsource(raft_paper)
    names = (
        "currentTerm votedFor commitIndex lastApplied nextIndex matchIndex leaderId prevLogIndex prevLogTerm "
        "leaderCommit candidateId lastLogIndex lastLogTerm voteGranted"
    )
    for name in names.split():
        in_python = re.sub("([A-Z])", r"_\1", name).lower()
        assert re.search(rf"\b{in_python}\b", source), name
    parts = ["State", "AppendEntries RPC", "RequestVote RPC", "Rules for all servers", "Rules for followers"]
    parts += ["Rules for candidates", "Rules for leaders"]
    places = [source.index(f"    # {part}") for part in parts]
    assert places == sorted(places)


def test_nothing_of_the_engine_runs() -> None:
    """All that ``Raft`` offers is here anew, so it is not PySyncObj that passes the tests below."""
    offered = {name for name in vars(Raft) if not name.startswith("_") and not name.endswith("_type")}
    assert offered <= vars(PaperRaft).keys() | {"log", "id"}


# By itself


class Memory:
    """A log in memory. Only what is written here is asked for."""

    def __init__(self) -> None:
        self.term, self.voted_for, self.base_index = 0, None, 0
        self.list: list[LogEntry] = []

    @property
    def last_index(self) -> int:
        return len(self.list)

    @property
    def last_term(self) -> int:
        return self.list[-1].term if self.list else 0

    def set_hard_state(self, term: int, voted_for: int | None) -> None:
        self.term, self.voted_for = term, voted_for  # type: ignore[assignment]

    def term_at(self, index: int) -> int | None:
        if not index:
            return 0
        return self.list[index - 1].term if index <= len(self.list) else None

    def entries(self, first: int, last: int, max_bytes: int | None = None) -> list[LogEntry]:
        return self.list[first - 1 : last]

    def append(self, entries: list[LogEntry]) -> None:
        self.list += entries

    def truncate_from(self, index: int) -> None:
        del self.list[index - 1 :]


def servers(count: int) -> dict[int, raft_paper.Raft]:
    """Server 1 stands first."""
    numbers = range(1, count + 1)
    return {
        number: raft_paper.Raft(
            number,
            set(numbers) - {number},
            Memory(),
            now=0.0,
            election_timeout=lambda number=number: float(number),
            heartbeat=0.1,
        )
        for number in numbers
    }


def deliver(
    group: dict[int, raft_paper.Raft], sender: int, outgoing: raft_paper.Outgoing, now: float
) -> None:
    """Carry messages, and what they cause, until nobody says anything."""
    waiting = [(sender, to, message) for to, message in outgoing]
    while waiting:
        sender, to, message = waiting.pop(0)
        waiting += [(to, next_to, each) for next_to, each in group[to].receive(sender, message, now)]


def test_three_servers_agree_without_anything_else() -> None:
    """No replica, no disk: messages are lists that are carried from one to the other."""
    group = servers(3)
    deliver(group, 1, group[1].tick(1.1), 1.1)
    assert [each.role.value for each in group.values()] == ["leader", "follower", "follower"]
    group[1].propose([b"x", b"y"], 1.2)
    deliver(group, 1, group[1].replicate(1.2), 1.2)
    assert group[1].commit_index == 3
    deliver(group, 1, group[1].tick(1.4), 1.4)  # the next heartbeat says how far to apply
    for each in group.values():
        assert [entry.command for entry in each.to_apply()][1:] == [b"x", b"y"]


def test_an_old_message_takes_nothing_back() -> None:
    """It is repeated, or comes late: what follows it stays, and so does the commit index."""
    group = servers(3)
    early: list[raft_paper.Message] = []
    deliver(group, 1, group[1].tick(1.1), 1.1)
    for command in (b"x", b"y"):
        group[1].propose([command], 1.2)
        outgoing = group[1].replicate(1.2)
        early.append(dict(outgoing)[2])
        deliver(group, 1, outgoing, 1.2)
    deliver(group, 1, group[1].tick(1.4), 1.4)
    before = list(group[2].log.list), group[2].commit_index  # type: ignore[attr-defined]
    for message in early:
        ((_, result),) = group[2].receive(1, message, 1.5)
        assert isinstance(result, raft_paper.AppendEntriesResult) and result.success
    assert (group[2].log.list, group[2].commit_index) == before  # type: ignore[attr-defined]


# The scenarios


def played(script: Path, directory: Path, monkeypatch: pytest.MonkeyPatch, raft_type: type[Raft]) -> str:
    """What this Raft makes of a scenario."""
    replica_type = type("Replica", (Replica,), {"raft_type": raft_type})
    monkeypatch.setattr(scenario.Stage, "replica_type", replica_type)
    return scenario.run(script.read_text(encoding="utf-8"), directory)


def states(trace: str) -> list[str]:
    """All but the messages: who asks for votes how often, and how a follower says no, is another Raft's."""
    return [" ".join(line.split()) for line in trace.splitlines() if not re.match(r"\d\w? to \d", line)]


PASSED = [script for script in SCRIPTS if script.stem not in NEEDS_MORE]


@pytest.mark.parametrize("script", PASSED, ids=lambda script: script.stem)
def test_it_passes_the_scenarios_that_need_no_more_than_the_paper(
    script: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The same states of all replicas, and the same answers, after each step."""
    trace = played(script, tmp_path, monkeypatch, PaperRaft)
    assert states(trace) == states(script.read_text(encoding="utf-8"))


@pytest.mark.parametrize("name", [pytest.param(name, marks=LONG) for name in NEEDS_MORE])
def test_the_other_scenarios_need_more(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Else this list is too long."""
    script = ROOT / "tests" / "scenarios" / f"{name}.txt"
    try:
        trace = played(script, tmp_path, monkeypatch, PaperRaft)
    except (ValueError, AssertionError):  # nobody leads, or it waits for what never comes
        return
    assert states(trace) != states(script.read_text(encoding="utf-8"))


def test_figure_8_ends_as_in_the_paper(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Only the terms of who is cut off differ: an entry that a majority holds is overwritten, and in the
    moment in which it holds it (c) the leader takes nothing for committed.
    """
    script = ROOT / "tests" / "scenarios" / "09-figure-8.txt"
    trace = played(script, tmp_path, monkeypatch, PaperRaft)
    assert re.search(r"^1 +leader +term 3 +\| 1:- 1:x=1 3:- +applied 0$", trace, re.MULTILINE)
    last = dict(re.findall(r"^(\d) .*?term \d+ +(.*?) +applied", trace, re.MULTILINE))
    assert last == dict.fromkeys("12345", "1:- 2:- 4:- |")
    assert "put x=1 at 1: OutcomeUnknown" in trace


def test_the_page_has_each_scenario_with_what_it_needs() -> None:
    for script in SCRIPTS:
        needs = NEEDS_MORE.get(script.stem, "nothing")
        assert f"| [{script.stem}](../tests/scenarios/{script.name}) | {needs} |" in PAGE


# The simulator

# What is found, on the first seed that shows it; docs/raft-paper.md names it as well.
WITHOUT_CHECK_QUORUM = (1, 8.0, "fresh evidence")
WITHOUT_LOST_DISKS = (1, 3.0, "progress")


def paper(raft_type: type[Raft] | None, *kinds: str, seconds: float = 60.0) -> Setting:
    return Setting(raft_type=raft_type, kinds=(*PAPER_FAULTS, *kinds), seconds=seconds)


def test_a_group_of_one_goes_on_after_its_disk_failed() -> None:
    """Seed 79: an fsync fails, the replica stops, and nobody refuses it when it comes back with that disk."""
    report = run(79, paper(PaperRaftThatStepsDown, seconds=20.0))
    assert report.rule is None, report.violation
    failed = [event.time for event in report.trace if event.kind == "failed"]
    led = [event.time for event in report.trace if event.kind == "status" and "1: leader" in event.words]
    assert len(failed) == 1 and led[-1] > failed[0]
    assert not [event for event in report.trace if event.kind == "refused"]


@pytest.mark.parametrize("which", short_and_long((range(2), 15.0), (range(200), 60.0)))
def test_with_check_quorum_the_simulator_finds_nothing_in_the_world_of_the_paper(
    which: tuple[range, float],
) -> None:
    seeds, seconds = which
    for seed in seeds:
        report = run(seed, paper(PaperRaftThatStepsDown, seconds=seconds), tracing=False)
        assert report.rule is None, f"seed {seed}: {report.violation}"


def test_a_leader_without_a_majority_goes_on_for_ever() -> None:
    seed, seconds, rule = WITHOUT_CHECK_QUORUM
    assert run(seed, paper(PaperRaft, seconds=seconds), tracing=False).rule == rule
    assert run(seed, paper(PaperRaftThatStepsDown, seconds=seconds), tracing=False).rule is None
    assert f"seed {seed} of {seconds:g} s: {rule}" in PAGE


def test_who_has_lost_its_disk_never_comes_back() -> None:
    """The engine replaces its disk through the log, which is a change of the members."""
    seed, seconds, rule = WITHOUT_LOST_DISKS
    kinds = ("wipe", "crash", "late start")
    report = run(seed, Setting(raft_type=PaperRaftThatStepsDown, kinds=kinds, seconds=seconds), tracing=False)
    assert report.rule == rule and "this directory is new" in (report.violation or "")
    assert run(seed, Setting(kinds=kinds, seconds=seconds), tracing=False).rule is None
    assert f"seed {seed} of {seconds:g} s with lost disks: {rule}" in PAGE


def newest_term(report: Report) -> int:
    return max(int(term) for term in re.findall(r"in term (\d+)", "\n".join(map(str, report.trace))))


@pytest.mark.long
@pytest.mark.slow
def test_without_prevote_terms_grow_about_twice_as_fast() -> None:
    """Each who was cut off comes back with a newer term, and deposes the leader: as in scenario 07."""
    setting = paper(PaperRaftThatStepsDown)
    seeds = range(0, 48, 2)
    terms = sum(newest_term(run(seed, setting)) for seed in seeds)
    with_prevote = sum(newest_term(run(seed, setting._replace(raft_type=None))) for seed in seeds)
    assert 1.5 < terms / with_prevote < 3


def test_only_faults_of_these_kinds_are_drawn() -> None:
    assert set(PAPER_FAULTS) <= KINDS.keys()
    report = run(0, Setting(kinds=("pause", "latency", "late start"), seconds=5.0), tracing=False)
    assert {"pause"} <= {fault.kind for fault in report.faults} <= {"pause", "latency", "late start"}


# What it costs


def behind_a_new_leader(directory: Path, replica_type: type[Replica], monkeypatch: pytest.MonkeyPatch) -> int:
    """How often a follower that lacks 40 entries says no to a new leader."""
    monkeypatch.setattr(World, "replica_type", replica_type)
    world = World(directory)
    try:
        leader = world.elect()
        late, other = world.others(leader.id)
        world.network.isolate(late)
        fill(world, 40)
        world.crash(leader.id)
        world.run(0.5)
        world.network.heal()
        world.run_until(lambda: world.replicas[late].log.last_index >= 42)  # type: ignore[union-attr]
        assert world.leader is not None and world.leader.id == other
        return len(world.messages(AppendEntriesRejection, late))
    finally:
        world.close()


def test_a_new_leader_goes_back_one_by_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The engine's follower says where its log ends."""
    assert behind_a_new_leader(tmp_path / "engine", Replica, monkeypatch) <= 2
    assert 40 <= behind_a_new_leader(tmp_path / "paper", PaperReplica, monkeypatch) <= 45


def entries_sent(directory: Path, replica_type: type[Replica], monkeypatch: pytest.MonkeyPatch) -> int:
    """How many entries leave for 20 puts, one each 2 ms, while messages take 20 ms."""
    monkeypatch.setattr(World, "replica_type", replica_type)
    world = World(directory, latency=0.02)
    try:
        leader = world.elect()
        world.run(0.3)
        before = len(world.messages(AppendEntries))
        futures = []
        for number in range(20):
            futures.append(put(leader, f"k{number}"))
            world.tick()
        world.run_until(lambda: all(future.done() for future in futures))
        sent = world.messages(AppendEntries)[before:]
        return sum(len(message.entries) for message in sent if isinstance(message, AppendEntries))
    finally:
        world.close()


def test_what_is_under_way_is_sent_again_with_each_new_entry(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Figure 2 moves nextIndex only when an answer is there; the engine, when entries leave."""
    assert entries_sent(tmp_path / "engine", Replica, monkeypatch) == 40  # to two followers
    assert entries_sent(tmp_path / "paper", PaperReplica, monkeypatch) > 400
