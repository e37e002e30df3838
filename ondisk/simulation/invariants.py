"""What must be true at every moment, whatever goes wrong: Raft's safety properties, and ours.

The names of the first four are the paper's (Ongaro and Ousterhout, 2014, figure 3). They are checked where
something becomes visible: when a message leaves, when an answer is counted, when an entry is applied, when
somebody leads.

The books are about *disks* and *groups*, not about numbers: who lost its directory is somebody else under the
same number, and what the lost disk has promised stays on the books.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Protocol

from ondisk.raft.log import RaftLog
from ondisk.raft.members import Members
from ondisk.raft.messages import (
    AppendEntries,
    AppendEntriesAnswer,
    AppendEntriesResponse,
    Message,
    Origin,
    RequestVote,
    RequestVoteResponse,
    Response,
)
from ondisk.raft.records import MEMBERS, LogEntry
from ondisk.replica import Replica

_ROUNDING = 1e-6  # seconds


class Violation(Exception):
    """Something that must never happen has happened. ``rule`` is its name."""

    def __init__(self, rule: str, what: str) -> None:
        super().__init__(f"{rule}: {what}")
        self.rule = rule


class Disks(Protocol):
    """What the checks may look at, beyond the replica that moves."""

    @property
    def disks(self) -> Mapping[bytes, RaftLog]:
        """The log of each disk, as it was last: also of those that are down, and of those that are lost."""


class _Book:
    """What is known of one group, which begins after entry ``index`` of ``term`` if it was imported."""

    def __init__(self, index: int, term: int) -> None:
        self.leaders: dict[int, int] = {}  # by term
        self.entries: dict[
            tuple[int, int], tuple[int | None, bytes]
        ] = {}  # index, term: term before, command
        # By index; ``None`` where nobody showed the entry.
        self.committed: list[LogEntry | None] = [None] * (index + 1)
        self.terms = [0] * index + [term]  # of committed entries
        self.committed_in = [0] * (index + 1)  # the terms in which that was first seen
        self.members: Members | None = None  # as of the last of them

    @property
    def known(self) -> int:
        """The last index that is known to be committed."""
        return len(self.terms) - 1


class Evidence:
    """What a leader can know of who follows it: answers, each as of when it was *asked* for (E1)."""

    def __init__(self) -> None:
        self._asked: dict[int, float] = {}  # by round
        self._answers: dict[int, float] = {}  # by member: when the newest answer was asked for
        self._since: dict[int, float] = {}  # by voter: when it was first expected to answer
        self._term = 0

    def asks(self, term: int, round_number: int, now: float) -> None:
        """The leader of this term sends this round."""
        self._begin(term)
        self._asked.setdefault(round_number, now)

    def hears(self, term: int, member: int, round_number: int) -> None:
        """And an answer to it is counted."""
        if term != self._term:
            return
        asked = self._asked.get(round_number, float("-inf"))
        self._answers[member] = max(asked, self._answers.get(member, asked))

    def _begin(self, term: int) -> None:
        if term != self._term:
            self._term = term
            self._asked, self._answers, self._since = {}, {}, {}

    def silent(self, term: int, voters: Sequence[int], now: float, seconds: float) -> list[int]:
        """Which of these have answered nothing that was asked for within so many seconds."""
        self._begin(term)
        self._since = {voter: self._since.get(voter, now) for voter in voters}
        newest = {voter: max(self._since[voter], self._answered(voter)) for voter in voters}
        return [voter for voter in voters if newest[voter] < now - seconds - _ROUNDING]

    def unheard(self, voters: Sequence[int], now: float, seconds: float) -> list[int]:
        """The same, and nobody is given time."""
        return [voter for voter in voters if self._answered(voter) < now - seconds - _ROUNDING]

    def _answered(self, voter: int) -> float:
        return self._answers.get(voter, float("-inf"))


class Invariants:
    """The books about one run."""

    def __init__(self, group: Disks) -> None:
        self._group = group
        self._books: dict[bytes, _Book] = {}
        self._beginning = (0, 0)  # index and term after which a group's log begins
        self._living: bytes | None = None  # the group that has elected a leader, or acknowledged anything
        self._votes: dict[tuple[bytes, int], int] = {}  # disk, term: for whom
        # By the identity of a replica, of which each life is an object of its own.
        self._copies: set[int] = set()  # who runs on a copy of a directory that lives on, or has
        self._copied_lives: set[tuple[bytes, int]] = set()  # their disks and random numbers
        self._strangers: set[int] = set()  # who runs on the directory of another group
        self._evidence: dict[int, Evidence] = {}
        self._applied: dict[int, int] = {}  # the last index
        self._led: dict[int, int] = {}  # the term of which its leadership was checked
        self._without_state: set[bytes] = set()  # disks

    def _book(self, log: RaftLog) -> _Book:
        group = log.members.group
        if group not in self._books:
            self._books[group] = _Book(*self._beginning)
        return self._books[group]

    # What the run tells

    def begin_anew(self, index: int = 0, term: int = 0) -> None:
        """The group has lost a majority of its disks: another one begins, with what an import holds."""
        self._beginning = index, term
        self._living = None

    def lost_state(self, disk: bytes) -> None:
        """A replica lost its state, but not its log."""
        self._without_state.add(disk)

    def is_without_state(self, disk: bytes) -> bool:
        """Whether what its log has dropped is lost."""
        return disk in self._without_state

    def deciding(self, logs: Mapping[bytes, RaftLog]) -> Iterator[Members]:
        """Who may decide: the members of each group that has one of these logs, as far as they are committed,
        and those newer ones that may be."""
        for group in {log.members.group: None for log in logs.values() if log.members.group}:
            mine = [log for log in logs.values() if log.members.group == group]
            book = self._book(mine[0])
            yield book.members or mine[0].members_at(book.known)
            yield from (log.members for log in mine if log.configuration[0] > book.known)

    # Where they look

    def started(self, replica: Replica, *, copy: bool = False, stranger: bool = False) -> None:
        """A replica was opened, perhaps on an old copy of its directory, or on that of another group."""
        log = replica.log
        assert log is not None
        self._copies.discard(id(replica))
        self._strangers.discard(id(replica))
        if copy:
            self._copies.add(id(replica))
            assert log.identity is not None
            self._copied_lives.add((log.disk_id, log.identity.nonces[0]))
        if stranger:
            self._strangers.add(id(replica))
        if replica.opened_index >= log.base_index:
            self._without_state.discard(log.disk_id)
        elif log.disk_id not in self._without_state:
            raise Violation(
                "compaction",
                f"replica {replica.id} dropped its log up to {log.base_index}, "
                f"but its state is back at {replica.opened_index}",
            )
        self._applied[id(replica)] = replica.opened_index
        self._led.pop(id(replica), None)
        self._evidence[id(replica)] = Evidence()
        for index in range(log.base_index + 1, log.last_index + 1):
            self._see(replica.id, log, log.entries(index, index)[0])

    def appended(self, replica: Replica, entries: Sequence[LogEntry], now: float = 0.0) -> None:
        """Log matching: an index and a term name one entry, and one entry before it, in all logs.

        And a leader changes the members only when a majority of the new ones has just answered (C2).
        """
        log = replica.log
        assert log is not None
        for entry in entries:
            self._see(replica.id, log, entry)
            if replica.raft.is_leader and entry.term == replica.raft.term and entry.command[:1] == MEMBERS:
                self._changes_members(replica, log.members, now)
                self._replaces(replica, log.members_at(entry.index - 1), log.members, now)

    def _changes_members(self, replica: Replica, members: Members, now: float) -> None:
        others = [voter for voter in members.voters if voter != replica.id]
        silent = self._evidence[id(replica)].unheard(others, now, replica.raft.timing.election_max)
        if 2 * len(silent) >= len(members.voters):
            raise Violation(
                "checked changes",
                f"replica {replica.id} makes {list(members.voters)} the voters, and has not heard {silent}",
            )

    def _replaces(self, replica: Replica, before: Members, members: Members, now: float) -> None:
        """Who lives keeps its place (W2): a disk is replaced when nothing that it was asked is answered."""
        lost = {voter for voter in before.voters if before.disk_of(voter) in members.replaced}
        silent = self._evidence[id(replica)].unheard([*lost], now, replica.raft.timing.election_max)
        if alive := sorted(lost.difference(silent)):
            raise Violation(
                "living disk", f"replica {replica.id} replaces the disks of {alive}, which have just answered"
            )

    def _see(self, member: int, log: RaftLog, entry: LogEntry) -> None:
        before = log.term_at(entry.index - 1), entry.command
        if self._book(log).entries.setdefault((entry.index, entry.term), before) != before:
            raise Violation(
                "log matching", f"replica {member} has another entry {entry.index} of term {entry.term}"
            )

    def sending(self, replica: Replica, to: int, message: Message, now: float = 0.0) -> None:
        """A message leaves: what it says must be durable, and true."""
        log = replica.log
        if log is None or id(replica) in self._copies:  # a copy has forgotten: see ``counts``
            return
        if isinstance(message, AppendEntries) and message.term == replica.raft.term:
            self._evidence[id(replica)].asks(message.term, message.round, now)
            self.commits(replica, min(message.commit_index, log.last_index))
        elif isinstance(message, AppendEntriesResponse):
            self._lives(replica)
        elif isinstance(message, RequestVote) and not message.pre:
            self._votes_for(replica.id, replica, message.term)  # who asks has voted for itself
        elif isinstance(message, RequestVoteResponse) and not message.pre:
            self._votes_for(to, replica, message.term)

    def _votes_for(self, candidate: int, replica: Replica, term: int) -> None:
        assert replica.log is not None
        if self._votes.setdefault((replica.log.disk_id, term), candidate) != candidate:
            raise Violation("one vote", f"replica {replica.id} voted twice in term {term}")

    def _lives(self, replica: Replica) -> None:
        """One group: whoever leads or acknowledges anything belongs to the same."""
        assert replica.log is not None
        group = replica.log.members.group
        if self._living is None:
            self._living = group
        if group != self._living:
            raise Violation(
                "one group", f"replica {replica.id} serves another group than the one that there is"
            )

    def counts(self, replica: Replica, sender: int, origin: Origin, message: Response) -> None:
        """A vote or an acknowledgement was counted: it must be the newest word of the disk that counts."""
        members = replica.raft.members
        if origin.group != members.group:
            raise Violation(
                "one group", f"replica {replica.id} counts an answer of replica {sender}, of another group"
            )
        if sender in members.voters and members.disk_of(sender) != origin.disk:
            raise Violation(
                "one disk",
                f"replica {replica.id} counts an answer of replica {sender} that is not of the disk that "
                "the members name",
            )
        if (origin.disk, origin.nonce) in self._copied_lives:
            raise Violation(
                "newest life", f"replica {replica.id} counts an answer of an old copy of replica {sender}"
            )
        if isinstance(message, AppendEntriesAnswer):
            self._evidence[id(replica)].hears(message.term, sender, message.round)

    def commits(self, replica: Replica, index: int) -> None:
        """State machine safety: what is committed is the same everywhere, and on the disks of a majority."""
        log = replica.log
        assert log is not None
        book = self._book(log)
        known = book.known
        if index <= known:
            term = log.term_at(index)
            if term is not None and term != book.terms[index]:
                raise Violation(
                    "state machine safety",
                    f"replica {replica.id} takes entry {index} of term {term} for committed, "
                    f"which is of term {book.terms[index]}",
                )
            return
        term = log.term_at(index)
        holders = {disk for disk, other in self._group.disks.items() if self._holds(other, index, term)}
        # The newest configuration counts, also for what stands before it; but it may have been appended in
        # this very step, after the one before it had decided about those.
        since, newest = log.configuration
        deciding = [newest] if index >= since else [newest, log.members_at(since - 1)]
        holding = [
            [voter for voter in members.voters if members.disk_of(voter) in holders] for members in deciding
        ]
        if all(
            2 * len(found) <= len(members.voters) for found, members in zip(holding, deciding, strict=True)
        ):
            raise Violation(
                "durable majority",
                f"replica {replica.id} takes entry {index} for committed, which only the disks of "
                f"{sorted({voter for found in holding for voter in found})} hold",
            )
        for place in range(known + 1, index + 1):
            place_term = log.term_at(place)
            if place_term is None:
                raise Violation("gap", f"replica {replica.id} commits entry {place}, which it does not hold")
            book.terms.append(place_term)
            book.committed_in.append(replica.raft.term)
            book.committed.append(None)
        book.members = log.members_at(index)

    def _holds(self, log: RaftLog, index: int, term: int | None) -> bool:
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
        if entries[0].index != self._applied[id(replica)] + 1:
            raise Violation(
                "order",
                f"replica {replica.id} applies entry {entries[0].index} after {self._applied[id(replica)]}",
            )
        self.commits(replica, last)
        committed = self._book(log).committed
        for entry in entries:
            if committed[entry.index] is None:
                committed[entry.index] = entry
            elif committed[entry.index] != entry:
                raise Violation(
                    "state machine safety", f"replica {replica.id} applies something else at {entry.index}"
                )
        self._applied[id(replica)] = last

    def installed(self, replica: Replica, index: int) -> None:
        """A snapshot took the place of all up to an entry."""
        assert replica.log is not None
        self._without_state.discard(replica.log.disk_id)
        if index < self._applied[id(replica)]:
            raise Violation(
                "order", f"replica {replica.id} goes back from {self._applied[id(replica)]} to {index}"
            )
        self._applied[id(replica)] = index

    def stepped(self, replica: Replica, now: float = 0.0) -> None:
        """One group, election safety, leader completeness, fresh evidence; nobody fails without a reason."""
        log = replica.log
        if log is None:
            if replica.status.role == "failed":
                raise Violation("replica failed", f"replica {replica.id}: {replica.status.error}")
            return
        group, known = log.members.group, self._living
        if group and known not in (None, group) and id(replica) not in self._strangers | self._copies:
            raise Violation(
                "one group", f"replica {replica.id} belongs to another group than the one that there is"
            )
        if not replica.raft.is_leader:
            return
        term = replica.raft.term
        others = [voter for voter in log.members.voters if voter != replica.id]
        silent = self._evidence[id(replica)].silent(term, others, now, replica.raft.timing.election_max)
        if others and 2 * len(silent) >= len(others) + 1:
            raise Violation(
                "fresh evidence",
                f"replica {replica.id} goes on to lead term {term}, and nothing that it asked of {silent} "
                "within an election timeout was answered",
            )
        if self._led.get(id(replica)) == term:
            return
        self._led[id(replica)] = term
        self._lives(replica)
        book = self._book(log)
        if book.leaders.setdefault(term, replica.id) != replica.id:
            raise Violation("election safety", f"{book.leaders[term]} and {replica.id} both lead term {term}")
        for index in range(max(1, log.base_index), len(book.terms)):
            # Late votes may elect a leader of a term that is over: it has what was committed before its term.
            if book.committed_in[index] < term and log.term_at(index) != book.terms[index]:
                raise Violation(
                    "leader completeness",
                    f"replica {replica.id} leads term {term} without entry {index} of term "
                    f"{book.terms[index]}, which is committed",
                )
