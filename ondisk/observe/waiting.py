"""Waiting for something that can be observed, with a deadline."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable

from ondisk.cluster import Cluster


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
