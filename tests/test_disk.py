"""A ``Store`` on its disk: what survives a power cut, and which damage is reported."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from ondisk.errors import Corrupt, StorageError
from ondisk.storage import rocksdb
from ondisk.storage.powercut import copy_files
from ondisk.storage.store import Store
from tests.stores import (
    FullDisk,
    copy_live,
    flip,
    held,
    largest_table,
    newest_wal,
    record_starts,
    reopened,
    write,
)

# Power cut and close


@pytest.mark.parametrize("synced", [0, 1, 5])
@pytest.mark.parametrize("unsynced", [0, 1, 5])
def test_a_crash_loses_exactly_what_was_not_synced(tmp_path: Path, synced: int, unsynced: int) -> None:
    """Writes after the last sync are gone, those before it are there."""
    store = Store(tmp_path / "db")
    for number in range(1, synced + 1):
        write(store, number)
    if synced:
        store.sync()
    for number in range(synced + 1, synced + unsynced + 1):
        write(store, number)
    store.crash()
    assert reopened(tmp_path / "db") == synced


@pytest.mark.parametrize("left", [0, 1, 6, 7, 8, 10, 14, 15, 18, 19, 20])
def test_a_crash_finds_its_place_where_a_batch_is_split_over_two_blocks(tmp_path: Path, left: int) -> None:
    """A synced batch that begins ``left`` bytes before a block's end stays, the next one goes."""
    block = 32 << 10
    probe = Store(tmp_path / "probe")
    write(probe, 1, 30_000)
    overhead = newest_wal(tmp_path / "probe").stat().st_size - 30_000
    probe.close()
    store = Store(tmp_path / "db")
    write(store, 1, block - left - overhead)
    assert newest_wal(tmp_path / "db").stat().st_size == block - left
    write(store, 2)
    store.sync()
    write(store, 3)
    store.crash()
    assert reopened(tmp_path / "db") == 2


def test_a_crash_after_tables_were_written_leaves_a_prefix_with_everything_synced(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Data that RocksDB moved to tables keeps its index, and nothing synced is lost."""
    monkeypatch.setattr(rocksdb, "WRITE_BUFFER_BYTES", 64 << 10)
    for round_ in range(3):
        path = tmp_path / f"db{round_}"
        store = Store(path)
        for number in range(1, 100):
            write(store, number, 2000)
        store.sync()
        for number in range(100, 200 + 17 * round_):
            write(store, number, 2000)
        store.crash()
        assert any(path.glob("*.sst"))
        assert 99 <= reopened(path) < 200 + 17 * round_


def test_tables_alone_hold_the_index_that_belongs_to_their_data(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Data and index go to tables together: without any write-ahead log they still agree."""
    monkeypatch.setattr(rocksdb, "WRITE_BUFFER_BYTES", 64 << 10)
    store = Store(tmp_path / "db")
    for number in range(1, 200):
        write(store, number, 2000)
    copy = tmp_path / "copy"
    while not copy_files(store.path, copy):
        pass  # tables are being written meanwhile
    store.close()
    for log in copy.glob("*.log"):
        os.truncate(log, 0)
    assert 0 <= reopened(copy) < 199


def test_sync_makes_rocksdb_sync_its_log_and_a_write_does_not(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """RocksDB itself counts one sync of the write-ahead log for each ``sync``."""
    make_options = rocksdb.options
    counting = make_options()
    counting.enable_statistics()
    first = iter([counting])
    monkeypatch.setattr(rocksdb, "options", lambda: next(first, None) or make_options())

    def syncs() -> int:
        counted = re.search(r"rocksdb\.wal\.synced COUNT : (\d+)", counting.get_statistics() or "")
        assert counted
        return int(counted[1])

    store = Store(tmp_path / "db")
    before = syncs()
    for number in range(1, 4):
        write(store, number)
        assert syncs() == before + number - 1
        store.sync()
        assert syncs() == before + number
    store.close()


def test_close_keeps_what_was_not_synced(tmp_path: Path) -> None:
    """A clean end is not a power cut."""
    store = Store(tmp_path / "db")
    write(store, 1)
    store.close()
    assert reopened(tmp_path / "db") == 1


def test_what_survived_a_crash_survives_the_next(tmp_path: Path) -> None:
    """What a power cut left is durable, even if nothing is synced again."""
    path = tmp_path / "db"
    for number in range(1, 5):
        store = Store(path)
        assert held(store) == number - 1
        write(store, number)
        store.sync()
        write(store, number + 1)
        store.crash()
        Store(path).crash()
    assert reopened(path) == 4


def test_crash_and_close_do_nothing_to_a_closed_store(tmp_path: Path) -> None:
    """A second end is no end: it does not touch the files of who opened them since."""
    former = Store(tmp_path / "db")
    former.close()
    former.close()
    store = Store(tmp_path / "db")
    write(store, 1)
    former.crash()
    former.close()
    write(store, 2)
    store.sync()
    write(store, 3)
    assert held(store) == 3
    for end in (store.crash, store.crash, store.close):
        end()
    assert reopened(tmp_path / "db") == 2


@pytest.mark.parametrize("step", range(4))
def test_a_crash_that_is_killed_halfway_loses_nothing_synced(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, step: int
) -> None:
    """Whatever ``crash`` has done to the directory when its process dies, opening finishes it."""

    class Killed(BaseException):
        pass

    steps = iter(range(100))

    def counted(function: Callable[..., object]) -> Callable[..., object]:
        def call(*arguments: object, **options: object) -> object:
            if next(steps) == step:
                raise Killed
            return function(*arguments, **options)

        return call

    path = tmp_path / "db"
    store = Store(path)
    write(store, 1)
    store.sync()
    write(store, 2)
    with monkeypatch.context() as patch, pytest.raises(Killed):
        patch.setattr(os, "truncate", counted(os.truncate))
        patch.setattr(Path, "rename", counted(Path.rename))

        def remove(directory: Path, ignore_errors: bool = False) -> None:
            if not ignore_errors:
                next(iter(directory.glob("CURRENT"))).unlink()
                raise Killed
            real(directory, ignore_errors=ignore_errors)

        real = shutil.rmtree
        patch.setattr(shutil, "rmtree", remove)
        store.crash()
    store.close()
    assert reopened(path) in (1, 2)
    assert [child.name for child in tmp_path.iterdir()] == ["db"]


def test_leftovers_of_a_crash_are_removed_and_not_believed(tmp_path: Path) -> None:
    """A half-made copy beside a whole database is thrown away."""
    store = Store(tmp_path / "db")
    write(store, 1)
    store.close()
    for name in ("db.power-cut", "db.before-power-cut"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "CURRENT").write_text("MANIFEST-000042\n")
    assert reopened(tmp_path / "db") == 1
    assert [child.name for child in tmp_path.iterdir()] == ["db"]


# Damage


@pytest.fixture
def damaged(tmp_path: Path) -> Path:
    """A copy of a live store with numbers 1 to 9 in a table and 10 to 20 in the write-ahead log."""
    store = Store(tmp_path / "db")
    for number in range(1, 10):
        write(store, number, 100)
    store.close()
    store = Store(tmp_path / "db")
    for number in range(10, 21):
        write(store, number, 100)
    store.sync()
    copy = copy_live(tmp_path / "db", tmp_path / "copy")
    store.close()
    assert reopened(copy_live(copy, tmp_path / "check")) == 20
    return copy


@pytest.mark.parametrize(
    "damage",
    [
        lambda path: newest_wal(path).unlink(),
        lambda path: next(path.glob("*.sst")).unlink(),
        lambda path: os.truncate(max(path.glob("*.sst")), 500),
        lambda path: (path / "CURRENT").write_bytes(b""),
        lambda path: (path / "CURRENT").write_bytes(b"MANIFEST-000099\n"),
        lambda path: (path / "CURRENT").unlink(),
        lambda path: ((path / "CURRENT").unlink(), newest_wal(path).unlink()),
        lambda path: next(path.glob("MANIFEST-*")).unlink(),
        lambda path: os.truncate(next(path.glob("MANIFEST-*")), 0),
        lambda path: flip(next(path.glob("MANIFEST-*")), 20, 3),
        lambda path: flip(path / "CURRENT", 12, 0),
        lambda path: flip(newest_wal(path), 40, 0),
        lambda path: flip(newest_wal(path), record_starts(newest_wal(path))[-1] + 20, 7),
        lambda path: flip(largest_table(path), 0, 0),
    ],
    ids=[
        "no WAL", "no table", "short table", "empty CURRENT", "wrong CURRENT", "no CURRENT",
        "no CURRENT, no WAL", "no MANIFEST", "empty MANIFEST", "bit in MANIFEST", "bit in CURRENT",
        "bit in WAL", "bit at WAL's end", "bit in table",
    ],
)  # fmt: skip
def test_damage_is_reported_with_its_place(
    damaged: Path, damage: Callable[[Path], object], monkeypatch: pytest.MonkeyPatch
) -> None:
    """What is missing or changed is an error when opening or reading, and never silently less."""
    monkeypatch.setattr(rocksdb, "shared_cache", [])  # it still knows the tables as they were
    damage(damaged)
    with pytest.raises(StorageError, match=r"copy.*(damaged|missing|refused)"):
        reopened(damaged)


@pytest.mark.parametrize("file", ["WAL", "MANIFEST"])
def test_a_damaged_record_type_is_reported_and_not_looped_over(damaged: Path, file: str) -> None:
    """One flipped bit that makes RocksDB itself spin for ever is refused before it can."""
    pick = newest_wal if file == "WAL" else lambda path: next(path.glob("MANIFEST-*"))
    for start in record_starts(pick(damaged)):
        copy = copy_live(damaged, damaged.with_name("again"))
        flip(pick(copy), start + 6, 2)
        with pytest.raises(Corrupt, match=f"damaged at byte {start + 6}"):
            Store(copy)


def test_a_torn_tail_leaves_a_prefix(damaged: Path) -> None:
    """A write-ahead log that ends anywhere opens to the writes before that place, index and all."""
    length = newest_wal(damaged).stat().st_size
    starts = record_starts(newest_wal(damaged))
    seen = []
    for cut in sorted({*range(0, length, 61), *starts, *(at - 1 for at in starts[1:]), length}):
        copy = copy_live(damaged, damaged.with_name("torn"))
        os.truncate(newest_wal(copy), cut)
        seen.append(reopened(copy))
        whole = sum(cut >= end for end in [*starts[1:], length])
        assert seen[-1] == 9 + whole, f"cut at byte {cut}"
    assert seen[0] == 9 and seen[-1] == 20


# A disk that fails


def test_a_full_disk_is_a_typed_error_and_loses_nothing_synced(tmp_path: Path) -> None:
    """``OSError`` from the disk becomes a ``StorageError`` that says what and where."""
    disk = FullDisk()
    store = Store(tmp_path / "db", disk)
    write(store, 1)
    store.sync()
    disk.full = True
    write(store, 2)
    with pytest.raises(StorageError, match=r"db: the disk refused .*No space left") as raised:
        store.sync()
    assert type(raised.value) is StorageError
    store.crash()
    assert reopened(tmp_path / "db") == 1


REALLY_FULL = """
import resource, signal, sys
from pathlib import Path
from ondisk.errors import Corrupt, StorageError
from ondisk.raft.log import RaftLog
from ondisk.raft.records import LogEntry

signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
everything = resource.RLIM_INFINITY
log = RaftLog(Path(sys.argv[1]))
resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, everything))  # no file may become larger
durable = 0
try:
    while True:
        log.append([LogEntry(durable + 1, 1, bytes(5000))])
        log.sync()
        durable += 1
except StorageError as error:
    assert "the disk refused" in str(error) and not isinstance(error, Corrupt), error
for _ in range(2):
    try:
        log.close()
    except StorageError:
        pass
resource.setrlimit(resource.RLIMIT_FSIZE, (everything, everything))
log = RaftLog(Path(sys.argv[1]))
assert durable > 5 and log.last_index in (durable, durable + 1), (durable, log.last_index)
log.append([LogEntry(log.last_index + 1, 1, b"room again")])
log.close()
"""


def test_rocksdb_refused_by_the_kernel_stops_cleanly_and_opens_when_there_is_room(
    tmp_path: Path,
) -> None:
    """A real write error is typed, everything durable is there afterwards, and it goes on."""
    subprocess.run(
        [sys.executable, "-c", REALLY_FULL, str(tmp_path / "log")],
        check=True,
        timeout=60,
        cwd=Path(__file__).parents[1],
    )
