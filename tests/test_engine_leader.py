"""Raft's engine alone (``engine.py``), as leader: what it sends to whom, and what it makes of the answers."""

from __future__ import annotations

import logging
from collections.abc import Callable

import pytest

from ondisk.errors import ConfigurationError
from ondisk.raft import Timing
from ondisk.raft.members import Members
from ondisk.raft.messages import (
    AddReplica,
    AppendEntriesRejection,
    AppendEntriesResponse,
    MembersChange,
    MoveReplica,
    NewerTerm,
    Refused,
    RemoveReplica,
    ReplaceReplica,
    RequestVoteResponse,
    SnapshotNeeded,
    TimeoutNow,
)
from ondisk.raft.records import MEMBERS, NO_OP, REGULAR
from tests.engine import Engine, disk_of, entry, to

TIMING = Timing()
SMALL = Timing(batch_bytes=1100, window_bytes=3000)
COMMAND = 500  # bytes: two of them in a batch, and six in flight


def indexes(member: int, sent: list) -> list[list[int]]:  # type: ignore[type-arg]
    """The entries of each message to one member; heartbeats are left out."""
    return [[each.index for each in message.entries] for message in to(member, sent) if message.entries]


def replies(engine: Engine, member: int, *, index: int, prev: int, success: bool = False) -> list:  # type: ignore[type-arg]
    """Let a member answer the newest round; return what is sent to it until the next tick is over."""
    kind = AppendEntriesResponse if success else AppendEntriesRejection
    reply = kind(engine.raft.term, index, prev, engine.raft.leader.rounds.newest)
    return [each for each in engine.receive(member, reply) + engine.tick() if each[0] == member]


def lose_state(engine: Engine, member: int) -> None:
    """Let a member answer the newest round, that it has no state."""
    engine.receive(member, SnapshotNeeded(engine.raft.term, engine.raft.leader.rounds.newest))
    engine.tick()


# Entries


def test_a_leader_begins_with_an_entry_of_its_own_and_appends_after_it(
    make_engine: Callable[..., Engine],
) -> None:
    engine = make_engine(3, entries=[entry(1, 1)])
    engine.lead()
    term = engine.raft.term
    with engine.raft.at(engine.now):
        assert engine.raft.append([b"a", b"b"]) == 3
    assert [(each.term, each.command) for each in engine.log.entries(2, 4)] == [
        (term, NO_OP),
        (term, REGULAR + b"a"),
        (term, REGULAR + b"b"),
    ]
    sent = engine.tick()  # at once
    for other in (2, 3):
        (message,) = to(other, sent)
        assert (message.term, message.prev_index, message.prev_term) == (term, 2, term)
        assert [each.index for each in message.entries] == [3, 4] and message.commit_index == 2


def test_a_new_leader_looks_for_its_followers_at_the_end_of_its_own_log(
    make_engine: Callable[..., Engine],
) -> None:
    engine = make_engine(3, learners=[4], entries=[entry(index, 1) for index in range(1, 11)])
    engine.stand(2, 3)
    engine.receive(2, RequestVoteResponse(engine.raft.term, pre=False))
    sent = engine.tick()
    for member in (2, 3, 4):
        (message,) = to(member, sent)
        assert message.prev_index == 10 and [each.index for each in message.entries] == [11]
        assert (message.prev_term, message.commit_index, message.round) == (1, 0, 1)


def test_no_more_is_in_flight_than_the_window(make_engine: Callable[..., Engine]) -> None:
    engine = make_engine(3, timing=SMALL)
    engine.lead()
    engine.append(10, COMMAND)
    assert indexes(2, engine.tick()) == [[2, 3], [4, 5], [6, 7]]
    assert indexes(2, engine.tick(1.0)) == []  # nor with a heartbeat
    assert indexes(2, engine.agree(2, index=3)) == [[8, 9]]
    assert indexes(2, engine.agree(2, index=3)) == []  # said twice is no more
    assert indexes(2, engine.agree(2, index=9)) == [[10, 11]]
    assert indexes(2, engine.agree(2, index=11)) == []
    assert engine.raft.match_index == {2: 11, 3: 1}


def test_who_is_not_known_to_agree_gets_one_message_at_a_time(make_engine: Callable[..., Engine]) -> None:
    engine = make_engine(3, timing=SMALL)
    engine.lead(commit=False)
    engine.append(5, COMMAND)
    engine.tick()
    assert indexes(2, engine.tick(TIMING.heartbeat / 2)) == []
    assert indexes(2, engine.tick(TIMING.heartbeat)) == [[1, 2, 3]]  # it may have been lost
    assert indexes(2, engine.agree(2, index=3)) == [[4, 5], [6]]  # now it is known
    assert engine.raft.match_index[2] == 3


def test_a_follower_out_of_reach_gets_nothing_and_is_looked_at_anew_when_it_is_back(
    make_engine: Callable[..., Engine],
) -> None:
    engine = make_engine(3, timing=SMALL)
    engine.lead()
    with engine.raft.at(engine.now):
        engine.raft.set_connected(frozenset({3}))
    engine.append(1, COMMAND)
    assert to(2, engine.tick()) == []
    engine.agree(3)
    with engine.raft.at(engine.now):
        engine.raft.set_connected(frozenset({2, 3}))
        engine.raft.set_connected(frozenset({2, 3}))
    assert indexes(2, engine.tick()) == [[2]]  # at once
    with engine.raft.at(engine.now):
        engine.raft.set_connected(frozenset({3}))
        engine.raft.set_connected(frozenset({2, 3}))
    assert indexes(2, engine.tick()) == [[2]]  # what was under way may be lost
    assert indexes(2, engine.agree(2)) == [] and engine.raft.match_index[2] == 2


def test_heartbeats_come_in_their_time_and_news_of_a_commit_before(
    make_engine: Callable[..., Engine],
) -> None:
    engine = make_engine(3)
    engine.lead()
    sent = engine.wait(0.05)
    assert [message.commit_index for message in to(2, sent)] == [1]  # the notice
    rounds = set()
    began = engine.now
    for _ in range(10):
        sent = []
        while not sent:
            sent = engine.tick(0.01)
        rounds |= {message.round for message in to(2, sent)}
        engine.agree(2, 3)
    assert len(rounds) == 10 and 0.9 <= engine.now - began <= 1.3
    engine.append(1)
    engine.tick()
    before = engine.now
    engine.receive(2, AppendEntriesResponse(engine.raft.term, 2, 2, engine.raft.leader.rounds.newest))
    assert engine.raft.commit_index == 2
    assert engine.raft.next_wakeup() <= before + TIMING.commit_notice
    sent = engine.tick(TIMING.commit_notice + 0.001)
    assert [message.commit_index for message in to(3, sent)] == [2]


# Answers


def test_a_refusal_moves_back_to_where_the_follower_says(make_engine: Callable[..., Engine]) -> None:
    engine = make_engine(3, entries=[entry(index, 1) for index in range(1, 11)])
    engine.lead(commit=False)
    (message,) = to(2, replies(engine, 2, index=4, prev=10))
    assert message.prev_index == 3 and [each.index for each in message.entries] == list(range(4, 12))
    assert replies(engine, 2, index=9, prev=10) == []  # an older answer
    (message,) = to(2, replies(engine, 2, index=9, prev=3))
    assert message.prev_index == 2  # never forward: what does not match there does not match behind it
    assert replies(engine, 2, index=11, prev=2, success=True) == []
    assert engine.raft.match_index[2] == 11


def test_one_that_denies_what_it_has_acknowledged_is_sent_away(
    make_engine: Callable[..., Engine], caplog: pytest.LogCaptureFixture
) -> None:
    engine = make_engine(3, entries=[entry(index, 1) for index in range(1, 11)])
    engine.lead()
    for prev in (11, 5):
        ((receiver, refused),) = replies(engine, 2, index=1, prev=prev)
        assert receiver == 2 and isinstance(refused, Refused) and refused.disk == disk_of(2)
        assert f"has acknowledged entry 11 and does not hold entry {prev} any more" in refused.reason
    assert engine.raft.match_index[2] == 11
    engine.append(1)
    engine.tick()
    (message,) = to(2, replies(engine, 2, index=5, prev=12))  # that it had not acknowledged
    assert message.prev_index == 11 and [each.index for each in message.entries] == [12]


def test_answers_to_what_was_never_sent_are_not_believed(
    make_engine: Callable[..., Engine], caplog: pytest.LogCaptureFixture
) -> None:
    engine = make_engine(3)
    engine.lead(commit=False)
    with engine.raft.at(engine.now):
        asked = engine.raft.leader.start_round()
    for index, round in ((engine.log.last_index + 1, 1), (1, engine.raft.leader.rounds.newest + 1)):
        caplog.clear()
        engine.receive(2, AppendEntriesResponse(engine.raft.term, index, 0, round))
        assert "is not believed" in caplog.text
    assert engine.raft.match_index[2] == 0 and engine.raft.commit_index == 0
    engine.tick()
    assert engine.raft.leader.rounds.newest == asked and engine.raft.leader.confirmed_round() < asked


def test_the_first_entry_of_all_is_acknowledged_like_any_other(make_engine: Callable[..., Engine]) -> None:
    engine = make_engine(3)
    engine.lead(commit=False)
    replies(engine, 2, index=1, prev=0, success=True)
    assert engine.raft.match_index[2] == 1 and engine.raft.commit_index == 1


def test_an_answer_that_comes_in_between_does_not_hold_up_a_read(make_engine: Callable[..., Engine]) -> None:
    engine = make_engine(3)
    engine.lead(commit=False)
    with engine.raft.at(engine.now):
        asked = engine.raft.leader.start_round()
    engine.receive(2, AppendEntriesResponse(engine.raft.term, 1, 1, engine.raft.leader.rounds.newest))
    assert [message.round for message in to(3, engine.tick())] == [asked]


def test_an_answer_of_another_term_counts_for_nothing(make_engine: Callable[..., Engine]) -> None:
    engine = make_engine(3, entries=[entry(1, 1)])
    engine.lead(commit=False)
    term = engine.raft.term
    engine.receive(2, AppendEntriesResponse(term - 1, 2, 2, engine.raft.leader.rounds.newest))
    assert engine.raft.match_index[2] == 0 and engine.raft.is_leader
    engine.receive(2, AppendEntriesResponse(term + 1, 2, 2, engine.raft.leader.rounds.newest))
    assert engine.raft.role == "follower" and engine.raft.term == term + 1
    assert engine.raft.leader_id is None and engine.raft.commit_index == 0


def test_the_word_to_a_deposed_leader_denies_nothing_and_asks_for_nothing(
    make_engine: Callable[..., Engine],
) -> None:
    engine = make_engine(3, entries=[entry(1, 1)])
    engine.lead()
    engine.receive(2, NewerTerm(engine.raft.term))
    assert engine.tick() == [] and engine.raft.match_index[2] == 2


def test_an_answer_is_evidence_as_of_when_its_question_was_sent(make_engine: Callable[..., Engine]) -> None:
    """A leader goes on for an election timeout after what it has an answer to, however late that came."""
    engine = make_engine(3)
    engine.lead()
    engine.tick(0.2)
    answered, sent_at = engine.raft.leader.rounds.newest, engine.now
    for _ in range(15):
        engine.tick(0.1)
    engine.receive(2, AppendEntriesResponse(engine.raft.term, 1, 1, answered))
    while engine.raft.is_leader:
        engine.tick(0.01)
    assert engine.now - sent_at == pytest.approx(TIMING.election_max, abs=0.02)


def test_a_round_of_long_ago_is_no_evidence_at_all(make_engine: Callable[..., Engine]) -> None:
    engine = make_engine(3)
    engine.lead()
    old = engine.raft.leader.rounds.newest
    for _ in range(50):
        engine.tick(0.1)
        engine.agree(3)
    rounds = engine.raft.leader.rounds
    assert rounds.sent_at(old) == float("-inf") == rounds.sent_at(rounds.newest + 1)
    assert rounds.sent_at(rounds.newest) == pytest.approx(engine.now, abs=0.11)
    assert len(rounds) < 60  # and is forgotten
    assert engine.now - rounds._sent_at[0][1] < TIMING.election_max + 0.3


def test_a_voter_with_another_disk_confirms_no_read(make_engine: Callable[..., Engine]) -> None:
    engine = make_engine(3)
    engine.lead()
    with engine.raft.at(engine.now):
        asked = engine.raft.leader.start_round()
    engine.tick()
    engine.agree(2)
    assert engine.raft.leader.confirmed_round() == asked
    engine.raft.membership.speaks(2, disk_of(9))
    assert engine.raft.leader.confirmed_round() < asked
    engine.agree(3)
    assert engine.raft.leader.confirmed_round() == asked
    assert (
        not engine.raft.membership.counts(2)
        and engine.raft.membership.counts(3)
        and engine.raft.membership.counts(77)
    )


# Snapshots


def compacted(make_engine: Callable[..., Engine]) -> Engine:
    """A leader that has dropped eight entries; replica 2 has not said yet what it has."""
    engine = make_engine(3, entries=[entry(index, 1) for index in range(1, 11)], applied=8)
    engine.log.compact(8)
    engine.lead(commit=False)
    engine.agree(3)
    return engine


def test_one_that_needs_what_was_compacted_needs_a_snapshot(make_engine: Callable[..., Engine]) -> None:
    engine = compacted(make_engine)
    assert engine.raft.needs_snapshot == frozenset() and not engine.raft.still_needs_snapshot(2)
    replies(engine, 2, index=3, prev=10)
    (message,) = to(2, engine.tick(0.2))
    assert message.prev_index == 8 and not message.entries  # a heartbeat that asks whether it has that much
    assert engine.raft.needs_snapshot == {2} and engine.raft.still_needs_snapshot(2)
    with engine.raft.at(engine.now):
        engine.raft.set_connected(frozenset({3}))
    assert engine.raft.needs_snapshot == frozenset() and engine.raft.still_needs_snapshot(2)


def test_one_without_its_state_says_so_and_needs_a_snapshot(make_engine: Callable[..., Engine]) -> None:
    engine = compacted(make_engine)
    lose_state(engine, 2)
    assert engine.raft.needs_snapshot == {2}


def test_after_a_snapshot_a_follower_is_fed_from_there(make_engine: Callable[..., Engine]) -> None:
    engine = compacted(make_engine)
    engine.agree(2)
    engine.append(1)
    engine.tick()
    lose_state(engine, 2)  # it has lost its state
    with engine.raft.at(engine.now):
        engine.raft.on_snapshot_installed(2, 11)
    assert indexes(2, engine.tick()) == [[12]]


@pytest.mark.parametrize("how", ["it has that much", "its log is longer", "not longer", "it was installed"])
def test_a_snapshot_is_needed_no_more(make_engine: Callable[..., Engine], how: str) -> None:
    engine = compacted(make_engine)
    replies(engine, 2, index=3, prev=10)
    engine.tick(0.2)
    assert engine.raft.needs_snapshot == {2}
    if how == "it has that much":
        sent = replies(engine, 2, index=8, prev=8, success=True)
        assert indexes(2, sent) == [[9, 10, 11]]
    elif how == "its log is longer":
        replies(engine, 2, index=10, prev=8)
        assert indexes(2, engine.tick(0.2)) == [[10, 11]]
    elif how == "not longer":
        replies(engine, 2, index=9, prev=8)
        assert engine.raft.needs_snapshot == {2}
        assert indexes(2, engine.tick(0.2)) == []
        return
    else:
        with engine.raft.at(engine.now):
            engine.raft.on_snapshot_installed(2, 10)
        assert indexes(2, engine.tick()) == [[11]] and engine.raft.match_index[2] == 10
    assert engine.raft.needs_snapshot == frozenset()


def test_what_is_installed_by_a_deposed_leaders_stream_is_nothing_to_it(
    make_engine: Callable[..., Engine],
) -> None:
    engine = compacted(make_engine)
    replies(engine, 2, index=3, prev=10)
    while engine.raft.is_leader:
        engine.tick(0.1)
    with engine.raft.at(engine.now):
        engine.raft.on_snapshot_installed(2, 10)
    assert engine.raft.progress[2].match == 0


def test_the_log_is_kept_for_who_answers_and_comes_nearer(make_engine: Callable[..., Engine]) -> None:
    engine = make_engine(4, entries=[entry(index, 1) for index in range(1, 101)], applied=90)
    engine.lead()
    engine.append(20)
    engine.tick()
    engine.agree(3, 4)
    assert engine.log.last_index == 121
    with engine.raft.at(engine.now):
        assert engine.raft.leader.slowest_match(1000) == 101  # replica 2, which answers
    with engine.raft.at(engine.now):
        assert engine.raft.leader.slowest_match(10) == 121  # no nearer than at the last look
    engine.receive(2, AppendEntriesResponse(engine.raft.term, 110, 110, engine.raft.leader.rounds.newest))
    with engine.raft.at(engine.now):
        assert engine.raft.leader.slowest_match(1) == 110  # nearer
        engine.raft.progress[2].become_snapshot()
        assert engine.raft.leader.slowest_match(1000) == 121  # it is not fed from the log
        engine.raft.progress[2].become_probe()
        engine.raft.set_connected(frozenset({3, 4}))
        assert engine.raft.leader.slowest_match(1000) == 121  # away
        engine.raft.set_connected(frozenset({2, 3, 4}))
        assert engine.raft.leader.slowest_match(1000) == 110
    with engine.raft.at(engine.now + TIMING.election_min + 0.01):
        assert engine.raft.leader.slowest_match(1000) == 121  # silent


def test_who_has_installed_a_snapshot_may_have_missed_much_meanwhile(
    make_engine: Callable[..., Engine],
) -> None:
    engine = make_engine(3, entries=[entry(index, 1) for index in range(1, 101)], applied=90)
    engine.lead()
    engine.append(20)
    engine.tick()
    engine.agree(3)
    with engine.raft.at(engine.now):
        engine.raft.leader.slowest_match(1)
        assert engine.raft.leader.slowest_match(1) == 121
        engine.raft.on_snapshot_installed(2, 101)
        assert engine.raft.leader.slowest_match(1) == 101


def test_after_a_snapshot_raft_begins_there(make_engine: Callable[..., Engine]) -> None:
    engine = make_engine(3, entries=[entry(1, 1)])
    engine.raft.needs_state = True
    members = Members((1, 2, 4), group=b"g" * 16, disks=((1, engine.log.disk_id), (2, disk_of(2))))
    with engine.raft.at(engine.now):
        assert engine.raft.on_leader_contact(2, 3) is True
        assert engine.raft.leader_id == 2 and engine.raft.term == 3
        assert engine.raft.on_leader_contact(2, 2) is False
        engine.raft.install(20, 2, members)
    assert (engine.log.base_index, engine.log.last_index, engine.log.last_term) == (20, 20, 2)
    assert (engine.raft.commit_index, engine.raft.applied_index) == (20, 20)
    assert engine.raft.needs_state is False and engine.raft.members == members
    assert engine.heartbeat(2, entry(21, 3), term=3, after=(20, 2), commit=21).index == 21
    engine.tick()
    assert [each.index for each in engine.applied] == [21]
    with engine.raft.at(engine.now):
        engine.raft.install(15, 1, members)
    assert engine.raft.commit_index == 21  # what is committed stays so


def test_nothing_is_applied_while_the_state_is_being_replaced(make_engine: Callable[..., Engine]) -> None:
    engine = make_engine(3, entries=[entry(1, 1), entry(2, 1)])
    for how in ("recovering", "needs_state"):
        setattr(engine.raft, how, True)
        engine.heartbeat(2, after=(2, 1), commit=1)
        engine.raft.commit_index = 1
        engine.tick()
        assert engine.applied == []
        setattr(engine.raft, how, False)
    engine.tick()
    assert [each.index for each in engine.applied] == [1]


# Handing over


def test_a_successor_is_asked_when_it_has_everything_and_again_with_each_heartbeat(
    make_engine: Callable[..., Engine],
) -> None:
    engine = make_engine(3)
    engine.lead()
    engine.append(1)
    with engine.raft.at(engine.now):
        engine.raft.transfer(2)
    assert engine.raft.transferring
    asked = [(2, TimeoutNow(engine.raft.term))]
    assert not [each for each in engine.tick() if isinstance(each[1], TimeoutNow)]  # it lacks an entry
    assert indexes(2, engine.tick(0.2)) == []
    assert [each for each in engine.agree(2) if isinstance(each[1], TimeoutNow)] == asked
    assert not [each for each in engine.tick(0.01) if isinstance(each[1], TimeoutNow)]
    assert [each for each in engine.tick(TIMING.heartbeat) if isinstance(each[1], TimeoutNow)] == asked
    for _ in range(25):
        engine.agree(2, 3)
        engine.tick(0.1)
    assert not engine.raft.transferring and engine.raft.is_leader


def test_leadership_goes_to_voters_that_are_there_with_their_disk(make_engine: Callable[..., Engine]) -> None:
    engine = make_engine(4, learners=[5])
    engine.lead()
    engine.raft.membership.speaks(3, disk_of(9))
    with engine.raft.at(engine.now):
        for nobody, words in ((1, "not another voter"), (5, r"\[2, 3, 4\] are"), (3, "is not there")):
            with pytest.raises(ConfigurationError, match=words):
                engine.raft.transfer(nobody)
        assert not engine.raft.transferring


def test_the_best_successor_is_the_one_that_has_come_furthest(make_engine: Callable[..., Engine]) -> None:
    engine = make_engine(4)
    engine.lead()
    engine.append(2)
    engine.tick()
    engine.agree(3, index=3)
    engine.agree(2, index=2)
    assert engine.raft.best_successor() == 3
    with engine.raft.at(engine.now):
        engine.raft.set_connected(frozenset({2, 4}))
        assert engine.raft.best_successor() == 2
        engine.raft.set_connected(frozenset())
        assert engine.raft.best_successor() is None


# Members


def change(engine: Engine, wanted: MembersChange) -> int | None:
    with engine.raft.at(engine.now):
        return engine.raft.change(wanted)


def test_a_change_is_made_when_a_majority_of_the_new_voters_has_answered(
    make_engine: Callable[..., Engine],
) -> None:
    engine = make_engine(3, learners=[])
    engine.lead()
    engine.append(1)
    engine.tick()
    engine.agree(2, 3)
    wanted = AddReplica(4)
    assert change(engine, wanted) is None  # not before somebody has answered what is asked now
    sent = engine.tick()
    assert to(2, sent) and to(3, sent)
    assert change(engine, wanted) is None
    engine.agree(2, index=1)
    index = change(engine, wanted)
    assert index == engine.log.last_index == 3 and engine.log.entries(3, 3)[0].command.startswith(MEMBERS)
    assert engine.raft.members.learners == (4,)
    assert change(engine, RemoveReplica(3)) is None  # one at a time
    assert indexes(4, engine.tick()) == []  # it is not there
    engine.agree(2)
    assert change(engine, AddReplica(4, again=True)) == 0
    with engine.raft.at(engine.now):
        engine.raft.set_connected(frozenset({2, 3, 4}))
    (message,) = to(4, engine.tick())
    assert message.prev_index == engine.log.last_index - 0 and not message.entries


def test_a_change_that_a_majority_does_not_answer_is_refused_in_time(
    make_engine: Callable[..., Engine],
) -> None:
    engine = make_engine(3)
    engine.lead()
    wanted = RemoveReplica(3)
    began = engine.now
    while True:
        engine.tick(0.05)
        engine.agree(
            3
        )  # without the other one the leader and it would be a majority, but not of the new ones
        try:
            assert change(engine, wanted) is None
        except ConfigurationError as error:
            assert "[2] did not answer" in str(error) and "nothing was changed" in str(error)
            break
    assert TIMING.election_max < engine.now - began < TIMING.election_max + 0.2
    assert engine.raft.members.voters == (1, 2, 3)
    assert change(engine, wanted) is None  # asked again it is looked at again
    engine.tick()
    engine.agree(2)
    assert change(engine, wanted) == engine.log.last_index


def test_a_question_that_nobody_repeats_is_forgotten(make_engine: Callable[..., Engine]) -> None:
    engine = make_engine(3)
    engine.lead()
    assert change(engine, RemoveReplica(3)) is None
    for _ in range(60):
        engine.tick(0.1)
        engine.agree(2, 3)
    assert change(engine, RemoveReplica(2)) is None
    assert list(engine.raft.changes._checks) == [RemoveReplica(2)]


def test_one_that_lags_is_not_there(make_engine: Callable[..., Engine]) -> None:
    """It must have what was committed when the change was asked for."""
    engine = make_engine(3)
    engine.lead()
    engine.append(1)
    engine.tick()
    engine.agree(2)
    assert engine.raft.commit_index == 2
    wanted = RemoveReplica(2)
    change(engine, wanted)
    engine.tick()
    engine.agree(2)
    engine.agree(3, index=1)
    assert change(engine, wanted) is None
    engine.agree(3)
    assert change(engine, wanted) == 3
    assert engine.raft.match_index.keys() == {3}
    engine.agree(3)
    assert engine.raft.commit_index == 3 and change(engine, wanted) == 0


def test_a_learner_is_made_a_voter_when_it_has_caught_up(make_engine: Callable[..., Engine]) -> None:
    engine = make_engine(3, learners=[4], entries=[entry(index, 1) for index in range(1, 301)])
    engine.lead(commit=False)
    engine.agree(2, 3)

    def voters() -> tuple[int, ...]:
        for _ in range(3):
            engine.tick(0.15)
            engine.agree(2, 3)
        return engine.raft.members.voters

    assert engine.raft.commit_index == 301
    assert voters() == (1, 2, 3)
    engine.agree(4, index=200)
    assert voters() == (1, 2, 3)
    engine.agree(4, index=201)
    for _ in range(2):
        voters()
    assert engine.raft.members.voters == (1, 2, 3, 4) and not engine.raft.members.learners
    assert engine.raft.members.disk_of(4) == disk_of(4)


def test_a_learner_with_a_disk_that_was_lost_never_counts(make_engine: Callable[..., Engine]) -> None:
    engine = make_engine(3, learners=[4, 5])
    engine.lead()
    engine.raft.membership.members = engine.raft.members._with(replaced=(disk_of(4),))
    for _ in range(6):
        engine.tick(0.15)
        engine.agree(2, 3, 4, 5)
    assert engine.raft.members.learners == (4,) and engine.raft.members.voters == (1, 2, 3, 5)


def test_a_learner_with_another_disk_begins_anew(make_engine: Callable[..., Engine]) -> None:
    engine = make_engine(3, learners=[4], timing=SMALL)
    engine.raft.changes._promote_learners = lambda: None  # type: ignore[method-assign]
    engine.lead()
    engine.append(3)
    engine.tick()
    engine.agree(2, 3, 4)
    engine.raft.membership.speaks(4, disk_of(4))
    assert engine.raft.match_index[4] == 4  # the same
    engine.raft.membership.speaks(4, disk_of(9))
    assert engine.raft.match_index[4] == 0 and engine.raft.match_index[3] == 4
    (message,) = to(4, engine.tick(0.2))
    assert message.prev_index == 4


def newcomer(engine: Engine, member: int = 2, disk: int = 9) -> None:
    with engine.raft.at(engine.now):
        engine.raft.on_newcomer(member, disk_of(disk))


def test_a_lost_disk_is_replaced_when_it_was_silent_for_an_election_timeout(
    make_engine: Callable[..., Engine], caplog: pytest.LogCaptureFixture
) -> None:
    engine = make_engine(3)
    engine.lead()
    caplog.set_level(logging.WARNING)
    began = engine.now
    while not engine.raft.members.replaced:
        newcomer(engine)
        engine.tick(0.05)
        engine.agree(3)
        assert engine.now - began < 2 * TIMING.election_max
    assert engine.now - began > TIMING.election_max
    assert engine.raft.members.replaced == (disk_of(2),)
    assert (engine.raft.members.voters, engine.raft.members.learners) == ((1, 3), (2,))
    assert "it catches up from the beginning" in caplog.text


def test_a_newcomer_beside_a_disk_that_answers_is_told(make_engine: Callable[..., Engine]) -> None:
    engine = make_engine(3)
    engine.lead()
    newcomer(engine)
    engine.tick()
    sent = engine.agree(2, 3)
    refused = [(to_, m) for to_, m in sent if isinstance(m, Refused)]
    assert [(to_, m.disk) for to_, m in refused] == [(2, disk_of(9))]
    for _ in range(60):
        engine.tick(0.05)
        engine.agree(3)
    assert not engine.raft.members.replaced  # it does not speak any more


def test_only_who_goes_on_to_speak_with_another_disk_replaces_anybody(
    make_engine: Callable[..., Engine],
) -> None:
    for how in ("it falls silent", "another one each time", "the same disk", "no voter", "no leader"):
        engine = make_engine(3, learners=[4])
        engine.raft.changes._promote_learners = lambda: None  # type: ignore[method-assign]
        if how != "no leader":
            engine.lead()
        for turn in range(80):
            if how == "another one each time":
                newcomer(engine, disk=20 + turn)
            elif how == "the same disk":
                newcomer(engine, disk=2)
            elif how == "no voter":
                newcomer(engine, member=4)
            elif turn == 0:
                newcomer(engine)
            if how == "no leader":
                break
            engine.tick(0.05)
            engine.agree(3)
        assert not engine.raft.members.replaced
        assert how == "another one each time" or not engine.raft.changes._newcomers


def test_the_newest_members_count_from_the_moment_they_are_in_the_log(
    make_engine: Callable[..., Engine],
) -> None:
    engine = make_engine(3)
    engine.lead()
    wanted = MoveReplica(2, "two:2")
    change(engine, wanted)
    engine.tick()
    engine.agree(2)
    change(engine, wanted)
    assert engine.raft.members.addresses == {2: "two:2"}
    assert engine.raft.committed_members.addresses == {}
    assert change(engine, wanted) is None  # it is there, and may be cut off yet
    engine.tick()
    engine.agree(2)
    assert engine.raft.committed_members.addresses == {2: "two:2"} and change(engine, wanted) == 0


def test_a_lost_disk_can_be_named_by_hand(make_engine: Callable[..., Engine]) -> None:
    engine = make_engine(3)
    engine.lead()
    wanted = ReplaceReplica(2, disk_of(2))
    change(engine, wanted)
    engine.tick()
    engine.agree(3)
    assert change(engine, wanted) == 2
    assert engine.raft.match_index == {2: 0, 3: 1}  # a learner that begins anew
    assert engine.raft.membership.counts(2)  # as a learner, whatever its disk
    engine.agree(3)
    assert engine.raft.commit_index == 2
    assert change(engine, wanted) == 0


def test_a_newcomer_that_was_not_heard_for_long_begins_to_wait_anew(
    make_engine: Callable[..., Engine],
) -> None:
    """Also if nobody looked at newcomers meanwhile: an earlier change was not committed yet."""
    engine = make_engine(3)
    engine.lead()
    change(engine, MoveReplica(3, "three:3"))
    engine.tick()
    engine.agree(3)
    change(engine, MoveReplica(3, "three:3"))
    newcomer(engine)
    until = engine.now + 2 * TIMING.election_max
    while engine.now < until:
        engine.tick(0.05)
        engine.agree(3, index=1)
    assert not engine.raft.membership.is_settled
    newcomer(engine)  # it is back
    engine.agree(3)
    for _ in range(5):
        engine.agree(3)
    assert engine.raft.membership.is_settled and not engine.raft.members.replaced


def test_a_disk_whose_replacement_was_refused_is_looked_at_again_a_timeout_later(
    make_engine: Callable[..., Engine], caplog: pytest.LogCaptureFixture
) -> None:
    """Five voters, of which two answer: without the lost disk there would be no majority of four."""
    engine = make_engine(5)
    engine.lead()
    refused: list[float] = []
    began = engine.now
    while len(refused) < 2:
        newcomer(engine)
        caplog.clear()
        engine.tick(0.05)
        engine.agree(3)
        engine.raft.progress[4].last_response = engine.now  # it is there, and answers no question
        if "cannot be replaced" in caplog.text:
            refused.append(engine.now - began)
        assert engine.now - began < 12 * TIMING.election_max
    assert 2 * TIMING.election_max < refused[0] < 2 * TIMING.election_max + 0.3
    assert 2 * TIMING.election_max < refused[1] - refused[0] < 2 * TIMING.election_max + 0.3
    assert not engine.raft.members.replaced


def test_a_new_term_of_office_begins_with_nothing_of_the_last_one(make_engine: Callable[..., Engine]) -> None:
    engine = make_engine(3)
    engine.lead()
    change(engine, RemoveReplica(3))
    newcomer(engine)
    with engine.raft.at(engine.now):
        engine.raft.transfer(3)
    engine.tick()
    engine.receive(2, NewerTerm(engine.raft.term + 1))
    assert not engine.raft.is_leader and not engine.raft.transferring
    engine.lead(commit=False)
    assert not engine.raft.transferring
    assert engine.raft.changes._checks == {} == engine.raft.changes._newcomers
    assert engine.raft.changes._leading_since == pytest.approx(engine.now, abs=1.0)
    assert engine.raft.match_index == {2: 0, 3: 0} and len(engine.raft.leader.rounds) == 1
    assert [progress.acked_round for progress in engine.raft.progress.values()] == [0, 0]


def test_what_is_counted_of_a_replica_changes_when_an_answer_of_it_counts(
    make_engine: Callable[..., Engine],
) -> None:
    """A simulation compares it before and after a message, to see who was believed."""
    engine = make_engine(3)
    before = engine.raft.counted_of(2)
    engine.stand(2)
    engine.receive(2, RequestVoteResponse(engine.raft.term - 1, pre=False))
    assert engine.raft.counted_of(2) == (0, False) == before
    other = engine.raft.counted_of(3)
    engine.receive(2, RequestVoteResponse(engine.raft.term, pre=False))
    assert engine.raft.is_leader
    match, acked, heard = engine.raft.counted_of(2)
    assert (match, acked) == (0, 0) and engine.raft.counted_of(3) == (0, 0, heard)
    assert engine.raft.counted_of(77) == (1, 77 in engine.raft.elections.votes[1]) and other == (0, False)
    engine.tick()
    newest = engine.raft.leader.rounds.newest
    engine.now += 0.01
    engine.receive(2, AppendEntriesResponse(engine.raft.term, 1, 1, newest))
    assert engine.raft.counted_of(2) == (1, newest, engine.raft.leader.rounds.sent_at(newest))
    engine.receive(3, NewerTerm(9))
    assert engine.raft.counted_of(2) == (1, True) and engine.raft.counted_of(3) == (1, False)


def test_a_leader_makes_one_change_at_a_time_and_replaces_lost_disks_first(
    make_engine: Callable[..., Engine],
) -> None:
    """A learner that has caught up waits until there is no lost disk to be replaced."""
    engine = make_engine(3, learners=[4, 5])
    promote = engine.raft.changes._promote_learners
    engine.raft.changes._promote_learners = lambda: None  # type: ignore[method-assign]
    engine.lead()
    began = engine.now
    while engine.now - began <= TIMING.election_max + 0.1:
        newcomer(engine)
        engine.tick(0.05)
        if engine.raft.changes._checks:
            break
        engine.agree(3, 4, 5)
    assert list(engine.raft.changes._checks) == [ReplaceReplica(2, disk_of(2))]
    engine.raft.changes._promote_learners = promote  # type: ignore[method-assign]
    engine.tick(0.05)
    assert list(engine.raft.changes._checks) == [ReplaceReplica(2, disk_of(2))]
    engine.agree(3, 4, 5)
    assert engine.raft.members.replaced == (disk_of(2),) and engine.raft.members.voters == (1, 3)
    for _ in range(3):
        engine.tick(0.05)
        engine.agree(3)
        assert len(engine.raft.changes._checks) <= 1
    assert engine.raft.members.voters == (1, 3, 4) and engine.raft.members.learners == (2, 5)


def test_a_learner_counts_only_with_a_disk_that_has_spoken_since_it_learns(
    make_engine: Callable[..., Engine],
) -> None:
    """Answers that were under way when a disk was taken for lost may still arrive."""
    engine = make_engine(3)
    engine.lead()
    wanted = ReplaceReplica(2, disk_of(2))
    change(engine, wanted)
    engine.tick()
    engine.agree(3)
    assert change(engine, wanted) == 2
    for _ in range(4):
        engine.tick(0.05)
        engine.agree(2, 3)
    assert engine.raft.match_index[2] == 2 and engine.raft.membership.is_settled
    assert engine.raft.members.voters == (1, 3) and not engine.raft.changes._checks
    engine.raft.membership.speaks(2, disk_of(9))
    assert engine.raft.match_index[2] == 0
    for _ in range(4):
        engine.tick(0.15)
        engine.agree(2, 3)
    assert engine.raft.members.voters == (1, 2, 3) and engine.raft.members.disk_of(2) == disk_of(9)
