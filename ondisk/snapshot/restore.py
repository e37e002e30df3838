"""Restore: make a group out of an exported snapshot.

For a new group that begins with existing data, and for one that has lost its majority for good. Raft cannot
help there: nobody can know what the lost majority had acknowledged. So a person decides which snapshot counts
from now on, and imports it into *every* member. What was written after it is gone.
"""

from __future__ import annotations

import os
import random
import shutil
import threading
from collections.abc import Callable, Sequence
from pathlib import Path

from ondisk.diskkv import DiskKV
from ondisk.errors import ConfigurationError, Corrupt, StorageError
from ondisk.identity.statemark import mark
from ondisk.interrupts.shielded import shielded, still_wanted
from ondisk.raft.log import RaftLog
from ondisk.raft.members import Members, check_ids
from ondisk.snapshot.stream import Header, Reader, SnapshotFile, open_file, read_file
from ondisk.statemachine import OnDiskStateMachine
from ondisk.storage.disk import Disk, make_directory, sync_directory
from ondisk.storage.lock import DirectoryLock
from ondisk.storage.paths import resolved


@shielded
def import_snapshot(
    path: Path | str,
    data_dir: Path | str = "example-data",
    *,
    members: Sequence[int] = (1, 2, 3),
    replica_ids: Sequence[int] | None = None,
    state_machine: Callable[[Path], OnDiskStateMachine] | None = None,
    progress: Callable[[int, int], None] | None = None,
    stopped: threading.Event | None = None,
) -> SnapshotFile:
    """Replace what stopped replicas have by an exported snapshot, be it older or newer.

    The members found a new group, which has exactly ``members`` and another id: nobody who was left out can
    disturb it. It is founded when all of them are started, so give every one of them the same file.
    ``replica_ids`` are those whose directories are here, all of them if not given. ``progress(replica_id,
    bytes)`` is called now and then, and setting ``stopped`` ends it with ``SnapshotStopped``.

    Each replica has its old data whole until it has all of the new. Raises ``Corrupt`` for a damaged file,
    ``DirectoryInUse`` for a running replica, ``ConfigurationError`` or ``StorageError``.
    """
    ids = tuple(members if replica_ids is None else replica_ids)
    check_ids(members)
    if not ids or not set(ids) <= set(members):
        raise ConfigurationError(f"replicas {list(ids)} cannot be of a group with members {list(members)}")
    source, target = resolved(path, "a snapshot"), resolved(data_dir, "a data directory")
    make = state_machine or DiskKV
    for replica_id in ids:
        header = _import(
            source,
            target / f"replica-{replica_id}",
            replica_id,
            tuple(sorted(members)),
            make,
            lambda done, replica_id=replica_id: progress(replica_id, done) if progress else None,  # type: ignore[misc]
            stopped or threading.Event(),
        )
    return SnapshotFile(source, header.index, header.term, source.stat().st_size)


def begin_directory(directory: Path, replica_id: int, *, existing: bytes) -> None:
    """Make an empty directory that founds no group, and joins this one. Raises ``StorageError``."""
    lock = DirectoryLock(directory)
    try:
        log = RaftLog(directory / "log", replica_id=replica_id, rng=random.SystemRandom())
        log.identify(existing=existing)
        log.close()
    finally:
        lock.release()


def complete_import(directory: Path) -> None:
    """Put a replica's new data in place, if a crash came when the old had just been put aside.

    Whoever opens a replica's directory calls this first. Raises ``StorageError``.
    """
    new, old = _beside(directory)
    try:
        if new.exists() and old.exists() and not directory.exists():
            new.rename(directory)
            sync_directory(directory.parent)
    except OSError as error:
        raise StorageError(f"{directory}: an import cannot be completed ({error})") from None


def _beside(directory: Path) -> tuple[Path, Path]:
    """Where an import builds the new data, and where it puts the old."""
    # Not .new and .old: somebody may have made those by hand.
    name = directory.name
    return directory.with_name(f"{name}.importing"), directory.with_name(f"{name}.replaced")


class _Watched:
    """A reader that tells how far it is."""

    def __init__(self, reader: Reader, progress: Callable[[int], object]) -> None:
        self._reader = reader
        self._progress = progress

    def read(self, size: int) -> bytes:
        still_wanted()
        data = self._reader.read(size)
        self._progress(self._reader.bytes)
        return data


def _forget_old(directory: Path, old: Path) -> None:
    """The import counts from now on, and an error says so."""
    try:
        sync_directory(directory.parent)  # the new names, before the old data goes
        shutil.rmtree(old)
    except OSError as error:
        raise StorageError(
            f"{directory}: the snapshot is imported and in its place, but a power cut may still take that "
            f"back, or the old data is still in {old} ({error}): import it again, or see to the disk"
        ) from None


def _import(
    source: Path,
    directory: Path,
    replica_id: int,
    members: tuple[int, ...],
    make: Callable[[Path], OnDiskStateMachine],
    progress: Callable[[int], object],
    stopped: threading.Event,
) -> Header:
    """Build the replica anew beside the old one, then let it take the place."""
    if directory.is_symlink() or os.path.ismount(directory):
        raise ConfigurationError(
            f"{directory} is a {'symlink' if directory.is_symlink() else 'mount point'}, and an import puts "
            "a new directory in its place: import into another data directory, or put a plain directory there"
        )
    complete_import(directory)
    new, old = _beside(directory)
    lock = DirectoryLock(directory)
    try:
        # Both are together, and nothing in the place of the old, only when the new one is complete.
        shutil.rmtree(old, ignore_errors=True)
        shutil.rmtree(new, ignore_errors=True)
        make_directory(new)
        with open_file(source) as file:
            reader = Reader(read_file(file), str(source))
            machine = make(new / "state")
            try:
                machine.open()
                index = machine.recover_from_snapshot(_Watched(reader, progress), stopped)
                reader.finish()
            finally:
                machine.close()
        if index != reader.header.index:
            raise Corrupt(f"{source}: it claims to hold entry {reader.header.index}, but holds {index}")
        log = RaftLog(new / "log", replica_id=replica_id, rng=random.SystemRandom())
        log.install(index, reader.header.term, Members(()))
        log.set_hard_state(reader.header.term, None)
        log.identify(first=members, seed=reader.digest)
        mark(log, new / "state", index, Disk())
        log.close()
        directory.rename(old)
        new.rename(directory)
        _forget_old(directory, old)
    except OSError as error:
        raise StorageError(f"{directory}: the snapshot cannot be imported ({error})") from None
    finally:
        complete_import(directory)
        shutil.rmtree(new, ignore_errors=True)
        lock.release()
    return reader.header
