"""What reads cost: by a round of messages, and by a lease."""

from __future__ import annotations

from collections.abc import Iterable

from ondisk.lab.experiments.leases import ReadCost
from ondisk.lab.pictures.drawing import Picture, table


def show_reads(costs: Iterable[ReadCost]) -> Picture:
    """A table, a row for each."""
    names = ("a get through", "answered by", "takes")
    rows = [
        (each.through, "the leader's lease" if each.lease else "a round", f"{1000 * each.seconds:.1f} ms")
        for each in costs
    ]
    caption = "What a get takes"
    words = "; ".join(
        ", ".join(f"{name} {cell}" for name, cell in zip(names, row, strict=True)) for row in rows
    )
    return Picture(table(names, rows, caption), f"{caption}. {words}.")
