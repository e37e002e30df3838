"""Contents: what a replica's newest entries say, which values its state holds, and where RocksDB has them.

A state is asked again only when it has applied something since, or when another key is wanted. So watching a
cluster that rests costs nothing here.
"""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from typing import NamedTuple, Protocol

import msgspec

from ondisk import diskkv, sessions
from ondisk.diskkv import DiskKV
from ondisk.errors import InvalidCommand, OndiskError
from ondisk.raft.records import MEMBERS, NO_OP, REGULAR, LogEntry
from ondisk.replica import Inside, ReplicaStatus
from ondisk.statemachine import OnDiskStateMachine
from ondisk.storage.store import Sizes
from ondisk.verbs import keyleases, txn

NEWEST_ENTRIES = 6  # of each log
MOST_KEYS = 3
_MOST_BYTES = 60  # of a key or a value
_ELECTION_IS_NEAR = 0.7  # seconds; while a leader is heard of, none is as near as that


@dataclass(frozen=True, slots=True)
class SeenEntry:
    """One entry of a log, in words. ``keys`` are those that its command changes, at most ``MOST_KEYS``."""

    index: int
    term: int
    words: str
    keys: tuple[bytes, ...] = ()


class Contents(NamedTuple):
    """What was found in one replica. Of one that has stopped it is what was seen last.

    ``values`` are those of some keys, the most interesting one first; ``None``: it has no such key.
    ``prevotes``: itself and who would vote for it, while it asks before it stands; empty: it does not ask.
    ``election_at`` is when it calls for an election, in seconds of the cluster's clock, if that is near.
    """

    entries: tuple[SeenEntry, ...] = ()
    values: tuple[tuple[str, str | None], ...] = ()
    sizes: Sizes | None = None
    votes: frozenset[int] = frozenset()
    election_at: float | None = None
    prevotes: frozenset[int] = frozenset()
    applied_index: int = 0  # up to where the state had come that holds these values


class Group(Protocol):
    """Replicas that can be looked into: a ``Cluster``, or a simulated one."""

    def inside(self, replica_id: int, entries: int) -> Inside:
        """The newest ``entries`` of one replica's log, and its election; nothing of a stopped one."""

    def machine(self, replica_id: int) -> OnDiskStateMachine:
        """Its state machine. Raises ``OndiskError`` if it does not run."""


class Looker:
    """Looks into the replicas of one cluster, and remembers what it found."""

    def __init__(self, cluster: Group) -> None:
        self.key: str = ""  # whose value is wanted first
        self._cluster = cluster
        self._found: dict[int, Contents] = {}
        self._asked: dict[int, tuple[object, ...]] = {}  # what the values and sizes were found for
        self._keys: tuple[bytes, ...] = ()  # that were written last, the newest first
        self._entries: dict[LogEntry, SeenEntry] = {}  # those in words already

    def look(self, statuses: Mapping[int, ReplicaStatus], now: float) -> dict[int, Contents]:
        """What is in them now, at the time ``now`` of the cluster's clock."""
        insides = {each: self._cluster.inside(each, NEWEST_ENTRIES) for each in statuses}
        self._describe(insides)
        wanted = self._wanted()
        for replica_id, status in statuses.items():
            if status.running:
                self._found[replica_id] = self._look_into(status, insides[replica_id], wanted, now)
            elif (before := self._found.get(replica_id)) is not None:
                self._found[replica_id] = before._replace(
                    votes=frozenset(), election_at=None, prevotes=frozenset()
                )
        return {each: self._found.get(each, Contents()) for each in statuses}

    def _look_into(
        self, status: ReplicaStatus, inside: Inside, wanted: tuple[bytes, ...], now: float
    ) -> Contents:
        before = self._found.get(status.id, Contents())
        values, sizes, applied = before.values, before.sizes, before.applied_index
        asks = (status.applied_index, status.synced_index, status.durable_index, wanted)
        if self._asked.get(status.id) != asks:
            with suppress(OndiskError, OSError):  # it stops in this moment, or its files move
                values, sizes = self._ask(status.id, wanted)
                self._asked[status.id], applied = asks, status.applied_index
        leads = status.role == "leader"
        near = not leads and now - 1 < inside.election_at < now + _ELECTION_IS_NEAR
        return Contents(
            tuple(self._entries[entry] for entry in inside.entries),
            values,
            sizes,
            inside.votes | {status.id} if status.role == "candidate" else frozenset(),
            inside.election_at if near else None,
            frozenset() if inside.prevotes is None else inside.prevotes | {status.id},
            applied,
        )

    def _describe(self, insides: Mapping[int, Inside]) -> None:
        """Put the newest entries of all logs into words, each once, and note which keys they change."""
        newest = {entry for inside in insides.values() for entry in inside.entries}
        fresh = sorted(newest - self._entries.keys(), key=lambda entry: entry.index)
        self._entries = {entry: self._entries.get(entry) or _seen(entry) for entry in newest}
        for entry in fresh:
            keys = self._entries[entry].keys
            self._keys = (*keys, *(key for key in self._keys if key not in keys))[:MOST_KEYS]

    def _wanted(self) -> tuple[bytes, ...]:
        first = self.key.encode(errors="replace")
        return (first, *(key for key in self._keys if key != first))[:MOST_KEYS] if first else self._keys

    def _ask(
        self, replica_id: int, keys: tuple[bytes, ...]
    ) -> tuple[tuple[tuple[str, str | None], ...], Sizes | None]:
        machine = self._cluster.machine(replica_id)
        if not isinstance(machine, DiskKV):  # which questions it answers, nobody knows here
            return (), None
        values = ((key, machine.lookup(diskkv.get(key))) for key in keys if len(key) <= diskkv.MAX_KEY_BYTES)
        said = tuple((as_text(key), None if value is None else as_text(value)) for key, value in values)
        return said, machine.sizes()


def _seen(entry: LogEntry) -> SeenEntry:
    words, keys = _in_words(entry.command)
    return SeenEntry(entry.index, entry.term, words, keys)


def _in_words(command: bytes) -> tuple[str, tuple[bytes, ...]]:
    """What a command of the log says, and which keys it changes."""
    if not command:  # left out on its way here
        return "a long command", ()
    if command.startswith(NO_OP):
        return "a new leader begins", ()
    if command.startswith(MEMBERS):
        return "change of members", ()
    command = command[1:]
    if sessions.is_envelope(command):
        return _of_a_session(command)
    try:
        decoded = diskkv.decode(command)
    except InvalidCommand:
        return f"{len(command):,} bytes", ()
    match decoded:
        case diskkv.PutMany(pairs=pairs):
            return f"put {len(pairs):,} keys", tuple(pairs)[:MOST_KEYS]
        case diskkv.Put(key=key, value=value):
            return f"put {as_text(key)} = {as_text(value)}", (key,)
        case diskkv.Delete(key=key):
            return f"delete {as_text(key)}", (key,)
        case diskkv.Incr(key=key, by=by):
            return f"incr {as_text(key)} by {by}", (key,)
        case diskkv.CompareAndSet(key=key, value=value):
            return f"cas {as_text(key)} = {as_text(value)}", (key,)
        case txn.Txn(then=then, otherwise=otherwise):
            keys = dict.fromkeys(part.key for part in (*then, *otherwise) if not isinstance(part, txn.GetKey))
            return f"txn of {len(keys):,} keys", tuple(keys)[:MOST_KEYS]
        case keyleases.Advance(by=by):
            return f"{by:,} ms have passed", ()
        case _:
            return "a lease of keys", ()


def _of_a_session(command: bytes) -> tuple[str, tuple[bytes, ...]]:
    try:
        envelope = sessions.decode(command)
    except msgspec.DecodeError:
        return "command of a session", ()
    match envelope:
        case sessions.Once(session=session, command=inner):
            words, keys = _in_words(REGULAR + inner)
            return f"{words} (session {session})", keys
        case sessions.Close(session=session):
            return f"end of session {session}", ()
    return "a session begins", ()


def as_text(data: bytes) -> str:
    """As text, and cut where it gets long."""
    text = data[:_MOST_BYTES].decode(errors="backslashreplace")
    return text if len(data) <= _MOST_BYTES else f"{text}… ({len(data):,} bytes)"
