"""What a child process does with a machine, other than to crash at a point (``crashes``)."""

from __future__ import annotations

import sys
import threading
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from ondisk.statemachine import Entry
from ondisk.testing.crashing import CrashingDisk
from ondisk.testing.harness import Sample, sample_entries
from ondisk.testing.lookers import DEADLINE, Lookers


def apply_all(disk: CrashingDisk, cls: type[Sample], path: Path, entries: Sequence[Entry] = ()) -> Any:
    sample = cls()
    machine = sample.make(path, disk)
    machine.open()
    disk.note = machine.update(entries or sample_entries(sample))
    return sample.state(machine)


def apply_and_never_close(disk: CrashingDisk, cls: type[Sample], path: Path) -> None:
    sample = cls()
    machine = sample.make(path, disk)
    machine.open()
    machine.update(sample_entries(sample, 1, 10))
    machine.prepare_snapshot()
    machine.update(sample_entries(sample, 11))
    machine.sync()
    looks = Lookers()
    looks.begin(lambda: sample.state(machine))


def look_while_closing(disk: CrashingDisk, cls: type[Sample], path: Path) -> list[Any]:
    """Close beside lookups; return what they saw, each state once."""
    sample = cls()
    machine = sample.make(path, disk)
    machine.open()
    machine.update(sample_entries(sample))
    seen: list[Any] = []
    closed = threading.Event()
    looked = threading.Semaphore(0)

    def look() -> None:
        while True:
            last = closed.is_set()
            try:
                state = sample.state(machine)
            except Exception:
                return
            if state not in seen:
                seen.append(state)
            looked.release()
            if last:
                return

    sys.setswitchinterval(1e-5)
    threads = [threading.Thread(target=look, daemon=True) for _ in range(3)]
    for thread in threads:
        thread.start()
    for _ in range(20):
        assert looked.acquire(timeout=DEADLINE), "lookup() does not return"
    machine.close()
    closed.set()
    for thread in threads:
        thread.join(DEADLINE)
        assert not thread.is_alive(), "lookup() beside close() does not return"
    return seen
