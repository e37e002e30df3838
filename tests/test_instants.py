"""What holds at the very instant when a period ends. All times are such as floating point has exactly."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from ondisk.errors import ConfigurationError, NoLeader, Timeout
from ondisk.raft import Timing
from ondisk.raft.messages import AppendEntriesResponse, Refused, RemoveReplica, RequestVote, TimeoutNow
from ondisk.raft.rounds import Rounds
from tests.engine import Engine, disk_of, entry
from tests.test_requests import FIRST, FOREVER, Proposing, Reading

TIMING = Timing(
    heartbeat=0.125, election_min=1.0, election_max=2.0, first_election=0.125, commit_notice=0.0625
)
INSTANT = 2.0**-20


@pytest.fixture
def make(make_engine: Callable[..., Engine]) -> Callable[..., Engine]:
    """Engines whose clock shows whole numbers."""

    def engine(voters: int = 3, **options: object) -> Engine:
        return make_engine(voters, timing=TIMING, **options)

    return engine


def led(make: Callable[..., Engine], **options: object) -> Engine:
    """A leader whose followers have answered everything at a whole second."""
    engine = make(**options)
    engine.lead()
    engine.now = 2000.0
    for progress in engine.raft.progress.values():
        progress.last_response = engine.now
    engine.tick()
    engine.agree(*engine.others)
    engine.outbox()
    return engine


def test_a_follower_asks_for_votes_after_its_deadline_and_not_at_it(make: Callable[..., Engine]) -> None:
    engine = make()
    engine.heartbeat(2)
    engine.raft.election_deadline = engine.now + 1
    assert engine.tick(1.0) == []
    assert [message.pre for _, message in engine.tick(INSTANT) if isinstance(message, RequestVote)] == [
        True
    ] * 2


def test_a_leader_that_was_heard_an_election_timeout_ago_counts_as_gone(make: Callable[..., Engine]) -> None:
    engine = make()
    engine.heartbeat(2)
    engine.now += 1.0 - INSTANT
    assert engine.receive(3, RequestVote(5, 9, 9, pre=True)) == []
    engine.now += INSTANT
    assert len(engine.receive(3, RequestVote(5, 9, 9, pre=True))) == 1


def test_an_answer_is_evidence_for_less_than_an_election_timeout(make: Callable[..., Engine]) -> None:
    engine = led(make)
    sent_at = max(progress.last_response for progress in engine.raft.progress.values())
    with engine.raft.at(sent_at + 2.0 - INSTANT):
        assert engine.raft.leader.has_quorum()
    with engine.raft.at(sent_at + 2.0):
        assert not engine.raft.leader.has_quorum()


def test_a_heartbeat_leaves_when_it_is_due(make: Callable[..., Engine]) -> None:
    engine = led(make)
    engine.raft.leader.next_send = engine.now + 0.5
    engine.raft.leader.must_send = False
    with engine.raft.at(engine.now + 0.5 - INSTANT):
        engine.raft.replicate()
    assert engine.outbox() == []
    with engine.raft.at(engine.now + 0.5):
        engine.raft.replicate()
    assert len(engine.outbox()) == 2
    assert engine.raft.next_wakeup() == engine.now + 0.5 + TIMING.heartbeat


def test_a_commit_is_told_within_its_time_or_with_the_heartbeat_before(make: Callable[..., Engine]) -> None:
    for due, told in ((1.0, TIMING.commit_notice), (0.03125, 0.03125)):
        engine = led(make)
        engine.append(1)
        engine.tick()
        engine.raft.leader.next_send = engine.now + due
        engine.receive(2, AppendEntriesResponse(engine.raft.term, 2, 2, engine.raft.leader.rounds.newest))
        assert engine.raft.commit_index == 2 and engine.raft.next_wakeup() == engine.now + told


def test_a_successor_is_asked_again_with_each_heartbeat_until_it_is_too_late(
    make: Callable[..., Engine],
) -> None:
    engine = led(make)
    with engine.raft.at(engine.now):
        engine.raft.transfer(2)
    began = engine.now

    def asked(after: float) -> bool:
        with engine.raft.at(began + after):
            engine.raft.handover.go_on()
        return [type(message) for _, message in engine.outbox()] == [TimeoutNow]

    times = (0.0, TIMING.heartbeat - INSTANT, TIMING.heartbeat, TIMING.heartbeat, 1.0, 2.0)
    assert [asked(time) for time in times] == [True, False, True, False, True, True]
    assert engine.raft.transferring and not asked(2.0 + INSTANT) and not engine.raft.transferring


def test_a_change_waits_for_a_majority_until_the_end_of_its_time(make: Callable[..., Engine]) -> None:
    engine = led(make)
    began = engine.now
    wanted = RemoveReplica(3)
    for after in (0.0, 2.0):
        with engine.raft.at(began + after):
            assert engine.raft.change(wanted) is None
    with engine.raft.at(began + 2.0 + INSTANT), pytest.raises(ConfigurationError):
        engine.raft.change(wanted)


def test_a_check_that_nobody_asks_for_is_kept_as_long_again(make: Callable[..., Engine]) -> None:
    for after, kept in ((4.0, True), (4.0 + INSTANT, False)):
        engine = led(make)
        with engine.raft.at(engine.now):
            engine.raft.change(RemoveReplica(3))
        with engine.raft.at(engine.now + after):
            engine.raft.change(RemoveReplica(2))
        assert (RemoveReplica(3) in engine.raft.changes._checks) is kept


def test_a_newcomer_is_there_for_an_election_timeout_after_it_was_heard(make: Callable[..., Engine]) -> None:
    for after, there in ((2.0, True), (2.0 + INSTANT, False)):
        engine = led(make)
        with engine.raft.at(engine.now):
            engine.raft.on_newcomer(2, disk_of(9))
        since = engine.raft.changes._newcomers[2].since
        with engine.raft.at(engine.now + after):
            engine.raft.on_newcomer(2, disk_of(9))
            assert (engine.raft.changes._newcomers[2].since == since) is there
        engine.raft.changes._newcomers[2] = engine.raft.changes._newcomers[2]._replace(heard=engine.now)
        with engine.raft.at(engine.now + after):
            engine.raft.changes.take_care()
        assert (2 in engine.raft.changes._newcomers) is there


def test_a_disk_is_silent_when_more_than_an_election_timeout_is_over(make: Callable[..., Engine]) -> None:
    for after, silent in ((2.0, False), (2.0 + INSTANT, True)):
        engine = led(make)
        with engine.raft.at(engine.now):
            engine.raft.on_newcomer(2, disk_of(9))
        with engine.raft.at(engine.now + after):
            engine.raft.on_newcomer(2, disk_of(9))
            newcomer = engine.raft.changes._newcomers[2]._replace(since=engine.now)
            engine.raft.changes._newcomers[2] = newcomer
            engine.raft.changes.take_care()
        assert bool(engine.raft.changes._checks) is silent


def test_who_answered_the_very_round_in_which_a_newcomer_was_heard_is_alive(
    make: Callable[..., Engine],
) -> None:
    engine = led(make)
    with engine.raft.at(engine.now):
        engine.raft.on_newcomer(2, disk_of(9))
    engine.tick()
    newest = engine.raft.leader.rounds.newest
    assert engine.raft.changes._newcomers[2].since_round == newest
    engine.receive(2, AppendEntriesResponse(engine.raft.term, 1, 1, newest))
    assert [type(message) for _, message in engine.tick() if isinstance(message, Refused)] == [Refused]


@pytest.mark.parametrize(
    ("answered", "lag", "kept"), [(1.0 - INSTANT, 9, True), (1.0, 9, False), (0.5, 9, True), (0.5, 10, False)]
)
def test_the_log_is_kept_for_who_answered_and_lags_less_than_so_much(
    make: Callable[..., Engine], answered: float, lag: int, kept: bool
) -> None:
    engine = led(make, entries=[entry(index, 1) for index in range(1, 31)])
    progress = engine.raft.progress[2]
    progress.last_response = engine.now
    progress.match, progress.lag_at_last_check = engine.raft.applied_index - lag, 0
    with engine.raft.at(engine.now + answered):
        slowest = engine.raft.leader.slowest_match(10)
    assert slowest == (progress.match if kept else engine.log.last_index)


def test_who_lags_more_is_waited_for_while_it_comes_nearer(make: Callable[..., Engine]) -> None:
    engine = led(make, entries=[entry(index, 1) for index in range(1, 31)])
    progress = engine.raft.progress[2]
    progress.match = engine.raft.applied_index - 20
    for before, kept in ((21, True), (20, False), (0, False)):
        progress.lag_at_last_check = before
        with engine.raft.at(engine.now):
            slowest = engine.raft.leader.slowest_match(10)
        assert (slowest == progress.match) is kept and progress.lag_at_last_check == 20


def test_the_times_of_rounds_are_kept_for_so_long(make: Callable[..., Engine]) -> None:
    rounds = Rounds(2.0)
    assert rounds.sent_at(0) == rounds.sent_at(1) == float("-inf")
    for second in (10.0, 11.0, 12.0, 13.0):
        rounds.begin(second)
    assert [rounds.sent_at(number) for number in range(6)] == [
        float("-inf"),
        10.0,
        11.0,
        12.0,
        13.0,
        float("-inf"),
    ]
    rounds.begin(
        13.0 + INSTANT
    )  # what was sent at 11.0 is too old; the newest of those is kept, with what follows
    assert len(rounds) == 4 and rounds.sent_at(1) == float("-inf") and rounds.sent_at(2) == 11.0
    rounds.begin(99.0)
    assert len(rounds) == 2 and rounds.newest == 6
    rounds.forget_times()
    assert len(rounds) == 0 and rounds.newest == 6 and rounds.sent_at(6) == float("-inf")
    rounds.begin(100.0)
    assert rounds.sent_at(7) == 100.0


# Requests


def test_a_proposal_is_too_late_at_its_deadline() -> None:
    for leader in (True, False):
        it = Proposing()
        if leader:
            it.raft.lead()
        else:
            it.raft.follow(2)
        late, in_time = it.proposals.ask(b"late", 5.0), it.proposals.ask(b"in time", 5.0 + INSTANT)
        it.proposals.take(5.0)
        assert isinstance(late.exception(0), NoLeader) and not in_time.done()
        it.proposals.give_up(5.0)
        assert not in_time.done()
        it.proposals.give_up(5.0 + INSTANT)
        assert isinstance(in_time.exception(0), Timeout)


def test_what_waits_is_given_up_at_its_deadline() -> None:
    proposing, reading = Proposing(), Reading()
    for it in (proposing.proposals, reading.reads):
        ask = (lambda deadline, it=it: it.ask(b"x", deadline)) if it is proposing.proposals else it.ask
        late, in_time = ask(5.0), ask(5.0 + INSTANT)
        it.give_up(5.0)
        assert isinstance(late.exception(0), NoLeader) and not in_time.done() and len(it) == 1


def test_a_leader_is_asked_again_when_its_answer_is_due() -> None:
    reading = Reading()
    reading.raft.timing = TIMING
    reading.raft.follow(2)
    reading.reads.ask(FOREVER)
    asked = []
    for now in (4.0, 4.0 + 2 * TIMING.heartbeat - INSTANT, 4.0 + 2 * TIMING.heartbeat):
        reading.reads.take(now)
        asked.append([message.request for _, message in reading.outbox()])  # type: ignore[union-attr]
    assert asked == [[FIRST], [], [FIRST]]
    proposing = Proposing()
    proposing.raft.timing = TIMING
    proposing.raft.follow(2)
    proposing.proposals.ask(RemoveReplica(3), FOREVER)
    asked = []
    for now in (4.0, 4.0 + 2 * TIMING.heartbeat - INSTANT, 4.0 + 2 * TIMING.heartbeat):
        proposing.proposals.take(now)
        asked.append([message.request for _, message in proposing.outbox()])  # type: ignore[union-attr]
    assert asked == [[FIRST], [], [FIRST]]


def test_a_batch_ends_when_it_has_its_size() -> None:
    for extra, taken in ((0, 2), (-1, 3)):
        it = Proposing()
        each = it.raft.timing.batch_bytes // 2 - 5  # with what is added to a command
        it.proposals.ask(b"x" * each, FOREVER)
        it.proposals.ask(b"x" * (each + extra), FOREVER)
        it.proposals.ask(b"", FOREVER)
        it.raft.lead()
        it.proposals.take(0.0)
        assert len(it.raft.entries) == taken and it.proposals.more_to_take is (taken == 2)
