"""What a panel shows: the cluster as it is now or as it was recorded, messages, and the verdict."""

from __future__ import annotations

import time
from bisect import bisect_left, bisect_right
from functools import partial
from html import escape

from ondisk.lab.panel.answers import Answers, error_in_words
from ondisk.lab.panel.controls import NOWHERE, Controls
from ondisk.lab.panel.watched import Watched
from ondisk.lab.pictures.cluster import status_table
from ondisk.lab.pictures.history import history_picture
from ondisk.lab.pictures.living import Plain, living_picture
from ondisk.lab.pictures.messages import message_diagram
from ondisk.linearizability import Undecided, check
from ondisk.linearizability.history import History, Operation
from ondisk.observe import Note, View

_SLOWLY = 0.25  # of its own speed the record is played
_NEWEST_SECONDS = 5.0
_LONG = 0.5  # seconds without anything that are waited for
_NOTES = 40  # that can be gone back to
_EVENTS = 60  # of messages, between two pictures
_CONFIGURATIONS = 20_000  # to decide about what was asked here: the kernel must not stand still


class _Playing:
    """How far the record was played: ``moment`` is in seconds of the cluster's clock."""

    def __init__(self, moment: float) -> None:
        self.moment = moment
        self._since = time.perf_counter()

    def go_on(self) -> None:
        """Let the time pass that has passed since the last call."""
        now = time.perf_counter()
        self.moment += _SLOWLY * (now - self._since)
        self._since = now


class Screen:
    """Draws into the widgets of a panel. What did not change costs nothing."""

    def __init__(self, controls: Controls, answers: Answers, watched: Watched) -> None:
        self._controls = controls
        self._watched = watched
        self._recorded: list[View] = []  # empty: the picture is live
        self._told = 0  # the number of the newest message that was drawn, in this network
        self._playing: _Playing | None = None
        self._notes: list[Note] = []  # what can be gone back to
        self._judged: tuple[Operation, ...] | None = None
        answers.connect(controls.back, partial(self._move, -1))
        answers.connect(controls.forward, partial(self._move, +1))
        answers.connect(controls.live, self.go_live)
        answers.connect(controls.forget, self._forget)
        controls.play.observe(lambda _: answers.on_loop(self._play), "value")
        controls.jump.observe(lambda _: answers.on_loop(self._jump), "value")
        controls.place.observe(lambda _: answers.on_loop(self.refresh), "value")
        for switch in (controls.with_messages, controls.with_verdict, controls.with_table):
            switch.observe(lambda _: self.refresh(), "value")

    def refresh(self) -> None:
        """Look at the cluster and show it, or show what was recorded."""
        controls, recorder = self._controls, self._watched.recorder
        self._watched.looker.key = controls.key.value
        view = recorder.sample()
        if self._playing is not None:
            self._go_on_playing(self._playing)
        shown = self._recorded[controls.place.value - 1] if self._recorded else view
        if self._recorded:
            played = self._playing is not None
            picture = living_picture(shown, recorded=_recorded(shown, view), rate=_SLOWLY * played)
            picture["time"] = self._playing.moment if self._playing is not None else shown.time
            controls.picture.show(picture)
        else:
            controls.picture.show(self._living(view))
        lag = None if self._recorded else recorder.lag()
        controls.table.value = status_table(shown, lag) if controls.with_table.value else ""
        wanted = controls.with_messages.value
        controls.messages.value = message_diagram(recorder.messages(), view.statuses) if wanted else ""
        self._judge()
        if controls.latency.value != view.latency:
            controls.latency.value = view.latency
        controls.pause.disabled, controls.resume.disabled = view.paused, not view.paused
        controls.step.disabled = not view.paused
        self._list_what_happened()
        at_the_end = not self._recorded or controls.place.value == len(self._recorded)
        controls.forward.disabled, controls.live.disabled = at_the_end, not self._recorded

    def _living(self, view: View) -> Plain:
        """The picture of now, with what has come and gone since the last one."""
        fresh = [
            event for event in self._watched.recorder.newest_messages(_EVENTS) if event.number > self._told
        ]
        self._told = max((event.number for event in fresh), default=self._told)
        return living_picture(view, notes=self._watched.recorder.newest_notes(1), events=fresh)

    def go_live(self) -> None:
        """Show the cluster as it is now."""
        self._controls.play.value = False
        self._recorded = []
        self._controls.place.disabled = True
        self._controls.jump.value = -1
        self.refresh()

    def turned(self) -> None:
        """Another cluster is watched, whose network counts its messages anew."""
        self._told = 0
        self.go_live()

    def _look_back(self) -> None:
        """From now on show what was recorded. It stands still, whatever is recorded meanwhile."""
        place = self._controls.place
        if not self._recorded:
            self._recorded = self._watched.recorder.samples
            place.max = len(self._recorded)
            place.value = len(self._recorded)
            place.disabled = False

    def _move(self, steps: int) -> None:
        """Back and forward over what was recorded."""
        self._controls.play.value = False
        self._look_back()
        self._controls.place.value += steps  # a slider stays within its bounds
        self.refresh()

    def _play(self) -> None:
        """Begin or end to show the record as it went on from the moment that is shown."""
        if not self._controls.play.value:
            self._playing = None
        else:
            self._look_back()
            place = self._controls.place
            if place.value == len(self._recorded):  # there is nothing after it: its newest seconds
                last = self._recorded[-1].time
                place.value = 1 + self._place_of(last - _NEWEST_SECONDS)
            self._playing = _Playing(self._recorded[place.value - 1].time)
        self.refresh()

    def _go_on_playing(self, playing: _Playing) -> None:
        """Go to the moment that has come; where nothing happened for long, at once to what came then."""
        playing.go_on()
        place = self._place_of(playing.moment, after=True)
        if place == len(self._recorded):
            self._controls.play.value = False
        elif self._recorded[place].time > playing.moment + _LONG:
            playing.moment = self._recorded[place].time - _LONG
        self._controls.place.value = max(1, place)

    def _place_of(self, moment: float, *, after: bool = False) -> int:
        """How many of the recorded views were taken before this moment, or with ``after`` not after it."""
        search = bisect_right if after else bisect_left
        return min(search(self._recorded, moment, key=lambda view: view.time), len(self._recorded))

    def _list_what_happened(self) -> None:
        """Offer the newest notes to go back to; while one is looked at, the list stands still."""
        notes = self._watched.recorder.newest_notes(_NOTES)
        if notes == self._notes or self._recorded:
            return
        self._notes = notes
        self._controls.jump.options = [(NOWHERE, -1), *((note.text, at) for at, note in enumerate(notes))]

    def _jump(self) -> None:
        """Show the moment of the note that was chosen."""
        if (chosen := self._controls.jump.value) == -1:
            return
        self._controls.play.value = False
        self._look_back()
        self._controls.place.value = 1 + self._place_of(self._notes[chosen].time)
        self.refresh()

    def _judge(self) -> None:
        """Draw the verdict, if it is wanted and something was asked or answered since it was drawn."""
        verdict = self._controls.verdict
        asked = self._watched.history.operations if self._controls.with_verdict.value else None
        if asked == self._judged:
            return
        self._judged = asked
        if not asked:
            verdict.value = "" if asked is None else "Nothing was asked yet."
            return
        try:
            verdict.value = history_picture(asked, check(asked, limit=_CONFIGURATIONS))._repr_html_()
        except Undecided as error:
            verdict.value = escape(error_in_words(error))

    def _forget(self) -> None:
        self._watched.history = History()
        self.refresh()


def _recorded(shown: View, now: View) -> str:
    ago = f"{now.time - shown.time:.0f} s ago"
    return f"Recorded {ago}. The cluster has gone on: press Live to see it as it is."
