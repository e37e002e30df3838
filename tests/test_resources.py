"""No threads, no descriptors, no memory: one clear error, and service again when there is room."""

from __future__ import annotations

import errno
import logging
import os
import signal
import subprocess
import sys
import tempfile
import threading
from collections.abc import Callable
from pathlib import Path

import pytest

from ondisk import Cluster, Node, OutcomeUnknown
from ondisk.diskkv import DiskKV
from ondisk.errors import Corrupt, NotDone, ResourceError, StorageError
from ondisk.interrupts.shielded import shielded
from ondisk.net.memory import MemoryNetwork
from ondisk.storage import store
from ondisk.storage.disk import Disk
from ondisk.storage.generations import Generations
from ondisk.storage.store import Store
from tests.waiting import wait_until


class NoThreads:
    """The operating system starts no thread whose name has this in it, until ``room``."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, name: str) -> None:
        self.refused = 0
        self.room = False
        start = threading.Thread.start

        def start_if_there_is_room(thread: threading.Thread) -> None:
            if name in thread.name and not self.room:
                self.refused += 1
                raise RuntimeError("can't start new thread")
            start(thread)

        monkeypatch.setattr(threading.Thread, "start", start_if_there_is_room)


def behind(cluster: Cluster) -> int:
    """Let one replica need a snapshot, as soon as it starts again; return which."""
    cluster.put("k", "1")
    victim = cluster.wait_for_leader() % 3 + 1
    cluster.stop(victim)
    for number in range(20):
        cluster.put(f"k{number}", "1")
    for member in {1, 2, 3} - {victim}:
        wait_until(lambda member=member: cluster.compact(member) > 20)  # type: ignore[misc]
    return victim


@pytest.mark.parametrize("job", ["save-for", "recover"])
def test_a_snapshot_for_which_there_is_no_thread_is_streamed_when_there_is_one(
    make_cluster: Callable[..., Cluster],
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
    job: str,
) -> None:
    """On either side. Nobody fails, spins, or fills the log meanwhile."""
    monkeypatch.setattr("ondisk.snapshot.streaming._NO_ROOM_SECONDS", 0.5)
    cluster = make_cluster()
    victim = behind(cluster)
    threads = NoThreads(monkeypatch, job)
    with caplog.at_level(logging.WARNING, "ondisk"):
        cluster.start(victim)
        wait_until(lambda: threads.refused >= 2)
        cluster.put("meanwhile", "1")
    assert all(status.running for status in cluster.status().values())
    complaints = [record for record in caplog.records if "no thread can be started" in record.getMessage()]
    assert 1 <= len(complaints) <= threads.refused
    for member in (1, 2, 3):
        assert not list((cluster.data_dir / f"replica-{member}" / "state").glob("view-*"))
    refused = threads.refused
    threads.room = True
    assert cluster.get("meanwhile", via=victim, timeout=20) == b"1"
    assert refused <= 20, "it tried again and again without a pause"


def test_an_export_for_which_there_is_no_thread_is_refused_and_leaves_nothing(
    make_cluster: Callable[..., Cluster], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    cluster = make_cluster(members=(1,))
    cluster.put("k", "1")
    threads = NoThreads(monkeypatch, "export")
    with pytest.raises(ResourceError, match="no thread can be started"):
        cluster.export_snapshot(1, tmp_path / "backup")
    assert not list((cluster.data_dir / "replica-1" / "state").glob("view-*"))
    cluster.put("k", "2")
    assert cluster.status()[1].streams == () and not (tmp_path / "backup").exists()
    threads.room = True
    cluster.export_snapshot(1, tmp_path / "backup")


def test_a_replica_for_which_there_is_no_thread_opens_nothing(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    threads = NoThreads(monkeypatch, "ondisk-1")
    node = Node(1, [1], tmp_path, MemoryNetwork())
    for _ in range(2):
        with pytest.raises(ResourceError, match="no thread can be started for ondisk-1"):
            node.start()
    assert node.status.role == "stopped"
    threads.room = True
    node.start()
    wait_until(lambda: node.status.role == "leader")
    node.stop()


def test_a_replica_without_memory_stops_with_the_reason_and_comes_back(
    make_cluster: Callable[..., Cluster], monkeypatch: pytest.MonkeyPatch
) -> None:
    cluster = make_cluster(members=(1,))
    cluster.put("k", "1")
    update = DiskKV.update

    def no_memory(*_: object) -> None:
        raise MemoryError

    monkeypatch.setattr(DiskKV, "update", no_memory)
    with pytest.raises((OutcomeUnknown, NotDone)):
        cluster.put("k", "2", timeout=5)
    assert cluster.status()[1].role == "failed"
    assert (cluster.status()[1].error or "").startswith("MemoryError")
    monkeypatch.setattr(DiskKV, "update", update)
    cluster.start(1)
    assert cluster.get("k", timeout=20) in (b"1", b"2")


def no_descriptors(*_: object, **__: object) -> None:
    raise OSError(errno.EMFILE, os.strerror(errno.EMFILE))


# Which directories are looked at, and by what.
LOOKS = [
    ("state", Path, "read_bytes"),  # the pointer
    *[(database, store, "open") for database in ("state/db-000001", "log/rocksdb")],  # CURRENT
    *[(database, os, "listdir") for database in ("state/db-000001", "log/rocksdb")],
]


@pytest.mark.parametrize(("directory", "owner", "opens"), LOOKS, ids=[f"{a}-{c}" for a, _, c in LOOKS])
def test_a_file_that_cannot_be_looked_for_is_not_said_to_be_lost(
    make_cluster: Callable[..., Cluster],
    monkeypatch: pytest.MonkeyPatch,
    directory: str,
    owner: object,
    opens: str,
) -> None:
    """Or somebody would rebuild a replica that lacks nothing but descriptors."""
    cluster = make_cluster(members=(1,))
    cluster.put("k", "1")
    another = cluster.data_dir / "replica-1" / directory / "a name that comes"
    with monkeypatch.context() as patch:
        patch.setattr(owner, opens, no_descriptors, raising=False)
        another.touch()  # so that the directory is looked at
        with pytest.raises((OutcomeUnknown, NotDone)):
            cluster.put("k", "2", timeout=5)
    error = cluster.status()[1].error or ""
    assert "this process may not open more files, see ulimit -n" in error, error
    another.unlink()
    cluster.start(1)
    assert cluster.get("k", timeout=20) in (b"1", b"2")


@pytest.mark.parametrize("opens", [(store, "open"), (os, "listdir")], ids=["CURRENT", "names"])
def test_a_database_that_cannot_be_looked_at_writes_nothing_when_it_closes(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, opens: tuple[object, str]
) -> None:
    """Whatever has its name now may be another one. What was synced is there when it opens again."""
    store = Store(tmp_path / "db")
    batch = store.batch()
    batch.put(b"k", b"v")
    store.write(batch)
    store.sync()
    (store.path / "a name that comes").touch()

    def files() -> dict[Path, bytes]:  # LOG has been open all the time
        return {file: file.read_bytes() for file in store.path.iterdir() if file.name != "LOG"}

    before = files()
    with monkeypatch.context() as patch:
        patch.setattr(*opens, no_descriptors, raising=False)
        store.close()
    assert files() == before
    store = Store(tmp_path / "db")
    assert store.get(b"k") == b"v"
    store.close()
    assert files() != before, "a database that can be looked at writes its tables"


def test_a_directory_that_cannot_be_listed_is_not_taken_for_a_new_one(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """The pointer is missing, and whether there are data is what nobody can find out now."""
    generations = Generations(tmp_path / "state", Disk())
    store = generations.open()
    batch = store.batch()
    batch.put(b"k", b"v")
    store.write(batch)
    store.close()
    generations.close()
    (tmp_path / "state" / "current").unlink()
    with monkeypatch.context() as patch:
        for opens in ((os, "listdir"), (os, "scandir")):
            patch.setattr(*opens, no_descriptors, raising=False)
        with pytest.raises(StorageError, match="may not open more files"):
            Generations(tmp_path / "state", Disk()).open()
    with pytest.raises(Corrupt, match="the pointer file is missing"):
        Generations(tmp_path / "state", Disk()).open()


NO_DESCRIPTORS = """
import os, resource, sys
from ondisk import Cluster, OndiskError
import ondisk.storage.rocksdb
ondisk.storage.rocksdb.WRITE_BUFFER_BYTES = 64 << 10  # so that it begins new files all the time

soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
acknowledged = {}
with Cluster(sys.argv[1]) as cluster:
    cluster.put("before", "1")
    resource.setrlimit(resource.RLIMIT_NOFILE, (len(os.listdir("/proc/self/fd")), hard))
    for number in range(3000):
        try:
            cluster.put(f"k{number}", str(number) * 500, timeout=2)
            acknowledged[f"k{number}"] = (str(number) * 500).encode()
        except OndiskError as error:
            print(type(error).__name__, flush=True)
        failed = [status for status in cluster.status().values() if status.role == "failed"]
        if len(failed) >= 2:  # what they had open is free again, so the third one may go on
            break
    for status in failed:
        print(status.error, flush=True)
    resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
    for member in (1, 2, 3):
        cluster.start(member)
    assert cluster.get("before", timeout=20) == b"1"
    lost = [key for key, value in acknowledged.items() if cluster.get(key) != value]
    print("lost", lost, "of", len(acknowledged))
    cluster.put("after", "1")
"""


def test_a_process_without_descriptors_stops_its_replicas_and_loses_nothing(tmp_path: Path) -> None:
    command = [sys.executable, "-c", NO_DESCRIPTORS, str(tmp_path / "data")]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=60)
    assert done.returncode == 0, done.stderr[-3000:] + done.stdout
    assert done.stdout.count("may not open more files") >= 2, done.stdout
    assert "lost [] of" in done.stdout


NO_THREADS = """
import logging, os, resource, sys, threading, time
from pathlib import Path
from ondisk import Cluster, OndiskError

soft, hard = resource.getrlimit(resource.RLIMIT_NPROC)
directory = Path(sys.argv[1])


class Counting(logging.Handler):
    said = 0
    def emit(self, record):
        self.said += "no thread can be started" in record.getMessage()


def without_threads(what):
    resource.setrlimit(resource.RLIMIT_NPROC, (1, hard))
    try:
        try:
            threading.Thread(target=print).start()
        except RuntimeError:
            pass
        else:
            sys.exit(77)  # the limit does not count here
        try:
            print("done", what())
        except OndiskError as error:
            print(type(error).__name__, error, flush=True)
    finally:
        resource.setrlimit(resource.RLIMIT_NPROC, (soft, hard))


without_threads(lambda: Cluster(directory / "data"))
with Cluster(directory / "data") as cluster:
    cluster.put("k", "1")
    victim = cluster.wait_for_leader() % 3 + 1
    others = {1, 2, 3} - {victim}
    cluster.stop(victim)
    for number in range(20):
        cluster.put(f"k{number}", "1")
    for member in others:
        while cluster.compact(member) <= 20:
            time.sleep(0.01)
    without_threads(lambda: cluster.start(victim))
    without_threads(lambda: cluster.export_snapshot(min(others), directory / "backup"))

    counting = Counting()
    logging.getLogger("ondisk").addHandler(counting)
    cluster.start(victim)
    without_threads(lambda: [cluster.put(f"m{number}", "1", timeout=20) for number in range(50)] and "puts")
    assert cluster.get("m49", via=victim, timeout=30) == b"1"
    assert counting.said <= 5, counting.said
    cluster.export_snapshot(victim, directory / "backup")
    cluster.put("after", "1")
print("end")
"""


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="elsewhere the limit means something else")
def test_a_process_that_may_start_no_thread_says_so_goes_on_and_recovers() -> None:
    """The kernel refuses, for real: RocksDB would end the process if it was not asked before.

    Root may have as many as it wants, so this is not done as root: only files can be read as root does.
    """
    with tempfile.TemporaryDirectory() as directory:
        os.chmod(directory, 0o777)
        command = [sys.executable, "-c", NO_THREADS, directory]
        if os.geteuid() == 0:
            rights = "-all,+dac_override,+dac_read_search"
            user = ["--reuid=65534", "--clear-groups", f"--inh-caps={rights}", f"--ambient-caps={rights}"]
            command = ["setpriv", *user, *command]
        done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=100)
    if done.returncode == 77:
        pytest.skip("this user may start as many as it wants")
    assert done.returncode == 0, done.stderr[-3000:] + done.stdout
    said = done.stdout.splitlines()
    assert len(said) == 5 and said[-1] == "end", done.stdout
    assert all("ResourceError" in line and "no thread can be started" in line for line in said[:3]), said
    assert said[3] == "done puts"


@pytest.mark.parametrize("when", ["before", "after"])
def test_a_shielded_call_without_memory_for_its_thread_is_made_once_and_answered(
    monkeypatch: pytest.MonkeyPatch, when: str
) -> None:
    """Whether memory ends before the thread has begun or after that. Closing is such a call."""
    start = threading.Thread.start
    calls = []

    def out_of_memory(thread: threading.Thread) -> None:
        if when == "after":
            start(thread)
        raise MemoryError

    @shielded
    def close() -> str:
        calls.append(1)
        return "closed"

    with monkeypatch.context() as patch:
        patch.setattr(threading.Thread, "start", out_of_memory)
        assert close() == "closed"
    wait_until(lambda: not [thread for thread in threading.enumerate() if thread.name == "shielded"])
    assert calls == [1]


def test_a_shielded_call_whose_thread_ends_before_it_begins_is_made_without_it(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Python has no memory for the thread's first frame, and nobody is told."""
    monkeypatch.setattr("ondisk.interrupts.shielded._BEGIN", 0.1)
    monkeypatch.setattr("ondisk.interrupts.shielded._spawn", lambda *_: None)
    calls = []
    shielded(lambda: calls.append(1))()
    assert calls == [1]


NO_MEMORY = """
import resource, sys
from ondisk import Cluster, OndiskError

with Cluster(sys.argv[1]) as cluster:
    cluster.put("k", "v")
    pages = int(open("/proc/self/statm").read().split()[0])
    _, hard = resource.getrlimit(resource.RLIMIT_AS)
    resource.setrlimit(resource.RLIMIT_AS, (pages * resource.getpagesize() + int(sys.argv[2]), hard))
    for number in range(300):
        try:
            cluster.put(f"k{number}", bytes([number % 256]) * 1_000_000, timeout=5)
            print(number, flush=True)
        except (OndiskError, MemoryError) as error:
            print("error", type(error).__name__, flush=True)
            if sum(status.role == "failed" for status in cluster.status().values()) > 1:
                break
"""


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc/self/statm").exists(), reason="asks the kernel as Linux tells it")
@pytest.mark.parametrize("room", [0, 8 << 20, 30 << 20])
def test_a_process_without_memory_loses_nothing_that_it_has_acknowledged(tmp_path: Path, room: int) -> None:
    """Whoever notices first: Python raises, and RocksDB ends the process, as its power would."""
    done = subprocess.run(
        [sys.executable, "-c", NO_MEMORY, str(tmp_path / "data"), str(room)],
        capture_output=True,
        text=True,
        check=False,
        timeout=200,
        env={**os.environ, "MALLOC_ARENA_MAX": "1"},  # else glibc has set some GB aside
    )
    said = done.stdout.splitlines()
    acknowledged = [int(line) for line in said if line.isdigit()]
    assert len(acknowledged) < 300, "there was room for all"
    assert done.returncode == -signal.SIGABRT or len(acknowledged) < len(said), done.stderr
    with Cluster(tmp_path / "data") as cluster:
        assert cluster.get("k", timeout=20) == b"v"
        for number in acknowledged:
            assert cluster.get(f"k{number}") == bytes([number % 256]) * 1_000_000
        cluster.put("after", "1")
