"""The exercises of notebook 5: failures and histories."""

from __future__ import annotations

import random
from collections.abc import Iterable, Sequence

from ondisk.lab.exercises.answers import function, names
from ondisk.lab.exercises.check import exercise
from ondisk.lab.pictures.history_words import label
from ondisk.linearizability import KEY_VALUE, check, conflict
from ondisk.linearizability.history import Operation

# 5.1: what a get may answer

PUTS = (
    Operation("A", "put", "k", ("a",), 0, 2),
    Operation("B", "put", "k", ("b",), 1, 3),
    Operation("A", "put", "k", ("c",), 4, 9),
    Operation("C", "put", "k", ("d",), 5, None),
    Operation("B", "put", "k", ("e",), 8, 9),
)
"""The puts of the exercise. A get of client D lasts from 6 to 7."""

_VALUES = ("a", "b", "c", "d", "e", None)


def may_answer(value: str | None) -> bool:
    """Whether the get may answer so."""
    return check([*PUTS, Operation("D", "get", "k", (), 6, 7, value)]).linearizable


@exercise(
    "5.1",
    hints=[
        "For each value: can all have their instants so that this put is the last one before the get?",
        "Two puts that overlap may come in either order. One without an end may be anywhere after its call.",
        "None is the answer before any put, and e was put after the get had ended. The rest can come last.",
    ],
)
def what_a_get_may_answer(answer: Iterable[str | None]) -> str | None:
    """``answer`` names values."""
    named = names(answer, _VALUES, "Nobody put {!r}.")
    for value in _VALUES:
        if value in named and not may_answer(value):
            return f"{value!r} contradicts what has ended before the get, or was called after it."
    if not named:
        return "A get that ends answers something: name what that can be."
    if len(named) < sum(may_answer(value) for value in _VALUES):
        return "All that you name are possible, and not these alone."
    return None


# 5.2: a contradiction of three


@exercise(
    "5.2",
    points=2,
    hints=[
        "Each operation is a tuple: client, name, key, arguments, call, end, result.",
        "A get that reads what nobody put contradicts by itself. So it must read something that was put.",
        "Two puts, one after the other, and a get after both. Which of the two values is wrong?",
    ],
)
def three_that_cannot_be_ordered(answer: Sequence[Operation]) -> str | None:
    """``answer`` is a history."""
    history = [Operation(*operation) for operation in answer]
    if len(history) != 3:
        return f"These are {len(history)} operations, not three."
    if len({operation.key for operation in history}) != 1:
        return "Operations on different keys never contradict each other."
    verdict = check(history)
    if verdict.linearizable:
        order = ", ".join(map(label, verdict.orders[history[0].key])) or "none of them need have happened"
        return f"It is linearizable: {order}."
    needed = conflict(history)
    if len(needed) < 3:
        return (
            "It is not linearizable, but these alone contradict each other, whatever became of the rest: "
            f"{', '.join(map(label, needed))}."
        )
    return None


# 5.3: the definition

_TRIALS = 400
_NOT_NEIGHBOURS = [  # the third had ended before the first was called; the second overlaps with both
    Operation(number, "get", "k", (), call, end, None)
    for number, (call, end) in enumerate([(5, 6), (0, 9), (1, 2)])
]


def _is_explained_by(order: Sequence[Operation]) -> str | None:
    """What is wrong with an order of operations that have all ended; ``None`` if it explains them."""
    for place, later in enumerate(order):
        for earlier in order[:place]:
            assert later.end is not None
            if later.end < earlier.call:
                return f"{label(later)} had ended before {label(earlier)} was called, but comes after it."
    state = None
    for operation in order:
        fits, state = KEY_VALUE.step(state, operation)
        if not fits:
            return f"{label(operation)} is not what the operations before it have left."
    return None


@exercise(
    "5.3",
    points=2,
    hints=[
        "Two things can be wrong with an order: somebody's answer, or who comes before whom.",
        "For the answers keep one variable: a put sets it, and a get must have it as its result.",
        "For each pair, earlier and later in the list: it is wrong if later.end < earlier.call.",
    ],
)
def explains_an_order(answer: object) -> str | None:
    """``answer`` takes a list of operations in an order, and says whether it explains them."""
    explains = function(answer, "explains")
    draw = random.Random(5)
    orders = [_an_order(draw, few=number < _TRIALS // 2) for number in range(_TRIALS)]
    for order in [*orders, _NOT_NEIGHBOURS]:
        wrong = _is_explained_by(order)
        said = explains(list(order))
        if said is None or said is ...:
            return "It returns nothing. It should return True or False."
        if bool(said) != (wrong is None):
            shown = "; ".join(f"{label(each)} from {each.call:g} to {each.end:g}" for each in order)
            truth = f"It does not: {wrong}" if wrong else "It does: all is in order."
            return f"Does this order explain them? {shown}. You say {bool(said)}. {truth}"
    return None


def _an_order(draw: random.Random, *, few: bool) -> list[Operation]:
    """Mostly right: wrong in one place or in none."""
    time, state = 0.0, None
    order = []
    for number in range(draw.randint(1, 3 if few else 6)):
        time += draw.randint(1, 3)
        call, end = time - draw.randint(0, 2), time + draw.randint(0, 2)
        if draw.random() < 0.5:
            state = draw.choice(("blue", "green"))
            order.append(Operation(number, "put", "k", (state,), call, end))
        else:
            order.append(Operation(number, "get", "k", (), call, end, state))
    wrong = draw.randrange(3)
    place = draw.randrange(len(order))
    if wrong == 1 and order[place].name == "get":
        order[place] = order[place]._replace(result=draw.choice((None, "blue", "green")))
    if wrong == 2 and place:
        order[place - 1], order[place] = order[place], order[place - 1]
    return order


# 5.4: the reader's own clicks


@exercise(
    "5.4",
    points=2,
    hints=[
        "Which of the buttons promises nothing about how old its answer is?",
        "Make a replica fall behind: cut it off, or stall it. Then change the value.",
        "Put, cut off a follower, put another value, and press Stale get through that follower.",
    ],
)
def clicks_that_are_not_linearizable(answer: Sequence[Operation]) -> str | None:
    """``answer`` is what was asked in a panel."""
    history = [Operation(*operation) for operation in answer]
    if not history:
        return "Nothing was asked yet. Press something, and hand over panel.history.operations."
    if not check(history).linearizable:
        return None
    if not any(operation.name == "get" for operation in history):
        return "Nobody has read anything: whoever does not look cannot be deceived."
    return f"There is an order that explains all {len(history)} operations. Every answer could be right."
