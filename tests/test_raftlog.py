"""The Raft log: what is synced stays, what is not synced goes, and nothing goes silently."""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import psutil
import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from ondisk.errors import Corrupt, DirectoryInUse, StorageError, StoreClosed
from ondisk.raft import log as raftlog
from ondisk.raft import watermark
from ondisk.raft.log import RaftLog
from ondisk.raft.records import LogEntry
from ondisk.storage import rocksdb
from ondisk.storage.disk import Disk
from ondisk.storage.store import Store
from tests.stores import FullDisk, copy_live, flip, largest_table, newest_wal, record_starts


class State(NamedTuple):
    """Everything that a log says about itself."""

    term: int
    voted_for: int | None
    entries: tuple[LogEntry, ...]


def state_of(log: RaftLog) -> State:
    found: list[LogEntry] = []
    while len(found) < log.last_index:
        found += log.entries(len(found) + 1, log.last_index)
    return State(log.term, log.voted_for, tuple(found))


def reopened(path: Path) -> State:
    log = RaftLog(path)
    try:
        assert not log.unsynced and log.synced_index == log.last_index
        return state_of(log)
    finally:
        log.close()


def entry(index: int, term: int = 1, size: int = 0) -> LogEntry:
    return LogEntry(index, term, b"%d in %d" % (index, term) + bytes(size))


def fill(log: RaftLog, last: int, term: int = 1, size: int = 0) -> None:
    """Append up to ``last`` and sync."""
    log.append([entry(index, term, size) for index in range(log.last_index + 1, last + 1)])
    log.sync()


# Against a model


class LogAgainstList(RuleBasedStateMachine):
    """A ``RaftLog`` does what a list with a saved copy would, through failures and power cuts."""

    limits = {"_TAIL_ENTRIES": 4, "_TAIL_BYTES": 60, "_READ_ENTRIES": 3}  # noqa: RUF012

    def __init__(self) -> None:
        super().__init__()
        self.directory = Path(tempfile.mkdtemp(prefix="ondisk-test-"))
        self.normal = {name: getattr(raftlog, name) for name in self.limits}
        for name, value in self.limits.items():
            setattr(raftlog, name, value)
        self.disk = FullDisk()
        self.log = RaftLog(self.directory / "log", self.disk)
        self.now = self.saved = State(0, None, ())
        self.synced = 0  # as many of the first entries are durable
        self.notes: list[bytes] = [b""]  # every witness that a power cut may bring back

    def teardown(self) -> None:
        self.disk.full = False
        self.log.close()
        for name, value in self.normal.items():
            setattr(raftlog, name, value)
        shutil.rmtree(self.directory)

    def did_sync(self) -> None:
        self.saved, self.synced = self.now, len(self.now.entries)
        witness = self.directory / "log" / "witness"
        if witness.exists():
            self.notes.append(witness.read_bytes())

    def open_again(self) -> None:
        self.log = RaftLog(self.directory / "log", self.disk)
        self.now, self.synced = self.saved, len(self.saved.entries)

    @rule(sizes=st.lists(st.integers(0, 40), max_size=6))
    def append(self, sizes: list[int]) -> None:
        first = len(self.now.entries) + 1
        new = [entry(index, self.now.term, size) for index, size in enumerate(sizes, first)]
        self.log.append(new)
        self.now = self.now._replace(entries=(*self.now.entries, *new))

    @precondition(lambda self: self.now.entries)
    @rule(data=st.data())
    def truncate(self, data: st.DataObject) -> None:
        index = data.draw(st.integers(1, len(self.now.entries)))
        self.log.truncate_from(index)
        self.now = self.now._replace(entries=self.now.entries[: index - 1])
        self.synced = min(self.synced, index - 1)

    @rule(more=st.integers(0, 2), voted_for=st.none() | st.integers(0, 2**63))
    def set_hard_state(self, more: int, voted_for: int | None) -> None:
        self.now = self.now._replace(term=self.now.term + more, voted_for=voted_for)
        self.log.set_hard_state(self.now.term, voted_for)

    @rule()
    def sync(self) -> None:
        self.log.sync()
        assert not self.log.unsynced
        self.did_sync()

    @precondition(lambda self: self.log.unsynced)
    @rule()
    def fail_to_sync(self) -> None:
        self.disk.full = True
        with pytest.raises(StorageError, match="No space left"):
            self.log.sync()
        self.disk.full = False

    @rule()
    def close(self) -> None:
        self.log.close()
        self.did_sync()
        self.open_again()

    @rule(data=st.data())
    def crash(self, data: st.DataObject) -> None:
        self.log.crash()
        note = data.draw(st.sampled_from(self.notes))
        (self.directory / "log" / "witness").write_bytes(note)
        self.open_again()

    @rule(data=st.data(), max_bytes=st.none() | st.integers(0, 100))
    @precondition(lambda self: self.now.entries)
    def read(self, data: st.DataObject, max_bytes: int | None) -> None:
        first = data.draw(st.integers(1, len(self.now.entries)))
        last = data.draw(st.integers(first, len(self.now.entries)))
        assert self.log.entries(first, last, max_bytes) == expected(self.now.entries, first, last, max_bytes)

    @invariant()
    def same(self) -> None:
        count = len(self.now.entries)
        assert (self.log.base_index, self.log.base_term) == (0, 0)
        assert self.log.last_index == count
        assert self.log.last_term == (self.now.entries[-1].term if count else 0)
        assert state_of(self.log) == self.now
        assert self.log.synced_index == self.synced
        assert self.log.unsynced or self.now == self.saved
        terms = [None, 0, *(entry.term for entry in self.now.entries), None]
        assert [self.log.term_at(index) for index in range(-1, count + 2)] == terms


def expected(entries: tuple[LogEntry, ...], first: int, last: int, max_bytes: int | None) -> list[LogEntry]:
    """What ``RaftLog.entries`` promises, said in the slowest way."""
    asked = list(entries[first - 1 : last][: raftlog._TAIL_ENTRIES])
    while max_bytes is not None and len(asked) > 1 and sum(len(entry.command) for entry in asked) > max_bytes:
        asked.pop()
    return asked


LogAgainstList.TestCase.settings = settings(
    max_examples=18, stateful_step_count=20, deadline=None, derandomize=True, database=None
)
TestLogAgainstList = LogAgainstList.TestCase


@pytest.fixture
def small_tail(monkeypatch: pytest.MonkeyPatch) -> None:
    """Few entries in memory, so that most reads go to disk."""
    for name, value in (("_TAIL_ENTRIES", 6), ("_TAIL_BYTES", 1 << 20), ("_READ_ENTRIES", 2)):
        monkeypatch.setattr(raftlog, name, value)


def test_every_range_reads_back(tmp_path: Path, small_tail: None) -> None:
    """Each (first, last, max_bytes) gives the longest allowed prefix of what was appended."""
    log = RaftLog(tmp_path)
    for last in range(1, 16):
        fill(log, last, size=last % 4)
    log.append([entry(16), entry(17)])
    everything = state_of(log).entries
    assert everything[:15] == tuple(entry(index, size=index % 4) for index in range(1, 16))
    assert everything[15:] == (entry(16), entry(17))
    for first in range(1, 18):
        for last in range(first, 18):
            for max_bytes in (None, 0, 1, 9, 20, 25, 50, 1000):
                found = log.entries(first, last, max_bytes)
                assert found == expected(everything, first, last, max_bytes)
    log.close()


# Bounds


def test_a_place_outside_the_log_is_an_index_error_and_changes_nothing(tmp_path: Path) -> None:
    """Gaps, repetitions and ranges beyond either end are refused."""
    log = RaftLog(tmp_path)
    fill(log, 3)
    calls: list[Callable[[], object]] = [
        lambda: log.append([entry(3)]),
        lambda: log.append([entry(5)]),
        lambda: log.append([entry(4), entry(6)]),
        lambda: log.truncate_from(0),
        lambda: log.truncate_from(4),
        lambda: log.entries(0, 1),
        lambda: log.entries(2, 4),
        lambda: log.entries(3, 2),
    ]
    for call in calls:
        with pytest.raises(IndexError):
            call()
        assert log.last_index == 3 and not log.unsynced
    log.close()
    assert len(reopened(tmp_path).entries) == 3


def test_memory_holds_a_bounded_tail_after_opening_too(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Neither syncing, opening nor reading old entries loads more large entries than its share."""
    monkeypatch.setattr(raftlog, "_TAIL_BYTES", 10_000)
    log = RaftLog(tmp_path)
    for last in range(1, 101):
        fill(log, last, size=1000)
        assert sum(len(entry.command) for entry in log._tail) < 22_000
    log.close()
    log = RaftLog(tmp_path)
    assert sum(len(entry.command) for entry in log._tail) < 12_000
    asked: list[int] = []
    get_many = Store.get_many
    monkeypatch.setattr(Store, "get_many", lambda self, keys: asked.append(len(keys)) or get_many(self, keys))
    assert len(log.entries(1, 100, 3000)) == 2
    assert asked == [raftlog._READ_ENTRIES]
    assert len(log.entries(1, 100)) == 100
    log.close()


def test_terms_and_indexes_use_their_whole_range(tmp_path: Path) -> None:
    """Terms and votes up to 64 bits and commands of any bytes come back."""
    log = RaftLog(tmp_path)
    log.set_hard_state(2**64 - 1, 2**64 - 1)
    every = [b"", bytes(range(256)), "é\0".encode(), b"\xff" * 9]
    log.append([LogEntry(number, 2**64 - 1, data) for number, data in enumerate(every, 1)])
    log.close()
    state = reopened(tmp_path)
    assert (state.term, state.voted_for) == (2**64 - 1, 2**64 - 1)
    assert [(entry.term, entry.command) for entry in state.entries] == [(2**64 - 1, data) for data in every]


# Durability


def test_nothing_is_durable_before_sync_and_everything_after(tmp_path: Path) -> None:
    """A power cut loses entries, truncation, term and vote before ``sync``, and nothing after."""
    log = RaftLog(tmp_path)
    log.set_hard_state(1, 2)
    fill(log, 5)
    before = state_of(log)
    for synced in (False, True):
        log.truncate_from(3)
        log.append([entry(3, 2)])
        log.set_hard_state(2, 3)
        after = state_of(log)
        assert log.unsynced
        if synced:
            log.sync()
        log.crash()
        log = RaftLog(tmp_path)
        assert state_of(log) == (after if synced else before)
    log.close()


def test_sync_waits_for_the_disk_only_if_there_is_something_new(tmp_path: Path) -> None:
    """One wait covers all that gathered, and nothing new needs none."""

    class Counting(Disk):
        waits = 0

        def sync(self, flush: Callable[[], None]) -> None:
            self.waits += 1
            flush()

    disk = Counting()
    log = RaftLog(tmp_path, disk)
    log.sync()
    assert (disk.waits, log.syncs) == (0, 0)
    log.append([entry(1), entry(2)])
    log.set_hard_state(1, None)
    log.truncate_from(2)
    log.sync()
    log.sync()
    assert (disk.waits, log.syncs) == (1, 1)
    log.close()
    assert disk.waits == 1


def test_the_batch_is_written_before_the_disk_is_asked_to_sync(tmp_path: Path) -> None:
    """What is in the operating system's hands when the disk syncs is the whole batch."""

    class Looking(Disk):
        seen: State | None = None

        def sync(self, flush: Callable[[], None]) -> None:
            flush()
            self.seen = reopened(copy_live(tmp_path / "log", tmp_path / "copy"))

    disk = Looking()
    log = RaftLog(tmp_path / "log", disk)
    log.set_hard_state(3, 1)
    fill(log, 4)
    assert disk.seen == state_of(log)
    log.close()


def test_a_synced_truncation_stays_after_tables_are_merged(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Truncated entries do not come back, wherever RocksDB has moved them since."""
    monkeypatch.setattr(rocksdb, "WRITE_BUFFER_BYTES", 64 << 10)
    log = RaftLog(tmp_path)
    for term in range(1, 8):
        fill(log, 40, term, 3000)
        log.truncate_from(5 * term)
        log.sync()
        log.crash()
        log = RaftLog(tmp_path)
        assert log.last_index == 5 * term - 1
    assert any((tmp_path / "rocksdb").glob("*.sst"))  # or nothing was moved, and nothing shown
    terms = [entry.term for entry in state_of(log).entries]
    assert terms == sorted(terms)
    log.close()


class Step(Exception):
    """The process ends at this step."""


@pytest.mark.parametrize("end", ["power cut", "kill"])
@pytest.mark.parametrize("step", ["write", "written", "sync", "synced", "witness", "done"])
@pytest.mark.parametrize(
    "change",
    [
        lambda log: log.append([entry(7, 2), entry(8, 2)]),
        lambda log: log.truncate_from(2),
        lambda log: (log.truncate_from(3), log.append([entry(3, 2)])),
        lambda log: (log.truncate_from(1), log.append([entry(n, 2) for n in range(1, 10)])),
        lambda log: log.set_hard_state(1, 3),
        lambda log: log.set_hard_state(2, None),
    ],
    ids=["append", "truncate", "replace tail", "replace all", "vote", "term"],
)
def test_an_end_between_any_two_steps_of_sync_leaves_before_or_after(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    change: Callable[[RaftLog], object],
    step: str,
    end: str,
) -> None:
    """Whole old or whole new state, never a false alarm, whichever older witness survived."""
    armed = False

    def stop(before: str, after: str, function: Any) -> Any:
        def call(*arguments: Any) -> None:
            if armed and step == before:
                raise Step
            function(*arguments)
            if armed and step == after:
                raise Step

        return call

    class Stopping(Disk):
        sync = stop("sync", "synced", Disk.sync)

    monkeypatch.setattr(Store, "write", stop("write", "written", Store.write))
    monkeypatch.setattr(
        watermark.DurableWatermark, "write", stop("witness", "done", watermark.DurableWatermark.write)
    )
    live = tmp_path / "log"
    log = RaftLog(live, Stopping())
    log.set_hard_state(1, None)
    notes = [b""]
    for last in (2, 6):
        fill(log, last)
        notes.append((live / "witness").read_bytes())
    del notes[1:-1]
    before = state_of(log)
    change(log)
    after = state_of(log)
    armed = True
    with pytest.raises(Step):
        log.sync()
    armed = False
    notes.append((live / "witness").read_bytes())
    if end == "kill":
        left = copy_live(live, tmp_path / "left")
        log.crash()
    else:
        log.crash()
        left = live
    for number, note in enumerate(notes):
        copy = copy_live(left, tmp_path / f"copy{number}")
        (copy / "witness").write_bytes(note)
        found = reopened(copy)
        if end == "kill":  # the operating system still has what was written
            assert found == (before if step == "write" else after)
        elif step in ("witness", "done"):
            assert found == after
        else:
            assert found == before


def test_a_failed_sync_is_typed_and_the_log_can_be_closed_and_opened(tmp_path: Path) -> None:
    """A full disk loses nothing synced, leaves nothing open, and goes on when there is room."""
    disk = FullDisk()
    log = RaftLog(tmp_path, disk)
    fill(log, 3)
    disk.full = True
    log.append([entry(4)])
    for call in (log.sync, log.close):
        with pytest.raises(StorageError, match=r"the disk refused .*No space left"):
            call()
    log.close()
    disk.full = False
    log = RaftLog(tmp_path, disk)
    assert state_of(log).entries[:3] == (entry(1), entry(2), entry(3))
    fill(log, 6)
    log.close()
    assert len(reopened(tmp_path).entries) == 6


def test_entries_of_a_failed_sync_do_not_come_back_once_they_are_truncated(tmp_path: Path) -> None:
    """What the failed sync left in the database is replaced by the next one."""
    disk = FullDisk()
    log = RaftLog(tmp_path, disk)
    fill(log, 2)
    disk.full = True
    with pytest.raises(StorageError):
        fill(log, 6)
    disk.full = False
    log.truncate_from(4)
    log.sync()
    log.crash()
    assert reopened(tmp_path).entries == (entry(1), entry(2), entry(3))


@pytest.mark.parametrize("witness", ["missing", "a directory"])
def test_an_unusable_witness_is_harmless_or_a_typed_error(tmp_path: Path, witness: str) -> None:
    """The note may be missing; one that cannot be read is a ``StorageError`` that locks nothing."""
    log = RaftLog(tmp_path)
    fill(log, 2)
    log.close()
    (tmp_path / "witness").unlink()
    if witness == "missing":
        assert len(reopened(tmp_path).entries) == 2
        return
    (tmp_path / "witness").mkdir()
    with pytest.raises(StorageError, match="witness"):
        RaftLog(tmp_path)
    (tmp_path / "witness").rmdir()
    log = RaftLog(tmp_path)
    (tmp_path / "witness").mkdir()
    with pytest.raises(StorageError, match="witness"):
        fill(log, 3)
    log.close()
    (tmp_path / "witness").rmdir()
    assert len(reopened(tmp_path).entries) == 3


def test_a_torn_witness_is_no_alarm(tmp_path: Path) -> None:
    """A power cut may tear the note anywhere: the log opens."""
    log = RaftLog(tmp_path)
    fill(log, 300)
    log.close()
    note = (tmp_path / "witness").read_bytes()
    for cut in range(len(note)):
        for torn in (note[:cut], note[:cut] + bytes(len(note) - cut)):
            (tmp_path / "witness").write_bytes(torn)
            assert watermark.DurableWatermark(tmp_path / "witness").read() in (0, 1)
    (tmp_path / "witness").write_bytes(note[:5] + bytes(7))
    assert len(reopened(tmp_path).entries) == 300


# Torn tails and damage


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
def test_a_hole_is_reported_when_opening_or_reading(tmp_path: Path, small_tail: None, missing: int) -> None:
    """An entry that is not there is never skipped."""
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


# Life


def test_ends_can_be_repeated_and_leave_nothing_open(tmp_path: Path) -> None:
    """Closing or crashing again does nothing, and no file or lock stays."""

    def lives() -> None:
        for first, second in (("close", "crash"), ("crash", "close"), ("close", "close")):
            log = RaftLog(tmp_path / "log")
            fill(log, log.last_index + 2)
            with pytest.raises(DirectoryInUse):
                RaftLog(tmp_path / "log")
            getattr(log, first)()
            getattr(log, second)()
            log.append([entry(log.last_index + 1)])
            with pytest.raises(StoreClosed):
                log.sync()
        broken = copy_live(tmp_path / "log", tmp_path / "broken")
        shutil.rmtree(broken / "rocksdb")
        with pytest.raises(Corrupt):
            RaftLog(broken)

    lives()
    before = psutil.Process().num_fds()
    lives()
    assert psutil.Process().num_fds() == before


def test_a_moved_log_opens_from_another_working_directory(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Neither the place nor the working directory is part of a log."""
    (tmp_path / "a").mkdir()
    (tmp_path / "b").mkdir()
    monkeypatch.chdir(tmp_path / "a")
    log = RaftLog(Path("log"))
    monkeypatch.chdir(tmp_path / "b")
    fill(log, 3)
    log.crash()
    (tmp_path / "a" / "log").rename(tmp_path / "b" / "moved")
    assert len(reopened(Path("moved")).entries) == 3
    assert os.listdir(tmp_path / "a") == []
