"""The newest answers, and the requests that wait for one."""

from __future__ import annotations

import asyncio
import time
from collections import deque
from collections.abc import Awaitable, Callable
from html import escape
from typing import Any

import ipywidgets as w

from ondisk.errors import OutcomeUnknown
from ondisk.lab.widgets import spoken

MAX_WAITING = 16  # requests of one panel that have not been answered
MAX_ANSWERS = 2


class Answers:
    """Lines of what was asked and what came of it, the newest first, in ``widget``.

    It knows the panel's loop: whatever is done at the press of a button is done there.
    """

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        """Requests run on this loop."""
        self.widget: Any = w.HTML()
        self._loop = loop
        self._lines: deque[list[str]] = deque(maxlen=MAX_ANSWERS)
        self._tasks: set[asyncio.Task[None]] = set()

    def on_loop(self, call: Callable[[], None]) -> None:
        """Call it on the panel's own loop: some front ends deliver clicks to a thread beside it."""
        try:
            here = asyncio.get_running_loop()
        except RuntimeError:
            here = None
        if here is self._loop:
            call()
        else:
            self._loop.call_soon_threadsafe(call)

    def connect(self, button: Any, action: Callable[[], None]) -> None:
        """Call ``action`` whenever the button is pressed. If it raises, that is the answer."""

        def guarded() -> None:
            try:
                action()
            except Exception as error:
                self.say(button.description, error_in_words(error))

        button.on_click(lambda _: self.on_loop(guarded))

    @property
    def newest(self) -> str:
        """The newest line, as plain text."""
        return ": ".join(self._lines[0]) if self._lines else ""

    def say(self, what: str, outcome: str, *, replace: bool = False) -> list[str]:
        """Add a line; with ``replace`` instead of the newest one, if that was about the same."""
        if replace and self._lines and self._lines[0][0] == what:
            self._lines.popleft()
        line = [what, outcome]
        self._lines.appendleft(line)
        self._show()
        return line

    def begin(self, what: str, request: Callable[[], Awaitable[str]], asked: str = "") -> bool:
        """Run one request as a task; show that it is under way, then its answer or its error.

        ``asked`` says who was asked. With too many under way already it is not made, and ``False`` returned.
        """
        if len(self._tasks) >= MAX_WAITING:
            self.say(what, f"not sent: {MAX_WAITING} requests wait already")
            return False
        line = self.say(what, "under way…")

        async def run() -> None:
            began = time.perf_counter()
            try:
                outcome = await request()
            except Exception as error:
                outcome = error_in_words(error)
            elapsed = (time.perf_counter() - began) * 1000
            line[1] = f"{outcome} ({elapsed:.1f} ms{asked})"
            if not any(shown is line for shown in self._lines):  # pushed out by newer lines meanwhile
                self._lines.appendleft(line)
            self._show()

        task = self._loop.create_task(run(), name="ondisk-panel-request")
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        return True

    async def idle(self) -> None:
        """Return when every request has been answered."""
        while self._tasks:
            await asyncio.wait(self._tasks)

    def cancel(self) -> None:
        """Wait for no answer any more."""
        for task in self._tasks:
            task.cancel()

    def _show(self) -> None:
        rows = [f"<b>{escape(what)}</b>: {escape(outcome)}" for what, outcome in self._lines]
        items = "".join(f"<div>{row}</div>" for row in rows)
        self.widget.value = spoken(items, "line-height:1.5;min-height:3em")


def error_in_words(error: Exception) -> str:
    """Its class and its message, and what to do if nobody knows whether it happened."""
    hint = " It may still happen: read before you try again." if isinstance(error, OutcomeUnknown) else ""
    return f"{type(error).__name__}: {error}.{hint}"
