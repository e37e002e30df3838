"""The operator: what a person does about a group. Adds and removes members, rebuilds, and imports.

When a majority of the disks is lost, an import of what the newest survivor has is all that is left: what was
acknowledged and is not in there may be gone, and another epoch of the books begins.
"""

from __future__ import annotations

import shutil
import threading
from collections.abc import Callable, Mapping
from concurrent.futures import Future
from functools import partial
from pathlib import Path

from ondisk.raft.log import RaftLog
from ondisk.raft.members import Members
from ondisk.raft.messages import AddReplica, Change, Chunk, MoveReplica, RemoveReplica, TransferLeadership
from ondisk.simulation.checked import CheckedHosts
from ondisk.simulation.clients import REQUEST_SECONDS, SessionClient
from ondisk.simulation.connections import second_of
from ondisk.simulation.faults import LEADER, Fault
from ondisk.simulation.inject import Begin, Begun
from ondisk.simulation.inject_directories import begin_empty, must_not_start
from ondisk.simulation.machine import PaddedKV, content
from ondisk.simulation.verbs import is_in_history
from ondisk.snapshot.restore import import_snapshot
from ondisk.snapshot.stream import Header, Writer, make_header, write_file
from ondisk.statemachine import Result

MOST_MEMBERS = 5
_FIRST_PORT = 20_000  # of the addresses to which replicas move
_LOOK_AGAIN = 0.5  # seconds until a change is asked for that could not be now
_HOLD_SECONDS = 0.5  # in which nobody but a learner answers its leader
_IMPORT_SECONDS = 3.0  # until a person has seen that a majority of the disks is lost, and imports
_REPAIR_SECONDS = 1.0  # until a person has seen that a replica was refused


class Operator:
    """One person, and one group."""

    def __init__(self, group: CheckedHosts) -> None:
        self._group = group
        self._next_member = len(group.first_members) + 1
        self._changing: Future[Result] | None = None
        self._repairing: set[int] = set()  # who was refused, and will catch up from nothing
        self.begin: Mapping[str, Begin] = {  # what the schedule asks for
            "transfer": self._transfer,
            "join": self._join,
            "remove": self._remove,
            "move": self._move,
            "learner again": self._learner_again,
        }

    # Changes of the members

    def _transfer(self, group: CheckedHosts, number: int, fault: Fault) -> Begun:
        voters = sorted(group.voters())
        return self._change(TransferLeadership(voters[fault.other % len(voters)])) if voters else None

    def _join(self, group: CheckedHosts, number: int, fault: Fault) -> Begun:
        if not self._may_change() or len(group.voters()) >= MOST_MEMBERS:
            return None
        member = self._next_member
        self._next_member += 1
        group.start(member)
        return self._change(AddReplica(member))

    def _remove(self, group: CheckedHosts, number: int, fault: Fault) -> Begun:
        voters = sorted(group.voters())
        if not self._may_change() or len(voters) <= min(3, len(group.first_members)):
            return None
        return self._change(RemoveReplica(voters[fault.who % len(voters)]))

    def _move(self, group: CheckedHosts, number: int, fault: Fault) -> Begun:
        """A replica starts again at another address, and then the group is told."""
        member = group.pick_in_place(fault.who)
        if member is None or member not in group.voters() or not self._may_change():
            return None
        group.stop(member)
        group.start(member)
        address, epoch = f"127.0.0.1:{_FIRST_PORT + number}", group.epoch

        def tell() -> None:
            if group.calm or group.epoch != epoch:
                return
            if not self._may_change() or self._change(MoveReplica(member, address)) is None:
                group.after(_LOOK_AGAIN, tell)

        return tell

    def _learner_again(self, group: CheckedHosts, number: int, fault: Fault) -> Begun:
        """Add a replica, which begins again with an empty directory in the moment in which the leader counts
        what the first one holds; that one comes back when the group has decided about it.

        Nobody else answers just then, so that the leader cannot make it a voter before it hears of that.
        """
        member = self._next_member
        if self._join(group, number, fault) is None:
            return None
        places = group.places
        put_back: list[Callable[[], None]] = []

        def is_counted() -> bool:
            leader = group.leader
            return (
                leader is not None
                and member in leader.raft.members.learners
                and leader.raft.match_index.get(member, 0) > 0
            )

        def begin_again() -> None:
            if group.calm or member not in group.replicas or not places.holds_its_own(member):
                return
            others = sorted(group.voters() - {group.pick(LEADER)})
            for other in others:
                group.hosts[other].paused = True
            group.after(_HOLD_SECONDS, partial(self._go_on, others))
            group.counts["learner began again"] += 1
            put_back.append(begin_empty(group, number, member))

        def end() -> None:
            for put in put_back:
                put()

        group.when(is_counted, begin_again, fault.lasts / 2)
        return end

    def _go_on(self, others: list[int]) -> None:
        for other in others:
            self._group.hosts[other].paused = False
        self._group.wake_all()

    def _change(self, change: Change) -> Begun:
        group = self._group
        if (member := group.pick(1 + self._next_member)) is None:
            return None
        deadline = group.hosts[member].clock() + 2 * REQUEST_SECONDS
        future = group.replicas[member].propose_change(change, deadline)
        if not isinstance(change, TransferLeadership):
            self._changing = future
        group.hosts[member].wake(group.now)
        return True

    def _may_change(self) -> bool:
        """Whether no change of the members that was asked for is under way."""
        return self._group.leader is not None and (self._changing is None or self._changing.done())

    # A directory that was refused

    def repair_later(self, member: int) -> None:
        """Somebody sees that a replica was refused. Who has put it in will take it away, if anybody will."""
        places = self._group.places
        places.away.add(member)  # another attempt would end alike
        if member not in self._repairing and not places.will_go(member):
            self._repairing.add(member)
            self._group.after(_REPAIR_SECONDS, partial(self._repair, self._group.epoch, member))

    def _repair(self, epoch: int, member: int) -> None:
        """A supervisor tries it again, and then a person deletes the directory."""
        group, places = self._group, self._group.places
        if group.epoch != epoch or member not in places.instead or member in group.replicas:
            self._repairing.discard(member)  # what was refused is not there any more
            return
        log = group.logs.get(member)
        if log is not None and log.identity is not None and log.identity.refused:
            must_not_start(group, member, "refused for good")
        self._repairing.discard(member)
        places.away.discard(member)
        group.end_second(second_of(member))
        group.lose(member)
        group.restart(member)

    # A majority of the disks is lost

    def look_at_losses(self) -> None:
        """Import soon, if nothing else helps."""
        group = self._group
        founding = self._could_found_anew()
        if not group.importing and (self._hopeless() or founding):
            group.importing = True
            group.note("lost", "a majority of the disks")
            for host in [*group.doubles]:  # an empty one could stand in for the last disk there is
                group.end_second(host)
            group.after(_IMPORT_SECONDS, partial(self._import, group.epoch))
        if group.importing and founding:
            group.after(0, partial(self._import, group.epoch))  # before another group begins to serve

    def _hopeless(self) -> bool:
        """Whether those who may decide have lost so many disks that they cannot any more."""
        group = self._group
        whole = {disk for disk in group.remaining() if not group.invariants.is_without_state(disk)}
        return any(
            2 * sum(members.disk_of(voter) in whole for voter in members.voters) <= len(members.voters)
            for members in group.deciding()
        )

    def _could_found_anew(self) -> bool:
        """Whether so many directories are empty that they found another group beside the one there was."""
        if not any(log.members.group for log in self._group.disks.values()):
            return False
        all_told = self._group.places.told
        return any(
            told and all(all_told.get(other) == told and self._is_empty(other) for other in told)
            for told in all_told.values()
        )

    def _is_empty(self, member: int) -> bool:
        log = self._group.logs.get(member)
        return member not in self._group.removed and (log is None or not log.members.group)

    def _import(self, epoch: int) -> None:
        """What an operator does: stop what is left, and begin a new group with what the newest one has."""
        group = self._group
        if group.epoch != epoch:
            return
        for member in sorted(group.replicas):
            group.hosts[member].disk.mend()
            group.replicas.pop(member).close()
        for number in [*group.doubles]:
            group.end_second(number)
        snapshot = group.directory / f"import-{epoch}"
        index, term, contents = self._export_newest(snapshot)
        for path in group.directory.iterdir():
            if path != snapshot:
                shutil.rmtree(path)
        for host in group.hosts.values():
            host.paused = False
        group.importing, self._changing = False, None
        self._repairing.clear()
        group.disks.clear()
        group.logs.clear()
        group.places.clear()
        group.places.told.update(dict.fromkeys(group.first_members, group.first_members))
        group.removed = set(group.hosts) - set(group.first_members)
        group.invariants.begin_anew(index, term)
        recorded = {key: value for key, value in contents.items() if is_in_history(key)}
        group.history.begin_epoch(recorded, group.elapsed)
        group.counts["imports"] += 1
        group.note("import", f"entry {index} of term {term}")
        if index:
            import_snapshot(snapshot, group.directory, members=group.first_members, state_machine=PaddedKV)
            snapshot.unlink()
        for member in group.first_members:
            group.start(member)
        for client in group.clients:
            if isinstance(client, SessionClient):
                client.begin_anew()

    def look_at_import_later(self, member: int) -> None:
        """See after a while whether a replica that holds an import has come to a group."""
        self._group.after(_IMPORT_SECONDS, partial(self._look_at_import, self._group.epoch, member))

    def _look_at_import(self, epoch: int, member: int) -> None:
        """Who holds an import, and has seen the others found their group without it, is to be fed by them.

        And who has lost its import before there was a group is given it again: the status of both says so.
        """
        group, replica = self._group, self._group.replicas.get(member)
        if group.epoch != epoch or replica is None or replica.log is None or replica.raft.members.group:
            return
        if not any(log.members.group for log in group.remaining().values()):
            if any(not self._holds_import(other) for other in group.first_members):
                self._import(epoch)
                return
        elif "holds an import" in (replica.status.error or ""):
            group.crash(member)
            group.lose(member)
            group.restart(member)
        self.look_at_import_later(member)

    def _holds_import(self, member: int) -> bool:
        log = self._group.logs.get(member)
        return log is not None and log.identity is not None and bool(log.identity.seed)

    def _export_newest(self, snapshot: Path) -> tuple[int, int, dict[bytes, bytes]]:
        """Write the newest state into a file; return its index and term, and what it holds."""
        newest: tuple[int, int, Members, Path] = 0, 0, Members(()), self._group.directory
        for path in sorted(self._group.places.path_of.values()):
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
