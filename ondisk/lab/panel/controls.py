"""The widgets of a panel and where they are. What they do is connected to them elsewhere."""

from __future__ import annotations

from collections.abc import Collection
from typing import Any

import ipywidgets as w

from ondisk.lab.browser import LivingPicture, Timeline
from ondisk.lab.widgets import Shown, button, row, slider, toggle

_BUTTONS = (  # attribute, name of the button, tooltip
    ("stop", "Stop", "Stop cleanly"),
    ("crash", "Crash", "Lose what was not synced"),
    ("start", "Start", "Start from its own disk"),
    ("cut_off", "Cut off", "Cut all its links"),
    ("stall", "Stall", "Hold its messages, lose none"),
    ("reconnect", "Reconnect", "Heal all its links"),
    ("compact", "Compact", "Drop the log that its state makes needless"),
)
OF_A_REPLICA = tuple(attribute for attribute, _, _ in _BUTTONS)


class Controls(Shown):
    """All widgets of a panel, by names that a program can use, too.

    ``box`` has those that are shown. The buttons of the replicas are pressed by the menus of the picture,
    those of the record by the timeline, and both by a program.
    """

    stop: dict[int, Any]
    crash: dict[int, Any]
    start: dict[int, Any]
    cut_off: dict[int, Any]
    stall: dict[int, Any]
    reconnect: dict[int, Any]
    compact: dict[int, Any]

    def make_widgets(self, members: Collection[int], answer: Any, *, read_only: str = "") -> None:
        """For a cluster with these members. ``answer`` is the widget with the answers.

        ``read_only`` says why nothing can be done to the cluster but read; empty: everything can.
        """
        self.answer = answer
        self.picture, self.timeline = LivingPicture(), Timeline()
        self.table, self.messages, self.verdict = w.HTML(), w.HTML(), w.HTML()
        self.of_replicas, self.of_the_record = self._replicas(members), self._of_the_record()
        self.box = w.VBox(
            [
                *self._requests(members),
                self.answer,
                self.picture,
                *([self._network()] if not read_only else []),
                self.timeline,
                *self._on_demand(),
            ]
        )
        self.box.add_class("ondisk-panel")
        if read_only:
            for each in (self.put, self.delete, self.incr, self.with_messages, self.with_verdict):
                each.disabled, each.tooltip = True, read_only

    def _requests(self, members: Collection[int]) -> list[Any]:
        narrow = {"layout": w.Layout(width="170px"), "style": {"description_width": "45px"}}
        self.key = w.Text("colour", description="Key", tooltip="Key to write or read", **narrow)
        self.value = w.Text("blue", description="Value", tooltip="Value to put", **narrow)
        self.via = w.Dropdown(
            options=[("the leader", 0), *((f"replica {i}", i) for i in members)],
            description="Through",
            tooltip="Replica that takes the request",
            layout=w.Layout(width="180px"),
            style={"description_width": "60px"},
        )
        self.put = _button("Put", "Write the value: durable on a majority, then applied")
        self.get = _button("Get", "Linearizable read: sees every acknowledged write")
        self.stale_get = _button("Stale get", "What this replica's own state says, maybe old")
        self.delete = _button("Delete", "Remove the key")
        self.incr = _button("Incr", "Add 1 to the number in the key")
        asked = [self.put, self.get, self.stale_get, self.delete, self.incr]
        return [row([self.key, self.value, self.via, *asked])]

    def _replicas(self, members: Collection[int]) -> Any:
        """The buttons of each replica, in a box that is not shown."""
        for attribute, name, tooltip in _BUTTONS:
            buttons = {i: button(f"{name} {i}", f"{tooltip} (replica {i})", "auto") for i in members}
            setattr(self, attribute, buttons)
        return w.VBox([getattr(self, attribute)[i] for i in members for attribute, _, _ in _BUTTONS])

    def _network(self) -> Any:
        self.latency = w.FloatSlider(
            0.0,
            min=0.0,
            max=1.0,
            step=0.05,
            description="Latency (s)",
            tooltip="How long each message travels, in seconds",
            readout_format=".2f",
            layout=w.Layout(width="330px"),
            style={"description_width": "80px"},
        )
        self.pause = _button("Pause", "Stop messages and time")
        self.resume = _button("Resume", "Let messages and time run again")
        self.step = _button(
            "Step one message", "While paused: deliver the next message that tells something new"
        )
        self.heal = _button("Heal", "Reconnect all links")
        return row([self.latency, self.pause, self.resume, self.step, self.heal])

    def _of_the_record(self) -> Any:
        """What the timeline presses, in a box that is not shown."""
        self.back = _button("Back", "Show what was recorded, one step earlier")
        self.forward = _button("Forward", "One step later")
        self.live = _button("Live", "Show the cluster as it is now")
        self.place = slider("Recorded", "Which of the recorded moments is shown", 1, "80px")
        self.place.disabled = True
        self.play = toggle("Play", "Show it from there on", "auto")
        return w.VBox([self.place, self.back, self.forward, self.play, self.live])

    def _on_demand(self) -> list[Any]:
        self.with_messages = toggle(
            "Messages of the last request",
            "Show who told whom what since a request was last made here",
            "auto",
        )
        self.with_verdict = toggle(
            "Verdict on what I asked",
            "Is there an order that explains every answer since Forget was pressed?",
            "auto",
        )
        self.forget = _button("Forget", "Begin a new history: nothing was asked yet")
        self.with_table = toggle("Table", "Show the numbers of all replicas as a table", "88px")
        switches = row([self.with_messages, self.with_verdict, self.forget, self.with_table])
        return [switches, self.messages, self.verdict, self.table]


def _button(name: str, tooltip: str) -> Any:
    return button(name, tooltip, "auto")  # some fonts are wide
