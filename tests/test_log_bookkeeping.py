"""What the log counts and keeps beside its entries: bytes, the tail in memory, members, old formats."""

from __future__ import annotations

import random
from pathlib import Path

import msgspec
import pytest

from ondisk import raftlog
from ondisk.errors import Corrupt, MembersUnknown, UnknownVersion
from ondisk.members import LEGACY, Members, encode
from ondisk.raftlog import MEMBERS, REGULAR, LogEntry, RaftLog

GROUP = b"g" * 16


def entries(first: int, count: int, size: int = 10) -> list[LogEntry]:
    """Each with a command of ``size`` bytes."""
    return [LogEntry(index, 1, REGULAR + b"x" * (size - 1)) for index in range(first, first + count)]


def change(index: int, members: Members) -> LogEntry:
    return LogEntry(index, 1, MEMBERS + encode(members))


@pytest.fixture
def log(tmp_path: Path) -> RaftLog:
    return RaftLog(tmp_path / "log")


def test_the_bytes_since_a_compaction_are_those_of_the_commands(log: RaftLog) -> None:
    assert log.bytes_since_compaction == 0
    log.append(entries(1, 10))
    assert log.bytes_since_compaction == 100
    log.append(entries(11, 2, size=30))
    log.sync()
    assert log.bytes_since_compaction == 160
    log.compact(11)
    assert log.bytes_since_compaction == 30  # what is left
    log.append(entries(13, 1))
    assert log.bytes_since_compaction == 40
    log.install(50, 2, Members((1,)))
    assert log.bytes_since_compaction == 0
    log.append(entries(51, 1))
    assert log.bytes_since_compaction == 10
    log.close()


def test_the_newest_entries_are_found_by_number_or_by_size(log: RaftLog) -> None:
    log.append(entries(1, 10))
    assert log.start_of_last(3, 1000) == 8
    assert log.start_of_last(10, 1000) == 1 and log.start_of_last(99, 1000) == 1
    assert log.start_of_last(99, 30) == 8 and log.start_of_last(99, 29) == 9
    log.truncate_from(8)
    assert log.start_of_last(3, 1000) == 5
    log.close()


def in_memory(log: RaftLog) -> int:
    """How many entries are in memory; their size is known."""
    assert log._tail_bytes == sum(len(entry.command) for entry in log._tail)
    return len(log._tail)


def test_memory_is_trimmed_when_there_are_many_entries_or_bytes(
    log: RaftLog, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(raftlog, "_TAIL_ENTRIES", 8)
    monkeypatch.setattr(raftlog, "_TAIL_BYTES", 1000)
    log.append(entries(1, 16))
    log.sync()
    assert in_memory(log) == 16
    log.append(entries(17, 1))
    assert in_memory(log) == 17  # what is not synced is nowhere else
    log.sync()
    assert in_memory(log) == 9
    log.truncate_from(14)
    assert in_memory(log) == 5
    log.append(entries(14, 1, size=1950))
    log.sync()
    assert in_memory(log) == 6  # exactly 2000 bytes
    log.append(entries(15, 1, size=10))
    log.sync()
    assert in_memory(log) == 4
    log.append(entries(16, 1, size=5000))
    log.sync()
    log.append(entries(17, 1, size=5000))
    log.sync()
    assert 1 <= in_memory(log) <= 3
    assert [log.entries(index, index)[0].index for index in range(1, 18)] == list(range(1, 18))
    assert [log.term_at(index) for index in (0, 1, 9, 10, 17, 18)] == [0, 1, 1, 1, 1, None]
    log.compact(16)
    assert in_memory(log) == 1
    log.compact(17)
    assert in_memory(log) == 0 and (log.last_index, log.last_term) == (17, 1)
    log.close()


def test_members_that_cannot_be_read_are_damage(log: RaftLog) -> None:
    with pytest.raises(Corrupt, match="entry 1 holds members that cannot be read"):
        log.append([LogEntry(1, 1, MEMBERS + b"\xc1")])
    log.close()


@pytest.mark.parametrize(
    ("before", "said", "counts"),
    [
        (b"", GROUP, GROUP),
        (LEGACY, GROUP, GROUP),
        (LEGACY, b"", LEGACY),
        (GROUP, b"", GROUP),
        (GROUP, b"h" * 16, GROUP),
    ],
)
def test_the_id_of_a_group_is_given_once(log: RaftLog, before: bytes, said: bytes, counts: bytes) -> None:
    """By an entry of the log, too; one that was made before does not take it back."""
    log._configurations = [(0, Members((1,), group=before))]
    log.append([change(1, Members((1, 2), group=said))])
    assert log.members == Members((1, 2), group=counts)
    log.close()


def test_a_log_from_before_groups_had_ids_is_legacy_as_a_whole(tmp_path: Path) -> None:
    log = RaftLog(tmp_path / "log", None, (1, 2, 3))
    log.append([*entries(1, 2), change(3, Members((1, 2, 3), (4,)))])
    log.begin_install(9, 1, Members((1, 2)))
    log.close()
    log = RaftLog(tmp_path / "log", None, (1, 2, 3), replica_id=1, rng=random.Random(1))
    for again in (False, True):
        assert log.members_at(2) == Members((1, 2, 3), group=LEGACY)
        assert log.members == Members((1, 2, 3), (4,), group=LEGACY)
        assert log.installing == (9, 1, Members((1, 2), group=LEGACY))
        assert log.identity is not None and log.identity.boot == 1 + again
        log.close()
        if not again:
            log = RaftLog(tmp_path / "log", None, None, replica_id=1, rng=random.Random(2))


def test_a_log_from_before_groups_had_ids_may_not_know_its_members(tmp_path: Path) -> None:
    for name, members in (("alone", ()), ("grown", (1, 2, 3))):
        log = RaftLog(tmp_path / name, None, members)
        log.append([*entries(1, 2), *([change(3, Members((1, 2)))] if members else [])])
        log.close()
    with pytest.raises(MembersUnknown, match="name them"):
        RaftLog(tmp_path / "alone", None, None, replica_id=1)
    RaftLog(tmp_path / "grown", None, None, replica_id=1).close()
    RaftLog(tmp_path / "new", None, None, replica_id=1).close()


@pytest.mark.parametrize(
    ("stored", "error", "words"),
    [
        (b"\xc1", Corrupt, "identity of the log is damaged"),
        (msgspec.msgpack.encode(7), Corrupt, "identity of the log is damaged"),
        (msgspec.msgpack.encode(["ondisk log"]), Corrupt, "identity of the log is damaged"),
        (msgspec.msgpack.encode(["other", 2]), Corrupt, "identity of the log is damaged"),
        (msgspec.msgpack.encode(["ondisk log", "2"]), Corrupt, "identity of the log is damaged"),
        (msgspec.msgpack.encode(["ondisk log", 2, "x"]), Corrupt, "identity of the log is damaged"),
        (msgspec.msgpack.encode(["ondisk log", 3, "what nobody knows"]), UnknownVersion, "version 3"),
    ],
)
def test_an_identity_that_cannot_be_read_says_why(
    tmp_path: Path, stored: bytes, error: type[Exception], words: str
) -> None:
    log = RaftLog(tmp_path / "log", replica_id=1)
    log.sync()
    batch = log._store.batch()
    log._store.put_meta(batch, raftlog._IDENTITY, stored)
    log._store.write(batch)
    log.close()
    with pytest.raises(error, match=words):
        RaftLog(tmp_path / "log", replica_id=1)
