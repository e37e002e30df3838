"""What a client can ask: the same for one replica (``Node``) and for a whole ``Cluster``.

Every call has a deadline, ``timeout`` in seconds. Errors say whether a write may have happened: see
``errors.py``. A ``Result`` that carries an error is raised as ``Rejected`` by the key-value calls, and
returned as it is by ``propose``.

A write through a ``Session`` is applied once, however often it had to be sent: see ``sessions.py``.
"""

from __future__ import annotations

import math
import threading
import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from contextlib import suppress
from typing import Any, TypeVar

from ondisk import bulk, diskkv, sessions
from ondisk.bulk import BulkLoad, Pairs
from ondisk.diskkv import Text
from ondisk.errors import (
    CommandTooLarge,
    InvalidCommand,
    LeaseEnded,
    NoLeader,
    NotDone,
    OndiskError,
    OutcomeUnknown,
    Rejected,
    SessionExpiredNotDone,
    SessionExpiredUnknown,
    Timeout,
    Unfinished,
)
from ondisk.interrupts.shielded import Turn, seconds_to_wait, still_wanted
from ondisk.locks import Held, KeyLease, holder, take
from ondisk.statemachine import Result
from ondisk.verbs import changes, digest, keyleases, txn
from ondisk.watching import Watch

DEFAULT_TIMEOUT = 3.0  # seconds, as in the original example

Via = int | str | None
"""Whom to ask: a replica by its number; of a client that is no member also one of its endpoints; or whoever
can."""

_FIRST_ATTEMPT = 1.0  # seconds that a session waits before it sends again; then twice as long, and so on
_PAUSE = 0.02  # seconds between two attempts, for the first may have failed at once

_UNDER_WAY = "another call of this session is under way"

_T = TypeVar("_T")


def checked(timeout: float) -> float:
    """A timeout that can be waited for, in seconds. Raises ``InvalidCommand`` for what is no number."""
    if not isinstance(timeout, int | float) or math.isnan(timeout):  # type: ignore[redundant-expr]
        raise InvalidCommand(f"a timeout is a number of seconds, not {timeout!r:.60}")
    return min(timeout, threading.TIMEOUT_MAX)


def wait_for(future: Future[_T], timeout: float) -> _T:
    """The future's result. After ``timeout`` seconds ``NoLeader`` if it was never begun, else ``Timeout``."""
    timeout = checked(timeout)
    deadline = time.monotonic() + timeout
    while True:
        try:
            return future.result(seconds_to_wait(max(0.0, deadline - time.monotonic())))
        except TimeoutError:
            if future.done() and not future.cancelled():
                return future.result()
            if time.monotonic() < deadline:
                continue
            if future.cancel():
                raise NoLeader(f"no leader answered within {timeout:.3g} s; nothing was proposed") from None
            if future.done():  # in this very moment
                return future.result()
            raise Timeout(
                f"proposed, but not known to be committed within {timeout:.3g} s: it may still happen"
            ) from None


def insist(ask: Callable[[float], _T], deadline: float, *, unknown: bool = False) -> tuple[_T, bool]:
    """``ask`` again and again until there is an answer: for requests that may be repeated.

    It is told how many seconds it has, and ``deadline`` is a time of ``time.monotonic``. Returns the answer,
    and whether some earlier attempt had an unknown outcome (``unknown``: it is so from the start). Raises
    ``OutcomeUnknown`` if one had, and otherwise what the last attempt raised: then none has had any effect.
    """
    seconds = _FIRST_ATTEMPT
    while True:
        try:
            return ask(min(seconds, max(0.0, deadline - time.monotonic()))), unknown
        except OutcomeUnknown:
            unknown = True
        except OndiskError as error:
            hopeless = isinstance(error, CommandTooLarge | InvalidCommand) or not isinstance(error, NotDone)
            if not unknown and (hopeless or time.monotonic() >= deadline):
                raise
            if hopeless:
                raise OutcomeUnknown(f"{error}. An earlier attempt may have been applied") from error
        if time.monotonic() >= deadline:
            raise Timeout("proposed, but not known to be applied before the deadline")
        still_wanted()
        time.sleep(_PAUSE)
        seconds *= 2


class Number(Result):
    """The result of ``incr``: its value is the new number."""

    value: int


class Truth(Result):
    """The result of ``delete`` and ``compare_and_set``: its value says whether something was changed."""

    value: bool


class Writes(ABC):
    """The commands of ``DiskKV``, for whoever can ``propose``."""

    @abstractmethod
    def propose(self, command: bytes, *, via: Via = None, timeout: float = DEFAULT_TIMEOUT) -> Result:
        """Replicate a command and wait until it is applied."""

    def put(self, key: Text, value: Text, *, via: Via = None, timeout: float = DEFAULT_TIMEOUT) -> Result:
        """Set a key. Returns when the write is durable on a majority and applied."""
        return self._command(diskkv.put(key, value), via, timeout)

    def delete(self, key: Text, *, via: Via = None, timeout: float = DEFAULT_TIMEOUT) -> Truth:
        """Remove a key. ``value`` of the result says whether it was there."""
        return Truth(*self._command(diskkv.delete(key), via, timeout))

    def incr(self, key: Text, by: int = 1, *, via: Via = None, timeout: float = DEFAULT_TIMEOUT) -> Number:
        """Add to a number (a missing key counts as 0). ``value`` of the result is the new number."""
        return Number(*self._command(diskkv.incr(key, by), via, timeout))

    def compare_and_set(
        self,
        key: Text,
        expected: Text | None,
        value: Text,
        *,
        via: Via = None,
        timeout: float = DEFAULT_TIMEOUT,
    ) -> Truth:
        """Set a key if it holds ``expected`` (``None``: if it is missing). ``value`` says whether it did."""
        return Truth(*self._command(diskkv.compare_and_set(key, expected, value), via, timeout))

    def txn(
        self,
        compare: Sequence[txn.Compare] = (),
        then: Sequence[txn.Operation] = (),
        otherwise: Sequence[txn.Operation] = (),
        *,
        via: Via = None,
        timeout: float = DEFAULT_TIMEOUT,
    ) -> txn.Answer:
        """Do ``then`` if all of ``compare`` holds, and otherwise ``otherwise``, in one step.

        The parts are made by ``ondisk.verbs.txn``: ``equals``, ``exists``, ``missing``, ``unchanged``; and
        ``put``, ``delete``, ``get``. At most 128 of each, and a branch writes a key once at most.
        """
        result = self._command(txn.txn(compare, then, otherwise), via, timeout)
        if result.error is not None:  # it was done, and nobody can say what came out
            raise OutcomeUnknown(result.error)
        return txn.answer(result.value)

    def _command(self, command: bytes, via: Via, timeout: float) -> Result:
        return done(self.propose(command, via=via, timeout=timeout))


def done(result: Result) -> Result:
    """The result of a command that was done. Raises ``Rejected`` if the state machine refused it."""
    if result.error == keyleases.NO_LEASE:
        raise LeaseEnded(result.error)
    if result.error is not None and not result.error.startswith(sessions.APPLIED_BUT):
        raise Rejected(result.error)
    return result


class Client(Writes):
    """Proposals and reads for any state machine, and the commands of ``DiskKV``."""

    # Any state machine

    @abstractmethod
    def propose_async(
        self, command: bytes, *, via: Via = None, timeout: float = DEFAULT_TIMEOUT
    ) -> Future[Result]:
        """Replicate a command. The future ends with its ``Result`` once it is applied, or with an error.

        ``via`` is the replica to ask; it forwards to the leader if it must. Callbacks of the future run in
        the replica's thread and must be quick.
        """

    @abstractmethod
    def read(
        self, query: Any, *, via: Via = None, timeout: float = DEFAULT_TIMEOUT, lease: bool = False
    ) -> Any:
        """A linearizable read: it sees every write that was acknowledged, anywhere, before this call.

        Any replica can answer: it asks the leader how far it must have applied, and looks there.
        Raises ``NoLeader`` if nobody can confirm that in time.

        ``lease``: the leader need not ask the others while it has a lease. That is quicker, and right only
        as long as no clock of the group drifts more than ``Timing.clock_drift`` says: see docs/leases.md.
        Raises ``ConfigurationError`` if that says nothing.
        """

    @abstractmethod
    def read_async(
        self, query: Any, *, via: Via = None, timeout: float = DEFAULT_TIMEOUT, lease: bool = False
    ) -> Future[Any]:
        """A linearizable read, without waiting for its answer: many that are under way share one round.

        The replica's thread looks it up, as it runs the callbacks of the future: ask so for what is found
        quickly, a key or a small page.
        """

    @abstractmethod
    def stale_read(self, query: Any, *, via: Via = None) -> Any:
        """What this replica's own state says, asking nobody. It may be old, even by hours."""

    def propose(self, command: bytes, *, via: Via = None, timeout: float = DEFAULT_TIMEOUT) -> Result:
        """Replicate a command and wait until it is applied.

        Raises ``NotDone`` (it had no effect) or ``OutcomeUnknown`` (it may have).
        """
        return wait_for(self.propose_async(command, via=via, timeout=timeout), timeout)

    def session(self, *, via: Via = None, timeout: float = DEFAULT_TIMEOUT) -> Session:
        """Open a session: what is written through it is applied once, however often it had to be sent.

        Costs one write. Raises ``ConfigurationError`` if the state machine offers no sessions, and otherwise
        what ``propose`` raises: a session that nobody uses does no harm.
        """

        def register(seconds: float) -> Result:
            self._check_sessions(via)
            return self.propose(sessions.register(), via=via, timeout=seconds)

        result, _ = insist(register, time.monotonic() + checked(timeout))
        if not isinstance(result.value, int):
            raise Rejected(f"no session was opened: {result.error}")
        return Session(self, result.value)

    def _check_sessions(self, via: Via) -> None:
        """Raise ``ConfigurationError`` if it can be told that the state machine offers no sessions."""

    # The group

    @abstractmethod
    def add_replica(self, replica_id: int, address: str = "", *, timeout: float = DEFAULT_TIMEOUT) -> None:
        """Make another replica a member, at ``address`` (``host:port``, on TCP).

        It is sent everything from then on, and becomes a voter when it has caught up. Raises ``Rejected``
        for an id that is a member or was removed.
        """

    @abstractmethod
    def remove_replica(self, replica_id: int, *, timeout: float = DEFAULT_TIMEOUT) -> None:
        """Take a member out of the group, for good: its id is never let in again."""

    @abstractmethod
    def replace_replica(self, replica_id: int, *, timeout: float = DEFAULT_TIMEOUT) -> None:
        """Take the disk of a voter for lost: it never counts again, and the number becomes a learner.

        What is started under this number with an empty directory catches up, and becomes a voter. Raises
        ``Rejected`` unless a majority of the others is there: without it nobody could go on.
        """

    @abstractmethod
    def move_replica(self, replica_id: int, address: str, *, timeout: float = DEFAULT_TIMEOUT) -> None:
        """Say where a member is from now on (``host:port``, on TCP), also while it is away."""

    @abstractmethod
    def transfer_leadership(self, to: int, *, timeout: float = DEFAULT_TIMEOUT) -> None:
        """Let another voter lead. Raises ``OutcomeUnknown`` if it did not take over in time: it still may."""

    # DiskKV

    def put_async(
        self, key: Text, value: Text, *, via: Via = None, timeout: float = DEFAULT_TIMEOUT
    ) -> Future[Result]:
        """Set a key without waiting; have as many under way as you like."""
        return self.propose_async(diskkv.put(key, value), via=via, timeout=timeout)

    def put_many(
        self,
        pairs: Pairs,
        *,
        via: Via = None,
        timeout: float = bulk.TIMEOUT,
        progress: Callable[[BulkLoad], object] | None = None,
    ) -> int:
        """Set many keys, in their order; return how many pairs there were when all of them are stored.

        The same as ``bulk_load(...).run()``. Nothing joins the pairs but the order: others see a part of
        them meanwhile.
        """
        return self.bulk_load(pairs, via=via, timeout=timeout, progress=progress).run()

    def bulk_load(
        self,
        pairs: Pairs,
        *,
        via: Via = None,
        timeout: float = bulk.TIMEOUT,
        progress: Callable[[BulkLoad], object] | None = None,
        window_bytes: int = bulk.WINDOW_BYTES,
        batch_bytes: int = bulk.BATCH_BYTES,
    ) -> BulkLoad:
        """Prepare to set many keys: ``run`` of what is returned does it, and says what was done if it fails.

        ``pairs`` are ``(key, value)`` from any iterable, which is consumed as room becomes free: at most
        ``window_bytes``, and a command of ``batch_bytes`` more, wait in memory to be stored. ``timeout`` is
        the longest time without any progress, not that of the whole. ``progress`` is called with the load
        after each command that is stored, by whoever runs it: ``print`` shows how far it is.

        A load has a session of its own, and sends again by itself what failed: see ``bulk.py``.
        """
        return BulkLoad(
            self,
            pairs,
            via=via,
            timeout=checked(timeout),
            progress=progress,
            window_bytes=window_bytes,
            batch_bytes=batch_bytes,
        )

    def get(
        self, key: Text, *, via: Via = None, timeout: float = DEFAULT_TIMEOUT, lease: bool = False
    ) -> bytes | None:
        """The value of a key, ``None`` if it is missing. Linearizable: see ``read``."""
        value: bytes | None = self.read(diskkv.get(key), via=via, timeout=timeout, lease=lease)
        return value

    def get_async(
        self, key: Text, *, via: Via = None, timeout: float = DEFAULT_TIMEOUT, lease: bool = False
    ) -> Future[bytes | None]:
        """The value of a key without waiting; have as many under way as you like. See ``read_async``."""
        return self.read_async(diskkv.get(key), via=via, timeout=timeout, lease=lease)

    def stale_get(self, key: Text, *, via: Via = None) -> bytes | None:
        """What this replica's own state says, asking nobody: maybe an old value."""
        value: bytes | None = self.stale_read(diskkv.get(key), via=via)
        return value

    def scan(
        self,
        prefix: Text = b"",
        *,
        start: Text = b"",
        limit: int = 100,
        via: Via = None,
        timeout: float = DEFAULT_TIMEOUT,
        lease: bool = False,
    ) -> list[tuple[bytes, bytes]]:
        """Pairs in key order, from one point in time. Linearizable: see ``read``."""
        query = diskkv.scan(prefix, start, limit)
        pairs: list[tuple[bytes, bytes]] = self.read(query, via=via, timeout=timeout, lease=lease)
        return pairs

    def changes(
        self,
        prefix: Text = b"",
        after: int = 0,
        limit: int = 1000,
        *,
        via: Via = None,
        timeout: float = DEFAULT_TIMEOUT,
    ) -> changes.Page:
        """What entries after index ``after`` have changed under a prefix, in order: at most ``limit``.

        To go on, ask for what comes after ``through`` of the answer. Raises ``Compacted`` if the history does
        not go back so far. Linearizable: see ``read``.
        """
        query = changes.changes_after(prefix, after, limit)
        page: changes.Page = self.read(query, via=via, timeout=timeout)
        return page

    def watch(
        self,
        prefix: Text = b"",
        from_index: int | None = None,
        *,
        via: Via = None,
        timeout: float = DEFAULT_TIMEOUT,
    ) -> Watch:
        """An endless iterator over the changes under a prefix, from an index on: see ``watching.py``.

        ``None``: from now on. ``timeout``: for so many seconds it goes on asking while nobody can answer.
        """
        return Watch(self, changes.changes_after(prefix, 0), from_index, via=via, timeout=checked(timeout))

    def key_lease(self, ttl: float, *, timeout: float = DEFAULT_TIMEOUT) -> KeyLease:
        """Begin a lease of ``ttl`` seconds: keys that are put under it go when nobody keeps it alive.

        ``with`` it, a thread does. It may end seconds later than it says, and not earlier: docs/verbs.md.
        """
        return KeyLease(self, ttl, timeout=checked(timeout))

    def lock(self, name: Text, *, ttl: float = 10.0, timeout: float = math.inf) -> Held:
        """Wait until nobody else holds this lock, and hold it: ``with client.lock("jobs") as held: ...``.

        The lock is the key ``name``. If its holder is gone it is free after ``ttl`` seconds and some more.
        ``held.token`` is the fencing token: see ``locks.py`` for what a lock promises.
        """
        return take(self, name, b"", ttl, checked(timeout))

    def elect(self, name: Text, value: Text, *, ttl: float = 10.0, timeout: float = math.inf) -> Held:
        """Wait until nobody else leads, and lead. ``value`` tells ``elected(name)`` who that is."""
        return take(self, name, value, ttl, checked(timeout))

    def elected(self, name: Text, *, timeout: float = DEFAULT_TIMEOUT) -> bytes | None:
        """What the one who leads has said of itself; ``None``: nobody does."""
        return holder(self.get(name, timeout=timeout))

    def digest(
        self,
        prefix: Text = b"",
        *,
        index: int | None = None,
        hashed: bool = True,
        via: Via = None,
        timeout: float = DEFAULT_TIMEOUT,
    ) -> digest.Digest:
        """The hash of all pairs under a prefix, how many they are, and their bytes, as of some index.

        Two replicas (``via``) that tell the same ``index`` tell the same hash. ``index``: as of this entry;
        raises ``Compacted`` if there were changes since. It reads everything under the prefix: about a second
        for 1 GB. Without ``hashed`` it counts only. Linearizable: see ``read``.
        """
        found: digest.Digest = self.read(
            digest.digest_of(prefix, index, hashed=hashed), via=via, timeout=timeout
        )
        return found


class Session(Writes):
    """Writes that are applied once each: what was sent again because nobody heard its outcome is recognized.

    A context manager. Used by one caller at a time (a second one waits); they are cheap, so have many. The
    group remembers the 4096 that were used last.

    Each call sends its command until the outcome is known, or ``timeout`` has passed; ``via`` names the only
    replica to ask, otherwise it is any that runs. If ``OutcomeUnknown`` is raised, the session remembers the
    command: ``resume`` finishes it, and until then others are refused with ``Unfinished``. (Doing the old one
    first, silently, would count an ``incr`` twice for everybody who answers the error by another ``incr``.)
    """

    def __init__(self, client: Client, session_id: int) -> None:
        """Made by ``Client.session``."""
        self.id = session_id
        self._client = client
        self._turn = Turn()
        self._sequence = 0
        self._unfinished: bytes | None = None  # the last envelope, if its outcome is unknown
        self._closed = False

    def propose(self, command: bytes, *, via: Via = None, timeout: float = DEFAULT_TIMEOUT) -> Result:
        """Apply a command once, and return its result: a small one, see ``sessions.py``.

        Raises ``NotDone`` (it had no effect), ``OutcomeUnknown`` (call ``resume``), or ``SessionExpired``.
        """
        deadline = time.monotonic() + checked(timeout)
        with self._turn.before(deadline, lambda: Unfinished(_UNDER_WAY)):
            if self._closed:
                raise SessionExpiredNotDone("the session is closed")
            if self._unfinished is not None:
                raise Unfinished("the outcome of the command before is unknown: resume() it first")
            self._sequence += 1  # not used again, whatever happens
            return self._finish(sessions.once(self.id, self._sequence, command), via, deadline)

    def resume(self, *, via: Via = None, timeout: float = DEFAULT_TIMEOUT) -> Result:
        """Finish the command whose outcome is unknown, and return its result as ``propose`` does.

        Raises ``OutcomeUnknown`` again, ``SessionExpired``, or ``Rejected`` if there is no such command.
        """
        deadline = time.monotonic() + checked(timeout)
        with self._turn.before(deadline, lambda: Unfinished(_UNDER_WAY)):
            if self._unfinished is None:
                raise Rejected("no command of this session is unfinished")
            if self._closed:
                raise SessionExpiredUnknown("the session was closed before the outcome was known")
            return self._finish(self._unfinished, via, deadline)

    def close(self, *, timeout: float = 1.0) -> None:
        """Let the group forget the session. A second call does nothing.

        If that cannot be done within ``timeout`` it is left open: newer ones will push it out.
        """
        with self._turn.before(time.monotonic() + DEFAULT_TIMEOUT, lambda: Unfinished(_UNDER_WAY)):
            if not self._closed:
                self._closed = True
                with suppress(OndiskError):
                    wait_for(self._client.propose_async(sessions.close(self.id), timeout=timeout), timeout)

    def __enter__(self) -> Session:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _finish(self, envelope: bytes, via: Via, deadline: float) -> Result:
        again, self._unfinished = self._unfinished is not None, envelope  # a Ctrl-C leaves it unfinished, too
        try:
            result, unknown = insist(
                lambda seconds: self._client.propose(envelope, via=via, timeout=seconds),
                deadline,
                unknown=again,
            )
        except OutcomeUnknown as error:
            raise type(error)(f"{error}. The session remembers it: resume() finishes it") from error
        except OndiskError:
            self._unfinished = None
            raise
        self._unfinished = None
        if result.error in (sessions.UNKNOWN_SESSION, sessions.OUTDATED):
            raise SessionExpiredUnknown(result.error) if unknown else SessionExpiredNotDone(result.error)
        return result
