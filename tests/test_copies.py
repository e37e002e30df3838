"""Copies of directories, and directories of other groups: neither is heard (docs/protocol.md)."""

from __future__ import annotations

import logging
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from ondisk.errors import ConfigurationError, Corrupt
from ondisk.raft import log as raftlog
from ondisk.raft.messages import (
    AddReplica,
)
from ondisk.statemachine import Result
from tests.virtual import World, ask, fill


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
        for member in theirs.first_members:
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
