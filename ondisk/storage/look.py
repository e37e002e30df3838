"""Look: what ``os.stat`` and ``os.access`` say of a file, without letting other threads run meanwhile.

Python's own calls let go of the interpreter's lock, and take it again, which is right where a call may wait.
But a replica looks six times a step whether its files can still be found, the kernel answers from memory in a
microsecond, and wherever threads are busy each letting go is two changes of threads: measured, half of all
that the threads of three replicas on TCP had to do with each other. So these calls keep the lock, as
RocksDB's reads do. A file system that hangs makes the whole process wait here, as it does there.

Where the C library has no ``statx`` (anywhere but on Linux), Python's own calls do it.
"""

from __future__ import annotations

import ctypes
import os
import struct
from collections.abc import Callable
from typing import Any, NamedTuple

_AT_FDCWD, _AT_EMPTY_PATH, _BASIC_STATS = -100, 0x1000, 0x7FF
_STATX_BYTES = 256
# Of ``struct statx``, the same on every machine: links, mode, inode, change time, device.
_FIELDS = struct.Struct("=16xI8xH2xQ56xqI4x16x8xII")


class Found(NamedTuple):
    """What is known of a file or directory."""

    device: int
    inode: int
    mode: int
    links: int  # how many names it has
    changed_ns: int  # when it, or a name in it, was last changed


def _python_look(file: str | int) -> Found:
    found = os.stat(file)
    return Found(found.st_dev, found.st_ino, found.st_mode, found.st_nlink, found.st_ctime_ns)


def _python_may_write(path: str) -> bool:
    return os.access(path, os.W_OK)


def _of_c_library() -> tuple[Callable[[str | int], Found], Callable[[str], bool]]:
    """Raises ``AttributeError`` or ``OSError`` where there is no such thing."""
    library: Any = ctypes.PyDLL(None, use_errno=True)  # unlike CDLL it keeps the interpreter's lock
    statx, access = library.statx, library.access
    statx.argtypes = (ctypes.c_int, ctypes.c_char_p, ctypes.c_int, ctypes.c_uint, ctypes.c_void_p)
    access.argtypes = (ctypes.c_char_p, ctypes.c_int)

    def look(file: str | int) -> Found:
        buffer = ctypes.create_string_buffer(_STATX_BYTES)
        if isinstance(file, int):
            failed = statx(file, b"", _AT_EMPTY_PATH, _BASIC_STATS, buffer)
        else:
            failed = statx(_AT_FDCWD, os.fsencode(file), 0, _BASIC_STATS, buffer)
        if failed:
            number = ctypes.get_errno()
            raise OSError(number, os.strerror(number), None if isinstance(file, int) else file)
        links, mode, inode, seconds, nanoseconds, major, minor = _FIELDS.unpack_from(buffer)
        return Found(os.makedev(major, minor), inode, mode, links, seconds * 1_000_000_000 + nanoseconds)

    def may_write(path: str) -> bool:
        return bool(access(os.fsencode(path), os.W_OK) == 0)

    look(os.curdir)  # an old kernel has the function and not the call
    return look, may_write


try:
    look, may_write = _of_c_library()
except (AttributeError, OSError, TypeError):
    look, may_write = _python_look, _python_may_write
