"""Changes: how the members become others (thesis, chapter 4; docs/protocol.md, C, L and W)."""

from __future__ import annotations

import logging
from typing import NamedTuple

from ondisk.errors import ConfigurationError
from ondisk.raft import members as encoding
from ondisk.raft.engine import Engine, time_of_step
from ondisk.raft.leader import Leader
from ondisk.raft.limits import check_members
from ondisk.raft.members import LEGACY, Members, short
from ondisk.raft.membership import Membership
from ondisk.raft.messages import AddReplica, MembersChange, Refused, RemoveReplica, ReplaceReplica
from ondisk.raft.records import MEMBERS

_CAUGHT_UP_ENTRIES = 100  # a learner that is no further behind may become a voter

logger = logging.getLogger(__name__)


class _Newcomer(NamedTuple):
    """Who speaks under the number of a voter, and has another disk."""

    disk: bytes
    since_round: int  # of the leader, when it was heard first
    since: float
    heard: float


class _Check(NamedTuple):
    """A change of the members that is being checked (docs/protocol.md, C2)."""

    round: int
    commit_index: int  # of the leader, when the check began
    until: float


class Changes:
    """As leader: changes that somebody asks for, and those that the leader makes by itself.

    Invariants: one change at a time, and only after an entry of the leader's own term. Before a change is
    appended, a majority of the voters that there would be has answered, with everything that is committed.
    """

    def __init__(self, engine: Engine, membership: Membership, leader: Leader) -> None:
        self._engine = engine
        self._membership = membership
        self._leader = leader
        self._newcomers: dict[int, _Newcomer] = {}
        self._checks: dict[object, _Check] = {}  # by change
        self._leading_since = 0.0

    def begin_term_of_office(self) -> None:
        """This replica leads from now on: what it knew as an earlier leader counts no more."""
        self._checks, self._newcomers = {}, {}
        self._leading_since = time_of_step()

    def may_change(self) -> bool:
        """Two changes under way at once could make two majorities that share nobody, and so could one that
        begins before this leader knows what the last leader did (thesis, 4.1, and its later correction).
        """
        return self._membership.is_settled and self._leader.committed_in_current_term()

    # What somebody asks for

    def propose(self, change: MembersChange) -> int | None:
        """Append a change; return its index, or ``None`` if it must wait: for the one before, or until it is
        known that a majority of the new voters is there (docs/protocol.md, C2).

        0 if the change was made before: it may have been asked for twice, because its answer was lost. Raises
        ``ConfigurationError`` if it makes no sense, or if that majority is not there.
        """
        members = self._after(change)
        if members is self._membership.members and self._membership.is_settled:
            return 0
        if not self.may_change() or not self._passes_check(change, members):
            return None
        return self._append(members)

    def _after(self, change: MembersChange) -> Members:
        members = self._membership.members
        if isinstance(change, AddReplica):
            if change.again and change.id in members.all:
                return members
            members = members.with_learner(change.id, change.address)
        elif isinstance(change, RemoveReplica):
            members = members.without(change.id)
        elif isinstance(change, ReplaceReplica):
            members = members.with_replaced(change.id, change.disk)
        else:
            members = members.with_address(change.id, change.address)
        check_members(members)
        return members

    def _passes_check(self, change: object, members: Members) -> bool:
        """Whether a majority of the new voters has answered since the change was asked for, caught up (C2).

        Raises ``ConfigurationError`` if it has not within an election timeout.
        """
        now, patience = time_of_step(), self._engine.timing.election_max
        for other, check in tuple(self._checks.items()):
            if check.until < now - patience:
                del self._checks[other]  # nobody asks for that one any more
        check = self._checks.get(change) or _Check(
            self._leader.start_round(), self._engine.commit_index, now + patience
        )
        self._checks[change] = check
        missing = [voter for voter in members.voters if not self._is_there(voter, check)]
        there = 2 * len(missing) < len(members.voters)
        if not there and now <= check.until:
            return False
        del self._checks[change]
        if there:
            return True
        raise ConfigurationError(
            f"refused, nothing was changed: of the voters {list(members.voters)} that there would be, "
            f"{missing} did not answer with all that is committed, and without a majority the group could "
            "not go on: get them back first"
        )

    def _is_there(self, voter: int, check: _Check) -> bool:
        if voter == self._engine.id:
            return True
        progress = self._engine.progress.get(voter)
        return (
            progress is not None
            and (voter in self._membership.counted or voter in self._membership.learners)
            and progress.acked_round >= check.round
            and progress.match >= check.commit_index
        )

    def _append(self, members: Members) -> int | None:
        if not self.may_change():
            return None
        index = self._leader.append([MEMBERS + encoding.encode(members)])
        self._membership.adopt()
        return index

    # What the leader does by itself

    def on_newcomer(self, replica_id: int, disk: bytes) -> None:
        """Somebody speaks under this number whose disk is not the one that counts (W2)."""
        membership, now = self._membership, time_of_step()
        if replica_id not in membership.others or membership.members.disk_of(replica_id) == disk:
            return
        known = self._newcomers.get(replica_id)
        if known is None or known.disk != disk or known.heard < now - self._engine.timing.election_max:
            known = _Newcomer(disk, self._leader.start_round(), now, now)
        self._newcomers[replica_id] = known._replace(heard=now)

    def take_care(self) -> None:
        """One at a time: give an old group an id, replace lost disks, let learners count."""
        is_legacy = self._membership.members.group == LEGACY
        if not (is_legacy or self._newcomers or self._membership.learners) or not self.may_change():
            return
        if is_legacy:
            self._identify_group()
        elif not self._replace_lost_disks():
            self._promote_learners()

    def _identify_group(self) -> None:
        """Give the group an id, and disks to those voters that have answered (docs/protocol.md, L2)."""
        engine, membership = self._engine, self._membership
        disks = {engine.id: engine.log.disk_id}
        for voter in membership.others & membership.counted:
            if engine.progress[voter].match >= engine.commit_index:
                disks[voter] = membership.disks[voter]
        voters = len(membership.members.voters)
        waited = time_of_step() > self._leading_since + engine.timing.election_max
        if len(disks) == voters or (waited and 2 * len(disks) > voters):
            group = engine.rng.getrandbits(128).to_bytes(16, "big")
            self._append(membership.members.identified(group, disks.items()))

    def _replace_lost_disks(self) -> bool:
        """Whether there is one to be replaced: silent since another disk came under its number."""
        engine, membership, now = self._engine, self._membership, time_of_step()
        for voter, newcomer in tuple(self._newcomers.items()):
            if voter not in membership.others or newcomer.heard < now - engine.timing.election_max:
                del self._newcomers[voter]
            elif engine.progress[voter].acked_round >= newcomer.since_round:
                del self._newcomers[voter]  # only the disk that counts is heard, and it has answered
                self._refuse_second(voter, newcomer)
            elif self._is_silent(newcomer, now):
                change = ReplaceReplica(voter, membership.members.disk_of(voter))
                try:
                    members = self._after(change)
                    if self._passes_check(change, members):
                        logger.warning(
                            "replica %d has a new disk, %s: it catches up from the beginning",
                            voter,
                            short(newcomer.disk),
                        )
                        self._append(members)
                except ConfigurationError as error:
                    logger.warning("the lost disk of replica %d cannot be replaced: %s", voter, error)
                    self._newcomers[voter] = newcomer._replace(since=now)
                return True
        return False

    def _refuse_second(self, voter: int, newcomer: _Newcomer) -> None:
        reason = (
            f"replica {voter} is alive, with disk {short(self._membership.members.disk_of(voter))}, and "
            f"this is a second one, with disk {short(newcomer.disk)}: stop it, and delete its "
            "directory"
        )
        self._engine.send(voter, Refused(newcomer.disk, reason))

    def _is_silent(self, newcomer: _Newcomer, now: float) -> bool:
        """Whether the disk that counts has had the time to answer since another one was heard (W2)."""
        return now > newcomer.since + self._engine.timing.election_max

    def _promote_learners(self) -> None:
        engine, membership = self._engine, self._membership
        for learner in membership.learners:
            match = engine.progress[learner].match
            disk = membership.disks.get(learner)
            lags = not match or engine.commit_index - match > _CAUGHT_UP_ENTRIES
            if lags or disk is None or disk in membership.members.replaced:
                continue
            members = membership.members.with_voter(learner, disk)
            try:
                if self._passes_check(members, members):
                    self._append(members)
            except ConfigurationError as error:
                logger.info("replica %d cannot become a voter yet: %s", learner, error)
            return  # one at a time
