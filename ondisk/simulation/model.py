"""The rules of docs/protocol.md, small enough to be explored to the end.

No bytes, no clocks, no threads: a state is a tuple, a step is one thing that a replica does, a message that
arrives, or a fault. `explore` visits every state that can be reached, nearest first, so the first one that
breaks an invariant comes with a shortest way to it. Each rule has a name and can be switched off: without
it there should be such a way, or the rule is not needed for safety (`NOT_FOR_SAFETY` says what for).

Four small models instead of a big one, each with what the others leave out:

- `Founding`: who belongs to which group. Rules F and I.
- `Raft`: elections, the log, its members and their disks. Rules O1, O2, C, E3, L.
- `Reads`: what an answer proves, and when. Rules E1, O2.
- `Lives`: copies of one disk. Rule O4.

Messages are not kept one by one. What was once said can arrive at any later time, or never, or twice; so a
vote or an acknowledgement stays in the state for ever, and a replica may act on it or not. That is more than
FIFO links allow, hence what holds here holds there. A partition is a message that does not arrive.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import product
from typing import Any, NamedTuple, Protocol

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


# ---------------------------------------------------------------------------------------------- founding

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


# -------------------------------------------------------------------------------------- elections, members


class Members(NamedTuple):
    """The configuration. A voter is a disk: "3a"; or "3", any legacy disk of 3; or "3?", not known yet."""

    voters: frozenset[str]
    learners: frozenset[str] = frozenset()  # numbers
    replaced: frozenset[str] = frozenset()  # disks

    def __str__(self) -> str:
        learners = f", learner {' '.join(sorted(self.learners))}" if self.learners else ""
        return "{" + " ".join(sorted(self.voters)) + learners + "}"


class Entry(NamedTuple):
    term: int
    members: Members | None = None


Log = tuple[Entry, ...]
Vote = tuple[int, str, str]  # term, voter, candidate
Ack = tuple[int, str, int]  # term, disk, index
STRANGER = "9x"  # a disk of another group


class Disk(NamedTuple):
    """A replica, with its memory."""

    name: str
    inside: bool = True  # whether it belongs to the group
    legacy: bool = False  # its directory is of the version before
    lost: bool = False
    term: int = 0
    vote: str = ""
    log: Log = ()
    role: str = "follower"
    commit: int = 0


class RaftState(NamedTuple):
    disks: tuple[Disk, ...]
    votes: frozenset[Vote]  # what was said
    acks: frozenset[Ack]  # what was said
    committed: Log = ()  # by whichever leader; for the invariants only
    committed_in: int = 0  # the term of that leader
    writes: int = 0
    changes: int = 0
    losses: int = 0
    broken: str | None = None


@dataclass(frozen=True)
class Raft:
    """A group with a leader 1a of term 1, whose first entry everybody holds and knows to be committed."""

    voters: str = "123"
    legacy: bool = False  # a directory of the version before: voters are numbers
    learner: str = ""  # a number that is fed already
    stands: tuple[tuple[int, str], ...] = ((2, "2"), (3, "1"))  # who may stand for election in which term
    writes: int = 1
    losses: int = 0
    loses: str = ""  # numbers whose disks may be lost
    twins: str = ""  # a number for which one or two empty disks come while the first one lives
    changes: int = 0
    replaces: str = ""  # numbers whose disk a leader may replace
    removes: str = ""
    copies: str = (
        ""  # numbers whose directory may be put back as it was at first; nobody there has heard better
    )
    stranger: bool = False  # the leader of another group reaches ours
    parts: bool = True  # followers may take over a part of what the leader sends, and not only all of it
    identify: str = ""  # the disks that a legacy leader knows when it gives the group its identity

    def start(self) -> RaftState:
        names = [number + "a" for number in self.voters]
        voters = frozenset(self.voters) if self.legacy else frozenset(names)
        log = (Entry(1, Members(voters, frozenset(self.learner))),)
        names += [number + "a" for number in self.learner]
        disks = [Disk(name, True, self.legacy, False, 1, "1a", log) for name in names]
        disks[0] = disks[0]._replace(role="leader", commit=1)
        if self.stranger:
            theirs = (Entry(2, Members(frozenset({STRANGER}))),)
            disks.append(Disk(STRANGER, False, False, False, 2, STRANGER, theirs, "leader", 1))
        disks += [Disk(number + "bc"[at], inside=False) for at, number in enumerate(self.twins)]
        acks = frozenset((1, name, 1) for name in names)
        return RaftState(tuple(disks), frozenset(), acks, log, 1)

    def broken(self, state: RaftState) -> str | None:
        return state.broken

    def steps(self, state: RaftState, off: Off) -> Iterator[Step]:
        for at, disk in enumerate(state.disks):
            if disk.lost:
                continue
            if disk.role == "leader":
                yield from self._lead(state, at, disk, off)
            if disk.inside:
                yield from self._stand(state, at, disk, off)
            if disk.role == "candidate":
                yield from self._elect(state, at, disk, off)
            if not disk.inside and disk.name != STRANGER:
                yield from self._welcome(state, at, disk, off)
            first = Disk(disk.name, True, disk.legacy, False, 1, "1a", disk.log[:1])
            if disk.name[0] in self.copies and disk != first:
                yield f"{disk.name} is put back as it was after entry 1", _with(state, at, first)
            if state.losses < self.losses and disk.name[0] in self.loses and disk.inside:
                fresh = disk.name[0] + chr(
                    ord(max(d.name[1] for d in state.disks if d.name[0] == disk.name[0])) + 1
                )
                after = _with(state, at, disk._replace(lost=True, role="follower"))
                after = after._replace(losses=state.losses + 1, disks=(*after.disks, Disk(fresh, False)))
                yield f"{disk.name} is lost, {disk.name[0]} starts again with the empty {fresh}", after

    # -- elections

    def _stand(self, state: RaftState, at: int, me: Disk, off: Off) -> Iterator[Step]:
        members = _members(me.log)
        if members is None or _seat(members.voters, me, off) is None:
            return
        for term, number in self.stands:
            if number == me.name[0] and term > me.term:
                stood = me._replace(term=term, vote=me.name, role="candidate", commit=0)
                votes = _without_votes_for(me, state.votes, off) | {(term, me.name, me.name)}
                words = f"{me.name} stands for election in term {term}"
                yield words, _with(state, at, stood)._replace(votes=votes)

    def _elect(self, state: RaftState, at: int, me: Disk, off: Off) -> Iterator[Step]:
        for other, voter in enumerate(state.disks):
            if other == at or voter.lost or not self._hears(voter, me, off):
                continue
            free = voter.term < me.term or (voter.term == me.term and not voter.vote)
            if free and _freshness(me.log) >= _freshness(voter.log):
                after = _with(
                    state, other, voter._replace(term=me.term, vote=me.name, role="follower", commit=0)
                )
                words = f"{voter.name} votes for {me.name} in term {me.term}"
                yield words, after._replace(votes=state.votes | {(me.term, voter.name, me.name)})
        # E3: the votes of this term, each disk once. Without it, those of all terms
        voted = [v for term, v, c in state.votes if c == me.name and (term == me.term or "E3" in off)]
        members = _members(me.log)
        if members is not None and self._majority(state, members.voters, voted, off):
            broken = None
            if any(d.role == "leader" and d.term == me.term and d.inside for d in state.disks):
                broken = f"two leaders in term {me.term}"
            elif state.committed_in < me.term and me.log[: len(state.committed)] != state.committed:
                broken = f"{me.name} leads term {me.term} without an entry that was committed"
            led = me._replace(role="leader", commit=1, log=(*me.log, Entry(me.term)))
            acks = state.acks | {(me.term, me.name, len(led.log))}
            votes = _without_votes_for(me, state.votes, off)
            words = f"{me.name} leads term {me.term}, and appends entry {len(led.log)}"
            yield words, _with(state, at, led)._replace(votes=votes, acks=acks, broken=broken)

    def _hears(self, receiver: Disk, sender: Disk, off: Off) -> bool:
        """O1: both in the same group. (O3 only saves trouble: see NOT_FOR_SAFETY.)"""
        return (receiver.inside and sender.inside) or (
            ("O1" in off and receiver.name != STRANGER) or ("L1" in off and self.legacy and sender.inside)
        )

    def _majority(self, state: RaftState, voters: frozenset[str], names: list[str], off: Off) -> bool:
        """O2: each voter counts once, and only its named disk speaks for it."""
        disks = {disk.name: disk for disk in state.disks}
        seats = {_seat(voters, disks[name], off) for name in names} - {None}
        return most(len(seats), len(voters))

    # -- the leader's work

    def _lead(self, state: RaftState, at: int, me: Disk, off: Off) -> Iterator[Step]:
        members = _members(me.log)
        assert members is not None
        if state.writes < self.writes and me.name != STRANGER:
            log = (*me.log, Entry(me.term))
            acks = _ack(state.acks, me.term, me.name, len(log))
            yield (
                f"{me.name} appends entry {len(log)}, a write",
                _with(state, at, me._replace(log=log))._replace(acks=acks, writes=state.writes + 1),
            )
        numbers = {voter[0] for voter in members.voters} | members.learners
        for other, disk in enumerate(state.disks):
            if disk is me or disk.lost or disk.term > me.term or not self._hears(disk, me, off):
                continue
            if disk.name[0] not in numbers and me.name != STRANGER:
                continue
            shared = _shared(disk.log, me.log)
            for upto in range(shared if self.parts else len(me.log), len(me.log) + 1):
                log = disk.log if upto == shared else me.log[:upto]  # what does not contradict stays
                fed = disk._replace(term=me.term, log=log, role="follower", commit=0)
                if disk.term < me.term:
                    fed = fed._replace(vote="")
                acks = _ack(state.acks, me.term, disk.name, upto)
                broken = f"{disk.name} takes over the log of another group" if me.name == STRANGER else None
                if fed != disk or acks != state.acks:
                    words = f"{disk.name} takes over the log of {me.name}, up to entry {upto}"
                    yield words, _with(state._replace(acks=acks), other, fed)._replace(broken=broken)
        if me.name == STRANGER:
            return
        yield from self._commit(state, at, me, members, off)
        yield from self._change(state, at, me, members, off)

    def _commit(self, state: RaftState, at: int, me: Disk, members: Members, off: Off) -> Iterator[Step]:
        for index in range(len(me.log), me.commit, -1):
            said = [name for term, name, upto in state.acks if term == me.term and upto >= index]
            if "C3" in off:  # what one disk of a number has acknowledged is counted for the other one
                said += [d.name for d in state.disks if any(d.name[0] == name[0] for name in said)]
            if me.log[index - 1].term == me.term and self._majority(state, members.voters, said, off):
                log, known, broken = me.log[:index], state.committed, None
                shared = min(len(log), len(known))
                if log[:shared] != known[:shared]:
                    broken = (
                        f"{me.name} commits entry {shared}, and another entry {shared} was committed before"
                    )
                after = _with(state, at, me._replace(commit=index))._replace(broken=broken)
                if len(log) > len(known):
                    after = after._replace(committed=log, committed_in=me.term)
                yield f"{me.name} commits entry {index}, in term {me.term}", after
                return

    # -- changes of members

    def _change(self, state: RaftState, at: int, me: Disk, members: Members, off: Off) -> Iterator[Step]:
        if state.changes >= self.changes:
            return
        pending = any(entry.members is not None for entry in me.log[me.commit :])
        own = any(entry.term == me.term for entry in me.log[: me.commit])
        if (pending and "C1" not in off) or (not own and "C1-term" not in off):
            return
        for words, changed in self._changes(state, me, members, off):
            ready = [d.name for d in state.disks if self._ready(d, me)]  # C2, and E1: it answers now
            live = self._majority(state, changed.voters, ready, frozenset())
            if not live and "C2" not in off:
                continue
            log = (*me.log, Entry(me.term, changed))
            after = _with(state, at, me._replace(log=log))
            yield (
                f"{me.name} {words}: entry {len(log)}, {changed}",
                after._replace(
                    acks=_ack(state.acks, me.term, me.name, len(log)),
                    changes=state.changes + 1,
                    broken=None if live else f"no majority of {changed} is alive and has caught up",
                ),
            )

    def _ready(self, disk: Disk, leader: Disk) -> bool:
        committed = leader.log[: leader.commit]
        return (
            not disk.lost
            and disk.inside
            and disk.term <= leader.term
            and disk.log[: len(committed)] == committed
        )

    def _changes(
        self, state: RaftState, me: Disk, members: Members, off: Off
    ) -> Iterator[tuple[str, Members]]:
        for voter in sorted(members.voters):
            rest = members.voters - {voter}
            if voter[0] in self.removes and rest:
                yield f"removes {voter}", members._replace(voters=rest)
            if voter[0] in self.replaces and voter != me.name and len(voter) > 1:
                replaced = members.replaced | ({voter} if voter[1:] != "?" else set())
                if "C4" not in off:
                    learners = members.learners | {voter[0]}
                    yield f"takes out {voter}", Members(rest, learners, replaced)
                for disk in state.disks:  # without C4: one disk for the other, in a single change
                    if (
                        "C4" in off
                        and disk.name[0] == voter[0]
                        and disk.name not in replaced
                        and not disk.lost
                    ):
                        yield (
                            f"puts {disk.name} for {voter}",
                            Members(rest | {disk.name}, members.learners, replaced),
                        )
        for disk in state.disks:
            named = disk.inside and disk.name[0] in members.learners and disk.name not in members.replaced
            fed = any((t, n) == (me.term, disk.name) and i >= me.commit for t, n, i in state.acks)
            if named and (fed or "C3" in off):
                learners = members.learners - {disk.name[0]}
                voters = members.voters | {disk.name}
                yield f"makes {disk.name} a voter", Members(voters, learners, members.replaced)
        if self.identify and all(len(voter) == 1 for voter in members.voters):
            known = {disk + "a" for disk in self.identify}
            unknown = {voter + "?" for voter in members.voters if voter not in self.identify}
            voters = frozenset(known if "L2" in off else known | unknown)
            yield "gives the group its identity", Members(voters)
        for voter in sorted(members.voters):  # L3: the disk of a legacy directory that comes later
            late = next((d for d in state.disks if d.name[0] == voter[0] and d.legacy and not d.lost), None)
            if (
                self.identify
                and voter[1:] == "?"
                and late
                and (me.term, late.name, len(me.log)) in state.acks
            ):
                yield (
                    f"learns that {voter[0]} is {late.name}",
                    Members(members.voters - {voter} | {late.name}),
                )

    def _welcome(self, state: RaftState, at: int, me: Disk, off: Off) -> Iterator[Step]:
        """W1: a member knows of committed members in which this number is a learner without a disk."""
        members = _members(state.committed)
        if members is not None and (me.name[0] in members.learners or "C4" in off):
            yield f"{me.name} is welcomed as a learner", _with(state, at, me._replace(inside=True))


def _with(state: RaftState, at: int, disk: Disk) -> RaftState:
    """With this disk changed, and without what nobody can make use of any more."""
    disks = (*state.disks[:at], disk, *state.disks[at + 1 :])
    leads = {d.term: d.commit for d in disks if d.role == "leader" and not d.lost}
    acks = frozenset(ack for ack in state.acks if ack[2] >= leads.get(ack[0], ack[2] + 1))
    return state._replace(disks=disks, acks=acks)


def _without_votes_for(me: Disk, votes: frozenset[Vote], off: Off) -> frozenset[Vote]:
    """Those of an election that is over change nothing (E3)."""
    return votes if "E3" in off else frozenset(vote for vote in votes if vote[2] != me.name)


def _ack(acks: frozenset[Ack], term: int, name: str, index: int) -> frozenset[Ack]:
    """Only the farthest of a term is kept: it says what the others say."""
    kept = {ack for ack in acks if ack[:2] != (term, name) or ack[2] > index}
    if not any(ack[:2] == (term, name) for ack in kept):
        kept.add((term, name, index))
    return frozenset(kept)


def _members(log: Log) -> Members | None:
    """The newest ones in the log count, committed or not."""
    return next((entry.members for entry in reversed(log) if entry.members is not None), None)


def _shared(one: Log, other: Log) -> int:
    """How many entries both begin with."""
    same = 0
    while same < min(len(one), len(other)) and one[same] == other[same]:
        same += 1
    return same


def _freshness(log: Log) -> tuple[int, int]:
    return (log[-1].term if log else 0, len(log))


def _seat(voters: frozenset[str], disk: Disk, off: Off) -> str | None:
    """The voter for whom this disk speaks."""
    if disk.name in voters:
        return disk.name
    number = disk.name[0]
    if number in voters and (disk.legacy or "L1" in off):
        return number
    if "O2" in off:
        return next((voter for voter in voters if voter[0] == number), None)
    return None


# -------------------------------------------------------------------------------------------------- reads


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


# -------------------------------------------------------------------------------------------------- lives

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


# -------------------------------------------------------------------------------------- what is explored


@dataclass(frozen=True)
class Case:
    """Bounds to explore within, and the rules of which they show the need."""

    name: str
    model: Model
    rules: tuple[str, ...] = ()
    long: bool = False  # takes more than some seconds


CASES = (
    Case("first start, two directories for 2, one round", Founding(twins="2", rounds=1), ("F2", "F3")),
    Case("first start, two directories for 2", Founding(twins="2", rounds=3), ("F4", "F4-round"), long=True),
    Case("first start, 3 lost twice", Founding(loses="33")),
    Case("first start, 2 and 3 lost", Founding(loses="23"), long=True),
    Case("first start, two for 2, and 3 lost", Founding(twins="2", loses="3"), ("F2-last",), long=True),
    Case("first start, told to found with 1", Founding(shorter="1"), ("F5",)),
    Case("first start, told to found with 1 and 2", Founding(shorter="12")),
    Case("first start, not all imported", Founding(seeds=("s", "s", ""), loses="3"), ("I1",)),
    Case("rebuild of who founded alone", Founding(grown=True, loses="1"), ("F6",)),
    Case("elections", Raft(stands=((2, "2"), (3, "2"), (3, "3")), writes=0), ("E3",)),
    Case("lost disks", Raft(loses="123", losses=2)),
    Case("the leader of another group", Raft(stranger=True), ("O1",)),
    Case(
        "3 replaced, while its disk lives",
        Raft(replaces="3", twins="3", changes=2, stands=((2, "2"),)),
        ("O2", "C3", "C4"),
    ),
    Case("3 replaced, three terms", Raft(replaces="3", twins="3", changes=2, parts=False), long=True),
    Case(
        "3 replaced, with two new disks",
        Raft(replaces="3", twins="33", changes=2, stands=((2, "2"),), parts=False),
        long=True,
    ),
    Case(
        "3 lost and replaced",
        Raft(replaces="3", loses="3", losses=1, changes=2, parts=False),
        ("C2",),
        long=True,
    ),
    Case("3 lost and replaced, in parts", Raft(replaces="3", loses="3", losses=1, changes=2), long=True),
    Case(
        "2 and 3 lost and replaced",
        Raft(replaces="23", loses="23", losses=2, changes=3, writes=0, stands=((2, "2"),), parts=False),
    ),
    Case("2 or 3 removed", Raft(removes="23", loses="3", losses=1, changes=2, writes=0), ("C1",)),
    Case(
        "one of four removed, a fifth added",
        Raft("1234", learner="5", removes="1", changes=2, writes=0, parts=False),
        ("C1-term",),
        long=True,
    ),
    Case("the version before, 3 lost", Raft(legacy=True, loses="3", losses=1), ("L1",)),
    Case(
        "the version before, five get an identity",
        Raft("12345", True, identify="123", changes=1, writes=0, stands=((2, "4"),)),
        ("L2",),
    ),
    Case("the version before, 3 comes later", Raft(legacy=True, identify="12", changes=2)),
    Case(
        "the version before, 3 lost while it was away",
        Raft(legacy=True, identify="12", replaces="3", loses="3", losses=1, changes=3, stands=((2, "2"),)),
        long=True,
    ),
    Case("a read of who was deposed", Reads(), ("E1", "O2")),
    Case("copies", Lives(), ("O4",)),
)

# What no rule keeps away. The model finds each of these with all rules on, and docs/protocol.md says so.
LIMITS = (
    Case("two directories for 2 and for 3 at the first start", Founding(twins="23", rounds=2), long=True),
    Case(
        "who founded alone is lost by hand, and starts as it did",
        Founding(grown=True, loses="1", by_hand=True),
    ),
    Case("1 has voted, is lost, and is told to found alone", Founding(shorter="1", loses="1")),
    Case("an old copy of 3 is put back, and who could refuse it is away", Raft(copies="3")),
)

# Rules without which every state of the model is still safe (it has none of them), and what they are for.
NOT_FOR_SAFETY = {
    "F1": "It says what F2 must know. All must vote for a roster, so another list founds nothing alone.",
    "O3": "A disk that was replaced counts for nothing (O2), but it would disturb elections, and never know.",
    "W1": "Who joins without being a learner counts for nothing (O2), but nobody would feed it.",
    "W2": "It says when to ask for a change, and C1 to C4 make any change safe. Who lives keeps its place.",
    "C5": "Another disk under an old number is another voter. But people and addresses mean the first one.",
    "E2": "It needs a clock, and reads rest on none (E1): a leader that was frozen only delays.",
    "E4": "With the other rules nobody acknowledges what the leader lacks. It shows copies O4 cannot see.",
    "L3": "A disk that is named early counts for what it has acknowledged (C3). It could only be missing.",
}
