"""Faults of processes: a second one is started under the number of one that runs.

A function a kind, as in ``inject``.
"""

from __future__ import annotations

import random
import shutil
from collections.abc import Mapping
from pathlib import Path

from ondisk.simulation.checked import CheckedHosts
from ondisk.simulation.connections import number_of, second_of
from ondisk.simulation.faults import Fault
from ondisk.simulation.inject import Begin, Begun
from ondisk.simulation.inject_directories import known_to_be_old
from ondisk.simulation.places import THE_OLD_ONE


def start_second(group: CheckedHosts, member: int, folder: Path, *, copy: bool) -> int:
    """Start another process under the number of one that runs; return its host, where it is found.

    ``copy``: its directory is one of the same disk. Else it is empty, and another disk.
    """
    host = second_of(member)
    told = group.places.told.get(member, ()) if copy else group.named_at_first(member)
    replica = group.open(host, folder, told)
    log = replica.log
    assert log is not None
    group.removed.add(host)  # nobody looks after this host, and starts it again
    group.doubles[host], group.double_in[host] = replica, folder
    group.places.instead.setdefault(member, THE_OLD_ONE)  # who comes first may find its place taken
    if not copy:
        group.disks[log.disk_id], group.places.path_of[log.disk_id] = log, folder
    replica.tell(group)
    group.note("start", f"a second process as replica {member}, log to {log.last_index}")
    group.invariants.started(replica, copy=copy)
    for caller in [*group.replicas]:
        group.connections.connect(caller, host)
    group.wake_all()
    return host


def clone(group: CheckedHosts, number: int, fault: Fault) -> Begun:
    """A copy of a directory is opened as a second process beside the first one, when that is known to live
    on: each of the others hears now this one and now that one.

    Not of an only voter: it is a majority by itself, and so is its copy (docs/protocol.md).
    """
    if (member := group.pick_in_place(fault.who)) is None or second_of(member) in group.doubles:
        return None
    if group.voters() == {member}:
        return None
    group.stop(member)
    kept = group.directory / f"clone-{number}"
    shutil.copytree(group.places.of(member), kept)
    identity = group.logs[member].identity
    assert identity is not None
    boot, disk, epoch = identity.boot, group.places.disk_in[member], group.epoch
    group.start(member)

    def begin() -> None:
        same = group.epoch == epoch and group.places.disk_in.get(member) == disk
        if same and member in group.replicas and group.voters() != {member}:
            group.counts["clone opened"] += 1
            _take_turns(group, start_second(group, member, kept, copy=True), group.rng("clone", number))

    group.when(lambda: known_to_be_old(group, member, disk, boot), begin, fault.lasts / 2)

    def end() -> None:
        group.end_second(second_of(member))
        shutil.rmtree(kept, ignore_errors=True)  # it may not have come to that

    return end


def twin(group: CheckedHosts, number: int, fault: Fault) -> Begun:
    """A process with an empty directory is started under the number of one that runs.

    Not in a group of one: its only voter founds another group, whatever the protocol (docs/protocol.md).
    """
    member = group.pick_in_place(fault.who)
    if member is None or second_of(member) in group.doubles or member not in group.voters():
        return None
    if group.named_at_first(member) == (member,):
        return None
    host = start_second(group, member, group.directory / f"twin-{number}", copy=False)
    _take_turns(group, host, group.rng("twin", number))
    return lambda: group.end_second(host)


def _take_turns(group: CheckedHosts, host: int, rng: random.Random) -> None:
    """Both call the others again and again, and the last call counts."""
    if host not in group.doubles:
        return
    for caller in sorted(group.replicas):
        if number_of(host) != caller and rng.random() < 0.5:
            group.connections.connect(caller, host if rng.random() < 0.5 else number_of(host))
    group.after(0.05 + 0.3 * rng.random(), lambda: _take_turns(group, host, rng))


BEGIN: Mapping[str, Begin] = {"clone": clone, "twin": twin}
