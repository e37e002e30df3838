"""DiskKV, opened and asked, for the tests that use it directly."""

from __future__ import annotations

from pathlib import Path

from ondisk.diskkv import MAX_SCAN_ITEMS, DiskKV, scan
from ondisk.statemachine import Entry, Result
from ondisk.storage.disk import Disk


def opened(path: Path, disk: Disk | None = None) -> DiskKV:
    machine = DiskKV(path, disk=disk)
    machine.open()
    return machine


def apply(machine: DiskKV, *commands: bytes) -> list[Result]:
    """Apply commands as one batch after whatever was applied last."""
    first = machine._applied + 1
    return machine.update([Entry(index, command) for index, command in enumerate(commands, first)])


def everything(machine: DiskKV) -> dict[bytes, bytes]:
    return dict(machine.lookup(scan(limit=MAX_SCAN_ITEMS)))
