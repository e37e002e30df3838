"""What came of simulated runs: one, many, and how long something was exposed in them."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from ondisk.lab.experiments.exposure import Exposed
from ondisk.lab.experiments.seeds import Found, Timed, digest
from ondisk.lab.pictures.drawing import Picture, words_table
from ondisk.simulation.faults import Fault
from ondisk.simulation.run import Report


def fault_table(faults: Iterable[Fault], caption: str = "Faults") -> Picture:
    """A schedule, in words."""
    return words_table(
        caption, ("number", "fault"), [(number, str(fault)) for number, fault in enumerate(faults)]
    )


def record_table(report: Report, lines: int = 12) -> Picture:
    """The end of the record."""
    rows = [(f"{line.time:.3f} s", line.kind, line.words) for line in report.trace[-lines:]]
    caption = f"The last {len(rows)} of {len(report.trace):,} lines"
    return words_table(caption, ("virtual time", "what", "in words"), rows)


def run_table(timed: Timed) -> Picture:
    """One run, and how long it took."""
    report = timed.report
    kinds = ", ".join(f"{number} {kind}" for kind, number in sorted(report.counts.items()))
    rows = [
        ("seed", report.seed),
        ("virtual seconds", f"{report.seconds:.0f}"),
        ("real seconds", f"{timed.took:.1f}"),
        ("virtual seconds in a real one", f"{report.seconds / timed.took:.0f}"),
        ("faults that were drawn", len(report.faults)),
        ("what became of them", kinds or "nothing"),
        ("lines of the record", f"{len(report.trace):,}"),
        ("requests of clients", f"{len(report.history):,}"),
        ("violation", report.violation or "none"),
        ("digest of the record", digest(report)[:16] + "…"),
    ]
    return _quantities(f"One run: seed {report.seed}", rows)


def found_table(found: Found) -> Picture:
    """Many runs, and how long a group lives to see as much."""
    kinds = ", ".join(f"{number} {kind}" for kind, number in found.counts.most_common())
    rows = [
        ("seeds", found.seeds),
        ("violations", len(found.violations)),
        ("real seconds", f"{found.took:.0f}"),
        ("virtual seconds", f"{found.virtual:,.0f}"),
        ("faults", f"{found.faults:,}"),
        ("years of a group with a fault a month", f"{found.years:,.0f}"),
        ("what became of the faults", kinds),
    ]
    return _quantities("Many runs", rows)


def exposed_table(exposed: Exposed) -> Picture:
    """How long too few logs had what was committed."""
    rows = [
        ("runs", exposed.runs),
        ("virtual seconds under load", f"{exposed.busy:.0f}"),
        ("how often something was exposed", exposed.times),
        ("for how many seconds, in all", f"{exposed.seconds:.2f}"),
        ("part of the time", f"{exposed.part:.2%}"),
    ]
    return _quantities("How long too few logs had what was committed", rows)


def _quantities(caption: str, rows: Sequence[tuple[str, object]]) -> Picture:
    return words_table(caption, ("what", "how much"), rows)
