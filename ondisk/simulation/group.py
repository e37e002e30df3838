"""Simulation: real replicas, logs and state machines in virtual time, under a schedule of faults.

What is simulated is what lies around them: the network, the clocks, the power supply, and how long a sync
takes. The disk below is a real one, with real RocksDB, and what a power cut takes away is taken from the
real files.
"""

from __future__ import annotations

import random
import shutil
import threading
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from functools import partial
from pathlib import Path

import msgspec

from ondisk import diskkv
from ondisk.errors import OndiskError
from ondisk.linearizability import Undecided, check
from ondisk.raft.log import REGULAR, LogEntry, RaftLog
from ondisk.raft.members import Members
from ondisk.raft.messages import (
    AddReplica,
    AppendReply,
    Change,
    Chunk,
    Message,
    RemoveReplica,
    SnapshotChunk,
    TransferLeadership,
    Vote,
)
from ondisk.replica import Replica
from ondisk.simulation.clients import (
    REQUEST_SECONDS,
    Client,
    Epochs,
    SessionClient,
    hot_key,
    record_outcome,
    when_done,
)
from ondisk.simulation.faults import LEADER, Fault, draw
from ondisk.simulation.invariants import Invariants, Violation
from ondisk.simulation.machine import PaddedKV, content
from ondisk.simulation.record import describe
from ondisk.simulation.watch import WatchedEndpoint, watched
from ondisk.simulation.world import BEGINNING, Computer, World
from ondisk.snapshot.restore import import_snapshot
from ondisk.snapshot.stream import Header, Writer, make_header, write_file
from ondisk.statemachine import Result

SECONDS = 60.0
MOST_MEMBERS = 5
CALM_SECONDS = 60.0  # within so many everybody must agree once all faults have ended
_LATENCY = 0.004
_CLIENTS = 4
_OPERATOR_SECONDS = 3.0  # until a person has seen that a majority of the disks is lost, and imports
_REPAIR_SECONDS = 1.0  # until a person has seen that a replica was refused
_HOT_SECONDS = 0.05  # between two reads of a leader whose answers are late
_WILL_GO = ("a stranger", "that of another replica")  # what stands in a place until somebody notices
_ARMED = ("crash in a write", "disk error", "damage")  # these wait for an occasion, and count when it comes


class Simulation(World):
    """One run: some replicas of ``DiskKV``, clients, and a schedule of faults, each of which ends.

    When a majority of the disks is lost, an operator imports what the newest survivor has, as a person would:
    what was acknowledged and is not in there may be gone, and another epoch of the books begins.

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
        self.logs: dict[int, RaftLog] = {}  # by member: of what stands in its place
        self.disks: dict[bytes, RaftLog] = {}  # by disk: as it was last, also if it is lost
        self.history = Epochs()
        self.invariants = Invariants(self)
        self.removed: set[int] = set()
        self._replica_type = watched(replica_type)
        self._endpoints: dict[int, WatchedEndpoint] = {}
        self._next_member = replicas + 1
        self._told: dict[int, tuple[int, ...]] = {}  # by member: the first members that it was started with
        self._disk_in: dict[int, bytes] = {}  # by member: the disk in its place
        self._path_of: dict[bytes, Path] = {}  # by disk: where it is; those that are lost are nowhere
        self._aside: set[str] = set()  # directories that will be put back
        self._away: set[int] = set()  # who has no directory in its place now, and is not started
        self._instead: dict[int, str] = {}  # by member: what stands there that is not its newest directory
        self._repairing: set[int] = set()  # who was refused, and will be fed anew
        self._late: dict[int, float] = {}  # by member: so many seconds later it hears what it is sent
        self._importing = False  # whether an operator has been called
        self._calm = False
        self._clients: list[Client | SessionClient] = []
        self._changing: Future[Result] | None = None
        self._damage_in: int | None = None  # so many chunks of snapshots from now one is damaged
        self._shown: dict[int, tuple[object, ...]] = {}
        self._violation: Violation | None = None  # found in the middle of a step

    # The run

    def run(self) -> None:
        """Let it happen. Raises ``Violation``."""
        with self.showing_violations():
            late = {self._first(fault.who) for fault in self.faults if fault.kind == "late start"}
            for member in self.first_members:
                if member not in late:
                    self.start(member)
            self._clients = [
                *(Client(number, self, self, self.history) for number in range(_CLIENTS)),
                SessionClient(0, self, self, self.history),
            ]
            self.schedule(self.faults)
            self.run_until(BEGINNING + self.seconds)
            self._calm_down()
            for client in self._clients:
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
        if member not in self._told:
            self._told[member] = self._first_members(member)
        endpoint = self._endpoints[member] = WatchedEndpoint(
            self.network.attach(member), lambda to, message: self._leaving(member, to, message)
        )
        try:
            replica = self._replica_type(
                member,
                self._told.get(member, ()),
                folder,
                PaddedKV(folder / "state", disk=computer.disk),
                endpoint,
                clock=computer.clock,
                rng=self.chance("replica", member, computer.lives),
                disk=computer.disk,
                lockstep=True,
            )
        except OndiskError as error:
            if member not in self._instead:
                raise Violation("a replica that cannot start", f"replica {member}: {error}") from error
            self.note("refused", f"replica {member} at its start")
            self._repair_later(member)
            return
        log = replica.log
        assert log is not None
        self.replicas[member], self.logs[member] = replica, log
        if log.identity is not None and log.identity.seed and not log.members.group:
            self.after(_OPERATOR_SECONDS, partial(self._look_at_import, self.epoch, member))
        instead = self._instead.get(member)
        if instead in (None, "the old one"):
            self._disk_in[member], self._path_of[log.disk_id] = log.disk_id, folder
            self.disks[log.disk_id] = log
        replica.tell(self)
        self.note("start", f"replica {member}, log to {log.last_index}, state at {replica.opened_index}")
        self.invariants.started(replica, copy=instead == "a copy", stranger=instead in _WILL_GO)
        computer.wake(self.now)
        self.wake_all()  # a link to it is there again

    def _first_members(self, member: int) -> tuple[int, ...]:
        """What whoever starts an empty directory says: the first members, or none for one that is added.

        A group that began with one replica and has grown is no group of one: the present members are named.
        """
        if member not in self.first_members:
            return ()
        if len(self.first_members) > 1:
            return self.first_members
        return tuple(sorted({member, *(voter for each in self._deciding() for voter in each.voters)}))

    def _first(self, who: int) -> int:
        return self.first_members[who % len(self.first_members)]

    def _folder(self, member: int) -> Path:
        return self.directory / f"replica-{member}"

    # What the probes tell

    def applies(self, replica: Replica, entries: Sequence[LogEntry]) -> None:
        """Committed entries are about to be handed to a state machine."""
        self.note("apply", f"{replica.id}: {entries[0].index}..{entries[-1].index}")
        self._check(self.invariants.applies, replica, entries)

    def appended(self, replica: Replica, entries: Sequence[LogEntry]) -> None:
        """These are in a log, not durably yet."""
        self._check(self.invariants.appended, replica, entries, self.computers[replica.id].clock())

    def installs(self, replica: Replica, index: int) -> None:
        """A snapshot has taken the place of all entries up to ``index``."""
        self.note("install", f"{replica.id}: a snapshot of {index}")
        self.counts["snapshots"] += 1
        self._check(self.invariants.installed, replica, index)

    def counted(self, replica: Replica, sender: int, message: AppendReply | Vote) -> None:
        """A vote or an acknowledgement has made a difference."""
        origin = self._endpoints[replica.id].origins[id(message)]
        self._check(self.invariants.counts, replica, sender, origin, message)

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
        if computer.member in self.replicas and replica.log is None:
            self._has_stopped(replica, computer)
        elif computer.member in self.replicas:
            self.invariants.stepped(replica, computer.clock())
            self._show(replica)
            computer.wake(self.now + seconds / computer.clock.rate)
        self.show()

    def _has_stopped(self, replica: Replica, computer: Computer) -> None:
        """For a reason that the schedule knows, or it is a violation."""
        if replica.status.role == "removed":
            self.removed.add(replica.id)
            self.note("removed", f"replica {replica.id}")
        elif replica.id in self._instead and (replica.status.error or "").startswith("Refusal"):
            self.counts["refused"] += 1
            self.note("refused", f"replica {replica.id}")
            self._repair_later(replica.id)
        elif computer.disk.failed:
            self.note("failed", f"replica {replica.id}")
            self.wake_all()
        else:
            self.invariants.stepped(replica)
        del self.replicas[replica.id]

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
            self._check(self.invariants.sending, replica, to, message, self.computers[sender].clock())
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
        if member not in self.replicas and member not in self.removed and member not in self._away:
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

    # Directories: lost, copied, moved, and put in from elsewhere

    def _stop(self, member: int) -> None:
        """As an operator does, who then looks after its directory."""
        self.note("stop", f"replica {member}")
        self.replicas.pop(member).close()
        self.wake_all()

    def _lose(self, member: int) -> None:
        """What lies in its place is gone for good."""
        shutil.rmtree(self._folder(member), ignore_errors=True)
        self._instead.pop(member, None)
        if (disk := self._disk_in.pop(member, None)) is not None:
            del self._path_of[disk]
        self._told[member] = self._first_members(member)
        self.logs.pop(member, None)
        self._look_at_losses()

    def _fault_wipe(self, number: int, fault: Fault) -> Callable[[], None] | None:
        if (member := self.pick(fault.who)) is None or self._instead.get(member) in _WILL_GO:
            return None
        self.crash(member)
        self._lose(member)
        return lambda: self._restart(member)

    def _fault_lose_state(self, number: int, fault: Fault) -> bool | None:
        if (member := self.pick(fault.who)) is None or member in self._instead:
            return None
        self.crash(member)
        shutil.rmtree(self._folder(member) / "state")
        self.invariants.lost_state(self._disk_in[member])
        self.start(member)
        self._look_at_losses()
        return True

    def _fault_copy(self, number: int, fault: Fault) -> Callable[[], None] | None:
        if (member := self._one_in_place(fault.who)) is None:
            return None
        self._stop(member)
        copy = self.directory / f"copy-{number}"
        shutil.copytree(self._folder(member), copy)
        boot, disk, epoch = self._life_of(member), self._disk_in[member], self.epoch
        self.start(member)

        def put_back() -> None:
            if self._calm or self.epoch != epoch or self._disk_in.get(member) != disk or member in self._away:
                return
            if not self._known_to_be_old(member, disk, boot):
                self.after(0.5, put_back)
                return
            self.counts["put back"] += 1
            if member in self.replicas:
                self.crash(member)
            self._lose(member)
            if not self._importing or self.epoch == epoch:
                copy.rename(self._folder(member))
                self._instead[member] = "a copy"
                self._restart(member)

        return put_back

    def _one_in_place(self, who: int) -> int | None:
        member = self.pick(who)
        return None if member is None or member in self._instead or member not in self._disk_in else member

    def _life_of(self, member: int) -> int:
        identity = self.logs[member].identity
        assert identity is not None
        return identity.boot

    def _known_to_be_old(self, member: int, disk: bytes, boot: int) -> bool:
        """Whether all others know of a later life, durably. Else nobody can tell that it is an old copy, and
        it is as good as the newest one to everybody who has not heard of that (docs/simulation.md).
        """
        others = {voter for members in self._deciding() for voter in members.voters} - {member}
        logs = [self.logs.get(other) for other in others if other in self.replicas]
        return len(logs) == len(others) > 0 and all(
            log is not None and log.synced_boot(disk) > boot for log in logs
        )

    def _fault_aside(self, number: int, fault: Fault) -> Callable[[], None] | None:
        """Somebody starts a replica with an empty directory, and puts the old one back later."""
        if (member := self._one_in_place(fault.who)) is None or len(self._voters()) < 3:
            return None
        epoch, disk, aside = self.epoch, self._disk_in.pop(member), self.directory / f"aside-{number}"
        self._stop(member)
        self._path_of[disk] = self._folder(member).rename(aside)
        self._aside.add(aside.name)
        self._told[member] = self._first_members(member)
        self.logs.pop(member, None)
        self._look_at_losses()
        self.start(member)

        def put_back() -> None:
            if self.epoch != epoch:
                return
            if self._instead.get(member) in _WILL_GO:
                self.after(0.5, put_back)
                return
            if member in self.replicas:
                self.crash(member)
            self._aside.discard(aside.name)
            self._lose(member)
            if self.epoch == epoch:
                self._path_of[disk] = aside.rename(self._folder(member))
                self._instead[member] = "the old one"
                self._away.discard(member)
                self._restart(member)

        return put_back

    def _fault_swap(self, number: int, fault: Fault) -> Callable[[], None] | None:
        first, second = self._one_in_place(fault.who), self._one_in_place(fault.other)
        if first is None or second is None or first == second:
            return None
        epoch = self.epoch
        for member in (first, second):
            self._stop(member)
        self._exchange(first, second)
        for member in (first, second):
            self._instead[member] = _WILL_GO[1]
            self._away.add(member)
            self._must_not_start(member, "swapped directories")

        def swap_back() -> None:
            if self.epoch != epoch:
                return
            self._exchange(first, second)
            for member in (first, second):
                self._instead.pop(member, None)
                self._away.discard(member)
                self._restart(member)

        return swap_back

    def _exchange(self, first: int, second: int) -> None:
        between = self.directory / "between"
        self._folder(first).rename(between)
        self._folder(second).rename(self._folder(first))
        between.rename(self._folder(second))

    def _must_not_start(self, member: int, rule: str) -> None:
        """Try it, as a supervisor does: it must be refused by an error that says why."""
        self._away.discard(member)
        self.start(member)
        self._away.add(member)
        if member in self.replicas:
            raise Violation(rule, f"replica {member} was started with {self._instead[member]}")

    def _fault_stranger(self, number: int, fault: Fault) -> Callable[[], None] | None:
        if (member := self._one_in_place(fault.who)) is None:
            return None
        epoch, aside = self.epoch, self.directory / f"aside-{number}"
        self._stop(member)
        disk = self._disk_in.pop(member)
        self._path_of[disk] = self._folder(member).rename(aside)
        told = self._told.get(member, ())
        self._make_stranger(number, member)
        self._instead[member] = _WILL_GO[0]
        self._told[member] = ()
        self.start(member)

        def put_back() -> None:
            if self.epoch != epoch:
                return
            if member in self.replicas:
                self.crash(member)
            shutil.rmtree(self._folder(member))
            self._path_of[disk] = aside.rename(self._folder(member))
            self._instead.pop(member, None)
            self._told[member] = told
            self._away.discard(member)
            self._restart(member)

        return put_back

    def _make_stranger(self, number: int, member: int) -> None:
        """A directory of a group that has the same numbers, other disks, and a higher term."""
        rng = self.chance("stranger", number)
        numbers = tuple(sorted({member, 1, 2, 3}))
        log = RaftLog(self._folder(member) / "log", replica_id=member, rng=rng)
        disks = {other: rng.randbytes(16) for other in numbers} | {member: log.disk_id}
        log.begin_group(Members(numbers, group=rng.randbytes(16), disks=tuple(disks.items())))
        log.append([LogEntry(index, 40, REGULAR + diskkv.put("x", "strange")) for index in range(1, 500)])
        log.set_hard_state(50, None)
        log.close()

    def _repair_later(self, member: int) -> None:
        """Somebody sees that a replica was refused. Who has put it in will take it away, if anybody will."""
        self._away.add(member)  # another attempt would end alike
        if member not in self._repairing and self._instead[member] not in _WILL_GO:
            self._repairing.add(member)
            self.after(_REPAIR_SECONDS, partial(self._repair, self.epoch, member))

    def _repair(self, epoch: int, member: int) -> None:
        """A supervisor tries it again, and then a person deletes the directory."""
        if self.epoch != epoch or member not in self._instead or member in self.replicas:
            self._repairing.discard(member)  # what was refused is not there any more
            return
        log = self.logs.get(member)
        if log is not None and log.identity is not None and log.identity.refused:
            self._must_not_start(member, "refused for good")
        self._repairing.discard(member)
        self._away.discard(member)
        self._lose(member)
        self._restart(member)

    # A majority of the disks is lost

    @property
    def epoch(self) -> int:
        """How often a majority of the disks was lost."""
        return self.history.epoch

    def _there(self) -> dict[bytes, RaftLog]:
        """The logs of all disks that are not lost."""
        return {disk: log for disk, log in self.disks.items() if disk in self._path_of}

    def _deciding(self) -> list[Members]:
        return list(self.invariants.deciding(self._there()))

    def _hopeless(self) -> bool:
        """Whether those who may decide have lost so many disks that they cannot any more."""
        whole = {disk for disk in self._there() if not self.invariants.is_without_state(disk)}
        return any(
            2 * sum(members.disk_of(voter) in whole for voter in members.voters) <= len(members.voters)
            for members in self._deciding()
        )

    def _look_at_losses(self) -> None:
        founding = self._could_found_anew()
        if not self._importing and (self._hopeless() or founding):
            self._importing = True
            self.note("lost", "a majority of the disks")
            self.after(_OPERATOR_SECONDS, partial(self._import, self.epoch))
        if self._importing and founding:
            self.after(0, partial(self._import, self.epoch))  # before another group begins to serve

    def _could_found_anew(self) -> bool:
        """Whether so many directories are empty that they found another group beside the one there was."""
        if not any(book for book in self.disks.values() if book.members.group):
            return False
        return any(
            told and all(self._told.get(other) == told and self._is_empty(other) for other in told)
            for told in self._told.values()
        )

    def _is_empty(self, member: int) -> bool:
        log = self.logs.get(member)
        return member not in self.removed and (log is None or not log.members.group)

    def _import(self, epoch: int) -> None:
        """What an operator does: stop what is left, and begin a new group with what the newest one has."""
        if self.epoch != epoch:
            return
        for member in sorted(self.replicas):
            self.computers[member].disk.mend()
            self.replicas.pop(member).close()
        snapshot = self.directory / f"import-{epoch}"
        index, term, contents = self._export_newest(snapshot)
        for path in self.directory.iterdir():
            if path != snapshot:
                shutil.rmtree(path)
        for computer in self.computers.values():
            computer.paused = False
        self._importing, self._changing = False, None
        self._away.clear()
        self._aside.clear()
        self._repairing.clear()
        self._instead.clear()
        self._disk_in.clear()
        self._path_of.clear()
        self.disks.clear()
        self.logs.clear()
        self._told = dict.fromkeys(self.first_members, self.first_members)
        self.removed = set(self.computers) - set(self.first_members)
        self.invariants.begin_anew(index, term)
        self.history.begin_epoch(contents, self.elapsed)
        self.counts["imports"] += 1
        self.note("import", f"entry {index} of term {term}")
        if index:
            import_snapshot(snapshot, self.directory, members=self.first_members, state_machine=PaddedKV)
            snapshot.unlink()
        for member in self.first_members:
            self.start(member)
        for client in self._clients:
            if isinstance(client, SessionClient):
                client.begin_anew()

    def _look_at_import(self, epoch: int, member: int) -> None:
        """Who holds an import, and has seen the others found their group without it, is to be fed by them.

        And who has lost its import before there was a group is given it again: the status of both says so.
        """
        replica = self.replicas.get(member)
        if self.epoch != epoch or replica is None or replica.log is None or replica.raft.members.group:
            return
        if not any(log.members.group for log in self._there().values()):
            if any(not self._holds_import(other) for other in self.first_members):
                self._import(epoch)
                return
        elif "holds an import" in (replica.status.error or ""):
            self.crash(member)
            self._lose(member)
            self._restart(member)
        self.after(_OPERATOR_SECONDS, partial(self._look_at_import, epoch, member))

    def _holds_import(self, member: int) -> bool:
        log = self.logs.get(member)
        return log is not None and log.identity is not None and bool(log.identity.seed)

    def _export_newest(self, snapshot: Path) -> tuple[int, int, dict[bytes, bytes]]:
        """Write the newest state into a file; return its index and term, and what it holds."""
        newest: tuple[int, int, Members, Path] = 0, 0, Members(()), self.directory
        for path in sorted(self._path_of.values()):
            log, machine = RaftLog(path / "log"), PaddedKV(path / "state")
            index = machine.open()
            term = log.installing[1] if log.installing and log.installing[0] == index else log.term_at(index)
            if term is not None and index > newest[0]:
                newest = index, term, log.members_at(index), path
            log.close()
            machine.close()
        index, term, members, path = newest
        if not index:
            return 0, 0, {}
        machine = PaddedKV(path / "state")
        machine.open()
        contents = content(machine.lookup)

        def write(put: Callable[[Chunk], None]) -> Header:
            view, header = machine.prepare_snapshot(), make_header(index, term, members)
            writer = Writer(header, put)
            machine.save_snapshot(view, writer, threading.Event())
            writer.finish()
            view.close()
            return header

        write_file(snapshot, write)
        machine.close()
        return index, term, contents

    # Founding, and answers that are late

    def _fault_late_start(self, number: int, fault: Fault) -> Callable[[], None]:
        return lambda: self._restart(self._first(fault.who))

    def _fate(self, sender: int, receiver: int, message: Message) -> float | None:
        fate = super()._fate(sender, receiver, message)
        late = self._late.get(receiver)
        if fate is None or late is None:
            return fate
        self.computers[receiver].wake(self.now + fate + late)
        return fate + late

    def _fault_late_answers(self, number: int, fault: Fault) -> Callable[[], None] | None:
        """A leader hears what was said long ago; then nobody hears it, and another one is elected.

        Meanwhile both are asked: the old one must not take an old answer for a new one.
        """
        leader = self.leader
        if leader is None:
            return None
        member, chance = leader.id, self.chance("late answers", number)
        self._late[member] = fault.size
        links = [(member, other) for other in sorted(self.replicas) if other != member]
        self.after(fault.size + 0.2, partial(self.network.cut, *links))
        begins = fault.size + 1.2
        for ask in range(int(1.5 / _HOT_SECONDS)):
            both = partial(self._ask_both, f"{number}.{ask}", member, chance)
            self.after(begins + ask * _HOT_SECONDS, both)

        def end() -> None:
            self._late.pop(member, None)
            self.network.heal(*links)

        return end

    def _ask_both(self, name: str, member: int, chance: random.Random) -> None:
        """Write by way of who leads the newest term, and read by way of this one."""
        newest, old = self.leader, self.replicas.get(member)
        key = hot_key(self.elapsed, chance.random())
        if newest is not None and newest is not old and chance.random() < 0.4:
            begun = self.history.begin(f"writer {name}", "put", key, name, at=self.elapsed)
            deadline = self.computers[newest.id].clock() + REQUEST_SECONDS
            when_done(newest.propose(diskkv.put(key, name), deadline), partial(self._note_put, begun), self)
            self.computers[newest.id].wake(self.now)
        if old is not None:
            begun = self.history.begin(f"reader {name}", "get", key, at=self.elapsed)
            barrier = old.read_barrier(self.computers[member].clock() + REQUEST_SECONDS)

            def look(ended: Future[None]) -> None:
                record_outcome(
                    self.history, begun, ended, lambda _: old.lookup(diskkv.get(key)), self.elapsed
                )

            when_done(barrier, look, self)
            self.computers[member].wake(self.now)

    def _fault_transfer(self, number: int, fault: Fault) -> bool | None:
        voters = sorted(self._voters())
        return self._change(TransferLeadership(voters[fault.other % len(voters)])) if voters else None

    def _fault_join(self, number: int, fault: Fault) -> bool | None:
        if not self._may_change() or len(self._voters()) >= MOST_MEMBERS:
            return None
        member = self._next_member
        self._next_member += 1
        self.start(member)
        return self._change(AddReplica(member))

    def _fault_remove(self, number: int, fault: Fault) -> bool | None:
        voters = sorted(self._voters())
        if not self._may_change() or len(voters) <= min(3, len(self.first_members)):
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

    def _may_change(self) -> bool:
        """Whether no change of the members that was asked for is under way."""
        return self.leader is not None and (self._changing is None or self._changing.done())

    # The end

    def _calm_down(self) -> None:
        """End all faults, and wait until all agree."""
        self._calm = True
        self._late.clear()
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
        for member in sorted(self._instead):  # it was put back in time, and belongs there
            back = self._disk_in.get(member) == members.disk_of(member) != b""
            if back or member not in members.all:  # what becomes of who is out is nobody's business
                del self._instead[member]
        if self._importing or self._away or self._instead or self._aside:
            return False
        for stranger in sorted(self.replicas.keys() - members.all):
            if stranger not in members.removed or not self.replicas[stranger].raft.members.group:
                self.replicas.pop(stranger).close()  # its addition was never committed, or taken back
                self.removed.add(stranger)
        replicas = [replica for replica in self.replicas.values() if replica.log is not None]
        return (
            self.replicas.keys() == members.all
            and len({replica.raft.applied_index for replica in replicas}) == 1
            and all(replica.raft.applied_index == self.logs[replica.id].last_index for replica in replicas)
            and not any(replica.transferring for replica in replicas)
        )

    def _statuses(self) -> str:
        return "; ".join(
            f"{replica.id} {status.role} in term {status.term}, log to {status.last_index}, "
            f"applied {status.applied_index}" + (f" ({status.error})" if status.error else "")
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
        prefix = self.history.key("")
        keys = {operation.key for operation in self.history.operations if operation.key.startswith(prefix)}
        for key in sorted(key.removeprefix(prefix) for key in keys):
            begun = self.history.begin("the end", "get", key, at=self.elapsed)
            self.history.ok(begun, contents[first].get(key.encode()), at=self.elapsed)
        try:
            verdict = check(self.history.operations)
        except Undecided:
            self.counts["undecided"] += 1  # neither good nor bad: it must be seen, not taken for a success
            return
        if not verdict.linearizable:
            raise Violation("linearizability", f"no order explains {verdict.answer} on {verdict.key}")
