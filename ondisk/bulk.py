"""A bulk load: many pairs, as few commands as possible, several of them under way at once.

A put costs a future, an entry and a result of its own, whatever its size. So a load packs the pairs, in their
order, into commands of some 256 KB (``diskkv.PutMany``), each of which is one entry of the log and is applied
whole or not at all. FoundationDB's bulk loaders and TiKV's ``RawBatchPut`` do it like this.

Of the pairs that were taken out of their iterator, those that are not known to be stored wait in the
*window*, which is bounded: it is all that a load holds in memory, and how a slow group slows it down.

What fails is sent again, in the order of the pairs: so of a key that comes twice the last value stays. But
an earlier copy of a command may be late, and undo what came after it. Therefore each load has a session
(``sessions.py``), and each sending a new number, higher than all before: once a later one was applied, the
state machine refuses what comes late. A session of a client sends one command at a time and repeats its
number, because an ``incr`` must not count twice; puts may be repeated, and go on meanwhile.
"""

from __future__ import annotations

import math
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future
from contextlib import suppress
from itertools import islice
from typing import Literal, NamedTuple, Protocol

from ondisk import diskkv, sessions
from ondisk.diskkv import Text
from ondisk.errors import (
    CommandTooLarge,
    InvalidCommand,
    NotDone,
    OndiskError,
    OutcomeUnknown,
    Rejected,
    ReplicaStopped,
    SessionExpired,
    SessionExpiredNotDone,
    Timeout,
)
from ondisk.interrupts.shielded import Turn, pause, seconds_to_wait
from ondisk.raft.limits import MAX_COMMAND_BYTES
from ondisk.statemachine import Result

TIMEOUT = 30.0  # seconds without any progress; an election takes two, a process some seconds to come back
BATCH_BYTES = 256 << 10
WINDOW_BYTES = 4 << 20
MAX_PAIRS = 10_000  # in one command, or many small ones would be too long a step

_PAIR_BYTES = 10  # that MessagePack adds to a pair, at most
# What a batch may have before the last pair is added, which may be one of the largest.
_MAX_BATCH_BYTES = MAX_COMMAND_BYTES - diskkv.MAX_KEY_BYTES - diskkv.MAX_VALUE_BYTES - 1024
_FIRST_ATTEMPT = 3.0  # seconds that a command may take before it is sent again; then twice as long, and so on
_PAUSE = 0.02  # seconds before what has failed is sent again

Pairs = Iterable[tuple[Text, Text]]
Outcome = Literal["stored", "unknown", "not done"]


class Proposer(Protocol):
    """What a load needs of a ``Client``."""

    def propose_async(
        self, command: bytes, *, via: int | str | None = ..., timeout: float = ...
    ) -> Future[Result]:
        """Replicate a command."""

    def propose(self, command: bytes, *, via: int | str | None = ..., timeout: float = ...) -> Result:
        """Replicate a command and wait until it is applied."""

    def _check_sessions(self, via: int | str | None) -> None:
        """Raise ``ConfigurationError`` if it can be told that the state machine offers no sessions."""


class Slice(NamedTuple):
    """What is known of the pairs number ``start`` to ``stop - 1``."""

    start: int
    stop: int
    outcome: Outcome


class LoadFailed(OndiskError):
    """A bulk load did not come to its end: ``load`` says what was done, and can go on; ``__cause__`` why."""

    def __init__(self, load: BulkLoad, why: str) -> None:
        """``why`` in one sentence."""
        self.load = load
        taken, stored, unknown = load.taken, load.stored, load.count("unknown")
        super().__init__(
            f"{why.rstrip('.')}. Of {taken:,} pairs that were taken the first {stored:,} are stored, "
            f"of {unknown:,} later ones the outcome is unknown, and no further one was proposed: "
            "load.run() goes on from there"
        )


class _Batch:
    """Pairs in one command. ``fate``: what is known of them, beside what ``future`` will tell."""

    __slots__ = ("command", "deadline", "fate", "future", "size", "start", "stop")

    def __init__(self, start: int, stop: int, command: bytes, size: int) -> None:
        self.start, self.stop, self.command, self.size = start, stop, command, size
        self.fate: Outcome = "not done"
        self.future: Future[Result] | None = None  # of its last sending; ``None``: it is to be sent
        self.deadline = 0.0

    @property
    def outcome(self) -> Outcome:
        if (future := self.future) is None or future.cancelled():
            return self.fate
        if not future.done():
            return "unknown"
        error = _error_of(future)
        return "stored" if error is None else self.fate if isinstance(error, NotDone) else "unknown"


class BulkLoad:
    """Pairs on their way into the store: ``run`` brings them there. Made by ``Client.bulk_load``.

    Pairs are numbered from 0 in the order in which they come. ``stored`` and ``taken`` may be read at any
    time and from any thread, also after an interrupt.
    """

    def __init__(
        self,
        client: Proposer,
        pairs: Pairs,
        *,
        via: int | str | None = None,
        timeout: float = TIMEOUT,
        progress: Callable[[BulkLoad], object] | None = None,
        window_bytes: int = WINDOW_BYTES,
        batch_bytes: int = BATCH_BYTES,
    ) -> None:
        """See ``Client.bulk_load``. Nothing is taken out of ``pairs`` before ``run``."""
        for what, size, most in (
            ("batch_bytes", batch_bytes, _MAX_BATCH_BYTES),
            ("window_bytes", window_bytes, math.inf),
        ):
            if not isinstance(size, int) or not 0 < size <= most:  # type: ignore[redundant-expr]
                raise InvalidCommand(f"{what} is a whole number from 1 to {most:,}, not {size!r:.60}")
        self._client = client
        self._via = via
        self._timeout = timeout
        self._progress = progress
        self._window_bytes = window_bytes
        self._batch_bytes = batch_bytes
        self._turn = Turn()
        # An interrupt may end the load at any bytecode, and ``run`` goes on. So pairs become this load's in
        # one step, when their batch is put into the window, and leave it after ``_stored`` has counted them.
        self._window: deque[_Batch] = deque()
        self._stored = (0, 0)  # pairs, and their bytes
        self._give_up = 0.0  # when there has been no progress for too long
        self._attempt = _FIRST_ATTEMPT
        self._session: int | None = None
        self._sequence = 0
        self._stopped = 0  # how often in a row nobody was there to be asked
        self._trouble: Exception | None = None  # with the pairs
        self._hand_over(pairs)

    # What is known

    @property
    def stored(self) -> int:
        """So many pairs, from the first one on without a gap, are durable on a majority and applied."""
        return self._stored[0]

    @property
    def stored_bytes(self) -> int:
        """How many bytes their keys and values have."""
        return self._stored[1]

    @property
    def taken(self) -> int:
        """So many pairs were taken out of the iterator; of the others none was proposed."""
        window = tuple(self._window)
        return max(window[-1].stop if window else 0, self.stored)

    @property
    def window(self) -> tuple[int, int]:
        """How many commands, and how many bytes, wait in memory until they are known to be stored."""
        window = tuple(self._window)
        return len(window), sum(batch.size for batch in window)

    def outcomes(self) -> list[Slice]:
        """What is known of each pair that was taken, as few slices as possible."""
        known: list[tuple[int, Outcome]] = [(self.stored, "stored")]
        known += [(batch.stop, batch.outcome) for batch in tuple(self._window) if batch.stop > self.stored]
        slices: list[Slice] = []
        start = 0
        for stop, outcome in known:
            if slices and slices[-1].outcome == outcome:
                start = slices.pop().start
            if stop > start:
                slices.append(Slice(start, stop, outcome))
                start = stop
        return slices

    def count(self, outcome: Outcome) -> int:
        """How many of the pairs that were taken have this outcome."""
        return sum(found.stop - found.start for found in self.outcomes() if found.outcome == outcome)

    def __str__(self) -> str:
        commands, size = self.window
        return (
            f"{self.stored:,} pairs stored ({self.stored_bytes / 1e6:,.1f} MB), "
            f"{self.taken - self.stored:,} under way in {commands} commands ({size / 1e6:.1f} MB)"
        )

    # The load

    def run(self, rest: Pairs | None = None) -> int:
        """Store all pairs; return how many there were. After an error or an interrupt, call it again.

        What was under way is sent once more, then the pairs go on. A generator that an interrupt or an error
        of its own has ended cannot: then ``rest`` brings the pairs from number ``taken`` on.

        Raises ``LoadFailed`` when nothing was stored for ``timeout`` seconds, when the group refuses, or for
        a pair that is none: all those before it are stored by then.
        """
        with self._turn:
            self._take_stock()
            if rest is not None:
                self._hand_over(rest)
            self._trouble, self._stopped = None, 0
            self._give_up = time.monotonic() + self._timeout
            while self._window or not self._ended:
                if (batch := self._next_to_send()) is not None:
                    self._send(batch)
                elif self._window:
                    self._wait()
                elif self._trouble is not None:
                    raise LoadFailed(self, str(self._trouble)) from self._trouble
                self._reap()
            self._end_session()
            return self.stored

    def _take_stock(self) -> None:
        """What an earlier run has left behind: some of it is stored, the rest is to be sent once more."""
        self._take_back()
        while self._window and self._window[0].fate == "stored":
            self._note_stored(self._window[0])
        self._begin_again()

    # The pairs

    def _hand_over(self, pairs: Pairs) -> None:
        try:
            iterator = iter(pairs)
        except TypeError:
            raise InvalidCommand(f"pairs are an iterable of (key, value), not {pairs!r:.60}") from None
        self._ended = False
        self._source = pairs, self.taken  # and the number of the first of them
        self._iterator: Iterator[tuple[Text, Text]] | None = iterator

    def _reopened(self) -> Iterator[tuple[Text, Text]]:
        """The pairs from number ``taken`` on, from those that can be iterated over more than once."""
        pairs, first = self._source
        iterator = iter(pairs)
        if iterator is pairs:
            raise InvalidCommand(
                f"the iterator was interrupted or has failed: hand over the pairs from number {self.taken:,} "
                "on, load.run(rest)"
            )
        return islice(iterator, self.taken - first, None)

    def _read(self) -> _Batch | None:
        """Take as many pairs as one command shall have. ``None``: there are no more, or no good ones."""
        # While it works it may be interrupted, and a generator ends by that as if there were no more pairs:
        # so this load has no iterator meanwhile.
        iterator, self._iterator = self._iterator, None
        start, began = self.taken, time.monotonic()
        pairs: dict[bytes, bytes] = {}
        count = size = 0
        full = False
        try:
            iterator = iterator if iterator is not None else self._reopened()
            for pair in iterator:
                key, value = _checked(pair, start + count)
                pairs[key] = value  # a key that comes twice: the last value
                count += 1
                size += len(key) + len(value) + _PAIR_BYTES
                if size >= self._batch_bytes or count == MAX_PAIRS:
                    full = True
                    break
        except Exception as error:  # the pair is none, or whoever makes them has failed
            self._trouble = error
        self._give_up += time.monotonic() - began  # it is not the group that was slow
        batch = None
        if count:
            batch = _Batch(start, start + count, diskkv.encode_pairs(pairs), size)
            self._window.append(batch)
        if full:
            self._iterator = iterator
        elif self._trouble is None:
            self._ended = True
        return batch

    # The commands

    def _next_to_send(self) -> _Batch | None:
        waiting = next((batch for batch in self._window if batch.future is None), None)
        more = waiting is None and not self._ended and self._trouble is None
        return self._read() if more and self.window[1] < self._window_bytes else waiting

    def _send(self, batch: _Batch) -> None:
        known, batch.fate = batch.fate, "unknown"  # if an interrupt comes between this and the future
        try:
            batch.future = self._propose(batch)
        except OndiskError as error:
            batch.fate = known
            self._failed(error, at_once=True)
        else:
            batch.fate = known

    def _propose(self, batch: _Batch) -> Future[Result]:
        if self._session is None:
            self._session, self._sequence = self._open_session(), 0
        self._sequence += 1  # not used again, whatever happens
        batch.deadline = time.monotonic() + self._attempt
        envelope = sessions.once(self._session, self._sequence, batch.command)
        return self._client.propose_async(envelope, via=self._via, timeout=self._attempt)

    def _open_session(self) -> int:
        self._client._check_sessions(self._via)
        left = min(self._attempt, max(0.0, self._give_up - time.monotonic()))
        result = self._client.propose(sessions.register(), via=self._via, timeout=left)
        if not isinstance(result.value, int):
            raise InvalidCommand(f"no session was opened: {result.error}")
        return result.value

    def _wait(self) -> None:
        """Until something is known of the first command, or it has taken too long."""
        first = self._window[0]
        assert first.future is not None
        with suppress(TimeoutError):
            first.future.exception(seconds_to_wait(max(0.0, self._due(first) - time.monotonic())))

    def _due(self, batch: _Batch) -> float:
        return min(batch.deadline, self._give_up)

    def _reap(self) -> None:
        """Count what is stored, in the order of the pairs; begin again where that breaks off."""
        while self._window and (future := self._window[0].future) is not None:
            first = self._window[0]
            if not future.done():
                if time.monotonic() >= self._due(first):
                    self._failed(Timeout("proposed, but not known to be applied in time"))
                return
            if (error := _error_of(future)) is not None:
                self._failed(error)
                return
            self._note_stored(first)
            self._stopped = 0
            self._give_up = time.monotonic() + self._timeout
            if self._progress is not None:
                self._progress(self)

    def _note_stored(self, first: _Batch) -> None:
        if first.stop > self.stored:  # else it was counted, and then an interrupt came
            self._stored = (
                first.stop,
                self.stored_bytes + first.size - _PAIR_BYTES * (first.stop - first.start),
            )
        self._window.popleft()

    def _failed(self, error: BaseException, *, at_once: bool = False) -> None:
        """Begin again with the first command that is not known to be stored; or give up."""
        self._take_back()
        if isinstance(error, SessionExpired):
            self._session = None
        # Who was asked may have stopped in this very moment, but hardly twice.
        self._stopped = self._stopped + 1 if at_once and isinstance(error, ReplicaStopped) else 0
        hopeless = isinstance(error, CommandTooLarge | InvalidCommand) or self._stopped > 1
        if hopeless or not isinstance(error, NotDone | OutcomeUnknown) or time.monotonic() >= self._give_up:
            raise LoadFailed(self, str(error)) from error
        pause(_PAUSE)
        self._begin_again()
        self._attempt = min(2 * self._attempt, max(self._timeout, _FIRST_ATTEMPT))

    def _take_back(self) -> None:
        """Cancel what can be cancelled, note what is known of the rest, and wait for nothing."""
        for batch in self._window:
            if batch.future is not None:
                if not batch.future.done():
                    batch.future.cancel()
                batch.fate = batch.outcome
                batch.future = None

    def _begin_again(self) -> None:
        """What is sent once more may hold older values of the keys that later commands have set."""
        for batch in self._window:
            if batch.fate == "stored":
                batch.fate = "unknown"

    def _end_session(self) -> None:
        """Let the group forget it, and do not wait for that: newer sessions would push it out, too."""
        session, self._session = self._session, None
        if session is not None:
            with suppress(OndiskError):
                self._client.propose_async(sessions.close(session), via=self._via, timeout=self._attempt)


def _checked(pair: object, number: int) -> tuple[bytes, bytes]:
    if not isinstance(pair, tuple | list) or len(pair) != 2:
        hint = " (of a dict, hand over its items())" if isinstance(pair, str | bytes) else ""
        raise InvalidCommand(f"pair number {number:,} is {pair!r:.60}, and not a key and a value{hint}")
    try:
        return diskkv.pair(*pair)
    except InvalidCommand as error:
        raise InvalidCommand(f"pair number {number:,}: {error}") from None


def _error_of(future: Future[Result]) -> BaseException | None:
    """Why a command was not applied, or may not have been; ``None`` if it was."""
    if (error := future.exception()) is not None:
        return error
    said = future.result().error
    if said is None:
        return None
    if said == sessions.UNKNOWN_SESSION:
        return SessionExpiredNotDone(said)
    if said == sessions.OUTDATED:  # a later one has overtaken it
        return Rejected(said)
    return InvalidCommand(said)
