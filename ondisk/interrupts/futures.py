"""The future of a request: one of ``concurrent.futures``, that an interrupt cannot leave locked.

The standard one has a lock, and an interrupt in ``result()`` may leave it taken; then the replica that has
the answer would wait for ever. This one has none. What becomes of it is decided by two atomic steps, each of
which only one can make: the *claim* (it is under way, or it was cancelled) and the *outcome*. Who waits puts
a queue of its own into a list, and whoever takes it out again tells it, once.

``concurrent.futures.wait`` and ``as_completed`` bring waiters with locks of their own. So a replica never
touches those: a thread beside it does (``_Teller``).
"""

from __future__ import annotations

import _thread
import concurrent.futures
import logging
import threading
from collections import deque
from collections.abc import Callable
from concurrent.futures import CancelledError, InvalidStateError
from contextlib import suppress
from queue import Empty, SimpleQueue
from threading import TIMEOUT_MAX
from typing import Any, NamedTuple, TypeVar

from ondisk.interrupts.shielded import shielded

_T = TypeVar("_T")

_RUNNING, _FINISHED, _CANCELLED = "RUNNING", "FINISHED", "CANCELLED_AND_NOTIFIED"  # the standard's words
_ENDED = (_FINISHED, _CANCELLED)

logger = logging.getLogger(__name__)


class _Snapshot:
    """In the place of the standard future's lock: its state stands still for the thread that holds this.

    ``concurrent.futures.wait`` looks at a state several times, and must see the same one each time.
    """

    def __init__(self, future: Future[Any]) -> None:
        self._future = future

    def acquire(self, *_: object) -> bool:
        self._future._seen[_thread.get_ident()] = self._future._present_state
        return True

    def release(self) -> None:
        self._future._seen.pop(_thread.get_ident(), None)

    def __enter__(self) -> bool:
        return self.acquire()

    def __exit__(self, *_: object) -> None:
        self.release()


class _Outcome(NamedTuple):
    result: Any
    error: BaseException | None


class _Teller:
    """Tells a waiter of the standard library what has ended, from a thread of its own, in order."""

    def __init__(self, waiter: Any) -> None:
        self._waiter = waiter
        self._ended: deque[Future[Any]] = deque()
        self._busy = _thread.allocate_lock()  # never waited for

    def tell(self, future: Future[Any]) -> None:
        self._ended.append(future)
        if not self._busy.locked():
            try:
                _thread.start_new_thread(self._run, ())
            except RuntimeError:  # no more threads
                self._run()

    def _run(self) -> None:
        while self._ended and self._busy.acquire(blocking=False):
            try:
                while self._ended:
                    future = self._ended.popleft()
                    if future.cancelled():
                        self._waiter.add_cancelled(future)
                    elif future._exception is not None:
                        self._waiter.add_exception(future)
                    else:
                        self._waiter.add_result(future)
            finally:
                self._busy.release()  # then look again: who came meanwhile has left it to this thread


class _Waiters:
    """What ``concurrent.futures.wait`` takes for the list of a future's waiters."""

    def __init__(self, future: Future[Any]) -> None:
        self._future = future

    def append(self, waiter: Any) -> None:
        if self._future._state in _ENDED:  # as its caller has seen, who does not wait for this one
            return
        teller: _Teller = waiter.__dict__.setdefault("_teller", _Teller(waiter))
        self._future._watch((waiter, teller.tell))

    def remove(self, waiter: Any) -> None:
        for watcher in tuple(self._future._watchers):
            if watcher[0] is waiter:
                with suppress(ValueError):  # told meanwhile
                    self._future._watchers.remove(watcher)


def in_background(work: Callable[[], _T]) -> Future[_T]:
    """Do some work in a thread of its own, where no interrupt hits it; its future tells the end."""
    future = Future[_T]()
    _thread.start_new_thread(_spawn, (work, future))
    return future


def _spawn(work: Callable[[], _T], future: Future[_T]) -> None:
    try:
        threading.Thread(target=_do, args=(work, future), name="background", daemon=True).start()
    except RuntimeError:  # there are too many
        _do(work, future)


def _do(work: Callable[[], _T], future: Future[_T]) -> None:
    try:
        result = work()
    except BaseException as error:  # told to whoever waits
        future.set_exception(error)
    else:
        future.set_result(result)


class Future(concurrent.futures.Future[_T]):
    """A future whose end never waits for whoever may have been interrupted in one of its methods."""

    # Each is set once, by ``setdefault`` in the object's dictionary: that is one atomic step.
    _claimed: str | _Outcome | None = None  # it is under way, or cancelled, or ended before it was under way
    _ended: _Outcome | None = None  # what came of it, once it was under way

    def __init__(self) -> None:
        """It is pending: neither claimed nor ended. (What the base class would make is not needed.)"""
        self._watchers: deque[tuple[Any, Callable[[Future[Any]], object]]] = deque()

    # The two steps

    def _claim(self, how: str | _Outcome) -> str | _Outcome:
        """Claim it, unless somebody was quicker; return how it is claimed."""
        claimed: str | _Outcome = self.__dict__.setdefault("_claimed", how)
        return claimed

    @property
    def _outcome(self) -> _Outcome | None:
        return self._claimed if isinstance(self._claimed, _Outcome) else self._ended

    def _end(self, result: Any, error: BaseException | None) -> None:
        outcome = _Outcome(result, error)
        if (
            self._claim(_RUNNING) is not _RUNNING
            or self.__dict__.setdefault("_ended", outcome) is not outcome
        ):
            raise InvalidStateError(f"{self._present_state}: {self!r}")
        self._tell_all()

    def _watch(self, watcher: tuple[Any, Callable[[Future[Any]], object]]) -> None:
        self._watchers.append(watcher)
        if self.done():  # maybe since before: whoever takes it out of the list tells it
            with suppress(ValueError):
                self._watchers.remove(watcher)  # only this one: an interrupt must not lose those of others
                self._call(watcher[1])

    def _tell_all(self) -> None:
        watchers = self._watchers
        while watchers:
            try:
                _, tell = watchers.popleft()
            except IndexError:  # another thread was quicker
                return
            self._call(tell)

    def _call(self, tell: Callable[[Future[Any]], object]) -> None:
        try:
            tell(self)
        except Exception:
            logger.exception("a callback of %r failed", self)

    # As in concurrent.futures

    @property
    def _present_state(self) -> str:
        if self._outcome is not None:
            return _FINISHED
        return self._claimed or "PENDING"  # type: ignore[return-value]

    @property
    def _seen(self) -> dict[int, str]:
        return self.__dict__.setdefault("_seen_by", {})  # type: ignore[no-any-return]

    @property
    def _state(self) -> str:  # type: ignore[override]
        return self._seen.get(_thread.get_ident(), self._present_state)

    @property
    def _condition(self) -> _Snapshot:  # type: ignore[override]
        return _Snapshot(self)

    @property
    def _result(self) -> Any:  # type: ignore[override]
        return None if (outcome := self._outcome) is None else outcome.result

    @property
    def _exception(self) -> BaseException | None:  # type: ignore[override]
        return None if (outcome := self._outcome) is None else outcome.error

    @property
    def _waiters(self) -> _Waiters:  # type: ignore[override]
        return _Waiters(self)

    def done(self) -> bool:
        """Whether it has ended or was cancelled."""
        return self._ended is not None or self._outcome is not None or self.cancelled()

    def running(self) -> bool:
        """Whether it is under way, and cannot be cancelled any more."""
        return self._claimed is _RUNNING and self._ended is None

    def cancelled(self) -> bool:
        """Whether it was cancelled before it was under way."""
        return self._claimed is _CANCELLED

    def cancel(self) -> bool:
        """Cancel it, unless it is under way; say whether it is cancelled now."""
        if self._claimed is _RUNNING:
            return False
        return self._cancel()

    def refuse(self, error: BaseException) -> bool:
        """End it with an error, if it is neither under way nor cancelled; say whether that was in time.

        In one step: whoever wants to cancel it at this moment must not take it for one that is under way.
        """
        outcome = _Outcome(None, error)
        if self._claim(outcome) is not outcome:
            return False
        self._tell_all()
        return True

    def claim_cancel(self) -> bool:
        """Cancel it for oneself alone: nobody else has seen it. Say whether that was in time."""
        return self._claim(_CANCELLED) is _CANCELLED

    @shielded  # or an interrupt could leave it cancelled and somebody else not told
    def _cancel(self) -> bool:
        if self._claim(_CANCELLED) is not _CANCELLED:
            return False
        self._tell_all()
        return True

    def set_running_or_notify_cancel(self) -> bool:
        """Mark it as under way; ``False`` if it was cancelled before."""
        if self._claimed is not None and not self.cancelled():
            raise InvalidStateError(f"{self._present_state}: {self!r}")
        return self._claim(_RUNNING) is _RUNNING

    def set_result(self, result: _T) -> None:
        """End it, once."""
        self._end(result, None)

    def set_exception(self, exception: BaseException | None) -> None:
        """End it with an error, once."""
        self._end(None, exception)

    def add_done_callback(self, fn: Callable[[concurrent.futures.Future[_T]], object]) -> None:
        """Call ``fn`` with this future when it ends, in the thread that ends it; at once if it has."""
        self._watch((None, fn))

    def result(self, timeout: float | None = None) -> _T:
        """What came out, or the error is raised. ``TimeoutError`` after so many seconds."""
        if self._ended is not None and self._ended.error is None:
            return self._ended.result  # type: ignore[no-any-return]
        error = self.exception(timeout)
        if error is not None:
            try:
                raise error
            finally:
                del error, self  # a traceback would keep them alive
        result: _T = self._result
        return result

    def exception(self, timeout: float | None = None) -> BaseException | None:
        """The error it ended with, or ``None``. ``TimeoutError`` after so many seconds."""
        if self._ended is not None:
            return self._ended.error
        if not self.done():
            self._wait(timeout)
        if self.cancelled():
            raise CancelledError
        return self._exception

    def _wait(self, timeout: float | None) -> None:
        bell: SimpleQueue[Any] = SimpleQueue()  # nobody else's: so nothing of others can be torn here
        watcher = (bell, bell.put)
        self._watch(watcher)
        try:
            bell.get(timeout=None if timeout is None else min(max(0.0, timeout), TIMEOUT_MAX))
        except Empty:
            if not self.done():
                raise TimeoutError from None
        finally:
            with suppress(ValueError):
                self._watchers.remove(watcher)
