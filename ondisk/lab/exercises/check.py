"""Exercises: ``check("3.2", answer)`` says what is wrong without giving the answer, ``hint("3.2")`` helps.

The exercises of chapter 3 live in ``chapter_03.py``, which is imported when the first of them is asked for.
Each is one function that looks at an answer:

    @exercise("3.2", points=2, hints=["The first.", "A clearer one.", "Nearly the solution."])
    def counts_the_letters(answer: str) -> str | None:
        return None if answer == "right" else "It has too many letters."

``check`` keeps what it was shown last, and ``lab.grade("3.2")`` (``referee``) gives points for that.
"""

from __future__ import annotations

import importlib
import os
import re
import signal
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from html import escape
from typing import Any

from ondisk.lab import learner
from ondisk.lab.exercises.answers import Wrong

HINTS = 3
SECONDS = float(os.environ.get("ONDISK_CHECK_SECONDS", "100"))
"""For so long an answer may take: the cell would never end else, and neither would whoever grades it."""

Decide = Callable[..., str | None]
"""Takes the answer as ``check`` got it; returns ``None`` if it is right, or a sentence: what is wrong."""


@dataclass(frozen=True, repr=False)
class Feedback:
    """What ``check`` found. The last value of a cell is shown; ``right`` is for programs."""

    number: str
    right: bool
    text: str
    hints: tuple[str, ...] = ()

    def __repr__(self) -> str:
        return f"{self.number}: {self.text}"

    def _repr_html_(self) -> str:
        mark = "&#10003;" if self.right else "&#9998;"
        return (
            f'<div role="status"><b>{mark} Exercise {escape(self.number)}.</b> '
            f'<span style="white-space:pre-line">{escape(self.text)}</span></div>{_folded(self.hints)}'
        )


def _folded(hints: Sequence[str], number: int = 1) -> str:
    """One inside the other, so that the next one is seen when the one before was opened."""
    if not hints:
        return ""
    inside = f"{escape(hints[0])}{_folded(hints[1:], number + 1)}"
    return f"<details><summary>Hint {number} of {HINTS}</summary>{inside}</details>"


class _Exercise:
    def __init__(self, decide: Decide, points: int, hints: Sequence[str], solution: str) -> None:
        self.decide = decide
        self.points = points
        self.hints = tuple(hints)
        self.solution = solution
        self.given = 0  # hints so far


_exercises: dict[str, _Exercise] = {}
_answers: dict[str, tuple[Any, ...]] = {}  # by exercise: what check was shown last


class OutOfTime(BaseException):
    """Raised in the middle of an answer that takes too long. No ``Exception``, which the answer may catch."""


def exercise(number: str, *, points: int = 1, hints: Sequence[str]) -> Callable[[Decide], Decide]:
    """Register the function below as the one that decides about exercise ``number``, such as ``"3.2"``.

    It returns what is wrong, or raises it as ``Wrong``. Any other error is shown to the reader as part of the
    feedback: the answer is not of the kind that was expected. ``points`` is what a right answer is worth.
    ``hints`` are three, each one clearer than the one before.
    """
    chapter = _chapter(number)
    if len(hints) != HINTS:
        raise ValueError(f"exercise {number} has {len(hints)} hints, not {HINTS}")

    def register(decide: Decide) -> Decide:
        _exercises[number] = _Exercise(decide, points, hints, f"notebooks/solutions/{chapter:02}-*.ipynb")
        return decide

    return register


def exercises(chapter: int) -> list[str]:
    """The numbers of a chapter's exercises, in order: ``["3.1", "3.2"]``. Empty if it has none."""
    _load(chapter)
    return sorted(number for number in _exercises if _chapter(number) == chapter)


def check(number: str, *answer: Any) -> Feedback:
    """Look at an answer. ``...`` stands for one that is not there yet. A wrong answer raises nothing.

    Raises ``LookupError`` for an exercise that does not exist.
    """
    _find(number)
    _answers[number] = answer
    found = decide(number, answer)
    if _is_there(answer):
        learner.note(exercise=number, right=found.right)
    return found


def decide(number: str, answer: Sequence[Any], seconds: float = SECONDS) -> Feedback:
    """What is to be said about an answer, within so many seconds. Nobody keeps it."""
    found = _find(number)
    if not _is_there(answer):
        return Feedback(number, False, "No answer yet: put yours in place of the three dots.", found.hints)
    try:
        with _at_most(seconds):
            wrong = found.decide(*answer)
    except Wrong as error:
        wrong = str(error)
    except OutOfTime:
        wrong = f"Your answer took more than {seconds:g} s. Does it come to an end?"
    except SyntaxError as error:
        wrong = f"This is no Python yet, in line {error.lineno}: {error.msg}."
    except Exception as error:
        wrong = f"Your answer could not be checked. {type(error).__name__}: {error}"
    if wrong is None:
        return Feedback(number, True, "Right.")
    return Feedback(number, False, wrong, found.hints)


def _is_there(answer: Sequence[Any]) -> bool:
    return bool(answer) and not any(part is ... or part is None for part in answer)


def last_answer(number: str) -> tuple[Any, ...]:
    """What ``check`` was shown last for this exercise; nothing if it never was."""
    _find(number)
    return _answers.get(number, ())


def points(number: str) -> int:
    """What a right answer is worth. Raises ``LookupError`` for an exercise that does not exist."""
    return _find(number).points


@contextmanager
def _at_most(seconds: float) -> Iterator[None]:
    """Raise ``OutOfTime`` in this block after so long. Only the main thread can be told: a kernel's cells."""
    if threading.current_thread() is not threading.main_thread() or not hasattr(signal, "setitimer"):
        yield
        return

    def over(signum: int, frame: object) -> None:
        raise OutOfTime

    former = signal.signal(signal.SIGALRM, over)
    signal.setitimer(signal.ITIMER_REAL, seconds)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, former)


def hint(number: str) -> Feedback:
    """The next hint, each time you ask. Raises ``LookupError`` for an exercise that does not exist."""
    found = _find(number)
    if found.given == HINTS:
        return Feedback(number, False, f"There are no more hints. A solution is in {found.solution}.")
    found.given += 1
    return Feedback(number, False, f"Hint {found.given} of {HINTS}: {found.hints[found.given - 1]}")


def _chapter(number: str) -> int:
    if re.fullmatch(r"[1-9][0-9]?\.[1-9]", number) is None:
        raise LookupError(f'{number!r} is not the number of an exercise, such as "3.2"')
    return int(number.partition(".")[0])


def _load(chapter: int) -> None:
    name = f"ondisk.lab.exercises.chapter_{chapter:02}"
    try:
        importlib.import_module(name)
    except ModuleNotFoundError as error:
        if error.name != name:
            raise


def _find(number: str) -> _Exercise:
    known = exercises(_chapter(number))
    if number not in _exercises:
        raise LookupError(f"there is no exercise {number}; this chapter has {', '.join(known) or 'none'}")
    return _exercises[number]
