"""What a leader knows of one follower (``raft/progress.py``): its state, and what is under way to it."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from ondisk.raft import Timing
from ondisk.raft.messages import AppendEntriesResponse
from ondisk.raft.progress import PROBE, REPLICATE, SNAPSHOT, Progress
from tests.engine import Engine, to


def replicating(match: int, next_index: int, in_flight: int) -> Progress:
    progress = Progress(match + 1, 5.0)
    progress.matches(match)
    progress.next, progress.in_flight = next_index, in_flight
    return progress


def test_a_follower_is_looked_for_first_and_nothing_is_known_of_it() -> None:
    progress = Progress(8, 5.0)
    assert (progress.state, progress.match, progress.next) == (PROBE, 0, 8)
    assert (progress.in_flight, progress.acked_round, progress.last_response) == (0, 0, 5.0)
    assert (progress.probe_sent, progress.lag_at_last_check) == (False, 0)


def test_one_message_is_sent_until_it_is_known_where_the_logs_agree() -> None:
    progress = Progress(8, 5.0)
    assert progress.is_ready(1)
    progress.probe_sent = True
    assert not progress.is_ready(1)
    assert progress.matches(7) and progress.state is REPLICATE
    assert (progress.match, progress.next, progress.in_flight) == (7, 8, 0) and progress.is_ready(1)
    progress.in_flight = 99
    assert progress.is_ready(100) and not progress.is_ready(99) and not progress.is_ready(98)


def test_the_follower_may_hold_less_or_more_than_was_believed() -> None:
    for index in (0, 3, 7, 12):
        progress = Progress(8, 5.0)
        assert progress.matches(index)
        assert (progress.match, progress.next) == (index, index + 1)
    progress = replicating(7, 8, 0)
    progress.become_probe()
    assert progress.matches(5)  # an older answer, and where the logs agree is known again
    assert (progress.state, progress.match, progress.next) == (REPLICATE, 7, 8)


def test_what_is_acknowledged_is_under_way_no_more() -> None:
    """Entries are taken to be alike in size."""
    progress = replicating(10, 21, 1000)  # ten entries
    assert not progress.matches(10) and not progress.matches(9)
    assert (progress.match, progress.in_flight) == (10, 1000)
    assert progress.matches(11) and (progress.match, progress.in_flight, progress.next) == (11, 900, 21)
    assert progress.matches(14) and (progress.match, progress.in_flight, progress.next) == (14, 600, 21)
    assert progress.matches(20) and (progress.match, progress.in_flight, progress.next) == (20, 0, 21)
    assert progress.matches(25) and (progress.match, progress.in_flight, progress.next) == (25, 0, 26)
    assert replicating(10, 21, 1005).matches(11)


def test_what_was_under_way_is_forgotten_when_a_follower_is_looked_for_again() -> None:
    progress = replicating(10, 21, 1000)
    progress.probe_sent = True
    progress.become_probe()
    assert (progress.state, progress.probe_sent, progress.in_flight) == (PROBE, False, 0)
    assert (progress.match, progress.next) == (10, 21)
    progress.become_snapshot()
    assert progress.state is SNAPSHOT
    progress.in_flight = 7
    assert progress.matches(15)
    assert (progress.state, progress.match, progress.next, progress.in_flight) == (REPLICATE, 15, 16, 0)


@pytest.mark.parametrize("more", [0, 1])
def test_entries_leave_while_fewer_bytes_are_under_way_than_the_window_has(
    make_engine: Callable[..., Engine], more: int
) -> None:
    """The very byte counts: the commands, with the letter that says what they are."""
    engine = make_engine(3, timing=Timing(batch_bytes=10, window_bytes=20 + more))
    engine.lead()
    engine.append(5, 9)  # ten bytes each in the log
    sent = [len(message.entries) for message in to(2, engine.tick())]
    assert sent == [1] * (2 + more)
    assert engine.raft.progress[2].in_flight == 20 + 10 * more
    engine.receive(2, AppendEntriesResponse(engine.raft.term, 2, 1, engine.raft.leader.rounds.newest))
    assert engine.raft.progress[2].in_flight == 10 + 10 * more
    assert [len(message.entries) for message in to(2, engine.tick())] == [1]
