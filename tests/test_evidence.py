"""Evidence: what a leader may conclude from an answer, and when (docs/protocol.md), in virtual time."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from ondisk import diskkv
from ondisk.errors import OndiskError
from ondisk.raft import Raft
from ondisk.raft.messages import (
    AppendEntries,
    AppendEntriesAnswer,
    AppendEntriesRejection,
    AppendEntriesResponse,
    Membership,
    Message,
    RemoveReplica,
    RequestVote,
    RequestVoteResponse,
)
from ondisk.raft.records import LogEntry
from ondisk.statemachine import Result
from tests.virtual import World, ask, fill, groups, put

FOREVER = float("inf")


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
    assert leader.raft.members.voters == world.first_members
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
    assert leader.raft.members.voters == world.first_members and not future.done()
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
    world.freeze(old.id)
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
    world.thaw()
    other = put(old, "Y")
    world.tick()
    assert not old.raft.is_leader, "its evidence is from before it was frozen"
    world.run(8)
    assert not other.done()
    world.start(new)
    world.network.heal()
    world.run_until(lambda: len(groups(world)) == 1 and world.converged(), 60)
    assert b"X" in world.assert_equal()


def test_a_read_is_confirmed_only_by_answers_to_what_was_sent_after_it_was_asked(
    make_world: Callable[..., World], monkeypatch: pytest.MonkeyPatch
) -> None:
    """An answer that was stalled for long says who led when it was given.

    The follower confirms nothing new while its answers are held back; another leader is elected meanwhile.
    """
    monkeypatch.setattr(Raft, "_check_quorum_seconds", lambda *_: 1000.0)  # the old one would step down
    world = make_world()
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
        world.freeze(member)
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
    origin = world.replicas[sender]._belonging.origins.own()
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
