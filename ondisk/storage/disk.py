"""The disk as a replica sees it: ``Disk``, where faults are put in, and names made durable."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path


class Disk:
    """What a replica asks of its disk. Tests and the simulation hand in one that stalls or fails."""

    def sync(self, flush: Callable[[], None]) -> None:
        """Call ``flush``, which returns when the bytes are durable, or raise ``OSError``."""
        flush()

    def survivors(self, unsynced: int) -> int:
        """How many of so many bytes, written to a log and never synced, outlive a power cut."""
        return 0

    def reach(self, point: str) -> None:
        """Called between two steps on the disk that a crash may separate. An experiment may crash here.

        A ``Store`` says ``write`` before each batch, ``written`` after it, and ``synced`` when all is
        durable. ``DiskKV`` has more of them: ``diskkv.POINTS``.
        """


def make_directory(path: Path) -> None:
    """Create a directory, and make its name durable too: it stands in its parent. Raises ``OSError``."""
    if path.is_dir():
        return
    make_directory(path.parent)
    path.mkdir(exist_ok=True)
    sync_directory(path.parent)


def sync_directory(path: Path, disk: Disk | None = None) -> None:
    """Make the names in a directory durable. Raises ``OSError``."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        (disk or Disk()).sync(lambda: os.fsync(descriptor))
    finally:
        os.close(descriptor)
