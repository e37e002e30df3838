"""What crashes leave: the index against the data.

The index is a square, the data a disc, and where they part there is a word.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import groupby

from ondisk.lab.experiments.crash import Crashed, Cut
from ondisk.lab.pictures.drawing import Picture, box, disc, line, lines, svg, table, text, titled

_MORE_STYLE = """<style>
.ondisk svg .index { fill: none; stroke: var(--jp-ui-font-color1, #212121); stroke-width: 2px; }
.ondisk svg .gap { stroke: var(--jp-error-color1, #d32f2f); stroke-width: 4px; fill: none; }
.ondisk svg .dotted { stroke-dasharray: 2 4; }
.ondisk svg .area { stroke: none; fill: var(--jp-error-color1, #d32f2f); opacity: 0.14; }
.ondisk svg .indexline { stroke: var(--jp-ui-font-color1, #212121); stroke-width: 2px; fill: none; }
.ondisk svg .dataline { stroke: var(--jp-brand-color1, #1976d2); stroke-width: 2px; fill: none; }
.ondisk .crashes th, .ondisk .crashes td { text-align: left; }
.ondisk .crashes tbody th { font-weight: normal; }
</style>"""


def _picture(title: str, words: str, height: int, parts: Sequence[str], numbers: str) -> Picture:
    return Picture(_MORE_STYLE + svg(title, words, 760, height, parts), words, numbers)


def _table(caption: str, names: Sequence[str], rows: Sequence[Sequence[object]], words: str) -> Picture:
    return Picture(_MORE_STYLE + table(names, rows, caption, kind="crashes"), words)


def _square(x: float, y: float) -> str:
    return box("index", x - 7, y - 7, 14, 14)


def _disc(x: float, y: float) -> str:
    return disc(x, y, 4)


def _legend(x: int, y: int) -> str:
    return (
        _square(x, y)
        + text(x + 14, y + 4, "the index says: applied up to here")
        + _disc(x + 250, y)
        + text(x + 260, y + 4, "the data holds so many entries")
    )


# Crashes

_LEFT, _RIGHT, _ROW = 170, 470, 26


def crash_picture(crashes: Sequence[Crashed]) -> Picture:
    """One row a crash: where the index stands, where the data stands, and what a replay makes of it."""
    last = max((crash.last for crash in crashes), default=1)
    parts, words, y = [_legend(_LEFT, 16)], [], 44
    for machine, group in groupby(crashes, key=lambda crash: crash.machine):
        parts.append(text(8, y + 4, machine, "bold"))
        parts += [text(_entry(n, last), y + 4, n, anchor="middle") for n in range(last + 1)]
        for crash in group:
            y += _ROW
            parts.append(_row(crash, y, last))
            words.append(str(crash))
        y += _ROW + 12
    return _picture("What crashes left", ". ".join(words) + ".", y - 10, parts, crash_table(crashes).csv)


def _entry(number: int, last: int) -> float:
    return _LEFT + (_RIGHT - _LEFT) * number / last


def _row(crash: Crashed, y: int, last: int) -> str:
    index, data = _entry(crash.index, last), _entry(len(crash.held), last)
    gap = "" if index == data else line("gap" if data > index else "gap dotted", index, y, data, y)
    verdict = f"{crash.verdict}; counted in the end: {crash.total} of {crash.last}"
    return titled(
        str(crash),
        text(8, y + 4, f"{crash.how} {crash.point}")
        + line("faint", _LEFT, y, _RIGHT, y)
        + gap
        + _square(index, y)
        + _disc(data, y)
        + text(_RIGHT + 24, y + 4, verdict, "small" if crash.verdict == "whole" else "small bad"),
    )


def crash_table(crashes: Sequence[Crashed]) -> Picture:
    """The same as a table."""
    names = ["machine", "crash", "open() returns", "the data holds", "verdict", "counted after the replay"]
    rows = [
        [c.machine, f"{c.how} {c.point}", c.index, len(c.held), c.verdict, f"{c.total} of {c.last}"]
        for c in crashes
    ]
    return _table("What crashes left", names, rows, ". ".join(map(str, crashes)) + ".")


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
    return _picture(
        "A write-ahead log cut short", ". ".join(words) + ".", top - 10, parts, cut_table(cuts).csv
    )


def _diagram(machine: str, found: Sequence[Stretch], top: int) -> str:
    size = max(found[-1].last, 1)
    most = max(1, *(max(stretch.index, stretch.held) for stretch in found))
    bottom = top + _HEIGHT

    def x(length: float) -> float:
        return _X + _WIDTH * length / size

    def y(entries: int) -> float:
        return bottom - _HEIGHT * entries / most

    parts = [text(8, top + 4, machine, "bold")]
    for entries in range(most + 1):
        parts.append(line("faint", _X, y(entries), x(size), y(entries)))
        parts.append(text(_X - 14, y(entries) + 4, entries, anchor="end"))
    parts.append(text(8, bottom - _HEIGHT / 2, "entries"))
    for stretch in found:
        parts.append(_tick(x(stretch.first), bottom, stretch.first))
    parts.append(_tick(x(size), bottom, size) if size - found[-1].first > 24 * size / _WIDTH else "")
    parts.append(text(8, bottom + 18, "bytes left"))
    ends = [stretch.first for stretch in found[1:]] + [size]
    said = set()
    for stretch, end in zip(found, ends, strict=True):
        if stretch.verdict == "whole":
            continue
        left, right = x(stretch.first), x(end)
        parts.append(box("area", left, top, right - left, _HEIGHT))
        if stretch.verdict not in said:
            said.add(stretch.verdict)
            parts.append(text(left, top - 8, stretch.verdict, "small bad"))
    for kind, value in (("indexline", "index"), ("dataline", "held")):
        corners: list[tuple[float, float]] = []
        for stretch, end in zip(found, ends, strict=True):
            level = y(getattr(stretch, value))
            corners += [(x(stretch.first), level), (x(end), level)]
        parts.append(lines(kind, corners))
    for stretch, end in zip(found, ends, strict=True):
        middle = (x(stretch.first) + x(end)) / 2
        parts.append(_square(middle, y(stretch.index)) + _disc(middle, y(stretch.held)))
    return "".join(parts)


def _tick(x: float, bottom: int, length: int) -> str:
    return line("line", x, bottom, x, bottom + 5) + text(x, bottom + 18, length, anchor="middle")


def cut_table(cuts: Mapping[str, Sequence[Cut]]) -> Picture:
    """The same as a table, one row a stretch of lengths."""
    names = ["machine", "bytes left of the log", "open() returns", "the data holds", "verdict"]
    found = [(machine, s) for machine, of_machine in cuts.items() for s in stretches(of_machine)]
    rows = [[machine, s.lengths, s.index, s.held, s.verdict] for machine, s in found]
    words = ". ".join(f"{machine}, {s}" for machine, s in found) + "."
    return _table("A write-ahead log cut short", names, rows, words)
