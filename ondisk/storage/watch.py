"""Watch: notices that a directory which is in use, or a file in it that is needed, has lost its name.

An open file can be written and synced for as long as one likes after it was deleted, or after its directory
was moved or replaced by another one: the operating system says nothing, and the bytes are gone with the
process. So whoever has synced something looks whether it can still be found, before anybody is told that it
is durable.

The look costs one ``stat`` and one ``access``, some microseconds. A directory's *change time* moves when a
name in it comes or goes, or when its permissions change; only then is there more to be looked at. What is
mounted over the directory and may only be read has the same identity and the same times: only ``access``
tells, and a file that is open goes on to be written below.
"""

from __future__ import annotations

import os
import stat
import time
from collections.abc import Callable
from pathlib import Path

from ondisk.errors import StorageError
from ondisk.storage.errors import typed
from ondisk.storage.look import Look

# A change time is only as fine as the kernel's tick. A second change within the same tick would not show, so
# a change that is younger than this is looked at again.
_TICK_NS = 50_000_000


class Watch:
    """One directory, from the moment when this object is made."""

    def __init__(self, directory: Path, lost: Callable[[], str | None]) -> None:
        """``lost`` names a file that is needed and missing, if there is one. Raises ``OSError``.

        ``lost`` raises ``OSError``, too, if it cannot find out.
        """
        self._path = os.fspath(directory)
        self._look = Look(self._path)
        found = self._look.found()
        self._identity = found.device, found.inode
        self._owner_writes = found.mode & stat.S_IWUSR
        self._find_lost = lost
        self._good: object = None  # the key of a look when everything was right, and had been for a while

    def check(self, *, durable: bool = True) -> None:
        """Raise ``StorageError`` unless everything is where it was, and may be written.

        Not ``durable``: nothing was promised of what is in there, since another directory has it, too. Then
        whether it may be written is looked at only when it has changed.
        """
        try:
            reason = self._what_is_wrong(durable=durable)
        except OSError as error:
            raise typed(error, self._path) from None
        if reason is not None:
            raise StorageError(
                f"{self._path}: {reason} while it was in use. What is written there now would be lost. "
                f"Put it right and start again, or rebuild this replica from the others"
            )

    def is_certain(self) -> bool:
        """Whether everything is known to be where it was. If not, nothing may be written here by its name."""
        try:
            return self._what_is_wrong(durable=True) is None
        except Exception:  # what cannot be looked at may be another directory's
            return False

    def _what_is_wrong(self, *, durable: bool) -> str | None:
        try:
            key = self._look.key()
            if key == self._good:
                return "was made read-only" if durable and not self._look.may_write() else None
            found = self._look.found()
        except OSError as error:
            return f"was deleted or moved away ({error.strerror})"
        if (found.device, found.inode) != self._identity:
            return "was replaced by another directory"
        # The owner's bit stops everybody but root. Whoever takes it away means root, too.
        if self._owner_writes > found.mode & stat.S_IWUSR or not self._look.may_write():
            return "was made read-only"
        if (name := self._find_lost()) is not None:
            return f"has lost its file {name}"
        settled = abs(time.time_ns() - found.changed_ns) > _TICK_NS
        self._good = key if settled else None
        return None
