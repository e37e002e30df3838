"""Figures: what no status tells, counted while a replica runs: how long things take, and how often who led.

Counting costs a comparison a step, and a look at the clock before and after each fsync and each batch that is
applied. All else that ``monitor/`` shows is read from the status when somebody asks.
"""

from __future__ import annotations

import time
from bisect import bisect_left
from collections.abc import Sequence

from ondisk.raft.records import LogEntry
from ondisk.replica import Replica, ReplicaStatus

BUCKETS = tuple(0.001 * 2**n for n in range(14))  # seconds, from 1 ms to 8.192 s: those of etcd


class Histogram:
    """How many operations took how long: a count for each of ``BUCKETS``, and one for what took longer.

    Any thread may read it; what is read may lack what is just being added. Two that add at once may lose one.
    """

    def __init__(self) -> None:
        self.counts = [0] * (len(BUCKETS) + 1)
        self.seconds = 0.0

    def observe(self, seconds: float) -> None:
        """One more operation."""
        self.counts[bisect_left(BUCKETS, seconds)] += 1
        self.seconds += seconds


class Figures:
    """Those of one node, over all its starts in this process."""

    def __init__(self) -> None:
        self.log_fsync = Histogram()
        self.state_fsync = Histogram()
        self.apply = Histogram()
        self.leader_changes = 0
        self.proposals_failed = 0
        self._leader: int | None = None

    def look(self, status: ReplicaStatus) -> None:
        """After each step. One that leads again after it was lost counts again, as in etcd."""
        if status.leader_id != self._leader:
            self._leader = status.leader_id
            if self._leader is not None:
                self.leader_changes += 1


class MeasuredReplica(Replica):
    """A replica that counts how long each batch takes to apply, and which requests have failed."""

    figures: Figures

    def apply(self, entries: Sequence[LogEntry]) -> None:
        """See ``Replica.apply``."""
        began = time.monotonic()
        super().apply(entries)
        self.figures.apply.observe(time.monotonic() - began)

    def on_failed(self) -> None:
        """See ``Replica.on_failed``."""
        self.figures.proposals_failed += 1
