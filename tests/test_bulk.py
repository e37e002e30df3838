"""A bulk load: all pairs in their order, in bounded memory, and exact about what was done when it fails."""

from __future__ import annotations

import random
import threading
from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import Future as StandardFuture
from itertools import count, islice
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ondisk import BulkLoad, Cluster, DiskKV, LoadFailed, Node, Result, bulk, diskkv, sessions
from ondisk.diskkv import MAX_KEY_BYTES, MAX_VALUE_BYTES
from ondisk.errors import ConfigurationError, InvalidCommand, NoLeader, OutcomeUnknown, ReplicaStopped
from ondisk.interrupts.futures import Future
from ondisk.interrupts.shielded import shielded
from ondisk.net.memory import MemoryNetwork
from ondisk.raft.limits import MAX_COMMAND_BYTES
from ondisk.statemachine import Entry
from tests.interrupts import bytecodes, interrupt_at
from tests.lengths import short_and_long
from tests.stores import FullDisk
from tests.waiting import wait_until

Pair = tuple[bytes, bytes]
SMALL = {"batch_bytes": 60, "window_bytes": 200}  # three pairs in a command, some four commands


def pairs(number: int, keys: int = 1_000_000) -> list[Pair]:
    """The same keys come again and again, each time with another value."""
    return [(b"k%d" % (i % keys), b"v%d" % i) for i in range(number)]


class Enough(Exception):
    """Raised by a test that has seen what it wants to see."""


class Group:
    """A store whose log the test writes: what becomes of a command is drawn when somebody waits for it.

    It is applied, or not taken in, or nobody knows: then it may still be applied, at any later time.
    """

    class Reply(Future[Result]):
        """Its outcome is decided when it is waited for."""

        group: Group

        def exception(self, timeout: float | None = None) -> BaseException | None:
            self.group.decide()
            return super().exception(0.0 if self.group.silent else timeout)

    def __init__(self, seed: int = 0, *, faults: float = 0.0) -> None:
        self.random = random.Random(seed)
        self.faults = faults
        self.data: dict[bytes, bytes] = {}
        self.asked: deque[tuple[bytes, Group.Reply]] = deque()
        self.late: list[bytes] = []
        self.silent = False  # whether nothing is decided
        self.commands: list[dict[bytes, bytes]] = []  # with pairs, that were proposed
        self.most_in_flight = 0
        self._sessions = sessions.Sessions()
        self._index = 0

    def propose_async(
        self, command: bytes, *, via: int | None = None, timeout: float = 3.0
    ) -> StandardFuture[Result]:
        reply = self.Reply()
        reply.group = self
        self.asked.append((command, reply))
        self.commands += [found for found in [pairs_in(command)] if found]
        self.most_in_flight = max(self.most_in_flight, sum(len(pairs_in(each)) for each, _ in self.asked))
        return reply

    def propose(self, command: bytes, *, via: int | None = None, timeout: float = 3.0) -> Result:
        return self.propose_async(command).result()

    def _check_sessions(self, via: int | None) -> None: ...

    def apply(self, command: bytes) -> Result:
        def put_all(inner: bytes) -> Result:
            self.data.update(diskkv._decoder.decode(inner).pairs)
            return Result()

        self._index += 1
        batch = self._sessions.batch()
        result = batch.answer(Entry(self._index, command), put_all)
        batch.commit()
        return result

    @shielded  # it is no part of what is interrupted
    def decide(self) -> None:
        while self.asked and not self.silent:
            command, reply = self.asked.popleft()
            while self.late and self.random.random() < 0.3:
                self.apply(self.late.pop(self.random.randrange(len(self.late))))
            if not reply.set_running_or_notify_cancel():
                continue
            if self.random.random() >= self.faults:
                reply.set_result(self.apply(command))
            elif self.random.random() < 0.4:
                reply.set_exception(NoLeader("not taken in"))
            elif self.random.random() < 0.5:
                self.apply(command)
                reply.set_exception(OutcomeUnknown("nobody knows"))
            else:
                self.late.append(command)
                reply.set_exception(OutcomeUnknown("nobody knows"))

    def end(self) -> dict[bytes, bytes]:
        """All that is still on its way arrives."""
        self.decide()
        while self.late:
            self.apply(self.late.pop(0))
        return self.data

    def load(self, given: Any, **options: Any) -> BulkLoad:
        return BulkLoad(self, given, **{**SMALL, **options})


def pairs_in(envelope: bytes) -> dict[bytes, bytes]:
    """The pairs that a command sets; none if it is about the session."""
    decoded = sessions._envelopes.decode(envelope[len(sessions._ENVELOPE) :])
    if not isinstance(decoded, sessions.Once):
        return {}
    command = diskkv._decoder.decode(decoded.command)
    assert isinstance(command, diskkv.PutMany)
    return command.pairs


@pytest.fixture
def group() -> Group:
    return Group()


@pytest.fixture(autouse=True)
def no_pause(monkeypatch: pytest.MonkeyPatch) -> None:
    """Before what has failed is sent again: here nobody needs it."""
    monkeypatch.setattr(bulk, "_PAUSE", 0.0)


# What is stored


def test_all_pairs_are_stored_in_few_commands(cluster: Cluster) -> None:
    """Text or bytes; of a key that comes twice, in one command or in two, the last value counts."""
    before = cluster.status()[cluster.wait_for_leader()].last_index
    given = [("text", "wert"), ("text", b"bytes"), *pairs(5000, keys=3000)]
    assert cluster.put_many(iter(given)) == 5002
    assert cluster.get("text") == b"bytes"
    expected = dict(pairs(5000, keys=3000))
    assert dict(cluster.scan("k", limit=10_000)) == expected
    assert cluster.status()[cluster.wait_for_leader()].last_index - before < 10


def test_through_any_replica(cluster: Cluster) -> None:
    for via in (1, 2, 3):
        assert cluster.put_many([(b"k%d" % via, b"v")] * 3, via=via) == 3
    assert len(cluster.scan("k")) == 3


def test_through_a_node(tmp_path: Path) -> None:
    """A replica without a cluster around it; once it is stopped, that is said at once."""
    node = Node(1, [1], tmp_path, MemoryNetwork())
    node.start()
    try:
        assert node.put_many(pairs(2000), timeout=60) == 2000
        assert node.get("k1999") == b"v1999"
    finally:
        node.stop()
    with pytest.raises(LoadFailed, match="replica 1 is stopped"):
        node.put_many(pairs(3), timeout=1000)


def test_in_a_session_many_are_put_by_one_command(cluster: Cluster) -> None:
    """A session has no load: it has one of its own. Its command can be proposed there."""
    with cluster.session() as session:
        assert session.propose(diskkv.put_many(pairs(300))) == Result()
        session.incr("n")
        assert not hasattr(session, "put_many")
    assert cluster.get("k299") == b"v299"


def test_no_pairs_are_no_command(group: Group) -> None:
    assert group.load([]).run() == 0
    assert group.commands == []


def test_a_load_that_is_done_does_nothing_when_it_is_run_again(group: Group) -> None:
    load = group.load(iter(pairs(20)))
    assert load.run() == load.run() == 20
    assert sum(map(len, group.commands)) == 20


def test_the_largest_pairs_fit_beside_whatever_is_in_their_command(group: Group) -> None:
    large = [(b"k", b"v" * (bulk._MAX_BATCH_BYTES - 50)), (b"x" * MAX_KEY_BYTES, b"y" * MAX_VALUE_BYTES)]
    assert group.load(large, batch_bytes=bulk._MAX_BATCH_BYTES).run() == 2
    assert [len(each) for each in group.commands] == [2]
    assert group.end() == dict(large)
    with pytest.raises(InvalidCommand, match="batch_bytes is a whole number from 1 to"):
        group.load(large, batch_bytes=bulk._MAX_BATCH_BYTES + 1)
    assert len(sessions.once(2**63 - 1, 2**63 - 1, diskkv.put_many(large))) <= MAX_COMMAND_BYTES


def test_a_command_has_no_more_pairs_than_a_step_shall_apply(group: Group, monkeypatch: Any) -> None:
    monkeypatch.setattr(bulk, "MAX_PAIRS", 7)
    group.load(pairs(20), batch_bytes=10_000, window_bytes=10_000).run()
    assert [len(each) for each in group.commands] == [7, 7, 6]


# Memory


def test_no_more_is_taken_than_there_is_room_for(group: Group) -> None:
    """An iterable without an end: what waits in memory is bounded, and the rest stays where it is."""
    handed_out = 0
    worst = 0

    def endless() -> Iterator[Pair]:
        nonlocal handed_out, worst
        for number in count():
            handed_out += 1
            worst = max(worst, handed_out - load.stored)
            yield b"%06d" % number, b"x" * 4

    def enough(load: BulkLoad) -> None:
        commands, size = load.window
        assert size < 200 + 60 + 20 and commands <= 6
        if load.stored > 1000:
            raise Enough

    load = group.load(endless(), progress=enough)
    with pytest.raises(Enough):
        load.run()
    assert 8 < worst <= 17  # (200 + 60) bytes, 20 for each pair, and what does not fill a command
    assert 3 < group.most_in_flight <= 17


def test_progress_is_told_as_it_is_made_and_shown_in_words(group: Group) -> None:
    seen: list[tuple[int, int]] = []
    load = group.load(pairs(100), progress=lambda load: seen.append((load.stored, load.stored_bytes)))
    load.run()
    assert seen == sorted(set(seen)) and len(seen) > 10
    assert seen[-1] == (100, sum(len(key) + len(value) for key, value in pairs(100)))
    assert str(load) == "100 pairs stored (0.0 MB), 0 under way in 0 commands (0.0 MB)"


# Failures, and how it goes on


@settings(max_examples=40, deadline=None, derandomize=True, database=None)
@given(seed=st.integers(0, 2**32), faults=st.sampled_from([0.1, 0.3, 0.6]), patient=st.booleans())
def test_whatever_is_lost_or_late_the_last_values_stay_and_every_claim_holds(
    seed: int, faults: float, patient: bool
) -> None:
    """Commands are not taken in, or applied without a word, or long after they were given up."""
    group = Group(seed, faults=faults)
    given = pairs(60, keys=11)
    load = group.load(iter(given), timeout=30.0 if patient else 1.0)
    passing = count()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(bulk, "time", SimpleNamespace(monotonic=lambda: next(passing) * 0.1))
        while load.stored < 60:
            try:
                load.run()
            except LoadFailed as failed:
                assert failed.load is load
                check_claims(group, load, given)
    assert group.end() == dict(given)


def check_claims(group: Group, load: BulkLoad, given: list[Pair]) -> None:
    """What a load says of each pair is so, whatever happens to what is still on its way."""
    known = load.outcomes()
    assert [part.start for part in known[1:]] == [part.stop for part in known[:-1]]
    assert (known[-1].stop if known else 0) == load.taken
    stored = [number for part in known if part.outcome == "stored" for number in range(*part[:2])]
    assert stored[: load.stored] == list(range(load.stored))
    unproposed = [number for part in known if part.outcome == "not done" for number in range(*part[:2])]
    applied = group.data
    on_its_way = [
        pair
        for command in [*group.late, *(each for each, reply in group.asked if not reply.cancelled())]
        for pair in pairs_in(command).items()
    ]
    for number in [*unproposed, *range(load.taken, len(given))]:  # every value comes once
        assert given[number][1] not in applied.values()
        assert given[number] not in on_its_way
    for number in stored:
        key, value = given[number]
        later = [given[other][1] for other in range(number + 1, load.taken) if given[other][0] == key]
        assert applied[key] in (value, *later)


@pytest.mark.parametrize("times", short_and_long(60, 600))
@pytest.mark.parametrize("one_shot", [True, False])
def test_an_interrupt_at_any_bytecode_leaves_claims_that_hold_and_a_load_that_goes_on(
    one_shot: bool, times: int
) -> None:
    """A list goes on by itself; an iterator that was interrupted has to be given anew, and it says so."""
    given = pairs(16, keys=7)

    def make(number: int) -> tuple[Group, BulkLoad]:
        group = Group(number, faults=0.1)
        return group, group.load((pair for pair in given) if one_shot else given)

    total = bytecodes(make(0)[1].run)
    asked_for_the_rest = 0
    for number in sorted(random.Random(1).sample(range(1, total), times)):
        group, load = make(number)
        interrupt_at(load.run, number)
        group.decide()
        check_claims(group, load, given)
        try:
            load.run()
        except LoadFailed as failed:
            assert one_shot and "hand over the pairs from number" in str(failed)
            assert load.stored == load.taken  # all that was taken is stored by then
            asked_for_the_rest += 1
            load.run(islice(given, load.taken, None))
        assert load.stored == len(given)
        assert group.end() == dict(given)
    assert bool(asked_for_the_rest) == one_shot


# Pairs that are none, and whoever makes them


@pytest.mark.parametrize(
    ("bad", "complaint"),
    [
        ((b"k", 5), "pair number 40: a value is str or bytes, not int"),
        ((b"k" * (MAX_KEY_BYTES + 1), b""), "pair number 40: the key has 65,537 bytes"),
        (b"kv", r"pair number 40 is b'kv', and not a key and a value \(of a dict, hand over its items"),
        ((b"k", b"v", b"w"), "pair number 40 is .*, and not a key and a value"),
        (None, "pair number 40 is None"),
    ],
)
def test_a_bad_pair_is_named_and_those_before_it_are_stored(group: Group, bad: Any, complaint: str) -> None:
    """It and what comes after it were not proposed; without it the load goes on."""
    given = pairs(100)
    load = group.load(iter([*given[:40], bad, *given[40:]]))
    with pytest.raises(LoadFailed, match=complaint) as failed:
        load.run()
    assert isinstance(failed.value.__cause__, InvalidCommand)
    assert load.outcomes() == [(0, 40, "stored")]
    assert group.data == dict(given[:40])
    with pytest.raises(LoadFailed, match="hand over the pairs from number 40 on"):
        load.run()
    assert load.run(given[40:]) == 100
    assert group.data == dict(given)


def test_a_list_that_was_mended_goes_on_by_itself(group: Group) -> None:
    given: list[Any] = [*pairs(30), "no pair", *pairs(60)[31:]]
    load = group.load(given)
    with pytest.raises(LoadFailed, match="pair number 30"):
        load.run()
    given[30] = pairs(31)[30]
    assert load.run() == 60
    assert group.data == dict(pairs(60))


def test_the_error_of_a_generator_is_the_cause_and_what_it_gave_is_stored(group: Group) -> None:
    def broken() -> Iterator[Pair]:
        yield from pairs(25)
        raise ConnectionResetError("the database went away")

    load = group.load(broken())
    with pytest.raises(
        LoadFailed, match=r"went away\. Of 25 pairs that were taken the first 25 are st"
    ) as failed:
        load.run()
    assert isinstance(failed.value.__cause__, ConnectionResetError)
    assert load.run(pairs(40)[25:]) == 40
    assert group.data == dict(pairs(40))


@pytest.mark.parametrize("no_pairs", [None, 7])
def test_what_is_no_iterable_is_refused_at_once(group: Group, no_pairs: Any) -> None:
    with pytest.raises(InvalidCommand, match="pairs are an iterable of"):
        group.load(no_pairs)


def test_an_iterator_that_takes_its_time_does_not_count_as_a_group_that_is_slow(
    group: Group, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The timeout is about what was proposed."""
    now = 0.0

    def slow() -> Iterator[Pair]:
        nonlocal now
        for pair in pairs(30):
            now += 100.0
            yield pair

    monkeypatch.setattr(bulk, "time", SimpleNamespace(monotonic=lambda: now))
    group.faults, group.random = 0.4, random.Random(3)
    assert group.load(slow(), timeout=50.0).run() == 30


# On real replicas

FEW = {"batch_bytes": 20_000, "window_bytes": 60_000}  # of some 130 pairs each, and four under way


def some(number: int) -> Iterator[Pair]:
    return ((b"k%06d" % i, b"%06d" % i * 20) for i in range(number))


def test_a_leader_that_is_killed_holds_a_load_up_and_costs_nothing(cluster: Cluster) -> None:
    """It is sent again to the next one; so it is when the leader is cut off, and when it hands over."""
    trouble: list[Callable[[int], object]] = [
        cluster.crash,
        cluster.network.isolate,
        lambda leader: cluster.transfer_leadership(leader % 3 + 1, timeout=30),
    ]

    def disturb(load: BulkLoad) -> None:
        if load.stored > 2000 * (4 - len(trouble)) and trouble:
            for member in cluster.members:
                cluster.start(member)
            cluster.network.heal()
            trouble.pop(0)(cluster.wait_for_leader())

    load = cluster.bulk_load(some(12_000), progress=disturb, **FEW, timeout=120)
    assert load.run() == 12_000
    assert not trouble
    cluster.network.heal()
    held = [
        pair for start in ("k", "k006") for pair in cluster.scan("k", start=start, limit=6000, timeout=30)
    ]
    assert held == list(some(12_000))


def test_without_a_majority_it_fails_in_time_and_says_what_is_unknown(cluster: Cluster) -> None:
    """And goes on from there when the others are back."""
    leader = cluster.wait_for_leader()

    def cut(load: BulkLoad) -> None:
        if load.stored > 1000:
            cluster.network.isolate(leader)

    load = cluster.bulk_load(some(6000), progress=cut, via=leader, **FEW, timeout=0.5)
    with pytest.raises(LoadFailed) as failed:
        load.run()
    assert isinstance(failed.value.__cause__, OutcomeUnknown | NoLeader)
    assert 1000 < load.stored <= load.taken < load.stored + 60_000 // 130 + 500
    assert load.count("unknown") > 0
    assert f"of {load.count('unknown'):,} later ones the outcome is unknown" in str(failed.value)
    for number in (0, load.stored - 1):
        assert cluster.stale_get(b"k%06d" % number, via=leader) is not None
    cluster.network.heal()
    assert cluster.stale_get(b"k%06d" % load.taken, via=leader) is None
    again = cluster.bulk_load(some(6000), timeout=60)
    assert again.run() == 6000
    load._progress, load._timeout, load._via = None, 60.0, None
    assert load.run() == 6000
    assert cluster.scan("k", limit=10_000, timeout=30) == list(some(6000))


def test_a_full_disk_stops_its_replica_and_the_load_goes_on_through_another(
    make_cluster: Callable[..., Cluster],
) -> None:
    """Two full disks are no majority: it fails, and goes on when there is room."""
    disks = {member: FullDisk() for member in (1, 2, 3)}
    cluster = make_cluster(disks=disks)
    first = cluster.wait_for_leader()
    others = [member for member in cluster.members if member != first]

    def fill(load: BulkLoad) -> None:
        disks[first].full = load.stored > 1000
        disks[others[0]].full = load.stored > 3000

    load = cluster.bulk_load(some(8000), progress=fill, **FEW, timeout=4)
    with pytest.raises(LoadFailed):
        load.run()
    assert 3000 < load.stored < 8000
    assert cluster.status()[first].role == "failed"
    for member in (first, others[0]):
        disks[member].full = False
        cluster.start(member)
    load._progress = None
    load._timeout = 60.0
    assert load.run() == 8000
    assert cluster.scan("k", limit=10_000, timeout=30) == list(some(8000))


def test_a_closed_cluster_is_said_at_once_and_nothing_was_proposed(cluster: Cluster) -> None:
    cluster.close()
    load = cluster.bulk_load(some(10), timeout=1000)
    with pytest.raises(LoadFailed, match="no replica is running") as failed:
        load.run()
    assert isinstance(failed.value.__cause__, ReplicaStopped)
    assert load.outcomes() == [(0, 10, "not done")]


def test_a_cluster_that_is_closed_in_the_middle_is_said_at_once(cluster: Cluster) -> None:
    def close(load: BulkLoad) -> None:
        if load.stored > 1000:
            cluster.close()

    load = cluster.bulk_load(some(6000), progress=close, **FEW, timeout=1000)
    with pytest.raises(LoadFailed, match="no replica is running"):
        load.run()
    assert 1000 < load.stored < 6000


def test_a_machine_without_sessions_takes_no_load(make_cluster: Callable[..., Cluster]) -> None:
    class Without(DiskKV):
        offers_sessions = False

    cluster = make_cluster(state_machine=Without)
    with pytest.raises(LoadFailed, match="Without offers no sessions") as failed:
        cluster.put_many(pairs(3), timeout=1000)
    assert isinstance(failed.value.__cause__, ConfigurationError)


def test_a_session_that_was_pushed_out_is_followed_by_another_one(
    cluster: Cluster, room_for: Callable[[int], None]
) -> None:
    room_for(2)

    def push_out(load: BulkLoad) -> None:
        if 1000 < load.stored < 3000:
            for _ in range(2):
                cluster.session()

    load = cluster.bulk_load(some(6000), progress=push_out, **FEW, timeout=120)
    assert load.run() == 6000
    assert cluster.scan("k", limit=10_000) == list(some(6000))


def test_a_second_thread_that_runs_a_load_waits_for_the_first(group: Group) -> None:
    """And then finds it done."""
    stored: list[int] = []
    second = threading.Thread(target=lambda: stored.append(load.run()))

    def slow() -> Iterator[Pair]:
        for number, pair in enumerate(pairs(100)):
            if number == 50:
                second.start()
                wait_until(lambda: len(load._turn._line) == 2 or not second.is_alive())
                assert second.is_alive()
            yield pair

    load = group.load(slow())
    assert load.run() == 100
    second.join()
    assert stored == [100]
    assert sum(map(len, group.commands)) == 100


def test_what_nobody_has_taken_in_is_not_done_and_never_will_be(
    group: Group, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A load that gives up takes back what still waits for a leader: its outcome is not unknown."""
    passing = count()
    monkeypatch.setattr(bulk, "time", SimpleNamespace(monotonic=lambda: next(passing) * 0.1))

    once = iter([True])

    def fall_silent(load: BulkLoad) -> None:
        group.silent = group.silent or (load.stored > 20 and next(once, False))

    load = group.load(iter(pairs(100)), progress=fall_silent)
    with pytest.raises(LoadFailed):
        load.run()
    assert [part.outcome for part in load.outcomes()] == ["stored", "not done"]
    group.silent = False
    assert group.end() == dict(pairs(load.stored))
    assert load.run() == 100
