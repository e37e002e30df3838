"""Many runs of the simulator from a cell, as in notebook 6: with a bar that moves, and drawn results."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from ondisk.lab.display import Progress
from ondisk.lab.experiments import exposure as _exposure
from ondisk.lab.experiments import seeds as _seeds
from ondisk.lab.experiments.exposure import (
    BUSY,
    OURS,
    STOCK,
    crash_the_leader,
    longest,
    trace_with_an_exposure,
)
from ondisk.lab.experiments.seeds import digest
from ondisk.lab.pictures.drawing import Picture
from ondisk.lab.pictures.rules import INVARIANTS, show_invariants, show_safeguards
from ondisk.lab.pictures.runs import exposed_table, found_table, run_table
from ondisk.lab.pictures.runs import fault_table as show_faults
from ondisk.lab.pictures.runs import record_table as show_record
from ondisk.simulation.faults import Fault
from ondisk.simulation.run import Report, Setting

__all__ = [
    "BUSY",
    "INVARIANTS",
    "OURS",
    "STOCK",
    "crash_the_leader",
    "digest",
    "longest",
    "measure_exposure",
    "reduce",
    "show_faults",
    "show_invariants",
    "show_record",
    "show_safeguards",
    "timed_run",
    "trace_with_an_exposure",
    "try_seeds",
]

_STOP = "Stop it with ■ in the toolbar, as any cell"

film_with_an_exposure = trace_with_an_exposure  # as notebooks called it that somebody may have copied


class _Drawn:
    """A result that is drawn as the value of a cell. As text it is its own description."""

    def _picture(self) -> Picture:
        raise NotImplementedError

    def _repr_html_(self) -> str:
        return self._picture()._repr_html_()

    def __repr__(self) -> str:
        return self._picture().words


class Timed(_Drawn, _seeds.Timed):
    """A run, and how many real seconds it took."""

    def _picture(self) -> Picture:
        return run_table(self)


class Found(_Drawn, _seeds.Found):
    """What came of many runs."""

    def _picture(self) -> Picture:
        return found_table(self)


class Exposed(_Drawn, _exposure.Exposed):
    """How long, in many runs, something was exposed."""

    def _picture(self) -> Picture:
        return exposed_table(self)


def timed_run(seed: int, setting: Setting = Setting(), faults: Sequence[Fault] | None = None) -> Timed:  # noqa: B008  an immutable value
    """Run it, and look at the clock."""
    return Timed(*_seeds.timed_run(seed, setting, faults))


def try_seeds(
    seeds: Iterable[int],
    setting: Setting = Setting(),  # noqa: B008  an immutable value
    *,
    seconds: float = 20.0,
    first: bool = False,
) -> Found:
    """Run one seed after the other until they are used up, ``seconds`` are over, or somebody presses Stop.

    With ``first`` it ends with the first violation.
    """
    return Found(*_seeds.try_seeds(seeds, setting, seconds=seconds, first=first, progress=Progress(_STOP)))


def reduce(report: Report, setting: Setting, *, tries: int = 60) -> Report:
    """As ``ondisk.simulation.run.reduce``, and show how far it is. Stop it, and you get ``report`` back."""
    progress = Progress(f"The run had {len(report.faults)} faults")
    return _seeds.reduce(report, setting, tries=tries, progress=progress)


def measure_exposure(
    seeds: Sequence[int],
    setting: Setting = STOCK,
    faults: Sequence[Fault] = BUSY,
    *,
    seconds: float = 15.0,
) -> Exposed:
    """Trace the runs of these seeds, until ``seconds`` are over or somebody presses Stop, and add up."""
    progress = Progress(_STOP)
    return Exposed(*_exposure.measure_exposure(seeds, setting, faults, seconds=seconds, progress=progress))
