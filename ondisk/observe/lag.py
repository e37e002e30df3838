"""LagRecorder: how far each replica has come, every few milliseconds."""

from __future__ import annotations

import itertools
import math
import threading
import time
from collections import deque

from ondisk.cluster import Cluster
from ondisk.errors import ConfigurationError
from ondisk.interrupts.shielded import shielded
from ondisk.net.clock import Clock
from ondisk.observe.commits import Commits, Lag, Reading, lags_of
from ondisk.observe.every import LooksEvery
from ondisk.observe.view import Note

STEP = 0.125  # seconds between two points of a live picture


def _worse(one: Reading, newer: Reading) -> Reading:
    """The newer one, with the worse of the lags."""
    lags = {}
    for replica_id, lag in newer.lags.items():
        other = one.lags.get(replica_id, lag)
        lags[replica_id] = Lag(max(lag.entries, other.entries), max(lag.milliseconds, other.milliseconds))
    return newer._replace(lags=lags)


class LagRecorder(LooksEvery):
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
        self.begin()
        self._look_every(every, self.read, "ondisk-lag")

    @shielded
    def read(self) -> Reading:
        """Look now, and keep what was seen."""
        with self._reading:
            now, statuses = self._clock(), self._cluster.status()
            self._commits.see(max(status.commit_index for status in statuses.values()), now)
            applied = {replica_id: status.applied_index for replica_id, status in statuses.items()}
            reading = Reading(now, self._commits.newest, applied, lags_of(self._commits, statuses, now))
            self._readings.append(reading)
            if self._worst and int(self._worst[-1].time / STEP) == int(now / STEP):
                self._worst[-1] = _worse(self._worst[-1], reading)
            else:
                self._worst.append(reading)
            return reading

    def begin(self) -> None:
        """Whatever is read from now on is what ``readings`` and ``notes`` show."""
        self.began = self._clock()  # in seconds of the cluster's clock
        self.ended = math.inf

    def end(self) -> None:
        """The experiment is over: what is read from now on is no part of ``readings`` and ``notes``."""
        self.ended = self._clock()

    def note(self, text: str) -> None:
        """Write down what is being done, with the time."""
        self._notes.append(Note(self._clock(), text))

    @property
    @shielded
    def readings(self) -> list[Reading]:
        """What was read between ``begin`` and ``end``, the oldest first."""
        with self._reading:
            return [reading for reading in self._readings if self.began <= reading.time <= self.ended]

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
        """What was written down between ``begin`` and ``end``."""
        return [note for note in self._notes if self.began <= note.time <= self.ended]
