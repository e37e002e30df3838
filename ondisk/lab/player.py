"""The player: step through the trace of a run, back and forth, with its events beside it."""

from __future__ import annotations

import asyncio
from bisect import bisect_right
from collections.abc import Callable, Sequence
from functools import partial
from html import escape
from pathlib import Path
from typing import Any

import ipywidgets as w

from ondisk.lab.browser import LivingPicture, Timeline
from ondisk.lab.experiments.trace import Moment, Trace
from ondisk.lab.pictures.recording import under_way
from ondisk.lab.pictures.timeline import SPEEDS
from ondisk.lab.pictures.trace import (
    event_table,
    in_words,
    moment_state,
    moment_table,
    recording_of_run,
    run_timeline,
)
from ondisk.lab.playing import Playing
from ondisk.lab.widgets import Shown, button, close_widgets, row, slider, spoken, toggle
from ondisk.observe import Note
from ondisk.simulation.faults import LEADER, Fault
from ondisk.simulation.world import TraceEvent

KINDS = {
    "Messages": ("sent", "delivered", "lost"),
    "Replicas": ("start", "stop", "status", "crash", "failed", "removed", "refused", "install", "import"),
    "Faults": ("fault", "end", "calm"),
    "Applied, acknowledged": ("apply", "ack"),
}
_ALWAYS = ("violation",)
FORKS = {  # what can go wrong from a moment on: how long it lasts, and how bad it is
    "crash": (3.0, 0.0),
    "pause": (2.0, 0.0),
    "partition": (3.0, 0.0),
    "stall": (2.0, 0.0),
    "cut": (3.0, 0.0),
    "slow disk": (3.0, 0.3),
    "crash all": (1.0, 0.0),
    "wipe": (1.0, 0.0),
    "transfer": (0.0, 0.0),
    "compact": (0.0, 0.0),
}
STOCK_FORKS = ("crash", "pause", "partition", "stall")
_SLOWLY = 0.25  # of its own speed a run is played, until another one is chosen
_EVERY = 0.1  # seconds between two pictures

_players: dict[str, Player] = {}


class Player(Shown):
    """The trace of a run under your hands. Show it as the last value of a cell.

    There is one player for a title: a new one closes the former, so that a cell can be run again. The widgets
    are public, so that a program can press them: ``player.forward.click()``.
    """

    def __init__(self, trace: Trace, title: str = "A run") -> None:
        """Begin with the first moment of a trace that has one."""
        if not trace.moments:
            raise ValueError("there is no moment in this trace")
        if (former := _players.pop(title, None)) is not None:
            former.close()
        _players[title] = self
        self.trace, self.title = trace, title
        self.forked: Player | None = None
        self._times = [moment.time for moment in trace.moments]
        self._under_way = list(under_way(self._times, trace.messages))
        self._playing: Playing | None = None
        self._speed = _SLOWLY
        self._jumps = 0  # over the record: messages under way do not come along
        self._line = run_timeline(trace, self._times[0])
        self._make_widgets()
        self._show()

    def _make_widgets(self) -> None:
        count = len(self.trace.moments)
        self.place = slider(f"Moment, of {count}", "Which of the moments is shown", count, "130px")
        self.place.observe(lambda _: self._show(), "value")
        self.timeline = Timeline()
        self.timeline.on_act(self._on_act)
        self.beginning = _button("Beginning", "The first moment", lambda: self.go(0))
        self.back = _button("Back", "One moment earlier", lambda: self._step(-1))
        self.forward = _button("Forward", "One moment later", lambda: self._step(+1))
        self.next_fault = _button(
            "Next fault", "Where the next fault begins", partial(self._seek, self._is_fault)
        )
        self.next_exposure = _button(
            "Next exposure",
            "Where the next time begins in which too few logs have what was committed",
            partial(self._seek, self._is_exposure),
        )
        found = self.trace.report.rule is not None
        self.end = _button(
            "Violation" if found else "End",
            "Where the violation is found" if found else "The last moment",
            lambda: self.go(count - 1),
        )
        self.kinds = {
            name: toggle(
                name,
                f"Show such lines of the record: {', '.join(kinds)}",
                "auto",
                value=name != "Applied, acknowledged",
            )
            for name, kinds in KINDS.items()
        }
        self.words = w.Text(
            description="With the words",
            placeholder="such as 1 -> 2",
            tooltip="Show only lines of the record that contain this",
            continuous_update=False,
            layout=w.Layout(width="300px"),
            style={"description_width": "110px"},
        )
        for each in (*self.kinds.values(), self.words):
            each.observe(lambda _: self._show(), "value")
        self.picture, self.heading = LivingPicture(), w.HTML(f"<b>{escape(self.title)}</b>")
        self.table, self.record, self.answer = w.HTML(), w.HTML(), w.HTML()
        self.of_the_timeline = w.VBox([self.place, self.back, self.forward])  # pressed by it, not shown
        moves = [self.beginning, self.next_fault, self.next_exposure, self.end]
        self.box = w.VBox(
            [
                self.heading,
                self.timeline,
                row([*moves, *self._make_fork()]),
                self.answer,
                self.picture,
                self.table,
                row([*self.kinds.values(), self.words]),
                self.record,
            ]
        )

        self._own = self.box.children
        self.box.add_class("ondisk-panel")

    def _make_fork(self) -> list[Any]:
        """What goes on from here in another way."""
        stock = self.trace.setting.stock
        wide, narrow = w.Layout(width="170px"), w.Layout(width="150px")
        self.fault = w.Dropdown(
            options=[kind for kind in FORKS if not stock or kind in STOCK_FORKS],
            description="with",
            tooltip="What goes wrong from this moment on",
            layout=wide,
            style={"description_width": "35px"},
        )
        members = [member.id for member in self.trace.moments[-1].members]
        self.who = w.Dropdown(
            options=[("the leader", LEADER), *((f"replica {member}", member) for member in members)],
            description="of",
            tooltip="To whom it happens",
            layout=narrow,
            style={"description_width": "20px"},
        )
        self.fork_here = _button(
            "Fork here", "Run it again up to this moment, and let something else go wrong", self._fork
        )
        return [self.fork_here, self.fault, self.who]

    def close(self) -> None:
        """Take the widgets away. A second call does nothing."""
        self._playing = None
        if self.forked is not None:
            self.forked.close()
        close_widgets(self.box)
        close_widgets(self.of_the_timeline)

    # Where it is

    @property
    def moment(self) -> Moment:
        """What is shown."""
        number: int = self.place.value - 1
        return self.trace.moments[number]

    def go(self, number: int) -> None:
        """Show this moment, counted from 0, or the nearest there is."""
        self._say("")
        self._jumps += 1
        self.place.value = min(max(number, 0), len(self.trace.moments) - 1) + 1
        if self._playing is not None:
            self._playing.moment = self.moment.time

    def go_to(self, seconds: float) -> Player:
        """Show what it was like at this time."""
        self.go(bisect_right(self._times, seconds) - 1)
        return self

    def _step(self, steps: int) -> None:
        self._stop()
        self.go(self.place.value - 1 + steps)

    def _on_act(self, do: str, on: Any) -> None:
        """Something was done to the timeline."""
        if do in ("back", "forward"):
            self._step(-1 if do == "back" else +1)
        elif do == "play":
            self.play()
        elif do == "speed" and on in SPEEDS:
            self._speed = on
            if self._playing is not None:
                self._playing.speed = on
            self._show()
        elif do == "go" and isinstance(on, int | float):
            self.go_to(on)

    # It plays

    def play(self) -> None:
        """Begin to play from here on, or end that. Needs a running loop, as every cell has."""
        if self._playing is not None:
            self._stop()
            return
        loop = asyncio.get_running_loop()
        if self.place.value == self.place.max:
            self.go(0)
        self._playing = Playing(self._times, self.moment.time, self._speed)
        self._show()
        self._task = loop.create_task(self._go_on(self._playing), name="ondisk-player")

    async def _go_on(self, playing: Playing) -> None:
        while self._playing is playing:
            await asyncio.sleep(_EVERY)
            if self._playing is playing:
                goes_on = playing.go_on()
                self.place.value = max(1, bisect_right(self._times, playing.moment))
                if goes_on:
                    self._show_timeline()
                else:
                    self._stop()

    def _stop(self) -> None:
        if self._playing is not None:
            self._playing = None
            self._jumps += 1
            self._show()

    # Another end of the same story

    def _fork(self) -> None:
        kind, member = self.fault.value, self.who.value
        lasts, size = FORKS[kind]
        up = sorted(each.id for each in self.moment.members if not each.role.startswith("down"))
        if member != LEADER and member not in up:
            self._say(f"Replica {member} is down at this moment.")
            return
        who = member
        if member != LEADER:  # faults count those that run, from 0 on, and 0 is the leader
            place = up.index(member)
            who = 1 << place if kind == "partition" else place or len(up)
        other = (up.index(member) if member in up else 0) + 1  # the next one
        self.fork(Fault(self.moment.time, kind, lasts, who, other, size))

    def fork(self, *faults: Fault) -> Player:
        """The same run up to this moment, and from there on only these faults; shown below this one."""
        self._stop()
        self._say("The run is repeated up to here …")
        traced = self.trace.fork(self.moment.time, *faults)
        if self.forked is not None:
            self.forked.close()
        words = ", ".join(str(fault).partition(": ")[2] for fault in faults) or "no more faults"
        self.forked = Player(traced, f"{self.title}, from {self.moment.time:.3f} s on: {words}")
        self.box.children = [*self._own, self.forked.box]
        self.forked.go_to(self.moment.time)
        rule = traced.report.violation
        self._say(f"Below it goes on in another way: {rule or 'no rule is violated'}.")
        return self.forked

    def _seek(self, wanted: Callable[[int], bool]) -> None:
        for number in range(self.place.value, len(self.trace.moments)):
            if wanted(number):
                self.go(number)
                return
        self._say("There is none later than this.")

    def _is_fault(self, number: int) -> bool:
        since, until = self._lines_of(number)
        return any(line.kind == "fault" for line in self.trace.report.trace[since:until])

    def _is_exposure(self, number: int) -> bool:
        moments = self.trace.moments
        return moments[number].too_few and not moments[number - 1].too_few

    def _lines_of(self, number: int) -> tuple[int, int]:
        """The lines of the record that were written since the moment before."""
        moments = self.trace.moments
        until = moments[number].lines
        return (moments[number - 1].lines if number else until), until

    def save_html(self, path: str | Path, captions: Sequence[Note] = ()) -> Path:
        """Write the run into one HTML file, which plays without a kernel or a network.

        ``captions`` explain, each from its time on, in virtual seconds.
        """
        return recording_of_run(self.trace, self.title, captions).save(path)

    # What it shows

    def _show(self) -> None:
        since, until = self._lines_of(self.place.value - 1)
        rate = self._speed if self._playing is not None else 0.0
        events = self._under_way[self.place.value - 1]
        picture = moment_state(self.moment, events, rate=rate)
        self.picture.show({**picture, "time": self._time, "takes": self._jumps})
        self._show_timeline()
        self.table.value = moment_table(self.moment)
        self.record.value = event_table(self.trace.report.trace, since, until, self._wanted)
        self.back.disabled = self.beginning.disabled = self.place.value == 1
        self.forward.disabled = self.end.disabled = self.place.value == len(self.trace.moments)

    @property
    def _time(self) -> float:
        return self._playing.moment if self._playing is not None else self.moment.time

    def _show_timeline(self) -> None:
        self.timeline.show(
            {
                **self._line,
                "at": self._time,
                "playing": self._playing is not None,
                "speed": self._speed,
            }
        )

    def _wanted(self, line: TraceEvent) -> bool:
        kinds = {kind for name, toggle in self.kinds.items() if toggle.value for kind in KINDS[name]}
        return line.kind in _ALWAYS or (line.kind in kinds and self.words.value in line.words)

    def _say(self, text: str) -> None:
        self.answer.value = spoken(escape(text))

    def in_words(self) -> str:
        """All that the picture shows, as sentences."""
        return in_words(self.moment)


def _button(name: str, tooltip: str, action: Callable[[], None]) -> Any:
    made = button(name, tooltip, "auto")
    made.on_click(lambda _: action())
    return made
