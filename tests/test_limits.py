"""Limits: no legal message is larger than a frame, and what could not be sent is answered all the same."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest

from ondisk import Cluster, Node
from ondisk.client import wait_for
from ondisk.diskkv import DiskKV, put
from ondisk.errors import ConfigurationError
from ondisk.net import tcp
from ondisk.net.memory import MemoryNetwork
from ondisk.raft import Timing, limits
from ondisk.raft import log as raftlog
from ondisk.raft.limits import (
    COMMAND_OVERHEAD,
    MAX_COMMAND_BYTES,
    MAX_ENTRIES,
    MAX_FRAME_BYTES,
    MAX_MEMBERS,
    MAX_MEMBERS_BYTES,
    MAX_RESULT_BYTES,
    OUTCOMES_BYTES,
    check_members,
    check_timing,
    largest_messages,
    result_bytes,
    sendable,
)
from ondisk.raft.members import MAX_ID, Members, encode
from ondisk.raft.messages import (
    AddReplica,
    AppendEntries,
    AppendEntriesRejection,
    AppendEntriesResponse,
    Found,
    Membership,
    Message,
    NewerTerm,
    Outcome,
    Outcomes,
    Propose,
    ProposeChange,
    ReadIndexRejection,
    ReadIndexRequest,
    ReadIndexResponse,
    Refused,
    Removed,
    RequestVote,
    RequestVoteResponse,
    SnapshotAck,
    SnapshotChunk,
    SnapshotNeeded,
    SnapshotRejection,
    TimeoutNow,
    decoder,
    encoder,
)
from ondisk.raft.records import LogEntry
from ondisk.replica import replica
from ondisk.replica.proposals import _in_parts
from ondisk.sessions import APPLIED_BUT, RESULT_NOT_KEPT
from ondisk.snapshot import sender, stream
from ondisk.snapshot.stream import CHUNK_BYTES, Chunk, Writer, make_header
from ondisk.statemachine import Entry, Result
from tests.processes import free_ports
from tests.virtual import World
from tests.waiting import wait_until

BIG = (1 << 63) - 1
ADDRESS = "h" * 62 + "." + "h" * 62 + "." + "h" * 62 + "." + "h" * 62 + ":65535"


def test_what_has_two_names_is_one_number() -> None:
    """Who changes one of them has to change the other."""
    assert limits.MAX_COMMAND_BYTES == replica.MAX_COMMAND_BYTES  # type: ignore[attr-defined]
    assert limits.MAX_ENTRIES == raftlog._TAIL_ENTRIES
    assert sender.WINDOW * stream.CHUNK_BYTES < limits.MAX_UNSENT_BYTES


# Times


@pytest.mark.parametrize("field", Timing._fields)
@pytest.mark.parametrize("value", [0, -1, float("nan"), float("inf"), "1", None, True])
def test_nonsense_in_a_timing_is_named(field: str, value: object) -> None:
    """Whatever the field: no number, not finite, or not above 0. A bound on the clocks may be left out."""
    if field == "clock_drift" and value is None:
        check_timing(Timing())
        return
    with pytest.raises(ConfigurationError, match=f"timing: {field} is a "):
        check_timing(Timing()._replace(**{field: value}))  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("changes", "named"),
    [
        ({"heartbeat": 0.6}, "election_min .* heartbeat"),
        ({"election_min": 2.5}, "election_max .* election_min"),
        ({"batch_bytes": 6 << 20}, "batch_bytes"),
        ({"batch_bytes": 1.5}, "batch_bytes is a whole number"),
        ({"window_bytes": 15 << 20}, "window_bytes"),
    ],
)
def test_periods_and_sizes_that_do_not_fit_together_are_named(
    tmp_path: Path, changes: dict[str, Any], named: str
) -> None:
    """A cluster refuses them at once: nothing is left open, and nothing was written."""
    timing = Timing()._replace(**changes)
    network = MemoryNetwork()
    for _ in range(2):
        with pytest.raises(ConfigurationError, match=named):
            Cluster(tmp_path, timing=timing, network=network)
    assert not list(tmp_path.glob("*/log"))
    with Cluster(tmp_path, network=network) as cluster:
        cluster.put("k", "v")


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"heartbeat": 0.5},
        {"election_min": 2.0},
        {"first_election": 10.0},
        {"commit_notice": 5.0},
        {"batch_bytes": 1, "window_bytes": 1},
        {"heartbeat": 1000, "election_min": 2000, "election_max": 1e9},
    ],
)
def test_odd_periods_are_legal(changes: dict[str, Any]) -> None:
    """An experiment may be slow, or send one entry at a time."""
    check_timing(Timing()._replace(**changes))


# Sizes


def members_of(count: int, address: str) -> Members:
    """The most that can be said of so many voters and learners."""
    ids = tuple(range(MAX_ID - count, MAX_ID))
    return Members(
        ids,
        where=tuple((each, address) for each in ids),
        group=bytes(16),
        disks=tuple((each, bytes(16)) for each in ids),
    )


def grown(members: Members) -> Members:
    """The same after as many changes as a group may ever see."""
    step = 500
    while True:
        more = Members(
            members.voters,
            removed=members.removed + tuple(range(MAX_ID - step, MAX_ID)),
            where=members.where,
            group=members.group,
            disks=members.disks,
            replaced=members.replaced + (bytes(16),) * step,
        )
        try:
            check_members(more)
        except ConfigurationError:
            if step == 1:
                return members
            step //= 2
        else:
            members = more


def largest_entries(timing: Timing) -> list[list[LogEntry]]:
    """The batches that ``RaftLog.entries`` can hand out and that are the largest."""
    share = timing.batch_bytes // MAX_ENTRIES
    return [
        [LogEntry(BIG, BIG, bytes(share)) for _ in range(MAX_ENTRIES)],
        [LogEntry(BIG, BIG, bytes(MAX_COMMAND_BYTES + 1))],
        [LogEntry(BIG, BIG, bytes(timing.batch_bytes))],
    ]


def largest_of_each_type(timing: Timing) -> Iterator[Message]:
    """Legal messages that are as large as those of their type can be."""
    crowd = members_of(MAX_MEMBERS, ADDRESS)
    members = grown(crowd)
    for entries in largest_entries(timing):
        yield AppendEntries(BIG, BIG, BIG, entries, BIG, BIG)
    yield Propose(BIG, [bytes(max(0, timing.batch_bytes - COMMAND_OVERHEAD - 1)), bytes(MAX_COMMAND_BYTES)])
    yield Propose(BIG, [b""] * (timing.batch_bytes // COMMAND_OVERHEAD))
    yield Outcomes([Outcome(BIG, "applied", largest_result())])
    for part in _in_parts([Outcome(BIG, "not_leader")] * 100_000):
        yield Outcomes(part)
    for part in _in_parts([Outcome(BIG, "applied", Result(-BIG, "\U0001f40c" * 20))] * 20_000):
        yield Outcomes(part)
    yield Membership(BIG, members)
    chunks: list[Chunk] = []
    writer = Writer(make_header(BIG, BIG, members), chunks.append)
    writer.write(bytes(CHUNK_BYTES))
    writer.finish()
    for chunk in chunks:
        yield SnapshotChunk(BIG, BIG, Chunk(BIG, BIG, chunk.data, BIG))
    roster = tuple((number, bytes(16), ADDRESS) for number in crowd.voters)
    yield Found(crowd.voters, ADDRESS, bytes(32), BIG, roster, True)
    yield ProposeChange(BIG, AddReplica(BIG, ADDRESS, again=True))
    yield Refused(bytes(16), "x" * 1_000)
    yield RequestVote(BIG, BIG, BIG, pre=True)
    yield RequestVoteResponse(BIG, pre=True)
    yield NewerTerm(BIG)
    yield AppendEntriesResponse(BIG, BIG, BIG, BIG)
    yield AppendEntriesRejection(BIG, BIG, BIG, BIG)
    yield SnapshotNeeded(BIG, BIG)
    yield ReadIndexRequest(BIG)
    yield ReadIndexResponse(BIG, BIG)
    yield ReadIndexRejection(BIG)
    yield TimeoutNow(BIG)
    yield Removed()
    yield SnapshotAck(BIG, BIG, BIG)
    yield SnapshotRejection(BIG)


def largest_result() -> Result:
    size = MAX_RESULT_BYTES
    while sendable(result := Result(bytes(size))) is not result:
        size -= 1
    return result


@pytest.mark.parametrize("batch_bytes", [1, 1 << 20, 5 << 20])
def test_the_largest_legal_message_of_each_type_fits_into_a_frame(batch_bytes: int) -> None:
    """And is no larger than the table says. Each type is tried, and comes back as it was."""
    timing = Timing(batch_bytes=batch_bytes)
    check_timing(timing)
    bounds = largest_messages(timing)
    tried = set()
    for message in largest_of_each_type(timing):
        tag = str(type(message).__struct_config__.tag)
        encoded = encoder.encode(message)
        assert len(encoded) <= bounds.get(tag, bounds["others"]) <= MAX_FRAME_BYTES, tag
        assert decoder.decode(encoded) == message
        tried.add(type(message))
    assert tried == set(Message.__args__)


def test_the_table_is_no_wild_guess() -> None:
    """Its numbers are reached within a few percent: a bound that is far too high would hide a mistake."""
    bounds = largest_messages(Timing())
    largest: dict[str, int] = {}
    for message in largest_of_each_type(Timing()):
        tag = str(type(message).__struct_config__.tag)
        largest[tag] = max(largest.get(tag, 0), len(encoder.encode(message)))
    for tag in bounds.keys() - {"others"}:
        assert largest[tag] > 0.7 * bounds[tag], tag


def test_members_that_would_not_fit_are_refused_before_they_are_appended(tmp_path: Path) -> None:
    """Thousands of changes later: nothing is changed, and the group goes on."""
    world = World(tmp_path)
    try:
        leader = world.elect()
        world.run(1.0)
        assert leader.log is not None
        crowded = grown(leader.raft.members)
        assert len(encode(crowded)) <= MAX_MEMBERS_BYTES
        leader.raft.membership.members = crowded  # as if they had all happened
        future = leader.propose_change(AddReplica(7, ADDRESS), world.now + 30)
        world.run_until(future.done)
        assert "the members would have" in str(future.result().error)
        leader.raft.membership.members = leader.log.members
        write = leader.propose(put("k", "v"), world.now + 30)
        world.run_until(write.done)
        assert write.result().error is None
    finally:
        world.close()


def test_more_first_members_than_a_group_can_have_are_refused(tmp_path: Path) -> None:
    """Before anything is opened."""
    with pytest.raises(ConfigurationError, match="at most 255 members, not 256"):
        Node(1, range(1, 257), tmp_path, MemoryNetwork()).start()


@pytest.mark.parametrize(
    ("limit", "check"),
    [
        ("MAX_MEMBERS", lambda: check_members(Members((1, 2, 3)))),
        ("MAX_MEMBERS_BYTES", lambda: check_members(Members((1, 2, 3)))),
        ("MAX_FRAME_BYTES", lambda: check_timing(Timing())),
        ("MAX_UNSENT_BYTES", lambda: check_timing(Timing())),
    ],
)
def test_what_just_fits_is_legal_and_one_more_is_not(
    monkeypatch: pytest.MonkeyPatch, limit: str, check: Callable[[], None]
) -> None:
    fits = {
        "MAX_MEMBERS": 3,
        "MAX_MEMBERS_BYTES": len(encode(Members((1, 2, 3)))),
        "MAX_FRAME_BYTES": max(largest_messages(Timing()).values()),
        "MAX_UNSENT_BYTES": Timing().window_bytes + max(Timing().batch_bytes, MAX_COMMAND_BYTES),
    }
    monkeypatch.setattr(limits, limit, fits[limit])
    check()
    monkeypatch.setattr(limits, limit, fits[limit] - 1)
    with pytest.raises(ConfigurationError):
        check()


def test_a_result_that_just_fits_is_sent(monkeypatch: pytest.MonkeyPatch) -> None:
    result = Result(b"x" * 100)
    size = len(encoder.encode(result))
    monkeypatch.setattr(limits, "MAX_RESULT_BYTES", size)
    assert sendable(result) is result
    monkeypatch.setattr(limits, "MAX_RESULT_BYTES", size - 1)
    assert f"its result of {size} bytes is too large to be sent" in str(sendable(result).error)


# Results


def test_outcomes_are_cut_into_parts_that_fit() -> None:
    """In order, none twice, none missing, and no more parts than are needed."""
    outcomes = [Outcome(i, "applied", Result(bytes(64 << 10))) for i in range(300)]
    parts = list(_in_parts(outcomes))
    assert [outcome for part in parts for outcome in part] == outcomes
    assert all(len(encoder.encode(Outcomes(part))) <= OUTCOMES_BYTES for part in parts)
    assert len(parts) == 20
    assert list(_in_parts([])) == []


@pytest.mark.parametrize(
    "result",
    [
        Result(),
        Result(b"x" * 1000),
        Result(True),
        Result(-(1 << 63)),
        Result((1 << 64) - 1),
        Result(None, "ü" * 100),
        Result(b"", ""),
    ],
)
def test_a_result_that_can_be_sent_is_left_alone(result: Result) -> None:
    """It is the same object, arrives as it was, and is not larger than was reckoned."""
    assert sendable(result) is result
    message = Outcomes([Outcome(BIG, "applied", result)])
    encoded = encoder.encode(message)
    assert decoder.decode(encoded) == message
    assert len(encoded) <= result_bytes(result) + len(encoder.encode(Outcomes([])))


@pytest.mark.parametrize(
    "result",
    [
        Result(bytes(MAX_RESULT_BYTES)),
        Result(None, "x" * MAX_RESULT_BYTES),
        Result(1 << 64),
        Result(3.5),  # type: ignore[arg-type]
        Result("text"),  # type: ignore[arg-type]
        Result([1]),  # type: ignore[arg-type]
        Result(object()),  # type: ignore[arg-type]
        Result(None, "\udcff"),
        Result(None, 7),  # type: ignore[arg-type]
    ],
    ids=["bytes", "error", "number", "float", "text", "list", "object", "surrogate", "no text"],
)
def test_a_result_that_cannot_be_sent_says_that_the_command_was_applied(result: Result) -> None:
    """And what is said can be sent."""
    said = sendable(result)
    assert said.value is None and said.error is not None and said.error.startswith(APPLIED_BUT)
    assert decoder.decode(encoder.encode(Outcomes([Outcome(1, "applied", said)])))
    assert RESULT_NOT_KEPT.startswith(APPLIED_BUT)


class Talkative(DiskKV):
    """Answers what the test says."""

    answer = Result()

    def update(self, entries: Sequence[Entry]) -> list[Result]:
        return [self.answer for _ in super().update(entries)]


@pytest.fixture
def three(tmp_path: Path) -> Iterator[Callable[[Result], dict[int, Node]]]:
    """Start three replicas on TCP whose state machine answers each command with this result."""
    nodes: dict[int, Node] = {}

    def start(answer: Result) -> dict[int, Node]:
        class Machine(Talkative):
            pass

        Machine.answer = answer
        addresses = {i: ("127.0.0.1", port) for i, port in enumerate(free_ports(3), 1)}
        for i in addresses:
            network = tcp.TcpNetwork(addresses)
            nodes[i] = Node(i, tuple(addresses), tmp_path, network, state_machine=Machine)
            nodes[i].start()
        wait_until(lambda: all(node.status.leader_id for node in nodes.values()))
        return nodes

    yield start
    for node in nodes.values():
        node.stop()


def test_results_that_are_more_than_a_connection_holds_all_arrive(
    three: Callable[[Result], dict[int, Node]],
) -> None:
    """19 MB of them at once, through a follower: they are kept until there is room."""
    nodes = three(Result(bytes(64 << 10)))
    follower = next(node for node in nodes.values() if node.status.role == "follower")
    futures = [follower.propose_async(put(f"k{i}", "v"), timeout=20) for i in range(300)]
    assert {len(wait_for(future, 20).value) for future in futures} == {64 << 10}  # type: ignore[arg-type]


@pytest.mark.parametrize(
    "answer",
    [Result(bytes(MAX_RESULT_BYTES)), Result(1 << 64), Result(3.5)],  # type: ignore[arg-type]
    ids=["large", "number", "float"],
)
def test_who_asks_anywhere_is_told_the_same_of_a_result_that_cannot_be_sent(
    three: Callable[[Result], dict[int, Node]], answer: Result
) -> None:
    """The leader's caller and a follower's: applied, but. The connections stay, and so do the replicas."""
    nodes = three(answer)
    told = {node.propose(put(f"k{i}", "v"), timeout=10).error for i, node in nodes.items()}
    assert told == {sendable(answer).error}
    assert nodes[1].put("k", "v") == sendable(answer)  # and it is no ``Rejected``
    for i in nodes:
        assert nodes[2].get(f"k{i}") == b"v"


def test_outcomes_for_who_has_left_are_not_kept_for_ever(tmp_path: Path) -> None:
    """There is nobody to take them: its callers have been told by their own side."""
    world = World(tmp_path)
    try:
        leader = world.elect()
        follower = world.replicas[world.others(leader.id)[0]]
        refused: list[Message] = []
        send = leader._endpoint.send

        def no_room(to: int, message: Message) -> bool:
            if isinstance(message, Outcomes):
                refused.append(message)
                return False
            return send(to, message)

        leader._endpoint.send = no_room  # type: ignore[method-assign]
        future = follower.propose(put("k", "v"), world.now + 30)
        world.run(0.2)
        assert len(refused) > 1 and not future.done()  # tried again at each step
        world.stop(follower.id)
        world.run(0.1)
        tries = len(refused)
        world.run(0.5)
        assert len(refused) == tries and not leader._proposals._outcomes
    finally:
        world.close()


def test_outcomes_that_found_no_room_are_sent_later(tmp_path: Path) -> None:
    """And nobody waits for a deadline."""
    world = World(tmp_path)
    try:
        leader = world.elect()
        follower = world.replicas[world.others(leader.id)[0]]
        room = [False, False, False, True]
        send = leader._endpoint.send

        def send_if_there_is_room(to: int, message: Message) -> bool:
            if isinstance(message, Outcomes) and room and not room.pop(0):
                return False
            return send(to, message)

        leader._endpoint.send = send_if_there_is_room  # type: ignore[method-assign]
        future = follower.propose(put("k", "v"), world.now + 30)
        world.run_until(future.done, 2.0)
        assert future.result() == Result()
    finally:
        world.close()
