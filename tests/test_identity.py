"""Who belongs together: founding, lost disks, copies, strangers (docs/protocol.md), in virtual time."""

from __future__ import annotations

import logging
import shutil
from collections.abc import Callable, Iterable
from pathlib import Path

import msgspec
import pytest

from ondisk import diskkv
from ondisk.errors import ConfigurationError, Corrupt, OndiskError
from ondisk.raft import log as raftlog
from ondisk.raft.log import LogEntry, RaftLog
from ondisk.raft.members import Members
from ondisk.raft.messages import (
    AddReplica,
    AppendEntries,
    AppendEntriesAnswer,
    AppendEntriesRejection,
    AppendEntriesResponse,
    Change,
    Found,
    Membership,
    Message,
    Origin,
    Refused,
    RemoveReplica,
    ReplaceReplica,
    RequestVote,
    RequestVoteResponse,
    TransferLeadership,
)
from ondisk.replica import Replica
from ondisk.statemachine import Result
from tests.virtual import World, fill, put

FOREVER = float("inf")


def ask(world: World, leader: Replica, change: Change, seconds: float = 30.0) -> Result:
    future = leader.propose_change(change, FOREVER)
    world.run_until(future.done, seconds)
    return future.result()


def join(world: World, member: int) -> None:
    """Start a new replica, add it, and wait until everybody counts it."""
    world.start(member)
    assert ask(world, world.elect(), AddReplica(member)) == Result()
    world.run_until(lambda: all(member in each.status.voters for each in world.replicas.values()))


def replace_of(replica: Replica, member: int) -> ReplaceReplica:
    return ReplaceReplica(member, replica.raft.members.disk_of(member))


def groups(world: World) -> set[bytes]:
    return {replica.raft.members.group for replica in world.replicas.values()}


class Late(World):
    """Some of the first members are started only when a test says so."""

    def __init__(self, *args: object, late: Iterable[int] = (), **options: object) -> None:
        self.late = set(late)
        super().__init__(*args, founded=False, **options)  # type: ignore[arg-type, misc]

    def start(self, member: int) -> Replica:
        if member in self.late:
            return None  # type: ignore[return-value]
        return super().start(member)

    def now_start(self, member: int) -> Replica:
        self.late.discard(member)
        return self.start(member)


@pytest.fixture
def late(tmp_path: Path) -> Iterable[Callable[..., Late]]:
    worlds: list[Late] = []

    def make(*late: int, members: int = 3, seed: int = 1) -> Late:
        worlds.append(Late(tmp_path / f"late-{len(worlds)}", members, seed, late=late))
        return worlds[-1]

    yield make
    for world in worlds:
        world.close()


# Founding


def test_nothing_happens_before_all_first_members_are_there_and_the_status_names_who_is_missing(
    late: Callable[..., Late],
) -> None:
    """No timer decides: a majority of empty ones cannot know whether they have lost something."""
    world = late(3)
    world.run(30)
    assert groups(world) == {b""} and world.leader is None
    assert all("waiting for replica 3" in (each.status.error or "") for each in world.replicas.values())
    future = put(world.replicas[1], "k")
    world.run(1)
    assert not future.done()
    world.now_start(3)
    world.run_until(future.done, 3)
    (group,) = groups(world)
    assert group and all(each.status.error is None for each in world.replicas.values())


@pytest.mark.parametrize("members", [1, 3, 5])
def test_all_first_members_begin_with_the_same_members_and_each_with_its_own_disk(
    make_world: Callable[..., World], members: int
) -> None:
    """Whatever was said first by whom."""
    world = make_world(members=members)
    first = {replica.log.members_at(0) for replica in world.replicas.values() if replica.log}
    assert len(first) == 1
    (agreed,) = first
    assert agreed.voters == world.members
    assert dict(agreed.disks) == {m: r.log.disk_id for m, r in world.replicas.items() if r.log}
    fill(world, 3)


@pytest.mark.parametrize("moment", range(0, 24, 2))
def test_a_disk_that_is_lost_while_a_group_is_founded_never_makes_two_groups(
    late: Callable[..., Late], moment: int
) -> None:
    """Either it was founded with the lost disk, which is replaced, or all vote anew."""
    world = late(seed=moment + 1)
    for _ in range(moment):
        world.tick()
    world.wipe(1 + moment % 3)
    world.run_until(lambda: groups(world) != {b""} and b"" not in groups(world), 30)
    assert len(groups(world)) == 1
    fill(world, 5)
    world.run_until(lambda: all(len(each.status.voters) == 3 for each in world.replicas.values()))


def test_a_vote_for_a_group_survives_a_power_cut(late: Callable[..., Late]) -> None:
    """Or it could help to found a second one, in a round in which it has voted."""
    world = late()
    world.edit = lambda sender, to, message: [] if sender == 2 and world.now > 1000.01 else [message]
    world.run_until(lambda: bool(world.replicas[1].log.identity.roster))
    world.run(0.05)
    before = world.replicas[1].log.identity
    assert before.round > 0
    world.crash(1)
    after = world.start(1).log.identity
    assert (after.round, after.roster, after.disk) == (before.round, before.roster, before.disk)
    world.edit = None
    world.run_until(lambda: b"" not in groups(world))
    assert len(groups(world)) == 1


def test_a_vote_for_a_group_counts_in_its_own_round_only(tmp_path: Path) -> None:
    """Who gave it in an earlier one may have voted for other disks since."""
    log = RaftLog(tmp_path / "log", replica_id=1)
    founding = World.replica_type.founding_type(log, (1, 2, 3), "", lambda to, message: None)
    roster = ((1, log.disk_id, ""), (2, b"2" * 16, ""), (3, b"3" * 16, ""))

    def says(number: int, round_number: int) -> None:
        origin = Origin(b"", roster[number - 1][1], 1, number)
        founding.on_found(number, origin, Found((1, 2, 3), round=round_number, roster=roster))

    says(2, 1)
    says(3, 2)
    assert founding.step(0.0, frozenset()) is None
    assert log.identity is not None and (log.identity.round, log.identity.roster) == (2, roster)
    assert founding.step(1.0, frozenset()) is None, "the vote of 2 is of round 1"
    says(2, 2)
    members = founding.step(2.0, frozenset())
    assert members is not None and members.voters == (1, 2, 3)
    log.close()


@pytest.mark.parametrize("without", [2, 3])
def test_a_group_is_not_founded_before_the_last_one_has_voted(tmp_path: Path, without: int) -> None:
    """Its disk may be lost by then, and it with another one may found another group with the others."""
    log = RaftLog(tmp_path / "log", replica_id=1)
    founding = World.replica_type.founding_type(log, (1, 2, 3), "", lambda to, message: None)
    roster = ((1, log.disk_id, ""), (2, b"2" * 16, ""), (3, b"3" * 16, ""))
    for number in (2, 3):
        vote = Found((1, 2, 3)) if number == without else Found((1, 2, 3), round=1, roster=roster)
        founding.on_found(number, Origin(b"", roster[number - 1][1], 1, number), vote)
    for now in range(3):
        assert founding.step(float(now), frozenset()) is None
    assert log.identity is not None and log.identity.roster == roster
    log.close()


def test_members_that_were_told_different_lists_found_nothing_and_say_so(late: Callable[..., Late]) -> None:
    world = late(3)
    world.members = (1, 2)
    world.now_start(2) if 2 not in world.replicas else None
    world.members = (1, 2, 3)
    world.crash(2)
    world.members = (2, 3)
    world.now_start(2)
    world.members = (1, 2, 3)
    world.now_start(3)
    world.run(5)
    assert groups(world) == {b""}
    assert "was started with members [2, 3]" in (world.replicas[1].status.error or "")
    assert "was started with members [1, 2, 3]" in (world.replicas[2].status.error or "")


def test_an_operator_may_found_a_group_with_fewer(late: Callable[..., Late]) -> None:
    """Who comes later is no member, founds nothing, and can be added."""
    world = late(3)
    world.run(1)
    asked = world.replicas[1].found([1, 2])
    world.run_until(asked.done)
    asked.result()
    fill(world, 3)
    third = world.now_start(3)
    world.run(3)
    assert "not a member of group" in (third.status.error or "")
    assert ask(world, world.elect(), AddReplica(3)) == Result()
    world.run_until(lambda: all(each.status.voters == (1, 2, 3) for each in world.replicas.values()))
    assert len(groups(world)) == 1


def test_a_directory_of_another_group_keeps_the_others_from_founding_only_while_it_is_there(
    late: Callable[..., Late],
) -> None:
    """It was put in by mistake, and is taken away again: nobody else has to be started anew."""
    world = late(3)
    log = RaftLog(world.folder(3) / "log", replica_id=3)
    log.begin_group(Members((1, 2, 3), group=b"g" * 16, disks=((3, log.disk_id),)))
    log.close()
    stranger = world.now_start(3)
    world.run(1)
    assert all("group" in (world.replicas[member].status.error or "") for member in (1, 2))
    assert stranger.status.role != "failed" and b"" in groups(world)
    world.wipe(3)
    world.run_until(lambda: b"" not in groups(world), 10)
    assert len(groups(world)) == 1


def test_who_has_voted_or_belongs_to_a_group_founds_no_smaller_one(late: Callable[..., Late]) -> None:
    """What it has voted for may exist by now."""
    world = late()
    world.edit = lambda sender, to, message: [] if sender == 3 and world.now > 1000.01 else [message]
    world.run_until(lambda: bool(world.replicas[1].log.identity.roster))
    if not world.replicas[1].raft.members.group:
        asked = world.replicas[1].found([1])
        world.run_until(asked.done)
        assert isinstance(asked.exception(), ConfigurationError) and "has voted" in str(asked.exception())
    world.edit = None
    world.run_until(lambda: b"" not in groups(world))
    asked = world.replicas[1].found([1])
    world.run_until(asked.done)
    assert "belongs to group" in str(asked.exception())


# Lost disks


def test_a_lost_directory_and_a_late_first_start_elect_nobody_without_who_has_the_data(
    late: Callable[..., Late],
) -> None:
    """The group cannot exist before the late one is there; afterwards it cannot be founded again."""
    world = late()
    leader = world.elect()
    assert put(leader, "k") is not None
    fill(world, 1)
    other, third = world.others(leader.id)
    world.network.isolate(leader.id)
    for member in (other, third):
        world.wipe(member)
    world.run(30)
    assert all(not world.replicas[member].raft.members.group for member in (other, third))
    assert world.leader in (None, leader)
    world.network.heal()
    world.run(10)
    assert all(not world.replicas[member].raft.members.group for member in (other, third))
    assert "is disk" in (world.replicas[other].status.error or "")
    assert not leader.raft.is_leader, "two of three disks are gone: nobody may decide"


def test_the_vote_of_a_lost_disk_loses_no_acknowledged_write(world: World) -> None:
    """The leader is gone, the second replica has lost what it had acknowledged, the third never had it."""
    leader = world.elect()
    fill(world, 5)
    world.run(0.5)
    wiped, lagging = world.others(leader.id)
    world.network.isolate(lagging)
    precious = put(leader, "precious")
    world.run_until(precious.done)
    world.crash(leader.id)
    world.wipe(wiped)
    world.network.heal()
    world.run(20)
    assert world.leader is None
    world.start(leader.id)
    world.run_until(lambda: len(groups(world)) == 1 and world.converged())
    assert b"precious" in world.assert_equal()


@pytest.mark.parametrize("compacted", [False, True])
def test_a_lost_disk_is_replaced_fed_and_counts_again(world: World, compacted: bool) -> None:
    """By two changes in the log, which the leader makes by itself; the old disk never counts again."""
    leader = world.elect()
    fill(world, 50)
    world.run(0.5)
    if compacted:
        for replica in world.replicas.values():
            replica.compact()
        world.run(0.1)
    victim = world.others(leader.id)[0]
    old = world.replicas[victim].log.disk_id
    world.wipe(victim)
    new = world.replicas[victim].log.disk_id
    world.run_until(lambda: leader.raft.members.disk_of(victim) == new)
    assert old in leader.raft.members.replaced and old != new
    world.run_until(world.converged)
    assert len(world.assert_equal()) == 50
    world.crash(world.others(leader.id)[1])
    fill(world, 1, "with two")


def test_who_joined_on_the_word_of_one_that_knew_no_better_is_replaced_all_the_same(world: World) -> None:
    """The member that told it had committed no further than to where this number was a learner."""
    leader = world.elect()
    fill(world, 5)
    victim = world.others(leader.id)[0]
    members = leader.raft.members

    def outdated(sender: int, to: int, message: Message) -> list[Message]:
        if to == victim and isinstance(message, Membership):
            voters = tuple(world.others(victim))
            return [Membership(1, msgspec.structs.replace(members, voters=voters, learners=(victim,)))]
        return [message]

    world.edit = outdated
    world.wipe(victim)
    world.run_until(lambda: bool(world.replicas[victim].raft.members.group))
    world.edit = None
    new = world.replicas[victim].log.disk_id
    world.run_until(lambda: leader.raft.members.disk_of(victim) == new)
    world.run_until(world.converged)
    assert len(world.assert_equal()) == 5


def test_a_disk_that_was_replaced_is_not_heard_when_it_comes_back_and_says_why(world: World) -> None:
    """It was only away, and another directory has taken its place."""
    leader = world.elect()
    fill(world, 5)
    victim = world.others(leader.id)[0]
    world.stop(victim)
    aside = world.folder(victim).rename(world.folder(victim).with_name("aside"))
    world.start(victim)
    world.run_until(lambda: victim in leader.raft.members.voters and len(leader.raft.members.replaced) == 1)
    world.run_until(world.converged)
    world.stop(victim)
    shutil.rmtree(world.folder(victim))
    aside.rename(world.folder(victim))
    term = leader.raft.term
    back = world.start(victim)
    world.run_until(lambda: back.status.role == "failed", 10)
    assert "replaced" in (back.status.error or "")
    assert leader.raft.is_leader and leader.raft.term == term
    with pytest.raises(Corrupt, match="replaced"):
        world.start(victim)


def test_a_lost_disk_is_not_replaced_while_the_others_are_no_majority(world: World) -> None:
    """Nothing is changed: the group would stand still for ever. It goes on when they are back."""
    leader = world.elect()
    fill(world, 5)
    lost, away = world.others(leader.id)
    world.crash(away)
    world.wipe(lost)
    world.run(20)
    assert leader.raft.members.voters == world.members
    assert world.leader is None
    world.start(away)
    world.run_until(lambda: len(groups(world)) == 1 and world.converged(), 60)
    assert len(world.assert_equal()) == 5


def test_a_second_replica_with_the_number_of_one_that_lives_is_told_so(world: World) -> None:
    """Two live replicas with one number: the one whose disk counts goes on."""
    leader = world.elect()
    fill(world, 3)
    number = world.others(leader.id)[0]
    twin = Origin(b"", b"t" * 16, 1, 7)
    receive = leader._endpoint.receive
    leader._endpoint.receive = lambda: [*receive(), (number, twin, Found(world.members))]  # type: ignore[method-assign]
    told: list[str] = []
    world.edit = lambda sender, to, message: (
        told.append(str(message)) or [message] if isinstance(message, Refused) else [message]
    )
    world.run(4)
    assert told and "is alive, with disk" in told[0]
    assert leader.raft.members.voters == world.members and not leader.raft.members.replaced


def test_what_another_disk_acknowledges_under_the_number_of_a_voter_counts_for_nothing(world: World) -> None:
    leader = world.elect()
    fill(world, 3)
    world.run(1)
    follower, raft = world.others(leader.id)[0], leader.raft
    before = raft.match_index[follower]
    with raft.at(world.now):
        raft.membership.speaks(follower, b"another disk 123")
        raft.append([diskkv.put("k", "v")])
        raft.receive(
            follower,
            AppendEntriesResponse(raft.term, leader.log.last_index, before, raft.leader.rounds.newest),
        )
    assert raft.match_index[follower] == before < leader.log.last_index


def test_what_a_learner_had_acknowledged_is_forgotten_with_its_disk(world: World) -> None:
    """Or it would be made a voter for what the disk before it held."""
    leader = world.elect()
    fill(world, 5)
    leader.raft.changes._promote_learners = lambda: None  # type: ignore[method-assign]
    world.start(4)
    assert ask(world, leader, AddReplica(4)) == Result()
    world.run_until(lambda: leader.raft.match_index[4] == leader.log.last_index)
    world.edit = lambda sender, to, message: (
        [] if to == 4 and isinstance(message, AppendEntries) else [message]
    )
    world.wipe(4)
    world.run_until(lambda: bool(world.replicas[4].raft.members.group))
    world.run(2.5)  # it has asked for a leader since
    assert leader.raft.match_index[4] == 0
    del leader.raft.changes._promote_learners
    world.edit = None
    world.run_until(lambda: 4 in leader.raft.members.voters and world.converged())
    assert len(world.assert_equal()) == 5


def test_rebuilding_the_only_voter_is_refused(make_world: Callable[..., World]) -> None:
    world = make_world(members=1)
    leader = world.elect()
    assert "last voter" in str(ask(world, leader, replace_of(leader, 1)).error)


def test_a_grown_group_is_not_founded_again_by_its_first_member_that_was_erased(
    make_world: Callable[..., World],
) -> None:
    """It was founded alone, and its start script still says so."""
    from ondisk.snapshot.restore import begin_directory

    world = make_world(members=1)
    fill(world, 3)
    join(world, 2)
    join(world, 3)
    assert ask(world, world.elect(), TransferLeadership(2)) == Result()
    leader = world.replicas[2]
    world.run_until(lambda: leader.raft.is_leader and leader.raft.leader.committed_in_current_term())
    assert ask(world, leader, replace_of(leader, 1)) == Result()
    world.network.isolate(1)
    world.crash(1)
    shutil.rmtree(world.folder(1))
    begin_directory(world.folder(1), 1, existing=leader.raft.members.group)
    erased = world.start(1)
    world.network.isolate(1)
    world.run(20)
    assert not erased.raft.is_leader and not erased.raft.members.group
    world.network.heal()
    world.run_until(lambda: all(each.status.voters == (1, 2, 3) for each in world.replicas.values()))
    assert len(groups(world)) == 1


def test_a_group_of_one_that_belongs_to_a_larger_one_stops_and_says_so(
    make_world: Callable[..., World],
) -> None:
    """Its directory was deleted by hand, and its start script still founds a group of one."""
    world = make_world(members=1)
    fill(world, 3)
    join(world, 2)
    join(world, 3)
    assert ask(world, world.elect(), TransferLeadership(2)) == Result()
    world.run(1)
    world.wipe(1)
    alone = world.replicas[1]
    world.run_until(lambda: alone.status.role == "failed", 5)
    assert "group" in (alone.status.error or "") and "of its own" in (alone.status.error or "")


def test_a_second_directory_of_a_group_under_a_living_number_replaces_nobody(world: World) -> None:
    """It belongs to the group, and its disk is not the one that counts: the other one goes on to count."""
    leader = world.elect()
    fill(world, 3)
    number = world.others(leader.id)[0]
    twin = Origin(leader.raft.members.group, b"t" * 16, 1, 7)
    receive, asked = leader._endpoint.receive, RequestVote(0, 0, 0, pre=True)
    leader._endpoint.receive = lambda: [*receive(), (number, twin, asked)]  # type: ignore[method-assign]
    world.run(5)
    assert leader.raft.is_leader and not leader.raft.members.replaced
    world.crash(world.others(leader.id)[1])
    fill(world, 3, "with the living one")


def test_a_disk_that_denies_what_it_has_acknowledged_is_refused(world: World) -> None:
    """A copy that was made while it ran, and put in its place, before anybody could tell their lives "
    "apart."""
    leader = world.elect()
    fill(world, 20)
    world.run(0.5)
    follower = world.replicas[world.others(leader.id)[0]]
    match = leader.raft.match_index[follower.id]
    with leader.raft.at(world.now):
        leader.raft.receive(
            follower.id,
            AppendEntriesRejection(leader.raft.term, 5, match - 3, leader.raft.leader.rounds.newest),
        )
    assert leader.raft.match_index[follower.id] == match
    world.run_until(lambda: follower.status.role == "failed")
    assert "old copy" in (follower.status.error or "")


# Copies and strangers


def copy_of(world: World, member: int) -> Path:
    """What a copy of its directory holds when it is stopped for a moment."""
    world.stop(member)
    copy = Path(shutil.copytree(world.folder(member), world.folder(member).with_name(f"copy-{member}")))
    world.start(member)
    return copy


@pytest.mark.parametrize("all_restarted", [False, True])
def test_an_old_copy_that_is_put_back_is_refused_however_often_it_is_started(
    world: World, all_restarted: bool
) -> None:
    """It has forgotten what was promised since: votes, and acknowledged entries."""
    world.elect()
    fill(world, 5)
    victim = 3
    copy = copy_of(world, victim)
    world.run(1)
    fill(world, 20, "since")
    world.run(2)
    world.stop(victim)
    shutil.rmtree(world.folder(victim))
    copy.rename(world.folder(victim))
    if all_restarted:
        for member in (1, 2):
            world.crash(member)
            world.start(member)
    for attempt in range(6):  # a supervisor
        try:
            back = world.start(victim)
        except Corrupt as error:
            assert attempt > 0 and "copy" in str(error)
            break
        world.run_until(lambda back=back: back.status.role == "failed", 10)
        assert "copy" in (back.status.error or "")
        del world.replicas[victim]
    else:
        pytest.fail("it was never told")


def test_a_copy_from_before_a_replica_belonged_to_the_group_is_refused_too(world: World) -> None:
    """It says that it is empty, and the members name its disk: nobody would ever feed it, or replace it."""
    world.start(4)
    world.run(0.5)
    copy = copy_of(world, 4)
    fill(world, 5)
    assert ask(world, world.elect(), AddReplica(4)) == Result()
    world.run_until(lambda: all(4 in each.status.voters for each in world.replicas.values()))
    world.run(1)
    world.stop(4)
    shutil.rmtree(world.folder(4))
    copy.rename(world.folder(4))
    back = world.start(4)
    world.run_until(lambda: back.status.role == "failed", 10)
    assert "copy" in (back.status.error or "")


def test_lives_that_nobody_could_tell_of_do_not_make_an_old_copy_new(world: World) -> None:
    """It was started often while it was cut off, so it counts as many lives as the real one, and more."""
    world.elect()
    fill(world, 5)
    copy = copy_of(world, 3)
    world.run(1)
    fill(world, 5, "since")
    world.stop(3)
    shutil.rmtree(world.folder(3))
    copy.rename(world.folder(3))
    for _ in range(5):
        world.start(3)
        world.stop(3)
    back = world.start(3)
    assert back.log.identity.boot > max(boot for boot, _ in world.replicas[1].log.lives.values())
    world.run_until(lambda: back.status.role == "failed", 10)
    assert "copy" in (back.status.error or "")


def test_a_replica_that_was_restarted_often_while_nobody_saw_it_is_heard(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    """More often than the numbers of its lives are kept."""
    monkeypatch.setattr(raftlog, "_NONCES", 4)
    world.elect()
    fill(world, 5)
    world.stop(3)
    for _ in range(6):
        world.start(3)
        world.network.isolate(3)
        world.crash(3)
    world.network.heal()
    world.start(3)
    world.run_until(world.converged)
    world.crash(1 if world.leader is None or world.leader.id != 1 else 2)
    fill(world, 3, "with it")


def test_a_directory_of_another_group_is_refused_with_both_names(
    make_world: Callable[..., World],
) -> None:
    """Whatever its term is, and also if it has seen more. It stops; the others go on."""
    ours, theirs = make_world(), make_world(seed=2)
    for world in (ours, theirs):
        world.elect()
        fill(world, 10 if world is ours else 50)
        world.run(1)
    for _ in range(3):  # a higher term
        theirs.crash(theirs.elect().id)
        for member in theirs.members:
            if member not in theirs.replicas:
                theirs.start(member)
        theirs.elect()
    theirs.run(1)
    theirs.stop(3)
    group = (ours.elect().raft.members.group.hex()[:8], theirs.elect().raft.members.group.hex()[:8])
    ours.stop(3)
    shutil.rmtree(ours.folder(3))
    shutil.copytree(theirs.folder(3), ours.folder(3))
    stranger = ours.start(3)
    before = ours.elect().raft.term
    ours.run_until(lambda: stranger.status.role == "failed", 20)
    assert all(name in (stranger.status.error or "") for name in group)
    fill(ours, 3, "on")
    assert ours.elect().raft.term - before <= 1
    ours.run_until(lambda: all(len(ours.content(member)) == 13 for member in (1, 2)))


@pytest.mark.parametrize("of_one_group", [False, True])
def test_a_replica_takes_itself_for_the_stranger_only_among_a_majority_of_one_other_group(
    make_world: Callable[..., World], of_one_group: bool, caplog: pytest.LogCaptureFixture
) -> None:
    """Two that come from two groups are in the wrong place themselves."""
    ours, *theirs = (make_world(seed=seed) for seed in (1, 2, 3))
    for world in (ours, *theirs):
        world.elect()
        fill(world, 5)
        for member in (2, 3):
            world.stop(member)
    for member, world in zip((2, 3), [theirs[0]] * 2 if of_one_group else theirs, strict=True):
        shutil.rmtree(ours.folder(member))
        shutil.copytree(world.folder(member), ours.folder(member))
        ours.start(member)
    ours.run(20)
    assert (ours.replicas[1].status.role == "failed") == of_one_group
    assert "put in from elsewhere" in (ours.replicas[1].status.error or "")
    said = [record.getMessage() for record in caplog.records if record.levelno >= logging.WARNING]
    assert len(said) == len(set(said)) > 0  # once, not whenever they meet


def test_a_directory_opened_under_another_number_is_refused(world: World) -> None:
    world.elect()
    world.stop(1)
    world.stop(2)
    world.folder(1).rename(world.folder(1).with_name("aside"))
    world.folder(2).rename(world.folder(1))
    with pytest.raises(ConfigurationError, match=r"belongs to replica 2 .* opened for replica 1"):
        world.start(1)


@pytest.mark.parametrize("how", ["of another replica", "without its mark", "the log is new"])
def test_a_state_and_a_log_that_do_not_belong_together_are_refused(world: World, how: str) -> None:
    """Both are whole; only together they are not."""
    world.elect()
    fill(world, 5)
    world.run(1.5)
    world.stop(1)
    world.stop(2)
    state = world.folder(1) / "state"
    if how == "the log is new":
        shutil.rmtree(world.folder(1) / "log")
    else:
        shutil.rmtree(state)
        shutil.copytree(world.folder(2) / "state", state)
        if how == "without its mark":
            (state / "belongs-to").unlink()
    with pytest.raises(Corrupt, match=r"state .*replica 1"):
        world.start(1)


# Changes of members


def test_a_removal_that_would_leave_no_majority_is_refused_and_changes_nothing(world: World) -> None:
    """One machine is down; the operator removes the other one, which is alive."""
    leader = world.elect()
    fill(world, 3)
    world.run(1)
    down, alive = world.others(leader.id)
    world.crash(down)
    world.run(0.5)
    result = ask(world, world.replicas[alive], RemoveReplica(alive), 10)
    assert f"[{down}] did not answer" in str(result.error)
    assert leader.raft.members.voters == world.members
    fill(world, 3, "on")


def test_a_change_waits_for_the_answers_of_a_majority_that_were_asked_for_after_it(world: World) -> None:
    """What was answered before says nothing about now."""
    leader = world.elect()
    world.run(1)
    first, second = world.others(leader.id)
    for member in (first, second):
        world.network.stall((leader.id, member))
    future = leader.propose_change(RemoveReplica(second), FOREVER)
    world.run(0.5)
    assert leader.raft.members.voters == world.members and not future.done()
    world.network.heal()
    world.run_until(future.done)
    assert future.result() == Result()


def test_an_uncommitted_removal_and_a_lost_disk_lose_no_acknowledged_write(world: World) -> None:
    """The deposed leader's newest members are itself and the number whose disk was lost."""
    old = world.elect()
    fill(world, 1)
    world.run(3.5)
    new, wiped = world.others(old.id)
    world.network.cut((old.id, new), (old.id, wiped), (new, old.id), (wiped, old.id))
    world.edit = lambda sender, _, message: (
        [] if sender == wiped and isinstance(message, RequestVote) else [message]
    )
    old.raft.changes._passes_check = lambda *_: True  # type: ignore[method-assign]
    old.propose_change(RemoveReplica(new), FOREVER)
    world.run(0.02)
    assert old.status.voters == tuple(sorted((old.id, wiped)))
    elected = world.replicas[new]
    world.run_until(lambda: elected.raft.is_leader and elected.raft.leader.committed_in_current_term())
    acknowledged = put(elected, "X")
    world.run_until(acknowledged.done)
    world.edit = None
    world.network.isolate(new)
    world.wipe(wiped)
    world.network.heal((old.id, wiped), (wiped, old.id))
    other = put(old, "Y")
    world.run(10)
    assert not other.done() or isinstance(other.exception(), OndiskError)
    world.network.heal()
    world.run_until(lambda: len(groups(world)) == 1 and world.converged(), 60)
    assert b"X" in world.assert_equal() and b"Y" not in world.assert_equal()


# Evidence has a time


def test_a_leader_that_was_frozen_does_not_go_on_with_answers_from_before(world: World) -> None:
    """The answer was in its inbox; meanwhile another leader was elected, and a disk was lost."""
    old = world.elect()
    fill(world, 1)
    world.run(3.5)
    new, wiped = world.others(old.id)
    sent = len(world.sent)
    world.edit = lambda sender, to, message: [] if (sender, to) == (old.id, wiped) else [message]
    world.run_until(
        lambda: any(
            event.sender == new
            and event.receiver == old.id
            and isinstance(event.message, AppendEntriesAnswer)
            for event in world.sent[sent:]
        )
    )
    world.frozen.add(old.id)
    world.run(0.006)
    world.network._deliver_due(old.id)  # it is in its inbox, and is not read
    world.network.cut((new, old.id), (wiped, old.id), (old.id, new), (old.id, wiped))
    world.edit = lambda sender, to, message: (
        [] if sender == wiped and isinstance(message, RequestVote) else [message]
    )
    elected = world.replicas[new]
    world.run_until(lambda: elected.raft.is_leader and elected.raft.leader.committed_in_current_term(), 10)
    acknowledged = put(elected, "X")
    world.run_until(acknowledged.done)
    world.edit = None
    world.crash(new)
    world.wipe(wiped)
    world.run(6)
    world.network.heal((old.id, wiped), (wiped, old.id))
    world.frozen.clear()
    other = put(old, "Y")
    world.tick()
    assert not old.raft.is_leader, "its evidence is from before it was frozen"
    world.run(8)
    assert not other.done()
    world.start(new)
    world.network.heal()
    world.run_until(lambda: len(groups(world)) == 1 and world.converged(), 60)
    assert b"X" in world.assert_equal()


def test_a_read_is_confirmed_only_by_answers_to_what_was_sent_after_it_was_asked(world: World) -> None:
    """An answer that was stalled for long says who led when it was given.

    The follower confirms nothing new while its answers are held back; another leader is elected meanwhile.
    """
    old = world.elect()
    fill(world, 1)
    world.run(1)
    new, other = world.others(old.id)
    world.network.stall((new, old.id))
    world.network.cut((other, old.id), (old.id, other))
    world.run(0.5)  # answers of the one gather, and are old by now
    world.network.cut((old.id, new))
    world.network.heal((new, other), (other, new))
    candidates = [world.replicas[new], world.replicas[other]]
    old.raft.check_quorum_seconds = 1000.0  # it would step down
    world.run_until(
        lambda: any(c.raft.is_leader and c.raft.leader.committed_in_current_term() for c in candidates), 10
    )
    elected = next(each for each in candidates if each.raft.is_leader)
    written = elected.propose(diskkv.put("k0", "new"), FOREVER)
    world.run_until(written.done)
    assert old.raft.is_leader
    barrier = old.read_barrier(FOREVER)
    world.tick()
    # Only what it said before it was deposed arrives.
    world.edit = lambda sender, to, message: [] if sender in (new, other) and to == old.id else [message]
    link = world.network._links[new, old.id]
    link.queue = type(link.queue)(w for w in link.queue if getattr(w.message, "term", 0) == old.raft.term)
    assert any(isinstance(waiting.message, AppendEntriesAnswer) for waiting in link.queue)
    link.stalled = False
    world.run(0.5)
    assert not barrier.done(), f"it would read {old.lookup(diskkv.get('k0'))!r}, and 'new' was acknowledged"


@pytest.mark.parametrize("between", ["nothing", "the timer", "an older term", "a prevote"])
def test_a_voter_counts_once_whatever_comes_between_its_answers(
    make_world: Callable[..., World], between: str
) -> None:
    """Of five voters two are no majority of others, however often one of them says so."""
    world = make_world(members=5)
    candidate = world.replicas[1]
    raft = candidate.raft
    for member in world.others(1):
        world.frozen.add(member)
    world.network.isolate(1)
    for peer in world.others(1):
        raft.membership.speaks(peer, raft.members.disk_of(peer))
    raft.set_connected(frozenset(world.others(1)))
    with raft.at(world.now):
        raft.elections._ask_before_election()
        for peer in (2, 3):
            raft.receive(peer, RequestVoteResponse(raft.term + 1, pre=True))
        raft.tick()
        assert raft.role == "candidate"
        term = raft.term
        raft.receive(2, RequestVoteResponse(term, pre=False))
    later = world.now
    if between == "the timer":
        later = raft.election_deadline + 0.001
    with raft.at(later):
        if between == "the timer":
            raft.tick()
        elif between == "an older term":
            raft.receive(2, RequestVoteResponse(term - 1, pre=False))
        elif between == "a prevote":
            raft.receive(2, RequestVoteResponse(term + 1, pre=True))
        for _ in range(3):
            raft.receive(2, RequestVoteResponse(term, pre=False))
        assert raft.role == "candidate"
        if between != "the timer":
            raft.receive(3, RequestVoteResponse(term, pre=False))
            assert raft.role == "leader"


def test_an_acknowledgement_of_what_the_leader_does_not_have_is_not_believed(
    world: World, caplog: pytest.LogCaptureFixture
) -> None:
    leader = world.elect()
    fill(world, 3)
    follower = world.others(leader.id)[0]
    match = leader.raft.match_index[follower]
    with leader.raft.at(world.now):
        last = leader.log.last_index
        leader.raft.receive(follower, AppendEntriesResponse(leader.raft.term, last + 5, last, 1))
    assert leader.raft.match_index[follower] == match
    assert "is not believed" in caplog.text


@pytest.mark.parametrize("where", ["before", "within"])
def test_a_leader_that_contradicts_what_is_committed_is_not_followed(world: World, where: str) -> None:
    """Neither skipped nor acknowledged: this directory has another history, and the replica says so."""
    leader = world.elect()
    fill(world, 5)
    world.run(0.5)
    follower = world.replicas[world.others(leader.id)[0]]
    world.network.isolate(follower.id)
    index, term = follower.raft.commit_index, follower.raft.term + 7
    other = LogEntry(index, term, b"\x00x")
    message: Message = (
        AppendEntries(term, index, term, [], index, 0)
        if where == "before"
        else AppendEntries(term, index - 1, follower.log.term_at(index - 1) or 0, [other], index, 0)
    )
    sender, receive = world.others(follower.id)[0], follower._endpoint.receive
    origin = world.replicas[sender]._origins.own()
    follower._endpoint.receive = lambda: [*receive(), (sender, origin, message)]  # type: ignore[method-assign]
    world.tick()
    assert follower.status.role == "failed"
    assert f"entry {index} is committed here" in str(follower.status.error)


def test_any_member_passes_on_who_belongs_to_the_group(world: World) -> None:
    """To each other, and to who has none: so everybody finds the leader."""
    world.elect()
    world.run(0.5)
    told = {(event.sender, event.receiver) for event in world.sent if isinstance(event.message, Membership)}
    assert told >= {(1, 2), (2, 1), (1, 3), (3, 1), (2, 3), (3, 2)}
    world.start(4)
    world.run(0.5)
    assert any(event.receiver == 4 and isinstance(event.message, Membership) for event in world.sent)


def test_a_change_needs_more_than_half_of_the_new_voters_and_half_is_not_enough(
    make_world: Callable[..., World],
) -> None:
    """Of five voters one is removed while others are away, and the leader has not noticed that yet."""
    for away, enough in ((1, True), (2, False), (3, False)):
        world = make_world(members=5)
        leader = world.elect()
        fill(world, 3)
        world.run(1)
        others = world.others(leader.id)
        leader.raft.check_quorum_seconds = 1000.0  # it goes on to lead
        leader.raft._SyncObj__conf.leaderFallbackTimeout = 1000.0
        for member in others[:away]:
            world.network.isolate(member)
        future = leader.propose_change(RemoveReplica(others[-1]), FOREVER)
        world.run(5)
        assert (others[-1] in leader.raft.members.removed) == enough
        if not enough:
            assert "did not answer" in str(future.result(0).error)


def test_a_leader_that_may_not_replace_a_lost_disk_goes_on_and_tries_again(
    world: World, caplog: pytest.LogCaptureFixture
) -> None:
    """The others are not caught up enough, say. That is no reason to stop."""
    leader = world.elect()
    fill(world, 3)
    there = leader.raft.changes._is_there
    leader.raft.changes._is_there = lambda *_: False  # type: ignore[method-assign]
    victim = world.others(leader.id)[0]
    world.wipe(victim)
    world.run(8)
    assert leader.raft.is_leader and not leader.raft.members.replaced
    assert "cannot be replaced" in caplog.text
    leader.raft.changes._is_there = there  # type: ignore[method-assign]
    world.run_until(lambda: len(leader.raft.members.replaced) == 1)


def test_a_tail_that_was_never_committed_is_found_in_a_few_round_trips(world: World) -> None:
    """A deposed leader has a thousand entries that the next one lacks: not one round trip for each."""
    old = world.elect()
    fill(world, 3)
    world.run(0.5)
    world.network.isolate(old.id)
    for number in range(1000):
        put(old, f"lost{number}")
    world.run(0.1)
    assert old.log.last_index > 1000
    world.run_until(lambda: world.leader is not None and world.leader.id != old.id)
    fill(world, 1200, "kept")
    before = len(world.messages(AppendEntriesRejection, old.id))
    world.network.heal()
    world.run_until(lambda: old.log.last_index == world.elect().log.last_index, 10)
    denied = world.messages(AppendEntriesRejection, old.id)[before:]
    assert len(denied) < 10
