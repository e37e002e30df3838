"""What a person may name: all that a path can be is handled, or refused before anything was changed."""

from __future__ import annotations

import errno
import io
import os
import socket
import subprocess
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from ondisk import Cluster, DiskKV, import_snapshot
from ondisk.errors import ConfigurationError, Corrupt, OndiskError, StorageError
from ondisk.raft.members import Members
from ondisk.snapshot.stream import Chunk, Header, Writer, make_header, write_file
from ondisk.storage.lock import DirectoryLock
from ondisk.storage.paths import read_regular, resolved
from ondisk.storage.store import Store
from tests.kvsnapshots import filled, recover
from tests.machines import everything, opened

HEADER = make_header(7, 1, Members((1,)))
CONTENT = b"some bytes" * 1000


def export(path: Path, fail: Exception | None = None) -> None:
    """Write a snapshot file."""

    def write(put: Callable[[Chunk], None]) -> Header:
        writer = Writer(HEADER, put)
        writer.write(CONTENT)
        if fail is not None:
            raise fail
        writer.finish()
        return HEADER

    write_file(path, write)


def listing(directory: Path) -> dict[str, tuple[int, int, bytes]]:
    """Names, kinds, inodes and contents of all that is in a directory."""
    found = {}
    for path in sorted(directory.rglob("*")):
        state = path.lstat()
        regular = path.is_file() and not path.is_symlink()
        found[str(path)] = (state.st_mode, state.st_ino, path.read_bytes() if regular else b"")
    return found


@contextmanager
def unchanged(directory: Path) -> Iterator[None]:
    before = listing(directory)
    yield
    assert listing(directory) == before


@contextmanager
def within(seconds: float, call: Callable[[], object]) -> Iterator[BaseException | None]:
    """Run a call that must not hang, in a thread, and hand over what it raised."""
    raised: list[BaseException] = []

    def run() -> None:
        try:
            call()
        except BaseException as error:
            raised.append(error)

    thread = threading.Thread(target=run, daemon=True)
    thread.start()
    thread.join(seconds)
    assert not thread.is_alive(), "it hangs"
    yield raised[0] if raised else None


def fifo(path: Path) -> None:
    os.mkfifo(path)


def unix_socket(path: Path) -> None:
    with socket.socket(socket.AF_UNIX) as server:
        here = os.getcwd()
        os.chdir(path.parent)  # the path of a socket may have 107 bytes only
        try:
            server.bind(path.name)
        finally:
            os.chdir(here)


def circle(path: Path) -> None:
    path.symlink_to(path.name)


NO_FILES = [fifo, unix_socket, Path.mkdir, circle]


# Exports


@pytest.mark.parametrize("make", NO_FILES, ids=lambda make: make.__name__)
def test_an_export_replaces_nothing_but_a_file(tmp_path: Path, make: Callable[[Path], object]) -> None:
    target = tmp_path / "target"
    make(target)
    with unchanged(tmp_path), within(10, lambda: export(target)) as error:
        assert isinstance(error, StorageError | ConfigurationError), error
        assert str(target) in str(error)


def test_an_export_never_opens_or_replaces_a_device(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Said by ``lstat``: no test shall touch a real one."""
    target = tmp_path / "device"
    target.touch()
    real = os.lstat

    def lstat(path: Path) -> os.stat_result:
        state = real(path)
        return os.stat_result((0o020600, *state[1:])) if Path(path) == target else state

    monkeypatch.setattr(os, "lstat", lstat)
    with unchanged(tmp_path), pytest.raises(StorageError, match="is a device, and only a file is replaced"):
        export(target)


def test_an_export_replaces_a_file_and_follows_a_symlink_to_one(tmp_path: Path) -> None:
    """The link stays: whoever has it finds the new snapshot."""
    there = tmp_path / "elsewhere" / "backup"
    there.parent.mkdir()
    there.write_text("old")
    link = tmp_path / "link"
    link.symlink_to(there)
    export(link)
    assert link.is_symlink() and CONTENT in there.read_bytes()
    assert sorted(os.listdir(there.parent)) == ["backup"]
    export(there)
    assert sorted(os.listdir(there.parent)) == ["backup"]


@pytest.mark.parametrize(
    "name",
    ["x" * 256, "ö" * 128, "no/such/directory", "x" * 5000, "a\0b"],
    ids=["long", "long in UTF-8", "nowhere", "very long", "nul"],
)
def test_a_name_that_cannot_be_is_refused_before_anything_is_written(tmp_path: Path, name: str) -> None:
    with unchanged(tmp_path), pytest.raises((StorageError, ConfigurationError)):
        export(tmp_path / name)


@pytest.mark.parametrize("name", ["x" * 255, "ö" * 127, "." + "x" * 254])
def test_a_name_that_is_as_long_as_names_may_be_is_none_too_long(tmp_path: Path, name: str) -> None:
    """While it is written the file has another one."""
    export(tmp_path / name)
    assert os.listdir(tmp_path) == [name]


@pytest.mark.parametrize("name", ["log/rocksdb/CURRENT", "state/current", "owner", "backup", "state/new/x"])
def test_an_export_never_goes_into_the_directory_of_a_replica(
    make_cluster: Callable[..., Cluster], name: str
) -> None:
    cluster = make_cluster(members=(1,))
    cluster.put("k", "v")
    with pytest.raises(ConfigurationError, match="is in the directory of a replica"):
        cluster.export_snapshot(1, cluster.data_dir / "replica-1" / name)
    cluster.put("k", "w")
    assert cluster.status()[1].running


def test_a_file_that_may_not_be_written_is_not_replaced(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    target = tmp_path / "kept"
    target.write_text("kept")
    target.chmod(0o444)
    if os.access(target, os.W_OK):  # root may do anything
        monkeypatch.setattr(os, "access", lambda path, mode: Path(path) != target)
    with unchanged(tmp_path), pytest.raises(StorageError, match="may not be written"):
        export(target)


def test_an_export_that_fails_leaves_nothing_behind(tmp_path: Path) -> None:
    target = tmp_path / "backup"
    target.write_text("old")
    for error in (OSError(errno.ENOSPC, "No space left on device"), MemoryError(), KeyboardInterrupt()):
        with unchanged(tmp_path), pytest.raises((StorageError, MemoryError, KeyboardInterrupt)):
            export(target, error)  # type: ignore[arg-type]


def test_a_failure_after_the_file_is_in_place_says_so(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(_: Path) -> None:
        raise OSError(errno.EIO, "Input/output error")

    monkeypatch.setattr("ondisk.snapshot.stream.sync_directory", fail)
    with pytest.raises(StorageError, match="is complete and in its place, but a power cut may still take it"):
        export(tmp_path / "backup")
    assert os.listdir(tmp_path) == ["backup"]


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """Another file system, with 1 MB, if this user may mount one."""
    path = tmp_path / "small"
    path.mkdir()
    command = ["mount", "-t", "tmpfs", "-o", "size=1m", "ondisk-test", path]
    done = subprocess.run(command, capture_output=True, check=False)
    if done.returncode != 0:
        pytest.skip(f"no file system can be mounted here: {done.stderr.decode().strip()}")
    yield path
    subprocess.run(["umount", path], check=True)


def test_an_export_to_another_file_system_works_and_one_to_a_full_one_leaves_nothing(
    make_cluster: Callable[..., Cluster], small_disk: Path
) -> None:
    cluster = make_cluster(members=(1,))
    cluster.put("k", "v")
    cluster.export_snapshot(1, small_disk / "backup")
    for number in range(8):
        cluster.put(f"large{number}", os.urandom(200_000))
    with unchanged(small_disk), pytest.raises(StorageError, match="No space left"):
        cluster.export_snapshot(1, small_disk / "backup")
    cluster.put("k", "w")
    assert cluster.status()[1].running and cluster.status()[1].streams == ()


def test_an_export_to_a_file_system_that_is_read_only_changes_nothing(
    make_cluster: Callable[..., Cluster], small_disk: Path
) -> None:
    cluster = make_cluster(members=(1,))
    cluster.put("k", "v")
    subprocess.run(["mount", "-o", "remount,ro", small_disk], check=True)
    with pytest.raises(StorageError, match="Read-only file system"):
        cluster.export_snapshot(1, small_disk / "backup")
    cluster.put("k", "w")
    assert os.listdir(small_disk) == []


# Imports and directories


@pytest.mark.parametrize("make", NO_FILES, ids=lambda make: make.__name__)
def test_what_is_no_file_is_no_snapshot_and_the_old_data_stays(
    tmp_path: Path, make: Callable[[Path], object]
) -> None:
    with Cluster(tmp_path / "data", members=(1,)) as cluster:
        cluster.put("k", "v")
    make(tmp_path / "backup")
    call = lambda: import_snapshot(tmp_path / "backup", tmp_path / "data", members=[1])  # noqa: E731
    with within(10, call) as error:
        assert isinstance(error, ConfigurationError), error
    with Cluster(tmp_path / "data", members=(1,)) as cluster:
        assert cluster.get("k") == b"v"


@pytest.mark.parametrize("make", [fifo, unix_socket, circle, Path.touch], ids=lambda make: make.__name__)
@pytest.mark.parametrize("place", ["data", "data/replica-1"])
def test_what_is_no_directory_is_refused(tmp_path: Path, make: Callable[[Path], object], place: str) -> None:
    (tmp_path / place).parent.mkdir(exist_ok=True)
    make(tmp_path / place)
    with unchanged(tmp_path), within(10, lambda: Cluster(tmp_path / "data", members=(1,))) as error:
        assert isinstance(error, StorageError | ConfigurationError), error
        assert str(tmp_path) in str(error)


@pytest.mark.parametrize("place", ["owner", "current", "db-000001/CURRENT", "db-000001/000042.sst"])
@pytest.mark.parametrize("make", [fifo, unix_socket], ids=lambda make: make.__name__)
def test_what_is_no_file_inside_a_state_is_refused_without_waiting_for_it(
    tmp_path: Path, make: Callable[[Path], object], place: str
) -> None:
    opened(tmp_path / "kv").close()
    (tmp_path / "kv" / place).unlink(missing_ok=True)
    make(tmp_path / "kv" / place)
    with within(10, lambda: DiskKV(tmp_path / "kv").open()) as error:
        assert isinstance(error, StorageError), error
        assert place in str(error)


@pytest.mark.parametrize("path", ["a\0b", "", 7, b"data", "/" + "x/" * 2000], ids=repr)
def test_what_is_no_path_is_refused_by_whatever_takes_one(tmp_path: Path, path: str) -> None:
    os.chdir(tmp_path)
    takers: list[Callable[[], object]] = [
        lambda: Cluster(path, members=(1,)),
        lambda: DiskKV(path),
        lambda: import_snapshot(path, "data"),
        lambda: import_snapshot("backup", path),
    ]
    if path != "":  # it is the working directory
        for taker in takers:
            with unchanged(tmp_path), pytest.raises(ConfigurationError):
                taker()
    with pytest.raises((ConfigurationError, StorageError)):
        export(resolved(path, "it"))


def test_a_symlink_to_a_directory_is_as_good_as_the_directory(tmp_path: Path) -> None:
    (tmp_path / "real").mkdir()
    (tmp_path / "link").symlink_to("real")
    with Cluster(tmp_path / "link", members=(1,)) as cluster:
        cluster.put("k", "v")
    with Cluster(tmp_path / "real", members=(1,)) as cluster:
        assert cluster.get("k") == b"v"


def test_a_live_database_on_another_file_system_than_its_directory_is_refused(
    tmp_path: Path, small_disk: Path
) -> None:
    """A view of it would not be hard links but a copy, made in a step."""
    opened(tmp_path / "kv").close()
    database = tmp_path / "kv" / "db-000001"
    (small_disk / "db").mkdir()
    for file in database.iterdir():
        (small_disk / "db" / file.name).write_bytes(file.read_bytes())
        file.unlink()
    database.rmdir()
    database.symlink_to(small_disk / "db")
    with pytest.raises(StorageError, match="is on another file system than"):
        DiskKV(tmp_path / "kv").open()
    assert database.is_symlink() and (small_disk / "db" / "CURRENT").exists()


# The point of no return of a state that is replaced


def test_a_state_that_was_replaced_is_the_live_one_although_its_directory_could_not_be_synced(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """So the machine does not go on with the old one: it is closed, and opens with the new one."""
    source = filled(tmp_path / "source", {b"new": b"1"})
    view, stream = source.prepare_snapshot(), io.BytesIO()
    source.save_snapshot(view, stream, threading.Event())  # type: ignore[arg-type]
    source.close()
    machine = filled(tmp_path / "kv", {b"old": b"1", b"older": b"1"})

    def fail(path: Path, disk: object) -> None:
        if path == tmp_path / "kv":
            raise OSError(errno.EIO, "Input/output error")

    monkeypatch.setattr("ondisk.storage.generations.sync_directory", fail)
    with pytest.raises(StorageError, match="in place"):
        recover(machine, stream.getvalue())
    with pytest.raises(OndiskError):
        machine.sync()
    monkeypatch.undo()
    machine = opened(tmp_path / "kv")
    assert everything(machine) == {b"new": b"1"}
    assert sorted(os.listdir(tmp_path / "kv")) == ["current", "db-000002", "owner"]
    machine.close()


def test_a_file_is_read_only_if_it_is_one(tmp_path: Path) -> None:
    fifo(tmp_path / "fifo")
    with within(10, lambda: read_regular(tmp_path / "fifo")) as error:
        assert isinstance(error, StorageError) and "is a FIFO where a file is due" in str(error)
    (tmp_path / "file").write_text("x")
    assert read_regular(tmp_path / "file") == b"x"
    for lock in (DirectoryLock, Store):
        fifo(tmp_path / "owner" if lock is DirectoryLock else tmp_path / "MANIFEST-000001")
        with within(10, lambda lock=lock: lock(tmp_path)) as error:  # type: ignore[misc]
            assert isinstance(error, StorageError) and not isinstance(error, Corrupt)


def test_a_device_is_never_opened_where_a_file_is_due(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """To open some of them does something, rewinding a tape for one. Said by ``stat`` alone."""
    (tmp_path / "device").touch()
    real, opened_paths = os.stat, []

    def stat(path: Path, **options: bool) -> os.stat_result:
        state = real(path, **options)
        return os.stat_result((0o020600, *state[1:])) if Path(path) == tmp_path / "device" else state

    monkeypatch.setattr(os, "stat", stat)
    monkeypatch.setattr(os, "open", lambda path, *_: opened_paths.append(path))
    with pytest.raises(StorageError, match="is a device where a file is due"):
        read_regular(tmp_path / "device")
    monkeypatch.undo()
    assert opened_paths == []
