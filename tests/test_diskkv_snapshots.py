"""DiskKV's snapshots: a view that stands still, a stream that is believed only whole, an atomic swap."""

from __future__ import annotations

import errno
import io
import os
import random
import shutil
import subprocess
import sys
import threading
import zlib
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import psutil
import pytest

from ondisk.diskkv import MAX_SCAN_ITEMS, DiskKV, DiskKVView, delete, get, incr, put, scan
from ondisk.errors import Corrupt, DirectoryInUse, SnapshotStopped, StorageError, StoreClosed, UnknownVersion
from ondisk.statemachine import Entry
from ondisk.storage import generations, rocksdb
from ondisk.storage.disk import Disk
from ondisk.storage.filestream import END, MAGIC, PIECE_BYTES, VERSION
from ondisk.storage.store import Store
from tests.lengths import LONG
from tests.test_disk import FullDisk, copy_live, flip, largest_table
from tests.test_diskkv import ODD_KEYS, apply, everything, opened

ROOT = Path(__file__).parents[1]


class Pieces(list[bytes]):
    """A writer that keeps what it is given, piece by piece."""

    def write(self, data: bytes) -> None:
        self.append(bytes(data))

    @property
    def whole(self) -> bytes:
        return b"".join(self)


class NoWaiting(Disk):
    """A disk that promises durability and does not wait for it. Only for speed."""

    def sync(self, flush: Callable[[], None]) -> None:
        pass


def save(machine: DiskKV, view: DiskKVView | None = None) -> Pieces:
    """The stream of a view, or of the present state."""
    pieces = Pieces()
    saved = view or machine.prepare_snapshot()
    machine.save_snapshot(saved, pieces, threading.Event())
    if view is None:
        saved.close()
    return pieces


def recover(machine: DiskKV, stream: bytes) -> int:
    return machine.recover_from_snapshot(io.BytesIO(stream), threading.Event())


def filled(
    path: Path, content: dict[bytes, bytes], *, last: int | None = None, disk: Disk | None = None
) -> DiskKV:
    """A new machine with this content, whose last entry has the index ``last``."""
    machine = DiskKV(path, disk=disk)
    machine.open()
    first = 1 if last is None else last - len(content) + 1
    machine.update([Entry(first + step, put(*pair)) for step, pair in enumerate(content.items())])
    return machine


def numbers(count: int, size: int = 20, seed: int = 1) -> dict[bytes, bytes]:
    chance = random.Random(seed)
    return {b"%06d" % number: chance.randbytes(size) for number in range(count)}


@pytest.fixture(scope="module")
def small(tmp_path_factory: pytest.TempPathFactory) -> Pieces:
    """A snapshot of 20 keys at index 500, of about 3 KB."""
    machine = filled(tmp_path_factory.mktemp("small") / "kv", numbers(20), last=500)
    pieces = save(machine)
    machine.close()
    return pieces


@pytest.fixture(scope="module")
def large(tmp_path_factory: pytest.TempPathFactory) -> Pieces:
    """A snapshot of 2,000 keys at index 5,000, of some pieces."""
    machine = filled(tmp_path_factory.mktemp("large") / "kv", numbers(2000, 600), last=5000)
    pieces = save(machine)
    machine.close()
    assert sum(len(piece) == PIECE_BYTES for piece in pieces) >= 3
    return pieces


BEFORE = {b"mine": b"state", b"other": b""}


@pytest.fixture
def kv(tmp_path: Path) -> Iterator[DiskKV]:
    """A machine with a state of its own, at index 900."""
    machine = filled(tmp_path / "kv", BEFORE, last=900, disk=NoWaiting())
    yield machine
    machine.close()


@contextmanager
def unchanged(machine: DiskKV, path: Path) -> Iterator[None]:
    """Whatever fails in here leaves state, index and directory as they were, now and after opening again."""
    before, index, files = everything(machine), machine._applied, sorted(os.listdir(path))
    yield
    assert (everything(machine), machine._applied, sorted(os.listdir(path))) == (before, index, files)


def still_works(machine: DiskKV, good: Pieces) -> None:
    """It opens again as it was, and recovers from a good stream."""
    before, index = everything(machine), machine._applied
    machine.close()
    assert (machine.open(), everything(machine)) == (index, before)
    recover(machine, good.whole)
    apply(machine, incr("after"))
    assert machine.lookup(get("after")) == b"1"


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


# Streams that are not whole


class File(NamedTuple):
    name: str
    content: bytes


def parse(stream: bytes) -> list[File]:
    """The files of a stream. Written for itself: it knows the format's description only."""
    assert stream[:12] == MAGIC + VERSION.to_bytes(4, "big")
    count, at, files = int.from_bytes(stream[20:24], "big"), 28, []
    for _ in range(count):
        length, size = (
            int.from_bytes(stream[at : at + 2], "big"),
            int.from_bytes(stream[at + 2 : at + 10], "big"),
        )
        name = stream[at + 10 : at + 10 + length].decode()
        at += 10 + length
        files.append(File(name, stream[at : at + size]))
        at += size + 4
    assert stream[at:] == END
    return files


def compose(
    index: int, files: list[File], *, count: int | None = None, sizes: dict[str, int] | None = None
) -> bytes:
    """A stream with right checksums, whatever it says."""
    out = checked = MAGIC + VERSION.to_bytes(4, "big") + index.to_bytes(8, "big")
    count = len(files) if count is None else count
    out = checked = checked + count.to_bytes(4, "big")
    out += zlib.crc32(checked).to_bytes(4, "big")
    for file in files:
        size = (sizes or {}).get(file.name, len(file.content))
        name = file.name.encode()
        part = len(name).to_bytes(2, "big") + size.to_bytes(8, "big") + name + file.content
        checked += part
        out += part + zlib.crc32(checked).to_bytes(4, "big")
    return out + END


def test_the_format_is_what_its_description_says(small: Pieces, kv: DiskKV) -> None:
    """Taken apart and put together again by the description alone, it is the same stream."""
    assert compose(500, parse(small.whole)) == small.whole
    assert recover(kv, small.whole) == 500


def refused(
    machine: DiskKV, stream: bytes, match: str | None = None, error: type[Exception] = Corrupt
) -> None:
    with pytest.raises(error, match=match):
        recover(machine, stream)


def test_a_damaged_bit_anywhere_is_refused(tmp_path: Path, kv: DiskKV, small: Pieces) -> None:
    """One bit in every byte of the stream, headers, names, tables and marks."""
    stream = small.whole
    with unchanged(kv, tmp_path / "kv"):
        for place in range(len(stream)):
            damaged = bytearray(stream)
            damaged[place] ^= 1 << place % 8
            refused(kv, bytes(damaged))
    still_works(kv, small)


def test_a_damaged_file_is_named(tmp_path: Path, kv: DiskKV, small: Pieces) -> None:
    """The error says which file's checksum is wrong."""
    for file in parse(small.whole):
        if file.content:
            damaged = bytearray(small.whole)
            damaged[small.whole.index(file.content) + len(file.content) // 2] ^= 1
            refused(kv, bytes(damaged), f"bad checksum of file {file.name}")
    damaged = bytearray(small.whole)
    damaged[15] ^= 1
    refused(kv, bytes(damaged), "bad checksum of the header")


def test_a_stream_cut_short_anywhere_is_refused(tmp_path: Path, kv: DiskKV, small: Pieces) -> None:
    """At every length, also just before the end mark's last byte."""
    with unchanged(kv, tmp_path / "kv"):
        for length in range(len(small.whole)):
            refused(kv, small.whole[:length], "cut short")
    still_works(kv, small)


def test_missing_doubled_and_swapped_pieces_are_refused(tmp_path: Path, kv: DiskKV, large: Pieces) -> None:
    """Whichever piece it is, and also where pieces of the same length change places."""
    with unchanged(kv, tmp_path / "kv"):
        for place, piece in enumerate(large):
            refused(kv, b"".join([*large[:place], *large[place + 1 :]]))
            refused(kv, b"".join([*large[: place + 1], *large[place:]]))
            other = next(step for step in range(1, len(large)) if large[place - step] != piece)
            swapped = list(large)
            swapped[place], swapped[place - other] = swapped[place - other], swapped[place]
            refused(kv, b"".join(swapped))
    still_works(kv, large)


def test_what_follows_the_end_is_refused(tmp_path: Path, kv: DiskKV, small: Pieces) -> None:
    """A stream is one snapshot, no more: also two good ones in a row are none."""
    with unchanged(kv, tmp_path / "kv"):
        for more in (b"\0", b"\n", END, small.whole):
            refused(kv, small.whole + more, "follows the end")
    still_works(kv, small)


def test_a_stream_of_something_else_is_refused_with_what_it_is_not(
    tmp_path: Path, kv: DiskKV, small: Pieces
) -> None:
    """Nothing, text, another version, a transfer that changed the line ends."""
    stream = small.whole
    with unchanged(kv, tmp_path / "kv"):
        refused(kv, b"", "cut short")
        refused(kv, b"GET / HTTP/1.1\r\nHost: example.org\r\n\r\n", "not a DiskKV snapshot")
        refused(kv, stream.replace(b"\r\n", b"\n", 1) + b"x", "not a DiskKV snapshot")
        later = stream[:8] + (7).to_bytes(4, "big") + stream[12:24]
        refused(kv, later + zlib.crc32(later).to_bytes(4, "big") + stream[28:], "version 7", UnknownVersion)
    still_works(kv, small)


def test_a_stream_made_to_do_harm_is_refused(tmp_path: Path, kv: DiskKV, small: Pieces) -> None:
    """Checksums are right here: names, sizes and counts are not trusted all the same."""
    good = parse(small.whole)
    tables = [file for file in good if file.name.endswith(".sst")]
    names = [
        "../current",
        "/tmp/x",
        "a/b",
        "..",
        ".",
        "",
        "x" * 300,
        "000001.sst/../../current",
        "LOCK",
        "owner",
    ]
    names += [
        "current",
        "CURRENT\n",
        "000001.sst\0",
        "٠٠٠٠٠١.sst",
        "MANIFEST-1",
        "OPTIONS-000007",
        "0" * 40 + ".sst",
    ]
    with unchanged(kv, tmp_path / "kv"):
        for name in names:
            refused(kv, compose(500, [*good, File(name, b"x")]), "no part of a database")
        refused(kv, compose(500, [*good, good[-1]]), "twice")
        refused(kv, compose(500, good, count=2**32 - 1), "claims to have")
        refused(kv, compose(500, good, count=len(good) + 1), "no part of a database|cut short")
        refused(kv, compose(500, good, count=len(good) - 1), "goes on")
        refused(kv, compose(500, good, sizes={"CURRENT": 1 << 40}), "no part of a database")
        refused(kv, compose(500, good, sizes={tables[0].name: 2**64 - 1}), "cut short")
        for index in (0, 499, 501, 2**64 - 1):
            refused(kv, compose(index, good), f"says that it holds index {index}, but it holds 500")
        refused(kv, compose(500, []), "CURRENT is missing")
        for missing in good:
            with pytest.raises(StorageError):
                recover(kv, compose(500, [file for file in good if file != missing]))
        with pytest.raises(StorageError):  # one table under the name of the other
            swapped = dict(
                zip([tables[0].name, tables[1].name], [tables[1].content, tables[0].content], strict=True)
            )
            recover(kv, compose(500, [File(name, swapped.get(name, content)) for name, content in good]))
    assert sorted(os.listdir(tmp_path)) == ["kv"]
    still_works(kv, small)


@pytest.mark.parametrize("after", range(12))
def test_a_recovery_ends_soon_after_it_is_stopped(
    tmp_path: Path, kv: DiskKV, small: Pieces, after: int
) -> None:
    """``SnapshotStopped``, and nothing more is read."""
    stopped = threading.Event()
    reads = 0

    class Stopping(io.BytesIO):
        def read(self, size: int | None = -1) -> bytes:
            nonlocal reads
            reads += 1
            if reads == after:
                stopped.set()
            return super().read(size)

    if after == 0:
        stopped.set()
    with unchanged(kv, tmp_path / "kv"), pytest.raises(SnapshotStopped):
        kv.recover_from_snapshot(Stopping(small.whole), stopped)
    assert reads == after
    still_works(kv, small)


@pytest.mark.parametrize(
    "error", [SnapshotStopped("gone"), Corrupt("chunk 7 is damaged"), KeyboardInterrupt(), KeyError("bug")]
)
def test_the_readers_own_error_comes_through(
    tmp_path: Path, kv: DiskKV, large: Pieces, error: BaseException
) -> None:
    """In the middle of a stream, with half a database on the disk."""

    class Failing(io.BytesIO):
        def read(self, size: int | None = -1) -> bytes:
            if self.tell() > 500_000:
                raise error
            return super().read(size)

    with unchanged(kv, tmp_path / "kv"), pytest.raises(type(error)) as raised:
        kv.recover_from_snapshot(Failing(large.whole), threading.Event())
    assert raised.value is error
    still_works(kv, large)


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


# The directory


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
