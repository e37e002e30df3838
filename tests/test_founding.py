"""Founding: a group begins when all of its first members have agreed (docs/protocol.md), in virtual time."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from ondisk.errors import ConfigurationError
from ondisk.raft.log import RaftLog
from ondisk.raft.members import Members
from ondisk.raft.messages import (
    AddReplica,
    Found,
    Origin,
)
from ondisk.statemachine import Result
from tests.virtual import Late, World, ask, fill, groups, put


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
    assert agreed.voters == world.first_members
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
    world.first_members = (1, 2)
    world.now_start(2) if 2 not in world.replicas else None
    world.first_members = (1, 2, 3)
    world.crash(2)
    world.first_members = (2, 3)
    world.now_start(2)
    world.first_members = (1, 2, 3)
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
