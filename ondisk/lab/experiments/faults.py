"""Faults that need more than a word to the network, and the way back to a healthy cluster."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager

from ondisk.cluster import Cluster
from ondisk.observe import wait_until_level
from ondisk.storage.disk import Disk


class SlowDisk(Disk):
    """The real disk with a stopwatch, and a setting: a sync takes at least so long."""

    def __init__(self) -> None:
        self.at_least = 0.0  # seconds
        self.took: deque[float] = deque(maxlen=1_000)  # seconds, of the newest syncs

    def sync(self, flush: Callable[[], None]) -> None:
        """Make durable, and wait until the time is up."""
        began = time.perf_counter()
        flush()
        time.sleep(max(0.0, began + self.at_least - time.perf_counter()))
        self.took.append(time.perf_counter() - began)


@contextmanager
def slow(disks: Mapping[int, SlowDisk], replica_ids: Iterable[int], seconds: float) -> Iterator[None]:
    """Inside the ``with`` block every sync of these replicas takes at least so many seconds."""
    chosen = [disks[replica_id] for replica_id in replica_ids]
    for disk in chosen:
        disk.at_least = seconds
    try:
        yield
    finally:
        for disk in chosen:
            disk.at_least = 0.0


def stall(cluster: Cluster, replica_id: int) -> None:
    """Hold every message to and from one replica, until ``cluster.network.reconnect``. Nothing is lost."""
    others = [other for other in cluster.members if other != replica_id]
    cluster.network.stall(
        *((replica_id, other) for other in others), *((other, replica_id) for other in others)
    )


def undo_faults(cluster: Cluster) -> int:
    """Resume, heal, end the latency, start every replica; return the leader when all are level.

    An experiment that begins so can be run at any time, and again.
    """
    network = cluster.network
    network.resume()
    network.set_latency(0)
    network.heal()
    for replica_id in cluster.members:
        cluster.start(replica_id)
    cluster.wait_for_leader()
    wait_until_level(cluster)
    return cluster.wait_for_leader()
