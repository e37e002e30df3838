"""Events: what an operator wants to read afterwards, one line each, with names that stay.

``leader_found replica=2 leader=1 term=5 after=0.281s``: a name, then fields. They go to the logger
``ondisk.events`` with level INFO, and a record has them as ``record.event`` and ``record.fields``, too.
docs/operating.md lists them. What repeats is limited: ``MOST`` of a name in ``MINUTE`` seconds, and the next
one says how many were left out.

A replica does not know of them: whoever steps it looks at its status after each step.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Set
from typing import Any

from ondisk.figures import Figures, Histogram
from ondisk.replica import ReplicaStatus
from ondisk.storage.disk import Disk

MOST, MINUTE = 20, 60.0
SLOW_FSYNC = 0.25  # seconds; a leader that waits longer than an election timeout is deposed

logger = logging.getLogger(__name__)


class Events:
    """Those of one replica."""

    def __init__(self, replica_id: int, *, clock: Callable[[], float] = time.monotonic) -> None:
        self.figures = Figures()
        self._id = replica_id
        self._clock = clock
        self._said: dict[str, tuple[float, int]] = {}  # since when, how often
        self._before: ReplicaStatus | None = None
        self._connected: Set[int] = frozenset()
        self._without_leader_since = clock()

    def say(self, event: str, **fields: Any) -> None:
        """One line, unless there were too many of this kind just now."""
        now = self._clock()
        since, count = self._said.get(event, (now, 0))
        if now - since >= MINUTE:
            if count > MOST:
                fields["left_out_before"] = count - MOST
            since, count = now, 0
        self._said[event] = since, count + 1
        if count < MOST:
            fields = {"replica": self._id, **{name: value for name, value in fields.items() if value != ""}}
            text = " ".join(f"{name}={value}" for name, value in fields.items())
            logger.info("%s %s", event, text, extra={"event": event, "fields": fields})

    def look(self, status: ReplicaStatus, connected: Set[int]) -> None:
        """After each step: say what has changed since the last one."""
        self.figures.look(status)
        if not logger.isEnabledFor(logging.INFO):
            return
        before, self._before = self._before, status
        if before is None or (status.running and not before.running):
            self.say("replica_started", last_index=status.last_index, group=status.group, disk=status.disk)
            before = ReplicaStatus(self._id, "follower", first_index=status.first_index, group=status.group)
            self._without_leader_since = self._clock()
        if connected != self._connected:
            for peer in sorted(connected - self._connected):
                self.say("peer_connected", peer=peer)
            for peer in sorted(self._connected - connected):
                self.say("peer_lost", peer=peer)
            self._connected = frozenset(connected)
        if status.group != before.group:
            self.say("group_joined", group=status.group)
        if (status.voters, status.learners) != (before.voters, before.learners):
            self.say("members_changed", voters=_ids(status.voters), learners=_ids(status.learners))
        if (status.role, status.leader_id) != (before.role, before.leader_id):
            self._look_at_roles(before, status)
        if status.first_index != before.first_index:
            self.say("log_compacted", first_index=status.first_index)
        if status.streams or before.streams:
            self._look_at_streams(before, status)

    def _look_at_roles(self, before: ReplicaStatus, status: ReplicaStatus) -> None:
        now = self._clock()
        if not status.running:
            self.say(f"replica_{status.role}", error=status.error or "")
            return
        if before.leader_id is not None and status.leader_id != before.leader_id:
            self._without_leader_since = now
            self.say("leader_lost", leader=before.leader_id, term=status.term)
        if status.role == "candidate" and before.role != "candidate":
            self.say("election_started", term=status.term)
        if status.leader_id is not None and status.leader_id != before.leader_id:
            after = f"{now - self._without_leader_since:.3f}s"
            self.say("leader_found", leader=status.leader_id, term=status.term, after=after)

    def _look_at_streams(self, before: ReplicaStatus, status: ReplicaStatus) -> None:
        was = {(each.kind, each.peer, each.index): each.bytes for each in before.streams}
        now = {(each.kind, each.peer, each.index): each.bytes for each in status.streams}
        for kind, peer, index in now.keys() - was.keys():
            self.say("snapshot_began", kind=kind, peer=peer or "", index=index)
        for kind, peer, index in was.keys() - now.keys():
            self.say("snapshot_ended", kind=kind, peer=peer or "", index=index, bytes=was[kind, peer, index])


class WatchedDisk(Disk):
    """A disk that says so when it was slow, and counts how long it took."""

    def __init__(self, events: Events, took: Histogram | None = None) -> None:
        self._events = events
        self._took = took or Histogram()

    def sync(self, flush: Callable[[], None]) -> None:
        """Also what a snapshot makes durable, in a thread of its own."""
        began = time.monotonic()
        flush()
        seconds = time.monotonic() - began
        self._took.observe(seconds)
        if seconds >= SLOW_FSYNC:
            self._events.say("slow_fsync", seconds=f"{seconds:.3f}")


def _ids(replica_ids: tuple[int, ...]) -> str:
    return ",".join(map(str, replica_ids))
