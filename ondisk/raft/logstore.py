"""LogStore: a log as it lies on disk, in one RocksDB, with the durable watermark beside it.

The entries are the data, by index. All else is a record in the metadata: term and vote, the base, the
identity, other disks' lives, and how many batches were ever written. What is written, and when, ``RaftLog``
decides.

Damage is reported: a torn tail of something never synced is dropped, as it must be; anything else that is
damaged or missing raises ``Corrupt``, with the place.
"""

from __future__ import annotations

from collections.abc import Generator, Sequence
from pathlib import Path
from typing import TypeVar

import msgspec

from ondisk.errors import Corrupt
from ondisk.raft.records import Base, Identity, LogEntry
from ondisk.raft.watermark import DurableWatermark
from ondisk.storage import lines
from ondisk.storage.disk import Disk
from ondisk.storage.store import Store

HARD_STATE = b"hard_state"
BASE = b"base"  # the record of a compaction: base, members there and since, snapshot being installed
IDENTITY = b"identity"
LIVES = b"lives"
BATCHES = b"batches"
MAGIC, VERSION = "ondisk log", 2  # of the identity; version 1 had none
_KEY_END = b"\xff" * 8
_TERM_BYTES = 8

_T = TypeVar("_T")


def _key(index: int) -> bytes:
    return index.to_bytes(8, "big")  # big-endian, so that RocksDB's byte order is the log's order


class LogStore:
    """What is stored of a log. Used by one thread at a time."""

    def __init__(self, path: Path, disk: Disk | None) -> None:
        """Open or create. Raises ``Corrupt``, ``DirectoryInUse`` or ``StorageError``."""
        self._path = path
        self._store = Store(path / "rocksdb", disk)
        self._watermark = DurableWatermark(path / "witness")
        self._batches = 0  # how many were ever written

    # What is there

    def hard_state(self) -> tuple[int, int | None]:
        """Term and vote."""
        if (stored := self._store.get_meta(HARD_STATE)) is None:
            return 0, None
        # Up to version 1 a third field said whether the replica had caught up enough to vote.
        term, voted_for, _ = self._read(stored, tuple[int, int | None, bool], "the record of term and vote")
        return term, voted_for

    def identity(self) -> Identity | None:
        """Who this is; ``None`` if that was never written."""
        if (stored := self._store.get_meta(IDENTITY)) is None:
            return None
        try:
            magic, version = msgspec.msgpack.decode(stored)[:2]
        except (msgspec.DecodeError, UnicodeDecodeError, TypeError, ValueError):
            magic, version = "", 0
        if magic != MAGIC or not isinstance(version, int):
            raise Corrupt(f"{self._path}: the identity of the log is damaged")
        lines.check_version(self._path, version, VERSION)
        return self._read(stored, Identity, "the identity of the log")

    def lives(self) -> dict[bytes, tuple[int, int]]:
        """Of other disks: the newest boot and its nonce."""
        if (stored := self._store.get_meta(LIVES)) is None:
            return {}
        return self._read(stored, dict[bytes, tuple[int, int]], "the record of other disks' lives")

    def base(self) -> Base | None:
        """The record of the last compaction; ``None`` if there was none, and no change of the members."""
        if (stored := self._store.get_meta(BASE)) is None:
            return None
        return self._read(stored, Base, "the record of the last compaction")

    def check_end(self) -> None:
        """Raise ``Corrupt`` if less is there than was durable."""
        self._batches = int.from_bytes(self._store.get_meta(BATCHES) or b"", "big")
        if (durable := self._watermark.read()) > self._batches:
            raise Corrupt(
                f"{self._path}: the end of the log is lost: {durable} writes to it were durable, "
                f"{self._batches} are left"
            )

    def newest(self, base_index: int, count: int, max_bytes: int) -> list[LogEntry]:
        """The newest entries, so many or of this size. They end the log, which begins after the base."""
        found: list[LogEntry] = []
        size = 0
        with self._store.iterate(backwards=True) as stored:
            for key, value in stored:
                found.append(self._decode(key, value))
                size += len(found[-1].command)
                if len(found) >= count or size >= max_bytes:
                    break
        found.reverse()
        with self._store.iterate() as stored:
            first_key, _ = next(stored, (_key(base_index + 1), b""))
        last = found[-1].index if found else base_index
        expected = range(last - len(found) + 1, last + 1)
        if first_key != _key(base_index + 1) or any(
            entry.index != index for entry, index in zip(found, expected, strict=True)
        ):
            raise Corrupt(f"{self._path}: entries are missing between {base_index} and {last}")
        return found

    def entries(self, first: int, last: int) -> list[LogEntry]:
        """Entries ``first`` to ``last``, both included."""
        keys = [_key(index) for index in range(first, last + 1)]
        found = []
        for key, value in zip(keys, self._store.get_many(keys), strict=True):
            if value is None:
                raise Corrupt(f"{self._path}: entry {int.from_bytes(key, 'big')} is missing")
            found.append(self._decode(key, value))
        return found

    def every_entry(self) -> Generator[LogEntry, None, None]:
        """From the first to the last, whatever their indexes are."""
        with self._store.iterate() as stored:
            for key, value in stored:
                yield self._decode(key, value)

    def _read(self, stored: bytes, kind: type[_T], what: str) -> _T:
        try:
            return msgspec.msgpack.decode(stored, type=kind)
        except (msgspec.DecodeError, UnicodeDecodeError) as error:
            raise Corrupt(f"{self._path}: {what} is damaged ({error})") from None

    def _decode(self, key: bytes, value: bytes) -> LogEntry:
        if len(key) != 8 or len(value) < _TERM_BYTES:
            raise Corrupt(f"{self._path}: entry {key.hex()} is damaged")
        return LogEntry(
            int.from_bytes(key, "big"),
            int.from_bytes(value[:_TERM_BYTES], "big"),
            value[_TERM_BYTES:],
        )

    # Changes

    def write(
        self,
        entries: Sequence[LogEntry],
        *,
        cut_from: int | None,
        drop_to: int | None,
        hard_state: tuple[int, int | None] | None,
        base: Base | None,
        identity: Identity | None,
        lives: dict[bytes, tuple[int, int]] | None,
    ) -> None:
        """All in one atomic step, durable after ``sync``; a record that is ``None`` stays as it is.

        What is stored from ``cut_from`` on and up to ``drop_to`` goes, and then the entries are added.
        """
        batch = self._store.batch()
        if cut_from is not None:
            batch.delete_range(_key(cut_from), _KEY_END)
        if drop_to is not None:
            batch.delete_range(_key(0), _key(drop_to + 1))
        for entry in entries:
            batch.put(_key(entry.index), entry.term.to_bytes(_TERM_BYTES, "big") + entry.command)
        records = {
            HARD_STATE: None if hard_state is None else (*hard_state, True),
            BASE: base,
            IDENTITY: identity,
            LIVES: lives,
        }
        for name, record in records.items():
            if record is not None:
                self._store.put_meta(batch, name, msgspec.msgpack.encode(record))
        self._batches += 1
        self._store.put_meta(batch, BATCHES, self._batches.to_bytes(8, "big"))
        self._store.write(batch)

    def sync(self) -> None:
        """Return when all that was written is durable."""
        self._store.sync()

    def note_durable(self) -> None:
        """Note how much is durable, to notice later if it is lost."""
        self._watermark.write(self._batches)

    @property
    def is_open(self) -> bool:
        """Whether it can be used."""
        return self._store.is_open

    def close(self) -> None:
        """Close, and write nothing more. A second call does nothing."""
        self._watermark.close()
        self._store.close()

    def crash(self) -> None:
        """Close as a power cut would: what was not synced is gone."""
        self._watermark.close()
        self._store.crash()
