"""Changes: the newest ones with their indexes, so that ``watch`` can tell each of them once, in order.

The history is part of the state: the same batch stores it, snapshots carry it, and a watcher can go on at
any replica. It is bounded, so its beginning is *compacted* as it grows. Who asks for what came before is told
so (``Compacted``), because a gap that nobody mentions would be worse.

What an entry has changed is kept as a command: the ``put``, ``put_many`` or ``delete`` that it came to (of a
``put`` that is the command itself), or, for several keys, ``changed``. A record holds the entries of one
update, since a record for each would cost a write more. Where updates begin differs between replicas, so it
decides nothing: the history is compacted by *segments* of so many bytes, counted entry by entry.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import chain
from typing import Any, ClassVar

import msgspec
from rocksdict import WriteBatch

from ondisk.errors import Compacted, Corrupt, InvalidCommand
from ondisk.storage.store import Store
from ondisk.verbs.texts import Text, as_key

# Part of the state machine: replicas that disagree about these would keep different histories.
SEGMENT_BYTES = 1 << 20
SEGMENTS = 16  # that are whole are kept, and the one that is being filled
ENTRY_BYTES = 32  # that an entry counts beside its change

MAX_UNCHANGED = 10_000  # entries that a comparison looks through

MAX_ENTRIES = 10_000  # in one answer
_ANSWER_BYTES = 1 << 20  # then an answer ends, after a whole entry

_RECORDS = b"changes/"  # and 8 bytes: the index of its last entry
_END_OF_RECORDS = b"changes0"
_HISTORY = b"history"

Pair = tuple[bytes, bytes | None]  # a key, and what it holds now; ``None``: it is gone


class Changed(msgspec.Struct, frozen=True, array_like=True):
    """What one entry of the log has changed. In ``pairs`` is no key twice; ``None``: the key was deleted."""

    index: int
    pairs: tuple[Pair, ...]


class Page(msgspec.Struct, frozen=True, array_like=True):
    """Changes in the order of the log. After ``through`` comes what they do not tell yet."""

    entries: tuple[Changed, ...]
    through: int


class Changes(msgspec.Struct, frozen=True, array_like=True, forbid_unknown_fields=True, tag="changes"):
    """Query: what entries after index ``after`` changed, under a prefix; ``limit`` entries at most.

    Answers a ``Page``, which ends early after 1 MB. Raises ``Compacted``.
    """

    answer: ClassVar[Any] = Page

    prefix: bytes = b""
    after: int = 0
    limit: int = 1000


_encoder = msgspec.msgpack.Encoder()
_records = msgspec.msgpack.Decoder(list[tuple[int, bytes]])
_changes = msgspec.msgpack.Decoder()


def changes_after(prefix: Text = b"", after: int = 0, limit: int = 1000) -> Changes:
    """The query for changes after an index. Raises ``InvalidCommand``."""
    if not isinstance(after, int) or not 0 <= after < 1 << 63:  # type: ignore[redundant-expr]
        raise InvalidCommand("changes are asked for after an index: a whole number, at least 0")
    if not isinstance(limit, int) or not 0 < limit <= MAX_ENTRIES:  # type: ignore[redundant-expr]
        raise InvalidCommand(f"the limit is a whole number of entries from 1 to {MAX_ENTRIES:,}")
    return Changes(as_key(prefix), after, limit)


def changed(pairs: Sequence[Pair]) -> bytes:
    """A change of several keys, as the history keeps it."""
    return _encoder.encode(("changed", pairs))


def _pairs(change: bytes) -> list[Pair]:
    """What a change has set and deleted."""
    told: Any = _changes.decode(change)
    match told:
        case ["put", key, value]:
            return [(key, value)]
        case ["delete", key]:
            return [(key, None)]
        case ["put_many", pairs]:
            return list(pairs.items())
        case _:
            return [(key, value) for key, value in told[1]]


class ChangeHistory(msgspec.Struct, frozen=True, array_like=True, tag=1):
    """As of the last update: all changes after ``since`` are there. The tag is the version of this format.

    ``ends``: index of the last entry of each whole segment. ``bytes``: in the one that is being filled.
    ``agreed``: since this entry all replicas have kept a history; ``None``: none of the log has said so yet.
    """

    since: int = 0
    ends: tuple[int, ...] = ()
    bytes: int = 0
    agreed: int | None = None


_histories = msgspec.msgpack.Decoder(ChangeHistory)


def stored_history(store: Store, applied: int) -> ChangeHistory:
    """The history that a database holds. One of the version before has none: it begins after ``applied``.

    So does a new one, with 0.

    Raises ``Corrupt``.
    """
    stored = store.get_meta(_HISTORY)
    if stored is None:
        return ChangeHistory(applied)
    try:
        return _histories.decode(stored)
    except msgspec.DecodeError as error:
        raise Corrupt(f"{store.path}: the record of the history is damaged: {error}") from None


class Recording:
    """What one update adds to the history."""

    def __init__(self, history: ChangeHistory, segment_bytes: int = SEGMENT_BYTES) -> None:
        self.history = history
        self._segment_bytes = segment_bytes
        self._entries: list[tuple[int, bytes]] = []
        self._bytes = history.bytes
        self._since, self._agreed = history.since, history.agreed  # as they are stored

    def add(self, index: int, change: bytes) -> None:
        """Entry ``index`` made this change."""
        self._entries.append((index, change))
        self._bytes += len(change) + ENTRY_BYTES
        if self._bytes >= self._segment_bytes:
            self._end_segment(index)

    def _end_segment(self, index: int) -> None:
        history = self.history
        since, ends = history.since, (*history.ends, index)
        if len(ends) > SEGMENTS:
            since, ends = ends[0], ends[1:]
        self.history = ChangeHistory(since, ends, 0, history.agreed)
        self._bytes = 0

    def agree(self, index: int) -> None:
        """Entry ``index`` is of a kind that the version before did not know, so that one is gone everywhere.

        Until then a history began where its replica was upgraded. From now on all are compacted alike, and
        may decide something: see ``is_unchanged``.
        """
        if self.history.agreed is None:
            self.history = ChangeHistory(self.history.since, (index,), 0, index)
            self._bytes = 0

    def is_unchanged(self, store: Store, key: bytes, since: int, index: int) -> bool:
        """Whether no entry after ``since`` and before ``index`` has changed a key.

        ``False`` also if the history does not go back so far, or it would take long to find out.
        """
        history = self.history
        if since < max(history.since, history.agreed or 0, index - MAX_UNCHANGED):
            return False
        entries = chain(_entries(store, since), (entry for entry in self._entries if entry[0] > since))
        # Most of them do not hold the key's bytes at all.
        return not any(key in change and key in dict(_pairs(change)) for _, change in entries)

    def store(self, store: Store, batch: WriteBatch, *, first: bool) -> ChangeHistory:
        """Add it to the batch of the update; return what the history is once that is written.

        ``first``: there is no record yet.
        """
        if not self._entries and self.history.agreed == self._agreed and not first:
            return self.history
        after = msgspec.structs.replace(self.history, bytes=self._bytes)
        if self._entries:
            last = self._entries[-1][0]
            store.put_meta(batch, _RECORDS + last.to_bytes(8, "big"), _encoder.encode(self._entries))
        if after.since > self._since:
            store.delete_meta(batch, _RECORDS, _RECORDS + (after.since + 1).to_bytes(8, "big"))
        store.put_meta(batch, _HISTORY, _encoder.encode(after))
        return after


def _entries(store: Store, after: int) -> Iterator[tuple[int, bytes]]:
    """Entries after an index with the change that each made."""
    with store.iterate_meta(_RECORDS + (after + 1).to_bytes(8, "big")) as records:
        for key, record in records:
            if not key.startswith(_RECORDS):
                return
            for index, change in _records.decode(record):
                if index > after:
                    yield index, change


def page(store: Store, query: Changes, applied: int) -> Page:
    """The answer to a query, of a database that holds ``applied`` at least. Raises ``Compacted``."""
    found: list[Changed] = []
    through, size = applied, 0
    with store.iterate_meta(_RECORDS + (query.after + 1).to_bytes(8, "big")) as records:
        # In this order: what is removed from now on, the walk still sees.
        since = stored_history(store, applied).since
        if query.after < since:
            raise Compacted(
                f"the changes up to entry {since} are compacted, and you asked for those after entry "
                f"{query.after}: read the contents anew, and go on from there"
            )
        for key, record in records:
            if not key.startswith(_RECORDS):
                break
            for index, change in _records.decode(record):
                if index <= query.after:
                    continue
                if len(found) == query.limit or size >= _ANSWER_BYTES:
                    return Page(tuple(found), through)
                pairs = tuple(pair for pair in _pairs(change) if pair[0].startswith(query.prefix))
                through = index
                if pairs:
                    found.append(Changed(index, pairs))
                    size += sum(len(key) + len(value or b"") for key, value in pairs)
    return Page(tuple(found), max(through, applied))
