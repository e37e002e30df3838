"""Leases: for how long a leader may answer reads without asking. Rules R1 to R5 of docs/protocol.md."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import product
from typing import NamedTuple

from ondisk.simulation.model.explorer import Off, Step

_SLOW, _FAST = 1, 2  # what a clock counts while a moment passes: one counts up to twice as much as another
_E = 4  # for so long a follower promises, by its own clock
_LEASE = _E * _SLOW // _FAST


class Follower(NamedTuple):
    """One of two, and what its leader knows of it."""

    bound: int = 0  # what is left of its promise, by its own clock
    sent: int | None = None  # the age of a heartbeat that is on its way, by the leader's clock
    answered: int | None = None  # and of one whose answer is
    counted: int = 0  # for how long the leader counts on it, by its own clock
    restarted: bool = False
    disconnected: bool = False


class LeasesState(NamedTuple):
    """1 leads term 1, and 2 may come to lead term 2 with the vote of 3."""

    two: Follower = Follower()
    three: Follower = Follower()
    told: bool = False  # 1 has told 2 to stand
    ended: bool = False  # 1 has no lease any more, whoever promises
    stands: str = ""  # 2, in term 2: of its own accord, or because it was told
    elected: bool = False


@dataclass(frozen=True)
class Leases:
    """A leader that counts on promises, and three clocks that run as they like within the bound."""

    handover: bool = True

    def start(self) -> LeasesState:
        return LeasesState()

    def broken(self, state: LeasesState) -> str | None:
        if state.elected and not state.ended and (state.two.counted or state.three.counted):
            return "1 has a lease in term 1, and 2 leads term 2"
        return None

    def steps(self, state: LeasesState, off: Off) -> Iterator[Step]:
        if state.ended:
            return  # whatever happens then, there is no lease
        yield from _time(state, off)
        two, three = state.two, state.three
        for words, follower in _follower(2, two, not state.stands, off):
            yield words, state._replace(two=follower)
        for words, follower in _follower(3, three, not state.elected, off):
            yield words, state._replace(three=follower)
        if self.handover and not state.told:
            yield "1 tells 2 to stand", state._replace(told=True, ended="R5" not in off)
        if not state.stands and (not two.bound or "R1" in off):
            yield "2 stands in term 2", state._replace(stands="by itself")
        if not state.stands and state.told:
            yield "2 stands in term 2, as it was told", state._replace(stands="told")
        free = not three.bound or state.stands == "told" or "R1-vote" in off
        if state.stands and not state.elected and free:
            yield "3 votes for 2, which leads term 2", state._replace(elected=True)


def _follower(number: int, follower: Follower, follows: bool, off: Off) -> Iterator[tuple[str, Follower]]:
    """What happens between the leader and one of the others."""
    if follower.sent is None:
        yield f"1 sends {number} a heartbeat", follower._replace(sent=0)
    if follower.sent is not None and follows:
        heard = follower._replace(bound=_E, sent=None, answered=follower.sent)
        yield f"{number} hears the heartbeat, and promises", heard
    if follower.answered is not None:
        age = 0 if "R2-sent" in off else follower.answered
        lease = _E if "R2" in off else _LEASE
        if lease - age > follower.counted:
            counted = follower._replace(answered=None, counted=lease - age)
            yield f"1 hears the promise of {number}, and counts on it for {lease - age}", counted
    if not follower.disconnected:
        after = follower._replace(disconnected=True, bound=0 if "R3" in off else follower.bound)
        yield f"the connection of 1 and {number} ends", after
    if not follower.restarted:
        bound = 0 if "R4" in off else _E
        yield f"{number} is started again", follower._replace(restarted=True, bound=bound, sent=None)


def _time(state: LeasesState, off: Off) -> Iterator[Step]:
    """A moment passes, for each clock at a speed of its own."""
    useless = _E if "R2" in off else _LEASE
    for mine, second, third in product((_SLOW, _FAST), repeat=3):
        after = state._replace(
            two=_later(state.two, mine, second, useless), three=_later(state.three, mine, third, useless)
        )
        yield f"a moment passes: 1 counts {mine}, 2 counts {second}, 3 counts {third}", after


def _later(follower: Follower, mine: int, its: int, useless: int) -> Follower:
    sent, answered = follower.sent, follower.answered
    return follower._replace(
        bound=max(0, follower.bound - its),
        sent=None if sent is None else min(sent + mine, useless),
        answered=None if answered is None or answered + mine >= useless else answered + mine,
        counted=max(0, follower.counted - mine),
    )
