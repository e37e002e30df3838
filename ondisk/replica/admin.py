"""Admin requests: what an operator asks of a replica, done by the thread that steps it."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from typing import Any, TypeVar

from ondisk.errors import ReplicaStopped
from ondisk.interrupts.futures import Future
from ondisk.replica.requests import begin, drain, refuse

_T = TypeVar("_T")


class AdminRequests:
    """A queue that any thread may put into, and only the step takes from."""

    def __init__(self) -> None:
        self._waiting: deque[tuple[Callable[[], object], Future[Any]]] = deque()

    def ask(self, work: Callable[[Future[_T]], object]) -> Future[_T]:
        """``work`` is called in the next step, with the future that it is to end."""
        future: Future[_T] = Future()
        self._waiting.append((lambda: work(future), future))
        return future

    def serve(self) -> None:
        """Do what waits. An error ends its future, and the step: the rest are refused with the replica."""
        for _ in range(len(self._waiting)):
            work, future = self._waiting.popleft()
            if not begin(future):
                continue
            try:
                work()
            except BaseException as error:
                future.set_exception(error)
                raise

    def refuse_all(self, stopped: str) -> None:
        """The replica has stopped; ``stopped`` says why."""
        for _, future in drain(self._waiting):
            refuse(future, ReplicaStopped(stopped))
