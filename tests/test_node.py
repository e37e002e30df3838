"""Node: a replica and its thread, which live and end together."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from ondisk import Node, ReplicaStopped
from ondisk.net.memory import MemoryNetwork
from tests.waiting import wait_until


class Strange(BaseException):
    """Such as a panic in a library: no ``Exception``."""


class BreakingNetwork(MemoryNetwork):
    """Its endpoints raise ``error`` from ``wait`` once it is set."""

    error: BaseException | None = None

    def attach(self, replica_id: int) -> Any:
        endpoint = super().attach(replica_id)
        wait = endpoint.wait

        def break_or_wait(seconds: float) -> None:
            if self.error is not None:
                raise self.error
            wait(min(seconds, 0.01))

        endpoint.wait = break_or_wait  # type: ignore[method-assign]
        return endpoint


ERRORS = [
    OSError("no such device"),
    UnicodeError("a host name"),
    MemoryError(),
    Strange("panic"),
    SystemExit(1),
]


@pytest.mark.parametrize("error", ERRORS, ids=[type(error).__name__ for error in ERRORS])
def test_whatever_ends_the_thread_fails_the_replica_with_the_reason(
    tmp_path: Path, error: BaseException
) -> None:
    """Its status says so, its callers are told, its directory is free, and it can be started again."""
    network = BreakingNetwork()
    node = Node(1, [1], tmp_path, network)
    node.start()
    try:
        assert node.put("k", "v").error is None
        network.error = error
        wait_until(lambda: not node.status.running)
        assert (node.status.role, node.status.error) == ("failed", f"{type(error).__name__}: {error}")
        with pytest.raises(ReplicaStopped, match=type(error).__name__):
            node.put("k", "w")
        network.error = None
        node.start()
        assert node.get("k") == b"v"
    finally:
        node.stop()


def test_who_waits_when_the_thread_ends_is_answered(tmp_path: Path) -> None:
    """Not left to a deadline: here, to a read that nobody can confirm."""
    network = BreakingNetwork()
    node = Node(1, [1, 2], tmp_path, network)  # there is no second one, so nothing is answered
    node.start()
    try:
        future: Any = node.propose_async(b"", timeout=60.0)
        network.error = UnicodeError("a host name")
        with pytest.raises(ReplicaStopped, match="a host name"):
            future.result(20)
    finally:
        node.stop()
