"""The state of the model of elections, the log and its members: disks, and what was said."""

from __future__ import annotations

from typing import NamedTuple

from ondisk.simulation.model.explorer import Off


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


def with_disk(state: RaftState, at: int, disk: Disk) -> RaftState:
    """With this disk changed, and without what nobody can make use of any more."""
    disks = (*state.disks[:at], disk, *state.disks[at + 1 :])
    leads = {d.term: d.commit for d in disks if d.role == "leader" and not d.lost}
    acks = frozenset(ack for ack in state.acks if ack[2] >= leads.get(ack[0], ack[2] + 1))
    return state._replace(disks=disks, acks=acks)


def without_votes_for(me: Disk, votes: frozenset[Vote], off: Off) -> frozenset[Vote]:
    """Those of an election that is over change nothing (E3)."""
    return votes if "E3" in off else frozenset(vote for vote in votes if vote[2] != me.name)


def add_ack(acks: frozenset[Ack], term: int, name: str, index: int) -> frozenset[Ack]:
    """Only the farthest of a term is kept: it says what the others say."""
    kept = {ack for ack in acks if ack[:2] != (term, name) or ack[2] > index}
    if not any(ack[:2] == (term, name) for ack in kept):
        kept.add((term, name, index))
    return frozenset(kept)


def newest_members(log: Log) -> Members | None:
    """The newest ones in the log count, committed or not."""
    return next((entry.members for entry in reversed(log) if entry.members is not None), None)


def common_prefix(one: Log, other: Log) -> int:
    """How many entries both begin with."""
    same = 0
    while same < min(len(one), len(other)) and one[same] == other[same]:
        same += 1
    return same


def freshness(log: Log) -> tuple[int, int]:
    return (log[-1].term if log else 0, len(log))


def seat_of(voters: frozenset[str], disk: Disk, off: Off) -> str | None:
    """The voter for whom this disk speaks."""
    if disk.name in voters:
        return disk.name
    number = disk.name[0]
    if number in voters and (disk.legacy or "L1" in off):
        return number
    if "O2" in off:
        return next((voter for voter in voters if voter[0] == number), None)
    return None
