"""Checked hosts: the simulator's, where every start, step and message of a replica is held against the rules.

What goes wrong is in ``inject`` and ``inject_directories``, what a person does about it in ``operator``.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from pathlib import Path

import msgspec

from ondisk.errors import OndiskError
from ondisk.raft.log import RaftLog
from ondisk.raft.members import Members
from ondisk.raft.messages import Message, Response, SnapshotChunk
from ondisk.raft.records import LogEntry
from ondisk.replica import Replica
from ondisk.simulation.clients import Client, Epochs, SessionClient
from ondisk.simulation.faults import LEADER
from ondisk.simulation.host import Host
from ondisk.simulation.hosts import Hosts
from ondisk.simulation.invariants import Invariants, Violation
from ondisk.simulation.machine import PaddedKV
from ondisk.simulation.places import A_COPY, THE_OLD_ONE
from ondisk.simulation.trace import describe
from ondisk.simulation.watch import WatchedReplica, watched
from ondisk.ticking import Ticker


def _host(replica: Replica) -> int:
    assert isinstance(replica, WatchedReplica)
    return replica.host


class CheckedHosts(Hosts[WatchedReplica]):
    """Replicas of ``DiskKV``, and what is known of them and of their disks."""

    def __init__(
        self,
        seed: int,
        directory: Path,
        *,
        replicas: int,
        replica_type: type[Replica],
        observe: Callable[[CheckedHosts], None] | None,
    ) -> None:
        super().__init__(seed, directory, replicas, observe)
        self.doubles: dict[int, WatchedReplica] = {}  # by host: second processes under a number
        self.logs: dict[int, RaftLog] = {}  # by member: of what stands in its place
        self.disks: dict[bytes, RaftLog] = {}  # by disk: as it was last, also if it is lost
        self.history = Epochs()
        self.clients: list[Client | SessionClient] = []
        self.invariants = Invariants(self)
        self.removed: set[int] = set()
        self.late: dict[int, float] = {}  # by member: so many seconds later it hears what it is sent
        self.damage_in: int | None = None  # so many chunks of snapshots from now one is damaged
        self.importing = False  # whether an operator has been called, who will import
        self.calm = False  # whether all faults have ended
        self.violation: Violation | None = None  # found in the middle of a step
        self.replica_type = watched(replica_type)
        self.double_in: dict[int, Path] = {}  # by host: the directory of a second process
        self.by_leases = False  # whether clients read by leases
        self.with_verbs = False  # whether they transact, watch and lock
        self.machine_type = PaddedKV
        self._tickers: dict[int, Ticker] = {}  # by host
        self.broken_lease: str | None = None  # the first that did not exclude another leader
        self._shown: dict[int, tuple[object, ...]] = {}

    @property
    def epoch(self) -> int:
        """How often a majority of the disks was lost, and the group began anew with an import."""
        return self.history.epoch

    # What an operator is told

    def on_refused(self, member: int) -> None:
        """A replica must not run with the directory in its place, and says so."""
        raise NotImplementedError

    def on_loss(self) -> None:
        """A directory is lost, or its state."""
        raise NotImplementedError

    def on_import(self, member: int) -> None:
        """A replica has begun with what was imported, and belongs to no group yet."""
        raise NotImplementedError

    # Life

    def start(self, member: int) -> WatchedReplica | None:
        """Start a replica where its last life ended; ``None`` if it refuses the directory in its place.

        Raises ``Violation`` if it refuses its own.
        """
        places = self.places
        try:
            replica = super().start(member)
        except OndiskError as error:
            if member not in places.instead:
                raise Violation("a replica that cannot start", f"replica {member}: {error}") from error
            self.note("refused", f"replica {member} at its start")
            self.on_refused(member)
            return None
        assert replica is not None
        log = replica.log
        assert log is not None
        self.logs[member] = log
        if log.identity is not None and log.identity.seed and not log.members.group:
            self.on_import(member)
        instead = places.instead.get(member)
        if instead in (None, THE_OLD_ONE):
            places.settle(member, log.disk_id)
            self.disks[log.disk_id] = log
        replica.tell(self)
        self.invariants.started(replica, copy=instead == A_COPY, stranger=places.will_go(member))
        return replica

    def open(self, number: int, folder: Path, told: tuple[int, ...]) -> WatchedReplica:
        """A process on the host with this number, and it knows where it runs."""
        replica = super().open(number, folder, told)
        replica.host = number
        if self.with_verbs:
            self._tickers[number] = Ticker(replica, self.hosts[number].clock)
        return replica

    def make_machine(self, host: Host, state: Path) -> PaddedKV:
        """On the disk of this host."""
        return self.machine_type(state, disk=host.disk)

    def named_at_start(self, member: int) -> tuple[int, ...]:
        """The same at each start, until its directory is lost."""
        told = self.places.told
        if member not in told:
            told[member] = self.named_at_first(member)
        return told[member]

    def end_second(self, host: int) -> None:
        """Somebody sees that there are two, stops the second one, and deletes its directory."""
        replica = self.doubles.pop(host, None)
        if replica is None:
            return
        replica.close()
        self.connections.hang_up(host)
        self.note("stop", f"the second process as replica {replica.id}")
        if self.places.forget_disk_in(self.double_in.pop(host)):
            self.on_loss()
        self.wake_all()

    def named_at_first(self, member: int) -> tuple[int, ...]:
        """What whoever starts an empty directory says: the first members, or none for one that is added.

        A group that began with one replica and has grown is no group of one: the present members are named.
        """
        if member not in self.first_members or len(self.first_members) > 1:
            return super().named_at_start(member)
        return tuple(sorted({member, *(voter for each in self.deciding() for voter in each.voters)}))

    def restart(self, member: int) -> None:
        """Start a replica that is down, if it has a place in the group, and a directory in its own."""
        if member not in self.replicas and member not in self.removed and member not in self.places.away:
            self.start(member)

    def lose(self, member: int) -> None:
        """What lies in its place is gone for good: an operator may have to act."""
        super().lose(member)
        self.places.told[member] = self.named_at_first(member)
        self.logs.pop(member, None)
        self.on_loss()

    def close(self) -> None:
        """Close all replicas. A second call does nothing."""
        super().close()
        for replica in self.doubles.values():
            replica.close()
        self.doubles.clear()

    # What the probes tell

    def applies(self, replica: Replica, entries: Sequence[LogEntry]) -> None:
        """Committed entries are about to be handed to a state machine."""
        if self.tracing:
            self.note("apply", f"{replica.id}: {entries[0].index}..{entries[-1].index}")
        self._check(self.invariants.applies, replica, entries)

    def appended(self, replica: Replica, entries: Sequence[LogEntry]) -> None:
        """These are in a log, not durably yet."""
        self._check(self.invariants.appended, replica, entries, self.hosts[_host(replica)].clock())

    def installs(self, replica: Replica, index: int) -> None:
        """A snapshot has taken the place of all entries up to ``index``."""
        self.note("install", f"{replica.id}: a snapshot of {index}")
        self.counts["snapshots"] += 1
        self._check(self.invariants.installed, replica, index)

    def counted(self, replica: Replica, sender: int, message: Response) -> None:
        """A vote or an acknowledgement has made a difference."""
        origin = self._endpoints[_host(replica)].origins[id(message)]
        self._check(self.invariants.counts, replica, sender, origin, message)

    def report(self, violation: Violation) -> None:
        """End the run with this, after the present step."""
        self.violation = self.violation or violation

    def _check(self, rule: Callable[..., None], *about: object) -> None:
        """Check something in the middle of a step, which would take a violation for an error of its own."""
        try:
            rule(*about)
        except Violation as violation:
            self.report(violation)
            for host in self.hosts.values():
                host.disk.mend()  # the run is over, and all that is left is to close
            raise

    # Steps

    def step(self, host: Host) -> None:
        """Let a replica take one step, and check what came of it."""
        replica = self.replicas.get(host.member) or self.doubles.get(host.member)
        if replica is None:
            return
        seconds = replica.step()
        if self.with_verbs and replica.log is not None:
            self._tickers[host.member].look()
        if self.violation is not None:
            raise self.violation
        if host.member in self.replicas and replica.log is None:
            self._has_stopped(replica, host)
        elif host.member in self.replicas:
            self.invariants.stepped(replica, host.clock())
            if self.tracing:
                self._show(replica)
            host.wake(self.now + seconds / host.clock.rate)
        elif host.member in self.doubles and replica.log is None:
            self.note("refused", f"the second process as replica {replica.id}: {replica.status.role}")
            self.counts["second refused"] += 1
            self.end_second(host.member)
        elif host.member in self.doubles:
            self.invariants.stepped(replica, host.clock())
            host.wake(self.now + seconds / host.clock.rate)
        if self.by_leases and self.broken_lease is None:
            self._look_at_leases()
        self.look_what_is_waited_for()
        self.show()

    def _look_at_leases(self) -> None:
        """Note a leader that would answer by its lease while another one leads a newer term of its group.

        That is told at the end, unless a client was told something stale, which is worse.
        """
        leaders = [replica for replica in self.replicas.values() if replica.raft.is_leader]
        for old in leaders:
            for new in leaders:
                if (
                    old.raft.term < new.raft.term
                    and old.raft.members.group == new.raft.members.group
                    and old.raft.leader.has_lease(self.hosts[old.id].clock())
                ):
                    self.broken_lease = (
                        f"replica {old.id} has a lease in term {old.raft.term}, and replica {new.id} leads "
                        f"term {new.raft.term}"
                    )
                    self.note("violation", self.broken_lease)

    def _has_stopped(self, replica: Replica, host: Host) -> None:
        """For a reason that the schedule knows, or it is a violation."""
        if replica.status.role == "removed":
            self.removed.add(replica.id)
            self.note("removed", f"replica {replica.id}")
        elif replica.id in self.places.instead and (replica.status.error or "").startswith("Refusal"):
            self.counts["refused"] += 1
            self.note("refused", f"replica {replica.id}")
            self.on_refused(replica.id)
        elif host.disk.failed:
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

    # Who is there

    def any_replica(self, fraction: float) -> tuple[Replica, float] | None:
        """One that runs, and its time."""
        members = sorted(self.replicas)
        if fraction < 0.4:  # often one that believes to lead: there may be two
            believers = [member for member in members if self.replicas[member].status.role == "leader"]
            members, fraction = believers or members, fraction / 0.4
        if not members:
            return None
        member = members[int(fraction * len(members)) % len(members)]
        self.hosts[member].wake(self.now)
        return self.replicas[member], self.hosts[member].clock()

    def pick(self, who: int) -> int | None:
        """The leader, or one of those that run; ``None`` if nobody does."""
        members = sorted(self.replicas)
        if not members:
            return None
        if who == LEADER and (leader := self.leader) is not None:
            return leader.id
        return members[who % len(members)]

    def pick_first(self, who: int) -> int:
        """One of the first members, whether it runs or not."""
        return self.first_members[who % len(self.first_members)]

    def pick_in_place(self, who: int) -> int | None:
        """The same as ``pick``, if it runs with the newest directory that it has ever had."""
        member = self.pick(who)
        return member if member is not None and self.places.holds_its_own(member) else None

    def voters(self) -> set[int]:
        """As the leader has them; none without a leader."""
        leader = self.leader
        return set(leader.raft.members.voters) if leader is not None else set()

    def remaining(self) -> dict[bytes, RaftLog]:
        """The logs of all disks that are not lost."""
        return {disk: log for disk, log in self.disks.items() if disk in self.places.path_of}

    def deciding(self) -> list[Members]:
        """Each set of members that may decide something now."""
        return list(self.invariants.deciding(self.remaining()))

    # The network

    def leaving(self, host: int, to: int, message: Message) -> Iterable[Message]:
        """The message itself, checked; or a damaged one."""
        replica = self.replicas.get(host) or self.doubles.get(host)
        if replica is not None:
            self._check(self.invariants.sending, replica, to, message, self.hosts[host].clock())
        if isinstance(message, SnapshotChunk) and self.damage_in is not None:
            self.damage_in -= 1
            if self.damage_in < 0:
                self.damage_in = None
                self.counts["damage"] += 1
                return (self._damaged(message, to),)
        return (message,)

    def _damaged(self, message: SnapshotChunk, to: int) -> SnapshotChunk:
        self.note("damage", f"chunk {message.chunk.number} to {to}")
        data = bytes([message.chunk.data[0] ^ 1]) + message.chunk.data[1:]
        return msgspec.structs.replace(message, chunk=msgspec.structs.replace(message.chunk, data=data))

    def describe(self, message: Message) -> str:
        """A message in a few words."""
        return describe(message)

    def _delivery(self, sender: int, receiver: int, message: Message) -> float | None:
        delay = super()._delivery(sender, receiver, message)
        if delay is None or (late := self.late.get(receiver)) is None:
            return delay
        self.hosts[receiver].wake(self.now + delay + late)
        return delay + late
