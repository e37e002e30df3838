"""Membership: who belongs to the group, who votes, and with which disk (docs/protocol.md, O and W)."""

from __future__ import annotations

from ondisk.raft.engine import Engine, time_of_step
from ondisk.raft.members import LEGACY, Members
from ondisk.raft.progress import Progress


class Membership:
    """The members as the newest configuration in the log names them, committed or not (thesis, 4.1).

    Invariant: ``others`` and ``learners`` are those that ``members`` names, without this replica. ``counted``
    are those of the others whose last word came from the disk that ``members`` names: only they are counted
    for a vote, a commit or a read. As leader there is one ``Progress`` for each member but this one.
    """

    def __init__(self, engine: Engine) -> None:
        self._engine = engine
        self.members: Members = engine.log.members
        self.others: set[int] = set(self.members.voters) - {engine.id}
        self.learners: set[int] = set(self.members.learners) - {engine.id}
        self.disks: dict[int, bytes] = {}  # who spoke last under this number
        self.counted: set[int] = set()

    def start(self) -> None:
        """Tell the engine who there is."""
        self._engine.use_members(self.others, self.learners)

    @property
    def committed(self) -> Members:
        """The members as of the newest entry that is known to be committed."""
        return self._engine.log.members_at(self._engine.commit_index)

    @property
    def removed(self) -> tuple[int, ...]:
        """The ids that are out for good. A removal that is not committed may be taken back."""
        return self.members.removed and self.committed.removed

    @property
    def is_settled(self) -> bool:
        """Whether the newest configuration is committed."""
        return self._engine.log.configuration[0] <= self._engine.commit_index

    @property
    def majority(self) -> int:
        """How many of the voters decide."""
        return (len(self.others) + 1) // 2 + 1

    @property
    def is_voter(self) -> bool:
        """Whether this replica votes."""
        return self._engine.id in self.members.voters

    def adopt(self) -> None:
        """The newest configuration in the log counts from the moment it is there."""
        engine = self._engine
        members = engine.log.members
        if members is self.members:
            return
        self.members = members
        known_learners = self.learners
        self.others = set(members.voters) - {engine.id}
        self.learners = set(members.learners) - {engine.id}
        engine.use_members(self.others, self.learners)
        for new in self.learners - known_learners:  # whoever spoke under this number before is somebody else
            self.disks.pop(new, None)
        self._count()
        if engine.is_leader:
            progress, now = engine.progress, time_of_step()
            for member in (self.others | self.learners) - (
                progress.keys() - (self.learners - known_learners)
            ):
                progress[member] = Progress(engine.log.last_index + 1, now)
            for member in progress.keys() - self.others - self.learners:
                del progress[member]

    def speaks(self, replica_id: int, disk: bytes) -> None:
        """From now on what comes under this number comes from this disk."""
        if self.disks.get(replica_id) == disk:
            return
        self.disks[replica_id] = disk
        self._count()
        if self._engine.is_leader and replica_id in self.learners:
            self._forget_progress(replica_id)

    def counts(self, replica_id: int) -> bool:
        """Whether answers under this number are believed: not those of a voter with another disk."""
        return replica_id in self.counted or replica_id not in self.others

    def _count(self) -> None:
        """Find out again which of the voters speak with the disks that the members name.

        In a group from before disks had ids, whoever is in it: only directories that remember can be.
        """
        named, legacy = dict(self.members.disks), self.members.group == LEGACY
        self.counted = {
            voter
            for voter in self.others
            if voter in self.disks and (legacy or named.get(voter) == self.disks[voter])
        }

    def _forget_progress(self, replica_id: int) -> None:
        """As leader: it speaks with another disk, and whatever the one before it had is not here."""
        self._engine.progress[replica_id] = Progress(self._engine.log.last_index + 1, float("-inf"))
