"""Show a picture or a table as the output of a cell."""

from __future__ import annotations

from IPython.display import HTML, display

from ondisk.cluster import Cluster
from ondisk.lab.pictures import cluster as picture
from ondisk.observe import Recorder, capture


def show_status(cluster: Cluster) -> None:
    """A table of all replicas, as they are now."""
    _show(picture.status_table(capture(cluster)))


def show_messages(recorder: Recorder, *, heartbeats: bool = False) -> None:
    """A diagram of the messages sent since ``recorder.mark()``."""
    events = recorder.messages(heartbeats=heartbeats)
    _show(picture.message_diagram(events, recorder.view().statuses))


def _show(html: str) -> None:
    display(HTML(html))  # type: ignore[no-untyped-call]
