"""Founding: who belongs to which group. Rules F and I of docs/protocol.md."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import product
from typing import Any, NamedTuple

from ondisk.simulation.model.explorer import Off, Step, most

Roster = tuple[str, ...]  # a disk for each number: ("1a", "2b", "3a"); a disk's number is its first letter
Ballot = tuple[int, Roster]  # round and roster


class Founder(NamedTuple):
    """One disk, and what stands on it."""

    disk: str
    members: str  # the list that its replica was started with, "123"
    seed: str = ""  # what was imported
    ballots: tuple[Ballot, ...] = ()  # all that it has voted for, the last one counts: (round, roster)
    group: Ballot | None = None
    lost: bool = False
    existing: bool = False  # it was erased by a rebuild: it joins its group, and founds nothing


class FoundingState(NamedTuple):
    founders: tuple[Founder, ...]
    loses: str = ""  # what may still be lost
    twins: str = ""
    shorter: bool = False  # whether `found` was said


@dataclass(frozen=True)
class Founding:
    """First starts. What a replica has heard of the others may be old: it counts as known once it was said.

    A replica may choose any round beyond its own last one, so nothing here rests on the rounds it has *seen*.
    """

    loses: str = ""  # numbers; each time one directory is deleted, and its replica started again, same list
    twins: str = ""  # numbers; each time a second directory is started beside the first
    rounds: int = 2
    shorter: str = ""  # the list that an operator gives to `found`, once
    seeds: tuple[str, ...] = ("", "", "")
    grown: bool = False  # 1 founded alone, and 2 and 3 were added since
    by_hand: bool = False  # a directory is lost without `rebuild`

    def start(self) -> FoundingState:
        if self.grown:
            group = (1, ("1a", "2a", "3a"))
            founders = tuple(Founder(f"{n}a", "1" if n == 1 else "", group=group) for n in (1, 2, 3))
        else:
            founders = tuple(Founder(f"{n}a", "123", seed) for n, seed in enumerate(self.seeds, 1))
        return FoundingState(founders, self.loses, self.twins)

    def steps(self, state: FoundingState, off: Off) -> Iterator[Step]:
        founders = state.founders

        def change(at: int, **changes: Any) -> FoundingState:
            return state._replace(
                founders=(*founders[:at], founders[at]._replace(**changes), *founders[at + 1 :])
            )

        for at, me in enumerate(founders):
            if me.lost:
                continue
            if me.group is None and not me.existing:
                for ballot in self._votes(founders, me, off):
                    words = f"{me.disk} votes for {_roster(ballot[1])} in round {ballot[0]}"
                    yield words, change(at, ballots=(*me.ballots, ballot))
                for ballot in self._founds(founders, me, off):
                    yield f"{me.disk} founds {_group(ballot)}", change(at, group=ballot)
                for group in self._joins(founders, me, off):
                    yield f"{me.disk} joins {_group(group)}", change(at, group=group)
                # F5: an operator names fewer, and those hear of it. Who has voted takes no other list
                told = state.shorter or me.disk[0] == self.shorter[:1]
                free = "F5" in off or not me.ballots
                if me.disk[0] in self.shorter and me.members != self.shorter and told and free:
                    words = f"{me.disk} is told to found with {self.shorter} only"
                    yield words, change(at, members=self.shorter)._replace(shorter=True)
            number = me.disk[0]
            name = number + chr(ord(max(f.disk[1] for f in founders if f.disk[0] == number)) + 1)
            if number in state.loses:
                marked = "F6" not in off and not self.by_hand and me.group is not None
                fresh = Founder(name, me.members, self.seeds[0], existing=marked)
                after = change(at, lost=True)
                after = after._replace(
                    founders=(*after.founders, fresh), loses=state.loses.replace(number, "", 1)
                )
                yield f"{me.disk} is lost, {number} starts again with the empty {name}", after
            if number in state.twins:
                twin = Founder(name, me.members, self.seeds[0])
                after = state._replace(founders=(*founders, twin), twins=state.twins.replace(number, "", 1))
                yield f"{name} is started as {number} too, beside {me.disk}", after

    def _votes(self, founders: tuple[Founder, ...], me: Founder, off: Off) -> Iterator[Ballot]:
        """F2, I1: a disk of each number, all with the same seed, and never back to an earlier round.

        A lost disk is not heard any more by who has heard its successor: a number has one connection.
        """
        newest = {disk[0]: disk for _, roster in me.ballots for disk in roster}
        heard = [
            other.disk
            for other in founders
            if (other.seed == me.seed or "I1" in off)
            and ("F2-last" in off or not other.lost or other.disk >= newest.get(other.disk[0], ""))
        ]
        choices = [[disk for disk in heard if disk[0] == number] for number in me.members]
        last = me.ballots[-1] if me.ballots else (0, ())
        for roster in product(*choices):
            if me.disk not in roster:
                continue
            for number in range(1, self.rounds + 1):
                ballot = (number, roster)
                if number > last[0] or ("F2" in off and ballot not in me.ballots):
                    yield ballot

    def _founds(self, founders: tuple[Founder, ...], me: Founder, off: Off) -> Iterator[Ballot]:
        """F3: all of the roster have voted for it in this round, and this replica still does."""
        for ballot in me.ballots[-1:]:
            votes = sum(ballot in f.ballots for f in founders if f.disk in ballot[1])
            if votes == len(ballot[1]) or ("F3" in off and most(votes, len(ballot[1]))):
                yield ballot

    def _joins(self, founders: tuple[Founder, ...], me: Founder, off: Off) -> Iterator[Ballot]:
        """F4: somebody is in the group for which this replica's last vote was, roster and round."""
        for group in sorted({f.group for f in founders if f.group is not None}):
            counts = me.ballots if "F4" in off else me.ballots[-1:]
            rosters = {roster for _, roster in counts}
            if group in counts or ({"F4", "F4-round"} & off and group[1] in rosters):
                yield group

    def broken(self, state: FoundingState) -> str | None:
        inside: dict[Roster, list[Founder]] = {}
        for founder in state.founders:
            if founder.group is not None and not founder.lost:
                inside.setdefault(founder.group[1], []).append(founder)
        live = sorted(roster for roster, members in inside.items() if most(len(members), len(roster)))
        if len(live) > 1:
            return f"two groups live: {_roster(live[0])} and {_roster(live[1])}"
        for roster, members in sorted(inside.items()):
            if len({founder.seed for founder in members}) > 1:
                return f"the members of {_roster(roster)} begin with different states"
        return None


def _roster(roster: Roster) -> str:
    return "{" + " ".join(roster) + "}"


def _group(ballot: Ballot) -> str:
    return f"group {_roster(ballot[1])} of round {ballot[0]}"
