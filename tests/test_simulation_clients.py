"""Clients of a simulated group: what goes wrong in one of them is a violation, and not lost in a future."""

from __future__ import annotations

from concurrent.futures import Future
from pathlib import Path
from typing import Any

import pytest

from ondisk.linearizability import History
from ondisk.simulation import Violation
from ondisk.simulation.clients import Client, SessionClient
from ondisk.simulation.world import World
from ondisk.statemachine import Result


class Answers:
    """A service whose replica answers what it is told to, in the moment in which it is asked."""

    def __init__(self, *answers: Any) -> None:
        self.answers = [*answers]
        self.violations: list[str] = []

    def any_replica(self, chance: float) -> tuple[Any, float]:
        return self, 0.0

    def propose(self, command: bytes, deadline: float) -> Future[Any]:
        return self.read_barrier(deadline)

    def read_barrier(self, deadline: float, *, lease: bool = False) -> Future[Any]:
        future: Future[Any] = Future()
        if self.answers:
            future.set_result(self.answers.pop(0))
        return future

    def lookup(self, query: object) -> Any:
        raise RuntimeError("the lookup is broken")

    def report(self, violation: Violation) -> None:
        self.violations.append(str(violation))


@pytest.fixture
def world(tmp_path: Path) -> World:
    return World(1, tmp_path)


def test_a_session_whose_command_is_refused_breaks_exactly_once(world: World) -> None:
    service = Answers(Result(7), Result(1), Result(error="not known"))
    SessionClient(0, world, service, History())
    world.advance(world.now + 20)
    assert service.violations == ["exactly once: session 0: not known"]


def test_what_goes_wrong_in_a_client_is_a_violation(world: World) -> None:
    """A future keeps what its callbacks raise to itself."""
    service = Answers(*[Result(1)] * 100)
    Client(0, world, service, History())
    world.advance(world.now + 60)
    assert service.violations and set(service.violations) == {"client: RuntimeError('the lookup is broken')"}


def test_what_goes_wrong_in_a_session_is_a_violation(world: World) -> None:
    service = Answers(Result("no number"))
    SessionClient(0, world, service, History())
    assert service.violations[0].startswith("client: AssertionError")
