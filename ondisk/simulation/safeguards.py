"""What each safeguard is good for: take one away, and see what goes wrong.

Every class here removes one safeguard from Raft, the log, the transfer of snapshots or the replica, mostly
by doing what stock PySyncObj does in that place. Nothing outside the simulator and its notebook uses them.
"""

from __future__ import annotations

import random
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple

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
from ondisk.raft.messages import AppendEntriesAnswer, Found, Origin, RequestVote, Roster
from ondisk.raft.records import LogEntry
from ondisk.raft.rounds import Rounds
from ondisk.replica import Replica
from ondisk.replica.compaction import Compaction
from ondisk.snapshot.receiver import Receiving
from ondisk.snapshot.transfer import Transfers


class Safeguard(NamedTuple):
    """A safeguard that can be taken away: what it says, and the classes that lack it.

    ``why_not``: why chance does not show its absence, if it does not. ``tests/test_safeguards.py`` has a test
    for each that fails without it, and a seed for those that chance shows.
    """

    rule: str
    without: tuple[type, ...]
    why_not: str = ""


# Raft


class _CutsTheLogAlways(Follower):
    def _cut_conflict(self, prev_index: int, entries: list[LogEntry]) -> list[LogEntry]:
        if prev_index < self._log.last_index:
            self._log.truncate_from(prev_index + 1)
            self._membership.adopt()
        return entries


class _CommitsWithoutAMatch(Follower):
    def _conflict_hint(self, prev_index: int) -> int:
        engine = self._engine
        engine.commit = max(engine.commit, min(engine.leader_commit or 0, self._log.last_index))
        return super()._conflict_hint(prev_index)


class _CommitsItsOwnTail(Follower):
    def _proven_commit(self, commit_index: int, last: int) -> int:
        return min(commit_index, self._log.last_index)


class _BelievesOldReplies(Leader):
    def _of_this_term(self, message: AppendEntriesAnswer) -> bool:
        return True


class _CountsVotesTwice(Elections):
    def _has_voted(self, voter: int, granted: set[int]) -> bool:
        return False


class _VotesForAnyLog(Elections):
    def on_request_vote(self, sender: int, message: RequestVote) -> None:
        super().on_request_vote(sender, RequestVote(message.term, message.last_index, 1 << 60, message.pre))


class _CommitsOlderTerms(Leader):
    def _may_commit(self, index: int) -> bool:
        return True


class _BacksUpOneByOne(Follower):
    def _conflict_hint(self, prev_index: int) -> int:
        return prev_index


class _ElectsAtOnce(Elections):
    def _ask_before_election(self) -> None:
        super()._ask_before_election()
        self._prevotes = (self._engine.term + 1, set(self._membership.others))
        self._start_election_if_wanted()


class _LeadsWithoutAMajority(Raft):
    def _check_quorum_seconds(self, timing: Timing) -> float:
        return 30.0


class _LeavesTheDeposedAlone(Follower):
    def _tell_deposed(self, sender: int) -> None:
        pass


class _ReadsUnconfirmed(Leader):
    def confirmed_round(self) -> int:
        return self.rounds.newest


class _TrustsItsFirstCommitIndex(Leader):
    def committed_in_current_term(self) -> bool:
        return True


class _ChangesMembersAtAnyTime(Changes):
    def may_change(self) -> bool:
        return True


class _AnyAnswerConfirms(Leader):
    def _round_of(self, message: AppendEntriesAnswer) -> int:
        return self.rounds.newest


class _DatesAnswersWhenRead(Rounds):
    def sent_at(self, number: int) -> float:
        return time_of_step()


class _CountsNumbers(Membership):
    def _count(self) -> None:
        self.counted = set(self.others)

    def counts(self, replica_id: int) -> bool:
        return True


class _ChangesMembersUnchecked(Changes):
    def _passes_check(self, change: object, members: Members) -> bool:
        return True


class _KeepsProgressOfLostDisks(Membership):
    def _forget_progress(self, replica_id: int) -> None:
        pass


class _ReplacesAtOnce(Changes):
    def _is_silent(self, newcomer: _Newcomer, now: float) -> bool:
        return True


class _AppliesAcrossAGap(Raft):
    def _lacks_state(self, applied_index: int) -> bool:
        return False


class _AppliesUnsynced(Raft):
    def _sync_before_apply(self) -> None:
        pass


# The log


class _NeverSyncs(RaftLog):
    def _make_durable(self) -> None:
        pass


class _ForgetsItsVote(RaftLog):
    def _hard_state(self) -> tuple[int, int | None, bool]:
        return self.term, None, True


class _InstallsOverItsTail(RaftLog):
    def install(self, index: int, term: int, members: Members) -> None:
        self.installing = None
        self._begin_after(index, term, members)


# Snapshots


class _AcknowledgesAFailedInstall(Transfers):
    def _keep_old_state(self, receiving: Receiving, error: Exception) -> None:
        self._begin_anew(receiving)


# Who belongs together


class _FoundsWithAMajority(Founding):
    @staticmethod
    def _is_unanimous(others: Sequence[bool]) -> bool:
        return 2 * (sum(others) + 1) > len(others) + 1


class _CountsVotesOfOtherRounds(Founding):
    @staticmethod
    def _is_same_vote(said: Found, round_number: int, roster: Roster) -> bool:
        return said.roster == roster


class _HearsOtherGroups(Origins):
    def _is_ours(self, sender: int, origin: Origin, newest: Members, committed: Members) -> bool:
        return bool(origin.group and newest.group)


class _HearsReplacedDisks(Origins):
    @staticmethod
    def _is_replaced(disk: bytes, newest: Members) -> bool:
        return False


class _HearsOldCopies(Origins):
    def _is_newest_life(self, sender: int, origin: Origin) -> bool:
        if origin.boot > self._log.lives.get(origin.disk, (0, 0))[0]:
            self._log.note_life(origin.disk, origin.boot, origin.nonce)  # which a person relies on
        return True


# The replica


class _LeaderDoesNotSync(Replica):
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


class _ClearsItsLogAtRestart(Replica):
    @staticmethod
    def _finish_install(log: RaftLog, opened_index: int) -> None:
        Replica._finish_install(log, opened_index)
        term = log.term_at(opened_index)
        if opened_index > log.base_index and term is not None:
            log._begin_after(opened_index, term, log.members_at(opened_index))
            log.sync()


class _GoesOnAfterAnError(Replica):
    def fail(self, error: BaseException) -> None:
        if not isinstance(error, Exception):
            super().fail(error)


class _NumbersFromOne(Replica):
    @staticmethod
    def _first_request(rng: random.Random) -> int:
        return 1


class _LooksAtTimersFirst(Replica):
    def _take_in(self) -> None:
        self.raft.tick()
        super()._take_in()


class _CompactsUnsynced(Compaction):
    def _sync_machine(self) -> None:
        self.synced_index = self._raft.applied_index


SAFEGUARDS: Mapping[str, Safeguard] = {
    "keep-matching-entries": Safeguard(
        "The log is cut only where an entry contradicts it.",
        (_CutsTheLogAlways,),
    ),
    "match-before-commit": Safeguard(
        "A message whose previous entry does not match commits nothing.",
        (_CommitsWithoutAMatch,),
    ),
    "commit-what-is-proven": Safeguard(
        "A follower commits no further than the message has shown to be equal.",
        (_CommitsItsOwnTail,),
    ),
    "refuse-failed-install": Safeguard(
        "A snapshot counts as installed only when the state is in place.",
        (_AcknowledgesAFailedInstall,),
    ),
    "terms-in-replies": Safeguard(
        "Replies of another term count for nothing.",
        (_BelievesOldReplies,),
        "a leader must lose its office and get it back while an answer to its earlier "
        "term is still on the way, from a follower that has cut in between what it "
        "acknowledged",
    ),
    "install-keeps-tail": Safeguard(
        "What the log holds beyond a snapshot stays, if it belongs to it.",
        (_InstallsOverItsTail,),
        "a leader sends no entries beyond a snapshot that is on its way, so there is nothing to drop",
    ),
    "restart-keeps-log": Safeguard(
        "A restart takes nothing from the log, however new the state is.",
        (_ClearsItsLogAtRestart,),
    ),
    "one-vote-a-voter": Safeguard(
        "A voter counts once in an election.", (_CountsVotesTwice,), "links repeat no message"
    ),
    "sync-the-log": Safeguard(
        "The log is on the disk before anything is said.",
        (_NeverSyncs,),
    ),
    "remember-the-vote": Safeguard(
        "Term and vote are on the disk before the vote is given.",
        (_ForgetsItsVote,),
        "it takes two candidates of one term, and a voter whose power fails for a moment "
        "between their requests",
    ),
    "leader-syncs-too": Safeguard(
        "A leader counts itself for a majority only when its own log is durable.",
        (
            _LeaderDoesNotSync,
            _AppliesUnsynced,
        ),
    ),
    "conflict-hint": Safeguard(
        "A follower says where its log can agree.",
        (_BacksUpOneByOne,),
        "it costs time and disturbs the others, but contradicts nothing",
    ),
    "stop-on-error": Safeguard(
        "A replica whose disk has failed stops.",
        (_GoesOnAfterAnError,),
    ),
    "fresh-request-numbers": Safeguard(
        "Request numbers of two lives of a replica differ.",
        (_NumbersFromOne,),
        "it takes a command that is still on its way back when its sender has crashed, "
        "has started again and has sent as many commands as before",
    ),
    "messages-before-timers": Safeguard(
        "Messages are taken in before timers are looked at.",
        (_LooksAtTimersFirst,),
        "it costs time and disturbs the others, but contradicts nothing",
    ),
    "pre-vote": Safeguard(
        "An election begins only when a majority would take part.",
        (_ElectsAtOnce,),
        "it costs time and disturbs the others, but contradicts nothing",
    ),
    "check-quorum": Safeguard(
        "A leader that a majority does not answer steps down.",
        (_LeadsWithoutAMajority,),
    ),
    "answer-old-terms": Safeguard(
        "Who leads an old term is told so.",
        (_LeavesTheDeposedAlone,),
        "it costs time and disturbs the others, but contradicts nothing",
    ),
    "confirm-reads": Safeguard(
        "A leader asks a majority before it answers a read.",
        (_ReadsUnconfirmed,),
    ),
    "own-term-first": Safeguard(
        "A new leader answers reads, and changes members, only after an entry of its own term.",
        (_TrustsItsFirstCommitIndex,),
    ),
    "wait-for-state": Safeguard(
        "A state older than its log waits for a snapshot.",
        (_AppliesAcrossAGap,),
    ),
    "sync-before-compaction": Safeguard(
        "The log forgets only what the state machine has made durable.",
        (_CompactsUnsynced,),
    ),
    "up-to-date-leader": Safeguard(
        "Nobody votes for a log that is behind its own.",
        (_VotesForAnyLog,),
    ),
    "commit-own-term": Safeguard(
        "What a majority holds of an older term is not committed by counting.",
        (_CommitsOlderTerms,),
        "a new leader appends an entry of its own term before it sends anything, so that "
        "older ones are mostly acknowledged together with it",
    ),
    "one-change-at-a-time": Safeguard(
        "Members change one at a time.",
        (_ChangesMembersAtAnyTime,),
        "the schedule asks for the next change when the one before is done",
    ),
    "founding-is-unanimous": Safeguard(
        "A group is founded when all of its first members have voted for it.",
        (_FoundsWithAMajority,),
    ),
    "rounds-of-founding": Safeguard(
        "A vote for a founding counts in its own round only.",
        (_CountsVotesOfOtherRounds,),
    ),
    "refuse-other-groups": Safeguard(
        "Who belongs to another group is not heard.",
        (_HearsOtherGroups,),
    ),
    "votes-from-named-disks": Safeguard(
        "A voter counts only with the disk that the members name.",
        (_CountsNumbers,),
    ),
    "refuse-replaced-disks": Safeguard(
        "A disk that was replaced is not heard, and is told so.",
        (_HearsReplacedDisks,),
    ),
    "newest-life-only": Safeguard(
        "An old copy of a directory is not heard, and is told so.",
        (_HearsOldCopies,),
    ),
    "check-changes-first": Safeguard(
        "The members change only when a majority of the new voters has just answered.",
        (_ChangesMembersUnchecked,),
    ),
    "learner-progress-per-disk": Safeguard(
        "What a learner has acknowledged is forgotten when it comes with another disk.",
        (_KeepsProgressOfLostDisks,),
    ),
    "replace-only-the-silent": Safeguard(
        "A disk is replaced only if it does not answer while another one is there.",
        (_ReplacesAtOnce,),
    ),
    "evidence-as-of-sending": Safeguard(
        "An answer is evidence as of when it was asked for, not as of when it is read.",
        (_DatesAnswersWhenRead,),
    ),
    "answers-confirm-their-round": Safeguard(
        "A read is confirmed by answers to what was sent after it was asked.",
        (_AnyAnswerConfirms,),
    ),
}


def replica_without(names: Iterable[str]) -> type[Replica]:
    """A ``Replica`` that lacks these safeguards. Raises ``KeyError`` for an unknown name."""
    classes = [lacking for name in names for lacking in SAFEGUARDS[name].without]

    def mixed(whole: type, **parts: type) -> Any:
        """``whole`` with what it is made of: the same class, if nothing of it is to be taken away."""
        lacking = tuple(each for each in classes if issubclass(each, whole))
        changed = {name: part for name, part in parts.items() if part is not getattr(whole, name)}
        return type(whole.__name__, (*lacking, whole), changed) if lacking or changed else whole

    raft = mixed(
        Raft,
        membership_type=mixed(Membership),
        elections_type=mixed(Elections),
        follower_type=mixed(Follower),
        leader_type=mixed(Leader, rounds_type=mixed(Rounds)),
        changes_type=mixed(Changes),
    )
    weak: type[Replica] = mixed(
        Replica,
        raft_type=raft,
        log_type=mixed(RaftLog),
        transfers_type=mixed(Transfers),
        origins_type=mixed(Origins),
        founding_type=mixed(Founding),
        compaction_type=mixed(Compaction),
    )
    return weak
