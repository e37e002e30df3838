"""Everything that can go wrong, in a random order, and what must be true all the same.

In virtual time a schedule follows from its seed, so a failure can be looked at as often as it takes:
``ONDISK_CHAOS_SEEDS=17 pytest --long tests/test_chaos.py`` runs that one, ``=100-199`` runs a hundred. The
test with real threads runs for some seconds, with ``--long`` for two minutes or ``ONDISK_CHAOS_SECONDS``.
"""

from __future__ import annotations

import contextlib
import itertools
import os
import random
import threading
import time
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from functools import partial
from pathlib import Path
from typing import Any

import psutil
import pytest

from ondisk import Cluster, diskkv
from ondisk.errors import ConfigurationError, NotDone, OndiskError
from ondisk.raft.messages import AddReplica, Change, Message, RemoveReplica, TransferLeadership
from ondisk.raft.records import LogEntry
from ondisk.replica import Replica
from ondisk.simulation.machine import PaddedKV, content
from ondisk.snapshot import stream
from ondisk.statemachine import Result
from tests.lengths import LONG, short_and_long
from tests.virtual import World
from tests.waiting import wait_until

VIRTUAL_SECONDS = 30.0
LONG_SECONDS = float(os.environ.get("ONDISK_CHAOS_SECONDS", "120"))
MOST_MEMBERS = 5
COUNTERS = (b"n0", b"n1")


def _seeds() -> list[Any]:
    """One for every run, the others for the long one."""
    first, _, last = os.environ.get("ONDISK_CHAOS_SEEDS", "1-7").partition("-")
    return [0, *(pytest.param(seed, marks=LONG) for seed in range(int(first), int(last or first) + 1))]


class Chaos:
    """A random schedule of requests and faults, and the books about what they may have led to."""

    def __init__(self, world: World, seed: int) -> None:
        self.world = world
        self.seed = seed
        self.rng = random.Random(seed)
        self.committed: dict[int, LogEntry] = {}  # index: what some replica applied there
        self.leaders: dict[int, int] = {}  # term: who led
        self.acknowledged: dict[bytes, None] = {}  # keys, the newest last
        self.impossible: set[bytes] = set()  # keys whose put was said to be not done
        self.counted = dict.fromkeys(COUNTERS, 0)  # the highest answer to an increment
        self.asked = dict.fromkeys(COUNTERS, 0)  # increments that may have happened
        self.asked_for: list[Future[Result]] = []
        self.barriers: list[tuple[Future[None], Callable[[Future[None]], None]]] = []
        self.reads = 0
        self.streams = 0  # snapshots that were installed
        self.loss = 0.0
        self.gone: set[bytes] = set()  # disks that were lost
        self.wipes = 0
        self.changing: Future[Result] | None = None  # the change of the members under way
        self.removed: set[int] = set()
        self.next_key = 0
        self.next_member = len(world.first_members) + 1
        self.links: dict[tuple[int, int], random.Random] = {}  # chance of its own for each
        world.edit = self.perhaps
        for replica in world.replicas.values():
            self.watch(replica)

    def perhaps(self, sender: int, to: int, message: Message) -> list[Message]:
        """Lose a message or not; what happens on one link has no influence on any other."""
        link = self.links.setdefault((sender, to), random.Random(f"{self.seed} {sender} {to}"))
        return [] if link.random() < self.loss else [message]

    # What must always be true

    def watch(self, replica: Replica) -> None:
        """State machine safety: nobody ever applies anything else at an index."""
        apply, installed = replica.apply, replica.on_installed

        def checked(entries: Sequence[LogEntry]) -> None:
            assert replica.log is not None and not replica.log.unsynced
            for entry in entries:
                assert self.committed.setdefault(entry.index, entry) == entry
            apply(entries)

        def count(index: int) -> None:
            self.streams += 1
            installed(index)

        replica.apply = checked  # type: ignore[method-assign]
        replica.on_installed = count  # type: ignore[method-assign]

    def check(self) -> None:
        """Election safety: one leader in a term; and nobody has failed."""
        for member, replica in self.world.replicas.items():
            status = replica.status
            assert status.role != "failed", f"replica {member}: {status.error}"
            if status.role == "leader":
                assert self.leaders.setdefault(status.term, member) == member

    # Requests

    def some(self) -> Replica | None:
        running = [replica for replica in self.world.replicas.values() if replica.log is not None]
        return self.rng.choice(running) if running else None

    def put(self) -> None:
        if (replica := self.some()) is None:
            return
        key = b"k%d" % self.next_key
        self.next_key += 1

        def note(done: Future[Result]) -> None:
            if isinstance(done.exception(), NotDone):
                self.impossible.add(key)
            elif done.exception() is None:
                self.acknowledged[key] = None

        value = self.rng.randbytes(self.rng.choice((1, 10, 300)))
        self.asked_for.append(replica.propose(diskkv.put(key, value), self.world.now + 2))
        self.asked_for[-1].add_done_callback(note)

    def increment(self) -> None:
        if (replica := self.some()) is None:
            return
        key = self.rng.choice(COUNTERS)
        self.asked[key] += 1

        def note(done: Future[Result]) -> None:
            if isinstance(done.exception(), NotDone):
                self.asked[key] -= 1
            elif done.exception() is None:
                self.counted[key] = max(self.counted[key], done.result().value)  # type: ignore[type-var]

        self.asked_for.append(replica.propose(diskkv.incr(key), self.world.now + 2))
        self.asked_for[-1].add_done_callback(note)

    def read(self) -> None:
        """A linearizable read sees all that was acknowledged before it began."""
        if (replica := self.some()) is None:
            return
        counted, acknowledged = dict(self.counted), list(self.acknowledged)[-20:]

        def look(done: Future[None]) -> None:
            if done.exception() is None:
                self.reads += 1
                for key, least in counted.items():
                    assert int(replica.lookup(diskkv.get(key)) or 0) >= least
                for key in acknowledged:
                    assert replica.lookup(diskkv.get(key)) is not None

        self.barriers.append((replica.read_barrier(self.world.now + 2), look))

    # Faults

    def crash(self) -> None:
        if (replica := self.some()) is not None:
            self.world.crash(replica.id)

    def start(self) -> None:
        down = [
            member
            for member in range(1, self.next_member)
            if member not in self.world.replicas and member not in self.removed
        ]
        if down:
            self.watch(self.world.start(self.rng.choice(down)))

    def wipe(self) -> None:
        """At any time, and several at once, while those who may decide keep a majority of their disks."""
        replica = self.some()
        if replica is None or replica.log is None:
            return
        gone = {*self.gone, replica.log.disk_id}
        for members in {each.raft.members for each in self.world.replicas.values() if each.log is not None}:
            left = [voter for voter in members.voters if members.disk_of(voter) not in gone]
            if members.group and 2 * len(left) <= len(members.voters):
                return
        self.gone = gone
        self.wipes += 1
        self.world.wipe(replica.id)
        self.watch(self.world.replicas[replica.id])

    def cut(self) -> None:
        members = list(self.world.replicas)
        self.rng.shuffle(members)
        kind = self.rng.random()
        if kind < 0.4:
            at = self.rng.randrange(len(members) + 1)
            self.world.network.partition(members[:at], members[at:])
        elif kind < 0.6 and members:
            self.world.network.isolate(members[0])
        elif len(members) > 1:
            self.world.network.cut((members[0], members[1]))  # one way only

    def stall(self) -> None:
        members = list(self.world.replicas)
        if len(members) > 1:
            first, second = self.rng.sample(members, 2)
            self.world.network.stall((first, second))

    def heal(self) -> None:
        self.world.network.heal()
        self.loss = 0.0

    def lose(self) -> None:
        self.loss = self.rng.choice((0.02, 0.2))

    def slow(self) -> None:
        self.world.latency = self.rng.choice((0.0, 0.002, 0.004, 0.02, 0.06))

    def freeze(self) -> None:
        if (replica := self.some()) is not None:
            self.world.freeze(replica.id)

    def thaw(self) -> None:
        self.world.thaw()

    def compact(self) -> None:
        for replica in self.world.replicas.values():
            if replica.log is not None and self.rng.random() < 0.7:
                replica.compact()

    # The group

    def voters(self) -> set[int]:
        leader = self.world.leader
        return set(leader.raft.members.voters) if leader is not None else set()

    def settled(self) -> bool:
        """Whether no change of the members may be under way, as far as the newest log tells."""
        logs = [replica.log for replica in self.world.replicas.values() if replica.log is not None]
        leader = self.world.leader
        return (
            (self.changing is None or self.changing.done())
            and leader is not None
            and not leader.raft.members.learners
            and len({log.members for log in logs}) == 1
        )

    def change(self, change: Change) -> Future[Result]:
        replica = self.some()
        assert replica is not None
        self.asked_for.append(replica.propose_change(change, self.world.now + 4))
        return self.asked_for[-1]

    def add(self) -> None:
        if self.settled() and len(self.voters()) < MOST_MEMBERS:
            member = self.next_member
            self.next_member += 1
            self.watch(self.world.start(member))
            self.changing = self.change(AddReplica(member))

    def remove(self) -> None:
        voters = self.voters()
        if self.settled() and len(voters) > 3:
            self.changing = self.change(RemoveReplica(self.rng.choice(sorted(voters))))

    def transfer(self) -> None:
        if voters := self.voters():
            self.change(TransferLeadership(self.rng.choice(sorted(voters))))

    def look_at_removed(self) -> None:
        for member, replica in tuple(self.world.replicas.items()):
            if replica.status.role == "removed":
                self.removed.add(member)
                del self.world.replicas[member]

    # The schedule

    def run(self, seconds: float) -> None:
        actions: dict[Callable[[], None], int] = {
            self.put: 60,
            self.increment: 30,
            self.read: 30,
            self.crash: 3,
            self.start: 9,
            self.wipe: 2,
            self.cut: 3,
            self.stall: 2,
            self.heal: 8,
            self.lose: 1,
            self.slow: 2,
            self.freeze: 1,
            self.thaw: 3,
            self.compact: 6,
            self.add: 2,
            self.remove: 2,
            self.transfer: 2,
        }
        until = self.world.now + seconds
        while self.world.now < until:
            (action,) = self.rng.choices(list(actions), list(actions.values()))
            action()
            for _ in range(self.rng.choice((0, 1, 1, 2, 10, 60))):
                self.tick()

    def tick(self) -> None:
        self.world.tick()
        self.look_at_removed()
        self.check()
        for barrier, look in self.barriers[:]:
            if barrier.done():
                self.barriers.remove((barrier, look))
                look(barrier)

    def calm_down(self) -> None:
        """End all faults and start everybody; wait until all have the same."""
        self.heal()
        self.thaw()
        self.world.latency = 0.002
        for member in range(1, self.next_member):
            if member not in self.world.replicas and member not in self.removed:
                self.watch(self.world.start(member))
        quiet, until = self.world.now + 5, self.world.now + 60
        while self.world.now < quiet or not self.calm():
            assert self.world.now < until, self.report()
            self.tick()

    def calm(self) -> bool:
        """Whether all members are equal, and those who were removed know it."""
        leader = self.world.leader
        if leader is None or leader.raft.members.learners:
            return False
        members = leader.raft.members
        for stranger in self.world.replicas.keys() - members.all:
            if stranger not in members.removed or not self.world.replicas[stranger].raft.members.group:
                self.world.stop(stranger)  # its addition was never committed, or taken back
                self.removed.add(stranger)
        return self.world.replicas.keys() == members.all and self.world.converged()

    def report(self) -> str:
        return "\n".join(str(replica.status) for replica in self.world.replicas.values())

    def final_check(self) -> None:
        assert all(future.done() for future in self.asked_for) and self.barriers == []
        content = self.world.assert_equal()
        assert not self.acknowledged.keys() - content.keys()
        assert not self.impossible & content.keys()
        for key in COUNTERS:
            assert self.counted[key] <= int(content.get(key, 0)) <= self.asked[key]
        for replica in self.world.replicas.values():
            assert replica.log is not None
            assert replica.status.error is None
            for index in range(replica.log.base_index + 1, replica.log.last_index + 1):
                (entry,) = replica.log.entries(index, index)
                assert self.committed[index] == entry
            assert replica.status.waiting == 0
            views = [path.name for path in (self.world.folder(replica.id) / "state").glob("view-*")]
            databases = list((self.world.folder(replica.id) / "state").glob("db-*"))
            assert views == [] and len(databases) == 1


@pytest.mark.parametrize("seed", _seeds())
def test_no_schedule_of_faults_loses_or_repeats_an_acknowledged_write(
    make_world: Callable[..., World], monkeypatch: pytest.MonkeyPatch, seed: int
) -> None:
    """Crashes, partitions, lost messages, wiped directories, members that come and go, snapshots."""
    monkeypatch.setattr(stream, "CHUNK_BYTES", 2500)  # so that a small state has many chunks
    members = random.Random(seed).choice((3, 3, 4, 5))
    chaos = Chaos(make_world(members=members, seed=seed, machine=PaddedKV), seed)
    chaos.run(VIRTUAL_SECONDS)
    chaos.calm_down()
    chaos.final_check()
    print(
        f"seed {seed}: {len(chaos.acknowledged)} puts acknowledged, {chaos.reads} reads, "
        f"{len(chaos.leaders)} leaders, {chaos.wipes} wipes, {chaos.streams} snapshots installed, members "
        f"{sorted(chaos.world.replicas)}, removed {sorted(chaos.removed)}"
    )
    assert chaos.acknowledged and chaos.reads


def test_a_read_looks_for_what_was_acknowledged_last(
    make_world: Callable[..., World], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Not for the last ones by name, among which k10 comes before k9."""
    chaos = Chaos(make_world(), seed=1)
    until = chaos.world.now + 10
    while len(chaos.acknowledged) < 120:
        assert chaos.world.now < until
        chaos.put()
        chaos.tick()
    asked: list[bytes] = []
    for replica in chaos.world.replicas.values():
        monkeypatch.setattr(replica, "lookup", lambda query: asked.append(query.key) or b"0")
    acknowledged = list(chaos.acknowledged)
    chaos.read()
    chaos.put()  # this one is acknowledged after the read began
    while chaos.barriers:
        assert chaos.world.now < until
        chaos.tick()
    assert asked == [*COUNTERS, *acknowledged[-20:]]
    assert acknowledged[-20:] != sorted(acknowledged)[-20:]


# In real time


class Load:
    """A thread that puts as fast as it is answered, and keeps the books."""

    def __init__(self, cluster: Cluster, rng: random.Random) -> None:
        self.acknowledged: set[bytes] = set()
        self.impossible: set[bytes] = set()
        self._cluster = cluster
        self._rng = rng
        self._stop = threading.Event()
        self._room = threading.Semaphore(64)
        self._thread = threading.Thread(target=self._run)
        self._thread.start()

    def _run(self) -> None:
        for number in itertools.count():
            if self._stop.is_set():
                return
            self._room.acquire()
            self._put(b"k%d" % number)

    def _put(self, key: bytes) -> None:
        def note(done: Future[Result]) -> None:
            if isinstance(done.exception(), NotDone):
                self.impossible.add(key)
            elif done.exception() is None:
                self.acknowledged.add(key)
            self._room.release()

        try:
            via = self._rng.choice(self._cluster.members)
            future = self._cluster.put_async(key, self._rng.randbytes(200), via=via, timeout=2)
        except (NotDone, ConfigurationError):  # it is down, or was removed just now
            self._room.release()
            self._stop.wait(0.001)
        else:
            future.add_done_callback(note)

    def stop(self) -> None:
        self._stop.set()
        self._thread.join()
        for _ in range(64):  # until all are answered
            assert self._room.acquire(timeout=30)


def disturb(cluster: Cluster, rng: random.Random, seconds: float) -> None:
    """Crashes, partitions, compactions, joins and removals, one after the other, at random."""
    until, next_member = time.monotonic() + seconds, 4
    while time.monotonic() < until:
        member = rng.choice(cluster.members)
        action = rng.choice(
            ("crash", "start", "start", "cut", "heal", "heal", "compact", "lead", "add", "go")
        )
        with contextlib.suppress(OndiskError):  # nobody leads, it is down, it did not work in time
            match action:
                case "crash":
                    cluster.crash(member)
                case "start":
                    cluster.start(member)
                case "cut" if rng.random() < 0.5:
                    cluster.network.isolate(member)
                case "cut":
                    cluster.network.cut((member, rng.choice(cluster.members)))
                case "heal":
                    cluster.network.heal()
                case "compact":
                    for each in cluster.members:
                        cluster.compact(each)
                case "lead":
                    cluster.transfer_leadership(member, timeout=3)
                case "add" if len(cluster.members) < MOST_MEMBERS:
                    next_member += 1
                    cluster.add_replica(next_member - 1, timeout=5)
                case "go" if len(cluster.members) > 3:
                    cluster.remove_replica(member, timeout=5)
        time.sleep(rng.expovariate(5))


def calm_down(cluster: Cluster) -> None:
    """End all faults, start everybody, and wait until all members are equal."""
    cluster.network.heal()

    def equal() -> bool:
        for member in cluster.members:
            if cluster.status()[member].role != "removed":
                cluster.start(member)
        leader = cluster.status()[cluster.wait_for_leader(30)]
        for stranger in set(cluster.members) - set(leader.voters + leader.learners):
            cluster._forget(
                cluster._nodes[stranger]
            )  # its addition was taken back, or its removal was not answered
        statuses = cluster.status().values()
        return not leader.learners and all(
            (status.applied_index, status.last_index) == (leader.last_index, leader.last_index)
            for status in statuses
        )

    wait_until(equal, 60)


@pytest.mark.slow
@pytest.mark.timeout(LONG_SECONDS + 300)
@pytest.mark.parametrize("seconds", short_and_long(8.0, LONG_SECONDS))
def test_faults_in_real_time_lose_nothing_and_leave_nothing_behind(tmp_path: Path, seconds: float) -> None:
    """Threads, joins and removals under load: in the end no file, thread or directory is left."""
    seed = random.randrange(1 << 32)
    print(f"seed {seed}")  # of the schedule; the threads go their own ways
    rng = random.Random(seed)
    with Cluster(tmp_path / "warm"):  # what RocksDB keeps for the whole process is there from now on
        pass
    before = psutil.Process().num_fds(), {thread.name for thread in threading.enumerate()}
    with Cluster(tmp_path / "data") as cluster:
        cluster.wait_for_leader()
        load = Load(cluster, random.Random(seed))
        disturb(cluster, rng, seconds)
        load.stop()
        calm_down(cluster)
        first, *others = [content(partial(cluster.stale_read, via=member)) for member in cluster.members]
        members = cluster.members
        assert all(other == first for other in others)
        assert not load.acknowledged - first.keys()
        assert not load.impossible & first.keys()
        print(f"{len(load.acknowledged)} puts acknowledged, {len(first)} stored, members {members}")
        assert load.acknowledged
    assert (psutil.Process().num_fds(), {thread.name for thread in threading.enumerate()}) == before
    for state in (tmp_path / "data").glob("replica-*/state"):
        left = [path.name for path in state.iterdir() if path.name not in ("owner", "current", "belongs-to")]
        assert len(left) == 1, f"{state}: {left}"
