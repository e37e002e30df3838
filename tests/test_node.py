"""Node: a replica and its thread, which live and end together."""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import Future
from pathlib import Path
from typing import Any, get_type_hints

import pytest

from ondisk import Node, NoLeader, ReplicaStopped, Result
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


def test_a_node_is_a_context_manager_that_waits_for_a_leader(tmp_path: Path) -> None:
    """It runs inside, and its directory is free afterwards. One without a majority says what it waits for."""
    with Node(1, [1], tmp_path / "one", MemoryNetwork()) as node:
        assert node.wait_for_leader() == 1
        node.put("k", "v")
    assert node.status.role == "stopped"
    with pytest.raises(ReplicaStopped):
        node.wait_for_leader()
    with node:
        assert node.get("k") == b"v"
    with (
        Node(1, [1, 2, 3], tmp_path / "three", MemoryNetwork()) as lonely,
        pytest.raises(NoLeader, match="waiting for replicas 2, 3"),
    ):
        lonely.wait_for_leader(0.05)


@pytest.fixture
def group(tmp_path: Path) -> Iterator[list[Node]]:
    """Three that run, the leader first."""
    network = MemoryNetwork()
    nodes = [Node(i, [1, 2, 3], tmp_path, network) for i in (1, 2, 3)]
    try:
        for node in nodes:
            node.start()
        leader = nodes[0].wait_for_leader()
        yield sorted(nodes, key=lambda node: node.id != leader)
    finally:
        for node in nodes:
            node.stop()


def test_a_leader_that_stops_in_order_fails_no_put_of_others(group: list[Node]) -> None:
    """Of many that are under way through both other replicas while it hands over, and stops."""
    leader, *others = group

    def put(names: range) -> list[Future[Result]]:
        return [node.put_async(f"{node.id}-{name}", b"v") for node in others for name in names]

    futures = put(range(20))
    with leader:
        futures += put(range(20, 400))
    futures += put(range(400, 420))
    assert leader.status.role == "stopped"
    for future in futures:
        assert future.result(10).error is None
    assert {node.wait_for_leader() for node in others} < {node.id for node in others}


def test_a_leader_that_nobody_can_follow_stops_all_the_same(group: list[Node]) -> None:
    """The others are stopped, or it is alone: it does not wait for them."""
    leader, *others = group
    for node in others:
        node.stop()
    leader.hand_over(timeout=0.2)
    assert leader.status.running


def test_a_type_checker_knows_what_each_verb_answers(tmp_path: Path) -> None:
    """A number, or whether something was changed: what it says is what comes."""
    with Node(1, [1], tmp_path, MemoryNetwork()) as node:
        node.wait_for_leader()
        answers = {
            node.incr: (("n",), int),
            node.compare_and_set: (("k", None, "v"), bool),
            node.delete: (("k",), bool),
        }
        for verb, (arguments, kind) in answers.items():
            result = verb(*arguments)  # type: ignore[operator]
            assert type(result.value) is kind and isinstance(result, Result)
            assert get_type_hints(get_type_hints(verb)["return"])["value"] is kind
