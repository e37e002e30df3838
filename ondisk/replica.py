"""Replica: log, state machine and Raft of one member. Passive: it moves only when ``step`` is called.

One step is always the same dance, and its order is what keeps promises true:

1. take in every message that has arrived (before any timer is looked at);
2. **sync the log**, then let the answers leave: no message leaves before what it says is durable;
3. tick Raft: commit, apply committed entries as one batch, take in new requests, make new messages;
4. sync, and let those leave.

One sync covers all that came in between two steps, be it one entry or a thousand: group commit.

A replica owns no thread, no clock and no socket. ``Node`` steps it from a thread, a simulation steps many
from one thread in virtual time, and a notebook may step it by hand.
"""

from __future__ import annotations

import logging
import random
import threading
from collections import deque
from collections.abc import Sequence
from concurrent.futures import Future
from pathlib import Path
from typing import Any, Literal, NamedTuple, TypeVar

from ondisk.clock import Clock
from ondisk.disk import DirectoryLock, Disk
from ondisk.errors import (
    CommandTooLarge,
    NoLeader,
    NotDone,
    OndiskError,
    OutcomeUnknown,
    Rejected,
    ReplicaStopped,
    Timeout,
)
from ondisk.messages import AskReadIndex, Message, Outcome, Outcomes, Propose, ReadIndex
from ondisk.network import Endpoint
from ondisk.raft import REGULAR, Raft, Timing
from ondisk.raftlog import LogEntry, RaftLog
from ondisk.statemachine import Entry, OnDiskStateMachine, Result

MAX_COMMAND_BYTES = 2 << 20
_LOOK_AT_DEADLINES = 0.05  # seconds between two looks at the deadlines of waiting requests
_SYNC_STATE_EVERY = 1.0  # seconds

_DISCARDED = "a new leader discarded the entry before it was committed"
_LOST_BY_LEADER = "the leader lost the entry; another replica may still hold it"

logger = logging.getLogger(__name__)


_T = TypeVar("_T")


class ReplicaStatus(NamedTuple):
    """One replica at one moment. All indexes are places in the log.

    ``last_index`` >= ``durable_index`` (synced in the log) >= ``applied_index`` >= ``synced_index``
    (synced in the state machine). ``commit_index`` is what this replica knows to be committed.
    """

    id: int
    role: str  # leader, follower, candidate, stopped or failed
    term: int = 0
    leader_id: int | None = None
    last_index: int = 0
    durable_index: int = 0
    commit_index: int = 0
    applied_index: int = 0
    synced_index: int = 0
    opened_index: int = 0  # what the state machine's open() returned
    log_syncs: int = 0  # how often the log waited for the disk since it was opened
    waiting: int = 0  # requests that have not been answered yet
    match_index: dict[int, int] = {}  # a leader's knowledge of its followers  # noqa: RUF012
    error: str | None = None


class _Remote(NamedTuple):
    """Whom to answer when the request came from another replica."""

    replica_id: int
    request: int


class _Proposal(NamedTuple):
    command: bytes
    deadline: float
    reply: Future[Result] | _Remote


class _Read(NamedTuple):
    deadline: float
    reply: Future[None] | _Remote


def _begin(future: Future[Any]) -> bool:
    """Mark a future as under way, from when it cannot be cancelled; ``False`` if its caller did before."""
    return future.running() or future.set_running_or_notify_cancel()


def _drain(queue: deque[_T]) -> list[_T]:
    """Take out what is there now. Clients may add to the other end meanwhile."""
    return [queue.popleft() for _ in range(len(queue))]


class Replica:
    """One member of a Raft group, with its directory, its log and its state machine."""

    def __init__(
        self,
        replica_id: int,
        members: Sequence[int],
        directory: Path,
        machine: OnDiskStateMachine,
        endpoint: Endpoint,
        *,
        clock: Clock,
        rng: random.Random,
        disk: Disk | None = None,
        timing: Timing | None = None,
    ) -> None:
        """Open the log in ``directory`` and the state machine.

        Raises ``DirectoryInUse``, ``Corrupt`` or ``StorageError``. The endpoint belongs to the replica
        from now on.
        """
        self.id = replica_id
        self.machine = machine
        self._endpoint = endpoint
        self._clock = clock
        self._lock: DirectoryLock | None = None
        self.log: RaftLog | None = None
        try:
            self._lock = DirectoryLock(directory)
            log = self.log = RaftLog(directory / "log", disk)
            self.opened_index = machine.open()
            self.raft = Raft(
                replica_id,
                members,
                log,
                self.opened_index,
                send=lambda to, message: self._outbox.append((to, message)),
                apply=self._apply,
                take_requests=self._take_requests,
                rng=rng,
                now=clock(),
                timing=timing or Timing(),
            )
        except BaseException:
            self._release()
            raise
        self._timing = self.raft.timing
        self._outbox: list[tuple[int, Message]] = []
        self._outcomes: dict[int, list[Outcome]] = {}
        self._answers: list[tuple[Future[Any], Result | None]] = []  # for callers in this process
        self._next_request = rng.getrandbits(48)  # so that answers to an earlier life are not taken for ours
        self._synced_index = self.opened_index
        self._sync_state_at = clock() + _SYNC_STATE_EVERY
        self._look_at_deadlines = 0.0
        self._now = clock()  # the time of the present step
        self._held_back = False  # whether the present step could not send to the leader it knows
        self._ask_again_at = 0.0
        self._refusing = threading.Lock()

        # A proposal waits here until it is taken, then in one of the next two until it is answered.
        self._proposals: deque[_Proposal] = deque()
        self._in_log: dict[int, tuple[int, _Proposal]] = {}  # index: term, proposal
        self._forwarded: dict[int, tuple[int, _Proposal]] = {}  # request: leader, proposal

        # A read waits here, then for a leader's word, then until the index it was told is applied.
        self._reads: deque[_Read] = deque()
        self._confirming: deque[tuple[int, int, list[_Read]]] = deque()  # round, index, reads
        self._asked: dict[int, tuple[int, list[_Read]]] = {}  # request: leader, reads
        self._catching_up: list[tuple[int, _Read]] = []  # index, read
        self.status = self._present_status()

    @property
    def running(self) -> bool:
        """Whether it takes requests: not stopped, and not failed."""
        return self.status.role not in ("stopped", "failed")

    # Requests: from any thread

    def propose(self, command: bytes, deadline: float) -> Future[Result]:
        """Ask for ``command`` to be replicated and applied; ``deadline`` in seconds of this replica's clock.

        The future ends with the ``Result``, or with ``NotDone`` or ``OutcomeUnknown``. While it can be
        cancelled the command has not been proposed; once it is running it may happen.
        """
        if not isinstance(command, bytes):
            raise TypeError(f"a command is bytes, not {type(command).__name__}")
        if len(command) > MAX_COMMAND_BYTES:
            raise CommandTooLarge(
                f"the command has {len(command):,} bytes; at most {MAX_COMMAND_BYTES:,} are allowed"
            )
        future: Future[Result] = Future()
        self._proposals.append(_Proposal(command, deadline, future))
        self._after_request()
        return future

    def read_barrier(self, deadline: float) -> Future[None]:
        """A future that ends when a ``lookup`` here would see every write acknowledged before this call."""
        future: Future[None] = Future()
        self._reads.append(_Read(deadline, future))
        self._after_request()
        return future

    def _after_request(self) -> None:
        if self.log is None:
            self._refuse_waiting()
        else:
            self._endpoint.wake()

    # The step

    def step(self) -> float:
        """Do everything there is to do now; return for how many seconds nothing more will be.

        An error of the disk or the state machine stops this replica: its status says ``failed`` and why.
        """
        if self.log is None:
            raise ReplicaStopped(f"replica {self.id} is {self.status.role}")
        now = self._now = self._clock()
        self._held_back = False
        try:
            with self.raft.at(now):
                for sender, message in self._endpoint.receive():
                    self._receive(sender, message)
                # Afterwards: the last message of a leader that is gone must not bring it back.
                self.raft.set_connected(self._endpoint.connected())
                self._flush()
                self.raft.tick()
                self._serve_reads()
                self._give_up(now)
                self._tell_callers()
                self._flush()
                self._sync_state(now)
        except BaseException as error:  # a panic in the binding to RocksDB is no Exception
            self.fail(error)
            if isinstance(error, KeyboardInterrupt | SystemExit):
                raise
            return float("inf")
        self.status = self._present_status()
        wakeup = min(self.raft.next_wakeup(), self._sync_state_at)
        if self.status.waiting:
            wakeup = min(wakeup, self._look_at_deadlines)
        more_to_take = self._proposals and self.raft.leader_id is not None and not self._held_back
        alone = not self.raft.otherNodes and self.raft.commit_index < self.log.last_index
        if more_to_take or alone:
            return 0.0
        return max(0.0, wakeup - now)

    def _receive(self, sender: int, message: Message) -> None:
        if isinstance(message, Propose):
            for request, command in enumerate(message.commands, message.first):
                self._proposals.append(_Proposal(command, float("inf"), _Remote(sender, request)))
        elif isinstance(message, Outcomes):
            self._on_outcomes(message)
        elif isinstance(message, AskReadIndex):
            self._reads.append(_Read(float("inf"), _Remote(sender, message.request)))
        elif isinstance(message, ReadIndex):
            self._on_read_index(sender, message)
        else:
            self.raft.receive(sender, message)

    def _flush(self) -> None:
        """Make the log durable, and only then let messages leave."""
        assert self.log is not None
        for replica_id, outcomes in self._outcomes.items():
            self._outbox.append((replica_id, Outcomes(outcomes)))
        self._outcomes = {}
        self.log.sync()
        outbox, self._outbox = self._outbox, []
        for to, message in outbox:
            if not self._endpoint.send(to, message) and isinstance(message, Propose):
                self._take_back(message)

    def _tell_callers(self) -> None:
        """Answer, now that the status shows what they will be told, and before the disk makes them wait."""
        if self._answers:
            if self.running:
                self.status = self._present_status()
            answers, self._answers = self._answers, []
            for future, result in answers:
                future.set_result(result)

    def _apply(self, entries: Sequence[LogEntry]) -> None:
        """Hand committed entries to the state machine as one batch, and answer who waits for them."""
        commands = [
            Entry(entry.index, entry.command[1:]) for entry in entries if entry.command.startswith(REGULAR)
        ]
        results = self.machine.update(commands) if commands else []
        if len(results) != len(commands):
            raise OndiskError(f"update() returned {len(results)} results for {len(commands)} entries")
        if not self._in_log:
            return
        answers = {entry.index: result for entry, result in zip(commands, results, strict=True)}
        for entry in entries:
            if (waiting := self._in_log.pop(entry.index, None)) is None:
                continue
            term, proposal = waiting
            if term == entry.term:
                self._answer(proposal.reply, answers[entry.index])
            else:
                self._refuse(proposal.reply, Rejected(_DISCARDED))

    # Proposals

    def _take_requests(self) -> None:
        """Raft is ready for new requests: propose them, forward them, or let them wait for a leader."""
        leader = self.raft.leader_id
        if self.raft.is_leader:
            self._propose_here()
        else:
            self._return_remote_requests()
            if leader is not None and self._proposals:
                self._forward(leader)
        self._ask_for_read_index(leader)

    def _take_proposals(self) -> list[_Proposal]:
        taken: list[_Proposal] = []
        size = 0
        while self._proposals and size < self._timing.batch_bytes:
            proposal = self._proposals.popleft()
            if proposal.deadline <= self._now:
                self._too_late(proposal)
            elif isinstance(proposal.reply, _Remote) or _begin(proposal.reply):
                taken.append(proposal)
                size += len(proposal.command)
        return taken

    def _propose_here(self) -> None:
        if proposals := self._take_proposals():
            first = self.raft.append([proposal.command for proposal in proposals])
            for index, proposal in enumerate(proposals, first):
                if index in self._in_log:  # from an earlier term of ours, and cut off since
                    self._refuse(
                        self._in_log[index][1].reply,
                        OutcomeUnknown(_LOST_BY_LEADER),
                    )
                self._in_log[index] = self.raft.term, proposal

    def _forward(self, leader: int) -> None:
        proposals = self._take_proposals()
        for request, proposal in enumerate(proposals, self._next_request):
            self._forwarded[request] = leader, proposal
        if proposals:
            commands = [proposal.command for proposal in proposals]
            self._outbox.append((leader, Propose(self._next_request, commands)))
            self._next_request += len(proposals)

    def _take_back(self, message: Propose) -> None:
        """The leader is gone and the commands never left: they wait for the next one."""
        self._held_back = True
        for request in reversed(range(message.first, message.first + len(message.commands))):
            if (waiting := self._forwarded.pop(request, None)) is not None:  # else given up meanwhile
                self._proposals.appendleft(waiting[1])

    def _return_remote_requests(self) -> None:
        """Another replica took this one for the leader: it may ask elsewhere."""
        ours = []
        for proposal in _drain(self._proposals):
            if isinstance(proposal.reply, _Remote):
                self._report(proposal.reply, "not_leader")
            else:
                ours.append(proposal)
        self._proposals.extendleft(reversed(ours))

    def _on_outcomes(self, message: Outcomes) -> None:
        for outcome in message.outcomes:
            if (waiting := self._forwarded.pop(outcome.request, None)) is None:
                continue  # given up already
            _, proposal = waiting
            assert isinstance(proposal.reply, Future)
            if outcome.result is not None:
                self._answers.append((proposal.reply, outcome.result))
            elif outcome.verdict == "not_leader":
                proposal.reply.set_exception(
                    NoLeader("the leader stepped down before it took the command in: try again")
                )
            elif outcome.verdict == "discarded":
                proposal.reply.set_exception(Rejected(_DISCARDED))
            else:
                proposal.reply.set_exception(OutcomeUnknown(_LOST_BY_LEADER))

    def _answer(self, reply: Future[Result] | _Remote, result: Result) -> None:
        if isinstance(reply, _Remote):
            self._report(reply, "applied", result)
        else:
            self._answers.append((reply, result))

    def _refuse(self, reply: Future[Result] | _Remote, error: OndiskError) -> None:
        if isinstance(reply, _Remote):
            self._report(reply, "discarded" if isinstance(error, NotDone) else "unknown")
        elif not reply.done():
            reply.set_exception(error)

    def _report(
        self,
        to: _Remote,
        verdict: Literal["applied", "not_leader", "discarded", "unknown"],
        result: Result | None = None,
    ) -> None:
        outcome = Outcome(to.request, verdict, result)
        self._outcomes.setdefault(to.replica_id, []).append(outcome)

    # Linearizable reads: ReadIndex

    def _ask_for_read_index(self, leader: int | None) -> None:
        if not self._reads or leader is None or self._now < self._ask_again_at:
            return
        if self.raft.is_leader:
            if self.raft.knows_commit_index():
                batch = _drain(self._reads)
                self._confirming.append((self.raft.start_round(), self.raft.commit_index, batch))
            return
        batch = []
        for read in _drain(self._reads):
            if isinstance(read.reply, _Remote):
                self._outbox.append((read.reply.replica_id, ReadIndex(read.reply.request, None)))
            else:
                batch.append(read)
        if batch:
            self._asked[self._next_request] = leader, batch
            self._outbox.append((leader, AskReadIndex(self._next_request)))
            self._next_request += 1

    def _on_read_index(self, sender: int, message: ReadIndex) -> None:
        if (waiting := self._asked.pop(message.request, None)) is None:
            return
        _, batch = waiting
        if message.index is None:  # it does not lead: ask again, but not at the speed of the network
            self._reads.extend(batch)
            if sender == self.raft.leader_id:
                self._ask_again_at = self._now + self._timing.heartbeat
        else:
            self._catching_up.extend((message.index, read) for read in batch)

    def _serve_reads(self) -> None:
        if self._confirming:
            if not self.raft.is_leader:
                for _, _, batch in self._confirming:
                    self._reads.extend(batch)
                self._confirming.clear()
            else:
                confirmed = self.raft.confirmed_round()
                while self._confirming and self._confirming[0][0] <= confirmed:
                    _, index, batch = self._confirming.popleft()
                    for read in batch:
                        if isinstance(read.reply, _Remote):
                            self._outbox.append((read.reply.replica_id, ReadIndex(read.reply.request, index)))
                        else:
                            self._catching_up.append((index, read))
        if self._catching_up:
            applied = self.raft.applied_index
            waiting = []
            for index, read in self._catching_up:
                assert isinstance(read.reply, Future)
                if index > applied:
                    waiting.append((index, read))
                elif _begin(read.reply):
                    self._answers.append((read.reply, None))
            self._catching_up = waiting

    # Deadlines

    def _give_up(self, now: float) -> None:
        """End what will not be answered: the leader went away, or the deadline has passed."""
        if self._forwarded or self._asked:
            self._give_up_on_former_leader()
        if now < self._look_at_deadlines:
            return
        self._look_at_deadlines = now + _LOOK_AT_DEADLINES
        in_time = []
        for proposal in _drain(self._proposals):
            if proposal.deadline > now:
                in_time.append(proposal)
            else:
                self._too_late(proposal)
        self._proposals.extendleft(reversed(in_time))
        for table in (self._in_log, self._forwarded):
            late = [key for key, (_, proposal) in table.items() if proposal.deadline <= now]
            for key in late:
                self._refuse(
                    table.pop(key)[1].reply,
                    Timeout("proposed, but not known to be committed before the deadline"),
                )
        self._reads.extendleft(reversed(self._in_time(_drain(self._reads), now)))
        self._confirming = deque(
            (number, index, self._in_time(batch, now)) for number, index, batch in self._confirming
        )
        self._asked = {
            request: (leader, batch)
            for request, (leader, reads) in self._asked.items()
            if (batch := self._in_time(reads, now))
        }
        self._catching_up = [(index, read) for index, read in self._catching_up if self._in_time([read], now)]

    @staticmethod
    def _too_late(proposal: _Proposal) -> None:
        """Its deadline passed before it was proposed."""
        if isinstance(proposal.reply, Future) and _begin(proposal.reply):
            proposal.reply.set_exception(
                NoLeader("no leader could be reached before the deadline; nothing was proposed")
            )

    @staticmethod
    def _in_time(reads: Sequence[_Read], now: float) -> list[_Read]:
        kept = []
        for read in reads:
            if read.deadline > now:
                kept.append(read)
            elif isinstance(read.reply, Future) and _begin(read.reply):
                read.reply.set_exception(
                    NoLeader("no majority confirmed a leader before the deadline; try again")
                )
        return kept

    def _give_up_on_former_leader(self) -> None:
        leader = self.raft.leader_id
        for request in [key for key, (asked, _) in self._forwarded.items() if asked != leader]:
            self._refuse(
                self._forwarded.pop(request)[1].reply,
                OutcomeUnknown("the leader went away after the command was sent to it"),
            )
        for request in [key for key, (asked, _) in self._asked.items() if asked != leader]:
            self._reads.extend(self._asked.pop(request)[1])  # a read may be asked again

    # State on disk

    def _sync_state(self, now: float) -> None:
        if now < self._sync_state_at:
            return
        self._sync_state_at = now + _SYNC_STATE_EVERY
        if self._synced_index < self.raft.applied_index:
            index = self.raft.applied_index
            self.machine.sync()
            self._synced_index = index

    def lookup(self, query: Any) -> Any:
        """Ask the state machine, as it is here and now. From any thread."""
        return self.machine.lookup(query)

    # The end

    def close(self) -> None:
        """Make everything durable and let go of it. A second call does nothing."""
        self._stop("stopped", None)

    def crash(self) -> None:
        """Let go as a power cut would: what was not synced is lost."""
        if self.log is not None:
            self.log.crash()
            self.machine.crash()
        self._stop("stopped", None)

    def fail(self, error: BaseException) -> None:
        """End because of ``error``, which the status shows from now on."""
        reason = f"{type(error).__name__}: {error}"
        logger.error("replica %d failed: %s", self.id, reason)
        logger.debug("replica %d failed here", self.id, exc_info=error)
        self._stop("failed", reason)

    def _stop(self, role: str, reason: str | None) -> None:
        if self.log is None:
            return
        status = self._present_status()
        self.status = status._replace(role=role, leader_id=None, match_index={}, waiting=0, error=reason)
        self._release()
        self._tell_callers()
        self._refuse_waiting()

    def _refuse_waiting(self) -> None:
        """Answer everybody who still waits for a replica that has stopped. From any thread."""
        with self._refusing:
            self._refuse_waiting_one_at_a_time()

    def _refuse_waiting_one_at_a_time(self) -> None:
        stopped = f"replica {self.id} is stopped" + (f" ({self.status.error})" if self.status.error else "")
        for proposal in _drain(self._proposals):
            if isinstance(proposal.reply, Future) and _begin(proposal.reply):
                proposal.reply.set_exception(ReplicaStopped(stopped))
        for table in (self._in_log, self._forwarded):
            while table:
                _, (_, proposal) = table.popitem()
                self._refuse(proposal.reply, OutcomeUnknown(f"{stopped}; the command had been proposed"))
        reads = _drain(self._reads)
        reads += [read for _, read in self._catching_up]
        reads += [read for _, _, batch in _drain(self._confirming) for read in batch]
        reads += [read for _, batch in self._asked.values() for read in batch]
        self._catching_up, self._asked = [], {}
        for read in reads:
            if isinstance(read.reply, Future) and _begin(read.reply):
                read.reply.set_exception(ReplicaStopped(stopped))

    def _release(self) -> None:
        """Close everything that was opened, whatever state it is in."""
        log, self.log = self.log, None
        for close in (
            self._endpoint.close,
            log.close if log else None,
            self.machine.close,
            self._lock.release if self._lock else None,
        ):
            try:
                if close is not None:
                    close()
            except Exception:
                logger.warning("replica %d: while closing", self.id, exc_info=True)

    def _present_status(self) -> ReplicaStatus:
        raft, log = self.raft, self.log
        assert log is not None
        return ReplicaStatus(
            self.id,
            raft.role,
            raft.term,
            raft.leader_id,
            log.last_index,
            log.synced_index,
            raft.commit_index,
            raft.applied_index,
            self._synced_index,
            self.opened_index,
            log.syncs,
            len(self._proposals)
            + len(self._in_log)
            + len(self._forwarded)
            + len(self._reads)
            + len(self._confirming)
            + len(self._asked)
            + len(self._catching_up),
            raft.match_index,
        )
