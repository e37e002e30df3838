"""Figures by matplotlib: drawn once, when an experiment is over.

Each comes with its numbers: as a table below it, and as text for those who cannot see it.
"""

from __future__ import annotations

import base64
import io
from dataclasses import dataclass
from html import escape
from typing import TYPE_CHECKING, Literal

from ondisk.lab.pictures.drawing import Picture, framed
from ondisk.lab.pictures.saving import as_csv

if TYPE_CHECKING:
    from matplotlib.figure import Figure


@dataclass(frozen=True, repr=False)
class Plot(Picture):
    """A figure, which is kept as SVG whatever it is shown as."""

    drawn: str = ""

    @property
    def svg(self) -> str:
        """As matplotlib draws it."""
        return self.drawn


LINES = ("-", "--", ":", "-.")  # told apart without colour
_TYPES = {"png": "image/png", "svg": "image/svg+xml"}


def new_figure(width: float, height: float) -> Figure:
    """An empty figure, in inches. Matplotlib is imported by the first one, because that takes a while."""
    from matplotlib.figure import Figure

    return Figure(figsize=(width, height), layout="constrained")


def figure_picture(
    figure: Figure, words: str, more: str = "", *, kind: Literal["png", "svg"] = "png"
) -> Picture:
    """The figure as an image with ``words`` as its alternative text; ``more`` is HTML that follows it.

    ``svg`` stays sharp however large it is. A dark theme turns the white ground dark.
    """
    data = base64.b64encode(_written(figure, kind)).decode()
    image = (
        f'<img alt="{escape(words)}" src="data:{_TYPES[kind]};base64,{data}" '
        'style="max-width:100%;background:#fff">'
    )
    shown = f'<div class="ondisk-figure">{image}</div>'
    return Plot(framed(shown) + more, words, _numbers(figure), _written(figure, "svg").decode())


def _written(figure: Figure, kind: str) -> bytes:
    file = io.BytesIO()
    figure.savefig(file, format=kind, dpi=100)
    return file.getvalue()


def _numbers(figure: Figure) -> str:
    """Every point of every line, and every bar: what was drawn, before it was rounded for a table."""
    import numpy as np
    from matplotlib.patches import Rectangle

    rows: list[list[object]] = [["plot", "series", "x", "y"]]
    for number, axes in enumerate(figure.axes, 1):
        plot = axes.get_title() or axes.get_ylabel() or number
        for drawn in axes.get_lines():
            name = str(drawn.get_label())
            if not name.startswith("_child") or len(axes.get_lines()) == 1:  # the others are marks
                name = axes.get_ylabel() if name.startswith("_child") else name
                rows += [[plot, name, *point] for point in np.asarray(drawn.get_xydata()).tolist()]
        names = [label.get_text() for label in axes.get_yticklabels()]  # of horizontal bars
        rows += [
            [axes.get_xlabel(), name, bar.get_width(), ""]
            for name, bar in zip(names, axes.patches, strict=False)
            if isinstance(bar, Rectangle)
        ]
    return as_csv(rows)
