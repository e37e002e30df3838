"""DiskKV's snapshots on disks that fail, and with lookups meanwhile."""

from __future__ import annotations

import errno
import os
import random
import shutil
import subprocess
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from ondisk.diskkv import MAX_SCAN_ITEMS, DiskKV, get, incr, put, scan
from ondisk.errors import StorageError, StoreClosed
from ondisk.storage.disk import Disk
from ondisk.storage.store import Store
from tests.kvsnapshots import (
    BEFORE,
    ROOT,
    Pieces,
    filled,
    large,
    numbers,
    parse,
    recover,
    save,
    small,
    still_works,
    unchanged,
)
from tests.lengths import LONG
from tests.machines import apply, everything, opened
from tests.stores import FullDisk

__all__ = ["large", "small"]  # fixtures


# Disks that fail


class FailingSync(Disk):
    """The so-manieth sync fails, once."""

    def __init__(self) -> None:
        self.left = -1

    def sync(self, flush: Callable[[], None]) -> None:
        self.left -= 1
        if self.left == 0:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        flush()


def test_a_disk_that_fails_at_any_sync_leaves_one_whole_state(tmp_path: Path, small: Pieces) -> None:
    """The old state stays, or, if the pointer may be the new one, the machine ends itself."""
    disk = FailingSync()
    machine = filled(tmp_path / "kv", BEFORE, last=900, disk=disk)
    ended = 0
    for number in range(1, 100):
        disk.left = number
        try:
            recover(machine, small.whole)
            break
        except StorageError as error:
            assert type(error) is StorageError and "No space left" in str(error)
        disk.left = -1
        try:
            assert (everything(machine), machine._applied) == (BEFORE, 900)
        except StoreClosed:
            ended += 1
            assert disk.left < 0
            with pytest.raises(StoreClosed):
                recover(machine, small.whole)
            assert (machine.open(), everything(machine)) == (500, numbers(20))
            machine.close()
            shutil.rmtree(tmp_path / "kv")
            machine = filled(tmp_path / "kv", BEFORE, last=900, disk=disk)
        assert sorted(name for name in os.listdir(tmp_path / "kv") if name != "current.new") == [
            "current", "db-000001", "owner"
        ]  # fmt: skip
    assert number == len(parse(small.whole)) + 1 + 2 + 1  # files, directory, pointer and its directory
    assert ended == 1
    assert (everything(machine), machine._applied) == (numbers(20), 500)
    machine.close()


def test_a_creation_whose_disk_fails_can_be_tried_again(tmp_path: Path) -> None:
    """At any sync, and while somebody keeps the error: nothing stays locked, and it begins as new."""
    disk = FailingSync()
    machine = DiskKV(tmp_path / "kv", disk=disk)
    kept = []
    for number in range(1, 100):
        disk.left = number
        try:
            machine.open()
            break
        except StorageError as error:
            kept.append(error)
    assert len(kept) == number - 1 == 2  # the pointer, and the directory that it stands in
    apply(machine, put("k", "v"))
    machine.close()
    assert machine.open() == 1
    machine.close()


def test_a_power_cut_while_a_view_is_prepared_leaves_data_and_index_of_one_moment(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The data become tables before the index does, which must not be lost in between."""
    machine = filled(tmp_path / "kv", BEFORE)
    machine.sync()
    apply(machine, put("mine", "newer"), incr("count"))

    class NoRoom:
        def __init__(self, _: object) -> None: ...

        def create_checkpoint(self, path: str) -> None:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr("ondisk.storage.store.Checkpoint", NoRoom)
    with pytest.raises(StorageError, match=r"the disk refused .*No space left"):
        machine.prepare_snapshot()
    machine.crash()
    assert machine.open() == 4
    assert everything(machine) == BEFORE | {b"mine": b"newer", b"count": b"1"}
    machine.close()


def test_a_full_disk_keeps_the_old_state_and_the_next_try_works(tmp_path: Path, large: Pieces) -> None:
    """The recovery fails as a typed error, and works when there is room."""
    disk = FullDisk()
    machine = filled(tmp_path / "kv", BEFORE, last=900, disk=disk)
    with unchanged(machine, tmp_path / "kv"):
        disk.full = True
        with pytest.raises(StorageError, match=r"db-000002/.*: the disk refused .*No space left"):
            recover(machine, large.whole)
        disk.full = False
    still_works(machine, large)
    machine.close()


REALLY_FULL = """
import resource, signal, sys, threading, os
from ondisk.diskkv import DiskKV, get, put
from ondisk.errors import Corrupt, StorageError
from ondisk.statemachine import Entry

signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
everything = resource.RLIM_INFINITY
machine = DiskKV(sys.argv[1])
machine.open()
machine.update([Entry(1, put("k", "v"))])
resource.setrlimit(resource.RLIMIT_FSIZE, (300_000, everything))  # no file may become larger
for _ in range(2):
    try:
        with open(sys.argv[2], "rb") as stream:
            machine.recover_from_snapshot(stream, threading.Event())
        sys.exit("there was room")
    except StorageError as error:
        assert "db-000002" in str(error) and not isinstance(error, Corrupt), error
    assert machine.lookup(get("k")) == b"v"
    assert sorted(os.listdir(sys.argv[1])) == ["current", "db-000001", "owner"]
resource.setrlimit(resource.RLIMIT_FSIZE, (everything, everything))
with open(sys.argv[2], "rb") as stream:
    assert machine.recover_from_snapshot(stream, threading.Event()) == 5000
machine.close()
"""


def test_a_write_that_the_kernel_refuses_keeps_the_old_state(tmp_path: Path, large: Pieces) -> None:
    """A real write error in the middle of a table, and a try afterwards that works."""
    (tmp_path / "stream").write_bytes(large.whole)
    command = [sys.executable, "-c", REALLY_FULL, str(tmp_path / "kv"), str(tmp_path / "stream")]
    subprocess.run(command, check=True, timeout=60, cwd=ROOT)


# Lookups meanwhile


def test_a_lookup_whose_database_was_replaced_asks_the_new_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, small: Pieces
) -> None:
    """The swap comes just between taking the database and asking it: the answer is the new state's."""
    for query, asked, wanted in (
        (get(b"000007"), "get", numbers(20)[b"000007"]),
        (scan(limit=1), "iterate", [*numbers(20).items()][:1]),
    ):
        machine = filled(tmp_path / f"{type(query)}", BEFORE)
        ask = getattr(Store, asked)

        def late(
            store: Store, *key: bytes, machine: DiskKV = machine, ask: Any = ask, asked: str = asked
        ) -> Any:
            monkeypatch.setattr(Store, asked, ask)
            recover(machine, small.whole)
            return ask(store, *key)

        monkeypatch.setattr(Store, asked, late)
        assert machine.lookup(query) == wanted
        machine.close()


def answers_while_it_recovers(machine: DiskKV, streams: list[bytes], rounds: int, step: int) -> int:
    """Look up in threads while snapshots replace each other, and return the number of answers.

    In the state of stream ``n`` the value of every key begins with ``n`` as one byte.
    """
    done = threading.Event()
    started = threading.Barrier(5)
    counts: list[int] = []
    wrong: list[object] = []
    keys = everything(machine)

    def look(seed: int) -> None:
        chance, count = random.Random(seed), 0
        started.wait()
        try:
            while not done.is_set():
                value = machine.lookup(get(b"%08d" % (chance.randrange(len(keys)) * step)))
                assert value[0] < len(streams), value[:1]
                start = b"%08d" % (chance.randrange(len(keys)) * step)
                pairs = machine.lookup(scan(start=start, limit=200))
                assert pairs and len({value[0] for _, value in pairs}) == 1, "a mixture"
                count += 1
        except BaseException as error:
            wrong.append(error)
        counts.append(count)

    threads = [threading.Thread(target=look, args=(seed,)) for seed in range(4)]
    for thread in threads:
        thread.start()
    started.wait()
    for round_ in range(rounds):
        number = round_ % len(streams)
        recover(machine, streams[number])
        assert machine.lookup(get(b"%08d" % 0))[0] == number
    done.set()
    for thread in threads:
        thread.join(30)
    assert wrong == []
    return sum(counts)


@pytest.mark.parametrize(("count", "rounds"), [(5_000, 8), pytest.param(1_000_000, 4, marks=LONG)])
def test_lookups_during_recoveries_never_fail_and_never_mix_states(
    tmp_path: Path, count: int, rounds: int
) -> None:
    """Gets and scans in a loop, while one state replaces the other again and again."""
    streams = []
    rest = random.Random(7).randbytes(127)
    for number in range(2):
        machine = opened(tmp_path / "kv")
        for start in range(0, count, 5000):
            apply(
                machine, *(put(b"%08d" % key, bytes([number]) + rest) for key in range(start, start + 5000))
            )
        streams.append(save(machine).whole)
        if number == 0:
            machine.close()
            shutil.rmtree(tmp_path / "kv")
    assert answers_while_it_recovers(machine, streams, rounds, max(1, count // MAX_SCAN_ITEMS)) > 10
    machine.close()
