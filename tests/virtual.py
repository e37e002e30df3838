"""Real replicas in virtual time: one thread steps them all, and a second costs as long as the work in it."""

from __future__ import annotations

import random
from collections.abc import Callable
from pathlib import Path

from ondisk.disk import Disk
from ondisk.diskkv import DiskKV
from ondisk.messages import Message
from ondisk.network import Event, MemoryNetwork
from ondisk.replica import Replica
from ondisk.statemachine import OnDiskStateMachine

TICK = 0.002  # seconds of virtual time between two looks at everybody


class World:
    """Replicas 1..n on one network and one clock that stands still unless ``run`` moves it."""

    def __init__(self, directory: Path, members: int = 3, seed: int = 1, latency: float = 0.004) -> None:
        self.now = 1000.0
        self.directory = directory
        self.members = tuple(range(1, members + 1))
        self.network = MemoryNetwork(clock=lambda: self.now)
        self.network.set_latency(latency)
        self.rng = random.Random(seed)
        self.replicas: dict[int, Replica] = {}
        self.frozen: set[int] = set()  # replicas that get no processor time
        self.disks: dict[int, Disk] = {}
        self.machines: dict[int, Callable[[Path], OnDiskStateMachine]] = {}
        self.sent: list[Event] = []
        self._wakeup: dict[int, float] = {}
        self.network.observe(lambda event: self.sent.append(event) if event.kind == "sent" else None)
        for member in self.members:
            self.start(member)

    def start(self, member: int) -> Replica:
        directory = self.directory / f"replica-{member}"
        make = self.machines.get(member, DiskKV)
        self.replicas[member] = replica = Replica(
            member,
            self.members,
            directory,
            make(directory / "state"),
            self.network.attach(member),
            clock=lambda: self.now,
            rng=random.Random(self.rng.random()),
            disk=self.disks.get(member),
        )
        self._wakeup[member] = 0.0
        return replica

    def crash(self, member: int) -> None:
        self.replicas.pop(member).crash()

    def stop(self, member: int) -> None:
        self.replicas.pop(member).close()

    def close(self) -> None:
        for replica in self.replicas.values():
            replica.close()

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

    @property
    def leader(self) -> Replica | None:
        leaders = [replica for replica in self.replicas.values() if replica.status.role == "leader"]
        return max(leaders, key=lambda replica: replica.status.term, default=None)

    def elect(self) -> Replica:
        """Run until somebody leads who has committed an entry of its own term."""
        self.run_until(lambda: self.leader is not None and self.leader.raft.knows_commit_index())
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
