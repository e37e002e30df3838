"""Pictures and tables as the output of a cell, once or again and again while it runs."""

from __future__ import annotations

from collections.abc import Sequence
from html import escape
from typing import Any

from IPython.display import HTML, display

from ondisk.cluster import Cluster
from ondisk.lab.pictures.cluster import status_table
from ondisk.lab.pictures.messages import message_diagram
from ondisk.lab.pictures.saving import as_csv, links, standalone_svg
from ondisk.observe import Recorder, Seen, capture


def show_status(cluster: Cluster) -> None:
    """A table of all replicas, as they are now."""
    Output().show(status_table(capture(cluster)))


def show_messages(recorder: Recorder, *, heartbeats: bool = False) -> None:
    """A diagram of the messages sent since ``recorder.mark()``."""
    events = recorder.messages(heartbeats=heartbeats)
    drawn = message_diagram(events, recorder.view().statuses)
    Output().show(drawn + links("messages", svg=standalone_svg(drawn), csv=_as_csv(events)))


def _as_csv(events: Sequence[Seen]) -> str:
    head = ("number", "seconds", "kind", "from", "to", "message")
    return as_csv([head, *((e.number, e.time, e.kind, e.sender, e.receiver, e.label) for e in events)])


class Output:
    """A place below the cell that runs: what is shown there replaces what was shown before.

    Outside of Jupyter there is nothing to draw on, and nothing is replaced.
    """

    def __init__(self) -> None:
        self._handle: Any = None
        self._begun = False

    def show(self, html: str) -> None:
        """Show it in place of what was there."""
        shown = HTML(html)  # type: ignore[no-untyped-call]
        if not self._begun:
            self._begun = True
            self._handle = display(shown, display_id=True)  # type: ignore[no-untyped-call]
        elif self._handle is not None:
            self._handle.update(shown)


class Progress(Output):
    """A bar that moves while a cell runs. A cell that computes hears no button, but it can be interrupted."""

    def __init__(self, words: str) -> None:
        """Show it at its beginning."""
        super().__init__()
        self(words, 0.0)

    def __call__(self, words: str, part: float) -> None:
        """Say how far it is: ``part`` is from 0 to 1."""
        value = f"{min(1.0, part):.2f}"
        self.show(f'<label><progress max="1" value="{value}"></progress> {escape(words)}</label>')
