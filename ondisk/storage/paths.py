"""Paths that a person may name: they can be anything, and opening the wrong thing hangs or harms.

A FIFO makes whoever opens it wait for the other end, and opening a device may do something to it. So what is
there is looked at first, then opened in a way that never waits, and looked at again.
"""

from __future__ import annotations

import os
import secrets
import stat
from pathlib import Path
from typing import IO

from ondisk.errors import ConfigurationError, StorageError
from ondisk.storage.errors import NOT_THERE

# RocksDB adds names of its own below a data directory, and the operating system takes 4096 bytes in all.
_LONGEST = 3800


def resolved(path: Path | str, what: str) -> Path:
    """The absolute path, without symlinks. Raises ``ConfigurationError`` for what cannot be ``what``."""
    try:
        found = Path(path).resolve()
        encoded = os.fsencode(found)
    except (TypeError, ValueError, RuntimeError, OSError):  # RuntimeError: symlinks that lead in a circle
        encoded = b"\0"
    if b"\0" in encoded:
        raise ConfigurationError(f"{path!r:.200} cannot be {what}: it is not a path")
    if len(encoded) > _LONGEST:
        raise ConfigurationError(f"{path!r:.200} cannot be {what}: it is longer than {_LONGEST:,} bytes")
    return found


def what_it_is(mode: int) -> str:
    """``a FIFO``, for the ``st_mode`` of something that is no regular file."""
    kinds = {
        stat.S_IFDIR: "a directory",
        stat.S_IFIFO: "a FIFO",
        stat.S_IFSOCK: "a socket",
        stat.S_IFCHR: "a device",
        stat.S_IFBLK: "a device",
        stat.S_IFREG: "a file",
    }
    return kinds.get(stat.S_IFMT(mode), "no file")


def open_descriptor(path: Path | str, flags: int, mode: int = 0o644) -> int:
    """``os.open``, of regular files only and without ever waiting. Raises ``OSError`` or ``StorageError``."""
    try:
        _check_regular(path, os.stat(path).st_mode)
    except FileNotFoundError:
        if not flags & os.O_CREAT:
            raise
    descriptor = os.open(path, flags | os.O_NONBLOCK | os.O_NOCTTY | os.O_CLOEXEC, mode)
    try:
        _check_regular(path, os.fstat(descriptor).st_mode)
    except BaseException:
        os.close(descriptor)
        raise
    return descriptor


def _check_regular(path: Path | str, mode: int) -> None:
    if not stat.S_ISREG(mode):
        raise StorageError(f"{path}: is {what_it_is(mode)} where a file is due")


def read_regular(path: Path) -> bytes:
    """All of a regular file. Raises ``OSError`` or ``StorageError``."""
    with open_regular(path) as file:
        return file.read()


def open_regular(path: Path) -> IO[bytes]:
    """Open a regular file to read. Raises ``OSError`` or ``StorageError``."""
    return open(path, "rb", opener=open_descriptor)


def names_in(directory: Path) -> list[str]:
    """The names in a directory; none if there is no such directory. Raises ``OSError``.

    ``Path.glob`` finds nothing, too, in a directory that it may not open, since Python 3.12.
    """
    try:
        return os.listdir(directory)
    except NOT_THERE:
        return []


def check_target(path: Path) -> None:
    """Refuse to put a file where something else than a file is, or where it would do harm.

    Raises ``StorageError``, and ``ConfigurationError`` inside the directory of a replica.
    """
    for directory in path.parents:
        if (directory / "owner").exists() and (directory / "log" / "rocksdb").is_dir():
            raise ConfigurationError(f"{path}: is in the directory of a replica: choose another place")
    try:
        there = os.lstat(path)
    except FileNotFoundError:
        there = None
    except OSError as error:
        raise StorageError(f"{path}: cannot be written ({error})") from None
    if there is not None and not stat.S_ISREG(there.st_mode):
        raise StorageError(f"{path}: is {what_it_is(there.st_mode)}, and only a file is replaced")
    if there is not None and not os.access(path, os.W_OK):
        raise StorageError(f"{path}: is there, and may not be written")


def partial_name(path: Path) -> Path:
    """Where a file is written until it is complete. Nobody else has this name, and it is short enough."""
    return path.with_name(f"{path.name[:50]}.{secrets.token_hex(4)}.partial")
