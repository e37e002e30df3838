"""How long something committed is exposed: in too few logs to survive one more crash.

In stock PySyncObj (``STOCK``) and in ours (``OURS``), with the same faults (``BUSY``).
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import NamedTuple

from ondisk.lab.experiments.seeds import Progress, no_progress
from ondisk.lab.experiments.trace import Exposure, Trace, trace
from ondisk.simulation.faults import Fault
from ondisk.simulation.run import Setting

STOCK = Setting(stock=True, replicas=3, seconds=12)
OURS = Setting(replicas=3, seconds=12)
_A_WHILE = 0.03  # seconds
BUSY = (  # a slow network, a follower that is away for a moment, and six times a hundred puts at once
    Fault(2.5, "latency", 3.0, size=0.25),
    Fault(3.0, "partition", 1.5, who=1),
    *(Fault(round(3.1 + 0.1 * number, 3), "burst", size=100) for number in range(6)),
)


def crash_the_leader(at: float) -> Fault:
    """For six seconds: long enough for the others to elect somebody."""
    return Fault(round(at, 3), "crash", 6.0)


def trace_with_an_exposure(first: int = 0) -> Trace:
    """Stock PySyncObj under ``BUSY``, from the first seed on that leaves something exposed for a while."""
    for seed in range(first, first + 50):
        traced = trace(seed, STOCK, BUSY)
        if any(exposure.seconds > _A_WHILE for exposure in traced.exposures()):
            return traced
    raise LookupError("no seed leaves anything exposed")


def longest(traced: Trace) -> Exposure:
    """The longest time for which something was exposed."""
    return max(traced.exposures(), key=lambda exposure: exposure.seconds)


class Exposed(NamedTuple):
    """How long, in many runs, something was exposed. ``busy``: seconds from the first to the last fault."""

    runs: int
    times: int
    seconds: float
    busy: float

    @property
    def part(self) -> float:
        return self.seconds / self.busy


def measure_exposure(
    seeds: Sequence[int],
    setting: Setting = STOCK,
    faults: Sequence[Fault] = BUSY,
    *,
    seconds: float = 15.0,
    progress: Progress = no_progress,
) -> Exposed:
    """Trace these runs, until ``seconds`` are over or somebody presses Stop, and add up."""
    began = time.perf_counter()
    since, until = faults[0].at, max(fault.at + fault.lasts for fault in faults)
    ran, found = 0, list[Exposure]()
    try:
        for seed in seeds:
            found += trace(seed, setting, faults, since=since, until=until).exposures()
            ran += 1
            progress(f"{ran} of {len(seeds)} runs", ran / len(seeds))
            if time.perf_counter() - began > seconds:
                break
    except KeyboardInterrupt:
        progress(f"stopped after {ran} runs", 1.0)
    in_all = sum(exposure.seconds for exposure in found)
    return Exposed(ran, len(found), in_all, ran * (until - since))
