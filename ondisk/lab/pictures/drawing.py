"""What all pictures are made of: text, lines and marks in SVG, tables, and a description of each in words.

Meaning never rests on colour alone: roles, links and lost messages are named in words, marks differ in
shape and carry their number, and every picture says its values again as text for those who cannot see it.
Colours come from JupyterLab's theme, so that light and dark both work.

Places and sizes are in pixels, from the upper left corner.
"""

from __future__ import annotations

from collections.abc import Container, Iterable, Sequence
from dataclasses import dataclass
from html import escape
from pathlib import Path

from ondisk.lab.pictures.saving import links, standalone_svg, tables_as_csv

STYLE = """<style>
.ondisk { overflow-x: auto; color: var(--jp-ui-font-color1, #212121); }
.ondisk svg { display: block; font: 13px var(--jp-ui-font-family, system-ui, sans-serif); }
.ondisk svg text { fill: var(--jp-ui-font-color1, #212121); }
.ondisk svg .small { font-size: 12px; }
.ondisk svg .bold { font-weight: bold; }
.ondisk svg .halo { paint-order: stroke; stroke: var(--jp-layout-color0, #fff); stroke-width: 4px;
  stroke-linejoin: round; }
.ondisk svg .line { stroke: var(--jp-ui-font-color2, #616161); fill: none; }
.ondisk svg .faint { stroke: var(--jp-border-color1, #bdbdbd); fill: none; }
.ondisk svg .card { stroke: var(--jp-ui-font-color2, #616161); fill: var(--jp-layout-color1, #fff); }
.ondisk svg .leader { stroke: var(--jp-brand-color1, #1976d2); stroke-width: 3px; }
.ondisk svg .off { stroke-dasharray: 6 4; }
.ondisk svg .bad { stroke: var(--jp-error-color1, #d32f2f); }
.ondisk svg text.bad, .ondisk svg .badfill { stroke: none; fill: var(--jp-error-color1, #d32f2f); }
.ondisk svg text.bad.halo { stroke: var(--jp-layout-color0, #fff); }
.ondisk svg .mark { fill: var(--jp-brand-color1, #1976d2); stroke: none; }
.ondisk svg .ring { fill: var(--jp-layout-color0, #fff); stroke: var(--jp-brand-color1, #1976d2);
  stroke-width: 2px; }
.ondisk table { border-collapse: collapse; font-size: 13px; margin: 4px 0; }
.ondisk th, .ondisk td { padding: 2px 9px; text-align: right; white-space: nowrap;
  border-bottom: 1px solid var(--jp-border-color2, #e0e0e0); }
.ondisk td.words { text-align: left; white-space: normal; }
[data-jp-theme-light="false"] .ondisk-figure img { filter: invert(1) hue-rotate(180deg); }
.ondisk-save { margin: 2px 0; font-size: 12px; }
.ondisk caption { text-align: left; font-weight: bold; padding: 2px 0; }
</style>"""


@dataclass(frozen=True)
class Picture:
    """Something to look at, as the value of a cell. As text it is its own description.

    ``numbers`` are what it shows, as CSV; without them it is what its tables say.
    """

    html: str
    words: str
    numbers: str = ""

    @property
    def svg(self) -> str:
        """The picture as an SVG file; empty if it is a table."""
        return standalone_svg(self.html)

    @property
    def csv(self) -> str:
        """Its numbers."""
        return self.numbers or tables_as_csv(self.html)

    def save(self, path: str | Path) -> Path:
        """Write it as ``.svg``, or its numbers as ``.csv``. Raises ``ValueError`` for any other name."""
        path = Path(path)
        text = {".svg": self.svg, ".csv": self.csv}.get(path.suffix, "")
        if not text:
            raise ValueError(f"{path.name}: this can be saved as {'.svg or .csv' if self.svg else '.csv'}")
        path.write_text(text, encoding="utf-8")
        return path

    def _repr_html_(self) -> str:
        return self.html + links(self.words, svg=self.svg, csv=self.csv)

    def __repr__(self) -> str:
        return self.words


def framed(html: str) -> str:
    """The style of all pictures, and around ``html`` the element that it applies to."""
    return f'{STYLE}<div class="ondisk">{html}</div>'


def svg(title: str, words: str, width: int, height: int, parts: Sequence[str]) -> str:
    """A picture that says its values again as text, for those who cannot see it."""
    return framed(
        f'<svg role="img" aria-label="{escape(words)}" width="{width}" '
        f'height="{height}" viewBox="0 0 {width} {height}"><title>{escape(title)}</title>'
        f"<desc>{escape(words)}</desc>{''.join(parts)}</svg>"
    )


# Parts of a picture. ``kind`` is a class of the style sheet, or several.


def text(
    x: float, y: float, words: object, kind: str = "small", anchor: str = "start", title: str = ""
) -> str:
    """Words on the base line ``y``; ``anchor`` says whether they start at ``x``, end or have their middle.

    ``title`` is shown under the mouse: the whole of what was clipped.
    """
    style = f' class="{kind}"' if kind else ""
    anchored = "" if anchor == "start" else f' text-anchor="{anchor}"'
    more = f"<title>{escape(title)}</title>" if title else ""
    return f'<text{style} x="{_n(x)}" y="{_n(y)}"{anchored}>{escape(str(words))}{more}</text>'


def clip(words: str, most: int) -> str:
    """The words, or as many characters of them as there is room for."""
    return words if len(words) <= most else words[: most - 1] + "…"


def titled(words: str, drawn: str) -> str:
    """What is ``drawn``, with words that are shown under the mouse."""
    return f"<g><title>{escape(words)}</title>{drawn}</g>"


def line(kind: str, x1: float, y1: float, x2: float, y2: float, more: str = "") -> str:
    """A straight line; ``more`` are further attributes."""
    return f'<line class="{kind}"{more} x1="{_n(x1)}" y1="{_n(y1)}" x2="{_n(x2)}" y2="{_n(y2)}"/>'


def lines(kind: str, points: Iterable[tuple[float, float]], more: str = "") -> str:
    """Straight lines from point to point; ``more`` are further attributes."""
    return f'<polyline class="{kind}"{more} points="{_points(points)}"/>'


def polygon(kind: str, points: Iterable[tuple[float, float]], more: str = "") -> str:
    """A closed shape; ``more`` are further attributes."""
    return f'<polygon class="{kind}"{more} points="{_points(points)}"/>'


def box(kind: str, x: float, y: float, width: float, height: float, more: str = "") -> str:
    """A rectangle; ``more`` are further attributes."""
    return f'<rect class="{kind}"{more} x="{_n(x)}" y="{_n(y)}" width="{_n(width)}" height="{_n(height)}"/>'


def disc(x: float, y: float, radius: float, kind: str = "mark", title: str = "") -> str:
    """A circle around a point; ``title`` is shown under the mouse."""
    end = f"><title>{escape(title)}</title></circle>" if title else "/>"
    return f'<circle class="{kind}" cx="{_n(x)}" cy="{_n(y)}" r="{radius:g}"{end}'


def cross(x: float, y: float, half: int, width: int) -> str:
    """A cross over a point: something is wrong here. ``half`` is half of its size."""
    size = 2 * half
    path = f"M{x - half:.0f} {y - half:.0f}l{size} {size}m0 -{size}l-{size} {size}"
    return f'<path class="line bad" stroke-width="{width}" d="{path}"/>'


def moved(x: float, y: float, drawn: str) -> str:
    """What is ``drawn`` from (0, 0) on, at another place."""
    return f'<g transform="translate({_n(x)},{_n(y)})">{drawn}</g>'


def _points(points: Iterable[tuple[float, float]]) -> str:
    return " ".join(f"{_n(x)},{_n(y)}" for x, y in points)


def _n(number: float) -> str:
    """A tenth of a pixel is fine enough."""
    return f"{number:.1f}".removesuffix(".0")


# Tables


def table(
    names: Sequence[str],
    rows: Iterable[Sequence[object]],
    caption: str,
    *,
    words: Container[int] = (),
    bold: Container[int] = (),
    kind: str = "",
) -> str:
    """A heading for each column; the first cell of a row is its heading.

    ``words``: numbers of the columns that hold words instead of numbers. ``bold``: numbers of the rows that
    stand out. ``kind`` is a class of the style sheet.
    """
    left = [' style="text-align:left"' if column in words else "" for column in range(len(names))]
    titles = "".join(
        f'<th scope="col"{style}>{escape(name)}</th>' for name, style in zip(names, left, strict=True)
    )
    cell_begins = ['<td class="words">' if column in words else "<td>" for column in range(len(names))]
    body = []
    for number, (heading, *cells) in enumerate(rows):
        weight = ' style="font-weight:bold"' if number in bold else ""
        body.append(
            f"<tr{weight}>{_row_heading(str(heading), left[0])}"
            + "".join(
                f"{begin}{escape(str(cell))}</td>" for begin, cell in zip(cell_begins[1:], cells, strict=True)
            )
            + "</tr>"
        )
    style = f' class="{kind}"' if kind else ""
    return framed(
        f"<table{style}><caption>{escape(caption)}</caption><thead><tr>{titles}</tr></thead>"
        f"<tbody>{''.join(body)}</tbody></table>"
    )


def _row_heading(text: str, style: str) -> str:
    return f'<th scope="row"{style}>{escape(text)}</th>' if text else "<td></td>"


def table_picture(
    caption: str, names: Sequence[str], rows: Sequence[Sequence[object]], *, words: Container[int] = ()
) -> Picture:
    """A table as the value of a cell."""
    said = ". ".join(": ".join(map(str, row)) for row in rows)
    return Picture(table(names, rows, caption, words=words), f"{caption}. {said}")


def words_table(caption: str, names: Sequence[str], rows: Sequence[Sequence[object]]) -> Picture:
    """``table_picture`` with words in all of its columns."""
    return table_picture(caption, names, rows, words=range(len(names)))


# Numbers in words


def in_bytes(size: int) -> str:
    """``23 B``, ``4.1 kB``, ``12.0 MB``."""
    if size < 1_000:
        return f"{size} B"
    return f"{size / 1e3:,.1f} kB" if size < 1_000_000 else f"{size / 1e6:,.1f} MB"


def in_seconds(seconds: float) -> str:
    """``0.4 ms``, ``1.20 s``."""
    return f"{seconds * 1e3:,.1f} ms" if seconds < 1 else f"{seconds:,.2f} s"
