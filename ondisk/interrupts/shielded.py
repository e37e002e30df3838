"""Shielded from interrupts: Ctrl-C, a notebook's stop button, the exception of a signal handler.

A signal handler runs in the main thread only, and there between any two bytecodes. If it raises, not even
``with lock:`` is safe: the exception may come when the lock is taken and the block not yet entered. So the
rule of this package (see docs/interrupts.md) is:

    *No lock that somebody else waits for is ever taken by Python code in the main thread.*

There are three ways to keep it:

* What is asked of a replica takes no lock: it hands over by one atomic operation in C (``deque.append``,
  ``SimpleQueue.put``, ``dict.setdefault``), and waits for a ``future`` of ours.
* What changes a cluster is ``shielded``: a thread that no signal reaches does it. The main thread only waits,
  and when that is interrupted, what was begun is finished or undone all the same.
* State that only callers share is guarded by a ``Turn``, which notices that its holder was torn out of it.
"""

from __future__ import annotations

import _thread
import inspect
import math
import sys
import threading
import time
from collections import deque
from collections.abc import Callable
from contextlib import suppress
from functools import wraps
from queue import Empty, SimpleQueue
from types import FrameType
from typing import Any, NamedTuple, ParamSpec, TypeVar

_BEGIN = 5.0  # seconds that a thread may take to begin
_GRACE = 2.0  # seconds that an interrupted call still waits for the end of what it began
_LOOK = 0.05  # seconds between two looks whether the caller is still there
_TURN_LOOK = 0.001
_SUSPENDS = inspect.CO_GENERATOR | inspect.CO_COROUTINE | inspect.CO_ASYNC_GENERATOR

_P = ParamSpec("_P")
_R = TypeVar("_R")


class CallerGone(BaseException):
    """Raised in a shielded call whose caller was interrupted. Nobody waits for its outcome any more."""


class _Call(NamedTuple):
    """A shielded call: who waits for it, whether it was begun (decided once), and whether that was torn."""

    frame: FrameType
    fate: dict[str, str]
    interrupted: list[bool]

    def begin(self) -> None:
        if self.fate.setdefault("fate", "begun") != "begun":
            raise CallerGone

    @property
    def wanted(self) -> bool:
        return not self.interrupted and not has_ended(self.frame)


_present = threading.local()


def has_ended(frame: FrameType) -> bool:
    """Whether a function has returned or was torn out of by an exception, wherever that hit it.

    A frame that is being executed cannot be cleared, and says so. One that has ended may be kept alive by a
    traceback: that is why it does not do to wait until it is gone.
    """
    if frame.f_code.co_flags & _SUSPENDS:  # clearing would end one that only waits to go on
        return False
    try:
        frame.clear()
    except RuntimeError:
        return False
    return True


def in_reach() -> bool:
    """Whether a signal's exception may hit the present thread."""
    return threading.get_ident() == threading.main_thread().ident


def shielded(function: Callable[_P, _R]) -> Callable[_P, _R]:
    """Let a function run where no interrupt hits it. It must look at ``still_wanted`` when it waits long.

    Called from the main thread it runs in one of its own; from any other thread, where no signal arrives, it
    runs right there. An interrupted caller waits two more seconds, so that what was begun is most often
    finished or undone before anybody looks; a second interrupt ends that, too.
    """

    @wraps(function)
    def call(*args: _P.args, **kwargs: _P.kwargs) -> _R:
        if not in_reach():
            return function(*args, **kwargs)
        outcome: SimpleQueue[tuple[Any, BaseException | None]] = SimpleQueue()
        fate: dict[str, str] = {}
        interrupted: list[bool] = []
        once = [True]
        work = once, _Call(sys._getframe(), fate, interrupted), function, args, kwargs, outcome
        try:
            try:
                # Not threading.Thread.start: that takes a lock of all threads.
                _thread.start_new_thread(_spawn, work)
            except RuntimeError:  # no more threads: better like this than not at all, for it may be a close
                return function(*args, **kwargs)
            try:
                result, error = outcome.get(timeout=_BEGIN)
            except Empty:
                if _is_first(once):  # a thread that gets no memory ends without a word
                    return function(*args, **kwargs)
                result, error = outcome.get()
        except BaseException:
            interrupted.append(True)
            if fate.setdefault("fate", "never begun") == "begun":
                with suppress(Empty):
                    outcome.get(timeout=_GRACE)
            raise
        finally:
            del work  # it refers to this very frame
        if error is not None:
            try:
                raise error
            finally:
                del error  # or its traceback, which has this frame, would keep itself alive
        return result  # type: ignore[no-any-return]

    return call


def _is_first(once: list[bool]) -> bool:
    """True for exactly one of those who ask, from whatever threads."""
    try:
        return once.pop()
    except IndexError:
        return False


def _spawn(*work: Any) -> None:
    """Make a thread that ``threading`` knows, in a thread that no interrupt reaches."""
    try:
        threading.Thread(target=_run, args=work, name="shielded", daemon=True).start()
    except (RuntimeError, MemoryError):  # there are too many; or no memory, before or after it has begun
        _run(*work)


def _run(
    once: list[bool],
    waits: _Call,
    function: Callable[..., Any],
    args: tuple[Any, ...],
    kwargs: dict[str, Any],
    outcome: SimpleQueue[tuple[Any, BaseException | None]],
) -> None:
    if not _is_first(once):
        return
    try:
        _present.call = waits
        still_wanted()
        waits.begin()
        result, error = function(*args, **kwargs), None
    except BaseException as raised:  # it is raised where the function was called
        result, error = None, raised
    _present.call = None
    for _ in range(2):  # an interrupt may come when the first was taken and nobody has it yet
        outcome.put((result, error))


def still_wanted() -> None:
    """Raise ``CallerGone`` in a shielded call whose caller was interrupted."""
    call: _Call | None = getattr(_present, "call", None)
    if call is not None and not call.wanted:
        raise CallerGone


def pause(seconds: float) -> None:
    """Sleep a little in a loop that waits for something, as long as somebody wants it."""
    still_wanted()
    time.sleep(seconds)


def seconds_to_wait(left: float) -> float:
    """How long to wait at once, of so many seconds, so that a shielded call notices that it is not wanted."""
    still_wanted()
    return left if getattr(_present, "call", None) is None else min(left, _LOOK)


class Turn:
    """``with turn:`` one at a time, in the order of coming, like a lock. For callers only, not for replicas.

    An interrupt may tear a holder out without a word. Then the function that holds it has ended, and whoever
    comes next notices. So use it where what it guards is right between any two statements.
    """

    def __init__(self) -> None:
        self._line: deque[FrameType] = deque()  # the first one holds it

    def __enter__(self) -> None:
        self._wait(sys._getframe(1), math.inf)

    def __exit__(self, *_: object) -> None:
        self._give_back(sys._getframe(1))

    def before(self, deadline: float, error: Callable[[], Exception]) -> _Before:
        """``with`` this: raise an ``error`` if it has not come by then, a time of ``time.monotonic``."""
        return _Before(self, deadline, error)

    def _give_back(self, holder: FrameType) -> None:
        with suppress(ValueError):  # an interrupt came after it was done
            self._line.remove(holder)

    def _wait(self, me: FrameType, deadline: float) -> bool:
        line = self._line
        line.append(me)
        while (first := _first(line)) is not me:
            if first is None:
                line.append(me)
            elif has_ended(first):
                with suppress(ValueError):  # another one was quicker
                    line.remove(first)
            elif time.monotonic() >= deadline:
                self._give_back(me)
                return False
            else:
                time.sleep(_TURN_LOOK)
        return True


class _Before(NamedTuple):
    turn: Turn
    deadline: float
    error: Callable[[], Exception]

    def __enter__(self) -> None:
        if not self.turn._wait(sys._getframe(1), self.deadline):
            raise self.error()

    def __exit__(self, *_: object) -> None:
        self.turn._give_back(sys._getframe(1))


def _first(line: deque[FrameType]) -> FrameType | None:
    try:
        return line[0]
    except IndexError:
        return None
