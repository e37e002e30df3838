"""What clients heard when a leader failed, and what is there in the end."""

from __future__ import annotations

from collections.abc import Iterable

from ondisk.lab.experiments.failures import Outage
from ondisk.lab.pictures.drawing import Picture, table


def show_outages(outages: Iterable[Outage]) -> Picture:
    """A table, a row for each."""
    names = ("leader", "a put through it", "others lead after", "put before", "put through it", "put after")
    rows = [
        (each.fault, each.said, f"{each.seconds:.1f} s", *map(_there, (each.before, each.late, each.after)))
        for each in outages
    ]
    caption = "What clients heard, and which puts are there in the end"
    words = "; ".join(
        ", ".join(f"{name}: {cell}" for name, cell in zip(names, row, strict=True)) for row in rows
    )
    return Picture(table(names, rows, caption), f"{caption}. {words}.")


def _there(there: bool) -> str:
    return "there" if there else "not there"
