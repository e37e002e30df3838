"""A leader's entries leave while its own log is being synced (thesis, 10.2.1), and promise nothing."""

from __future__ import annotations

import errno
import random
from collections.abc import Callable
from pathlib import Path

import pytest

from ondisk.errors import NotDone, OndiskError
from ondisk.raft.log import RaftLog
from ondisk.raft.messages import AppendEntries
from ondisk.raft.records import REGULAR, LogEntry
from ondisk.replica import Replica
from ondisk.simulation.host import PowerCut
from tests.virtual import World, fill, put


def at_the_next_sync(replica: Replica, do: Callable[[], None]) -> None:
    """Once: when entries have been written to the log, and the disk does not hold them yet."""
    assert replica.log is not None
    log, make_durable = replica.log, replica.log._make_durable

    def look() -> None:
        if log.synced_index < log.last_index:
            log._make_durable = make_durable  # type: ignore[method-assign]
            do()
        make_durable()

    log._make_durable = look  # type: ignore[method-assign]


def entries_to(world: World, leader: int, since: int) -> set[int]:
    """Who was sent entries by the leader."""
    return {
        event.receiver
        for event in world.sent[since:]
        if event.sender == leader and isinstance(event.message, AppendEntries) and event.message.entries
    }


def test_followers_get_entries_while_the_leader_writes_its_own_log(world: World) -> None:
    leader = world.elect()
    fill(world, 3)
    world.run(0.5)
    seen: list[set[int]] = []
    sent = len(world.sent)
    at_the_next_sync(leader, lambda: seen.append(entries_to(world, leader.id, sent)))
    answer = put(leader, "k")
    world.run_until(answer.done)
    assert seen == [set(world.others(leader.id))]


def test_a_leader_counts_itself_only_when_its_own_log_holds_an_entry_durably(world: World) -> None:
    """One follower has acknowledged: that is no majority yet."""
    leader = world.elect()
    fill(world, 3)
    one, other = world.others(leader.id)
    world.network.isolate(other)
    world.run(0.2)
    log = leader.log
    assert log is not None
    with leader.raft.at(world.now):
        index = leader.raft.append([b"unsynced"])
        leader.raft.progress[one].match = index
        leader.raft.leader._advance_commit()
        assert leader.raft.commit_index == index - 1
        log.sync()
        leader.raft.leader._advance_commit()
        assert leader.raft.commit_index == index


def test_what_two_followers_hold_is_committed_and_applied_by_the_leader_only_when_it_is_durable_there(
    world: World,
) -> None:
    leader = world.elect()
    fill(world, 3)
    log = leader.log
    assert log is not None
    with leader.raft.at(world.now):
        index = leader.raft.append([b"unsynced"])
        for follower in world.others(leader.id):
            leader.raft.progress[follower].match = index
        leader.raft.leader._advance_commit()
        assert leader.raft.commit_index == index > log.synced_index
        assert [entry.index for entry in leader.raft.committed_entries()] == [index]
        assert log.synced_index == index


def meanwhile(world: World, leader: Replica, seconds: float = 0.05) -> None:
    """The others go on while the leader waits for its disk."""
    world.freeze(leader.id)
    world.run(seconds)
    world.thaw(leader.id)


def test_a_leader_that_loses_its_power_before_its_own_sync_contradicts_nobody(world: World) -> None:
    """The others have the entry, and go on with it; who led has lost it, and gets it from them."""
    leader = world.elect()
    fill(world, 3)
    world.run(0.5)

    def lose_power() -> None:
        meanwhile(world, leader)
        world.crash(leader.id)
        raise PowerCut("before its own sync")

    at_the_next_sync(leader, lose_power)
    answer = put(leader, "k")
    world.run_until(answer.done)
    assert isinstance(answer.exception(), OndiskError)
    world.run_until(lambda: world.leader is not None)
    again = world.start(leader.id)
    assert again.log is not None and again.log.last_index == leader.raft.applied_index
    world.run_until(world.converged)
    assert len(world.assert_equal()) == 4  # the entry is on two of three disks, whatever its caller heard


def test_a_leader_whose_sync_fails_after_the_others_have_the_entry_says_that_it_may_have_happened(
    world: World,
) -> None:
    leader = world.elect()
    fill(world, 3)
    world.run(0.5)

    def fail() -> None:
        meanwhile(world, leader)
        raise OSError(errno.EIO, "the disk has failed")

    at_the_next_sync(leader, fail)
    answer = put(leader, "k")
    world.run_until(lambda: leader.status.role == "failed")
    error = answer.exception()
    assert isinstance(error, OndiskError) and not isinstance(error, NotDone), error  # it is not certain
    world.replicas.pop(leader.id)
    world.run_until(lambda: world.leader is not None)
    world.start(leader.id)
    world.run_until(world.converged)
    assert len(world.assert_equal()) == 4


@pytest.mark.parametrize("what", ["term and vote", "cut", "identity", "base"])
def test_entries_wait_for_whatever_else_is_not_durable(tmp_path: Path, what: str) -> None:
    """A leader whose term a power cut takes back could lead that term again, with other entries."""
    log = RaftLog(tmp_path / "log", replica_id=1, rng=random.Random(1))
    log.set_hard_state(1, 1)
    log.append([LogEntry(1, 1, REGULAR), LogEntry(2, 1, REGULAR)])
    log.sync()
    assert not log.only_entries_unsynced
    log.append([LogEntry(3, 1, REGULAR)])
    assert log.only_entries_unsynced
    if what == "term and vote":
        log.set_hard_state(2, 1)
    elif what == "cut":
        log.truncate_from(2)
        log.append([LogEntry(2, 2, REGULAR)])
    elif what == "identity":
        log.identify(refused="")
    else:
        log.compact(1)
    assert log.unsynced and not log.only_entries_unsynced
    log.sync()
    assert not log.unsynced
    log.close()
