"""The thread that steps a replica: whom it belongs to, when it ends, and who waits for that."""

from __future__ import annotations

import threading
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import pytest

from ondisk.stepping import Stepper, _steppers, wait_for_dropped
from tests.waiting import wait_until

PATIENCE = 20.0


class Owner:
    """Whoever holds it wants the replica to go on."""


class FakeReplica:
    """Says what is done with it; ``in_step`` and ``in_close`` are called there."""

    id = 1
    status = None
    machine = None
    raft = SimpleNamespace(connected=frozenset())

    def __init__(self) -> None:
        self.running = True
        self.done: list[str] = []
        self.in_step: Callable[[], object] = lambda: None
        self.in_close: Callable[[], object] = lambda: None

    def step(self) -> float:
        self.in_step()
        return PATIENCE

    def close(self) -> None:
        self.in_close()
        self.running = False
        self.done.append("closed")

    def crash(self) -> None:
        self.running = False
        self.done.append("crashed")

    def fail(self, error: BaseException) -> None:
        self.running = False
        self.done.append(f"failed: {error}")


class FakeEndpoint:
    """Its ``wait`` ends only when somebody wakes it."""

    def __init__(self) -> None:
        self.waits = threading.Semaphore(0)
        self.woken = threading.Semaphore(0)

    def wait(self, seconds: float) -> None:
        self.waits.release()
        self.woken.acquire(timeout=seconds)

    def wake(self) -> None:
        self.woken.release()


def made(owner: object) -> tuple[Stepper, FakeReplica, FakeEndpoint]:
    replica, endpoint = FakeReplica(), FakeEndpoint()
    events = SimpleNamespace(look=lambda status, connected: None)
    stepper = Stepper(owner, replica, endpoint, events)  # type: ignore[arg-type]
    stepper.start()
    return stepper, replica, endpoint


def beside(work: Callable[[], Any]) -> threading.Thread:
    thread = threading.Thread(target=work, daemon=True)
    thread.start()
    return thread


@pytest.mark.parametrize(("crash", "how"), [(False, "closed"), (True, "crashed")])
def test_an_end_waits_for_the_step_and_then_closes_or_crashes(crash: bool, how: str) -> None:
    owner = Owner()
    stepper, replica, endpoint = made(owner)
    assert endpoint.waits.acquire(timeout=PATIENCE) and stepper.goes_on
    stepper.end(crash=crash)
    assert replica.done == [how] and not stepper.thread.is_alive() and stepper not in _steppers


def test_who_is_told_to_end_does_not_go_on_although_the_step_takes_its_time() -> None:
    """So a start after a stop that was interrupted waits for it, and starts another one."""
    owner, in_step, go_on = Owner(), threading.Event(), threading.Event()
    stepper, replica, endpoint = made(owner)
    assert endpoint.waits.acquire(timeout=PATIENCE)
    replica.in_step = lambda: (in_step.set(), go_on.wait(PATIENCE))
    endpoint.wake()
    assert in_step.wait(PATIENCE)
    ending = beside(lambda: stepper.end(crash=False))
    wait_until(lambda: not stepper.goes_on)
    assert replica.running
    go_on.set()
    ending.join(PATIENCE)
    assert replica.done == ["closed"]


def test_an_error_in_a_step_fails_the_replica_and_ends_the_thread() -> None:
    owner = Owner()
    stepper, replica, endpoint = made(owner)
    assert endpoint.waits.acquire(timeout=PATIENCE)
    replica.in_step = lambda: 1 / 0
    endpoint.wake()
    stepper.thread.join(PATIENCE)
    assert replica.done == ["failed: division by zero"] and not stepper.goes_on


def test_whoever_opens_something_waits_until_a_dropped_one_has_closed() -> None:
    """It has the directory until then. Whoever is held by somebody is not waited for."""
    owner, other, go_on, closing = Owner(), Owner(), threading.Event(), threading.Event()
    kept, *_ = made(other)
    stepper, replica, endpoint = made(owner)
    assert endpoint.waits.acquire(timeout=PATIENCE)
    replica.in_close = lambda: (closing.set(), go_on.wait(PATIENCE))
    del owner
    opening = beside(wait_for_dropped)
    assert closing.wait(PATIENCE)
    opening.join(0.1)
    assert opening.is_alive() and not replica.done
    go_on.set()
    opening.join(PATIENCE)
    assert not opening.is_alive() and replica.done == ["closed"] and not stepper.thread.is_alive()
    assert kept.goes_on
    kept.end(crash=False)


def test_a_dropped_one_does_not_wait_for_itself() -> None:
    """Nor does what its replica calls when it closes: a callback may open something."""
    owner = Owner()
    stepper, replica, endpoint = made(owner)
    assert endpoint.waits.acquire(timeout=PATIENCE)
    replica.in_close = wait_for_dropped
    del owner
    endpoint.wake()
    stepper.thread.join(PATIENCE)
    assert replica.done == ["closed"] and stepper not in _steppers
