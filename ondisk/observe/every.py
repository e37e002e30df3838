"""A record that a thread of its own makes, looking again and again."""

from __future__ import annotations

import threading
import weakref
from collections.abc import Callable
from typing import Self

from ondisk.interrupts.shielded import shielded


class LooksEvery:
    """A context manager; closable twice. Its thread ends when it is closed, or dropped."""

    def _look_every(self, seconds: float, look: Callable[[], object], name: str) -> None:
        """Begin to call ``look``, a method of this object, every so many seconds."""
        self._closed = closed = threading.Event()
        weakly = weakref.WeakMethod(look)  # one that an interrupt lost ends when it is collected

        def run() -> None:
            while not closed.wait(seconds):
                if (method := weakly()) is None:
                    return
                method()
                del method

        self._thread = threading.Thread(target=run, name=name, daemon=True)
        self._thread.start()

    @shielded
    def close(self) -> None:
        """End the record; what was recorded stays readable. A second call does nothing."""
        self._closed.set()
        self._thread.join()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()
