"""The Raft log: what is synced stays, what is not synced goes, whatever ends the process or fails."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from ondisk.errors import StorageError
from ondisk.raft import watermark
from ondisk.raft.log import RaftLog
from ondisk.storage import rocksdb
from ondisk.storage.disk import Disk
from ondisk.storage.store import Store
from tests.logs import State, entry, fill, reopened, state_of
from tests.stores import FullDisk, copy_live


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
