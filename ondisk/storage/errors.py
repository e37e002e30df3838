"""Typed errors for what the operating system and RocksDB report. Each names the place.

RocksDB's errors are plain ``Exception``s with a text; Python's are ``OSError``s.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from ondisk.errors import Corrupt, DirectoryInUse, StorageError

# An ``OSError`` of these says that a file is not there. All others say that nobody knows: for want of
# descriptors or memory, for example, a file that is there cannot be opened.
NOT_THERE = (FileNotFoundError, NotADirectoryError)


def typed(error: Exception, path: Path | str) -> Exception:
    """The error to raise in place of this one; this one itself if it did not come from the disk."""
    if type(error) is not Exception and not isinstance(error, OSError):
        return error
    text = str(error)
    if text.startswith("Corruption:"):
        return Corrupt(f"{path}: the stored data is damaged ({text})")
    if text.startswith("IO error: lock hold by current process"):
        return DirectoryInUse(f"{path}: the database is already open in this process")
    if text.startswith("IO error: While lock file"):
        return DirectoryInUse(f"{path}: the database is open in another process")
    if "Too many open files" in text:
        return StorageError(f"{path}: this process may not open more files, see ulimit -n ({text})")
    return StorageError(f"{path}: the disk refused ({text})")


@contextmanager
def disk_errors(path: Path) -> Iterator[None]:
    """Turn errors of the disk and of RocksDB into typed ones that name the place."""
    try:
        yield
    except Exception as error:
        if (other := typed(error, path)) is error:
            raise
        raise other from None
