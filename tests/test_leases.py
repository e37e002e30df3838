"""Reads by a lease: what they cost, and that nobody else is elected while one lasts (docs/leases.md)."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

import pytest

from ondisk import Cluster, diskkv
from ondisk.errors import ConfigurationError, ReplicaStopped
from ondisk.raft import Timing
from ondisk.raft.messages import (
    AppendEntriesResponse,
    Message,
    ReadIndexRequest,
    ReadIndexResponse,
    RemoveReplica,
    RequestVote,
    RequestVoteResponse,
    TimeoutNow,
    TransferLeadership,
)
from ondisk.replica import Replica
from tests.engine import Engine
from tests.virtual import World, fill, put

FOREVER = float("inf")
DRIFT = 0.25
TIMING = Timing(clock_drift=DRIFT)
LEASE = TIMING.election_min / (1 + DRIFT)


class LeaseWorld(World):
    timing = TIMING

    def tick(self) -> None:
        """A lease excludes any newer leader, at every moment."""
        super().tick()
        self.check()

    def check(self) -> None:
        terms = {
            member: replica.raft.term
            for member, replica in self.replicas.items()
            if replica.log is not None and replica.raft.is_leader
        }
        for member, term in terms.items():
            if term < max(terms.values()):
                assert not self.has_lease(self.replicas[member]), f"{member} has a lease: {terms}"

    def has_lease(self, replica: Replica) -> bool:
        return replica.raft.leader.has_lease(self.hosts[replica.id].clock())

    def elect(self) -> Replica:
        """One that has a lease."""
        leader = super().elect()
        self.run_until(lambda: self.has_lease(leader))
        return leader


@pytest.fixture
def make(tmp_path: Path) -> Iterator[Callable[..., LeaseWorld]]:
    worlds: list[LeaseWorld] = []

    def world(**options: Any) -> LeaseWorld:
        worlds.append(LeaseWorld(tmp_path / f"{len(worlds)}", **options))
        return worlds[-1]

    yield world
    for each in worlds:
        each.close()


@pytest.fixture
def leases(make: Callable[..., LeaseWorld]) -> LeaseWorld:
    return make()


# What a read costs


def test_a_leader_with_a_lease_answers_at_once_and_asks_nobody(leases: LeaseWorld) -> None:
    leader = leases.elect()
    fill(leases, 1)
    leases.run(0.05)
    leases.network.isolate(leader.id)  # nobody could confirm anything
    rounds = leader.raft.leader.rounds.newest
    by_lease = leader.read_barrier(FOREVER, lease=True)  # in the thread of whoever asks: no step is made
    assert by_lease.done() and by_lease.exception() is None
    assert leader.lookup(diskkv.get("k0")) == b"v"
    assert leader.raft.leader.rounds.newest == rounds
    by_round, by_lease = leader.read_barrier(FOREVER), leader.read_barrier(FOREVER, lease=True)
    leases.tick()
    assert by_lease.done() and not by_round.done()
    assert leader.raft.leader.rounds.newest == rounds + 1


def test_who_reads_beside_the_steps_is_not_answered_by_a_lease_that_is_over(leases: LeaseWorld) -> None:
    leader = leases.elect()
    leases.run(0.05)
    end = leader.raft.leader.lease_until
    assert leader.read_barrier(FOREVER, lease=True).done()
    leases.now += end - leases.hosts[leader.id].clock()  # and no step is made meanwhile
    assert not leader.read_barrier(FOREVER, lease=True).done()


def test_who_reads_beside_the_steps_waits_for_what_is_committed(leases: LeaseWorld) -> None:
    """A follower may have heard of it already, and shown it."""
    leader = leases.elect()
    leases.run(0.05)
    update, reads, early = leader.machine.update, [], []

    def look_before(entries: Any) -> Any:
        reads.append(leader.read_barrier(FOREVER, lease=True))
        early.append((leader.raft.applied_index, leader.raft.commit_index, reads[-1].done()))
        return update(entries)

    leader.machine.update = look_before  # type: ignore[method-assign]
    put(leader, "k")
    leases.run_until(lambda: bool(reads) and reads[0].done(), 0.1)
    assert reads[0].exception() is None
    assert [(applied < committed, done) for applied, committed, done in early] == [(True, False)]


def test_a_lease_is_given_up_before_anybody_is_told_to_stand(leases: LeaseWorld) -> None:
    """Who reads beside the steps sees that first."""
    leader = leases.elect()
    leases.run(0.05)
    send, early = leader._endpoint.send, []

    def look_before(to: int, message: Message) -> bool:
        if isinstance(message, TimeoutNow):
            early.append(leader.read_barrier(FOREVER, lease=True).done())
        return send(to, message)

    leader._endpoint.send = look_before  # type: ignore[method-assign]
    assert leader.read_barrier(FOREVER, lease=True).done()
    leader.propose_change(TransferLeadership(leases.others(leader.id)[0]), FOREVER)
    leases.run(0.3)
    assert early and not any(early)


def test_a_replica_that_has_ended_answers_nobody_by_its_lease(leases: LeaseWorld) -> None:
    leader = leases.elect()
    leases.run(0.05)
    leader.close()
    assert isinstance(leader.read_barrier(FOREVER, lease=True).exception(0), ReplicaStopped)


def test_a_follower_needs_one_question_and_one_answer(leases: LeaseWorld) -> None:
    leader = leases.elect()
    fill(leases, 1)
    follower = leases.replicas[leases.others(leader.id)[0]]
    leases.run_until(lambda: follower.raft.applied_index == leader.raft.commit_index)
    leases.run(0.05)
    leases.edit = lambda sender, to, message: (
        [message] if isinstance(message, ReadIndexRequest | ReadIndexResponse) else []
    )
    sent = len(leases.sent)
    read = follower.read_barrier(FOREVER, lease=True)
    leases.run_until(read.done, 0.05)
    assert [type(event.message) for event in leases.sent[sent:]] == [ReadIndexRequest, ReadIndexResponse]
    assert follower.lookup(diskkv.get("k0")) == b"v"


def test_who_did_not_ask_for_the_lease_waits_for_a_round_though_others_did(leases: LeaseWorld) -> None:
    """One question may be for both kinds, and the answer to the newest is one to all before."""
    leader = leases.elect()
    follower = leases.replicas[leases.others(leader.id)[0]]
    leases.run(0.05)
    leases.edit = lambda sender, to, message: (
        [message] if isinstance(message, ReadIndexRequest | ReadIndexResponse) else []
    )
    first = follower.read_barrier(FOREVER)
    leases.tick()
    then = follower.read_barrier(FOREVER, lease=True)
    leases.run(0.1)
    assert not first.done()
    leases.edit = None
    leases.run_until(lambda: first.done() and then.done())
    assert first.exception() is None and then.exception() is None


def test_without_a_lease_there_is_a_round(leases: LeaseWorld) -> None:
    leader = leases.elect()
    leader.raft.leader.end_lease()
    leader.step()
    read = leader.read_barrier(FOREVER, lease=True)
    leases.tick()
    assert not read.done()
    leases.run_until(read.done, 0.1)
    assert read.exception() is None


def test_a_new_leader_answers_by_its_lease_only_after_an_entry_of_its_own_term(leases: LeaseWorld) -> None:
    """It may have to commit what the leader before has acknowledged."""
    old = leases.elect()
    fill(leases, 1)
    leases.edit = lambda _, __, message: [] if isinstance(message, AppendEntriesResponse) else [message]
    leases.crash(old.id)
    leases.run_until(lambda: leases.leader is not None)
    leader = leases.leader
    assert leader is not None
    for progress in leader.raft.progress.values():
        progress.promised_until = FOREVER
    leader.step()
    assert leases.has_lease(leader) and not leader.raft.leader.committed_in_current_term()
    read = leader.read_barrier(FOREVER, lease=True)
    leases.run(0.1)
    assert not read.done()


def test_a_cluster_reads_by_lease_through_any_replica(make_cluster: Callable[..., Cluster]) -> None:
    cluster = make_cluster(timing=TIMING)
    cluster.put("k", "v", timeout=30)
    for member in cluster.members:
        assert cluster.get("k", via=member, lease=True, timeout=30) == b"v"
        assert cluster.scan("k", via=member, lease=True, timeout=30) == [(b"k", b"v")]


def test_a_cluster_without_a_bound_refuses_to_read_by_lease(make_cluster: Callable[..., Cluster]) -> None:
    with pytest.raises(ConfigurationError, match="Timing"):
        make_cluster(members=[1]).get("k", lease=True)


# The bound


def test_the_option_is_off_unless_a_bound_is_stated(world: World) -> None:
    leader = world.elect()
    with pytest.raises(ConfigurationError, match="clock_drift"):
        leader.read_barrier(FOREVER, lease=True)
    assert {message.promise for message in _answers(world)} == {0}


@pytest.mark.parametrize("drift", [0, -0.1, 1.5, float("nan"), True, "much"])
def test_a_bound_that_is_none_is_refused(tmp_path: Path, drift: Any) -> None:
    class Odd(World):
        timing = Timing(clock_drift=drift)

    with pytest.raises(ConfigurationError, match="clock_drift"):
        Odd(tmp_path)


def test_a_lease_counts_from_when_its_round_was_sent_and_is_shorter_than_the_promise(
    make_engine: Callable[..., Engine],
) -> None:
    """By the drift, and by nothing else: to the very moment."""
    engine = make_engine(timing=TIMING)
    engine.lead()
    engine.now = sent_at = 2000.0
    with engine.raft.at(engine.now):
        engine.raft.leader.replicate()
    newest, last, term = engine.raft.leader.rounds.newest, engine.log.last_index, engine.raft.term
    engine.now += 0.5
    engine.receive(2, AppendEntriesResponse(term, last, last, newest, promise=1000))
    assert engine.raft.leader.has_lease(sent_at + LEASE - 0.001)
    assert not engine.raft.leader.has_lease(sent_at + LEASE)


def test_who_does_not_promise_is_not_counted_on(make_engine: Callable[..., Engine]) -> None:
    """A follower without the option, or of an older version; and one that promises less counts for less."""
    engine = make_engine(timing=TIMING)
    engine.lead()
    last, term = engine.log.last_index, engine.raft.term
    with engine.raft.at(engine.now):
        engine.raft.leader.replicate()
    newest = engine.raft.leader.rounds.newest
    engine.receive(2, AppendEntriesResponse(term, last, last, newest))
    engine.receive(3, AppendEntriesResponse(term, last, last, newest))
    assert not engine.raft.leader.has_lease(engine.now)
    engine.receive(3, AppendEntriesResponse(term, last, last, newest, promise=100))
    assert engine.raft.leader.has_lease(engine.now + 0.079)
    assert not engine.raft.leader.has_lease(engine.now + 0.081)


def test_a_leader_without_a_bound_counts_on_nobody(make_engine: Callable[..., Engine]) -> None:
    engine = make_engine()
    engine.lead()
    last, term = engine.log.last_index, engine.raft.term
    with engine.raft.at(engine.now):
        engine.raft.leader.replicate()
    newest = engine.raft.leader.rounds.newest
    engine.receive(2, AppendEntriesResponse(term, last, last, newest, promise=1000))
    assert not engine.raft.leader.has_lease(engine.now)


def test_a_group_in_which_not_all_promise_is_safe_and_reads_by_rounds(leases: LeaseWorld) -> None:
    leader = leases.elect()
    leases.timing = Timing()
    for member in leases.others(leader.id):
        leases.stop(member)
        leases.start(member)
    leases.run(2)
    leader = World.elect(leases)
    assert not leases.has_lease(leader)
    if leader.raft.timing.clock_drift is not None:
        read = leader.read_barrier(FOREVER, lease=True)
        leases.run_until(read.done, 0.1)


def test_the_clock_is_looked_at_after_the_reads_have_come(leases: LeaseWorld) -> None:
    """A step may take longer than a lease: what came meanwhile is not answered as of its beginning."""
    leader = leases.elect()
    leases.run(0.05)
    clock, log = leases.hosts[leader.id].clock, leader.log
    assert log is not None
    sync, reads = log.sync, []

    def stall() -> None:
        sync()
        if not reads:
            leases.now += 10.0  # others have elected somebody else meanwhile, and it has written
            reads.append(leader.read_barrier(FOREVER, lease=True))

    log.sync = stall  # type: ignore[method-assign]
    began = clock()
    leader.step()
    assert clock() > began + LEASE and reads and not reads[0].done()
    leases.network.isolate(leader.id)
    leases.run(0.5)
    assert not reads[0].done()


# The promise


def _answers(world: World) -> list[AppendEntriesResponse]:
    return [each for each in world.messages(AppendEntriesResponse) if isinstance(each, AppendEntriesResponse)]


def _bound(make_engine: Callable[..., Engine]) -> Engine:
    """A follower that has just promised something to replica 2, at a whole second."""
    engine = make_engine(timing=TIMING)
    engine.now = 2000.0
    assert engine.heartbeat(2).promise == 1000
    return engine


def test_a_voter_that_has_promised_gives_no_vote_until_the_very_end(
    make_engine: Callable[..., Engine],
) -> None:
    """Not even a real one, of a candidate that was promised it before; and its term stays what it was."""
    engine = _bound(make_engine)
    for pre in (True, False):
        assert engine.receive(3, RequestVote(2, 9, 9, pre=pre)) == [] and engine.raft.term == 1
    engine.now = 2001.0 - 2**-20
    assert engine.receive(3, RequestVote(2, 9, 9, pre=False)) == [] and engine.raft.term == 1
    engine.now = 2001.0
    assert engine.receive(3, RequestVote(2, 9, 9, pre=False)) == [(3, RequestVoteResponse(2, pre=False))]


def test_a_promise_outlives_the_connection(make_engine: Callable[..., Engine]) -> None:
    engine = _bound(make_engine)
    with engine.raft.at(engine.now):
        engine.raft.set_connected(frozenset({3}))
    assert engine.wait(0.99) == []  # it does not stand itself
    for pre in (True, False):
        assert engine.receive(3, RequestVote(2, 9, 9, pre=pre)) == []
    assert engine.ask_for_votes() and engine.now < 2001.5  # but soon after that


def test_without_leases_a_broken_connection_lets_a_follower_stand_at_once(
    make_engine: Callable[..., Engine],
) -> None:
    """What leases cost: this."""
    engine = make_engine()
    engine.now = 2000.0
    engine.heartbeat(2)
    with engine.raft.at(engine.now):
        engine.raft.set_connected(frozenset({3}))
    assert engine.ask_for_votes() and engine.now < 2000.6


def test_the_leader_itself_releases_who_promised(make_engine: Callable[..., Engine]) -> None:
    engine = _bound(make_engine)
    request = RequestVote(2, 9, 9, pre=False, handed_over=True)
    assert engine.receive(3, request) == [(3, RequestVoteResponse(2, pre=False))]


def test_who_is_told_to_stand_does_so_though_it_has_promised(make_engine: Callable[..., Engine]) -> None:
    engine = _bound(make_engine)
    engine.receive(2, TimeoutNow(1))
    assert engine.tick() == [(other, RequestVote(2, 0, 0, pre=False, handed_over=True)) for other in (2, 3)]


def test_an_election_of_its_own_is_not_said_to_be_wanted_by_the_leader(
    make_engine: Callable[..., Engine],
) -> None:
    engine = _bound(make_engine)
    engine.ask_for_votes()
    engine.receive(3, RequestVoteResponse(2, pre=True))
    votes = [message for _, message in engine.tick() if isinstance(message, RequestVote)]
    assert [vote.handed_over for vote in votes] == [False, False]


def test_a_voter_that_was_started_again_keeps_what_it_may_have_promised(leases: LeaseWorld) -> None:
    """The leader counts on it; somebody who does not hear the leader asks for its vote."""
    leader = leases.elect()
    fill(leases, 1)
    promised, other = leases.others(leader.id)
    leases.network.cut((leader.id, other))
    leases.run_until(lambda: leases.replicas[other].raft.term > leader.raft.term + 9 or _asks(leases, other))
    leases.crash(promised)
    leases.network.isolate(leader.id)
    leases.network.heal((promised, other), (other, promised))
    assert leases.has_lease(leader)
    began = leases.now
    leases.start(promised)
    # ``tick`` looks whether there is a lease and a newer leader at any time.
    leases.run_until(lambda: bool(leases.leader and leases.leader is not leader), 10)
    assert leases.now - began >= TIMING.election_min


def _asks(world: World, member: int) -> bool:
    """Whether it stands, and is about to be told so."""
    return any(isinstance(each, RequestVote) for each in world.messages(RequestVote, member)[-1:])


def test_a_replica_that_never_promised_anything_waits_for_nothing_at_its_start(
    make: Callable[..., LeaseWorld], make_world: Callable[..., World]
) -> None:
    """A new group is as fast as without leases; one that is started again is not."""
    plain, leases = make_world(), make()
    plain.elect()
    World.elect(leases)
    assert leases.now == plain.now
    for world in (plain, leases):
        for member in world.first_members:
            world.stop(member)
        for member in world.first_members:
            world.start(member)
    began = plain.now, leases.now
    plain.elect()
    World.elect(leases)
    assert plain.now - began[0] < 1.0 < leases.now - began[1]


def test_a_disk_that_promised_once_waits_though_leases_are_off_by_now(leases: LeaseWorld) -> None:
    leader = leases.elect()
    member = leases.others(leader.id)[0]
    leases.timing = Timing()
    for _ in range(2):  # however often
        leases.crash(member)
        replica = leases.start(member)
        assert replica is not None and replica.raft.elections._bound_until > leases.now + 0.9
    leases.run(0.05)  # and no longer than that
    assert replica.raft.elections._bound_until < leases.now + 1.0


def test_a_promise_is_on_record_before_it_leaves(make: Callable[..., LeaseWorld]) -> None:
    leases = make()
    leases.run_until(lambda: any(answer.promise for answer in _answers(leases)))
    for member in leases.first_members:
        leases.crash(member)
        replica = leases.start(member)
        assert replica is not None and replica.log is not None and replica.log.identity is not None
        assert replica.log.identity.promises


# Elections around a lease: ``LeaseWorld.tick`` looks whether two lead in one


def _soon(world: World, *members: int) -> None:
    """These stand as soon as no promise holds them."""
    bound = max(world.replicas[member].raft.elections._bound_until for member in members)
    for member in members:
        world.replicas[member].raft.election_deadline = bound + 0.01 * member


def test_a_lease_is_over_before_the_promises_are_however_clocks_drift_within_the_bound(
    leases: LeaseWorld,
) -> None:
    """The leader's clock is too slow, all others are too fast."""
    leader = leases.elect()
    others = leases.others(leader.id)
    leases.hosts[leader.id].clock.run_at((1 + DRIFT) ** -0.5)
    for member in others:
        leases.hosts[member].clock.run_at((1 + DRIFT) ** 0.5)
    leases.run(2)
    leases.network.isolate(leader.id)
    leases.run(0.02)
    _soon(leases, *others)
    began = leases.now
    leases.run_until(lambda: leases.leader is not leader, 3)
    assert leases.now - began < 1.0 and leader.raft.is_leader


def test_a_connection_that_ends_ends_no_promise(leases: LeaseWorld) -> None:
    """All see that the leader is gone, and it is not: its cable has a loose contact."""
    leader = leases.elect()
    leases.run(0.05)
    leases.network.isolate(leader.id)
    leases.connections.break_off(leader.id)
    began = leases.now
    leases.run_until(lambda: leases.leader is not leader, 3)
    assert LEASE < leases.now - began < 1.7


def test_a_vote_that_was_promised_before_is_not_given_in_a_lease(leases: LeaseWorld) -> None:
    """Two have agreed to elect one of them, when the leader is heard again."""
    leader = leases.elect()
    candidate, voter = leases.others(leader.id)
    leases.run(0.05)
    from_leader = (leader.id, candidate), (leader.id, voter)
    leases.network.stall(*from_leader)
    leases.replicas[voter].raft.election_deadline = FOREVER
    leases.run_until(lambda: bool(_pre(leases, voter)), 3)
    assert leader.raft.is_leader
    leases.network.cut((candidate, leader.id))
    leases.network.heal((leader.id, voter))  # what was held back arrives before the request for the vote
    leases.run_until(lambda: leases.has_lease(leader), 0.1)
    leases.network.cut((voter, leader.id))
    leases.run(0.5)
    asked = [each for each in leases.messages(RequestVote, candidate) if isinstance(each, RequestVote)]
    assert not asked[-1].pre and leader.raft.is_leader  # it was asked for


def _pre(world: World, member: int) -> list[RequestVoteResponse]:
    """The votes that it has promised."""
    return [
        each
        for each in world.messages(RequestVoteResponse, member)[-1:]
        if isinstance(each, RequestVoteResponse) and each.pre
    ]


# The handover


def test_a_lease_ends_when_another_one_is_told_to_stand_and_stays_ended(leases: LeaseWorld) -> None:
    """The word may come when the leader has given up: the successor stands, and is elected at once."""
    leader = leases.elect()
    fill(leases, 1)
    to, third = leases.others(leader.id)
    held: list[TimeoutNow] = []

    def hold(sender: int, receiver: int, message: Message) -> Iterable[Message]:
        if isinstance(message, TimeoutNow):
            held.append(message)
            return []
        return [message]

    leases.edit = hold
    asked = leader.propose_change(TransferLeadership(to), FOREVER)
    leases.run_until(lambda: bool(held))
    assert not leases.has_lease(leader)
    leases.run_until(lambda: asked.done() and not leader.raft.transferring)
    leases.run(1)
    leases.edit = None
    leader._endpoint.send(to, held[0])
    leases.run(0.005)
    leases.network.cut((to, leader.id), (third, leader.id))  # it does not learn of it
    leases.run_until(lambda: leases.leader is leases.replicas[to], 0.5)
    acknowledged = put(leases.replicas[to], "new")
    leases.run_until(acknowledged.done, 0.5)
    assert leader.raft.is_leader
    read = leader.read_barrier(FOREVER, lease=True)
    leases.run(0.1)
    assert not read.done()


def test_a_handover_that_nobody_was_told_of_costs_no_lease_and_a_new_term_brings_one(
    leases: LeaseWorld,
) -> None:
    leader = leases.elect()
    to = leases.others(leader.id)[0]
    changed = leader.propose_change(TransferLeadership(to), FOREVER)
    leases.run_until(changed.done)
    leases.run_until(lambda: leases.has_lease(leases.replicas[to]), 2)
    changed = leases.replicas[to].propose_change(TransferLeadership(leader.id), FOREVER)
    leases.run_until(changed.done)
    leases.run_until(lambda: leases.has_lease(leader), 2)


# The members


def test_a_leader_that_is_no_voter_has_no_lease(make_engine: Callable[..., Engine]) -> None:
    engine = make_engine(timing=TIMING)
    engine.lead()
    with engine.raft.at(engine.now):
        engine.raft.leader.replicate()
    last, term = engine.log.last_index, engine.raft.term
    newest = engine.raft.leader.rounds.newest
    engine.receive(2, AppendEntriesResponse(term, last, last, newest, promise=1000))
    assert engine.raft.leader.has_lease(engine.now)
    engine.raft.membership.members = engine.raft.members.without(1)
    assert not engine.raft.leader.has_lease(engine.now)


def test_a_majority_of_the_present_voters_must_have_promised(make: Callable[..., LeaseWorld]) -> None:
    leases = make(members=5)
    leader = leases.elect()
    a, b, c, d = leases.others(leader.id)
    ends = {a: 2.0, b: 1.0, c: 0.0, d: -1.0}
    for member, end in ends.items():
        leader.raft.progress[member].promised_until = leases.now + end
    clock = leases.hosts[leader.id].clock()
    assert leader.raft.leader.has_lease(clock + 0.9) and not leader.raft.leader.has_lease(clock + 1.1)
    leader.raft.membership.counted.discard(a)  # another disk speaks under its number
    assert not leader.raft.leader.has_lease(clock + 0.9)


@pytest.mark.parametrize(("voters", "needed"), [(2, 1), (3, 1), (4, 2), (5, 2)])
def test_a_lease_needs_the_promises_of_a_majority_with_the_leader_itself(
    make_engine: Callable[..., Engine], voters: int, needed: int
) -> None:
    engine = make_engine(voters, timing=TIMING)
    engine.lead()
    with engine.raft.at(engine.now):
        engine.raft.leader.replicate()
    last, term = engine.log.last_index, engine.raft.term
    newest = engine.raft.leader.rounds.newest
    for promised, member in enumerate(engine.others):
        assert engine.raft.leader.has_lease(engine.now) == (promised >= needed)
        engine.receive(member, AppendEntriesResponse(term, last, last, newest, promise=1000))


def test_a_group_of_one_needs_no_promise(make: Callable[..., LeaseWorld]) -> None:
    leases = make(members=1)
    leader = leases.elect()
    read = leader.read_barrier(FOREVER, lease=True)
    leases.tick()
    assert read.done() and read.exception() is None


def test_a_lease_survives_a_change_of_members(leases: LeaseWorld) -> None:
    leader = leases.elect()
    removed = leases.others(leader.id)[0]
    changed = leader.propose_change(RemoveReplica(removed), FOREVER)
    leases.run_until(changed.done)
    leases.run(1)
    assert leases.has_lease(leader)
