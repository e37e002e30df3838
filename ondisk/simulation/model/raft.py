"""Elections, the log, its members and their disks. Rules O1, O2, C, E3 and L of docs/protocol.md."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from ondisk.simulation.model.explorer import Off, Step, most
from ondisk.simulation.model.raft_state import (
    STRANGER,
    Disk,
    Entry,
    Members,
    RaftState,
    add_ack,
    common_prefix,
    freshness,
    newest_members,
    seat_of,
    with_disk,
    without_votes_for,
)


@dataclass(frozen=True)
class Raft:
    """A group with a leader 1a of term 1, whose first entry everybody holds and knows to be committed."""

    voters: str = "123"
    legacy: bool = False  # a directory of the version before: voters are numbers
    learner: str = ""  # a number that is sent everything already
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
                yield f"{disk.name} is put back as it was after entry 1", with_disk(state, at, first)
            if state.losses < self.losses and disk.name[0] in self.loses and disk.inside:
                fresh = disk.name[0] + chr(
                    ord(max(d.name[1] for d in state.disks if d.name[0] == disk.name[0])) + 1
                )
                after = with_disk(state, at, disk._replace(lost=True, role="follower"))
                after = after._replace(losses=state.losses + 1, disks=(*after.disks, Disk(fresh, False)))
                yield f"{disk.name} is lost, {disk.name[0]} starts again with the empty {fresh}", after

    # -- elections

    def _stand(self, state: RaftState, at: int, me: Disk, off: Off) -> Iterator[Step]:
        members = newest_members(me.log)
        if members is None or seat_of(members.voters, me, off) is None:
            return
        for term, number in self.stands:
            if number == me.name[0] and term > me.term:
                stood = me._replace(term=term, vote=me.name, role="candidate", commit=0)
                votes = without_votes_for(me, state.votes, off) | {(term, me.name, me.name)}
                words = f"{me.name} stands for election in term {term}"
                yield words, with_disk(state, at, stood)._replace(votes=votes)

    def _elect(self, state: RaftState, at: int, me: Disk, off: Off) -> Iterator[Step]:
        for other, voter in enumerate(state.disks):
            if other == at or voter.lost or not self._hears(voter, me, off):
                continue
            free = voter.term < me.term or (voter.term == me.term and not voter.vote)
            if free and freshness(me.log) >= freshness(voter.log):
                after = with_disk(
                    state, other, voter._replace(term=me.term, vote=me.name, role="follower", commit=0)
                )
                words = f"{voter.name} votes for {me.name} in term {me.term}"
                yield words, after._replace(votes=state.votes | {(me.term, voter.name, me.name)})
        # E3: the votes of this term, each disk once. Without it, those of all terms
        voted = [v for term, v, c in state.votes if c == me.name and (term == me.term or "E3" in off)]
        members = newest_members(me.log)
        if members is not None and self._majority(state, members.voters, voted, off):
            broken = None
            if any(d.role == "leader" and d.term == me.term and d.inside for d in state.disks):
                broken = f"two leaders in term {me.term}"
            elif state.committed_in < me.term and me.log[: len(state.committed)] != state.committed:
                broken = f"{me.name} leads term {me.term} without an entry that was committed"
            led = me._replace(role="leader", commit=1, log=(*me.log, Entry(me.term)))
            acks = state.acks | {(me.term, me.name, len(led.log))}
            votes = without_votes_for(me, state.votes, off)
            words = f"{me.name} leads term {me.term}, and appends entry {len(led.log)}"
            yield words, with_disk(state, at, led)._replace(votes=votes, acks=acks, broken=broken)

    def _hears(self, receiver: Disk, sender: Disk, off: Off) -> bool:
        """O1: both in the same group. (O3 only saves trouble: see NOT_FOR_SAFETY.)"""
        return (receiver.inside and sender.inside) or (
            ("O1" in off and receiver.name != STRANGER) or ("L1" in off and self.legacy and sender.inside)
        )

    def _majority(self, state: RaftState, voters: frozenset[str], names: list[str], off: Off) -> bool:
        """O2: each voter counts once, and only its named disk speaks for it."""
        disks = {disk.name: disk for disk in state.disks}
        seats = {seat_of(voters, disks[name], off) for name in names} - {None}
        return most(len(seats), len(voters))

    # -- the leader's work

    def _lead(self, state: RaftState, at: int, me: Disk, off: Off) -> Iterator[Step]:
        members = newest_members(me.log)
        assert members is not None
        if state.writes < self.writes and me.name != STRANGER:
            log = (*me.log, Entry(me.term))
            acks = add_ack(state.acks, me.term, me.name, len(log))
            yield (
                f"{me.name} appends entry {len(log)}, a write",
                with_disk(state, at, me._replace(log=log))._replace(acks=acks, writes=state.writes + 1),
            )
        numbers = {voter[0] for voter in members.voters} | members.learners
        for other, disk in enumerate(state.disks):
            if disk is me or disk.lost or disk.term > me.term or not self._hears(disk, me, off):
                continue
            if disk.name[0] not in numbers and me.name != STRANGER:
                continue
            shared = common_prefix(disk.log, me.log)
            for upto in range(shared if self.parts else len(me.log), len(me.log) + 1):
                log = disk.log if upto == shared else me.log[:upto]  # what does not contradict stays
                sent = disk._replace(term=me.term, log=log, role="follower", commit=0)
                if disk.term < me.term:
                    sent = sent._replace(vote="")
                acks = add_ack(state.acks, me.term, disk.name, upto)
                broken = f"{disk.name} takes over the log of another group" if me.name == STRANGER else None
                if sent != disk or acks != state.acks:
                    words = f"{disk.name} takes over the log of {me.name}, up to entry {upto}"
                    yield words, with_disk(state._replace(acks=acks), other, sent)._replace(broken=broken)
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
                after = with_disk(state, at, me._replace(commit=index))._replace(broken=broken)
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
            after = with_disk(state, at, me._replace(log=log))
            yield (
                f"{me.name} {words}: entry {len(log)}, {changed}",
                after._replace(
                    acks=add_ack(state.acks, me.term, me.name, len(log)),
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
            sent = any((t, n) == (me.term, disk.name) and i >= me.commit for t, n, i in state.acks)
            if named and (sent or "C3" in off):
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
        members = newest_members(state.committed)
        if members is not None and (me.name[0] in members.learners or "C4" in off):
            yield f"{me.name} is welcomed as a learner", with_disk(state, at, me._replace(inside=True))
