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


class PythonLook:
    """A file or directory, by its name or a descriptor, that is looked at again and again."""

    def __init__(self, file: str | int) -> None:
        self._file = file

    def found(self) -> Found:
        """What is known of it now. Raises ``OSError``."""
        found = os.stat(self._file)
        return Found(found.st_dev, found.st_ino, found.st_mode, found.st_nlink, found.st_ctime_ns)

    def key(self) -> object:
        """The same as something that is only compared. Raises ``OSError``."""
        return self.found()

    def may_write(self) -> bool:
        """Whether what has that name may be written by this process."""
        return os.access(self._file, os.W_OK)


def _look_of_c_library() -> type[PythonLook]:
    """Raises ``AttributeError`` or ``OSError`` where there is no such thing."""
    library: Any = ctypes.PyDLL(None, use_errno=True)  # unlike CDLL it keeps the interpreter's lock
    statx, access = library.statx, library.access
    statx.argtypes = (ctypes.c_int, ctypes.c_char_p, ctypes.c_int, ctypes.c_uint, ctypes.c_void_p)
    access.argtypes = (ctypes.c_char_p, ctypes.c_int)

    class Look(PythonLook):
        """Used by one thread at a time: its answer lies in a buffer."""

        def __init__(self, file: str | int) -> None:
            super().__init__(file)
            self._name = b"" if isinstance(file, int) else os.fsencode(file)
            self._at = file if isinstance(file, int) else _AT_FDCWD
            self._flags = _AT_EMPTY_PATH if isinstance(file, int) else 0
            self._buffer = ctypes.create_string_buffer(_STATX_BYTES)

        def _ask(self) -> None:
            if statx(self._at, self._name, self._flags, _BASIC_STATS, self._buffer):
                number = ctypes.get_errno()
                named = None if isinstance(self._file, int) else self._file
                raise OSError(number, os.strerror(number), named)

        def found(self) -> Found:
            self._ask()
            links, mode, inode, seconds, nanoseconds, major, minor = _FIELDS.unpack_from(self._buffer)
            changed = seconds * 1_000_000_000 + nanoseconds
            return Found(os.makedev(major, minor), inode, mode, links, changed)

        def key(self) -> object:
            self._ask()
            raw = self._buffer.raw
            return raw[16:40], raw[96:108], raw[136:144]  # the bytes of _FIELDS

        def may_write(self) -> bool:
            return bool(access(self._name, os.W_OK) == 0)

    Look(os.curdir).found()  # an old kernel does not know what the library knows
    return Look


try:
    Look = _look_of_c_library()
except (AttributeError, OSError, TypeError):
    Look = PythonLook
