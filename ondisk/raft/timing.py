"""Timing: the periods and sizes that a replica works with."""

from __future__ import annotations

from typing import NamedTuple


class Timing(NamedTuple):
    """Periods in seconds, sizes in bytes.

    A follower waits between ``election_min`` and ``election_max`` for its leader. The shorter one must
    exceed a heartbeat plus the longest stall of a disk (700 ms are not rare on shared machines).

    ``clock_drift`` is a bound that you state, and with it leases are on (docs/leases.md): while one clock of
    the group counts a second, another one counts ``1 + clock_drift`` at most, stops and sleep included.
    """

    heartbeat: float = 0.1
    election_min: float = 1.0
    election_max: float = 2.0
    first_election: float = 0.15  # no leader known yet, or it visibly went away: no reason to wait long
    commit_notice: float = 0.005  # followers learn of a commit from the next entries, or after this long
    batch_bytes: int = 1 << 20
    window_bytes: int = 8 << 20
    clock_drift: float | None = None  # no bound, no leases
