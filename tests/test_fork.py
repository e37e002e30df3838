"""A child made by fork neither keeps the parent's locks, nor hangs or crashes, nor harms the parent."""

from __future__ import annotations

import gc
import multiprocessing
import os
import random
import subprocess
import sys
import threading
import time
import traceback
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

import pytest

from ondisk import Cluster, DiskKV, Node, diskkv
from ondisk.errors import DirectoryInUse, PortInUse, StoreClosed, WrongProcess
from ondisk.net.memory import MemoryNetwork
from ondisk.net.tcp import TcpNetwork
from ondisk.raft import Timing
from ondisk.replica import Replica
from ondisk.storage.store import Store
from tests.lengths import short_and_long
from tests.processes import free_ports
from tests.waiting import wait_until

SECONDS = 30.0  # a child may take so long to end


def fork(work: Callable[[], object], *, leave: Callable[[int], object] = os._exit) -> int:
    """Do some work in a child, which then leaves with 0; or with 1, if the work failed."""
    sys.stdout.flush()
    if (child := os.fork()) == 0:
        status = 1
        try:
            work()
            status = 0
        except BaseException:
            traceback.print_exc()
        finally:
            leave(status)
    return child


def ended(child: int) -> int:
    """How a child ended: its status, or the negative number of the signal. It must be in time."""
    deadline = time.monotonic() + SECONDS
    while time.monotonic() < deadline:
        pid, status = os.waitpid(child, os.WNOHANG)
        if pid:
            return os.waitstatus_to_exitcode(status)
        time.sleep(0.01)
    os.kill(child, 9)
    os.waitpid(child, 0)
    raise AssertionError("the child did not end")


def open_files() -> dict[str, int]:
    """What this process has open: sockets by their number in the kernel, files by name."""
    found = {}
    for descriptor in map(int, os.listdir("/proc/self/fd")):
        with suppress(FileNotFoundError):  # the directory that was just read
            found[os.readlink(f"/proc/self/fd/{descriptor}")] = descriptor
    return found


def run(code: str) -> subprocess.CompletedProcess[str]:
    """A program of its own, whose process has no past."""
    command = [sys.executable, "-c", code]
    return subprocess.run(command, check=False, capture_output=True, text=True, timeout=3 * SECONDS)


def refused(call: Callable[[], object]) -> None:
    with pytest.raises(WrongProcess, match=str(os.getppid())):
        call()


def test_a_child_leaves_the_directory_to_its_parent(tmp_path: Path) -> None:
    """The parent closes and opens while the child lives."""
    cluster = Cluster(tmp_path / "data")
    cluster.put("a", "1")
    child = multiprocessing.get_context("fork").Process(target=time.sleep, args=(SECONDS,))
    child.start()
    cluster.close()
    with Cluster(tmp_path / "data") as again:
        assert again.get("a") == b"1"
    child.kill()
    child.join()


def locks_of(descriptor: int) -> list[str]:
    """The kernel's locks on what is open under this number, in whatever process it was opened."""
    info = Path(f"/proc/self/fdinfo/{descriptor}").read_text()
    return [line for line in info.splitlines() if line.startswith("lock:")]


OPEN_IN_ANOTHER = """
import sys
from pathlib import Path
from ondisk import Cluster
from ondisk.raft import Timing
from ondisk.replica import Replica
from ondisk.storage.store import Store
Store(Path(sys.argv[1]) / "store").close()
with Cluster(Path(sys.argv[1]) / "data") as cluster:
    assert cluster.get("a", timeout=20) == b"1"
"""


@pytest.mark.skipif(not Path("/proc/self/fdinfo").is_dir(), reason="asks the kernel as Linux tells it")
def test_a_child_has_none_of_the_locks_and_nothing_of_the_owner_files(tmp_path: Path) -> None:
    """Neither of a replica's directory nor of RocksDB: who comes from elsewhere may have all at once."""
    store = Store(tmp_path / "store")
    cluster = Cluster(tmp_path / "data")
    cluster.put("a", "1")
    mine = {name: number for name, number in open_files().items() if name.startswith(str(tmp_path))}
    owners = [number for name, number in mine.items() if name.endswith("/owner")]
    assert len(owners) == 6 and all(map(locks_of, owners))  # replicas and states: the parent does have them

    read, write = os.pipe()

    def look() -> None:
        inherited = {name: number for name, number in open_files().items() if name.startswith(str(tmp_path))}
        assert not [name for name in inherited if name.endswith("/owner")]
        assert not [name for name, number in inherited.items() if locks_of(number)]
        os.read(read, 1)  # it lives until the others were there

    child = fork(look)
    cluster.close()
    store.close()
    command = [sys.executable, "-c", OPEN_IN_ANOTHER, str(tmp_path)]
    done = subprocess.run(command, check=False, capture_output=True, text=True, timeout=3 * SECONDS)
    os.write(write, b"x")
    assert ended(child) == 0
    assert done.returncode == 0, done.stderr
    os.close(read)
    os.close(write)


def test_a_child_does_not_wait_for_a_lock_of_the_network_that_a_thread_of_its_parent_has(
    tmp_path: Path,
) -> None:
    """That thread is not there, so the lock would never be free."""
    network = MemoryNetwork()
    endpoint = network.attach(1)
    locked, over = threading.Event(), threading.Event()

    def hold() -> None:
        with network._lock:
            locked.set()
            over.wait(SECONDS)

    thread = threading.Thread(target=hold)
    thread.start()
    locked.wait()

    def use() -> None:
        network.heal()
        network.attach(1)  # nobody of the parent's is here
        endpoint.close()

    child = fork(use)
    try:
        assert ended(child) == 0
    finally:
        over.set()
        thread.join()
    with pytest.raises(PortInUse):
        network.attach(1)  # the parent's is still here


def test_whatever_is_asked_of_an_inherited_cluster_is_refused(tmp_path: Path) -> None:
    """At once, with the number of the process that has it; close does nothing, and the parent goes on."""
    with Cluster(tmp_path / "data") as cluster:
        cluster.put("a", "1")
        session = cluster.session()
        network = cluster.network

        def use() -> None:
            for call in (
                lambda: cluster.put("a", "2"),
                lambda: cluster.put_async("a", "2"),
                lambda: cluster.get("a"),
                lambda: cluster.get("a", via=2),
                lambda: cluster.stale_get("a"),
                cluster.scan,
                lambda: session.put("a", "2"),
                cluster.session,
                cluster.status,
                lambda: cluster.leader_id,
                lambda: cluster.start(1),
                lambda: cluster.crash(1),
                lambda: cluster.machine(1),
                lambda: cluster.compact(1),
                lambda: cluster.export_snapshot(1, tmp_path / "exported"),
                lambda: cluster.add_replica(4),
                lambda: cluster.transfer_leadership(2),
                lambda: cluster.network,
            ):
                refused(call)
            network.heal()  # takes a lock that a thread of the parent may have held
            cluster.stop(1)
            cluster.close()
            with pytest.raises(DirectoryInUse):
                Cluster(tmp_path / "data")
            gc.collect()

        assert [ended(fork(use)) for _ in range(3)] == [0, 0, 0]
        cluster.put("a", "3")
        assert cluster.get("a") == b"3"
        assert {status.role for status in cluster.status().values()} == {"leader", "follower"}


@pytest.mark.parametrize("status", [0, 3])
def test_a_child_that_exits_ends_with_its_own_status(tmp_path: Path, status: int) -> None:
    """``sys.exit``, with all that Python does at an exit: it neither hangs nor crashes."""
    code = f"""
import atexit, os, sys
from ondisk import Cluster
cluster = Cluster({str(tmp_path / "data")!r})
cluster.put("a", "1")
if (child := os.fork()) == 0:
    atexit.register(print, "at exit")
    print("in the child")
    sys.exit({status})
ended = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
cluster.put("a", "2")
cluster.close()
sys.exit(0 if ended == {status} else 50 + abs(ended))
"""
    done = run(code)
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.split("\n")[:2] == ["in the child", "at exit"]


def test_a_child_opens_a_cluster_if_its_parent_had_none(tmp_path: Path) -> None:
    """As the workers of a server do; after the parent has used RocksDB it is refused, and leaves no lock."""
    code = f"""
import os, sys
from ondisk import Cluster
from ondisk.errors import WrongProcess
def work():
    with Cluster({str(tmp_path)!r} + f"/{{os.getpid()}}") as cluster:
        cluster.put("a", "1")
        assert cluster.get("a") == b"1"
def child():
    if (pid := os.fork()) == 0:
        work()
        sys.exit(0)
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
assert [child(), child()] == [0, 0]
work()
if (pid := os.fork()) == 0:
    try:
        work()
    except WrongProcess as error:
        assert str(os.getppid()) in str(error)
        sys.exit(7)
assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 7
Cluster({str(tmp_path)!r} + f"/{{pid}}").close()
"""
    done = run(code)
    assert (done.returncode, done.stderr) == (0, "")


def test_over_tcp_a_child_disturbs_no_connection(tmp_path: Path) -> None:
    """It closes its copies of the sockets; the parent's are watched and served as before, and end with it."""
    former = open_files()
    ports = free_ports(2)
    network = TcpNetwork({i: ("127.0.0.1", port) for i, port in enumerate(ports, 1)})
    with Cluster(tmp_path / "data", members=(1, 2), network=network) as cluster:
        cluster.put("a", "1")
        term = cluster.status()[1].term
        watched = {name for name in open_files() if "socket" in name} - former.keys()
        before = len(os.listdir("/proc/self/fd"))

        def sockets() -> None:
            assert not watched & open_files().keys()
            time.sleep(1)

        child = fork(sockets)
        for number in range(20):
            cluster.put("a", str(number))
        assert ended(child) == 0
        assert cluster.status()[1].term == term
        assert len(os.listdir("/proc/self/fd")) == before
        child = fork(lambda: time.sleep(1))
    with Cluster(tmp_path / "data", members=(1, 2), network=network) as again:  # the ports are free
        assert again.get("a") == b"19"
    ended(child)


@pytest.mark.parametrize("forks", short_and_long(3, 30))
def test_a_fork_while_others_work_is_harmless(tmp_path: Path, forks: int) -> None:
    """Whatever locks the threads of the parent hold at that moment."""
    with Cluster(tmp_path / "data") as cluster:
        stop = threading.Event()

        def put() -> None:
            while not stop.is_set():
                cluster.put("a", "1")
                cluster.network.heal()

        thread = threading.Thread(target=put)
        thread.start()

        def use() -> None:
            refused(lambda: cluster.get("a"))
            cluster.close()
            gc.collect()

        for _ in range(forks):
            assert ended(fork(use)) == 0
        stop.set()
        thread.join()


def test_single_objects_of_the_parent_are_refused_or_closed(tmp_path: Path) -> None:
    """A node, a database and a state machine that nobody put into a cluster."""
    machine = DiskKV(tmp_path / "kv")
    machine.open()
    store = Store(tmp_path / "store")
    node = Node(1, (1,), tmp_path / "node", MemoryNetwork())
    node.start()

    def use() -> None:
        refused(lambda: node.get("a"))
        refused(lambda: node.status)
        node.stop()
        for call in (lambda: machine.lookup(diskkv.get("a")), lambda: store.get(b"a")):
            with pytest.raises(StoreClosed):
                call()
        machine.close()
        store.close()

    assert ended(fork(use)) == 0
    machine.close()
    DiskKV(tmp_path / "kv").open()
    store.close()
    Store(tmp_path / "store").close()
    node.put("a", "1")
    node.stop()


def test_a_child_reads_nothing_by_a_lease_of_its_parent(tmp_path: Path) -> None:
    """It could be answered without a step, and no step is made in it."""
    network, forever = MemoryNetwork(), float("inf")
    replica = Replica(
        1,
        (1,),
        tmp_path,
        DiskKV(tmp_path / "state"),
        network.attach(1),
        clock=network.clock,
        rng=random.Random(1),
        timing=Timing(clock_drift=0.1),
    )
    answered = replica.read_barrier(forever, lease=True)
    while not (answered.done() and replica.read_barrier(forever, lease=True).done()):
        replica.step()
    assert ended(fork(lambda: refused(lambda: replica.read_barrier(forever, lease=True)))) == 0
    assert replica.read_barrier(forever, lease=True).done()
    replica.close()


# Dropped without close


def test_a_cluster_that_is_dropped_is_closed_when_it_is_collected(tmp_path: Path) -> None:
    """Its threads end by themselves, and the directory can be opened at once."""
    cluster = Cluster(tmp_path / "data")
    cluster.put("a", "1")
    del cluster
    gc.collect()
    with Cluster(tmp_path / "data") as again:
        assert again.get("a") == b"1"
    node = Node(1, (1,), tmp_path / "node", MemoryNetwork())
    node.start()
    node.put("a", "1")
    del node
    gc.collect()
    wait_until(lambda: not [thread for thread in threading.enumerate() if thread.name.startswith("ondisk-")])


def test_a_second_cluster_on_a_directory_closes_the_first(tmp_path: Path) -> None:
    """As long as somebody holds the first."""
    first = Cluster(tmp_path / "data")
    first.put("a", "1")
    with Cluster(tmp_path / "data") as second:
        assert {status.role for status in first.status().values()} == {"stopped"}
        assert second.get("a") == b"1"
