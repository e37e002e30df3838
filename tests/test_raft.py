"""Raft safety in virtual time: what stock PySyncObj gets wrong must be impossible here.

Each claim is tested on real replicas (real PySyncObj, real RocksDB); only time and the network are ours.
"""

from __future__ import annotations

import inspect
import random
import re
import socket
from collections.abc import Callable

import pysyncobj.syncobj
import pytest
from pysyncobj import SyncObj

from ondisk import diskkv
from ondisk.errors import Corrupt, Discarded, NoLeader, OutcomeUnknown
from ondisk.raft.engine import PYSYNCOBJ_VERSION, Engine
from ondisk.raft.messages import (
    AppendEntries,
    AppendEntriesRejection,
    AppendEntriesResponse,
    Message,
    NewerTerm,
    Outcome,
    Outcomes,
    Propose,
    ReadIndexResponse,
    RequestVote,
    RequestVoteResponse,
)
from ondisk.raft.records import LogEntry
from ondisk.replica import Replica
from ondisk.replica.requests import Remote
from ondisk.statemachine import Result
from tests.virtual import World

FOREVER = float("inf")


def put(replica: Replica, key: str, value: str = "v") -> object:
    return replica.propose(diskkv.put(key, value), FOREVER)


def follower_of(world: World, leader: Replica) -> Replica:
    return world.replicas[world.others(leader.id)[0]]


# The seams


def test_every_private_name_that_is_used_exists_in_the_pinned_pysyncobj(world: World) -> None:
    """A seam of PySyncObj that moves fails here, and not in the middle of an election."""
    assert pysyncobj.version.VERSION == PYSYNCOBJ_VERSION
    raft = world.replicas[1].raft
    seams = re.findall(r'_private\("(\w+)"\)', inspect.getsource(Engine))
    assert len(seams) >= 14
    for name in seams:
        assert f"_SyncObj__{name}" in raft.__dict__, f"PySyncObj has no attribute {name}"
    for name in vars(Engine):
        if name.startswith("_SyncObj__") or name == "_checkCommandsToApply":
            assert hasattr(SyncObj, name), f"PySyncObj has no method {name} to override"
    for name in ("_SyncObj__setCurrentTerm", "_SyncObj__setState", "_SyncObj__onMessageReceived", "_onTick"):
        assert hasattr(SyncObj, name)
    assert "_SyncObj__newAppendEntriesTime" in raft.__dict__
    assert "_SyncObj__needLoadDumpFile" in raft.__dict__


def test_importing_the_engine_leaves_the_socket_module_as_it_was() -> None:
    """PySyncObj puts a Windows function into socket.inet_ntop; others in the process need the real one."""
    assert socket.inet_ntop(socket.AF_INET, b"\x7f\x00\x00\x01") == "127.0.0.1"


def test_time_of_other_pysyncobj_users_in_the_process_is_real_time(world: World) -> None:
    """Virtual time is seen by our engines only, and only inside their steps."""
    with world.replicas[1].raft.at(5.0):
        assert pysyncobj.syncobj.monotonicTime() == 5.0
    assert pysyncobj.syncobj.monotonicTime() != 5.0


# Row 1: truncation


def test_messages_that_repeat_known_entries_never_truncate_the_log(world: World) -> None:
    """Stock cuts everything after prevLogIdx of any append_entries, acknowledged or not."""
    leader = world.elect()
    for number in range(10):
        put(leader, f"k{number}")
    world.run(0.5)
    follower = follower_of(world, leader)
    last = follower.log.last_index
    term = leader.raft.term
    early = follower.log.entries(1, 2)
    with follower.raft.at(world.now):
        follower.raft.receive(leader.id, AppendEntries(term, 0, 0, early, 0, 0))
        follower.raft.receive(leader.id, AppendEntries(term, 0, 0, [], 0, 0))
    assert follower.log.last_index == last


def test_uncommitted_entries_that_the_leader_repeats_stay_in_the_log(world: World) -> None:
    """A late copy of an earlier message must not cut what came after it, committed or not."""
    follower = world.replicas[1]
    entries = [LogEntry(index, 1, b"\x00x") for index in range(1, 6)]
    with follower.raft.at(world.now + 10):  # it is quiet at first
        follower.raft.receive(2, AppendEntries(1, 0, 0, entries, 0, 0))
        follower.raft.receive(2, AppendEntries(1, 0, 0, entries[:2], 0, 0))
    assert follower.log.last_index == 5


def test_a_conflicting_tail_is_replaced_and_the_matching_part_kept(world: World) -> None:
    """Only entries that contradict the leader's are cut, from the first contradiction on."""
    leader = world.elect()
    put(leader, "committed")
    world.run(0.5)
    world.network.isolate(leader.id)
    put(leader, "lost-1")
    put(leader, "lost-2")
    world.run(0.1)
    divergent = leader.log.last_index
    new = world.replicas[world.others(leader.id)[0]]
    world.run_until(lambda: world.leader is not None and world.leader.id != leader.id)
    new = world.elect()
    put(new, "won")
    world.run(0.5)
    world.network.heal()
    world.run_until(lambda: leader.status.applied_index == new.status.applied_index)
    assert leader.lookup(diskkv.get("won")) == b"v"
    assert leader.lookup(diskkv.get("lost-1")) is None
    assert divergent >= 4
    for index in range(1, new.log.last_index + 1):
        assert leader.log.entries(index, index) == new.log.entries(index, index)


@pytest.mark.parametrize("seed", range(4))
def test_acknowledged_writes_survive_a_leader_that_dies_while_it_resends(
    make_world: Callable[..., World], seed: int
) -> None:
    """60 ms links, the third replica down, the leader dies under load: every acknowledged write is there.

    Stock PySyncObj keeps 156 of 3000 here.
    """
    world = make_world(latency=0.06, seed=seed)
    leader = world.elect()
    world.stop(world.others(leader.id)[1])
    acknowledged = []
    rng = random.Random(seed)
    for number in range(300):
        future = leader.propose(diskkv.put(f"k{number}", "v"), FOREVER)
        future.add_done_callback(
            lambda done, number=number: acknowledged.append(number) if not done.exception() else None
        )
        if rng.random() < 0.3:
            world.tick()
    world.run_until(lambda: len(acknowledged) > 100)
    world.crash(leader.id)
    survivor = next(iter(world.replicas.values()))
    acknowledged_then = tuple(acknowledged)
    world.start(world.others(leader.id)[1])
    world.elect()
    world.run(1)
    for number in acknowledged_then:
        assert survivor.lookup(diskkv.get(f"k{number}")) == b"v"


# Rows 3 and 5: commit


def test_a_follower_commits_no_further_than_the_message_proved(world: World) -> None:
    """The leader's commit index says nothing about a tail that the message did not compare."""
    leader = world.elect()
    world.run(0.5)
    follower = follower_of(world, leader)
    term, commit = leader.raft.term, follower.raft.commit_index
    assert commit == follower.log.last_index > 0
    stale = [LogEntry(follower.log.last_index + n, term, b"\x00stale") for n in (1, 2, 3)]
    follower.log.append(stale)
    with follower.raft.at(world.now):
        follower.raft.receive(leader.id, AppendEntries(term, commit, term, [], commit + 3, 0))
    assert follower.raft.commit_index == commit


def test_a_message_that_does_not_match_commits_nothing(world: World) -> None:
    """What the follower has instead may be the tail of a deposed leader."""
    leader = world.elect()
    world.run(0.5)
    follower = follower_of(world, leader)
    term, commit = leader.raft.term, follower.raft.commit_index
    follower.log.append([LogEntry(commit + n, term, b"\x00stale") for n in (1, 2, 3)])
    with follower.raft.at(world.now):
        follower.raft.receive(leader.id, AppendEntries(term + 1, commit + 3, term + 1, [], commit + 3, 0))
    assert follower.raft.commit_index == commit


def test_a_reply_from_another_term_counts_for_nothing(world: World) -> None:
    """Stock's replies carry no term: an old success raises the match index of a new leader."""
    leader = world.elect()
    world.run(0.5)
    world.network.isolate(leader.id)
    put(leader, "uncommitted")
    world.run(0.1)
    last, commit, term = leader.log.last_index, leader.raft.commit_index, leader.raft.term
    with leader.raft.at(world.now):
        for peer in world.others(leader.id):
            leader.raft.receive(peer, AppendEntriesResponse(term - 1, last, 0, 0))
        leader.raft.tick()
    assert leader.raft.commit_index == commit


@pytest.mark.parametrize("kind", [NewerTerm, AppendEntriesRejection])
def test_a_leader_that_hears_of_a_newer_term_leads_no_more(world: World, kind: type[Message]) -> None:
    """Whoever leads that term may have been elected without its knowing."""
    leader = world.elect()
    term = leader.raft.term + 1
    news = NewerTerm(term) if kind is NewerTerm else AppendEntriesRejection(term, 1, 1, 0)
    with leader.raft.at(world.now):
        leader.raft.receive(follower_of(world, leader).id, news)
    assert (leader.raft.role, leader.raft.term, leader.raft.leader_id) == ("follower", term, None)


def test_an_entry_of_an_earlier_term_is_not_committed_by_counting_replicas(world: World) -> None:
    """Figure 8 of the Raft paper: only an entry of the leader's own term commits, and all before with it."""
    leader = world.elect()
    world.run(0.5)
    world.network.isolate(leader.id)
    put(leader, "old")
    world.run(0.1)
    raft = leader.raft
    with raft.at(world.now):
        raft._SyncObj__setCurrentTerm(raft.term + 5, leader.id)
        last = leader.log.last_index
        for peer in world.others(leader.id):
            raft.receive(peer, AppendEntriesResponse(raft.term, last, 0, 0))
        raft.tick()
        assert raft.commit_index < last


# Row 8: votes


def test_one_voter_cannot_elect_a_leader_by_voting_twice(make_world: Callable[..., World]) -> None:
    """Stock counts messages, so a repeated vote makes a majority of five."""
    world = make_world(members=5)
    candidate = world.replicas[1]
    for other in world.others(1):
        world.stop(other)
        world.network.attach(other)  # reachable, but silent
    with candidate.raft.at(world.now):
        candidate.raft.set_connected(frozenset(world.others(1)))
        candidate.raft.elections._ask_before_election()
        term = candidate.raft.term + 1
        for peer in (2, 3):
            candidate.raft.membership.speaks(peer, candidate.raft.members.disk_of(peer))
            candidate.raft.receive(peer, RequestVoteResponse(term, pre=True))
        candidate.raft.tick()
        assert candidate.raft.role == "candidate"
        for _ in range(5):
            candidate.raft.receive(2, RequestVoteResponse(term, pre=False))
        assert candidate.raft.role == "candidate"
        candidate.raft.receive(3, RequestVoteResponse(term, pre=False))
        assert candidate.raft.role == "leader"


def test_a_vote_survives_a_power_cut_after_it_was_given(world: World) -> None:
    """A replica that forgets its vote can vote twice in a term, and two leaders may follow."""
    world.network.isolate(3)
    voter = world.replicas[3]
    with voter.raft.at(world.now):
        voter.raft.receive(1, RequestVote(7, 0, 0, False))
    voter._flush()
    world.crash(3)
    voter = world.start(3)
    assert voter.log is not None and (voter.log.term, voter.log.voted_for) == (7, 1)
    with voter.raft.at(world.now):
        voter.raft.receive(2, RequestVote(7, 9, 6, False))
    assert voter.log.voted_for == 1


# Rows 9 and 10: durability before messages


class _Eavesdropper:
    """Wraps an endpoint; notes what left while the log held something unsynced."""

    def __init__(self, replica: Replica) -> None:
        self.violations: list[object] = []
        self.sent = self.early = 0
        inner_send, inner_apply = replica._endpoint.send, replica.apply

        def send(to: int, message: object) -> bool:
            self.sent += 1
            if replica.log is not None and replica.log.unsynced:
                if isinstance(message, AppendEntries) and replica.log.only_entries_unsynced:
                    self.early += 1  # a leader's entries promise nothing
                else:
                    self.violations.append(message)
            return inner_send(to, message)  # type: ignore[arg-type]

        def apply(entries: object) -> None:
            if replica.log is not None and replica.log.unsynced:
                self.violations.append(("applied", entries))
            inner_apply(entries)  # type: ignore[arg-type]

        replica._endpoint.send = send  # type: ignore[method-assign]
        replica.apply = apply  # type: ignore[method-assign]


@pytest.mark.parametrize("members", [1, 3])
def test_no_promise_leaves_and_nothing_is_applied_while_the_log_holds_unsynced_entries(
    make_world: Callable[..., World], members: int
) -> None:
    """Observed at the endpoint and where entries are applied, through elections, load and a partition."""
    world = make_world(members=members)
    ears = {member: _Eavesdropper(replica) for member, replica in world.replicas.items()}
    leader = world.elect()
    futures = [put(leader, f"k{number}") for number in range(50)]
    world.run(0.5)
    if members > 1:
        world.network.isolate(leader.id)
        put(leader, "lost")
        world.run(4)
        world.network.heal()
        world.elect()
        world.run(1)
        assert all(ear.sent for ear in ears.values())
        assert ears[leader.id].early
    assert all(future.done() for future in futures)
    assert {member: ear.violations for member, ear in ears.items() if ear.violations} == {}


def test_one_sync_covers_many_entries_at_256_in_flight(world: World) -> None:
    """Group commit: what arrives between two steps is made durable together."""
    leader = world.elect()
    world.run(0.2)
    before = leader.log.syncs
    futures = [put(leader, f"k{number}") for number in range(256)]
    world.run_until(lambda: all(future.done() for future in futures))
    assert leader.log.syncs - before <= 3


# Row 11: backing up


def test_a_long_divergent_tail_is_found_in_a_few_round_trips(world: World) -> None:
    """The follower says where to go on; stock walks back one entry at a time."""
    leader = world.elect()
    world.run(0.5)
    world.network.isolate(leader.id)
    for number in range(3000):
        put(leader, f"lost{number}")
    world.run(0.1)
    assert leader.log.last_index >= 3000
    world.run_until(lambda: world.leader is not None and world.leader.id != leader.id)
    new = world.elect()
    world.network.heal()
    before = len(world.messages(AppendEntriesRejection, leader.id))
    world.run_until(lambda: leader.log.last_index == new.log.last_index)
    rejected = [
        reply
        for reply in world.messages(AppendEntriesRejection, leader.id)[before:]
        if isinstance(reply, AppendEntriesRejection) and reply.term == new.raft.term
    ]
    assert len(rejected) <= 3


def test_a_follower_that_missed_thousands_of_entries_is_found_in_a_few_round_trips(world: World) -> None:
    """A short log is asked for its end, not searched for it."""
    leader = world.elect()
    world.run(0.5)
    late = follower_of(world, leader)
    world.network.isolate(late.id)
    futures = [put(leader, f"k{number}") for number in range(3000)]
    world.run_until(lambda: all(future.done() for future in futures))
    world.network.heal()
    before = len(world.messages(AppendEntriesRejection, late.id))
    world.run_until(lambda: late.log.last_index == leader.log.last_index)
    assert 0 < len(world.messages(AppendEntriesRejection, late.id)[before:]) <= 5


# Row 12: exceptions while applying


def test_an_exception_in_the_state_machine_stops_that_replica_alone(world: World) -> None:
    """Stock retries the entry with each tick and stops its heartbeats."""
    leader = world.elect()
    sick = follower_of(world, leader)

    def refuse(entries: object) -> list[Result]:
        raise RuntimeError("no space for one more row")

    sick.machine.update = refuse  # type: ignore[method-assign,assignment]
    future = put(leader, "k")
    world.run(1)
    assert future.result(0) == Result()
    assert sick.status.role == "failed"
    assert sick.status.error == "RuntimeError: no space for one more row"
    assert world.leader is leader


def test_an_exception_in_a_callback_applies_nothing_twice(world: World) -> None:
    """Stock applies the entry again when the callback of its caller raises."""
    leader = world.elect()
    first = leader.propose(diskkv.incr("n"), FOREVER)
    first.add_done_callback(lambda future: 1 / 0)
    second = leader.propose(diskkv.incr("n"), FOREVER)
    world.run(1)
    assert (first.result(0), second.result(0)) == (Result(1), Result(2))
    assert all(r.lookup(diskkv.get("n")) == b"2" for r in world.replicas.values())


# Row 15: timers


def test_a_stall_longer_than_the_election_timeout_starts_no_election(world: World) -> None:
    """Messages that waited during the stall are taken in before any timer is looked at."""
    leader = world.elect()
    world.run(1)
    term = leader.raft.term
    stalled = follower_of(world, leader)
    asked = len(world.messages(RequestVote, stalled.id))
    world.freeze(stalled.id)
    world.run(3)
    world.thaw()
    world.run(3)
    assert len(world.messages(RequestVote, stalled.id)) == asked
    assert (world.leader, leader.raft.term) == (leader, term)


def test_elections_survive_fsync_stalls_of_700_ms(world: World) -> None:
    """Whoever stalls, leader or follower, nobody is deposed."""
    leader = world.elect()
    world.run(1)
    term = leader.raft.term
    for member in (leader.id, *world.others(leader.id)):
        for _ in range(5):
            put(leader, "k")
            world.freeze(member)
            world.run(0.7)
            world.thaw()
            world.run(0.15)
    assert (world.leader, leader.raft.term) == (leader, term)


# Row 16: PreVote and CheckQuorum


def test_a_replica_that_was_cut_off_deposes_nobody_when_it_comes_back(world: World) -> None:
    """PreVote: it asks before it raises its term."""
    leader = world.elect()
    world.run(1)
    term, alone = leader.raft.term, follower_of(world, leader)
    world.network.cut((leader.id, alone.id))
    world.run(20)  # it hears the third replica, and both hear it, but its leader is silent
    assert alone.raft.term == term
    assert len(world.messages(RequestVote, alone.id)) > 5
    world.network.heal()
    world.run(5)
    assert (world.leader, leader.raft.term) == (leader, term)


def test_a_leader_without_a_majority_steps_down_within_an_election_timeout(world: World) -> None:
    """CheckQuorum: stock keeps believing for 30 seconds."""
    leader = world.elect()
    world.run(1)
    world.network.isolate(leader.id)
    world.run(leader.raft.timing.election_max + 0.2)
    assert leader.status.role != "leader"


def test_a_deposed_leader_learns_its_fate_from_the_answer(world: World) -> None:
    """An append_entries of an old term is answered with the new one, and the answer confirms nothing.

    The deposed leader may lead the new term already: an old round number would vouch for reads that nobody
    checked.
    """
    leader = world.elect()
    follower = follower_of(world, leader)
    with follower.raft.at(world.now):
        follower.raft.receive(world.others(leader.id)[1], RequestVote(50, 999, 40, False))
        follower.raft.receive(leader.id, AppendEntries(leader.raft.term, 5, 1, [], 0, 51))
    assert follower._outbox[-1][1] == NewerTerm(50)


def test_a_leader_never_uses_the_number_of_a_check_twice(world: World) -> None:
    """A late answer to a check of an earlier leadership cannot confirm one of this leadership."""
    leader = world.elect()
    for _ in range(5):
        leader.read_barrier(FOREVER)
        world.run(0.05)
    used = leader.raft.leader.rounds.newest
    assert used >= 5
    world.network.isolate(leader.id)
    world.run_until(lambda: world.leader is not None and world.leader.id != leader.id)
    world.network.heal()
    world.run(1)
    for _ in range(20):
        if leader.raft.is_leader:
            break
        former = world.elect().id
        world.network.isolate(former)
        world.run_until(lambda former=former: world.leader is not None and world.leader.id != former)
        world.network.heal()
        world.run(1)
    assert leader.raft.is_leader
    assert leader.raft.leader.start_round() > used


# Row 18: a log that does not fit its state


def test_a_log_that_ends_before_the_state_is_reported(world: World) -> None:
    """The log was lost or rolled back: going on could commit different entries at the same indexes."""
    leader = world.elect()
    put(leader, "k")
    world.run(1)
    world.stop(leader.id)
    log = world.directory / f"replica-{leader.id}" / "log"
    log.rename(log.with_name("elsewhere"))
    with pytest.raises(Corrupt, match="belongs to the log of replica"):
        world.start(leader.id)


# Callers


def test_requests_wait_quietly_when_the_leader_leaves_right_after_a_heartbeat(world: World) -> None:
    """Its last message is still in the inbox: it must not be taken for a sign of life.

    The request is not sent to nobody at full speed, its deadline holds, and the replica goes on.
    """
    world.latency = 0
    leader = world.elect()
    world.run(0.5)
    follower, other = (world.replicas[member] for member in world.others(leader.id))
    while not any(sender == leader.id for sender, _, _ in world.network._endpoints[follower.id].inbox):
        world.now += 0.002
        leader.step()
    world.stop(leader.id)
    world.stop(other.id)
    follower.step()
    assert follower.raft.leader_id is None
    future = put(follower, "k")
    late = follower.propose(diskkv.put("late", "v"), world.now + 0.3)
    pauses = []
    for _ in range(400):
        world.now += 0.002
        pauses.append(follower.step())
    assert follower.running
    assert sum(pause == 0.0 for pause in pauses) < 10
    assert isinstance(late.exception(0), NoLeader)
    assert not future.done()


def test_a_command_that_could_not_be_sent_waits_for_the_next_leader(world: World) -> None:
    """Certainly not proposed, so it is proposed to whoever leads next, once."""
    leader = world.elect()
    world.run(0.5)
    follower = follower_of(world, leader)
    send = follower._endpoint.send
    follower._endpoint.send = lambda to, message: (  # type: ignore[method-assign]
        False if isinstance(message, Propose) else send(to, message)
    )
    future = follower.propose(diskkv.incr("n"), FOREVER)
    given_up = follower.propose(diskkv.incr("n"), world.now + 0.1)
    world.run(0.5)
    assert follower.running
    assert isinstance(given_up.exception(0), (NoLeader, OutcomeUnknown))
    assert not future.done()
    follower._proposals.take_back(Propose(12345, [b"given up between sending and finding out"]))
    follower._endpoint.send = send  # type: ignore[method-assign]
    world.run(0.5)
    assert future.result(0) == Result(1)


@pytest.mark.parametrize(("verdict", "error"), [("unknown", OutcomeUnknown), ("discarded", Discarded)])
def test_what_the_leader_knows_of_a_command_reaches_the_caller_unchanged(
    world: World, verdict: str, error: type[Exception]
) -> None:
    """'Unknown' must never become 'not done' on its way back through a follower."""
    leader = world.elect()
    world.run(0.5)
    follower = follower_of(world, leader)
    world.network.stall((follower.id, leader.id))
    future = put(follower, "k")
    world.run(0.05)
    (request,) = follower._proposals._forwarded
    follower._receive(leader.id, Outcomes([Outcome(request, verdict)]))  # type: ignore[arg-type]
    assert type(future.exception(0)) is error
    outcomes: list[Outcome] = []
    leader._proposals._report = lambda to, *said: outcomes.append(said)  # type: ignore[method-assign,assignment,arg-type]
    leader._proposals._refuse(Remote(follower.id, 1), error("why"))
    assert outcomes == [(verdict,)]


def test_a_proposal_whose_entry_is_overwritten_is_known_not_to_have_happened(world: World) -> None:
    """At its index another leader's entry was committed, so this one never can be."""
    leader = world.elect()
    world.run(0.5)
    world.network.isolate(leader.id)
    lost = put(leader, "lost")
    world.run_until(lambda: world.leader is not None and world.leader.id != leader.id)
    new = world.elect()
    put(new, "won")
    world.run(0.5)
    world.network.heal()
    world.run(1)
    assert "discarded" in str(lost.exception(0))
    assert all(r.lookup(diskkv.get("lost")) is None for r in world.replicas.values())


def test_a_forwarded_proposal_fails_as_unknown_when_the_leader_goes_away(world: World) -> None:
    """It was sent, so it may have happened: that is a different answer from 'not done'."""
    leader = world.elect()
    follower = follower_of(world, leader)
    world.network.stall((follower.id, leader.id))
    future = put(follower, "k")
    world.run(0.05)
    world.stop(leader.id)
    world.run(1)
    assert isinstance(future.exception(0), OutcomeUnknown)


def test_a_forwarded_proposal_answers_with_the_leaders_result(world: World) -> None:
    """Through a follower the caller gets the same Result as at the leader."""
    leader = world.elect()
    futures = [
        follower.propose(diskkv.incr("n"), FOREVER)
        for follower in (world.replicas[m] for m in world.others(leader.id))
    ]
    world.run(1)
    assert sorted(future.result(0).value for future in futures) == [1, 2]


def test_a_read_waits_until_the_index_it_was_told_is_applied_here(world: World) -> None:
    """The leader's word alone makes no read linearizable: this replica must have got that far."""
    leader = world.elect()
    world.run(0.5)
    follower = follower_of(world, leader)
    world.network.stall((leader.id, follower.id))
    barrier = follower.read_barrier(FOREVER)
    world.run(0.05)
    (request,) = follower._reads._asked
    follower._receive(leader.id, ReadIndexResponse(request, follower.raft.applied_index + 1))
    world.run(0.1)
    assert not barrier.done()
    put(leader, "k")
    world.network.heal()
    world.run_until(barrier.done)
    assert follower.lookup(diskkv.get("k")) == b"v"


def test_an_answer_to_an_earlier_life_is_not_taken_for_a_new_request(world: World) -> None:
    """Request numbers do not begin at 1 after a restart."""
    leader = world.elect()
    follower = follower_of(world, leader)
    first = follower._proposals._next_request
    world.stop(follower.id)
    assert abs(world.start(follower.id)._proposals._next_request - first) > 1000
