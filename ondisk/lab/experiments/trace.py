"""The trace of a simulated run: what every replica was at each moment, in a bounded number of moments.

A moment is kept after a step if it differs from the one before. When there are too many of them every second
one is dropped, and from then on only every second one is kept. Nothing is lost by that: the seed brings the
run back as often as you like, so whoever wants to look closer traces a part of it.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Iterator, Mapping, Sequence
from itertools import islice
from typing import Any, NamedTuple

from ondisk.errors import ReplicaStopped
from ondisk.net.memory import Event
from ondisk.observe import MAX_IN_FLIGHT, NEWEST_ENTRIES, Contents, Looker, Seen, SeenEntry, View
from ondisk.observe import describe as describe_message
from ondisk.replica import Inside, ReplicaStatus
from ondisk.simulation.faults import Fault
from ondisk.simulation.group import Simulation
from ondisk.simulation.host import BEGINNING
from ondisk.simulation.run import Report, Setting, run
from ondisk.simulation.stock import StockReplica, StockSimulation
from ondisk.simulation.stock import describe as describe_stock
from ondisk.simulation.trace import describe
from ondisk.simulation.world import World
from ondisk.statemachine import OnDiskStateMachine

MOST_MOMENTS = 1_000
_MOST_MESSAGES = 3  # to one replica, at one moment
_STATES = ("follower", "candidate", "leader")


class Member(NamedTuple):
    """One replica at a moment. Of one that is down the numbers are the last that were seen.

    ``durable``: its log would survive a crash up to here. ``keys``: how many acknowledged keys its state
    machine has (stock PySyncObj only). ``coming``: messages under way to it, the oldest first, of which there
    are ``more``. ``deaf_to``: whose messages do not reach it.
    """

    id: int
    role: str
    term: int = 0
    last: int = 0
    durable: int = 0
    commit: int = 0
    applied: int = 0
    keys: int | None = None
    coming: tuple[str, ...] = ()
    more: int = 0
    deaf_to: tuple[int, ...] = ()


class Moment(NamedTuple):
    """All replicas at one moment. ``time``: in virtual seconds since the beginning.

    ``lines``: how long the record was. ``committed``: the newest entry that anybody ever took for committed.
    ``voters``: who counts for a majority. ``acknowledged``: how many keys (stock PySyncObj only).
    ``view``: what logs and states hold, and the messages under way.
    """

    time: float
    lines: int
    members: tuple[Member, ...]
    committed: int
    voters: tuple[int, ...]
    acknowledged: int | None = None
    view: View | None = None

    @property
    def holders(self) -> tuple[int, ...]:
        """Who has the newest committed entry in its log, as far as its length tells."""
        return tuple(m.id for m in self.members if m.id in self.voters and m.durable >= self.committed)

    @property
    def too_few(self) -> bool:
        """Whether less than a majority has what was committed: one more crash, and it may be lost."""
        return 2 * len(self.holders) <= len(self.voters)


class Exposure(NamedTuple):
    """A time during which too few logs had what was committed. In virtual seconds."""

    since: float
    until: float

    @property
    def seconds(self) -> float:
        return self.until - self.since


class Tracer:
    """Keeps the moments: give it to ``run`` as ``observe``."""

    def __init__(self, *, since: float = 0.0, until: float = math.inf, most: int = MOST_MOMENTS) -> None:
        """Moments from ``since`` to ``until``, at most so many."""
        self.moments: list[Moment] = []
        self._since, self._until, self._most = since, until, most
        self._every, self._turn = 1, 0
        self._committed = 0
        self._voters: tuple[int, ...] = ()
        self._members: dict[int, Member] = {}
        self._under_way: dict[int, Event] = {}  # messages, by number
        self._words: dict[int, str] = {}  # of these
        self._missing: dict[int, tuple[StockReplica, set[str]]] = {}  # acknowledged keys, by member
        self._counted = 0  # acknowledged keys that were looked at
        self._statuses: dict[int, ReplicaStatus] = {}  # as they were last seen
        self._inside: _Inside | None = None
        self._events: deque[Event] = deque()
        self._messages: list[Seen] = []

    def __call__(self, world: World) -> None:
        """Look at it. Called after each step."""
        stock = isinstance(world, StockSimulation)
        if self._inside is None:
            self._inside = _Inside(world)
            self._events = world.network.observe()
            self._under_way = {event.number: event for event in world.network.in_flight()}
            self._messages += map(_seen, self._under_way.values())
        self._take_in()
        members = self._stock(world) if stock else self._ours(world)
        self._members = {member.id: member for member in members}
        self._committed = max([self._committed, *(member.commit for member in members)])
        if not self._since <= world.elapsed <= self._until:
            return
        coming = self._coming()
        deaf = world.network.cut_links() | world.network.stalled_links()
        members = [
            member._replace(
                coming=tuple(coming.get(member.id, ())[:_MOST_MESSAGES]),
                more=max(0, len(coming.get(member.id, ())) - _MOST_MESSAGES),
                deaf_to=tuple(sorted(a for a, b in deaf if b == member.id and a in self._members)),
            )
            for member in members
        ]
        acknowledged = len(world.acknowledged) if isinstance(world, StockSimulation) else None
        self._keep(
            Moment(
                world.elapsed,
                len(world.trace),
                tuple(members),
                self._committed,
                self._voters,
                acknowledged,
            ),
            world,
        )

    def _keep(self, moment: Moment, world: World) -> None:
        last = self.moments[-1] if self.moments else None
        if moment == (last and last._replace(time=moment.time, lines=moment.lines, view=None)):
            return
        self._turn += 1
        if self._turn % self._every:
            return
        self.moments.append(moment._replace(view=self._view(world)))
        if len(self.moments) > self._most:
            del self.moments[1::2]
            self._every *= 2

    def end(self, report: Report) -> None:
        """The last moment is the end of the run, if that is in the trace."""
        if self.moments and self._since <= report.seconds <= self._until:
            self.moments.append(self.moments[-1]._replace(time=report.seconds, lines=len(report.trace)))

    @property
    def messages(self) -> tuple[Seen, ...]:
        """What has happened to messages during these moments."""
        return tuple(self._messages)

    def _take_in(self) -> None:
        """Note down what has happened to messages since the last time."""
        while self._events:
            event = self._events.popleft()
            if event.kind == "sent":
                self._under_way[event.number] = event
            else:
                self._under_way.pop(event.number, None)
                self._words.pop(event.number, None)
            if self._since <= event.time - BEGINNING <= self._until:
                self._messages.append(_seen(event))

    def _view(self, world: World) -> View:
        """What logs and states hold now, and what is under way."""
        network = world.network
        assert self._inside is not None
        statuses = dict(self._statuses)
        leaders = [status for status in statuses.values() if status.role == "leader"]
        leader = max(leaders, key=lambda status: status.term).id if leaders else None
        return View(
            world.elapsed,
            statuses,
            leader,
            network.cut_links(),
            world.latency,
            in_flight=tuple(map(_seen, islice(self._under_way.values(), MAX_IN_FLIGHT))),
            stalled=network.stalled_links(),
            contents=self._inside.look(statuses, self._committed),
        )

    # What the replicas are

    def _ours(self, world: World) -> list[Member]:
        assert isinstance(world, Simulation)
        leader = world.leader
        if leader is not None:
            self._voters = leader.status.voters or self._voters
        self._voters = self._voters or world.first_members
        found = []
        for member, host in sorted(world.hosts.items()):
            if member in world.removed:
                self._statuses.pop(member, None)
                continue
            replica, log = world.replicas.get(member), world.logs.get(member)
            if replica is None:
                before = self._members.get(member, Member(member, "down"))
                durable = log.synced_index if log is not None else before.durable
                found.append(before._replace(role="down", last=durable, durable=durable))
                status = self._statuses.get(member, ReplicaStatus(member, "stopped"))
                self._statuses[member] = status._replace(
                    role="stopped", last_index=durable, durable_index=durable
                )
                continue
            status = self._statuses[member] = replica.status
            role = f"{status.role}, no processor" if host.paused else status.role
            numbers = status.last_index, status.durable_index, status.commit_index, status.applied_index
            found.append(Member(member, role, status.term, *numbers))
        return found

    def _stock(self, world: World) -> list[Member]:
        assert isinstance(world, StockSimulation)
        self._voters = world.members
        new = list(world.acknowledged)[self._counted :] if len(world.acknowledged) > self._counted else []
        self._counted = len(world.acknowledged)
        found = []
        for member in world.members:
            replica = world.replicas.get(member)
            if replica is None:
                found.append(self._members.get(member, Member(member, "down"))._replace(role="down"))
                before = self._statuses.get(member, ReplicaStatus(member, "stopped"))
                self._statuses[member] = before._replace(role="stopped")
                continue
            status = replica.getStatus()
            role = _STATES[status["state"]] + ", no processor" * world.hosts[member].paused
            length = status["log_len"]  # its first entry is the first of all: so short a run drops none
            numbers = length, length, status["commit_idx"], status["last_applied"]
            state = _STATES[status["state"]], status["raft_term"], None
            self._statuses[member] = ReplicaStatus(member, *state, *numbers, status["last_applied"])
            keys = len(world.acknowledged) - self._missed(world, member, replica, new)
            found.append(Member(member, role, status["raft_term"], *numbers, keys))
        return found

    def _missed(self, world: StockSimulation, member: int, replica: StockReplica, new: list[str]) -> int:
        """How many acknowledged keys this replica does not have. Looks only at those that may count."""
        known, missing = self._missing.get(member, (None, set()))
        missing = {*missing, *new} if known is replica else set(world.acknowledged)
        missing = {key for key in missing if key not in replica.data}
        self._missing[member] = replica, missing
        return len(missing)

    def _coming(self) -> dict[int, list[str]]:
        """What is under way to each, in words."""
        coming: dict[int, list[str]] = {}
        for number, event in self._under_way.items():
            if (words := self._words.get(number)) is None:
                words = self._words[number] = _in_words(event)
            coming.setdefault(event.receiver, []).append(words)
        return coming


class _Inside:
    """Looks into simulated replicas, as a ``Looker`` does into those of a cluster."""

    def __init__(self, world: World) -> None:
        self._world = world
        self._looker = Looker(self)

    def look(self, statuses: Mapping[int, ReplicaStatus], committed: int) -> dict[int, Contents]:
        """What is in them now. Of stock PySyncObj's logs it is what is around the newest committed entry."""
        if isinstance(self._world, StockSimulation):
            place = max(1, committed + 2 - NEWEST_ENTRIES), committed + 1
            replicas = self._world.replicas.items()
            return {member: self._of_stock(replica, *place) for member, replica in replicas}
        return self._looker.look(statuses, self._world.elapsed)

    def _of_stock(self, replica: StockReplica, first: int, last: int) -> Contents:
        return Contents(tuple(SeenEntry(*entry) for entry in replica.entries(first, last)))

    def inside(self, member: int, entries: int) -> Inside:
        """Of one that runs; else nothing."""
        assert isinstance(self._world, Simulation)
        replica = self._world.replicas.get(member)
        if replica is None:
            return Inside()
        inside, host = replica.inside(entries), self._world.hosts[member]
        left = inside.election_at - host.clock()  # a clock of its own
        return inside._replace(election_at=self._world.elapsed + left)

    def machine(self, member: int) -> OnDiskStateMachine:
        """Of one that runs. Raises ``ReplicaStopped``."""
        assert isinstance(self._world, Simulation)
        if (replica := self._world.replicas.get(member)) is None:
            raise ReplicaStopped(f"replica {member} is down")
        return replica.machine


def _seen(event: Event) -> Seen:
    """A message in virtual time."""
    event = event._replace(time=event.time - BEGINNING)
    message: Any = event.message
    if isinstance(message, dict):
        number, time, kind, sender, receiver, _ = event
        empty = message.get("type") == "append_entries" and not message.get("entries")
        return Seen(number, time, kind, sender, receiver, "stock", describe_stock(message), empty=empty)
    return describe_message(event)


def _in_words(event: Event) -> str:
    message: Any = event.message
    said = describe_stock(message) if isinstance(message, dict) else describe(message)
    return f"from {event.sender}: {said}"


class Trace(NamedTuple):
    """A run, and what it looked like."""

    report: Report
    setting: Setting
    moments: tuple[Moment, ...]
    messages: tuple[Seen, ...] = ()  # what happened to them, in order

    def exposures(self) -> list[Exposure]:
        """When too few logs had what was committed."""
        return list(_exposures(self.moments))

    def closer(self, since: float, until: float) -> Trace:
        """The same run once more, and only this part of it. That is what a seed is good for."""
        again = trace(self.report.seed, self.setting, self.report.faults, since=since, until=until)
        assert again.report.trace == self.report.trace
        return again

    def fork(self, at: float, *faults: Fault, seconds: float = 10.0) -> Trace:
        """The same run up to this time, and then only these faults, for so many virtual seconds.

        Up to then it is the same, line for line: nothing but the seed and the faults decides about a run.
        """
        before = [fault for fault in self.report.faults if fault.at <= at]
        setting = self.setting._replace(seconds=at + seconds)
        return trace(self.report.seed, setting, [*before, *faults], since=max(0.0, at - _BEFORE))


_BEFORE = 2.0  # seconds that a fork shows of what both have in common


def trace(
    seed: int,
    setting: Setting = Setting(),  # noqa: B008  an immutable value
    faults: Sequence[Fault] | None = None,
    *,
    since: float = 0.0,
    until: float = math.inf,
    most: int = MOST_MOMENTS,
) -> Trace:
    """Run it as ``run`` does, and keep its moments."""
    tracer = Tracer(since=since, until=until, most=most)
    report = run(seed, setting, faults, tracer)
    tracer.end(report)
    return Trace(report, setting, tuple(tracer.moments), tracer.messages)


def _exposures(moments: Sequence[Moment]) -> Iterator[Exposure]:
    began: float | None = None
    for moment in moments:
        if moment.too_few and began is None:
            began = moment.time
        elif not moment.too_few and began is not None:
            yield Exposure(began, moment.time)
            began = None
    if began is not None:
        yield Exposure(began, moments[-1].time)


film = trace  # as notebooks called it that somebody may have copied
