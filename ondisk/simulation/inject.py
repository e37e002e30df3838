"""Faults of hosts, disks, clocks and the network, begun in a group of running replicas; and load.

A function a kind, ``BEGIN``: it begins the fault and returns what ends it, ``True`` if nothing has to, or
``None`` if there was nothing to do.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Mapping
from concurrent.futures import Future
from functools import partial

from ondisk import diskkv
from ondisk.simulation.checked import CheckedHosts
from ondisk.simulation.clients import REQUEST_SECONDS, hot_key, record_outcome, when_done
from ondisk.simulation.faults import LEADER, Fault
from ondisk.simulation.world import LATENCY
from ondisk.statemachine import Result
from ondisk.testing.crashing import Point

_HOT_SECONDS = 0.05  # between two reads of a leader whose answers are late
ARMED = ("crash in a write", "disk error", "damage")  # these wait for an occasion, and count when it comes

Begun = Callable[[], None] | bool | None
Begin = Callable[[CheckedHosts, int, Fault], Begun]  # the second is the number of the fault in its schedule

# Hosts


def crash(group: CheckedHosts, number: int, fault: Fault) -> Begun:
    """The power fails, and comes back."""
    if (member := group.pick(fault.who)) is None:
        return None
    group.hosts[member].disk.surviving = fault.size
    group.crash(member)
    return lambda: group.restart(member)


def crash_all(group: CheckedHosts, number: int, fault: Fault) -> Begun:
    """The power of all fails."""
    crashed = sorted(group.replicas)
    for member in crashed:
        group.hosts[member].disk.surviving = fault.size
        group.crash(member)

    def end() -> None:
        for member in crashed:
            group.restart(member)

    return end


def crash_in_a_write(group: CheckedHosts, number: int, fault: Fault) -> Begun:
    """The power fails between two steps of a write, if one comes before the fault ends."""
    if (member := group.pick(fault.who)) is None:
        return None
    disk = group.hosts[member].disk
    disk.arm(Point(int(fault.size) + 1))
    disk.surviving = fault.size % 1

    def end() -> None:
        disk.arm(None)
        group.restart(member)

    return end


def disk_error(group: CheckedHosts, number: int, fault: Fault) -> Begun:
    """A write fails, if one comes before the fault ends."""
    if (member := group.pick(fault.who)) is None:
        return None
    disk = group.hosts[member].disk
    disk.fail_in = int(fault.size)

    def end() -> None:
        disk.fail_in = None
        group.restart(member)

    return end


def pause(group: CheckedHosts, number: int, fault: Fault) -> Begun:
    """No processor for a while."""
    if (member := group.pick(fault.who)) is None:
        return None
    host = group.hosts[member]
    host.paused = True
    return lambda: setattr(host, "paused", False)


def slow_disk(group: CheckedHosts, number: int, fault: Fault) -> Begun:
    """Each sync takes long."""
    if (member := group.pick(fault.who)) is None:
        return None
    disk = group.hosts[member].disk
    disk.sync_seconds = fault.size
    return lambda: setattr(disk, "sync_seconds", 0.0)


def skew(group: CheckedHosts, number: int, fault: Fault) -> Begun:
    """A clock runs at another speed."""
    if (member := group.pick(fault.who)) is None:
        return None
    clock = group.hosts[member].clock
    clock.run_at(fault.size)
    return lambda: clock.run_at(1.0)


def late_start(group: CheckedHosts, number: int, fault: Fault) -> Begun:
    """Nothing happens now: who is late was not started, and is when this ends."""
    return lambda: group.restart(group.pick_first(fault.who))


# The network


def partition(group: CheckedHosts, number: int, fault: Fault) -> Begun:
    """Two groups of replicas do not hear each other."""
    members = sorted(group.replicas)
    if fault.who == LEADER:
        here = {group.pick(LEADER)}
    else:
        here = {member for place, member in enumerate(members) if fault.who >> place & 1}
    pairs = [(a, b) for a in members for b in members if (a in here) != (b in here)]
    return _without(group, group.network.cut, pairs)


def cut(group: CheckedHosts, number: int, fault: Fault) -> Begun:
    """One way of a link is cut."""
    return _without(group, group.network.cut, _link(group, fault))


def stall(group: CheckedHosts, number: int, fault: Fault) -> Begun:
    """What is sent one way of a link arrives when this ends."""
    return _without(group, group.network.stall, _link(group, fault))


def _link(group: CheckedHosts, fault: Fault) -> list[tuple[int, int]]:
    sender, receiver = group.pick(fault.who), group.pick(fault.other)
    return [] if sender is None or receiver is None or sender == receiver else [(sender, receiver)]


def _without(group: CheckedHosts, take: Callable[..., None], pairs: list[tuple[int, int]]) -> Begun:
    if not pairs:
        return None
    take(*pairs)
    return lambda: group.network.heal(*pairs)


def loss(group: CheckedHosts, number: int, fault: Fault) -> Begun:
    """A part of all messages is lost."""
    group.loss = fault.size
    return lambda: setattr(group, "loss", 0.0)


def latency(group: CheckedHosts, number: int, fault: Fault) -> Begun:
    """Messages take longer, or less long."""
    group.latency = fault.size
    return lambda: setattr(group, "latency", LATENCY)


def damage(group: CheckedHosts, number: int, fault: Fault) -> Begun:
    """A chunk of a snapshot arrives damaged, however long that takes: few are under way at any one time."""
    group.damage_in = fault.other
    return True


def late_answers(group: CheckedHosts, number: int, fault: Fault) -> Begun:
    """A leader hears what was said long ago; then nobody hears it, and another one is elected.

    Meanwhile both are asked: the old one must not take an old answer for a new one.
    """
    leader = group.leader
    if leader is None:
        return None
    member, rng = leader.id, group.rng("late answers", number)
    group.late[member] = fault.size
    links = [(member, other) for other in sorted(group.replicas) if other != member]
    group.after(fault.size + 0.2, partial(group.network.cut, *links))
    begins = fault.size + 1.2
    for ask in range(int(1.5 / _HOT_SECONDS)):
        both = partial(ask_both, group, f"{number}.{ask}", member, rng)
        group.after(begins + ask * _HOT_SECONDS, both)

    def end() -> None:
        group.late.pop(member, None)
        group.network.heal(*links)

    return end


def ask_both(group: CheckedHosts, name: str, member: int, rng: random.Random, *, lease: bool = False) -> None:
    """Write by way of who leads the newest term, and read by way of this one."""
    newest, old = group.leader, group.replicas.get(member)
    history, key = group.history, hot_key(group.elapsed, rng.random())
    if newest is not None and newest is not old and rng.random() < 0.4:
        begun = history.begin(f"writer {name}", "put", key, name, at=group.elapsed)
        deadline = group.hosts[newest.id].clock() + REQUEST_SECONDS
        when_done(newest.propose(diskkv.put(key, name), deadline), partial(_note_put, group, begun), group)
        group.hosts[newest.id].wake(group.now)
    if old is not None:
        begun = history.begin(f"reader {name}", "get", key, at=group.elapsed)
        barrier = old.read_barrier(group.hosts[member].clock() + REQUEST_SECONDS, lease=lease)

        def look(ended: Future[None]) -> None:
            record_outcome(history, begun, ended, lambda _: old.lookup(diskkv.get(key)), group.elapsed)

        when_done(barrier, look, group)
        group.hosts[member].wake(group.now)


# Load


def burst(group: CheckedHosts, number: int, fault: Fault) -> Begun:
    """Many puts at once, each of a key of its own: an acknowledged one that is lost shows at the end."""
    if (member := group.pick(fault.who)) is None:
        return None
    deadline = group.hosts[member].clock() + REQUEST_SECONDS
    for count in range(int(fault.size)):
        key = f"b{number}.{count}"
        begun = group.history.begin(f"burst {number}", "put", key, "v", at=group.elapsed)
        future = group.replicas[member].propose(diskkv.put(key, "v"), deadline)
        when_done(future, partial(_note_put, group, begun), group)
    group.hosts[member].wake(group.now)
    return True


def _note_put(group: CheckedHosts, begun: int, ended: Future[Result]) -> None:
    record_outcome(group.history, begun, ended, lambda result: result.value, group.elapsed)


def compact(group: CheckedHosts, number: int, fault: Fault) -> Begun:
    """A log is made as short as it can be."""
    if (member := group.pick(fault.who)) is None:
        return None
    group.replicas[member].compact()
    group.hosts[member].wake(group.now)
    return True


BEGIN: Mapping[str, Begin] = {
    "crash": crash,
    "crash in a write": crash_in_a_write,
    "disk error": disk_error,
    "crash all": crash_all,
    "pause": pause,
    "partition": partition,
    "cut": cut,
    "stall": stall,
    "loss": loss,
    "latency": latency,
    "slow disk": slow_disk,
    "skew": skew,
    "burst": burst,
    "compact": compact,
    "damage": damage,
    "late answers": late_answers,
    "late start": late_start,
}
