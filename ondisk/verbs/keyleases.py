"""Key leases: keys that go when nobody keeps them, decided by the log and not by a clock of one replica.

A *key lease* has a time to live. Keys are put under it (``txn.put(..., lease=...)``), and when it ends they
are deleted, all in one entry. Who holds it keeps it alive by ``KeepLease``.

What time it is stands in the log: ``Advance`` says that so many milliseconds have passed since the *log
clock* showed ``seen``. It counts only if the clock still shows that. So each stretch of time is counted once,
whoever proposes it: it begins when somebody has seen the clock, and ends before the next reading can be seen.
The log clock is therefore never ahead of real time by more than the proposers' clocks run too fast, and it
stands still while nobody leads (``ticking.py``).

At the moment of a grant it may be behind by the stretch that is being measured, which the next ``Advance``
counts in full. A stretch has at most ``MAX_TICK`` milliseconds, and a deadline has so many more: a lease ends
late, but not early. (etcd and Chubby do as much: a new leader begins the time of all leases anew.)
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Annotated, Any, ClassVar

import msgspec

from ondisk.errors import Corrupt, InvalidCommand
from ondisk.statemachine import Result
from ondisk.storage.store import Store

# Part of the state machine: replicas that disagree about these would reach different states.
MAX_LEASES = 4096
MAX_LEASED_KEYS = 65_536
MAX_TICK = 1000  # milliseconds that one entry may count
MIN_TTL, MAX_TTL = 100, 10 * 365 * 86_400_000  # milliseconds

NO_LEASE = "there is no such lease: it has ended. Nothing was changed"

_LEASE = b"lease/"  # and 8 bytes: its id
_LEASED = b"leased/"  # and the key
_CLOCK = b"log_clock"

_Index = Annotated[int, msgspec.Meta(ge=1, le=(1 << 63) - 1)]
_Milliseconds = Annotated[int, msgspec.Meta(ge=0, le=(1 << 62))]


class _Command(msgspec.Struct, frozen=True, array_like=True, forbid_unknown_fields=True):
    """An array that begins with its tag, like the other commands of ``DiskKV``."""


class GrantLease(_Command, frozen=True, tag="grant"):
    """Begin a lease. Answers its id: the index of this entry."""

    ttl: Annotated[int, msgspec.Meta(ge=MIN_TTL, le=MAX_TTL)]


class KeepLease(_Command, frozen=True, tag="keep"):
    """Begin its time anew. Answers whether there is such a lease."""

    lease: _Index


class EndLease(_Command, frozen=True, tag="end"):
    """End a lease, and delete its keys. Answers whether there was one."""

    lease: _Index


class Advance(_Command, frozen=True, tag="advance"):
    """``by`` milliseconds have passed since the log clock showed ``seen``. Answers what it shows now."""

    seen: _Milliseconds
    by: _Milliseconds


Command = GrantLease | KeepLease | EndLease | Advance


class Time(msgspec.Struct, frozen=True, array_like=True):
    """What the log clock shows, in milliseconds, and how many leases wait for it."""

    clock: int
    leases: int


class TimeNow(msgspec.Struct, frozen=True, array_like=True, forbid_unknown_fields=True, tag="time"):
    """Query: answers ``Time``."""

    answer: ClassVar[Any] = Time


class Left(msgspec.Struct, frozen=True, array_like=True):
    """Of a lease: its time to live and what is left of it by the log clock, in milliseconds, and its keys."""

    ttl: int
    left: int
    keys: tuple[bytes, ...]


class LeaseLeft(msgspec.Struct, frozen=True, array_like=True, forbid_unknown_fields=True, tag="lease"):
    """Query: answers ``Left``, or ``None`` if there is no such lease."""

    answer: ClassVar[Any] = Left | None

    lease: int


class Lease(msgspec.Struct, frozen=True, array_like=True, tag=1):
    """One lease, in milliseconds of the log clock. The tag is the version of this format."""

    ttl: int
    deadline: int


_encoder = msgspec.msgpack.Encoder()
_leases = msgspec.msgpack.Decoder(Lease)


def grant(ttl: float) -> bytes:
    """The command that begins a lease of so many seconds. Raises ``InvalidCommand``."""
    if not isinstance(ttl, int | float) or not MIN_TTL <= ttl * 1000 <= MAX_TTL:  # type: ignore[redundant-expr]
        raise InvalidCommand(f"a time to live is at least {MIN_TTL / 1000:g} seconds, not {ttl!r:.60}")
    return _encoder.encode(GrantLease(round(ttl * 1000)))


def keep(lease: int) -> bytes:
    """The command that begins the time of a lease anew."""
    return _encoder.encode(KeepLease(lease))


def end(lease: int) -> bytes:
    """The command that ends a lease."""
    return _encoder.encode(EndLease(lease))


def advance(seen: int, by: int) -> bytes:
    """The command that says that time has passed."""
    return _encoder.encode(Advance(seen, by))


class KeyLeases:
    """All leases as of the last update. Never changed: an update makes another one."""

    def __init__(self, clock: int, leases: dict[int, Lease], keys: dict[bytes, int]) -> None:
        """``keys``: the lease of each key that has one."""
        self.clock = clock
        self.leases = leases
        self.keys = keys

    def time(self) -> Time:
        """The answer to ``TimeNow``."""
        return Time(self.clock, len(self.leases))

    def left(self, lease: int) -> Left | None:
        """The answer to ``LeaseLeft``."""
        found = self.leases.get(lease)
        if found is None:
            return None
        keys = tuple(sorted(key for key, under in self.keys.items() if under == lease))
        return Left(found.ttl, max(0, found.deadline - self.clock), keys)


def stored_leases(store: Store) -> KeyLeases:
    """Those that a database holds. Raises ``Corrupt``."""
    try:
        leases = {
            int.from_bytes(key[len(_LEASE) :], "big"): _leases.decode(record)
            for key, record in store.meta_items(_LEASE)
        }
    except msgspec.DecodeError as error:
        raise Corrupt(f"{store.path}: the record of a lease is damaged: {error}") from None
    keys = {key[len(_LEASED) :]: int.from_bytes(lease, "big") for key, lease in store.meta_items(_LEASED)}
    return KeyLeases(int.from_bytes(store.get_meta(_CLOCK) or b"", "big"), leases, keys)


class Batch:
    """What one update makes of the leases."""

    tick_margin: ClassVar[int] = MAX_TICK

    def __init__(self, table: KeyLeases) -> None:
        self._table = table
        self._clock = table.clock
        self.leases, self.keys = table.leases, table.keys  # copied before anything is changed in them
        self._touched: dict[int, None] = {}
        self._moved: dict[bytes, None] = {}

    def apply(self, command: Command, index: int) -> tuple[Result, list[bytes]]:
        """The result, and the keys that go."""
        if isinstance(command, GrantLease):
            if len(self.leases) >= MAX_LEASES:
                return Result(error=f"there are {MAX_LEASES:,} leases already, and no more are allowed"), []
            self._set(index, Lease(command.ttl, self._deadline(command.ttl)))
            return Result(index), []
        if isinstance(command, Advance):
            if not self._counts(command):
                return Result(self._clock), []
            self._clock += min(command.by, MAX_TICK)
            over = sorted(lease for lease, found in self.leases.items() if found.deadline <= self._clock)
            return Result(self._clock), self._end(over)
        found = self.leases.get(command.lease)
        if found is None:
            return Result(False), []
        if isinstance(command, EndLease):
            return Result(True), self._end([command.lease])
        self._set(command.lease, Lease(found.ttl, self._deadline(found.ttl)))
        return Result(True), []

    def _deadline(self, ttl: int) -> int:
        return self._clock + ttl + self.tick_margin

    def _counts(self, command: Advance) -> bool:
        """Whether nobody else has counted the same time, or some of it."""
        return command.seen == self._clock

    def refuses(self, keys: Iterable[tuple[bytes, int]]) -> str | None:
        """Why these keys cannot be put under these leases; ``None``: they can."""
        wanted = dict(keys)
        if any(lease not in self.leases for lease in wanted.values()):
            return NO_LEASE
        if len(self.keys.keys() | wanted.keys()) > MAX_LEASED_KEYS:
            return f"{len(self.keys):,} keys are under leases, and at most {MAX_LEASED_KEYS:,} are allowed"
        return None

    def attach(self, key: bytes, lease: int) -> None:
        """A key was put under a lease."""
        self._own_keys()[key] = lease
        self._moved[key] = None

    def detach(self, keys: Iterable[bytes]) -> None:
        """These were set or deleted without a lease, and have none any more."""
        for key in [key for key in keys if key in self.keys]:
            del self._own_keys()[key]
            self._moved[key] = None

    def _set(self, lease: int, to: Lease) -> None:
        self._own_leases()[lease] = to
        self._touched[lease] = None

    def _end(self, ended: list[int]) -> list[bytes]:
        for lease in ended:
            del self._own_leases()[lease]
            self._touched[lease] = None
        gone = set(ended)
        return sorted(key for key, lease in self.keys.items() if lease in gone) if gone else []

    def _own_leases(self) -> dict[int, Lease]:
        if self.leases is self._table.leases:
            self.leases = dict(self.leases)
        return self.leases

    def _own_keys(self) -> dict[bytes, int]:
        if self.keys is self._table.keys:
            self.keys = dict(self.keys)
        return self.keys

    def records(self) -> Iterator[tuple[bytes, bytes | None]]:
        """What to store, or (``None``) to delete."""
        if self._clock != self._table.clock:
            yield _CLOCK, self._clock.to_bytes(8, "big")
        for lease in self._touched:
            found = self.leases.get(lease)
            yield _LEASE + lease.to_bytes(8, "big"), None if found is None else _encoder.encode(found)
        for key in self._moved:
            under = self.keys.get(key)
            yield _LEASED + key, None if under is None else under.to_bytes(8, "big")

    def after(self) -> KeyLeases:
        """The leases once the update is stored."""
        if not self._touched and not self._moved and self._clock == self._table.clock:
            return self._table
        return KeyLeases(self._clock, self.leases, self.keys)
