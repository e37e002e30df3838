"""Node: one replica that runs in the background. Three of them make a ``Cluster``, or three processes."""

from __future__ import annotations

import atexit
import os
import random
import shutil
import threading
import time
import weakref
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from ondisk.client import DEFAULT_TIMEOUT, Client, Via, checked, wait_for
from ondisk.diskkv import DiskKV
from ondisk.errors import (
    ConfigurationError,
    DirectoryInUse,
    NoLeader,
    OndiskError,
    Rejected,
    ReplicaStopped,
    StorageError,
    Timeout,
)
from ondisk.events import Events, WatchedDisk
from ondisk.figures import Figures, MeasuredReplica
from ondisk.interrupts import forked
from ondisk.interrupts.shielded import pause, shielded, still_wanted
from ondisk.net.clock import Clock, since_boot
from ondisk.net.endpoint import Endpoint, Network
from ondisk.net.reach import reaches_leader
from ondisk.net.tcp import TcpEndpoint
from ondisk.raft import Timing
from ondisk.raft.members import Members, check_id, check_ids
from ondisk.raft.messages import (
    AddReplica,
    Change,
    MoveReplica,
    RemoveReplica,
    ReplaceReplica,
    TransferLeadership,
)
from ondisk.raft.records import Identity
from ondisk.replica import Inside, Replica, ReplicaStatus, failure
from ondisk.snapshot.restore import begin_directory, complete_import
from ondisk.snapshot.stream import SnapshotFile
from ondisk.statemachine import OnDiskStateMachine, Result
from ondisk.stepping import Stepper, wait_for_dropped
from ondisk.storage.disk import Disk
from ondisk.storage.lock import DirectoryLock
from ondisk.storage.paths import resolved

StateMachineFactory = Callable[[Path], OnDiskStateMachine]

_running: weakref.WeakSet[Node] = weakref.WeakSet()


@atexit.register
def _stop_all() -> None:
    # The threads are daemons, so that a forgotten cluster cannot keep the interpreter alive; but one that is
    # inside RocksDB while the interpreter goes away would abort the process.
    wait_for_dropped()
    for node in list(_running):
        with suppress(Exception):  # the others must be stopped all the same
            node.stop()


class Node(Client):
    """One member of a group, running in the background until it is stopped, crashes or fails.

    A context manager: started at its beginning, and at its end it hands over leadership and stops. One that
    is dropped while it runs is stopped soon after Python has collected it.
    """

    def __init__(
        self,
        replica_id: int,
        members: Sequence[int] | None,
        data_dir: Path | str,
        network: Network,
        *,
        state_machine: StateMachineFactory | None = None,
        clock: Clock = since_boot,
        disk: Disk | None = None,
        timing: Timing | None = None,
    ) -> None:
        """``data_dir`` may serve all members: each keeps to the folder ``replica-<id>`` inside it.

        ``members`` are the ids of the first voters, this one included; empty for a replica that is to be
        added to a running group; ``None`` for those that the directory was first started with. A new group is
        founded when all of them are there and empty.
        ``state_machine`` makes the state machine for a directory; ``DiskKV`` if not given.
        """
        check_id(replica_id)
        if members:
            check_ids(members)
        self.id = replica_id
        self.directory = resolved(data_dir, "a data directory") / f"replica-{replica_id}"
        self._members = None if members is None else tuple(members)
        self._network = network
        self._clock = clock
        self._events = Events(replica_id)
        self._disk = disk or WatchedDisk(self._events, self.figures.log_fsync)
        disk_of_state = disk or WatchedDisk(self._events, self.figures.state_fsync)
        self._make_machine = state_machine or (lambda path: DiskKV(path, disk=disk_of_state))
        self._timing = timing
        self._control = threading.Lock()  # one start, stop or crash at a time
        self._controller: threading.Thread | None = None  # who does that now
        self._stepper: Stepper | None = None  # while there is a replica
        self._process = os.getpid()
        self._last_status = ReplicaStatus(replica_id, "stopped")

    # Life

    @shielded
    def start(self) -> None:
        """Open the directory and join the network. Does nothing if it runs already.

        Raises ``DirectoryInUse``, ``PortInUse``, ``ResourceError``, ``Corrupt`` or ``StorageError``, and then
        nothing is open.
        """
        wait_for_dropped()
        with self._controlling():
            if self._stepper is not None and self._stepper.goes_on:
                return
            self._end(crash=False)
            still_wanted()
            try:
                replica, endpoint = self._open()
            except StorageError as error:
                self._last_status = ReplicaStatus(self.id, "failed", error=failure(error, self.id))
                raise
            self._stepper = Stepper(self, replica, endpoint, self._events, self._clock)
            _running.add(self)
            forked.register(self)
            try:
                self._stepper.start()
                still_wanted()
            except BaseException:  # there are too many threads, or nobody wants it any more
                self._end(crash=False)
                raise

    def _open(self) -> tuple[Replica, Endpoint]:
        complete_import(self.directory)
        machine = self._make_machine(self.directory / "state")
        endpoint = self._network.attach(self.id)
        replica = MeasuredReplica(
            self.id,
            self._members,
            self.directory,
            machine,
            endpoint,
            clock=self._clock,
            rng=random.Random(),
            disk=self._disk,
            timing=self._timing,
        )
        replica.figures = self.figures
        return replica, endpoint

    @shielded
    def stop(self) -> None:
        """Stop cleanly. A second call does nothing. Not from a future's callback: see ``propose_async``."""
        if self._process != os.getpid():
            return  # it goes on in the parent, and here nothing of it runs
        with self._controlling():
            self._end(crash=False)

    def __enter__(self) -> Node:
        self.start()
        return self

    def __exit__(self, *_: object) -> None:
        try:
            self.hand_over()
        finally:
            self.stop()

    def hand_over(self, *, timeout: float = 2.0) -> None:
        """Before an orderly stop: if this replica leads, let another one lead, and answer who waits for it.

        So no write of other replicas' clients fails because this one stops, nor of its own over TCP, which
        ask elsewhere from then on. If nobody else can lead, or not in time, some fail all the same.
        Stop it afterwards: clients over TCP are answered nothing more.
        """
        deadline = time.monotonic() + checked(timeout)
        self._hand_over_leadership(deadline)
        stepper = self._stepper
        if stepper is None or (serving := stepper.serving) is None:
            return
        serving.leave()
        # Each hangs up when it has heard of it, and has all its answers.
        while serving.has_clients and self.status.running and time.monotonic() < deadline:
            pause(0.005)

    def _hand_over_leadership(self, deadline: float) -> None:
        status = self.status
        if status.role != "leader":
            return
        by_progress = sorted(status.match_index.items(), key=lambda each: each[1], reverse=True)
        for successor in [replica_id for replica_id, _ in by_progress if replica_id in status.voters]:
            try:
                self.transfer_leadership(successor, timeout=max(0.0, deadline - time.monotonic()))
            except OndiskError:  # it has gone, say: another one may be there
                continue
            break
        else:
            return
        while (status := self.status).running and status.waiting and time.monotonic() < deadline:
            pause(0.005)
        # Others may not have heard of it: what they still send here is refused, and they ask again elsewhere.
        pause((self._timing or Timing()).heartbeat)

    def wait_for_leader(self, timeout: float = 10.0) -> int:
        """Return the leader's id as soon as this replica knows of one.

        Raises ``NoLeader`` after ``timeout`` seconds, or ``ReplicaStopped``.
        """
        deadline = time.monotonic() + checked(timeout)
        while (leader := self.status.leader_id) is None:
            self._running_replica()
            if time.monotonic() > deadline:
                reason = f": {self.status.error}" if self.status.error else ""
                raise NoLeader(f"replica {self.id} knows of no leader within {timeout:g} s{reason}")
            pause(0.005)
        return leader

    @shielded
    def crash(self) -> None:
        """Stop as a power cut would: what was never synced is lost."""
        with self._controlling():
            self._end(crash=True)

    @contextmanager
    def _controlling(self) -> Iterator[None]:
        """One at a time, and never from a future's callback: that would wait for itself."""
        self._check_process()
        me = threading.current_thread()
        if me is self._controller or (self._stepper is not None and me is self._stepper.thread):
            raise RuntimeError(f"replica {self.id} cannot be started or stopped from a callback of its own")
        with self._control:
            self._controller = me
            try:
                yield
            finally:
                self._controller = None

    def _end(self, *, crash: bool) -> None:
        if self._stepper is None:
            return
        self._stepper.end(crash=crash)
        self._last_status = self._stepper.replica.status
        self._stepper = None
        _running.discard(self)

    def _check_process(self) -> None:
        forked.check(self._process, f"replica {self.id}")

    def forget_parent(self) -> None:
        """In a child: nothing runs here, and nothing of it may be closed."""
        if self._stepper is not None:
            forked.leak(self._stepper.replica)
            self._stepper.forget()
        self._stepper = self._controller = None
        self._control = threading.Lock()
        _running.discard(self)

    def reject(self, reason: str) -> None:
        """Stop this replica, whose status says ``failed`` and why: its directory does not belong here."""
        self.stop()
        self._last_status = self._last_status._replace(role="failed", error=reason)

    @property
    def _replica(self) -> Replica | None:
        stepper = self._stepper
        return None if stepper is None else stepper.replica

    @property
    def first_members(self) -> tuple[int, ...]:
        """The members that this replica's directory was first started with."""
        return self._identity.first if self._identity is not None else ()

    @property
    def holds_import(self) -> bool:
        """Whether this replica's directory was made by an import."""
        return self._identity is not None and bool(self._identity.seed)

    @property
    def _identity(self) -> Identity | None:
        replica = self._replica
        return None if replica is None else replica.identity

    @property
    def status(self) -> ReplicaStatus:
        """The replica at the end of its last step, or as it was when it stopped."""
        stepper = self._stepper
        if stepper is None:
            self._check_process()
            return self._last_status
        return stepper.replica.status

    @property
    def connected(self) -> frozenset[int]:
        """The replicas to which this one has a connection now."""
        replica = self._replica
        return frozenset(replica.raft.connected) if replica is not None and replica.running else frozenset()

    @property
    def round_trips(self) -> dict[int, float]:
        """How long a round trip to each connected replica takes, in seconds, as far as the kernel tells."""
        stepper = self._stepper
        endpoint = None if stepper is None else stepper.endpoint
        return endpoint.round_trips() if isinstance(endpoint, TcpEndpoint) else {}

    @property
    def figures(self) -> Figures:
        """What was counted since this object was made."""
        return self._events.figures

    @property
    def configuration(self) -> tuple[int, Members]:
        """The members as this running replica knows them, and the index of the entry that says so."""
        return self._running_replica().configuration

    @property
    def counts(self) -> bool:
        """Whether this replica runs, and is a voter with the disk that it has, as its status shows, too.

        ``status.voters`` alone does not tell: who catches up comes by members of earlier times, among them
        itself with the disk that it has lost.
        """
        replica = self._replica
        if replica is None or not replica.running:
            return False
        status = replica.status
        return self.id in status.voters and replica.configuration[1].disk_of(self.id).hex() == status.disk

    def inside(self, entries: int) -> Inside:
        """The newest ``entries`` of its log, and its election; nothing if it does not run."""
        replica = self._replica
        return Inside() if replica is None else replica.inside(entries)

    @property
    def machine(self) -> OnDiskStateMachine:
        """The running state machine. Look, but leave ``update`` to Raft."""
        return self._running_replica().machine

    def _running_replica(self, via: Via = None) -> Replica:
        if via not in (None, self.id):
            raise ReplicaStopped(f"this is replica {self.id}, and replica {via} is not here")
        replica = self._replica
        if replica is None or not replica.running:
            reason = f" ({self.status.error})" if self.status.error else ""
            raise ReplicaStopped(f"replica {self.id} is {self.status.role}{reason}")
        return replica

    # Requests

    def propose_async(
        self, command: bytes, *, via: Via = None, timeout: float = DEFAULT_TIMEOUT
    ) -> Future[Result]:
        """Replicate a command, through this replica."""
        return self._running_replica(via).propose(command, self._clock() + checked(timeout))

    def read(
        self, query: Any, *, via: Via = None, timeout: float = DEFAULT_TIMEOUT, lease: bool = False
    ) -> Any:
        """A linearizable read through this replica."""
        replica = self._running_replica(via)
        self._wait_for_barrier(replica, timeout, lease=lease)
        return replica.lookup(query)

    def read_async(
        self, query: Any, *, via: Via = None, timeout: float = DEFAULT_TIMEOUT, lease: bool = False
    ) -> Future[Any]:
        """A linearizable read through this replica, without waiting for its answer."""
        return self._running_replica(via).read(query, self._clock() + checked(timeout), lease=lease)

    def confirm_leader(self, *, timeout: float = DEFAULT_TIMEOUT) -> None:
        """Return when a majority has confirmed who leads, and what was committed by then is applied here.

        Raises ``NoLeader`` if that does not come in time, or ``ReplicaStopped``.
        """
        self._wait_for_barrier(self._running_replica(), timeout, lease=False)

    def _wait_for_barrier(self, replica: Replica, timeout: float, *, lease: bool) -> None:
        try:
            wait_for(replica.read_barrier(self._clock() + checked(timeout), lease=lease), timeout)
        except Timeout:  # it was just about to be answered; a read changes nothing, so nothing is unknown
            raise NoLeader("no majority confirmed a leader before the deadline; try again") from None

    def _check_sessions(self, via: Via) -> None:
        machine = self._running_replica(via).machine
        if not machine.offers_sessions:
            raise ConfigurationError(
                f"{type(machine).__name__} offers no sessions (see OnDiskStateMachine.offers_sessions)"
            )

    def stale_read(self, query: Any, *, via: Via = None) -> Any:
        """What this replica's own state says."""
        return self._running_replica(via).lookup(query)

    # The group

    def add_replica(self, replica_id: int, address: str = "", *, timeout: float = DEFAULT_TIMEOUT) -> None:
        """Make another replica a member; return when that is committed. ``status.voters`` tells the rest."""
        self._change(AddReplica(replica_id, address), timeout)

    def remove_replica(self, replica_id: int, *, timeout: float = DEFAULT_TIMEOUT) -> None:
        """Take a member out of the group, for good."""
        self._change(RemoveReplica(replica_id), timeout)

    def replace_replica(self, replica_id: int, *, timeout: float = DEFAULT_TIMEOUT) -> None:
        """Take the disk of a member for lost: see ``Client.replace_replica``."""
        disk = self.configuration[1].disk_of(replica_id)
        self._change(ReplaceReplica(replica_id, disk), timeout)

    def move_replica(self, replica_id: int, address: str, *, timeout: float = DEFAULT_TIMEOUT) -> None:
        """Say where a member is from now on (``host:port``)."""
        self._change(MoveReplica(replica_id, address), timeout)

    def found(self, members: Sequence[int], *, timeout: float = DEFAULT_TIMEOUT) -> None:
        """Found the group with these members only: an operator's word that the other first ones do not come.

        Say it to one of them. Raises ``ConfigurationError`` if it belongs to a group already, or has voted
        for one that may exist by now. Those that are left out can be added later.
        """
        wait_for(self._running_replica().found(members), timeout)

    def transfer_leadership(self, to: int, *, timeout: float = DEFAULT_TIMEOUT) -> None:
        """Let another voter lead."""
        self._change(TransferLeadership(to), timeout)

    def _change(self, change: Change, timeout: float) -> None:
        future = self._running_replica().propose_change(change, self._clock() + checked(timeout))
        result = wait_for(future, timeout)
        if result.error is not None:
            raise Rejected(result.error)

    @shielded
    def check_reaches(self, leader: int, members: Members, *, timeout: float = DEFAULT_TIMEOUT) -> None:
        """Return when this leader, confirmed by a majority, has answered a question from here.

        If this replica runs, it reads; if not, its number asks and nothing on disk is looked at. Raises
        ``Rejected`` if there is no answer in time.
        """
        with self._controlling():
            replica = self._replica
            if replica is not None and replica.running:
                try:
                    wait_for(replica.read_barrier(self._clock() + checked(timeout)), timeout)
                except (NoLeader, Timeout):
                    raise Rejected(
                        f"replica {self.id} runs, and could not read what the others have within "
                        f"{timeout:.3g} s: it is cut off, or it still catches up. If it does neither, stop "
                        "it first"
                    ) from None
                return
            self._end(crash=False)
            endpoint = self._network.attach(self.id)
            try:
                endpoint.add_peers(members.addresses)
                ask_again = 1.1 * (self._timing or Timing()).election_max
                if reaches_leader(
                    endpoint, leader, members.group, seconds=checked(timeout), ask_again=ask_again
                ):
                    return
            finally:
                endpoint.close()
        raise Rejected(
            f"replica {self.id} would not catch up: replica {leader}, which leads, has not answered what was "
            f"asked under its number within {timeout:.3g} s"
        )

    # The state on disk

    def compact(self, *, timeout: float = DEFAULT_TIMEOUT) -> int:
        """Drop the log up to what the state holds durably; return the index of the last entry dropped.

        Writes some dozens of bytes, whatever the size of the state. It happens by itself as the log grows.
        """
        return wait_for(self._running_replica().compact(), timeout)

    @shielded
    def export_snapshot(self, path: Path | str, *, timeout: float = 3600.0) -> SnapshotFile:
        """Write the state as it is now into a file, while everything else goes on.

        ``status.streams`` tells how far it is, and an exception in this call (Ctrl-C, the timeout) ends it.
        ``import_snapshot`` makes a group of the file. Raises ``StorageError``, and then there is no file.
        """
        stopped = threading.Event()
        try:
            return wait_for(
                self._running_replica().export_snapshot(resolved(path, "the path of a snapshot"), stopped),
                timeout,
            )
        finally:
            stopped.set()

    @shielded
    def erase(self, group: bytes = b"") -> None:
        """Delete the directory of this stopped replica. Raises ``DirectoryInUse`` or ``StorageError``.

        With the id of a group, an empty directory takes its place that founds nothing and joins that group.
        Otherwise one that was the only first member of a group that has grown would found another one.
        """
        with self._controlling():
            if (replica := self._replica) is not None and replica.running:
                raise DirectoryInUse(f"{self.directory}: replica {self.id} is running")
            self._end(crash=False)
            lock = DirectoryLock(self.directory)
            try:
                shutil.rmtree(self.directory)
            except OSError as error:
                raise StorageError(
                    f"{self.directory}: cannot be deleted, or not all of it ({error})"
                ) from None
            finally:
                lock.release()
            if group:
                begin_directory(self.directory, self.id, existing=group)
