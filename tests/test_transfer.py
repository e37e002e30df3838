"""Compaction, and the snapshots that it makes necessary: in virtual time, on real replicas."""

from __future__ import annotations

import itertools
import shutil
import threading
from collections.abc import Callable, Iterable
from pathlib import Path

import msgspec
import pytest

from ondisk import diskkv
from ondisk.diskkv import DiskKV
from ondisk.errors import Corrupt, OutcomeUnknown, Rejected
from ondisk.raft.log import LogEntry, RaftLog
from ondisk.raft.members import Members
from ondisk.raft.messages import (
    AppendEntries,
    Message,
    RemoveReplica,
    SnapshotAck,
    SnapshotChunk,
    TransferLeadership,
)
from ondisk.replica import Replica, replica
from ondisk.snapshot import stream, transfer
from ondisk.snapshot.sender import WINDOW
from ondisk.snapshot.stream import Chunk, Reader, Writer, make_header
from ondisk.snapshot.transfer import GIVE_UP_SECONDS
from ondisk.statemachine import SnapshotReader, SnapshotView, SnapshotWriter
from ondisk.storage.disk import Disk
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
            found += [str(job) for job in world.replicas[member]._running_transfers._jobs()]
            found += map(str, world.replicas[member].machine._views)
    return found


# Streams


def test_a_lagging_follower_gets_a_streamed_snapshot_and_nothing_stays_on_the_sender(world: World) -> None:
    """No directory, no job, no thread, no view; and on the receiver one database."""
    leader, late, _ = lagging(world)
    durable: dict[int, int] = {}

    def listen(sender: int, to: int, message: Message) -> list[Message]:
        if isinstance(message, SnapshotAck) and not late.log.unsynced:
            durable.setdefault(message.next, late.log.base_index)
        return [message]

    world.edit = listen
    world.network.heal()
    world.run_until(caught_up(late, leader))
    assert len({message.stream for message in chunks(world)}) == 1
    assert len(chunks(world)) > WINDOW
    assert max(durable) == chunks(world)[-1].chunk.number + 1
    assert durable[max(durable)] == late.log.base_index  # the end is acknowledged when all is installed
    assert set(durable.values()) == {0, late.log.base_index}
    assert late.log.base_index == leader.machine._applied
    assert len(world.assert_equal()) == 110
    world.run_until(lambda: not leader._running_transfers.busy)
    assert leftovers(world) == []


def test_the_group_goes_on_while_a_snapshot_is_under_way(world: World) -> None:
    """Puts and lookups on both sides; what was put meanwhile comes by the log."""
    leader, late, _ = lagging(world)
    world.network.heal()
    until_chunk(world, 5)
    assert late.status.transfers[0].kind == "from" and leader.status.transfers[0].kind == "to"
    assert late.lookup(diskkv.get("old1")) is not None and late.lookup(diskkv.get("k1")) is None
    fill(world, leader, 5, key="meanwhile")
    compact(world, leader)
    assert late.raft.recovering and not late.raft.may_lead
    assert leader.log.base_index == late.status.transfers[0].index  # what follows is still needed
    world.run_until(caught_up(late, leader))
    assert len(world.assert_equal()) == 115
    assert len({message.stream for message in chunks(world)}) == 1


def test_a_linearizable_read_waits_while_the_state_is_replaced(world: World) -> None:
    """It must not be answered from the old state, and not be forgotten either."""
    _, late, _ = lagging(world)
    world.network.heal()
    until_chunk(world, 5)
    seen: list[bytes | None] = []
    barrier = late.read_barrier(FOREVER)
    barrier.add_done_callback(lambda _: seen.append(late.lookup(diskkv.get("k1"))))
    world.run(0.01)
    assert late.raft.recovering and not barrier.done()
    world.run_until(barrier.done)
    assert seen == [b"v" * 100]


def test_a_stream_goes_on_after_a_lost_link_from_where_it_was(world: World) -> None:
    """The same stream, and nobody sends twice what had been acknowledged."""
    leader, late, _ = lagging(world)
    world.network.heal()
    until_chunk(world, 20)
    world.network.cut((leader.id, late.id), (late.id, leader.id))
    world.run(3)
    sent = len(chunks(world))
    assert sent <= 20 + 7 * WINDOW  # a window, again and again
    world.network.heal()
    world.run_until(caught_up(late, leader))
    assert len({message.stream for message in chunks(world)}) == 1
    assert min(message.chunk.number for message in chunks(world)[sent:]) > 20 - WINDOW
    assert len(world.assert_equal()) == 110


def test_a_lost_acknowledgement_of_the_end_does_no_harm(world: World) -> None:
    """The leader learns from the next heartbeat that the follower has it all."""
    leader, late, _ = lagging(world)
    base = late.log.base_index

    def lose_last(sender: int, to: int, message: Message) -> list[Message]:
        lost = isinstance(message, SnapshotAck) and late.log is not None and late.log.base_index > base
        return [] if lost else [message]

    world.edit = lose_last
    world.network.heal()
    world.run_until(lambda: caught_up(late, leader)() and not leader._running_transfers.busy)
    assert len({message.stream for message in chunks(world)}) == 1


def test_the_stream_to_a_removed_follower_ends_and_it_keeps_its_old_state(world: World) -> None:
    """Nobody saves for it any more, and what it had received is gone."""
    leader, late, _ = lagging(world)
    index = late.machine._applied
    world.network.heal()
    until_chunk(world, 5)
    future = leader.propose_change(RemoveReplica(late.id), FOREVER)
    world.run_until(lambda: future.done() and not leader._running_transfers.busy)
    world.run_until(lambda: late.status.role == "removed")
    assert leftovers(world) == []
    machine = DiskKV(world.folder(late.id) / "state")
    assert machine.open() == index
    assert (machine.lookup(diskkv.get("old1")), machine.lookup(diskkv.get("k1"))) == (b"v" * 100, None)
    machine.close()


@pytest.mark.parametrize("how", ["handed over", "cut off", "crashed"])
def test_the_stream_of_a_deposed_leader_ends_and_the_receiver_keeps_its_old_state(
    world: World, how: str
) -> None:
    """The new leader's log has what the follower needs, so that no snapshot is needed at all."""
    leader = world.elect()
    fill(world, leader, 10, key="old")
    late, third = (world.replicas[member] for member in world.others(leader.id))
    world.network.isolate(late.id)
    fill(world, leader, 100)
    world.run(1.2)
    compact(world, leader)
    index = late.machine._applied
    world.network.heal()
    until_chunk(world, 5)
    if how == "handed over":
        leader.propose_change(TransferLeadership(third.id), FOREVER)
    elif how == "cut off":
        world.network.isolate(leader.id)
    else:
        world.crash(leader.id)
    world.run_until(lambda: not late.raft.recovering)
    assert late.machine._applied == index
    assert late.log.installing is None
    world.network.heal()
    world.run_until(lambda: world.converged() and caught_up(late, third)())
    assert late.log.base_index == 0  # the log brought it all
    assert len(world.assert_equal()) == 110
    assert leftovers(world) == []


class HesitantKV(DiskKV):
    """Does not read what it recovers from before it is told to."""

    go_on = threading.Event()
    recovering = False

    def recover_from_snapshot(self, reader: SnapshotReader, stopped: threading.Event) -> int:
        self.recovering = True
        try:
            self.go_on.wait(60)
            return super().recover_from_snapshot(reader, stopped)
        finally:
            self.recovering = False

    def sync(self) -> None:
        assert not self.recovering
        super().sync()


def test_nothing_is_applied_synced_or_compacted_while_the_state_machine_is_busy_recovering(
    world: World,
) -> None:
    """The new leader brings all by the log, but the machine has not let go of the old one's stream yet."""
    HesitantKV.go_on.clear()
    leader = world.elect()
    fill(world, leader, 10, key="old")
    slow, third = world.others(leader.id)
    world.crash(slow)
    world.machines[slow] = HesitantKV
    late = world.start(slow)
    world.run_until(caught_up(late, leader))
    world.network.isolate(slow)
    fill(world, leader, 100)
    world.run(1.2)
    compact(world, leader)
    index, base = late.raft.applied_index, late.log.base_index
    late._running_transfers._lockstep = False  # its job stands still by itself
    world.network.heal()
    world.run_until(lambda: late.raft.recovering)
    late._synced_index = 0  # as if it had not been synced for a while
    leader.propose_change(TransferLeadership(third), FOREVER)
    world.run_until(lambda: late.raft.commit_index > index + 100)
    compact(world, late)
    world.run(2)
    assert late.raft.recovering
    assert (late.raft.applied_index, late.log.base_index) == (index, base)
    HesitantKV.go_on.set()
    late._running_transfers._lockstep = True
    world.run_until(world.converged)
    assert len(world.assert_equal()) == 110


def test_a_receiver_that_does_not_read_bounds_what_is_sent(make_world: Callable[..., World]) -> None:
    """Back-pressure: a window of chunks, however long it takes, and not one more."""
    world = make_world()
    HesitantKV.go_on.clear()
    leader, late, _ = lagging(world)
    world.crash(late.id)
    world.machines[late.id] = HesitantKV
    late = world.start(late.id)
    late._running_transfers._lockstep = False  # its job stands still by itself
    world.network.heal()
    until_chunk(world, 1)
    world.run(2 * GIVE_UP_SECONDS)
    assert len({message.stream for message in chunks(world)}) == 1
    numbers = {message.chunk.number for message in chunks(world)}
    assert max(numbers) <= WINDOW
    (sending,) = leader._running_transfers._sending.values()
    assert len(sending._unacknowledged) + len(sending.job._items) <= WINDOW + 4
    sent = len(chunks(world))
    HesitantKV.go_on.set()
    receiving = late._running_transfers._receiving
    assert receiving is not None
    receiving.job._lockstep = True
    receiving.job._settle()
    world.run_until(caught_up(late, leader))
    assert chunks(world)[sent].chunk.number == max(numbers) + 1  # it said at once that there is room again
    assert len(world.assert_equal()) == 110


# Damage on the way


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
    world.run_until(lambda: not leader._running_transfers.busy)
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


def test_a_snapshot_is_installed_only_if_it_is_newer(world: World) -> None:
    """A stream that comes again is refused, and changes nothing."""
    leader, late, _ = lagging(world)
    world.network.heal()
    world.run_until(lambda: caught_up(late, leader)() and not leader._running_transfers.busy)
    old = chunks(world)
    fill(world, leader, 1, key="newer")
    world.run(0.5)
    index = late.raft.applied_index
    with late.raft.at(world.now):
        for message in old:
            late._receive(leader.id, message)
    answers = [message for _, message in late._outbox if isinstance(message, SnapshotAck)]
    assert answers and all(answer.refused for answer in answers)
    assert not late.raft.recovering and late.raft.applied_index == index
    assert late.lookup(diskkv.get("newer0")) is not None


# Crashes


def test_a_follower_killed_in_the_middle_of_a_stream_starts_again(world: World) -> None:
    """With its old state; a second stream brings the new one, and nothing is left of the first."""
    leader, late, _ = lagging(world)
    old = world.content(late.id)
    world.network.heal()
    until_chunk(world, 20)
    world.crash(late.id)
    late = world.start(late.id)
    assert world.content(late.id) == old
    assert late.log.installing is None
    world.run_until(lambda: caught_up(late, leader)() and not leader._running_transfers.busy)
    assert len({message.stream for message in chunks(world)}) == 2
    assert len(world.assert_equal()) == 110
    assert leftovers(world) == []


@pytest.mark.parametrize("end", ["crash", "stop", "fail"])
@pytest.mark.parametrize("side", ["sender", "receiver"])
def test_nothing_runs_on_when_either_side_ends_in_the_middle_of_a_stream(
    world: World, side: str, end: str
) -> None:
    """However it ends, its job has ended with it."""
    leader, late, _ = lagging(world)
    world.network.heal()
    until_chunk(world, 20)
    victim = leader if side == "sender" else late
    if end == "crash":
        world.crash(victim.id)
    elif end == "stop":
        world.stop(victim.id)
    else:
        victim.fail(RuntimeError("no reason"))
    ours = "save" if side == "sender" else "recover"
    assert [thread.name for thread in threading.enumerate() if ours in thread.name] == []
    assert list((world.folder(victim.id) / "state").glob("view-*")) == []
    world.replicas.pop(victim.id, None)
    world.start(victim.id)
    world.run_until(world.converged)
    assert len(world.assert_equal()) == 110
    assert leftovers(world) == []


@pytest.mark.parametrize("point", transfer.POINTS)
def test_a_power_cut_at_any_point_of_an_installation_leaves_the_old_or_the_new(
    world: World, point: str
) -> None:
    """State and log belong together again when it is reopened, and the group converges."""
    leader, late, _ = lagging(world)
    old, new = world.content(late.id), world.content(leader.id)
    disk = world.crash_at(late.id, point)
    world.network.heal()
    world.run_until(lambda: disk.point is None)
    assert late.id not in world.replicas
    late = world.start(late.id)
    assert world.content(late.id) == (old if point == "install: noted" else new)
    assert late.log.installing is None
    assert late.status.error is None
    assert late.log.base_index <= late.opened_index <= late.log.last_index
    world.run_until(world.converged)
    assert world.assert_equal() == new
    assert leftovers(world) == []


@pytest.mark.parametrize("point", replica.POINTS)
@pytest.mark.parametrize("role", ["leader", "follower"])
def test_a_power_cut_at_any_point_of_a_compaction_loses_nothing(world: World, role: str, point: str) -> None:
    """The log holds what the state does not, before and after."""
    leader = world.elect()
    fill(world, leader, 20)
    world.run(0.1)  # not long enough for the periodical sync
    victim = leader if role == "leader" else world.replicas[world.others(leader.id)[0]]
    disk = world.crash_at(victim.id, point)
    victim.compact()
    world.run_until(lambda: disk.point is None)
    victim = world.start(victim.id)
    assert victim.status.error is None
    assert victim.log.base_index <= victim.opened_index
    assert (victim.log.base_index > 0) == (point == "compact: recorded")
    world.run_until(world.converged)
    assert len(world.assert_equal()) == 20
    assert chunks(world) == []


def test_the_note_of_an_installation_is_durable_before_the_state_machine_begins(world: World) -> None:
    """Else a power cut could find a new state beside a log that knows nothing of it."""
    _, late, _ = lagging(world)
    noted: list[bool] = []

    class Looking(Disk):
        def reach(self, point: str) -> None:
            if point == "install: noted":
                noted.append(late.log.installing is not None and not late.log.unsynced)

    late._running_transfers._disk = Looking()
    world.network.heal()
    world.run_until(lambda: noted)
    assert noted == [True]


def test_a_lost_state_is_reported_and_fetched_from_the_leader(world: World) -> None:
    """The log alone cannot bring it back once it was compacted: the status says so until it is there."""
    leader = world.elect()
    fill(world, leader, 20)
    world.run(0.5)
    victim = world.replicas[world.others(leader.id)[0]]
    compact(world, victim)
    world.stop(victim.id)
    shutil.rmtree(world.folder(victim.id) / "state")
    victim = world.start(victim.id)
    assert "it was lost or rolled back" in (victim.status.error or "")
    assert victim.raft.needs_state and not victim.raft.may_lead
    world.run_until(world.converged)
    assert victim.status.error is None
    assert len(world.assert_equal()) == 20
    assert len({message.stream for message in chunks(world)}) == 1


def test_a_snapshot_that_does_not_reach_the_beginning_of_the_log_is_refused(world: World) -> None:
    """A new leader may not have applied yet what this log has dropped: a gap would stay for ever."""
    leader, late, _ = lagging(world)
    world.network.heal()
    world.run_until(caught_up(late, leader))
    old = chunks(world)
    fill(world, leader, 10, key="more")
    world.run(0.5)
    compact(world, late)
    assert old[0].chunk.number == 0 and late.log.base_index > late.opened_index
    world.stop(late.id)
    shutil.rmtree(world.folder(late.id) / "state")
    late = world.start(late.id)
    with late.raft.at(world.now):
        late._receive(leader.id, old[0])
    assert not late.raft.recovering
    world.run_until(world.converged)
    assert len(world.assert_equal()) == 120


# The log under a snapshot


@pytest.mark.parametrize("reopened", [False, True])
@pytest.mark.parametrize(
    ("index", "term", "kept"),
    [
        (6, 1, [7, 8, 9, 10]),  # the log holds that entry: what follows was acknowledged and stays
        (10, 1, []),
        (6, 2, []),  # another history
        (20, 3, []),  # beyond
        (2, 1, [4, 5, 6, 7, 8, 9, 10]),  # before the base: nothing changes
    ],
)
def test_a_snapshot_replaces_no_more_of_the_log_than_it_must(
    tmp_path: Path, index: int, term: int, kept: list[int], reopened: bool
) -> None:
    """Entries after it that fit were acknowledged, and a majority may rest on them (paper, figure 13)."""
    log = World.replica_type.log_type(tmp_path, members=(1, 2, 3))
    log.append([LogEntry(number, 1, b"\x00x") for number in range(1, 11)])
    log.sync()
    log.compact(3)
    log.begin_install(index, term, Members((1, 2)))
    log.install(index, term, Members((1, 2)))
    log.sync()
    if reopened:
        log.crash()
        log = RaftLog(tmp_path)
    assert log.installing is None
    assert log.base_index == max(index, 3) and log.last_index == max([index, 3, *kept])
    if kept:
        assert [entry.index for entry in log.entries(kept[0], log.last_index)] == kept
        assert log.last_term == 1 and log.members == Members((1, 2, 3))
    else:
        assert log.last_term == term
    log.close()


# Requests


def test_a_proposal_that_a_snapshot_has_passed_is_answered_as_unknown(world: World) -> None:
    """Its entry was cut off or committed by others: this replica will never see which."""
    leader = world.elect()
    fill(world, leader, 10)
    world.run(0.5)
    world.network.isolate(leader.id)
    lost = leader.propose(diskkv.put("lost", "v"), FOREVER)
    world.run_until(lambda: world.leader is not None and world.leader.id != leader.id)
    new = world.elect()
    fill(world, new, 10, key="new")
    world.run(1.2)
    compact(world, *(each for each in world.replicas.values() if each is not leader))
    world.network.heal()
    world.run_until(lost.done)
    assert isinstance(lost.exception(), OutcomeUnknown)
    world.run_until(world.converged)
    assert len(world.assert_equal()) == 20


def test_an_export_from_a_replica_that_waits_for_a_snapshot_itself_is_refused(
    world: World, tmp_path: Path
) -> None:
    """Its state is about to be replaced; that stops neither the replica nor its stream."""
    leader, late, _ = lagging(world)
    world.network.heal()
    until_chunk(world, 5)
    future = late.export_snapshot(tmp_path / "snapshot", threading.Event())
    world.run_until(future.done)
    assert isinstance(future.exception(), Rejected)
    world.run_until(caught_up(late, leader))
    future = late.export_snapshot(tmp_path / "snapshot", threading.Event())
    world.run_until(future.done)
    assert future.result().index == late.machine._applied


def test_an_export_ends_when_its_replica_does(world: World, tmp_path: Path) -> None:
    """Nobody waits for ever, and no half file is left."""
    leader = world.elect()
    fill(world, leader, 10)
    future = leader.export_snapshot(tmp_path / "snapshot", threading.Event())
    leader._do_errands()
    world.crash(leader.id)
    assert future.done()
    assert list(tmp_path.glob("snapshot*")) in ([], [tmp_path / "snapshot"])
    assert leftovers(world) == []


# Compaction


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
            assert each.log.base_index <= each._synced_index
    for member in world.members:
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
        monkeypatch.setattr(replica, "_COMPACT_AFTER_ENTRIES", 50)
        monkeypatch.setattr(replica, "_KEEP_ENTRIES", 10)
    else:
        monkeypatch.setattr(replica, "_COMPACT_AFTER_BYTES", 10_000)
        monkeypatch.setattr(replica, "_KEEP_BYTES", 2_000)
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
    """It is fed from the log; for one that does not answer nothing is kept."""
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


def test_a_follower_that_was_fed_finds_in_the_log_what_it_missed_meanwhile(
    make_world: Callable[..., World], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Though the log has grown, while the stream was under way, beyond what anybody is waited for.

    Else it would be fed again and again, as long as somebody writes.
    """
    monkeypatch.setattr(replica, "_COMPACT_AFTER_ENTRIES", 50)
    monkeypatch.setattr(replica, "_KEEP_ENTRIES", 10)
    monkeypatch.setattr(replica, "_WAIT_FOR_SLOW_ENTRIES", 100)
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
