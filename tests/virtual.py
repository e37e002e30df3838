"""Real replicas in virtual time: one thread steps them all, and a second costs as long as the work in it."""

from __future__ import annotations

import random
import shutil
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import Future
from pathlib import Path
from typing import NoReturn

from ondisk import diskkv
from ondisk.diskkv import DiskKV
from ondisk.net.endpoint import Endpoint
from ondisk.net.memory import Event, MemoryNetwork
from ondisk.raft import Timing
from ondisk.raft.messages import AddReplica, Change, Message
from ondisk.replica import Replica
from ondisk.simulation.machine import content
from ondisk.simulation.world import PowerCut
from ondisk.statemachine import OnDiskStateMachine, Result
from ondisk.storage.disk import Disk
from ondisk.testing.crashing import CrashingDisk, Point

TICK = 0.002  # seconds of virtual time between two looks at everybody

Edit = Callable[[int, int, Message], Iterable[Message]]


class World:
    """Replicas 1..n on one network and one clock that stands still unless ``run`` moves it."""

    replica_type = Replica  # ``pytest --without NAME`` puts one that lacks a safeguard here
    timing = Timing()

    def __init__(
        self,
        directory: Path,
        members: int = 3,
        seed: int = 1,
        latency: float = 0.004,
        machine: Callable[[Path], OnDiskStateMachine] = DiskKV,
        *,
        founded: bool = True,
    ) -> None:
        """``founded``: let the first members found their group before anything else happens."""
        self.now = 1000.0
        self.machine = machine
        self.directory = directory
        self.members = tuple(range(1, members + 1))  # the first ones
        self.network = MemoryNetwork(clock=lambda: self.now)
        self.network.set_latency(latency)
        self.rng = random.Random(seed)
        self.replicas: dict[int, Replica] = {}
        self.frozen: set[int] = set()  # replicas that get no processor time
        self.disks: dict[int, Disk] = {}
        self.machines: dict[int, Callable[[Path], OnDiskStateMachine]] = {}
        self.sent: list[Event] = []
        self.edit: Edit | None = None  # what the network makes of a message: none, itself, others
        self.network.observe(lambda event: self.sent.append(event) if event.kind == "sent" else None)
        for member in self.members:
            self.start(member)
        if founded:
            self.run_until(lambda: all(replica.raft.members.group for replica in self.replicas.values()))

    # Life

    def folder(self, member: int) -> Path:
        return self.directory / f"replica-{member}"

    def start(self, member: int) -> Replica:
        """Start one of the first members, or one that was added or is to be."""
        make = self.machines.get(member, self.machine)
        self.replicas[member] = replica = self.replica_type(
            member,
            self.members if member in self.members else (),
            self.folder(member),
            make(self.folder(member) / "state"),
            self._attach(member),
            clock=lambda: self.now,
            rng=self.make_rng(member),
            disk=self.disks.get(member),
            timing=self.timing,
            lockstep=True,
        )
        return replica

    def make_rng(self, member: int) -> random.Random:
        """What a replica draws its timeouts and ids from, for one life."""
        return random.Random(self.rng.random())

    def _attach(self, member: int) -> Endpoint:
        endpoint = self.network.attach(member)
        send = endpoint.send

        def send_edited(to: int, message: Message) -> bool:
            if self.edit is None:
                return send(to, message)
            return all([send(to, edited) for edited in self.edit(member, to, message)])

        endpoint.send = send_edited  # type: ignore[method-assign]
        return endpoint

    def crash(self, member: int) -> None:
        self.replicas.pop(member).crash()

    def crash_at(self, member: int, point: str) -> CrashingDisk:
        """Cut the power of a replica when it reaches this point, once. Its disk says when it has."""

        def die(point: str) -> NoReturn:
            self.crash(member)
            raise PowerCut(point)

        disk = CrashingDisk(Point(1, point), die)
        self.disks[member] = disk
        if member in self.replicas:
            replica = self.replicas[member]
            replica._disk = replica._open_streaming._disk = replica._compaction._disk = disk
        return disk

    def stop(self, member: int) -> None:
        self.replicas.pop(member).close()

    def wipe(self, member: int) -> None:
        """Lose all that a replica has on disk, and start it again as if nothing had been."""
        if member in self.replicas:
            self.crash(member)
        shutil.rmtree(self.folder(member))
        self.start(member)

    def close(self) -> None:
        for replica in self.replicas.values():
            replica.close()

    # Time

    def run(self, seconds: float) -> None:
        """Let virtual time pass."""
        until = self.now + seconds
        while self.now < until:
            self.tick()

    def tick(self) -> None:
        self.now += TICK
        for member, replica in tuple(self.replicas.items()):
            if member not in self.frozen and replica.log is not None:
                replica.step()

    def run_until(self, condition: Callable[[], object], seconds: float = 30.0) -> None:
        """Let virtual time pass until the condition holds; fail after ``seconds``."""
        until = self.now + seconds
        while not condition():
            assert self.now < until, f"not within {seconds} virtual seconds"
            self.tick()

    # What can be seen

    @property
    def leader(self) -> Replica | None:
        leaders = [replica for replica in self.replicas.values() if replica.status.role == "leader"]
        return max(leaders, key=lambda replica: replica.status.term, default=None)

    def elect(self) -> Replica:
        """Run until somebody leads who has committed an entry of its own term."""
        self.run_until(
            lambda: self.leader is not None and self.leader.raft.leader.committed_in_current_term()
        )
        assert self.leader is not None
        return self.leader

    def others(self, member: int) -> list[int]:
        return [other for other in self.members if other != member]

    def messages(self, kind: type[Message], sender: int | None = None) -> list[Message]:
        """What was sent so far, of one kind."""
        return [
            event.message
            for event in self.sent
            if isinstance(event.message, kind) and sender in (None, event.sender)
        ]

    def content(self, member: int) -> dict[bytes, bytes]:
        """Everything one replica holds, as it is there now."""
        return content(self.replicas[member].lookup)

    def converged(self) -> bool:
        """Whether all that run have applied the same last entry, and no snapshot is under way."""
        replicas = [replica for replica in self.replicas.values() if replica.log is not None]
        return (
            self.leader is not None
            and self.leader.raft.leader.committed_in_current_term()
            and len({replica.raft.applied_index for replica in replicas}) == 1
            and all(replica.raft.applied_index == replica.log.last_index for replica in replicas)
            and not any(replica._open_streaming.busy for replica in replicas)
        )

    def assert_equal(self, members: Sequence[int] = ()) -> dict[bytes, bytes]:
        """Fail unless these replicas (all that run) hold the same; return it."""
        first, *rest = [self.content(member) for member in members or self.replicas]
        for other in rest:
            assert other == first
        return first


def put(replica: Replica, key: str) -> Future[Result]:
    """Propose a key through this replica, for as long as it takes."""
    return replica.propose(diskkv.put(key, "v"), float("inf"))


def fill(world: World, count: int, key: str = "k") -> None:
    """Put ``count`` keys through the leader and wait until they are acknowledged."""
    leader = world.elect()
    futures = [put(leader, f"{key}{number}") for number in range(count)]
    world.run_until(lambda: all(future.done() for future in futures))


def ask(world: World, leader: Replica, change: Change, seconds: float = 30.0) -> Result:
    """Ask this leader for a change of the members, and wait until it is decided."""
    future = leader.propose_change(change, float("inf"))
    world.run_until(future.done, seconds)
    return future.result()


def join(world: World, member: int) -> None:
    """Start a new replica, add it, and wait until everybody counts it."""
    world.start(member)
    assert ask(world, world.elect(), AddReplica(member)) == Result()
    world.run_until(lambda: all(member in each.status.voters for each in world.replicas.values()))


def groups(world: World) -> set[bytes]:
    """The groups to which the replicas belong; empty bytes for none."""
    return {replica.raft.members.group for replica in world.replicas.values()}


class Late(World):
    """Some of the first members are started only when a test says so."""

    def __init__(self, *args: object, late: Iterable[int] = (), **options: object) -> None:
        self.late = set(late)
        super().__init__(*args, founded=False, **options)  # type: ignore[arg-type, misc]

    def start(self, member: int) -> Replica:
        if member in self.late:
            return None  # type: ignore[return-value]
        return super().start(member)

    def now_start(self, member: int) -> Replica:
        self.late.discard(member)
        return self.start(member)
