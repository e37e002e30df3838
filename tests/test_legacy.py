"""Directories from before groups had ids (docs/protocol.md, L), in virtual time: who gets a disk and when."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from pathlib import Path

import pytest

from ondisk import diskkv
from ondisk.raft.log import RaftLog
from ondisk.raft.members import LEGACY
from ondisk.raft.messages import AppendEntries, Message, RequestVote
from ondisk.raft.records import REGULAR, LogEntry
from tests.virtual import World, fill

OLD_ENTRIES = 3


class OldWorld(World):
    """Its first members have logs that were written before logs had an identity."""

    def __init__(self, directory: Path, members: int = 3) -> None:
        for member in range(1, members + 1):
            log = RaftLog(directory / f"replica-{member}" / "log", None, range(1, members + 1))
            log.set_hard_state(1, None)
            log.append(
                [
                    LogEntry(index, 1, REGULAR + diskkv.put(f"old{index}", "v"))
                    for index in range(1, OLD_ENTRIES + 1)
                ]
            )
            log.close()
        super().__init__(directory, members, founded=False)


@pytest.fixture
def make_old(tmp_path: Path) -> Iterator[Callable[[int], OldWorld]]:
    worlds: list[OldWorld] = []

    def make(members: int = 3) -> OldWorld:
        worlds.append(OldWorld(tmp_path / f"old-{len(worlds)}", members))
        return worlds[-1]

    yield make
    for world in worlds:
        world.close()


def test_when_all_voters_have_answered_all_of_them_get_their_disks_at_once(
    make_old: Callable[[int], OldWorld],
) -> None:
    world = make_old(3)
    leader = world.elect()
    world.run_until(lambda: leader.raft.members.group != LEGACY)
    assert (
        world.now - leader.raft.changes._leading_since < leader.raft.timing.election_max
    )  # nobody is waited for
    assert dict(leader.raft.members.disks) == {n: each.log.disk_id for n, each in world.replicas.items()}
    world.run_until(world.converged)
    assert len(world.assert_equal()) == OLD_ENTRIES


def test_a_voter_that_lags_gets_no_disk_before_it_has_caught_up(make_old: Callable[[int], OldWorld]) -> None:
    """It would be in the majority that must hold all that is committed, and it does not."""
    world = make_old(3)
    lagging = 3

    def keep_behind(sender: int, to: int, message: Message) -> Iterable[Message]:
        out = to == lagging and isinstance(message, AppendEntries)
        return [] if out or (sender == lagging and isinstance(message, RequestVote)) else [message]

    world.edit = keep_behind
    leader = world.elect()
    assert (
        leader.raft.membership.counts(lagging) and leader.raft.match_index[lagging] < leader.raft.commit_index
    )
    world.run_until(lambda: leader.raft.members.group != LEGACY)
    assert (
        world.now - leader.raft.changes._leading_since > leader.raft.timing.election_max
    )  # it was waited for
    assert {number for number, _ in leader.raft.members.disks} == {1, 2}
    world.edit = None
    disk = world.replicas[lagging].log.disk_id
    world.run_until(lambda: leader.raft.members.disk_of(lagging) == disk)
    fill(world, 3)
    world.run_until(world.converged)
    assert len(world.assert_equal()) == OLD_ENTRIES + 3


def test_half_of_the_voters_give_the_group_no_identity(make_old: Callable[[int], OldWorld]) -> None:
    """The other half may have what they lack."""
    world = make_old(4)
    for away in (3, 4):
        world.crash(away)
    world.run(20)
    assert {each.raft.members.group for each in world.replicas.values()} == {LEGACY}
