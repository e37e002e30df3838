"""Snapshots of ``DiskKV``, saved and recovered, for the tests of them."""

from __future__ import annotations

import io
import os
import random
import threading
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

import pytest

from ondisk.diskkv import DiskKV, DiskKVView, get, incr, put
from ondisk.statemachine import Entry
from ondisk.storage.disk import Disk
from ondisk.storage.filestream import END, MAGIC, PIECE_BYTES, VERSION
from tests.machines import apply, everything

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
