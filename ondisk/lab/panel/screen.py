"""What a panel shows: the cluster as it is now or as it was recorded, messages, and the verdict."""

from __future__ import annotations

import math
from bisect import bisect_left, bisect_right
from functools import partial
from html import escape
from typing import Any

from ondisk.lab.panel.answers import Answers, error_in_words
from ondisk.lab.panel.controls import Controls
from ondisk.lab.panel.watched import Watched
from ondisk.lab.pictures.cluster import status_table
from ondisk.lab.pictures.history import history_picture
from ondisk.lab.pictures.living import Plain, living_picture
from ondisk.lab.pictures.messages import message_diagram
from ondisk.lab.pictures.timeline import SPEEDS, timeline
from ondisk.lab.playing import Playing
from ondisk.linearizability import Undecided, check
from ondisk.linearizability.history import History, Operation
from ondisk.observe import Lag, View

_SLOWLY = 0.25  # of its own speed the record is played, until another one is chosen
_NEWEST_SECONDS = 5.0
_NOTES = 200  # marks on the timeline
_EVENTS = 60  # of messages, between two pictures
_CONFIGURATIONS = 20_000  # to decide about what was asked here: the kernel must not stand still


class Screen:
    """Draws into the widgets of a panel. What did not change costs nothing."""

    def __init__(self, controls: Controls, answers: Answers, watched: Watched) -> None:
        self._controls = controls
        self._watched = watched
        self._recorded: list[View] = []  # empty: the picture is live
        self._told = 0  # the number of the newest message that was drawn, in this network
        self._playing: Playing | None = None
        self._speed = _SLOWLY
        self._jumps = 0  # over the record: messages under way do not come along
        self._judged: tuple[Operation, ...] | None = None
        answers.connect(controls.back, partial(self._move, -1))
        answers.connect(controls.forward, partial(self._move, +1))
        answers.connect(controls.live, self.go_live)
        answers.connect(controls.forget, self._forget)
        controls.play.observe(lambda _: answers.on_loop(self._play), "value")
        controls.timeline.on_act(lambda do, on: answers.on_loop(partial(self._on_act, do, on)))
        controls.place.observe(lambda _: answers.on_loop(self.refresh), "value")
        for switch in (controls.with_messages, controls.with_verdict, controls.with_table):
            switch.observe(lambda _: answers.on_loop(self.refresh), "value")

    def refresh(self) -> None:
        """Look at the cluster and show it, or show what was recorded."""
        controls, recorder = self._controls, self._watched.recorder
        self._watched.looker.key = controls.key.value
        view = recorder.sample()
        if self._playing is not None:
            self._go_on_playing(self._playing)
        self._show_timeline(view)
        shown = self._recorded[controls.place.value - 1] if self._recorded else view
        lag: dict[int, Lag] | None = None
        if self._recorded:
            rate = self._speed if self._playing is not None else 0.0
            picture = living_picture(shown, recorded=_recorded(shown, view), rate=rate)
            controls.picture.show({**picture, "time": self._moment, "takes": self._jumps})
        else:
            controls.picture.show(self._living(view, lag := recorder.lag()))
        controls.table.value = status_table(shown, lag) if controls.with_table.value else ""
        wanted = controls.with_messages.value
        controls.messages.value = message_diagram(recorder.messages(), view.statuses) if wanted else ""
        self._judge()
        at_the_end = not self._recorded or controls.place.value == len(self._recorded)
        controls.forward.disabled, controls.live.disabled = at_the_end, not self._recorded
        if view.elsewhere:
            return
        if controls.latency.value != view.latency:
            controls.latency.value = view.latency
        controls.pause.disabled, controls.resume.disabled = view.paused, not view.paused
        controls.step.disabled = not view.paused

    def _living(self, view: View, lags: dict[int, Lag]) -> Plain:
        """The picture of now, with what has come and gone since the last one."""
        fresh = [
            event for event in self._watched.recorder.newest_messages(_EVENTS) if event.number > self._told
        ]
        self._told = max((event.number for event in fresh), default=self._told)
        recorder = self._watched.recorder
        return living_picture(view, notes=recorder.newest_notes(1), events=fresh, lags=lags)

    def go_live(self) -> None:
        """Show the cluster as it is now."""
        self._controls.play.value = False
        self._recorded = []
        self._controls.place.disabled = True
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

    def _on_act(self, do: str, on: Any) -> None:
        """Something was done to the timeline."""
        controls = self._controls
        buttons = {"back": controls.back, "forward": controls.forward, "live": controls.live}
        if do in buttons:
            buttons[do].click()
        elif do == "play":
            controls.play.value = not controls.play.value
        elif do == "speed" and on in SPEEDS:
            self._speed = on
            if self._playing is not None:
                self._playing.speed = on
        elif do == "go" and isinstance(on, int | float):
            self.go_to(on)

    def _move(self, steps: int) -> None:
        """Back and forward over what was recorded."""
        self._controls.play.value = False
        self._look_back()
        self._jumps += 1
        self._controls.place.value += steps  # a slider stays within its bounds
        self.refresh()

    def go_to(self, moment: float) -> None:
        """Show what was recorded at this time of the cluster's clock, or before it."""
        self._look_back()
        self._jumps += 1
        self._controls.place.value = max(1, self._place_of(moment, after=True))
        if self._playing is not None:
            self._playing.moment = moment
        self.refresh()

    @property
    def _moment(self) -> float:
        """Which time is shown, when it is not now."""
        return self._playing.moment if self._playing else self._recorded[self._controls.place.value - 1].time

    def _show_timeline(self, now: View) -> None:
        """What has happened, and where this is in it. While it is live, it grows by whole seconds."""
        recorder = self._watched.recorder
        notes = recorder.newest_notes(_NOTES)
        if self._recorded:
            first, last, at = self._recorded[0].time, self._recorded[-1].time, self._moment
        else:
            newest = max((note.time for note in notes), default=0.0)
            first, last, at = recorder.began, max(math.floor(now.time), newest, recorder.began), None
        playing = self._playing is not None
        line = timeline(notes, first, last, at, playing=playing, speed=self._speed, live=True)
        self._controls.timeline.show(line)

    def _play(self) -> None:
        """Begin or end to show the record as it went on from the moment that is shown."""
        if not self._controls.play.value:
            self._playing = None
        else:
            self._look_back()
            self._jumps += 1
            place = self._controls.place
            if place.value == len(self._recorded):  # there is nothing after it: its newest seconds
                last = self._recorded[-1].time
                place.value = 1 + self._place_of(last - _NEWEST_SECONDS)
            times = [view.time for view in self._recorded]
            self._playing = Playing(times, times[place.value - 1], self._speed)
        self.refresh()

    def _go_on_playing(self, playing: Playing) -> None:
        goes_on = playing.go_on()
        self._controls.place.value = max(1, self._place_of(playing.moment, after=True))
        if not goes_on:
            self._controls.play.value = False

    def _place_of(self, moment: float, *, after: bool = False) -> int:
        """How many of the recorded views were taken before this moment, or with ``after`` not after it."""
        search = bisect_right if after else bisect_left
        return min(search(self._recorded, moment, key=lambda view: view.time), len(self._recorded))

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
