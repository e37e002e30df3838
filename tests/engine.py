"""Raft's engine alone, with a log and nothing else: one message in, and what comes out."""

from __future__ import annotations

import random
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from ondisk.raft import Raft, Timing
from ondisk.raft.log import RaftLog
from ondisk.raft.members import Members
from ondisk.raft.messages import (
    AppendEntries,
    AppendEntriesAnswer,
    AppendEntriesResponse,
    Message,
    NewerTerm,
    RequestVote,
    RequestVoteResponse,
)
from ondisk.raft.records import REGULAR, LogEntry


def disk_of(number: int) -> bytes:
    """The disk with which a member speaks."""
    return bytes([number]) * 16


class Engine:
    """Replica 1 of a group. The others are what a test says in their name."""

    def __init__(
        self,
        directory: Path,
        voters: int = 3,
        *,
        learners: Iterable[int] = (),
        removed: Iterable[int] = (),
        entries: Iterable[LogEntry] = (),
        applied: int = 0,
        timing: Timing | None = None,
    ) -> None:
        self.now = 1000.0
        self.sent: list[tuple[int, Message]] = []
        self.applied: list[LogEntry] = []
        self.log = RaftLog(directory / "log", replica_id=1, rng=random.Random(1))
        ids = tuple(range(1, voters + 1))
        disks = {number: disk_of(number) for number in ids} | {1: self.log.disk_id}
        if not self.log.members.group:
            self.log.begin_group(
                Members(
                    ids,
                    learners=tuple(learners),
                    removed=tuple(removed),
                    group=b"g" * 16,
                    disks=tuple(disks.items()),
                )
            )
        self.log.append(list(entries))
        self.log.sync()
        self.raft = Raft(
            1,
            self.log,
            applied,
            send=lambda to, message: self.sent.append((to, message)),
            rng=random.Random(1),
            now=self.now,
            timing=timing or Timing(),
        )
        self.others = [number for number in (*ids, *learners) if number != 1]
        for number in self.others:
            self.raft.membership.speaks(number, disk_of(number))
        with self.raft.at(self.now):
            self.raft.set_connected(frozenset(self.others))
        self.outbox()

    def outbox(self) -> list[tuple[int, Message]]:
        """What was sent since the last look, once it may leave."""
        self.log.sync()
        sent, self.sent[:] = list(self.sent), []
        return sent

    def receive(self, sender: int, *messages: Message) -> list[tuple[int, Message]]:
        with self.raft.at(self.now):
            for message in messages:
                self.raft.receive(sender, message)
        return self.outbox()

    def tick(self, seconds: float = 0.0) -> list[tuple[int, Message]]:
        self.now += seconds
        with self.raft.at(self.now):
            self.raft.tick()
            while entries := self.raft.committed_entries():
                self.applied += entries
                self.raft.on_applied(entries[-1].index)
            self.raft.replicate()
        return self.outbox()

    def wait(self, seconds: float) -> list[tuple[int, Message]]:
        """Tick as often as the engine asks for, and not more often than a millisecond."""
        until, sent = self.now + seconds, []
        while self.now < until:
            sent += self.tick(min(until, max(self.raft.next_wakeup(), self.now) + 0.001) - self.now)
        return sent

    def ask_for_votes(self) -> list[tuple[int, RequestVote]]:
        """Wait for the election timeout; return what is asked."""
        sent: list[tuple[int, Message]] = []
        while not sent:
            sent = self.tick(0.05)
        return [(to, message) for to, message in sent if isinstance(message, RequestVote)]

    def stand(self, *voters: int) -> None:
        """Become a candidate with the answers of these voters to a PreVote."""
        self.ask_for_votes()
        for voter in voters:
            self.receive(voter, RequestVoteResponse(self.raft.term + 1, pre=True))
        self.tick()

    def lead(self, *, commit: bool = True) -> None:
        """Become the leader, by the votes of all; and commit the entry that a new leader begins with."""
        voters = sorted(self.raft.membership.others)
        self.stand(*voters)
        for voter in voters:
            self.receive(voter, RequestVoteResponse(self.raft.term, pre=False))
        self.tick()
        assert self.raft.is_leader
        if commit:
            self.agree(*self.others)

    def agree(self, *followers: int, index: int | None = None) -> list[tuple[int, Message]]:
        """These have everything, or what is up to ``index``, and say so now."""
        last = self.log.last_index if index is None else index
        for follower in followers:
            with self.raft.at(self.now):
                answer = AppendEntriesResponse(self.raft.term, last, last, self.raft.leader.rounds.newest)
                self.raft.receive(follower, answer)
        return self.tick()

    def append(self, count: int, size: int = 1) -> None:
        with self.raft.at(self.now):
            self.raft.append([b"x" * size] * count)

    def heartbeat(
        self,
        leader: int = 2,
        *entries: LogEntry,
        term: int = 1,
        after: tuple[int, int] | None = None,
        commit: int = 0,
        round: int = 1,
    ) -> Any:
        """Hear from a leader; return the answer. ``after``: index and term of the entry before."""
        index, prev_term = (self.log.last_index, self.log.last_term) if after is None else after
        sent = self.receive(leader, AppendEntries(term, index, prev_term, list(entries), commit, round))
        ((to, reply),) = sent
        assert to == leader and isinstance(reply, AppendEntriesAnswer | NewerTerm)
        return reply


def entry(index: int, term: int, size: int = 1) -> LogEntry:
    return LogEntry(index, term, REGULAR + b"x" * size)


def to(member: int, sent: Iterable[tuple[int, Message]]) -> list[AppendEntries]:
    """The entries, or heartbeats, that were sent to one member."""
    return [
        message for receiver, message in sent if receiver == member and isinstance(message, AppendEntries)
    ]
