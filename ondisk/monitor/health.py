"""Is a replica alive, is it ready?

*Alive* means that a restart would not help: an orchestrator restarts who is not. *Ready* means that requests
succeed here now: a majority is there. A group that has lost its majority is alive and not ready; to restart
those that are left would only make it worse.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

from ondisk.errors import OndiskError
from ondisk.node import Node

READ_WITHIN = 0.8  # seconds: a probe of Kubernetes waits for one


class Check(NamedTuple):
    """One question, and why it was answered with no; ``None`` if it was not."""

    name: str
    problem: str | None

    def __str__(self) -> str:
        """As Kubernetes and etcd write it."""
        return f"[+]{self.name} ok" if self.problem is None else f"[-]{self.name} failed: {self.problem}"


def liveness(node: Node) -> Iterator[Check]:
    """Whether the replica takes steps."""
    status = node.status
    yield Check("running", None if status.running else f"{status.role}: {status.error or 'it was closed'}")


def readiness(node: Node) -> Iterator[Check]:
    """Also whether it belongs to a group, knows a leader, and can read what a majority agrees on.

    The last one asks the others, and takes up to ``READ_WITHIN`` seconds.
    """
    yield from liveness(node)
    status = node.status
    yield Check("state", status.error)
    yield Check("leader", None if status.leader_id is not None else "no leader is known")
    try:
        node.confirm_leader(timeout=READ_WITHIN)
        yield Check("linearizable_read", None)
    except OndiskError as error:
        yield Check("linearizable_read", str(error))
