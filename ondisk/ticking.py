"""Ticking: whoever leads says in the log that time has passed, as long as somebody has a key lease.

The rules that make this safe, whoever ticks and however often, are in ``verbs/keyleases.py``. Here is only
who does it and when: a leader, after each of its steps, four times a second. Its own clock measures how long
the log clock has shown what it shows, from when it was first seen here. So what passes while nobody leads is
not counted, and a change of leaders makes leases longer.
"""

from __future__ import annotations

from ondisk.diskkv import DiskKV
from ondisk.net.clock import Clock
from ondisk.replica import Replica
from ondisk.verbs import keyleases

TICK_SECONDS = 0.25
_DEADLINE = 1.0  # seconds; a tick that is not taken in by then is said anew, with the time that has passed


class Ticker:
    """Belongs to whoever steps the replica: ``look`` after each step."""

    def __init__(self, replica: Replica, clock: Clock) -> None:
        """``clock`` is that of the replica, which may be wrong."""
        self._replica = replica
        self._machine = replica.machine if isinstance(replica.machine, DiskKV) else None
        self._clock = clock
        self._shown = -1  # what the log clock shows
        self._since = 0.0  # since when it is known to show that
        self._due = 0.0

    def look(self) -> None:
        """Say that time has passed, if it is this one's turn and somebody waits for it."""
        machine = self._machine
        if machine is None or self._replica.status.role != "leader" or not (time := machine.time()).leases:
            self._shown = -1
            return
        now = self._clock()
        if time.clock != self._shown:
            self._shown, self._since = time.clock, now
            self._due = now + TICK_SECONDS
        elif now >= self._due:
            self._due = now + _DEADLINE
            passed = int(1000 * (now - self._since))
            self._replica.propose(keyleases.advance(self._shown, passed), now + _DEADLINE)
