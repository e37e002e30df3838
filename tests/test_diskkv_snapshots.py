"""DiskKV's snapshots: a view that stands still, and an atomic swap."""

from __future__ import annotations

import os
import shutil
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import psutil
import pytest

from ondisk.diskkv import DiskKV, delete, get, incr, put
from ondisk.errors import SnapshotStopped, StorageError, StoreClosed
from ondisk.statemachine import Entry
from ondisk.storage import generations, rocksdb
from ondisk.storage.filestream import PIECE_BYTES
from tests.kvcommands import ODD_KEYS
from tests.kvsnapshots import BEFORE, Pieces, filled, kv, large, numbers, parse, recover, save, small
from tests.machines import apply, everything, opened

__all__ = ["kv", "large", "small"]  # fixtures


# Views and saving


def test_a_view_is_unchanged_by_later_updates_and_compactions(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What was put, overwritten, removed, moved to tables or merged afterwards does not show."""
    monkeypatch.setattr(rocksdb, "WRITE_BUFFER_BYTES", 64 << 10)
    content = numbers(500, 200)
    machine = filled(tmp_path / "kv", content)
    view = machine.prepare_snapshot()
    assert view.index == machine._applied == 500
    first = save(machine, view)
    for round_ in range(4):
        apply(machine, *(put(key, b"%d" % round_ * 300) for key in list(content)[::2]))
        apply(machine, *(delete(key) for key in list(content)[1::2]), put("added", "x"))
        machine.sync()
    store = machine._store
    assert store is not None
    store._db.compact_range(None, None)
    assert not any(machine.lookup(get(key)) == value for key, value in content.items())
    assert save(machine, view) == first
    other = opened(tmp_path / "other")
    assert recover(other, first.whole) == view.index == 500
    assert everything(other) == content
    other.close()
    machine.close()


def test_several_views_each_hold_their_own_moment(tmp_path: Path) -> None:
    """Views exist beside each other, and are closed in any order."""
    machine = opened(tmp_path / "kv")
    views = []
    for number in range(1, 6):
        apply(machine, put("n", b"%d" % number))
        views.append(machine.prepare_snapshot())
    other = opened(tmp_path / "other")
    for number in (3, 1, 5, 2, 4):
        view = views[number - 1]
        assert recover(other, save(machine, view).whole) == view.index == number
        assert everything(other) == {b"n": b"%d" % number}
        view.close()
    other.close()
    machine.close()
    assert not list(tmp_path.rglob("view-*"))


def test_two_snapshots_of_one_view_are_the_same_bytes(tmp_path: Path) -> None:
    """Also when the machine went on meanwhile."""
    machine = filled(tmp_path / "kv", numbers(300))
    view = machine.prepare_snapshot()
    first = save(machine, view)
    apply(machine, put("later", "x"))
    machine.sync()
    machine.prepare_snapshot().close()
    assert save(machine, view) == first
    machine.close()


def test_a_stream_has_only_what_a_database_needs(small: Pieces) -> None:
    """No lock, no log for people, nothing that would differ between two saves of one state."""
    names = [file.name for file in parse(small.whole)]
    assert names == sorted(names)
    kinds = [name.rpartition(".")[2] if "." in name else name.partition("-")[0] for name in names]
    assert sorted(set(kinds)) == ["CURRENT", "MANIFEST", "log", "sst"]
    assert len(small.whole) < 5000


def test_a_save_holds_little_at_a_time(large: Pieces) -> None:
    """Pieces are bounded, so a slow receiver does not fill the sender's memory."""
    assert max(map(len, large)) == PIECE_BYTES


@pytest.mark.parametrize("after", [0, 1, 3, 7])
def test_a_save_ends_soon_after_it_is_stopped(tmp_path: Path, after: int) -> None:
    """``SnapshotStopped``, and not a piece more is written."""
    machine = filled(tmp_path / "kv", numbers(2000, 600))
    stopped = threading.Event()

    class Stopping(Pieces):
        def write(self, data: bytes) -> None:
            super().write(data)
            if len(self) == after:
                stopped.set()

    if after == 0:
        stopped.set()
    pieces = Stopping()
    view = machine.prepare_snapshot()
    with pytest.raises(SnapshotStopped):
        machine.save_snapshot(view, pieces, stopped)
    assert after <= len(pieces) <= after + 1  # a checksum may follow its data
    machine.close()


@pytest.mark.parametrize("error", [SnapshotStopped("gone"), ConnectionResetError("gone"), KeyError("bug")])
def test_a_save_that_was_aborted_can_be_tried_again(tmp_path: Path, error: Exception) -> None:
    """The writer's own error comes through as it is, and the view is as good as before."""
    machine = filled(tmp_path / "kv", numbers(2000, 600))
    view = machine.prepare_snapshot()
    wanted = save(machine, view)

    class Failing(Pieces):
        def write(self, data: bytes) -> None:
            super().write(data)
            if len(self) > 5:
                raise error

    before = psutil.Process().num_fds()
    with pytest.raises(type(error)) as raised:
        machine.save_snapshot(view, Failing(), threading.Event())
    assert raised.value is error
    assert psutil.Process().num_fds() == before
    assert save(machine, view) == wanted
    machine.close()


def test_updates_go_on_during_a_save(tmp_path: Path) -> None:
    """While the writer waits, other threads update, sync and look up; none of it shows in the stream."""
    machine = filled(tmp_path / "kv", numbers(2000, 600))
    with ThreadPoolExecutor(1) as other_thread:

        def work(number: int) -> None:
            apply(machine, incr("count"), put(b"%06d" % number, "overwritten"))
            machine.sync()
            assert machine.lookup(get("count")) == b"%d" % number

        class Busy(Pieces):
            def write(self, data: bytes) -> None:
                super().write(data)
                other_thread.submit(work, len(self)).result(timeout=30)

        view = machine.prepare_snapshot()
        pieces = Busy()
        machine.save_snapshot(view, pieces, threading.Event())
    assert len(pieces) > 10
    assert machine.lookup(get("count")) == b"%d" % len(pieces)
    other = opened(tmp_path / "other")
    assert recover(other, pieces.whole) == 2000
    assert everything(other) == numbers(2000, 600)
    other.close()
    machine.close()


def test_a_view_that_was_closed_is_not_saved(tmp_path: Path) -> None:
    """Closing twice does nothing, saving says so, and another machine's kind of view is refused."""
    machine = filled(tmp_path / "kv", BEFORE)
    view = machine.prepare_snapshot()
    view.close()
    view.close()
    assert not list(tmp_path.rglob("view-*"))
    with pytest.raises(StoreClosed, match="view is closed"):
        save(machine, view)

    class Foreign:
        index = 3

        def close(self) -> None: ...

    with pytest.raises(TypeError, match="its own views"):
        machine.save_snapshot(Foreign(), Pieces(), threading.Event())
    machine.close()


@pytest.mark.parametrize("end", ["close", "crash"])
def test_a_view_closed_late_does_not_touch_a_later_one(tmp_path: Path, end: str) -> None:
    """After closing and opening again the names begin anew; the old view lets the new one alone."""
    machine = filled(tmp_path / "kv", BEFORE)
    old = machine.prepare_snapshot()
    getattr(machine, end)()
    again = opened(tmp_path / "kv")
    new = again.prepare_snapshot()
    old.close()
    assert len(save(again, new)) > 5
    again.close()


@pytest.mark.parametrize("end", ["close", "crash"])
def test_a_view_that_was_never_closed_leaves_nothing(tmp_path: Path, end: str) -> None:
    """Neither after the machine's end nor after the next opening."""
    machine = filled(tmp_path / "kv", BEFORE)
    machine.sync()
    views = [machine.prepare_snapshot() for _ in range(3)]
    assert len(list((tmp_path / "kv").glob("view-*"))) == 3
    getattr(machine, end)()
    assert machine.open() == 2 and everything(machine) == BEFORE
    assert sorted(os.listdir(tmp_path / "kv")) == ["current", "db-000001", "owner"]
    for view in views:
        view.close()
    machine.close()


# Recovering


@pytest.mark.parametrize("index", [1, 2**31, 2**32 + 7, 2**53 + 1, 2**63 + 12345, 2**64 - 1])
def test_any_64_bit_index_survives(tmp_path: Path, index: int) -> None:
    """Dragonboat's example writes the index into JSON and reads most of them back wrong."""
    machine = opened(tmp_path / "kv")
    machine.update([Entry(index, put("k", "v"))])
    other = opened(tmp_path / "other")
    assert recover(other, save(machine).whole) == index
    machine.close()
    other.close()
    assert other.open() == index
    assert other.lookup(get("k")) == b"v"
    other.close()


def test_any_bytes_survive_as_key_and_value(tmp_path: Path) -> None:
    """Empty ones, every byte, the longest ones, and those that look like metadata."""
    values = [b"", b"\0", bytes(range(256)), b"applied_index", b"v" * (1 << 20)]
    content = {key: values[place % len(values)] for place, key in enumerate(ODD_KEYS)}
    content |= {bytes([byte]): bytes([255 - byte]) for byte in range(256)}
    machine = filled(tmp_path / "kv", content)
    other = filled(tmp_path / "other", BEFORE)
    recover(other, save(machine).whole)
    assert everything(other) == content
    machine.close()
    other.close()
    assert other.open() == len(content)
    assert everything(other) == content
    other.close()


@pytest.mark.parametrize("present", [0, 5, 3000], ids=["empty", "smaller", "larger"])
@pytest.mark.parametrize("last", [4000, 5000, 2**50], ids=["older", "same", "newer"])
def test_a_snapshot_replaces_whatever_is_there(
    tmp_path: Path, large: Pieces, present: int, last: int
) -> None:
    """More, fewer or other keys, a lower or a higher index: afterwards it is the snapshot, and goes on."""
    machine = opened(tmp_path / "kv")
    if present:
        machine.close()
        shutil.rmtree(tmp_path / "kv")
        machine = filled(tmp_path / "kv", {b"x%d" % number: b"y" for number in range(present)}, last=last)
    assert recover(machine, large.whole) == 5000
    for _ in range(2):
        assert everything(machine) == numbers(2000, 600)
        assert sorted(os.listdir(tmp_path / "kv")) == ["current", "db-000002", "owner"]
        machine.close()
        assert machine.open() == 5000
    with pytest.raises(StorageError, match="after entry 5000"):
        machine.update([Entry(5000, put("a", "b"))])
    machine.update([Entry(5001, put("a", "b"))])
    assert machine.lookup(get("a")) == b"b"
    machine.close()


def test_an_empty_state_is_a_snapshot_too(tmp_path: Path, kv: DiskKV) -> None:
    """Of a new machine, and of one whose keys are all gone."""
    new = opened(tmp_path / "new")
    assert recover(kv, save(new).whole) == 0
    assert everything(kv) == {}
    apply(new, put("k", "v"), delete("k"))
    assert recover(kv, save(new).whole) == 2
    assert everything(kv) == {}
    new.close()


def test_snapshots_of_snapshots(tmp_path: Path) -> None:
    """A state that went through many machines, each of which added to it, is whole."""
    machine = filled(tmp_path / "0", numbers(100))
    for number in range(1, 6):
        apply(machine, incr("count"), put(b"by %d" % number, "x"))
        stream = save(machine)
        machine.close()
        machine = filled(tmp_path / str(number), BEFORE)
        recover(machine, stream.whole)
    assert everything(machine) == numbers(100) | {b"by %d" % number: b"x" for number in range(1, 6)} | {
        b"count": b"5"
    }
    assert machine._applied == 110
    machine.close()


def test_what_was_recovered_survives_a_power_cut(tmp_path: Path, large: Pieces) -> None:
    """Nothing has to be synced after ``recover_from_snapshot``; later updates have to be."""
    machine = filled(tmp_path / "kv", BEFORE)
    recover(machine, large.whole)
    machine.crash()
    assert (machine.open(), everything(machine)) == (5000, numbers(2000, 600))
    apply(machine, put("synced", "x"))
    machine.sync()
    apply(machine, put("lost", "x"))
    machine.crash()
    assert machine.open() == 5001
    assert machine.lookup(get("synced")) == b"x" and machine.lookup(get("lost")) is None
    machine.close()


def test_all_is_durable_before_the_pointer_and_the_pointer_before_the_old_state_goes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, large: Pieces
) -> None:
    """Each fsync stands where a power cut would otherwise leave neither state whole."""
    machine = filled(tmp_path / "kv", BEFORE)
    events: list[tuple[str, str]] = []

    def noted(name: str, function: Callable[..., Any], place: Callable[[Any], str]) -> Callable[..., Any]:
        def call(first: Any, *rest: Any, **options: Any) -> Any:
            result = function(first, *rest, **options)
            events.append((name, os.path.relpath(place(first), tmp_path / "kv")))
            return result

        return call

    def opened_file(descriptor: int) -> str:
        return os.readlink(f"/proc/self/fd/{descriptor}")

    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", noted("fsync", os.fsync, opened_file))
        patch.setattr(Path, "rename", noted("rename", Path.rename, str))
        patch.setattr("ondisk.diskkv.remove", noted("remove", generations.remove, str))
        recover(machine, large.whole)
    files = [("fsync", f"db-000002/{file.name}") for file in parse(large.whole)]
    pointer = [("fsync", "current.new"), ("rename", "current.new"), ("fsync", ".")]
    assert events == [*files, ("fsync", "db-000002"), *pointer, ("remove", "db-000001")]
    machine.close()
    (tmp_path / "kv" / "db-000009").mkdir()
    events.clear()
    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", noted("fsync", os.fsync, opened_file))
        patch.setattr("ondisk.storage.generations.remove", noted("remove", generations.remove, str))
        machine.open()
    assert events == [("fsync", "."), ("remove", "db-000009")]
    machine.close()
