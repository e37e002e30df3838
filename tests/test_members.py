"""Who belongs to the group, and who leads it: changes of both, in virtual time, on real replicas."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from ondisk import diskkv
from ondisk.errors import ConfigurationError, NoLeader, OutcomeUnknown, ReplicaStopped, Timeout
from ondisk.raft.messages import (
    AddReplica,
    AppendEntries,
    Change,
    Message,
    Outcomes,
    ProposeChange,
    Removed,
    RemoveReplica,
    RequestVote,
    RequestVoteResponse,
    SnapshotChunk,
    TimeoutNow,
    TransferLeadership,
)
from ondisk.raft.records import MEMBERS
from ondisk.replica import Replica
from ondisk.statemachine import Result
from tests.virtual import TICK, World, fill, put

FOREVER = float("inf")


def ask(world: World, change: Change, via: int | None = None) -> Result:
    """Ask for a change and wait for the answer."""
    replica = world.elect() if via is None else world.replicas[via]
    future = replica.propose_change(change, FOREVER)
    world.run_until(future.done)
    return future.result()


def voters(world: World) -> set[tuple[int, ...]]:
    return {replica.status.voters for replica in world.replicas.values()}


def join(world: World, member: int) -> Replica:
    """Start a new replica, add it, and wait until everybody counts it."""
    replica = world.start(member)
    assert ask(world, AddReplica(member)) == Result()
    world.run_until(lambda: all(member in counted for counted in voters(world)))
    return replica


def with_learner(world: World) -> tuple[Replica, Replica]:
    """The leader, and replica 4: a learner that has everything and is not made a voter."""
    leader = world.elect()
    fill(world, 10)
    learner = world.start(4)
    leader.raft.changes._promote_learners = lambda: None  # type: ignore[method-assign]
    ask(world, AddReplica(4))
    world.run_until(lambda: learner.status.applied_index == leader.status.applied_index)
    assert learner.status.learners == (4,)
    return leader, learner


# Joining


def test_an_addition_whose_answer_was_lost_is_done_once_and_said_to_be_done(world: World) -> None:
    """The follower asks the next leader again, and that one has it already."""
    leader = world.elect()
    world.start(4)
    world.run(0.5)
    via = world.replicas[world.others(leader.id)[0]]
    future = via.propose_change(AddReplica(4), FOREVER)
    world.run_until(lambda: any(4 in each.raft.members.all for each in world.replicas.values()))
    world.network.cut((leader.id, via.id))
    world.run_until(lambda: 4 in leader.raft.members.voters)
    world.crash(leader.id)
    world.network.heal()
    world.run_until(future.done)
    assert future.result() == Result()


@pytest.mark.parametrize("compacted", [False, True])
def test_a_joining_replica_catches_up_and_becomes_a_voter(world: World, compacted: bool) -> None:
    """By the log if that is whole, else by a stream."""
    fill(world, 300)
    world.run(0.5)
    if compacted:
        for replica in world.replicas.values():
            replica.compact()
        world.run(0.1)
    join(world, 4)
    assert voters(world) == {(1, 2, 3, 4)}
    world.run_until(world.converged)
    assert len(world.assert_equal()) == 300
    assert bool(world.messages(SnapshotChunk)) == compacted


def test_who_has_become_a_member_hears_it_with_the_commit(make_world: Callable[..., World]) -> None:
    """At whatever moment it was added: it waits neither for its own next question nor for a heartbeat."""
    for wait in range(10):
        world = make_world()
        leader = world.elect()
        joining = world.start(4)
        world.run(0.5 + wait / 100)
        leader.propose_change(AddReplica(4), FOREVER)
        world.run_until(lambda leader=leader: 4 in leader.raft.committed_members.all)
        committed = world.now
        world.run_until(lambda joining=joining: joining.log.last_index > 0)
        assert world.now - committed < 4 * (world.latency + TICK)  # members, rejection, entries, and one more


def test_a_change_asked_of_a_follower_is_done_and_answered(world: World) -> None:
    """Any replica can be asked."""
    leader = world.elect()
    world.start(4)
    world.run(0.1)
    assert ask(world, AddReplica(4), via=world.others(leader.id)[0]) == Result()
    world.run_until(lambda: voters(world) == {(1, 2, 3, 4)})


def test_a_learner_is_counted_neither_for_a_commit_nor_for_a_read(make_world: Callable[..., World]) -> None:
    """A leader whose only other voter is away has a learner that follows, and is alone all the same."""
    world = make_world(members=2)
    leader, learner = with_learner(world)
    world.network.isolate(*world.others(leader.id))
    future, barrier = put(leader, "k"), leader.read_barrier(FOREVER)
    world.run(1)
    assert learner.log.last_index == leader.log.last_index
    assert not future.done() and not barrier.done()
    world.run(2)
    assert leader.status.role != "leader"  # nor does it keep a leader in its place
    world.network.heal()
    world.run_until(barrier.done)


def test_a_learner_asks_for_no_votes_and_its_own_does_not_count(world: World) -> None:
    """However long it hears from nobody."""
    leader, learner = with_learner(world)
    term = leader.raft.term
    candidate, third = (world.replicas[member] for member in world.others(leader.id))
    world.crash(leader.id)
    world.crash(third.id)
    world.run(10)
    assert learner.status.role == "follower" and learner.raft.term == term
    with candidate.raft.at(world.now):
        candidate.raft.elections._ask_before_election()
        for pre in (True, False):
            candidate.raft.receive(4, RequestVoteResponse(term + 1, pre=pre))
            candidate.raft.tick()
    assert (candidate.raft.role, candidate.raft.term) == ("follower", term)


def test_a_new_voter_makes_the_majority_larger(world: World) -> None:
    """With four voters, two do not commit any more."""
    leader = world.elect()
    join(world, 4)
    away = [member for member in (1, 2, 3, 4) if member != leader.id][:2]
    for member in away:
        world.network.isolate(member)
    future = put(leader, "k")
    world.run(1)
    assert not future.done()
    world.network.heal()
    world.run_until(future.done)
    assert future.result() == Result()


def test_a_group_of_one_grows_and_survives_a_power_cut_at_any_moment(
    make_world: Callable[..., World],
) -> None:
    """Whoever counts also votes: else a group whose new voter does not vote yet could never elect again."""
    for moment in range(0, 50, 5):
        world = make_world(members=1)
        leader = world.elect()
        for number in range(4):  # more than one message holds
            leader.propose(diskkv.put(f"k{number}", bytes(600_000)), FOREVER)
        world.run(0.1)
        world.start(2)
        leader.propose_change(AddReplica(2), FOREVER)
        for _ in range(moment):
            world.tick()
        world.crash(1)
        world.run(0.01)
        world.start(1)
        world.elect()
        assert len(world.content(1)) == 4
        world.close()


def test_a_replica_that_was_never_added_disturbs_nobody(world: World) -> None:
    """It waits."""
    leader = world.elect()
    stranger = world.start(4)
    term = leader.raft.term
    world.run(10)
    assert stranger.status.role == "follower" and stranger.running
    assert (world.leader, leader.raft.term) == (leader, term)


def test_a_joining_replica_that_does_not_know_the_members_yet_does_not_spin(world: World) -> None:
    """It has entries that it cannot commit, and nobody to ask."""
    joining = world.start(4)
    fill(world, 10)
    entries = world.leader.log.entries(1, 5)
    with joining.raft.at(world.now):
        joining.raft.receive(world.leader.id, AppendEntries(1, 0, 0, entries, 0, 0))
    joining.step()
    assert joining.step() > 0


# One at a time


def test_a_second_change_waits_until_the_first_is_committed(world: World) -> None:
    """Two at once could make two majorities that have nobody in common."""
    leader = world.elect()
    world.run(0.5)
    leader.raft.changes._passes_check = lambda *_: True  # type: ignore[method-assign]
    for member in world.others(leader.id):
        world.network.stall((member, leader.id))  # nothing is acknowledged
    first = leader.propose_change(AddReplica(4), FOREVER)
    second = leader.propose_change(AddReplica(5), FOREVER)
    world.run(0.3)
    assert leader.raft.members.learners == (4,)
    assert not first.done() and not second.done()
    world.network.heal()
    world.run_until(lambda: first.done() and second.done())
    assert leader.raft.members.learners == (4, 5)


def test_a_new_leader_changes_no_members_before_it_has_committed_an_entry_of_its_own(world: World) -> None:
    """Until then it cannot know whether a change of the last leader is committed."""
    leader = world.elect()
    other = world.replicas[world.others(leader.id)[0]]
    world.run(0.5)
    world.edit = lambda sender, to, message: (
        [] if sender == other.id and isinstance(message, AppendEntries) and message.entries else [message]
    )
    leader.propose_change(TransferLeadership(other.id), FOREVER)
    world.run_until(lambda: other.raft.is_leader)
    future = other.propose_change(AddReplica(4), FOREVER)
    world.run(0.5)
    assert other.raft.is_leader and not future.done()
    assert other.raft.members.learners == ()
    world.edit = None
    world.run_until(future.done)


def test_a_change_whose_entry_is_cut_off_is_taken_back(world: World) -> None:
    """It counted from when it was appended; at the end it never happened."""
    leader = world.elect()
    world.run(0.5)
    leader.raft.changes._passes_check = lambda *_: True  # type: ignore[method-assign]
    world.network.isolate(leader.id)
    added = leader.propose_change(AddReplica(4), FOREVER)
    world.run(0.1)
    assert leader.raft.members.learners == (4,)
    world.run_until(lambda: world.leader is not None and world.leader.id != leader.id)
    fill(world, 3)
    world.network.heal()
    world.run_until(world.converged)
    assert leader.raft.members.all == {1, 2, 3} == set(leader.status.voters)
    assert not isinstance(added.exception(0), type(None))
    world.run(1)
    world.crash(leader.id)
    assert world.start(leader.id).raft.members.all == {1, 2, 3}


def test_a_removal_whose_entry_is_cut_off_shuts_nobody_out(world: World) -> None:
    """The removed one is told so only when that is committed."""
    leader = world.elect()
    world.run(0.5)
    victim = world.replicas[world.others(leader.id)[0]]
    leader.raft.changes._passes_check = lambda *_: True  # type: ignore[method-assign]
    world.network.isolate(leader.id)
    leader.propose_change(RemoveReplica(victim.id), FOREVER)
    world.run(0.1)
    assert victim.id not in leader.raft.members.all
    with leader.raft.at(world.now):
        leader.raft.receive(victim.id, RequestVote(leader.raft.term, 0, 0, pre=True))
    world.run_until(lambda: world.leader is not None and world.leader.id != leader.id)
    world.network.heal()
    world.run_until(world.converged)
    assert world.messages(Removed) == []
    assert voters(world) == {(1, 2, 3)}


# Removal


def test_the_majority_is_smaller_after_a_removal(world: World) -> None:
    """Two of two, after one of three was removed: the two that are left must both have it."""
    leader = world.elect()
    victim, other = world.others(leader.id)
    ask(world, RemoveReplica(victim))
    world.run_until(lambda: world.replicas[victim].status.role == "removed")
    world.network.isolate(other)
    future = put(leader, "k")
    world.run(1)
    assert not future.done()


def test_a_removed_replica_is_told_and_disturbs_nobody_when_it_is_started_again(world: World) -> None:
    """It ends with the role "removed", as often as it is tried."""
    leader = world.elect()
    fill(world, 10)
    victim = world.others(leader.id)[0]
    world.crash(victim)
    assert ask(world, RemoveReplica(victim)) == Result()
    term = leader.raft.term
    for _ in range(2):
        removed = world.start(victim)
        world.run_until(lambda removed=removed: removed.status.role == "removed")
        assert "removed from the group" in (removed.status.error or "")
        with pytest.raises(ReplicaStopped, match="removed"):
            put(removed, "k").result(0)
        del world.replicas[victim]
    assert (world.leader, leader.raft.term) == (leader, term)


def test_whatever_a_removed_replica_says_is_not_heard(world: World) -> None:
    """Its term may be higher, its log longer."""
    leader = world.elect()
    victim = world.others(leader.id)[0]
    ask(world, RemoveReplica(victim))
    term, last = leader.raft.term, leader.log.last_index
    with leader.raft.at(world.now):
        leader.raft.receive(victim, RequestVote(term + 5, last + 9, term + 4, pre=False))
        leader.raft.receive(victim, AppendEntries(term + 5, last, term, [], last, 0))
        assert not leader.raft.on_leader_contact(victim, term + 5)
    assert leader.raft.is_leader and leader.raft.term == term


def test_a_removed_learner_is_told_too(world: World) -> None:
    """It may not ask for votes, so it asks whether anybody is there."""
    _, learner = with_learner(world)
    ask(world, RemoveReplica(4))
    world.run_until(lambda: learner.status.role == "removed")


def test_a_removed_id_is_refused(world: World) -> None:
    """For good: its directory started again must not find its way back."""
    leader = world.elect()
    victim = world.others(leader.id)[0]
    assert ask(world, RemoveReplica(victim)) == Result()
    assert "was removed" in str(ask(world, AddReplica(victim)).error)
    assert ask(world, RemoveReplica(victim)) == Result()  # done twice is done once
    world.crash(victim) if victim in world.replicas else None
    for each in world.replicas.values():
        each.compact()
    world.run(1)
    assert "was removed" in str(ask(world, AddReplica(victim)).error)


def test_a_removal_survives_compaction_and_restart(world: World) -> None:
    """It stands in the record of the compaction when its entry is gone."""
    leader = world.elect()
    victim, other = world.others(leader.id)
    ask(world, RemoveReplica(victim))
    fill(world, 10)
    world.stop(victim)
    world.run(0.5)
    for member in (leader.id, other):
        world.replicas[member].compact()
    world.run(0.1)
    for member in (leader.id, other):
        world.crash(member)
    for member in (leader.id, other):
        replica = world.start(member)
        assert replica.log.base_index > 0
        assert set(replica.raft.members.voters) == {leader.id, other}
        assert replica.raft.members.removed == (victim,)
    world.elect()


def test_a_leader_that_is_to_be_removed_hands_over_first(world: World) -> None:
    """The next leader removes it; no election timeout passes."""
    leader = world.elect()
    world.run(0.5)
    began = world.now
    assert ask(world, RemoveReplica(leader.id), via=leader.id) == Result()
    assert world.now - began < leader.raft.timing.election_min
    assert world.leader is not None and world.leader.id != leader.id
    assert leader.id not in world.leader.raft.members.all
    world.run_until(lambda: leader.status.role == "removed")
    fill(world, 3)


def test_a_leader_is_removed_at_a_followers_request_too(world: World) -> None:
    """The follower asks again until somebody has done it."""
    leader = world.elect()
    world.run(0.5)
    via = world.others(leader.id)[0]
    assert ask(world, RemoveReplica(leader.id), via=via) == Result()
    assert world.elect().id != leader.id
    world.run_until(lambda: leader.status.role == "removed")


def test_the_last_voter_stays(make_world: Callable[..., World]) -> None:
    """A group without a voter would be no group."""
    world = make_world(members=1)
    assert "last voter" in str(ask(world, RemoveReplica(1)).error)
    fill(world, 1)


def test_a_change_that_was_asked_for_but_never_answered_is_not_said_to_be_undone(world: World) -> None:
    """It was sent to a leader that went away, so it may have happened."""
    leader = world.elect()
    follower = world.replicas[world.others(leader.id)[0]]
    world.network.cut((leader.id, follower.id))
    future = follower.propose_change(RemoveReplica(world.others(leader.id)[1]), world.now + 3)
    world.run(0.1)
    world.crash(leader.id)
    world.crash(world.others(leader.id)[1])
    world.run(5)
    assert isinstance(future.exception(0), Timeout)
    assert not isinstance(future.exception(0), NoLeader)


# Leadership


def test_leadership_is_handed_over_without_an_election_timeout_and_without_losing_a_request(
    world: World,
) -> None:
    """What the old leader took in is committed by the new one; what waits is handed on."""
    leader = world.elect()
    world.run(0.5)
    other, third = (world.replicas[member] for member in world.others(leader.id))
    before = [put(leader, f"before{number}") for number in range(100)]
    began = world.now
    done = leader.propose_change(TransferLeadership(other.id), FOREVER)
    world.tick()
    during = [put(leader, f"during{number}") for number in range(100)]
    world.run_until(done.done)
    assert done.result() == Result()
    assert other.raft.is_leader and world.now - began < 0.2
    world.run_until(lambda: all(future.done() for future in before + during))
    assert [future.exception() for future in before + during] == [None] * 200
    world.run_until(world.converged)
    assert len(world.assert_equal()) == 200
    assert third.raft.leader_id == other.id


def test_a_follower_that_lags_gets_everything_before_it_is_asked_to_lead(world: World) -> None:
    """Else its election would fail, and the group would wait for nothing."""
    leader = world.elect()
    world.run(0.5)
    other = world.others(leader.id)[0]
    world.network.cut((leader.id, other))
    futures = [put(leader, f"k{number}") for number in range(500)]
    world.run_until(lambda: all(future.done() for future in futures))
    world.network.heal()
    assert ask(world, TransferLeadership(other)) == Result()
    assert world.elect().id == other
    assert leader.raft.term + 0 == world.replicas[other].raft.term
    assert len(world.messages(TimeoutNow)) >= 1


def test_leadership_that_cannot_be_handed_over_stays_where_it_is(world: World) -> None:
    """The leader gives up after an election timeout, and what waited meanwhile is done."""
    leader = world.elect()
    world.run(0.5)
    other = world.others(leader.id)[0]
    world.network.isolate(other)
    done = leader.propose_change(TransferLeadership(other), FOREVER)
    world.tick()
    future = put(leader, "k")
    world.run(1)
    assert not done.done() and not future.done()
    world.run_until(lambda: done.done() and future.done(), 2)
    assert isinstance(done.exception(), OutcomeUnknown)  # the last request may still be on its way
    assert future.result() == Result()
    assert world.leader is leader


def test_every_wish_for_another_leader_is_answered(world: World) -> None:
    """Also when two are asked for at once."""
    leader = world.elect()
    world.run(0.5)
    wishes = [leader.propose_change(TransferLeadership(m), FOREVER) for m in world.others(leader.id)]
    world.run_until(lambda: all(wish.done() for wish in wishes), 10)


def test_only_the_present_leader_can_ask_another_one_to_take_over(world: World) -> None:
    """A stale or foreign message starts no election."""
    leader = world.elect()
    world.run(0.5)
    follower, third = (world.replicas[member] for member in world.others(leader.id))
    term = leader.raft.term
    with follower.raft.at(world.now):
        follower.raft.receive(third.id, TimeoutNow(term))
        follower.raft.receive(leader.id, TimeoutNow(term - 1))
        follower.raft.receive(leader.id, TimeoutNow(term + 1))
    world.run(1)
    assert (world.leader, leader.raft.term) == (leader, term)


def test_late_answers_to_a_prevote_do_not_depose_a_leader_that_is_back(world: World) -> None:
    """Whoever has heard from a leader since it asked wants no election any more."""
    leader = world.elect()
    world.run(0.5)
    follower, third = (world.replicas[member] for member in world.others(leader.id))
    term = leader.raft.term
    with follower.raft.at(world.now):
        follower.raft.elections._ask_before_election()
        heartbeat = AppendEntries(term, leader.log.last_index, term, [], leader.raft.commit_index, 0)
        follower.raft.receive(leader.id, heartbeat)
        follower.raft.receive(third.id, RequestVoteResponse(term + 1, pre=True))
    world.run(1)
    assert (world.leader, leader.raft.term) == (leader, term)


# Replicas that have lost their directory


def test_the_group_of_a_wiped_leader_goes_on(world: World) -> None:
    """The others elect one of themselves, and feed it."""
    leader = world.elect()
    fill(world, 20)
    world.run(0.5)
    world.wipe(leader.id)
    assert world.elect().id != leader.id
    fill(world, 5, key="after")
    world.run_until(world.converged)
    assert len(world.assert_equal()) == 25
    world.run_until(lambda: all(leader.id in counted for counted in voters(world)))


def test_a_wiped_replica_does_not_acknowledge_to_a_leader_that_it_has_helped_to_depose(
    world: World,
) -> None:
    """It voted for the new leader, forgot that, and meets the old one, which does not know yet."""
    old = world.elect()
    fill(world, 5)
    new, wiped = (world.replicas[member] for member in world.others(old.id))
    world.network.cut((new.id, old.id), (wiped.id, old.id))  # nobody tells it
    old.propose_change(TransferLeadership(new.id), FOREVER)
    world.run_until(lambda: new.raft.is_leader)
    world.wipe(wiped.id)
    world.network.partition({new.id}, {old.id, wiped.id})
    future, barrier = put(old, "k"), old.read_barrier(FOREVER)
    world.run(0.5)
    assert new.raft.is_leader and new.raft.term > old.raft.term
    assert not future.done() and not barrier.done()


@pytest.mark.parametrize(
    "change",
    [
        AddReplica(0),
        AddReplica(-1),
        AddReplica(1 << 64),
        AddReplica("4"),  # type: ignore[arg-type]
        AddReplica(4, 5),  # type: ignore[arg-type]
        RemoveReplica([2]),  # type: ignore[arg-type]
        TransferLeadership("2"),  # type: ignore[arg-type]
        TransferLeadership(True),
    ],
)
def test_who_cannot_be_a_member_is_refused_before_anybody_is_asked(world: World, change: Change) -> None:
    """Nobody stops, whoever was asked."""
    leader = world.elect()
    for replica in (leader, world.replicas[world.others(leader.id)[0]]):
        with pytest.raises(ConfigurationError):
            replica.propose_change(change, FOREVER)
    fill(world, 1)


def test_a_caller_is_answered_when_an_error_comes_while_its_proposal_is_taken_in(world: World) -> None:
    """It is in none of the tables then."""
    leader = world.elect()

    def full(commands: object) -> int:
        raise OSError("no room")

    leader.raft.append = full  # type: ignore[method-assign]
    futures = [put(leader, "k"), put(leader, "l")]
    world.tick()
    assert leader.status.role == "failed"
    assert [type(future.exception(0)) for future in futures] == [OutcomeUnknown] * 2


def test_a_change_that_was_forwarded_is_not_said_to_be_undone_by_a_replica_that_stops(
    make_world: Callable[..., World],
) -> None:
    """Its leader went away, and it waits for another one, but it has been made."""
    world = make_world(members=5)
    leader = world.elect()
    world.run(1)
    asked, removed = world.others(leader.id)[:2]
    world.network.cut((leader.id, asked))  # no answer comes
    future = world.replicas[asked].propose_change(RemoveReplica(removed), world.now + 100)
    world.run(0.3)
    world.network.isolate(asked)
    world.run(3)
    assert removed in leader.raft.members.removed and not future.done()
    world.stop(asked)
    assert isinstance(future.exception(0), OutcomeUnknown)


def test_who_asks_for_another_leader_in_vain_is_not_told_that_it_will_never_lead(world: World) -> None:
    """The request to take over may be late."""
    leader = world.elect()
    world.run(1)
    wanted = world.others(leader.id)[0]
    future = leader.propose_change(TransferLeadership(wanted), FOREVER)
    world.network.stall((leader.id, wanted))
    world.run_until(future.done)
    assert isinstance(future.exception(0), OutcomeUnknown)
    world.network.heal()
    world.run(1)
    assert world.elect().id == wanted


def test_a_leader_that_hands_over_does_not_spin(world: World) -> None:
    """Puts wait meanwhile. It asks the other one once in a heartbeat, and sleeps."""
    leader = world.elect()
    world.run(1)
    wanted = world.others(leader.id)[0]
    world.network.stall((leader.id, wanted))
    leader.propose_change(TransferLeadership(wanted), FOREVER)
    world.tick()
    future = put(leader, "k")
    world.run(0.1)
    before = len(world.messages(TimeoutNow))
    for _ in range(100):
        world.tick()
        assert leader.raft.transferring and not future.done()
        assert leader.step() > 0
    seconds = 100 * TICK
    assert len(world.messages(TimeoutNow)) - before <= 1 + seconds / leader.raft.timing.heartbeat


@pytest.mark.parametrize("lost", [ProposeChange, Outcomes])
@pytest.mark.parametrize("kind", [AddReplica, RemoveReplica])
def test_a_change_that_was_forwarded_is_asked_for_again_when_it_or_its_answer_is_lost(
    world: World, kind: type[AddReplica | RemoveReplica], lost: type[Message]
) -> None:
    """The leader goes on to lead, so nothing else would tell; and done twice is done once."""
    leader = world.elect()
    via, other = world.others(leader.id)
    change = kind(4 if kind is AddReplica else other)
    if kind is AddReplica:
        world.start(4)
    losses = 3

    def lose(sender: int, to: int, message: Message) -> list[Message]:
        nonlocal losses
        if losses and isinstance(message, lost):
            losses -= 1
            return []
        return [message]

    world.edit = lose
    future = world.replicas[via].propose_change(change, world.now + 10)
    world.run_until(future.done, 5)
    assert future.result() == Result() and losses == 0
    world.run(1)
    asked = len(world.messages(ProposeChange))
    world.run(2)
    assert len(world.messages(ProposeChange)) == asked
    members = [
        entry for entry in leader.log.entries(1, leader.log.last_index) if entry.command[:1] == MEMBERS
    ]
    assert len(members) == (2 if kind is AddReplica else 1)


def test_a_change_that_has_to_wait_is_in_the_queue_of_the_leader_once(world: World) -> None:
    """However often it is asked for."""
    leader = world.elect()
    via, away = world.others(leader.id)
    world.network.isolate(away)
    world.run(1)
    future = world.replicas[via].propose_change(RemoveReplica(via), world.now + 60)
    world.run(1.5)
    assert len(world.messages(ProposeChange)) > 3
    assert len(leader._proposals) <= 1 and not (future.done() and future.exception())
