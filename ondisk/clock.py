"""Time, as it is handed to replicas: seconds that only move forward."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable

Clock = Callable[[], float]


class PausableClock:
    """Real time that can be stopped, so that an experiment can be looked at message by message."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._stopped_at: float | None = None
        self._offset = 0.0

    def __call__(self) -> float:
        """Seconds since some fixed moment, less all pauses."""
        stopped_at = self._stopped_at
        return (time.monotonic() if stopped_at is None else stopped_at) - self._offset

    @property
    def paused(self) -> bool:
        """Whether time stands still."""
        return self._stopped_at is not None

    def pause(self) -> None:
        """Stop. A second call does nothing."""
        with self._lock:
            if self._stopped_at is None:
                self._stopped_at = time.monotonic()

    def resume(self) -> None:
        """Go on from where it stopped. A second call does nothing."""
        with self._lock:
            if self._stopped_at is not None:
                self._offset += time.monotonic() - self._stopped_at
                self._stopped_at = None
