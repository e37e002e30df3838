"""Linearizable reads through a follower, when messages between it and the leader are lost."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from pathlib import Path

import pytest

from ondisk.diskkv import get, put
from ondisk.raft.messages import Message, ReadIndexRequest, ReadIndexResponse
from tests.virtual import World


@pytest.fixture
def world(tmp_path: Path) -> Iterator[World]:
    world = World(tmp_path)
    yield world
    world.close()


@pytest.mark.parametrize("kind", [ReadIndexRequest, ReadIndexResponse], ids=["the question", "the answer"])
def test_a_lost_question_is_asked_again(world: World, kind: type[Message]) -> None:
    """The leader stays, so nothing else would: the read would wait for its deadline."""
    leader = world.elect()
    follower = world.replicas[world.others(leader.id)[0]]
    lost: list[Message] = []

    def lose_the_first(sender: int, receiver: int, message: Message) -> Iterable[Message]:
        if isinstance(message, kind) and not lost:
            lost.append(message)
            return []
        return [message]

    world.edit = lose_the_first
    write = leader.propose(put("k", "v"), world.now + 30)
    world.run_until(write.done)
    term, began = leader.raft.term, world.now
    read = follower.read_barrier(world.now + 30)
    world.run_until(read.done)
    assert lost and read.exception() is None
    assert world.now - began < 4 * follower.raft.timing.heartbeat
    assert leader.raft.term == term  # no election has helped
    assert follower.lookup(get("k")) == b"v"


def test_an_answer_that_is_late_still_counts(world: World) -> None:
    """With a network that takes longer than the patience, no answer would be one to the newest question."""
    leader = world.elect()
    follower = world.replicas[world.others(leader.id)[0]]
    world.latency = 0.25  # there and back, and a round to confirm: more than two heartbeats
    read = follower.read_barrier(world.now + 30)
    world.run_until(read.done)
    assert read.exception() is None
    asked = world.messages(ReadIndexRequest, follower.id)
    questions = [each.request for each in asked if isinstance(each, ReadIndexRequest)]
    assert len(questions) > 1 and len(set(questions)) == 1


def test_an_answer_to_a_later_question_is_one_to_the_earlier_ones(world: World) -> None:
    """What was asked before it waits no longer than it; and what is asked after it is not answered by it."""
    leader = world.elect()
    follower = world.replicas[world.others(leader.id)[0]]
    answers: list[ReadIndexResponse] = []

    def hold_back(sender: int, receiver: int, message: Message) -> Iterable[Message]:
        if isinstance(message, ReadIndexResponse):
            answers.append(message)
            return []
        return [message]

    world.edit = hold_back
    reads = []
    for count in (1, 2, 3):
        reads.append(follower.read_barrier(world.now + 30))
        world.run_until(lambda count=count: len({answer.request for answer in answers}) == count)  # type: ignore[misc]
    second = sorted({answer.request: answer for answer in answers}.items())[1][1]
    world.edit = None
    leader._endpoint.send(follower.id, second)
    world.run(0.02)
    assert [read.done() for read in reads] == [True, True, False]
    world.run_until(reads[2].done)


def test_a_read_whose_leader_goes_away_is_answered_by_the_next_one(world: World) -> None:
    leader = world.elect()
    follower = world.replicas[world.others(leader.id)[0]]
    world.edit = lambda _, __, message: [] if isinstance(message, ReadIndexResponse) else [message]
    read = follower.read_barrier(world.now + 60)
    world.run_until(lambda: bool(world.messages(ReadIndexRequest, follower.id)))
    world.crash(leader.id)
    world.edit = None
    world.run_until(lambda: follower.raft.leader_id not in (None, leader.id))
    began = world.now
    world.run_until(read.done)
    assert read.exception() is None and world.now - began < 1.0
