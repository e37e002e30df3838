"""Three real replicas in threads: what a user of ``Cluster`` may rely on."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path

import pytest

from ondisk import (
    Cluster,
    CommandTooLarge,
    DiskKV,
    Entry,
    InvalidCommand,
    NoLeader,
    NotDone,
    OutcomeUnknown,
    Rejected,
    ReplicaStopped,
    Result,
)
from ondisk.errors import ConfigurationError
from ondisk.replica.replica import MAX_COMMAND_BYTES
from ondisk.storage.disk import Disk
from tests.waiting import all_applied, wait_until


def contents(cluster: Cluster, member: int) -> dict[bytes, bytes]:
    """Everything one replica holds."""
    found: dict[bytes, bytes] = {}
    machine, start = cluster.machine(member), b""
    while page := machine.lookup(_scan_from(start)):
        found.update(page)
        start = page[-1][0] + b"\0"
    return found


def _scan_from(start: bytes) -> object:
    from ondisk.diskkv import Scan

    return Scan(start=start, limit=10_000)


class CountingKV(DiskKV):
    """DiskKV that notes which entries it was handed, and what open() returned."""

    def __init__(self, path: Path) -> None:
        super().__init__(path)
        self.opened = -1
        self.seen: list[int] = []

    def open(self) -> int:
        self.opened = super().open()
        return self.opened

    def update(self, entries: Sequence[Entry]) -> list[Result]:
        self.seen += [entry.index for entry in entries]
        return super().update(entries)


# Puts and gets


def test_ten_thousand_puts_through_all_replicas_reach_all_replicas(cluster: Cluster) -> None:
    """8 threads put through replicas 1, 2 and 3: every acknowledged put is in every replica."""

    def put_many(thread: int) -> dict[bytes, bytes]:
        acknowledged = {}
        futures = {}
        for number in range(1250):
            key, value = f"t{thread}-{number}", f"value {number}"
            futures[key, value] = cluster.put_async(key, value, via=1 + number % 3, timeout=60)
            if number % 50 == 49:
                for (k, v), future in futures.items():
                    future.result(60)
                    acknowledged[k.encode()] = v.encode()
                futures.clear()
        return acknowledged

    with ThreadPoolExecutor(8) as pool:
        expected = {key: value for part in pool.map(put_many, range(8)) for key, value in part.items()}
    assert len(expected) == 10_000
    wait_until(lambda: all_applied(cluster))
    assert [contents(cluster, member) == expected for member in (1, 2, 3)] == [True] * 3


def test_a_put_is_seen_by_a_get_through_every_replica(cluster: Cluster) -> None:
    """A linearizable read through any replica sees every put acknowledged before it began."""
    for number in range(60):
        cluster.put("k", str(number), via=1 + number % 3)
        assert cluster.get("k", via=1 + (number + 1) % 3) == str(number).encode()


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("k", ""),
        ("", "empty key"),
        ("clé ✓ 鍵 🔑", "värde 値 💾"),
        (bytes(range(256)), bytes(reversed(range(256)))),
        ("applied_index", "a user's key of that name is no problem"),
        (b"\xff" * 8, b"\x00"),
    ],
)
def test_any_bytes_and_any_text_come_back_as_they_went_in(
    cluster: Cluster, key: str | bytes, value: str | bytes
) -> None:
    """str is taken as UTF-8; an empty value is not a missing one."""
    cluster.put(key, value)
    expected = value.encode() if isinstance(value, str) else value
    assert [cluster.get(key, via=member) for member in (1, 2, 3)] == [expected] * 3


def test_a_missing_key_is_none_and_not_empty(cluster: Cluster) -> None:
    """get tells a missing key from an empty value."""
    cluster.put("empty", "")
    assert (cluster.get("missing"), cluster.get("empty")) == (None, b"")


def test_delete_incr_compare_and_set_and_scan_answer_through_any_replica(cluster: Cluster) -> None:
    """Every command and its answer, through a replica that forwards."""
    via = next(member for member in (1, 2, 3) if member != cluster.leader_id)
    assert cluster.incr("n", 5, via=via) == Result(5)
    assert cluster.incr("n", -7, via=via) == Result(-2)
    assert cluster.compare_and_set("n", "-2", "x", via=via) == Result(True)
    assert cluster.compare_and_set("n", "-2", "y", via=via) == Result(False)
    assert cluster.compare_and_set("new", None, "z", via=via) == Result(True)
    assert cluster.scan(via=via) == [(b"n", b"x"), (b"new", b"z")]
    assert cluster.delete("n", via=via) == Result(True)
    assert cluster.delete("n", via=via) == Result(False)
    assert cluster.scan("n", start="new", limit=1) == [(b"new", b"z")]
    with pytest.raises(Rejected, match="not a number"):
        cluster.incr("new")


@pytest.mark.parametrize(
    ("call", "error", "says"),
    [
        (lambda c: c.put(7, "v"), InvalidCommand, "a key is str or bytes, not int"),
        (lambda c: c.put("k", None), InvalidCommand, "a value is str or bytes, not NoneType"),
        (lambda c: c.put("k", "v" * (1 << 20) + "v"), InvalidCommand, "at most 1,048,576 are allowed"),
        (lambda c: c.put("k" * (1 << 16) + "k", "v"), InvalidCommand, "at most 65,536 are allowed"),
        (lambda c: c.put("\ud800", "v"), InvalidCommand, "not valid text"),
        (lambda c: c.incr("k", 1.5), InvalidCommand, "whole number"),
        (lambda c: c.scan(limit=0), InvalidCommand, "limit"),
        (lambda c: c.read("what?"), InvalidCommand, "Get and Scan"),
        (lambda c: c.propose(b"x" * (MAX_COMMAND_BYTES + 1)), CommandTooLarge, "at most 2,097,152"),
        (lambda c: c.get("k", via=9), ConfigurationError, "no replica 9"),
    ],
)
def test_wrong_input_is_refused_with_a_sentence_and_changes_nothing(
    cluster: Cluster, call: Callable[[Cluster], object], error: type[Exception], says: str
) -> None:
    """The error names what is wrong; nothing was proposed."""
    wait_until(lambda: all_applied(cluster) and cluster.status()[1].last_index)  # the leader's no-op
    before = cluster.status()[1].last_index
    with pytest.raises(error, match=says):
        call(cluster)
    assert cluster.status()[1].last_index == before


def test_the_largest_value_is_stored_by_all_replicas(cluster: Cluster) -> None:
    """A value of exactly 1 MiB passes through the log, the network and RocksDB."""
    cluster.put("big", b"x" * (1 << 20), timeout=20)
    assert [len(cluster.get("big", via=member, timeout=20) or b"") for member in (1, 2, 3)] == [1 << 20] * 3


def test_a_malformed_command_is_the_same_error_everywhere_and_stops_nobody(cluster: Cluster) -> None:
    """Every replica answers it with a Result, so that one bad client cannot stop them."""
    results = {cluster.propose(b"\xc1 nonsense", via=member) for member in (1, 2, 3)}
    assert len(results) == 1
    assert "malformed command" in str(results.pop().error)
    wait_until(lambda: all_applied(cluster))
    assert {status.role for status in cluster.status().values()} == {"leader", "follower"}


# Restart


def test_a_restart_replays_nothing_that_open_already_covers(make_cluster: Callable[..., Cluster]) -> None:
    """update is never called at or below the index that open() returned, and the data is there."""
    cluster = make_cluster(state_machine=CountingKV)
    for number in range(200):
        cluster.put(f"k{number}", "v")
    wait_until(lambda: all_applied(cluster))
    cluster.close()
    cluster = make_cluster(state_machine=CountingKV)
    assert cluster.get("k199") == b"v"
    wait_until(lambda: all_applied(cluster))
    for member in (1, 2, 3):
        machine = cluster.machine(member)
        assert machine.opened >= 200
        assert machine.seen == []
        assert len(contents(cluster, member)) == 200


def test_a_crashed_replica_is_handed_only_what_its_state_lacks(make_cluster: Callable[..., Cluster]) -> None:
    """After a power cut the state reopens at an older index, and the log hands over exactly the rest."""
    cluster = make_cluster(state_machine=CountingKV)
    for number in range(100):
        cluster.put(f"k{number}", "v")
    wait_until(lambda: all_applied(cluster))
    victim = next(member for member in (1, 2, 3) if member != cluster.leader_id)
    cluster.crash(victim)
    cluster.put("after", "v")
    cluster.start(victim)
    wait_until(lambda: all_applied(cluster))
    machine = cluster.machine(victim)
    assert all(index > machine.opened for index in machine.seen)
    assert machine.seen == sorted(set(machine.seen))
    assert contents(cluster, victim) == contents(cluster, cluster.leader_id)


def test_all_replicas_crash_and_every_acknowledged_put_is_there(make_cluster: Callable[..., Cluster]) -> None:
    """A power cut of all three, a few times, in the middle of a load."""
    acknowledged: dict[bytes, bytes] = {}
    for round_number in range(3):
        cluster = make_cluster()
        cluster.wait_for_leader()
        lock = threading.Lock()

        def note(key: bytes, future: Future[Result], lock: threading.Lock = lock) -> None:
            if not future.cancelled() and not future.exception():
                with lock:
                    acknowledged[key] = b"v"

        before = len(acknowledged)
        for number in range(400):
            key = f"{round_number}-{number}".encode()
            future = cluster.put_async(key, "v")
            future.add_done_callback(lambda done, key=key, note=note: note(key, done))
        wait_until(lambda before=before: len(acknowledged) > before + 100)
        for member in (1, 2, 3):
            cluster.crash(member)
    cluster = make_cluster()
    cluster.get("any", timeout=10)
    wait_until(lambda: all_applied(cluster))
    for member in (1, 2, 3):
        assert acknowledged.items() <= contents(cluster, member).items()


def test_gets_that_are_under_way_together_see_every_put_before_them(cluster: Cluster) -> None:
    """Through any replica, each by a future."""
    asked = {}
    for number in range(60):
        cluster.put("n", str(number))
        asked[number] = cluster.get_async("n", via=1 + number % 3, timeout=60)
    for number, future in asked.items():
        assert int(future.result(60) or b"-1") >= number
    assert cluster.get_async("missing").result(10) is None
    with pytest.raises(InvalidCommand):
        cluster.read_async("no query").result(10)


def test_a_get_that_nobody_can_confirm_ends_with_its_deadline(cluster: Cluster) -> None:
    leader = cluster.wait_for_leader()
    cluster.network.isolate(leader)
    with pytest.raises(NoLeader):
        cluster.get_async("k", via=leader, timeout=0.2).result(10)


# Faults


def test_a_leader_without_its_majority_never_serves_an_old_value(cluster: Cluster) -> None:
    """Its put fails as unknown or not done, its linearizable get fails, only its stale get is old."""
    cluster.put("k", "old")
    old = cluster.wait_for_leader()
    others = [member for member in (1, 2, 3) if member != old]
    cluster.network.partition({old}, others)
    started = time.monotonic()
    with pytest.raises((OutcomeUnknown, NoLeader)):
        cluster.put("k", "lost", via=old, timeout=1.0)
    assert time.monotonic() - started < 10
    wait_until(lambda: cluster.leader_id in others)
    cluster.put("k", "new", timeout=10)
    with pytest.raises(NoLeader):
        cluster.get("k", via=old, timeout=1.0)
    assert cluster.stale_get("k", via=old) == b"old"
    assert cluster.get("k", via=others[0]) == b"new"
    cluster.network.heal()
    assert cluster.get("k", via=old, timeout=10) == b"new"
    wait_until(lambda: all_applied(cluster))
    assert contents(cluster, 1) == contents(cluster, 2) == contents(cluster, 3) == {b"k": b"new"}


def test_linearizable_reads_never_go_back_while_leaders_are_cut_off(cluster: Cluster) -> None:
    """A reader through changing replicas sees a counter that only grows, whatever happens to the leader."""
    stop, errors = threading.Event(), []

    def read_on() -> None:
        seen, via = 0, 1
        while not stop.is_set():
            via = 1 + via % 3
            try:
                value = int(cluster.get("n", via=via, timeout=0.5) or 0)
            except NotDone:
                continue
            if value < seen:
                errors.append((seen, value, via))
            seen = value

    readers = [threading.Thread(target=read_on) for _ in range(2)]
    for reader in readers:
        reader.start()
    count = 0
    for _ in range(3):
        for _ in range(20):
            count = int(cluster.incr("n", timeout=10).value or 0)
        leader = cluster.wait_for_leader()
        cluster.network.isolate(leader)
        wait_until(lambda leader=leader: cluster.leader_id not in (None, leader))
        count = int(cluster.incr("n", timeout=10).value or 0)
        cluster.network.heal()
    stop.set()
    for reader in readers:
        reader.join()
    assert errors == []
    assert count == 63


def test_two_of_three_go_on_and_one_alone_does_not(cluster: Cluster) -> None:
    """A majority is enough, and needed."""
    cluster.put("k", "1")
    leader = cluster.wait_for_leader()
    cluster.stop(leader)
    cluster.put("k", "2", timeout=10)
    cluster.stop(cluster.wait_for_leader())
    with pytest.raises((NoLeader, OutcomeUnknown)):
        cluster.put("k", "3", timeout=1)
    cluster.start(leader)
    assert cluster.get("k", timeout=10) in (b"2", b"3")
    with pytest.raises(ReplicaStopped):
        next(cluster.put("k", "x", via=m) for m in (1, 2, 3) if cluster.status()[m].role == "stopped")


class _BrokenDisk(Disk):
    broken = False

    def sync(self, flush: Callable[[], None]) -> None:
        if self.broken:
            raise OSError(28, "No space left on device")
        flush()


@pytest.mark.parametrize("role", ["follower", "leader"])
def test_a_failing_disk_stops_its_replica_with_a_reason_and_loses_nothing(
    make_cluster: Callable[..., Cluster], role: str
) -> None:
    """The others go on; with room again the replica starts and catches up."""
    disks = {member: _BrokenDisk() for member in (1, 2, 3)}
    cluster = make_cluster(disks=disks)
    cluster.put("before", "v", timeout=10)
    leader = cluster.wait_for_leader()
    sick = leader if role == "leader" else 1 + leader % 3
    disks[sick].broken = True
    try:
        cluster.put("during", "v", timeout=10)
    except OutcomeUnknown:
        assert role == "leader"  # it may have happened, and the caller is told so
        cluster.put("during", "v", timeout=10)
    wait_until(lambda: cluster.status()[sick].role == "failed")
    assert "No space left" in str(cluster.status()[sick].error)
    assert cluster.get("before", timeout=10) == b"v"
    disks[sick].broken = False
    cluster.start(sick)
    assert cluster.get("during", via=sick, timeout=10) == b"v"
