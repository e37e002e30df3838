"""What kind of an answer it is: a function, a number, some names. What is not of that kind is ``Wrong``."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Any, TypeVar

_T = TypeVar("_T")


class Wrong(Exception):
    """What is wrong with an answer: a sentence for the reader."""


def function(answer: object, name: str) -> Callable[..., Any]:
    """The reader's function, which is called ``name`` in the notebook."""
    if not callable(answer):
        raise Wrong(f"Give the function itself: check(..., {name}), without parentheses.")
    return answer


def number(answer: object, otherwise: str = "Give a number.") -> float:
    """A number, and no text with a unit."""
    if not isinstance(answer, int | float) or isinstance(answer, bool):
        raise Wrong(otherwise)
    return answer


def names(answer: Iterable[_T], known: Iterable[_T], unknown: str) -> set[_T]:
    """Some of the ``known`` ones. ``unknown`` says of one (``{}``) that it is not among them."""
    if isinstance(answer, str):
        raise Wrong('Give all of them: {"one", "another"}.')
    named = set(answer)
    if more := named - set(known):
        raise Wrong(unknown.format(min(more, key=str)))
    return named


def near(
    answer: float,
    right: float,
    mistakes: Sequence[tuple[float, str]],
    *,
    large: str,
    small: str,
    tolerance: float = 1e-9,
) -> str | None:
    """Is a number right? ``mistakes`` are other ones, each with what was overlooked.

    A number may differ by ``tolerance`` as a part of the one that it is compared with.
    """
    if abs(answer - right) <= right * tolerance:
        return None
    for wrong, why in mistakes:
        if abs(answer - wrong) <= wrong * tolerance:
            return why
    return large if answer > right else small
