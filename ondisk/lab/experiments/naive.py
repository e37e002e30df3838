"""Four state machines that differ in how they save: three are naive, and each is naive in its own way.

They take two commands of ``diskkv``, ``put`` and ``incr``, and both of its queries. All that matters stands
in ``save``: what is written, in which order, and in how many steps. Between two steps a crash may come.

``Keeper`` is what they share, and a base for your own: a subclass has to write ``save`` and nothing else.
"""

from __future__ import annotations

import struct
import threading
from abc import abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import msgspec

from ondisk.diskkv import MAX_SCAN_ITEMS, Get, Incr, Put, Scan
from ondisk.errors import Corrupt, InvalidCommand, SnapshotStopped, StorageError
from ondisk.statemachine import (
    Entry,
    OnDiskStateMachine,
    Result,
    SnapshotReader,
    SnapshotView,
    SnapshotWriter,
)
from ondisk.storage.disk import Disk
from ondisk.storage.store import Store

Changes = Mapping[bytes, bytes | None]
"""What an update does to the data: the new value of each key, ``None`` for a key that goes away."""

APPLIED_INDEX = b"applied_index"
_INT64 = range(-(1 << 63), 1 << 63)
_HEAD = struct.Struct(">QI")  # a snapshot begins with the index and the number of pairs
_LENGTH = struct.Struct(">I")
_commands = msgspec.msgpack.Decoder(Put | Incr)


class Keeper(OnDiskStateMachine):
    """A small key-value store that leaves one question open: how are the data and the index saved?"""

    def __init__(self, path: Path | str, disk: Disk | None = None) -> None:
        """``path`` is a directory of its own, created when missing."""
        self._path = Path(path)
        self._disk = disk
        self.data: Store  # since ``open``
        self._applied = 0

    @abstractmethod
    def save(self, changes: Changes, index: int) -> None:
        """Store what an update changed, and the index of its last entry."""

    # Two steps that ``save`` may be made of

    def write_data(self, changes: Changes) -> None:
        """Store the data, in a batch of its own."""
        batch = self.data.batch()
        for key, value in changes.items():
            batch.delete(key) if value is None else batch.put(key, value)
        self.data.write(batch)

    def write_index(self, index: int) -> None:
        """Store the index, in a batch of its own."""
        batch = self.data.batch()
        self.data.put_meta(batch, APPLIED_INDEX, index.to_bytes(8, "big"))
        self.data.write(batch)

    # The contract

    def open(self) -> int:
        """Open or create; return the index that is stored."""
        self.data = Store(self._path / "data", self._disk)
        self._applied = int.from_bytes(self.data.get_meta(APPLIED_INDEX) or b"", "big")
        return self._applied

    def update(self, entries: Sequence[Entry]) -> list[Result]:
        """Apply entries to what is stored, and save the outcome."""
        changes: dict[bytes, bytes | None] = {}
        results = []
        applied = self._applied
        for entry in entries:
            if entry.index <= applied:
                raise StorageError(f"entry {entry.index} was handed over after entry {applied}")
            results.append(self._apply(entry.command, changes))
            applied = entry.index
        self.save(changes, applied)
        self._applied = applied
        return results

    def _apply(self, command: bytes, changes: dict[bytes, bytes | None]) -> Result:
        try:
            decoded = _commands.decode(command)
        except (msgspec.DecodeError, UnicodeDecodeError) as error:
            return Result(error=f"malformed command: {error}")
        if isinstance(decoded, Put):
            changes[decoded.key] = decoded.value
            return Result()
        present = changes[decoded.key] if decoded.key in changes else self.data.get(decoded.key)
        try:
            number = int(present or b"0") + decoded.by
        except ValueError:
            return Result(error=f"the value of {decoded.key!r} is not a number")
        if number not in _INT64:
            return Result(error=f"the value of {decoded.key!r} would leave the range of 64 bits")
        changes[decoded.key] = b"%d" % number
        return Result(number)

    def lookup(self, query: Any) -> Any:
        """``Get`` answers ``bytes | None``; ``Scan`` answers ``list[tuple[bytes, bytes]]``."""
        if isinstance(query, Get):
            return self.data.get(query.key)
        if isinstance(query, Scan):
            with self.data.iterate(max(query.start, query.prefix)) as pairs:
                found = [pair for pair, _ in zip(pairs, range(MAX_SCAN_ITEMS), strict=False)]
            return [pair for pair in found if pair[0].startswith(query.prefix)][: query.limit]
        raise InvalidCommand(f"Get and Scan are answered here, not {type(query).__name__}")

    def sync(self) -> None:
        """Make every update so far durable."""
        self.data.sync()

    def close(self) -> None:
        """Close the database."""
        if hasattr(self, "data"):
            self.data.close()

    def crash(self) -> None:
        """Lose what was never synced."""
        if hasattr(self, "data"):
            self.data.crash()

    # Snapshots, the simplest way there is: all of the data, in memory

    def prepare_snapshot(self) -> SnapshotView:
        """Copy everything. (The contract asks for something cheaper: see ``DiskKV``.)"""
        with self.data.iterate() as pairs:
            return _View(self._applied, tuple(pairs))

    def save_snapshot(self, view: SnapshotView, writer: SnapshotWriter, stopped: threading.Event) -> None:
        """The index, the number of pairs, then each key and each value after its length."""
        assert isinstance(view, _View)
        _go_on(stopped)
        writer.write(_HEAD.pack(view.index, len(view.pairs)))
        for pair in view.pairs:
            _go_on(stopped)
            for part in pair:
                writer.write(_LENGTH.pack(len(part)) + part)

    def recover_from_snapshot(self, reader: SnapshotReader, stopped: threading.Event) -> int:
        """Read everything first; then replace the old data by saving as every update saves."""
        _go_on(stopped)
        index, count = _HEAD.unpack(_exactly(reader, _HEAD.size))
        new: dict[bytes, bytes | None] = {}
        for _ in range(count):
            _go_on(stopped)
            key, value = (_exactly(reader, _LENGTH.unpack(_exactly(reader, 4))[0]) for _ in "kv")
            new[key] = value
        with self.data.iterate() as pairs:
            gone: dict[bytes, bytes | None] = {key: None for key, _ in pairs if key not in new}
        self.save({**gone, **new}, index)
        self.sync()
        self._applied = index
        return int(index)


class OneBatch(Keeper):
    """The right one. What is in one batch is stored entirely or not at all."""

    def save(self, changes: Changes, index: int) -> None:
        """One write, all or nothing."""
        batch = self.data.batch()
        for key, value in changes.items():
            batch.delete(key) if value is None else batch.put(key, value)
        self.data.put_meta(batch, APPLIED_INDEX, index.to_bytes(8, "big"))
        self.data.write(batch)


class DataFirst(Keeper):
    """Naive: a crash between the steps leaves new data under an old index."""

    def save(self, changes: Changes, index: int) -> None:
        """Two writes."""
        self.write_data(changes)
        self.write_index(index)


class IndexFirst(Keeper):
    """Naive: a crash between the steps leaves a new index over old data."""

    def save(self, changes: Changes, index: int) -> None:
        """Two writes, the other way round."""
        self.write_index(index)
        self.write_data(changes)


class TwoWrites(Keeper):
    """Naive: the index has a database of its own, so nobody says which of the two reaches the disk first.

    A process that is killed between the writes leaves new data under an old index. After a power cut it can
    also be the other way round: the operating system writes files back whenever it likes.
    """

    def open(self) -> int:
        """Open or create both; return the index that is stored."""
        super().open()
        self.index = Store(self._path / "index", self._disk)
        self._applied = int.from_bytes(self.index.get(APPLIED_INDEX) or b"", "big")
        return self._applied

    def save(self, changes: Changes, index: int) -> None:
        """Two writes, into two files that know nothing of each other."""
        self.write_data(changes)
        self.write_index(index)

    def write_index(self, index: int) -> None:
        """Store the index, in its own database."""
        batch = self.index.batch()
        batch.put(APPLIED_INDEX, index.to_bytes(8, "big"))
        self.index.write(batch)

    def sync(self) -> None:
        """Make every update so far durable."""
        super().sync()
        self.index.sync()

    def close(self) -> None:
        """Close both."""
        super().close()
        if hasattr(self, "index"):
            self.index.close()

    def crash(self) -> None:
        """One power cut of many that are possible: the index had been written back, the data had not."""
        super().crash()
        if hasattr(self, "index"):
            self.index.close()


@dataclass(frozen=True)
class _View:
    """A copy of everything: nothing to hold still, and nothing to let go of."""

    index: int
    pairs: tuple[tuple[bytes, bytes], ...]

    def close(self) -> None:
        pass


def _go_on(stopped: threading.Event) -> None:
    if stopped.is_set():
        raise SnapshotStopped("nobody needs this snapshot any more")


def _exactly(reader: SnapshotReader, size: int) -> bytes:
    data = reader.read(size)
    if len(data) < size:
        raise Corrupt("the snapshot ends too early")
    return data
