"""The durable watermark of a log: a file that says how far the log was durable."""

from __future__ import annotations

import os
import zlib
from pathlib import Path

from ondisk.errors import Corrupt, StorageError
from ondisk.storage import lines
from ondisk.storage.look import Look
from ondisk.storage.paths import read_regular


class DurableWatermark:
    """How many batches the log held durably, beside the log: to notice one that has lost its end.

    RocksDB cannot tell a write-ahead log that was cut short, or deleted, from one that never was longer.
    The note is written after each sync without waiting for the disk. So it may be older than the log,
    which is harmless, but never newer.
    """

    _KIND, _VERSION = "ondisk-witness", 1

    def __init__(self, path: Path) -> None:
        self._path = path
        self._file = -1  # opened by the first write

    def read(self) -> int:
        """The number of durable batches; 0 when there is no note, or a power cut tore it."""
        try:
            stored = read_regular(self._path)
        except FileNotFoundError:
            return 0
        except OSError as error:
            raise StorageError(f"{self._path}: cannot be read ({error})") from None
        number, check = stored[:8], stored[8:]
        if check == zlib.crc32(number).to_bytes(4, "big"):  # as it was before it had a version
            return int.from_bytes(number, "big")
        try:
            return int(lines.decode(self._path, stored, self._KIND, self._VERSION))
        except (Corrupt, ValueError):
            return 0

    def write(self, batches: int) -> None:
        """Note that so many batches are durable. Raises ``StorageError``."""
        try:
            if self._file < 0:
                self._file = os.open(self._path, os.O_WRONLY | os.O_CREAT | os.O_CLOEXEC, 0o644)
                self._look = Look(self._file)
            # Always as long as the last one, so that no rest of it stays behind.
            os.pwrite(self._file, lines.encode(self._KIND, self._VERSION, f"{batches:020}"), 0)
            deleted = self._look.found().links == 0
        except OSError as error:
            raise StorageError(f"{self._path}: cannot be written ({error})") from None
        if deleted:
            raise StorageError(f"{self._path}: was deleted while it was in use")

    def close(self) -> None:
        """Let go of the file. A second call does nothing."""
        if self._file >= 0:
            os.close(self._file)
            self._file = -1
