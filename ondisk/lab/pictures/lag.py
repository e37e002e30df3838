"""Lag, live: time runs to the right, one line per replica. Readings go in, SVG and a table come out."""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from html import escape

from ondisk.lab.pictures.cluster import svg, table
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
        lines = {
            replica_id: [
                (reading.time, float(getattr(reading.lags[replica_id], field)))
                for reading in (*worst, now)
                if replica_id in reading.lags
            ]
            for replica_id in sorted(now.lags)
        }
        chart = _chart(lines, unit, least, now.time, seconds, recent, leader_id)
        parts.append(f'<g transform="translate({number * _CHART_WIDTH},0)">{chart}</g>')
    for row, note in enumerate(recent):
        ago = f"{now.time - note.time:.1f} s ago"
        parts.append(
            f'<text class="small" x="{_PLOT_LEFT}" y="{_PLOT_TOP + _PLOT_HEIGHT + 36 + 18 * row}">'
            f"{row + 1}: {escape(note.text)} ({ago})</text>"
        )
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
    lines: dict[int, list[tuple[float, float]]],
    unit: str,
    least: int,
    now: float,
    seconds: float,
    notes: Sequence[Note],
    leader_id: int | None,
) -> str:
    top = _round_up(max([float(least), *(value for line in lines.values() for _, value in line)]))
    left, right, bottom = _PLOT_LEFT, _PLOT_LEFT + _PLOT_WIDTH, _PLOT_TOP + _PLOT_HEIGHT

    def across(time: float) -> float:
        return min(right, max(left, right - (now - time) / seconds * _PLOT_WIDTH))

    def up(value: float) -> float:
        return bottom - value / top * _PLOT_HEIGHT

    parts = [
        f'<text class="bold" x="{left}" y="14">behind, in {unit}</text>',
        f'<text class="small" x="{left}" y="{bottom + 16}">{seconds:.0f} s ago</text>',
        f'<text class="small" x="{right}" y="{bottom + 16}" text-anchor="end">now</text>',
    ]
    for value in (0, top / 2, top):
        parts.append(f'<line class="faint" x1="{left}" y1="{up(value)}" x2="{right}" y2="{up(value)}"/>')
        parts.append(
            f'<text class="small" x="{left - 6}" y="{up(value) + 4}" text-anchor="end">{value:g}</text>'
        )
    for number, note in enumerate(notes, 1):
        x = across(note.time)
        parts.append(f'<line class="faint" x1="{x:.0f}" y1="{_PLOT_TOP}" x2="{x:.0f}" y2="{bottom}"/>')
        parts.append(
            f'<text class="small" x="{x:.0f}" y="{_PLOT_TOP - 4}" text-anchor="middle">{number}</text>'
        )
    label_at = bottom + 14.0
    dashes = dict(zip(lines, itertools.cycle(_DASHES)))
    for replica_id, line in sorted(lines.items(), key=lambda item: item[1][-1][1]):
        end = line[-1][1]
        style = f'class="line" stroke-width="2" stroke-dasharray="{dashes[replica_id]}"'
        points = " ".join(f"{across(time):.1f},{up(value):.1f}" for time, value in line)
        parts.append(f'<polyline {style} points="{points}"/>')
        # Names stand where the lines end, the lowest first, and make room for each other.
        label_at = min(up(end) + 4, label_at - 15)
        y, who = label_at - 4, f"{replica_id} (leader)" if replica_id == leader_id else replica_id
        parts.append(
            f'<line {style} x1="{right + 4}" y1="{y:.1f}" x2="{right + 26}" y2="{y:.1f}"/>'
            f'<text class="small" x="{right + 30}" y="{label_at:.1f}">{who}: {end:.0f}</text>'
        )
    return "".join(parts)


def _round_up(value: float) -> float:
    """The next 1, 2 or 5 times a power of ten."""
    power = 10.0 ** math.floor(math.log10(value))
    return next(step * power for step in (1, 2, 5, 10) if step * power >= value)
