"""A write-ahead log that ends at any byte: the state is that after some batch, and the index says which.

A power cut keeps what was synced and any part of what was not. So for *every* length of the log, the
database is opened with the log cut there, and must hold what the whole batches before the cut had made.
"""

from __future__ import annotations

import multiprocessing
import os
import random
import shutil
import tempfile
from collections.abc import Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

import pytest

from ondisk import diskkv
from ondisk.diskkv import _APPLIED_INDEX, MAX_SCAN_ITEMS, DiskKV, compare_and_set, delete, incr, put, scan
from ondisk.statemachine import Entry, Result
from ondisk.verbs.changes import Recording
from ondisk.verbs.pending import Pending
from tests.lengths import short_and_long
from tests.stores import newest_wal, record_starts

PROCESSES = 2

State = tuple[int, dict[bytes, bytes]]


class TwoBatches(DiskKV):
    """What not to do: the data in one batch, and the index in the next."""

    def update(self, entries: Sequence[Entry]) -> list[Result]:
        store = self._open_store
        pending = Pending(store, Recording(self._history), self.leases_type(self._leases))
        results = [diskkv._apply(entry.command, entry.index, pending) for entry in entries]
        data, index = store.batch(), store.batch()
        for key, value in pending.data.items():
            if value is None:
                data.delete(key)
            else:
                data.put(key, value)
        store.put_meta(index, _APPLIED_INDEX, entries[-1].index.to_bytes(8, "big"))
        store.write(data)
        store.write(index)
        return results


@pytest.fixture
def place(tmp_path: Path) -> Iterator[Path]:
    """A directory in memory where there is one, for thousands of databases are opened in it."""
    memory = Path("/dev/shm")
    if not os.access(memory, os.W_OK):
        yield tmp_path
        return
    with tempfile.TemporaryDirectory(dir=memory) as directory:
        yield Path(directory)


def random_batch(chance: random.Random, index: int) -> list[Entry]:
    """One to three commands of all kinds on few keys, with a gap before some of them."""
    entries = []
    for _ in range(chance.choice((1, 1, 2, 3))):
        index += chance.choice((1, 1, 1, 4))
        key = chance.choice((b"a", b"b", b"c"))
        number = b"%d" % chance.randrange(3)
        commands = (
            incr("n"),
            incr("n", 7),
            put(key, number),
            delete(key),
            compare_and_set(key, number, "1"),
            compare_and_set(key, None, "0"),
            incr(key),
            b"malformed",
        )
        entries.append(Entry(index, chance.choice(commands)))
    return entries


def present(machine: DiskKV, index: int) -> State:
    return index, dict(machine.lookup(scan(limit=MAX_SCAN_ITEMS)))


def make(machine: DiskKV, batches: int) -> list[State]:
    """Apply batches to a new machine; return the state before the first and after each of them."""
    chance = random.Random(42)
    states = [present(machine, machine.open())]
    for _ in range(batches):
        entries = random_batch(chance, states[-1][0])
        machine.update(entries)
        states.append(present(machine, entries[-1].index))
    return states


def opened_with_log_cut(killed: Path, place: Path, lengths: Sequence[int]) -> dict[int, State]:
    """What a machine holds that a process left behind in ``killed``, for each length of its log."""
    found = {}
    torn = place / f"torn-{os.getpid()}"
    for length in lengths:
        shutil.copytree(killed, torn)
        os.truncate(newest_wal(torn), length)
        machine = DiskKV(torn)
        found[length] = present(machine, machine.open())
        machine.close()
        shutil.rmtree(torn)
    return found


def at_every_byte(
    machine: DiskKV, path: Path, batches: int
) -> tuple[list[State], list[int], dict[int, State]]:
    """The states after each batch, where each record ends, and what was found for each length of the log."""
    states = make(machine, batches)
    killed = Path(shutil.copytree(path, path.with_name("killed")))  # as a killed process leaves it
    machine.close()
    wal = newest_wal(killed)
    size = wal.stat().st_size
    ends = [*record_starts(wal), size]
    shares = [range(first, size + 1, PROCESSES) for first in range(PROCESSES)]
    found: dict[int, State] = {}
    # Not forked: RocksDB has threads.
    with ProcessPoolExecutor(PROCESSES, multiprocessing.get_context("spawn")) as pool:
        count = len(shares)
        for share in pool.map(opened_with_log_cut, [killed] * count, [path.parent] * count, shares):
            found |= share
    assert set(found) == set(range(size + 1))
    return states, ends, found


@pytest.mark.parametrize("batches", short_and_long(10, 120))
def test_a_log_cut_at_every_byte_leaves_exactly_the_batches_before_the_cut(place: Path, batches: int) -> None:
    """Data *and* index are those after the last whole batch, at each of thousands of lengths."""
    states, ends, found = at_every_byte(DiskKV(place / "kv"), place / "kv", batches)
    assert len(ends) == batches + 1 and len({str(state) for _, state in states}) > batches / 3
    for length, state in found.items():
        whole = sum(end <= length for end in ends[1:])
        assert state == states[whole], f"cut at byte {length}"


def test_data_and_index_in_two_batches_are_caught_in_between(place: Path) -> None:
    """The same search finds the machine that would apply a batch twice, and where."""
    states, ends, found = at_every_byte(TwoBatches(place / "kv"), place / "kv", 6)
    mixed = {length for length, state in found.items() if state not in states}
    assert len(ends) == 2 * 6 + 1
    assert mixed, "no length shows it"
    between = {
        length for start, end in zip(ends[1::2], ends[2::2], strict=True) for length in range(start, end)
    }
    assert mixed <= between
