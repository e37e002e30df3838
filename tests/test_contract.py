"""What a replica owes its state machine: which entries it hands over, and how far it claims to be durable."""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from pathlib import Path

from ondisk.diskkv import DiskKV, put
from ondisk.replica import Replica
from ondisk.statemachine import Entry, Result
from tests.virtual import World


class Watched(DiskKV):
    """Remembers what it was handed, batch by batch."""

    def __init__(self, path: Path) -> None:
        super().__init__(path)
        self.batches: list[list[int]] = []

    def update(self, entries: Sequence[Entry]) -> list[Result]:
        self.batches.append([entry.index for entry in entries])
        return super().update(entries)


def write(world: World, leader: Replica, keys: range) -> None:
    futures = [leader.propose(put(f"k{key}", "v"), world.now + 60) for key in keys]
    world.run_until(lambda: all(future.done() for future in futures))
    for future in futures:
        assert future.result().error is None


def level(world: World) -> Callable[[], bool]:
    return lambda: len({replica.status.applied_index for replica in world.replicas.values()}) == 1


def test_of_a_batch_that_straddles_the_open_index_only_the_rest_is_handed_over(world: World) -> None:
    """The leader sends all entries since the beginning in one message, and half of them are in the state."""
    leader = world.elect()
    victim = world.others(leader.id)[0]
    write(world, leader, range(30))
    world.run_until(level(world))
    world.run(1.5)  # the state machines sync
    write(world, leader, range(30, 60))
    world.run_until(level(world))
    world.crash(victim)
    world.machines[victim] = Watched
    replica = world.start(victim)
    opened = replica.opened_index
    world.run_until(lambda: replica.status.applied_index >= leader.status.applied_index)
    machine = replica.machine
    assert isinstance(machine, Watched)
    assert 30 <= opened < leader.status.applied_index
    handed = [index for batch in machine.batches for index in batch]
    assert handed == list(range(opened + 1, leader.status.applied_index + 1))
    assert len(machine.batches) < len(handed)  # in batches, one of which began in the middle


def test_a_replica_whose_snapshot_does_not_arrive_rests_between_its_steps(world: World) -> None:
    """Or it would take the processor from those who have something to do, for as long as that lasts."""
    leader = world.elect()
    victim = world.others(leader.id)[0]
    world.stop(victim)
    chance = random.Random(1)
    for key in range(30):
        leader.propose(put(f"k{key}", chance.randbytes(100_000)), world.now + 60)
    world.run(1.5)
    leader.compact()
    world.run(0.1)
    replica = world.start(victim)
    world.run_until(lambda: replica.status.streams)
    world.network.isolate(victim)
    waits = []
    until = world.now + 3
    while world.now < until:
        world.now += 0.01
        waits.append(replica.step())
    assert replica.status.streams  # it still waits for the rest
    assert sum(wait == 0 for wait in waits) < len(waits) / 10


def test_the_synced_index_never_moves_back(world: World) -> None:
    """Through updates, compactions, a crash and a restart, and a snapshot that replaces the state."""
    leader = world.elect()
    victim = world.others(leader.id)[0]
    seen: list[tuple[int, int]] = []

    def look() -> None:
        for status in (replica.status for replica in world.replicas.values()):
            assert status.first_index - 1 <= status.synced_index <= status.applied_index
            if status.id == victim:
                seen.append((status.synced_index, status.applied_index))

    def run(seconds: float) -> None:
        until = world.now + seconds
        while world.now < until:
            world.tick()
            look()

    for first in range(0, 200, 50):
        write(world, leader, range(first, first + 50))
        run(0.6)
        for replica in world.replicas.values():
            replica.compact()
        run(0.6)
    world.crash(victim)
    write(world, leader, range(200, 250))
    world.start(victim)
    run(2)
    world.crash(victim)
    write(world, leader, range(250, 300))
    world.run(2.5)
    for replica in world.replicas.values():
        replica.compact()
    world.run(0.1)
    assert leader.status.first_index > seen[-1][1] + 1  # only a snapshot helps
    world.start(victim)
    run(3)
    synced = [index for index, _ in seen]
    assert synced == sorted(synced)
    assert synced[-1] == leader.status.applied_index
