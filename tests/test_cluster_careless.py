"""A cluster used without care: opened twice, forgotten, stopped from a callback, asked for nonsense."""

from __future__ import annotations

import gc
import shutil
import subprocess
import sys
import threading
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import psutil
import pytest

from ondisk import (
    Cluster,
    DiskKV,
    Entry,
    InvalidCommand,
    Node,
    NoLeader,
    OutcomeUnknown,
    Rejected,
    ReplicaStopped,
    Result,
)
from ondisk.errors import ConfigurationError, DirectoryInUse
from ondisk.net.memory import MemoryNetwork
from ondisk.node import _running
from tests.waiting import all_applied, wait_until

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
