"""The player: step through a filmed run, back and forth, with the record of what happened beside it.

The picture of a frame is a function of that frame alone: SVG comes out, and no widget goes in. Colours, and
the rule that none carries a meaning alone, are those of ``lab/pictures/cluster.py``.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from functools import partial
from html import escape
from typing import Any

import ipywidgets as w

from ondisk.lab.film import Filmed, Frame, Member
from ondisk.lab.panel import close_widgets
from ondisk.lab.pictures.cluster import STYLE, svg
from ondisk.simulation.world import Happening

_MARKS = (
    ("log to", "last", "the newest entry in its log"),
    ("commit", "commit", "what it takes for committed"),
    ("applied", "applied", "its state machine holds the outcome up to here"),
)
_CARD_WIDTH, _GAP, _EDGE, _HEAD = 282, 12, 6, 66
_LEFT, _RIGHT = 68, 48  # of a bar: room for its name, and for its number
_MOST_CHARACTERS = 38  # of a message, in a card

KINDS = {
    "Messages": ("sent", "delivered", "lost"),
    "Replicas": ("start", "stop", "status", "crash", "failed", "removed", "refused", "install", "import"),
    "Faults": ("fault", "end", "calm"),
    "Applied, acknowledged": ("apply", "ack"),
}
_ALWAYS = ("violation",)
_BEFORE, _AFTER = 11, 6  # lines of the record around the present one


# The picture of a frame


def frame_picture(frame: Frame, title: str = "") -> str:
    """One moment of a run: a card for each replica, with its log and what is under way to it."""
    held = frame.acknowledged is not None
    lines = 4 + max((_lines(member) for member in frame.members), default=0)
    height_of_card = 100 + 18 * (lines + held - 3)
    width = max(2, len(frame.members)) * (_CARD_WIDTH + _GAP) - _GAP + 2 * _EDGE
    words = in_words(frame)
    x, style = _EDGE + 4, "bad bold" if frame.too_few else ""
    parts = [
        f'<text class="bold" x="{x}" y="20">{escape(title or "Virtual time")}: {frame.time:.3f} s</text>',
        f'<text class="{style}" x="{x}" y="42">{_holders(frame)}</text>',
    ]
    low, high = _window(frame)
    for place, member in enumerate(frame.members):
        x = _EDGE + place * (_CARD_WIDTH + _GAP)
        card = _card(frame, member, height_of_card, low, high)
        parts.append(f'<g transform="translate({x},{_HEAD - 10})">{card}</g>')
    height = _HEAD + height_of_card + 20
    parts.append(
        f'<text class="small" x="{_EDGE + 4}" y="{height - 10}">The bars show entries {low} to {high}; the '
        f"dashed line is entry {frame.committed}, the newest that anybody ever took for committed.</text>"
    )
    return svg(f"{title} {frame.time:.3f} s".strip(), words, width, height, parts)


def in_words(frame: Frame) -> str:
    """All that the picture shows, as sentences."""
    said = [f"{frame.time:.3f} s", _holders(frame)]
    for member in frame.members:
        marks = ", ".join(f"{name} {getattr(member, field)}" for name, field, _ in _MARKS)
        said.append(f"Replica {member.id}: {member.role}, term {member.term}, {marks}")
        said.extend(text for text, _ in _notes(frame, member))
    return ". ".join(said) + "."


def _holders(frame: Frame) -> str:
    if not frame.committed:
        return "Nothing is committed yet"
    names = ", ".join(map(str, frame.holders)) or "none"
    told = f"Entry {frame.committed} is committed; logs that are long enough to hold it: {names}"
    return f"⚠ {told}. That is no majority" if frame.too_few else told


def _window(frame: Frame) -> tuple[int, int]:
    """The entries that all bars show."""
    values = [getattr(member, field) for member in frame.members for _, field, _ in _MARKS]
    high = max([frame.committed, *values, 8])
    return max(0, min(min(values, default=0), high - 8)), high


def _card(frame: Frame, member: Member, height: int, low: int, high: int) -> str:
    style = "card leader" if member.role.startswith("leader") else "card"
    style += " off" if member.role.startswith(("down", "failed")) else ""
    parts = [
        f'<rect class="{style}" x="2" y="2" width="{_CARD_WIDTH - 4}" height="{height - 4}" rx="8"/>',
        f'<text class="bold" x="14" y="24">Replica {member.id}: {escape(member.role)}</text>',
        f'<text x="{_CARD_WIDTH - 14}" y="24" text-anchor="end">term {member.term}</text>',
    ]

    def place(index: int) -> float:
        return _LEFT + (_CARD_WIDTH - _RIGHT - _LEFT) * (min(max(index, low), high) - low) / (high - low)

    for row, (name, field, meaning) in enumerate(_MARKS):
        y, index = 46 + 18 * row, getattr(member, field)
        parts.append(
            f"<g><title>{name}: {meaning}</title>"
            f'<text class="small" x="14" y="{y + 4}">{name}</text>'
            f'<line class="faint" x1="{_LEFT}" y1="{y}" x2="{_CARD_WIDTH - _RIGHT}" y2="{y}"/>'
            f'<line class="line" stroke-width="4" x1="{_LEFT}" y1="{y}" x2="{place(index):.1f}" y2="{y}"/>'
            f"{_shape(field, place(index), y)}"
            f'<text class="small" x="{_CARD_WIDTH - 14}" y="{y + 4}" text-anchor="end">{index}</text></g>'
        )
    committed = place(frame.committed)
    parts.append(f'<line class="line off" x1="{committed:.1f}" y1="36" x2="{committed:.1f}" y2="92"/>')
    for row, (text, bad) in enumerate(_notes(frame, member)):
        shown = text if len(text) <= _MOST_CHARACTERS else text[: _MOST_CHARACTERS - 1] + "…"
        kind = "small bad" if bad else "small"
        parts.append(
            f'<text class="{kind}" x="14" y="{108 + 18 * row}">{escape(shown)}'
            f"<title>{escape(text)}</title></text>"
        )
    return "".join(parts)


def _notes(frame: Frame, member: Member) -> Iterator[tuple[str, bool]]:
    """What a card says below its bars, and whether that is bad."""
    if member.held is not None:
        yield f"has {member.held} of {frame.acknowledged} acknowledged keys", False
    if member.durable < frame.committed:
        yield f"its log lacks {frame.committed - member.durable} committed", True
    if member.deaf_to:
        yield f"hears nothing from {', '.join(map(str, member.deaf_to))}", True
    for words in member.coming:
        yield words, False
    if member.more:
        yield f"and {member.more} more messages", False


def _lines(member: Member) -> int:
    return len(member.coming) + bool(member.deaf_to) + bool(member.more)


def _shape(field: str, x: float, y: int) -> str:
    """A mark of its own for each kind of index: a bar, a diamond, a disc."""
    corners = {
        "last": ((-2, -7), (2, -7), (2, 7), (-2, 7)),
        "commit": ((0, -6), (6, 0), (0, 6), (-6, 0)),
    }.get(field)
    if corners is None:
        return f'<circle class="mark" cx="{x:.1f}" cy="{y}" r="5"/>'
    points = " ".join(f"{x + dx:.1f},{y + dy}" for dx, dy in corners)
    return f'<polygon class="mark" points="{points}"/>'


# The same numbers, and the record


def frame_table(frame: Frame) -> str:
    """One row for each replica."""
    held = frame.acknowledged is not None
    head = ["replica", "role", "term", "log to", "commit", "applied", *["acknowledged keys"] * held]
    titles = "".join(f'<th scope="col">{name}</th>' for name in head)
    rows = []
    for m in frame.members:
        cells: list[object] = [m.role, m.term, m.last, m.commit, m.applied, *[m.held] * held]
        shown = "".join(f"<td>{escape(str(cell))}</td>" for cell in cells)
        rows.append(f'<tr><th scope="row">{m.id}</th>{shown}</tr>')
    return (
        f'{STYLE}<div class="ondisk"><table><caption>At {frame.time:.3f} s</caption>'
        f"<thead><tr>{titles}</tr></thead><tbody>{''.join(rows)}</tbody></table></div>"
    )


def record_table(
    record: Sequence[Happening], since: int, until: int, shown: Callable[[Happening], bool]
) -> str:
    """Lines ``since`` to ``until`` of the record are now; some of those before and after them are shown, too.

    ``shown`` says which lines are wanted at all.
    """
    before = _some(record, range(since - 1, -1, -1), shown, _BEFORE)[::-1]
    now = _some(record, range(since, until), shown, _BEFORE)
    after = _some(record, range(until, len(record)), shown, _AFTER)
    rows = []
    for name, numbers in (("", before), ("now", now), ("later", after)):
        for number in numbers:
            time, kind, words = record[number]
            cells = f'<td>{time:.3f}</td><td class="words">{kind}</td>'
            cells += f'<td class="words">{escape(words)}</td>'
            weight = ' style="font-weight:bold"' if name == "now" else ""
            rows.append(f'<tr{weight}><th scope="row">{"▶ now" if name == "now" else name}</th>{cells}</tr>')
    body = "".join(rows) or '<tr><td class="words" colspan="4">no such line near here</td></tr>'
    return (
        f'{STYLE}<div class="ondisk"><table><caption>The record: {len(record):,} lines</caption><thead><tr>'
        '<th scope="col">when</th><th scope="col">seconds</th>'
        '<th scope="col" style="text-align:left">what</th>'
        '<th scope="col" style="text-align:left">in words</th></tr></thead>'
        f"<tbody>{body}</tbody></table></div>"
    )


def _some(
    record: Sequence[Happening], numbers: range, shown: Callable[[Happening], bool], most: int
) -> list[int]:
    found: list[int] = []
    for number in numbers:
        if shown(record[number]):
            found.append(number)
            if len(found) == most:
                break
    return found


# The widget

_players: dict[str, Player] = {}


class Player:
    """A filmed run under your hands. Show it as the last value of a cell.

    There is one player for a title: a new one closes the former, so that a cell can be run again. The widgets
    are public, so that a program can press them: ``player.forward.click()``.
    """

    def __init__(self, filmed: Filmed, title: str = "A run") -> None:
        """Begin with the first frame of a film that has one."""
        if not filmed.frames:
            raise ValueError("there is no frame in this film")
        if (former := _players.pop(title, None)) is not None:
            close_widgets(former.box)
        _players[title] = self
        self.filmed, self.title = filmed, title
        self._make_widgets()
        self._show()

    def _make_widgets(self) -> None:
        wide = w.Layout(width="auto")
        self.place: Any = w.IntSlider(
            1,
            min=1,
            max=len(self.filmed.frames),
            description=f"Moment, of {len(self.filmed.frames)}",
            tooltip="Which of the filmed moments is shown",
            layout=w.Layout(width="420px"),
            style={"description_width": "130px"},
        )
        self.place.observe(lambda _: self._show(), "value")

        def button(name: str, tooltip: str, action: Callable[[], None]) -> Any:
            made = w.Button(description=name, tooltip=tooltip, layout=wide)
            made.on_click(lambda _: action())
            return made

        self.back = button("Back", "One moment earlier", lambda: self.go(self.place.value - 2))
        self.forward = button("Forward", "One moment later", lambda: self.go(self.place.value))
        self.next_fault = button(
            "Next fault", "Where the next fault begins", partial(self._seek, self._is_fault)
        )
        self.next_exposure = button(
            "Next exposure",
            "Where the next time begins in which too few logs have what was committed",
            partial(self._seek, self._is_exposure),
        )
        self.beginning = button("Beginning", "The first moment", lambda: self.go(0))
        found = self.filmed.report.rule is not None
        self.end = button(
            "Violation" if found else "End",
            "Where the violation is found" if found else "The last moment",
            lambda: self.go(len(self.filmed.frames) - 1),
        )
        self.kinds = {
            name: w.ToggleButton(
                value=name != "Applied, acknowledged",
                description=name,
                tooltip=f"Show such lines of the record: {', '.join(kinds)}",
                layout=wide,
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
        self.picture, self.table, self.record = w.HTML(), w.HTML(), w.HTML()
        self.answer = w.HTML()
        wrap = w.Layout(flex_flow="row wrap")
        moves = [self.beginning, self.back, self.forward, self.next_fault, self.next_exposure, self.end]
        self.box: Any = w.VBox(
            [
                w.HBox([self.place, *moves], layout=wrap),
                self.answer,
                self.picture,
                self.table,
                w.HBox([*self.kinds.values(), self.words], layout=wrap),
                self.record,
            ]
        )

    # Where it is

    @property
    def frame(self) -> Frame:
        """What is shown."""
        number: int = self.place.value - 1
        return self.filmed.frames[number]

    def go(self, number: int) -> None:
        """Show this frame, counted from 0, or the nearest there is."""
        self._say("")
        self.place.value = min(max(number, 0), len(self.filmed.frames) - 1) + 1

    def go_to(self, seconds: float) -> Player:
        """Show what it was like at this time."""
        later = (number for number, frame in enumerate(self.filmed.frames) if frame.time > seconds)
        self.go(next(later, len(self.filmed.frames)) - 1)
        return self

    def _seek(self, wanted: Callable[[int], bool]) -> None:
        for number in range(self.place.value, len(self.filmed.frames)):
            if wanted(number):
                self.go(number)
                return
        self._say("There is none later than this.")

    def _is_fault(self, number: int) -> bool:
        since, until = self._lines_of(number)
        return any(line.kind == "fault" for line in self.filmed.report.record[since:until])

    def _is_exposure(self, number: int) -> bool:
        frames = self.filmed.frames
        return frames[number].too_few and not frames[number - 1].too_few

    def _lines_of(self, number: int) -> tuple[int, int]:
        """The lines of the record that were written since the frame before."""
        frames = self.filmed.frames
        until = frames[number].lines
        return (frames[number - 1].lines if number else until), until

    # What it shows

    def _show(self) -> None:
        since, until = self._lines_of(self.place.value - 1)
        self.picture.value = frame_picture(self.frame, self.title)
        self.table.value = frame_table(self.frame)
        self.record.value = record_table(self.filmed.report.record, since, until, self._wanted)
        self.back.disabled = self.beginning.disabled = self.place.value == 1
        self.forward.disabled = self.end.disabled = self.place.value == len(self.filmed.frames)

    def _wanted(self, line: Happening) -> bool:
        kinds = {kind for name, toggle in self.kinds.items() if toggle.value for kind in KINDS[name]}
        return line.kind in _ALWAYS or (line.kind in kinds and self.words.value in line.words)

    def _say(self, text: str) -> None:
        self.answer.value = f'<div role="status" aria-live="polite">{escape(text)}</div>'

    def _repr_mimebundle_(self, **options: Any) -> Any:
        bundle = dict(self.box._repr_mimebundle_(**options) or {})
        bundle["text/plain"] = in_words(self.frame)
        return bundle
