"""The courier: a client's one thread, which sends what is asked, and decides what is asked again.

The rule is that of etcd's client: a read may be asked twice, and a command leaves a second time only if its
first copy has certainly not been taken in: a replica has said so, or not all of it had left when the
connection broke. Everything else is ``OutcomeUnknown``, and a session's business.

Whoever asks hands over by one atomic step and waits for a future without a lock (docs/interrupts.md).
"""

from __future__ import annotations

import itertools
import logging
import os
import threading
import time
import weakref
from collections import deque
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

import msgspec

from ondisk import errors
from ondisk.errors import (
    Discarded,
    NoLeader,
    OndiskError,
    OutcomeUnknown,
    ReplicaStopped,
    Timeout,
    Unreachable,
)
from ondisk.interrupts import forked
from ondisk.interrupts.futures import Future
from ondisk.net.addresses import Address
from ondisk.net.client_messages import (
    Applied,
    Body,
    Failed,
    Found,
    Request,
    Response,
    encoder,
    response_decoder,
)
from ondisk.net.lines import Line, Lines
from ondisk.snapshot.background import start_thread

if TYPE_CHECKING:
    from ondisk.net.tls import Certificates

GRACE = 0.25  # seconds after its deadline, in which a replica may still say what became of a request
_ELSEWHERE = 0.1  # seconds in which others are asked first, once a replica could not help
_GONE = 1.0  # the same for one that says nothing; and one that goes away is not called for so long
_PATIENCE = 1.0  # seconds that a read waits at one replica before it is asked elsewhere
_LOOK = 0.05  # seconds between two looks at deadlines
_IDLE = 1.0  # seconds between two looks whether the client is still there
_ELSEWHERE_PERHAPS = (
    NoLeader,
    ReplicaStopped,
    Discarded,
)  # certainly not done, and another may be able

logger = logging.getLogger(__name__)


class Ask:
    """A request of this client, until its future has ended. ``why``: what who could not help has said."""

    __slots__ = ("body", "copies", "deadline", "decode", "future", "repeatable", "via", "why")

    def __init__(
        self,
        body: Body,
        deadline: float,
        via: int | str | None,
        *,
        repeatable: bool,
        decode: Callable[[bytes], Any] | None = None,
    ) -> None:
        """``deadline`` is a time of ``time.monotonic``; ``repeatable``: asked twice it does no harm.

        ``via``: the number of a replica, an endpoint, or whoever can.
        """
        self.body = body
        self.deadline = deadline
        self.via = via
        self.repeatable = repeatable
        self.decode = decode
        self.future: Future[Any] = Future()
        self.why = ""
        self.copies = 0  # that were sent


class _UnderWay(NamedTuple):
    """An ask that was sent, what ``Line.lost_after`` is if all of it has left, and when to do something.

    A replica that was stopped says nothing, and one that leads no more waits for a leader. So what may be
    asked twice is, and the first answer counts.
    """

    ask: Ask
    end: int
    due: float


class Courier:
    """The thread of a client. All of it but ``ask`` and ``close`` is used by that thread."""

    def __init__(
        self, owner: object, addresses: Sequence[Address], secret: bytes | None, tls: Certificates | None
    ) -> None:
        """It ends when nobody holds ``owner`` any more. Raises ``ConfigurationError``."""
        self._owner = weakref.ref(owner)
        self._lines = Lines(addresses, secret, tls)
        self._asked = deque[Ask]()  # handed over, and not looked at yet
        self._waiting = deque[Ask]()  # to be sent
        self._under_way: dict[Line, dict[int, _UnderWay]] = {line: {} for line in self._lines.lines}
        self._not_before = dict.fromkeys(self._lines.lines, 0.0)  # others are asked first until then
        self._leaving = dict[Line, str]()  # those that only answer what they have, and why
        self._turns = itertools.cycle(self._lines.lines)
        self._numbers = itertools.count(1)
        self._leader = 0
        self._look_at = 0.0
        self._closing = False
        self._process = os.getpid()
        self._thread = threading.Thread(target=self._run, name="ondisk-client", daemon=True)
        forked.register(self)

    def start(self) -> None:
        """Begin. Raises ``ResourceError``."""
        start_thread(self._thread)

    @property
    def leader(self) -> int:
        """Who leads, as far as the replicas have said; 0 if they know of nobody. From any thread."""
        return self._leader

    @property
    def lines(self) -> tuple[Line, ...]:
        """One for each endpoint."""
        return self._lines.lines

    def ask(self, ask: Ask) -> Future[Any]:
        """Hand over a request. From any thread."""
        forked.check(self._process, "this client")
        self._asked.append(ask)
        if self._closing:  # it may not be looked at any more
            ask.future.refuse(_closed())
        self._lines.wake()
        return ask.future

    def close(self) -> None:
        """End the thread and the connections. A second call does nothing."""
        if self._process != os.getpid():
            return
        self._closing = True
        self._lines.wake()
        if self._thread.ident is None:  # it was never started
            self._end()
        elif self._thread is not threading.current_thread():
            self._thread.join()

    def forget_parent(self) -> None:
        """In a child: the thread is not here, and the sockets are the parent's."""
        self._closing = True
        self._lines.close()

    # The thread

    def _run(self) -> None:
        try:
            while not self._closing and self._owner() is not None:
                self._step()
        except BaseException:  # whatever it is: nobody may wait for ever
            logger.exception("a client of ondisk has failed")
        finally:
            self._end()

    def _step(self) -> None:
        now = time.monotonic()
        while self._asked:
            self._waiting.append(self._asked.popleft())
        self._send_waiting(now)
        if now >= self._look_at:
            self._look_at = now + _LOOK
            self._give_up(now)
        busy = self._waiting or any(self._under_way.values())
        arrived, lost = self._lines.wait(_LOOK if busy else _IDLE)
        for line, payloads in arrived:
            self._take_in(line, payloads)
        for line in lost:
            self._on_lost(line)
        for line in [each for each in self._leaving if not self._under_way[each]]:
            self._lines.hang_up(line, self._leaving.pop(line), _GONE)
            self._on_lost(line)  # nothing was under way there

    # Out

    def _send_waiting(self, now: float) -> None:
        kept = []
        used: set[Line] = set()
        while self._waiting:
            ask = self._waiting.popleft()
            if ask.future.done():  # cancelled
                continue
            line = self._choose(ask, now)
            if line is not None:
                if ask.future.running() or ask.future.set_running_or_notify_cancel():
                    self._send(line, ask, now)
                    used.add(line)
                continue
            kept.append(ask)
            if ask.via is None:  # nor is there anybody for those behind it
                break
        self._waiting.extendleft(reversed(kept))
        for line in used:
            if not self._lines.flush(line):
                self._on_lost(line)

    def _choose(self, ask: Ask, now: float) -> Line | None:
        """Whom to ask: who was named, or the leader, or anybody who may be able to help."""
        able = [
            line for line in self._lines.lines if line.ready and not line.full and line not in self._leaving
        ]
        if ask.via is not None:
            named = (line for line in able if ask.via in (line.replica_id, line.name))
            return next((line for line in named if now >= self._not_before[line]), None)
        able = [line for line in able if now >= self._not_before[line]]
        if not able:
            return None
        for line in able:
            if line.replica_id == self._leader:
                return line
        while (line := next(self._turns)) not in able:
            pass
        return line

    def _send(self, line: Line, ask: Ask, now: float) -> None:
        number = next(self._numbers)
        left = max(0, round(1000 * (ask.deadline - now)))
        end = line.send(encoder.encode(Request(number, left, ask.body)))
        ask.copies += 1
        due = ask.deadline + GRACE
        if ask.repeatable and ask.via is None and ask.copies < len(self._lines.lines):
            due = min(due, now + _PATIENCE)
        self._under_way[line][number] = _UnderWay(ask, end, due)

    # Back

    def _take_in(self, line: Line, payloads: list[bytes]) -> None:
        for payload in payloads:
            try:
                response = response_decoder.decode(payload)
            except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
                if line.connection is not None:
                    self._lines.drop(line, f"what it says is no answer: {error}")
                self._on_lost(line)
                return
            self._on_response(line, response)

    def _on_response(self, line: Line, response: Response) -> None:
        body = response.body
        if response.number == 0:  # it goes away, and answers what it has taken in before
            self._leaving[line] = body.text if isinstance(body, Failed) else "it goes away"
            return
        if response.leader:
            self._leader = response.leader
        found = self._under_way[line].pop(response.number, None)
        if found is None or found.ask.future.done():  # given up, or answered by another one
            return
        ask = found.ask
        if isinstance(body, Applied):
            ask.future.set_result(body.result)
        elif isinstance(body, Found):
            self._decode(ask, body.data)
        else:
            self._on_failed(line, ask, _error(body))

    @staticmethod
    def _decode(ask: Ask, data: bytes) -> None:
        try:
            result = data if ask.decode is None else ask.decode(data)
        except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
            ask.future.set_exception(OndiskError(f"the answer cannot be understood: {error}"))
        else:
            ask.future.set_result(result)

    def _on_failed(self, line: Line, ask: Ask, error: OndiskError) -> None:
        for_this_one = ask.via is not None and isinstance(error, ReplicaStopped)
        if for_this_one or not isinstance(error, _ELSEWHERE_PERHAPS):
            ask.future.set_exception(error)
            return
        if not isinstance(error, Discarded):
            self._avoid(line, _ELSEWHERE)
        ask.why = str(error)
        self._waiting.append(ask)

    def _on_lost(self, line: Line) -> None:
        """What was under way there: ask again what does no harm."""
        under_way, self._under_way[line] = self._under_way[line], {}
        self._leaving.pop(line, None)
        if line.replica_id == self._leader:
            self._leader = 0
        again = []
        for ask, end, _ in under_way.values():
            if ask.future.done():
                continue
            if ask.repeatable or end > line.lost_after:
                again.append(ask)
                ask.why = f"the connection to {line.name} was lost ({line.why})"
            else:
                ask.future.set_exception(
                    OutcomeUnknown(
                        f"the connection to {line.name} was lost ({line.why}) after the command had left"
                    )
                )
        self._waiting.extendleft(reversed(again))

    # Giving up

    def _give_up(self, now: float) -> None:
        in_time = [ask for ask in self._waiting if not self._is_late(ask, now)]
        if len(in_time) < len(self._waiting):
            self._waiting = deque(in_time)
        for line, under_way in self._under_way.items():
            for number in [each for each, (_, _, due) in under_way.items() if due <= now]:
                ask, end, _ = under_way.pop(number)
                if ask.future.done():
                    continue
                self._avoid(line, _GONE)
                if ask.deadline <= now:
                    ask.future.set_exception(_silent(ask))
                else:  # ask another one, and take the answer of this one all the same
                    under_way[number] = _UnderWay(ask, end, ask.deadline + GRACE)
                    self._waiting.append(ask)

    def _avoid(self, line: Line, seconds: float) -> None:
        """Ask others first for so long."""
        self._not_before[line] = time.monotonic() + seconds
        if line.replica_id == self._leader:
            self._leader = 0

    def _is_late(self, ask: Ask, now: float) -> bool:
        """Whether its deadline has passed before it was taken in anywhere; then it is told so."""
        if ask.future.done():  # answered by one of those that were asked before
            return True
        if ask.deadline > now and not self._is_hopeless(ask):
            return False
        error = self._why_not(ask)
        if ask.future.running():
            ask.future.set_exception(error)
        else:
            ask.future.refuse(error)
        return True

    def _is_hopeless(self, ask: Ask) -> bool:
        """Whether it is for one replica that is not there: then nobody waits for the deadline."""
        if ask.via is None:
            return False
        if named := [line for line in self._lines.lines if ask.via in (line.replica_id, line.name)]:
            return all(line.failed for line in named)
        return all(line.ready or line.failed for line in self._lines.lines)

    def _why_not(self, ask: Ask) -> NoLeader:
        named = [line for line in self._lines.lines if ask.via in (None, line.replica_id, line.name)]
        if ask.why:
            return NoLeader(f"{ask.why}; nobody could do it before the deadline, and it was not done")
        if not named:
            return Unreachable(
                f"none of the endpoints is {ask.via}, as far as they could be reached: {self._names()}"
            )
        if any(line.ready for line in named):
            return NoLeader("no replica had room for it before the deadline; nothing was sent")
        return Unreachable(f"cannot reach {self._names(named)}; nothing was sent")

    def _names(self, lines: Sequence[Line] | None = None) -> str:
        return ", ".join(
            line.name if line.ready else f"{line.name} ({line.why})" for line in lines or self._lines.lines
        )

    def _end(self) -> None:
        self._closing = True
        self._lines.close()
        for under_way in self._under_way.values():
            while under_way:
                _, (ask, _, _) = under_way.popitem()
                if ask.future.done():
                    continue
                error = (
                    _closed() if ask.repeatable else OutcomeUnknown("the client was closed before the answer")
                )
                ask.future.set_exception(error)
        for waiting in (self._waiting, self._asked):
            while waiting:
                ask = waiting.popleft()
                if ask.future.running():
                    ask.future.set_exception(_closed())
                else:
                    ask.future.refuse(_closed())


def _silent(ask: Ask) -> OndiskError:
    if ask.repeatable:
        return NoLeader("no answer came before the deadline; try again")
    return Timeout("proposed, but not known to be applied before the deadline")


def _closed() -> ReplicaStopped:
    return ReplicaStopped("the client is closed")


def _error(failed: Failed) -> OndiskError:
    """The error that a replica has named; one that only a newer version knows may mean anything."""
    kind = getattr(errors, failed.error, None)
    if not (isinstance(kind, type) and issubclass(kind, OndiskError)):
        return OutcomeUnknown(f"{failed.error}: {failed.text}")
    return kind(failed.text)
