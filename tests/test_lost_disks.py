"""Lost disks: what becomes of who has lost its directory, and of its number (docs/protocol.md)."""

from __future__ import annotations

import shutil
from collections.abc import Callable

import msgspec
import pytest

from ondisk import diskkv
from ondisk.errors import Corrupt
from ondisk.raft.messages import (
    AddReplica,
    AppendEntries,
    AppendEntriesRejection,
    AppendEntriesResponse,
    Found,
    Membership,
    Message,
    Origin,
    Refused,
    ReplaceReplica,
    RequestVote,
    TransferLeadership,
)
from ondisk.replica import Replica
from ondisk.statemachine import Result
from tests.virtual import Late, World, ask, fill, groups, join, put


def replace_of(replica: Replica, member: int) -> ReplaceReplica:
    return ReplaceReplica(member, replica.raft.members.disk_of(member))


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
    assert leader.raft.members.voters == world.first_members
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
    leader._endpoint.receive = lambda: [*receive(), (number, twin, Found(world.first_members))]  # type: ignore[method-assign]
    told: list[str] = []
    world.edit = lambda sender, to, message: (
        told.append(str(message)) or [message] if isinstance(message, Refused) else [message]
    )
    world.run(4)
    assert told and "is alive, with disk" in told[0]
    assert leader.raft.members.voters == world.first_members and not leader.raft.members.replaced


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


def grown_from_one(make_world: Callable[..., World]) -> World:
    """Founded by replica 1 alone, joined by 2 and 3, and led by 2 from now on."""
    world = make_world(members=1)
    fill(world, 3)
    join(world, 2)
    join(world, 3)
    assert ask(world, world.elect(), TransferLeadership(2)) == Result()
    return world


def test_rebuilding_the_only_voter_is_refused(make_world: Callable[..., World]) -> None:
    world = make_world(members=1)
    leader = world.elect()
    assert "last voter" in str(ask(world, leader, replace_of(leader, 1)).error)


def test_a_grown_group_is_not_founded_again_by_its_first_member_that_was_erased(
    make_world: Callable[..., World],
) -> None:
    """It was founded alone, and its start script still says so."""
    from ondisk.snapshot.restore import begin_directory

    world = grown_from_one(make_world)
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
    world = grown_from_one(make_world)
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
