"""The Raft log does what a list would, within its bounds, wherever it lies."""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Callable
from pathlib import Path

import psutil
import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from ondisk.errors import Corrupt, DirectoryInUse, StorageError, StoreClosed
from ondisk.raft import log as raftlog
from ondisk.raft.log import RaftLog
from ondisk.raft.records import LogEntry
from ondisk.storage.store import Store
from tests.logs import State, entry, fill, reopened, small_tail, state_of
from tests.stores import FullDisk, copy_live

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


def test_every_range_reads_back(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each (first, last, max_bytes) gives the longest allowed prefix of what was appended."""
    small_tail(monkeypatch)
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
