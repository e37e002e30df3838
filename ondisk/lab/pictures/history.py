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
from ondisk.lab.pictures.history_layout import Layout
from ondisk.lab.pictures.history_words import client_name, headline, in_words, label, remark, shortened, times
from ondisk.linearizability import KEY_VALUE, Model, Verdict, check, conflict
from ondisk.linearizability.history import Operation

MAX_OPERATIONS = 40  # of one picture
_ROWS = 12  # of a table that is open at once


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
    remarks = [remark(each, order, marked, answer) for each in operations]
    title = headline(key, len(operations), bad, begins=answer is not None)
    words = in_words(title, operations, remarks)

    shown = _shown(operations, marked, from_the_end=bad)
    layout = Layout(shown, [each for each in order if each in shown])
    style, sign = ("bold bad", "✗") if bad else ("bold", "✓")
    parts = [text(8, 20, f"{sign} {title}", style)]
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
        (client_name(each.client), label(each), *times(each, operations), said)
        for each, said in zip(operations, remarks, strict=True)
    ]
    names = ("client", "operation", "called", "answered", "verdict")
    numbers = table(names, rows, title)
    if len(rows) > _ROWS:
        numbers = f"<details><summary>The same as a table</summary>{numbers}</details>"
    drawn = svg("History and verdict", words, width, height, parts)
    return Picture(f'{_STYLE}<div class="ondisk-history">{drawn}</div>{numbers}', words)


@dataclass(frozen=True, repr=False, kw_only=True)
class Judged(Picture):
    """A picture with the verdict that it shows."""

    verdict: Verdict


def judge(history: Sequence[Operation], *, key: str | None = None) -> Judged:
    """Is this key-value history linearizable? The verdict, drawn. Raises as ``linearizability.check``."""
    verdict = check(history)
    shown = history_picture(history, verdict, key=key)
    return Judged(shown.html, shown.words, verdict=verdict)


# A long one is as wide as it is, and scrolls: JupyterLab would shrink it until nobody can read it. (The class
# is named three times to win over its style sheet.)
_STYLE = """<style>
.ondisk svg text.number { fill: var(--jp-layout-color0, #fff); }
.ondisk-history.ondisk-history.ondisk-history svg { max-width: none; }
</style>"""


def _shown(
    operations: Sequence[Operation], marked: Sequence[Operation], *, from_the_end: bool
) -> list[Operation]:
    """As many as have room: the first ones, or the last ones and those that are marked."""
    if from_the_end:
        recent = operations[-MAX_OPERATIONS:]
        return [each for each in operations if each in recent or each in marked]
    return list(operations[:MAX_OPERATIONS])


def _lanes(layout: Layout) -> list[str]:
    parts = []
    for number, (client, row) in enumerate(layout.rows):
        y = layout.middle(number)
        if row == 0:
            top = y - 32
            parts.append(line("faint", 8, top, layout.right, top))
            parts.append(text(8, y + 5, shortened(client_name(client)), "bold"))
    return parts


def _bar(layout: Layout, place: int, operation: Operation, style: str) -> str:
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
    return titled(f"{client_name(operation.client)}: {operation}", outline + sign + name)


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
