"""Chunks that are damaged, missing, doubled, or of another stream: nothing wrong is installed."""

from __future__ import annotations

from collections.abc import Callable, Iterable

import msgspec
import pytest

from ondisk import diskkv
from ondisk.errors import Corrupt
from ondisk.raft.members import Members
from ondisk.raft.messages import Message, SnapshotAck, SnapshotAnswer, SnapshotChunk, SnapshotRejection
from ondisk.snapshot.stream import Chunk, Reader, Writer, make_header
from tests.lagging import _small_chunks, caught_up, chunks, fill, lagging, leftovers, until_chunk
from tests.virtual import World

__all__ = ["_small_chunks"]  # fixtures


def corrupted(chunk: SnapshotChunk) -> Iterable[SnapshotChunk]:
    data = bytes([chunk.chunk.data[0] ^ 1]) + chunk.chunk.data[1:]
    yield msgspec.structs.replace(chunk, chunk=msgspec.structs.replace(chunk.chunk, data=data))


def missing(chunk: SnapshotChunk) -> Iterable[SnapshotChunk]:
    return ()


def doubled(chunk: SnapshotChunk) -> Iterable[SnapshotChunk]:
    return chunk, chunk


def renumbered(chunk: SnapshotChunk) -> Iterable[SnapshotChunk]:
    """Skips one, unnoticed by the numbers."""
    number = chunk.chunk.number - 1
    yield msgspec.structs.replace(chunk, chunk=msgspec.structs.replace(chunk.chunk, number=number))


def ended(chunk: SnapshotChunk) -> Iterable[SnapshotChunk]:
    """Claims that this is the end."""
    yield msgspec.structs.replace(chunk, chunk=msgspec.structs.replace(chunk.chunk, kind=2))


@pytest.mark.parametrize("damage", [corrupted, missing, doubled, renumbered, ended])
@pytest.mark.parametrize("number", [0, 1, 7, 25])
def test_damage_on_the_way_never_installs_anything_wrong(
    world: World, damage: Callable[[SnapshotChunk], Iterable[SnapshotChunk]], number: int
) -> None:
    """The receiver keeps its old state or gets the new one whole, and is equal in the end."""
    leader, late, _ = lagging(world)
    done = []

    def edit(sender: int, to: int, message: Message) -> Iterable[Message]:
        if done or not isinstance(message, SnapshotChunk) or message.chunk.number != number:
            return [message]
        done.append(message)
        return damage(message)

    world.edit = edit
    world.network.heal()
    old = world.content(late.id)
    states = [old, world.content(leader.id)]
    while not caught_up(late, leader)():
        world.run(0.02)
        assert world.content(late.id) in states
    assert done
    assert late.status.error is None
    assert world.assert_equal() == states[1]
    world.run_until(lambda: not leader._open_streaming.busy)
    assert leftovers(world) == []


@pytest.mark.parametrize("at", [0, 1, 3, 5])
@pytest.mark.parametrize("damage", [corrupted, missing, doubled, renumbered, ended])
def test_a_reader_reports_every_damage_whatever_the_state_machine_thinks_of_it(
    damage: Callable[[SnapshotChunk], Iterable[SnapshotChunk]], at: int
) -> None:
    """The machine may take any bytes for a state, so nothing that is not whole must reach it."""
    sent: list[Chunk] = []
    writer = Writer(make_header(7, 1, Members((1, 2, 3))), sent.append)
    writer.write(bytes(450))
    writer.finish()
    damaged = [message.chunk for message in damage(SnapshotChunk(1, 1, sent[at]))]
    arriving = iter(sent[:at] + damaged + sent[at + 1 :])

    with pytest.raises(Corrupt):
        reader = Reader(lambda: next(arriving))
        while reader.read(64):
            pass


def test_chunks_that_arrive_in_another_order_are_asked_for_again(world: World) -> None:
    """Each pair changes places."""
    leader, late, _ = lagging(world)
    held: list[Message] = []

    def swap(sender: int, to: int, message: Message) -> Iterable[Message]:
        if not isinstance(message, SnapshotChunk):
            return [message]
        if held:
            return [message, held.pop()]
        held.append(message)
        return []

    world.edit = swap
    world.network.heal()
    world.run_until(caught_up(late, leader), 120)
    assert len(world.assert_equal()) == 110


def test_chunks_of_an_earlier_stream_are_not_taken_for_this_one(world: World) -> None:
    """Recorded from a stream that broke off, and played again into the next one."""
    leader, late, _ = lagging(world)
    world.network.heal()
    until_chunk(world, 20)
    former = chunks(world)[1:]
    world.crash(late.id)
    fill(world, leader, 3, key="more")
    late = world.start(late.id)
    world.run_until(lambda: late.raft.recovering)
    for message in former:
        late._receive(leader.id, message)
    world.run_until(caught_up(late, leader))
    assert len(world.assert_equal()) == 113


def all_arrived(stream: int) -> SnapshotAnswer:
    return SnapshotAck(stream, 1 << 40, 1 << 40)


@pytest.mark.parametrize("answer", [all_arrived, SnapshotRejection])
def test_another_disk_under_the_number_of_the_receiver_does_not_answer_for_it(
    world: World, answer: Callable[[int], SnapshotAnswer]
) -> None:
    """The stream goes on: what was lost is sent again, and nothing ends."""
    leader, late, _ = lagging(world)
    world.edit = lambda _, __, message: (
        [] if isinstance(message, SnapshotChunk) and message.chunk.number == 5 else [message]
    )
    world.network.heal()
    until_chunk(world, 5)
    stream = chunks(world)[-1].stream
    disk = leader.raft.members.disk_of(late.id)
    with leader.raft.at(world.now):
        leader.raft.membership.speaks(late.id, b"another disk 123")
        leader._receive(late.id, answer(stream))
        leader.raft.membership.speaks(late.id, disk)
    world.edit = None
    world.run_until(caught_up(late, leader))
    assert {message.stream for message in chunks(world)} == {stream}
    world.assert_equal()


def test_a_snapshot_is_installed_only_if_it_is_newer(world: World) -> None:
    """A stream that comes again is refused, and changes nothing."""
    leader, late, _ = lagging(world)
    world.network.heal()
    world.run_until(lambda: caught_up(late, leader)() and not leader._open_streaming.busy)
    old = chunks(world)
    fill(world, leader, 1, key="newer")
    world.run(0.5)
    index = late.raft.applied_index
    with late.raft.at(world.now):
        for message in old:
            late._receive(leader.id, message)
    answers = [message for _, message in late._outbox]
    assert answers and all(isinstance(answer, SnapshotRejection) for answer in answers)
    assert not late.raft.recovering and late.raft.applied_index == index
    assert late.lookup(diskkv.get("newer0")) is not None
