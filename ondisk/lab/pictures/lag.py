"""Lag, live: time runs to the right, one line per replica."""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence

from ondisk.lab.pictures.drawing import line, lines, moved, svg, table, text
from ondisk.observe import Lag, Note, Reading

_PLOT_LEFT, _PLOT_WIDTH, _PLOT_TOP, _PLOT_HEIGHT = 52, 240, 34, 120
_CHART_WIDTH = 424
_DASHES = ("none", "7 4", "2 3", "10 3 2 3", "1 5")
_MEASURES = (("entries", "entries", 10), ("milliseconds", "ms", 20))  # field, unit, least full height


def lag_picture(
    worst: Sequence[Reading], now: Reading, notes: Sequence[Note], leader_id: int | None, seconds: float
) -> str:
    """How far each replica is behind ``now``, and was in the last so many seconds, in entries and in ms.

    ``worst`` as from ``LagRecorder.worst``: whatever lasted too short to be drawn shows by its peak.
    """
    recent = [note for note in notes if note.time >= now.time - seconds]
    width, height = len(_MEASURES) * _CHART_WIDTH, _PLOT_TOP + _PLOT_HEIGHT + 26 + 18 * len(recent)
    parts = []
    for number, (field, unit, least) in enumerate(_MEASURES):
        of_replicas = {
            replica_id: [
                (reading.time, float(getattr(reading.lags[replica_id], field)))
                for reading in (*worst, now)
                if replica_id in reading.lags
            ]
            for replica_id in sorted(now.lags)
        }
        chart = _chart(of_replicas, unit, least, now.time, seconds, recent, leader_id)
        parts.append(moved(number * _CHART_WIDTH, 0, chart))
    for row, note in enumerate(recent):
        said = f"{row + 1}: {note.text} ({now.time - note.time:.1f} s ago)"
        parts.append(text(_PLOT_LEFT, _PLOT_TOP + _PLOT_HEIGHT + 36 + 18 * row, said))
    words = lag_in_words(worst, now, leader_id, seconds)
    return svg("Replication lag", words, width, height, parts)


def lag_in_words(worst: Sequence[Reading], now: Reading, leader_id: int | None, seconds: float) -> str:
    """What the picture shows, as sentences: its alternative text."""
    said = [f"Replication lag during the last {seconds:.0f} s"]
    for replica_id, lag in sorted(now.lags.items()):
        leads = ", the leader," if replica_id == leader_id else ""
        most = _most(worst, now, replica_id)
        said.append(
            f"Replica {replica_id}{leads} is {lag.entries} entries and {lag.milliseconds:.0f} ms behind, "
            f"at most it was {most.entries} entries and {most.milliseconds:.0f} ms"
        )
    return ". ".join(said) + "."


def lag_table(worst: Sequence[Reading], now: Reading, leader_id: int | None, seconds: float) -> str:
    """The numbers of the picture: behind now, and at most."""
    rows: list[list[object]] = []
    for replica_id, lag in sorted(now.lags.items()):
        most = _most(worst, now, replica_id)
        row = [
            replica_id,
            "leader" if replica_id == leader_id else "",
            lag.entries,
            f"{lag.milliseconds:.0f}",
        ]
        rows.append([*row, most.entries, f"{most.milliseconds:.0f}"])
    return table(
        ["replica", "role", "entries behind", "ms behind", "most entries", "most ms"],
        rows,
        f"Behind now, and at most during the last {seconds:.0f} s",
    )


def _most(worst: Sequence[Reading], now: Reading, replica_id: int) -> Lag:
    lags = [reading.lags[replica_id] for reading in (*worst, now) if replica_id in reading.lags]
    return Lag(max(lag.entries for lag in lags), max(lag.milliseconds for lag in lags))


def _chart(
    of_replicas: dict[int, list[tuple[float, float]]],
    unit: str,
    least: int,
    now: float,
    seconds: float,
    notes: Sequence[Note],
    leader_id: int | None,
) -> str:
    top = _round_up(max([float(least), *(value for points in of_replicas.values() for _, value in points)]))
    left, right, bottom = _PLOT_LEFT, _PLOT_LEFT + _PLOT_WIDTH, _PLOT_TOP + _PLOT_HEIGHT

    def across(time: float) -> float:
        return min(right, max(left, right - (now - time) / seconds * _PLOT_WIDTH))

    def up(value: float) -> float:
        return bottom - value / top * _PLOT_HEIGHT

    parts = [
        text(left, 14, f"behind, in {unit}", "bold"),
        text(left, bottom + 16, f"{seconds:.0f} s ago"),
        text(right, bottom + 16, "now", anchor="end"),
    ]
    for value in (0, top / 2, top):
        parts.append(line("faint", left, up(value), right, up(value)))
        parts.append(text(left - 6, up(value) + 4, f"{value:g}", anchor="end"))
    for number, note in enumerate(notes, 1):
        x = across(note.time)
        parts.append(line("faint", x, _PLOT_TOP, x, bottom))
        parts.append(text(x, _PLOT_TOP - 4, number, anchor="middle"))
    label_at = bottom + 14.0
    dashes = dict(zip(of_replicas, itertools.cycle(_DASHES)))
    for replica_id, points in sorted(of_replicas.items(), key=lambda item: item[1][-1][1]):
        end = points[-1][1]
        dashed = f' stroke-width="2" stroke-dasharray="{dashes[replica_id]}"'
        parts.append(lines("line", [(across(time), up(value)) for time, value in points], dashed))
        # Names stand where the lines end, the lowest first, and make room for each other.
        label_at = min(up(end) + 4, label_at - 15)
        y, who = label_at - 4, f"{replica_id} (leader)" if replica_id == leader_id else replica_id
        parts.append(line("line", right + 4, y, right + 26, y, dashed))
        parts.append(text(right + 30, label_at, f"{who}: {end:.0f}"))
    return "".join(parts)


def _round_up(value: float) -> float:
    """The next 1, 2 or 5 times a power of ten."""
    power = 10.0 ** math.floor(math.log10(value))
    return next(step * power for step in (1, 2, 5, 10) if step * power >= value)
