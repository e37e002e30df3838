"""What puts cost: how long one takes with slow disks, and how many share an fsync (group commit)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from ondisk.lab.experiments.load import Cost
from ondisk.lab.pictures.drawing import Picture, table
from ondisk.lab.pictures.figures import LINES, figure_picture, new_figure


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
        style = LINES[number % len(LINES)] + "os^v"[number % 4]
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
