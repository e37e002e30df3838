"""A ``Store`` with numbers in it, its files, and damage to them, for the tests of what stands on it."""

from __future__ import annotations

import errno
import os
import shutil
from collections.abc import Callable
from pathlib import Path

from ondisk.storage.disk import Disk
from ondisk.storage.store import Store

INDEX = b"index"


class FullDisk(Disk):
    """A disk that is full for as long as ``full`` is set."""

    full = False

    def sync(self, flush: Callable[[], None]) -> None:
        if self.full:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        flush()


def copy_live(source: Path, target: Path) -> Path:
    """Copy a directory as a killed process would leave it. Returns the copy."""
    shutil.rmtree(target, ignore_errors=True)
    return Path(shutil.copytree(source, target))


def newest_wal(directory: Path) -> Path:
    """The write-ahead log that was written to last, wherever it is below the directory."""
    return max(directory.rglob("*.log"), key=lambda log: int(log.stem))


def largest_table(directory: Path) -> Path:
    """The table with most data in it. (The metadata of a state may be more: they hold the history.)"""
    tables = (table for table in directory.rglob("*.sst") if b"applied_index" not in table.read_bytes())
    return max(tables, key=lambda table: table.stat().st_size)


def flip(file: Path, position: int, bit: int) -> None:
    """Damage one bit of a file."""
    stored = bytearray(file.read_bytes())
    stored[position] ^= 1 << bit
    file.write_bytes(stored)


def record_starts(file: Path) -> list[int]:
    """Where the records of a write-ahead log or MANIFEST of less than 32 KB begin."""
    stored, at, starts = file.read_bytes(), 0, []
    while at + 7 <= len(stored):
        starts.append(at)
        at += 7 + int.from_bytes(stored[at + 4 : at + 6], "little")
    return starts


def write(store: Store, number: int, size: int = 1) -> None:
    """Write data ``number``, and ``number`` as the index that belongs to it, in one batch."""
    batch = store.batch()
    batch.put(number.to_bytes(8, "big"), bytes(size))
    store.put_meta(batch, INDEX, number.to_bytes(8, "big"))
    store.write(batch)


def held(store: Store) -> int:
    """How many numbers the store holds; fails if index and data do not belong together."""
    with store.iterate() as pairs:
        numbers = [int.from_bytes(key, "big") for key, _ in pairs]
    assert numbers == list(range(1, len(numbers) + 1))
    assert int.from_bytes(store.get_meta(INDEX) or b"", "big") == len(numbers)
    return len(numbers)


def reopened(path: Path) -> int:
    """What a store holds after it is opened again."""
    store = Store(path)
    try:
        return held(store)
    finally:
        store.close()
