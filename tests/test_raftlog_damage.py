"""The Raft log: a lost or damaged part of it is reported, and nothing goes silently."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from ondisk.errors import Corrupt, StorageError
from ondisk.raft.log import RaftLog
from ondisk.storage import rocksdb
from ondisk.storage.store import Store
from tests.logs import State, entry, fill, reopened, small_tail, state_of
from tests.stores import copy_live, flip, largest_table, newest_wal, record_starts


@pytest.fixture
def history(tmp_path: Path) -> tuple[Path, list[State]]:
    """A copy of a live log, all in the write-ahead log, and its states after each sync."""
    log = RaftLog(tmp_path / "live")
    states = [state_of(log)]

    def sync() -> None:
        log.sync()
        states.append(state_of(log))

    log.set_hard_state(1, None)
    sync()
    for last in (1, 2, 5, 9):
        log.append([entry(index, 1, 10) for index in range(log.last_index + 1, last + 1)])
        sync()
    log.set_hard_state(1, 2)
    sync()
    log.truncate_from(4)
    log.append([entry(4, 2), entry(5, 2)])
    log.set_hard_state(2, None)
    sync()
    log.truncate_from(2)
    sync()
    log.append([entry(2, 3)])
    sync()
    log.set_hard_state(3, 1)
    sync()
    copy = copy_live(tmp_path / "live", tmp_path / "copy")
    log.close()
    return copy, states


def test_a_torn_tail_is_a_former_state_without_a_witness_and_corrupt_with_it(
    tmp_path: Path, history: tuple[Path, list[State]]
) -> None:
    """Cut anywhere, the log is as after one of its syncs, or says that synced writes are lost."""
    copy, states = history
    wal = newest_wal(copy / "rocksdb")
    length, starts = wal.stat().st_size, record_starts(wal)
    assert len(states) == len(starts) + 1
    cuts = {*range(0, length, 97), *starts, *(start + 7 for start in starts), length - 1, length}
    for cut in sorted(cuts):
        torn = copy_live(copy, tmp_path / "torn")
        os.truncate(torn / "rocksdb" / wal.name, cut)
        whole = sum(cut >= end for end in [*starts[1:], length])
        if cut < length:
            with pytest.raises(Corrupt, match=f"torn.*the end of the log is lost: .* {whole} are"):
                RaftLog(torn)
            torn = copy_live(copy, tmp_path / "torn")
            os.truncate(torn / "rocksdb" / wal.name, cut)
            (torn / "witness").unlink()
        assert reopened(torn) == states[whole], f"cut at byte {cut}"


@pytest.mark.parametrize("record", range(-5, 0))
def test_each_lost_record_at_the_end_is_reported(history: tuple[Path, list[State]], record: int) -> None:
    """Be it a vote, a truncation or an entry that the damaged end took away: ``Corrupt``."""
    copy, _ = history
    wal = newest_wal(copy / "rocksdb")
    start = record_starts(wal)[record]
    flip(wal, start + 5, 6)  # a length beyond the end of the file looks like a torn tail
    with pytest.raises(Corrupt, match="the end of the log is lost"):
        RaftLog(copy)


@pytest.mark.parametrize("byte", [0, 3, 4, 6, 7, 12, 30])
def test_a_flipped_bit_in_any_record_is_reported(
    tmp_path: Path, history: tuple[Path, list[State]], byte: int
) -> None:
    """Checksum, length, type or data, in the first, a middle or the last record: ``Corrupt``."""
    copy, _ = history
    wal = newest_wal(copy / "rocksdb")
    starts = record_starts(wal)
    for number, start in enumerate((starts[0], starts[5], starts[-1])):
        damaged = copy_live(copy, tmp_path / "damaged")
        flip(damaged / "rocksdb" / wal.name, start + byte, (byte + number) % 8)
        with pytest.raises(Corrupt, match="damaged"):
            reopened(damaged)


@pytest.mark.parametrize("closed", [False, True])
@pytest.mark.parametrize(
    "damage",
    [
        lambda log: newest_wal(log / "rocksdb").unlink(),
        lambda log: shutil.rmtree(log / "rocksdb"),
        lambda log: (log / "rocksdb" / "CURRENT").unlink(),
        lambda log: (log / "rocksdb" / "CURRENT").write_text("MANIFEST-000001\n"),
        lambda log: next((log / "rocksdb").glob("MANIFEST*")).unlink(),
        lambda log: os.truncate(next((log / "rocksdb").glob("MANIFEST*")), 60),
        lambda log: os.truncate(newest_wal(log / "rocksdb"), 0),
        lambda log: largest_table(log / "rocksdb").unlink(),
        lambda log: os.truncate(largest_table(log / "rocksdb"), 0),
        lambda log: flip(largest_table(log / "rocksdb"), 30, 5),
    ],
    ids=[
        "no WAL", "no database", "no CURRENT", "wrong CURRENT", "no MANIFEST", "short MANIFEST",
        "empty WAL", "no table", "empty table", "bit in table",
    ],
)  # fmt: skip
def test_a_lost_or_damaged_file_is_reported(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    damage: Callable[[Path], object],
    closed: bool,
    request: pytest.FixtureRequest,
) -> None:
    """A log, live or closed, that is not what it was raises a ``StorageError`` with its place."""
    log = RaftLog(tmp_path / "live")
    fill(log, 20, size=50)
    log.close()
    log = RaftLog(tmp_path / "live")
    fill(log, 22)
    copy = copy_live(tmp_path / "live", tmp_path / "copy")
    log.close()
    if closed:
        copy = copy_live(tmp_path / "live", tmp_path / "copy")
    monkeypatch.setattr(rocksdb, "shared_cache", [])  # it still knows the tables as they were
    damage(copy)
    if closed and "empty WAL" in request.node.name:  # a closed one's is empty
        assert len(reopened(copy).entries) == 22
        return
    with pytest.raises(StorageError, match="copy"):
        reopened(copy)


@pytest.mark.parametrize("missing", [1, 2, 7, 19])
def test_a_hole_is_reported_when_opening_or_reading(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, missing: int
) -> None:
    """An entry that is not there is never skipped."""
    small_tail(monkeypatch)
    log = RaftLog(tmp_path)
    fill(log, 20)
    log.close()
    store = Store(tmp_path / "rocksdb")
    batch = store.batch()
    batch.delete(missing.to_bytes(8, "big"))
    store.write(batch)
    store.close()
    if missing in (1, 19):  # either end is looked at when opening
        with pytest.raises(Corrupt, match="missing"):
            RaftLog(tmp_path)
    with pytest.raises(Corrupt, match="missing"):
        reopened(tmp_path)


@pytest.mark.parametrize("key, value", [(b"junk", b"junk junk"), (b"\0" * 7 + b"\x04", b"short")])
def test_an_entry_that_makes_no_sense_is_reported(tmp_path: Path, key: bytes, value: bytes) -> None:
    """A key or a value of the wrong length is ``Corrupt``."""
    log = RaftLog(tmp_path)
    fill(log, 3)
    log.close()
    store = Store(tmp_path / "rocksdb")
    batch = store.batch()
    batch.put(key, value)
    store.write(batch)
    store.close()
    with pytest.raises(Corrupt, match=f"entry {key.hex()} is damaged"):
        RaftLog(tmp_path)
    Store(tmp_path / "rocksdb").close()
