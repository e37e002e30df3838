"""Founding: how a group begins, and how a replica that belongs to none finds one (docs/protocol.md, F and W).

A group exists when *all* of its first members, all of them empty, have agreed who they are: which disk stands
behind each number. No timer decides, so one that comes late, or comes without the directory that it once had,
can never found a second group beside the first.

What may go wrong is that a disk is lost before all have agreed. Then the others vote again, in a higher
round; who has voted in it counts no votes of a lower one any more. It is Paxos with a quorum of everybody.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from contextlib import suppress

import msgspec

from ondisk.errors import ConfigurationError
from ondisk.raft.log import RaftLog
from ondisk.raft.members import Members, check_ids, short
from ondisk.raft.messages import Found, Membership, Message, Origin, Roster
from ondisk.raft.records import Identity

_TELL_AGAIN_SECONDS = 0.1


def group_of(identity: Identity) -> bytes:
    """The id of the group that this vote is for: all who found it come to the same."""
    vote = identity.round, identity.roster, identity.seed
    return hashlib.blake2b(msgspec.msgpack.encode(vote), digest_size=16).digest()


def first_members(identity: Identity) -> Members:
    """The configuration at the beginning of that group's log."""
    roster = identity.roster
    return Members(
        tuple(number for number, _, _ in roster),
        where=tuple((number, address) for number, _, address in roster if address),
        group=group_of(identity),
        disks=tuple((number, disk) for number, disk, _ in roster),
    )


class Founding:
    """What one replica without a group says and hears. Belongs to its step, and ends when it has a group."""

    def __init__(
        self,
        log: RaftLog,
        members: Sequence[int],
        address: str,
        send: Callable[[int, Message], None],
    ) -> None:
        """``members`` are those that it was started with, itself included; none if it is to be added."""
        assert log.identity is not None
        self._log = log
        self._id = log.identity.replica_id
        self._members = tuple(sorted(members))
        self._address = address
        self._send = send
        self._fewer = False
        self._heard: dict[int, tuple[bytes, Found]] = {}  # by number: the disk, and what it said last
        self._former: dict[int, set[bytes]] = {}  # by number: disks that another one has taken the place of
        self._twins: str | None = None
        self._elsewhere: dict[int, str] = {}  # by number: what a member of a group has said, in words
        self._tell_at = float("-inf")

    def use_fewer(self, members: Sequence[int]) -> None:
        """An operator has named the first members, and does not want to wait for others (F5).

        Raises ``ConfigurationError`` if this replica has voted for others: they may be a group by now.
        """
        check_ids(members)
        identity = self._log.identity
        assert identity is not None
        if self._id not in members:
            raise ConfigurationError(f"replica {self._id} is not among the members {list(members)}")
        if identity.roster:
            voted = [number for number, _, _ in identity.roster]
            raise ConfigurationError(
                f"replica {self._id} has voted for a group of {voted}, which may exist by now: start those "
                "that are missing, or delete this directory, which holds nothing yet"
            )
        if identity.existing:
            raise ConfigurationError(
                f"replica {self._id} was erased to catch up from group {short(identity.existing)}: it "
                "founds no other"
            )
        self._members, self._fewer = tuple(sorted(members)), True
        self._log.identify(first=self._members)
        self._tell_at = float("-inf")

    # What comes in

    def on_found(self, sender: int, origin: Origin, message: Found) -> None:
        """Another replica without a group speaks."""
        if message.fewer and self._id in message.members and not self._fewer:
            with suppress(ConfigurationError):  # then it goes on to say for whom it has voted
                self.use_fewer(message.members)
        self._elsewhere.pop(sender, None)  # the directory that belonged to a group is not there any more
        former = self._heard.get(sender)
        if former is not None and former[0] != origin.disk:
            self._former.setdefault(sender, set()).add(former[0])
        if origin.disk in self._former.get(sender, ()):
            self._twins = (
                f"two directories claim to be replica {sender} (disks {short(origin.disk)} and "
                f"{short(former[0] if former else b'')}): stop one of them, and delete its directory"
            )
        if former is None or former != (origin.disk, message):
            self._heard[sender] = origin.disk, message
            if self._id in message.members:  # it has not heard of this side's newest word, maybe
                self._tell_at = float("-inf")

    def on_membership(self, sender: int, message: Membership) -> Members | None:
        """A member of a group speaks; return the members to begin with if this replica belongs there."""
        members, identity = message.members, self._log.identity
        assert identity is not None
        if self._members and sender not in self._members and self._id not in members.all:
            return None  # it has dialled a wrong number
        if identity.roster and group_of(identity) == members.group:
            return first_members(identity)  # F4: it was founded with this one's vote
        if identity.existing and identity.existing != members.group:
            self._elsewhere[sender] = (
                f"this directory was erased to catch up from group {short(identity.existing)}, and replica "
                f"{sender} belongs to group {short(members.group)}"
            )
        elif identity.seed:
            self._elsewhere[sender] = (
                f"replica {sender} belongs to group {short(members.group)}, and this directory holds an "
                "import: give the same import to all members, or delete this directory"
            )
        elif self._id in members.learners:
            return Members((), group=members.group, where=members.where)  # W1
        elif self._id in members.voters:
            self._elsewhere[sender] = (
                f"this directory is new (disk {short(self._log.disk_id)}), and in group "
                f"{short(members.group)} replica {self._id} is disk {short(members.disk_of(self._id))}: if "
                "that one is lost, this one takes its place as soon as a majority of the others agrees"
            )
        elif self._id in members.removed:
            self._elsewhere[sender] = (
                f"replica {self._id} was removed from group {short(members.group)}: take another id"
            )
        else:
            self._elsewhere[sender] = (
                f"not a member of group {short(members.group)} yet: tell it to add {self._id}"
            )
        return None

    # What goes out

    def step(self, now: float, connected: frozenset[int]) -> Members | None:
        """Vote, and tell the others; return the first members when the group is founded."""
        self._vote()
        if (founded := self._founded()) is not None:
            return founded
        if now >= self._tell_at:
            self._tell_at = now + _TELL_AGAIN_SECONDS
            for other in sorted(set(self._members) | connected):
                if other != self._id:
                    self._send(other, self._word())
        return None

    def next_wakeup(self) -> float:
        """When ``step`` must be called again even if nothing happens."""
        return self._tell_at

    def _word(self) -> Found:
        identity = self._log.identity
        assert identity is not None
        return Found(
            self._members, self._address, identity.seed, identity.round, identity.roster, self._fewer
        )

    def _roster(self) -> Roster | None:
        """All first members and their disks, from their own words; ``None`` while anything is amiss (F2)."""
        identity = self._log.identity
        assert identity is not None
        if self._id not in self._members or identity.existing or self.problem():
            return None
        mine = (self._id, self._log.disk_id, self._address)
        others = ((n, *self._heard[n]) for n in self._members if n != self._id)
        return tuple(sorted([mine, *((n, disk, said.address) for n, disk, said in others)]))

    def _vote(self) -> None:
        roster, identity = self._roster(), self._log.identity
        assert identity is not None
        if roster is None:
            return
        # A disk votes once in a round. So two rosters that share one are never voted for by all in the same.
        round_number = identity.round + (identity.roster not in ((), roster))
        for _, said in self._heard.values():
            round_number = max(round_number, said.round + (said.roster != roster))
        if (round_number, roster) != (identity.round, identity.roster):
            self._log.identify(round=round_number, roster=roster)
            self._tell_at = float("-inf")

    def _founded(self) -> Members | None:
        """The group, if all have voted for the same roster in the same round (F3)."""
        roster, identity = self._roster(), self._log.identity
        assert identity is not None
        if roster is None or identity.roster != roster:
            return None
        votes = [said for n, (_, said) in self._heard.items() if n in self._members]
        if self._is_unanimous([self._is_same_vote(said, identity.round, roster) for said in votes]):
            return first_members(identity)
        return None

    @staticmethod
    def _is_unanimous(others: Sequence[bool]) -> bool:
        """Whether so many of the others have voted as this one has."""
        return all(others)

    @staticmethod
    def _is_same_vote(said: Found, round_number: int, roster: Roster) -> bool:
        """Not one of another round: who gave that may have voted for others since."""
        return (said.round, said.roster) == (round_number, roster)

    def problem(self) -> str | None:
        """Why there is no group yet, for people; ``None`` if nothing is amiss."""
        identity = self._log.identity
        assert identity is not None
        if self._elsewhere or self._twins:
            return next(iter(self._elsewhere.values()), self._twins)
        if identity.existing:
            return f"erased, and waiting to catch up from group {short(identity.existing)}"
        if not self._members:
            return f"waiting until a member of a group is told to add replica {self._id}"
        missing = [n for n in self._members if n != self._id and n not in self._heard]
        if missing:
            names = ", ".join(map(str, missing))
            return (
                f"waiting for replica{'s' * (len(missing) > 1)} {names}: a group is founded when all of "
                f"{list(self._members)} are there"
            )
        for number in self._members:
            if number == self._id:
                continue
            said = self._heard[number][1]
            if said.members != self._members:
                return (
                    f"replica {number} was started with members {list(said.members)}, and this one with "
                    f"{list(self._members)}: start all with the same"
                )
            if said.seed != identity.seed:
                return (
                    f"replica {number} holds {_import_name(said.seed)}, and this one "
                    f"{_import_name(identity.seed)}: give all members the same import"
                )
        return None


def _import_name(seed: bytes) -> str:
    return f"import {short(seed)}" if seed else "no import"
