"""Parts of a replica that lack a safeguard, each mostly by doing what stock PySyncObj does in that place.

``safeguards`` has the names by which they are put in. Nothing outside the simulator uses them.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from typing import Any, ClassVar

from ondisk.diskkv import DiskKV
from ondisk.errors import Compacted
from ondisk.identity.founding import Founding
from ondisk.identity.origins import Origins
from ondisk.raft import Raft, Timing
from ondisk.raft.changes import Changes, _Newcomer
from ondisk.raft.elections import Elections
from ondisk.raft.engine import time_of_step
from ondisk.raft.follower import Follower
from ondisk.raft.leader import Leader
from ondisk.raft.log import RaftLog
from ondisk.raft.members import Members
from ondisk.raft.membership import Membership
from ondisk.raft.messages import AppendEntriesAnswer, Found, Message, Origin, RequestVote, Roster
from ondisk.raft.records import LogEntry
from ondisk.raft.rounds import Rounds
from ondisk.replica import Replica
from ondisk.replica.compaction import Compaction
from ondisk.snapshot.receiver import Receiving
from ondisk.snapshot.streaming import Streaming
from ondisk.verbs import changes, keyleases

# Raft


class CutsTheLogAlways(Follower):
    def _cut_conflict(self, prev_index: int, entries: list[LogEntry]) -> list[LogEntry]:
        if prev_index < self._log.last_index:
            self._log.truncate_from(prev_index + 1)
            self._membership.adopt()
        return entries


class CommitsWithoutAMatch(Follower):
    def _conflict_hint(self, prev_index: int) -> int:
        engine = self._engine
        engine.commit_index = max(engine.commit_index, min(engine.leader_commit or 0, self._log.last_index))
        return super()._conflict_hint(prev_index)


class CommitsItsOwnTail(Follower):
    def _proven_commit(self, commit_index: int, last: int) -> int:
        return min(commit_index, self._log.last_index)


class BelievesOldReplies(Leader):
    def _of_this_term(self, message: AppendEntriesAnswer) -> bool:
        return True


class CountsVotesTwice(Elections):
    def _has_voted(self, voter: int, granted: set[int]) -> bool:
        return False


class VotesForAnyLog(Elections):
    def on_request_vote(self, sender: int, message: RequestVote) -> None:
        super().on_request_vote(sender, RequestVote(message.term, message.last_index, 1 << 60, message.pre))


class CommitsOlderTerms(Leader):
    def _may_commit(self, index: int) -> bool:
        return True


class BacksUpOneByOne(Follower):
    def _conflict_hint(self, prev_index: int) -> int:
        return prev_index


class ElectsAtOnce(Elections):
    def _ask_before_election(self) -> None:
        super()._ask_before_election()
        self._prevotes = (self._engine.term + 1, set(self._membership.others))
        self._start_election_if_wanted()


class LeadsWithoutAMajority(Raft):
    def _check_quorum_seconds(self, timing: Timing) -> float:
        return 30.0


class LeavesTheDeposedAlone(Follower):
    def _tell_deposed(self, sender: int) -> None:
        pass


class ReadsUnconfirmed(Leader):
    def confirmed_round(self) -> int:
        return self.rounds.newest


class TrustsItsFirstCommitIndex(Leader):
    def committed_in_current_term(self) -> bool:
        return True


class CountsOnPromisesInFull(Leader):
    def _counted_on(self, promised: float) -> float:
        return promised


class KeepsItsLeaseInAHandover(Leader):
    def end_lease(self) -> None:
        pass


class VotesInSpiteOfAPromise(Elections):
    def _is_free_to_vote(self, message: RequestVote) -> bool:
        return True


class ForgetsItsPromiseWithTheConnection(Elections):
    def on_leader_unreachable(self) -> None:
        self._bound_until = float("-inf")
        super().on_leader_unreachable()


class ForgetsItsPromiseAtARestart(Elections):
    def _may_have_promised(self) -> bool:
        return False


class ChangesMembersAtAnyTime(Changes):
    def may_change(self) -> bool:
        return True


class AnyAnswerConfirms(Leader):
    def _round_of(self, message: AppendEntriesAnswer) -> int:
        return self.rounds.newest


class DatesAnswersWhenRead(Rounds):
    def sent_at(self, number: int) -> float:
        return time_of_step()


class CountsNumbers(Membership):
    def _count(self) -> None:
        self.counted = set(self.others)

    def counts(self, replica_id: int) -> bool:
        return True


class ChangesMembersUnchecked(Changes):
    def _passes_check(self, change: object, members: Members) -> bool:
        return True


class KeepsProgressOfLostDisks(Membership):
    def _forget_progress(self, replica_id: int) -> None:
        pass


class ReplacesAtOnce(Changes):
    def _is_silent(self, newcomer: _Newcomer, now: float) -> bool:
        return True


class AppliesAcrossAGap(Raft):
    def _lacks_state(self, applied_index: int) -> bool:
        return False


class AppliesUnsynced(Raft):
    def _sync_before_apply(self) -> None:
        pass


# The log


class NeverSyncs(RaftLog):
    def _make_durable(self) -> None:
        pass


class ForgetsItsVote(RaftLog):
    def _hard_state(self) -> tuple[int, int | None]:
        return self.term, None


class InstallsOverItsTail(RaftLog):
    def install(self, index: int, term: int, members: Members) -> None:
        self.installing = None
        self._begin_after(index, term, members)


# Snapshots


class AcknowledgesAFailedInstall(Streaming):
    def _keep_old_state(self, receiving: Receiving, error: Exception) -> None:
        self._begin_anew(receiving)


# Who belongs together


class FoundsWithAMajority(Founding):
    @staticmethod
    def _is_unanimous(others: Sequence[bool]) -> bool:
        return 2 * (sum(others) + 1) > len(others) + 1


class CountsVotesOfOtherRounds(Founding):
    @staticmethod
    def _is_same_vote(said: Found, round_number: int, roster: Roster) -> bool:
        return said.roster == roster


class HearsOtherGroups(Origins):
    def _is_ours(self, sender: int, origin: Origin, newest: Members, committed: Members) -> bool:
        return bool(origin.group and newest.group)


class HearsReplacedDisks(Origins):
    @staticmethod
    def _is_replaced(disk: bytes, newest: Members) -> bool:
        return False


class HearsOldCopies(Origins):
    def _is_newest_life(self, sender: int, origin: Origin) -> bool:
        if origin.boot > self._log.lives.get(origin.disk, (0, 0))[0]:
            self._log.note_life(origin.disk, origin.boot, origin.nonce)  # which a person relies on
        return True


# The replica


class CountsItselfUnsynced(Leader):
    def _own_match(self) -> int:
        return self._log.last_index


class LeaderDoesNotSync(Replica):
    def _flush(self) -> None:
        log = self.log
        assert log is not None
        if self.raft.is_leader:
            log.sync, sync = (lambda: None), log.sync  # type: ignore[method-assign]
            try:
                super()._flush()
            finally:
                log.sync = sync  # type: ignore[method-assign]
        else:
            super()._flush()


class ClearsItsLogAtRestart(Replica):
    @staticmethod
    def _finish_install(log: RaftLog, opened_index: int) -> None:
        Replica._finish_install(log, opened_index)
        term = log.term_at(opened_index)
        if opened_index > log.base_index and term is not None:
            log._begin_after(opened_index, term, log.members_at(opened_index))
            log.sync()


class GoesOnAfterAnError(Replica):
    def fail(self, error: BaseException) -> None:
        if not isinstance(error, Exception):
            super().fail(error)


class NumbersFromOne(Replica):
    @staticmethod
    def _first_request(rng: random.Random) -> int:
        return 1


class LooksAtTimersFirst(Replica):
    def _take_in(self, arrived: Sequence[tuple[int, Origin, Message]]) -> None:
        self.raft.tick()
        super()._take_in(arrived)


class CompactsUnsynced(Compaction):
    def _sync_machine(self) -> None:
        self.synced_index = self._raft.applied_index


# The state machine


class CountsTimeTwice(keyleases.Batch):
    def _counts(self, command: keyleases.Advance) -> bool:
        return True


class EndsLeasesInTheFirstStretch(keyleases.Batch):
    tick_margin: ClassVar[int] = 0


class SkipsWhatIsCompacted(DiskKV):
    def lookup(self, query: Any) -> Any:
        try:
            return super().lookup(query)
        except Compacted:
            return super().lookup(changes.Changes(query.prefix, self._history.since, query.limit))
