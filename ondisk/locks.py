"""Locks and elections, on transactions and key leases.

A lock is a key that exists while somebody holds it: put by a transaction that found none, under a lease that
its holder keeps alive. When the holder is gone the lease ends, the key with it, and the next one can have it.

What a lock promises: of two holders the later one has the larger *fencing token*, the index of the entry that
gave it the lock. What it does not promise: that its holder still holds it by the time that what it does takes
effect. A process that was paused, or whose packet was late, may believe so wrongly. So whatever is written
elsewhere carries the token, and who stores it refuses a token smaller than one that it has seen. Within the
group ``Held.guard`` is a comparison for the transaction that writes.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from contextlib import ExitStack, suppress
from functools import partial
from typing import Any, Protocol, TypeVar

from ondisk.errors import (
    InvalidCommand,
    LeaseEnded,
    NotDone,
    OndiskError,
    OutcomeUnknown,
    Rejected,
    ResourceError,
)
from ondisk.interrupts.shielded import pause
from ondisk.net.clock import since_boot
from ondisk.statemachine import Result
from ondisk.verbs import keyleases, txn
from ondisk.verbs.texts import Text, as_key, as_value

CLOCK_ERROR = 0.1  # a clock here may run so much slower than those of the replicas, as a part of it
PAUSE = 0.05  # seconds between two looks at a lock that somebody else has
_KEEPS = 3  # times in its time to live a lease is kept alive
ATTEMPT = 3.0  # seconds until what was not answered is asked again

_T = TypeVar("_T")


class Asked(Protocol):
    """What leases and locks need of a ``Client``."""

    def propose(self, command: bytes, *, timeout: float = ...) -> Result:
        """Replicate a command and wait until it is applied."""

    def get(self, key: Text, *, timeout: float = ...) -> bytes | None:
        """A linearizable read."""

    def txn(self, compare: Any, then: Any, otherwise: Any, *, timeout: float = ...) -> txn.Answer:
        """Compare, then, else."""


class KeyLease:
    """A lease that keys can be put under: ``txn.put(key, value, lease=lease.id)``.

    ``with`` it, a thread keeps it alive, and it ends with the block. Without, call ``keep`` in time.
    """

    def __init__(self, client: Asked, ttl: float, *, timeout: float) -> None:
        """Made by ``Client.key_lease``."""
        self._client = client
        self._ttl = ttl
        self._timeout = timeout
        self._over = threading.Event()
        self._keeper: threading.Thread | None = None
        asked = since_boot()
        result = client.propose(keyleases.grant(ttl), timeout=timeout)
        if not isinstance(result.value, int):
            raise Rejected(f"no lease was granted: {result.error}")
        self.id = result.value
        self._sure_until = asked + ttl * (1 - CLOCK_ERROR)

    @property
    def left(self) -> float:
        """For so many seconds it has certainly not ended, as far as is known here; 0 if it may have.

        That is its time to live less a tenth, from when it was last asked for. It is right as long as no
        replica's clock runs more than that faster than this one.
        """
        return max(0.0, self._sure_until - since_boot())

    def keep(self, *, timeout: float | None = None) -> None:
        """Begin its time anew. Raises ``LeaseEnded``, or ``NotDone`` or ``OutcomeUnknown``: try again."""
        asked = since_boot()
        seconds = self._timeout if timeout is None else timeout
        if self._client.propose(keyleases.keep(self.id), timeout=seconds).value is not True:
            self._sure_until = 0.0
            raise LeaseEnded(f"lease {self.id} has ended, and its keys are gone")
        self._sure_until = asked + self._ttl * (1 - CLOCK_ERROR)

    def end(self, *, timeout: float | None = None) -> None:
        """End it, and delete its keys. If that cannot be done, they go when its time is over."""
        self._over.set()
        self._sure_until = 0.0
        if self._keeper is not None and self._keeper is not threading.current_thread():
            self._keeper.join()
        with suppress(NotDone, OutcomeUnknown):
            seconds = self._timeout if timeout is None else timeout
            self._client.propose(keyleases.end(self.id), timeout=seconds)

    def start(self) -> None:
        """Let a thread keep it alive until ``end``. Raises ``ResourceError``."""
        self._keeper = threading.Thread(target=self._keep, name=f"ondisk-lease-{self.id}", daemon=True)
        try:
            self._keeper.start()
        except (RuntimeError, MemoryError) as error:
            self._keeper = None
            self.end()
            raise ResourceError(f"no thread can be started to keep a lease alive ({error})") from None

    def __enter__(self) -> KeyLease:
        self.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.end()

    def _keep(self) -> None:
        while not self._over.wait(self._ttl / _KEEPS):
            try:
                self.keep(timeout=self._ttl / _KEEPS)
            except LeaseEnded:
                return
            except OndiskError:
                continue  # an election: what is left says how long one may go on


class Held:
    """A lock that was got, or an election that was won. ``token`` is larger than those of earlier holders."""

    def __init__(self, client: Asked, key: bytes, value: bytes, lease: KeyLease, token: int) -> None:
        """Made by ``take``."""
        self._client = client
        self.key = key
        self.lease = lease
        self.token = token
        self.guard = txn.equals(key, value)

    @property
    def left(self) -> float:
        """For so many seconds nobody else has it, as far as is known here: see ``KeyLease.left``."""
        return self.lease.left

    def release(self, *, timeout: float = 3.0) -> None:
        """Let the next one have it. If that cannot be done it goes with its lease."""
        try:
            with suppress(NotDone, OutcomeUnknown):
                self._client.txn([self.guard], [txn.delete(self.key)], [], timeout=timeout)
        finally:
            self.lease.end(timeout=timeout)

    def __enter__(self) -> Held:
        return self

    def __exit__(self, *_: object) -> None:
        self.release()


def take(client: Asked, name: Text, value: Text, ttl: float, timeout: float) -> Held:
    """Wait until nobody else has it, and take it.

    Raises ``NotDone`` or ``OutcomeUnknown`` after ``timeout``: then it is not held, or goes with its lease.
    """
    key, told = as_key(name), as_value(value)
    deadline = time.monotonic() + timeout
    while True:
        if _insist(lambda seconds: client.get(key, timeout=seconds), deadline) is None:
            held = take_free(client, key, told, ttl, deadline)
            if held is not None:
                return held
        pause(max(0.0, min(PAUSE, deadline - time.monotonic())))
        if time.monotonic() >= deadline:
            raise held_by_another(key)


def held_by_another(key: bytes) -> NotDone:
    """What who waited in vain is told."""
    return NotDone(f"{key!r:.60} is held by somebody else")


def take_free(client: Asked, key: bytes, told: bytes, ttl: float, deadline: float) -> Held | None:
    """Take what nobody had a moment ago; ``None``: somebody was quicker. Raises as ``take`` does."""
    lease = _insist(lambda seconds: KeyLease(client, ttl, timeout=seconds), deadline)
    with ExitStack() as undo:
        undo.callback(lease.end)
        lease.start()
        mine = b"%d " % lease.id + told
        answer = _insist(partial(_put, client, key, mine, lease.id), deadline)
        if not answer.succeeded:
            return None
        undo.pop_all()
        return Held(client, key, mine, lease, answer.index)


def _put(client: Asked, key: bytes, mine: bytes, lease: int, seconds: float) -> txn.Answer:
    """Put the key if it is not there, or if it was put by an earlier attempt of which nobody heard."""
    put = txn.put(key, mine, lease=lease)
    answer = client.txn([txn.missing(key)], [put], [txn.get(key)], timeout=seconds)
    if not answer.succeeded and answer.answers[0] == mine:
        answer = client.txn([txn.equals(key, mine)], [put], [], timeout=seconds)
    return answer


def _insist(ask: Callable[[float], _T], deadline: float) -> _T:
    """Ask until there is an answer: for what may be repeated. Raises what the last attempt did."""
    while True:
        try:
            return ask(min(ATTEMPT, max(0.0, deadline - time.monotonic())))
        except (InvalidCommand, LeaseEnded):
            raise
        except (NotDone, OutcomeUnknown):
            if time.monotonic() >= deadline:
                raise
            pause(PAUSE)


def holder(value: bytes | None) -> bytes | None:
    """What the holder said of itself, of the value of a lock's key."""
    return None if value is None else value.partition(b" ")[2]
