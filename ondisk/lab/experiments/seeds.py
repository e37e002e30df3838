"""Many runs of the simulator: how long they take, and what is found in them."""

from __future__ import annotations

import hashlib
import time
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from typing import NamedTuple

from ondisk.simulation import run as runs
from ondisk.simulation.faults import Fault
from ondisk.simulation.run import Report, Setting, run

Progress = Callable[[str, float], None]
"""Is told how far an experiment is: in words, and as a part from 0 to 1."""


def no_progress(words: str, part: float) -> None:
    """For who does not want to know."""


def digest(report: Report) -> str:
    """A number for the whole record: it is another one if a single character differs."""
    lines = "\n".join(map(str, report.trace))
    return hashlib.sha256(lines.encode()).hexdigest()


class Timed(NamedTuple):
    """A run, and how many real seconds it took."""

    report: Report
    took: float


def timed_run(seed: int, setting: Setting = Setting(), faults: Sequence[Fault] | None = None) -> Timed:  # noqa: B008  an immutable value
    """Run it, and look at the clock."""
    began = time.perf_counter()
    report = run(seed, setting, faults)
    return Timed(report, time.perf_counter() - began)


# Many of them


class Found(NamedTuple):
    """What came of many runs. ``years``: as long as a group lives on one fault a month to see so many."""

    seeds: int
    faults: int
    virtual: float
    took: float
    counts: Counter[str]
    violations: tuple[Report, ...]

    @property
    def years(self) -> float:
        return self.faults / 12


def try_seeds(
    seeds: Iterable[int],
    setting: Setting = Setting(),  # noqa: B008  an immutable value
    *,
    seconds: float = 20.0,
    first: bool = False,
    progress: Progress = no_progress,
) -> Found:
    """Run one seed after the other until they are used up, ``seconds`` are over, or somebody presses Stop.

    With ``first`` it ends with the first violation.
    """
    began = time.perf_counter()
    ran, faults, virtual = 0, 0, 0.0
    counts: Counter[str] = Counter()
    violations: list[Report] = []
    try:
        for seed in seeds:
            report = run(seed, setting)
            ran, virtual, faults = ran + 1, virtual + report.seconds, faults + _begun(report)
            counts.update(report.counts)
            if report.rule:
                violations.append(report)
            took = time.perf_counter() - began
            progress(
                f"seed {seed}: {ran} runs, {faults} faults, {len(violations)} violations",
                took / max(seconds, 1e-9),
            )
            if took >= seconds or (first and violations):
                break
    except KeyboardInterrupt:
        progress(f"stopped after {ran} runs", 1.0)
    return Found(ran, faults, virtual, time.perf_counter() - began, counts, tuple(violations))


def _begun(report: Report) -> int:
    return sum(line.kind == "fault" for line in report.trace)


def reduce(report: Report, setting: Setting, *, tries: int = 60, progress: Progress = no_progress) -> Report:
    """As ``ondisk.simulation.run.reduce``, and say how far it is. Stop it, and you get ``report`` back."""

    def say(tried: int, left: int) -> None:
        progress(f"{tried} runs tried, {left} faults left", tried / tries)

    try:
        found = runs.reduce(report, setting, tries=tries, progress=say)
    except KeyboardInterrupt:
        progress("stopped", 1.0)
        return report
    progress(f"{len(found.faults)} of {len(report.faults)} faults are enough", 1.0)
    return found
