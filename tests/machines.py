"""DiskKV, opened and asked, for the tests that use it directly."""

from __future__ import annotations

import io
import threading
from pathlib import Path

from ondisk import diskkv, sessions
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


def stored_sessions(machine: DiskKV) -> dict[int, tuple[int, Result]]:
    """What the database holds of each session: sequence and result."""
    found = machine._open_store.meta_items(diskkv._SESSION)
    records = {key[len(diskkv._SESSION) :]: sessions._records.decode(record) for key, record in found}
    return {int.from_bytes(key, "big"): (record.sequence, record.result) for key, record in records.items()}


def saved(machine: DiskKV) -> bytes:
    """A snapshot, as bytes."""
    view, stream = machine.prepare_snapshot(), io.BytesIO()
    machine.save_snapshot(view, stream, threading.Event())  # type: ignore[arg-type]
    view.close()
    return stream.getvalue()


def recover(machine: DiskKV, snapshot: bytes) -> int:
    return machine.recover_from_snapshot(io.BytesIO(snapshot), threading.Event())
