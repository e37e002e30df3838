"""How large things are, as notebook 4 says it: what is measured, and how it is drawn."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from ondisk.cluster import Cluster
from ondisk.lab.experiments.bank import Bank
from ondisk.lab.experiments.compaction import (
    compaction_record,
    fill,
    log_directory,
    read_record,
    start_over,
)
from ondisk.lab.experiments.directories import contents, disk_use
from ondisk.lab.experiments.growth import measure
from ondisk.lab.pictures.drawing import Picture, in_bytes, in_seconds, table_picture
from ondisk.lab.pictures.sizes import directory_table, log_table, plot_growth
from ondisk.lab.pictures.sizes import use_picture as show_use

__all__ = [
    "Bank",
    "compaction_record",
    "disk_use",
    "fill",
    "in_bytes",
    "in_seconds",
    "measure",
    "plot_growth",
    "read_record",
    "show_directory",
    "show_log",
    "show_use",
    "start_over",
    "table",
]


def table(caption: str, names: Sequence[str], rows: Sequence[Sequence[object]]) -> Picture:
    """A table with a heading for each column; the first cell of a row is its heading."""
    return table_picture(caption, names, rows)


def show_directory(directory: Path | str) -> Picture:
    """What a state machine's directory holds, one row a name, with the files' sizes and links."""
    return directory_table(Path(directory).name, contents(directory))


def show_log(cluster: Cluster, replica_id: int) -> Picture:
    """What one replica's log holds now, and how large its directory is."""
    return log_table(cluster.status()[replica_id], disk_use(log_directory(cluster, replica_id)))
