"""Cluster: a whole Raft group in one process, each replica stepped by a thread of its own."""

from __future__ import annotations

import os
import time
import weakref
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, TypeVar

from ondisk.client import DEFAULT_TIMEOUT, Client, Via, checked
from ondisk.directories import Directories
from ondisk.errors import (
    ConfigurationError,
    NoLeader,
    NotDone,
    OndiskError,
    Rejected,
    ReplicaStopped,
    StorageError,
    Timeout,
)
from ondisk.interrupts import forked
from ondisk.interrupts.shielded import pause, shielded, still_wanted
from ondisk.net.clock import since_boot
from ondisk.net.endpoint import Network
from ondisk.net.memory import MemoryNetwork
from ondisk.node import Node, StateMachineFactory
from ondisk.raft import Timing
from ondisk.raft.members import check_id, check_ids, short
from ondisk.replica import Inside, ReplicaStatus
from ondisk.snapshot.stream import SnapshotFile
from ondisk.statemachine import Result
from ondisk.storage.disk import Disk
from ondisk.storage.paths import resolved

_open_clusters: weakref.WeakValueDictionary[Path, Cluster] = weakref.WeakValueDictionary()
_opening = forked.Lock()

_T = TypeVar("_T")


class Cluster(Client):
    """Replicas 1, 2 and 3 over a network in memory, each with its folder in ``data_dir``.

    A context manager. Opening a second one on the same directory in the same process closes the first, so
    that a notebook cell can be run again. If another process holds the directory, ``DirectoryInUse`` says
    which. To start over, close it and delete ``data_dir``.
    """

    @shielded
    def __init__(
        self,
        data_dir: Path | str = "example-data",
        *,
        members: Sequence[int] | None = None,
        network: Network | None = None,
        state_machine: StateMachineFactory | None = None,
        timing: Timing | None = None,
        disks: dict[int, Disk] | None = None,
    ) -> None:
        """Open and start all replicas. A leader is elected within a second or so; calls wait for it.

        ``members`` are the first ones of a new group: replicas 1, 2 and 3, if not given. Of a group that
        exists the directories know the members; others that are named here are refused with
        ``ConfigurationError``. A replica whose directory is damaged is ``failed`` in the status, and the
        others serve: ``rebuild`` it. ``state_machine`` makes the state machine for a directory (``DiskKV`` if
        not given); ``disks`` hands single replicas a disk that stalls or fails.
        """
        if members is not None:
            check_ids(members)
        self.data_dir = resolved(data_dir, "a data directory")
        self._process = os.getpid()
        self._network = network if network is not None else MemoryNetwork()
        self._state_machine = state_machine
        self._timing = timing
        self._disks = disks or {}
        self._nodes: dict[int, Node] = {}
        self._changing = forked.Lock()  # of _nodes, which is never changed in place: others look meanwhile
        self._rebuilding: set[int] = set()
        self._closed = False
        with _opening:
            if (former := _open_clusters.get(self.data_dir)) is not None:
                former.close()
            try:
                directories = Directories(self.data_dir, self._make_node)
                self._nodes = directories.nodes  # all that must be closed if this fails
                directories.open(members)
                self._nodes = dict(sorted(directories.nodes.items()))
                still_wanted()
            except BaseException:
                self.close()
                raise
            _open_clusters[self.data_dir] = self

    def _make_node(self, replica_id: int, members: Sequence[int] | None) -> Node:
        return Node(
            replica_id,
            members,
            self.data_dir,
            self._network,
            state_machine=self._state_machine,
            clock=self._network.clock if isinstance(self._network, MemoryNetwork) else since_boot,
            disk=self._disks.get(replica_id),
            timing=self._timing,
        )

    # Life

    @shielded
    def close(self) -> None:
        """Stop all replicas, for good. A second call does nothing."""
        self._closed = True  # before anything is stopped: who starts a replica now looks afterwards
        for node in self._nodes.values():
            node.stop()
        if _open_clusters.get(self.data_dir) is self:
            del _open_clusters[self.data_dir]

    def __enter__(self) -> Cluster:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def start(self, replica_id: int) -> None:
        """Start a stopped, crashed or failed replica again. Does nothing if it runs."""
        self._start(self._node(replica_id))

    @shielded
    def _start(self, node: Node) -> None:
        """Start a replica, unless the cluster is closed, be it in this very moment by another thread."""
        self._check_open()
        node.start()
        try:
            self._check_open()
        except ReplicaStopped:
            node.stop()
            raise

    def _check_open(self) -> None:
        if self._closed:
            raise ReplicaStopped(f"the cluster in {self.data_dir} is closed: open it again")

    def _check_is_there(self, node: Node) -> None:
        """Raise ``ReplicaStopped`` if nobody needs to wait for a replica any more."""
        self._check_open()
        if self._nodes.get(node.id) is not node:
            raise ReplicaStopped(f"replica {node.id} was removed meanwhile")

    def stop(self, replica_id: int) -> None:
        """Stop one replica cleanly."""
        self._node(replica_id).stop()

    def crash(self, replica_id: int) -> None:
        """Stop one replica as a power cut would: what it never synced is lost."""
        self._node(replica_id).crash()

    @shielded
    def rebuild(self, replica_id: int, *, timeout: float = 60.0) -> None:
        """Delete what one replica has on disk, let it catch up, and return when it votes again.

        For a replica whose disk was damaged or lost. The others are asked first: raises ``Rejected``, and
        nothing was deleted, unless a majority of them is there and their leader answers what is asked under
        this replica's number. (With ``NoLeader`` or ``OutcomeUnknown`` nothing was deleted either.) Raises
        ``Timeout`` if it has not caught up in time: then it goes on trying.
        """
        deadline = time.monotonic() + checked(timeout)
        node = self._node(replica_id)
        with self._one_rebuild(replica_id, deadline):
            group = self._take_out(replica_id, deadline)
            still_wanted()
            node.stop()
            node.erase(group)
            self._start(node)
            while not node.counts:
                if node.status.role == "failed":
                    raise StorageError(f"replica {replica_id} failed again: {node.status.error}")
                if time.monotonic() > deadline:
                    raise Timeout(
                        f"replica {replica_id} runs anew but has not caught up within {timeout:g} s"
                    )
                self._check_is_there(node)
                pause(0.005)

    @contextmanager
    def _one_rebuild(self, replica_id: int, deadline: float) -> Iterator[None]:
        """One at a time of each replica: one that was interrupted, and still ends, would stop the next."""
        while True:
            with self._changing:
                if replica_id not in self._rebuilding:
                    self._rebuilding.add(replica_id)
                    break
            if time.monotonic() > deadline:
                raise Rejected(f"replica {replica_id} is being rebuilt by somebody else. Nothing was deleted")
            pause(0.005)
        try:
            yield
        finally:
            with self._changing:
                self._rebuilding.discard(replica_id)

    def _take_out(self, replica_id: int, deadline: float) -> bytes:
        """Take the disk of a replica for lost, as the others agree; return the id of their group."""
        left = deadline - time.monotonic()
        node = self._node(replica_id)
        if node.status.role not in ("failed", "stopped") and tuple(node.status.voters) == (replica_id,):
            raise ConfigurationError(
                f"replica {replica_id} is the only voter: nobody else could bring it up to date. "
                "Nothing was deleted"
            )
        others = [other for other in self._nodes if other != replica_id and self._nodes[other].status.running]
        if not others:
            raise ConfigurationError(
                f"no other replica runs from which replica {replica_id} could catch up. Nothing was deleted"
            )

        def take_out(via: Node, left: float) -> bytes:
            leader, (_, members) = via.status.leader_id, via.configuration
            if leader is None:
                raise NoLeader(f"replica {via.id} knows of no leader, so nothing was deleted")
            elsewhere = node.status.running and node.configuration[1].group != members.group
            if elsewhere:  # in no group, or in another one: it has nobody here to read from
                node.stop()
            try:
                node.check_reaches(leader, members, timeout=min(left, DEFAULT_TIMEOUT))
            except Rejected as error:
                if elsewhere:
                    self._start(node)
                raise Rejected(f"{error}. Nothing was deleted") from None
            via.replace_replica(replica_id, timeout=left)
            return members.group

        return self._while_not_done(None, left, take_out)

    def replace_replica(self, replica_id: int, *, timeout: float = DEFAULT_TIMEOUT) -> None:
        """Take the disk of a voter for lost, as ``rebuild`` does before it deletes anything."""
        self._while_not_done(None, timeout, lambda via, left: via.replace_replica(replica_id, timeout=left))

    def move_replica(self, replica_id: int, address: str, *, timeout: float = DEFAULT_TIMEOUT) -> None:
        """Say where a member is from now on (``host:port``, on TCP)."""
        self._while_not_done(
            None, timeout, lambda via, left: via.move_replica(replica_id, address, timeout=left)
        )

    # The group

    @shielded
    def add_replica(self, replica_id: int, address: str = "", *, timeout: float = 60.0) -> None:
        """Start a new replica and make it a member; return when it has caught up and is a voter.

        ``address`` (``host:port``) only on TCP. Raises ``Rejected`` for an id that was removed, and
        ``Timeout`` if it has not caught up in time: then it goes on trying.
        """
        check_id(replica_id)
        deadline = time.monotonic() + checked(timeout)
        known = self._while_not_done(None, timeout, lambda via, _: via.configuration)[1]
        if replica_id in known.voters:
            raise ConfigurationError(f"there is a replica {replica_id} already")
        node = self._nodes.get(replica_id) or self._make_node(replica_id, ())  # it may have been tried before
        was_there = node.directory.exists()
        try:
            self._start(node)
        except BaseException:  # an interrupt, too
            if not was_there:  # or the next Cluster would take it for a replica
                with suppress(OndiskError):
                    node.erase()
            raise
        group = node.configuration[1].group
        if group not in (b"", known.group):
            node.stop()
            raise ConfigurationError(
                f"{node.directory} belongs to group {short(group)}, and this is group {short(known.group)}: "
                "delete that directory first"
            )
        with self._changing:
            self._nodes = {**self._nodes, replica_id: node}
        try:
            self._check_open()
            if replica_id not in known.learners:
                self._while_not_done(
                    None, timeout, lambda via, left: via.add_replica(replica_id, address, timeout=left)
                )
        except (NotDone, ConfigurationError):
            self._forget(node)
            if not was_there:
                node.erase()
            raise
        while replica_id not in self._nodes[self.wait_for_leader(timeout)].status.voters:
            if time.monotonic() > deadline:
                raise Timeout(f"replica {replica_id} is a member but has not caught up within {timeout:g} s")
            self._check_is_there(node)
            pause(0.005)

    @shielded
    def remove_replica(self, replica_id: int, *, timeout: float = DEFAULT_TIMEOUT) -> None:
        """Take a member out of the group, for good, and stop it. Its directory stays for you to delete."""
        node = self._node(replica_id)
        self._while_not_done(None, timeout, lambda via, left: via.remove_replica(replica_id, timeout=left))
        self._forget(node)

    def _forget(self, node: Node) -> None:
        with self._changing:
            self._nodes = {other: kept for other, kept in self._nodes.items() if kept is not node}
        node.stop()

    def transfer_leadership(self, to: int, *, timeout: float = DEFAULT_TIMEOUT) -> None:
        """Let another voter lead."""
        self._node(to)
        self._while_not_done(None, timeout, lambda via, left: via.transfer_leadership(to, timeout=left))

    # The state on disk

    def compact(self, replica_id: int) -> int:
        """Drop the log of one replica up to what its state holds durably; return the last index dropped.

        Writes some dozens of bytes, whatever the size of the state. It happens by itself as the log grows.
        """
        return self._node(replica_id).compact()

    def export_snapshot(self, replica_id: int, path: Path | str, *, timeout: float = 3600.0) -> SnapshotFile:
        """Write the state of one replica into a file, as it has applied it, while everything else goes on.

        A follower may be a moment behind: the leader has everything that was acknowledged before the call.
        """
        return self._node(replica_id).export_snapshot(path, timeout=timeout)

    # What can be seen

    @property
    def members(self) -> tuple[int, ...]:
        """The ids of all replicas here, running or not."""
        return tuple(self._nodes)

    @property
    def network(self) -> MemoryNetwork:
        """The network in memory, with its faults. Raises ``ConfigurationError`` on TCP."""
        forked.check(self._process, f"the cluster in {self.data_dir}")
        if not isinstance(self._network, MemoryNetwork):
            raise ConfigurationError("only a network in memory can be cut, slowed or paused")
        return self._network

    def status(self) -> dict[int, ReplicaStatus]:
        """Every replica as it was at the end of its last step."""
        return {member: node.status for member, node in self._nodes.items()}

    def inside(self, replica_id: int, entries: int) -> Inside:
        """The newest ``entries`` of one replica's log, and its election; nothing of a stopped one."""
        return self._node(replica_id).inside(entries)

    @property
    def leader_id(self) -> int | None:
        """The replica that leads in the newest term, as far as it knows; ``None`` during an election."""
        leader, newest = None, -1
        for member, node in self._nodes.items():
            status = node.status
            if status.role == "leader" and status.term > newest:
                leader, newest = member, status.term
        return leader

    def wait_for_leader(self, timeout: float = 10.0) -> int:
        """Return the leader's id as soon as there is one. Raises ``NoLeader`` after ``timeout`` seconds."""
        deadline = time.monotonic() + timeout
        while (leader := self.leader_id) is None:
            self._check_open()
            if time.monotonic() > deadline:
                raise NoLeader(f"no replica became leader within {timeout:g} s")
            pause(0.005)
        return leader

    def machine(self, replica_id: int) -> Any:
        """The state machine of one running replica. Look, but leave ``update`` to Raft."""
        return self._node(replica_id).machine

    # Requests

    def propose_async(
        self, command: bytes, *, via: Via = None, timeout: float = DEFAULT_TIMEOUT
    ) -> Future[Result]:
        """Replicate a command, through the leader unless ``via`` names a replica."""
        return self._choose(via).propose_async(command, timeout=timeout)

    def propose(self, command: bytes, *, via: Via = None, timeout: float = DEFAULT_TIMEOUT) -> Result:
        """Replicate a command and wait. Asks again elsewhere while it is certain that nothing happened."""
        return self._while_not_done(via, timeout, lambda node, left: node.propose(command, timeout=left))

    def read(
        self, query: Any, *, via: Via = None, timeout: float = DEFAULT_TIMEOUT, lease: bool = False
    ) -> Any:
        """A linearizable read, through the leader unless ``via`` names a replica."""
        return self._while_not_done(
            via, timeout, lambda node, left: node.read(query, timeout=left, lease=lease)
        )

    def read_async(
        self, query: Any, *, via: Via = None, timeout: float = DEFAULT_TIMEOUT, lease: bool = False
    ) -> Future[Any]:
        """A linearizable read, through the leader unless ``via`` names a replica."""
        return self._choose(via).read_async(query, timeout=timeout, lease=lease)

    def stale_read(self, query: Any, *, via: Via = None) -> Any:
        """What one replica's own state says: the leader's, unless ``via`` names another."""
        return self._choose(via).stale_read(query)

    def _check_sessions(self, via: Via) -> None:
        self._choose(via)._check_sessions(None)

    def _while_not_done(self, via: Via, timeout: float, request: Callable[[Node, float], _T]) -> _T:
        deadline = time.monotonic() + checked(timeout)
        while True:
            node = self._choose(via)
            try:
                return request(node, max(0.0, deadline - time.monotonic()))
            except (NoLeader, ReplicaStopped):
                if via is not None or time.monotonic() >= deadline:
                    raise
                pause(0.01)  # an election is going on: ask again, but not as fast as one can

    def _choose(self, via: Via) -> Node:
        if via is not None:
            return self._node(via)
        nodes = self._nodes  # others may be added and removed meanwhile
        leader = self.leader_id
        if leader in nodes:
            return nodes[leader]
        for node in nodes.values():
            if node.status.role in ("follower", "candidate"):
                return node
        raise ReplicaStopped("no replica is running")

    def _node(self, replica_id: int | str) -> Node:
        nodes = self._nodes
        if isinstance(replica_id, str) or replica_id not in nodes:
            raise ConfigurationError(f"there is no replica {replica_id}; the members are {list(nodes)}")
        return nodes[replica_id]
