"""Recorder: a bounded record of views, messages and notes.

Nothing here holds a replica up. A ``View`` is put together from what the replicas left behind after their
last step, and the network puts messages into a bounded queue, which is emptied with each sample. Records
carry no payload, so that they stay small whatever the commands are.
"""

from __future__ import annotations

import threading
from collections import deque
from contextlib import suppress
from dataclasses import replace
from itertools import islice

from ondisk.cluster import Cluster
from ondisk.errors import ConfigurationError
from ondisk.interrupts.shielded import shielded
from ondisk.net.memory import Event
from ondisk.observe.commits import Commits, Lag, lags_of
from ondisk.observe.contents import Looker
from ondisk.observe.elsewhere import GroupElsewhere
from ondisk.observe.every import LooksEvery
from ondisk.observe.messages import News, Seen, describe
from ondisk.observe.view import Note, View, capture, changes

_BETWEEN_LOOKS = 10_000  # events that are kept between two samples; a busy cluster has some hundreds


class Recorder(LooksEvery):
    """Samples views and notes down messages while it is open. A context manager; closable twice.

    Each of its queues keeps the newest so many. Samples are taken by a thread of its own, every ``every``
    seconds, and one is kept only when something changed.
    """

    @shielded
    def __init__(
        self,
        cluster: Cluster | GroupElsewhere,
        *,
        every: float = 0.05,
        samples: int = 2_000,
        messages: int = 4_000,
        notes: int = 200,
        looker: Looker | None = None,
    ) -> None:
        """Begin. ``samples``, ``messages`` and ``notes`` are how many of each are kept.

        With a ``looker`` the views show what logs and states hold, too.
        """
        self._cluster = cluster
        self._looker = looker
        self._under_way: dict[int, Seen] = {}
        self._samples: deque[View] = deque([self._capture()], maxlen=samples)
        self._looked_at = self._samples[0].time
        self._commits = Commits(samples)
        self._messages: deque[Seen] = deque(maxlen=messages)
        self._with_heartbeats: deque[Seen] = deque(maxlen=messages)
        self._is_news = News()
        self._notes: deque[Note] = deque(maxlen=notes)
        self._mark = 0
        self._sampling = threading.Lock()
        self._events: deque[Event] = deque()
        if isinstance(cluster, Cluster):
            with suppress(ConfigurationError):  # TCP, which nobody can look into
                self._events = cluster.network.observe(_BETWEEN_LOOKS)
        self._look_every(every, self.sample, "ondisk-recorder")

    def _take_in(self) -> None:
        """Describe what has happened to messages since the last time, and drop their payload."""
        for _ in range(len(self._events)):
            seen = describe(self._events.popleft())
            self._with_heartbeats.append(seen)
            if self._is_news(seen):
                self._messages.append(seen)

    @shielded
    def close(self) -> None:
        """End the record; what was recorded stays readable. A second call does nothing."""
        super().close()
        with self._sampling:
            self._take_in()
            self._events = deque()  # the network finds out that nobody takes anything out of the other one

    @shielded
    def sample(self) -> View:
        """Look now; keep the view if something changed since the last one."""
        with self._sampling:
            self._take_in()
            view = self._capture()
            self._looked_at = view.time
            last = self._samples[-1]
            self._commits.see(view.commit_index, view.time)
            if replace(view, time=last.time) != last:
                self._notes.extend(changes(last, view))
                self._samples.append(view)
            return view

    def _capture(self) -> View:
        # A link may hold hundreds of messages for many seconds: each is described once, and shared.
        if isinstance(self._cluster, GroupElsewhere):
            return self._cluster.view()
        before = self._under_way
        view = capture(self._cluster, lambda event: before.get(event.number) or describe(event))
        self._under_way = {seen.number: seen for seen in view.in_flight}
        if self._looker is not None:
            view = replace(view, contents=self._looker.look(view.statuses, view.time))
        return view

    @property
    @shielded
    def samples(self) -> list[View]:
        """The views that were kept, the oldest first."""
        with self._sampling:
            return list(self._samples)

    @property
    def began(self) -> float:
        """The time of the oldest view that is kept, in seconds of the cluster's clock."""
        return self._samples[0].time

    @shielded
    def mark(self) -> None:
        """Whatever is sent from now on is what ``messages`` shows."""
        with self._sampling:
            self._take_in()
            self._mark = max((event.number for event in self._with_heartbeats), default=self._mark)

    @shielded
    def newest_messages(self, most: int) -> list[Seen]:
        """The newest ``most`` events of messages that tell something new, whenever they were sent."""
        with self._sampling:
            self._take_in()
            newest = list(islice(reversed(self._messages), most))
        return newest[::-1]

    @shielded
    def note(self, text: str, kind: str = "") -> None:
        """Note down what somebody did, in words."""
        with self._sampling:
            self._notes.append(Note(self._looked_at, text, kind))

    @shielded
    def newest_notes(self, most: int) -> list[Note]:
        """The newest ``most`` notes."""
        with self._sampling:
            return list(self._notes)[-most:]

    @shielded
    def messages(self, *, heartbeats: bool = False) -> list[Seen]:
        """The events of all messages sent since ``mark``, in order; see ``without_repeats``."""
        with self._sampling:
            self._take_in()
            events = self._with_heartbeats if heartbeats else self._messages
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
            return lags_of(self._commits, view.statuses, view.time)
