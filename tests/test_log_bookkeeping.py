"""What the log counts and keeps beside its entries: bytes, the tail in memory, members, old formats."""

from __future__ import annotations

import random
from pathlib import Path

import msgspec
import pytest

from ondisk.errors import Corrupt, MembersUnknown, StorageError, UnknownVersion
from ondisk.raft import log as raftlog
from ondisk.raft import logstore, watermark
from ondisk.raft.log import RaftLog
from ondisk.raft.members import LEGACY, Members, encode
from ondisk.raft.records import MEMBERS, REGULAR, Base, LogEntry

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
    assert log.bytes_since_compaction == 0 and in_memory(log) == 0
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
    assert log._tail.bytes == sum(len(entry.command) for entry in log._tail)
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
    store = log.store._store
    batch = store.batch()
    store.put_meta(batch, logstore.IDENTITY, stored)
    store.write(batch)
    log.close()
    with pytest.raises(error, match=words):
        RaftLog(tmp_path / "log", replica_id=1)


def stored(log: RaftLog) -> RaftLog:
    """The same log, opened again after a power cut."""
    log.crash()
    return RaftLog(log.path)


@pytest.mark.parametrize(
    ("index", "term", "kept"), [(6, 1, [7, 8]), (6, 2, []), (8, 1, []), (9, 1, []), (3, 1, [4, 5, 6, 7, 8])]
)
def test_a_snapshot_leaves_what_lies_behind_it_only_if_it_is_of_the_same_history(
    log: RaftLog, index: int, term: int, kept: list[int]
) -> None:
    """Figure 13 of the paper."""
    members, later = Members((1, 2)), Members((1, 2), (3,))
    log.append([*entries(1, 6), change(7, later), *entries(8, 1)])
    log.sync()
    log.begin_install(index, term, members)
    log.install(index, term, members)
    assert (log.base_index, log.base_term, log.installing) == (index, term, None)
    for again in (False, True):
        assert log.synced_index == log.last_index == (kept[-1] if kept else index)
        assert [log.entries(each, each)[0].index for each in kept] == kept
        assert log.term_at(index - 1) is None
        assert log.members == (later if 7 in kept else log.members_at(index))
        assert 7 not in kept or log.members_at(index) == Members(())
        if not again:
            log.sync()
            log = stored(log)
    log.append([LogEntry(log.last_index + 1, 3, b"\x00y")])
    log.sync()
    log = stored(log)
    assert log.last_term == 3
    log.close()


def test_a_snapshot_replaces_what_is_not_durable_yet(log: RaftLog) -> None:
    log.append(entries(1, 3))
    log.sync()
    log.append(entries(4, 3))
    log.install(5, 1, Members((1,)))
    assert log.last_index == log.base_index == 5
    log.sync()
    log = stored(log)
    assert (log.base_index, log.last_index, log.members) == (5, 5, Members((1,)))
    log.close()


def test_a_snapshot_that_is_no_news_changes_nothing(log: RaftLog) -> None:
    log.append(entries(1, 5))
    log.sync()
    log.compact(4)
    log.begin_install(3, 1, Members((9,)))
    log.install(3, 1, Members((9,)))
    assert (log.base_index, log.last_index, log.installing) == (4, 5, None)
    log.sync()
    log = stored(log)
    assert log.installing is None and log.base_index == 4
    log.close()


def test_nobody_votes_in_a_new_log_before_it_belongs_to_a_group(tmp_path: Path) -> None:
    log = RaftLog(tmp_path / "log", None, (1, 2, 3), replica_id=1)
    assert log.members == Members(()) and log.is_new
    log.close()
    log = RaftLog(tmp_path / "log", None, (1, 2, 3), replica_id=1)
    assert log.members == Members(())
    log.begin_group(Members((1, 2), group=GROUP))
    log.close()
    log = RaftLog(tmp_path / "log", None, (1, 2, 3), replica_id=1)
    assert log.members == Members((1, 2), group=GROUP)
    log.close()


def test_a_note_that_cannot_be_read_is_no_lost_log(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    log = RaftLog(tmp_path / "log")
    log.close()

    def fail(path: Path) -> bytes:
        raise PermissionError("not yours")

    monkeypatch.setattr(watermark, "read_regular", fail)
    with pytest.raises(StorageError, match="witness: cannot be read"):
        RaftLog(tmp_path / "log")


def test_each_life_of_a_log_has_a_number_and_a_nonce_that_are_kept(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(raftlog, "_NONCES", 3)
    seen: list[int] = []
    disks = set()
    for life in range(1, 6):
        log = RaftLog(tmp_path / "log", replica_id=1, rng=random.Random(life))
        assert log.identity is not None and log.is_new == (life == 1)
        assert (log.identity.replica_id, log.identity.boot) == (1, life)
        seen.insert(0, log.identity.nonces[0])
        assert list(log.identity.nonces) == seen[:3] and 0 <= seen[0] < 1 << 62
        disks.add(log.disk_id)
        log.close()
    assert len(set(seen)) == 5 and len(disks) == 1 and len(disks.pop()) == 16


def test_a_life_that_was_only_begun_leaves_no_trace(tmp_path: Path) -> None:
    RaftLog(tmp_path / "log", replica_id=1).crash()
    log = RaftLog(tmp_path / "log", replica_id=1)
    assert log.is_new and log.identity is not None and log.identity.boot == 1
    log.close()


def test_a_disk_that_was_refused_is_not_opened_again(tmp_path: Path) -> None:
    log = RaftLog(tmp_path / "log", replica_id=1)
    log.identify(refused="a second one")
    log.close()
    with pytest.raises(Corrupt, match="a second one"):
        RaftLog(tmp_path / "log", replica_id=1)


def test_the_lives_of_other_disks_are_known_when_they_are_durable(tmp_path: Path) -> None:
    """They wait for a sync that something else needs."""
    one, two = b"1" * 16, b"2" * 16
    log = RaftLog(tmp_path / "log", replica_id=1)
    log.sync()
    assert log.synced_boot(one) == 0
    log.note_life(one, 3, 77)
    assert log.lives == {one: (3, 77)} and log.synced_boot(one) == 0 and not log.unsynced
    log.append(entries(1, 1))
    log.sync()
    assert log.synced_boot(one) == 3 and log.synced_boot(two) == 0
    log.note_life(two, 1, 5)
    assert log.synced_boot(one) == 0  # it may be anything until all is written
    log.crash()
    log = RaftLog(tmp_path / "log", replica_id=1)
    assert log.lives == {one: (3, 77)} and log.synced_boot(one) == 3
    log.close()


@pytest.mark.parametrize("where", ["memory", "disk", "both"])
def test_entries_are_as_many_as_have_so_many_bytes_and_one_at_least(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, where: str
) -> None:
    monkeypatch.setattr(raftlog, "_READ_ENTRIES", 4)
    log = RaftLog(tmp_path / "log")
    log.append(entries(1, 12))
    log.sync()
    if where != "memory":
        monkeypatch.setattr(raftlog, "_TAIL_ENTRIES", 1 if where == "disk" else 6)
        log.close()
        log = RaftLog(tmp_path / "log")
        monkeypatch.setattr(raftlog, "_TAIL_ENTRIES", 8192)
    for bytes_, last in (
        (0, 2),
        (9, 2),
        (10, 2),
        (19, 2),
        (20, 3),
        (39, 4),
        (40, 5),
        (70, 8),
        (109, 11),
        (110, 12),
    ):
        assert [each.index for each in log.entries(2, 12, bytes_)] == list(range(2, last + 1))
    assert len(log.entries(2, 12)) == 11 and len(log.entries(2, 5, 999)) == 4
    monkeypatch.setattr(raftlog, "_TAIL_ENTRIES", 5)
    assert [each.index for each in log.entries(2, 12)] == [2, 3, 4, 5, 6]
    log.close()


def test_the_members_as_of_any_entry_are_known_until_they_are_dropped(log: RaftLog) -> None:
    first, second, third = Members((1,)), Members((1, 2)), Members((1, 2, 3))
    log.append([*entries(1, 2), change(3, first), *entries(4, 1), change(5, second), change(6, third)])
    log.sync()
    as_of = [log.members_at(index) for index in range(8)]
    assert as_of == [Members(()), Members(()), Members(()), first, first, second, third, third]
    assert log.members == third and log.configuration == (6, third)
    log.truncate_from(6)
    assert log.members == second and log.configuration == (5, second) and log.unsynced
    log.compact(4)
    assert [log.members_at(index) for index in (0, 3, 4, 5)] == [first, first, first, second]
    log.truncate_from(5)
    assert log.members == first and log.configuration == (4, first)
    log.close()
    log = RaftLog(log.path)
    assert log.configuration == (4, first) and log.last_index == 4
    log.close()


def test_what_was_stored_of_a_log_that_was_cut_below_its_durable_end_is_replaced(log: RaftLog) -> None:
    log.append(entries(1, 8))
    log.sync()
    log.truncate_from(6)
    assert log.synced_index == 5 and log.unsynced
    log.append([LogEntry(6, 2, REGULAR + b"new")])
    log.truncate_from(4)  # once more before it is synced, and further
    log.append([LogEntry(4, 3, REGULAR + b"newer")])
    assert log.synced_index == 3
    log.sync()
    log.crash()
    log = RaftLog(log.path)
    assert [each.term for each in log.entries(1, 4)] == [1, 1, 1, 3] and log.last_index == 4
    assert log.synced_index == 4 and not log.unsynced
    log.close()


def test_a_cut_of_what_is_not_durable_needs_no_sync(log: RaftLog) -> None:
    log.append(entries(1, 3))
    log.sync()
    log.append(entries(4, 2))
    log.truncate_from(4)
    assert not log.unsynced and log.synced_index == log.last_index == 3
    log.truncate_from(3)
    assert log.unsynced and log.synced_index == log.last_index == 2
    log.close()


@pytest.mark.parametrize("how", ["begun", "abandoned", "installed", "no news"])
def test_what_becomes_of_an_installation_is_durable_with_the_next_sync(log: RaftLog, how: str) -> None:
    """Else a later life would begin its log anew at a snapshot that never came."""
    log.append(entries(1, 5))
    log.sync()
    log.compact(3)
    log.sync()
    index = 2 if how == "no news" else 9
    log.begin_install(index, 2, Members((1, 2)))
    assert log.unsynced
    if how != "begun":
        log.sync()
        assert stored_installing(log) == (index, 2, Members((1, 2)))
        if how == "abandoned":
            log.abandon_install()
        else:
            log.install(index, 2, Members((1, 2)))
        assert log.unsynced and log.installing is None
    log.sync()
    log = stored(log)
    assert log.installing == ((9, 2, Members((1, 2))) if how == "begun" else None)
    assert log.base_index == (9 if how == "installed" else 3)
    log.close()


def stored_installing(log: RaftLog) -> object:
    """What a look at the disk would find, without opening the log a second time."""
    base = log.store.base()
    assert base is not None
    return base.installing


def test_a_log_is_compacted_only_within_what_it_holds_durably(log: RaftLog) -> None:
    log.append(entries(1, 6))
    log.sync()
    log.compact(3)
    log.sync()
    log.append(entries(7, 1))
    for index in (2, 7, 8):
        with pytest.raises(IndexError, match=rf"the log holds 4\.\.6 durably, not up to {index}"):
            log.compact(index)
    assert log.base_index == 3
    log.compact(3)  # where it begins already
    assert (log.base_index, log.base_term, log.last_index) == (3, 1, 7)
    log.compact(6)
    assert (log.base_index, log.last_index) == (6, 7)
    log.close()


def test_an_entry_is_written_once(log: RaftLog, monkeypatch: pytest.MonkeyPatch) -> None:
    """And not again with a vote, a compaction, or the entries that follow. Each write has a number, too."""
    sizes: list[int] = []
    store = log.store._store
    write = store.write
    monkeypatch.setattr(store, "write", lambda batch: (sizes.append(len(batch)), write(batch)))
    log.append(entries(1, 3))
    log.sync()
    log.set_hard_state(2, 1)
    log.sync()
    log.append(entries(4, 2))
    log.sync()
    log.compact(2)
    log.sync()
    log.truncate_from(5)
    log.append(entries(5, 1))
    log.sync()
    log.sync()
    number = 1
    assert sizes == [3 + number, 1 + number, 2 + number, 2 + number, 2 + number]
    log.close()


def test_the_members_at_the_base_are_stored_once_also_if_the_base_is_their_entry(log: RaftLog) -> None:
    first, second = Members((1,)), Members((1, 2))
    log.append([change(1, first), *entries(2, 1), change(3, second)])
    log.sync()
    for base, kept in ((1, [(1, first), (3, second)]), (2, [(2, first), (3, second)]), (3, [(3, second)])):
        log.compact(base)
        assert msgspec.msgpack.decode(log.compaction_record(), type=Base).configurations == kept
    log.close()
