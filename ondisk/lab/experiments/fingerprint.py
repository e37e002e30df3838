"""A snapshot that is written to nowhere: how long it is, and a fingerprint of all its bytes."""

from __future__ import annotations

import hashlib
import threading
from dataclasses import dataclass

from ondisk.diskkv import DiskKV, DiskKVView


@dataclass(frozen=True)
class Saved:
    """A snapshot that was written: of which entry, how long, and a fingerprint of all its bytes."""

    index: int
    bytes: int
    sha256: str

    def __str__(self) -> str:
        return f"after entry {self.index:,}: {self.bytes:,} bytes, sha256 {self.sha256[:12]}…"


class _Fingerprint:
    """Takes a snapshot and keeps only what identifies it."""

    def __init__(self) -> None:
        self.bytes = 0
        self._hash = hashlib.sha256()

    def write(self, data: bytes) -> None:
        self.bytes += len(data)
        self._hash.update(data)

    def saved(self, index: int) -> Saved:
        return Saved(index, self.bytes, self._hash.hexdigest())


def save(machine: DiskKV, view: DiskKVView) -> Saved:
    writer = _Fingerprint()
    machine.save_snapshot(view, writer, threading.Event())
    return writer.saved(view.index)
