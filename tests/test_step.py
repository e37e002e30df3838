"""What ``Replica.step`` promises: when it must be called again, and what an error inside it does."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import pytest

from ondisk.diskkv import DiskKV, get
from ondisk.errors import CommandTooLarge, ConfigurationError, Corrupt, NoLeader, ReplicaStopped, StorageError
from ondisk.raft.limits import MAX_COMMAND_BYTES
from ondisk.raft.log import RaftLog
from ondisk.raft.members import Members
from ondisk.raft.messages import (
    AddReplica,
    AppendEntries,
    AppendEntriesResponse,
    Change,
    Message,
    MoveReplica,
)
from ondisk.raft.records import MEMBERS
from ondisk.replica import Replica
from ondisk.replica.opening import finish_install, first_members
from ondisk.statemachine import Result
from tests.lagging import lagging
from tests.virtual import World, fill, put

FOREVER = float("inf")


def silence(world: World) -> None:
    """From now on nothing arrives."""

    def lose(*_: object) -> Iterable[Message]:
        return []

    world.edit = lose


def test_a_leader_wants_to_be_called_for_its_next_heartbeat(world: World) -> None:
    leader = world.elect()
    world.run(3)
    for _ in range(20):
        world.tick()
        wait = leader.step()
        assert wait == pytest.approx(leader.raft.next_wakeup() - world.now)
        assert 0 <= wait <= leader.raft.timing.heartbeat


def test_a_follower_wants_to_be_called_for_its_timers(world: World) -> None:
    leader = world.elect()
    world.run(3)
    follower = world.replicas[world.others(leader.id)[0]]
    wait = follower.step()
    assert 0 < wait <= 1.0  # the state is synced each second
    assert wait == pytest.approx(min(follower.raft.next_wakeup(), follower._compaction.due_at) - world.now)
    silence(world)
    put(follower, "k")
    follower.step()
    assert 0 < follower.step() <= 0.05  # somebody waits, whose deadline may pass


def test_who_has_more_to_do_is_called_again_at_once(make_world: Callable[..., World]) -> None:
    world = make_world(members=1)
    leader = world.elect()
    world.run(2)
    assert leader.step() > 0
    future = put(leader, "k")
    steps = 0
    while leader.step() == 0.0:
        steps += 1
    assert 1 <= steps <= 3 and future.done()


def test_what_did_not_fit_into_a_batch_is_taken_at_once(world: World) -> None:
    leader = world.elect()
    world.run(1)
    leader.raft.timing = leader.raft.timing._replace(batch_bytes=1)
    for number in range(5):
        put(leader, f"k{number}")
    assert [leader.step() for _ in range(4)] == [0.0] * 4
    assert leader.step() > 0


def test_who_a_replica_is_stands_on_its_disk_before_its_state_is_opened(tmp_path: Path) -> None:
    """A power cut in between must not leave a state that belongs to a disk that nobody is."""
    copies: list[Path] = []

    class Copying(DiskKV):
        def __init__(self, path: Path) -> None:
            super().__init__(path)
            self.log = path.parent / "log"

        def open(self) -> int:
            copies.append(tmp_path / f"copy-{len(copies)}")
            shutil.copytree(self.log, copies[-1])
            return super().open()

    world = World(tmp_path / "world", machine=Copying)
    replicas = [*world.replicas.values()]
    world.close()
    assert len(copies) == 3
    for copy, replica in zip(copies, replicas, strict=True):
        log = RaftLog(copy)
        assert log.identity is not None and replica.identity is not None
        assert (log.identity.disk, log.identity.first) == (replica.identity.disk, (1, 2, 3))
        log.close()


def test_a_stopped_replica_is_never_called_again(world: World) -> None:
    leader = world.elect()
    leader._removed = True
    assert leader.step() == FOREVER and leader.status.role == "removed"
    with pytest.raises(ReplicaStopped):
        leader.step()
    other = world.replicas[world.others(leader.id)[0]]
    other._damage = Corrupt("here")
    assert other.step() == FOREVER and other.status.role == "failed"


class Damaged(DiskKV):
    """Its answers and its sync are what a test says."""

    error: Exception | None = None
    sync_error: Exception | None = None

    def lookup(self, query: Any) -> Any:
        if self.error is not None:
            raise self.error
        return super().lookup(query)

    def sync(self) -> None:
        if self.sync_error is not None:
            raise self.sync_error
        super().sync()


def test_damage_that_a_question_meets_stops_the_replica(make_world: Callable[..., World]) -> None:
    world = make_world(machine=Damaged)
    leader = world.elect()
    machine = leader.machine
    assert isinstance(machine, Damaged)
    woken: list[bool] = []
    leader._endpoint.wake = lambda: woken.append(True)  # type: ignore[method-assign]
    machine.error = StorageError("not now")
    with pytest.raises(StorageError):
        leader.lookup(get("k"))
    world.tick()
    assert leader.running and not woken
    machine.error = Corrupt("a bad block")
    with pytest.raises(Corrupt):
        leader.lookup(get("k"))
    assert woken
    world.tick()
    assert leader.status.role == "failed" and "a bad block" in str(leader.status.error)


def test_who_asked_for_what_failed_is_told_and_the_replica_stops(make_world: Callable[..., World]) -> None:
    world = make_world(machine=Damaged)
    leader = world.elect()
    fill(world, 3)
    machine = leader.machine
    assert isinstance(machine, Damaged)
    machine.sync_error = StorageError("the disk is gone")
    future, next_one = leader.compact(), leader.compact()
    leader.step()
    assert isinstance(future.exception(0), StorageError) and leader.status.role == "failed"
    assert isinstance(next_one.exception(0), ReplicaStopped)


@pytest.mark.parametrize("how", ["recovering", "needs_state"])
def test_a_state_that_is_being_replaced_is_neither_synced_nor_compacted(world: World, how: str) -> None:
    leader = world.elect()
    fill(world, 3)
    synced, base = leader.status.synced_index, leader.log.base_index
    setattr(leader.raft, how, True)
    with leader.raft.at(world.now):
        assert leader._compaction.compact(keep=False) == base
        leader._compaction.step(world.now + 10)
    assert leader._compaction.synced_index == synced and leader.log.base_index == base
    setattr(leader.raft, how, False)
    with leader.raft.at(world.now):
        leader._compaction.step(world.now + 20)
    assert leader._compaction.synced_index > synced
    if leader.raft.is_leader:
        with leader.raft.at(world.now):
            assert leader._compaction.compact(keep=False) > base


def test_the_directory_is_checked_whenever_something_was_synced(world: World) -> None:
    """What is synced into a directory that was moved away counts for nothing."""
    leader = world.elect()
    world.run(1)
    checked: list[int] = []
    assert leader._lock is not None
    leader._lock.check = lambda: checked.append(leader.log.syncs)  # type: ignore[method-assign, union-attr]
    world.run(0.5)
    assert not checked  # nothing was written
    before = leader.log.syncs
    fill(world, 1)
    assert checked and checked == list(range(before + 1, leader.log.syncs + 1))


def test_a_replica_is_told_its_first_members_once_and_remembers_them(world: World, tmp_path: Path) -> None:
    member = world.others(world.elect().id)[0]
    log = world.replicas[member].log
    assert log is not None and log.identity is not None and log.identity.first == world.first_members
    world.stop(member)
    replica = Replica(
        member,
        None,
        world.folder(member),
        DiskKV(world.folder(member) / "state"),
        world.attach(member),
        clock=lambda: world.now,
        rng=world.rng("told once"),
        lockstep=True,
    )
    world.replicas[member] = replica
    assert replica.log is not None and replica.log.identity is not None
    assert replica.log.identity.first == world.first_members
    world.run_until(world.converged)


def test_a_put_without_a_leader_ends_at_its_deadline_though_nothing_else_happens(world: World) -> None:
    replica = world.replicas[1]
    world.elect()
    silence(world)
    for other in (2, 3):
        world.stop(other)
    world.run(5)
    future = replica.propose(b"x", world.now + 0.3)
    until = world.now + 0.3
    while not future.done():
        assert world.now < until + 0.1
        world.now += min(1.0, max(0.002, replica.step()))  # as a thread would that sleeps in between
    assert isinstance(future.exception(0), NoLeader)


def test_at_a_power_cut_what_runs_beside_the_steps_ends_first(world: World) -> None:
    """A thread that still writes a snapshot would write on in a state that is gone."""
    leader = world.elect()
    order: list[str] = []
    for name, part, method in (
        ("streams", leader._open_streaming, "close"),
        ("log", leader.log, "crash"),
        ("state", leader.machine, "crash"),
    ):
        end = getattr(part, method)
        setattr(part, method, lambda name=name, end=end: (order.append(name), end()))
    leader.crash()
    assert order[:3] == ["streams", "log", "state"]


@pytest.mark.parametrize(
    ("group", "first", "voted", "told", "words"),
    [
        (False, (), (), (2, 1), None),
        (False, (1, 2), (), (1, 2, 3), None),  # nothing has happened yet
        (False, (1, 2), (1, 2), (1, 2), None),
        (False, (1, 2), (1, 2), None, None),
        (False, (1, 2), (1, 2), (1, 2, 3), "has voted for a group of"),
        (True, (1, 2), (1, 2), (1, 2), None),
        (True, (1, 2), (1, 2), (1, 2, 4), None),  # what they are by now
        (True, (1, 2), (1, 2), (), None),
        (True, (1, 2), (1, 2), (1, 3), "leave them out, or name these"),
        (True, (1, 2), (1, 2), (1, 2, 3), "leave them out, or name these"),
        (True, (), (), (1, 3), None),  # it was added, and may be told those that it was to ask
        (True, (), (), (1, 9), "leave them out, or name these"),
    ],
)
def test_the_first_members_are_those_that_a_replica_was_told_at_first(
    tmp_path: Path,
    group: bool,
    first: tuple[int, ...],
    voted: tuple[int, ...],
    told: tuple[int, ...] | None,
    words: str | None,
) -> None:
    log = RaftLog(tmp_path / "log", replica_id=1)
    log.identify(first=first, roster=tuple((number, b"d" * 16, "") for number in voted))
    if group:
        log.begin_group(Members((1, 2, 4), removed=(3,), group=b"g" * 16))
    if words is not None:
        with pytest.raises(ConfigurationError, match=words):
            first_members(log, told)
    else:
        wanted = first if told is None else tuple(sorted(told))
        assert first_members(log, told) == wanted
        assert log.identity is not None
        assert log.identity.first == (first if group and first else wanted)
    log.close()


@pytest.mark.parametrize(("opened", "base"), [(8, 0), (9, 9), (12, 9)])
def test_an_installation_that_was_cut_short_is_completed_if_the_state_is_there(
    tmp_path: Path, opened: int, base: int
) -> None:
    log = RaftLog(tmp_path / "log")
    finish_install(log, opened)  # there is none
    log.begin_install(9, 1, Members((1, 2)))
    log.sync()
    finish_install(log, opened)
    assert not log.unsynced and log.installing is None and log.base_index == base
    log.crash()
    log = RaftLog(tmp_path / "log")
    assert log.installing is None and log.base_index == base
    log.close()


def test_a_request_wakes_its_replica(world: World) -> None:
    leader = world.elect()
    woken: list[str] = []
    leader._endpoint.wake = lambda: woken.append("woken")  # type: ignore[method-assign]
    put(leader, "k")
    leader.read_barrier(FOREVER)
    leader.compact()
    leader.propose_change(AddReplica(4), FOREVER)
    assert len(woken) == 4


@pytest.mark.parametrize(
    "change", [MoveReplica(2, "nonsense"), MoveReplica(2, ""), AddReplica(4, "nonsense"), AddReplica(0)]
)
def test_a_change_is_looked_at_before_it_is_proposed(world: World, change: Change) -> None:
    leader = world.elect()
    with pytest.raises(ConfigurationError):
        leader.propose_change(change, FOREVER)
    assert leader.status.waiting == 0 and len(leader._proposals) == 0
    leader.propose_change(MoveReplica(2, "localhost:63001"), FOREVER)
    leader.propose_change(AddReplica(4), FOREVER)
    assert len(leader._proposals) == 2


@pytest.mark.parametrize("kind", [AddReplica, MoveReplica])
def test_the_network_knows_an_address_before_entries_leave_for_it(
    world: World, kind: type[AddReplica | MoveReplica]
) -> None:
    """Those of a change that is not committed yet, too: it counts from the moment it is in the log."""
    leader = world.elect()
    fill(world, 1)
    if kind is AddReplica:
        world.start(4)
        world.run(1)
    change = kind(4 if kind is AddReplica else world.others(leader.id)[0], "localhost:4444")
    endpoint, known, sent = leader._endpoint, [""], []
    add_peers, send = endpoint.add_peers, endpoint.send

    def note_address(addresses: dict[int, str]) -> None:
        known.append(addresses.get(change.id, ""))
        add_peers(addresses)

    def note_message(to: int, message: Message) -> bool:
        if to == change.id and isinstance(message, AppendEntries):
            sent.append((known[-1], any(entry.command.startswith(MEMBERS) for entry in message.entries)))
        return send(to, message)

    endpoint.add_peers, endpoint.send = note_address, note_message  # type: ignore[method-assign,assignment]
    answer = leader.propose_change(change, FOREVER)
    world.run_until(answer.done)
    world.run(1)
    assert answer.result() == Result() and sent
    assert next(address for address, has_change in sent if has_change) == "localhost:4444"
    assert kind is MoveReplica or {address for address, _ in sent} == {"localhost:4444"}


def test_the_status_says_where_everything_is(world: World) -> None:
    leader = world.elect()
    fill(world, 5)
    world.run(2)
    leader.compact()
    world.tick()
    put(leader, "k")
    put(leader, "l")
    leader.read_barrier(FOREVER)
    leader.step()
    log, raft, status = leader.log, leader.raft, leader.status
    assert log is not None and log.base_index > 0
    assert (status.id, status.role, status.term, status.leader_id) == (
        leader.id,
        "leader",
        raft.term,
        leader.id,
    )
    assert (status.last_index, status.durable_index) == (log.last_index, log.synced_index)
    assert (status.commit_index, status.applied_index) == (raft.commit_index, raft.applied_index)
    assert status.applied_index < status.last_index and status.synced_index <= status.applied_index
    assert (status.opened_index, status.log_syncs, status.error) == (0, log.syncs, None)
    assert status.waiting == 3  # two proposals, one read
    assert status.match_index.keys() == set(world.others(leader.id))
    assert status.first_index == log.base_index + 1
    assert (status.voters, status.learners, status.streams) == ((1, 2, 3), (), ())
    assert (status.group, status.disk) == (raft.members.group.hex(), log.disk_id.hex())
    assert leader.configuration == log.configuration and leader.running
    leader.close()
    closed = leader.status
    assert (closed.role, closed.leader_id, closed.waiting, closed.error) == ("stopped", None, 0, None)
    assert closed.match_index == {} and closed.last_index == status.last_index and not leader.running
    with pytest.raises(ReplicaStopped, match="is stopped"):
        _ = leader.configuration


def test_a_replica_without_a_group_is_called_for_what_it_asks_the_others(
    make_world: Callable[..., World],
) -> None:
    world = make_world(founded=False)
    replica = world.replicas[1]
    for _ in range(30):
        world.now += 0.01
        wait = replica.step()
        assert wait <= 0.2, "it asks who is there several times in a second"
        assert not replica.raft.members.group


def test_who_sends_a_snapshot_is_called_though_nobody_asks_anything(world: World) -> None:
    """To find out in time that the other side is silent, and to rest no longer than it must."""
    leader, _, _ = lagging(world)
    world.network.heal()
    world.run_until(lambda: leader.transferring)
    silence(world)
    leader.raft.leader.next_send = leader._compaction.due_at = world.now + 100
    leader.raft.leader.must_send = False
    assert leader.step() <= 0.05 and leader.status.waiting == 0
    assert leader.raft.next_wakeup() > world.now + 50


def test_a_command_of_the_largest_size_is_taken(world: World) -> None:
    leader = world.elect()
    with pytest.raises(CommandTooLarge, match="2,097,153 bytes; at most 2,097,152"):
        leader.propose(bytes(MAX_COMMAND_BYTES + 1), FOREVER)
    with pytest.raises(TypeError, match="a command is bytes, not str"):
        leader.propose("text", FOREVER)  # type: ignore[arg-type]
    future = leader.propose(bytes(MAX_COMMAND_BYTES), FOREVER)
    world.run_until(future.done)
    assert "malformed" in str(future.result().error)  # it was applied, and is none of this machine's


def test_a_step_leaves_nothing_behind_that_should_be_sent_or_durable(world: World) -> None:
    leader = world.elect()
    for number in range(40):
        world.now += 0.002
        if number < 20:
            put(leader, f"k{number}")
        for replica in world.replicas.values():
            replica.step()
            assert not replica._outbox and replica.log is not None and not replica.log.unsynced
    assert leader.raft.applied_index > 20


def test_a_leader_is_answered_before_its_entries_are_applied(world: World) -> None:
    """The leader need not wait for the state machine, which may take its time, or fail."""
    leader = world.elect()
    world.run(1)
    follower = world.replicas[world.others(leader.id)[0]]
    done: list[str] = []
    update, send = follower.machine.update, follower._endpoint.send

    def apply(entries: Any) -> Any:
        done.append("applied")
        return update(entries)

    def note(to: int, message: Message) -> bool:
        done.append("answered" if isinstance(message, AppendEntriesResponse) else "sent")
        return send(to, message)

    follower.machine.update, follower._endpoint.send = apply, note  # type: ignore[method-assign]
    both = 0
    for number in range(60):
        put(leader, f"k{number}")
        world.now += 0.002
        leader.step()
        done.clear()
        follower.step()
        if {"applied", "answered"} <= set(done):
            both += 1
            assert done.index("answered") < done.index("applied")
    assert both


def test_a_leader_counts_as_heard_when_its_message_was_taken_out_and_not_before(world: World) -> None:
    """Between a look at the clock and a look at the inbox any time may pass: no processor, a collection."""
    leader = world.elect()
    follower = world.replicas[world.others(leader.id)[0]]
    receive, clock = follower._endpoint.receive, world.hosts[follower.id].clock
    taken_out: list[float] = []

    def stand_still() -> Any:
        world.now += 0.4
        arrived = receive()
        if any(isinstance(message, AppendEntries) for _, _, message in arrived):
            taken_out.append(clock())
        return arrived

    follower._endpoint.receive = stand_still  # type: ignore[method-assign]
    world.run_until(lambda: bool(taken_out))
    assert follower.raft.elections._heard_from_leader >= taken_out[-1]
