"""A thread that looks again and again, for who records."""

from __future__ import annotations

import threading
import weakref
from collections.abc import Callable


def look_every(
    seconds: float, closed: threading.Event, look: weakref.WeakMethod[Callable[[], object]], name: str
) -> threading.Thread:
    """A thread that looks every so many seconds, until it is closed or who looks was dropped."""

    def run() -> None:
        while not closed.wait(seconds):
            if (method := look()) is None:
                return
            method()
            del method

    thread = threading.Thread(target=run, name=name, daemon=True)
    thread.start()
    return thread
