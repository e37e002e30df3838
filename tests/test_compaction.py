"""Compaction: the state is durable first, and nobody misses what was dropped."""

from __future__ import annotations

import itertools
import threading
from collections.abc import Callable, Iterable
from pathlib import Path

import msgspec
import pytest

from ondisk import diskkv
from ondisk.diskkv import DiskKV
from ondisk.raft.messages import (
    AppendEntries,
    Message,
)
from ondisk.replica import compaction
from ondisk.statemachine import SnapshotView, SnapshotWriter
from tests.lagging import FOREVER, _small_chunks, caught_up, chunks, compact, fill
from tests.virtual import World

__all__ = ["_small_chunks"]  # fixtures


class ListeningKV(DiskKV):
    """Notes what it is asked to do."""

    def __init__(self, path: Path) -> None:
        super().__init__(path)
        self.calls: list[str] = []

    def sync(self) -> None:
        self.calls.append("sync")
        super().sync()

    def prepare_snapshot(self) -> diskkv.DiskKVView:
        self.calls.append("prepare")
        return super().prepare_snapshot()

    def save_snapshot(self, view: SnapshotView, writer: SnapshotWriter, stopped: threading.Event) -> None:
        self.calls.append("save")
        super().save_snapshot(view, writer, stopped)


@pytest.fixture
def alone(make_world: Callable[..., World]) -> World:
    """One replica with a listening machine."""
    return make_world(members=1, machine=ListeningKV)


def test_compaction_syncs_the_state_first_and_makes_no_snapshot(alone: World) -> None:
    """Metadata only: it calls neither prepare nor save, and it drops nothing before the state is durable."""
    leader = alone.elect()
    fill(alone, leader, 20)
    machine, log = leader.machine, leader.log
    assert isinstance(machine, ListeningKV) and log is not None
    machine.calls.clear()
    drop = log.compact
    log.compact = lambda index: (machine.calls.append(f"drop {index}"), drop(index))[1]  # type: ignore
    compact(alone, leader)
    assert machine.calls == ["sync", f"drop {machine._applied}"]


def test_compaction_never_passes_what_the_state_holds_when_it_is_reopened(alone: World) -> None:
    """Raft's own entries after the last command are no part of the index that open() returns."""
    leader = alone.elect()
    fill(alone, leader, 5)
    for _ in range(3):
        alone.crash(1)
        alone.start(1)
        leader = alone.elect()
    assert leader.raft.applied_index > leader.machine._applied
    compact(alone, leader)
    assert leader.log.base_index == leader.machine._applied
    alone.crash(1)
    leader = alone.start(1)
    assert leader.status.error is None and leader.opened_index == leader.log.base_index
    alone.elect()
    assert len(alone.content(1)) == 5


def test_compaction_never_passes_what_the_state_has_made_durable(world: World) -> None:
    """Whatever is applied meanwhile, a power cut finds the log where the state ends."""
    leader = world.elect()
    for number in range(20):
        leader.propose(diskkv.put(f"k{number}", "v"), FOREVER)
        for each in world.replicas.values():
            each.compact()
        world.run(0.01)
        for each in world.replicas.values():
            assert each.log.base_index <= each._compaction.synced_index
    for member in world.first_members:
        world.crash(member)
        reopened = world.start(member)
        assert reopened.status.error is None and reopened.log.base_index <= reopened.opened_index
    world.elect()
    world.run_until(world.converged)
    assert len(world.assert_equal()) == 20


def test_the_record_of_a_compaction_is_small_whatever_the_size_of_the_state(alone: World) -> None:
    """Some dozens of bytes, for a state of 1 KB as for one of 1 MB."""
    leader = alone.elect()
    sizes = []
    for size in (10, 10_000):
        fill(alone, leader, 100, size=size)
        compact(alone, leader)
        sizes.append(len(leader.log.compaction_record()))
    assert max(sizes) < 100
    assert abs(sizes[1] - sizes[0]) <= 8  # longer numbers


@pytest.mark.parametrize("by", ["length", "bytes"])
def test_the_log_is_compacted_by_itself_and_keeps_its_newest_entries(
    world: World, monkeypatch: pytest.MonkeyPatch, by: str
) -> None:
    """When it has many entries, or much in them. No snapshot is made for that."""
    if by == "length":
        monkeypatch.setattr(compaction, "_COMPACT_AFTER_ENTRIES", 50)
        monkeypatch.setattr(compaction, "_KEEP_ENTRIES", 10)
    else:
        monkeypatch.setattr(compaction, "_COMPACT_AFTER_BYTES", 10_000)
        monkeypatch.setattr(compaction, "_KEEP_BYTES", 2_000)
    leader = world.elect()
    fill(world, leader, 45, size=10)
    world.run(3)
    assert all(each.log.base_index == 0 for each in world.replicas.values())
    fill(world, leader, 200, size=100)
    world.run(3)
    for each in world.replicas.values():
        kept = each.log.last_index - each.log.base_index
        assert 5 <= kept <= 60
    assert chunks(world) == []


def test_compaction_keeps_what_a_follower_that_answers_still_lacks(world: World) -> None:
    """It catches up from the log; for one that does not answer nothing is kept."""
    leader = world.elect()
    fill(world, leader, 10)
    world.run(0.5)
    slow, _ = (world.replicas[member] for member in world.others(leader.id))
    last = slow.log.last_index

    def feed_nothing(sender: int, to: int, message: Message) -> Iterable[Message]:
        if to == slow.id and isinstance(message, AppendEntries) and message.prev_index + 1 > last:
            return [msgspec.structs.replace(message, entries=[])] if message.prev_index == last else []
        return [message]

    world.edit = feed_nothing
    fill(world, leader, 50, key="new")
    world.run(0.5)
    compact(world, leader)
    assert leader.log.base_index <= last
    world.edit = None
    world.run_until(caught_up(slow, leader))
    assert chunks(world) == []
    world.network.isolate(slow.id)
    fill(world, leader, 50, key="newer")
    world.run(1.2)
    compact(world, leader)
    assert leader.log.base_index > slow.log.last_index


def test_a_follower_that_got_a_stream_finds_in_the_log_what_it_missed_meanwhile(
    make_world: Callable[..., World], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Though the log has grown, while the stream was under way, beyond what anybody is waited for.

    Else it would need a stream again and again, as long as somebody writes.
    """
    monkeypatch.setattr(compaction, "_COMPACT_AFTER_ENTRIES", 50)
    monkeypatch.setattr(compaction, "_KEEP_ENTRIES", 10)
    monkeypatch.setattr(compaction, "_WAIT_FOR_SLOW_ENTRIES", 100)
    world = make_world(latency=0.25)
    leader = world.elect()
    timing = leader.raft.timing._replace(batch_bytes=10_000, window_bytes=80_000)  # 160 entries in a second
    leader.raft.timing = timing
    late = world.others(leader.id)[0]
    numbers = itertools.count()

    def write(until: Callable[[], bool]) -> None:
        """Some 80 entries a second."""
        while not until():
            for _ in range(8):
                leader.propose(diskkv.put(f"k{next(numbers) % 50}", bytes(1_000)), FOREVER)
            world.run(0.1)
            assert next(numbers) < 5_000

    world.crash(late)
    write(lambda: leader.raft.applied_index > 400)
    leader.compact()
    world.tick()
    follower = world.start(late)
    write(lambda: follower.raft.applied_index > 0)
    assert leader.raft.applied_index - follower.raft.applied_index > 150
    write(lambda: leader.raft.applied_index - follower.raft.applied_index < 100)
    assert len({message.stream for message in chunks(world)}) == 1
