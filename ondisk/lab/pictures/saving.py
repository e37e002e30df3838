"""What is saved of a picture: itself as an SVG file, and its numbers as CSV, by links or by a program."""

from __future__ import annotations

import base64
import csv
import io
import re
from collections.abc import Iterable, Sequence
from html import escape, unescape

_SVG = re.compile(r"<svg .*</svg>", re.DOTALL)
_STYLE = re.compile(r"<style>.*?</style>", re.DOTALL)
_TYPES = {"svg": "image/svg+xml", "csv": "text/csv"}


def as_csv(rows: Iterable[Sequence[object]]) -> str:
    """A line for each row."""
    written = io.StringIO()
    csv.writer(written, lineterminator="\n").writerows(rows)
    return written.getvalue()


def tables_as_csv(html: str) -> str:
    """What the tables in it say, one below the other; each begins with its caption, if it has one."""
    rows: list[list[str]] = []
    for table in re.findall(r"<table.*?</table>", html, re.DOTALL):
        rows += [[text] for text in _texts(table, "caption")]
        rows += [_texts(row, "t[hd]") for row in re.findall(r"<tr.*?</tr>", table, re.DOTALL)]
    return as_csv(rows)


def _texts(html: str, tag: str) -> list[str]:
    found = re.findall(rf"<{tag}\b[^>]*>(.*?)</{tag}>", html, re.DOTALL)
    return [unescape(re.sub(r"<[^>]*>", " ", text)).strip() for text in found]


def standalone_svg(html: str) -> str:
    """The SVG in it as a file of its own, with its style sheet; empty if there is none."""
    if (found := _SVG.search(html)) is None:
        return ""
    begin, _, rest = found[0].partition(">")
    styles = "".join(dict.fromkeys(_STYLE.findall(html)))
    return (
        f'{begin} xmlns="http://www.w3.org/2000/svg" class="ondisk">{styles}<g class="ondisk">{rest}'.replace(
            "</svg>", "</g></svg>"
        ).replace(".ondisk svg ", ".ondisk ")
    )


def links(words: str, **files: str) -> str:
    """Links that save these files: ``svg``, ``csv``. An empty one has none.

    ``words`` are those of the picture: their beginning is the name of the file.
    """
    name = re.sub(r"\W+", "-", words.lower())[:40].strip("-") or "picture"
    made = []
    for kind, text in files.items():
        if text:
            data = base64.b64encode(text.encode()).decode()
            title = "Save as SVG" if kind == "svg" else "Save the numbers as CSV"
            made.append(
                f'<a download="{escape(name)}.{kind}" href="data:{_TYPES[kind]};base64,{data}">{title}</a>'
            )
    return f'<p class="ondisk-save">{" · ".join(made)}</p>' if made else ""
