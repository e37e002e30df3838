"""A card for a replica: who it is, and a bar for each kind of index, from the log's begin to the mark."""

from __future__ import annotations

from typing import NamedTuple

from ondisk.lab.pictures.drawing import box, disc, line, polygon, text, titled

_EDGE = 14  # between the card's edge and its words
_CORNERS = {
    "last": ((-2, -7), (2, -7), (2, 7), (-2, 7)),
    "commit": ((0, -7), (7, 0), (0, 7), (-7, 0)),
}


class Mark(NamedTuple):
    """A kind of index. ``name`` stands before its bar; ``kind`` decides about its shape."""

    name: str
    kind: str
    meaning: str


class Bars(NamedTuple):
    """Where the bars of a card are. They show the entries ``low`` to ``high``."""

    low: int
    high: int
    left: int  # of a bar: room for its name
    right: int
    card_width: int
    height: int  # from one bar to the next

    def place(self, index: int) -> float:
        """How far to the right an entry is."""
        part = (min(max(index, self.low), self.high) - self.low) / (self.high - self.low)
        return self.left + (self.right - self.left) * part

    def bar(self, row: int, mark: Mark, index: int) -> str:
        """A name, a line up to the mark, a number."""
        y, end = 46 + row * self.height, self.place(index)
        return titled(
            f"{mark.name}: {mark.meaning}",
            text(_EDGE, y + 4, mark.name)
            + line("faint", self.left, y, self.right, y)
            + line("line", self.left, y, end, y, ' stroke-width="3"')
            + shape(mark.kind, end, y)
            + text(self.card_width - _EDGE, y + 4, index, anchor="end"),
        )


def shape(kind: str, x: float, y: float) -> str:
    """A mark of its own for each kind of index: bar, diamond, disc."""
    corners = _CORNERS.get(kind)
    if corners is None:
        return disc(x, y, 5.5)
    return polygon("mark", [(x + dx, y + dy) for dx, dy in corners])


def frame(replica_id: int, role: str, term: int, width: int, height: int) -> str:
    """A card without its bars. Who leads has a thicker edge, who is down a dashed one."""
    style = "card leader" if role.startswith("leader") else "card"
    style += " off" if role.startswith(("failed", "stopped", "down")) else ""
    style += " bad" if role == "failed" else ""
    return (
        box(style, 2, 2, width - 4, height - 4, ' rx="8"')
        + text(_EDGE, 24, f"Replica {replica_id}: {role}", "bold")
        + text(width - _EDGE, 24, f"term {term}", "", anchor="end")
    )
