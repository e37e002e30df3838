"""Raft as figure 2 of the paper has it, in its order and with its names, to be read beside it.

Ongaro and Ousterhout, *In Search of an Understandable Consensus Algorithm (Extended Version)*, 2014. What
stands in quotation marks is the figure's own; a section in brackets is where the paper gives its reason.

A message goes in and messages come out: no network, no thread, no clock, no disk. Whoever drives it carries
the messages, says what time it is, and makes the log durable *before* anything that came out leaves.
``raft_paper_replica`` does so, with the real log, disk and network, and in the simulator.

What the figure leaves open, and this file decides:

- Messages are no remote procedure calls: an answer comes by itself, late, or not at all. So it says which
  entry it is about (``AppendEntriesResult.log_index``), and one of another term counts for nothing.
- A leader begins its term with an entry that says nothing (8), and may have dropped the beginning of its log
  (7).

What it lacks, and what that costs, is in ``docs/raft-paper.md``.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from enum import Enum
from typing import NamedTuple, Protocol

from ondisk.raft.records import NO_OP, LogEntry

# What servers say to each other: the arguments and the results of figure 2


class AppendEntries(NamedTuple):
    """A request: "Invoked by leader to replicate log entries; also used as heartbeat"."""

    term: int  # "leader's term"
    leader_id: int  # "so follower can redirect clients"
    prev_log_index: int  # "index of log entry immediately preceding new ones"
    prev_log_term: int  # "term of prevLogIndex entry"
    entries: Sequence[LogEntry]  # "empty for heartbeat; may send more than one for efficiency"
    leader_commit: int  # "leader's commitIndex"


class AppendEntriesResult(NamedTuple):
    """Its answer. ``log_index`` is not in the figure: the logs are equal up to there, or differ there."""

    term: int  # "currentTerm, for leader to update itself"
    success: bool  # "true if follower contained entry matching prevLogIndex and prevLogTerm"
    log_index: int


class RequestVote(NamedTuple):
    """A request: "Invoked by candidates to gather votes"."""

    term: int  # "candidate's term"
    candidate_id: int  # "candidate requesting vote"
    last_log_index: int  # "index of candidate's last log entry"
    last_log_term: int  # "term of candidate's last log entry"


class RequestVoteResult(NamedTuple):
    """Its answer."""

    term: int  # "currentTerm, for candidate to update itself"
    vote_granted: bool  # "true means candidate received vote"


Message = AppendEntries | AppendEntriesResult | RequestVote | RequestVoteResult
Outgoing = list[tuple[int, Message]]  # to whom, and what


class Log(Protocol):
    """The "persistent state on all servers", which is "updated on stable storage before responding to RPCs".

    The first index is 1. After a snapshot the log begins behind ``base_index`` (7), which is 0 at first.
    """

    term: int  # currentTerm: "latest term server has seen, initialized to 0, increases monotonically"
    voted_for: int | None  # "candidateId that received vote in current term, or null if none"
    base_index: int

    @property
    def last_index(self) -> int:
        """The index of the last entry."""

    @property
    def last_term(self) -> int:
        """Its term."""

    def set_hard_state(self, term: int, voted_for: int | None) -> None:
        """Set the term and the vote, both at once."""

    def term_at(self, index: int) -> int | None:
        """The term of an entry, 0 at index 0; ``None`` where the log holds none."""

    def entries(self, first: int, last: int, max_bytes: int | None = None) -> list[LogEntry]:
        """Entries ``first`` to ``last``, both included; fewer if their commands exceed ``max_bytes``."""

    def append(self, entries: Sequence[LogEntry]) -> None:
        """Add entries at the end."""

    def truncate_from(self, index: int) -> None:
        """Delete the entry at ``index`` and all after it."""


class Role(Enum):
    """What a server is (figure 4)."""

    FOLLOWER = "follower"
    CANDIDATE = "candidate"
    LEADER = "leader"


FOLLOWER, CANDIDATE, LEADER = Role.FOLLOWER, Role.CANDIDATE, Role.LEADER


class Raft:
    """One server.

    Invariants (figure 3): at most one leader in a term; a leader never deletes or overwrites an entry of its
    own log; two logs that hold an entry of the same index and term are equal up to it; what is committed is
    in the logs of all later leaders; nobody applies another entry at an index that is applied.
    """

    # State

    def __init__(
        self,
        server_id: int,
        peers: Iterable[int],
        log: Log,
        *,
        now: float,
        election_timeout: Callable[[], float],
        heartbeat: float,
        last_applied: int = 0,
        max_bytes: int | None = None,
    ) -> None:
        """``election_timeout`` draws one, in seconds; ``heartbeat`` is the time between two of them, less
        than any of those (5.2). ``last_applied``: what the state machine holds already. ``max_bytes``: of
        commands in one message.
        """
        self.id = server_id
        self.peers = frozenset(peers)  # the other servers
        self._election_timeout = election_timeout
        self._heartbeat = heartbeat
        self._max_bytes = max_bytes

        # "Persistent state on all servers": the log, with currentTerm and votedFor in it.
        self.log = log

        # "Volatile state on all servers"
        self.commit_index = last_applied  # "index of highest log entry known to be committed"
        self.last_applied = last_applied  # "index of highest log entry applied to state machine"

        # "Volatile state on leaders. Reinitialized after election."
        self.next_index: dict[int, int] = {}  # "for each server, index of the next log entry to send to it"
        self.match_index: dict[int, int] = {}  # "index of highest log entry known to be replicated on it"

        # What the figure's rules speak of without a name.
        self.role = FOLLOWER
        self.leader_id: int | None = None
        self.votes: set[int] = set()  # who wants this candidate to lead
        self.election_deadline = now + election_timeout()
        self.heartbeat_due = now  # when the leader sends next

    @property
    def current_term(self) -> int:
        """currentTerm."""
        return self.log.term

    # AppendEntries RPC, receiver implementation

    def append_entries(self, request: AppendEntries, now: float) -> AppendEntriesResult:
        """Make this log equal to the leader's, up to the last of its new entries."""
        log, prev_log_index = self.log, request.prev_log_index

        # 1. "Reply false if term < currentTerm (5.1)"
        if request.term < self.current_term:
            return AppendEntriesResult(self.current_term, False, prev_log_index)
        self.follow(request.leader_id, now)

        # 2. "Reply false if log doesn't contain an entry at prevLogIndex whose term matches prevLogTerm
        # (5.3)". What a snapshot stands for is committed, and so it is equal (7).
        if prev_log_index >= log.base_index and log.term_at(prev_log_index) != request.prev_log_term:
            return AppendEntriesResult(self.current_term, False, prev_log_index)

        # 3. "If an existing entry conflicts with a new one (same index but different terms), delete the
        # existing entry and all that follow it (5.3)"
        new = [entry for entry in request.entries if entry.index > log.base_index]
        for entry in new:
            if entry.index <= log.last_index and log.term_at(entry.index) != entry.term:
                log.truncate_from(entry.index)
                break

        # 4. "Append any new entries not already in the log"
        log.append([entry for entry in new if entry.index > log.last_index])

        # 5. "If leaderCommit > commitIndex, set commitIndex = min(leaderCommit, index of last new entry)"
        last_new = max(prev_log_index + len(request.entries), log.base_index)
        # But never back: an old message, which comes late, proves less than what is known already.
        self.commit_index = max(self.commit_index, min(request.leader_commit, last_new))
        return AppendEntriesResult(self.current_term, True, last_new)

    # RequestVote RPC, receiver implementation

    def request_vote(self, request: RequestVote, now: float) -> RequestVoteResult:
        """Give a vote, or not."""
        # 1. "Reply false if term < currentTerm (5.1)"
        if request.term < self.current_term:
            return RequestVoteResult(self.current_term, False)

        # 2. "If votedFor is null or candidateId, and candidate's log is at least as up-to-date as receiver's
        # log, grant vote (5.2, 5.4)": the later last term, and of two equal ones the longer log (5.4.1).
        ends_with = (request.last_log_term, request.last_log_index)
        up_to_date = ends_with >= (self.log.last_term, self.log.last_index)
        vote_granted = self.log.voted_for in (None, request.candidate_id) and up_to_date
        if vote_granted:
            self.log.set_hard_state(self.current_term, request.candidate_id)
            self._reset_election_timer(now)
        return RequestVoteResult(self.current_term, vote_granted)

    # Rules for all servers

    def to_apply(self) -> list[LogEntry]:
        """Return the next entries to apply, in order. Whoever has applied them sets ``last_applied``.

        "If commitIndex > lastApplied: increment lastApplied, apply log[lastApplied] to state machine (5.3)"
        """
        if self.last_applied >= self.commit_index:
            return []
        return self.log.entries(self.last_applied + 1, self.commit_index, self._max_bytes)

    def see_term(self, term: int, now: float) -> None:
        """Never be behind.

        "If RPC request or response contains term T > currentTerm: set currentTerm = T, convert to follower
        (5.1)"
        """
        if term > self.current_term:
            self.log.set_hard_state(term, None)
            self.step_down(now)

    def step_down(self, now: float) -> None:
        """Convert to follower. Who the leader is, is not known."""
        if self.role is LEADER:
            self._reset_election_timer(now)
        self.role, self.leader_id = FOLLOWER, None

    def receive(self, sender: int, message: Message, now: float) -> Outgoing:
        """Take in one message; return what is to be sent, once the log is durable."""
        self.see_term(message.term, now)
        match message:
            case AppendEntries():
                return [(sender, self.append_entries(message, now))]
            case RequestVote():
                return [(sender, self.request_vote(message, now))]
            case RequestVoteResult():
                return self._on_vote(sender, message, now)
            case AppendEntriesResult():
                return self._on_result(sender, message)

    def tick(self, now: float) -> Outgoing:
        """Look at the timers: to be called often, and when the log is durable."""
        if self.role is LEADER:
            self.advance_commit_index()
        elif now > self.election_deadline:
            return self.start_election(now)
        return self.replicate(now)

    # Rules for followers (5.2)

    def follow(self, leader_id: int, now: float) -> None:
        """The leader of this term has said something.

        For candidates: "If AppendEntries RPC received from new leader: convert to follower".
        """
        self.role, self.leader_id = FOLLOWER, leader_id
        self._reset_election_timer(now)

    def _reset_election_timer(self, now: float) -> None:
        """Wait anew.

        "If election timeout elapses without receiving AppendEntries RPC from current leader or granting vote
        to candidate: convert to candidate"
        """
        self.election_deadline = now + self._election_timeout()

    # Rules for candidates (5.2)

    def start_election(self, now: float) -> Outgoing:
        """Stand: "On conversion to candidate, start election", and again "if election timeout elapses"."""
        self.role, self.leader_id = CANDIDATE, None
        self.log.set_hard_state(self.current_term + 1, self.id)  # "Increment currentTerm. Vote for self"
        self.votes = {self.id}
        self._reset_election_timer(now)  # "Reset election timer"
        if self._is_majority(len(self.votes)):  # it is alone
            return self.become_leader(now)
        # "Send RequestVote RPCs to all other servers"
        request = RequestVote(self.current_term, self.id, self.log.last_index, self.log.last_term)
        return [(peer, request) for peer in sorted(self.peers)]

    def _on_vote(self, sender: int, result: RequestVoteResult, now: float) -> Outgoing:
        """Count: "If votes received from majority of servers: become leader"."""
        if self.role is not CANDIDATE or result.term != self.current_term or sender not in self.peers:
            return []
        if result.vote_granted:
            self.votes.add(sender)
        return self.become_leader(now) if self._is_majority(len(self.votes)) else []

    def _is_majority(self, servers: int) -> bool:
        return 2 * servers > len(self.peers) + 1

    # Rules for leaders (5.2, 5.3, 5.4)

    def become_leader(self, now: float) -> Outgoing:
        """Lead: "Upon election: send initial empty AppendEntries RPCs (heartbeat) to each server"."""
        self.role, self.leader_id = LEADER, self.id
        self.next_index = dict.fromkeys(self.peers, self.log.last_index + 1)
        self.match_index = dict.fromkeys(self.peers, 0)
        self.propose([NO_OP], now)  # with it all that came before is committed, and it is known (8)
        return self.replicate(now)

    def propose(self, commands: Sequence[bytes], now: float) -> int:
        """Take commands in; return the index of the first one.

        "If command received from client: append entry to local log, respond after entry applied to state
        machine (5.3)"
        """
        first = self.log.last_index + 1
        self.log.append(
            [LogEntry(index, self.current_term, command) for index, command in enumerate(commands, first)]
        )
        self.heartbeat_due = now
        return first

    def replicate(self, now: float) -> Outgoing:
        """Send to all if it is time: at once if there are entries, and heartbeats.

        "Repeat during idle periods to prevent election timeouts (5.2)"
        """
        if self.role is not LEADER or now < self.heartbeat_due:
            return []
        self.heartbeat_due = now + self._heartbeat
        return [(follower, self._entries_for(follower)) for follower in sorted(self.peers)]

    def _entries_for(self, follower: int) -> AppendEntries:
        """Make a message.

        "If last log index >= nextIndex for a follower: send AppendEntries RPC with log entries starting at
        nextIndex"
        """
        log, next_index = self.log, self.next_index[follower]
        entries: list[LogEntry] = []
        # None if there is no more, and none if only a snapshot helps (7): that is a heartbeat.
        if next_index <= log.last_index and not self.needs_snapshot(follower):
            entries = log.entries(next_index, log.last_index, self._max_bytes)
        # Of what a snapshot stands for, the log has the last index and term only (7).
        prev_log_index = max(next_index - 1, log.base_index)
        prev_log_term = log.term_at(prev_log_index)
        assert prev_log_term is not None
        return AppendEntries(
            self.current_term, self.id, prev_log_index, prev_log_term, entries, self.commit_index
        )

    def _on_result(self, sender: int, result: AppendEntriesResult) -> Outgoing:
        """What an answer proves."""
        if self.role is not LEADER or result.term != self.current_term or sender not in self.peers:
            return []
        if result.success:
            # "If successful: update nextIndex and matchIndex for follower (5.3)"
            if not self.match(sender, result.log_index) or self.next_index[sender] > self.log.last_index:
                return []
        else:
            # "If AppendEntries fails because of log inconsistency: decrement nextIndex and retry (5.3)"
            if result.log_index != self.next_index[sender] - 1:
                return []  # the answer to an earlier try
            self.next_index[sender] = result.log_index
        return [(sender, self._entries_for(sender))]

    def match(self, follower: int, index: int) -> bool:
        """A follower's log is equal up to ``index``, durably. Return whether that is news."""
        if index <= self.match_index[follower]:
            return False
        self.match_index[follower], self.next_index[follower] = index, index + 1
        self.advance_commit_index()
        return True

    def advance_commit_index(self) -> None:
        """Find out what a majority holds.

        "If there exists an N such that N > commitIndex, a majority of matchIndex[i] >= N, and log[N].term ==
        currentTerm: set commitIndex = N (5.3, 5.4)"
        """
        held = sorted([self.log.last_index, *self.match_index.values()])
        n = held[(len(held) - 1) // 2]  # a majority holds this one, and all before
        if n > self.commit_index and self.log.term_at(n) == self.current_term:
            self.commit_index = n

    # Log compaction (7). Who drives this server makes snapshots, and carries them.

    def needs_snapshot(self, follower: int) -> bool:
        """As leader: does only a snapshot help this follower?

        So it is "when the leader has already discarded the next log entry that it needs to send" (7).
        """
        return self.next_index[follower] <= self.log.base_index

    def install_snapshot(self, index: int) -> None:
        """The state machine now holds the state after entry ``index``, and the log begins behind it."""
        # Only what is committed was applied, and is in a snapshot; the commit index never goes back.
        self.commit_index = max(self.commit_index, index)
        # The state machine was replaced, whatever it held before.
        self.last_applied = index
