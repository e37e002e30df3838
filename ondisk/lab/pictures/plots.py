"""Pictures of what was recorded, by matplotlib: drawn once, when an experiment is over.

Each comes with its numbers: as a table below it, and as text for those who cannot see it.
"""

from __future__ import annotations

import base64
import io
from collections.abc import Mapping, Sequence
from html import escape
from typing import TYPE_CHECKING

from ondisk.lab.experiments.load import Cost
from ondisk.lab.pictures.cluster import Picture, table
from ondisk.observe import Lag, LagRecorder

if TYPE_CHECKING:
    from matplotlib.figure import Figure

_LINES = ("-", "--", ":", "-.")  # told apart without colour


def new_figure(width: float, height: float) -> Figure:
    """An empty figure, in inches. Matplotlib is imported by the first one, because that takes a while."""
    from matplotlib.figure import Figure

    return Figure(figsize=(width, height), layout="constrained")


def figure_picture(figure: Figure, words: str, more: str = "") -> Picture:
    """The figure as an image with ``words`` as its alternative text; ``more`` is HTML that follows it."""
    png = io.BytesIO()
    figure.savefig(png, format="png", dpi=100)
    data = base64.b64encode(png.getvalue()).decode()
    image = f'<img alt="{escape(words)}" src="data:image/png;base64,{data}" style="max-width:100%">'
    return Picture(image + more, words)


# Lag


def plot_lag(recorder: LagRecorder, leader_id: int | None) -> Picture:
    """Every reading since ``recorder.begin()``: how far each replica was behind, in entries and in ms."""
    readings, notes, began = recorder.readings, recorder.notes, recorder.began
    if not readings:
        return Picture("<p>Nothing was read yet.</p>", "Nothing was read yet.")
    figure = new_figure(9.5, 5)
    axes = figure.subplots(2, 1, sharex=True)
    for number, replica_id in enumerate(sorted(readings[-1].lags)):
        kept = [reading for reading in readings if replica_id in reading.lags]
        times = [reading.time - began for reading in kept]
        lags = [reading.lags[replica_id] for reading in kept]
        name = f"replica {replica_id}" + (", the leader" if replica_id == leader_id else "")
        style = _LINES[number % len(_LINES)]
        axes[0].plot(times, [lag.entries for lag in lags], style, drawstyle="steps-post", label=name)
        axes[1].plot(times, [lag.milliseconds for lag in lags], style, label=name)
    axes[0].set_ylabel("entries behind")
    axes[1].set_ylabel("milliseconds behind")
    axes[1].set_xlabel("seconds since the experiment began")
    for axis in axes:
        axis.grid(alpha=0.3)
        axis.set_ylim(bottom=0)
        for note in notes:
            axis.axvline(note.time - began, color="black", linewidth=0.8)
    for note in notes:
        where = (note.time - began, 1.0)
        axes[0].annotate(note.text, where, (3, 4), xycoords=("data", "axes fraction"), fontsize=9,
                         textcoords="offset points")  # fmt: skip
    axes[1].legend(loc="upper left", fontsize=9)

    usual, longest = recorder.gaps
    caption = (
        f"{len(readings)} readings, one every {usual * 1000:.1f} ms (median), "
        f"the longest gap {longest * 1000:.0f} ms. Nothing finer can be seen"
    )
    rows = [[replica_id, *_summary(recorder, replica_id)] for replica_id in sorted(readings[-1].lags)]
    head = ["replica", "nothing missing", "entries behind: median", "95 %", "most"]
    head += ["ms behind: median", "95 %", "most"]
    said = [f"{note.text} at {note.time - began:.1f} s" for note in notes]
    said += [
        f"replica {name}: at most {most} entries and {most_ms} ms behind, in the median {middle} and "
        f"{middle_ms} ms"
        for name, _, middle, _, most, middle_ms, _, most_ms in rows
    ]
    return figure_picture(figure, f"Replication lag. {'. '.join(said)}.", table(head, rows, caption))


def _summary(recorder: LagRecorder, replica_id: int) -> list[str]:
    lags = [reading.lags.get(replica_id, Lag(0, 0.0)) for reading in recorder.readings]
    entries, times = sorted(lag.entries for lag in lags), sorted(lag.milliseconds for lag in lags)
    high = len(lags) * 95 // 100
    level = sum(lag.entries == 0 for lag in lags) / len(lags)
    return [
        f"{level:.0%} of readings",
        *(f"{number}" for number in (entries[len(lags) // 2], entries[high], entries[-1])),
        *(f"{number:.0f}" for number in (times[len(lags) // 2], times[high], times[-1])),
    ]


# What a put costs


def plot_latencies(costs: Mapping[str, Cost]) -> Picture:
    """One bar each: how long a put took. The names say which disks were slow."""
    names, values = list(costs), [cost.latency * 1000 for cost in costs.values()]
    figure = new_figure(9.5, 0.6 + 0.42 * len(names))
    axis = figure.subplots()
    bars = axis.barh(names, values, color="none", edgecolor="black", hatch="//")
    axis.bar_label(bars, [f"{value:.1f} ms" for value in values], padding=4)
    axis.invert_yaxis()
    axis.margins(x=0.12)
    axis.set_xlabel("milliseconds from asking until the answer, median")
    rows = [[name, cost.puts, f"{cost.latency * 1000:.1f}"] for name, cost in costs.items()]
    words = "; ".join(f"{name}: {value:.1f} ms" for name, value in zip(names, values, strict=True))
    head = ["slow disks", "puts measured", "ms for one put (median)"]
    return figure_picture(figure, f"Time of a put. {words}.", table(head, rows, "One put at a time"))


def plot_group_commit(costs: Mapping[str, Sequence[Cost]]) -> Picture:
    """Puts per second, and puts that share one fsync, as more are under way at once; one line a disk."""
    figure = new_figure(9.5, 4)
    speed, sharing = figure.subplots(1, 2)
    rows, said = [], []
    for number, (disk, measured) in enumerate(costs.items()):
        under_way = [cost.in_flight for cost in measured]
        style = _LINES[number % len(_LINES)] + "os^v"[number % 4]
        speed.plot(under_way, [cost.puts_per_second for cost in measured], style, label=disk)
        sharing.plot(under_way, [cost.puts_per_sync for cost in measured], style, label=disk)
        for cost in measured:
            rows.append(_cost_row(disk, cost))
            said.append(
                f"{disk}, {cost.in_flight} under way: {cost.puts_per_second:.0f} puts per second, "
                f"{cost.puts_per_sync:.1f} puts per fsync"
            )
    speed.set_title("puts per second", fontsize=11)
    sharing.set_title("puts that share one fsync of the leader", fontsize=11)
    for axis in (speed, sharing):
        axis.set_xscale("log")
        axis.set_yscale("log")
        under_way = sorted({cost.in_flight for measured in costs.values() for cost in measured})
        axis.set_xticks(under_way, [str(count) for count in under_way])
        axis.yaxis.set_major_formatter("{x:,.0f}")
        axis.minorticks_off()
        axis.set_xlabel("puts under way at once")
        axis.grid(alpha=0.3)
        axis.legend(fontsize=9)
    head = ["disks", "under way", "puts/s", "fsyncs/s", "fsyncs per put", "puts per fsync", "ms per put"]
    return figure_picture(
        figure,
        f"Group commit. {'. '.join(said)}.",
        table(head, rows, "As measured here, now (ms per put: the median)"),
    )


def _cost_row(disk: str, cost: Cost) -> list[object]:
    return [
        disk,
        cost.in_flight,
        f"{cost.puts_per_second:,.0f}",
        f"{cost.log_syncs / cost.seconds:,.0f}",
        f"{cost.log_syncs / cost.puts:.3f}",
        f"{cost.puts_per_sync:.1f}",
        f"{cost.latency * 1000:.1f}",
    ]
