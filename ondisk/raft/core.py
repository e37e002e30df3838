"""Raft: one replica's part in agreeing on a log. The modules of this room, put together.

Read them against the paper (Ongaro and Ousterhout, *In Search of an Understandable Consensus Algorithm*, and
Ongaro's thesis): ``elections`` (5.2), ``follower`` and ``leader`` (5.3, 5.4), ``changes`` (6; thesis, 4),
``handover`` (thesis, 3.10). ``engine`` is PySyncObj. This one decides who gets a message, and in which order
things happen in a tick.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence

from ondisk.errors import Corrupt
from ondisk.raft.changes import Changes
from ondisk.raft.elections import Elections
from ondisk.raft.engine import Engine, time_of_step, time_stands_still
from ondisk.raft.follower import Follower
from ondisk.raft.handover import Handover
from ondisk.raft.leader import Leader
from ondisk.raft.log import RaftLog
from ondisk.raft.members import Members
from ondisk.raft.membership import Membership
from ondisk.raft.messages import (
    AppendEntries,
    AppendEntriesRejection,
    AppendEntriesResponse,
    MembersChange,
    Message,
    NewerTerm,
    Removed,
    RequestVote,
    RequestVoteResponse,
    Response,
    SnapshotNeeded,
    TimeoutNow,
)
from ondisk.raft.progress import SNAPSHOT
from ondisk.raft.records import REGULAR, LogEntry
from ondisk.raft.timing import Timing


class Raft(Engine):
    """The Raft of one replica: no thread, no socket, no clock. Its replica steps it.

    Invariants: ``applied_index`` <= ``commit_index`` <= the end of the log, and what is applied is durable in
    this log.
    """

    # What it is made of. A simulation puts others in their place, to see what each safeguard is good for.
    membership_type: type[Membership] = Membership
    elections_type: type[Elections] = Elections
    follower_type: type[Follower] = Follower
    leader_type: type[Leader] = Leader
    changes_type: type[Changes] = Changes

    at = staticmethod(time_stands_still)

    def __init__(
        self,
        replica_id: int,
        log: RaftLog,
        applied_index: int,
        *,
        send: Callable[[int, Message], None],
        rng: random.Random,
        now: float,
        timing: Timing,
    ) -> None:
        """``applied_index`` is what the state machine's ``open`` returned.

        ``send`` queues a message: it may leave once the log is durable. Raises ``Corrupt`` if the log has
        lost entries that the state machine holds.
        """
        if applied_index > log.last_index:
            raise Corrupt(
                f"{log.path}: the log ends at entry {log.last_index}, but the state machine holds entry "
                f"{applied_index}: the log has lost entries"
            )
        super().__init__(
            replica_id,
            log,
            send=send,
            rng=rng,
            timing=timing,
            check_quorum_seconds=self._check_quorum_seconds(timing),
        )
        self.membership = self.membership_type(self)
        self.elections = self.elections_type(self, self.membership)
        self.follower = self.follower_type(self, self.membership, self.elections)
        self.leader = self.leader_type(self, self.membership)
        self.changes = self.changes_type(self, self.membership, self.leader)
        self.handover = Handover(self, self.membership, self.leader)
        # The state is older than the log begins (its directory was lost or rolled back): ask for a snapshot.
        self.needs_state = self._lacks_state(applied_index)
        self.recovering = False  # the state machine is busy with a snapshot: nothing is applied meanwhile
        self.start(applied_index, now)
        with self.at(now):
            self.membership.start()
            self.elections.begin_life()

    def _check_quorum_seconds(self, timing: Timing) -> float:
        """How long a leader goes on that a majority does not answer (CheckQuorum)."""
        return timing.election_max

    def _lacks_state(self, applied_index: int) -> bool:
        return applied_index < self.log.base_index

    # What the replica asks

    @property
    def match_index(self) -> dict[int, int]:
        """As leader: up to where each follower's log is known to be equal, and durable there."""
        return {member: each.match for member, each in self.progress.items()} if self.is_leader else {}

    def counted_of(self, replica_id: int) -> tuple[object, ...]:
        """What this replica counts of what another one has said: it changes when an answer is counted.

        As leader its match index, the newest round that it answered and when that was sent; else the term in
        which votes are counted, and whether it has given one.
        """
        progress = self.progress.get(replica_id)
        if self.is_leader and progress is not None:
            return progress.match, progress.acked_round, progress.last_response
        term, voters = self.elections.votes
        return term, replica_id in voters

    @property
    def members(self) -> Members:
        """Who counts, as far as this replica knows."""
        return self.membership.members

    @property
    def committed_members(self) -> Members:
        """The members as of the newest entry that is known to be committed."""
        return self.membership.committed

    @property
    def may_lead(self) -> bool:
        """Whether an election may be tried: only a voter, and only if it could serve as leader."""
        return self.membership.is_voter and not self.needs_state and not self.recovering

    # What it is told

    def set_connected(self, replica_ids: frozenset[int]) -> None:
        """Tell which replicas seem reachable."""
        if replica_ids == self.connected:
            return
        gone = self.connected - replica_ids
        for member in set(replica_ids) - self.connected:
            self.leader.on_new_connection(member)
        if self.leader_id in gone and not self.is_leader:
            self.elections.on_leader_unreachable()
        self.use_connected(replica_ids)

    def receive(self, sender: int, message: Message) -> None:
        """Handle one message. Answers go through ``send``."""
        if sender in self.membership.removed:
            self.send(sender, Removed())
            return
        # Any other sender is heard: a leader may have members that this log does not know of yet. But an
        # answer counts only with the disk that the members name (docs/protocol.md, O2).
        if isinstance(message, Response) and not self.membership.counts(sender):
            return
        match message:
            case AppendEntries():
                self.follower.on_append_entries(sender, message, lacks_state=self.needs_state)
            case AppendEntriesResponse():
                self.leader.on_response(sender, message)
            case AppendEntriesRejection():
                self.leader.on_rejection(sender, message)
            case SnapshotNeeded():
                self.leader.on_snapshot_needed(sender, message)
            case NewerTerm():
                self.adopt_newer_term(message.term)
            case RequestVote():
                self.elections.on_request_vote(sender, message)
            case RequestVoteResponse():
                self.elections.on_vote(sender, message)
            case TimeoutNow():
                self.elections.on_timeout_now(sender, message, may_lead=self.may_lead)

    def on_leader_contact(self, leader: int, term: int) -> bool:
        """A chunk of a snapshot counts as a heartbeat. ``False``: it must not be answered."""
        if term < self.term or leader in self.membership.removed:
            return False
        self.elections.on_leader_contact(leader, term)
        return True

    def begin_group(self) -> None:
        """The log has got its first members: from now on this replica may vote, and lead."""
        self.membership.adopt()
        self.elections.wait_briefly_for_leader()

    def install(self, index: int, term: int, members: Members) -> None:
        """The state machine now holds the state after entry ``index``, durably: begin there."""
        self.log.install(index, term, members)
        self.commit_index = max(self.commit_index, index)
        self.applied_index = index
        self.needs_state = False
        self.membership.adopt()

    # As leader: what is asked of it

    def append(self, commands: Sequence[bytes]) -> int:
        """Put commands into the log; return the index of the first one."""
        return self.leader.append([REGULAR + command for command in commands])

    def change(self, change: MembersChange) -> int | None:
        """Append a change of the members: see ``Changes.propose``."""
        return self.changes.propose(change)

    def on_newcomer(self, replica_id: int, disk: bytes) -> None:
        """As leader: somebody speaks under this number whose disk is not the one that counts (W2)."""
        if self.is_leader:
            self.changes.on_newcomer(replica_id, disk)

    def transfer(self, to: int) -> None:
        """Let another voter lead, once it has everything. Raises ``ConfigurationError``.

        Gives up after an election timeout: see ``transferring``.
        """
        self.handover.begin(to)
        self.leader.must_send = True

    @property
    def transferring(self) -> bool:
        """As leader: whether leadership is being handed over; no request is taken in meanwhile."""
        return self.is_leader and self.handover.under_way

    def best_successor(self) -> int | None:
        """As leader: the other voter whose log has come furthest, among those that answer."""
        alive = [voter for voter in self.membership.others if voter in self.connected]
        return max(alive, key=lambda voter: self.progress[voter].match) if alive else None

    @property
    def needs_snapshot(self) -> frozenset[int]:
        """As leader: the reachable members that need what is no longer in the log."""
        if not self.is_leader:
            return frozenset()
        return frozenset(
            [
                member
                for member, progress in self.progress.items()
                if progress.state is SNAPSHOT and member in self.connected
            ]
        )

    def still_needs_snapshot(self, replica_id: int) -> bool:
        """As leader: whether a stream to this member, reachable or not, is of use."""
        progress = self.progress.get(replica_id)
        return progress is not None and progress.state is SNAPSHOT

    def on_snapshot_installed(self, replica_id: int, index: int) -> None:
        """As leader: this member has installed a snapshot of this term's stream, durably."""
        progress = self.progress.get(replica_id)
        if self.is_leader and progress is not None:
            self.leader.on_snapshot_installed(progress, index)

    # A step, in this order: receive, tick, apply what is committed, append, replicate

    def tick(self) -> None:
        """Run the timers: elections, heartbeats, and what a leader does by itself."""
        if self.is_leader and not self.leader.has_quorum():  # before it acts: it may have been frozen
            self.step_down()
        if self.is_leader:
            self.changes.take_care()
            self.handover.go_on()
        else:
            self.elections.tick(may_lead=self.may_lead)
        self.run_timers()
        self.elections.after_timers()

    def next_wakeup(self) -> float:
        """When ``tick`` must be called again even if nothing happens, in the clock's seconds."""
        return self.leader.next_send if self.is_leader else self.election_deadline

    def _on_elected(self) -> None:
        self.leader.begin_term_of_office()
        self.changes.begin_term_of_office()
        self.handover.give_up()

    def _is_handed_over(self, term: int) -> bool:
        return self.elections.is_handed_over(term)

    def committed_entries(self) -> list[LogEntry]:
        """The next entries for the state machine, one batch of them; none while it has to do with a snapshot.

        They are durable in this log: a leader counts itself for a majority, and its newest entries may just
        have been added.
        """
        if self.applied_index >= self.commit_index or self.recovering or self.needs_state:
            return []
        self._sync_before_apply()
        return self.log.entries(self.applied_index + 1, self.commit_index, self.timing.batch_bytes)

    def _sync_before_apply(self) -> None:
        self.log.sync()

    def on_applied(self, index: int) -> None:
        """The state machine holds the outcome of all entries up to ``index``."""
        self.applied_index = index

    def replicate(self) -> None:
        """As leader: send everybody what it lacks, or a heartbeat, if it is time."""
        if self.is_leader and (self.leader.must_send or self.leader.next_send <= time_of_step()):
            self.leader.replicate()

    def _on_heartbeat_due(self) -> None:
        self.leader.must_send = True
