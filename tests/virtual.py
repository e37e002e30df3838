"""Real replicas in virtual time: one thread steps them all, and a second costs as long as the work in it."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import Future
from pathlib import Path

from ondisk import diskkv
from ondisk.diskkv import DiskKV
from ondisk.net.memory import Event
from ondisk.raft.messages import AddReplica, Change, Message
from ondisk.replica import Replica
from ondisk.simulation import world as simulation
from ondisk.simulation.host import Host, SkewedClock
from ondisk.simulation.hosts import Hosts
from ondisk.simulation.machine import content
from ondisk.statemachine import OnDiskStateMachine, Result
from ondisk.testing.crashing import CrashingDisk, Point

TICK = 0.002  # seconds of virtual time between two looks at everybody

Edit = Callable[[int, int, Message], Iterable[Message]]


class TickingHost(Host):
    """Its turns come with the ticks of its world, whatever happens, and its clock is the world's."""

    def __init__(self, member: int, world: simulation.World) -> None:
        super().__init__(member, world)
        self.clock = SkewedClock(lambda: world.now, world.now)

    def wake(self, at: float) -> None:
        pass


class World(Hosts[Replica]):
    """The simulator's hosts, with replicas 1..n that take their steps together, and time that stands still
    unless ``run`` moves it. Messages take the same time each, unless a test says otherwise.
    """

    host_type = TickingHost
    replica_type = Replica  # ``pytest --without NAME`` puts one that lacks a safeguard here

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
        super().__init__(seed, directory, members)
        self.latency = latency
        self.machine = machine
        self.machines: dict[int, Callable[[Path], OnDiskStateMachine]] = {}
        self._unread = self.network.observe()
        self._sent: list[Event] = []
        self.edit: Edit | None = None  # what the network makes of a message: none, itself, others
        for member in self.first_members:
            self.start(member)
        if founded:
            self.run_until(lambda: all(replica.raft.members.group for replica in self.replicas.values()))

    # What the hosts and the network are like here

    def make_machine(self, host: Host, state: Path) -> OnDiskStateMachine:
        return self.machines.get(host.member, self.machine)(state)

    def leaving(self, host: int, to: int, message: Message) -> Iterable[Message]:
        return (message,) if self.edit is None else self.edit(host, to, message)

    def _delivery(self, sender: int, receiver: int, message: Message) -> float:
        return self.latency

    # Life

    def folder(self, member: int) -> Path:
        return self.places.of(member)

    def crash_at(self, member: int, point: str) -> CrashingDisk:
        """Cut the power of a replica when it reaches this point, once. Its disk says when it has."""
        disk = self.hosts[member].disk
        disk.arm(Point(1, point))
        return disk

    def wipe(self, member: int) -> None:
        """Lose all that a replica has on disk, and start it again as if nothing had been."""
        self.crash(member)
        self.lose(member)
        self.start(member)

    def freeze(self, *members: int) -> None:
        """These get no processor time until they are thawed, or started again."""
        for member in members:
            self.hosts[member].paused = True

    def thaw(self, *members: int) -> None:
        """All of them if none is named."""
        for member in members or self.hosts:
            self.hosts[member].paused = False

    # Time

    def run(self, seconds: float) -> None:
        """Let virtual time pass."""
        until = self.now + seconds
        while self.now < until:
            self.tick()

    def tick(self) -> None:
        """Let time pass up to the next step of all that run."""
        self.after(TICK, self._step_all)
        self.advance(self.now + TICK)

    def _step_all(self) -> None:
        for member in tuple(self.replicas):
            if not self.hosts[member].paused:
                self.step(self.hosts[member])

    def run_until(self, condition: Callable[[], object], seconds: float = 30.0) -> None:
        """Let virtual time pass until the condition holds; fail after ``seconds``."""
        until = self.now + seconds
        while not condition():
            assert self.now < until, f"not within {seconds} virtual seconds"
            self.tick()

    # What can be seen

    @property
    def sent(self) -> list[Event]:
        """The messages that were sent so far, in order."""
        while self._unread:
            if (event := self._unread.popleft()).kind == "sent":
                self._sent.append(event)
        return self._sent

    def elect(self) -> Replica:
        """Run until somebody leads who has committed an entry of its own term."""
        self.run_until(
            lambda: self.leader is not None and self.leader.raft.leader.committed_in_current_term()
        )
        assert self.leader is not None
        return self.leader

    def others(self, member: int) -> list[int]:
        return [other for other in self.first_members if other != member]

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

    def start(self, member: int) -> Replica | None:
        return None if member in self.late else super().start(member)

    def now_start(self, member: int) -> Replica | None:
        self.late.discard(member)
        return self.start(member)
