"""Hosts with a replica on each: it starts, takes steps, stops, crashes, and loses its disk.

The simulator checks what comes of it (``checked``); the tests have a cadence of their own.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Iterable
from functools import partial
from pathlib import Path
from typing import Any, Generic, TypeVar

from ondisk.net.endpoint import Endpoint
from ondisk.raft import Timing
from ondisk.raft.messages import Message
from ondisk.replica import Replica
from ondisk.simulation.connections import ConnectedEndpoint, Connections, number_of
from ondisk.simulation.host import Host
from ondisk.simulation.places import Places
from ondisk.simulation.world import World
from ondisk.statemachine import OnDiskStateMachine

R = TypeVar("R", bound=Replica)


class Hosts(World, Generic[R]):
    """Replicas in virtual time, on real disks. Their state machine is up to the subclass."""

    replica_type: type[R]
    timing = Timing()

    def __init__(
        self, seed: int, directory: Path, members: int, observe: Callable[[Any], None] | None = None
    ) -> None:
        """``members``: so many replicas, from 1, found the group. None is started yet."""
        super().__init__(seed, directory, observe)
        self.first_members = tuple(range(1, members + 1))
        self.replicas: dict[int, R] = {}
        self.places = Places(directory)
        self.connections = Connections()
        self._endpoints: dict[int, ConnectedEndpoint] = {}

    # Up to the subclass

    def make_machine(self, host: Host, state: Path) -> OnDiskStateMachine:
        """The state machine of the replica that starts on this host."""
        raise NotImplementedError

    def replica_rng(self, host: Host) -> random.Random:
        """What the replica on this host draws its timeouts and ids from, for one life."""
        return self.rng("replica", host.member, host.lives)

    def named_at_start(self, member: int) -> tuple[int, ...]:
        """What whoever starts a replica says: the first members, or none for one that is added."""
        return self.first_members if member in self.first_members else ()

    def leaving(self, host: int, to: int, message: Message) -> Iterable[Message]:
        """What becomes of a message that leaves a host: itself, others, or nothing."""
        return (message,)

    # Life

    def start(self, member: int) -> R | None:
        """Start a replica where its last life ended. ``None``: it was not, for a reason of the subclass.

        Raises ``OndiskError`` if it does not open.
        """
        replica = self.open(member, self.places.of(member), self.named_at_start(member))
        self.replicas[member] = replica
        last = replica.log.last_index if replica.log is not None else 0
        self.note("start", f"replica {member}, log to {last}, state at {replica.opened_index}")
        self.hosts[member].wake(self.now)
        self.wake_all()  # a link to it is there again
        return replica

    def open(self, number: int, folder: Path, told: tuple[int, ...]) -> R:
        """A process on the host with this number. Raises ``OndiskError`` if its replica does not open."""
        host = self.hosts.get(number)
        if host is None:
            host = self.hosts[number] = self.host_type(number, self)
        host.begin_life()
        return self.replica_type(
            number_of(number),
            told,
            folder,
            self.make_machine(host, folder / "state"),
            self.attach(number),
            clock=host.clock,
            rng=self.replica_rng(host),
            disk=host.disk,
            timing=self.timing,
            lockstep=True,
        )

    def attach(self, host: int) -> Endpoint:
        """Connect a host with the network, past whoever looks at what leaves."""
        endpoint = self._endpoints[host] = ConnectedEndpoint(
            host,
            self.network.attach(host),
            self.connections,
            partial(self.leaving, host),
        )
        return endpoint

    def step(self, host: Host) -> None:
        """Let the replica of this host take one step, if there is one that runs."""
        replica = self.replicas.get(host.member)
        if replica is not None and replica.log is not None:
            replica.step()

    def stop(self, member: int) -> None:
        """As an operator does, who then looks after its directory."""
        self.note("stop", f"replica {member}")
        self.replicas.pop(member).close()
        self.wake_all()

    def crash(self, member: int) -> None:
        """Cut the power of a replica, also in the middle of its step."""
        replica = self.replicas.pop(member, None)
        if replica is not None:
            self.counts["crashes"] += 1
            self.note("crash", f"replica {member}")
            replica.crash()
            self.wake_all()  # who was connected notices

    def lose(self, member: int) -> None:
        """What lies in the place of a replica that is down is gone for good."""
        self.places.lose(member)

    def close(self) -> None:
        """Close all replicas. A second call does nothing."""
        for replica in self.replicas.values():
            replica.close()
        self.replicas.clear()

    # Who is there

    @property
    def leader(self) -> R | None:
        """Who leads the newest term, as far as anybody believes to lead."""
        leaders = [replica for replica in self.replicas.values() if replica.status.role == "leader"]
        return max(leaders, key=lambda replica: replica.status.term, default=None)

    def converged(self) -> bool:
        """Whether all that run have applied the same last entry, and no snapshot is under way.

        A leader is needed that has committed an entry of its own term: else there may be more to apply.
        """
        running = [(replica, replica.log) for replica in self.replicas.values() if replica.log is not None]
        return (
            self.leader is not None
            and self.leader.raft.leader.committed_in_current_term()
            and len({replica.raft.applied_index for replica, _ in running}) == 1
            and all(replica.raft.applied_index == log.last_index for replica, log in running)
            and not any(replica.transferring for replica, _ in running)
        )
