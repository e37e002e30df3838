"""DiskKV's directory: leftovers, the pointer, its place, its owner."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import zlib
from collections.abc import Callable
from pathlib import Path

import psutil
import pytest

from ondisk.diskkv import MAX_SCAN_ITEMS, DiskKV, incr, scan
from ondisk.errors import Corrupt, DirectoryInUse, StorageError, StoreClosed
from ondisk.storage import rocksdb
from tests.kvsnapshots import (
    BEFORE,
    ROOT,
    NoWaiting,
    Pieces,
    compose,
    filled,
    large,
    numbers,
    parse,
    recover,
    save,
    small,
)
from tests.machines import apply, everything
from tests.stores import copy_live, flip, largest_table

__all__ = ["large", "small"]  # fixtures


def test_leftovers_are_removed_when_opening_and_nothing_else_is(tmp_path: Path) -> None:
    """Half-made databases, views and pointers go; what is not ours stays."""
    filled(tmp_path / "kv", BEFORE).close()
    for name in ("db-000002", "db-000003.power-cut", "view-000001", "view-000007.tmp", "db-1000000"):
        shutil.copytree(tmp_path / "kv" / "db-000001", tmp_path / "kv" / name)
    (tmp_path / "kv" / "current.new").write_text("db-0000")
    (tmp_path / "kv" / "notes.txt").write_text("mine")
    (tmp_path / "kv" / "db-backup").mkdir()
    machine = DiskKV(tmp_path / "kv")
    assert (machine.open(), everything(machine)) == (2, BEFORE)
    assert sorted(os.listdir(tmp_path / "kv")) == ["current", "db-000001", "db-backup", "notes.txt", "owner"]
    machine.close()


def test_a_power_cut_that_was_killed_halfway_is_not_taken_for_a_leftover(tmp_path: Path) -> None:
    """``Store.crash`` moves directories beside the live one; opening finishes it."""
    machine = filled(tmp_path / "kv", BEFORE)
    machine.close()
    live = tmp_path / "kv" / "db-000001"
    shutil.copytree(live, live.with_name("db-000001.before-power-cut"))
    live.rename(live.with_name("db-000001.power-cut"))
    assert (machine.open(), everything(machine)) == (2, BEFORE)
    assert sorted(os.listdir(tmp_path / "kv")) == ["current", "db-000001", "owner"]
    machine.close()


def test_a_damaged_pointer_is_reported_and_nothing_is_removed(tmp_path: Path) -> None:
    """Every bit of it, an empty one, and names of other places, with or without a right checksum."""
    machine = filled(tmp_path / "kv", BEFORE)
    machine.close()
    pointer = tmp_path / "kv" / "current"
    good = pointer.read_bytes()
    assert good == b"ondisk-current 1 db-000001 %08x\n" % zlib.crc32(b"ondisk-current 1 db-000001")
    damaged = [b"", b"\n", good[:-1], good + b"\n", good * 2, b"\xff" * 19, good.replace(b" ", b"  ")]
    for name in (b"..", b"/tmp", b"db-000001/../db-000001", b"view-000001", b"db-1", b"", b"db-000001\n"):
        for line in (name, b"ondisk-current 1 " + name):
            damaged.append(b"%s %08x\n" % (line, zlib.crc32(line)))
    for place in range(len(good)):
        for bit in range(8):
            damaged.append(good[:place] + bytes([good[place] ^ 1 << bit]) + good[place + 1 :])
    for content in damaged:
        pointer.write_bytes(content)
        with pytest.raises(Corrupt, match=r"kv/current: the pointer file is damaged"):
            machine.open()
        assert sorted(os.listdir(tmp_path / "kv")) == ["current", "db-000001", "owner"]
    pointer.write_bytes(good)
    assert (machine.open(), everything(machine)) == (2, BEFORE)
    machine.close()


@pytest.mark.parametrize("end", ["close", "kill"])
@pytest.mark.parametrize("form", ["db-000001", "db-000001.power-cut", "view-000004", "the directory itself"])
def test_a_missing_pointer_beside_data_is_reported_and_nothing_is_removed(
    tmp_path: Path, end: str, form: str
) -> None:
    """It never begins with nothing when something was there, in tables or in a write-ahead log."""
    machine = filled(tmp_path / "live", BEFORE)
    if end == "close":
        machine.close()
    copy_live(tmp_path / "live", tmp_path / "kv")
    machine.close()
    database = tmp_path / "kv" / "db-000001"
    (tmp_path / "kv" / "current").unlink()
    if form == "the directory itself":  # where an earlier version had it
        for file in database.iterdir():
            file.rename(tmp_path / "kv" / file.name)
        database.rmdir()
    else:
        database.rename(tmp_path / "kv" / form)
    files = sorted(tmp_path.joinpath("kv").rglob("*"))
    with pytest.raises(Corrupt, match=r"kv/current: the pointer file is missing"):
        DiskKV(tmp_path / "kv").open()
    assert sorted(tmp_path.joinpath("kv").rglob("*")) == files


@pytest.mark.parametrize("damage", [shutil.rmtree, lambda path: [file.unlink() for file in path.iterdir()]])
def test_a_live_database_that_is_gone_is_reported(tmp_path: Path, damage: Callable[[Path], object]) -> None:
    """The pointer says that there was one: it is not created anew."""
    filled(tmp_path / "kv", BEFORE).close()
    damage(tmp_path / "kv" / "db-000001")
    for _ in range(2):
        with pytest.raises(Corrupt, match=r"db-000001: CURRENT is missing"):
            DiskKV(tmp_path / "kv").open()


def test_a_moved_directory_opens(tmp_path: Path, small: Pieces) -> None:
    """The pointer holds a name, not a place; the database that it names may be any."""
    machine = filled(tmp_path / "here" / "kv", BEFORE)
    recover(machine, small.whole)
    machine.close()
    (tmp_path / "here").rename(tmp_path / "there")
    machine = DiskKV(tmp_path / "there" / "kv")
    assert (machine.open(), everything(machine)) == (500, numbers(20))
    machine.close()


def test_the_working_directory_may_change(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, small: Pieces
) -> None:
    """A relative path means one place for as long as the machine lives."""
    (tmp_path / "a").mkdir()
    (tmp_path / "b").mkdir()
    monkeypatch.chdir(tmp_path / "a")
    machine = filled(Path("kv"), BEFORE)
    monkeypatch.chdir(tmp_path / "b")
    view = machine.prepare_snapshot()
    recover(machine, small.whole)
    assert len(save(machine, view)) > 5
    view.close()
    machine.crash()
    assert (machine.open(), everything(machine)) == (500, numbers(20))
    machine.close()
    assert os.listdir(tmp_path / "b") == []
    assert sorted(os.listdir(tmp_path / "a" / "kv")) == ["current", "db-000002", "owner"]


def test_a_second_process_is_refused_and_takes_nothing_away(tmp_path: Path, small: Pieces) -> None:
    """What would be leftovers to it may be in use here: it must not clear up before it owns the place."""
    machine = filled(tmp_path / "kv", BEFORE)
    view = machine.prepare_snapshot()
    (tmp_path / "kv" / "db-000002").mkdir()
    program = "import sys; from ondisk.diskkv import DiskKV; DiskKV(sys.argv[1]).open()"
    ended = subprocess.run(
        [sys.executable, "-c", program, str(tmp_path / "kv")],
        capture_output=True, text=True, timeout=60, cwd=ROOT, check=False,
    )  # fmt: skip
    assert f"DirectoryInUse: {tmp_path}/kv is in use by process {os.getpid()}" in ended.stderr
    with pytest.raises(DirectoryInUse, match="this process"):
        DiskKV(tmp_path / "kv").open()
    assert sorted(os.listdir(tmp_path / "kv")) == [
        "current",
        "db-000001",
        "db-000002",
        "owner",
        "view-000001",
    ]
    assert len(save(machine, view)) > 5
    assert recover(machine, small.whole) == 500
    machine.close()


def test_a_bit_flipped_in_a_received_table_is_reported_when_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, large: Pieces
) -> None:
    """The tables that came by stream are checked like all others."""
    machine = filled(tmp_path / "kv", BEFORE)
    recover(machine, large.whole)
    machine.close()
    flip(largest_table(tmp_path / "kv"), 100, 2)
    monkeypatch.setattr(rocksdb, "shared_cache", [])  # it still knows the tables as they were
    machine.open()
    with pytest.raises(Corrupt, match=r"db-000002.*damaged"):
        machine.lookup(scan(limit=MAX_SCAN_ITEMS))
    machine.close()


def test_an_opening_that_failed_leaves_nothing_open(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A stored index that is damaged is reported each time, and not as a directory in use."""
    filled(tmp_path / "kv", BEFORE).close()
    metadata = max((tmp_path / "kv").rglob("*.sst"), key=lambda table: table.stat().st_size)
    stored = metadata.read_bytes()
    flip(metadata, 5, 0)
    monkeypatch.setattr(rocksdb, "shared_cache", [])  # it still knows the tables as they were
    machine = DiskKV(tmp_path / "kv")
    kept = []
    for _ in range(3):
        with pytest.raises(Corrupt, match=r"db-000001.*damaged") as raised:
            machine.open()
        kept.append(raised)
    metadata.write_bytes(stored)
    assert (machine.open(), everything(machine)) == (2, BEFORE)
    machine.close()


def test_calls_on_a_machine_that_is_not_open_are_clear_errors(tmp_path: Path, small: Pieces) -> None:
    """Before ``open`` and after ``close``, and no directory comes of it."""
    machine = DiskKV(tmp_path / "kv")
    for expected in (StorageError, StoreClosed, StoreClosed):
        for call in (machine.prepare_snapshot, lambda: recover(machine, small.whole)):
            with pytest.raises(expected, match=r"open|closed"):
                call()
        if expected is StorageError:
            assert not (tmp_path / "kv").exists()
            machine.open()
        machine.close()
        assert sorted(os.listdir(tmp_path / "kv")) == ["current", "db-000001", "owner"]


def test_nothing_stays_open_after_many_snapshots(tmp_path: Path, small: Pieces) -> None:
    """No file descriptor, no directory: after preparing, saving, recovering and failing, again and again."""

    def life(rounds: int) -> None:
        machine = DiskKV(tmp_path / "kv", disk=NoWaiting())
        machine.open()
        for _ in range(rounds):
            stream = save(machine).whole
            machine.prepare_snapshot()  # and forget it
            for damaged in (stream[:-1], stream[: len(stream) // 2], compose(2**60, parse(stream))):
                with pytest.raises(Corrupt):
                    recover(machine, damaged)
            recover(machine, stream)
            apply(machine, incr("count"))
        machine.close()

    life(1)  # RocksDB opens some files once per process
    before = psutil.Process().num_fds()
    life(50)
    assert psutil.Process().num_fds() == before
    assert len(os.listdir(tmp_path / "kv")) == 3
