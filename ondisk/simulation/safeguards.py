"""What each safeguard is good for: take one away, and see what goes wrong.

Each is taken away by classes (``weakened``) that stand in the place of parts of a replica: of Raft, the log,
the streaming of snapshots. Nothing outside the simulator and its notebook uses them.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any, NamedTuple

from ondisk.diskkv import DiskKV
from ondisk.identity.founding import Founding
from ondisk.identity.origins import Origins
from ondisk.raft import Raft
from ondisk.raft.changes import Changes
from ondisk.raft.elections import Elections
from ondisk.raft.follower import Follower
from ondisk.raft.leader import Leader
from ondisk.raft.log import RaftLog
from ondisk.raft.membership import Membership
from ondisk.raft.rounds import Rounds
from ondisk.replica import Replica
from ondisk.replica.compaction import Compaction
from ondisk.simulation import weakened
from ondisk.simulation.leases import CLOCK_DRIFT
from ondisk.simulation.machine import PaddedKV
from ondisk.snapshot.streaming import Streaming
from ondisk.verbs import keyleases


class Safeguard(NamedTuple):
    """A safeguard that can be taken away: what it says, and the classes that lack it.

    ``why_not``: why chance does not show its absence, if it does not. ``tests/test_safeguards.py`` has a test
    for each that fails without it, and a seed for those that chance shows. ``drift``: it shows only where
    clients read by leases, and clocks drift so much.
    """

    rule: str
    without: tuple[type, ...]
    why_not: str = ""
    drift: float | None = None


SAFEGUARDS: Mapping[str, Safeguard] = {
    "keep-matching-entries": Safeguard(
        "The log is cut only where an entry contradicts it.",
        (weakened.CutsTheLogAlways,),
    ),
    "match-before-commit": Safeguard(
        "A message whose previous entry does not match commits nothing.",
        (weakened.CommitsWithoutAMatch,),
    ),
    "commit-what-is-proven": Safeguard(
        "A follower commits no further than the message has shown to be equal.",
        (weakened.CommitsItsOwnTail,),
    ),
    "refuse-failed-install": Safeguard(
        "A snapshot counts as installed only when the state is in place.",
        (weakened.AcknowledgesAFailedInstall,),
    ),
    "terms-in-replies": Safeguard(
        "Replies of another term count for nothing.",
        (weakened.BelievesOldReplies,),
        "a leader must lose its office and get it back while an answer to its earlier "
        "term is still on the way, from a follower that has cut in between what it "
        "acknowledged",
    ),
    "install-keeps-tail": Safeguard(
        "What the log holds beyond a snapshot stays, if it belongs to it.",
        (weakened.InstallsOverItsTail,),
        "a leader sends no entries beyond a snapshot that is on its way, so there is nothing to drop",
    ),
    "restart-keeps-log": Safeguard(
        "A restart takes nothing from the log, however new the state is.",
        (weakened.ClearsItsLogAtRestart,),
    ),
    "one-vote-a-voter": Safeguard(
        "A voter counts once in an election.", (weakened.CountsVotesTwice,), "links repeat no message"
    ),
    "sync-the-log": Safeguard(
        "The log is on the disk before anything is said.",
        (weakened.NeverSyncs,),
    ),
    "remember-the-vote": Safeguard(
        "Term and vote are on the disk before the vote is given.",
        (weakened.ForgetsItsVote,),
        "it takes two candidates of one term, and a voter whose power fails for a moment "
        "between their requests",
    ),
    "leader-syncs-too": Safeguard(
        "A leader counts itself for a majority only when its own log is durable.",
        (
            weakened.LeaderDoesNotSync,
            weakened.CountsItselfUnsynced,
            weakened.AppliesUnsynced,
        ),
    ),
    "conflict-hint": Safeguard(
        "A follower says where its log can agree.",
        (weakened.BacksUpOneByOne,),
        "it costs time and disturbs the others, but contradicts nothing",
    ),
    "stop-on-error": Safeguard(
        "A replica whose disk has failed stops.",
        (weakened.GoesOnAfterAnError,),
    ),
    "fresh-request-numbers": Safeguard(
        "Request numbers of two lives of a replica differ.",
        (weakened.NumbersFromOne,),
        "it takes a command that is still on its way back when its sender has crashed, "
        "has started again and has sent as many commands as before",
    ),
    "messages-before-timers": Safeguard(
        "Messages are taken in before timers are looked at.",
        (weakened.LooksAtTimersFirst,),
        "it costs time and disturbs the others, but contradicts nothing",
    ),
    "pre-vote": Safeguard(
        "An election begins only when a majority would take part.",
        (weakened.ElectsAtOnce,),
        "it costs time and disturbs the others, but contradicts nothing",
    ),
    "check-quorum": Safeguard(
        "A leader that a majority does not answer steps down.",
        (weakened.LeadsWithoutAMajority,),
    ),
    "answer-old-terms": Safeguard(
        "Who leads an old term is told so.",
        (weakened.LeavesTheDeposedAlone,),
        "it costs time and disturbs the others, but contradicts nothing",
    ),
    "confirm-reads": Safeguard(
        "A leader asks a majority before it answers a read.",
        (weakened.ReadsUnconfirmed,),
    ),
    "own-term-first": Safeguard(
        "A new leader answers reads, and changes members, only after an entry of its own term.",
        (weakened.TrustsItsFirstCommitIndex,),
    ),
    "wait-for-state": Safeguard(
        "A state older than its log waits for a snapshot.",
        (weakened.AppliesAcrossAGap,),
    ),
    "sync-before-compaction": Safeguard(
        "The log forgets only what the state machine has made durable.",
        (weakened.CompactsUnsynced,),
    ),
    "up-to-date-leader": Safeguard(
        "Nobody votes for a log that is behind its own.",
        (weakened.VotesForAnyLog,),
    ),
    "commit-own-term": Safeguard(
        "What a majority holds of an older term is not committed by counting.",
        (weakened.CommitsOlderTerms,),
        "a new leader appends an entry of its own term before it sends anything, so that "
        "older ones are mostly acknowledged together with it",
    ),
    "one-change-at-a-time": Safeguard(
        "Members change one at a time.",
        (weakened.ChangesMembersAtAnyTime,),
        "the schedule asks for the next change when the one before is done",
    ),
    "founding-is-unanimous": Safeguard(
        "A group is founded when all of its first members have voted for it.",
        (weakened.FoundsWithAMajority,),
    ),
    "rounds-of-founding": Safeguard(
        "A vote for a founding counts in its own round only.",
        (weakened.CountsVotesOfOtherRounds,),
    ),
    "refuse-other-groups": Safeguard(
        "Who belongs to another group is not heard.",
        (weakened.HearsOtherGroups,),
    ),
    "votes-from-named-disks": Safeguard(
        "A voter counts only with the disk that the members name.",
        (weakened.CountsNumbers,),
    ),
    "refuse-replaced-disks": Safeguard(
        "A disk that was replaced is not heard, and is told so.",
        (weakened.HearsReplacedDisks,),
    ),
    "newest-life-only": Safeguard(
        "An old copy of a directory is not heard, and is told so.",
        (weakened.HearsOldCopies,),
    ),
    "check-changes-first": Safeguard(
        "The members change only when a majority of the new voters has just answered.",
        (weakened.ChangesMembersUnchecked,),
    ),
    "learner-progress-per-disk": Safeguard(
        "What a learner has acknowledged is forgotten when it comes with another disk.",
        (weakened.KeepsProgressOfLostDisks,),
    ),
    "replace-only-the-silent": Safeguard(
        "A disk is replaced only if it does not answer while another one is there.",
        (weakened.ReplacesAtOnce,),
    ),
    "evidence-as-of-sending": Safeguard(
        "An answer is evidence as of when it was asked for, not as of when it is read.",
        (weakened.DatesAnswersWhenRead,),
    ),
    "answers-confirm-their-round": Safeguard(
        "A read is confirmed by answers to what was sent after it was asked.",
        (weakened.AnyAnswerConfirms,),
    ),
    "lease-margin": Safeguard(
        "A lease is shorter than the promise that it rests on, by the drift of the clocks.",
        (weakened.CountsOnPromisesInFull,),
        drift=CLOCK_DRIFT,
    ),
    "lease-ends-at-handover": Safeguard(
        "A leader that has told another one to stand has no lease any more in its term.",
        (weakened.KeepsItsLeaseInAHandover,),
        drift=CLOCK_DRIFT,
    ),
    "promise-binds-votes": Safeguard(
        "Who has promised a leader to help nobody else gives no vote, either.",
        (weakened.VotesInSpiteOfAPromise,),
        drift=CLOCK_DRIFT,
    ),
    "promise-outlives-connection": Safeguard(
        "A promise to a leader outlives the connection to it.",
        (weakened.ForgetsItsPromiseWithTheConnection,),
        drift=CLOCK_DRIFT,
    ),
    "promise-outlives-restart": Safeguard(
        "A voter that is started again keeps what it may have promised before.",
        (weakened.ForgetsItsPromiseAtARestart,),
        drift=CLOCK_DRIFT,
    ),
}


# Those of the state machine. They show where clients transact, watch and lock.
MACHINE_SAFEGUARDS: Mapping[str, Safeguard] = {
    "time-passes-once": Safeguard(
        "The log clock goes on only from where it was seen.",
        (weakened.CountsTimeTwice,),
    ),
    "tick-margin": Safeguard(
        "A key lease lasts longer by the longest stretch that one entry may count.",
        (weakened.EndsLeasesInTheFirstStretch,),
    ),
    "compacted-is-told": Safeguard(
        "Who asks for changes that are compacted is told so.",
        (weakened.SkipsWhatIsCompacted,),
    ),
}


def machine_without(names: Iterable[str], whole: type[PaddedKV]) -> type[PaddedKV]:
    """The state machine that lacks those of these safeguards that are its own."""
    found = (MACHINE_SAFEGUARDS[name] for name in names if name in MACHINE_SAFEGUARDS)
    classes = [lacking for safeguard in found for lacking in safeguard.without]
    leases = tuple(each for each in classes if issubclass(each, keyleases.Batch))
    machine = tuple(each for each in classes if issubclass(each, DiskKV))
    if not classes:
        return whole
    leases_type = type("Batch", (*leases, keyleases.Batch), {}) if leases else keyleases.Batch
    weak: type[PaddedKV] = type(whole.__name__, (*machine, whole), {"leases_type": leases_type})
    return weak


def replica_without(names: Iterable[str]) -> type[Replica]:
    """A ``Replica`` that lacks these safeguards. Raises ``KeyError`` for an unknown name."""
    chosen = [name for name in names if name not in MACHINE_SAFEGUARDS]
    classes = [lacking for name in chosen for lacking in SAFEGUARDS[name].without]

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
        streaming_type=mixed(Streaming),
        origins_type=mixed(Origins),
        founding_type=mixed(Founding),
        compaction_type=mixed(Compaction),
    )
    return weak
