"""Reads: what an answer proves, and when. Rules E1 and O2 of docs/protocol.md."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import NamedTuple

from ondisk.simulation.model.explorer import Off, Step


class ReadsState(NamedTuple):
    """1a led term 1, and may not know that 2a was elected in term 2."""

    round: int = 1  # the newest that 1a has sent
    answers: frozenset[tuple[str, int]] = frozenset()  # disk and round: said in term 1, and on the way to 1a
    deposed: bool = False  # 2a leads term 2, with the vote of 3a
    written: bool = False  # a write was acknowledged in term 2
    lost: bool = False  # 3a; and 3b knows nothing of term 2
    read: int = 0  # the round that was sent when the read began
    stale: bool = False  # the write was acknowledged before that
    answered: bool = False


@dataclass(frozen=True)
class Reads:
    """A leader that was deposed, cut off or frozen, and does not know it, is asked for a read."""

    rounds: int = 3

    def start(self) -> ReadsState:
        return ReadsState()

    def broken(self, state: ReadsState) -> str | None:
        late = state.answered and state.stale
        return "the read began after a write was acknowledged, and misses it" if late else None

    def steps(self, state: ReadsState, off: Off) -> Iterator[Step]:
        if state.round < self.rounds:
            yield f"1a sends round {state.round + 1}", state._replace(round=state.round + 1)
            if not state.read:
                words = f"1a is asked for a read, and sends round {state.round + 1}"
                begun = state._replace(round=state.round + 1, read=state.round + 1, stale=state.written)
                yield words, begun
        follows = [] if state.deposed else ["2a", "3a"]
        if state.lost:
            follows = [name for name in follows if name == "2a"] + ["3b"]
        for name in follows:
            for number in range(1, state.round + 1):
                answers = state.answers | {(name, number)}
                if answers != state.answers:
                    yield f"{name} answers round {number}", state._replace(answers=answers)
        if not state.deposed and not state.lost:
            yield "2a is elected in term 2, with the vote of 3a", state._replace(deposed=True)
        if state.deposed and not state.lost and not state.written:
            yield "2a acknowledges a write that it and 3a hold", state._replace(written=True)
        if not state.lost:
            yield "3a is lost, 3 starts again with the empty 3b", state._replace(lost=True)
        for name, number in sorted(state.answers):
            # E1: an answer proves what was so when its round was sent. Without it: when it was heard
            proof = "E1" in off or number >= state.read
            named = "O2" in off or name != "3b"
            if state.read and not state.answered and proof and named:
                words = f"1a hears the answer of {name} to round {number}, and answers the read"
                yield words, state._replace(answered=True)
