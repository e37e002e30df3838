"""Figures by matplotlib: drawn once, when an experiment is over.

Each comes with its numbers: as a table below it, and as text for those who cannot see it.
"""

from __future__ import annotations

import base64
import io
from html import escape
from typing import TYPE_CHECKING, Literal

from ondisk.lab.pictures.drawing import Picture

if TYPE_CHECKING:
    from matplotlib.figure import Figure

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

    ``svg`` stays sharp however large it is. In a white box, because its lines are made for one, in a dark
    theme too.
    """
    image = io.BytesIO()
    figure.savefig(image, format=kind, dpi=100)
    data = base64.b64encode(image.getvalue()).decode()
    style = "max-width:100%" + ";background:#fff" * (kind == "svg")
    shown = f'<img alt="{escape(words)}" src="data:{_TYPES[kind]};base64,{data}" style="{style}">'
    return Picture(shown + more, words)
