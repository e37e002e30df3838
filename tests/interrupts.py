"""Interrupts at a chosen bytecode, or at a random moment, and what must still work afterwards."""

from __future__ import annotations

import gc
import os
import random
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from queue import SimpleQueue
from types import FrameType
from typing import Any

DEADLINE = 30.0  # seconds that anything may take afterwards, on a busy machine


class Interrupted(KeyboardInterrupt):
    """Ours, and not that of somebody who presses Ctrl-C while the tests run."""


def bytecodes(call: Callable[[], object]) -> int:
    """How many bytecodes the main thread executes in a call, in whatever module."""
    count = 0

    def trace(frame: FrameType, event: str, _: Any) -> Any:
        nonlocal count
        frame.f_trace_opcodes = True
        count += event == "opcode"
        return trace

    _traced(call, trace)
    return count


def interrupt_at(call: Callable[[], object], number: int) -> bool:
    """Raise before the bytecode with this number, as a signal handler would; say whether it came so far."""
    count = 0
    raised = False

    def trace(frame: FrameType, event: str, _: Any) -> Any:
        nonlocal count, raised
        frame.f_trace_opcodes = True
        count += event == "opcode"
        if count == number and not raised:
            raised = True
            raise Interrupted
        return trace

    try:
        _traced(call, trace)
    except BaseException as error:
        keep_interrupt(error)
    return raised


def _traced(call: Callable[[], object], trace: Any) -> None:
    before = sys.gettrace()  # that of a coverage tool
    gc.disable()  # what somebody else left behind is not part of the call
    try:
        sys.settrace(trace)
        call()
    finally:
        sys.settrace(before)
        gc.enable()


def keep_interrupt(error: BaseException) -> None:
    """Keep an exception with all its frames, as IPython does until the next one. Any other is raised.

    (It may have become another one on its way: ``threading.Condition`` releases what it has not taken yet.)
    """
    origin: BaseException | None = error
    while origin is not None and not isinstance(origin, Interrupted):
        origin = origin.__context__
    if origin is None:
        raise error
    sys.last_value, sys.last_traceback = error, error.__traceback__


class Button:
    """Somebody who presses it so many seconds after ``press``: a real signal to this process."""

    def __init__(self, seed: int) -> None:
        self.random = random.Random(seed)
        self._armed = False
        self._pressed: SimpleQueue[float | None] = SimpleQueue()
        self._done: SimpleQueue[None] = SimpleQueue()
        self._thread = threading.Thread(target=self._run, name="button", daemon=True)

    def __enter__(self) -> Button:
        self._before = signal.signal(signal.SIGUSR1, self._handle)
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._pressed.put(None)
        self._thread.join()
        signal.signal(signal.SIGUSR1, self._before)

    def _handle(self, *_: object) -> None:
        if self._armed:
            self._armed = False
            raise Interrupted

    def _run(self) -> None:
        while (seconds := self._pressed.get()) is not None:
            time.sleep(seconds)
            os.kill(os.getpid(), signal.SIGUSR1)
            self._done.put(None)

    def during(self, call: Callable[[], object], seconds: float) -> bool:
        """Call, and interrupt at a random moment within so many seconds; say whether it did."""
        interrupted = False
        try:
            self._armed = True
            self._pressed.put(self.random.uniform(0.0, seconds))
            call()
            self._armed = False
        except BaseException as error:
            interrupted = True
            keep_interrupt(error)
        self._done.get(timeout=DEADLINE)
        return interrupted


@contextmanager
def another_thread() -> Iterator[Callable[[Callable[[], Any]], Any]]:
    """A thread that does what it is told, and must do it within the deadline."""
    work: SimpleQueue[Callable[[], Any] | None] = SimpleQueue()
    done: SimpleQueue[tuple[Any, BaseException | None]] = SimpleQueue()

    def run() -> None:
        while (todo := work.get()) is not None:
            try:
                done.put((todo(), None))
            except BaseException as error:
                done.put((None, error))

    threading.Thread(target=run, name="another", daemon=True).start()

    def do(todo: Callable[[], Any]) -> Any:
        work.put(todo)
        value, error = done.get(timeout=DEADLINE)  # Empty: it is stuck
        if error is not None:
            raise error
        return value

    yield do
    work.put(None)
