"""A record that is played: which moment comes next, at which speed. Whoever shows it calls ``go_on``."""

from __future__ import annotations

import time
from bisect import bisect_right
from collections.abc import Sequence

_QUIET = 0.5  # seconds without anything that are waited for


class Playing:
    """How far a record was played: ``moment`` is a time of its own clock, in seconds."""

    def __init__(self, times: Sequence[float], at: float, speed: float) -> None:
        """``times`` are those at which something changed, in order; ``speed`` is 1 for as fast as it was."""
        self._times = times
        self.moment = at
        self.speed = speed
        self._since = time.perf_counter()

    def go_on(self) -> bool:
        """Let the time pass that has passed since the last call. Where nothing happens, it jumps.

        Returns whether there is more to come.
        """
        now = time.perf_counter()
        self.moment += self.speed * (now - self._since)
        self._since = now
        after = bisect_right(self._times, self.moment)
        if after == len(self._times):
            self.moment = self._times[-1]
            return False
        self.moment = max(self.moment, self._times[after] - _QUIET)
        return True
