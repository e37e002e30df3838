"""DiskKV: a key-value store on RocksDB that follows the contract in ``statemachine.py``.

The whole trick is at the end of ``update``: one ``WriteBatch`` carries the new values *and* the index of
the last entry. RocksDB stores a batch entirely or not at all, so after any crash the index says exactly
which commands the data holds.

The index lives in a column family of its own, because a user may well have a key of the same name. So do the
records of client sessions (``sessions.py``), and the newest changes (``verbs/changes.py``), which the same
batch stores.

A snapshot is the database itself. A view is a second one with hard links to the same tables, which never
change once they are written; saving it copies its files into a stream (``storage/filestream.py``). Recovering
builds a third one from the stream, and replaces the pointer to the live one (``storage/generations.py``).
"""

from __future__ import annotations

import math
import re
import threading
from collections.abc import Callable, Iterable, Sequence
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import Any, ClassVar

import msgspec

from ondisk.errors import Corrupt, InvalidCommand, StorageError, StoreClosed
from ondisk.sessions import MAGIC, Batch, Sessions, is_envelope
from ondisk.statemachine import (
    Entry,
    OnDiskStateMachine,
    Result,
    SnapshotReader,
    SnapshotView,
    SnapshotWriter,
)
from ondisk.storage import lines
from ondisk.storage.disk import Disk
from ondisk.storage.filestream import RECEIVE_POINTS, receive_files, save_files
from ondisk.storage.generations import CREATE_POINTS, OPEN_POINTS, POINTER_POINTS, Generations, remove
from ondisk.storage.paths import resolved
from ondisk.storage.store import Sizes, Store
from ondisk.verbs import digest, keyleases, texts, txn
from ondisk.verbs.changes import (
    SEGMENT_BYTES,
    ChangeHistory,
    Changes,
    Recording,
    changed,
    changes_after,
    page,
    stored_history,
)
from ondisk.verbs.keyleases import KeyLeases, stored_leases
from ondisk.verbs.pending import Pending
from ondisk.verbs.texts import as_key, as_value, too_long

MAX_KEY_BYTES = texts.MAX_KEY_BYTES
MAX_VALUE_BYTES = texts.MAX_VALUE_BYTES
MAX_SCAN_ITEMS = 10_000

Text = texts.Text

# Where an experiment may crash it (``Disk.reach``), beside the points of every ``Store``.
POINTS = (
    *CREATE_POINTS,
    *OPEN_POINTS,
    *RECEIVE_POINTS,
    "recover: database opened",
    *POINTER_POINTS,
    "recover: switched",
    "recover: old database closed",
    "recover: old database removed",
    "prepare: view made",
)

_PAIR_BYTES = 11  # that MessagePack adds to a pair, at most
_DONE = Result()
_APPLIED_INDEX = b"applied_index"
_FORMAT = b"format"
_FORMAT_KIND, _FORMAT_VERSION = "ondisk-diskkv", 2  # 1 kept no history: it would leave a gap in this one's
_FORMAT_NOW = lines.encode(_FORMAT_KIND, _FORMAT_VERSION, "")
_SESSION = b"session/"  # and 8 bytes: which one
_NUMBER = re.compile(rb"[+-]?[0-9]{1,19}")
_INT64 = range(-(1 << 63), 1 << 63)


class _Command(msgspec.Struct, frozen=True, array_like=True, forbid_unknown_fields=True):
    """An array that begins with its tag. With nothing after its fields: msgspec would skip through that
    recursively, and how deep is too deep differs between replicas.
    """


class Put(_Command, frozen=True, tag="put"):
    """Set a key. Answers ``Result(None)``."""

    key: bytes
    value: bytes


class Delete(_Command, frozen=True, tag="delete"):
    """Remove a key. Answers whether it was there."""

    key: bytes


class Incr(_Command, frozen=True, tag="incr"):
    """Add to a number, stored as decimal text; a missing key counts as 0. Answers the new number."""

    key: bytes
    by: int


class CompareAndSet(_Command, frozen=True, tag="cas"):
    """Set a key if it holds ``expected`` (``None``: if it is missing). Answers whether it did."""

    key: bytes
    expected: bytes | None
    value: bytes


class PutMany(_Command, frozen=True, tag="put_many"):
    """Set many keys, in one step: all of them or, if one is refused, none. Answers ``Result(None)``."""

    pairs: dict[bytes, bytes]


class Get(_Command, frozen=True, tag="get"):
    """Query: the value of a key, ``None`` if it is missing (an empty value is ``b""``)."""

    answer: ClassVar[Any] = bytes | None

    key: bytes


class Scan(_Command, frozen=True, tag="scan"):
    """Query: at most ``limit`` pairs whose key begins with ``prefix`` and is at least ``start``, by key.

    ``max_bytes``: refuse to answer, rather than to collect more than that.
    """

    answer: ClassVar[Any] = list[tuple[bytes, bytes]]

    prefix: bytes = b""
    start: bytes = b""
    limit: int = 100
    max_bytes: int | None = None


_encoder = msgspec.msgpack.Encoder()
Command = Put | Delete | Incr | CompareAndSet | PutMany | txn.Txn | keyleases.Command

_decoder = msgspec.msgpack.Decoder[Command](Command)


def put(key: Text, value: Text) -> bytes:
    """The command that sets a key."""
    return _encoder.encode(Put(as_key(key), as_value(value)))


def put_many(pairs: Iterable[tuple[Text, Text]]) -> bytes:
    """The command that sets many keys. Of a key that is there more than once the last value counts."""
    return encode_pairs(dict(pair(key, value) for key, value in pairs))


def pair(key: Text, value: Text) -> tuple[bytes, bytes]:
    """A key and a value as they are stored. Raises ``InvalidCommand`` with what is wrong."""
    return as_key(key), as_value(value)


def encode_pairs(pairs: dict[bytes, bytes]) -> bytes:
    """The command that sets these keys, of pairs that were checked already."""
    return _encoder.encode(PutMany(pairs))


def delete(key: Text) -> bytes:
    """The command that removes a key."""
    return _encoder.encode(Delete(as_key(key)))


def incr(key: Text, by: int = 1) -> bytes:
    """The command that adds ``by`` to a number."""
    if not isinstance(by, int) or isinstance(by, bool) or by not in _INT64:  # type: ignore[redundant-expr]
        raise InvalidCommand("an increment is a whole number of at most 64 bits")
    return _encoder.encode(Incr(as_key(key), by))


def compare_and_set(key: Text, expected: Text | None, value: Text) -> bytes:
    """The command that sets a key if it still holds ``expected`` (``None``: if it is missing)."""
    return _encoder.encode(
        CompareAndSet(as_key(key), None if expected is None else as_value(expected), as_value(value))
    )


def get(key: Text) -> Get:
    """The query for one key."""
    return Get(as_key(key))


def scan(prefix: Text = b"", start: Text = b"", limit: int = 100, max_bytes: int | None = None) -> Scan:
    """The query for a range of keys, in byte order."""
    if not isinstance(limit, int) or not 0 < limit <= MAX_SCAN_ITEMS:  # type: ignore[redundant-expr]
        raise InvalidCommand(f"a scan's limit is a whole number from 1 to {MAX_SCAN_ITEMS:,}")
    return Scan(as_key(prefix), as_key(start), limit, max_bytes)


def decode(command: bytes) -> Command:
    """What a command of this module says. Raises ``InvalidCommand`` for any other bytes."""
    try:
        decoded: Command = _decoder.decode(command)
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise InvalidCommand(f"no command of DiskKV: {error}") from None
    return decoded


class DiskKVView:
    """The state of a ``DiskKV`` at one point in time: a database of its own that nobody writes to."""

    def __init__(self, path: Path, index: int, forget: Callable[[DiskKVView], None]) -> None:
        self._path = path
        self._index = index
        self._forget = forget
        self._closed = False

    @property
    def index(self) -> int:
        """Index of the last entry whose outcome the view holds."""
        return self._index

    def save(self, writer: SnapshotWriter, stopped: threading.Event) -> None:
        """Write it as a stream. Raises ``SnapshotStopped``, ``StoreClosed`` or ``StorageError``."""
        if self._closed:
            raise StoreClosed(f"{self._path}: the view is closed")
        save_files(self._path, self._index, writer, stopped)

    def close(self) -> None:
        """Remove its directory. A second call does nothing, also when the machine was opened again since."""
        if not self._closed:
            self._closed = True
            remove(self._path)
            self._forget(self)


class DiskKV(OnDiskStateMachine):
    """The key-value state machine. Commands and queries are made by the functions of this module."""

    offers_sessions: ClassVar[bool] = True
    segment_bytes: ClassVar[int] = SEGMENT_BYTES
    queries: ClassVar[Any] = Get | Scan | Changes | digest.DigestOf | keyleases.TimeNow | keyleases.LeaseLeft
    leases_type: ClassVar[type[keyleases.Batch]] = keyleases.Batch

    def __init__(
        self, path: Path | str, *, sync_every_update: bool = False, disk: Disk | None = None
    ) -> None:
        """``path`` is a directory of its own, created when missing.

        ``sync_every_update`` makes each ``update`` durable before it returns, as Dragonboat's example does.
        Without it the Raft log alone carries durability until the next ``sync``: after a power cut the state
        is older but whole, and the log hands it the rest.
        """
        self._path = resolved(path, "a state's directory")
        self._sync_every_update = sync_every_update
        self._disk = disk or Disk()
        self._generations = Generations(self._path, self._disk)
        self._store: Store | None = None
        self._applied = 0
        self._says_its_format = False
        self._sessions = Sessions()
        self._history = ChangeHistory()
        self._leases = KeyLeases(0, {}, {})
        self._views: set[DiskKVView] = set()

    @property
    def _open_store(self) -> Store:
        if self._store is None:
            raise StorageError(f"{self._path}: open() has not been called")
        return self._store

    def open(self) -> int:
        """Open or create the database; return the index that is stored in it."""
        store = self._generations.open()
        try:
            self._says_its_format = _check_format(store)
            self._applied = _applied_index(store)
            self._sessions = _stored_sessions(store)
            self._history = stored_history(store, self._applied)
            self._leases = stored_leases(store)
        except BaseException:
            store.close()
            self._generations.close()
            raise
        self._store = store
        return self._applied

    def update(self, entries: Sequence[Entry]) -> list[Result]:
        """Apply entries as one atomic batch, together with the index of the last one."""
        store = self._open_store
        # Later commands of the batch must see earlier ones, and so must later envelopes.
        pending = Pending(store, Recording(self._history, self.segment_bytes), self.leases_type(self._leases))
        sessions: Batch | None = None
        results = []
        applied = self._applied
        for entry in entries:
            if entry.index <= applied:
                raise StorageError(f"entry {entry.index} was handed over after entry {applied}")
            # The comparison alone would do for commands made here, which all begin lower, and costs nothing.
            if entry.command >= MAGIC and is_envelope(entry.command):
                sessions = sessions or self._sessions.batch()
                results.append(sessions.answer(entry, partial(_apply, index=entry.index, pending=pending)))
            else:
                results.append(_apply(entry.command, entry.index, pending))
            applied = entry.index
        batch = store.batch()
        for key, value in pending.data.items():
            if value is None:
                batch.delete(key)
            else:
                batch.put(key, value)
        if sessions is not None:
            for session, record in sessions.records():
                store.put_meta(batch, _SESSION + session, record)
        for key, record in pending.leases.records():
            store.put_meta(batch, key, record)
        history = pending.recording.store(store, batch, first=not self._says_its_format)
        store.put_meta(batch, _APPLIED_INDEX, applied.to_bytes(8, "big"))
        if not self._says_its_format:
            store.put_meta(batch, _FORMAT, _FORMAT_NOW)
        store.write(batch)
        self._applied, self._history, self._leases = applied, history, pending.leases.after()
        self._says_its_format = True
        if sessions is not None:
            sessions.commit()
        if self._sync_every_update:
            store.sync()
        else:
            store.check()  # before anybody hears of the results
        self._generations.check()
        return results

    def lookup(self, query: Any) -> Any:
        """``Get`` answers ``bytes | None``; ``Scan`` answers ``list[tuple[bytes, bytes]]``.

        ``Changes``, ``DigestOf``, ``TimeNow`` and ``LeaseLeft`` (``verbs/``) answer as they say.
        """
        if isinstance(query, Get):
            key = as_key(query.key)
            try:
                return self._open_store.get(key)
            except StoreClosed:
                return self._ask(lambda store: store.get(key))
        if isinstance(query, Scan):
            checked = scan(query.prefix, query.start, query.limit, query.max_bytes)
            return self._ask(lambda store: _scan(store, checked))
        if isinstance(query, Changes):
            after = changes_after(query.prefix, query.after, query.limit)
            return self._ask(lambda store: page(store, after, _applied_index(store)))
        if isinstance(query, digest.DigestOf):
            of = digest.digest_of(query.prefix, query.index, hashed=query.hashed)
            return self._ask(lambda store: digest.digest(store, of, lambda: _applied_index(store)))
        if isinstance(query, keyleases.TimeNow):
            return self.time()
        if isinstance(query, keyleases.LeaseLeft):
            return self._leases.left(query.lease)
        kind = type(query).__name__
        raise InvalidCommand(f"DiskKV answers Get and Scan, and the queries of verbs/, not {kind}")

    def _ask(self, question: Callable[[Store], Any]) -> Any:
        """Ask the live database, and once more if a snapshot took its place before it was asked."""
        while True:
            store = self._open_store
            try:
                return question(store)
            except StoreClosed:
                if store is self._store:
                    raise

    def time(self) -> keyleases.Time:
        """What the log clock shows. Costs next to nothing."""
        return self._leases.time()

    def sizes(self) -> Sizes:
        """Where its data are: in the write-ahead log, in memory, in tables."""
        return self._open_store.sizes()

    def sync(self) -> None:
        """Make every update so far durable."""
        self._open_store.sync()
        self._generations.check()

    def prepare_snapshot(self) -> DiskKVView:
        """Hold the present state still, as a second database with hard links to the same tables."""
        store, path = self._open_store, self._generations.next_view()
        store.checkpoint(path)
        self._disk.reach("prepare: view made")
        view = DiskKVView(path, self._applied, self._views.discard)
        self._views.add(view)
        return view

    def save_snapshot(self, view: SnapshotView, writer: SnapshotWriter, stopped: threading.Event) -> None:
        """Write the files of a view, which another ``DiskKV`` takes over as they are."""
        if not isinstance(view, DiskKVView):
            raise TypeError(f"DiskKV saves its own views, not a {type(view).__name__}")
        view.save(writer, stopped)

    def recover_from_snapshot(self, reader: SnapshotReader, stopped: threading.Event) -> int:
        """Build another database from the stream, and let it take the place of this one."""
        old, generations = self._open_store, self._generations
        if not old.is_open:
            raise StoreClosed(f"{self._path}: closed")
        path = generations.next_database()
        new: Store | None = None
        try:
            index = receive_files(reader, path, stopped, self._disk)
            new = Store(path, self._disk, create=False)
            self._disk.reach("recover: database opened")
            says_its_format = _check_format(new)
            if (applied := _applied_index(new)) != index:
                raise Corrupt(f"the snapshot says that it holds index {index}, but it holds {applied}")
            sessions = _stored_sessions(new)
            history, leases = stored_history(new, index), stored_leases(new)
            generations.check()
            generations.point_to(path)
        except BaseException:
            if new is not None:
                new.close()
            if generations.points_to(path):  # replaced, but maybe not durably: only ``open`` can go on
                self.close()
            else:
                remove(path)
            raise
        self._sessions, self._history, self._leases = sessions, history, leases
        self._says_its_format = says_its_format
        self._store, self._applied = new, index  # from here on lookups ask the new one
        self._disk.reach("recover: switched")
        with suppress(StorageError):  # what cannot be closed or removed now is a leftover like any other
            old.close()  # waits for lookups that are still reading
        self._disk.reach("recover: old database closed")
        remove(old.path)
        self._disk.reach("recover: old database removed")
        return index

    def close(self) -> None:
        """Close the database, and the views that somebody left open."""
        if self._store is not None:
            try:
                self._close_views()
                self._store.close()
            finally:
                self._generations.close()

    def crash(self) -> None:
        """Lose every update that was never synced, as a power cut may."""
        if self._store is not None:
            try:
                self._close_views()
                self._store.crash()
            finally:
                self._generations.close()

    def _close_views(self) -> None:
        for view in tuple(self._views):
            view.close()


def _apply(command: bytes, index: int, pending: Pending) -> Result:
    """Apply a command to what is pending."""
    try:
        decoded = _decoder.decode(command)
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        return Result(error=f"malformed command: {error}")
    if isinstance(decoded, Put):
        return _set_one(decoded.key, decoded.value, command, index, pending)
    if isinstance(decoded, PutMany):
        return _set_many(decoded.pairs, command, index, pending)
    if isinstance(decoded, Delete | Incr | CompareAndSet):
        return _change(decoded, command, index, pending)
    pending.recording.agree(index)
    if isinstance(decoded, txn.Txn):
        return txn.apply(decoded, index, pending)
    return _lease(decoded, index, pending)


def _change(decoded: Delete | Incr | CompareAndSet, command: bytes, index: int, pending: Pending) -> Result:
    """Apply a command that depends on what its key holds."""
    key = decoded.key
    if len(key) > MAX_KEY_BYTES:
        return Result(error=too_long("key", key, MAX_KEY_BYTES))
    present = pending.get(key)
    if isinstance(decoded, Delete):
        if present is not None:
            pending.data[key] = None
            pending.record(index, command, (key,))
        return Result(present is not None)
    if isinstance(decoded, CompareAndSet):
        if present != decoded.expected:
            return Result(False)
        value, result = decoded.value, Result(True)
    else:
        if present is not None and not _NUMBER.fullmatch(present):
            return Result(error=f"the value of {key!r:.60} is not a number of at most 64 bits")
        number = int(present or 0) + decoded.by
        if number not in _INT64:
            return Result(error=f"the value of {key!r:.60} would leave the range of 64 bits")
        value, result = str(number).encode(), Result(number)
    refused = _set_one(key, value, _encoder.encode(Put(key, value)), index, pending)
    return result if refused.error is None else refused


def _set_one(key: bytes, value: bytes, command: bytes, index: int, pending: Pending) -> Result:
    if len(key) > MAX_KEY_BYTES:
        return Result(error=too_long("key", key, MAX_KEY_BYTES))
    if len(value) > MAX_VALUE_BYTES:
        return Result(error=too_long("value", value, MAX_VALUE_BYTES))
    pending.data[key] = value
    pending.record(index, command, (key,))
    return _DONE


def _set_many(pairs: dict[bytes, bytes], command: bytes, index: int, pending: Pending) -> Result:
    """All or none. Thousands of pairs: so what is done for each of them is done in C."""
    longest_key, longest_value = max(pairs, key=len, default=b""), max(pairs.values(), key=len, default=b"")
    if len(longest_key) > MAX_KEY_BYTES:
        return Result(error=too_long("key", longest_key, MAX_KEY_BYTES))
    if len(longest_value) > MAX_VALUE_BYTES:
        return Result(error=too_long("value", longest_value, MAX_VALUE_BYTES))
    if pairs:
        pending.data.update(pairs)
        pending.record(index, command, pairs)
    return _DONE


def _lease(decoded: keyleases.Command, index: int, pending: Pending) -> Result:
    result, over = pending.leases.apply(decoded, index)
    if over:
        pairs = [(key, None) for key in over]
        pending.data.update(pairs)
        pending.record(index, changed(pairs), over)
    return result


def _check_format(store: Store) -> bool:
    """Refuse what a later version has written; say whether it tells this format.

    A new one does not yet, nor one of an earlier version: the next update adds it. Raises
    ``UnknownVersion`` or ``Corrupt``.
    """
    stored = store.get_meta(_FORMAT)
    if stored is not None and stored != _FORMAT_NOW:
        lines.decode(store.path, stored, _FORMAT_KIND, _FORMAT_VERSION)
    return stored == _FORMAT_NOW


def _applied_index(store: Store) -> int:
    stored = store.get_meta(_APPLIED_INDEX)
    if stored is not None and len(stored) != 8:
        raise Corrupt(f"{store.path}: the applied index is damaged")
    return int.from_bytes(stored or b"", "big")


def _stored_sessions(store: Store) -> Sessions:
    try:
        return Sessions((key[len(_SESSION) :], record) for key, record in store.meta_items(_SESSION))
    except Corrupt as error:
        raise Corrupt(f"{store.path}: {error}") from None


def _scan(store: Store, query: Scan) -> list[tuple[bytes, bytes]]:
    found: list[tuple[bytes, bytes]] = []
    room = math.inf if query.max_bytes is None else query.max_bytes
    with store.iterate(max(query.start, query.prefix)) as pairs:
        for key, value in pairs:
            if not key.startswith(query.prefix):
                break
            if (room := room - len(key) - len(value) - _PAIR_BYTES) < 0:
                raise InvalidCommand(
                    f"the first {len(found) + 1:,} pairs have more than {query.max_bytes:,} bytes: scan "
                    "fewer at once, and go on from the last key"
                )
            found.append((key, value))
            if len(found) == query.limit:
                break
    return found
