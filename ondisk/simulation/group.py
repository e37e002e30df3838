"""Simulation: real replicas, logs and state machines in virtual time, under a schedule of faults.

What is simulated is what lies around them: the network, the clocks, the power supply, and how long a sync
takes. The disk below is a real one, with real RocksDB, and what a power cut takes away is taken from the
real files.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from functools import partial
from pathlib import Path

import msgspec

from ondisk import diskkv
from ondisk.errors import OndiskError
from ondisk.linearizability import History, Undecided, check
from ondisk.messages import AddReplica, Change, Message, RemoveReplica, SnapshotChunk, TransferLeadership
from ondisk.network import Endpoint
from ondisk.raftlog import LogEntry, RaftLog
from ondisk.replica import Replica
from ondisk.simulation.clients import REQUEST_SECONDS, Client, SessionClient, record_outcome, when_done
from ondisk.simulation.faults import LEADER, Fault, draw
from ondisk.simulation.invariants import Invariants, Violation
from ondisk.simulation.machine import PaddedKV, content
from ondisk.simulation.record import describe
from ondisk.simulation.world import BEGINNING, Computer, World
from ondisk.statemachine import Result

SECONDS = 60.0
MOST_MEMBERS = 5
CALM_SECONDS = 60.0  # within so many everybody must agree once all faults have ended
_LATENCY = 0.004
_CHUNK_BYTES = 2500  # so that a small state has many chunks
_CLIENTS = 4
_ARMED = ("crash in a write", "disk error", "damage")  # these wait for an occasion, and count when it comes


class _Endpoint:
    """An endpoint whose messages are looked at before they leave."""

    def __init__(self, endpoint: Endpoint, leaving: Callable[[int, Message], Message]) -> None:
        self._endpoint = endpoint
        self._leaving = leaving
        self.receive, self.connected, self.meet = endpoint.receive, endpoint.connected, endpoint.meet
        self.introduce, self.advertised = endpoint.introduce, endpoint.advertised
        self.wait, self.wake, self.close = endpoint.wait, endpoint.wake, endpoint.close

    def send(self, to: int, message: Message) -> bool:
        return self._endpoint.send(to, self._leaving(to, message))


class Simulation(World):
    """One run: some replicas of ``DiskKV``, clients, and a schedule of faults, each of which ends.

    When the faults have ended everybody must agree within a minute and hold what was acknowledged, and the
    history that the clients saw must be linearizable.
    """

    def __init__(
        self,
        seed: int,
        directory: Path,
        *,
        replicas: int = 3,
        seconds: float = SECONDS,
        schedule: Sequence[Fault] | None = None,
        replica_type: type[Replica] = Replica,
        observe: Callable[[Simulation], None] | None = None,
    ) -> None:
        """``directory`` is a new one, best on a RAM disk. ``schedule`` is drawn from the seed if not given.

        ``observe`` is called after each step of a replica.
        """
        super().__init__(seed, directory, observe)
        self.latency = _LATENCY
        self.seconds = seconds
        self.faults = tuple(draw(self.chance("faults"), seconds) if schedule is None else schedule)
        self.first_members = tuple(range(1, replicas + 1))
        self.replicas: dict[int, Replica] = {}
        self.logs: dict[int, RaftLog] = {}
        self.history = History()
        self.invariants = Invariants(self)
        self.removed: set[int] = set()
        self._replica_type = replica_type
        self._next_member = replicas + 1
        self._losing: int | None = None  # who lost its directory or its state, and is being fed
        self._changing: Future[Result] | None = None
        self._damage_in: int | None = None  # so many chunks of snapshots from now one is damaged
        self._shown: dict[int, tuple[object, ...]] = {}
        self._violation: Violation | None = None  # found in the middle of a step

    # The run

    def run(self) -> None:
        """Let it happen. Raises ``Violation``."""
        with self.showing_violations():
            for member in self.first_members:
                self.start(member)
            clients: list[Client | SessionClient] = [
                *(Client(number, self, self, self.history) for number in range(_CLIENTS)),
                SessionClient(0, self, self, self.history),
            ]
            self.schedule(self.faults)
            self.run_until(BEGINNING + self.seconds)
            self._calm_down()
            for client in clients:
                client.stop()
            self.run_until(self.now + 5.0)
            self._conclude()
            if self._violation is not None:
                raise self._violation

    def close(self) -> None:
        """Close all replicas. A second call does nothing."""
        for replica in self.replicas.values():
            replica.close()
        self.replicas.clear()

    # Life

    def start(self, member: int) -> None:
        """Start a replica where its last life ended."""
        computer = self.computers.get(member)
        if computer is None:
            computer = self.computers[member] = Computer(member, self)
        computer.lives += 1
        computer.paused = False
        computer.disk.mend()
        folder = self._folder(member)
        try:
            replica = self._replica_type(
                member,
                self.first_members if member in self.first_members else (),
                folder,
                PaddedKV(folder / "state", disk=computer.disk),
                _Endpoint(
                    self.network.attach(member), lambda to, message: self._leaving(member, to, message)
                ),
                clock=computer.clock,
                rng=self.chance("replica", member, computer.lives),
                disk=computer.disk,
                lockstep=True,
            )
        except OndiskError as error:
            raise Violation("a replica that cannot start", f"replica {member}: {error}") from error
        log = replica.log
        assert log is not None
        self.replicas[member], self.logs[member] = replica, log
        self._watch(replica, log)
        self.note("start", f"replica {member}, log to {log.last_index}, state at {replica.opened_index}")
        self.invariants.started(replica)
        computer.wake(self.now)
        self.wake_all()  # a link to it is there again

    def _folder(self, member: int) -> Path:
        return self.directory / f"replica-{member}"

    def _watch(self, replica: Replica, log: RaftLog) -> None:
        apply, append = replica.raft._apply, log.append
        transfers = replica._running_transfers
        installed = transfers._installed

        def checked_apply(entries: Sequence[LogEntry]) -> None:
            self.note("apply", f"{replica.id}: {entries[0].index}..{entries[-1].index}")
            self._check(self.invariants.applies, replica, entries)
            apply(entries)

        def checked_append(entries: Sequence[LogEntry]) -> None:
            append(entries)
            self._check(self.invariants.appended, replica.id, log, entries)

        def checked_install(index: int) -> None:
            self.note("install", f"{replica.id}: a snapshot of {index}")
            self.counts["snapshots"] += 1
            self._check(self.invariants.installed, replica, index)
            installed(index)

        replica.raft._apply = checked_apply
        log.append = checked_append  # type: ignore[method-assign]
        transfers._installed = checked_install
        transfers.chunk_bytes = _CHUNK_BYTES

    def report(self, violation: Violation) -> None:
        """End the run with this, after the present step."""
        self._violation = self._violation or violation

    def _check(self, rule: Callable[..., None], *about: object) -> None:
        """Check something in the middle of a step, which would take a violation for an error of its own."""
        try:
            rule(*about)
        except Violation as violation:
            self.report(violation)
            for computer in self.computers.values():
                computer.disk.mend()  # the run is over, and all that is left is to close
            raise

    def step(self, computer: Computer) -> None:
        """Let a replica take one step, and check what came of it."""
        replica = self.replicas.get(computer.member)
        if replica is None:
            return
        seconds = replica.step()
        if self._violation is not None:
            raise self._violation
        if replica.log is None and replica.status.role == "removed":
            self.removed.add(replica.id)
            del self.replicas[replica.id]
            self.note("removed", f"replica {replica.id}")
        elif computer.member in self.replicas and replica.log is None and computer.disk.failed:
            del self.replicas[replica.id]
            self.note("failed", f"replica {replica.id}")
            self.wake_all()
        elif computer.member in self.replicas:
            self.invariants.stepped(replica)
            self._show(replica)
            computer.wake(self.now + seconds / computer.clock.rate)
        self.show()

    def _show(self, replica: Replica) -> None:
        status = replica.status
        shown = (status.role, status.term, status.leader_id, status.voters, status.learners)
        if self._shown.get(replica.id) != shown:
            self._shown[replica.id] = shown
            self.note(
                "status", f"{replica.id}: {status.role} in term {status.term}, follows {status.leader_id}"
            )

    def crash(self, member: int) -> None:
        """Cut the power of a replica, also in the middle of its step."""
        replica = self.replicas.pop(member, None)
        if replica is not None:
            self.counts["crashes"] += 1
            self.note("crash", f"replica {member}")
            replica.crash()
            self.wake_all()  # who was connected notices

    def any_replica(self, chance: float) -> tuple[Replica, float] | None:
        """One that runs, and its time."""
        members = sorted(self.replicas)
        if chance < 0.4:  # often one that believes to lead: there may be two
            believers = [member for member in members if self.replicas[member].status.role == "leader"]
            members, chance = believers or members, chance / 0.4
        if not members:
            return None
        member = members[int(chance * len(members)) % len(members)]
        self.computers[member].wake(self.now)
        return self.replicas[member], self.computers[member].clock()

    # The network

    def _leaving(self, sender: int, to: int, message: Message) -> Message:
        replica = self.replicas.get(sender)
        if replica is not None:
            self._check(self.invariants.sending, replica, to, message)
        if isinstance(message, SnapshotChunk) and self._damage_in is not None:
            self._damage_in -= 1
            if self._damage_in < 0:
                self._damage_in = None
                self.counts["damage"] += 1
                return self._damaged(message, to)
        return message

    def _damaged(self, message: SnapshotChunk, to: int) -> SnapshotChunk:
        self.note("damage", f"chunk {message.chunk.number} to {to}")
        data = bytes([message.chunk.data[0] ^ 1]) + message.chunk.data[1:]
        return msgspec.structs.replace(message, chunk=msgspec.structs.replace(message.chunk, data=data))

    def describe(self, message: Message) -> str:
        """A message in a few words."""
        return describe(message)

    # Faults

    def pick(self, who: int) -> int | None:
        """The leader, or one of those that run; ``None`` if nobody does."""
        members = sorted(self.replicas)
        if not members:
            return None
        if who == LEADER and (leader := self.leader) is not None:
            return leader.id
        return members[who % len(members)]

    @property
    def leader(self) -> Replica | None:
        """Who leads the newest term, as far as anybody believes to lead."""
        leaders = [replica for replica in self.replicas.values() if replica.status.role == "leader"]
        return max(leaders, key=lambda replica: replica.status.term, default=None)

    def begin(self, number: int, fault: Fault) -> None:
        """Begin a fault, if there is anything to do, and see to its end."""
        end = getattr(self, "_fault_" + fault.kind.replace(" ", "_"))(number, fault)
        if end is None:
            return
        self.note("fault", f"{number}: {fault.kind}")
        if fault.kind not in _ARMED:
            self.counts[fault.kind] += 1
        if callable(end):
            self.end_later(number, fault, end)

    # Each of these begins a fault. It returns what ends it, or whether there was anything to do.

    def _fault_crash(self, number: int, fault: Fault) -> Callable[[], None] | None:
        if (member := self.pick(fault.who)) is None:
            return None
        self.computers[member].disk.surviving = fault.size
        self.crash(member)
        return lambda: self._restart(member)

    def _restart(self, member: int) -> None:
        if member not in self.replicas and member not in self.removed:
            self.start(member)

    def _fault_crash_in_a_write(self, number: int, fault: Fault) -> Callable[[], None] | None:
        if (member := self.pick(fault.who)) is None:
            return None
        disk = self.computers[member].disk
        disk.crash_in, disk.surviving = int(fault.size), fault.size % 1

        def end() -> None:
            disk.crash_in = None
            self._restart(member)

        return end

    def _fault_disk_error(self, number: int, fault: Fault) -> Callable[[], None] | None:
        if (member := self.pick(fault.who)) is None:
            return None
        disk = self.computers[member].disk
        disk.fail_in = int(fault.size)

        def end() -> None:
            disk.fail_in = None
            self._restart(member)

        return end

    def _fault_crash_all(self, number: int, fault: Fault) -> Callable[[], None]:
        crashed = sorted(self.replicas)
        for member in crashed:
            self.computers[member].disk.surviving = fault.size
            self.crash(member)

        def end() -> None:
            for member in crashed:
                self._restart(member)

        return end

    def _fault_pause(self, number: int, fault: Fault) -> Callable[[], None] | None:
        if (member := self.pick(fault.who)) is None:
            return None
        computer = self.computers[member]
        computer.paused = True

        def end() -> None:
            computer.paused = False

        return end

    def _fault_partition(self, number: int, fault: Fault) -> Callable[[], None] | None:
        members = sorted(self.replicas)
        if fault.who == LEADER:
            here = {self.pick(LEADER)}
        else:
            here = {member for place, member in enumerate(members) if fault.who >> place & 1}
        pairs = [(a, b) for a in members for b in members if (a in here) != (b in here)]
        return self._without(self.network.cut, pairs)

    def _fault_cut(self, number: int, fault: Fault) -> Callable[[], None] | None:
        return self._without(self.network.cut, self._link(fault))

    def _fault_stall(self, number: int, fault: Fault) -> Callable[[], None] | None:
        return self._without(self.network.stall, self._link(fault))

    def _link(self, fault: Fault) -> list[tuple[int, int]]:
        sender, receiver = self.pick(fault.who), self.pick(fault.other)
        return [] if sender is None or receiver is None or sender == receiver else [(sender, receiver)]

    def _without(self, take: Callable[..., None], pairs: list[tuple[int, int]]) -> Callable[[], None] | None:
        if not pairs:
            return None
        take(*pairs)
        return lambda: self.network.heal(*pairs)

    def _fault_loss(self, number: int, fault: Fault) -> Callable[[], None]:
        self.loss = fault.size
        return lambda: setattr(self, "loss", 0.0)

    def _fault_latency(self, number: int, fault: Fault) -> Callable[[], None]:
        self.latency = fault.size
        return lambda: setattr(self, "latency", _LATENCY)

    def _fault_slow_disk(self, number: int, fault: Fault) -> Callable[[], None] | None:
        if (member := self.pick(fault.who)) is None:
            return None
        disk = self.computers[member].disk
        disk.sync_seconds = fault.size
        return lambda: setattr(disk, "sync_seconds", 0.0)

    def _fault_skew(self, number: int, fault: Fault) -> Callable[[], None] | None:
        if (member := self.pick(fault.who)) is None:
            return None
        clock = self.computers[member].clock
        clock.run_at(fault.size)
        return lambda: clock.run_at(1.0)

    def _fault_burst(self, number: int, fault: Fault) -> bool | None:
        """Many puts at once, each of a key of its own: an acknowledged one that is lost shows at the end."""
        if (member := self.pick(fault.who)) is None:
            return None
        deadline = self.computers[member].clock() + REQUEST_SECONDS
        for count in range(int(fault.size)):
            key = f"b{number}.{count}"
            begun = self.history.begin(f"burst {number}", "put", key, "v", at=self.elapsed)
            future = self.replicas[member].propose(diskkv.put(key, "v"), deadline)
            when_done(future, partial(self._note_put, begun), self)
        self.computers[member].wake(self.now)
        return True

    def _note_put(self, begun: int, ended: Future[Result]) -> None:
        record_outcome(self.history, begun, ended, lambda result: result.value, self.elapsed)

    def _fault_compact(self, number: int, fault: Fault) -> bool | None:
        if (member := self.pick(fault.who)) is None:
            return None
        self.replicas[member].compact()
        self.computers[member].wake(self.now)
        return True

    def _fault_damage(self, number: int, fault: Fault) -> bool:
        self._damage_in = fault.other  # however long that takes: few replicas are fed at any one time
        return True

    def _fault_wipe(self, number: int, fault: Fault) -> bool | None:
        if (member := self._one_that_may_lose(fault.who)) is None:
            return None
        self.crash(member)
        shutil.rmtree(self._folder(member))
        self.invariants.wiped(member)
        self.start(member)
        return True

    def _fault_lose_state(self, number: int, fault: Fault) -> bool | None:
        if (member := self._one_that_may_lose(fault.who)) is None:
            return None
        self.crash(member)
        shutil.rmtree(self._folder(member) / "state")
        self.invariants.lost_state(member)
        self.start(member)
        return True

    def _one_that_may_lose(self, who: int) -> int | None:
        """One at a time, and only when nobody else is needed to feed it, or to be counted."""
        voters = self._voters()
        if not self._settled() or len(voters) < 3 or not voters <= self.replicas.keys():
            return None
        self._losing = sorted(voters)[who % len(voters)]
        return self._losing

    def _fault_transfer(self, number: int, fault: Fault) -> bool | None:
        voters = sorted(self._voters())
        return self._change(TransferLeadership(voters[fault.other % len(voters)])) if voters else None

    def _fault_join(self, number: int, fault: Fault) -> bool | None:
        if not self._settled() or len(self._voters()) >= MOST_MEMBERS:
            return None
        member = self._next_member
        self._next_member += 1
        self.start(member)
        return self._change(AddReplica(member))

    def _fault_remove(self, number: int, fault: Fault) -> bool | None:
        voters = sorted(self._voters())
        if not self._settled() or len(voters) <= 3:
            return None
        return self._change(RemoveReplica(voters[fault.who % len(voters)]))

    def _change(self, change: Change) -> bool | None:
        if (member := self.pick(1 + self._next_member)) is None:
            return None
        deadline = self.computers[member].clock() + 2 * REQUEST_SECONDS
        future = self.replicas[member].propose_change(change, deadline)
        if not isinstance(change, TransferLeadership):
            self._changing = future
        self.computers[member].wake(self.now)
        return True

    def _voters(self) -> set[int]:
        leader = self.leader
        return set(leader.raft.members.voters) if leader is not None else set()

    def _settled(self) -> bool:
        """Whether no change of the members may be under way, as far as the newest log tells."""
        leader = self.leader
        return (
            (self._changing is None or self._changing.done())
            and leader is not None
            and not leader.raft.members.learners
            and len({self.logs[member].members for member in self.replicas}) == 1
        )

    # The end

    def _calm_down(self) -> None:
        """End all faults, and wait until all agree."""
        self.network.heal()
        self.loss, self.latency = 0.0, _LATENCY
        for computer in self.computers.values():
            computer.paused = False
            computer.disk.mend()
            computer.clock.run_at(1.0)
        self._damage_in = None
        for member in sorted(self.computers):
            self._restart(member)
        self.wake_all()
        self.note("calm", "all faults have ended")
        quiet = self.now + 5.0
        if not self.run_until(self.now + CALM_SECONDS, lambda: self.now > quiet and self._agree()):
            raise Violation(
                "progress", f"no agreement in {CALM_SECONDS:g} s without faults: {self._statuses()}"
            )

    def _agree(self) -> bool:
        leader = self.leader
        if leader is None or leader.raft.members.learners or not leader.raft.knows_commit_index():
            return False
        members = leader.raft.members
        for stranger in sorted(self.replicas.keys() - members.all - set(members.removed)):
            self.replicas.pop(stranger).close()  # its addition was never committed, or taken back
            self.removed.add(stranger)
        replicas = [replica for replica in self.replicas.values() if replica.log is not None]
        return (
            self.replicas.keys() == members.all
            and len({replica.raft.applied_index for replica in replicas}) == 1
            and all(replica.raft.applied_index == self.logs[replica.id].last_index for replica in replicas)
            and not any(replica._running_transfers.busy for replica in replicas)
        )

    def _statuses(self) -> str:
        return "; ".join(
            f"{replica.id} {status.role} in term {status.term}, log to {status.last_index}, "
            f"applied {status.applied_index}"
            for replica in self.replicas.values()
            for status in (replica.status,)
        )

    def _conclude(self) -> None:
        """All replicas hold the same; what was acknowledged is there; the history has an explanation."""
        contents = {member: content(self.replicas[member].lookup) for member in sorted(self.replicas)}
        first, *others = contents
        for member in others:
            if contents[member] != contents[first]:
                different = dict(contents[first].items() ^ contents[member].items())
                raise Violation(
                    "equality", f"replicas {first} and {member} differ in {sorted(different)[:5]}"
                )
        keys = {operation.key for operation in self.history.operations}
        for key in sorted(keys):
            begun = self.history.begin("the end", "get", key, at=self.elapsed)
            self.history.ok(begun, contents[first].get(key.encode()), at=self.elapsed)
        try:
            verdict = check(self.history.operations)
        except Undecided:
            self.counts["undecided"] += 1  # neither good nor bad: it must be seen, not taken for a success
            return
        if not verdict.linearizable:
            raise Violation("linearizability", f"no order explains {verdict.answer} on {verdict.key}")
