"""Lookups beside everything else that a machine does."""

from __future__ import annotations

import sys
import threading
from collections.abc import Callable, Sequence
from operator import ge
from typing import Any

from ondisk.storage.disk import Disk

DEADLINE = 10.0  # seconds, for what takes milliseconds


class Lookers(Disk):
    """Threads that look again and again. As a disk, it waits at each point until all have looked once more.

    So every moment between two steps of a machine is looked at, and nothing depends on luck.
    """

    def __init__(self, count: int = 2) -> None:
        self._count = count
        self._looked = threading.Condition()
        self._lookups = [0] * count
        self._threads: list[threading.Thread] = []
        self._ended = False
        self._seen: list[Any] = []  # each state once
        self._errors: list[Exception] = []

    def begin(self, look: Callable[[], Any]) -> None:
        """Begin to look, in threads. What they see and what they raise is kept."""

        def run(number: int) -> None:
            while not self._ended:
                try:
                    seen = look()
                except Exception as error:
                    self._errors.append(error)
                    self._ended = True
                else:
                    if seen not in self._seen:
                        self._seen.append(seen)
                with self._looked:
                    self._lookups[number] += 1
                    self._looked.notify_all()

        self._interval = sys.getswitchinterval()
        sys.setswitchinterval(1e-5)
        self._threads = [
            threading.Thread(target=run, args=(number,), name="ondisk-battery", daemon=True)
            for number in range(self._count)
        ]
        for thread in self._threads:
            thread.start()
        self.wait()

    def wait(self, seconds: float = DEADLINE) -> bool:
        """Return whether each has begun and ended a lookup within ``seconds``."""
        with self._looked:
            enough = [lookups + 2 for lookups in self._lookups]  # one may have begun before

            def done() -> bool:
                return self._ended or all(map(ge, self._lookups, enough))

            return self._looked.wait_for(done, seconds) and not self._ended

    def reach(self, point: str) -> None:
        if self._threads and threading.current_thread() not in self._threads:
            self.wait(0.5)  # a machine may let nobody look at this point: that is its right

    def __enter__(self) -> Lookers:
        return self

    def __exit__(self, *_: object) -> None:
        self._ended = True
        if self._threads:
            sys.setswitchinterval(self._interval)
        for thread in self._threads:
            thread.join(DEADLINE)
            assert not thread.is_alive(), "lookup() does not return"

    def check(self, allowed: Sequence[Any], otherwise: str) -> None:
        """After the end: fail if a lookup raised something, or saw what is not ``allowed``."""
        if self._errors:
            raise self._errors[0]
        wrong = [state for state in self._seen if state not in allowed]
        assert not wrong, f"{otherwise}: {wrong[0]!r:.300}"
