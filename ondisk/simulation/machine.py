"""DiskKV, with snapshots of a round length, so that a run can be repeated; and all that one holds."""

from __future__ import annotations

import threading
from collections.abc import Callable

from ondisk.diskkv import MAX_SCAN_ITEMS, DiskKV, Scan
from ondisk.snapshot import stream
from ondisk.statemachine import SnapshotReader, SnapshotView, SnapshotWriter
from ondisk.storage import filestream

_ROUND_BYTES = 64 << 10


def content(lookup: Callable[[Scan], list[tuple[bytes, bytes]]]) -> dict[bytes, bytes]:
    """Everything that a ``DiskKV`` holds, asked page by page."""
    found: dict[bytes, bytes] = {}
    start = b""
    while page := lookup(Scan(start=start, limit=MAX_SCAN_ITEMS)):
        found.update(page)
        start = page[-1][0] + b"\0"
    return found


class _UnpaddedReader:
    """Hands over what comes before the padding."""

    def __init__(self, reader: SnapshotReader) -> None:
        self._reader = reader
        self._ended = False

    def read(self, size: int) -> bytes:
        if self._ended:
            return b""
        data = self._reader.read(size)
        if data == filestream.END:
            self._ended = True
            while self._reader.read(1 << 16):
                pass
        return data


class PaddedKV(DiskKV):
    """Pads its streams: some bytes of what RocksDB writes differ in number from run to run."""

    def save_snapshot(self, view: SnapshotView, writer: SnapshotWriter, stopped: threading.Event) -> None:
        """Write the view, and zeros."""
        assert isinstance(writer, stream.Writer)
        super().save_snapshot(view, writer, stopped)
        writer.write(bytes(-writer.bytes % _ROUND_BYTES))

    def recover_from_snapshot(self, reader: SnapshotReader, stopped: threading.Event) -> int:
        """Read up to the zeros."""
        return super().recover_from_snapshot(_UnpaddedReader(reader), stopped)
