"""Three real replicas in threads: what a user of ``Cluster`` may rely on."""

from __future__ import annotations

import gc
import shutil
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any

import psutil
import pytest

from ondisk import (
    Cluster,
    CommandTooLarge,
    DiskKV,
    Entry,
    InvalidCommand,
    Node,
    NoLeader,
    NotDone,
    OutcomeUnknown,
    Rejected,
    ReplicaStopped,
    Result,
)
from ondisk.errors import ConfigurationError, DirectoryInUse, ResourceError
from ondisk.net.memory import MemoryNetwork
from ondisk.node import _running
from ondisk.raft.log import RaftLog
from ondisk.replica.replica import MAX_COMMAND_BYTES
from ondisk.storage.disk import Disk
from tests.waiting import wait_until


@pytest.fixture
def cluster(make_cluster: Callable[..., Cluster]) -> Cluster:
    """Three replicas with a leader."""
    cluster = make_cluster()
    cluster.wait_for_leader()
    return cluster


def all_applied(cluster: Cluster) -> bool:
    """Whether all replicas have applied the same last entry."""
    statuses = cluster.status().values()
    return len({status.applied_index for status in statuses}) == 1 and all(
        status.applied_index == status.last_index for status in statuses
    )


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


# Opening and closing


def test_closing_twice_and_opening_again_leaves_no_thread_and_no_file_open(
    make_cluster: Callable[..., Cluster],
) -> None:
    """Everything that starts can be closed, twice, and started again in the same process."""
    process = psutil.Process()
    make_cluster().close()
    files, threads = process.num_fds(), threading.active_count()
    for _ in range(3):
        cluster = make_cluster()
        cluster.put("k", "v")
        cluster.close()
        cluster.close()
    assert (process.num_fds(), threading.active_count()) == (files, threads)


def test_opening_the_same_directory_again_closes_the_first_cluster(
    make_cluster: Callable[..., Cluster],
) -> None:
    """A notebook cell can be run again."""
    first = make_cluster()
    first.put("k", "v")
    second = make_cluster()
    assert second.get("k") == b"v"
    assert {status.role for status in first.status().values()} == {"stopped"}
    with pytest.raises(ReplicaStopped):
        first.put("k", "w")


def test_a_directory_held_by_another_process_is_an_error_that_names_it(tmp_path: Path) -> None:
    """At once, with the number of the process."""
    holder = subprocess.Popen(
        [
            sys.executable,
            "-c",
            "import sys, ondisk\n"
            "with ondisk.Cluster(sys.argv[1]):\n"
            "    print('open', flush=True)\n"
            "    sys.stdin.read()\n",
            str(tmp_path / "data"),
        ],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
    )
    try:
        assert holder.stdout is not None and holder.stdout.readline() == b"open\n"
        with pytest.raises(DirectoryInUse, match=f"process {holder.pid}"):
            Cluster(tmp_path / "data")
    finally:
        holder.communicate()
    assert holder.returncode == 0


def test_a_process_that_forgets_to_close_ends_cleanly(tmp_path: Path) -> None:
    """The interpreter's exit stops the replicas instead of aborting inside RocksDB, and the put is there."""
    script = "import sys, ondisk; ondisk.Cluster(sys.argv[1]).put('k', 'v', timeout=20)"
    done = subprocess.run(
        [sys.executable, "-c", script, str(tmp_path / "data")], capture_output=True, timeout=60, check=False
    )
    assert (done.returncode, done.stderr) == (0, b"")
    with Cluster(tmp_path / "data") as cluster:
        assert cluster.get("k", timeout=10) == b"v"


def test_a_single_replica_is_a_cluster_too(make_cluster: Callable[..., Cluster]) -> None:
    """It elects itself, and everything it acknowledges survives a power cut."""
    cluster = make_cluster(members=[1])
    for number in range(50):
        cluster.put("k", str(number))
    cluster.crash(1)
    cluster.start(1)
    assert cluster.get("k", timeout=10) == b"49"


def test_a_moved_data_directory_opens_from_anywhere(
    make_cluster: Callable[..., Cluster], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nothing stored depends on the path or the working directory."""
    cluster = make_cluster()
    cluster.put("k", "v")
    cluster.close()
    (tmp_path / "data").rename(tmp_path / "moved")
    monkeypatch.chdir(tmp_path)
    with Cluster("moved") as cluster:
        assert cluster.get("k", timeout=10) == b"v"


def test_members_that_make_no_cluster_are_refused() -> None:
    """Before anything is opened."""
    with pytest.raises(ConfigurationError):
        Cluster("unused", members=[1, 1, 2])
    with pytest.raises(ConfigurationError):
        Cluster("unused", members=[])


def test_a_cancelled_put_that_was_never_proposed_does_not_happen(cluster: Cluster) -> None:
    """A future that can still be cancelled has not reached the log."""
    cluster.put("k", "1")
    for member in (1, 2, 3):
        cluster.network.isolate(member)
    wait_until(lambda: cluster.leader_id is None)
    future = cluster.put_async("k", "2", timeout=30)
    assert future.cancel()
    cluster.network.heal()
    assert cluster.get("k", timeout=10) == b"1"


# Careless use


def test_stopping_a_replica_from_a_callback_is_refused_and_harms_nothing(cluster: Cluster) -> None:
    """A thread cannot wait for its own end; the replica goes on, and can be stopped from elsewhere."""
    leader = cluster.wait_for_leader()
    raised: list[BaseException] = []

    def stop_it(_: object) -> None:
        try:
            cluster.stop(leader)
        except RuntimeError as error:
            raised.append(error)

    future = cluster.put_async("k", "v")
    future.add_done_callback(stop_it)
    future.result(10)
    wait_until(lambda: raised or cluster.status()[leader].role == "stopped")
    if raised:  # else the put was done before the callback was added, and this thread ran it
        assert "a callback of its own" in str(raised[0])
        cluster.put("k", "w", timeout=10)
        cluster.stop(leader)
    assert cluster.get("k", timeout=10) in (b"v", b"w")


class _Panic(BaseException):
    """What a binding to another language may raise."""


def test_an_exception_that_is_no_exception_stops_its_replica_too(
    make_cluster: Callable[..., Cluster],
) -> None:
    """Nobody waits for ever for a thread that is gone."""

    class Panicking(DiskKV):
        def update(self, entries: Sequence[Entry]) -> list[Result]:
            raise _Panic("the binding gave up")

    cluster = make_cluster(members=[1], state_machine=Panicking)
    with pytest.raises((OutcomeUnknown, NoLeader, ReplicaStopped)):
        cluster.put("k", "v", via=1, timeout=10)
    wait_until(lambda: cluster.status()[1].role == "failed")
    assert "the binding gave up" in str(cluster.status()[1].error)


def test_a_state_machine_that_cannot_be_made_leaves_nothing_behind(tmp_path: Path) -> None:
    """The next start finds the directory and the place on the network free."""
    network = MemoryNetwork()

    def fail(path: Path) -> DiskKV:
        raise ValueError("no such machine")

    for _ in range(2):
        with pytest.raises(ValueError, match="no such machine"):
            Node(1, [1], tmp_path, network, state_machine=fail).start()
    node = Node(1, [1], tmp_path, network)
    node.start()
    assert node.incr("n", timeout=10) == Result(1)
    node.stop()


def test_a_forgotten_cluster_is_closed_by_the_next_one_on_its_directory(
    make_cluster: Callable[..., Cluster], tmp_path: Path
) -> None:
    """Its variable is gone, its replicas are not."""
    forgotten: Cluster | None = Cluster(tmp_path / "data")
    assert forgotten is not None
    forgotten.put("k", "v", timeout=10)
    forgotten = None
    gc.collect()
    assert make_cluster().get("k", timeout=10) == b"v"


def test_a_cluster_opens_again_though_a_removed_replica_hears_of_it_first(tmp_path: Path) -> None:
    """It stops while another one still opens its directory."""
    with Cluster(tmp_path) as cluster:
        cluster.put("k", "v", timeout=10)
        cluster.remove_replica(1, timeout=10)
        cluster.put("after", "v", timeout=10)
        wait_until(lambda: all_applied(cluster))  # or it does not know yet that the removal is committed

    class WaitsForTheRemoved(DiskKV):
        def open(self) -> int:
            if "replica-3" in str(self._path):
                (first,) = (node for node in _running if node.directory == tmp_path / "replica-1")
                wait_until(lambda: first.status.role == "removed")
            return super().open()

    with Cluster(tmp_path, state_machine=WaitsForTheRemoved) as cluster:
        assert cluster.members == (2, 3)
        assert cluster.get("k", timeout=10) == b"v"


def test_an_add_that_ended_in_a_timeout_can_be_tried_again(cluster: Cluster) -> None:
    """And so can one that nobody heard of."""
    cluster.put("k", "v")
    leader = cluster.wait_for_leader()
    cluster.network.isolate(leader)
    with pytest.raises(OutcomeUnknown):
        cluster.add_replica(4, timeout=0.7)
    wait_until(lambda: cluster.leader_id != leader)
    cluster.network.heal()
    cluster.add_replica(4, timeout=20)
    assert cluster.get("k", via=4, timeout=10) == b"v"
    with pytest.raises(ConfigurationError, match="there is a replica 4 already"):
        cluster.add_replica(4)


def test_an_add_that_is_refused_leaves_nothing_behind(cluster: Cluster) -> None:
    """No directory, and no thread."""
    cluster.remove_replica(3)
    shutil.rmtree(cluster.data_dir / "replica-3")
    with pytest.raises(Rejected, match="removed id stays out"):
        cluster.add_replica(3)
    assert not (cluster.data_dir / "replica-3").exists()
    assert 3 not in cluster.members


@pytest.mark.parametrize("member", [0, -1, 1 << 64, "1", True])
def test_an_id_that_is_none_is_refused_before_anything_is_made(tmp_path: Path, member: Any) -> None:
    """Or its directory could not be opened any more, sooner or later."""
    with pytest.raises(ConfigurationError, match="the id of a replica is a whole number"):
        Cluster(tmp_path / "data", members=[member, 2, 3])
    with pytest.raises(ConfigurationError, match="the id of a replica is a whole number"):
        Node(member, [2, 3], tmp_path / "data", MemoryNetwork())
    assert not (tmp_path / "data").exists()


def test_a_timeout_may_be_endless_but_must_be_a_number(cluster: Cluster) -> None:
    """What cannot be waited for is refused before it is asked for."""
    for seconds in (float("inf"), 1e10):
        assert cluster.incr("n", timeout=seconds).value
        assert cluster.get("n", timeout=seconds)
        with cluster.session(timeout=seconds) as session:
            assert session.incr("n", timeout=seconds).value
    assert cluster.get("n") == b"4"
    for bad in (float("nan"), None, "1"):
        for ask in (cluster.incr, cluster.get, cluster.scan, cluster._nodes[1].delete):
            with pytest.raises(InvalidCommand, match="a timeout is a number of seconds"):
                ask("n", timeout=bad)  # type: ignore[operator]
    assert cluster.get("n") == b"4"


# Interrupts


class Slow(Disk):
    """A disk whose next syncs wait until they may go on."""

    def __init__(self) -> None:
        self.go_on = threading.Event()
        self.go_on.set()
        self.waiting = threading.Event()

    def sync(self, flush: Callable[[], None]) -> None:
        if not self.go_on.is_set():
            self.waiting.set()
            assert self.go_on.wait(20)
        flush()


def test_a_replica_whose_stop_was_interrupted_can_be_started_and_stopped(tmp_path: Path) -> None:
    """Ctrl-C while it waits for the thread, which ends a moment later."""
    disk = Slow()
    with Cluster(tmp_path, members=[1], disks={1: disk}) as cluster:
        cluster.put("k", "v", timeout=10)
        disk.go_on.clear()
        future = cluster.put_async("k", "w", timeout=20)
        assert disk.waiting.wait(10)
        node = cluster._nodes[1]
        thread = node._thread
        assert thread is not None

        def interrupted(timeout: float | None = None) -> None:
            raise KeyboardInterrupt

        thread.join = interrupted  # type: ignore[method-assign]
        with pytest.raises(KeyboardInterrupt):
            cluster.stop(1)
        del thread.join  # type: ignore[method-assign]
        disk.go_on.set()
        wait_until(lambda: not thread.is_alive())
        cluster.start(1)
        assert cluster.put("after", "v", timeout=10) == Result()
        assert future.exception(0) is None or isinstance(future.exception(0), OutcomeUnknown)


def test_a_close_that_was_interrupted_goes_on_at_the_next_call(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whatever was still open then is closed, so that the directory can be opened again."""
    cluster = Cluster(tmp_path, members=[1])
    cluster.put("k", "v", timeout=10)

    close, interrupts = RaftLog.close, [KeyboardInterrupt]

    def interrupted(log: RaftLog) -> None:
        if interrupts:
            raise interrupts.pop()
        close(log)

    monkeypatch.setattr(RaftLog, "close", interrupted)
    with pytest.raises(KeyboardInterrupt):
        cluster.close()
    cluster.close()
    cluster.close()
    with Cluster(tmp_path, members=[1]) as again:
        assert again.get("k", timeout=10) == b"v"


def test_a_node_that_gets_no_thread_is_stopped_and_can_be_started_later(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Too many threads: an error, and nothing is open."""
    node = Node(1, [1], tmp_path, MemoryNetwork())

    def refused(thread: threading.Thread) -> None:
        raise RuntimeError("can't start new thread")

    with monkeypatch.context() as patch:
        patch.setattr(threading.Thread, "start", refused)
        with pytest.raises(ResourceError, match="no thread"):
            node.start()
    assert node.status.role == "stopped"
    node.stop()
    node.start()
    node.put("k", "v", timeout=10)
    node.stop()


def test_a_callback_that_asks_again_while_its_replica_stops_is_answered(cluster: Cluster) -> None:
    """It is called by whoever stops the replica, and so is what it asks for."""
    leader = cluster.wait_for_leader()
    cluster.network.isolate(leader)
    node, again = cluster._nodes[leader], []
    replica = node._running_replica()
    future = node.put_async("k", "v", timeout=60)
    future.add_done_callback(lambda _: again.append(replica.propose(b"x", 1e9)))
    future.add_done_callback(lambda _: again.append(_error_of(node.start)))
    stopping = threading.Thread(target=node.crash, daemon=True)
    stopping.start()
    stopping.join(20)
    assert not stopping.is_alive()
    assert isinstance(again[0].exception(0), ReplicaStopped)
    assert isinstance(again[1], RuntimeError)
    node.start()


def _error_of(call: Callable[[], object]) -> BaseException | None:
    try:
        call()
    except RuntimeError as error:
        return error
    return None


@pytest.mark.filterwarnings("ignore::pytest.PytestUnhandledThreadExceptionWarning")  # that is what it does
def test_a_callback_that_ends_its_replica_leaves_nobody_unanswered(cluster: Cluster) -> None:
    """``SystemExit`` in a callback is none of the errors that futures swallow."""

    def leave(_: object) -> None:
        raise SystemExit

    leader = cluster.wait_for_leader()
    first = cluster.put_async("first", "v", via=leader)
    first.add_done_callback(leave)
    others = [cluster.put_async(f"k{number}", "v", via=leader) for number in range(20)]
    for future in others:
        error = future.exception(10)
        assert error is None or isinstance(error, OutcomeUnknown | NotDone)
