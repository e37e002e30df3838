"""Replicas that have forgotten, and directories with another history: they must not count, or be heard."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from ondisk import Cluster, diskkv
from ondisk.messages import (
    AddReplica,
    AppendEntries,
    RemoveReplica,
    TransferLeadership,
    Vote,
)
from ondisk.raftlog import LogEntry
from ondisk.replica import Replica
from ondisk.restore import import_snapshot
from ondisk.statemachine import Result
from tests.virtual import World
from tests.waiting import wait_until

FOREVER = float("inf")


def ask(world: World, leader: Replica, *changes: AddReplica | RemoveReplica | TransferLeadership) -> None:
    for change in changes:
        future = leader.propose_change(change, FOREVER)
        world.run_until(future.done)
        assert future.result() == Result()


def assert_not_acknowledged(world: World, deposed: Replica, wiped: int) -> None:
    """What a deposed leader takes in that meets the wiped replica alone is lost: it must not be answered."""
    assert deposed.raft.is_leader and deposed.log is not None
    before = deposed.log.last_index
    future = deposed.propose(diskkv.put("k", "v"), FOREVER)
    world.run_until(lambda: not deposed.raft.is_leader, 5)
    assert deposed.log.last_index > before, "it was taken in"
    assert not future.done()
    assert world.replicas[wiped].log.last_index == 0


def test_a_wiped_voter_does_not_help_the_first_leader_of_a_group_that_it_has_helped_to_depose(
    make_world: Callable[..., World],
) -> None:
    """In the first term there is nothing else that would tell a new group from one with a wiped replica."""
    world = make_world()
    world.edit = lambda _, to, message: [] if isinstance(message, AppendEntries) else [message]
    world.run_until(lambda: world.leader is not None)
    first = world.leader
    assert first is not None
    world.network.isolate(first.id)
    world.run_until(lambda: world.leader is not first)
    second = world.leader
    assert second is not None and first.raft.is_leader
    (wiped,) = set(world.members) - {first.id, second.id}
    world.network.isolate(second.id)
    world.wipe(wiped)
    world.network.heal((first.id, wiped), (wiped, first.id))
    world.edit = None
    assert_not_acknowledged(world, first, wiped)


def test_a_wiped_member_that_was_added_later_does_not_help_whom_it_has_helped_to_depose(
    make_world: Callable[..., World],
) -> None:
    """It is started again without members, as when it was new, and yet it counts."""
    world = make_world()
    leader = world.elect()
    if leader.id != 1:
        ask(world, leader, TransferLeadership(1))
        world.run_until(lambda: world.elect().id == 1)
    old = world.elect()
    world.start(4)
    ask(world, old, AddReplica(4))
    world.run_until(lambda: 4 in old.status.voters)
    ask(world, old, RemoveReplica(3))
    world.run(1)
    new = world.replicas[2]
    world.network.cut((2, 1), (4, 1))
    world.network.isolate(1)
    world.run_until(lambda: new.raft.is_leader)
    world.wipe(4)
    world.network.partition({2}, {1, 4})
    world.network.heal((1, 4), (4, 1))
    assert_not_acknowledged(world, old, 4)


def test_a_replica_without_memory_need_not_wait_where_all_others_follow_the_leader(
    make_world: Callable[..., World],
) -> None:
    """A third one that is started late, or has lost its directory: soon the group can lose another one."""
    world = make_world()
    leader = world.elect()
    future = leader.propose(diskkv.put("k", "v"), FOREVER)
    world.run_until(future.done)
    for _ in range(2):
        late, other = world.others(leader.id)
        world.wipe(late)
        world.run_until(lambda late=late: world.replicas[late].log.admitted, 0.5)
        assert world.now < world.replicas[late].raft._quiet_until
    world.crash(other)
    future = leader.propose(diskkv.put("l", "v"), FOREVER)
    world.run_until(future.done, 0.5)


def test_nobody_vouches_while_another_voter_may_still_collect_votes(make_world: Callable[..., World]) -> None:
    """With the forgotten one, and one of those who follow the leader now."""
    world = make_world(members=5)
    leader = world.elect()
    future = leader.propose(diskkv.put("k", "v"), FOREVER)
    world.run_until(future.done)
    candidate, wiped = world.others(leader.id)[:2]
    world.network.isolate(candidate)
    world.wipe(wiped)
    world.run(1.5)
    assert leader.raft.is_leader and world.replicas[wiped].log.last_index == 0
    world.network.heal()
    world.run_until(lambda: world.replicas[wiped].log.admitted, 1.0)
    assert world.now < world.replicas[wiped].raft._quiet_until


def test_nobody_vouches_for_an_earlier_life(make_world: Callable[..., World]) -> None:
    """A replica that has lost its directory once more may have forgotten another vote."""
    world = make_world()
    leader = world.elect()
    late = world.others(leader.id)[0]
    world.wipe(late)
    numbers = {world.replicas[late].raft._quiet_number}
    world.run_until(lambda: world.replicas[late].log.admitted)
    term = leader.raft.term
    world.network.isolate(late)
    world.wipe(late)
    replica = world.replicas[late]
    numbers.add(replica.raft._quiet_number)
    assert len(numbers) == 2
    with replica.raft.at(world.now):
        for number in (0, *(numbers - {replica.raft._quiet_number})):
            replica.raft.receive(
                leader.id, AppendEntries(term, 0, 0, [LogEntry(1, term, b"\x00x")], 0, 0, number)
            )
    assert replica.log.last_index == 0


def test_a_new_group_need_not_wait_until_nobody_is_quiet_any_more(make_world: Callable[..., World]) -> None:
    """Who votes will not forget that, so it may be counted."""
    for members in (3, 5):
        world = make_world(members=members)
        leader = world.elect()
        future = leader.propose(diskkv.put("k", "v"), FOREVER)
        world.run_until(future.done)
        assert world.now < min(replica.raft._quiet_until for replica in world.replicas.values())


@pytest.mark.parametrize("where", ["before", "within"])
def test_a_leader_that_contradicts_what_is_committed_is_not_followed(
    make_world: Callable[..., World], where: str
) -> None:
    """Neither skipped nor acknowledged: this directory has another history, and the replica says so."""
    world = make_world()
    leader = world.elect()
    for number in range(5):
        future = leader.propose(diskkv.put(f"k{number}", "v"), FOREVER)
        world.run_until(future.done)
    world.run(0.5)
    follower = world.replicas[world.others(leader.id)[0]]
    world.network.isolate(follower.id)
    index, term = follower.raft.commit_index, follower.raft.term + 7
    other = LogEntry(index, term, b"\x00x")
    message = (
        AppendEntries(term, index, term, [], index, 0)
        if where == "before"
        else AppendEntries(term, index - 1, follower.log.term_at(index - 1) or 0, [other], index, 0)
    )
    sender, receive = world.others(follower.id)[0], follower._endpoint.receive
    follower._endpoint.receive = lambda: [*receive(), (sender, message)]  # type: ignore[method-assign]
    world.tick()
    assert follower.status.role == "failed"
    assert f"entry {index} is committed here" in str(follower.status.error)
    assert "another history" in str(follower.status.error)


def test_a_directory_that_was_left_out_of_an_import_is_not_taken_in(tmp_path: Path) -> None:
    """What was rolled back would be there again, on that replica alone."""
    with Cluster(tmp_path / "data") as cluster:
        for number in range(20):
            cluster.put(f"k{number}", "v", timeout=10)
        cluster.export_snapshot(cluster.wait_for_leader(), tmp_path / "backup")
        for number in range(20):
            cluster.put(f"rolled back {number}", "v")
        wait_until(lambda: len({status.applied_index for status in cluster.status().values()}) == 1)
    import_snapshot(tmp_path / "backup", tmp_path / "data", members=[1])
    with Cluster(tmp_path / "data", members=[1]) as cluster:
        cluster.put("after", "v", timeout=10)
        with pytest.raises(Exception, match=r"caught up|stopped|failed"):
            cluster.add_replica(2, timeout=5)
        wait_until(lambda: cluster.status()[2].role == "failed")
        assert "another history" in str(cluster.status()[2].error)
        assert cluster.get("rolled back 3", via=1) is None


def test_a_vote_of_an_election_that_is_over_does_not_make_the_next_one_count_twice(
    make_world: Callable[..., World],
) -> None:
    """One voter of five, three times, with one of an older term in between."""
    world = make_world(members=5)
    world.edit = lambda _, to, message: [] if isinstance(message, Vote) and not message.pre else [message]
    world.run_until(lambda: any(each.status.role == "candidate" for each in world.replicas.values()))
    candidate = next(each for each in world.replicas.values() if each.status.role == "candidate")
    voter, term = world.others(candidate.id)[0], candidate.raft.term
    with candidate.raft.at(world.now):
        for of in (term, term - 1, term):
            candidate.raft.receive(voter, Vote(of, True, False))
    assert not candidate.raft.is_leader
