"""Leader: entries for its followers, and what their answers prove (paper, 5.3 and 5.4; thesis, 6.4)."""

from __future__ import annotations

import logging

from ondisk.raft.engine import Engine, time_of_step
from ondisk.raft.members import short
from ondisk.raft.membership import Membership
from ondisk.raft.messages import (
    AppendEntries,
    AppendEntriesAnswer,
    AppendEntriesRejection,
    AppendEntriesResponse,
    Refused,
    SnapshotNeeded,
)
from ondisk.raft.progress import PROBE, SNAPSHOT, Progress
from ondisk.raft.records import LogEntry
from ondisk.raft.rounds import Rounds

logger = logging.getLogger(__name__)


class Leader:
    """Makes the followers' logs equal to its own, and finds out what a majority holds.

    Invariants: nothing is committed by counting but what is of its own term, and held durably by a majority
    of the voters, itself among them, each with the disk that the members name. A read is answered after a
    majority has confirmed, by answers to what was sent later than it was asked, that this replica still
    leads; or, if the caller wants that, while a majority keeps a promise to help nobody else (a lease).
    """

    rounds_type: type[Rounds] = Rounds

    def __init__(self, engine: Engine, membership: Membership) -> None:
        self._engine = engine
        self._log = engine.log
        self._membership = membership
        self.rounds = self.rounds_type(engine.check_quorum_seconds)
        self.must_send = False
        self.next_send = 0.0  # when followers must hear of something, in the clock's seconds
        self._lease_ended = False  # for the rest of this term of office
        self._next_probe = 0.0

    def begin_term_of_office(self) -> None:
        """This replica leads from now on: nothing that it knew of the others as an earlier leader counts."""
        progress, now, next_index = self._engine.progress, time_of_step(), self._log.last_index + 1
        progress.clear()
        for member in self._membership.others | self._membership.learners:
            progress[member] = Progress(next_index, now)
        self.rounds.forget_times()
        self._lease_ended = False

    def append(self, commands: list[bytes]) -> int:
        """Put entries into the log; return the index of the first one."""
        first, term = self._log.last_index + 1, self._engine.term
        self._log.append([LogEntry(index, term, command) for index, command in enumerate(commands, first)])
        self.must_send = True
        return first

    # Sending

    def replicate(self) -> None:
        """Send everybody what it lacks, or a heartbeat."""
        engine = self._engine
        self.must_send = False
        now = time_of_step()
        self.rounds.begin(now)
        if now > self._next_probe:
            self._next_probe = now + engine.timing.heartbeat
            for progress in engine.progress.values():
                progress.probe_sent = False  # it may have been lost: try again with each heartbeat
        self.next_send = engine.heartbeat_sent(now)
        for member in engine.progress:
            if member in engine.connected:
                self._send_entries(member)

    def _send_entries(self, member: int) -> None:
        engine, log = self._engine, self._log
        progress = engine.progress[member]
        timing, last = engine.timing, log.last_index
        ready = progress.is_ready(timing.window_bytes)
        while True:
            next_index = progress.next
            entries: list[LogEntry] = []
            if next_index <= log.base_index:
                progress.become_snapshot()
            if progress.state is SNAPSHOT:
                # Probe at the base: a follower that is further ahead rejects with a hint.
                next_index = log.base_index + 1
            elif next_index <= last and ready:
                entries = log.entries(next_index, last, timing.batch_bytes)
            prev_term = log.term_at(next_index - 1)
            assert prev_term is not None
            engine.send(
                member,
                AppendEntries(
                    engine.term, next_index - 1, prev_term, entries, engine.commit_index, self.rounds.newest
                ),
            )
            progress.probe_sent = progress.state is PROBE
            if progress.probe_sent or not entries:
                return
            progress.in_flight += sum(len(entry.command) for entry in entries)
            progress.next = entries[-1].index + 1
            ready = progress.in_flight < timing.window_bytes
            if entries[-1].index >= last or not ready:
                return

    def on_new_connection(self, member: int) -> None:
        """What was under way on the old one is lost."""
        progress = self._engine.progress.get(member)
        if self._engine.is_leader and progress is not None:
            if progress.state is not SNAPSHOT:
                progress.become_probe()
            self.must_send = True

    # What comes back

    def on_response(self, sender: int, message: AppendEntriesResponse) -> None:
        """A follower's log is equal to this one up to ``message.index``."""
        if (progress := self._heard(sender, message, message.index)) is not None:
            self.on_match(progress, message.index)

    def on_rejection(self, sender: int, message: AppendEntriesRejection) -> None:
        """A follower's log is not equal where this leader believed: try again where it says."""
        if (progress := self._heard(sender, message)) is None:
            return
        if progress.state is SNAPSHOT:
            if message.hint > self._log.base_index + 1:  # its log is longer than it seemed
                progress.next = message.hint
                progress.become_probe()
        elif message.prev_index <= progress.match:
            self._refuse_rolled_back(sender, progress, message)
        elif progress.state is not PROBE or message.prev_index == progress.next - 1:
            progress.next = max(progress.match + 1, min(message.hint, message.prev_index))
            progress.become_probe()
            self._send_entries(sender)

    def on_snapshot_needed(self, sender: int, message: SnapshotNeeded) -> None:
        """A follower has lost its state."""
        if (progress := self._heard(sender, message)) is not None:
            progress.become_snapshot()

    def _heard(self, sender: int, message: AppendEntriesAnswer, index: int = 0) -> Progress | None:
        """Note the evidence that the sender follows; return its progress, ``None`` if the answer is none.

        ``index``: what it claims to hold.
        """
        engine = self._engine
        engine.adopt_newer_term(message.term)
        if not engine.is_leader or not self._of_this_term(message):
            return None
        if (progress := engine.progress.get(sender)) is None:
            return None
        if index > self._log.last_index or message.round > self.rounds.newest:
            self._refuse_claim(sender, index, message.round)
            return None
        progress.last_response = max(progress.last_response, self.rounds.sent_at(message.round))
        progress.acked_round = max(progress.acked_round, self._round_of(message))
        promised_until = self.rounds.sent_at(message.round) + self._counted_on(message.promise / 1000)
        progress.promised_until = max(progress.promised_until, promised_until)
        return progress

    def _of_this_term(self, message: AppendEntriesAnswer) -> bool:
        return message.term == self._engine.term

    def _round_of(self, message: AppendEntriesAnswer) -> int:
        """Which round this confirms, with all before: the one that it answers, however late it comes."""
        return message.round

    def on_match(self, progress: Progress, index: int) -> None:
        """A follower's log is known to be equal up to ``index``, and durable."""
        if progress.matches(index):
            self.must_send = self.must_send or progress.next <= self._log.last_index
            self._advance_commit()

    def _advance_commit(self) -> None:
        """What a majority holds is committed, if it is of this term (paper, 5.4.2).

        PySyncObj's tick finds the same, entry by entry. It counts this log to its end, which is durable then:
        a step syncs before it ticks. What a leader without others adds in a tick is synced before it is
        applied (``core.Raft.committed_entries``).
        """
        engine = self._engine
        progress = engine.progress
        held = sorted([self._own_match(), *[progress[voter].match for voter in self._membership.others]])
        majority = held[(len(held) - 1) // 2]
        if majority > engine.commit_index and self._may_commit(majority):
            engine.commit_index = majority
            self.next_send = min(self.next_send, time_of_step() + engine.timing.commit_notice)

    def _own_match(self) -> int:
        """Up to where this log is durable: its entries leave while it is being synced (thesis, 10.2.1)."""
        return self._log.synced_index

    def _may_commit(self, index: int) -> bool:
        """Only what is of this term: what a majority holds of an older one can still be overwritten."""
        return self._log.term_at(index) == self._engine.term

    def _refuse_rolled_back(self, sender: int, progress: Progress, message: AppendEntriesRejection) -> None:
        """Links keep their order, so this is no old answer: the disk has lost what it had acknowledged."""
        logger.error("replica %d denies entry %d, which it had acknowledged", sender, message.prev_index)
        disk = self._membership.disks.get(sender)
        if disk is not None:
            reason = (
                f"replica {sender} (disk {short(disk)}) has acknowledged entry "
                f"{progress.match} and does not hold entry {message.prev_index} any more: is it an old "
                "copy of its directory, or has its disk lied? Delete it, and let it catch up from the others"
            )
            self._engine.send(sender, Refused(disk, reason))

    def _refuse_claim(self, sender: int, index: int, round_number: int) -> None:
        """An acknowledgement of what this leader never sent: one of the two logs is not what it seems."""
        logger.error(
            "replica %d (disk %s) acknowledges entry %d and round %d, and the log of its leader, replica %d, "
            "ends at entry %d, round %d: it is not believed",
            sender,
            short(self._membership.disks.get(sender, b"")),
            index,
            round_number,
            self._engine.id,
            self._log.last_index,
            self.rounds.newest,
        )

    # Who still follows: the read quorum check, and CheckQuorum

    def start_round(self) -> int:
        """Ask every follower whether this is still its leader; return the number of that round."""
        self.must_send = True
        return self.rounds.newest + 1

    def confirmed_round(self) -> int:
        """A majority has answered this round or a later one, so it follows this leader."""
        progress, counted = self._engine.progress, self._membership.counted
        acked = [progress[voter].acked_round if voter in counted else 0 for voter in self._membership.others]
        rounds = sorted([self.rounds.newest + 1, *acked])  # a leader follows itself
        return rounds[(len(rounds) - 1) // 2]

    def has_quorum(self) -> bool:
        """Whether a majority has answered what was sent within an election timeout (CheckQuorum)."""
        since = time_of_step() - self._engine.check_quorum_seconds
        progress = self._engine.progress
        answering = [voter for voter in self._membership.others if progress[voter].last_response > since]
        return len(answering) + 1 >= self._membership.majority

    def has_lease(self, now: float) -> bool:
        """Whether no other replica can lead ``now``, by this replica's clock (thesis, 6.4.1).

        ``now`` must have been looked at after whoever reads had asked: a step may take longer than a lease.
        """
        return now < self.lease_until

    @property
    def lease_until(self) -> float:
        """When the lease ends, by this replica's clock; minus infinity if there is none."""
        if not self._engine.is_leader or not self._membership.is_voter or self._lease_ended:
            return float("-inf")
        progress, counted = self._engine.progress, self._membership.counted
        ends = [
            progress[voter].promised_until if voter in counted else float("-inf")
            for voter in self._membership.others
        ]
        ends = sorted([float("inf"), *ends])  # a leader votes for nobody else while it is one
        return ends[(len(ends) - 1) // 2]

    def _counted_on(self, promised: float) -> float:
        """How long, by this clock, a voter certainly keeps a promise of so many seconds of its own clock.

        A clock whose drift has no stated bound is not trusted at all.
        """
        drift = self._engine.timing.clock_drift
        return promised / (1 + drift) if drift is not None else float("-inf")

    def end_lease(self) -> None:
        """Another replica is told to stand at once: from now on in this term, there is no lease."""
        self._lease_ended = True

    def committed_in_current_term(self) -> bool:
        """Whether an entry of its own term has committed, and with it all before (thesis, 6.4)."""
        return bool(self._log.term_at(self._engine.commit_index) == self._engine.term)

    # Who lags

    def slowest_match(self, patience: int) -> int:
        """Up to where everybody who answers, and catches up from the log, has the log.

        Who is more than ``patience`` entries behind is waited for only while it comes nearer, from one call
        to the next: it may have missed that much while it was sent a snapshot.
        """
        engine = self._engine
        recently = time_of_step() - engine.timing.election_min
        slowest = self._log.last_index
        for member, progress in engine.progress.items():
            if (
                member in engine.connected
                and progress.last_response > recently
                and progress.state is not SNAPSHOT
            ):
                lag = engine.applied_index - progress.match
                if lag < max(patience, progress.lag_at_last_check):
                    slowest = min(slowest, progress.match)
                progress.lag_at_last_check = lag
        return slowest

    def on_snapshot_installed(self, progress: Progress, index: int) -> None:
        """This member has installed a snapshot, durably."""
        progress.become_probe()
        progress.lag_at_last_check = self._log.last_index  # farther than it can be
        self.on_match(progress, index)
