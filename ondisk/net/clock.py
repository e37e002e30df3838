"""Time, as it is handed to replicas: seconds that only move forward."""

from __future__ import annotations

import time
from collections.abc import Callable

from ondisk.interrupts import forked
from ondisk.interrupts.shielded import shielded

Clock = Callable[[], float]

_SINCE_BOOT = getattr(time, "CLOCK_BOOTTIME", None)  # Linux


def since_boot() -> float:
    """Seconds since some fixed moment; those in which the machine slept, too, where the system counts them.

    A leader that wakes up must know that its lease is over, and that the others have elected somebody else.
    """
    return time.monotonic() if _SINCE_BOOT is None else time.clock_gettime(_SINCE_BOOT)


class PausableClock:
    """Real time that can be stopped, so that an experiment can be looked at message by message."""

    def __init__(self) -> None:
        self._lock = forked.Lock()
        # When it was stopped, and how long all pauses before were: together, for who looks without the lock.
        self._state: tuple[float | None, float] = (None, 0.0)

    def __call__(self) -> float:
        """Seconds since some fixed moment, less all pauses."""
        stopped_at, pauses = self._state
        return (time.monotonic() if stopped_at is None else stopped_at) - pauses

    @property
    def paused(self) -> bool:
        """Whether time stands still."""
        return self._state[0] is not None

    @shielded
    def pause(self) -> None:
        """Stop. A second call does nothing."""
        with self._lock:
            stopped_at, pauses = self._state
            if stopped_at is None:
                self._state = time.monotonic(), pauses

    @shielded
    def resume(self) -> None:
        """Go on from where it stopped. A second call does nothing."""
        with self._lock:
            stopped_at, pauses = self._state
            if stopped_at is not None:
                self._state = None, pauses + time.monotonic() - stopped_at
