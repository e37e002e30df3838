"""Lag: how far a state is behind what is known to be committed, in entries and in milliseconds."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Mapping
from typing import NamedTuple

from ondisk.replica import ReplicaStatus


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


def lags_of(commits: Commits, statuses: Mapping[int, ReplicaStatus], time: float) -> dict[int, Lag]:
    """How far each replica is behind, by its id."""
    return {replica_id: commits.lag(status.applied_index, time) for replica_id, status in statuses.items()}
