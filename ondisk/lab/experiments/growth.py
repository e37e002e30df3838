"""How large things are as the state grows: a log, the record of its compaction, a state, a snapshot, a dump.

``measure`` fills a log and a state machine of one replica, without Raft and without a network, and weighs
what is there. Everything is in a temporary directory that is gone afterwards.
"""

from __future__ import annotations

import gzip
import pickle
import random
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, NamedTuple

from ondisk.diskkv import DiskKV, put, scan
from ondisk.lab.experiments.directories import disk_use
from ondisk.lab.experiments.fingerprint import save
from ondisk.raft.log import RaftLog
from ondisk.raft.records import REGULAR, LogEntry
from ondisk.statemachine import Entry

_PAGE = 10_000  # pairs in one scan


class Sizes(NamedTuple):
    """What ``measure`` found when the state had so many keys. Bytes and seconds."""

    keys: int
    entries: int  # what the entries in the log hold: keys, values, and what encodes them
    state: int  # the state machine's directory
    snapshot: int  # what would travel to another replica
    dump: int  # the whole state pickled and compressed, as PySyncObj does it
    record: int  # the record of a compaction
    dump_seconds: float
    prepare_seconds: float  # to hold the state still
    record_seconds: float  # for a compaction with all of its steps
    log_before: int  # the log's directory
    log_after: int  # the same, right after the compaction


def measure(keys: int, value_bytes: int = 100) -> Sizes:
    """Put so many keys through a log into a state machine; weigh what is there; compact the log."""
    with TemporaryDirectory(prefix="ondisk-") as name:
        folder = Path(name)
        log, machine = RaftLog(folder / "log", members=(1, 2, 3)), DiskKV(folder / "state")
        try:
            machine.open()
            entries = _fill(log, machine, keys, value_bytes)
            state, log_before = disk_use(folder / "state"), disk_use(folder / "log")
            dump, dump_seconds = _dump(machine, folder / "dump")
            view, prepare_seconds = _timed(machine.prepare_snapshot)
            snapshot = save(machine, view).bytes
            view.close()

            def compact() -> int:
                machine.sync()  # what the log drops must be durable elsewhere
                log.compact(log.last_index)
                log.sync()
                return len(log.compaction_record())

            record, record_seconds = _timed(compact)
            log_after = disk_use(folder / "log")
        finally:
            machine.close()
            log.close()
    return Sizes(
        keys,
        entries,
        state,
        snapshot,
        dump,
        record,
        dump_seconds,
        prepare_seconds,
        record_seconds,
        log_before,
        log_after,
    )


def _fill(log: RaftLog, machine: DiskKV, keys: int, value_bytes: int, batch: int = 500) -> int:
    """Append, sync, apply, as a replica does; return how many bytes the entries hold."""
    values = random.Random(keys)  # bytes that no compression makes smaller
    log.set_hard_state(1, 1)
    size = 0
    for first in range(1, keys + 1, batch):
        commands = [
            Entry(index, put(f"key {index:09}", values.randbytes(value_bytes)))
            for index in range(first, min(first + batch, keys + 1))
        ]
        log.append([LogEntry(entry.index, 1, REGULAR + entry.command) for entry in commands])
        log.sync()
        machine.update(commands)
        if first // batch % 20 == 0:
            machine.sync()  # a replica does it every second
        size += sum(len(entry.command) for entry in commands)
    return size


def _dump(machine: DiskKV, file: Path) -> tuple[int, float]:
    """Write all pairs as PySyncObj's ``fullDumpFile`` does: pickled, through gzip (its ``serializer.py``).

    Only the writing is timed: PySyncObj has its state in memory anyway.
    """
    pairs = dict(_pairs(machine))

    def write() -> None:
        with gzip.open(file, "wb") as compressed:
            pickle.dump(pairs, compressed)

    _, seconds = _timed(write)
    return file.stat().st_size, seconds


def _pairs(machine: DiskKV) -> Iterator[tuple[bytes, bytes]]:
    start = b""
    while page := machine.lookup(scan(start=start, limit=_PAGE)):
        yield from page
        start = page[-1][0] + b"\0"


def _timed(work: Callable[[], Any]) -> tuple[Any, float]:
    began = time.perf_counter()
    result = work()
    return result, time.perf_counter() - began
