"""The lock of a replica's directory: one owner at a time, who leaves a name."""

from __future__ import annotations

import fcntl
import os
from pathlib import Path

import psutil

from ondisk.errors import Corrupt, DirectoryInUse, StorageError
from ondisk.interrupts import forked
from ondisk.storage import lines
from ondisk.storage.disk import make_directory
from ondisk.storage.paths import open_descriptor
from ondisk.storage.watch import Watch


class DirectoryLock:
    """One owner for a replica's directory, who leaves a name so that the next one can be told.

    The kernel drops the lock when the owner ends, however it ends.
    """

    name = "owner"
    _KIND, _VERSION = "ondisk-owner", 1

    def __init__(self, directory: Path) -> None:
        """Take the lock. Raises ``DirectoryInUse`` at once, with the owner's name."""
        self._fd = -1
        forked.register(self)
        try:
            make_directory(directory)
            self._path = directory / self.name
            self._fd = open_descriptor(self._path, os.O_RDWR | os.O_CREAT)
        except OSError as error:
            raise StorageError(f"{directory}: cannot be used as a data directory ({error})") from None
        try:
            fcntl.flock(self._fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
            self._watch = Watch(directory, lambda: None if self.is_there() else self.name)
            self._refuse_a_foreign_file()
            os.ftruncate(self._fd, 0)
            os.pwrite(self._fd, lines.encode(self._KIND, self._VERSION, str(os.getpid())), 0)
        except BlockingIOError:
            owner = self._owner()
            self.release()
            raise DirectoryInUse(
                f"{directory} is in use by {describe_process(owner)}. Stop it, or choose another directory."
            ) from None
        except BaseException as error:
            self.release()
            if isinstance(error, OSError):
                raise StorageError(f"{directory}: cannot be used as a data directory ({error})") from None
            raise

    def _owner(self) -> str:
        """The process that left its number; the number alone, before the file had a version."""
        stored = os.pread(self._fd, 200, 0)
        try:
            return lines.decode(self._path, stored, self._KIND, self._VERSION)
        except StorageError:
            return stored[:20].decode("ascii", "replace").strip()

    def _refuse_a_foreign_file(self) -> None:
        """Somebody may have a file of this name that is none of ours: it would be overwritten."""
        stored = os.pread(self._fd, 200, 0).strip(b"\0\n")  # a power cut may leave zeros
        if stored and not stored.isdigit():
            try:
                lines.decode(self._path, stored + b"\n", self._KIND, self._VERSION)
            except Corrupt:
                raise StorageError(
                    f"{self._path}: is no file of ondisk, and would be overwritten. Choose another directory"
                ) from None

    def is_there(self) -> bool:
        """Whether the file that is locked is the one that somebody else would try to lock."""
        try:
            return os.path.samestat(os.stat(self._path), os.fstat(self._fd))
        except OSError:
            return False

    def check(self) -> None:
        """Raise ``StorageError`` if another owner could get in: the directory or its ``owner`` is gone."""
        self._watch.check(durable=False)  # whether it may be written, who writes there finds out

    def release(self) -> None:
        """Let the next owner in. A second call does nothing."""
        descriptor, self._fd = self._fd, -1
        if descriptor >= 0:
            os.close(descriptor)

    def forget_parent(self) -> None:
        """In a child: close the copy of the descriptor, which would keep the parent from opening again."""
        self.release()


def describe_process(pid: int | str | None) -> str:
    """``process 4711 (python -m ondisk ...)``, or as much of it as can be found out."""
    try:
        number = int(pid or "")
        if number == os.getpid():
            return f"this process ({number})"
        command = " ".join(psutil.Process(number).cmdline())[:80]
    except (ValueError, psutil.Error):
        return f"process {pid or 'unknown'}"
    if "ipykernel" in command:
        return f"process {number}, the kernel of a notebook: shut it down there (Kernel, Shut Down Kernel)"
    return f"process {number} ({command})"
