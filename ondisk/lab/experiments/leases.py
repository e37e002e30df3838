"""Reads by a lease: what they cost beside others, and what a clock that is too slow makes of them."""

from __future__ import annotations

import statistics
import time
from collections.abc import Sequence
from typing import NamedTuple

from ondisk.cluster import Cluster
from ondisk.lab.experiments.faults import undo_faults
from ondisk.linearizability import Operation, check, conflict
from ondisk.simulation.faults import LEADER, Fault
from ondisk.simulation.leases import CLOCK_DRIFT
from ondisk.simulation.run import Report, Setting, run

_SEED = 1


class ReadCost(NamedTuple):
    """What a get took: the median of some, in seconds."""

    through: str  # the leader, or a follower
    lease: bool
    seconds: float


def measure_reads(cluster: Cluster, *, latency: float = 0.02, gets: int = 15) -> list[ReadCost]:
    """Get a key through the leader and through a follower, by rounds and by lease.

    Each message takes ``latency`` seconds, so that one can be seen.
    """
    leader = undo_faults(cluster)
    follower = next(member for member in cluster.members if member != leader)
    cluster.put("k", "v")
    cluster.network.set_latency(latency)
    try:
        return [
            ReadCost(name, lease, _median(cluster, via, lease, gets))
            for name, via in (("the leader", leader), ("a follower", follower))
            for lease in (False, True)
        ]
    finally:
        cluster.network.set_latency(0)


def _median(cluster: Cluster, via: int, lease: bool, gets: int) -> float:
    took = []
    for _ in range(gets):
        began = time.perf_counter()
        cluster.get("k", via=via, lease=lease, timeout=10)
        took.append(time.perf_counter() - began)
    return statistics.median(took)


def lease_on_a_slow_clock(rate: float) -> Report:
    """Ten virtual seconds of a group that reads by leases, and that is told a drift of 0.25.

    While the others' clocks count a second, the leader's counts ``rate``. Then it is cut off, and asked.
    """
    faults = (
        Fault(2.0, "skew", 8.0, LEADER, size=rate),
        Fault(5.0, "left behind", 3.0, LEADER),
    )
    return run(_SEED, Setting(replicas=3, seconds=10, drift=CLOCK_DRIFT), faults)


def what_contradicts(history: Sequence[Operation]) -> tuple[Operation, ...]:
    """The few operations of a history that no order explains; none if there is one."""
    return tuple(conflict(check(history).prefix))
