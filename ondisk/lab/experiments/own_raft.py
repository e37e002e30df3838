"""A Raft of the reader's own: figure 2 with holes, a test for each stage, and the simulator as the judge.

The holes are methods of ``raft_paper.Raft``, and the starter is made of its source: so the two cannot drift
apart. What is filled in is a subclass, and everything else is the figure.
"""

from __future__ import annotations

import inspect
import re
import textwrap
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path

from ondisk.lab import raft_paper
from ondisk.lab.raft_paper import (
    AppendEntries,
    AppendEntriesResult,
    Raft,
    RequestVote,
    RequestVoteResult,
)
from ondisk.lab.raft_paper_replica import PAPER_FAULTS, PaperRaftThatStepsDown
from ondisk.raft.records import LogEntry
from ondisk.simulation.invariants import Violation
from ondisk.simulation.run import Report, Setting, reduce, run
from ondisk.testing.crashing import load_file

HOLES = {
    "election": ("request_vote", "start_election", "_on_vote"),
    "persistence": ("see_term",),
    "log": ("append_entries", "_on_result"),
    "commit": ("advance_commit_index", "to_apply"),
    "compaction": ("needs_snapshot", "_entries_for", "install_snapshot"),
}
"""By stage: the methods that the reader writes."""

_BEGINNING = '''"""My Raft: figure 2 of the paper, with holes to be filled in."""

from ondisk.lab.raft_paper import (
    CANDIDATE,
    FOLLOWER,
    LEADER,
    AppendEntries,
    AppendEntriesResult,
    Raft,
    RequestVote,
    RequestVoteResult,
)


class MyRaft(Raft):
'''


def source_of(method: str) -> str:
    """A method as it stands in ``raft_paper``, without its indentation."""
    return textwrap.dedent(inspect.getsource(getattr(Raft, method)))


def starter() -> str:
    """The file with the holes: of each method its head, its docstring and its comments, and no code."""
    return _file_of(_with_a_hole(source_of(method)) for methods in HOLES.values() for method in methods)


def solution(**other: str) -> str:
    """The same file with all holes filled, some of them with ``other`` source."""
    methods = [method for methods in HOLES.values() for method in methods]
    return _file_of(other.get(method, source_of(method)) for method in methods)


def _file_of(methods: Iterable[str]) -> str:
    text = "\n".join(textwrap.indent(method, "    ") for method in methods)
    return _BEGINNING + text.replace(" -> Outgoing", "").replace(" -> list[LogEntry]", "")


def _with_a_hole(source: str) -> str:
    head, docstring, body = source.split('"""', 2)
    comments = [f"    {comment}" for comment in re.findall(r"(?:^| )(# .+)$", body, re.MULTILINE)]
    hole = "    raise NotImplementedError  # yours"
    return "\n".join([f'{head}"""{docstring}"""', *comments, hole]) + "\n"


def load(file: Path | str) -> type[Raft]:
    """``MyRaft`` of this file. Raises whatever the file raises."""
    mine: type[Raft] = load_file(file, "ondisk_raft_of_a_reader").MyRaft
    return mine


# What a stage is tested with: servers, and logs in memory


class MemoryLog:
    """A log that is always durable, and survives its server."""

    def __init__(self, *terms: int, base: int = 0) -> None:
        """Entries of these terms, after ``base`` of term 1 that were dropped."""
        self.term, self.voted_for = max(terms, default=0), None  # type: int, int | None
        self.base_index = base
        self._entries = entries(base + 1, *terms)

    @property
    def last_index(self) -> int:
        """The index of the last entry."""
        return self.base_index + len(self._entries)

    @property
    def last_term(self) -> int:
        """Its term."""
        return self.term_at(self.last_index) or 0

    def set_hard_state(self, term: int, voted_for: int | None) -> None:
        """Set the term and the vote."""
        self.term, self.voted_for = term, voted_for

    def term_at(self, index: int) -> int | None:
        """The term of an entry."""
        if index == self.base_index:
            return 1 if index else 0
        held = self.base_index < index <= self.last_index
        return self._entries[index - self.base_index - 1].term if held else None

    def entries(self, first: int, last: int, max_bytes: int | None = None) -> list[LogEntry]:
        """Entries ``first`` to ``last``."""
        return self._entries[first - self.base_index - 1 : last - self.base_index]

    def append(self, entries: Sequence[LogEntry]) -> None:
        """Add entries at the end."""
        self._entries += entries

    def truncate_from(self, index: int) -> None:
        """Delete the entry at ``index`` and all after it."""
        del self._entries[index - self.base_index - 1 :]

    @property
    def terms(self) -> list[int]:
        """The terms of all entries."""
        return [entry.term for entry in self._entries]


def entries(first: int, *terms: int) -> list[LogEntry]:
    """Entries of these terms, from index ``first`` on."""
    return [LogEntry(index, term, b"") for index, term in enumerate(terms, first)]


def _server(raft: type[Raft], log: MemoryLog, *, of: int = 3) -> Raft:
    """Server 1 of so many. Its election timer runs out after a second."""
    return raft(1, range(2, of + 1), log, now=0.0, election_timeout=lambda: 1.0, heartbeat=0.1)


def _leader(raft: type[Raft], log: MemoryLog, *, of: int = 3) -> Raft:
    """The same as the leader of the next term, whatever its elections are like."""
    server = _server(raft, log, of=of)
    log.set_hard_state(log.term + 1, 1)
    server.become_leader(0.0)
    return server


# The stages. Each question is a function: it returns what is wrong.


def _stands(raft: type[Raft]) -> str | None:
    log = MemoryLog(1, 2)
    server = _server(raft, log)
    sent = server.start_election(1.1)
    if (log.term, log.voted_for) != (3, 1):
        return "Who stands for election begins the next term, and votes for itself: both belong into the log."
    if sorted(sent) != [(2, RequestVote(3, 1, 2, 2)), (3, RequestVote(3, 1, 2, 2))]:
        return "Ask all peers for their votes, in the new term, with index and term of your last entry."
    if server.role is not raft_paper.CANDIDATE or server.election_deadline <= 1.1:
        return "Who stands is a candidate, and its timer begins anew: nobody may win."
    return None


def _votes(raft: type[Raft]) -> str | None:
    log = MemoryLog(1, 2)
    log.term = 3
    server = _server(raft, log)

    def asked(term: int, candidate: int, index: int, last_term: int) -> bool:
        return server.request_vote(RequestVote(term, candidate, index, last_term), 0.5).vote_granted

    if asked(2, 2, 2, 2):
        return "A candidate of an older term gets no vote."
    if asked(3, 2, 1, 2) or asked(3, 2, 9, 1):
        return (
            "No vote for a log that is behind yours: the last term decides, and of two equal ones the index."
        )
    if not asked(3, 2, 2, 2) or log.voted_for != 2:
        return "A log that ends as yours does is good enough, and the vote belongs into the log."
    if asked(3, 3, 9, 3):
        return "One vote in a term: two candidates could have a majority each."
    if not asked(3, 2, 2, 2):
        return "The candidate that has your vote may ask again: its answer may have been lost."
    return None


def _counts(raft: type[Raft]) -> str | None:
    server = _server(raft, MemoryLog(), of=5)
    server.log.set_hard_state(1, 1)
    server.role, server.votes = raft_paper.CANDIDATE, {1}
    for sender, answer in ((2, True), (2, True), (3, False)):
        server._on_vote(sender, RequestVoteResult(1, answer), 0.1)
    server._on_vote(3, RequestVoteResult(0, True), 0.1)
    if server.role is raft_paper.LEADER:
        return "A majority of five is three voters, each counted once, and only those who vote in this term."
    server._on_vote(3, RequestVoteResult(1, True), 0.1)
    return None if server.role is raft_paper.LEADER else "Three of five are a majority: become leader."


def _remembers(raft: type[Raft]) -> str | None:
    log = MemoryLog(1)
    log.set_hard_state(2, 3)
    server = _leader(raft, log)
    term = log.term
    server.see_term(term, 0.5)
    if (log.term, log.voted_for) != (term, 1) or server.role is not raft_paper.LEADER:
        return "A message of your own term, or of an older one, changes nothing: not even your vote."
    server.see_term(term + 2, 0.5)
    if log.term != term + 2:
        return "A newer term belongs into the log, and before anything is answered: a restart must find it."
    if log.voted_for is not None:
        return "In a newer term nobody has your vote yet."
    return None if server.role is raft_paper.FOLLOWER else "Who hears of a newer term is a follower in it."


def _compares(raft: type[Raft]) -> str | None:
    log = MemoryLog(1, 1, 2)
    server = _server(raft, log)
    for prev, term in ((5, 2), (3, 1)):
        if server.append_entries(AppendEntries(2, 2, prev, term, [], 0), 0.5).success:
            return "Refuse if your log does not hold the entry before the new ones, or another one there."
    if server.append_entries(AppendEntries(1, 2, 3, 2, [], 0), 0.5).success:
        return "Refuse the leader of an older term."
    server.append_entries(AppendEntries(2, 2, 1, 1, entries(2, 1), 0), 0.5)
    if log.terms != [1, 1, 2]:
        return "An old message, or one that comes twice, takes nothing away: cut where an entry *differs*."
    server.append_entries(AppendEntries(3, 2, 1, 1, entries(2, 3), 3), 0.5)
    if log.terms != [1, 3]:
        return "Where an entry has another term than the leader's, it goes, and all after it."
    if server.commit_index != 2:
        return "Commit up to leaderCommit, and no further than the last new entry: the rest is not compared."
    server.append_entries(AppendEntries(3, 2, 1, 1, [], 1), 0.5)
    return (
        None if server.commit_index == 2 else "What is committed stays committed: the index never goes back."
    )


def _begins_late(raft: type[Raft]) -> str | None:
    log = MemoryLog(1, base=4)
    result = _server(raft, log).append_entries(AppendEntries(2, 2, 2, 1, entries(3, 1, 1, 1, 2), 0), 0.5)
    if not result.success or log.terms != [1, 2]:
        return "What the log has dropped is committed, and equal: look only at entries behind base_index."
    return None


def _backs_up(raft: type[Raft]) -> str | None:
    server = _leader(raft, MemoryLog(1, 1, 1, 1))
    term = server.current_term
    sent = server._on_result(2, AppendEntriesResult(term, False, 4))
    if server.next_index[2] != 4 or [message.prev_log_index for _, message in sent] != [3]:  # type: ignore[union-attr]
        return "Refused: decrement nextIndex, and try again at once."
    if server._on_result(2, AppendEntriesResult(term, False, 4)) or server.next_index[2] != 4:
        return "A second answer to the same try says nothing new: look at log_index."
    server._on_result(2, AppendEntriesResult(term - 1, True, 5))
    if server.match_index[2]:
        return "An answer of another term counts for nothing: that follower may have cut its log since."
    server._on_result(2, AppendEntriesResult(term, True, 3))
    return (
        None if server.match_index.get(2) == 3 else "A success says up to where the logs are equal: note it."
    )


def _commits(raft: type[Raft]) -> str | None:
    server = _leader(raft, MemoryLog(1, 1), of=5)  # its own entry is the third

    def acknowledged(*indexes: int) -> int:
        server.match_index = dict(enumerate(indexes, 2))
        server.advance_commit_index()
        return server.commit_index

    if acknowledged(3, 0, 0, 0):
        return "Two of five are no majority, the leader among them."
    if acknowledged(2, 2, 2, 0):
        return "A majority holds entry 2, and it is of an older term: it may still be overwritten (figure 8)."
    if acknowledged(3, 3, 0, 0) != 3:
        return "Three of five hold an entry of your own term: it is committed, and all before it."
    server.propose([b""], 0.1)
    if acknowledged(4, 4, 0, 0) < acknowledged(3, 3, 0, 0):
        return "The next entry is held by three of five, too."
    return None if server.commit_index == 4 else "What is committed stays committed."


def _applies(raft: type[Raft]) -> str | None:
    server = _server(raft, MemoryLog(1, 1, 1, 1))
    server.last_applied, server.commit_index = 1, 3
    if [entry.index for entry in server.to_apply()] != [2, 3]:
        return "Apply each entry after lastApplied, up to commitIndex, in order, and none twice."
    server.last_applied = 3
    return "There is nothing more to apply." if server.to_apply() else None


def _falls_behind(raft: type[Raft]) -> str | None:
    server = _leader(raft, MemoryLog(1, 1, 1, base=4))  # entries 5 to 7 are left, and it begins with 8
    for next_index, helps in ((8, False), (6, False), (5, False), (4, True), (1, True)):
        server.next_index[2], server.match_index[2] = next_index, 0
        if bool(server.needs_snapshot(2)) != helps:
            return (
                "Entries up to base_index are gone: whose nextIndex is one of these needs a snapshot."
                if helps
                else "What comes behind base_index is in the log, whatever the follower has acknowledged."
            )
    return None


def _says_what_it_can(raft: type[Raft]) -> str | None:
    server = _leader(raft, MemoryLog(1, 1, 1, base=4))
    server.commit_index = 6
    for next_index, sent, prev in ((6, [6, 7, 8], 5), (5, [5, 6, 7, 8], 4), (9, [], 8), (3, [], 4)):
        server.next_index[2] = next_index
        try:
            message = server._entries_for(2)
        except AssertionError:
            return "The entry before nextIndex may be dropped: then base_index is the last one with a term."
        if [entry.index for entry in message.entries] != sent:
            return "Send all from nextIndex on; but nothing if the log begins later, or there is nothing new."
        if (message.prev_log_index, message.prev_log_term) != (prev, server.log.term_at(prev)):
            return "The entry before nextIndex may be dropped: then base_index is the last one with a term."
        if message.leader_commit != 6:
            return "leaderCommit is what you know to be committed, not what you hold."
    return None


def _installs(raft: type[Raft]) -> str | None:
    for known, index in ((2, 5), (9, 5)):
        server = _server(raft, MemoryLog(1, 1, 1, 1, base=5))
        server.commit_index, server.last_applied = known, 2
        server.install_snapshot(index)
        if server.commit_index < max(known, index):
            return "What is in a snapshot is committed, and what is committed stays committed."
        if server.commit_index > max(known, index):
            return "A snapshot proves that entries up to its index are committed, and nothing of later ones."
        if server.last_applied != index:
            return "The state is now that of the snapshot: lastApplied is its index."
    return None


_QUESTIONS: dict[str, tuple[Callable[[type[Raft]], str | None], ...]] = {
    "election": (_stands, _votes, _counts),
    "persistence": (_remembers,),
    "log": (_compares, _begins_late, _backs_up),
    "commit": (_commits, _applies),
    "compaction": (_falls_behind, _says_what_it_can, _installs),
}


def examine(raft: type[Raft], stage: str) -> str | None:
    """What is wrong with this stage, in a sentence; ``None`` if nothing was found.

    The holes of other stages are filled with the figure's own code, so each stage can be the next one.
    """
    others = [method for other, methods in HOLES.items() if other != stage for method in methods]
    raft = type("Stage", (raft,), {method: getattr(Raft, method) for method in others})
    for question in _QUESTIONS[stage]:
        try:
            if (wrong := question(raft)) is not None:
                return wrong
        except NotImplementedError:
            return f"There is a hole yet: {', '.join(HOLES[stage])}."
        except Exception as error:
            return f"It raises {type(error).__name__}: {error}"
    return None


# The judge

SEEDS = range(10)  # that must be silent, of 20 virtual seconds each
_MAX_STEPS = 60_000  # in a run; some thousands are usual


def setting(raft: type[Raft], seconds: float = 20.0) -> Setting:
    """Runs with this Raft, in the world of the paper."""
    return Setting(
        seconds=seconds,
        raft_type=type("Mine", (PaperRaftThatStepsDown,), {"figure": raft}),
        kinds=PAPER_FAULTS,
    )


def judge(raft: type[Raft], seeds: Iterable[int], seconds: float = 20.0) -> Report | None:
    """The first violation among these seeds, with few faults; ``None`` if all are silent."""
    how = setting(raft, seconds)
    for seed in seeds:
        report = run(seed, how, observe=_Patience())
        if report.rule is not None:
            return report if report.rule == _ENDLESS else reduce(report, how, tries=60)
    return None


_ENDLESS = "endless"


class _Patience:
    """Ends a run in which somebody never rests: time would stand still, and nobody would ever know why."""

    def __init__(self) -> None:
        self._steps = 0

    def __call__(self, world: object) -> None:
        """After each step. Raises ``Violation`` when there were too many."""
        self._steps += 1
        if self._steps > _MAX_STEPS:
            raise Violation(_ENDLESS, f"{_MAX_STEPS:,} steps, and no end: a timer that is never set anew?")
