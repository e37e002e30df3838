"""The verdict: when all faults have ended, everybody must agree, and hold what was acknowledged."""

from __future__ import annotations

from ondisk.linearizability import Undecided, check
from ondisk.simulation.checked import CheckedHosts
from ondisk.simulation.invariants import Violation
from ondisk.simulation.machine import content
from ondisk.simulation.world import LATENCY

CALM_SECONDS = 60.0  # within so many everybody must agree once all faults have ended


def end_all_faults(group: CheckedHosts) -> None:
    """From now on nothing is wrong any more but what is lost."""
    group.calm = True
    group.late.clear()
    group.connections.mend_all()
    group.network.heal()
    group.loss, group.latency = 0.0, LATENCY
    for host in group.hosts.values():
        host.paused = False
        host.disk.mend()
        host.clock.run_at(1.0)
    group.damage_in = None
    for member in sorted(group.hosts):
        group.restart(member)
    group.wake_all()
    group.note("calm", "all faults have ended")


def wait_for_agreement(group: CheckedHosts) -> None:
    """Let time pass until everybody agrees. Raises ``Violation`` if that takes too long."""
    quiet = group.now + 5.0
    if not group.advance(group.now + CALM_SECONDS, lambda: group.now > quiet and agrees(group)):
        raise Violation("progress", f"no agreement in {CALM_SECONDS:g} s without faults: {_statuses(group)}")


def agrees(group: CheckedHosts) -> bool:
    """Whether there is a leader, and all members have applied all that any log holds."""
    leader = group.leader
    if leader is None or leader.raft.members.learners or not leader.raft.leader.committed_in_current_term():
        return False
    members, places = leader.raft.members, group.places
    for member in sorted(places.instead):  # it was put back in time, and belongs there
        back = places.disk_in.get(member) == members.disk_of(member) != b""
        if back or member not in members.all:  # what becomes of who is out is nobody's business
            del places.instead[member]
    if group.importing or group.doubles or places.away or places.instead or places.aside:
        return False
    for stranger in sorted(group.replicas.keys() - members.all):
        if stranger not in members.removed or not group.replicas[stranger].raft.members.group:
            group.replicas.pop(stranger).close()  # its addition was never committed, or taken back
            group.removed.add(stranger)
    return group.replicas.keys() == members.all and group.converged()


def _statuses(group: CheckedHosts) -> str:
    return "; ".join(
        f"{replica.id} {status.role} in term {status.term}, log to {status.last_index}, "
        f"applied {status.applied_index}" + (f" ({status.error})" if status.error else "")
        for replica in group.replicas.values()
        for status in (replica.status,)
    )


def conclude(group: CheckedHosts) -> None:
    """All replicas hold the same; what was acknowledged is there; the history has an explanation."""
    contents = {member: content(group.replicas[member].lookup) for member in sorted(group.replicas)}
    first, *others = contents
    for member in others:
        if contents[member] != contents[first]:
            different = dict(contents[first].items() ^ contents[member].items())
            raise Violation("equality", f"replicas {first} and {member} differ in {sorted(different)[:5]}")
    history = group.history
    prefix = history.key("")
    keys = {operation.key for operation in history.operations if operation.key.startswith(prefix)}
    for key in sorted(key.removeprefix(prefix) for key in keys):
        begun = history.begin("the end", "get", key, at=group.elapsed)
        history.ok(begun, contents[first].get(key.encode()), at=group.elapsed)
    try:
        verdict = check(history.operations)
    except Undecided:
        group.counts["undecided"] += 1  # neither good nor bad: it must be seen, not taken for a success
        return
    if not verdict.linearizable:
        raise Violation("linearizability", f"no order explains {verdict.answer} on {verdict.key}")
    if group.broken_lease is not None:
        raise Violation("one leader in a lease", group.broken_lease)
