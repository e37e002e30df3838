"""A network in memory whose faults are yours to command."""

from __future__ import annotations

import threading
import weakref
from collections import deque
from collections.abc import Callable, Iterable, Mapping
from contextlib import suppress
from queue import Empty, SimpleQueue
from typing import NamedTuple

from ondisk.errors import PortInUse
from ondisk.interrupts import forked
from ondisk.interrupts.shielded import shielded
from ondisk.net.clock import Clock, PausableClock
from ondisk.raft.messages import Message, Origin


class Event(NamedTuple):
    """Something that happened to a message, for those who watch.

    ``number`` is the same for all events of one message; ``time`` is in seconds of the network's clock;
    ``kind`` is ``sent``, ``delivered`` or ``lost``.
    """

    number: int
    time: float
    kind: str
    sender: int
    receiver: int
    message: Message


DeliveryPolicy = Callable[[int, int, Message], float | None]  # of a message from one replica to another


class _Link:
    """From one replica to another. Guarded by the network's lock."""

    def __init__(self) -> None:
        self.cut = False
        self.stalled = False
        self.queue: deque[_Waiting] = deque()


class _Waiting(NamedTuple):
    """A message under way on a link."""

    due: float
    sent: float
    number: int
    origin: Origin
    message: Message


class MemoryNetwork:
    """A network inside one process. Every method may be called from any thread.

    What takes the lock, which the replicas take for each message, is shielded: see interrupts/shielded.py.

    Faults do not show to the replicas except by their effect, as in real life: only a replica that has
    left the network counts as unreachable, a cut link just swallows what is sent.
    """

    def __init__(self, clock: Clock | None = None, policy: DeliveryPolicy | None = None) -> None:
        """``policy`` says for each message how many seconds it takes, or ``None`` if it is lost.

        Without it all of them take ``latency``. Whatever it says, a link keeps its order.
        """
        self.clock = clock or PausableClock()
        self._policy = policy
        self._lock = threading.Lock()
        forked.register(self)
        self._links: dict[tuple[int, int], _Link] = {}
        self._endpoints: dict[int, _MemoryEndpoint] = {}
        self._present: frozenset[int] = frozenset()  # those of the endpoints, for who looks without the lock
        self._under_way = 0  # messages in the queues of all links
        self._latency = 0.0
        self._stepping = False  # paused: messages move one at a time, when told
        self._count = 0
        self._watched: tuple[weakref.ref[deque[Event]], ...] = ()  # the queues of those who watch

    def forget_parent(self) -> None:
        """In a child: nobody of the parent's is here, and nobody holds the lock."""
        self._lock = threading.Lock()
        self._endpoints, self._present = {}, frozenset()
        self._under_way = sum(len(link.queue) for link in self._links.values())

    # What a cluster needs

    def attach(self, replica_id: int) -> _MemoryEndpoint:
        """Join as this replica."""
        with self._lock:
            if replica_id in self._endpoints:
                raise PortInUse(f"replica {replica_id} is already on this network")
            endpoint = self._endpoints[replica_id] = _MemoryEndpoint(self, replica_id)
            self._present = frozenset(self._endpoints)
            for other in self._endpoints.keys() - {replica_id}:
                for pair in ((replica_id, other), (other, replica_id)):
                    self._links.setdefault(pair, _Link())
        self._wake(self._endpoints)
        return endpoint

    # What an experiment may do

    def set_latency(self, seconds: float) -> None:
        """From now on each message takes this long; messages under way keep their time."""
        if seconds < 0:
            raise ValueError("a latency is at least 0 seconds")
        self._latency = seconds

    @property
    def latency(self) -> float:
        """Seconds that each message takes."""
        return self._latency

    @shielded
    def cut(self, *pairs: tuple[int, int]) -> None:
        """Lose everything on these one-way links, also what is under way."""
        with self._lock:
            for pair in pairs:
                link = self._links.setdefault(pair, _Link())
                link.cut = True
                self._lose_waiting(pair, link)

    @shielded
    def stall(self, *pairs: tuple[int, int]) -> None:
        """Hold everything on these one-way links until ``heal``; nothing is lost."""
        with self._lock:
            for pair in pairs:
                self._links.setdefault(pair, _Link()).stalled = True

    @shielded
    def partition(self, *groups: Iterable[int]) -> None:
        """Cut every link between replicas of different groups; heal the links inside each group."""
        group_of = {member: number for number, group in enumerate(groups) for member in group}
        with self._lock:
            pairs = [pair for pair in self._links if set(pair) <= group_of.keys()]
        self.heal(*(pair for pair in pairs if group_of[pair[0]] == group_of[pair[1]]))
        self.cut(*(pair for pair in pairs if group_of[pair[0]] != group_of[pair[1]]))

    @shielded
    def isolate(self, replica_id: int) -> None:
        """Cut every link to and from one replica."""
        with self._lock:
            pairs = [pair for pair in self._links if replica_id in pair]
        self.cut(*pairs)

    @shielded
    def reconnect(self, replica_id: int) -> None:
        """Heal every link to and from one replica."""
        with self._lock:
            pairs = [pair for pair in self._links if replica_id in pair]
        self.heal(*pairs)

    @shielded
    def heal(self, *pairs: tuple[int, int]) -> None:
        """End cuts and stalls on these links; on all of them if none is named."""
        with self._lock:
            for pair in pairs or tuple(self._links):
                link = self._links.setdefault(pair, _Link())
                link.cut = link.stalled = False
        self._wake(self._endpoints)

    def cut_links(self) -> frozenset[tuple[int, int]]:
        """The one-way links that lose messages now, as (sender, receiver)."""
        return frozenset(pair for pair, link in list(self._links.items()) if link.cut)

    def stalled_links(self) -> frozenset[tuple[int, int]]:
        """The one-way links that hold messages back now, as (sender, receiver)."""
        return frozenset(pair for pair, link in list(self._links.items()) if link.stalled)

    @shielded
    def pause(self) -> None:
        """Stop all messages, and time with them, so that no timer runs out meanwhile."""
        if isinstance(self.clock, PausableClock):
            self.clock.pause()
        with self._lock:
            self._stepping = True

    @shielded
    def resume(self) -> None:
        """Let messages and time run again."""
        if isinstance(self.clock, PausableClock):
            self.clock.resume()
        with self._lock:
            self._stepping = False
        self._wake(self._endpoints)

    @property
    def paused(self) -> bool:
        """Whether messages move only by ``step_one_message``."""
        return self._stepping

    @shielded
    def step_one_message(self) -> Event | None:
        """While paused: deliver the message that has waited longest; ``None`` if there is none."""
        with self._lock:
            waiting = [
                (link.queue[0].number, pair)
                for pair, link in self._links.items()
                if link.queue and not link.stalled
            ]
            if not waiting:
                return None
            pair = min(waiting)[1]
            waited = self._take_next(self._links[pair])
            event = self._deliver(pair, waited.number, waited.origin, waited.message)
        self._wake([pair[1]])
        return event

    @shielded
    def in_flight(self) -> list[Event]:
        """The messages that are under way, the oldest first, each as it was sent."""
        with self._lock:
            return sorted(
                Event(waiting.number, waiting.sent, "sent", *pair, waiting.message)
                for pair, link in self._links.items()
                for waiting in link.queue
            )

    @shielded
    def observe(self, newest: int | None = None) -> deque[Event]:
        """Return a queue into which every event is put from now on; it keeps the ``newest`` so many, or all.

        Take them out at the left, in any thread. Who drops the queue stops watching.
        """
        events: deque[Event] = deque(maxlen=newest)
        with self._lock:
            self._watched += (weakref.ref(events),)
        return events

    # What the endpoints call

    def _send(self, pair: tuple[int, int], origin: Origin, message: Message) -> bool:
        with self._lock:
            self._count += 1
            number = self._count
            link = self._links.get(pair) or self._links.setdefault(pair, _Link())
            receiver = self._endpoints.get(pair[1])
            self._report("sent", pair, number, message)
            delay = self._latency if self._policy is None else self._policy(*pair, message)
            if link.cut or receiver is None or delay is None:
                self._report("lost", pair, number, message)
                return receiver is not None
            if delay or link.queue or link.stalled or self._stepping:
                now = self.clock()
                link.queue.append(_Waiting(now + delay, now, number, origin, message))
                self._under_way += 1
            else:
                self._deliver(pair, number, origin, message)
        receiver.wake()
        return True

    def _deliver(self, pair: tuple[int, int], number: int, origin: Origin, message: Message) -> Event | None:
        receiver = self._endpoints.get(pair[1])
        if receiver is None:
            return self._report("lost", pair, number, message)
        receiver.inbox.append((pair[0], origin, message))
        return self._report("delivered", pair, number, message)

    def _take_next(self, link: _Link) -> _Waiting:
        self._under_way -= 1
        return link.queue.popleft()

    def _deliver_due(self, receiver: int) -> float | None:
        """Deliver what is due to one replica; return when the next message is due."""
        if not self._under_way:  # who is about to add to that wakes the receiver afterwards
            return None
        next_due = None
        with self._lock:
            if self._stepping:
                return None
            now = self.clock()
            for sender in tuple(self._endpoints):
                link = self._links.get((sender, receiver))
                if link is None or not link.queue or link.stalled:
                    continue
                while link.queue and link.queue[0].due <= now:
                    waited = self._take_next(link)
                    self._deliver((sender, receiver), waited.number, waited.origin, waited.message)
                if link.queue and (next_due is None or link.queue[0].due < next_due):
                    next_due = link.queue[0].due
        return next_due

    def _lose_waiting(self, pair: tuple[int, int], link: _Link) -> None:
        while link.queue:
            waited = self._take_next(link)
            self._report("lost", pair, waited.number, waited.message)

    def _report(self, kind: str, pair: tuple[int, int], number: int, message: Message) -> Event | None:
        if not (self._watched or self._stepping):
            return None
        event = Event(number, self.clock(), kind, *pair, message)
        for each in self._watched:
            if (events := each()) is not None:
                events.append(event)
            else:
                self._watched = tuple(other for other in self._watched if other is not each)
        return event

    def _wake(self, replica_ids: Iterable[int]) -> None:
        with self._lock:
            endpoints = [self._endpoints[i] for i in replica_ids if i in self._endpoints]
        for endpoint in endpoints:
            endpoint.wake()

    def _detach(self, replica_id: int) -> None:
        with self._lock:
            self._endpoints.pop(replica_id, None)
            self._present = frozenset(self._endpoints)
            for pair, link in self._links.items():
                if replica_id in pair:
                    self._lose_waiting(pair, link)
        self._wake(self._endpoints)


class _MemoryEndpoint:
    def __init__(self, network: MemoryNetwork, replica_id: int) -> None:
        self._network = network
        self._id = replica_id
        self._next_due: float | None = None
        self._present: frozenset[int] = frozenset()  # as it was at the last look
        self._others: frozenset[int] = frozenset()  # the same, without this one
        self._tokens: SimpleQueue[None] = SimpleQueue()
        self.inbox: deque[tuple[int, Origin, Message]] = deque()
        self._origin = Origin(b"", b"", 0, 0)  # until it is introduced

    advertised = ""

    def introduce(self, origin: Origin) -> None:
        self._origin = origin

    def send(self, to: int, message: Message) -> bool:
        return self._network._send((self._id, to), self._origin, message)

    def receive(self) -> list[tuple[int, Origin, Message]]:
        self._next_due = self._network._deliver_due(self._id)
        inbox = self.inbox
        return [inbox.popleft() for _ in range(len(inbox))]

    def connected(self) -> frozenset[int]:
        if (present := self._network._present) is not self._present:
            self._present, self._others = present, present - {self._id}
        return self._others

    def add_peers(self, addresses: Mapping[int, str]) -> None:
        pass

    def wait(self, seconds: float) -> None:
        if self.inbox:
            return
        if self._next_due is not None:
            seconds = min(seconds, self._next_due - self._network.clock())
        if seconds > 0:
            with suppress(Empty):
                self._tokens.get(timeout=seconds)
        while not self._tokens.empty():
            self._tokens.get()

    def wake(self) -> None:
        # Who finds a token brings none: what it announces has already been queued, the token is taken out
        # later, and the step that follows will see it. Clients call this, so it takes no lock.
        if self._tokens.empty():
            self._tokens.put(None)

    def close(self) -> None:
        self._network._detach(self._id)
        self.wake()
