"""A page and a picture from what make bench wrote: ``python -m benchmarks.page out.json docs``."""

from __future__ import annotations

import json
import statistics
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from benchmarks.report import LARGE, SUBJECTS, Figures, large_table, tables

_WORDS = {
    "put": "puts",
    "get": "linearizable gets",
    "threads": "gets by threads",
    "stale": "stale gets",
    "bulk": "bulk load",
}
_LOADS = ("put-64", "put-256", "get-64")  # of which there are rates to be drawn
_SHOWN = ("memory", "tcp", "processes", "stock", "etcd")
CURVES = "performance-curves.svg"
_HATCHES = ("", "//", "..", "xx", "--")

_HEAD = """\
# Performance

What one run of `make bench` has measured; `python -m benchmarks.page` wrote this page.
[Benchmarks](benchmarks.md) says what is measured, and how.
Compare only what stands in one table, and run it on your own machine before you believe any of it.
"""


def draw(measured: dict[str, Any], path: Path) -> None:
    """Operations per second for each load and subject, as medians; the range of the rounds as a line."""
    from matplotlib.figure import Figure  # of a kit for notebooks: only who draws needs it

    figure = Figure(figsize=(8, 3.2), layout="constrained")
    axes = figure.subplots(1, len(_LOADS), squeeze=False)[0]
    for axis, load in zip(axes, _LOADS, strict=True):
        names = [name for name in _SHOWN if _per_second(measured, load, name)]
        for number, name in enumerate(names):
            found = _per_second(measured, load, name)
            middle = statistics.median(found)
            axis.bar(number, middle, color="0.85", edgecolor="0.2", hatch=_HATCHES[_SHOWN.index(name)])
            axis.plot([number, number], [min(found), max(found)], color="0.2")
        axis.set_xticks(range(len(names)), [SUBJECTS[name].title for name in names], rotation=40, ha="right")
        axis.set_title(_title(load).replace(", ", ",\n"), fontsize="medium")
        axis.set_ylabel("per second")
        axis.spines[["top", "right"]].set_visible(False)
    figure.savefig(path)


def _per_second(measured: dict[str, Any], load: str, name: str) -> list[float]:
    return [cells[load][name]["per_second"] for cells in measured["rounds"] if name in cells.get(load, {})]


def _title(load: str) -> str:
    do, at_once = load.split("-")
    return f"{_WORDS[do]}, {at_once} at once"


def draw_curves(figures: Figures, path: Path) -> None:
    """Puts per second over one thing that changes, as medians; the range of the rounds as a line."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(8, 2.6), layout="constrained")
    by_thing = _curves(figures)
    axes = figure.subplots(1, len(by_thing), squeeze=False)[0]
    for axis, (thing, found) in zip(axes, by_thing.items(), strict=True):
        where, middle = list(found), [statistics.median(rates) for rates in found.values()]
        axis.plot(where, middle, color="0.2", marker="o")
        axis.vlines(where, [min(rates) for rates in found.values()], [*map(max, found.values())], color="0.6")
        axis.set_xscale("log", base=2 if thing == "replicas" else 10)
        if thing == "replicas":
            axis.set_xticks(where, [str(count) for count in where])
        axis.set_ylim(bottom=0)
        axis.set_xlabel(thing)
        axis.spines[["top", "right"]].set_visible(False)
    axes[0].set_ylabel("puts per second")
    figure.savefig(path)


def _curves(figures: Figures) -> dict[str, dict[int, list[float]]]:
    """By what changes: where, and the rates there."""
    found: dict[str, dict[int, list[float]]] = {}
    for row, columns in figures.items():
        thing, where = row.split(": ")
        found.setdefault(thing, {})[int(where)] = columns["puts/s"]
    return found


def describe_curves(figures: Figures) -> str:
    """The picture of the curves in words."""
    return ". ".join(
        f"{thing}: "
        + ", ".join(f"{where:,} {statistics.median(rates):,.0f}" for where, rates in found.items())
        for thing, found in _curves(figures).items()
    )


def describe(measured: dict[str, Any]) -> str:
    """The picture in words."""
    said = []
    for load in _LOADS:
        each = [
            f"{SUBJECTS[name].title} {statistics.median(found):,.0f}"
            for name in _SHOWN
            if (found := _per_second(measured, load, name))
        ]
        said.append(f"{_title(load)}: {', '.join(each)}")
    return ". ".join(said)


def page(measured: dict[str, Any], picture: str) -> str:
    """The text of the page."""
    parts = [_HEAD]
    conditions = [f"| {what} | {value} |" for what, value in measured["conditions"].items()]
    parts.append("\n".join(["| | |", "|---|---|", *conditions]) + "\n")
    names = [name for name in SUBJECTS if any(name in cells["put-1"] for cells in measured["rounds"])]
    if names:
        parts.append(f"![Operations per second. {describe(measured)}]({picture})\n")
        parts.append(f"```text\n{tables(measured['rounds'], names, measured['seconds'])}\n```\n")
    for name in LARGE:
        if name == "curves" and name in measured["large"]:
            words = describe_curves(measured["large"][name])
            parts.append(f"![Puts per second over four things. {words}]({CURVES})\n")
        if name in measured["large"]:
            parts.append(
                f"```text\n{large_table(name, measured['large'][name], measured['keys']).strip()}\n```\n"
            )
    parts.append("## Bars\n")
    parts.append(
        "\n".join(["| | bar | met | found |", "|---|---|---|---|", *map(_row, measured["verdicts"])])
    )
    return "\n".join(parts) + "\n"


def _row(verdict: dict[str, Any]) -> str:
    found: list[float] = verdict["found"]
    range_ = f" ({min(found):.2f} to {max(found):.2f})" if len(found) > 1 else ""
    met = "yes" if verdict["met"] else "**no**"
    return f"| {verdict['subject']} | {verdict['bar']} | {met} | {statistics.median(found):.2f}{range_} |"


def main(arguments: Sequence[str]) -> int:
    """Write the page and its picture into a directory."""
    measured = json.loads(Path(arguments[0]).read_text())
    directory = Path(arguments[1])
    draw(measured, directory / "performance.svg")
    if "curves" in measured["large"]:
        draw_curves(measured["large"]["curves"], directory / CURVES)
    (directory / "performance.md").write_text(page(measured, "performance.svg"))
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
