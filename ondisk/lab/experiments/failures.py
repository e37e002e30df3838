"""A leader that fails under a client: what the client hears, and what is there in the end."""

from __future__ import annotations

import time
from typing import NamedTuple

from ondisk.cluster import Cluster
from ondisk.errors import NotDone, OndiskError, OutcomeUnknown
from ondisk.lab.experiments.faults import stall, undo_faults


class Outage(NamedTuple):
    """What the failure of a leader did to its clients. Times in seconds."""

    fault: str
    said: str  # to a put through this leader
    seconds: float  # until a put through one of the others was done
    before: bool  # what was acknowledged before is there at the end
    late: bool  # and the put through the failed leader
    after: bool  # and the one through the others


def fail_the_leader(cluster: Cluster, fault: str) -> Outage:
    """Let the leader ``crash``, ``stall`` or be ``cut off``, go on asking, and see what is there at the end.

    Raises an ``OndiskError`` if nobody else takes over within ten seconds.
    """
    leader = undo_faults(cluster)
    other = next(replica_id for replica_id in cluster.members if replica_id != leader)
    for key in ("before", "late", "after"):
        cluster.delete(key)
    cluster.put("before", "acknowledged")
    if fault == "crash":
        cluster.crash(leader)
    elif fault == "stall":
        stall(cluster, leader)
    elif fault == "cut off":
        cluster.network.isolate(leader)
    else:
        raise ValueError(f"no such fault: {fault!r}")
    began = time.perf_counter()
    said = "done"
    try:
        cluster.put("late", "maybe", via=leader, timeout=0.5)
    except NotDone:
        said = "not done"
    except OutcomeUnknown:
        said = "outcome unknown"
    _put_until_done(cluster, "after", via=other, timeout=10)
    seconds = time.perf_counter() - began
    undo_faults(cluster)
    there = [cluster.get(key) is not None for key in ("before", "late", "after")]
    return Outage(fault, said, seconds, *there)


def _put_until_done(cluster: Cluster, key: str, *, via: int, timeout: float) -> None:
    """A put may be repeated: twice is as good as once."""
    deadline = time.monotonic() + timeout
    while True:
        try:
            cluster.put(key, "acknowledged", via=via, timeout=0.5)
            return
        except OndiskError:
            if time.monotonic() > deadline:
                raise
