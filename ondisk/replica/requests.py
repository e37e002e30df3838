"""What proposals and reads have in common: whom to answer, and the callers that may have given up."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from typing import Any, NamedTuple, TypeVar

from ondisk.interrupts.futures import Future
from ondisk.raft import Timing
from ondisk.raft.messages import Message
from ondisk.statemachine import Result

_PATIENCE_HEARTBEATS = 2

_T = TypeVar("_T")

Send = Callable[[int, Message], None]
"""``send(to, message)``: it leaves when the log is durable."""

Answer = Callable[[Future[Any], Result | None], None]
"""``answer(future, result)``: the caller is told at the end of the step."""


class Remote(NamedTuple):
    """Whom to answer when the request came from another replica."""

    replica_id: int
    request: int


def answer_due(now: float, timing: Timing) -> float:
    """When a question that leaves for the leader now, or the answer to it, is taken for lost."""
    return now + _PATIENCE_HEARTBEATS * timing.heartbeat


def begin(future: Future[Any]) -> bool:
    """Mark a future as under way, from when it cannot be cancelled; ``False`` if its caller did before."""
    return future.running() or future.set_running_or_notify_cancel()


def refuse(future: Future[Any], error: Exception) -> bool:
    """End a future with an error, under way or not, unless its caller has cancelled it; say whether."""
    if future.refuse(error):
        return True
    if running := future.running():
        future.set_exception(error)
    return running


def drain(queue: deque[_T]) -> list[_T]:
    """Take out what is there now. Clients may add to the other end meanwhile."""
    return [queue.popleft() for _ in range(len(queue))]
