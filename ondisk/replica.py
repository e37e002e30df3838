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
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from pathlib import Path
from typing import Any, Literal, NamedTuple, TypeVar

from ondisk.clock import Clock
from ondisk.disk import DirectoryLock, Disk
from ondisk.errors import (
    CommandTooLarge,
    ConfigurationError,
    Corrupt,
    NoLeader,
    NotDone,
    OndiskError,
    OutcomeUnknown,
    Rejected,
    ReplicaStopped,
    Timeout,
)
from ondisk.members import Members
from ondisk.messages import (
    AddReplica,
    AskReadIndex,
    Change,
    Message,
    Outcome,
    Outcomes,
    Propose,
    ProposeChange,
    ReadIndex,
    Removed,
    RemoveReplica,
    SnapshotAck,
    SnapshotChunk,
    TransferLeadership,
)
from ondisk.network import Endpoint
from ondisk.raft import Raft, Timing
from ondisk.raftlog import REGULAR, LogEntry, RaftLog
from ondisk.statemachine import Entry, OnDiskStateMachine, Result
from ondisk.stream import SnapshotFile
from ondisk.transfer import Progress, Transfers

MAX_COMMAND_BYTES = 2 << 20
_LOOK_AT_DEADLINES = 0.05  # seconds between two looks at the deadlines of waiting requests
_SYNC_STATE_EVERY = 1.0  # seconds

# The log is compacted when it has so many entries or bytes; the newest stay for those who lag a bit.
_COMPACT_AFTER_ENTRIES, _KEEP_ENTRIES = 10_000, 1_000
_COMPACT_AFTER_BYTES, _KEEP_BYTES = 64 << 20, 4 << 20
_WAIT_FOR_SLOW_ENTRIES = 4 * _COMPACT_AFTER_ENTRIES  # for those who lag more, but answer

# Where an experiment may crash a replica that compacts its log.
POINTS = ("compact: state synced", "compact: recorded")

_DISCARDED = "a new leader discarded the entry before it was committed"
_STATE_IS_LOST = (
    "the log begins after entry {}, but the state ends with entry {}: it was lost or rolled back. "
    "Waiting for a snapshot from the leader"
)
_LOST_BY_LEADER = "the leader lost the entry; another replica may still hold it"
_PASSED_BY_SNAPSHOT = "a snapshot passed the entry, and does not tell whether it was this one"

logger = logging.getLogger(__name__)


_T = TypeVar("_T")


class ReplicaStatus(NamedTuple):
    """One replica at one moment. All indexes are places in the log.

    ``last_index`` >= ``durable_index`` (synced in the log) >= ``applied_index`` >= ``synced_index``
    (synced in the state machine). ``commit_index`` is what this replica knows to be committed.
    """

    id: int
    role: str  # leader, follower, candidate, stopped, failed or removed
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
    first_index: int = 1  # the first entry that is still in the log, or would be
    voters: tuple[int, ...] = ()  # the members that count, as far as this replica knows
    learners: tuple[int, ...] = ()  # those that are being fed until they can
    transfers: tuple[Progress, ...] = ()  # snapshots under way

    @property
    def running(self) -> bool:
        """Whether it takes requests: not stopped, not failed, not removed."""
        return self.role not in ("stopped", "failed", "removed")


class _Remote(NamedTuple):
    """Whom to answer when the request came from another replica."""

    replica_id: int
    request: int


class _Proposal(NamedTuple):
    command: bytes | Change
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

    # What it is made of. A simulation puts others in their place, to see what each safeguard is good for.
    log_type: type[RaftLog] = RaftLog
    raft_type: type[Raft] = Raft
    transfers_type: type[Transfers] = Transfers

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
        lockstep: bool = False,
    ) -> None:
        """Open the log in ``directory`` and the state machine.

        ``members`` are the first voters of the group, and none for a replica that is to be added to one;
        they count until the log knows better. ``lockstep`` makes background work keep pace with the steps,
        so that a simulation can be repeated. Raises ``DirectoryInUse``, ``Corrupt`` or ``StorageError``. The
        endpoint belongs to the replica from now on.
        """
        self.id = replica_id
        self.machine = machine
        self._endpoint = endpoint
        self._clock = clock
        self._lock: DirectoryLock | None = None
        self.log: RaftLog | None = None
        self._transfers: Transfers | None = None
        self._disk = disk or Disk()
        self._outbox: list[tuple[int, Message]] = []
        try:
            self._lock = DirectoryLock(directory)
            log = self.log = self.log_type(directory / "log", disk, members)
            self.opened_index = machine.open()
            self._finish_install(log, self.opened_index)
            self.raft = self.raft_type(
                replica_id,
                log,
                self.opened_index,
                send=self._send,
                apply=self._apply,
                take_requests=self._take_requests,
                use_members=lambda members: endpoint.meet(members.addresses),
                rng=rng,
                now=clock(),
                timing=timing or Timing(),
            )
            self._transfers = self.transfers_type(
                replica_id,
                machine,
                self.raft,
                send=self._send,
                wake=endpoint.wake,
                installed=self._on_installed,
                rng=rng,
                disk=self._disk,
                lockstep=lockstep,
            )
        except BaseException:
            self._release()
            raise
        self._timing = self.raft.timing
        self._outcomes: dict[int, list[Outcome]] = {}
        self._answers: list[tuple[Future[Any], Result | None]] = []  # for callers in this process
        self._next_request = self._first_request(rng)
        self._synced_index = self.opened_index
        self._machine_index = self.opened_index  # the last entry that the state machine was shown
        self._sync_state_at = clock() + _SYNC_STATE_EVERY
        self._look_at_deadlines = 0.0
        self._now = clock()  # the time of the present step
        self._damage: Corrupt | None = None  # met by a lookup
        self._removed = False  # whether it has been told so
        self._held_back = False  # whether the present step could not send to the leader it knows
        self._ask_again_at = 0.0
        self._refusing = threading.Lock()
        self._handing_over: _Proposal | None = None  # a wish for another leader, until it leads
        self._errands: deque[tuple[Callable[[], object], Future[Any]]] = deque()  # for the next step

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

    @staticmethod
    def _finish_install(log: RaftLog, opened_index: int) -> None:
        """Complete, or forget, the installation of a snapshot that a crash cut short.

        The state machine replaces its state in one step, and so does the log. This holds the two together.
        """
        if log.installing is None:
            return
        if opened_index >= log.installing[0]:
            log.install(*log.installing)
        else:
            log.abandon_install()
        log.sync()

    @staticmethod
    def _first_request(rng: random.Random) -> int:
        """Not always the same, so that answers to an earlier life are not taken for ours."""
        return rng.getrandbits(48)

    @property
    def running(self) -> bool:
        """Whether it takes requests."""
        return self.status.running

    @property
    def configuration(self) -> tuple[int, Members]:
        """The members as this replica knows them, and the index of the entry that says so."""
        log = self.log
        if log is None:
            raise ReplicaStopped(f"replica {self.id} is {self.status.role}")
        return log.configuration

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
        return self._ask(command, deadline)

    def propose_change(self, change: Change, deadline: float) -> Future[Result]:
        """Ask for a change of the members, or for another leader.

        The future ends when it is committed. A change that makes no sense is a ``Result`` with an error. A
        replica that is added counts only later, when it has caught up: see ``ReplicaStatus.voters``.
        """
        return self._ask(change, deadline)

    def _ask(self, command: bytes | Change, deadline: float) -> Future[Result]:
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

    def compact(self) -> Future[int]:
        """Drop the log up to what the state holds durably; the future ends with the index of its base."""
        return self._errand(lambda future: future.set_result(self._compact(keep=False)))

    def export_snapshot(self, path: Path, stopped: threading.Event) -> Future[SnapshotFile]:
        """Write the state as it is now into a file, beside everything else, unless ``stopped`` is set."""
        return self._errand(lambda future: self._running_transfers.export(path, future, stopped))

    def _errand(self, errand: Callable[[Future[_T]], object]) -> Future[_T]:
        future: Future[_T] = Future()
        self._errands.append((lambda: errand(future), future))
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
                if self._damage is not None:
                    raise self._damage
                self._running_transfers.look(now)
                self._take_in()
                if self._removed:
                    self._stop("removed", "this replica was removed from the group")
                    return float("inf")
                # Afterwards: the last message of a leader that is gone must not bring it back.
                self.raft.set_connected(self._endpoint.connected())
                self._flush()
                self.raft.tick()
                self._look_at_hand_over()
                self._do_errands()
                self._running_transfers.serve(now)
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
        if self.status.waiting or self._running_transfers.busy:
            wakeup = min(wakeup, self._look_at_deadlines)
        more_to_take = self._proposals and self.raft.leader_id is not None and not self._held_back
        alone = (
            self.raft.is_leader and not self.raft.otherNodes and self.raft.commit_index < self.log.last_index
        )
        if more_to_take or alone:
            return 0.0
        return max(0.0, wakeup - now)

    def _take_in(self) -> None:
        for sender, message in self._endpoint.receive():
            self._receive(sender, message)

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
        elif isinstance(message, ProposeChange):
            self._proposals.append(_Proposal(message.change, float("inf"), _Remote(sender, message.request)))
        elif isinstance(message, SnapshotChunk):
            self._running_transfers.on_chunk(sender, message, self._now)
        elif isinstance(message, SnapshotAck):
            self._running_transfers.on_ack(sender, message, self._now)
        elif isinstance(message, Removed):
            self._removed = True
        else:
            self.raft.receive(sender, message)

    def _send(self, to: int, message: Message) -> None:
        self._outbox.append((to, message))

    def _flush(self) -> None:
        """Make the log durable, and only then let messages leave."""
        assert self.log is not None
        for replica_id, outcomes in self._outcomes.items():
            self._outbox.append((replica_id, Outcomes(outcomes)))
        self._outcomes = {}
        self.log.sync()
        outbox, self._outbox = self._outbox, []
        for to, message in outbox:
            if not self._endpoint.send(to, message) and isinstance(message, Propose | ProposeChange):
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
        if commands:
            self._machine_index = commands[-1].index
        if not self._in_log:
            return
        answers = {entry.index: result for entry, result in zip(commands, results, strict=True)}
        for entry in entries:
            if (waiting := self._in_log.pop(entry.index, None)) is None:
                continue
            term, proposal = waiting
            if term == entry.term:
                self._answer(proposal.reply, answers.get(entry.index, Result()))
            else:
                self._refuse(proposal.reply, Rejected(_DISCARDED))

    def _on_installed(self, index: int) -> None:
        """A snapshot took the place of all entries up to ``index``."""
        self._synced_index = self._machine_index = index
        for passed in [waiting for waiting in self._in_log if waiting <= index]:
            self._refuse(self._in_log.pop(passed)[1].reply, OutcomeUnknown(_PASSED_BY_SNAPSHOT))

    # Proposals

    def _take_requests(self) -> None:
        """Raft is ready for new requests: propose them, forward them, or let them wait for a leader."""
        leader = self.raft.leader_id
        if self.raft.is_leader:
            if not self.raft.transferring:
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
                if isinstance(proposal.command, bytes):
                    size += len(proposal.command)
        return taken

    def _propose_here(self) -> None:
        commands, changes = _split(self._take_proposals())
        if commands:
            first = self.raft.append([command for command, _ in commands])
            for index, (_, proposal) in enumerate(commands, first):
                self._await(index, proposal)
        for change, proposal in changes:
            try:
                self._propose_change_here(change, proposal)
            except ConfigurationError as error:
                self._answer(proposal.reply, Result(error=str(error)))

    def _await(self, index: int, proposal: _Proposal) -> None:
        if index in self._in_log:  # from an earlier term of ours, and cut off since
            self._refuse(self._in_log[index][1].reply, OutcomeUnknown(_LOST_BY_LEADER))
        self._in_log[index] = self.raft.term, proposal

    def _propose_change_here(self, change: Change, proposal: _Proposal) -> None:
        if isinstance(change, TransferLeadership):
            if change.to == self.id:
                self._answer(proposal.reply, Result())
            elif self._handing_over is not None:
                self._wait_for_turn(proposal)
            else:
                self.raft.transfer(change.to)
                self._handing_over = proposal
        elif isinstance(change, RemoveReplica) and change.id == self.id and len(self.raft.members.voters) > 1:
            if (successor := self.raft.best_successor()) is not None:
                self.raft.transfer(successor)  # who will be asked to remove this one
            if isinstance(proposal.reply, _Remote):
                self._report(proposal.reply, "not_leader")
            else:
                self._wait_for_turn(proposal)
        elif (index := self.raft.change(change)) is None:
            self._wait_for_turn(proposal)
        elif index > 0:
            self._await(index, proposal)
        else:
            self._answer(proposal.reply, Result())

    def _wait_for_turn(self, proposal: _Proposal) -> None:
        self._held_back = True
        self._proposals.append(proposal)

    def _look_at_hand_over(self) -> None:
        """Answer who wanted another leader, once it leads or has not made it in time."""
        if (proposal := self._handing_over) is None or (self.raft.transferring and self.raft.is_leader):
            return
        assert isinstance(proposal.command, TransferLeadership)
        if self.raft.leader_id is None and self._now < proposal.deadline:
            return  # an election is going on
        self._handing_over = None
        if self.raft.leader_id == proposal.command.to:
            self._answer(proposal.reply, Result())
        else:
            self._answer(proposal.reply, Result(error=f"replica {proposal.command.to} did not take over"))

    def _forward(self, leader: int) -> None:
        commands, changes = _split(self._take_proposals())
        if commands:
            first = self._next_request
            for _, proposal in commands:
                self._note_forwarded(leader, proposal)
            self._outbox.append((leader, Propose(first, [command for command, _ in commands])))
        for change, proposal in changes:
            request = self._note_forwarded(leader, proposal)
            self._outbox.append((leader, ProposeChange(request, change)))

    def _note_forwarded(self, leader: int, proposal: _Proposal) -> int:
        request = self._next_request
        self._forwarded[request] = leader, proposal
        self._next_request += 1
        return request

    def _take_back(self, message: Propose | ProposeChange) -> None:
        """The leader is gone and the commands never left: they wait for the next one."""
        self._held_back = True
        if isinstance(message, ProposeChange):
            requests = range(message.request, message.request + 1)
        else:
            requests = range(message.first, message.first + len(message.commands))
        for request in reversed(requests):
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
            elif outcome.verdict == "not_leader" and not isinstance(proposal.command, bytes):
                self._wait_for_turn(proposal)  # a leader that is to be removed hands over first
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
        self._forget_cut_off()
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

    def _forget_cut_off(self) -> None:
        """Commands of other replicas that are in this log no more; those know no better than we do."""
        assert self.log is not None
        last = self.log.last_index
        for index in [index for index in self._in_log if index > last]:
            if isinstance(reply := self._in_log[index][1].reply, _Remote):
                del self._in_log[index]
                self._refuse(reply, OutcomeUnknown(_LOST_BY_LEADER))

    @staticmethod
    def _too_late(proposal: _Proposal) -> None:
        """Its deadline passed before it was proposed."""
        if not isinstance(proposal.reply, Future):
            return
        if proposal.reply.running() and not isinstance(proposal.command, bytes):
            # It may have been proposed to a leader that went away: see ``_give_up_on_former_leader``.
            proposal.reply.set_exception(Timeout("asked for, but not known to be done before the deadline"))
        elif _begin(proposal.reply):
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
            proposal = self._forwarded[request][1]
            change = proposal.command
            if isinstance(change, TransferLeadership) and leader in (None, change.to):
                if leader is None:
                    continue  # going away is what it was asked for
                self._answer(proposal.reply, Result())
            elif isinstance(change, AddReplica):
                again = AddReplica(change.id, change.address, again=True)
                self._wait_for_turn(proposal._replace(command=again))
            elif isinstance(change, RemoveReplica):
                self._wait_for_turn(proposal)  # done twice is done once
            else:
                self._refuse(
                    proposal.reply, OutcomeUnknown("the leader went away after the command was sent to it")
                )
            del self._forwarded[request]
        for request in [key for key, (asked, _) in self._asked.items() if asked != leader]:
            self._reads.extend(self._asked.pop(request)[1])  # a read may be asked again

    # State on disk

    def _do_errands(self) -> None:
        for errand, future in _drain(self._errands):
            if not _begin(future):
                continue
            try:
                errand()
            except BaseException as error:
                future.set_exception(error)
                raise

    def _sync_state(self, now: float) -> None:
        if now < self._sync_state_at:
            return
        self._sync_state_at = now + _SYNC_STATE_EVERY
        if self.raft.recovering or self.raft.needs_state:
            return
        self._sync_machine()
        assert self.log is not None
        entries = self.raft.applied_index - self.log.base_index
        if entries > _COMPACT_AFTER_ENTRIES or self.log.bytes_since_compaction > _COMPACT_AFTER_BYTES:
            self._compact(keep=True)

    def _sync_machine(self) -> None:
        if self._synced_index < self.raft.applied_index:
            index = self.raft.applied_index
            self.machine.sync()
            self._synced_index = index

    def _compact(self, *, keep: bool) -> int:
        """Drop the log up to what the state holds durably; return its new base.

        Metadata only: the state is on disk already, and no snapshot is made. ``keep`` leaves the newest
        entries for those who are a little behind.
        """
        log = self.log
        assert log is not None
        if self.raft.recovering or self.raft.needs_state:
            return log.base_index
        # This order, or a power cut could leave neither the entry nor its outcome: sync, record, drop.
        self._sync_machine()
        self._disk.reach("compact: state synced")
        index = self._machine_index  # not Raft's own entries after it: open() would not know of them
        if keep:
            index = min(index, log.start_of_last(_KEEP_ENTRIES, _KEEP_BYTES) - 1)
        if self.raft.is_leader and self.raft.applied_index - log.base_index < _WAIT_FOR_SLOW_ENTRIES:
            index = min(index, self.raft.slowest_match())
        if (sent := self._running_transfers.oldest_index_sent) is not None:
            index = min(index, sent)
        if index > log.base_index:
            log.compact(index)
            log.sync()
            self._disk.reach("compact: recorded")
        return log.base_index

    def lookup(self, query: Any) -> Any:
        """Ask the state machine, as it is here and now. From any thread.

        Damage that a question meets stops this replica: as leader it would go on to answer with errors.
        """
        try:
            return self.machine.lookup(query)
        except Corrupt as error:
            self._damage = error
            self._endpoint.wake()
            raise

    # The end

    def close(self) -> None:
        """Make everything durable and let go of it. A second call does nothing."""
        self._stop("stopped", None)

    def crash(self) -> None:
        """Let go as a power cut would: what was not synced is lost."""
        if self.log is not None:
            self._running_transfers.close()
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
        for _, future in _drain(self._errands):
            if _begin(future):
                future.set_exception(ReplicaStopped(stopped))
        if self._handing_over is not None:
            self._refuse(self._handing_over.reply, OutcomeUnknown(stopped))
        self._handing_over = None
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
            self._transfers.close if self._transfers else None,
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
            _STATE_IS_LOST.format(log.base_index, self.opened_index) if raft.needs_state else None,
            log.base_index + 1,
            raft.members.voters,
            raft.members.learners,
            self._running_transfers.progress(),
        )

    @property
    def _running_transfers(self) -> Transfers:
        assert self._transfers is not None
        return self._transfers


def _split(
    proposals: Sequence[_Proposal],
) -> tuple[list[tuple[bytes, _Proposal]], list[tuple[Change, _Proposal]]]:
    """Commands for the state machine, and changes of the group."""
    commands, changes = [], []
    for proposal in proposals:
        if isinstance(proposal.command, bytes):
            commands.append((proposal.command, proposal))
        else:
            changes.append((proposal.command, proposal))
    return commands, changes
