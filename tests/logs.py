"""Logs by themselves: filled with entries that say where they belong, and all that a log says of itself."""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple

import pytest

from ondisk.raft import log as raftlog
from ondisk.raft.log import RaftLog
from ondisk.raft.records import LogEntry


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


def small_tail(monkeypatch: pytest.MonkeyPatch) -> None:
    """Few entries in memory, so that most reads go to disk."""
    for name, value in (("_TAIL_ENTRIES", 6), ("_TAIL_BYTES", 1 << 20), ("_READ_ENTRIES", 2)):
        monkeypatch.setattr(raftlog, name, value)
