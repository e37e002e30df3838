"""Worlds whose clients read by leases: clocks that drift, and what hurts a lease that breaks a rule.

Each of these faults is a whole story, because chance would not bring its parts together in time: a leader
loses its office and does not hear of it, while somebody reads by way of it.
"""

from __future__ import annotations

import math
import random
from collections.abc import Callable, Mapping, Sequence
from functools import partial

from ondisk.raft.messages import TransferLeadership
from ondisk.simulation.checked import CheckedHosts
from ondisk.simulation.clients import REQUEST_SECONDS
from ondisk.simulation.faults import LEADER, LEASE_KINDS, Fault
from ondisk.simulation.inject import Begin, Begun, ask_both

CLOCK_DRIFT = 0.25  # the bound that the replicas are told: clocks at 0.9 and at 1.1 of their speed keep it
_HOT_SECONDS = 0.02  # between two questions, while there may be two leaders
_ASKED_SECONDS = 2.0  # for so long

STORIES: Mapping[str, float] = {  # how often each is drawn, compared with the others
    "left behind": 3,
    "hang up": 2,
    "restart around": 2,
    "late entries": 3,
    "late handover": 2,
}


def draw(rng: random.Random, seconds: float, drift: float) -> tuple[Fault, ...]:
    """For so many virtual seconds, beside all other faults. While one clock counts a second, another one
    counts ``1 + drift`` at most.
    """
    faults, at = [], 0.5
    fastest = math.sqrt(1 + drift)
    while (at := at + 6.0 * rng.random()) < seconds - 0.001:
        rate = rng.choice((1 / fastest, fastest, fastest ** rng.uniform(-1, 1)))
        lasts = 4.0 + 16.0 * rng.random()
        faults.append(Fault(round(at, 3), "skew", round(lasts, 3), rng.randrange(3), size=round(rate, 4)))
    at = 2.0
    while (at := at + 3.0 + 3.0 * rng.random()) < seconds - 0.001:
        (name,) = rng.choices(tuple(STORIES), tuple(STORIES.values()))
        kind = LEASE_KINDS[name]
        lasts, other = rng.uniform(*kind.lasts), rng.randrange(1, 32)
        size = round(kind.size(rng), 3)
        faults.append(Fault(round(at, 3), name, round(lasts, 3), LEADER, other, size))
    return tuple(faults)


def _others(group: CheckedHosts, member: int) -> list[int]:
    return [other for other in sorted(group.replicas) if other != member]


def _deafen(group: CheckedHosts, member: int, others: Sequence[int]) -> None:
    """What the others say does not reach this one any more."""
    if member in group.replicas:
        group.network.cut(*((other, member) for other in others))


def _ask(group: CheckedHosts, number: int, member: int, after: float) -> None:
    """Read by way of this one again and again, and write by way of who leads by then."""
    rng = group.rng("leases", number)
    for ask in range(int(_ASKED_SECONDS / _HOT_SECONDS)):
        both = partial(ask_both, group, f"{number}.{ask}", member, rng, lease=True)
        group.after(after + ask * _HOT_SECONDS, both)


def _healing(group: CheckedHosts, member: int, others: Sequence[int]) -> Callable[[], None]:
    links = [pair for other in others for pair in ((member, other), (other, member))]
    return lambda: group.network.heal(*links)


def left_behind(group: CheckedHosts, number: int, fault: Fault) -> Begun:
    """The leader is cut off, both ways."""
    if (leader := group.leader) is None or not (others := _others(group, leader.id)):
        return None
    group.network.cut(*((leader.id, other) for other in others))
    _deafen(group, leader.id, others)
    _ask(group, number, leader.id, 0.0)
    return _healing(group, leader.id, others)


def hang_up(group: CheckedHosts, number: int, fault: Fault) -> Begun:
    """The others see that the connection has ended: without leases, a reason to stand at once."""
    end = left_behind(group, number, fault)
    if not callable(end) or (leader := group.leader) is None:
        return end
    member = leader.id
    group.connections.break_off(member)
    group.wake_all()

    def mend() -> None:
        group.connections.mend(member)
        end()

    return mend


def restart_around(group: CheckedHosts, number: int, fault: Fault) -> Begun:
    """Who is started again does not remember what it has heard."""
    end = left_behind(group, number, fault)
    if not callable(end) or (leader := group.leader) is None:
        return end
    others = _others(group, leader.id)
    for other in others:
        group.hosts[other].disk.surviving = 1.0
        group.crash(other)
        group.after(fault.size, partial(group.restart, other))
    return end


def late_entries(group: CheckedHosts, number: int, fault: Fault) -> Begun:
    """Others agree to elect one of them. In the moment before they vote they hear the leader again, and it
    hears from some of them that they do, and then nothing more.
    """
    if (leader := group.leader) is None or not (others := _others(group, leader.id)):
        return None
    member, rng = leader.id, group.rng("late entries", number)
    unheard = rng.sample(others, len(others) // 2)
    group.network.cut(*((member, other) for other in others))
    _deafen(group, member, unheard)

    def somebody_stands() -> bool:
        return any(replica.raft.role == "candidate" for replica in group.replicas.values())

    def let_through() -> None:
        group.heal(*((member, other) for other in others))
        group.after(2.2 * group.latency, partial(_deafen, group, member, others))
        _ask(group, number, member, 0.0)

    group.when(somebody_stands, let_through, fault.lasts / 2)
    return _healing(group, member, others)


def late_handover(group: CheckedHosts, number: int, fault: Fault) -> Begun:
    """The word to stand is under way for long: at last the leader has given up, or has not."""
    if (leader := group.leader) is None or not (others := _others(group, leader.id)):
        return None
    member, to = leader.id, others[fault.other % len(others)]
    leader.propose_change(TransferLeadership(to), group.hosts[member].clock() + REQUEST_SECONDS)
    group.hosts[member].wake(group.now)
    group.after(0.02, lambda: group.network.stall((member, to)))
    group.after(fault.size + 0.02, lambda: group.heal((member, to)))
    group.after(fault.size + 0.02, partial(_deafen, group, member, others))
    _ask(group, number, member, fault.size)
    return _healing(group, member, others)


BEGIN: Mapping[str, Begin] = {
    "left behind": left_behind,
    "hang up": hang_up,
    "restart around": restart_around,
    "late entries": late_entries,
    "late handover": late_handover,
}
