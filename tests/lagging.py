"""A follower that needs a snapshot, and the stream that it gets."""

from __future__ import annotations

import threading
from collections.abc import Callable

import pytest

from ondisk import diskkv
from ondisk.raft.messages import (
    SnapshotChunk,
)
from ondisk.replica import Replica
from ondisk.snapshot import stream
from tests.virtual import World

FOREVER = float("inf")


@pytest.fixture(autouse=True)
def _small_chunks(monkeypatch: pytest.MonkeyPatch) -> None:
    """A small state has many chunks."""
    monkeypatch.setattr(stream, "CHUNK_BYTES", 100)


def fill(world: World, leader: Replica, count: int, *, key: str = "k", size: int = 100) -> None:
    """Put ``count`` keys and wait until they are acknowledged."""
    futures = [leader.propose(diskkv.put(f"{key}{n}", "v" * size), FOREVER) for n in range(count)]
    world.run_until(lambda: all(future.done() for future in futures))


def compact(world: World, *replicas: Replica) -> None:
    """Drop all that these replicas' states hold."""
    for each in replicas:
        future = each.compact()
        world.run_until(future.done)


def lagging(world: World) -> tuple[Replica, Replica, Replica]:
    """The leader, a follower that needs a snapshot when its links are healed, and the third replica."""
    leader = world.elect()
    fill(world, leader, 10, key="old")
    world.run(0.5)
    late, third = (world.replicas[member] for member in world.others(leader.id))
    world.network.isolate(late.id)
    fill(world, leader, 100)
    world.run(1.2)  # until it does not count as somebody who answers
    compact(world, leader, third)
    assert leader.log.base_index > late.log.last_index
    return leader, late, third


def chunks(world: World) -> list[SnapshotChunk]:
    return [message for message in world.messages(SnapshotChunk) if isinstance(message, SnapshotChunk)]


def caught_up(late: Replica, leader: Replica) -> Callable[[], bool]:
    return lambda: late.raft.applied_index == leader.raft.applied_index


def until_chunk(world: World, number: int) -> None:
    """Run until this chunk has been sent."""
    world.run_until(lambda: any(message.chunk.number >= number for message in chunks(world)))


def leftovers(world: World, *members: int) -> list[str]:
    """What must not be there when no snapshot is under way: threads, views, databases, jobs."""
    found = [thread.name for thread in threading.enumerate() if thread.name.startswith("ondisk-")]
    for member in members or world.replicas:
        state = world.folder(member) / "state"
        found += [str(path) for path in state.glob("view-*")] + [str(path) for path in state.glob("db-*")][1:]
        if member in world.replicas and world.replicas[member].log is not None:
            found += [str(job) for job in world.replicas[member]._open_streaming._jobs()]
            found += map(str, world.replicas[member].machine._views)
    return found
