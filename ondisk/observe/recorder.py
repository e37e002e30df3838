"""What can be watched: the whole cluster at one moment, and a bounded record of what went on.

Nothing here holds a replica up. A ``View`` is put together from what the replicas left behind after their
last step, and messages are noted down by a callback that only appends to a bounded queue. Records carry no
payload, so that they stay small whatever the commands are.
"""

from __future__ import annotations

import itertools
import threading
import time
import weakref
from bisect import bisect_right
from collections import deque
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, replace
from typing import NamedTuple

from ondisk.cluster import Cluster
from ondisk.errors import ConfigurationError
from ondisk.interrupts.shielded import shielded
from ondisk.net.clock import Clock
from ondisk.net.memory import Event
from ondisk.raft.messages import (
    AppendEntries,
    AppendReply,
    AskReadIndex,
    Outcomes,
    Propose,
    ReadIndex,
    RequestVote,
    Vote,
)
from ondisk.replica import ReplicaStatus

MAX_IN_FLIGHT = 200  # messages under way in one view
STEP = 0.125  # seconds between two points of a live picture


class Seen(NamedTuple):
    """One event of one message, without its payload.

    ``number`` is the same for all events of a message; ``time`` is in seconds of the cluster's clock;
    ``kind`` is ``sent``, ``delivered`` or ``lost``. ``label`` says in a word or two what it carries.
    """

    number: int
    time: float
    kind: str
    sender: int
    receiver: int
    name: str
    label: str
    first: int = 0  # entries first..last; in a reply, last is the index that is answered
    last: int = 0
    commit: int = 0
    round: int = 0  # of a leader's check that it still leads
    success: bool = False
    empty: bool = False  # a heartbeat, or the answer to one
    term: int = 0

    @property
    def news(self) -> tuple[int, ...]:
        """What it tells its receiver: two messages on one link with the same news are as good as one."""
        return self.term, self.last if self.name == "reply" else self.commit, self.success


class Note(NamedTuple):
    """Something that changed, in words. ``time`` is in seconds of the cluster's clock."""

    time: float
    text: str


@dataclass(frozen=True)
class View:
    """The whole cluster at one moment, as near to one as can be had without stopping it.

    ``time`` is in seconds of the cluster's clock, which stands still while the network is paused;
    ``latency`` is in seconds. ``cut`` and ``held`` are one-way links as (sender, receiver).
    ``in_flight`` (the oldest first, at most ``MAX_IN_FLIGHT``), ``messages`` and ``notes`` are in order.
    """

    time: float
    statuses: Mapping[int, ReplicaStatus]
    leader_id: int | None
    cut: frozenset[tuple[int, int]] = frozenset()
    latency: float = 0.0
    paused: bool = False
    in_flight: tuple[Seen, ...] = ()
    messages: tuple[Seen, ...] = ()
    notes: tuple[Note, ...] = ()
    held: frozenset[tuple[int, int]] = frozenset()

    @property
    def commit_index(self) -> int:
        """The newest entry that some replica knows to be committed."""
        return max(status.commit_index for status in self.statuses.values())


class Lag(NamedTuple):
    """How far a replica's state is behind the newest entry known to be committed.

    ``entries`` counts the committed entries that it has not applied. ``milliseconds`` is the time since the
    *first* of them was seen to be committed: for so long this state has been out of date, and a stale read
    answers as the leader would have answered so long ago. Both are 0 when nothing is missing.

    A commit is seen when somebody looks, and that is a little later. So the milliseconds are too few, by up
    to what lies between two looks.
    """

    entries: int
    milliseconds: float


class Reading(NamedTuple):
    """How far every replica had come at one moment.

    ``time`` is in seconds of the cluster's clock. ``commit_index`` is the newest entry that any replica had
    been seen to know as committed: the leader's, because nobody hears of it earlier.
    """

    time: float
    commit_index: int
    applied: Mapping[int, int]  # replica id: applied index
    lags: Mapping[int, Lag]


class Commits:
    """When each entry was first seen to be committed: what it takes to tell a lag in milliseconds.

    What was committed before the first look counts from the first look.
    """

    def __init__(self, keep: int = 2_000) -> None:
        """Remember at least the newest ``keep`` moments at which the commit index had moved."""
        self._keep = keep
        self._indices: list[int] = []
        self._times: list[float] = []

    def see(self, commit_index: int, time: float) -> None:
        """The commit index was seen at this time. One that was seen before tells nothing new."""
        if self._indices and commit_index <= self._indices[-1]:
            return
        self._indices.append(commit_index)
        self._times.append(time)
        if len(self._indices) >= 2 * self._keep:
            del self._indices[: self._keep], self._times[: self._keep]

    @property
    def newest(self) -> int:
        """The newest entry that was seen to be committed."""
        return self._indices[-1] if self._indices else 0

    def lag(self, applied_index: int, time: float) -> Lag:
        """How far a state that ends with entry ``applied_index`` is behind at this time."""
        behind = self.newest - applied_index
        if behind <= 0:  # a follower may have been looked at later than its leader
            return Lag(0, 0.0)
        first_missing = bisect_right(self._indices, applied_index)
        return Lag(behind, (time - self._times[first_missing]) * 1000)


def describe(event: Event) -> Seen:
    """A network event without its payload, and with a label such as ``append_entries 17..17``."""

    def seen(name: str, label: str) -> Seen:
        return Seen(event.number, event.time, event.kind, event.sender, event.receiver, name, label)

    match event.message:
        case AppendEntries(entries=entries) as m:
            empty = not entries
            if empty:
                what = seen("heartbeat", f"heartbeat, commit {m.commit_index}")
            else:
                first, last = entries[0].index, entries[-1].index
                what = seen("append_entries", f"append_entries {first}..{last}")
                what = what._replace(first=first, last=last)
            return what._replace(term=m.term, commit=m.commit_index, round=m.round, empty=empty)
        case AppendReply() as m:
            what = seen("reply", f"reply {'ok' if m.success else 'no, try'} {m.index}")
            empty = m.success and m.index == m.prev_index
            return what._replace(term=m.term, last=m.index, round=m.round, success=m.success, empty=empty)
        case RequestVote() as m:
            name = "pre_vote" if m.pre else "request_vote"
            return seen(name, f"{name} for term {m.term}")
        case Vote() as m:
            return seen("vote", f"vote {'yes' if m.granted else 'no'} in term {m.term}")
        case Propose(commands=commands):
            return seen("propose", f"propose {len(commands)}")
        case Outcomes(outcomes=outcomes):
            done = sum(outcome.result is not None for outcome in outcomes)
            return seen("outcomes", f"outcome: {done} of {len(outcomes)} done")
        case AskReadIndex():
            return seen("ask_read_index", "ask_read_index")
        case ReadIndex(index=None):
            return seen("read_index", "read_index: not leader")
        case ReadIndex(index=int(index)):
            return seen("read_index", f"read_index {index}")._replace(last=index)
        case other:
            name = type(other).__name__
            return seen(name, name)


# A heartbeat that follows another message sooner than this is no routine: it asks whether its sender still
# leads, for a read. Seconds; a little less than ``Timing.heartbeat``.
_BEFORE_ITS_TIME = 0.08


class _News:
    """Tells, message by message, which ones are worth keeping: see ``without_repeats``."""

    def __init__(self) -> None:
        self._told: dict[tuple[int, int], tuple[int, ...]] = {}  # on each link
        self._told_at: dict[tuple[int, int], float] = {}
        self._under_way: set[int] = set()  # kept, and not yet delivered or lost

    def __call__(self, event: Seen) -> bool:
        if event.kind != "sent":
            known = event.number in self._under_way
            self._under_way.discard(event.number)
            return known
        if event.name in ("append_entries", "heartbeat", "reply"):
            link = event.sender, event.receiver
            before = self._told.get(link, event.news)
            self._told[link] = event.news
            since, self._told_at[link] = self._told_at.get(link, float("-inf")), event.time
            if event.empty and before == event.news and event.time >= since + _BEFORE_ITS_TIME:
                return False
        self._under_way.add(event.number)
        return True


def without_repeats(events: Iterable[Seen]) -> list[Seen]:
    """Leave out heartbeats, and answers to them, that tell nothing the same link has not told before.

    What is kept are entries, votes, requests, and the heartbeat that carries a new commit index or asks
    "am I still your leader?" for a read.
    """
    return list(filter(_News(), events))


def capture(cluster: Cluster, describe: Callable[[Event], Seen] = describe) -> View:
    """Look at the cluster now. ``messages`` and ``notes`` stay empty: see ``Recorder.view``."""
    try:
        network = cluster.network
    except ConfigurationError:  # TCP, which nobody can look into
        return View(time.monotonic(), cluster.status(), cluster.leader_id)
    under_way = network.in_flight()[:MAX_IN_FLIGHT]
    return View(
        network.clock(),
        cluster.status(),
        cluster.leader_id,
        network.cut_links(),
        network.latency,
        network.paused,
        tuple(describe(event) for event in under_way),
        held=network.stalled_links(),
    )


def changes(before: View, after: View) -> list[str]:
    """What a reader should hear about between two views, in words."""
    said = []
    for replica_id, new in after.statuses.items():
        old = before.statuses.get(replica_id)
        if old is None:
            said.append(f"replica {replica_id} joined")
        elif old.role != new.role or (new.role == "leader" and old.term != new.term):
            reason = f": {new.error}" if new.error else ""
            said.append(f"replica {replica_id}: {old.role} -> {new.role}, term {new.term}{reason}")
    said += [f"link {a}->{b} cut" for a, b in sorted(after.cut - before.cut)]
    said += [f"link {a}->{b} healed" for a, b in sorted(before.cut - after.cut)]
    if before.latency != after.latency:
        said.append(f"latency {after.latency * 1000:.0f} ms")
    if before.paused != after.paused:
        said.append("network paused" if after.paused else "network resumed")
    return said


def _look_every(
    seconds: float, closed: threading.Event, look: weakref.WeakMethod[Callable[[], object]], name: str
) -> threading.Thread:
    """A thread that looks every so many seconds, until it is closed or who looks was dropped."""

    def run() -> None:
        while not closed.wait(seconds):
            if (method := look()) is None:
                return
            method()
            del method

    thread = threading.Thread(target=run, name=name, daemon=True)
    thread.start()
    return thread


class Recorder:
    """Samples views and notes down messages while it is open. A context manager; closable twice.

    Each of its queues keeps the newest so many. Samples are taken by a thread of its own, every ``every``
    seconds, and one is kept only when something changed.
    """

    @shielded
    def __init__(
        self,
        cluster: Cluster,
        *,
        every: float = 0.05,
        samples: int = 2_000,
        messages: int = 4_000,
        notes: int = 200,
    ) -> None:
        """Begin. ``samples``, ``messages`` and ``notes`` are how many of each are kept."""
        self._cluster = cluster
        self._under_way: dict[int, Seen] = {}
        self._samples: deque[View] = deque([self._capture()], maxlen=samples)
        self._commits = Commits(samples)
        self._messages: deque[Seen] = deque(maxlen=messages)
        self._with_heartbeats: deque[Seen] = deque(maxlen=messages)
        self._is_news = _News()
        self._notes: deque[Note] = deque(maxlen=notes)
        self._mark = 0
        self._sampling = threading.Lock()
        self._closed = threading.Event()
        me = weakref.ref(self)  # one that an interrupt lost ends when it is collected

        def on_event(event: Event) -> None:
            if (recorder := me()) is not None:
                recorder._on_event(event)

        try:
            self._stop_observing = cluster.network.observe(on_event)
        except ConfigurationError:
            self._stop_observing = lambda: None
        self._thread = _look_every(every, self._closed, weakref.WeakMethod(self.sample), "ondisk-recorder")

    def _on_event(self, event: Event) -> None:
        # In a replica's thread, under the network's lock.
        seen = describe(event)
        self._with_heartbeats.append(seen)
        if self._is_news(seen):
            self._messages.append(seen)

    @shielded
    def close(self) -> None:
        """End the record; what was recorded stays readable. A second call does nothing."""
        self._stop_observing()
        self._closed.set()
        self._thread.join()

    def __enter__(self) -> Recorder:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    @shielded
    def sample(self) -> View:
        """Look now; keep the view if something changed since the last one."""
        with self._sampling:
            view = self._capture()
            last = self._samples[-1]
            self._commits.see(view.commit_index, view.time)
            if replace(view, time=last.time) != last:
                self._notes.extend(Note(view.time, text) for text in changes(last, view))
                self._samples.append(view)
            return view

    def _capture(self) -> View:
        # A link may hold hundreds of messages for many seconds: each is described once, and shared.
        before = self._under_way
        view = capture(self._cluster, lambda event: before.get(event.number) or describe(event))
        self._under_way = {seen.number: seen for seen in view.in_flight}
        return view

    @property
    @shielded
    def samples(self) -> list[View]:
        """The views that were kept, the oldest first."""
        with self._sampling:
            return list(self._samples)

    def mark(self) -> None:
        """Whatever is sent from now on is what ``messages`` shows."""
        self._mark = max((event.number for event in _copy(self._with_heartbeats)), default=self._mark)

    def messages(self, *, heartbeats: bool = False) -> list[Seen]:
        """The events of all messages sent since ``mark``, in order; see ``without_repeats``."""
        events = _copy(self._with_heartbeats if heartbeats else self._messages)
        return [event for event in events if event.number > self._mark]

    @shielded
    def view(self) -> View:
        """The cluster now, with the messages since ``mark`` and the notes."""
        view = self.sample()
        with self._sampling:
            notes = tuple(self._notes)
        return replace(view, messages=tuple(self.messages()), notes=notes)

    @shielded
    def lag(self) -> dict[int, Lag]:
        """How far each replica is behind now; the milliseconds are as fine as the samples."""
        view = self.sample()
        with self._sampling:
            return _lags(self._commits, view.statuses, view.time)


def _copy(events: deque[Seen]) -> list[Seen]:
    while True:  # replicas append meanwhile, and a deque refuses to be read while it changes
        try:
            return list(events)
        except RuntimeError:
            continue


def _lags(commits: Commits, statuses: Mapping[int, ReplicaStatus], time: float) -> dict[int, Lag]:
    return {replica_id: commits.lag(status.applied_index, time) for replica_id, status in statuses.items()}


def _worse(one: Reading, newer: Reading) -> Reading:
    """The newer one, with the worse of the lags."""
    lags = {}
    for replica_id, lag in newer.lags.items():
        other = one.lags.get(replica_id, lag)
        lags[replica_id] = Lag(max(lag.entries, other.entries), max(lag.milliseconds, other.milliseconds))
    return newer._replace(lags=lags)


class LagRecorder:
    """Reads every few milliseconds how far each replica has come, and nothing else, so that it can.

    A context manager; closable twice. Its thread looks every ``every`` seconds if the machine lets it:
    ``gaps`` tells how often it really did.
    """

    @shielded
    def __init__(self, cluster: Cluster, *, every: float = 0.005, keep: int = 6_000) -> None:
        """Begin. Only the newest ``keep`` readings are kept."""
        self._cluster = cluster
        try:
            self._clock: Clock = cluster.network.clock
        except ConfigurationError:  # TCP
            self._clock = time.monotonic
        self._commits = Commits(keep)
        self._readings: deque[Reading] = deque(maxlen=keep)
        self._worst: deque[Reading] = deque(maxlen=1_000)
        self._notes: deque[Note] = deque(maxlen=100)
        self._reading = threading.Lock()
        self._closed = threading.Event()
        self.begin()
        self._thread = _look_every(every, self._closed, weakref.WeakMethod(self.read), "ondisk-lag")

    @shielded
    def close(self) -> None:
        """End the record; what was recorded stays readable. A second call does nothing."""
        self._closed.set()
        self._thread.join()

    def __enter__(self) -> LagRecorder:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    @shielded
    def read(self) -> Reading:
        """Look now, and keep what was seen."""
        with self._reading:
            now, statuses = self._clock(), self._cluster.status()
            self._commits.see(max(status.commit_index for status in statuses.values()), now)
            applied = {replica_id: status.applied_index for replica_id, status in statuses.items()}
            reading = Reading(now, self._commits.newest, applied, _lags(self._commits, statuses, now))
            self._readings.append(reading)
            if self._worst and int(self._worst[-1].time / STEP) == int(now / STEP):
                self._worst[-1] = _worse(self._worst[-1], reading)
            else:
                self._worst.append(reading)
            return reading

    def begin(self) -> None:
        """Whatever is read from now on is what ``readings`` and ``notes`` show."""
        self.began = self._clock()  # in seconds of the cluster's clock

    def note(self, text: str) -> None:
        """Write down what is being done, with the time."""
        self._notes.append(Note(self._clock(), text))

    @property
    @shielded
    def readings(self) -> list[Reading]:
        """What was read since ``begin``, the oldest first."""
        with self._reading:
            return [reading for reading in self._readings if reading.time >= self.began]

    @shielded
    def worst(self, seconds: float) -> list[Reading]:
        """What was read in the last so many seconds, whether since ``begin`` or before, in short.

        One reading for each ``STEP``: its lags are the worst of all that fell into it.
        """
        with self._reading:
            since = self._clock() - seconds
            return [reading for reading in self._worst if reading.time >= since]

    @property
    def gaps(self) -> tuple[float, float]:
        """Seconds between two readings since ``begin``: the median and the longest. Nothing finer shows."""
        times = [reading.time for reading in self.readings]
        between = sorted(after - before for before, after in itertools.pairwise(times))
        return (between[len(between) // 2], between[-1]) if between else (0.0, 0.0)

    @property
    def notes(self) -> list[Note]:
        """What was written down since ``begin``."""
        return [note for note in self._notes if note.time >= self.began]


def wait_until(condition: Callable[[], bool], what: str, timeout: float = 10.0) -> None:
    """Return as soon as ``condition`` holds. ``TimeoutError`` names ``what`` after ``timeout`` seconds."""
    deadline = time.monotonic() + timeout
    while not condition():
        if time.monotonic() > deadline:
            raise TimeoutError(f"not within {timeout:g} s: {what}")
        time.sleep(0.005)


def wait_until_level(
    cluster: Cluster, replica_ids: Iterable[int] | None = None, timeout: float = 10.0
) -> None:
    """Return when these replicas (all that run, if none are named) have applied the leader's whole log.

    ``TimeoutError`` after ``timeout`` seconds: no leader, or a replica that is cut off or stopped.
    """
    chosen = None if replica_ids is None else list(replica_ids)

    def level() -> bool:
        leader, statuses = cluster.leader_id, cluster.status()
        running = [i for i, status in statuses.items() if status.running]
        return leader is not None and all(
            statuses[i].applied_index >= statuses[leader].last_index
            for i in (running if chosen is None else chosen)
        )

    wait_until(level, "the replicas have applied the leader's whole log", timeout)
