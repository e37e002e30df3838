"""Replica: log, state machine and Raft of one member. Passive: it moves only when ``step`` is called.

One step is a straight line, and its order is what keeps promises true:

1. take in every message that has arrived (before any timer is looked at);
2. **sync the log**, then let the answers leave: no promise leaves before what it says is durable;
3. run the timers;
4. apply what is committed, as one batch;
5. take in new requests: commands into the log, reads into the next round;
6. replicate: make messages for the followers;
7. answer the callers; let a leader's entries leave, **sync the log**, and let the rest leave.

A leader's entries promise nothing: it counts itself for a majority only when its own log holds them durably.
So followers write their logs while the leader writes its own (thesis, 10.2.1). One sync covers all that came
in between two steps, be it one entry or a thousand: group commit.

A replica owns no thread, no clock and no socket. ``Node`` steps it from a thread, a simulation steps many
from one thread in virtual time, and a notebook may step it by hand.
"""

from __future__ import annotations

import logging
import os
import random
import threading
from collections import deque
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

from ondisk.errors import CommandTooLarge, ConfigurationError, Corrupt, OndiskError, ReplicaStopped
from ondisk.identity.founding import Founding
from ondisk.identity.origins import Origins
from ondisk.identity.statemark import check_mark, mark
from ondisk.interrupts import forked
from ondisk.interrupts.futures import Future
from ondisk.net.addresses import parse_address
from ondisk.net.clock import Clock
from ondisk.net.endpoint import Endpoint
from ondisk.raft import Raft, Timing
from ondisk.raft.limits import MAX_COMMAND_BYTES, check_first_members, check_timing
from ondisk.raft.log import RaftLog
from ondisk.raft.members import Members, check_id, check_ids
from ondisk.raft.messages import (
    AddReplica,
    AppendEntries,
    AppendEntriesResponse,
    Change,
    Membership,
    Message,
    MoveReplica,
    Origin,
    Outcomes,
    Propose,
    ProposeChange,
    ReadIndexRejection,
    ReadIndexRequest,
    ReadIndexResponse,
    Refused,
    Removed,
    SnapshotAck,
    SnapshotChunk,
    SnapshotRejection,
    TransferLeadership,
)
from ondisk.raft.records import REGULAR, LogEntry
from ondisk.replica.admin import AdminRequests
from ondisk.replica.belonging import Belonging
from ondisk.replica.compaction import Compaction
from ondisk.replica.opening import finish_install, first_members
from ondisk.replica.proposals import Proposals
from ondisk.replica.reads import Lookup, Reads
from ondisk.replica.status import Inside, ReplicaStatus, failure
from ondisk.snapshot.stream import SnapshotFile
from ondisk.snapshot.streaming import Streaming
from ondisk.statemachine import Entry, OnDiskStateMachine, Result
from ondisk.storage.disk import Disk
from ondisk.storage.lock import DirectoryLock

_LOOK_AT_DEADLINES = 0.05  # seconds between two looks at the deadlines of waiting requests
_STATE_IS_LOST = (
    "the log begins after entry {}, but the state ends with entry {}: it was lost or rolled back. "
    "Waiting for a snapshot from the leader"
)
_ABOUT_PROPOSALS = (Propose, ProposeChange, Outcomes)
_ABOUT_READS = (ReadIndexRequest, ReadIndexResponse, ReadIndexRejection)
_MOST = (AppendEntries, AppendEntriesResponse)  # of all messages: looked at first

logger = logging.getLogger(__name__)


_T = TypeVar("_T")


class Refusal(OndiskError):
    """This directory must not take part in its group any more."""


class Replica:
    """One member of a Raft group, with its directory, its log and its state machine."""

    # What it is made of. A simulation puts others in their place, to see what each safeguard is good for.
    log_type: type[RaftLog] = RaftLog
    raft_type: type[Raft] = Raft
    streaming_type: type[Streaming] = Streaming
    origins_type: type[Origins] = Origins
    founding_type: type[Founding] = Founding
    compaction_type: type[Compaction] = Compaction

    def __init__(
        self,
        replica_id: int,
        members: Sequence[int] | None,
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

        ``members`` are the first voters of the group, and none for a replica that is to be added to one. The
        group is founded when all of them are there (``identity/founding.py``). ``None``: those that the
        directory was first opened with. ``lockstep`` makes background work keep pace with the steps, so that
        a simulation can be repeated. Raises ``ConfigurationError`` if the directory belongs to another
        replica or group of members, ``DirectoryInUse``, ``Corrupt`` or ``StorageError``. The endpoint belongs
        to the replica from now on.
        """
        self.id = replica_id
        self.machine = machine
        self._endpoint = endpoint
        self._clock = clock
        self._lock: DirectoryLock | None = None
        self.log: RaftLog | None = None
        self._streaming: Streaming | None = None
        self._disk = disk or Disk()
        self._outbox: list[tuple[int, Message]] = []
        self._to_close: list[Callable[[], object]] | None = None  # once it has begun to close
        self._process = os.getpid()
        forked.register(self)
        try:
            check_timing(timing or Timing())
            check_first_members(len(members or ()))
            self._lock = DirectoryLock(directory)
            log = self.log = self.log_type(directory / "log", disk, members, replica_id=replica_id, rng=rng)
            first = first_members(log, members)
            log.sync()  # who this is stands there before anything else
            check_mark(log, directory / "state")
            self.opened_index = machine.open()
            mark(log, directory / "state", self.opened_index, self._disk)
            self.identity = log.identity  # as it was opened
            self._disk_name = log.disk_id.hex()
            self._finish_install(log, self.opened_index)
            self.raft = self.raft_type(
                replica_id,
                log,
                self.opened_index,
                send=self._send,
                rng=rng,
                now=clock(),
                timing=timing or Timing(),
            )
            self._streaming = self.streaming_type(
                replica_id,
                machine,
                self.raft,
                send=self._send,
                wake=endpoint.wake,
                rng=rng,
                disk=self._disk,
                lockstep=lockstep,
            )
            self._belonging = Belonging(
                self.raft,
                log,
                endpoint,
                first,
                send=self._send,
                origins_type=self.origins_type,
                founding_type=self.founding_type,
            )
        except BaseException:
            self._release()
            raise
        self._answers: deque[tuple[Future[Any], Result | None]] = deque()  # for callers in this process
        first_request = self._first_request(rng)
        self._proposals = Proposals(
            replica_id,
            self.raft,
            send=self._send,
            answer=self._answer,
            first_request=first_request,
            failed=self.on_failed,
        )
        self._reads = Reads(
            self.raft, send=self._send, answer=self._answer, first_request=first_request, clock=clock
        )
        self._compaction = self.compaction_type(
            self.raft,
            machine,
            self._disk,
            opened_index=self.opened_index,
            oldest_index_sent=lambda: self._open_streaming.oldest_index_sent,
            now=clock(),
        )
        self._admin = AdminRequests()
        self._look_at_deadlines = 0.0
        self._now = clock()  # the time of the present step
        self._damage: Corrupt | None = None  # met by a lookup
        self._removed = False  # whether it has been told so
        self._lease_until = float("-inf")  # for who asks beside the steps
        self.status = self._present_status()

    _finish_install = staticmethod(finish_install)

    @staticmethod
    def _first_request(rng: random.Random) -> int:
        """Not always the same, so that answers to an earlier life are not taken for ours."""
        return rng.getrandbits(48)

    @property
    def running(self) -> bool:
        """Whether it takes requests."""
        return self.status.running

    @property
    def transferring(self) -> bool:
        """Whether snapshots are under way, to here or from here."""
        return self._open_streaming.busy

    def inside(self, entries: int) -> Inside:
        """What a picture shows beside the status, from any thread; nothing of one that has stopped.

        Not of one moment, as the status is: whoever looks meets the replica in the middle of a step.
        """
        log = self.log
        if log is None:
            return Inside()
        term, votes = self.raft.elections.votes
        newest = tuple(log.newest(entries))
        status = self.status
        asked, would = self.raft.elections.prevotes
        asks = asked == status.term + 1 and status.role == "follower"
        voted = votes if term == status.term else frozenset()
        return Inside(newest, self.raft.election_deadline, voted, would if asks else None)

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
        replica that is added counts only later, when it has caught up: see ``ReplicaStatus.voters``. Raises
        ``ConfigurationError`` for an id or an address that is none.
        """
        check_id(change.to if isinstance(change, TransferLeadership) else change.id)
        if isinstance(change, AddReplica | MoveReplica) and not isinstance(change.address, str):
            raise ConfigurationError(f"an address is a text like localhost:63001, not {change.address!r:.60}")
        if isinstance(change, MoveReplica) or (isinstance(change, AddReplica) and change.address):
            parse_address(change.address)
        return self._ask(change, deadline)

    def _ask(self, command: bytes | Change, deadline: float) -> Future[Result]:
        return self._handed_over(self._proposals.ask(command, deadline))

    def read_barrier(self, deadline: float, *, lease: bool = False) -> Future[None]:
        """A future that ends when a ``lookup`` here would see every write acknowledged before this call.

        ``lease``: the leader's lease is good enough for that. Raises ``ConfigurationError`` if no bound on
        the clocks is stated here.
        """
        return self._read(Future(), deadline, lease=lease)

    def read(self, query: Any, deadline: float, *, lease: bool = False) -> Future[Any]:
        """The same, and then ``lookup`` of a query, which is quick: a step does it. The future ends with what
        that returns or raises.
        """
        return self._read(Lookup(partial(self.lookup, query)), deadline, lease=lease)

    def _read(self, future: Future[Any], deadline: float, *, lease: bool) -> Future[Any]:
        if lease and self.raft.timing.clock_drift is None:
            raise ConfigurationError(
                "a read by lease needs a bound on the drift of the clocks: state it for all replicas, "
                "Timing(clock_drift=...)"
            )
        if lease and self._state_is_the_newest():
            future.set_result(None)
            return future
        return self._handed_over(self._reads.ask(deadline, lease=lease, future=future))

    def _state_is_the_newest(self) -> bool:
        """Whether a lease says so, as it was known before the last messages left. From any thread.

        The order counts. When the lease is looked at it is one, if it has not ended when the clock is looked
        at, which comes last: a step that gives it up says so here before anybody can hear of it. And nobody
        else knows of an entry as committed before this leader does.
        """
        lease_until = self._lease_until
        committed = self.raft.commit_index
        return self.raft.applied_index >= committed and self._clock() < lease_until

    def compact(self) -> Future[int]:
        """Drop the log up to what the state holds durably; the future ends with the index of its base."""
        return self._asked_by_admin(lambda future: future.set_result(self._compaction.compact(keep=False)))

    def export_snapshot(self, path: Path, stopped: threading.Event) -> Future[SnapshotFile]:
        """Write the state as it is now into a file, beside everything else, unless ``stopped`` is set."""
        return self._asked_by_admin(lambda future: self._open_streaming.export(path, future, stopped))

    def found(self, members: Sequence[int]) -> Future[None]:
        """Found the group with these members only, because an operator knows that the others do not come.

        The future ends when that is noted, or with ``ConfigurationError``: see ``status.error`` for the rest.
        """
        check_ids(members)
        return self._asked_by_admin(lambda future: self._belonging.found(members, future))

    def _asked_by_admin(self, work: Callable[[Future[_T]], object]) -> Future[_T]:
        return self._handed_over(self._admin.ask(work))

    def _handed_over(self, future: Future[_T]) -> Future[_T]:
        """Wake the replica for a request; or refuse this one, if it has stopped and looks at none any more.

        No lock here: see interrupts/shielded.py.
        """
        if self.log is not None:
            self._endpoint.wake()
        elif future.claim_cancel():  # else it was refused with all the others
            forked.check(self._process, f"replica {self.id}")
            future = Future()
            future.set_exception(self._stopped())
        return future

    def _stopped(self) -> ReplicaStopped:
        reason = f" ({self.status.error})" if self.status.error else ""
        return ReplicaStopped(f"replica {self.id} is stopped{reason}")

    # The step

    def step(self) -> float:
        """Do everything there is to do now; return for how many seconds nothing more will be.

        An error of the disk or the state machine stops this replica: its status says ``failed`` and why.
        """
        if self.log is None:
            forked.check(self._process, f"replica {self.id}")
            raise ReplicaStopped(f"replica {self.id} is {self.status.role}")
        raft, streaming, belonging = self.raft, self._open_streaming, self._belonging
        self._proposals.blocked = False
        try:
            # Taken out before the clock is looked at: what is in here was sent no later than ``now``.
            arrived = self._endpoint.receive()
            now = self._now = self._clock()
            with raft.at(now):
                if self._damage is not None:
                    raise self._damage
                if (index := streaming.poll(now)) is not None:
                    self.on_installed(index)
                self._take_in(arrived)
                if self._removed:
                    self._stop("removed", "this replica was removed from the group")
                    return float("inf")
                if (refused := belonging.refused) is not None:
                    raise Refusal(refused)
                # Afterwards: the last message of a leader that is gone must not bring it back.
                connected = self._endpoint.connected()
                belonging.set_connected(connected)
                raft.set_connected(connected)
                belonging.step(now)
                self._flush()
                raft.tick()
                self._apply_committed()
                self._take_requests(now)
                raft.replicate()
                self._proposals.watch_leadership_transfer(now)
                self._admin.serve()
                streaming.advance(now)
                self._reads.serve()
                self._give_up(now)
                self._tell_callers()
                self._flush()
                self._compaction.step(now)
        except BaseException as error:  # a panic in the binding to RocksDB is no Exception
            self.fail(error)
            if isinstance(error, KeyboardInterrupt | SystemExit):
                raise
            return float("inf")
        self.status = self._present_status()
        wakeup = min(raft.next_wakeup(), self._compaction.due_at, belonging.next_wakeup())
        if self.status.waiting or streaming.busy:
            wakeup = min(wakeup, self._look_at_deadlines)
        alone = raft.is_leader and not raft.membership.others and raft.commit_index < self.log.last_index
        if self._proposals.more_to_take or alone:
            return 0.0
        return max(0.0, wakeup - now)

    def _take_in(self, arrived: Sequence[tuple[int, Origin, Message]]) -> None:
        belonging = self._belonging
        belonging.origins.forget_what_is_outdated()
        for sender, origin, message in arrived:
            if belonging.hears(sender, origin, message):
                self._receive(sender, message)
            else:
                belonging.receive_from_outside(sender, origin, message)

    def _receive(self, sender: int, message: Message) -> None:
        if isinstance(message, _MOST):
            self.raft.receive(sender, message)
        elif isinstance(message, _ABOUT_PROPOSALS):
            self._proposals.receive(sender, message)
        elif isinstance(message, _ABOUT_READS):
            self._reads.receive(sender, message, self._now)
        elif isinstance(message, SnapshotChunk):
            self._open_streaming.on_chunk(sender, message, self._now)
        elif isinstance(message, SnapshotAck) and self.raft.membership.counts(sender):
            self._open_streaming.on_ack(sender, message, self._now)
        elif isinstance(message, SnapshotRejection) and self.raft.membership.counts(sender):
            self._open_streaming.on_rejection(sender, message, self._now)
        elif isinstance(message, Removed):
            self._removed = True
        elif isinstance(message, Membership):
            self._endpoint.add_peers(message.members.addresses)
        elif isinstance(message, Refused):
            self._belonging.origins.believe(message)
        else:
            self.raft.receive(sender, message)

    def _send(self, to: int, message: Message) -> None:
        self._outbox.append((to, message))

    def _flush(self) -> None:
        """Make the log durable, and only then let messages leave, but for a leader's entries."""
        assert self.log is not None
        if self.raft.timing.clock_drift is not None:
            self._lease_until = self._reads.lease_until
        self._proposals.send_outcomes()
        if self._outbox and self.raft.is_leader and self.log.only_entries_unsynced:
            self._belonging.before_sending()
            self._send_entries()
        syncs = self.log.syncs
        self.log.sync()
        if self.log.syncs > syncs and self._lock is not None:
            self._lock.check()  # what was synced counts only while it can be found, and by nobody else
        if not self._outbox:
            return
        self._belonging.before_sending()
        outbox, self._outbox = self._outbox, []
        for to, message in outbox:
            if self._endpoint.send(to, message):
                continue
            if isinstance(message, Propose | ProposeChange):
                self._proposals.take_back(message)
            elif isinstance(message, Outcomes) and to in self._endpoint.connected():
                self._proposals.keep_outcomes(to, message)

    def _send_entries(self) -> None:
        """A leader's entries may leave before they are durable here: they promise nothing (thesis, 10.2.1).

        Its term must be durable, or it could lead that term once more, with other entries.
        """
        rest: list[tuple[int, Message]] = []
        for to, message in self._outbox:
            if isinstance(message, AppendEntries):
                self._endpoint.send(to, message)
            else:
                rest.append((to, message))
        self._outbox = rest

    def _tell_callers(self) -> None:
        """Answer, now that the status shows what they will be told, and before the disk makes them wait."""
        if self._answers:
            if self.running:
                self.status = self._present_status()
            while self._answers:  # one by one: a callback may raise what is no Exception, and the rest wait
                future, result = self._answers.popleft()
                future.set_result(result)

    def _apply_committed(self) -> None:
        while entries := self.raft.committed_entries():
            self.apply(entries)
            self.raft.on_applied(entries[-1].index)

    def apply(self, entries: Sequence[LogEntry]) -> None:
        """Hand committed entries to the state machine as one batch, and answer who waits for them.

        Called within a step; a subclass may look at them first.
        """
        commands = [
            Entry(entry.index, entry.command[1:]) for entry in entries if entry.command.startswith(REGULAR)
        ]
        results = self.machine.update(commands) if commands else []
        if len(results) != len(commands):
            raise OndiskError(f"update() returned {len(results)} results for {len(commands)} entries")
        if commands:
            self._compaction.machine_index = commands[-1].index
        self._proposals.on_applied(entries, commands, results)

    def on_failed(self) -> None:
        """A caller here is told that a command or a change has failed, or may have. A subclass may count."""

    def on_installed(self, index: int) -> None:
        """A snapshot took the place of all entries up to ``index``. Called within a step."""
        self._compaction.on_installed(index)
        self._proposals.on_installed(index)

    # Requests, in a step

    def _take_requests(self, now: float) -> None:
        """Of callers, and of replicas that take this one for the leader."""
        self._proposals.take(now)
        self._reads.take(now)

    def _answer(self, future: Future[Any], result: Result | None) -> None:
        self._answers.append((future, result))

    def _give_up(self, now: float) -> None:
        """End what will not be answered: the leader went away, or the deadline has passed."""
        self._proposals.give_up_on_former_leader(now)
        self._reads.give_up_on_former_leader()
        if now >= self._look_at_deadlines:
            self._look_at_deadlines = now + _LOOK_AT_DEADLINES
            if len(self._proposals):
                self._proposals.give_up(now)
            if len(self._reads):
                self._reads.give_up(now)

    # State on disk

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
        try:
            if self.log is not None:
                self._open_streaming.close()
                self.log.crash()
                self.machine.crash()
        finally:
            self._stop("stopped", None)

    def fail(self, error: BaseException) -> None:
        """End because of ``error``, which the status shows from now on."""
        reason = failure(error, self.id)
        logger.error("replica %d failed: %s", self.id, reason)
        logger.debug("replica %d failed here", self.id, exc_info=error)
        self._stop("failed", reason)

    def _stop(self, role: str, reason: str | None) -> None:
        self._lease_until = float("-inf")
        if self.log is not None:
            status = self._present_status()
            self.status = status._replace(role=role, leader_id=None, match_index={}, waiting=0, error=reason)
        self._release()
        self._tell_callers()
        self._refuse_waiting()

    def _refuse_waiting(self) -> None:
        """Answer everybody who still waits for a replica that has stopped."""
        stopped = str(self._stopped())
        self._proposals.refuse_all(stopped)
        self._reads.refuse_all(stopped)
        self._admin.refuse_all(stopped)

    def _release(self) -> None:
        """Close everything that was opened, whatever state it is in; or what an interrupt has left open."""
        log, self.log = self.log, None
        if self._to_close is None:
            self._to_close = [
                self._endpoint.close,
                *([self._streaming.close] if self._streaming else []),
                *([log.close] if log else []),
                self.machine.close,
                *([self._lock.release] if self._lock else []),
            ]
        while self._to_close:
            try:
                self._to_close[0]()
            except Exception:
                logger.warning("replica %d: while closing", self.id, exc_info=True)
            del self._to_close[0]

    def forget_parent(self) -> None:
        """In a child: it is stopped here, and nothing of it is to be closed."""
        forked.leak(self.machine)
        self._lease_until = float("-inf")
        self.log = None
        self._to_close = []
        if hasattr(self, "status"):
            self.status = self.status._replace(role="stopped", error=f"it belongs to process {self._process}")

    def _present_status(self) -> ReplicaStatus:
        raft, log = self.raft, self.log
        assert log is not None
        members = raft.members
        return ReplicaStatus(
            self.id,
            raft.role,
            raft.term,
            raft.leader_id,
            log.last_index,
            log.synced_index,
            raft.commit_index,
            raft.applied_index,
            self._compaction.synced_index,
            self.opened_index,
            log.syncs,
            len(self._proposals) + len(self._reads),
            raft.match_index,
            self._problem(),
            log.base_index + 1,
            members.voters,
            members.learners,
            self._open_streaming.progress(),
            members.group.hex(),
            self._disk_name,
        )

    def _problem(self) -> str | None:
        """What keeps this replica from taking part, for people."""
        assert self.log is not None
        if self.raft.needs_state:
            return _STATE_IS_LOST.format(self.log.base_index, self.opened_index)
        return self._belonging.problem()

    @property
    def _open_streaming(self) -> Streaming:
        assert self._streaming is not None
        return self._streaming
