"""Stock PySyncObj in the same world: the same time, network, hosts and faults.

It is treated better than ours. A crash ends the process and nothing more: what it has written to its journal
is there afterwards, synced or not. No message is lost while a connection lasts: a partition breaks it, as
with TCP. And nobody reads, so that only one question is left: is what was acknowledged still there?
"""

from __future__ import annotations

import copy
import pickle
import random
from collections import Counter
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from pysyncobj import SyncObj, SyncObjConf, replicated
from pysyncobj.node import Node
from pysyncobj.transport import Transport

from ondisk.net.endpoint import Endpoint
from ondisk.raft.engine import time_stands_still
from ondisk.simulation import faults
from ondisk.simulation.faults import LEADER, Fault, draw, one_of
from ondisk.simulation.host import BEGINNING, Host
from ondisk.simulation.invariants import Violation
from ondisk.simulation.schedule import begin_each, end_later
from ondisk.simulation.world import World

KINDS = {name: faults.KINDS[name] for name in ("crash", "pause", "partition", "stall")}
KINDS["crash"] = KINDS["crash"]._replace(size=one_of(1.0))  # it is the process that ends
KINDS["burst"] = faults.KINDS["burst"]._replace(weight=8, size=one_of(100, 300))
_TICK = 0.05  # seconds: PySyncObj's own default
_PUT_EVERY = 0.1  # seconds
_CALM_SECONDS = 60.0
_VALUE = "v" * 1000  # some dozens fill a message
_LATENCY = 0.06  # seconds, the longest: as between cities


class _Number(Node):
    """A member whose hash is its number, so that sets of them have the same order in every run."""

    def __hash__(self) -> int:
        return int(self.id)


class _Wire(Transport):
    """PySyncObj's messages on our network."""

    def __init__(self, endpoint: Endpoint, nodes: dict[int, Node]) -> None:
        super().__init__(None, None, [])
        self._endpoint = endpoint
        self._nodes = nodes
        self._connected: frozenset[int] = frozenset()

    def send(self, node: Node, message: Any) -> bool:
        member = int(node.id)
        return member in self._connected and self._endpoint.send(member, copy.deepcopy(message))

    def look(self, reachable: frozenset[int]) -> None:
        """Who is connected; then what has arrived."""
        for member in sorted(reachable - self._connected):
            self._onNodeConnected(self._nodes[member])
        for member in sorted(self._connected - reachable):
            self._onNodeDisconnected(self._nodes[member])
        self._connected = reachable
        for sender, _, message in self._endpoint.receive():
            if sender in reachable:
                self._onMessageReceived(self._nodes[sender], message)


class StockReplica(SyncObj):
    """A dictionary, replicated as PySyncObj's documentation shows it, with a journal."""

    def __init__(self, member: int, members: Sequence[int], endpoint: Endpoint, journal: Path) -> None:
        nodes: dict[int, Node] = {each: _Number(str(each)) for each in members}
        self.data: dict[str, str] = {}
        self.wire = _Wire(endpoint, nodes)
        conf = SyncObjConf(autoTick=False, journalFile=str(journal))
        others = [nodes[each] for each in members if each != member]
        super().__init__(nodes[member], others, conf, transport=self.wire)

    def leads(self) -> bool:
        """Whether it believes to lead."""
        status = self.getStatus()
        return bool(status["leader"] == status["self"])

    def entries(self, first: int, last: int) -> list[tuple[int, int, str]]:
        """What its log has in these places: their index, their term, and the key that they put."""
        log = self._SyncObj__raftLog  # from entry 1 on: so short a run drops none
        return [(index, term, _put_in_words(command)) for command, index, term in log[first - 1 : last]]

    @replicated  # type: ignore[untyped-decorator]
    def put(self, key: str, value: str) -> None:
        """Set a key."""
        self.data[key] = value


def _put_in_words(command: bytes) -> str:
    """Its first byte says whether it is one of the application's (0) or of a new leader."""
    return f"put {pickle.loads(command[1:])[1][0]}" if command[:1] == b"\0" else "a new leader begins"


def describe(message: Any) -> str:
    """A message of PySyncObj in a few words."""
    words = str(message.get("type", "?"))
    if words == "append_entries":
        entries = message.get("entries") or []
        return f"append {len(entries)} after {message.get('prevLogIdx')}, commit {message['commit_index']}"
    if words == "next_node_idx":
        return f"next {message['next_node_idx']}, {'success' if message['success'] else 'failure'}"
    return words


class StockSimulation(World):
    """One run of stock PySyncObj. Raises ``Violation`` if an acknowledged write is lost."""

    def __init__(
        self,
        seed: int,
        directory: Path,
        *,
        replicas: int = 3,
        seconds: float = 60.0,
        schedule: Sequence[Fault] | None = None,
        observe: Callable[[StockSimulation], None] | None = None,
    ) -> None:
        """As for ``Simulation``; the faults are of those kinds that stock PySyncObj can stand at all."""
        super().__init__(seed, directory, observe)
        self.latency = _LATENCY
        self.seconds = seconds
        self.faults = tuple(draw(self.rng("faults"), seconds, KINDS) if schedule is None else schedule)
        self.members = tuple(range(1, replicas + 1))
        self.replicas: dict[int, StockReplica] = {}
        self.acknowledged: dict[str, float] = {}  # key: when
        self._endpoints: dict[int, Endpoint] = {}
        self._cut: Counter[tuple[int, int]] = Counter()
        self._puts = 0
        self._shown: dict[int, object] = {}

    def run(self) -> None:
        """Let it happen. Raises ``Violation``."""
        before = random.getstate()
        random.seed(self.seed)  # PySyncObj draws its timeouts from there
        with ExitStack() as last:
            last.callback(random.setstate, before)
            last.enter_context(self.showing_violations())
            for member in self.members:
                self.hosts[member] = Host(member, self)
                self.start(member)
            begin_each(self, self.faults, self.begin)
            self._keep_putting(self.rng("client"))
            self.advance(BEGINNING + self.seconds)
            self._conclude()

    def close(self) -> None:
        """Close all replicas. A second call does nothing."""
        for member in tuple(self.replicas):
            self._end(member)

    # Life

    def start(self, member: int) -> None:
        """Start a replica from its journal."""
        endpoint = self._endpoints[member] = self.network.attach(member)
        with time_stands_still(self.now):
            replica = StockReplica(member, self.members, endpoint, self.directory / f"journal-{member}")
        self.replicas[member] = replica
        self.note("start", f"replica {member}")
        self.wake_all()

    def crash(self, member: int) -> None:
        """Kill the process of a replica."""
        if member in self.replicas:
            self.note("crash", f"replica {member}")
            self.counts["crashes"] += 1
            self._end(member)
            self.wake_all()

    def _end(self, member: int) -> None:
        with time_stands_still(self.now):
            self.replicas.pop(member).destroy()
        self._endpoints.pop(member).close()

    def step(self, host: Host) -> None:
        """As its own thread does: tick, then look at the network."""
        member = host.member
        replica = self.replicas.get(member)
        if replica is None:
            return
        with time_stands_still(self.now):
            replica.doTick(0.0)
            reachable = self._endpoints[member].connected()
            replica.wire.look(frozenset(other for other in reachable if not self._cut[member, other]))
            status = replica.getStatus()
        shown = (status["leader"], status["raft_term"], status["state"])
        if self._shown.get(member) != shown:
            self._shown[member] = shown
            self.note("status", f"{member}: state {status['state']} in term {status['raft_term']}")
        host.wake(self.now + _TICK)
        self.show()

    def describe(self, message: Any) -> str:
        """A message in a few words."""
        return describe(message)

    # Requests

    def _keep_putting(self, rng: random.Random) -> None:
        if self.elapsed < self.seconds:
            members = sorted(self.replicas)
            if members:
                self._put(members[int(rng.random() * len(members))])
            self.after(_PUT_EVERY, lambda: self._keep_putting(rng))

    def _put(self, member: int) -> None:
        key = f"k{self._puts}"
        self._puts += 1

        def answered(_: object, error: int) -> None:
            if error == 0:
                self.acknowledged[key] = self.elapsed
                self.note("ack", key)

        with time_stands_still(self.now):
            self.replicas[member].put(key, _VALUE, callback=answered)
        self.hosts[member].wake(self.now)

    # Faults

    def pick(self, who: int) -> int | None:
        """The leader, or one of those that run."""
        members = sorted(self.replicas)
        if not members:
            return None
        if who == LEADER:
            for member in members:
                if self.replicas[member].leads():
                    return member
        return members[who % len(members)]

    def begin(self, number: int, fault: Fault) -> None:
        """Begin a fault, and see to its end."""
        self.note("fault", f"{number}: {fault}")
        self.counts[fault.kind] += 1
        end_later(self, number, fault, self._apply(fault))

    def _apply(self, fault: Fault) -> Callable[[], None]:
        """Begin a fault; return what ends it."""
        member = self.pick(fault.who)
        if fault.kind == "latency":
            self.latency = fault.size
            return lambda: setattr(self, "latency", _LATENCY)
        if member is None:
            return lambda: None
        if fault.kind in ("crash", "crash all"):
            crashed = [member] if fault.kind == "crash" else sorted(self.replicas)
            for each in crashed:
                self.crash(each)
            return lambda: self._restart(crashed)
        if fault.kind == "pause":
            host = self.hosts[member]
            host.paused = True
            return lambda: setattr(host, "paused", False)
        if fault.kind == "burst":
            for _ in range(int(fault.size)):
                self._put(member)
        elif fault.kind == "stall":
            other = self.pick(fault.other)
            if other is not None and other != member:
                self.network.stall((member, other))
                return lambda: self.network.heal((member, other))
        elif fault.kind == "partition":
            return self._part(fault, member)
        return lambda: None

    def _restart(self, crashed: Sequence[int]) -> None:
        for member in crashed:
            if member not in self.replicas:
                self.start(member)

    def _part(self, fault: Fault, member: int) -> Callable[[], None]:
        here = {member}
        if fault.who != LEADER:
            here = {each for place, each in enumerate(self.members) if fault.who >> place & 1}
        pairs = [(a, b) for a in self.members for b in self.members if (a in here) != (b in here)]
        self._cut.update(pairs)
        self.network.cut(*pairs)

        def end() -> None:
            self._cut.subtract(pairs)
            self.network.heal(*(pair for pair in pairs if not self._cut[pair]))

        return end

    # The end

    def _conclude(self) -> None:
        self._cut.clear()
        self.heal()
        self.latency = _LATENCY
        for member, host in self.hosts.items():
            host.paused = False
            if member not in self.replicas:
                self.start(member)
        self.wake_all()
        self.note("calm", "all faults have ended")
        quiet = self.now + 10.0
        self.advance(self.now + _CALM_SECONDS, lambda: self.now > quiet and self._agree())
        leading = [replica for replica in self.replicas.values() if replica.leads()] or [
            *self.replicas.values()
        ]
        lost = [key for key in self.acknowledged if all(key not in replica.data for replica in leading)]
        if lost:
            raise Violation(
                "acknowledged write lost",
                f"{len(lost)} of {len(self.acknowledged)}; the first is {lost[0]}, "
                f"acknowledged at {self.acknowledged[lost[0]]:.3f} s",
            )
        if not self._agree():
            sizes = {member: len(replica.data) for member, replica in self.replicas.items()}
            raise Violation("divergence", f"after {_CALM_SECONDS:g} s of calm the replicas hold {sizes} keys")

    def _agree(self) -> bool:
        first, *others = self.replicas.values()
        return all(other.data == first.data for other in others) and any(
            replica.leads() for replica in self.replicas.values()
        )
