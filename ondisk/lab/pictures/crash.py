"""Pictures of what crashes leave: the index against the data. Results go in, SVG and a table come out.

As everywhere in the lab, nothing rests on colour alone: the index is a square, the data a disc, and where
they part there is a word. Every picture says its values again as text.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from html import escape
from itertools import groupby

from ondisk.lab.experiments.crash import Crashed, Cut
from ondisk.lab.pictures.cluster import STYLE, Picture, svg

_MORE_STYLE = """<style>
.ondisk svg .index { fill: none; stroke: var(--jp-ui-font-color1, #212121); stroke-width: 2px; }
.ondisk svg .gap { stroke: var(--jp-error-color1, #d32f2f); stroke-width: 4px; fill: none; }
.ondisk svg .dotted { stroke-dasharray: 2 4; }
.ondisk svg .area { stroke: none; fill: var(--jp-error-color1, #d32f2f); opacity: 0.14; }
.ondisk svg .indexline { stroke: var(--jp-ui-font-color1, #212121); stroke-width: 2px; fill: none; }
.ondisk svg .dataline { stroke: var(--jp-brand-color1, #1976d2); stroke-width: 2px; fill: none; }
.ondisk .crashes th, .ondisk .crashes td { text-align: left; }
</style>"""


def _picture(title: str, words: str, width: int, height: int, parts: Sequence[str]) -> Picture:
    return Picture(_MORE_STYLE + svg(title, words, width, height, parts), words)


def _square(x: float, y: float) -> str:
    return f'<rect class="index" x="{x - 7:.1f}" y="{y - 7:.1f}" width="14" height="14"/>'


def _disc(x: float, y: float) -> str:
    return f'<circle class="mark" cx="{x:.1f}" cy="{y:.1f}" r="4"/>'


def _legend(x: int, y: int) -> str:
    return (
        f"{_square(x, y)}"
        f'<text class="small" x="{x + 14}" y="{y + 4}">the index says: applied up to here</text>'
        f"{_disc(x + 250, y)}"
        f'<text class="small" x="{x + 260}" y="{y + 4}">the data holds so many entries</text>'
    )


def _table(caption: str, names: Sequence[str], rows: Sequence[Sequence[object]]) -> str:
    head = "".join(f'<th scope="col">{escape(name)}</th>' for name in names)
    body = "".join(
        "<tr>" + "".join(f"<td>{escape(str(cell))}</td>" for cell in row) + "</tr>" for row in rows
    )
    return (
        f'<div class="ondisk"><table class="crashes"><caption>{escape(caption)}</caption>'
        f"<thead><tr>{head}</tr></thead><tbody>{body}</tbody></table></div>"
    )


# Crashes

_LEFT, _RIGHT, _ROW = 170, 470, 26


def crash_picture(crashes: Sequence[Crashed]) -> Picture:
    """One row a crash: where the index stands, where the data stands, and what a replay makes of it."""
    last = max((crash.last for crash in crashes), default=1)
    parts, words, y = [_legend(_LEFT, 16)], [], 44
    for machine, group in groupby(crashes, key=lambda crash: crash.machine):
        parts.append(f'<text class="bold" x="8" y="{y + 4}">{escape(machine)}</text>')
        parts += [
            f'<text class="small" x="{_entry(n, last):.1f}" y="{y + 4}" text-anchor="middle">{n}</text>'
            for n in range(last + 1)
        ]
        for crash in group:
            y += _ROW
            parts.append(_row(crash, y, last))
            words.append(str(crash))
        y += _ROW + 12
    return _picture("What crashes left", ". ".join(words) + ".", 760, y - 10, parts)


def _entry(number: int, last: int) -> float:
    return _LEFT + (_RIGHT - _LEFT) * number / last


def _row(crash: Crashed, y: int, last: int) -> str:
    index, data = _entry(crash.index, last), _entry(len(crash.held), last)
    bad = crash.verdict != "whole"
    gap = ""
    if index != data:
        style = "gap" if data > index else "gap dotted"
        gap = f'<line class="{style}" x1="{index:.1f}" y1="{y}" x2="{data:.1f}" y2="{y}"/>'
    return (
        f"<g><title>{escape(str(crash))}</title>"
        f'<text class="small" x="8" y="{y + 4}">{escape(f"{crash.how} {crash.point}")}</text>'
        f'<line class="faint" x1="{_LEFT}" y1="{y}" x2="{_RIGHT}" y2="{y}"/>{gap}'
        f"{_square(index, y)}{_disc(data, y)}"
        f'<text class="small{" bad" if bad else ""}" x="{_RIGHT + 24}" y="{y + 4}">{escape(crash.verdict)}; '
        f"counted in the end: {crash.total} of {crash.last}</text></g>"
    )


def crash_table(crashes: Sequence[Crashed]) -> Picture:
    """The same as a table."""
    names = ["machine", "crash", "open() returns", "the data holds", "verdict", "counted after the replay"]
    rows = [
        [c.machine, f"{c.how} {c.point}", c.index, len(c.held), c.verdict, f"{c.total} of {c.last}"]
        for c in crashes
    ]
    words = ". ".join(map(str, crashes)) + "."
    return Picture(STYLE + _MORE_STYLE + _table("What crashes left", names, rows), words)


# The cut write-ahead log

_WIDTH, _HEIGHT, _X, _GAP = 560, 130, 150, 62


@dataclass(frozen=True)
class Stretch:
    """Lengths of a write-ahead log, from ``first`` to ``last`` bytes, that all leave the same."""

    first: int
    last: int
    index: int
    held: int

    @property
    def lengths(self) -> str:
        """``32 to 75``, or one number."""
        return f"{self.first}" if self.first == self.last else f"{self.first} to {self.last}"

    def __str__(self) -> str:
        return (
            f"{self.lengths} bytes: open() returns {self.index}, the data holds {self.held}, {self.verdict}"
        )

    @property
    def verdict(self) -> str:
        """``whole``, ``applied twice`` or ``lost``."""
        if self.held == self.index:
            return "whole"
        return "applied twice" if self.held > self.index else "lost"


def stretches(cuts: Sequence[Cut]) -> list[Stretch]:
    """Cuts next to each other with the same outcome, taken together. ``cuts`` are sorted by length."""
    found = []
    for (index, held), group in groupby(cuts, key=lambda cut: (cut.index, cut.held)):
        lengths = [cut.length for cut in group]
        found.append(Stretch(lengths[0], lengths[-1], index, held))
    return found


def cut_picture(cuts: Mapping[str, Sequence[Cut]]) -> Picture:
    """One diagram a machine: the length of the log to the right, the recovered index and data upwards."""
    parts, words, top = [_legend(_X, 16)], [], 56
    for machine, of_machine in cuts.items():
        found = stretches(of_machine)
        parts.append(_diagram(machine, found, top))
        words.append(f"{machine}, cut at {len(of_machine)} lengths")
        words += map(str, found)
        top += _HEIGHT + _GAP
    return _picture("A write-ahead log cut short", ". ".join(words) + ".", 760, top - 10, parts)


def _diagram(machine: str, found: Sequence[Stretch], top: int) -> str:
    size = max(found[-1].last, 1)
    most = max(1, *(max(stretch.index, stretch.held) for stretch in found))
    bottom = top + _HEIGHT

    def x(length: float) -> float:
        return _X + _WIDTH * length / size

    def y(entries: int) -> float:
        return bottom - _HEIGHT * entries / most

    parts = [f'<text class="bold" x="8" y="{top + 4}">{escape(machine)}</text>']
    for entries in range(most + 1):
        parts.append(
            f'<line class="faint" x1="{_X}" y1="{y(entries):.1f}" x2="{x(size)}" y2="{y(entries):.1f}"/>'
        )
        parts.append(
            f'<text class="small" x="{_X - 14}" y="{y(entries) + 4:.1f}" text-anchor="end">{entries}</text>'
        )
    parts.append(f'<text class="small" x="8" y="{bottom - _HEIGHT / 2:.0f}">entries</text>')
    for stretch in found:
        parts.append(_tick(x(stretch.first), bottom, stretch.first))
    parts.append(_tick(x(size), bottom, size) if size - found[-1].first > 24 * size / _WIDTH else "")
    parts.append(f'<text class="small" x="8" y="{bottom + 18}">bytes left</text>')
    ends = [stretch.first for stretch in found[1:]] + [size]
    said = set()
    for stretch, end in zip(found, ends, strict=True):
        if stretch.verdict == "whole":
            continue
        left, right = x(stretch.first), x(end)
        parts.append(
            f'<rect class="area" x="{left:.1f}" y="{top}" width="{right - left:.1f}" height="{_HEIGHT}"/>'
        )
        if stretch.verdict not in said:
            said.add(stretch.verdict)
            parts.append(f'<text class="small bad" x="{left:.1f}" y="{top - 8}">{stretch.verdict}</text>')
    for kind, value in (("indexline", "index"), ("dataline", "held")):
        corners = []
        for stretch, end in zip(found, ends, strict=True):
            level = y(getattr(stretch, value))
            corners += [f"{x(stretch.first):.1f},{level:.1f}", f"{x(end):.1f},{level:.1f}"]
        parts.append(f'<polyline class="{kind}" points="{" ".join(corners)}"/>')
    for stretch, end in zip(found, ends, strict=True):
        middle = (x(stretch.first) + x(end)) / 2
        parts.append(_square(middle, y(stretch.index)) + _disc(middle, y(stretch.held)))
    return "".join(parts)


def _tick(x: float, bottom: int, length: int) -> str:
    return (
        f'<line class="line" x1="{x:.1f}" y1="{bottom}" x2="{x:.1f}" y2="{bottom + 5}"/>'
        f'<text class="small" x="{x:.1f}" y="{bottom + 18}" text-anchor="middle">{length}</text>'
    )


def cut_table(cuts: Mapping[str, Sequence[Cut]]) -> Picture:
    """The same as a table, one row a stretch of lengths."""
    names = ["machine", "bytes left of the log", "open() returns", "the data holds", "verdict"]
    found = [(machine, s) for machine, of_machine in cuts.items() for s in stretches(of_machine)]
    rows = [[machine, s.lengths, s.index, s.held, s.verdict] for machine, s in found]
    words = ". ".join(f"{machine}, {s}" for machine, s in found) + "."
    return Picture(STYLE + _MORE_STYLE + _table("A write-ahead log cut short", names, rows), words)
