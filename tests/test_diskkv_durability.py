"""DiskKV's index and data: one write, one moment, whatever fails."""

from __future__ import annotations

import os
import random
import shutil
import tempfile
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgspec
import psutil
import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule

from ondisk.diskkv import (
    MAX_SCAN_ITEMS,
    DiskKV,
    delete,
    get,
    incr,
    put,
    scan,
)
from ondisk.errors import Corrupt, DirectoryInUse, StorageError, StoreClosed
from ondisk.statemachine import Entry, Result
from ondisk.storage import rocksdb
from ondisk.storage.powercut import copy_files
from ondisk.storage.store import Store
from tests.kvcommands import INT64_MAX, INT64_MIN, commands, malformed
from tests.machines import apply, everything, opened
from tests.stores import FullDisk, copy_live, flip, largest_table, newest_wal, record_starts

# The index and the data


def test_indexes_may_have_gaps_but_never_go_back(kv: DiskKV) -> None:
    """An old or repeated index is refused before anything of its batch is applied."""
    assert kv.update([Entry(3, put("a", "1")), Entry(10, put("b", "2"))]) == [Result(), Result()]
    for indexes in ([10], [9], [0], [11, 11], [12, 11]):
        with pytest.raises(StorageError, match="was handed over after"):
            kv.update([Entry(index, put("a", "wrong")) for index in indexes])
        assert kv.lookup(get("a")) == b"1"
    assert kv.update([]) == []
    assert kv.update([Entry(2**63, put("c", "3"))]) == [Result()]
    kv.close()
    assert kv.open() == 2**63
    assert everything(kv) == {b"a": b"1", b"b": b"2", b"c": b"3"}


def test_an_update_is_one_write(kv: DiskKV, monkeypatch: pytest.MonkeyPatch) -> None:
    """Data and index of a batch go to RocksDB in a single ``WriteBatch``."""
    sizes: list[int] = []
    write = Store.write
    monkeypatch.setattr(Store, "write", lambda self, batch: sizes.append(len(batch)) or write(self, batch))
    apply(kv, put("a", "1"), put("b", "2"), delete("a"), b"junk")
    apply(kv, b"junk")
    assert sizes == [6, 1]  # with the history, and the first one says the format, too


class KVAgainstDict(RuleBasedStateMachine):
    """A ``DiskKV`` does what a dictionary with a saved copy would do, through power cuts."""

    def __init__(self) -> None:
        super().__init__()
        self.directory = Path(tempfile.mkdtemp(prefix="ondisk-test-"))
        self.machine = DiskKV(self.directory / "kv")
        self.now: tuple[int, dict[bytes, bytes]] = (0, {})
        self.saved = self.now
        self.open()

    def teardown(self) -> None:
        self.machine.close()
        shutil.rmtree(self.directory)

    def open(self) -> None:
        assert self.machine.open() == self.now[0]

    @rule(batch=st.lists(st.tuples(st.integers(1, 3), commands | malformed), max_size=6))
    def update(self, batch: list[tuple[int, bytes]]) -> None:
        index, state = self.now[0], dict(self.now[1])
        entries, results = [], []
        for step, command in batch:
            index += step
            entries.append(Entry(index, command))
            results.append(model(state, command))
        for result, wanted in zip(self.machine.update(entries), results, strict=True):
            assert (result.error is not None) if wanted is None else (result == Result(wanted[0]))
        self.now = index, state

    @rule()
    def sync(self) -> None:
        self.machine.sync()
        self.saved = self.now

    @rule()
    def close(self) -> None:
        self.machine.close()
        self.saved = self.now
        self.open()

    @rule()
    def crash(self) -> None:
        self.machine.crash()
        self.now = self.saved
        self.open()

    @invariant()
    def same(self) -> None:
        assert everything(self.machine) == self.now[1]


def model(state: dict[bytes, bytes], command: bytes) -> tuple[Any] | None:
    """The value of a command's result in a tuple, ``None`` for an error. Written for itself."""
    try:
        tag, *parts = msgspec.msgpack.decode(command)
    except (msgspec.DecodeError, UnicodeDecodeError, TypeError, ValueError):
        return None
    key = parts[0] if parts else None
    if tag == "put_many" and len(parts) == 1 and isinstance(key, dict):
        if not all(isinstance(each, bytes) for pair in key.items() for each in pair):
            return None
        state.update(key)
        return (None,)
    if not isinstance(key, bytes):
        return None
    if tag == "put" and len(parts) == 2 and isinstance(parts[1], bytes):
        state[key] = parts[1]
        return (None,)
    if tag == "delete" and len(parts) == 1:
        return (state.pop(key, None) is not None,)
    if tag == "cas" and len(parts) == 3 and isinstance(parts[2], bytes):
        if not (parts[1] is None or isinstance(parts[1], bytes)):
            return None
        if state.get(key) != parts[1]:
            return (False,)
        state[key] = parts[2]
        return (True,)
    if tag == "incr" and len(parts) == 2 and type(parts[1]) is int:
        old = state.get(key, b"0")
        digits = old[1:] if old[:1] in (b"+", b"-") else old
        if not digits.isdigit() or not INT64_MIN <= int(old) + parts[1] <= INT64_MAX:
            return None
        state[key] = str(int(old) + parts[1]).encode()
        return (int(old) + parts[1],)
    return None


KVAgainstDict.TestCase.settings = settings(
    max_examples=12, stateful_step_count=15, deadline=None, derandomize=True, database=None
)


TestKVAgainstDict = KVAgainstDict.TestCase


def test_an_update_is_lost_by_a_power_cut_unless_it_was_synced(tmp_path: Path) -> None:
    """``sync`` and ``sync_every_update`` keep what was applied; else it may go, index and all."""
    for every in (False, True):
        machine = DiskKV(tmp_path / str(every), sync_every_update=every)
        machine.open()
        apply(machine, put("a", "1"))
        machine.sync()
        apply(machine, put("b", "2"))
        machine.crash()
        kept = machine.open()
        assert (kept, everything(machine)) == ((2, {b"a": b"1", b"b": b"2"}) if every else (1, {b"a": b"1"}))
        machine.close()


def number_store(path: Path, count: int, size: int) -> DiskKV:
    """A machine whose batch ``i`` overwrites, counts, and adds a key, so that a mixture shows."""
    machine = opened(path)
    for number in range(1, count + 1):
        machine.update(
            [
                Entry(2 * number - 1, put(b"key %06d" % number, bytes(size))),
                Entry(2 * number, incr("count")),
            ]
        )
    return machine


def check_numbers(path: Path) -> int:
    """How many batches are held. Fails if index, counter and keys are not of the same moment."""
    machine = DiskKV(path)
    try:
        index = machine.open()
        count = int(machine.lookup(get("count")) or 0)
        keys = machine.lookup(scan("key ", limit=MAX_SCAN_ITEMS))
        assert index == 2 * count
        assert [key for key, _ in keys] == [b"key %06d" % number for number in range(1, count + 1)]
        return count
    finally:
        machine.close()


def test_a_torn_tail_leaves_an_older_whole_state(tmp_path: Path) -> None:
    """A write-ahead log that ends at any byte gives the state after some batch, index included."""
    machine = number_store(tmp_path / "kv", 10, 50)
    copy = copy_live(tmp_path / "kv", tmp_path / "copy")
    machine.close()
    wal = newest_wal(copy)
    length, starts = wal.stat().st_size, record_starts(wal)
    for cut in sorted({*range(0, length, 53), *(start + 7 for start in starts), length}):
        torn = copy_live(copy, tmp_path / "torn")
        os.truncate(newest_wal(torn), cut)
        assert check_numbers(torn) == sum(cut >= end for end in [*starts[1:], length]), cut


def test_a_power_cut_at_any_moment_leaves_an_older_whole_state(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also when RocksDB has moved a part to tables: nothing synced is lost, nothing is mixed."""
    monkeypatch.setattr(rocksdb, "WRITE_BUFFER_BYTES", 64 << 10)
    for batches in (40, 75, 130):
        path = tmp_path / str(batches)
        machine = number_store(path, batches, 2000)
        machine.sync()
        for number in range(batches + 1, batches + 60):
            machine.update(
                [
                    Entry(2 * number - 1, put(b"key %06d" % number, bytes(2000))),
                    Entry(2 * number, incr("count")),
                ]
            )
        assert any(path.rglob("*.sst"))
        machine.crash()
        assert batches <= check_numbers(path) < batches + 60


def test_without_any_write_ahead_log_the_state_is_old_but_whole(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Emptied logs cost the newest updates; what the tables hold still fits its index."""
    monkeypatch.setattr(rocksdb, "WRITE_BUFFER_BYTES", 64 << 10)
    machine = number_store(tmp_path / "kv", 100, 2000)
    store = machine._store
    assert store is not None
    copy = tmp_path / "copy" / store.path.name
    copy.parent.mkdir()
    while not copy_files(store.path, copy):
        pass  # tables are being written meanwhile
    machine.close()
    shutil.copy(tmp_path / "kv" / "current", tmp_path / "copy")
    for wal in copy.glob("*.log"):
        os.truncate(wal, 0)
    assert 0 < check_numbers(tmp_path / "copy") < 100


@pytest.mark.parametrize(
    "damage",
    [
        lambda path: newest_wal(path).unlink(),
        lambda path: largest_table(path).unlink(),
        lambda path: flip(largest_table(path), 100, 2),
        lambda path: flip(newest_wal(path), 30, 0),
        lambda path: flip(newest_wal(path), record_starts(newest_wal(path))[4] + 6, 2),
        lambda path: next(path.rglob("CURRENT")).unlink(),
        lambda path: next(path.rglob("MANIFEST-*")).unlink(),
    ],
    ids=[
        "no WAL", "no table", "bit in table", "bit in WAL", "type in WAL", "no CURRENT",
        "no MANIFEST",
    ],
)  # fmt: skip
def test_damage_is_reported_and_not_served(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, damage: Callable[[Path], object]
) -> None:
    """Opening or looking up a damaged state raises an error with its place."""
    number_store(tmp_path / "kv", 30, 50).close()
    machine = opened(tmp_path / "kv")
    for _ in range(10):
        apply(machine, put("more", "data"))
    copy = copy_live(tmp_path / "kv", tmp_path / "copy")
    machine.close()
    monkeypatch.setattr(rocksdb, "shared_cache", [])  # it still knows the tables as they were
    damage(copy)
    with pytest.raises(StorageError, match="copy"):
        check_numbers(copy)


def test_a_damaged_table_stops_lookups_and_updates_with_corrupt(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Neither get, scan nor a command that reads answers from a damaged block."""
    number_store(tmp_path / "kv", 30, 50).close()
    flip(largest_table(tmp_path / "kv"), 100, 2)
    monkeypatch.setattr(rocksdb, "shared_cache", [])
    machine = opened(tmp_path / "kv")
    for call in (
        lambda: machine.lookup(get("key 000007")),
        lambda: machine.lookup(scan()),
        lambda: apply(machine, incr("key 000007")),
    ):
        with pytest.raises(Corrupt, match="kv"):
            call()
    machine.close()


# A disk that fails


@pytest.mark.parametrize("every", [False, True])
def test_a_full_disk_is_a_typed_error_and_nothing_synced_is_lost(tmp_path: Path, every: bool) -> None:
    """Update or sync raises ``StorageError`` with the reason; opening goes on from before."""
    disk = FullDisk()
    machine = DiskKV(tmp_path / "kv", sync_every_update=every, disk=disk)
    machine.open()
    apply(machine, put("a", "1"))
    machine.sync()
    disk.full = True
    with pytest.raises(StorageError, match=r"kv/db-000001: the disk refused .*No space left"):
        apply(machine, put("b", "2"))
        machine.sync()
    disk.full = False
    machine.crash()
    assert machine.open() == 1
    assert everything(machine) == {b"a": b"1"}
    apply(machine, put("b", "3"))
    machine.close()


# Life


def test_calls_before_open_and_after_close_are_clear_errors(tmp_path: Path) -> None:
    """Before ``open`` and after ``close`` every call says so, and it can be opened again."""
    machine = DiskKV(tmp_path / "kv")
    machine.close()
    machine.crash()
    calls: list[Callable[[], object]] = [
        lambda: machine.lookup(get("k")),
        lambda: machine.lookup(scan()),
        lambda: apply(machine, put("k", "v")),
        lambda: apply(machine, incr("k")),
        machine.sync,
    ]
    for call in calls:
        with pytest.raises(StorageError, match="open"):
            call()
    assert machine.open() == 0
    for end in (machine.close, machine.crash, machine.close):
        end()
        for call in calls:
            with pytest.raises(StoreClosed):
                call()
    assert machine.open() == 0
    apply(machine, put("k", "v"))
    with pytest.raises(DirectoryInUse, match="this process"):
        DiskKV(tmp_path / "kv").open()
    machine.close()
    machine.close()
    machine = DiskKV(str(tmp_path / "kv"))
    assert machine.open() == 1
    machine.close()


def test_no_file_stays_open(tmp_path: Path) -> None:
    """Opening, scanning and ending leaves no file descriptor behind, and no directory."""

    def lives() -> None:
        for end in ("close", "crash"):
            machine = opened(tmp_path / "kv")
            apply(machine, put("k", "v"))
            assert machine.lookup(scan(limit=1)) == [(b"k", b"v")]
            machine.sync()
            getattr(machine, end)()

    lives()
    before = psutil.Process().num_fds()
    for _ in range(3):
        lives()
    assert psutil.Process().num_fds() == before
    assert os.listdir(tmp_path) == ["kv"]


def test_lookups_beside_updates_see_whole_batches(kv: DiskKV) -> None:
    """A scan shows one moment: all keys of a batch or none, and never an older one than before."""
    size = 20
    stop = threading.Event()
    started = threading.Barrier(5)
    wrong: list[object] = []

    def look() -> None:
        last = 0
        try:
            started.wait()
            while not stop.is_set():
                values = {value for _, value in kv.lookup(scan("k"))}
                assert len(values) <= 1, values
                now = int(values.pop()) if values else 0
                assert now >= last
                last = now
                assert int(kv.lookup(get("k7")) or 0) >= last
        except BaseException as error:
            wrong.append(error)

    threads = [threading.Thread(target=look) for _ in range(4)]
    for thread in threads:
        thread.start()
    started.wait()
    order = [b"k%d" % number for number in range(size)]
    for number in range(1, 400):
        random.Random(number).shuffle(order)
        apply(kv, *(put(key, b"%d" % number) for key in order))
        if number % 100 == 0:
            kv.sync()
    stop.set()
    for thread in threads:
        thread.join(10)
    assert wrong == []


@pytest.mark.parametrize("end", ["close", "crash"])
def test_lookups_beside_the_end_are_answered_or_refused(tmp_path: Path, end: str) -> None:
    """Lookups that race with the end are right or ``StoreClosed``, and it opens again at once."""
    machine = DiskKV(tmp_path / "kv")
    machine.open()
    apply(machine, *(put(b"%03d" % number, "v") for number in range(300)))
    machine.sync()
    for _ in range(4):
        running = threading.Barrier(5)
        wrong: list[object] = []

        def look(running: threading.Barrier, wrong: list[object]) -> None:
            try:
                running.wait()
                while True:
                    assert machine.lookup(get("007")) == b"v"
                    assert len(machine.lookup(scan(limit=1000))) == 300
            except StoreClosed:
                pass
            except BaseException as error:
                wrong.append(error)

        threads = [threading.Thread(target=look, args=(running, wrong)) for _ in range(4)]
        for thread in threads:
            thread.start()
        running.wait()
        getattr(machine, end)()
        again = opened(tmp_path / "kv")
        assert again.lookup(get("299")) == b"v"
        again.close()
        for thread in threads:
            thread.join(10)
        assert wrong == []
        machine.open()
    machine.close()
