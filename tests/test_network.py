"""The network in memory: FIFO links, and faults that do exactly what they say."""

from __future__ import annotations

import gc
import threading
import time
import weakref
from collections.abc import Callable

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ondisk.errors import PortInUse
from ondisk.net.memory import MemoryNetwork
from ondisk.net.reach import reaches_leader
from ondisk.raft.messages import Message, Origin, ReadIndexRejection, ReadIndexRequest, ReadIndexResponse


class Time:
    """A clock that is set by hand."""

    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now


def message(number: int) -> Message:
    return ReadIndexRequest(number)


def numbers(received: list[tuple[int, Origin, Message]]) -> list[int]:
    return [item.request for _, _, item in received if isinstance(item, ReadIndexRequest)]


def pair(latency: float = 0.0) -> tuple[Time, MemoryNetwork, object, object]:
    clock = Time()
    network = MemoryNetwork(clock=clock)
    network.set_latency(latency)
    return clock, network, network.attach(1), network.attach(2)


@given(st.lists(st.sampled_from(["send", "slow", "fast", "stall", "heal", "time", "receive"]), max_size=60))
def test_a_link_never_reorders_or_repeats_whatever_its_latency_does(actions: list[str]) -> None:
    """Messages under way keep their order even if later ones are faster; stalls lose nothing."""
    clock, network, one, two = pair(0.01)
    sent, received = 0, []
    for action in actions:
        if action == "send":
            one.send(2, message(sent))
            sent += 1
        elif action == "slow":
            network.set_latency(0.5)
        elif action == "fast":
            network.set_latency(0.0)
        elif action == "stall":
            network.stall((1, 2))
        elif action == "heal":
            network.heal()
        elif action == "time":
            clock.now += 0.02
        else:
            received += numbers(two.receive())
    network.heal()
    clock.now += 10
    received += numbers(two.receive())
    assert received == list(range(sent))


def test_a_message_takes_as_long_as_the_latency_says() -> None:
    """Not there before, there at the time."""
    clock, _, one, two = pair(0.25)
    one.send(2, message(1))
    clock.now = 0.249
    assert two.receive() == []
    clock.now = 0.25
    assert numbers(two.receive()) == [1]


def test_a_cut_link_loses_everything_in_one_direction_only() -> None:
    """What is under way is lost as well; the way back works."""
    clock, network, one, two = pair(0.1)
    one.send(2, message(1))
    network.cut((1, 2))
    one.send(2, message(2))
    two.send(1, message(3))
    clock.now = 1
    assert (numbers(two.receive()), numbers(one.receive())) == ([], [3])
    network.heal()
    one.send(2, message(4))
    clock.now = 2
    assert numbers(two.receive()) == [4]


def test_a_partition_cuts_between_groups_and_heals_inside_them() -> None:
    """Moving from one partition to another leaves no old cut behind."""
    network = MemoryNetwork()
    for member in (1, 2, 3):
        network.attach(member)
    network.partition({1}, {2, 3})
    assert network.cut_links() == {(1, 2), (2, 1), (1, 3), (3, 1)}
    network.partition({1, 2}, {3})
    assert network.cut_links() == {(1, 3), (3, 1), (2, 3), (3, 2)}
    network.reconnect(3)
    assert network.cut_links() == frozenset()


def test_a_cut_does_not_show_but_a_replica_that_left_does() -> None:
    """As in life: silence is not a closed connection."""
    _, network, one, two = pair()
    network.cut((1, 2), (2, 1))
    assert one.connected() == {2}
    assert one.send(2, message(1)) is True
    two.close()
    assert one.connected() == frozenset()
    assert one.send(2, message(2)) is False


def test_what_was_sent_to_an_earlier_life_does_not_reach_the_next_one() -> None:
    """A replica that left and came back gets only what is sent from then on."""
    clock, network, one, two = pair(0.1)
    one.send(2, message(1))
    two.close()
    two = network.attach(2)
    clock.now = 1
    assert two.receive() == []


def test_the_same_replica_cannot_join_twice() -> None:
    """Its place on the network is in use."""
    _, network, _, _ = pair()
    with pytest.raises(PortInUse):
        network.attach(1)


def test_paused_nothing_moves_and_each_step_delivers_the_oldest_message() -> None:
    """One message a step, in the order of sending, over all links; time stands still meanwhile."""
    network = MemoryNetwork()
    one, two, three = (network.attach(member) for member in (1, 2, 3))
    network.pause()
    frozen = network.clock()
    one.send(2, message(1))
    three.send(2, message(2))
    one.send(2, message(3))
    assert two.receive() == []
    assert [event.number for event in network.in_flight()] == [1, 2, 3]
    events = [network.step_one_message() for _ in range(4)]
    assert [(event.sender, event.kind) if event else None for event in events] == [
        (1, "delivered"),
        (3, "delivered"),
        (1, "delivered"),
        None,
    ]
    assert numbers(two.receive()) == [1, 2, 3]
    assert network.clock() == frozen
    network.resume()
    one.send(2, message(4))
    assert numbers(two.receive()) == [4]


def test_who_watches_finds_each_message_sent_and_then_delivered_or_lost() -> None:
    """With one number for all its events, in a queue of its own that keeps all, or the newest."""
    _, network, one, _ = pair()
    one.send(2, message(1))
    everything, newest = network.observe(), network.observe(3)
    one.send(2, message(2))
    network.cut((1, 2))
    one.send(2, message(3))
    seen = [(event.number, event.kind) for event in everything]
    assert seen == [(2, "sent"), (2, "delivered"), (3, "sent"), (3, "lost")]
    assert [(event.number, event.kind) for event in newest] == seen[1:]


def test_who_drops_the_queue_watches_no_more_and_disturbs_nobody() -> None:
    _, network, one, two = pair()
    dropped, kept = network.observe(), network.observe()
    one.send(2, message(1))
    gone = weakref.ref(dropped)
    del dropped
    gc.collect()
    one.send(2, message(2))
    assert gone() is None and len(network._watched) == 1
    assert [event.number for event in kept] == [1, 1, 2, 2] and numbers(two.receive()) == [1, 2]


@pytest.mark.parametrize(
    ("answers", "reached"),
    [
        (lambda request: [ReadIndexResponse(request, 7)], True),
        (lambda request: [ReadIndexRejection(request)], False),
        (lambda request: [ReadIndexRejection(request + 1), ReadIndexResponse(request, 7)], True),
    ],
    ids=["it leads", "it does not", "it did not lead when something else was asked"],
)
def test_a_leader_is_reached_when_it_answers_this_question_with_an_index(
    answers: Callable[[int], list[Message]], reached: bool
) -> None:
    network = MemoryNetwork()
    here, leader = network.attach(1), network.attach(2)
    send = here.send

    def ask(to: int, question: Message) -> bool:
        sent = send(to, question)
        for request in numbers(leader.receive()):
            for answer in answers(request):
                leader.send(1, answer)
        return sent

    here.send = ask  # type: ignore[method-assign]
    assert reaches_leader(here, 2, b"group", seconds=10.0, ask_again=10.0) is reached


def test_no_wake_up_is_lost_between_many_senders_and_a_waiting_receiver() -> None:
    """The receiver waits long between looks, so a lost wake-up shows as a wait of its full length."""
    network = MemoryNetwork()
    receiver = network.attach(1)
    senders = [network.attach(member) for member in range(2, 6)]
    received: list[int] = []

    def send_all(sender: object) -> None:
        for number in range(2000):
            sender.send(1, message(number))  # type: ignore[attr-defined]

    threads = [threading.Thread(target=send_all, args=(sender,)) for sender in senders]
    for thread in threads:
        thread.start()
    while len(received) < 8000:
        began = time.monotonic()
        receiver.wait(20.0)
        assert time.monotonic() - began < 15, "a wake-up was lost"
        received += numbers(receiver.receive())
    for thread in threads:
        thread.join()
    assert len(received) == 8000


def test_a_negative_latency_is_refused() -> None:
    """Messages cannot arrive before they are sent."""
    with pytest.raises(ValueError, match="at least 0"):
        MemoryNetwork().set_latency(-1)


def test_a_message_to_a_replica_that_never_joined_is_just_not_sent() -> None:
    """A member may be late, or never come."""
    network = MemoryNetwork()
    assert network.attach(1).send(9, message(1)) is False
