"""Sessions in a group: a command that is sent again counts once, whatever crashes in between."""

from __future__ import annotations

from collections.abc import Callable, Iterable

import pytest

from ondisk import Result
from ondisk.diskkv import incr
from ondisk.errors import (
    OutcomeUnknown,
    Timeout,
)
from ondisk.raft.messages import AppendEntriesResponse, Message, Outcomes, TransferLeadership
from ondisk.sessions import OUTDATED, once
from tests.session_client import WorldClient, attempts, crash_before_the_answer, settle
from tests.virtual import World

FOREVER = float("inf")


@pytest.fixture
def group(world: World, monkeypatch: pytest.MonkeyPatch) -> WorldClient:
    """A client of three replicas, one of which leads."""
    world.elect()
    return WorldClient(world, monkeypatch)


def test_without_a_session_a_command_repeated_by_hand_counts_twice(group: WorldClient) -> None:
    """The leader crashed after the commit and before the answer: so sessions are good for something."""
    follower = crash_before_the_answer(group)
    with pytest.raises(OutcomeUnknown):
        group.incr("n", via=follower.id, timeout=20)
    assert group.incr("n", timeout=20) == Result(2)
    assert settle(group) == {b"n": b"2"}


def test_in_a_session_the_same_counts_once(group: WorldClient) -> None:
    """The retry goes through another leader, by itself, and gets the answer of the first attempt."""
    session = group.session()
    follower = crash_before_the_answer(group)
    former = group.world.leader
    assert session.incr("n", via=follower.id, timeout=20) == Result(1)
    assert former is not group.world.leader
    assert session.incr("n", timeout=20) == Result(2)
    assert settle(group) == {b"n": b"2"}


def test_another_replica_can_finish_what_one_has_begun(group: WorldClient) -> None:
    """``resume`` through a replica that has not heard of the first attempt."""
    session = group.session()
    follower = crash_before_the_answer(group)
    leader = group.world.leader
    assert leader is not None
    with pytest.raises(Timeout, match=r"resume\(\)"):
        session.incr("n", via=follower.id, timeout=0.1)
    (other,) = set(group.world.first_members) - {leader.id, follower.id}
    assert session.resume(via=other, timeout=20) == Result(1)
    assert settle(group) == {b"n": b"1"}


def test_a_leader_deposed_after_its_command_reached_the_others_counts_it_once(group: WorldClient) -> None:
    """The followers' acknowledgements are lost; the next leader commits the entry, and the retry."""
    world = group.world
    session = group.session()
    leader = world.elect()
    sent_at = world.now

    def lose(_: int, to: int, message: Message) -> Iterable[Message]:
        return [] if to == leader.id and isinstance(message, AppendEntriesResponse) else [message]

    def isolate() -> None:
        if world.now > sent_at + 0.1:
            world.network.isolate(leader.id)

    world.edit, group.each_tick = lose, isolate
    assert session.incr("n", timeout=30) == Result(1)
    assert world.leader is not leader
    assert attempts(world) == 2, "the first attempt was not committed"
    assert settle(group) == {b"n": b"1"}


def test_a_command_that_was_lost_is_applied_by_the_retry(group: WorldClient) -> None:
    """Once is also not never: the leader was cut off, and nobody else had the entry."""
    session = group.session()
    leader = group.world.elect()
    group.world.network.isolate(leader.id)
    assert session.incr("n", timeout=30) == Result(1)
    assert group.world.leader is not leader
    assert settle(group) == {b"n": b"1"}


def test_a_replica_fed_by_a_stream_knows_the_sessions_and_may_lead(group: WorldClient) -> None:
    """The log is compacted, a follower is wiped, gets a snapshot, leads, and is asked again."""
    world = group.world
    session = group.session()
    for number in range(1, 11):
        assert session.incr("n") == Result(number)
    world.run_until(world.converged)
    for replica in world.replicas.values():
        future = replica.compact()
        world.run_until(future.done)
    leader = world.elect()
    wiped = world.others(leader.id)[0]
    world.wipe(wiped)
    world.run(3)
    assert session.incr("n", timeout=20) == Result(11)
    world.run_until(world.converged)
    assert world.replicas[wiped].log.base_index > 0, "it was fed by the log alone"
    change = world.elect().propose_change(TransferLeadership(wiped), FOREVER)
    world.run_until(change.done)
    assert world.elect().id == wiped
    again = group.propose(once(session.id, session._sequence, incr("n")))
    assert again == Result(11)
    assert group.propose(once(session.id, session._sequence - 1, incr("n"))) == Result(error=OUTDATED)
    assert session.incr("n") == Result(12)
    assert settle(group) == {b"n": b"12"}


@pytest.mark.parametrize("end", [World.crash, World.stop], ids=["power cut", "stopped"])
def test_a_restart_of_all_replicas_forgets_no_session(
    group: WorldClient, end: Callable[[World, int], None]
) -> None:
    """The command was applied, nobody heard of it, and all three end."""
    world = group.world
    session = group.session()
    follower = crash_before_the_answer(group)
    with pytest.raises(OutcomeUnknown):
        session.incr("n", via=follower.id, timeout=0.1)
    for member in tuple(world.replicas):
        end(world, member)
    world.edit, group.each_tick = None, lambda: None
    for member in world.first_members:
        world.start(member)
    assert session.resume(timeout=20) == Result(1)
    assert session.incr("n") == Result(2)
    assert settle(group) == {b"n": b"2"}


@pytest.mark.parametrize("seed", [0, 1, 2])
def test_every_call_counts_once_while_replicas_crash_and_links_break(
    make_world: Callable[..., World], monkeypatch: pytest.MonkeyPatch, seed: int
) -> None:
    """Three clients in turn; a counter is the number of their calls, and each call got the next number."""
    world = make_world(seed=seed)
    group = WorldClient(world, monkeypatch)
    rng = world.rng("trouble")

    def trouble() -> None:
        chance = rng.random()
        running = [member for member in world.first_members if member in world.replicas]
        if chance < 0.01 and len(running) == 3:
            world.crash(rng.choice(running))
        elif chance < 0.02:
            world.network.isolate(rng.choice(world.first_members))
        elif chance < 0.03:
            world.network.heal()
        elif chance < 0.04 and len(running) < 3:
            world.start(({*world.first_members} - {*running}).pop())

    def lose(_: int, __: int, message: Message) -> Iterable[Message]:
        return [] if isinstance(message, Outcomes) and rng.random() < 0.3 else [message]

    world.elect()
    opened_sessions = [group.session(timeout=60) for _ in range(3)]
    world.edit, group.each_tick = lose, trouble
    for number in range(1, 31):
        via = rng.choice((None, *world.first_members))
        assert opened_sessions[number % 3].incr("n", via=via, timeout=300) == Result(number)
    assert settle(group) == {b"n": b"30"}
    assert attempts(world) > 30, "no attempt was committed twice: this proves nothing"
