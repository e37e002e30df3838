"""The command: ``python -m ondisk.simulation --seeds 0:1000``."""

from __future__ import annotations

import math
import os
import sys
import time
from collections import Counter
from typing import Any

try:
    import click
except ModuleNotFoundError as error:
    sys.exit(f"error: {error.name} is missing: pip install 'ondisk[cli]'")

from ondisk.simulation.group import SECONDS
from ondisk.simulation.leases import CLOCK_DRIFT
from ondisk.simulation.run import Ended, Report, Setting, end_cleanly, reduce, run, run_all
from ondisk.simulation.safeguards import MACHINE_SAFEGUARDS, SAFEGUARDS

_EVENTS = 25  # lines of the trace that are shown before a violation
_TRIES = 200
_PAGE_SECONDS = 20.0  # virtual, before the end of a run: what a page shows


class _Seeds(click.ParamType):  # type: ignore[type-arg]
    name = "FIRST:END"

    def convert(self, value: str, parameter: object, context: object) -> range:
        first, colon, end = value.partition(":")
        try:
            seeds = range(int(first), int(end) if colon else int(first) + 1)
        except ValueError:
            self.fail(f"{value!r} is neither a seed nor FIRST:END")
        return seeds or self.fail(f"{value!r} holds no seed: END is not run")


class _Seconds(click.FloatRange):
    def convert(self, value: Any, parameter: Any, context: Any) -> Any:
        seconds = super().convert(value, parameter, context)
        return seconds if math.isfinite(seconds) else self.fail(f"{value!r} is no number of seconds")


def _tell(report: Report, setting: Setting, reduced: bool) -> Report:
    """A violation: what it was, the fewest faults that do it, and what happened just before.

    Returns the run with the fewest faults.
    """
    click.echo(f"seed {report.seed}: {report.violation}")
    if not report.repeatable:
        click.echo(
            "  a second run of this seed did not do it again: something in it is no function of the seed"
        )
    elif reduced:
        with _progress(_TRIES, f"reducing the {len(report.faults)} faults of seed {report.seed}") as bar:
            report = reduce(report, setting, tries=_TRIES, progress=lambda tried, left: bar.update(1))
        click.echo(f"  the same with {len(report.faults)} faults: {report.violation}")
    for fault in report.faults:
        click.echo(f"    {fault}")
    for event in report.trace[-_EVENTS:]:
        click.echo(f"    {event}")
    return report


def _progress(length: int, label: str) -> Any:
    return click.progressbar(length=length, label=label, file=sys.stderr, show_pos=True)


@click.command()
@click.option("--seeds", type=_Seeds(), show_default="0:100", help="Which runs; END is not run.")
@click.option(
    "--without",
    multiple=True,
    type=click.Choice(sorted({**SAFEGUARDS, **MACHINE_SAFEGUARDS})),
    help="Take a safeguard away. Repeatable.",
)
@click.option(
    "--drift",
    type=click.FloatRange(min=0, max=9),
    help=f"Read by leases, with clocks that drift so much. The replicas are told {CLOCK_DRIFT}.",
)
@click.option("--verbs", is_flag=True, help="Clients transact, watch and lock, too.")
@click.option("--stock", is_flag=True, help="Put stock PySyncObj to the test.")
@click.option("--replay", type=int, metavar="SEED", help="Show all that happens in one run.")
@click.option("--replicas", type=click.Choice(["1", "3", "5", "all"]), default="all", show_default=True)
@click.option("--seconds", type=_Seconds(min=1), default=SECONDS, show_default=True, help="Of virtual time.")
@click.option("--jobs", type=click.IntRange(min=1), default=os.cpu_count() or 1, show_default=True)
@click.option("--first", is_flag=True, help="Stop at the first violation.")
@click.option(
    "--html",
    type=click.Path(dir_okay=False, writable=True),
    help="Write the run that is replayed, or the first violation, as a page that plays in any browser.",
)
@click.option("--no-reduce", is_flag=True, help="Do not look for the fewest faults.")
def main(
    seeds: range | None,
    without: tuple[str, ...],
    drift: float | None,
    verbs: bool,
    stock: bool,
    replay: int | None,
    replicas: str,
    seconds: float,
    jobs: int,
    first: bool,
    html: str | None,
    no_reduce: bool,
) -> None:
    """Run replicas in virtual time under random faults, and check that nothing is lost or contradicted.

    Even seeds begin with 3 replicas, odd ones with 5, and those that end with 9 with one, unless --replicas
    says otherwise. The status is 1 if there was
    a violation, 2 if there was none and the history of a run could not be decided.
    """
    if stock and (without or verbs or drift is not None):
        raise click.UsageError(
            "--stock has neither the safeguards that --without takes away, leases nor verbs"
        )
    if replay is not None and (seeds is not None or first):
        raise click.UsageError("--replay is about one run, --seeds and --first are about many")
    if html is not None and replay is None and not first:
        raise click.UsageError("--html is about one run: --replay SEED, or --first")
    end_cleanly()
    setting = Setting(0 if replicas == "all" else int(replicas), seconds, without, stock, drift, verbs=verbs)
    if replay is not None:
        report = run(replay, setting)
        for event in report.trace:
            click.echo(str(event))
        if html is not None:
            _write_page(report, setting, html)
        violations, undecided = int(report.rule is not None), _undecided(report)
        click.echo(f"1 seeds, {violations} violations")
        sys.exit(1 if violations else 2 if undecided else 0)
    sys.exit(_run_all(seeds or range(100), setting, jobs, first, not no_reduce, html))


def _write_page(report: Report, setting: Setting, path: str) -> None:
    """The run once more, traced: what came before its end, as a page."""
    from ondisk.lab.experiments.trace import trace
    from ondisk.lab.pictures.trace import recording_of_run

    since = max(0.0, report.seconds - _PAGE_SECONDS)
    traced = trace(report.seed, setting, report.faults, since=since)
    title = report.violation or f"Seed {report.seed}"
    recording_of_run(traced, title).save(path)
    click.echo(f"written: {path}")


def _undecided(report: Report) -> bool:
    """Say so if nobody knows whether the run was good."""
    if found := bool(report.counts.get("undecided")):
        click.echo(
            f"seed {report.seed}: undecided: the search for an order that explains it became too large"
        )
    return found


def _run_all(
    seeds: range, setting: Setting, jobs: int, first: bool, reduced: bool, html: str | None = None
) -> int:
    violations, undecided, ran, virtual = 0, 0, 0, 0.0
    ended: int | None = None
    faults: Counter[str] = Counter()
    began = time.perf_counter()
    try:
        with _progress(len(seeds), "seeds") as bar:
            for report in run_all(seeds, setting, jobs):
                ran, virtual = ran + 1, virtual + report.seconds
                faults.update(report.counts)
                bar.update(1)
                undecided += _undecided(report)
                if report.rule is not None:
                    violations += 1
                    told = _tell(report, setting, reduced)
                    if html is not None:
                        _write_page(told, setting, html)
                    if first:
                        break
    except Ended as told:
        ended = told.code
    if ran < len(seeds):
        click.echo(f"stopped after {ran} of {len(seeds)} seeds")
    took = time.perf_counter() - began
    click.echo(
        f"{virtual:.0f} virtual seconds in {took:.0f} s: {virtual / took:.0f} a second, in {jobs} processes"
    )
    click.echo("faults: " + ", ".join(f"{number} {kind}" for kind, number in faults.most_common()))
    if undecided:
        click.echo(f"{undecided} undecided")
    click.echo(f"{ran} seeds, {violations} violations")
    return ended if ended is not None else 1 if violations else 2 if undecided else 0


if __name__ == "__main__":
    main()
