"""Faults of directories: lost, copied, swapped, put aside and back, and put in from elsewhere.

A function a kind, as in ``inject``.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable, Mapping

from ondisk import diskkv
from ondisk.raft.log import RaftLog
from ondisk.raft.members import Members
from ondisk.raft.records import REGULAR, LogEntry
from ondisk.simulation.checked import CheckedHosts
from ondisk.simulation.faults import Fault
from ondisk.simulation.inject import Begin, Begun
from ondisk.simulation.invariants import Violation
from ondisk.simulation.places import A_COPY, A_STRANGER, ANOTHERS, THE_OLD_ONE

_LOOK_AGAIN = 0.5  # seconds until a person tries again what could not be done now


def wipe(group: CheckedHosts, number: int, fault: Fault) -> Begun:
    """A directory is lost, and its replica starts again with none."""
    if (member := group.pick(fault.who)) is None or group.places.will_go(member):
        return None
    group.crash(member)
    group.lose(member)
    return lambda: group.restart(member)


def lose_state(group: CheckedHosts, number: int, fault: Fault) -> Begun:
    """The state is lost, and the log is not."""
    places = group.places
    if (member := group.pick(fault.who)) is None or member in places.instead:
        return None
    group.crash(member)
    shutil.rmtree(places.of(member) / "state")
    group.invariants.lost_state(places.disk_in[member])
    group.start(member)
    group.on_loss()
    return True


def copy(group: CheckedHosts, number: int, fault: Fault) -> Begun:
    """A copy of a directory is put back later, when the others know that it is an old one."""
    places = group.places
    if (member := group.pick_in_place(fault.who)) is None:
        return None
    group.stop(member)
    kept = group.directory / f"copy-{number}"
    shutil.copytree(places.of(member), kept)
    identity = group.logs[member].identity
    assert identity is not None
    boot, disk, epoch = identity.boot, places.disk_in[member], group.epoch
    group.start(member)

    def put_back() -> None:
        if group.calm or group.epoch != epoch or places.disk_in.get(member) != disk or member in places.away:
            return
        if not known_to_be_old(group, member, disk, boot):
            group.after(_LOOK_AGAIN, put_back)
            return
        group.counts["put back"] += 1
        if member in group.replicas:
            group.crash(member)
        group.lose(member)
        kept.rename(places.of(member))
        places.instead[member] = A_COPY
        group.restart(member)

    return put_back


def known_to_be_old(group: CheckedHosts, member: int, disk: bytes, boot: int) -> bool:
    """Whether all others know of a later life, durably. Else nobody can tell that it is an old copy, and
    it is as good as the newest one to everybody who has not heard of that (docs/simulation.md).
    """
    others = {voter for members in group.deciding() for voter in members.voters} - {member}
    logs = [group.logs.get(other) for other in others if other in group.replicas]
    return len(logs) == len(others) > 0 and all(
        log is not None and log.synced_boot(disk) > boot for log in logs
    )


def aside(group: CheckedHosts, number: int, fault: Fault) -> Begun:
    """Somebody starts a replica with an empty directory, and puts the old one back later."""
    if (member := group.pick_in_place(fault.who)) is None or len(group.voters()) < 3:
        return None
    return begin_empty(group, number, member)


def begin_empty(group: CheckedHosts, number: int, member: int) -> Callable[[], None]:
    """Start this one with an empty directory; return what puts the one that it had in its place again."""
    places, epoch = group.places, group.epoch
    group.stop(member)
    disk, kept = places.put_aside(member, f"aside-{number}")
    places.aside.add(kept.name)
    places.told[member] = group.named_at_first(member)
    group.logs.pop(member, None)
    group.on_loss()
    group.start(member)

    def put_back() -> None:
        if group.epoch != epoch:
            return
        if places.will_go(member):
            group.after(_LOOK_AGAIN, put_back)
            return
        if member in group.replicas:
            group.crash(member)
        places.aside.discard(kept.name)
        group.lose(member)
        places.put_back(member, disk, kept)
        places.instead[member] = THE_OLD_ONE
        places.away.discard(member)
        group.restart(member)

    return put_back


def swap(group: CheckedHosts, number: int, fault: Fault) -> Begun:
    """Two replicas are tried with the directory of each other; neither must start."""
    places = group.places
    first, second = group.pick_in_place(fault.who), group.pick_in_place(fault.other)
    if first is None or second is None or first == second:
        return None
    epoch = group.epoch
    for member in (first, second):
        group.stop(member)
    places.exchange(first, second)
    for member in (first, second):
        places.instead[member] = ANOTHERS
        places.away.add(member)
        must_not_start(group, member, "swapped directories")

    def swap_back() -> None:
        if group.epoch != epoch:
            return
        places.exchange(first, second)
        for member in (first, second):
            places.instead.pop(member, None)
            places.away.discard(member)
            group.restart(member)

    return swap_back


def must_not_start(group: CheckedHosts, member: int, rule: str) -> None:
    """Try it, as a supervisor does: it must be refused by an error that says why."""
    group.places.away.discard(member)
    group.start(member)
    group.places.away.add(member)
    if member in group.replicas:
        raise Violation(rule, f"replica {member} was started with {group.places.instead[member]}")


def stranger(group: CheckedHosts, number: int, fault: Fault) -> Begun:
    """A directory of another group stands in a place for a while."""
    places = group.places
    if (member := group.pick_in_place(fault.who)) is None:
        return None
    epoch, told = group.epoch, places.told.get(member, ())
    group.stop(member)
    disk, kept = places.put_aside(member, f"aside-{number}")
    _make_stranger(group, number, member)
    places.instead[member] = A_STRANGER
    places.told[member] = ()
    group.start(member)

    def put_back() -> None:
        if group.epoch != epoch:
            return
        if member in group.replicas:
            group.crash(member)
        shutil.rmtree(places.of(member))
        places.put_back(member, disk, kept)
        places.instead.pop(member, None)
        places.told[member] = told
        places.away.discard(member)
        group.restart(member)

    return put_back


def _make_stranger(group: CheckedHosts, number: int, member: int) -> None:
    """A directory of a group that has the same numbers, other disks, and a higher term."""
    rng = group.rng("stranger", number)
    numbers = tuple(sorted({member, 1, 2, 3}))
    log = RaftLog(group.places.of(member) / "log", replica_id=member, rng=rng)
    disks = {other: rng.randbytes(16) for other in numbers} | {member: log.disk_id}
    log.begin_group(Members(numbers, group=rng.randbytes(16), disks=tuple(disks.items())))
    log.append([LogEntry(index, 40, REGULAR + diskkv.put("x", "strange")) for index in range(1, 500)])
    log.set_hard_state(50, None)
    log.close()


BEGIN: Mapping[str, Begin] = {
    "wipe": wipe,
    "lose state": lose_state,
    "copy": copy,
    "aside": aside,
    "swap": swap,
    "stranger": stranger,
}
