"""Virtual time: one thread, one clock that jumps from event to event, and hosts that know no better.

Everything that happens is an event in one queue, ordered by time and then by who asked first. Random numbers
come from generators that follow from the seed. So the same seed gives the same run, event for event, and a
second in here costs as long as the work that is done in it (FoundationDB and TigerBeetle test themselves like
this).
"""

from __future__ import annotations

import heapq
import random
from collections import Counter, deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

from ondisk.net.memory import Event, MemoryNetwork
from ondisk.raft.messages import Message
from ondisk.simulation.host import BEGINNING, Host
from ondisk.simulation.invariants import Violation

LATENCY = 0.004  # seconds, the longest that a message takes unless somebody says otherwise


class TraceEvent(NamedTuple):
    """One line of the trace of a run. ``time`` in virtual seconds since the beginning."""

    time: float
    kind: str
    words: str

    def __str__(self) -> str:
        return f"{self.time:10.6f} {self.kind:<10} {self.words}"


class World:
    """Hosts on one network and in one time. What runs on them is up to the subclass."""

    host_type = Host

    def __init__(self, seed: int, directory: Path, observe: Callable[[Any], None] | None = None) -> None:
        """``observe`` is called with the world after each step of a replica."""
        self._observe = observe
        self.seed = seed
        self.directory = directory
        self.now = BEGINNING
        self.network = MemoryNetwork(clock=lambda: self.now, policy=self._delivery)
        self.latency = LATENCY
        self.loss = 0.0  # the part of messages that is lost
        self.hosts: dict[int, Host] = {}
        self.tracing = True  # it has no influence on the run, and takes a tenth of its time
        self._trace: list[TraceEvent] = []
        self._events: deque[Event] = deque()  # of messages, which are not in the trace yet
        self.counts: Counter[str] = Counter()  # of faults that had an effect, and of what else is rare
        self._links: dict[tuple[int, int], random.Random] = {}
        self._queue: list[tuple[float, int, Callable[[], None]]] = []
        self._waited_for: list[tuple[float, Callable[[], bool], Callable[[], None]]] = []
        self._scheduled = 0

    def rng(self, *what: object) -> random.Random:
        """A generator of its own for each thing, so that one has no influence on any other."""
        return random.Random(f"{self.seed} {what}")

    # What runs on the hosts

    def step(self, host: Host) -> None:
        """Let the replica of this host take one step."""
        raise NotImplementedError

    def crash(self, member: int) -> None:
        """Cut the power of one host."""
        raise NotImplementedError

    def close(self) -> None:
        """Close all replicas. A second call does nothing."""
        raise NotImplementedError

    def describe(self, message: Any) -> str:
        """A message in a few words."""
        return type(message).__name__

    # A run

    @contextmanager
    def showing_violations(self) -> Iterator[None]:
        """Around a run: it is recorded, shown once more if it breaks a rule, and closed."""
        if self.tracing:
            self._events = self.network.observe()
        try:
            yield
        except Violation:
            self.show()  # what it looks like when it is found
            raise
        finally:
            self.close()

    def show(self) -> None:
        """Let who observes look."""
        if self._observe is not None:
            self._observe(self)

    # Time

    @property
    def elapsed(self) -> float:
        """Virtual seconds since the beginning."""
        return self.now - BEGINNING

    def at(self, time: float, action: Callable[[], None]) -> None:
        """Do something at this time."""
        self._scheduled += 1
        heapq.heappush(self._queue, (time if time > self.now else self.now, self._scheduled, action))

    def after(self, seconds: float, action: Callable[[], None]) -> None:
        """Do something in so many seconds."""
        self.at(self.now + seconds, action)

    def when(self, condition: Callable[[], bool], then: Callable[[], None], seconds: float) -> None:
        """Do something after the first step that makes a condition true, if one does within so long."""
        self._waited_for.append((self.now + seconds, condition, then))

    def look_what_is_waited_for(self) -> None:
        """After a step: whether anything that is waited for has come."""
        if not self._waited_for:
            return
        waiting, self._waited_for = self._waited_for, []
        for until, condition, then in waiting:
            if condition():
                self.after(0, then)
            elif self.now < until:
                self._waited_for.append((until, condition, then))

    def advance(self, time: float, done: Callable[[], bool] = lambda: False) -> bool:
        """Let everything happen up to this time, or until it is ``done``; return whether it was."""
        queue = self._queue
        while not done():
            if not queue or queue[0][0] > time:
                self.now = time
                return done()
            self.now, _, action = heapq.heappop(queue)
            action()
        return True

    # The network

    def _delivery(self, sender: int, receiver: int, message: Message) -> float | None:
        """How long a message takes, or ``None`` if it is lost. No link has an influence on another."""
        link = self._links.get((sender, receiver))
        if link is None:
            link = self._links[sender, receiver] = self.rng("link", sender, receiver)
        part, lost = link.random(), link.random() < self.loss
        if lost:
            return None
        delay = self.latency * (0.1 + 0.9 * part)
        if (busy := self.hosts[sender].busy_until - self.now) > 0:
            delay += busy
        if (host := self.hosts.get(receiver)) is not None:  # else it has never been started
            host.wake(self.now + delay)
        return delay

    def heal(self, *pairs: tuple[int, int]) -> None:
        """End cuts and stalls of these links, of all if none is named."""
        self.network.heal(*pairs)
        self.wake_all()

    def wake_all(self) -> None:
        """Let everybody look around."""
        for host in self.hosts.values():
            host.wake(self.now)

    # The trace

    @property
    def trace(self) -> list[TraceEvent]:
        """Everything that has happened so far, in order."""
        while self._events:
            event = self._events.popleft()
            words = f"{event.sender} -> {event.receiver} {self.describe(event.message)}"
            self._trace.append(TraceEvent(event.time - BEGINNING, event.kind, words))
        return self._trace

    def note(self, kind: str, words: str) -> None:
        """Write a line into the trace."""
        if self.tracing:
            self.trace.append(TraceEvent(self.elapsed, kind, words))
