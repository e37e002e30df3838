"""The panel: put, get and every fault at the press of a button, with a live picture.

What is asked and answered here makes a history: was it linearizable?
"""

from __future__ import annotations

import asyncio
import weakref
from collections.abc import Sequence
from pathlib import Path

from ondisk.cluster import Cluster
from ondisk.errors import ConfigurationError
from ondisk.lab.panel.answers import Answers, error_in_words
from ondisk.lab.panel.controls import Controls
from ondisk.lab.panel.faults import Faults
from ondisk.lab.panel.requests import Requests
from ondisk.lab.panel.screen import Screen
from ondisk.lab.panel.watched import Watched
from ondisk.lab.pictures.cluster import in_words
from ondisk.lab.pictures.living import ELSEWHERE
from ondisk.lab.pictures.recording import recording_of
from ondisk.lab.widgets import close_widgets
from ondisk.linearizability.history import History
from ondisk.observe import GroupElsewhere, Note, Recorder
from ondisk.remote import RemoteClient

_MESSAGES = 4_000  # of a recording

_panels: weakref.WeakValueDictionary[object, Panel] = weakref.WeakValueDictionary()


def _place_of(cluster: Cluster | RemoteClient) -> object:
    """For each there is one panel: a data directory, or the addresses of a group."""
    return cluster.data_dir if isinstance(cluster, Cluster) else cluster.endpoints


class Panel(Controls):
    """A cluster under your hands. Show it as the last value of a cell, as often as you like.

    There is one panel for a data directory: a new one closes the former, so a cell can be run again. The
    widgets are public, so that a program can press them: ``panel.put.click()``, ``await panel.idle()``.

    ``history`` holds what was asked here and answered, since *Forget* was pressed: an operation a request,
    whose client is the replica that was asked. A stale get is in it as a get: whether it is as good as one is
    the question. What a key held before comes first, as a put. What other clients write is not in it.
    """

    def __init__(self, cluster: Cluster | RemoteClient, *, every: float = 0.1) -> None:
        """Watch ``cluster``, looking every ``every`` seconds. Needs a running loop, as every cell has.

        A group that runs elsewhere (``Panel(ondisk.connect(...))``) is only watched and read: what its
        replicas say of themselves is drawn, and what could change it is disabled.
        """
        loop = asyncio.get_running_loop()
        self._closed = False
        self._poller: asyncio.Task[None] | None = None
        self._answers = Answers(loop)
        if (former := _panels.get(_place_of(cluster))) is not None:
            former.close()
        watched = GroupElsewhere(cluster, every=every) if isinstance(cluster, RemoteClient) else cluster
        self._watched = Watched(watched)
        _panels[_place_of(cluster)] = self
        self._every = every
        elsewhere = isinstance(watched, GroupElsewhere)
        self.make_widgets(watched.members, self._answers.widget, read_only=ELSEWHERE if elsewhere else "")
        self._screen = Screen(self, self._answers, self._watched)
        Requests(self, self._answers, self._screen, self._watched)
        if not elsewhere:
            Faults(self, self._answers, self._screen, self._watched)
        self.refresh()
        self._poller = loop.create_task(self._poll(), name="ondisk-panel")

    @property
    def cluster(self) -> Cluster:
        """The one that is watched, if it is one in this process."""
        return self._watched.mine

    @property
    def recorder(self) -> Recorder:
        """What was seen of the cluster."""
        return self._watched.recorder

    @property
    def history(self) -> History:
        """What was asked here and answered, since *Forget* was pressed."""
        return self._watched.history

    @property
    def last_answer(self) -> str:
        """The newest line of answers, as plain text."""
        return self._answers.newest

    def in_words(self) -> str:
        """All that the picture shows, as sentences."""
        return in_words(self.recorder.sample())

    def watch(self, cluster: Cluster) -> None:
        """Turn to another cluster, with the same members: the former one may have been closed."""
        if cluster.members != self.cluster.members:
            raise ConfigurationError(
                f"this panel has buttons for {list(self.cluster.members)}, not {list(cluster.members)}"
            )
        self.recorder.close()
        self._forget()
        self._watched.turn_to(cluster)
        _panels[_place_of(cluster)] = self
        self._screen.turned()

    def _forget(self) -> None:
        watched = self._watched.cluster
        place = _place_of(watched.client if isinstance(watched, GroupElsewhere) else watched)
        if _panels.get(place) is self:
            del _panels[place]

    async def _poll(self) -> None:
        while True:
            await asyncio.sleep(self._every)
            try:
                self.refresh()
            except Exception as error:  # show it, and go on looking
                self._answers.say("watching", error_in_words(error))

    def go_to(self, moment: float) -> None:
        """Show what was recorded at this time of the cluster's clock, or before it; *Live* ends that."""
        self._screen.go_to(moment)

    def save_html(
        self, path: str | Path, title: str = "Three replicas", captions: Sequence[Note] = ()
    ) -> Path:
        """Write what was recorded into one HTML file, which plays without a kernel or a network.

        ``captions`` explain, each from its time on, in seconds of the cluster's clock.
        """
        view = self.recorder.view()
        messages = self.recorder.newest_messages(_MESSAGES)
        samples = self.recorder.samples
        return recording_of(title, samples, messages, view.notes, captions=captions).save(path)

    def refresh(self) -> None:
        """Look at the cluster and show it, or show what was recorded. What did not change costs nothing."""
        self._screen.refresh()

    async def idle(self) -> None:
        """Return when every button that was pressed has been answered."""
        await self._answers.idle()
        self.refresh()

    def close(self) -> None:
        """Stop watching and take the widgets away; the cluster goes on. A second call does nothing.

        Also of a panel that an interrupt left half made.
        """
        if self._closed:
            return
        if self._poller is not None:
            self._poller.cancel()
        self._answers.cancel()
        self.recorder.close()
        if isinstance(self._watched.cluster, GroupElsewhere):
            self._watched.cluster.close()
        if self.box is not None:
            close_widgets(self.box)
            close_widgets(self.of_replicas)
            close_widgets(self.of_the_record)
        self._forget()  # last: whoever is interrupted before closes it again
        self._closed = True
