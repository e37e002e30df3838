"""What must be true at every moment, whatever goes wrong: Raft's safety properties, and ours.

The names of the first four are the paper's (Ongaro and Ousterhout, 2014, figure 3). They are checked where
something becomes visible: when a message leaves, when an entry is applied, when somebody begins to lead.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Protocol

from ondisk.messages import AppendEntries, Message, RequestVote, Vote
from ondisk.raftlog import LogEntry, RaftLog
from ondisk.replica import Replica


class Violation(Exception):
    """Something that must never happen has happened. ``rule`` is its name."""

    def __init__(self, rule: str, what: str) -> None:
        super().__init__(f"{rule}: {what}")
        self.rule = rule


class Group(Protocol):
    """What the checks may look at, beyond the replica that moves."""

    @property
    def logs(self) -> Mapping[int, RaftLog]:
        """The log of each member, as it was last, also of those that are down."""


class Invariants:
    """The books about one run."""

    def __init__(self, group: Group) -> None:
        self._group = group
        self._leaders: dict[int, int] = {}  # term: who led
        self._votes: dict[tuple[int, int], int] = {}  # voter, term: for whom
        self._entries: dict[
            tuple[int, int], tuple[int | None, bytes]
        ] = {}  # index, term: term before, command
        self._committed: list[LogEntry | None] = [None]  # by index; ``None`` where nobody showed it
        self._terms = [0]  # of committed entries
        self._applied: dict[int, int] = {}  # by member: the last index in its present life
        self._led: dict[int, int] = {}  # by member: the term of which its leadership was checked
        self._wiped: set[int] = set()
        self._without_state: set[int] = set()

    # Where they look

    def started(self, replica: Replica) -> None:
        """A replica was opened."""
        log = replica.log
        assert log is not None
        if replica.opened_index < log.base_index and replica.id not in self._without_state:
            raise Violation(
                "compaction",
                f"replica {replica.id} dropped its log up to {log.base_index}, "
                f"but its state is back at {replica.opened_index}",
            )
        self._applied[replica.id] = replica.opened_index
        self._led.pop(replica.id, None)
        for index in range(log.base_index + 1, log.last_index + 1):
            self._see(replica.id, log, log.entries(index, index)[0])

    def wiped(self, member: int) -> None:
        """A replica lost its directory, and has every right to have forgotten its votes."""
        self._wiped.add(member)
        for voter, term in [key for key in self._votes if key[0] == member]:
            del self._votes[voter, term]

    def lost_state(self, member: int) -> None:
        """A replica lost its state, but not its log."""
        self._without_state.add(member)

    def appended(self, member: int, log: RaftLog, entries: Sequence[LogEntry]) -> None:
        """Log matching: an index and a term name one entry, and one entry before it, in all logs."""
        for entry in entries:
            self._see(member, log, entry)

    def _see(self, member: int, log: RaftLog, entry: LogEntry) -> None:
        known = self._entries.setdefault(
            (entry.index, entry.term), (log.term_at(entry.index - 1), entry.command)
        )
        if known != (log.term_at(entry.index - 1), entry.command):
            raise Violation(
                "log matching", f"replica {member} has another entry {entry.index} of term {entry.term}"
            )

    def sending(self, replica: Replica, to: int, message: Message) -> None:
        """A message leaves: what it says must be durable, and true."""
        log = replica.log
        if log is None:
            return
        if isinstance(message, AppendEntries) and message.term == replica.raft.term:
            self.commits(replica, min(message.commit_index, log.last_index))
        elif isinstance(message, RequestVote) and not message.pre:
            self._votes_for(replica.id, replica.id, message.term)  # who asks has voted for itself
        elif isinstance(message, Vote) and message.granted and not message.pre:
            self._votes_for(to, replica.id, message.term)

    def _votes_for(self, candidate: int, voter: int, term: int) -> None:
        if self._votes.setdefault((voter, term), candidate) != candidate:
            raise Violation("one vote", f"replica {voter} voted twice in term {term}")

    def commits(self, replica: Replica, index: int) -> None:
        """State machine safety: what is committed is the same everywhere, and on the disks of a majority."""
        log = replica.log
        assert log is not None
        known = len(self._terms) - 1
        if index <= known:
            term = log.term_at(index)
            if term is not None and term != self._terms[index]:
                raise Violation(
                    "state machine safety",
                    f"replica {replica.id} takes entry {index} of term {term} for committed, "
                    f"which is of term {self._terms[index]}",
                )
            return
        term = log.term_at(index)
        holders = {
            member for member, other in self._group.logs.items() if self._holds(member, other, index, term)
        }
        # The newest configuration counts, also for what stands before it; but it may have been appended in
        # this very step, after the one before it had decided about those.
        since, newest = log.configuration
        deciding = [newest] if index >= since else [newest, log.members_at(since - 1)]
        if all(2 * len(holders & {*members.voters}) <= len(members.voters) for members in deciding):
            raise Violation(
                "durable majority",
                f"replica {replica.id} takes entry {index} for committed, which only {sorted(holders)} hold",
            )
        for place in range(known + 1, index + 1):
            place_term = log.term_at(place)
            if place_term is None:
                raise Violation("gap", f"replica {replica.id} commits entry {place}, which it does not hold")
            self._terms.append(place_term)
            self._committed.append(None)

    def _holds(self, member: int, log: RaftLog, index: int, term: int | None) -> bool:
        return log.synced_index >= index and (log.term_at(index) == term or log.base_index > index)

    def applies(self, replica: Replica, entries: Sequence[LogEntry]) -> None:
        """Every replica applies the same entries in the same order, none twice, none before it is durable."""
        log = replica.log
        assert log is not None
        last = entries[-1].index
        if log.synced_index < last:
            raise Violation(
                "applied beyond the log",
                f"replica {replica.id} applies entry {last}, its log is durable up to {log.synced_index}",
            )
        if entries[0].index != self._applied[replica.id] + 1:
            raise Violation(
                "order",
                f"replica {replica.id} applies entry {entries[0].index} after {self._applied[replica.id]}",
            )
        self.commits(replica, last)
        for entry in entries:
            if self._committed[entry.index] is None:
                self._committed[entry.index] = entry
            elif self._committed[entry.index] != entry:
                raise Violation(
                    "state machine safety", f"replica {replica.id} applies something else at {entry.index}"
                )
        self._applied[replica.id] = last

    def installed(self, replica: Replica, index: int) -> None:
        """A snapshot took the place of all up to an entry."""
        self._without_state.discard(replica.id)
        if index < self._applied[replica.id]:
            raise Violation(
                "order", f"replica {replica.id} goes back from {self._applied[replica.id]} to {index}"
            )
        self._applied[replica.id] = index

    def stepped(self, replica: Replica) -> None:
        """Election safety and leader completeness; nobody fails without a reason."""
        if replica.log is None:
            if replica.status.role == "failed":
                raise Violation("replica failed", f"replica {replica.id}: {replica.status.error}")
            return
        if not replica.raft.is_leader or self._led.get(replica.id) == replica.raft.term:
            return
        term = self._led[replica.id] = replica.raft.term
        if self._leaders.setdefault(term, replica.id) != replica.id:
            raise Violation(
                "election safety", f"{self._leaders[term]} and {replica.id} both lead term {term}"
            )
        log = replica.log
        for index in range(max(1, log.base_index), len(self._terms)):
            if log.term_at(index) != self._terms[index]:
                raise Violation(
                    "leader completeness",
                    f"replica {replica.id} leads term {term} without entry {index} of term "
                    f"{self._terms[index]}, which is committed",
                )
