"""Cluster: a whole Raft group in one process, each replica stepped by a thread of its own."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from pathlib import Path
from typing import Any, TypeVar

from ondisk.client import DEFAULT_TIMEOUT, Client
from ondisk.disk import Disk
from ondisk.errors import ConfigurationError, NoLeader, ReplicaStopped
from ondisk.network import MemoryNetwork, Network
from ondisk.node import Node, StateMachineFactory
from ondisk.raft import Timing
from ondisk.replica import ReplicaStatus
from ondisk.statemachine import Result

_open_clusters: dict[Path, Cluster] = {}
_opening = threading.Lock()

_T = TypeVar("_T")


class Cluster(Client):
    """Replicas 1, 2 and 3 over a network in memory, each with its folder in ``data_dir``.

    A context manager. Opening a second one on the same directory in the same process closes the first, so
    that a notebook cell can be run again. If another process holds the directory, ``DirectoryInUse`` says
    which. To start over, close it and delete ``data_dir``.
    """

    def __init__(
        self,
        data_dir: Path | str = "example-data",
        *,
        members: Sequence[int] = (1, 2, 3),
        network: Network | None = None,
        state_machine: StateMachineFactory | None = None,
        timing: Timing | None = None,
        disks: dict[int, Disk] | None = None,
    ) -> None:
        """Open and start all replicas. A leader is elected within a second or so; calls wait for it.

        ``state_machine`` makes the state machine for a directory (``DiskKV`` if not given); ``disks`` hands
        single replicas a disk that stalls or fails.
        """
        if len(set(members)) != len(members) or not members:
            raise ConfigurationError(f"members must be different and at least one: {members}")
        self.data_dir = Path(data_dir).resolve()
        self._network = network if network is not None else MemoryNetwork()
        clock = self._network.clock if isinstance(self._network, MemoryNetwork) else time.monotonic
        self._nodes = {
            member: Node(
                member,
                members,
                self.data_dir,
                self._network,
                state_machine=state_machine,
                clock=clock,
                disk=(disks or {}).get(member),
                timing=timing,
            )
            for member in members
        }
        with _opening:
            if (former := _open_clusters.get(self.data_dir)) is not None:
                former.close()
            try:
                for node in self._nodes.values():
                    node.start()
            except BaseException:
                self.close()
                raise
            _open_clusters[self.data_dir] = self

    # Life

    def close(self) -> None:
        """Stop all replicas. A second call does nothing."""
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
        self._node(replica_id).start()

    def stop(self, replica_id: int) -> None:
        """Stop one replica cleanly."""
        self._node(replica_id).stop()

    def crash(self, replica_id: int) -> None:
        """Stop one replica as a power cut would: what it never synced is lost."""
        self._node(replica_id).crash()

    # What can be seen

    @property
    def members(self) -> tuple[int, ...]:
        """The ids of all replicas, running or not."""
        return tuple(self._nodes)

    @property
    def network(self) -> MemoryNetwork:
        """The network in memory, with its faults. Raises ``ConfigurationError`` on TCP."""
        if not isinstance(self._network, MemoryNetwork):
            raise ConfigurationError("only a network in memory can be cut, slowed or paused")
        return self._network

    def status(self) -> dict[int, ReplicaStatus]:
        """Every replica as it was at the end of its last step."""
        return {member: node.status for member, node in self._nodes.items()}

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
            if time.monotonic() > deadline:
                raise NoLeader(f"no replica became leader within {timeout:g} s")
            time.sleep(0.005)
        return leader

    def machine(self, replica_id: int) -> Any:
        """The state machine of one running replica. Look, but leave ``update`` to Raft."""
        return self._node(replica_id).machine

    # Requests

    def propose_async(
        self, command: bytes, *, via: int | None = None, timeout: float = DEFAULT_TIMEOUT
    ) -> Future[Result]:
        """Replicate a command, through the leader unless ``via`` names a replica."""
        return self._choose(via).propose_async(command, timeout=timeout)

    def propose(self, command: bytes, *, via: int | None = None, timeout: float = DEFAULT_TIMEOUT) -> Result:
        """Replicate a command and wait. Asks again elsewhere while it is certain that nothing happened."""
        return self._while_not_done(via, timeout, lambda node, left: node.propose(command, timeout=left))

    def read(self, query: Any, *, via: int | None = None, timeout: float = DEFAULT_TIMEOUT) -> Any:
        """A linearizable read, through the leader unless ``via`` names a replica."""
        return self._while_not_done(via, timeout, lambda node, left: node.read(query, timeout=left))

    def stale_read(self, query: Any, *, via: int | None = None) -> Any:
        """What one replica's own state says: the leader's, unless ``via`` names another."""
        return self._choose(via).stale_read(query)

    def _while_not_done(self, via: int | None, timeout: float, request: Callable[[Node, float], _T]) -> _T:
        deadline = time.monotonic() + timeout
        while True:
            node = self._choose(via)
            try:
                return request(node, max(0.0, deadline - time.monotonic()))
            except (NoLeader, ReplicaStopped):
                if via is not None or time.monotonic() >= deadline:
                    raise
                time.sleep(0.01)  # an election is going on: ask again, but not as fast as one can

    def _choose(self, via: int | None) -> Node:
        if via is not None:
            return self._node(via)
        leader = self.leader_id
        if leader is not None:
            return self._nodes[leader]
        for node in self._nodes.values():
            if node.status.role in ("follower", "candidate"):
                return node
        raise ReplicaStopped("no replica is running")

    def _node(self, replica_id: int) -> Node:
        try:
            return self._nodes[replica_id]
        except KeyError:
            raise ConfigurationError(
                f"there is no replica {replica_id}; the members are {list(self._nodes)}"
            ) from None
