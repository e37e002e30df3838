"""A directory that is deleted, moved, replaced or made read-only under a running replica.

The operating system lets an open file be written and synced after that, and the bytes are gone with the
process. So the replica must stop before it acknowledges one more write.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from ondisk import Cluster
from ondisk.errors import NotDone, OutcomeUnknown, StorageError
from ondisk.storage.look import Look
from ondisk.storage.store import Store
from ondisk.storage.watch import Watch
from tests.lengths import short_and_long
from tests.waiting import wait_until


def only(directory: Path, pattern: str) -> Path:
    """The newest of the files that match: names of RocksDB have numbers."""
    return max(directory.glob(pattern))


def delete(replica: Path) -> None:
    shutil.rmtree(replica)


def move(replica: Path) -> None:
    replica.rename(replica.with_name("moved"))


def replace_by_a_copy(replica: Path) -> None:
    copy = replica.with_name("copy")
    shutil.copytree(replica, copy)
    replica.rename(replica.with_name("moved"))
    copy.rename(replica)


def replace_by_a_file(replica: Path) -> None:
    move(replica)
    replica.write_text("a file")


def delete_file(pattern: str) -> Callable[[Path], None]:
    def harm(replica: Path) -> None:
        only(replica, pattern).unlink()

    harm.__name__ = f"delete {pattern}"
    return harm


def take_writing_away(part: str) -> Callable[[Path], None]:
    def harm(replica: Path) -> None:
        directory = only(replica, part) if part else replica
        directory.chmod(0o555)

    harm.__name__ = f"chmod {part or 'all'}"
    return harm


HARMS = {
    delete: "was deleted or moved",
    move: "was deleted or moved",
    replace_by_a_copy: "was replaced",
    replace_by_a_file: "was deleted or moved",
    delete_file("owner"): "has lost its file owner",
    delete_file("log/witness"): "was deleted",
    delete_file("log/rocksdb/CURRENT"): "has lost its file CURRENT",
    delete_file("log/rocksdb/MANIFEST-*"): "has lost its file MANIFEST-",
    delete_file("log/rocksdb/*.log"): ".log",
    delete_file("state/current"): "current",
    delete_file("state/owner"): "has lost its file owner",
    delete_file("state/db-*/CURRENT"): "has lost its file CURRENT",
    delete_file("state/db-*/*.log"): ".log",
    take_writing_away(""): "was made read-only",
    take_writing_away("log/rocksdb"): "was made read-only",
    take_writing_away("state/db-*"): "was made read-only",
}


def assert_nothing_is_acknowledged(cluster: Cluster, reason: str) -> None:
    """One replica makes up the whole group: what it does not say, nobody says."""
    with pytest.raises((OutcomeUnknown, NotDone)):
        cluster.put("after", "1", timeout=5)
    assert cluster.status()[1].role == "failed"
    assert reason in (cluster.status()[1].error or "")


@pytest.mark.parametrize("harm", HARMS, ids=lambda harm: harm.__name__)
def test_no_write_is_acknowledged_after_what_is_needed_has_lost_its_name(
    make_cluster: Callable[..., Cluster], harm: Callable[[Path], None]
) -> None:
    cluster = make_cluster(members=(1,))
    cluster.put("before", "1")
    harm(cluster.data_dir / "replica-1")
    assert_nothing_is_acknowledged(cluster, HARMS[harm])
    cluster.close()  # and that neither hangs nor raises


def test_acknowledged_writes_are_there_when_the_directory_is_put_back(
    make_cluster: Callable[..., Cluster],
) -> None:
    cluster = make_cluster(members=(1,))
    replica = cluster.data_dir / "replica-1"
    for number in range(20):
        cluster.put(f"k{number}", "v")
    move(replica)
    assert_nothing_is_acknowledged(cluster, "was deleted or moved")
    replica.with_name("moved").rename(replica)
    cluster.start(1)
    assert all(cluster.get(f"k{number}") == b"v" for number in range(20))


def test_nothing_is_written_into_the_directory_that_took_the_place(
    make_cluster: Callable[..., Cluster],
) -> None:
    """When it closes, RocksDB makes tables of what it has in memory, and creates them by their names."""
    cluster = make_cluster(members=(1,))
    replica = cluster.data_dir / "replica-1"
    cluster.put("before", "1")
    replace_by_a_copy(replica)
    before = {file: file.read_bytes() for file in replica.rglob("*") if file.is_file()}
    assert_nothing_is_acknowledged(cluster, "was replaced")
    cluster.close()
    assert {file: file.read_bytes() for file in replica.rglob("*") if file.is_file()} == before


@pytest.mark.parametrize("who", ["leader", "follower"])
def test_the_others_go_on_without_the_replica_whose_directory_is_gone(
    make_cluster: Callable[..., Cluster], who: str
) -> None:
    cluster = make_cluster()
    cluster.put("k", "1")
    leader = cluster.wait_for_leader()
    victim = leader if who == "leader" else leader % 3 + 1
    replica = cluster.data_dir / f"replica-{victim}"
    move(replica)
    try:
        cluster.put("k", "2", timeout=20)
    except OutcomeUnknown:  # the leader had taken it in
        cluster.put("k", "2", timeout=20)
    wait_until(lambda: cluster.status()[victim].role == "failed")
    assert cluster.leader_id != victim
    assert cluster.get("k") == b"2"
    replica.with_name("moved").rename(replica)
    cluster.start(victim)
    assert cluster.get("k", via=victim, timeout=20) == b"2"


def test_a_group_whose_data_directory_was_moved_acknowledges_nothing(
    make_cluster: Callable[..., Cluster],
) -> None:
    cluster = make_cluster()
    cluster.put("k", "1")
    cluster.data_dir.rename(cluster.data_dir.with_name("elsewhere"))
    with pytest.raises((OutcomeUnknown, NotDone)):
        cluster.put("k", "2", timeout=3)
    wait_until(lambda: sum(status.role == "failed" for status in cluster.status().values()) >= 2)


@pytest.fixture
def mounted(tmp_path: Path) -> Iterator[Path]:
    """A directory that is mounted onto itself, if this user may do that: so it can be made read-only."""
    path = tmp_path / "mounted"
    path.mkdir()
    done = subprocess.run(["mount", "--bind", path, path], capture_output=True, check=False)
    if done.returncode != 0:
        pytest.skip(f"nothing can be mounted here: {done.stderr.decode().strip()}")
    yield path
    while subprocess.run(["umount", path], capture_output=True, check=False).returncode == 0:
        pass  # there may be several above each other
    mounts = Path("/proc/self/mounts").read_text()
    assert str(path) not in mounts


def test_a_file_system_that_is_mounted_read_only_over_the_directory_is_noticed(mounted: Path) -> None:
    """Over it, because the kernel does not take the right to write from a mount where a file is open."""
    with Cluster(mounted, members=(1,)) as cluster:
        cluster.put("before", "1")
        subprocess.run(["mount", "--bind", mounted, mounted], check=True)
        subprocess.run(["mount", "-o", "remount,bind,ro", mounted], check=True)
        assert_nothing_is_acknowledged(cluster, "was made read-only")


def test_another_file_system_that_is_mounted_over_the_directory_is_noticed(mounted: Path) -> None:
    with Cluster(mounted, members=(1,)) as cluster:
        cluster.put("before", "1")
        subprocess.run(["mount", "-t", "tmpfs", "-o", "size=1m", "ondisk-test", mounted], check=True)
        assert_nothing_is_acknowledged(cluster, "was deleted or moved")


WITHOUT_ROOTS_RIGHTS = """
import sys
from ondisk import Cluster, OndiskError
with Cluster(sys.argv[1], members=(1,)) as cluster:
    cluster.put("before", "1")

    (cluster.data_dir / "replica-1" / "log").chmod(0o000)
    try:
        cluster.put("after", "1", timeout=5)
    except OndiskError as error:
        print(cluster.status()[1].error)
    (cluster.data_dir / "replica-1" / "log").chmod(0o700)
"""


def test_a_directory_that_may_not_be_searched_any_more_is_noticed(tmp_path: Path) -> None:
    """By everybody but root, whom the kernel lets in: so this test gives such rights up."""
    command = [sys.executable, "-c", WITHOUT_ROOTS_RIGHTS, str(tmp_path / "data")]
    if os.geteuid() == 0:
        rights = "-dac_override,-dac_read_search"
        command = ["setpriv", f"--bounding-set={rights}", f"--inh-caps={rights}", *command]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=60)
    assert "was deleted or moved away (Permission denied)" in done.stdout, done.stderr


@pytest.mark.parametrize("looks", short_and_long(400, 3_000))
def test_what_rocksdb_adds_and_removes_by_itself_is_never_taken_for_harm(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, looks: int
) -> None:
    """With a buffer of 64 KB it begins new logs and tables all the time, and merges old ones."""
    monkeypatch.setattr("ondisk.storage.rocksdb.WRITE_BUFFER_BYTES", 64 << 10)
    store = Store(tmp_path / "db")
    files: set[str] = set()
    for number in range(looks):
        batch = store.batch()
        batch.put(str(number % 50).encode(), os.urandom(8_000))
        store.write(batch)
        store._watch._good = None  # so it looks at all files, every time
        store.check()
        files |= set(os.listdir(store.path))
    assert len([file for file in files if file.endswith(".sst")]) > looks // 20
    assert len([file for file in files if file.endswith(".log")]) > looks // 20
    store.close()


def test_each_table_that_is_missing_is_noticed(tmp_path: Path) -> None:
    store = Store(tmp_path / "db")
    batch = store.batch()
    batch.put(b"k", b"v")
    store.write(batch)
    store.checkpoint(tmp_path / "view")  # which makes a table
    table = only(store.path, "*.sst")
    store.check()
    table.unlink()
    with pytest.raises(StorageError, match=table.name):
        store.check()
    store.close()


def test_a_change_within_the_same_tick_of_the_clock_is_noticed(tmp_path: Path) -> None:
    """The kernel dates changes by its tick: two that are close together leave the same time behind."""
    for number in range(100):
        directory = tmp_path / str(number)
        directory.mkdir()
        needed = directory / "needed"
        needed.touch()
        watch = Watch(directory, lambda needed=needed: None if needed.exists() else "needed")
        (directory / "another").touch()
        watch.check()
        needed.unlink()
        with pytest.raises(StorageError, match="has lost its file needed"):
            watch.check()


def test_a_directory_that_is_elsewhere_while_it_is_opened_opens_when_it_is_back(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whichever look finds it gone, and while somebody keeps the error: no database stays open or locked."""
    with Cluster(tmp_path / "data") as cluster:
        cluster.put("key", "value")
        replica = tmp_path / "data" / "replica-1"
        looks = gone_at = 0

        class Looking(Look):  # type: ignore[misc, valid-type]
            def found(self) -> object:
                nonlocal looks
                looks += 1
                if looks != gone_at or not replica.exists():
                    return super().found()
                move(replica)
                try:
                    return super().found()
                finally:
                    replica.with_name("moved").rename(replica)

        monkeypatch.setattr("ondisk.storage.watch.Look", Looking)
        kept = []
        for number in range(1, 100):
            cluster.stop(1)
            looks, gone_at = 0, number
            try:
                cluster.start(1)
                wait_until(lambda: cluster.status()[1].role in ("leader", "follower", "failed"))
            except StorageError as error:
                kept.append(error)
            reached, gone_at = looks >= number, 0  # what runs goes on to look, and may have failed
            if not reached:
                break
        assert len(kept) >= 4  # two databases, and the two directories in which they stand
        assert cluster.get("key", via=1) == b"value"
