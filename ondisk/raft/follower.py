"""Follower: what becomes of the leader's entries (paper, 5.3)."""

from __future__ import annotations

from ondisk.errors import Corrupt
from ondisk.raft.elections import Elections
from ondisk.raft.engine import Engine
from ondisk.raft.membership import Membership
from ondisk.raft.messages import (
    AppendEntries,
    AppendEntriesRejection,
    AppendEntriesResponse,
    NewerTerm,
    SnapshotNeeded,
)
from ondisk.raft.records import LogEntry


class Follower:
    """Makes its log equal to the leader's.

    Invariants: the log is cut only where an entry contradicts the leader's, and never below what is
    committed. It commits no further than a message has proved the logs to be equal.
    """

    def __init__(self, engine: Engine, membership: Membership, elections: Elections) -> None:
        self._engine = engine
        self._log = engine.log
        self._membership = membership
        self._elections = elections

    def on_append_entries(self, sender: int, message: AppendEntries, *, lacks_state: bool) -> None:
        """Compare, cut, append, and answer. ``lacks_state``: ask for a snapshot instead."""
        engine, log = self._engine, self._log
        if message.term < engine.term:
            self._tell_deposed(sender)
            return
        self._elections.on_leader_contact(sender, message.term)
        promise = self._elections.promise
        engine.leader_commit = message.commit_index
        if lacks_state:
            engine.send(sender, SnapshotNeeded(engine.term, message.round, promise))
            return

        entries, prev_index = message.entries, message.prev_index
        if prev_index < log.base_index:  # what lies below the base is committed, hence equal
            entries = [entry for entry in entries if entry.index > log.base_index]
            prev_index = log.base_index
        elif any(entry.index != index for index, entry in enumerate(entries, prev_index + 1)):
            return  # no leader sends that
        elif log.term_at(prev_index) != message.prev_term:
            self._refuse_other_history(prev_index, message.prev_term)
            hint = self._conflict_hint(prev_index)
            engine.send(
                sender,
                AppendEntriesRejection(engine.term, hint, message.prev_index, message.round, promise),
            )
            return
        last = prev_index + len(entries)
        if entries := self._cut_conflict(prev_index, entries):
            log.append(entries)
            self._membership.adopt()
        engine.commit_index = max(engine.commit_index, self._proven_commit(message.commit_index, last))
        engine.send(
            sender, AppendEntriesResponse(engine.term, last, message.prev_index, message.round, promise)
        )

    def _tell_deposed(self, sender: int) -> None:
        """Tell a deposed leader that its term is over."""
        self._engine.send(sender, NewerTerm(self._engine.term))

    def _cut_conflict(self, prev_index: int, entries: list[LogEntry]) -> list[LogEntry]:
        """Cut the log where it contradicts ``entries``, and nowhere else; return those that it lacks."""
        log = self._log
        if prev_index >= log.last_index:
            return entries
        for position, entry in enumerate(entries):
            term = log.term_at(entry.index)
            if term == entry.term or entry.index <= log.base_index:
                continue
            self._refuse_other_history(entry.index, entry.term)
            if term is not None:
                log.truncate_from(entry.index)
                self._membership.adopt()
            return entries[position:]
        return []

    def _refuse_other_history(self, index: int, term: int) -> None:
        """What is committed here, no leader of this group can contradict."""
        if index <= self._engine.commit_index:
            raise Corrupt(
                f"{self._log.path}: entry {index} is committed here with term {self._log.term_at(index)}, "
                f"and the leader has one of term {term}: the group has another history. Was this directory "
                "left out of an import? Delete it, and let it catch up from the others"
            )

    def _proven_commit(self, commit_index: int, last: int) -> int:
        """How much of what the leader has committed is here: up to ``last`` the logs are equal."""
        return min(commit_index, last)

    def _conflict_hint(self, prev_index: int) -> int:
        """Where the leader should try next: after this log's end, or where the conflicting term begins."""
        conflicting = self._log.term_at(prev_index)
        if conflicting is None:
            return self._log.last_index + 1
        index = prev_index
        while index > self._engine.commit_index + 1 and self._log.term_at(index - 1) == conflicting:
            index -= 1
        return index
