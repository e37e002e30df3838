"""Lives: copies of one disk. Rule O4 of docs/protocol.md."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import NamedTuple

from ondisk.simulation.model.explorer import Off, Step

Life = tuple[int, ...]  # the random numbers of all openings so far; its length is the life's number


class LivesState(NamedTuple):
    running: tuple[Life, ...] = ()  # replicas that run on a directory of this disk
    directory: Life = ()  # what lies in its place
    copy: Life | None = None
    stopped: bool = False  # a replica was told that it is a copy, and has written that down in the directory
    known: Life = ()  # the newest one that the peer has heard
    drawn: int = 0
    broken: str | None = None


@dataclass(frozen=True)
class Lives:
    """One disk and one peer. The copy is made while the disk is closed."""

    openings: int = 5

    def start(self) -> LivesState:
        return LivesState()

    def broken(self, state: LivesState) -> str | None:
        return state.broken

    def steps(self, state: LivesState, off: Off) -> Iterator[Step]:
        if state.drawn < self.openings and not state.stopped:
            life = (*state.directory, state.drawn)
            if not state.running:
                after = state._replace(running=(life,), directory=life, drawn=state.drawn + 1)
                yield f"the directory is opened: {_life(life)}", after
            if len(state.running) == 1 and state.copy is not None:
                life = (*state.copy, state.drawn)
                after = state._replace(running=(*state.running, life), copy=None, drawn=state.drawn + 1)
                yield f"the copy is opened beside it: {_life(life)}", after
        if state.running:
            yield "what runs is stopped", state._replace(running=())
        elif state.copy is None:
            yield f"a copy is made after {_life(state.directory)}", state._replace(copy=state.directory)
        else:
            words = f"the copy that knows {_life(state.copy)} is put back"
            yield words, state._replace(directory=state.copy, stopped=False)
        for life in state.running:
            # O4: the peer says which life it knows. Who never lived that one is a copy
            strange = life[: len(state.known)] != state.known
            refused = strange
            if "O4" in off:  # only the numbers of the lives are compared, and the newest random number
                refused = len(life) <= len(state.known) and life != state.known
            if refused:
                left = tuple(other for other in state.running if other != life)
                stopped = state.stopped or ("O4" not in off and life == state.directory)
                words = f"the peer refuses {_life(life)}, which stops"
                yield words, state._replace(running=left, stopped=stopped)
                continue
            broken = f"{_life(life)} is believed, but never was {_life(state.known)}" if strange else None
            yield f"the peer hears {_life(life)}", state._replace(known=life, broken=broken)


def _life(life: Life) -> str:
    return f"life {len(life)}" + (f" ({' '.join(map(str, life))})" if life else "")
