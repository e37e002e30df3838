"""Virtual time: one thread, one clock that jumps from event to event, and machines that know no better.

Everything that happens is an event in one queue, ordered by time and then by who asked first. Random numbers
come from generators that follow from the seed. So the same seed gives the same run, event for event, and a
second in here costs as long as the work that is done in it (FoundationDB and TigerBeetle test themselves like
this).
"""

from __future__ import annotations

import errno
import heapq
import random
import threading
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

from ondisk.net.memory import Event, MemoryNetwork
from ondisk.raft.messages import Message
from ondisk.simulation.faults import Fault
from ondisk.simulation.invariants import Violation
from ondisk.storage.disk import Disk

_STEP_SECONDS = 0.0002  # processor time of a step
BEGINNING = 1000.0  # the first moment, in seconds


class PowerCut(BaseException):
    """Ends the step in the middle of which the power failed."""


class TraceEvent(NamedTuple):
    """One line of the trace of a run. ``time`` in virtual seconds since the beginning."""

    time: float
    kind: str
    words: str

    def __str__(self) -> str:
        return f"{self.time:10.6f} {self.kind:<10} {self.words}"


class SkewedClock:
    """A clock that does not run at the same speed as the others, and never backwards."""

    def __init__(self, time: Callable[[], float], shows: float) -> None:
        self._time = time
        self._since = time()
        self._shown = shows
        self.rate = 1.0

    def __call__(self) -> float:
        """Its own seconds."""
        return self._shown + (self._time() - self._since) * self.rate

    def run_at(self, rate: float) -> None:
        """From now on one second of the others is ``rate`` seconds here."""
        self._shown, self._since = self(), self._time()
        self.rate = rate


class SimulatedDisk(Disk):
    """A real disk whose syncs may take long, and whose power may fail between two steps of a write."""

    def __init__(self, host: Host, rng: random.Random) -> None:
        self.sync_seconds = 0.0
        self.crash_in: int | None = None  # so many points from now the power fails
        self.fail_in: int | None = None  # so many points from now there is an error
        self.failed = False
        self.surviving = 0.0  # the part of what was not synced that outlives a power cut
        self._host = host
        self._rng = rng
        self._thread = threading.current_thread()

    def sync(self, flush: Callable[[], None]) -> None:
        flush()
        if threading.current_thread() is self._thread:  # work in the background keeps nobody waiting
            self._host.be_busy(self.sync_seconds)

    def survivors(self, unsynced: int) -> int:
        return int(self.surviving * unsynced)

    def reach(self, point: str) -> None:
        if threading.current_thread() is not self._thread:
            return
        if self.fail_in is not None:
            self.fail_in -= 1
            if self.fail_in < 0:
                self.fail_in = self.crash_in = None
                self.failed = True
                self._host.world.counts["disk error"] += 1
                raise OSError(errno.EIO, "Input/output error", point)
        if self.crash_in is not None:
            self.crash_in -= 1
            if self.crash_in < 0:
                self.crash_in = None
                self._host.world.counts["crash in a write"] += 1
                self._host.cut_power()
                raise PowerCut(point)

    def mend(self) -> None:
        """Nothing is wrong with it any more."""
        self.crash_in = self.fail_in = None
        self.failed = False
        self.sync_seconds = 0.0


class Host:
    """Where one replica runs: a clock, a disk, a processor, and a power supply."""

    def __init__(self, member: int, world: World) -> None:
        self.member = member
        self.world = world
        self.clock = SkewedClock(lambda: world.now, BEGINNING + 100 * world.rng("clock", member).random())
        self.disk = SimulatedDisk(self, world.rng("disk", member))
        self.busy_until = 0.0
        self.paused = False
        self.lives = 0  # how often it was started
        self.wake_at: float | None = None
        self._turn = 0

    def be_busy(self, seconds: float) -> None:
        """Nothing else happens here for so long, and what is sent leaves only then."""
        self.busy_until = max(self.busy_until, self.world.now) + seconds

    def cut_power(self) -> None:
        """What was not synced is lost."""
        self.world.crash(self.member)

    def wake(self, at: float) -> None:
        """Take a step at this time, or earlier."""
        at = max(at, self.busy_until)
        if self.wake_at is not None and self.wake_at <= at:
            return
        self.wake_at = at
        self._turn += 1
        turn = self._turn
        self.world.at(at, lambda: self._take_turn(turn))

    def _take_turn(self, turn: int) -> None:
        if turn != self._turn:
            return  # an earlier one was asked for since
        self.wake_at = None
        if self.paused:
            return
        if self.busy_until > self.world.now:
            self.wake(self.busy_until)
            return
        self.be_busy(_STEP_SECONDS)
        self.world.step(self)


class World:
    """Hosts on one network and in one time. What runs on them is up to the subclass."""

    def __init__(self, seed: int, directory: Path, observe: Callable[[Any], None] | None = None) -> None:
        """``observe`` is called with the world after each step of a replica."""
        self._observe = observe
        self.seed = seed
        self.directory = directory
        self.now = BEGINNING
        self.network = MemoryNetwork(clock=lambda: self.now, policy=self._delivery)
        self.latency = 0.004  # the longest that a message takes, in seconds
        self.loss = 0.0  # the part of messages that is lost
        self.hosts: dict[int, Host] = {}
        self.tracing = True  # it has no influence on the run, and takes a tenth of its time
        self.trace: list[TraceEvent] = []
        self.counts: Counter[str] = Counter()  # of faults that had an effect, and of what else is rare
        self._links: dict[tuple[int, int], random.Random] = {}
        self._queue: list[tuple[float, int, Callable[[], None]]] = []
        self._waited_for: list[tuple[float, Callable[[], bool], Callable[[], None]]] = []
        self._asked = 0

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

    def begin(self, number: int, fault: Fault) -> None:
        """Begin a fault, the ``number``-th of its schedule."""
        raise NotImplementedError

    def close(self) -> None:
        """Close all replicas. A second call does nothing."""
        raise NotImplementedError

    def describe(self, message: Any) -> str:
        """A message in a few words."""
        raise NotImplementedError

    # A run

    @contextmanager
    def showing_violations(self) -> Iterator[None]:
        """Around a run: it is recorded, shown once more if it breaks a rule, and closed."""
        if self.tracing:
            self.network.observe(self._on_event)
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

    def schedule(self, faults: Sequence[Fault]) -> None:
        """Let each fault begin at its time."""
        for number, fault in enumerate(faults):
            self.at(BEGINNING + fault.at, partial(self.begin, number, fault))

    def end_later(self, number: int, fault: Fault, end: Callable[[], None]) -> None:
        """A fault has begun: end it when it has lasted long enough."""

        def ended() -> None:
            self.note("end", f"{number}: {fault.kind}")
            end()
            self.wake_all()

        self.after(fault.lasts, ended)

    # Time

    @property
    def elapsed(self) -> float:
        """Virtual seconds since the beginning."""
        return self.now - BEGINNING

    def at(self, time: float, action: Callable[[], None]) -> None:
        """Do something at this time."""
        self._asked += 1
        heapq.heappush(self._queue, (max(time, self.now), self._asked, action))

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

    def run_until(self, time: float, done: Callable[[], bool] = lambda: False) -> bool:
        """Let everything happen up to this time, or until it is ``done``; say whether it was."""
        while not done():
            if not self._queue or self._queue[0][0] > time:
                self.now = time
                return done()
            self.now, _, action = heapq.heappop(self._queue)
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
        delay = self.latency * (0.1 + 0.9 * part) + max(0.0, self.hosts[sender].busy_until - self.now)
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

    def _on_event(self, event: Event) -> None:
        self.note(event.kind, f"{event.sender} -> {event.receiver} {self.describe(event.message)}")

    def note(self, kind: str, words: str) -> None:
        """Write a line into the trace."""
        if self.tracing:
            self.trace.append(TraceEvent(self.elapsed, kind, words))
