"""Raft's engine alone (``engine.py``): majorities, elections, and what a follower answers."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from ondisk.errors import Corrupt
from ondisk.raft import Timing
from ondisk.raft.messages import (
    AppendEntries,
    AppendEntriesRejection,
    AppendEntriesResponse,
    NewerTerm,
    Removed,
    RequestVote,
    RequestVoteResponse,
    SnapshotNeeded,
    TimeoutNow,
)
from tests.engine import Engine, disk_of, entry, to

TIMING = Timing()


# Half of the voters are no majority


@pytest.mark.parametrize("voters", [2, 4])
def test_half_of_the_voters_begin_no_election_and_elect_nobody(
    make_engine: Callable[..., Engine], voters: int
) -> None:
    half, rest = range(2, voters // 2 + 1), voters // 2 + 1
    engine = make_engine(voters)
    engine.stand(*half)
    assert engine.raft.role == "follower" and engine.raft.term == 0
    engine.receive(rest, RequestVoteResponse(1, pre=True))
    sent = engine.tick()
    assert engine.raft.role == "candidate" and engine.raft.term == 1
    assert sent == [(other, RequestVote(1, 0, 0, pre=False)) for other in engine.others]
    for voter in half:
        engine.receive(voter, RequestVoteResponse(1, pre=False))
    assert engine.raft.role == "candidate"
    engine.receive(rest, RequestVoteResponse(1, pre=False))
    assert engine.raft.role == "leader" and engine.raft.leader_id == 1


def test_half_of_the_voters_commit_nothing_and_confirm_no_read(make_engine: Callable[..., Engine]) -> None:
    engine = make_engine(4)
    engine.lead(commit=False)
    assert not engine.raft.leader.committed_in_current_term()
    engine.agree(2)
    assert (
        engine.raft.commit_index == 0
        and not engine.applied
        and not engine.raft.leader.committed_in_current_term()
    )
    engine.agree(3)
    assert engine.raft.commit_index == 1 and engine.raft.applied_index == 1
    assert engine.raft.leader.committed_in_current_term() and [each.index for each in engine.applied] == [1]
    with engine.raft.at(engine.now):
        asked = engine.raft.leader.start_round()
    assert engine.raft.leader.confirmed_round() < asked
    sent = engine.tick()  # at once, not with the next heartbeat
    assert {message.round for other in engine.others for message in to(other, sent)} == {asked}
    engine.agree(2)
    assert engine.raft.leader.confirmed_round() < asked
    engine.agree(3)
    assert engine.raft.leader.confirmed_round() == asked


def test_a_leader_that_half_of_the_voters_answer_steps_down(make_engine: Callable[..., Engine]) -> None:
    """And knows no leader then, so that nobody sends it anything for itself."""
    engine = make_engine(4)
    engine.lead()
    until = engine.now + 2 * TIMING.election_max
    while engine.now < until:
        engine.tick(0.05)
        engine.agree(2, 3)
    assert engine.raft.is_leader  # two of the three others are enough
    began, term = engine.now, engine.raft.term
    while engine.raft.is_leader:
        sent = engine.tick(0.05)
        engine.agree(2)
    assert engine.raft.role == "follower" and engine.raft.leader_id is None
    assert engine.raft.term == term  # before it stands again it asks, like everybody else
    assert sent == [(other, RequestVote(term + 1, 1, term, pre=True)) for other in engine.others]
    assert TIMING.election_max - 0.1 < engine.now - began < TIMING.election_max + 0.2
    assert engine.raft.match_index == {} and engine.raft.needs_snapshot == frozenset()


def test_a_group_of_one_leads_and_commits_by_itself(make_engine: Callable[..., Engine]) -> None:
    engine = make_engine(1)
    engine.wait(1.0)
    assert engine.raft.is_leader
    engine.append(3)
    engine.tick()
    engine.tick()
    assert engine.raft.commit_index == engine.log.last_index == 4


# Elections


def test_a_prevote_and_a_vote_tell_where_the_log_ends(make_engine: Callable[..., Engine]) -> None:
    engine = make_engine(3, entries=[entry(1, 1), entry(2, 3)])
    asked = engine.ask_for_votes()
    assert asked == [(other, RequestVote(4, 2, 3, pre=True)) for other in (2, 3)]
    assert engine.raft.term == 3 and engine.log.voted_for is None  # only asked
    engine.receive(2, RequestVoteResponse(4, pre=True))
    assert engine.tick() == [(other, RequestVote(4, 2, 3, pre=False)) for other in (2, 3)]
    assert (engine.log.term, engine.log.voted_for) == (4, 1)  # durable before it has left


def test_the_first_election_comes_soon_and_later_ones_after_a_timeout(
    make_engine: Callable[..., Engine],
) -> None:
    engine = make_engine(3)
    began = engine.now
    engine.ask_for_votes()
    assert TIMING.first_election <= engine.now - began <= 3 * TIMING.first_election + 0.1
    for _ in range(5):
        began = engine.now
        engine.ask_for_votes()
        assert TIMING.election_min <= engine.now - began <= TIMING.election_max + 0.1
    assert engine.raft.term == 0


def test_a_leader_that_visibly_went_away_is_not_waited_for(make_engine: Callable[..., Engine]) -> None:
    engine = make_engine(3)
    engine.heartbeat(2)
    assert engine.raft.leader_id == 2
    with engine.raft.at(engine.now):
        engine.raft.set_connected(frozenset({2}))  # another one went away
        assert engine.raft.leader_id == 2
        engine.raft.set_connected(frozenset({3}))
    assert engine.raft.leader_id is None
    assert engine.raft.next_wakeup() <= engine.now + 3 * TIMING.first_election
    for again in (engine.raft.elections.wait_briefly_for_leader, engine.raft.begin_group) * 30:
        engine.raft.election_deadline = engine.now + 99
        with engine.raft.at(engine.now):
            again()
        waits = engine.raft.next_wakeup() - engine.now
        assert TIMING.first_election <= waits <= 3 * TIMING.first_election
    (answer,) = engine.receive(3, RequestVote(2, 0, 0, pre=True))  # nor do others have to wait
    assert answer == (3, RequestVoteResponse(2, pre=True))


def test_a_leader_does_not_forget_itself_when_a_link_breaks(make_engine: Callable[..., Engine]) -> None:
    engine = make_engine(3)
    engine.lead()
    with engine.raft.at(engine.now):
        engine.raft.set_connected(frozenset({3}))
    assert engine.raft.is_leader and engine.raft.leader_id == 1


def test_nobody_is_preferred_to_a_leader_that_is_alive(make_engine: Callable[..., Engine]) -> None:
    engine = make_engine(3)
    engine.heartbeat(2)
    question = RequestVote(2, 9, 9, pre=True)
    assert engine.receive(3, question) == []
    engine.now += TIMING.election_min - 0.01
    assert engine.receive(3, question) == []
    engine.now += 0.02
    assert engine.receive(3, question) == [(3, RequestVoteResponse(2, pre=True))]
    assert engine.raft.term == 1  # a PreVote changes nothing
    leader = make_engine(3)
    leader.lead()
    leader.now += 1.5
    assert leader.receive(3, RequestVote(leader.raft.term + 1, 9, 9, pre=True)) == []


@pytest.mark.parametrize(
    ("last", "granted"), [((3, 1), False), ((1, 2), False), ((2, 2), True), ((3, 2), True), ((1, 3), True)]
)
@pytest.mark.parametrize("pre", [True, False])
def test_a_vote_is_for_a_log_that_is_as_long_at_least(
    make_engine: Callable[..., Engine], last: tuple[int, int], granted: bool, pre: bool
) -> None:
    """``last``: index and term. A later term wins, and then the longer log (paper, 5.4.1)."""
    engine = make_engine(3, entries=[entry(1, 1), entry(2, 2)])
    answer = engine.receive(3, RequestVote(5, *last, pre=pre))
    assert answer == ([(3, RequestVoteResponse(5, pre=pre))] if granted else [])
    assert engine.log.voted_for == (3 if granted and not pre else None)


def test_there_is_one_vote_a_term(make_engine: Callable[..., Engine]) -> None:
    engine = make_engine(3)
    assert engine.receive(2, RequestVote(3, 0, 0, pre=False)) == [(2, RequestVoteResponse(3, pre=False))]
    assert engine.receive(3, RequestVote(3, 9, 9, pre=False)) == []
    assert engine.receive(3, RequestVote(4, 9, 9, pre=False)) == [(3, RequestVoteResponse(4, pre=False))]
    assert engine.receive(2, RequestVote(3, 9, 9, pre=False)) == [(2, NewerTerm(4))]
    assert engine.receive(2, RequestVote(3, 9, 9, pre=True)) == [(2, NewerTerm(4))]


def test_a_refusal_that_knows_of_a_newer_term_is_believed(make_engine: Callable[..., Engine]) -> None:
    engine = make_engine(3)
    engine.lead()
    engine.receive(2, NewerTerm(7))
    assert (engine.raft.term, engine.raft.role, engine.raft.leader_id) == (7, "follower", None)
    engine.receive(2, NewerTerm(6))
    assert engine.raft.term == 7 and engine.log.voted_for is None


@pytest.mark.parametrize("who", ["a learner", "another disk", "an older term", "a later prevote"])
def test_some_votes_do_not_count(make_engine: Callable[..., Engine], who: str) -> None:
    engine = make_engine(3, learners=[4])
    if who == "another disk":
        engine.raft.membership.speaks(2, disk_of(9))
    pre = who == "a later prevote"
    sender = 4 if who == "a learner" else 2
    engine.ask_for_votes()
    engine.receive(sender, RequestVoteResponse(2 if pre else 1, pre=True))
    engine.tick()
    if who != "an older term":
        assert engine.raft.role == "follower"
    engine.receive(3, RequestVoteResponse(1, pre=True))
    engine.tick()
    assert engine.raft.role == "candidate"
    engine.receive(sender, RequestVoteResponse(0 if who == "an older term" else 1, pre=pre))
    assert engine.raft.role == "candidate"
    engine.receive(3, RequestVoteResponse(1, pre=False))
    assert engine.raft.role == "leader"


def test_an_answer_to_a_prevote_counts_only_in_the_term_that_it_was_asked_in(
    make_engine: Callable[..., Engine],
) -> None:
    engine = make_engine(3)
    engine.ask_for_votes()
    engine.receive(2, NewerTerm(7))
    engine.receive(3, RequestVoteResponse(1, pre=True))
    assert engine.tick() == [] and engine.raft.role == "follower" and engine.raft.term == 7


def test_another_version_of_pysyncobj_is_refused(
    make_engine: Callable[..., Engine], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("pysyncobj.version.VERSION", "0.3.99")
    with pytest.raises(ImportError, match=r"this is 0\.3\.99"):
        make_engine(3)


def test_a_leader_takes_no_prevote_for_a_reason_to_step_down(make_engine: Callable[..., Engine]) -> None:
    engine = make_engine(3)
    engine.lead()
    term = engine.raft.term
    for _ in range(3):
        engine.receive(2, RequestVoteResponse(term + 1, pre=True))
        engine.tick(0.001)
    assert engine.raft.is_leader and engine.raft.term == term


def test_who_is_asked_to_take_over_stands_at_once_and_only_for_its_leader(
    make_engine: Callable[..., Engine],
) -> None:
    engine = make_engine(3)
    engine.heartbeat(2)
    for sender, term in ((3, 1), (2, 0), (2, 2)):
        engine.receive(sender, TimeoutNow(term))
        assert engine.tick() == [] and engine.raft.role == "follower"
    engine.receive(2, TimeoutNow(1))
    assert engine.tick() == [(other, RequestVote(2, 0, 0, pre=False, handed_over=True)) for other in (2, 3)]
    assert engine.raft.role == "candidate" and engine.raft.leader_id is None


def test_entries_that_arrive_with_the_word_to_take_over_do_not_take_it_back(
    make_engine: Callable[..., Engine],
) -> None:
    """A leader says it at its heartbeats, so entries come right behind it, each time. A newer
    leader does.
    """
    engine = make_engine(3)
    engine.heartbeat(2)
    engine.receive(2, TimeoutNow(1))
    engine.heartbeat(2)
    assert engine.tick() == [(other, RequestVote(2, 0, 0, pre=False, handed_over=True)) for other in (2, 3)]
    engine.heartbeat(3, term=3)
    engine.receive(3, TimeoutNow(3))
    engine.heartbeat(2, term=4)
    assert engine.tick() == [] and engine.raft.role == "follower"


def test_one_that_may_not_lead_asks_only_whether_it_is_still_a_member(
    make_engine: Callable[..., Engine],
) -> None:
    """A question in term 0 cannot get a vote."""
    engine = make_engine(3)
    for how in ("needs_state", "recovering"):
        setattr(engine.raft, how, True)
        assert engine.ask_for_votes() == [(other, RequestVote(0, 0, 0, pre=True)) for other in (2, 3)]
        assert engine.raft.role == "follower" and engine.raft.term == 0
        engine.heartbeat(2)
        engine.receive(2, TimeoutNow(1))
        assert engine.tick() == []
        setattr(engine.raft, how, False)
        engine.raft._term = 0


# Followers


def test_a_follower_says_where_its_log_ends_or_where_the_conflicting_term_begins(
    make_engine: Callable[..., Engine],
) -> None:
    terms = [1, 1, 2, 3, 3, 3]
    engine = make_engine(3, entries=[entry(index, term) for index, term in enumerate(terms, 1)])
    reply = engine.heartbeat(2, entry(10, 4), term=4, after=(9, 4), round=7)
    assert reply == AppendEntriesRejection(4, 7, 9, 7)
    reply = engine.heartbeat(2, term=4, after=(6, 4), round=8)
    assert reply == AppendEntriesRejection(4, 4, 6, 8)  # term 3 begins there
    reply = engine.heartbeat(2, term=4, after=(3, 2), commit=3)
    assert isinstance(reply, AppendEntriesResponse) and engine.raft.commit_index == 3
    assert engine.heartbeat(2, term=4, after=(5, 4)).hint == 4
    assert engine.log.last_index == 6  # nothing was cut


def test_the_hint_never_points_into_what_is_committed(make_engine: Callable[..., Engine]) -> None:
    engine = make_engine(3, entries=[entry(index, 1) for index in range(1, 6)])
    engine.heartbeat(2, after=(3, 1), commit=3)
    assert engine.heartbeat(2, term=2, after=(5, 2)).hint == 4


def test_a_follower_commits_what_the_message_proved_and_nothing_is_taken_back(
    make_engine: Callable[..., Engine],
) -> None:
    engine = make_engine(3, entries=[entry(index, 1) for index in range(1, 6)])
    assert engine.heartbeat(2, after=(2, 1), commit=5).index == 2
    assert engine.raft.commit_index == 2
    engine.heartbeat(2, after=(4, 1), commit=3)
    assert engine.raft.commit_index == 3
    engine.heartbeat(2, after=(1, 1), commit=1)
    assert engine.raft.commit_index == 3
    engine.tick()
    assert [each.index for each in engine.applied] == [1, 2, 3] and engine.raft.applied_index == 3


def test_only_what_contradicts_is_cut_off(make_engine: Callable[..., Engine]) -> None:
    engine = make_engine(3, entries=[entry(1, 1), entry(2, 1), entry(3, 1), entry(4, 1)])
    reply = engine.heartbeat(2, entry(2, 1), entry(3, 2), term=2, after=(1, 1))
    assert isinstance(reply, AppendEntriesResponse) and reply.index == 3
    assert [each.term for each in engine.log.entries(1, 3)] == [1, 1, 2] and engine.log.last_index == 3
    assert engine.heartbeat(2, entry(2, 1), term=2, after=(1, 1)).index == 2
    assert engine.log.last_index == 3
    assert engine.heartbeat(2, entry(3, 2), entry(4, 2), term=2, after=(2, 1)).index == 4
    assert [each.term for each in engine.log.entries(1, 4)] == [1, 1, 2, 2]


def test_entries_that_do_not_follow_each_other_are_no_message_of_a_leader(
    make_engine: Callable[..., Engine],
) -> None:
    engine = make_engine(3)
    for entries in ([entry(2, 1)], [entry(1, 1), entry(3, 1)]):
        assert engine.receive(2, AppendEntries(1, 0, 0, entries, 0, 1)) == []
    assert engine.log.last_index == 0


def test_what_lies_below_the_base_is_skipped(make_engine: Callable[..., Engine]) -> None:
    engine = make_engine(3, entries=[entry(index, 1) for index in range(1, 6)], applied=4)
    engine.log.compact(4)
    reply = engine.heartbeat(2, *(entry(index, 1) for index in range(2, 8)), after=(1, 1), commit=7)
    assert isinstance(reply, AppendEntriesResponse) and reply.index == 7 and engine.log.last_index == 7
    assert engine.raft.commit_index == 7
    assert engine.heartbeat(2, entry(3, 1), after=(2, 1)).index == 4  # the base: as far as it is known
    assert engine.log.last_index == 7


def test_a_leader_of_an_older_term_is_told(make_engine: Callable[..., Engine]) -> None:
    engine = make_engine(3)
    engine.heartbeat(2, term=3)
    reply = engine.heartbeat(3, entry(1, 2), term=2, round=5)
    assert reply == NewerTerm(3) and engine.raft.leader_id == 2
    assert engine.log.last_index == 0


def test_one_without_its_state_asks_for_a_snapshot_and_believes_in_its_leader(
    make_engine: Callable[..., Engine],
) -> None:
    engine = make_engine(3)
    engine.raft.needs_state = True
    reply = engine.heartbeat(2, entry(1, 1), commit=1, round=4)
    assert reply == SnapshotNeeded(1, 4)
    assert engine.raft.leader_id == 2 and engine.log.last_index == 0


def test_a_newer_term_is_taken_from_a_leader_and_the_vote_is_free_again(
    make_engine: Callable[..., Engine],
) -> None:
    engine = make_engine(3)
    engine.receive(2, RequestVote(3, 0, 0, pre=False))
    assert engine.log.voted_for == 2
    engine.heartbeat(3, term=5)
    assert (engine.log.term, engine.log.voted_for) == (5, None)
    candidate = make_engine(3)
    candidate.stand(2, 3)
    candidate.heartbeat(3, term=candidate.raft.term)
    assert candidate.raft.role == "follower" and candidate.raft.leader_id == 3
    assert candidate.log.voted_for == 1  # of this term


def test_what_is_committed_cannot_be_contradicted(make_engine: Callable[..., Engine]) -> None:
    for after, entries in (((3, 2), []), ((2, 1), [entry(3, 2)])):
        engine = make_engine(3, entries=[entry(index, 1) for index in range(1, 5)])
        engine.heartbeat(2, after=(3, 1), commit=3)
        with pytest.raises(Corrupt, match="entry 3 is committed here with term 1"):
            engine.heartbeat(2, *entries, term=2, after=after)
        answer = engine.heartbeat(2, entry(4, 2), term=2, after=(3, 1))
        assert isinstance(answer, AppendEntriesResponse)


def test_who_was_removed_is_told_and_not_heard(make_engine: Callable[..., Engine]) -> None:
    engine = make_engine(3, removed=[9])
    for message in (RequestVote(9, 9, 9, pre=False), AppendEntries(9, 0, 0, [], 0, 1), NewerTerm(9)):
        assert engine.receive(9, message) == [(9, Removed())]
    assert engine.raft.term == 0 and engine.raft.leader_id is None
    with engine.raft.at(engine.now):
        assert engine.raft.on_leader_contact(9, 9) is False and engine.raft.term == 0


def test_who_loses_all_links_when_it_may_stand_asks_again_when_it_has_some(
    make_engine: Callable[..., Engine],
) -> None:
    """Promises of long ago begin no term: others may have a leader by now."""
    engine = make_engine(3)
    engine.ask_for_votes()
    engine.receive(2, RequestVoteResponse(1, pre=True))
    with engine.raft.at(engine.now):
        engine.raft.set_connected(frozenset())
    assert engine.tick() == []
    assert engine.now + TIMING.election_min <= engine.raft.next_wakeup() <= engine.now + TIMING.election_max
    with engine.raft.at(engine.now):
        engine.raft.set_connected(frozenset({2, 3}))
    assert engine.tick(0.1) == [] and engine.raft.role == "follower" and engine.raft.term == 0
    assert {message.pre for _, message in engine.ask_for_votes()} == {True}
    engine.receive(3, RequestVoteResponse(1, pre=True))
    engine.tick()
    assert engine.raft.role == "candidate" and engine.raft.term == 1
