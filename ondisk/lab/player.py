"""The player: step through the trace of a run, back and forth, with its events beside it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from html import escape
from pathlib import Path
from typing import Any

import ipywidgets as w

from ondisk.lab.experiments.trace import Moment, Trace
from ondisk.lab.pictures.trace import (
    event_table,
    in_words,
    moment_picture,
    moment_table,
    recording_of_run,
)
from ondisk.lab.widgets import Shown, button, close_widgets, row, slider, spoken, toggle
from ondisk.observe import Note
from ondisk.simulation.world import TraceEvent

KINDS = {
    "Messages": ("sent", "delivered", "lost"),
    "Replicas": ("start", "stop", "status", "crash", "failed", "removed", "refused", "install", "import"),
    "Faults": ("fault", "end", "calm"),
    "Applied, acknowledged": ("apply", "ack"),
}
_ALWAYS = ("violation",)

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
            close_widgets(former.box)
        _players[title] = self
        self.trace, self.title = trace, title
        self._make_widgets()
        self._show()

    def _make_widgets(self) -> None:
        count = len(self.trace.moments)
        self.place = slider(f"Moment, of {count}", "Which of the moments is shown", count, "130px")
        self.place.observe(lambda _: self._show(), "value")
        self.beginning = _button("Beginning", "The first moment", lambda: self.go(0))
        self.back = _button("Back", "One moment earlier", lambda: self.go(self.place.value - 2))
        self.forward = _button("Forward", "One moment later", lambda: self.go(self.place.value))
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
        self.picture, self.table, self.record, self.answer = w.HTML(), w.HTML(), w.HTML(), w.HTML()
        moves = [self.beginning, self.back, self.forward, self.next_fault, self.next_exposure, self.end]
        self.box = w.VBox(
            [
                row([self.place, *moves]),
                self.answer,
                self.picture,
                self.table,
                row([*self.kinds.values(), self.words]),
                self.record,
            ]
        )

    # Where it is

    @property
    def moment(self) -> Moment:
        """What is shown."""
        number: int = self.place.value - 1
        return self.trace.moments[number]

    def go(self, number: int) -> None:
        """Show this moment, counted from 0, or the nearest there is."""
        self._say("")
        self.place.value = min(max(number, 0), len(self.trace.moments) - 1) + 1

    def go_to(self, seconds: float) -> Player:
        """Show what it was like at this time."""
        later = (number for number, moment in enumerate(self.trace.moments) if moment.time > seconds)
        self.go(next(later, len(self.trace.moments)) - 1)
        return self

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
        self.picture.value = moment_picture(self.moment, self.title)
        self.table.value = moment_table(self.moment)
        self.record.value = event_table(self.trace.report.trace, since, until, self._wanted)
        self.back.disabled = self.beginning.disabled = self.place.value == 1
        self.forward.disabled = self.end.disabled = self.place.value == len(self.trace.moments)

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
