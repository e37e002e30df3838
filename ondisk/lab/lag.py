"""Replication lag: a live picture of it, and the experiment that makes a follower miss something."""

from __future__ import annotations

import asyncio
import weakref
from pathlib import Path
from typing import Any, Literal, NamedTuple

import ipywidgets as w

from ondisk.cluster import Cluster
from ondisk.lab.experiments.faults import stall
from ondisk.lab.experiments.load import Load
from ondisk.lab.panel import close_widgets
from ondisk.lab.pictures import lag as lag_picture
from ondisk.lab.pictures.cluster import Picture, table
from ondisk.net.memory import Event
from ondisk.observe import Lag, LagRecorder, Seen, describe
from ondisk.raft.messages import AppendEntries

_SECONDS_SHOWN = 15.0
_PUTS_PER_SECOND = 100  # of the button
_CATCH_UP_WITHIN = 20.0  # seconds

_panels: weakref.WeakValueDictionary[Path, LagPanel] = weakref.WeakValueDictionary()


class LagPanel:
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
        self.write = w.ToggleButton(
            description=f"Write {_PUTS_PER_SECOND} puts per second",
            tooltip="Keep the cluster busy until you press again",
            layout=w.Layout(width="240px"),
        )
        self.write.observe(self._on_write, "value")
        self.box: Any = w.VBox([self.write, self.picture, self.table])
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
        self.picture.value = lag_picture.lag_picture(worst, now, notes, leader, _SECONDS_SHOWN)
        self.table.value = lag_picture.lag_table(worst, now, leader, _SECONDS_SHOWN)

    def _on_write(self, change: dict[str, Any]) -> None:
        if change["new"]:
            self._load = Load(self.cluster, per_second=_PUTS_PER_SECOND).start()
        elif self._load is not None:
            self._load.stop()
            self._load = None

    def _repr_mimebundle_(self, **options: Any) -> Any:
        bundle = dict(self.box._repr_mimebundle_(**options) or {})
        now, worst = self.recorder.read(), self.recorder.worst(_SECONDS_SHOWN)
        bundle["text/plain"] = lag_picture.lag_in_words(worst, now, self.cluster.leader_id, _SECONDS_SHOWN)
        return bundle

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


class Absence(NamedTuple):
    """What a follower missed while its links failed, and how it got it. Messages are those with entries."""

    fault: str
    follower: int
    behind: Lag  # when its links worked again
    sent: int  # messages to it while they failed
    lost: int
    late: int  # delivered only when they worked again
    again: int  # messages that brought what had been lost
    most_entries: int  # in one message of those that brought what was missing, late or again
    log_syncs: int  # of the follower, to catch up
    seconds: float  # until it had applied everything that was committed when its links worked again


async def go_away(
    cluster: Cluster,
    recorder: LagRecorder,
    fault: Literal["stalled", "cut off"],
    *,
    seconds: float = 2.0,
    per_second: float = 200,
    value_bytes: int = 0,
) -> Absence:
    """Under load, let the links of a follower fail for so many seconds; watch it fall behind and catch up.

    Raises ``TimeoutError`` if it does not.
    """
    leader = cluster.wait_for_leader()
    follower = next(i for i in cluster.members if i != leader)
    entries: list[Seen] = []  # the events of messages that bring it entries

    def look(event: Event) -> None:
        if event.receiver == follower and isinstance(event.message, AppendEntries) and event.message.entries:
            entries.append(describe(event))

    network = cluster.network
    stop_looking = network.observe(look)
    recorder.begin()
    try:
        with Load(cluster, per_second=per_second, value_bytes=value_bytes):
            await asyncio.sleep(1)
            if fault == "stalled":
                stall(cluster, follower)
            else:
                network.isolate(follower)
            gone = network.clock()  # not before: what was sent until then has arrived
            recorder.note(f"links of replica {follower} {fault}")
            await asyncio.sleep(seconds)
            reading, syncs = recorder.read(), cluster.status()[follower].log_syncs
            back = network.clock()
            network.reconnect(follower)
            recorder.note("links work again")
            while recorder.read().applied[follower] < reading.commit_index:
                if network.clock() > back + _CATCH_UP_WITHIN:
                    raise TimeoutError(f"replica {follower} has not caught up in {_CATCH_UP_WITHIN:g} s")
                await asyncio.sleep(0.002)
            took = network.clock() - back
            syncs = cluster.status()[follower].log_syncs - syncs
            await asyncio.sleep(0.5)
    finally:
        stop_looking()
        network.reconnect(follower)
    sent = {event.number: event for event in entries if event.kind == "sent" and gone <= event.time < back}
    ends = {event.number: event.kind for event in entries if event.kind != "sent"}
    lost = [event for number, event in sent.items() if ends.get(number) == "lost"]
    late = [event for number, event in sent.items() if ends.get(number) == "delivered"]
    again = [
        event
        for event in entries
        if event.kind == "sent" and event.time >= back and event.first <= reading.commit_index
    ]
    return Absence(
        fault,
        follower,
        reading.lags[follower],
        len(sent),
        len(lost),
        len(late),
        len(again),
        max((event.last - event.first + 1 for event in (*late, *again)), default=0),
        syncs,
        took,
    )


def compare_absences(*absences: Absence) -> Picture:
    """What was different, as a table."""
    rows: list[list[object]] = [
        ["entries behind, when the links worked again", *(each.behind.entries for each in absences)],
        ["ms behind, then", *(f"{each.behind.milliseconds:.0f}" for each in absences)],
        ["messages with entries sent to it meanwhile", *(each.sent for each in absences)],
        ["... lost for good", *(each.lost for each in absences)],
        ["... delivered late", *(each.late for each in absences)],
        ["messages that brought lost entries again", *(each.again for each in absences)],
        ["most entries in one message, late or again", *(each.most_entries for each in absences)],
        ["fsyncs of its log to catch up", *(each.log_syncs for each in absences)],
        ["ms to catch up", *(f"{each.seconds * 1000:.0f}" for each in absences)],
    ]
    names = [each.fault for each in absences]
    words = "; ".join(f"{name}: {', '.join(map(str, values))}" for name, *values in rows)
    return Picture(
        table(["", *names], rows, "One follower, away under load"), f"{', '.join(names)}. {words}."
    )
