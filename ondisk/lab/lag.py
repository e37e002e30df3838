"""Replication lag, live: how far each replica is behind, drawn again and again."""

from __future__ import annotations

import asyncio
import weakref
from pathlib import Path
from typing import Any

import ipywidgets as w

from ondisk.cluster import Cluster
from ondisk.lab.experiments.load import Load
from ondisk.lab.pictures.lag import lag_in_words, lag_picture, lag_table
from ondisk.lab.widgets import Shown, close_widgets, toggle
from ondisk.observe import LagRecorder

_SECONDS_SHOWN = 15.0
_PUTS_PER_SECOND = 100  # of the button

_panels: weakref.WeakValueDictionary[Path, LagPanel] = weakref.WeakValueDictionary()


class LagPanel(Shown):
    """How far each replica is behind, live. Show it as the last value of a cell.

    There is one for a data directory: a new one closes the former, so a cell can be run again.
    """

    def __init__(self, cluster: Cluster, *, every: float = 0.2) -> None:
        """Watch ``cluster``, with a new picture every ``every`` seconds. Needs a running loop."""
        if (former := _panels.get(cluster.data_dir)) is not None:
            former.close()
        _panels[cluster.data_dir] = self
        self.cluster = cluster
        self.recorder = LagRecorder(cluster)
        self._every = every
        self._load: Load | None = None
        self.picture = w.HTML()
        self.table = w.HTML()
        self.write = toggle(
            f"Write {_PUTS_PER_SECOND} puts per second",
            "Keep the cluster busy until you press again",
            "240px",
        )
        self.write.observe(self._on_write, "value")
        self.box = w.VBox([self.write, self.picture, self.table])
        self.refresh()
        self._poller = asyncio.get_running_loop().create_task(self._poll(), name="ondisk-lag-panel")

    async def _poll(self) -> None:
        while True:
            await asyncio.sleep(self._every)
            self.refresh()

    def refresh(self) -> None:
        """Show what was read last. A trait that did not change costs nothing."""
        now, leader = self.recorder.read(), self.cluster.leader_id
        worst, notes = self.recorder.worst(_SECONDS_SHOWN), self.recorder.notes
        self.picture.value = lag_picture(worst, now, notes, leader, _SECONDS_SHOWN)
        self.table.value = lag_table(worst, now, leader, _SECONDS_SHOWN)

    def _on_write(self, change: dict[str, Any]) -> None:
        if change["new"]:
            self._load = Load(self.cluster, per_second=_PUTS_PER_SECOND).start()
        elif self._load is not None:
            self._load.stop()
            self._load = None

    def in_words(self) -> str:
        """What the picture shows, as sentences."""
        now, worst = self.recorder.read(), self.recorder.worst(_SECONDS_SHOWN)
        return lag_in_words(worst, now, self.cluster.leader_id, _SECONDS_SHOWN)

    def close(self) -> None:
        """Stop watching and writing; the cluster goes on. A second call does nothing."""
        if _panels.get(self.cluster.data_dir) is self:
            del _panels[self.cluster.data_dir]
        if self._load is not None:
            self._load.stop()
            self._load = None
        self._poller.cancel()
        self.recorder.close()
        close_widgets(self.box)
