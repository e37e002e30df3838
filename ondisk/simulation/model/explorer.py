"""The explorer: visit every state that can be reached, nearest first.

So the first state that breaks an invariant comes with a shortest way to it.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Protocol

Step = tuple[str, Any]  # what happens, in words, and the state after it
Off = frozenset[str]  # the rules that are switched off


class Model(Protocol):
    """What `explore` needs: where it begins, what can happen, what must never be."""

    def start(self) -> Any: ...

    def steps(self, state: Any, off: Off) -> Iterator[Step]: ...

    def broken(self, state: Any) -> str | None: ...


@dataclass(frozen=True)
class Outcome:
    """The outcome: how many states, and the shortest way to a broken one if there is any."""

    states: int
    broken: str | None = None
    steps: tuple[str, ...] = ()

    def __str__(self) -> str:
        lines = [f"{number:2}. {step}" for number, step in enumerate(self.steps, 1)]
        return "\n".join([*lines, f"=> {self.broken}"])


def explore(model: Model, *without: str, limit: int = 3_000_000) -> Outcome:
    """Visit every state, breadth first, ``without`` these rules. Raises `MemoryError` beyond ``limit``."""
    off = frozenset(without)
    start = model.start()
    came: dict[Any, tuple[Any, str]] = {start: (None, "")}
    level = [start]
    while level:
        following = []
        for state in level:
            for words, after in model.steps(state, off):
                if after in came:
                    continue
                came[after] = (state, words)
                broken = model.broken(after)
                if broken:
                    return Outcome(len(came), broken, _way(came, after))
                following.append(after)
        if len(came) > limit:
            raise MemoryError(f"more than {limit} states: the bounds of {model} are too wide")
        level = following
    return Outcome(len(came))


def _way(came: dict[Any, tuple[Any, str]], state: Any) -> tuple[str, ...]:
    steps: list[str] = []
    while came[state][0] is not None:
        state, words = came[state]
        steps.append(words)
    return tuple(reversed(steps))


def replay(model: Model, steps: tuple[str, ...], *without: str) -> int:
    """How many of these steps can be taken one after the other, beginning with the first."""
    off = frozenset(without)
    state = model.start()
    for taken, step in enumerate(steps):
        after = {after for words, after in model.steps(state, off) if words == step}
        if not after:
            return taken
        (state,) = after  # or the words are not clear
    return len(steps)


def most(some: int, of: int) -> bool:
    """Whether ``some`` are a majority."""
    return 2 * some > of
