"""Writes that are missing before later ones: the opening refuses them, and nothing that a crash leaves.

The files of two moments are put together, as a copy mixes them: ``earlier`` is the database as it was when
the first ones were copied, ``later`` as it was when the last ones were.
"""

from __future__ import annotations

import os
import shutil
import struct
from collections.abc import Iterator
from pathlib import Path

import pytest

from ondisk.diskkv import DiskKV, get, put
from ondisk.errors import Corrupt
from ondisk.raft.log import RaftLog
from ondisk.statemachine import Entry
from ondisk.storage import rocksdb
from ondisk.storage.holes import refuse_hole
from ondisk.storage.powercut import copy_files
from ondisk.storage.records import beginning, written
from ondisk.storage.store import Store
from ondisk.testing.crashing import Child, CrashingDisk, How, Point, scratch_directory
from tests.lengths import short_and_long
from tests.logs import fill, small_tail
from tests.stores import INDEX, copy_live, newest_wal, record_starts, reopened, write
from tests.waiting import wait_until

WRITES = 100  # in each log


def write_more(store: Store, first: int, size: int = 1) -> None:
    for number in range(first, first + WRITES):
        write(store, number, size)


def begin_log(store: Store) -> None:
    """What was written so far becomes tables, and a new log begins. The older one goes by and by."""
    copy = store.path.with_name("checkpoint")
    store.checkpoint(copy)
    shutil.rmtree(copy)


def copied(store: Store, target: Path) -> Path:
    """As a killed process would leave it, while RocksDB makes and removes files."""
    while not copy_files(store.path, target):
        pass
    return target


class Moments:
    """A database at two moments: with some writes in a log, and with more in the next one."""

    def __init__(self, store: Store, place: Path) -> None:
        self.before = int.from_bytes(store.get_meta(INDEX) or b"", "big")
        self.due = store._db.latest_sequence_number() + 1  # RocksDB counts a number and its index as two
        write_more(store, self.before + 1)
        batch = store.batch()
        store.put_meta(batch, b"note", b"")
        store.write(batch)
        self.end = store._db.latest_sequence_number()
        self.earlier = copied(store, place / "earlier")
        self.log = newest_wal(self.earlier)
        begin_log(store)
        write_more(store, self.before + 1 + WRITES)
        self.next_log = newest_wal(copied(store, place / "later"))
        self.all = self.before + 2 * WRITES

    def copy_next_log(self) -> Path:
        """The copy that has the next log, and everything else as it was."""
        shutil.copy(self.next_log, self.earlier)
        return self.earlier


def new(path: Path) -> Store:
    return Store(path)


def flushed(path: Path) -> Store:
    store = Store(path)
    write_more(store, 1)
    begin_log(store)
    return store


def opened_again(path: Path) -> Store:
    """Opening makes tables of the logs, and then no log has the number from which on they count."""
    store = Store(path)
    write_more(store, 1)
    store.close()
    return Store(path)


@pytest.fixture(params=[new, flushed, opened_again], ids=lambda make: make.__name__)
def moments(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Moments]:
    store = request.param(tmp_path / "db")
    yield Moments(store, tmp_path)
    store.close()


@pytest.mark.parametrize("torn", [False, True])
@pytest.mark.parametrize("whole", [0, 1, WRITES])
def test_a_log_that_was_copied_too_early_is_refused(moments: Moments, whole: int, torn: bool) -> None:
    """Between two batches, where nothing else tells, and in the middle of one. The last is of one write."""
    os.truncate(moments.log, record_starts(moments.log)[whole] + 9 * torn)
    expected = f"lack writes {moments.due + 2 * whole} to {moments.end}, and {moments.next_log.name} goes on"
    with pytest.raises(Corrupt, match=expected):
        reopened(moments.copy_next_log())


def test_a_log_that_was_removed_before_it_was_copied_is_refused(moments: Moments) -> None:
    moments.log.unlink()
    with pytest.raises(Corrupt, match=f"lack writes {moments.due} to {moments.end}, and"):
        reopened(moments.copy_next_log())


def test_a_manifest_that_was_begun_anew_says_the_same(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """RocksDB does that when it has become long: then it begins with a sum of all edits so far."""
    monkeypatch.setattr(rocksdb, "_MANIFEST_BYTES", 1000)
    store = Store(tmp_path / "db")
    manifests = set()
    for number in range(1, 12 * WRITES, WRITES):
        write_more(store, number)
        begin_log(store)
        copy = copied(store, tmp_path / "copy")
        manifests |= {path.name for path in copy.glob("MANIFEST-*")}
        assert reopened(copy) == number + WRITES - 1
    store.close()
    assert len(manifests) > 3


def test_a_log_that_is_whole_goes_on_in_the_next(moments: Moments) -> None:
    assert reopened(moments.copy_next_log()) == moments.all


def test_the_last_log_may_end_anywhere(moments: Moments) -> None:
    """A power cut leaves that, also where the next log was begun and holds nothing yet."""
    os.truncate(moments.log, record_starts(moments.log)[3] + 9)
    (moments.earlier / moments.next_log.name).touch()
    assert reopened(moments.earlier) == moments.before + 3


def test_of_logs_that_do_not_count_any_more_some_may_be_left(moments: Moments, tmp_path: Path) -> None:
    """RocksDB removes them in any order. A hole between them, or behind them, is none."""
    store = Store(copy_live(moments.copy_next_log(), tmp_path / "on"))
    begin_log(store)
    write_more(store, moments.all + 1)
    left = copied(store, tmp_path / "left")
    store.close()
    shutil.copy(moments.log, left)
    assert reopened(left) == moments.all + WRITES


@pytest.fixture(params=[new, flushed, opened_again], ids=lambda make: make.__name__)
def half_flushed(
    request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Iterator[tuple[Store, Path, Path]]:
    """A store, a copy of it in the middle of a checkpoint, and the log that still counts there.

    A checkpoint makes tables of the data first, and of the metadata a moment later.
    """
    store = request.param(tmp_path / "db")
    before = int.from_bytes(store.get_meta(INDEX) or b"", "big")
    write_more(store, before + 1)
    copy = tmp_path / "copy"
    with monkeypatch.context() as patch:
        patch.setattr(
            "ondisk.storage.store.Checkpoint.create_checkpoint", lambda _, target: copied(store, copy)
        )
        store.checkpoint(tmp_path / "none")
    assert reopened(copy_live(copy, tmp_path / "whole")) == before + WRITES
    yield store, copy, min(copy.glob("*.log"))
    store.close()


@pytest.mark.parametrize("whole", [0, 1, WRITES - 1, None])
def test_a_log_that_ends_before_the_tables_is_refused(
    half_flushed: tuple[Store, Path, Path], whole: int | None
) -> None:
    """The data would be newer than the metadata."""
    _, copy, log = half_flushed
    if whole is None:
        log.unlink()
    else:
        os.truncate(log, record_starts(log)[whole])
    with pytest.raises(Corrupt, match=r"lack writes .* and some of them are in tables"):
        reopened(copy)


def test_a_log_that_counts_for_metadata_alone_is_missed_too(
    half_flushed: tuple[Store, Path, Path], tmp_path: Path
) -> None:
    """The next one goes on where the tables with the data end, or nearly: a batch ends with metadata."""
    store, copy, log = half_flushed
    number = int.from_bytes(store.get_meta(INDEX) or b"", "big")
    write(store, number + 1)
    shutil.copy(newest_wal(store.path), copy)
    assert reopened(copy_live(copy, tmp_path / "whole and more")) == number + 1
    log.unlink()
    with pytest.raises(Corrupt, match=r"lack writes .* goes on after them"):
        reopened(copy)


def test_a_flush_that_the_manifest_does_not_hold_in_full_does_not_count(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """RocksDB makes tables of both column families together, and notes that in three edits."""
    monkeypatch.setattr(rocksdb, "WRITE_BUFFER_BYTES", 64 << 10)
    store = Store(tmp_path / "db")
    log, number = newest_wal(store.path), 0
    while newest_wal(store.path) == log:
        shutil.copy(log, tmp_path)
        number += 1
        write(store, number, 3000)  # the last one is in the next log
    wait_until(lambda: not log.exists())
    copy = copied(store, tmp_path / "copy")
    store.close()
    manifest = next(copy.glob("MANIFEST-*"))
    whole, edits = manifest.read_bytes(), record_starts(manifest)
    assert reopened(copy_live(copy, tmp_path / "again")) == number
    for edit in edits[-3:]:
        manifest.write_bytes(whole[:edit])
        with pytest.raises(Corrupt, match="lack writes 1 to "):
            reopened(copy_live(copy, tmp_path / "again"))
        shutil.copy(tmp_path / log.name, tmp_path / "again")
        assert reopened(tmp_path / "again") == number


@pytest.mark.parametrize("left", range(27))
def test_a_batch_is_counted_wherever_a_block_ends_within_its_beginning(tmp_path: Path, left: int) -> None:
    block = 32 << 10
    store = Store(tmp_path / "db")
    write(store, 1, 30_000)
    overhead = newest_wal(store.path).stat().st_size - 30_000
    begin_log(store)
    write(store, 2, block - left - overhead)
    write(store, 3, 3 * block)
    write(store, 4)
    log = newest_wal(store.path).read_bytes()
    store.close()
    numbers = [beginning(log, at)[:12] for at in written(log)]
    assert numbers == [struct.pack("<QI", number, 2) for number in (3, 5, 7)]


def test_a_batch_counts_only_if_all_of_it_is_there(tmp_path: Path) -> None:
    store = Store(tmp_path / "db")
    write(store, 1)
    write(store, 2, 100_000)
    log = newest_wal(store.path).read_bytes()
    store.close()
    counted = [len(list(written(log[:length]))) for length in range(len(log) - 100_000, len(log) + 1, 100)]
    assert set(counted[:-1]) == {1} and counted[-1] == 2


def varint(number: int) -> bytes:
    return bytes([number]) if number < 128 else bytes([128 | number & 127]) + varint(number >> 7)


def test_numbers_may_be_large_and_an_edit_that_is_cut_off_does_not_count(tmp_path: Path) -> None:
    """As after years. Nothing in here says which log came next, and these files have no checksums."""
    first_log, held = 1 << 40, 1 << 50

    def record(content: bytes) -> bytes:
        return bytes(4) + struct.pack("<HB", len(content), 1) + content

    def edit(first_log: int, held: int, more: bytes = b"") -> bytes:
        numbers = {9: first_log, 3: first_log, 10: first_log, 4: held}
        return record(b"".join(varint(tag) + varint(number) for tag, number in numbers.items()) + more)

    manifest = edit(3, 5, b"\x67 a table") + record(b"\x01 a text") + edit(first_log, held)
    manifest += edit(2 * held, 2 * held, b"\x67 a table")[:-1]
    (tmp_path / "CURRENT").write_text("MANIFEST-000005\n")
    (tmp_path / "MANIFEST-000005").write_bytes(manifest)
    for number, log in ((held + 1, first_log), (held + 3, 2 * first_log)):
        (tmp_path / f"{log}.log").write_bytes(record(struct.pack("<QI", number, 2)))
    refuse_hole(tmp_path)
    (tmp_path / f"{first_log}.log").unlink()
    with pytest.raises(Corrupt, match=f"lack writes {held + 1} to {held + 2}, and"):
        refuse_hole(tmp_path)


def test_a_log_of_raft_with_a_hole_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its own look at the entries is at the newest only."""
    small_tail(monkeypatch)
    log = RaftLog(tmp_path / "log")
    fill(log, 1)
    for last in range(2, 11):  # a write for each
        fill(log, last)
    copy = copy_live(log.path, tmp_path / "copy")
    begin_log(log.store._store)
    for last in range(11, 21):
        fill(log, last)
    shutil.copy(newest_wal(log.path), copy / "rocksdb")
    shutil.copy(log.path / "witness", copy)
    log.close()
    whole = RaftLog(copy_live(copy, tmp_path / "whole"))
    assert whole.last_index == 20
    whole.close()
    short = min(copy.rglob("*.log"))
    os.truncate(short, record_starts(short)[5])
    with pytest.raises(Corrupt, match="lack writes"):
        RaftLog(copy)


def test_a_state_with_a_hole_is_refused(tmp_path: Path) -> None:
    machine = DiskKV(tmp_path / "kv")
    machine.open()

    def update(first: int) -> None:
        for index in range(first, first + WRITES):
            machine.update([Entry(index, put(f"k{index}", "v"))])

    update(1)
    copy = copy_live(tmp_path / "kv", tmp_path / "copy")
    machine.prepare_snapshot().close()
    update(WRITES + 1)
    log = newest_wal(tmp_path / "kv")
    shutil.copy(log, next(copy.glob("db-*")))
    machine.close()
    whole = DiskKV(copy_live(copy, tmp_path / "whole"))
    assert whole.open() == 2 * WRITES and whole.lookup(get("k5")) == b"v"
    whole.close()
    short = min(copy.rglob("*.log"))
    os.truncate(short, record_starts(short)[4])
    with pytest.raises(Corrupt, match="lack writes"):
        DiskKV(copy).open()


# What crashes leave


def write_until_it_dies(disk: CrashingDisk, path: Path) -> None:
    rocksdb.WRITE_BUFFER_BYTES = 64 << 10  # RocksDB takes no less: a log has some twenty writes
    rocksdb._MANIFEST_BYTES = 2000
    store = Store(path, disk)
    disk.power_cut = store.crash
    for number in range(1, 200):
        write(store, number, 3000)
        if number % 30 == 0:
            begin_log(store)
        if number % 7 == 0:
            store.sync()
            disk.note = number


@pytest.mark.parametrize("crashes", short_and_long(6, 100))
@pytest.mark.parametrize("how", ["kill", "power cut"])
def test_no_crash_leaves_a_hole_however_many_logs_there_are(how: How, crashes: int) -> None:
    logs = [1]
    with scratch_directory() as place, Child() as child:
        while len(logs) <= crashes or max(logs) == 1:  # a log goes when its writes are in a table
            path = place / f"db-{len(logs)}"
            point = Point(1 + len(logs) * 37 % 190, "written", how)
            run = child.run(write_until_it_dies, path, crash=point)
            logs.append(len(list(path.glob("*.log"))))
            found = reopened(path)
            assert found == point.occurrence if how == "kill" else found >= (run.note or 0)
