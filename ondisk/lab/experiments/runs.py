"""Many runs of the simulator from a cell: how far it is, what was found, and what that amounts to."""

from __future__ import annotations

import hashlib
import time
from collections import Counter
from collections.abc import Iterable, Sequence
from html import escape
from typing import Any, NamedTuple

from IPython.display import HTML, display

from ondisk.lab.film import Exposure, Filmed, film
from ondisk.lab.pictures.cluster import Picture, table
from ondisk.simulation import run as runs
from ondisk.simulation.faults import Fault
from ondisk.simulation.run import Report, Setting, run
from ondisk.simulation.safeguards import SAFEGUARDS

# In this order every one of them is checked in every run; the names are those of the violations.
INVARIANTS = {
    "election safety": "In one term at most one replica leads.",
    "one vote": "Nobody votes for two candidates in one term, power cut or not.",
    "log matching": "Two logs that agree on index and term of an entry agree on all entries before it.",
    "leader completeness": "Whoever begins to lead has every committed entry.",
    "state machine safety": "At one index no two replicas apply different commands.",
    "durable majority": "What anybody takes for committed is on the disks of a majority, synced.",
    "applied beyond the log": "Nothing is applied before it is durable in the log.",
    "order": "Entries are applied in order, none twice and none left out.",
    "gap": "Nobody commits an entry that it does not have.",
    "compaction": "A log has forgotten only what its state machine holds durably.",
    "replica failed": "No replica stops without a fault of its disk.",
    "a replica that cannot start": "After every power cut a replica starts again from its own disk.",
    "one group": "All that count for each other belong to one group.",
    "one disk": "An answer counts only from the disk that the members name for its number.",
    "newest life": "An old copy of a directory counts for nothing.",
    "fresh evidence": "Who leads has heard from a majority what was asked within an election timeout.",
    "checked changes": "Members change only while a majority of the new voters is there, caught up.",
    "progress": "Once all faults have ended, everybody agrees within a minute.",
    "equality": "In the end all replicas hold the same keys and values.",
    "linearizability": "Some order of the requests explains every answer that a client got.",
}
AT_THE_END = ("progress", "equality", "linearizability")


def show_invariants() -> Picture:
    """What is checked, and when."""
    rows = [
        (name, "at the end" if name in AT_THE_END else "at every step", sentence)
        for name, sentence in INVARIANTS.items()
    ]
    return _table("What must never be violated", ("rule", "checked", "it says"), rows)


def show_safeguards() -> Picture:
    """What can be taken away: ``Setting(without=(name,))``."""
    rows = [(name, safeguard.rule) for name, safeguard in SAFEGUARDS.items()]
    return _table("Safeguards", ("name", "it says"), rows)


def show_faults(faults: Iterable[Fault], caption: str = "Faults") -> Picture:
    """A schedule, in words."""
    return _table(caption, ("number", "fault"), [(number, str(fault)) for number, fault in enumerate(faults)])


def show_record(report: Report, lines: int = 12) -> Picture:
    """The end of the record."""
    rows = [(f"{line.time:.3f} s", line.kind, line.words) for line in report.record[-lines:]]
    caption = f"The last {len(rows)} of {len(report.record):,} lines"
    return _table(caption, ("virtual time", "what", "in words"), rows)


def _table(caption: str, head: Sequence[str], rows: Sequence[Sequence[object]]) -> Picture:
    html = table(head, rows, caption).replace("<td>", '<td class="words">')
    html = html.replace("<th ", '<th style="text-align:left" ')  # words, not numbers
    said = ". ".join(": ".join(map(str, row)) for row in rows)
    return Picture(html, f"{caption}. {said}")


def digest(report: Report) -> str:
    """A number for the whole record: it is another one if a single character differs."""
    lines = "\n".join(map(str, report.record))
    return hashlib.sha256(lines.encode()).hexdigest()


class Timed(NamedTuple):
    """A run, and how many real seconds it took."""

    report: Report
    took: float

    def _repr_html_(self) -> str:
        return self._picture().html

    def __repr__(self) -> str:
        return self._picture().words

    def _picture(self) -> Picture:
        report = self.report
        kinds = ", ".join(f"{number} {kind}" for kind, number in sorted(report.counts.items()))
        rows = [
            ("seed", report.seed),
            ("virtual seconds", f"{report.seconds:.0f}"),
            ("real seconds", f"{self.took:.1f}"),
            ("virtual seconds in a real one", f"{report.seconds / self.took:.0f}"),
            ("faults that were drawn", len(report.faults)),
            ("what became of them", kinds or "nothing"),
            ("lines of the record", f"{len(report.record):,}"),
            ("requests of clients", f"{len(report.history):,}"),
            ("violation", report.violation or "none"),
            ("digest of the record", digest(report)[:16] + "…"),
        ]
        return _table(f"One run: seed {report.seed}", ("what", "how much"), rows)


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

    def _repr_html_(self) -> str:
        return self._picture().html

    def __repr__(self) -> str:
        return self._picture().words

    def _picture(self) -> Picture:
        kinds = ", ".join(f"{number} {kind}" for kind, number in self.counts.most_common())
        rows = [
            ("seeds", self.seeds),
            ("violations", len(self.violations)),
            ("real seconds", f"{self.took:.0f}"),
            ("virtual seconds", f"{self.virtual:,.0f}"),
            ("faults", f"{self.faults:,}"),
            ("years of a group with a fault a month", f"{self.years:,.0f}"),
            ("what became of the faults", kinds),
        ]
        return _table("Many runs", ("what", "how much"), rows)


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
    began = time.perf_counter()
    ran, faults, virtual = 0, 0, 0.0
    counts: Counter[str] = Counter()
    violations: list[Report] = []
    progress = _Progress("Stop it with ■ in the toolbar, as any cell")
    try:
        for seed in seeds:
            report = run(seed, setting)
            ran, virtual, faults = ran + 1, virtual + report.seconds, faults + _begun(report)
            counts.update(report.counts)
            if report.rule:
                violations.append(report)
            took = time.perf_counter() - began
            progress.show(
                f"seed {seed}: {ran} runs, {faults} faults, {len(violations)} violations",
                took / max(seconds, 1e-9),
            )
            if took >= seconds or (first and violations):
                break
    except KeyboardInterrupt:
        progress.show(f"stopped after {ran} runs", 1.0)
    return Found(ran, faults, virtual, time.perf_counter() - began, counts, tuple(violations))


def _begun(report: Report) -> int:
    return sum(line.kind == "fault" for line in report.record)


def reduce(report: Report, setting: Setting, *, tries: int = 60) -> Report:
    """As ``ondisk.simulation.run.reduce``, and say how far it is. Stop it, and you get ``report`` back."""
    progress = _Progress(f"The run had {len(report.faults)} faults")

    def show(tried: int, left: int) -> None:
        progress.show(f"{tried} runs tried, {left} faults left", tried / tries)

    try:
        found = runs.reduce(report, setting, tries=tries, progress=show)
    except KeyboardInterrupt:
        progress.show("stopped", 1.0)
        return report
    progress.show(f"{len(found.faults)} of {len(report.faults)} faults are enough", 1.0)
    return found


class _Progress:
    """A bar that moves while a cell runs. A cell that computes hears no button, but it can be interrupted."""

    def __init__(self, words: str) -> None:
        self._handle: Any = display(HTML(_bar(words, 0.0)), display_id=True)  # type: ignore[no-untyped-call]

    def show(self, words: str, part: float) -> None:
        if self._handle is not None:  # as it is outside of Jupyter
            self._handle.update(HTML(_bar(words, part)))  # type: ignore[no-untyped-call]


def _bar(words: str, part: float) -> str:
    value = f"{min(1.0, part):.2f}"
    return f'<label><progress max="1" value="{value}"></progress> {escape(words)}</label>'


# Stock PySyncObj

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


def film_with_an_exposure(first: int = 0) -> Filmed:
    """Stock PySyncObj under ``BUSY``, from the first seed on that leaves something exposed for a while."""
    for seed in range(first, first + 50):
        filmed = film(seed, STOCK, BUSY)
        if any(exposure.seconds > _A_WHILE for exposure in filmed.exposures()):
            return filmed
    raise LookupError("no seed leaves anything exposed")


def longest(filmed: Filmed) -> Exposure:
    """The longest time for which something was exposed."""
    return max(filmed.exposures(), key=lambda exposure: exposure.seconds)


class Exposed(NamedTuple):
    """How long, in many runs, something was exposed. ``busy``: seconds from the first to the last fault."""

    runs: int
    times: int
    seconds: float
    busy: float

    @property
    def part(self) -> float:
        return self.seconds / self.busy

    def _repr_html_(self) -> str:
        return self._picture().html

    def __repr__(self) -> str:
        return self._picture().words

    def _picture(self) -> Picture:
        rows = [
            ("runs", self.runs),
            ("virtual seconds under load", f"{self.busy:.0f}"),
            ("how often something was exposed", self.times),
            ("for how many seconds, in all", f"{self.seconds:.2f}"),
            ("part of the time", f"{self.part:.2%}"),
        ]
        return _table("How long too few logs had what was committed", ("what", "how much"), rows)


def measure_exposure(
    seeds: Sequence[int],
    setting: Setting = STOCK,
    faults: Sequence[Fault] = BUSY,
    *,
    seconds: float = 15.0,
) -> Exposed:
    """Film these runs, until ``seconds`` are over or somebody presses Stop, and add up."""
    began, progress = time.perf_counter(), _Progress("Stop it with ■ in the toolbar, as any cell")
    since, until = faults[0].at, max(fault.at + fault.lasts for fault in faults)
    ran, found = 0, list[Exposure]()
    try:
        for seed in seeds:
            found += film(seed, setting, faults, since=since, until=until).exposures()
            ran += 1
            progress.show(f"{ran} of {len(seeds)} runs", ran / len(seeds))
            if time.perf_counter() - began > seconds:
                break
    except KeyboardInterrupt:
        progress.show(f"stopped after {ran} runs", 1.0)
    in_all = sum(exposure.seconds for exposure in found)
    return Exposed(ran, len(found), in_all, ran * (until - since))
