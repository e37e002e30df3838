"""The Raft of ``raft_paper`` in a real replica: on the real log, disk and network, and in the simulator.

A replica asks its ``raft_type`` for more than figure 2 has. What is asked for here is either translated into
the figure's terms, or refused, or answered as if it were never needed; ``docs/raft-paper.md`` says what that
costs. Nothing of the engine runs: ``PaperRaft`` has each method of ``ondisk.raft.Raft`` anew.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import NamedTuple

from ondisk.errors import ConfigurationError, Corrupt
from ondisk.lab import raft_paper as paper
from ondisk.raft import Raft, Timing, messages
from ondisk.raft.log import RaftLog
from ondisk.raft.members import Members
from ondisk.raft.messages import MembersChange, Message, Response
from ondisk.raft.records import REGULAR, LogEntry
from ondisk.replica import Replica

# What can go wrong in the world of the paper: servers crash and come back with their disks, and messages are
# late or lost (2.1). Nobody loses a disk, and nobody comes or goes.
PAPER_FAULTS = (
    "crash",
    "crash in a write",
    "crash all",
    "disk error",
    "pause",
    "partition",
    "cut",
    "stall",
    "loss",
    "latency",
    "slow disk",
    "skew",
    "burst",
    "compact",
    "damage",
    "late answers",
    "late start",
)


class PaperLeader:
    """What a replica asks its leader for: reads, which figure 2 does not have, but section 8.

    "Raft handles this by having the leader exchange heartbeat messages with a majority of the cluster before
    responding to read-only requests": so what it sends is numbered, and answers repeat the number.
    """

    def __init__(self, raft: PaperRaft) -> None:
        self._raft = raft
        self.round = 0  # of what was sent last
        self.answered: dict[int, int] = {}  # by follower: the newest round
        self.lease_until = float("-inf")  # there are no leases

    def start_round(self) -> int:
        """Ask every follower whether this is still its leader; return the number of that round."""
        self._raft.paper.heartbeat_due = self._raft.now
        return self.round + 1

    def confirmed_round(self) -> int:
        """The newest round that a majority has answered."""
        rounds = sorted([self.round + 1, *[self.answered.get(peer, 0) for peer in self._raft.paper.peers]])
        return rounds[(len(rounds) - 1) // 2]

    def committed_in_current_term(self) -> bool:
        """Whether the entry is committed with which it has begun."""
        return self._raft.log.term_at(self._raft.commit_index) == self._raft.term

    def has_lease(self, now: float) -> bool:
        """Never."""
        return False

    def slowest_match(self, patience: int) -> int:
        """Up to where the log may be dropped: whoever is behind is sent a snapshot, whatever that costs."""
        return self._raft.log.last_index


class PaperElections(NamedTuple):
    """What a picture asks about an election: its term, and who has voted for this replica."""

    votes: tuple[int, frozenset[int]]
    prevotes: tuple[int, frozenset[int]] = (0, frozenset())  # the paper has none


class PaperRaft(Raft):
    """``raft_paper.Raft``, as a replica knows the engine. For ``Replica.raft_type``."""

    figure: type[paper.Raft] = paper.Raft  # notebook 8 puts the reader's in its place
    leader: PaperLeader  # type: ignore[assignment]  # what a replica asks it

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
        """As ``Raft``, of which nothing else is called. Raises ``Corrupt`` if the log has lost entries."""
        if applied_index > log.last_index:
            raise Corrupt(
                f"{log.path}: the log ends at entry {log.last_index}, but the state machine holds entry "
                f"{applied_index}: the log has lost entries"
            )
        self.id, self.log, self.timing, self.send, self.rng = replica_id, log, timing, send, rng
        self.now = now  # of this step
        if log.last_term > log.term:
            log.set_hard_state(log.last_term, None)  # an import has a log, and no vote
        self.paper = self.figure(
            replica_id,
            (),
            log,
            now=now,
            election_timeout=self.random_election_timeout,
            heartbeat=timing.heartbeat,
            last_applied=applied_index,
            max_bytes=timing.batch_bytes,
        )
        self.progress = {}
        self.connected: set[int] = set()
        self.needs_state = applied_index < log.base_index
        self.recovering = False
        self.lost_state: set[int] = set()  # as leader: followers whose state is older than their log
        self._request: messages.AppendEntries | None = None  # that is being answered
        self.membership = self.membership_type(self)
        self.membership.start()
        self.leader = PaperLeader(self)
        self._wait_briefly()

    @contextmanager
    def at(self, now: float) -> Iterator[None]:  # type: ignore[override]
        """A step of the replica, in which time stands still."""
        self.now = now
        yield

    def random_election_timeout(self) -> float:
        """Seconds (5.2)."""
        return self.rng.uniform(self.timing.election_min, self.timing.election_max)

    def _wait_briefly(self) -> None:
        """No leader is known, or the connection to it has ended: no need to wait as for one that is slow."""
        first = self.timing.first_election
        self.election_deadline = self.now + self.rng.uniform(first, 3 * first)

    # The figure's state, under the engine's names

    @property
    def commit_index(self) -> int:  # type: ignore[override]
        """Entries up to here are committed."""
        return self.paper.commit_index

    @property
    def applied_index(self) -> int:  # type: ignore[override]
        """Entries up to here have been applied."""
        return self.paper.last_applied

    @property
    def role(self) -> str:
        """``leader``, ``follower`` or ``candidate``."""
        return self.paper.role.value

    @property
    def is_leader(self) -> bool:  # type: ignore[override]
        """Whether this replica believes that it leads."""
        return self.paper.role is paper.LEADER

    @property
    def term(self) -> int:
        """The current term."""
        return self.paper.current_term

    @property
    def leader_id(self) -> int | None:
        """The leader of this term as far as it is known."""
        return self.paper.leader_id

    @property
    def election_deadline(self) -> float:
        """When the election timer runs out, in the clock's seconds."""
        return self.paper.election_deadline

    @election_deadline.setter
    def election_deadline(self, at: float) -> None:
        self.paper.election_deadline = at

    @property
    def match_index(self) -> dict[int, int]:
        """As leader: matchIndex."""
        return dict(self.paper.match_index) if self.is_leader else {}

    @property
    def elections(self) -> PaperElections:  # type: ignore[override]
        """Who has voted for it, for pictures."""
        return PaperElections((self.term, frozenset(self.paper.votes)))

    def counted_of(self, replica_id: int) -> tuple[object, ...]:
        """What is counted of what another replica has said."""
        if self.is_leader and replica_id in self.paper.match_index:
            return self.paper.match_index[replica_id], self.leader.answered.get(replica_id)
        return self.term, replica_id in self.paper.votes

    # Messages: the figure's on the inside, those of the network on the outside

    def receive(self, sender: int, message: Message) -> None:
        """Handle one message. Answers go through ``send``."""
        if isinstance(message, Response) and not self.membership.counts(sender):
            return
        if isinstance(message, messages.AppendEntries):
            self._request = message
            if self.needs_state and self.on_leader_contact(sender, message.term):
                self.send(sender, messages.SnapshotNeeded(self.term, message.round))
                return
        elif isinstance(message, messages.AppendEntriesAnswer):
            self._note_answer(sender, message)
        if (received := self._from_wire(sender, message)) is not None:
            led = self.is_leader
            self._send(self.paper.receive(sender, received, self.now))
            if self.is_leader and not led:
                self._begin_to_lead()

    def _note_answer(self, sender: int, message: messages.AppendEntriesAnswer) -> None:
        if self.is_leader and message.term == self.term and message.round <= self.leader.round:
            newest = self.leader.answered.get(sender, 0)
            self.leader.answered[sender] = max(newest, message.round)
            if isinstance(message, messages.SnapshotNeeded):
                self.lost_state.add(sender)

    @staticmethod
    def _from_wire(sender: int, message: Message) -> paper.Message | None:
        match message:
            case messages.AppendEntries(term, prev_index, prev_term, entries, commit_index):
                return paper.AppendEntries(term, sender, prev_index, prev_term, entries, commit_index)
            case messages.AppendEntriesResponse(term, index):
                return paper.AppendEntriesResult(term, True, index)
            case messages.AppendEntriesRejection(term, _, prev_index):
                return paper.AppendEntriesResult(term, False, prev_index)
            case messages.RequestVote(term, last_index, last_term, False):
                return paper.RequestVote(term, sender, last_index, last_term)
            case messages.RequestVoteResponse(term, False):
                return paper.RequestVoteResult(term, True)
            case messages.NewerTerm(term) | messages.SnapshotNeeded(term):
                return paper.RequestVoteResult(term, False)  # the term is all that it says to the figure
        return None

    def _send(self, outgoing: paper.Outgoing) -> None:
        for to, message in outgoing:
            self.send(to, self._to_wire(message))

    def _to_wire(self, message: paper.Message) -> Message:
        match message:
            case paper.AppendEntries(term, _, prev_log_index, prev_log_term, entries, leader_commit):
                return messages.AppendEntries(
                    term, prev_log_index, prev_log_term, [*entries], leader_commit, self.leader.round
                )
            case paper.AppendEntriesResult():
                return self._result_to_wire(message)
            case paper.RequestVote(term, _, last_log_index, last_log_term):
                return messages.RequestVote(term, last_log_index, last_log_term, pre=False)
            case paper.RequestVoteResult(term, vote_granted):
                return (
                    messages.RequestVoteResponse(term, pre=False)
                    if vote_granted
                    else messages.NewerTerm(term)
                )

    def _result_to_wire(self, result: paper.AppendEntriesResult) -> Message:
        term, success, index = result
        assert self._request is not None
        round_number = self._request.round
        if self._request.term < term:
            return messages.NewerTerm(term)
        if success:
            return messages.AppendEntriesResponse(term, index, self._request.prev_index, round_number)
        return messages.AppendEntriesRejection(term, index, index, round_number)

    def set_connected(self, replica_ids: frozenset[int]) -> None:
        """Tell which replicas seem reachable. The paper knows no connections: its timer does all."""
        if self.leader_id in self.connected - replica_ids and not self.is_leader:
            self.paper.leader_id = None
            self._wait_briefly()
        self.connected = set(replica_ids)

    # A step: receive, tick, apply what is committed, append, replicate

    def tick(self) -> None:
        """Run the timers."""
        led = self.is_leader
        if led or self.may_lead:
            self._begin_round()
            self._send(self.paper.tick(self.now))
            if self.is_leader and not led:
                self._begin_to_lead()
        elif self.now > self.election_deadline:
            self.election_deadline = self.now + self.random_election_timeout()

    def _begin_round(self) -> None:
        """What is sent from now on has another number."""
        self.leader.round += 1

    def _begin_to_lead(self) -> None:
        self.leader.answered.clear()
        self.lost_state.clear()

    def next_wakeup(self) -> float:
        """When ``tick`` must be called again even if nothing happens, in the clock's seconds."""
        return self.paper.heartbeat_due if self.is_leader else self.election_deadline

    def committed_entries(self) -> list[LogEntry]:
        """The next entries for the state machine; none while it has to do with a snapshot."""
        if self.recovering or self.needs_state:
            return []
        self.log.sync()
        return self.paper.to_apply()

    def on_applied(self, index: int) -> None:
        """The state machine holds the outcome of all entries up to ``index``."""
        self.paper.last_applied = index

    def append(self, commands: Sequence[bytes]) -> int:
        """Put commands into the log; return the index of the first one."""
        return self.paper.propose([REGULAR + command for command in commands], self.now)

    def replicate(self) -> None:
        """As leader: send everybody what it lacks, or a heartbeat, if it is time."""
        if self.is_leader:
            self._begin_round()
            self._send(self.paper.replicate(self.now))

    # Members: those with which the group was founded

    @property
    def members(self) -> Members:
        """Who counts."""
        return self.membership.members

    @property
    def committed_members(self) -> Members:
        """The same, as they never change."""
        return self.membership.committed

    @property
    def may_lead(self) -> bool:
        """Whether an election may be tried: not before there is a group, and not without the state."""
        return self.membership.is_voter and not self.needs_state and not self.recovering

    def use_members(self, others: Iterable[int], learners: Iterable[int]) -> None:
        """The group has got its members."""
        self.paper.peers = frozenset(others)

    def begin_group(self) -> None:
        """The log has got its first members: from now on this replica may vote, and lead."""
        self.membership.adopt()
        self._wait_briefly()

    def change(self, change: MembersChange) -> int | None:
        """Refuse. Raises ``ConfigurationError``."""
        raise ConfigurationError("the Raft of figure 2 changes no members")

    def on_newcomer(self, replica_id: int, disk: bytes) -> None:
        """Nothing: who has lost its disk stays outside."""

    def transfer(self, to: int) -> None:
        """Refuse. Raises ``ConfigurationError``."""
        raise ConfigurationError("the Raft of figure 2 hands leadership to nobody")

    @property
    def transferring(self) -> bool:
        """Never."""
        return False

    def best_successor(self) -> int | None:
        """Nobody: there is no way to tell it."""
        return None

    # Snapshots (7): the replica streams them, where the paper has the InstallSnapshot RPC

    @property
    def needs_snapshot(self) -> frozenset[int]:
        """As leader: the reachable followers that need what is no longer in the log."""
        if not self.is_leader:
            return frozenset()
        return frozenset(peer for peer in self.connected if self.still_needs_snapshot(peer))

    def still_needs_snapshot(self, replica_id: int) -> bool:
        """As leader: whether a stream to this follower, reachable or not, is of use."""
        behind = replica_id in self.paper.next_index and self.paper.needs_snapshot(replica_id)
        return behind or replica_id in self.lost_state

    def on_snapshot_installed(self, replica_id: int, index: int) -> None:
        """As leader: this follower has installed a snapshot, durably."""
        if self.is_leader:
            self.lost_state.discard(replica_id)
            self.paper.match(replica_id, index)

    def on_leader_contact(self, leader: int, term: int) -> bool:
        """A chunk of a snapshot counts as a heartbeat. ``False``: it must not be answered."""
        if term < self.term:
            return False
        self.paper.see_term(term, self.now)
        self.paper.follow(leader, self.now)
        return True

    def install(self, index: int, term: int, members: Members) -> None:
        """The state machine now holds the state after entry ``index``, durably: begin there."""
        self.log.install(index, term, members)
        self.paper.install_snapshot(index)
        self.needs_state = False
        self.membership.adopt()


class PaperRaftThatStepsDown(PaperRaft):
    """Figure 2, and one thing more: a leader that a majority does not answer steps down (thesis, 6.2).

    Without it the simulator's rule *fresh evidence* ends nearly every run, and one sees no others.
    """

    def _begin_to_lead(self) -> None:
        super()._begin_to_lead()
        # By round, since the newest that a majority has answered.
        self._asked_at = {0: self.now, self.leader.round: self.now}

    def _begin_round(self) -> None:
        super()._begin_round()
        if self.is_leader:
            self._asked_at[self.leader.round] = self.now

    def tick(self) -> None:
        """Run the timers; but before a leader acts, it may have been frozen."""
        if self.is_leader and self.paper.peers:
            newest = self.leader.confirmed_round()
            self._asked_at = {asked: at for asked, at in self._asked_at.items() if asked >= newest}
            if self._asked_at[newest] < self.now - self.timing.election_max:
                self.paper.step_down(self.now)
        super().tick()


class PaperReplica(Replica):
    """A replica with the Raft of figure 2."""

    raft_type = PaperRaft
