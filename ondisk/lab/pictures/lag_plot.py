"""Lag, when the experiment is over: all that was recorded, and two followers that were away side by side."""

from __future__ import annotations

from ondisk.lab.experiments.absence import Absence
from ondisk.lab.pictures.drawing import Picture, table
from ondisk.lab.pictures.figures import LINES, figure_picture, new_figure
from ondisk.observe import Lag, LagRecorder


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
        style = LINES[number % len(LINES)]
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


def compare_absences(*absences: Absence) -> Picture:
    """What was different, as a table."""
    rows: list[list[object]] = [
        ["entries behind, when the links worked again", *(each.behind.entries for each in absences)],
        ["ms behind, then", *(f"{each.behind.milliseconds:.0f}" for each in absences)],
        ["messages with entries sent to it meanwhile", *(each.sent for each in absences)],
        ["... lost for good", *(each.lost for each in absences)],
        ["... delivered late", *(each.late for each in absences)],
        ["messages that brought lost entries again", *(each.again for each in absences)],
        ["most entries in one message, late or again", *(each.most_entries for each in absences)],
        ["fsyncs of its log to catch up", *(each.log_syncs for each in absences)],
        ["ms to catch up", *(f"{each.seconds * 1000:.0f}" for each in absences)],
    ]
    names = [each.fault for each in absences]
    words = "; ".join(f"{name}: {', '.join(map(str, values))}" for name, *values in rows)
    return Picture(
        table(["", *names], rows, "One follower, away under load"), f"{', '.join(names)}. {words}."
    )
