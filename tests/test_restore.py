"""An import of a snapshot by itself: what it makes of a directory, and what an error leaves."""

from __future__ import annotations

import os
import shutil
import threading
from collections.abc import Callable
from pathlib import Path

import pytest

from ondisk import DiskKV, diskkv, import_snapshot
from ondisk.errors import ConfigurationError, Corrupt, DirectoryInUse, SnapshotStopped, StorageError
from ondisk.raft.log import RaftLog
from ondisk.raft.members import Members
from ondisk.raft.messages import Chunk
from ondisk.snapshot import restore
from ondisk.snapshot.restore import begin_directory, complete_import
from ondisk.snapshot.stream import Header, SnapshotFile, Writer, make_header, write_file
from ondisk.statemachine import Entry
from ondisk.storage.lock import DirectoryLock

INDEX, TERM, KEYS = 9, 4, 20


@pytest.fixture
def snapshot(tmp_path: Path) -> Path:
    """An exported snapshot of a group of others."""
    return exported(tmp_path / "snapshot")


def exported(path: Path, header: Header | None = None) -> Path:
    kv = DiskKV(path.with_name("exporting"))
    kv.open()
    kv.update([Entry(INDEX - KEYS + n, diskkv.put(f"k{n}", "v")) for n in range(KEYS - INDEX + 1, KEYS + 1)])
    header = header or make_header(INDEX, TERM, Members((7, 8), group=b"o" * 16))

    def write(put: Callable[[Chunk], None]) -> Header:
        view = kv.prepare_snapshot()
        writer = Writer(header, put, 64)
        kv.save_snapshot(view, writer, threading.Event())
        writer.finish()
        view.close()
        return header

    write_file(path, write)
    kv.close()
    shutil.rmtree(path.with_name("exporting"))
    return path


def test_each_replica_begins_after_the_snapshot_and_founds_a_group_of_the_members(
    tmp_path: Path, snapshot: Path
) -> None:
    told: list[tuple[int, int]] = []
    done = import_snapshot(
        snapshot,
        tmp_path / "data",
        members=(3, 1, 2),
        replica_ids=(1, 3),
        progress=lambda *it: told.append(it),
    )
    assert done == SnapshotFile(snapshot, INDEX, TERM, snapshot.stat().st_size)
    assert sorted(os.listdir(tmp_path / "data")) == ["replica-1", "replica-3"]
    seeds = set()
    for member in (1, 3):
        directory = tmp_path / "data" / f"replica-{member}"
        log = RaftLog(directory / "log", replica_id=member)
        assert (log.base_index, log.base_term, log.last_index) == (INDEX, TERM, INDEX)
        assert (log.term, log.voted_for, log.members) == (TERM, None, Members(()))
        assert log.identity is not None and log.identity.first == (1, 2, 3) and log.identity.state_marked
        assert log.disk_id.hex() in (directory / "state" / "belongs-to").read_text()
        seeds.add(log.identity.seed)
        log.close()
        kv = DiskKV(directory / "state")
        assert kv.open() == INDEX and kv.lookup(diskkv.get(f"k{KEYS}")) == b"v"
        kv.close()
    assert len(seeds) == 1 and len(seeds.pop()) == 16  # they will know each other by it
    for member in (1, 3):
        so_far = [size for who, size in told if who == member]
        assert so_far == sorted(so_far) and so_far[0] > 0
    assert {member for member, _ in told} == {1, 3}


def test_all_members_are_imported_if_none_is_named(tmp_path: Path, snapshot: Path) -> None:
    import_snapshot(snapshot, tmp_path / "data", members=(1, 2))
    assert sorted(os.listdir(tmp_path / "data")) == ["replica-1", "replica-2"]


@pytest.mark.parametrize(
    ("members", "here"), [((1, 2), ()), ((1, 2), (3,)), ((1, 2), (1, 3)), ((1, 1), None), ((), None)]
)
def test_only_members_can_be_imported(
    tmp_path: Path, snapshot: Path, members: tuple[int, ...], here: tuple[int, ...] | None
) -> None:
    with pytest.raises(ConfigurationError):
        import_snapshot(snapshot, tmp_path / "data", members=members, replica_ids=here)
    assert not (tmp_path / "data").exists()


def test_the_directory_of_a_replica_is_there_and_durable_before_its_machine_opens(
    tmp_path: Path, snapshot: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    made: list[Path] = []
    make_directory = restore.make_directory
    monkeypatch.setattr(restore, "make_directory", lambda path: (made.append(path), make_directory(path)))

    def make(path: Path) -> DiskKV:
        made.append(path)
        return DiskKV(path)

    import_snapshot(snapshot, tmp_path / "data", members=(1,), state_machine=make)
    new = tmp_path / "data" / "replica-1.importing"
    assert new in made and made.index(new) < made.index(new / "state")


def prepare(tmp_path: Path) -> Path:
    """A replica with old data, beside the rests of two imports that were cut short."""
    directory = tmp_path / "data" / "replica-1"
    for name in ("replica-1", "replica-1.importing", "replica-1.replaced"):
        (directory.with_name(name) / "state").mkdir(parents=True)
        (directory.with_name(name) / "note").write_text(name)
    return directory


def old_is_whole(directory: Path) -> bool:
    return (directory / "note").read_text() == "replica-1" and not directory.with_name(
        "replica-1.importing"
    ).exists()


def test_nothing_of_the_old_is_left(tmp_path: Path, snapshot: Path) -> None:
    directory = prepare(tmp_path)
    import_snapshot(snapshot, tmp_path / "data", members=(1,))
    assert os.listdir(tmp_path / "data") == ["replica-1"]
    assert not (directory / "note").exists()
    DirectoryLock(directory).release()


def test_a_stream_that_is_not_what_it_claims_to_be_changes_nothing(tmp_path: Path) -> None:
    directory = prepare(tmp_path)
    lying = exported(tmp_path / "lying", make_header(INDEX + 1, TERM, Members((7,))))
    with pytest.raises(Corrupt, match=rf"claims to hold entry {INDEX + 1}, but holds {INDEX}"):
        import_snapshot(lying, tmp_path / "data", members=(1,))
    assert old_is_whole(directory)
    with pytest.raises(ConfigurationError, match="no snapshot to read"):
        import_snapshot(tmp_path / "nothing", tmp_path / "data", members=(1,))
    assert old_is_whole(directory)
    DirectoryLock(directory).release()  # nobody holds it


def test_a_snapshot_that_goes_on_after_its_end_changes_nothing(tmp_path: Path, snapshot: Path) -> None:
    directory = prepare(tmp_path)
    closed: list[bool] = []

    class Hasty(DiskKV):
        """Reads no more than a bit of it."""

        def recover_from_snapshot(self, source, stopped):  # type: ignore[no-untyped-def]
            source.read(10)
            return INDEX

        def close(self) -> None:
            closed.append(True)
            super().close()

    with pytest.raises(Corrupt, match="goes on after"):
        import_snapshot(snapshot, tmp_path / "data", members=(1,), state_machine=Hasty)
    assert old_is_whole(directory) and closed


def test_an_import_that_nobody_wants_any_more_changes_nothing(tmp_path: Path, snapshot: Path) -> None:
    directory = prepare(tmp_path)
    stopped = threading.Event()
    stopped.set()
    with pytest.raises(SnapshotStopped):
        import_snapshot(snapshot, tmp_path / "data", members=(1,), stopped=stopped)
    assert old_is_whole(directory)


def test_a_directory_in_use_is_left_alone(tmp_path: Path, snapshot: Path) -> None:
    directory = tmp_path / "data" / "replica-1"
    lock = DirectoryLock(directory)
    with pytest.raises(DirectoryInUse):
        import_snapshot(snapshot, tmp_path / "data", members=(1,))
    lock.release()
    assert os.listdir(directory.parent) == ["replica-1"]


def test_a_symlink_is_not_replaced_by_a_directory(tmp_path: Path, snapshot: Path) -> None:
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "replica-1").symlink_to(tmp_path / "elsewhere")
    with pytest.raises(ConfigurationError, match="is a symlink"):
        import_snapshot(snapshot, tmp_path / "data", members=(1,))
    assert os.listdir(tmp_path / "elsewhere") == []


def test_a_mount_point_is_not_replaced_by_a_directory(
    tmp_path: Path, snapshot: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    directory = prepare(tmp_path)
    monkeypatch.setattr("os.path.ismount", lambda path: path == directory)
    with pytest.raises(ConfigurationError, match="is a mount point"):
        import_snapshot(snapshot, tmp_path / "data", members=(1,))
    assert (directory / "note").exists()


def test_names_are_durable_before_the_old_data_goes(
    tmp_path: Path, snapshot: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    directory, seen = prepare(tmp_path), []
    sync_directory = restore.sync_directory

    def note(path: Path) -> None:
        seen.append((path.name, (directory / "log").exists(), sorted(os.listdir(path))))
        sync_directory(path)

    monkeypatch.setattr(restore, "sync_directory", note)
    import_snapshot(snapshot, tmp_path / "data", members=(1,))
    assert seen == [("data", True, ["replica-1", "replica-1.replaced"])]


def test_an_error_before_the_old_was_put_aside_changes_nothing(
    tmp_path: Path, snapshot: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    directory = prepare(tmp_path)
    rename = Path.rename

    def fail(path: Path, target: Path) -> Path:
        if path == directory:
            raise OSError("no more")
        return rename(path, target)

    monkeypatch.setattr(Path, "rename", fail)
    with pytest.raises(StorageError, match=r"cannot be imported \(no more\)"):
        import_snapshot(snapshot, tmp_path / "data", members=(1,))
    assert old_is_whole(directory)


def test_an_error_after_the_new_is_in_place_says_that_the_import_counts(
    tmp_path: Path, snapshot: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    directory = prepare(tmp_path)

    def fail(_: Path) -> None:
        raise OSError("no more")

    monkeypatch.setattr(restore, "sync_directory", fail)
    with pytest.raises(StorageError, match=r"is imported and in its place.*\(no more\)"):
        import_snapshot(snapshot, tmp_path / "data", members=(1,))
    assert (directory / "log").exists()


@pytest.mark.parametrize(
    ("there", "after"),
    [
        (("new", "old"), ["r"]),  # a crash came in between
        (("new", "old", "r"), ["new", "old", "r"]),
        (("new",), ["new"]),  # not complete: there was nothing in its place yet
        (("old",), ["old"]),
        ((), []),
    ],
)
def test_an_import_is_completed_if_the_old_was_put_aside_for_it(
    tmp_path: Path, there: tuple[str, ...], after: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    names = {"new": "r.importing", "old": "r.replaced", "r": "r"}
    synced: list[Path] = []
    monkeypatch.setattr(restore, "sync_directory", synced.append)
    for name in there:
        (tmp_path / names[name]).mkdir()
    complete_import(tmp_path / "r")
    left = [name for name in names if (tmp_path / names[name]).exists()]
    assert left == (["old", "r"] if after == ["r"] else after)
    assert synced == ([tmp_path] if after == ["r"] else [])


def test_an_import_that_cannot_be_completed_says_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("r.importing", "r.replaced"):
        (tmp_path / name).mkdir()

    def fail(*_: object) -> None:
        raise OSError("no more")

    with monkeypatch.context() as patch:
        patch.setattr(Path, "rename", fail)
        with pytest.raises(StorageError, match=r"an import cannot be completed \(no more\)"):
            complete_import(tmp_path / "r")


def test_a_directory_that_was_begun_joins_one_group_only(tmp_path: Path) -> None:
    directory = tmp_path / "replica-5"
    begin_directory(directory, 5, existing=b"e" * 16)
    DirectoryLock(directory).release()
    log = RaftLog(directory / "log", replica_id=5)
    assert log.identity is not None
    assert (log.identity.replica_id, log.identity.existing, log.members) == (5, b"e" * 16, Members(()))
    log.close()
