"""Waiting for a condition, with a deadline, instead of sleeping."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import TypeVar

from ondisk import Cluster

T = TypeVar("T")


def wait_until(condition: Callable[[], T], seconds: float = 20.0) -> T:
    """Return the condition's value as soon as it is true; fail after ``seconds``."""
    deadline = time.monotonic() + seconds
    while True:
        value = condition()
        if value:
            return value
        assert time.monotonic() < deadline, f"not within {seconds} s"
        time.sleep(0.01)


def all_applied(cluster: Cluster) -> bool:
    """Whether all replicas have applied the same last entry."""
    statuses = cluster.status().values()
    return len({status.applied_index for status in statuses}) == 1 and all(
        status.applied_index == status.last_index for status in statuses
    )
