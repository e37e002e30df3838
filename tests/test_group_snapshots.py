"""Snapshots that compaction makes necessary, on their way: in virtual time, on real replicas."""

from __future__ import annotations

import shutil
import threading
from collections.abc import Callable
from pathlib import Path

import pytest

from ondisk import diskkv
from ondisk.diskkv import DiskKV
from ondisk.errors import OutcomeUnknown, Rejected
from ondisk.raft.log import RaftLog
from ondisk.raft.members import Members
from ondisk.raft.messages import (
    Message,
    RemoveReplica,
    SnapshotAck,
    TransferLeadership,
)
from ondisk.raft.records import LogEntry
from ondisk.replica.compaction import POINTS
from ondisk.snapshot import streaming
from ondisk.snapshot.sender import WINDOW
from ondisk.snapshot.streaming import GIVE_UP_SECONDS
from ondisk.statemachine import SnapshotReader
from ondisk.storage.disk import Disk
from tests.lagging import (
    FOREVER,
    _small_chunks,
    caught_up,
    chunks,
    compact,
    fill,
    lagging,
    leftovers,
    until_chunk,
)
from tests.virtual import World

__all__ = ["_small_chunks"]  # fixtures


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
    world.run_until(lambda: not leader._open_streaming.busy)
    assert leftovers(world) == []


def test_the_group_goes_on_while_a_snapshot_is_under_way(world: World) -> None:
    """Puts and lookups on both sides; what was put meanwhile comes by the log."""
    leader, late, _ = lagging(world)
    world.network.heal()
    until_chunk(world, 5)
    assert late.status.streams[0].kind == "from" and leader.status.streams[0].kind == "to"
    assert late.lookup(diskkv.get("old1")) is not None and late.lookup(diskkv.get("k1")) is None
    fill(world, leader, 5, key="meanwhile")
    compact(world, leader)
    assert late.raft.recovering and not late.raft.may_lead
    assert leader.log.base_index == late.status.streams[0].index  # what follows is still needed
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
    world.run_until(lambda: caught_up(late, leader)() and not leader._open_streaming.busy)
    assert len({message.stream for message in chunks(world)}) == 1


def test_the_stream_to_a_removed_follower_ends_and_it_keeps_its_old_state(world: World) -> None:
    """Nobody saves for it any more, and what it had received is gone."""
    leader, late, _ = lagging(world)
    index = late.machine._applied
    world.network.heal()
    until_chunk(world, 5)
    future = leader.propose_change(RemoveReplica(late.id), FOREVER)
    world.run_until(lambda: future.done() and not leader._open_streaming.busy)
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
    late._open_streaming._lockstep = False  # its job stands still by itself
    world.network.heal()
    world.run_until(lambda: late.raft.recovering and late.machine.recovering)  # type: ignore[attr-defined]
    late._compaction.synced_index = 0  # as if it had not been synced for a while
    leader.propose_change(TransferLeadership(third), FOREVER)
    world.run_until(lambda: late.raft.commit_index > index + 100)
    compact(world, late)
    world.run(2)
    assert late.raft.recovering
    assert (late.raft.applied_index, late.log.base_index) == (index, base)
    HesitantKV.go_on.set()
    late._open_streaming._lockstep = True
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
    late._open_streaming._lockstep = False  # its job stands still by itself
    world.network.heal()
    until_chunk(world, 1)
    world.run(2 * GIVE_UP_SECONDS)
    assert len({message.stream for message in chunks(world)}) == 1
    numbers = {message.chunk.number for message in chunks(world)}
    assert max(numbers) <= WINDOW
    (sending,) = leader._open_streaming._sending.values()
    assert len(sending._unacknowledged) + len(sending.job._items) <= WINDOW + 4
    sent = len(chunks(world))
    HesitantKV.go_on.set()
    receiving = late._open_streaming._receiving
    assert receiving is not None
    receiving.job._lockstep = True
    receiving.job._settle()
    world.run_until(caught_up(late, leader))
    assert chunks(world)[sent].chunk.number == max(numbers) + 1  # it said at once that there is room again
    assert len(world.assert_equal()) == 110


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
    world.run_until(lambda: caught_up(late, leader)() and not leader._open_streaming.busy)
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


@pytest.mark.parametrize("point", streaming.POINTS)
def test_a_power_cut_at_any_point_of_an_installation_leaves_the_old_or_the_new(
    world: World, point: str
) -> None:
    """State and log belong together again when it is reopened, and the group converges."""
    leader, late, _ = lagging(world)
    old, new = world.content(late.id), world.content(leader.id)
    disk = world.crash_at(late.id, point)
    world.network.heal()
    world.run_until(lambda: disk.crashed)
    assert late.id not in world.replicas
    late = world.start(late.id)
    assert world.content(late.id) == (old if point == "install: noted" else new)
    assert late.log.installing is None
    assert late.status.error is None
    assert late.log.base_index <= late.opened_index <= late.log.last_index
    world.run_until(world.converged)
    assert world.assert_equal() == new
    assert leftovers(world) == []


@pytest.mark.parametrize("point", POINTS)
@pytest.mark.parametrize("role", ["leader", "follower"])
def test_a_power_cut_at_any_point_of_a_compaction_loses_nothing(world: World, role: str, point: str) -> None:
    """The log holds what the state does not, before and after."""
    leader = world.elect()
    fill(world, leader, 20)
    world.run(0.1)  # not long enough for the periodical sync
    victim = leader if role == "leader" else world.replicas[world.others(leader.id)[0]]
    disk = world.crash_at(victim.id, point)
    victim.compact()
    world.run_until(lambda: disk.crashed)
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

    late._open_streaming._disk = Looking()
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
    leader._admin.serve()
    world.crash(leader.id)
    assert future.done()
    assert list(tmp_path.glob("snapshot*")) in ([], [tmp_path / "snapshot"])
    assert leftovers(world) == []
