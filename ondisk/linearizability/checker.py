"""Is there an order that explains a history? If not, which operations contradict each other?

A history is *linearizable* if each operation can be given one instant, between its call and its end, such
that the answers are those of a plain state machine that does one operation after the other, in the order of
these instants (Herlihy and Wing, 1990).

The search is that of Wing and Gong (1993): the first one in the order is an operation that was called before
any other one ended; try each, and go on with the rest. Lowe (2017) adds a memory: what is left to order and
the state decide about the rest, so no such *configuration* is looked at twice. As in porcupine (Athalye,
2017) each key is decided alone, because a history is linearizable if and only if that of each key is.

Operations whose outcome is unknown can be anywhere after their call, or nowhere, which makes the search
grow. Five things keep it small:

* The search ends when all operations with a known outcome are in order; the others may happen later or never.
* An operation that fits and can change nothing anywhere, such as a get, is taken at once: it only gets
  harder to place. (Not so a put of the value that is there: later it may be needed to put it back.)
* An operation with an unknown outcome is not taken where it changes nothing.
* Of two with unknown outcomes that do the same, the one that was called first is taken first.
* A configuration that has fewer of the unknown ones behind it, and is the same otherwise, can do all that
  the other one can: if it was looked at, the other one need not be.

    python -m ondisk.linearizability FILE...
"""

from __future__ import annotations

import argparse
import re
import sys
from collections.abc import Callable, Hashable, Sequence
from typing import Any, NamedTuple

from ondisk.errors import OndiskError
from ondisk.linearizability.history import BadHistory, Format, History, Operation, read_history, write_history

__all__ = [
    "KEY_VALUE",
    "REGISTER",
    "STRINGS",
    "BadHistory",
    "History",
    "Model",
    "Operation",
    "Undecided",
    "Verdict",
    "check",
    "conflict",
    "read_history",
    "write_history",
]

LIMIT = 300_000  # configurations: some ten seconds, and up to some hundred MB


_COMPARED = 32


class Undecided(OndiskError):
    """The search has become too large: too many operations overlap, or have an unknown outcome."""


class Verdict(NamedTuple):
    """What was found.

    ``orders`` has for each key an order that explains its operations; those with an unknown outcome that are
    not in it did not happen. If the history is not linearizable, then ``key`` is the one to look at. Its
    ``prefix`` are its operations up to ``answer``, the first end that no order explains, as they were known
    at that time: what had not ended by then has an unknown outcome. ``orders[key]`` explains the prefix but
    for ``answer``. (If that takes too long to find, the prefix is everything, and there is no order.)
    """

    linearizable: bool
    orders: dict[str, tuple[Operation, ...]]
    key: str | None = None
    prefix: tuple[Operation, ...] = ()
    answer: Operation | None = None

    @property
    def smallest(self) -> bool:
        """Whether ``prefix`` is known to be the smallest: without ``answer`` there is an order."""
        others = [each for each in self.prefix if each.end is not None and each != self.answer]
        return self.key is not None and (bool(self.orders[self.key]) or not others)


# What operations do


class Model(NamedTuple):
    """A state machine for one key.

    ``step(state, operation)`` says whether the operation can have answered as it did, and the state after
    it. It is a pure function. An operation without an end can have answered anything.

    An operation called ``get`` or ``read``, or that answered ``False``, changes no state whatever.
    """

    initial: Hashable
    step: Callable[[Any, Operation], tuple[bool, Any]]


_NUMBER = re.compile(r"[+-]?[0-9]{1,19}")
_INT64 = range(-(1 << 63), 1 << 63)


def _key_value(state: str | None, operation: Operation) -> tuple[bool, str | None]:
    """As ``diskkv.py`` does it. A refused command (incr of a word) was ``NotDone``, so it is not here."""
    result, free = operation.result, operation.end is None
    match operation.name, operation.args:
        case "get", ():
            return free or result == state, state
        case "put", (value,):
            return True, value
        case "delete", ():
            return free or result == (state is not None), None
        case "incr", (by,):
            if state is not None and not _NUMBER.fullmatch(state):
                return False, state
            number = int(state or 0) + by
            if number not in _INT64:  # whose digits may be too many for a string
                return False, state
            return free or result == number, str(number)
        case "compare_and_set", (expected, value):
            return free or result == (state == expected), value if state == expected else state
    raise BadHistory(f"a key-value store has no {operation.name} with {len(operation.args)} arguments")


def _register(state: str | None, operation: Operation) -> tuple[bool, str | None]:
    result, free = operation.result, operation.end is None
    match operation.name, operation.args:
        case "read", ():
            return free or result == state, state
        case "write", (value,):
            return True, value
        case "cas", (expected, value):
            return free or result == (state == expected), value if state == expected else state
    raise BadHistory(f"a register has no {operation.name} with {len(operation.args)} arguments")


def _strings(state: str, operation: Operation) -> tuple[bool, str]:
    match operation.name, operation.args:
        case "get", ():
            return operation.end is None or operation.result == state, state
        case "put", (value,):
            return True, value
        case "append", (value,):
            return True, state + value
    raise BadHistory(f"a store of strings has no {operation.name} with {len(operation.args)} arguments")


KEY_VALUE = Model(None, _key_value)  # a missing key is None
REGISTER = Model(None, _register)  # begins as nil
STRINGS = Model("", _strings)  # a missing key is the empty string

MODELS: dict[Format, Model] = {"key_value": KEY_VALUE, "register": REGISTER, "strings": STRINGS}


# The search


def check(history: Sequence[Operation], model: Model = KEY_VALUE, *, limit: int = LIMIT) -> Verdict:
    """Decide. The order of ``history`` does not matter, its times do.

    If one operation ends at the very time at which another one is called, they count as concurrent: a clock
    that cannot tell which came first must not accuse anybody. (A ``History`` never has equal times.)

    Raises ``Undecided`` if one key takes more than ``limit`` configurations and no other one has settled it,
    and ``BadHistory`` for an operation that the model does not have, or that ends before its call.
    """
    by_key: dict[str, list[Operation]] = {}
    for operation in history:
        if operation.end is not None and not operation.call <= operation.end:
            raise BadHistory(f"it ends before its call: {operation}")
        by_key.setdefault(operation.key, []).append(operation)
    orders: dict[str, tuple[Operation, ...]] = {}
    bad: list[tuple[float, Verdict]] = []
    undecided: list[Undecided] = []
    for key, operations in by_key.items():
        try:
            search = _Search(operations, model, limit)
            orders[key] = search.order
        except Undecided as error:
            undecided.append(error)
            continue
        if search.stuck is not None:
            bad.append(_smallest_prefix(search, model, limit))
            orders[key] = bad[-1][1].orders[key]
    if bad:  # the shortest prefix of the whole history
        return min(bad, key=lambda found: found[0])[1]._replace(orders=orders)
    if undecided:
        raise undecided[0]
    return Verdict(True, orders)


def _smallest_prefix(search: _Search, model: Model, limit: int) -> tuple[float, Verdict]:
    """The time of the first end that no order explains, and the verdict for this key.

    It is where the search got stuck, or later: the search knows from the start how everything will end, and
    what is under way at that end could still have another outcome. Knowing less, the search for the prefix
    may become too large; then the prefix is the whole history, which is known to be bad.
    """
    assert search.stuck is not None
    order: tuple[Operation, ...] = ()
    ends = [rank for rank in range(search.stuck, search.events) if search.answer_at(rank)]
    rank = ends[-1]
    try:
        order = _Search(search.known_at(search.stuck - 1), model, limit).order
        for rank in ends:
            now = _Search(search.known_at(rank), model, limit)
            if now.stuck is not None:
                break
            order = now.order
    except Undecided:
        rank, order = ends[-1], ()
    answer = search.answer_at(rank)
    assert answer is not None and answer.end is not None
    return answer.end, Verdict(False, {answer.key: order}, answer.key, search.known_at(rank), answer)


def conflict(
    prefix: Sequence[Operation], model: Model = KEY_VALUE, *, limit: int = 50_000
) -> tuple[Operation, ...]:
    """A smallest set of operations that cannot be ordered, *whatever* became of the others.

    ``prefix`` is not linearizable and of one key, as ``Verdict.prefix``. One operation after the other loses
    what is known of its outcome; if the contradiction stays, it was no part of it. What remains needs each of
    its operations. (To leave an operation out instead would be wrong: a get may have read what it put.)

    All decisions together look at about ``limit`` configurations; an operation that would take more than its
    share stays in the set.
    """
    weakened = list(prefix)
    share = max(50, limit // max(1, len(weakened)))
    reads_first = sorted(range(len(prefix)), key=lambda place: prefix[place].name not in ("get", "read"))
    for place in reads_first:  # a write explains more than a read of what it wrote
        if (operation := prefix[place]).end is None:
            continue
        weakened[place] = operation._replace(end=None, result=None)
        try:
            needed = check(weakened, model, limit=share).linearizable
        except Undecided:
            needed = True
        if needed:
            weakened[place] = operation
    return tuple(operation for operation in weakened if operation.end is not None)


class _Configuration(NamedTuple):
    """Where the search is. ``left`` and ``spent`` are sets of operations, as bits of a number."""

    left: int  # with a known outcome, and not in the order yet
    spent: int  # with an unknown outcome, and in the order
    state: Any


class _Search:
    """The search for an order of the operations of one key.

    Afterwards ``order`` explains them all, and ``stuck`` is ``None``; or there is none, and ``stuck`` is the
    rank of the end that the search never got past.
    """

    def __init__(self, operations: Sequence[Operation], model: Model, limit: int) -> None:
        self.operations = sorted(operations, key=lambda operation: operation.call)
        self._model = model
        self._call, self._end = _ranks(self.operations)
        alike: dict[tuple[str, tuple[Any, ...]], list[int]] = {}
        for place, operation in enumerate(self.operations):
            if operation.end is None:
                alike.setdefault((operation.name, operation.args), []).append(place)
        self._alike = list(alike.values())
        self.stuck: int | None = None
        self.order = tuple(self.operations[place] for place in self._run(limit))

    def _run(self, limit: int) -> list[int]:
        """Depth first, with a stack of the moves that were not tried yet."""
        left = sum(1 << place for place, end in enumerate(self._end) if end is not None)
        seen: set[_Configuration] = set()
        spent_before: dict[tuple[int, Any], list[int]] = {}
        order: list[int] = []
        furthest = -1
        stack = [[(-1, _Configuration(left, 0, self._model.initial))]]
        while stack:
            if not stack[-1]:
                stack.pop()
                if order:
                    order.pop()
                continue
            place, now = stack[-1].pop()
            spent = spent_before.setdefault((now.left, now.state), [])
            if now in seen or any(less & ~now.spent == 0 for less in spent):
                continue
            seen.add(now)
            if len(spent) < _COMPARED:  # to compare with all of them would cost more than it saves
                spent.append(now.spent)
            if len(seen) > limit:
                raise Undecided(
                    f"no verdict on key {self.operations[0].key!r} after {limit:,} configurations"
                )
            order.append(place)
            if not now.left:
                self.stuck = None
                return order[1:]
            first_end, moves = self._moves(now)
            furthest = max(furthest, first_end)
            stack.append(moves)
        self.stuck = furthest
        return []

    def _moves(self, now: _Configuration) -> tuple[int, list[tuple[int, _Configuration]]]:
        """The first end that lies ahead, and what can come next in the order; the best one last."""
        call, end, operations, step = self._call, self._end, self.operations, self._model.step
        first_end = len(call) * 2
        moves = []
        rest = now.left
        while rest:  # by call; who was called after one of them had ended cannot be next
            bit = rest & -rest
            rest ^= bit
            place = bit.bit_length() - 1
            if call[place] > first_end:
                break
            ended = end[place]
            assert ended is not None
            first_end = min(first_end, ended)
            fits, state = step(now.state, operations[place])
            if fits:
                moves.append((place, _Configuration(now.left ^ bit, now.spent, state)))
        for move in moves:
            if _changes_nothing(operations[move[0]]):
                return first_end, [move]
        for places in self._alike:
            place = next((place for place in places if not now.spent >> place & 1), -1)
            if place >= 0 and call[place] < first_end:
                fits, state = step(now.state, operations[place])
                if fits and state != now.state:
                    moves.append((place, _Configuration(now.left, now.spent | 1 << place, state)))
        moves.reverse()
        return first_end, moves

    @property
    def events(self) -> int:
        """How many calls and ends there are."""
        return sum(end is not None for end in self._end) + len(self._call)

    def answer_at(self, rank: int) -> Operation | None:
        """The operation whose end this is, if it is an end."""
        return self.operations[self._end.index(rank)] if rank in self._end else None

    def known_at(self, rank: int) -> tuple[Operation, ...]:
        """The operations as they were known at a call or an end: with the outcomes that had come by then."""
        return tuple(
            operation if end is None or end <= rank else operation._replace(end=None, result=None)
            for operation, call, end in zip(self.operations, self._call, self._end, strict=True)
            if call <= rank
        )


def _changes_nothing(operation: Operation) -> bool:
    """Wherever it stands in the order, given the answer that it has."""
    return operation.name in ("get", "read") or operation.result is False


def _ranks(operations: Sequence[Operation]) -> tuple[list[int], list[int | None]]:
    """The place of each call and of each end among all of them. At equal times calls come first."""
    events = [(operation.call, 0, place) for place, operation in enumerate(operations)]
    events += [(each.end, 1, place) for place, each in enumerate(operations) if each.end is not None]
    ranks = {event[1:]: rank for rank, event in enumerate(sorted(events))}
    places = range(len(operations))
    return [ranks[0, place] for place in places], [ranks.get((1, place)) for place in places]


# The command line


def main(arguments: Sequence[str] | None = None) -> int:
    """Decide about files. Returns 0 if all are linearizable, 1 if one is not, 2 if one gives no verdict."""
    parser = argparse.ArgumentParser(
        prog="python -m ondisk.linearizability",
        description="Decide whether recorded histories are linearizable.",
    )
    parser.add_argument("files", nargs="+", metavar="FILE", help="a history, in one of three formats")
    status = 0
    for file in parser.parse_args(arguments).files:
        try:
            history, about = read_history(file)
            verdict = check(history, MODELS[about])
        except BadHistory as error:
            print(error, file=sys.stderr)
            status = 2
        except Undecided as error:
            print(f"{file}: {error}", file=sys.stderr)
            status = 2
        else:
            print(f"{file}: {'' if verdict.linearizable else 'not '}linearizable")
            if not verdict.linearizable:
                print(in_lines(verdict, MODELS[about]))
                status = max(status, 1)
    return status


def in_lines(verdict: Verdict, model: Model = KEY_VALUE) -> str:
    """The smallest bad prefix as a table, by call: what contradicts, and what no order explains."""
    assert verdict.key is not None
    contradiction = list(conflict(verdict.prefix, model))
    answer = verdict.answer if verdict.smallest else None  # else the last one may be innocent
    rows = [("", "client", "call", "end", "operation")]
    for operation in verdict.prefix:
        end = "-" if operation.end is None else f"{operation.end:.10g}"
        mark = ">>" if operation == answer else "*" if operation in contradiction else ""
        rows.append((mark, str(operation.client), f"{operation.call:.10g}", end, str(operation)))
    widths = [max(len(row[column]) for row in rows) for column in range(4)]
    lines = [
        "  ".join([*(cell.ljust(width) for cell, width in zip(row, widths, strict=False)), row[4]])
        for row in rows
    ]
    what = f"key {verdict.key!r}" if verdict.key else "the register"
    said = [
        f"The first {len(verdict.prefix)} operations on {what} cannot be ordered, and without the last",
        "answer (>>) they can. It contradicts those marked *, whatever became of the rest.",
    ]
    if answer is None:
        said = [
            f"The {len(verdict.prefix)} operations on {what} cannot be ordered; with which answer it begins",
            "takes too long to find. Those marked * contradict each other, whatever became of the rest.",
        ]
    return "\n".join([*said, *lines])
