"""What a remote client sends again, and what not: against members that answer as a test tells them."""

from __future__ import annotations

import threading
from collections.abc import Iterator

import msgspec
import pytest

from ondisk import (
    NoLeader,
    NotDone,
    OutcomeUnknown,
    Rejected,
    RemoteClient,
    ReplicaStopped,
    Timeout,
    connect,
)
from ondisk.net.addresses import format_address
from ondisk.net.client_messages import Applied, Command, Failed, Found, Response
from ondisk.net.clients import Call
from ondisk.net.tcp import TcpEndpoint, TcpNetwork
from ondisk.remote import courier
from ondisk.statemachine import Result
from tests.tcp import SECRET, free_addresses
from tests.waiting import wait_until

Answer = Applied | Found | Failed
HANG_UP = object()

DONE = Applied(Result(b"done"))


class Member:
    """Proves who it is, as a replica does, and then answers by a script; what it was asked it keeps."""

    def __init__(self, number: int, addresses: dict[int, tuple[str, int]]) -> None:
        self.endpoint: TcpEndpoint = TcpNetwork({number: addresses[number]}, secret=SECRET).attach(number)
        self.number = number
        self.script: list[object] = []  # an answer each, nothing to say (``None``), or ``HANG_UP``
        self.asked: list[object] = []
        self.leader = 0
        self._over = False
        self._thread = threading.Thread(target=self._run)
        self._thread.start()

    def _run(self) -> None:
        while not self._over:
            self.endpoint.wait(0.01)
            self.endpoint.receive()
            for call in self.endpoint.calls():
                self.asked.append(call.request.body)
                self._answer(call, self.script.pop(0) if self.script else DONE)
            self.endpoint.flush_answers()

    def _answer(self, call: Call, answer: object) -> None:
        if answer is HANG_UP:
            self.endpoint._drop(call.connection)
        elif answer is not None:
            self.endpoint.answer(call, Response(call.request.number, self.leader, answer))  # type: ignore[arg-type]

    def say_goodbye(self) -> None:
        """As a replica that is about to stop."""
        self.endpoint.tell_clients(Response(0, 0, Failed("ReplicaStopped", "it is about to stop")))
        self.endpoint.wake()

    def close(self) -> None:
        self._over = True
        self._thread.join()
        self.endpoint.close()


@pytest.fixture
def members() -> Iterator[tuple[Member, Member]]:
    addresses = free_addresses(2)
    both = Member(1, addresses), Member(2, addresses)
    yield both
    for member in both:
        member.close()


@pytest.fixture
def client(members: tuple[Member, Member]) -> Iterator[RemoteClient]:
    """Connected to both, of which the first leads."""
    for member in members:
        member.leader = 1
    endpoints = [format_address(member.endpoint.addresses[member.number]) for member in members]
    with connect(endpoints, secret=SECRET) as client:
        wait_until(lambda: client.leader_id == 1 or client.propose(b"first", timeout=10))
        wait_until(lambda: not client.unreachable())
        for member in members:
            member.asked.clear()
        yield client


@pytest.mark.parametrize("error", ["NoLeader", "ReplicaStopped", "Discarded"])
def test_who_certainly_did_nothing_is_not_the_last_to_be_asked(
    members: tuple[Member, Member], client: RemoteClient, error: str
) -> None:
    """The command is sent once more, elsewhere, or to the same one when it is the entry that was lost."""
    one, two = members
    one.script = [Failed(error, "not me")]
    assert client.propose(b"c", timeout=10).value == b"done"
    assert one.asked + two.asked == [Command(b"c")] * 2
    assert len(two.asked) == (error != "Discarded")


@pytest.mark.parametrize("error", ["OutcomeUnknown", "Timeout", "Rejected", "WhatOnlyALaterVersionKnows"])
def test_what_may_have_happened_or_never_will_is_not_sent_again(
    members: tuple[Member, Member], client: RemoteClient, error: str
) -> None:
    members[0].script = [Failed(error, "as it is")]
    with pytest.raises(Rejected if error == "Rejected" else OutcomeUnknown, match="as it is"):
        client.propose(b"c")
    assert members[0].asked + members[1].asked == [Command(b"c")]


def test_a_command_that_had_left_is_unknown_and_a_read_is_asked_elsewhere(
    members: tuple[Member, Member], client: RemoteClient
) -> None:
    one, two = members
    one.script = [HANG_UP]
    with pytest.raises(OutcomeUnknown, match="after the command had left"):
        client.propose(b"c", timeout=10)
    assert two.asked == []
    wait_until(lambda: not client.unreachable())
    one.script = two.script = [HANG_UP, Found(msgspec.msgpack.encode(b"v"))]
    assert client.get("k", timeout=10) == b"v"


def test_a_command_that_had_not_left_when_the_connection_broke_is_sent_elsewhere(
    members: tuple[Member, Member], client: RemoteClient
) -> None:
    """Larger than what a socket holds, to a member that does not read: half a frame is nothing."""
    one, two = members
    one._over = True
    one._thread.join()
    commands = [client.propose_async(bytes(2 << 20), timeout=20) for _ in range(20)]
    wait_until(lambda: any(client._courier._under_way[line] for line in client._courier.lines))
    one.endpoint.close()
    outcomes = [future.exception(20) for future in commands]
    assert None in outcomes
    assert {type(error) for error in outcomes} <= {type(None), OutcomeUnknown}
    assert len(two.asked) == outcomes.count(None)


def test_no_answer_before_the_deadline_is_told_as_what_it_is(
    members: tuple[Member, Member], client: RemoteClient
) -> None:
    for member in members:
        member.script = [None] * 3
    with pytest.raises(Timeout):
        client.propose(b"c", timeout=0.1)
    with pytest.raises(NoLeader):
        client.get("k", timeout=0.1)


def test_who_says_nothing_is_not_the_only_one_to_be_asked(
    members: tuple[Member, Member], client: RemoteClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A process that was stopped (SIGSTOP), or a leader that was cut off: its connection is still there."""
    monkeypatch.setattr(courier, "_PATIENCE", 0.1)
    monkeypatch.setattr(courier, "_GONE", 0.2)
    one, two = members
    one.script = [None] * 3
    two.script = [Found(msgspec.msgpack.encode(b"v"))]
    assert client.get("k", timeout=20) == b"v"
    assert len(one.asked) == len(two.asked) == 1
    one.script = []
    wait_until(lambda: client.propose(b"again", timeout=10) and one.asked[-1] == Command(b"again"))
    one.script = [None] * 3
    with pytest.raises(Timeout):
        client.propose(b"c", timeout=0.05)
    two.leader = 2
    assert client.propose(b"d", timeout=10).value == b"done"
    assert two.asked[-1] == Command(b"d")


def test_nobody_leads_until_the_deadline_and_nothing_was_done(
    members: tuple[Member, Member], client: RemoteClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(courier, "GRACE", 20.0)  # a busy machine may be late with the last answer
    for member in members:
        member.script = [Failed("NoLeader", "no leader here")] * 100
    with pytest.raises(NoLeader, match="no leader here; nobody could do it"):
        client.propose_async(b"c", timeout=0.4).result(20)
    assert 2 <= len(members[0].asked) + len(members[1].asked) < 30  # not at the speed of the network


def test_the_one_that_was_named_is_the_only_one_to_be_asked(
    members: tuple[Member, Member], client: RemoteClient
) -> None:
    members[1].script = [Failed("ReplicaStopped", "stopped")]
    with pytest.raises(ReplicaStopped):
        client.propose(b"c", via=2)
    members[1].close()
    wait_until(client.unreachable)
    with pytest.raises(NotDone, match="cannot reach"):
        client.propose(b"c", via=2)
    assert members[0].asked == []


def test_who_says_goodbye_is_asked_nothing_more_and_answers_what_it_has(
    members: tuple[Member, Member], client: RemoteClient
) -> None:
    one, two = members
    one.say_goodbye()
    wait_until(lambda: client.leader_id is None)
    assert [client.propose(b"c", timeout=10).value for _ in range(5)] == [b"done"] * 5
    assert (one.asked, two.asked) == ([], [Command(b"c")] * 5)


def test_an_answer_that_is_none_ends_the_connection_and_not_the_client(
    members: tuple[Member, Member], client: RemoteClient
) -> None:
    members[0].script = [Found(b"\xc1 this is no message")]
    with pytest.raises(Exception, match="cannot be understood"):
        client.get("k", timeout=10)
    members[0].script = [DONE]
    assert client.propose(b"c", timeout=10).value == b"done"


def test_a_closed_client_ends_what_waits(members: tuple[Member, Member], client: RemoteClient) -> None:
    members[0].script = [None, None]
    command, read = client.propose_async(b"c", timeout=60), client.read_async(_query(), timeout=60)
    wait_until(lambda: len(members[0].asked) == 2)
    client.close()
    assert isinstance(command.exception(1), OutcomeUnknown)
    assert isinstance(read.exception(1), ReplicaStopped)


def test_what_was_cancelled_before_it_left_is_never_sent(members: tuple[Member, Member]) -> None:
    (address,) = free_addresses(1).values()
    with connect(format_address(address), secret=SECRET) as client:
        future = client.propose_async(b"c", timeout=60)
        assert future.cancel()
        member = Member(1, {1: address})
        try:
            client.propose(b"d", timeout=10)
            assert member.asked == [Command(b"d")]
        finally:
            member.close()


def _query() -> object:
    from ondisk.diskkv import get

    return get("k")
