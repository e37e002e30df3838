"""A history with its verdict, drawn: operations and a ``Verdict`` go in, SVG and a table come out.

Time runs to the right, in order but not to scale: an answer takes a millisecond and a click a second. Each
client has a lane, each operation a bar from its call to its end. Numbered discs are the instants at which
the operations can have happened, in an order that explains every answer; if there is no such order, signs
mark the operations that contradict each other.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

from ondisk.lab.pictures.drawing import (
    Picture,
    box,
    clip,
    cross,
    disc,
    line,
    lines,
    polygon,
    svg,
    table,
    text,
    titled,
)
from ondisk.linearizability import KEY_VALUE, Model, Verdict, check, conflict
from ondisk.linearizability.history import Operation

MAX_OPERATIONS = 40  # of one picture
_ROWS = 12  # of a table that is open at once

_LEFT, _TOP, _ROW = 120, 58, 46
_GAP, _POINT = 20, 19  # pixels from one event to the next, and from one disc to the next
_LETTER = 7.0  # pixels, about


def history_picture(
    history: Sequence[Operation], verdict: Verdict, *, key: str | None = None, model: Model = KEY_VALUE
) -> Picture:
    """The operations on one key, as ``verdict = check(history, model)`` judges them; and as a table.

    Without ``key`` it is the one that cannot be ordered, of which the smallest bad prefix is drawn; if all
    can be ordered, it is the one with the most operations.
    """
    if key is None:
        counted = Counter(operation.key for operation in history)
        key = verdict.key if verdict.key is not None else max(counted, key=counted.__getitem__, default="")
    bad = not verdict.linearizable and key == verdict.key
    operations = list(verdict.prefix) if bad else [each for each in history if each.key == key]
    operations.sort(key=lambda operation: operation.call)
    marked = conflict(verdict.prefix, model) if bad else ()
    order = () if bad else verdict.orders.get(key, ())
    answer = verdict.answer if bad and verdict.smallest else None  # else the last one may be innocent
    said = [_remark(each, order, marked, answer) for each in operations]
    headline = _headline(key, len(operations), bad, begins=answer is not None)
    words = _in_words(headline, operations, said)

    shown = _shown(operations, marked, from_the_end=bad)
    layout = _Layout(shown, [each for each in order if each in shown])
    style, sign = ("bold bad", "✗") if bad else ("bold", "✓")
    parts = [text(8, 20, f"{sign} {headline}", style)]
    if (more := len(operations) - len(shown)) > 0:
        parts.append(text(8, 40, f"{more} {'earlier' if bad else 'later'} operations are in the table only"))
    parts += _lanes(layout)
    for place, operation in enumerate(shown):
        style = "" if operation not in marked else "answer" if operation == answer else "conflict"
        parts.append(_bar(layout, place, operation, style))
    for place, x in layout.instants:
        number, y = order.index(shown[place]) + 1, layout.y(place)
        parts.append(disc(x, y, 8.5) + text(x, y + 4, number, "small bold number", "middle"))
    width, height = max(840, layout.width + 8), layout.bottom + 34
    parts.append(_legend(height - 10, bad, begins=answer is not None))
    rows = [
        (_client(each.client), label(each), *_times(each, operations), remark)
        for each, remark in zip(operations, said, strict=True)
    ]
    names = ("client", "operation", "called", "answered", "verdict")
    numbers = table(names, rows, headline)
    if len(rows) > _ROWS:
        numbers = f"<details><summary>The same as a table</summary>{numbers}</details>"
    drawn = svg("History and verdict", words, width, height, parts)
    return Picture(f'{_STYLE}<div class="ondisk-history">{drawn}</div>{numbers}', words)


@dataclass(frozen=True, repr=False)
class Judged(Picture):
    """A picture with the verdict that it shows."""

    verdict: Verdict


def judge(history: Sequence[Operation], *, key: str | None = None) -> Judged:
    """Is this key-value history linearizable? The verdict, drawn. Raises as ``linearizability.check``."""
    verdict = check(history)
    shown = history_picture(history, verdict, key=key)
    return Judged(shown.html, shown.words, verdict)


# A long one is as wide as it is, and scrolls: JupyterLab would shrink it until nobody can read it. (The class
# is named three times to win over its style sheet.)
_STYLE = """<style>
.ondisk svg text.number { fill: var(--jp-layout-color0, #fff); }
.ondisk-history.ondisk-history.ondisk-history svg { max-width: none; }
</style>"""


def label(operation: Operation) -> str:
    """``put blue``, ``get → nothing``, ``incr 1 → ?``; its key is named elsewhere."""
    said = f"{operation.name} {', '.join(map(_shortened, operation.args))}".strip()
    if operation.end is None:
        return f"{said} → ?"
    if operation.name in ("get", "read") or operation.result is not None:
        return f"{said} → {_shortened(operation.result)}"
    return said


def _shortened(value: object) -> str:
    """Without what cannot be shown, and not too long."""
    if value is None or isinstance(value, bool):
        return {None: "nothing", True: "yes", False: "no"}[value]
    return clip("".join(letter if letter.isprintable() else "�" for letter in str(value)) or "(empty)", 16)


def _client(client: int | str) -> str:
    return f"client {client}" if isinstance(client, int) else client


# What is said


def _headline(key: str, count: int, bad: bool, begins: bool) -> str:
    on = f" on {_shortened(key)!r}" if key else ""  # a register has no name
    if bad:
        return f"Not linearizable: no order explains the {'first ' if begins else ''}{count} operations{on}"
    return f"Linearizable: an order explains all {count} operations{on}"


def _remark(
    operation: Operation, order: Sequence[Operation], marked: Sequence[Operation], answer: Operation | None
) -> str:
    """A place in the order, or a part in the contradiction, and whether the outcome is known."""
    if operation in marked:
        return "no order explains this answer" if operation == answer else "part of the contradiction"
    number = f"number {order.index(operation) + 1} in the order" if operation in order else ""
    if operation.end is not None:
        return number
    return f"outcome unknown{': it happened, ' + number if number else ''}"


def _in_words(headline: str, operations: Sequence[Operation], remarks: Sequence[str]) -> str:
    """Everything the picture shows, as sentences: its alternative text."""
    said = [
        f"{_client(operation.client)}: {label(operation)}{f' ({remark})' if remark else ''}"
        for operation, remark in zip(operations, remarks, strict=True)
    ]
    return f"{headline}. In the order of their calls: {'; '.join(said)}."


def _times(operation: Operation, operations: Sequence[Operation]) -> tuple[str, str]:
    """Since the first call; in seconds, if the clock counts seconds."""
    began = operations[0].call
    end = "never" if operation.end is None else f"{operation.end - began:.3f}"
    return f"{operation.call - began:.3f}", end


# What is drawn


def _shown(
    operations: Sequence[Operation], marked: Sequence[Operation], *, from_the_end: bool
) -> list[Operation]:
    """As many as have room: the first ones, or the last ones and those that are marked."""
    if from_the_end:
        recent = operations[-MAX_OPERATIONS:]
        return [each for each in operations if each in recent or each in marked]
    return list(operations[:MAX_OPERATIONS])


class _Layout:
    """Where everything is, in pixels. A client has several rows if its operations overlap."""

    def __init__(self, operations: Sequence[Operation], order: Sequence[Operation]) -> None:
        events = [(each.call, 0, place) for place, each in enumerate(operations)]
        events += [(each.end, 1, place) for place, each in enumerate(operations) if each.end is not None]
        events.sort()  # at equal times the calls first, as for the checker
        called = {place: number for number, (_, is_end, place) in enumerate(events) if not is_end}

        rows: list[tuple[int | str, int]] = []  # of each operation
        busy: set[tuple[int | str, int]] = set()
        for _, is_end, place in events:
            client = operations[place].client
            if is_end:
                busy.remove(rows[place])
                continue
            rows.append(next((client, row) for row in range(len(busy) + 1) if (client, row) not in busy))
            busy.add(rows[place])
        clients = list(dict.fromkeys(client for client, _ in rows))
        self.rows = sorted(set(rows), key=lambda row: (clients.index(row[0]), row[1]))
        self._row = [self.rows.index(row) for row in rows]

        # An instant is after the call and after the instant before it; some lie between the same two events.
        instants: list[
            tuple[int, int, int]
        ] = []  # of which operation, after which event, the how manieth there
        after, number = -1, 0
        for operation in order:
            place = operations.index(operation)
            after, number = (called[place], 1) if called[place] > after else (after, number + 1)
            instants.append((place, after, number))
        crowd = Counter(after for _, after, _ in instants)

        # An event keeps clear of the discs before it, and a call of the text before it in its row.
        x, at = float(_LEFT), list[float]()
        text_until: dict[int, float] = {}
        for event, (_, is_end, place) in enumerate(events):
            x += max(_GAP, _POINT * (crowd[event - 1] + 1)) if event else 0
            if not is_end:
                row = self._row[place]
                x = max(x, text_until.get(row, 0) + 12)
                text_until[row] = x + _LETTER * len(label(operations[place]))
            at.append(x)
        self.right = max([*text_until.values(), x + _POINT * (crowd[len(events) - 1] + 1)]) + _GAP
        at.append(self.right)
        self.begins = [at[called[place]] for place in range(len(operations))]
        ends = {place: at[event] for event, (_, is_end, place) in enumerate(events) if is_end}
        self.ends = [ends.get(place) for place in range(len(operations))]
        self.instants = [
            (place, at[after] + (at[after + 1] - at[after]) * number / (crowd[after] + 1))
            for place, after, number in instants
        ]
        self.width = round(self.right) + 20
        self.bottom = _TOP + _ROW * len(self.rows)

    def y(self, place: int) -> int:
        """The middle of an operation's bar."""
        return self.middle(self._row[place])

    def middle(self, row: int) -> int:
        """The middle of a row's bars."""
        return _TOP + _ROW * row + 26


def _lanes(layout: _Layout) -> list[str]:
    parts = []
    for number, (client, row) in enumerate(layout.rows):
        y = layout.middle(number)
        if row == 0:
            top = y - 32
            parts.append(line("faint", 8, top, layout.right, top))
            parts.append(text(8, y + 5, _shortened(_client(client)), "bold"))
    return parts


def _bar(layout: _Layout, place: int, operation: Operation, style: str) -> str:
    """From the call to the end; open to the right if there is none. Below it what is wrong with it."""
    x, end, y = layout.begins[place], layout.ends[place], layout.y(place)
    bad = " bad" if style else ""
    width = ' stroke-width="3"' if style else ""
    if end is None:
        edge = layout.right
        outline = f'<path class="card off{bad}"{width} d="M{edge:.0f} {y - 8}H{x:.0f}v16H{edge:.0f}"/>'
        outline += lines("line", [(edge - 6, y - 4), (edge, y), (edge - 6, y + 4)])
    else:
        outline = box(f"card{bad}", x, y - 8, end - x, 16, f'{width} rx="2"')
    sign = ""
    if style:
        middle = (x + (end or layout.right)) / 2
        sign = _cross(middle, y) if style == "answer" else _triangle(middle, y)
    name = text(x, y - 13, label(operation), "small bold" if style else "small")
    return titled(f"{_client(operation.client)}: {operation}", outline + sign + name)


def _cross(x: float, y: float) -> str:
    return cross(x, y, half=6, width=3)


def _triangle(x: float, y: float) -> str:
    return polygon("badfill", [(x, y - 7), (x + 8, y + 6), (x - 8, y + 6)])


def _legend(y: int, bad: bool, begins: bool) -> str:
    if bad and not begins:
        return _triangle(16, y - 4) + text(
            30,
            y,
            "what contradicts itself, whatever became of the rest; "
            "with which answer that begins takes too long to find",
        )
    if bad:
        return (
            _cross(16, y - 4)
            + text(30, y, "the answer that no order explains")
            + _triangle(258, y - 4)
            + text(
                272,
                y,
                "what it contradicts, whatever became of the rest; an open end: outcome unknown then",
            )
        )
    return disc(16, y - 4, 7) + text(
        30,
        y,
        "the order, and when each can have happened; "
        "an open end: outcome unknown; time runs to the right, not to scale",
    )
