"""View: the whole cluster at one moment, and what changed between two of them."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import NamedTuple

from ondisk.cluster import Cluster
from ondisk.errors import ConfigurationError
from ondisk.net.memory import Event
from ondisk.observe.contents import Contents
from ondisk.observe.messages import Seen, describe
from ondisk.replica import ReplicaStatus

MAX_IN_FLIGHT = 200  # messages under way in one view


class Note(NamedTuple):
    """Something that changed, in words. ``time`` is in seconds of the cluster's clock.

    ``kind``: ``request``, ``answer``, ``election``, ``replica``, ``link``, or empty.
    """

    time: float
    text: str
    kind: str = ""


@dataclass(frozen=True)
class View:
    """The whole cluster at one moment, as near to one as can be had without stopping it.

    ``time`` is in seconds of the cluster's clock, which stands still while the network is paused;
    ``latency`` is in seconds. ``cut`` and ``stalled`` are one-way links as (sender, receiver).
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
    stalled: frozenset[tuple[int, int]] = frozenset()
    contents: Mapping[int, Contents] = field(default_factory=dict)  # only if somebody looks into the replicas
    elsewhere: bool = False  # nothing is seen between the replicas, and nothing can be done to them

    @property
    def commit_index(self) -> int:
        """The newest entry that some replica knows to be committed."""
        return max(status.commit_index for status in self.statuses.values())


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
        stalled=network.stalled_links(),
    )


def changes(before: View, after: View) -> list[Note]:
    """What a reader should hear about between two views."""
    said: list[Note] = []

    def say(kind: str, text: str) -> None:
        said.append(Note(after.time, text, kind))

    for replica_id, new in after.statuses.items():
        old = before.statuses.get(replica_id)
        if old is None:
            say("replica", f"replica {replica_id} joined")
        elif old.role != new.role or (new.role == "leader" and old.term != new.term):
            reason = f": {new.error}" if new.error else ""
            kind = "election" if old.running and new.running else "replica"
            say(kind, f"replica {replica_id}: {old.role} -> {new.role}, term {new.term}{reason}")
    for a, b in sorted(after.cut - before.cut):
        say("link", f"link {a}->{b} cut")
    for a, b in sorted(before.cut - after.cut):
        say("link", f"link {a}->{b} healed")
    if before.latency != after.latency:
        say("", f"latency {after.latency * 1000:.0f} ms")
    if before.paused != after.paused:
        say("", "network paused" if after.paused else "network resumed")
    return said
