"""TCP between members: messages in order, one connection for each pair, origins, and where it listens."""

from __future__ import annotations

import contextlib
import os
import random
import socket
import time
from collections.abc import Callable

import msgspec
import pytest

from ondisk.errors import ConfigurationError, PortInUse
from ondisk.net import dialer, sockets
from ondisk.net.addresses import parse_address
from ondisk.net.channel import Channel
from ondisk.net.connection import Connection
from ondisk.net.tcp import MAX_UNKNOWN_PEERS, TcpEndpoint, TcpNetwork
from ondisk.raft.limits import MAX_FRAME_BYTES, MAX_UNSENT_BYTES
from ondisk.raft.messages import (
    AppendEntries,
    Message,
    Origin,
    Outcome,
    Outcomes,
    Propose,
    ReadIndexRequest,
    encoder,
)
from ondisk.raft.records import LogEntry
from ondisk.statemachine import Result
from tests.lengths import short_and_long
from tests.tcp import (
    ORIGIN,
    SECRET,
    HandmadePeer,
    attach,
    connect,
    ends,
    free_addresses,
    is_over,
    serve,
    served,
)
from tests.waiting import wait_until

__all__ = ["attach"]  # fixtures


# Peers


def test_messages_arrive_whole_and_in_order_in_both_directions(attach: Callable[..., TcpEndpoint]) -> None:
    """Large and small ones, many at once."""
    network = TcpNetwork(free_addresses(2), secret=SECRET)
    one, two = attach(network, 1), attach(network, 2)
    connect(one, two)
    entries = [LogEntry(n, 1, os.urandom(1000 * n)) for n in range(1, 40)]
    big = AppendEntries(1, 0, 0, entries, 0, 0)
    expected = [big if n % 50 == 0 else ReadIndexRequest(n) for n in range(500)]
    received: list[Message] = []
    for item in expected:
        assert two.send(1, item)
        received += [got for _, got in serve(one, two)]
    wait_until(lambda: received.extend(got for _, got in serve(one, two)) or len(received) == 500)
    assert received == expected
    assert one.send(2, ReadIndexRequest(7))
    got: list[tuple[int, Message]] = []
    wait_until(lambda: got.extend(serve(two, one)) or got)
    assert got == [(1, ReadIndexRequest(7))]


def test_a_peer_that_comes_back_is_connected_again(attach: Callable[..., TcpEndpoint]) -> None:
    """Whichever side went away."""
    network = TcpNetwork(free_addresses(2))
    one, two = attach(network, 1), attach(network, 2)
    connect(one, two)
    one.close()
    wait_until(lambda: serve(two) or not two.connected())
    assert two.send(1, ReadIndexRequest(1)) is False
    one = attach(network, 1)
    connect(one, two)
    two.close()
    wait_until(lambda: serve(one) or not one.connected())
    two = attach(network, 2)
    connect(one, two)


def test_a_peer_that_does_not_read_costs_bounded_memory(attach: Callable[..., TcpEndpoint]) -> None:
    """What does not fit is refused, and the sender is told."""
    network = TcpNetwork(free_addresses(2))
    one, two = attach(network, 1), attach(network, 2)
    connect(one, two)
    message = AppendEntries(1, 0, 0, [LogEntry(1, 1, bytes(1 << 20))], 0, 0)
    accepted = 0
    while one.send(2, message):
        accepted += 1
        assert accepted < 100
    assert one._connections[2].unsent_bytes < MAX_UNSENT_BYTES + MAX_FRAME_BYTES


class Drip:
    """A socket that takes some bytes of what it is offered, and then no more for now."""

    def __init__(self, takes: int) -> None:
        self._takes = takes
        self._ready = True

    def sendmsg(self, frames: list[bytes]) -> int:
        self._ready = not self._ready
        if self._ready or not self._takes:
            raise BlockingIOError
        return min(self._takes, len(frames[0]))


def test_what_waits_for_a_slow_peer_is_not_copied_again_and_again() -> None:
    """Neither the rest of a large frame whenever a little of it has left, nor the queue at every send."""
    slow = Connection(Drip(512), Channel(1, SECRET, None), ("", 0))  # type: ignore[arg-type]
    begun = time.thread_time()
    slow.send(Propose(1, [bytes(8_000_000)]), ORIGIN)
    while slow.unsent_bytes:
        slow.flush()
    large = time.thread_time() - begun
    slow.sock = Drip(0)  # type: ignore[assignment]
    slow.unsent.extend([b"x" * 20] * 400_000)
    begun = time.thread_time()
    for number in range(500):
        assert slow.send(ReadIndexRequest(number), ORIGIN)
        slow.flush()
    many = time.thread_time() - begun
    assert large < 0.3 and many < 0.3, (large, many)


def test_a_message_too_large_for_a_frame_is_not_sent_and_ends_nothing(
    attach: Callable[..., TcpEndpoint],
) -> None:
    """The other side would hang up, and again when it is repeated."""
    network = TcpNetwork(free_addresses(2), secret=SECRET)
    one, two = attach(network, 1), attach(network, 2)
    connect(one, two)
    assert two.send(1, Propose(1, [bytes(MAX_FRAME_BYTES)])) is False
    assert two.send(1, Outcomes([Outcome(1, "applied", Result(1 << 64))])) is False  # no message can have it
    assert two.send(1, ReadIndexRequest(7))
    received: list[tuple[int, Message]] = []
    wait_until(lambda: received.extend(serve(one, two)) or received)
    assert received == [(2, ReadIndexRequest(7))]


@pytest.mark.skipif(not hasattr(socket, "TCP_USER_TIMEOUT"), reason="only Linux gives up by itself")
def test_a_peer_that_takes_nothing_is_given_up(
    attach: Callable[..., TcpEndpoint], monkeypatch: pytest.MonkeyPatch
) -> None:
    """What waits for it is let go, and when it is back it is called anew."""
    monkeypatch.setattr(sockets, "SILENCE_SECONDS", 1.0)
    network = TcpNetwork(free_addresses(2), secret=SECRET)
    one, two = attach(network, 1), attach(network, 2)
    connect(one, two)
    while one.send(2, Propose(1, [bytes(1 << 20)])):
        pass
    wait_until(lambda: serve(one) or not one.connected())
    connect(one, two)


@pytest.mark.parametrize("text", ["", "nonsense", "h:99999"])
def test_an_address_in_the_log_that_is_none_stops_nobody(
    attach: Callable[..., TcpEndpoint], caplog: pytest.LogCaptureFixture, text: str
) -> None:
    """It was agreed on, so every replica would stop, and again after each restart."""
    endpoint = attach(TcpNetwork(free_addresses(1), secret=SECRET), 1)
    endpoint.add_peers({2: text, 3: "127.0.0.1:7"})
    assert endpoint.addresses[3] == ("127.0.0.1", 7) and 2 not in endpoint.addresses
    assert "the address of replica 2" in caplog.text


def test_without_a_secret_nobody_beyond_loopback_is_met(
    attach: Callable[..., TcpEndpoint], caplog: pytest.LogCaptureFixture
) -> None:
    """As at the start: a member that was added later is no exception."""
    addresses = free_addresses(2)
    endpoint = attach(TcpNetwork({2: addresses[2]}), 2)
    endpoint.add_peers({1: "192.0.2.7:1"})
    assert endpoint.addresses == {2: addresses[2]} and not endpoint._dialer._call_at
    assert "replica 1 is beyond loopback: a shared secret is required" in caplog.text


def test_wake_ends_a_wait_from_another_thread(attach: Callable[..., TcpEndpoint]) -> None:
    """Also if it comes before the wait; and a closed endpoint can be woken without harm."""
    endpoint = attach(TcpNetwork(free_addresses(1)), 1)
    endpoint.wake()
    endpoint.wait(60.0)
    endpoint.close()
    endpoint.close()
    endpoint.wake()


# Who calls whom


@pytest.mark.parametrize("rounds", short_and_long(40, 1000))
@pytest.mark.parametrize("head_start", [1, 2, None], ids=lambda member: f"{member} is served first")
def test_of_two_calls_at_once_the_same_one_stays_on_both_sides(
    attach: Callable[..., TcpEndpoint],
    caplog: pytest.LogCaptureFixture,
    monkeypatch: pytest.MonkeyPatch,
    head_start: int | None,
    rounds: int,
) -> None:
    """In whatever order they are served. Nobody is suspected, and nobody calls again."""
    monkeypatch.setattr(dialer, "PATIENCE_SECONDS", 0.0)
    rng = random.Random(head_start)
    for _ in range(rounds):
        network = TcpNetwork(free_addresses(2), secret=SECRET)
        with contextlib.closing(network.attach(1)) as one, contextlib.closing(network.attach(2)) as two:
            for endpoint in (one, two):
                endpoint._call_missing(time.monotonic())
            assert one._unauthenticated and two._unauthenticated  # both have called
            order = [one, two] if head_start == 1 else [two, one]
            deadline = time.monotonic() + 20
            while not (
                one.connected() and two.connected() and not one._unauthenticated and not two._unauthenticated
            ):
                assert time.monotonic() < deadline
                for endpoint in order if head_start else [rng.choice(order)]:
                    endpoint.wait(0.001)
            kept = ends(one, 2)
            assert kept == ends(two, 1)
            assert two._connections[1].calling == 1 and one._connections[2].calling is None
            for _ in range(5):
                assert serve(one, two) == []
            assert (
                ends(one, 2) == kept == ends(two, 1) and not one._unauthenticated and not two._unauthenticated
            )
    assert caplog.records == []


def test_two_that_called_each_other_do_not_part_again(
    attach: Callable[..., TcpEndpoint], caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Longer than any of the times after which one of them would call."""
    monkeypatch.setattr(dialer, "PATIENCE_SECONDS", 0.0)
    network = TcpNetwork(free_addresses(3), secret=SECRET)
    members = [attach(network, member) for member in (1, 2, 3)]
    connect(*members)
    wait_until(lambda: serve(*members) or not any(member._unauthenticated for member in members))
    kept = [ends(members[0], 2), ends(members[1], 3), ends(members[2], 1)]
    until = time.monotonic() + 1.0
    while time.monotonic() < until:
        serve(*members)
        assert kept == [ends(members[0], 2), ends(members[1], 3), ends(members[2], 1)]
    assert caplog.records == []


@pytest.mark.parametrize(("knows", "knows_not"), [(1, 2), (2, 1)])
def test_one_of_two_that_knows_the_address_is_enough(
    attach: Callable[..., TcpEndpoint], knows: int, knows_not: int
) -> None:
    """The lower id calls, too, after it has waited a little for the other one."""
    addresses = free_addresses(2)
    one = attach(TcpNetwork(addresses, secret=SECRET), knows)
    other = attach(TcpNetwork({knows_not: addresses[knows_not]}, secret=SECRET), knows_not)
    begun = time.monotonic()
    connect(one, other)
    assert time.monotonic() - begun < dialer.PATIENCE_SECONDS + 3.0


def test_unknown_peers_that_know_the_secret_are_few_and_push_out_no_member(
    attach: Callable[..., TcpEndpoint],
) -> None:
    """Who joins is at no known address, and neither is who was forgotten: the oldest of those goes."""
    addresses = free_addresses(3)
    endpoint = attach(TcpNetwork(addresses, secret=SECRET), 1)
    with served(endpoint) as received, contextlib.ExitStack() as stack:
        peers = {}
        for number in (2, *range(10, 10 + MAX_UNKNOWN_PEERS + 3), 3):
            peers[number] = stack.enter_context(HandmadePeer(addresses[1], number, 1))
            peers[number].say_hello()
            peers[number].prove()
            peers[number].sock.sendall(peers[number].seal(encoder.encode(ReadIndexRequest(number))))
            wait_until(lambda number=number: (number, ReadIndexRequest(number)) in received)
        unknown = set(range(13, 13 + MAX_UNKNOWN_PEERS))
        assert len(unknown) == MAX_UNKNOWN_PEERS
        assert endpoint.connected() == {2, 3} | unknown
        assert all(is_over(peers[number].sock) for number in (10, 11, 12))


def test_an_address_from_the_log_replaces_only_what_came_from_the_log(
    attach: Callable[..., TcpEndpoint],
) -> None:
    """Who was given an address by a person has it for good; and its own does not change either."""
    addresses = free_addresses(4)
    endpoint = attach(TcpNetwork({1: addresses[1], 2: addresses[2]}, secret=SECRET), 1)
    elsewhere = "{}:{}".format(*addresses[4])
    endpoint.add_peers({1: elsewhere, 2: elsewhere, 3: "127.0.0.1:1"})
    assert endpoint.addresses == {1: addresses[1], 2: addresses[2], 3: ("127.0.0.1", 1)}
    moved = attach(TcpNetwork({3: addresses[4]}, secret=SECRET), 3)
    endpoint.add_peers({1: elsewhere, 2: elsewhere, 3: elsewhere})
    assert endpoint.addresses == {1: addresses[1], 2: addresses[2], 3: addresses[4]}
    wait_until(lambda: serve(endpoint, moved) or endpoint.connected() == {3})


# Origins


def test_every_message_has_the_origin_that_its_sender_had_when_it_was_sent(
    attach: Callable[..., TcpEndpoint],
) -> None:
    """A new one is for what comes after it, also if both arrive at once."""
    network = TcpNetwork(free_addresses(2), secret=SECRET)
    one, two = attach(network, 1), attach(network, 2)
    first, second = ORIGIN, Origin(b"g" * 16, b"d" * 16, 1, 2)
    two.introduce(first)
    connect(one, two)
    received: list[tuple[int, Origin, Message]] = []
    for number, origin in enumerate([first, first, second, second, first]):
        two.introduce(origin)
        assert two.send(1, ReadIndexRequest(number))
    wait_until(lambda: one.wait(0.01) or received.extend(one.receive()) or len(received) == 5)  # type: ignore[func-returns-value]
    assert [(sender, message) for sender, _, message in received] == [
        (2, ReadIndexRequest(number)) for number in range(5)
    ]
    origins = [origin for _, origin, _ in received]
    assert origins == [first, first, second, second, first]
    assert origins[0] is origins[1] and origins[2] is origins[3]  # so that comparing them costs nothing
    two.close()
    wait_until(lambda: serve(one) or not one.connected())
    again = attach(network, 2)
    again.introduce(second)
    connect(one, again)
    assert again.send(1, ReadIndexRequest(9))
    wait_until(lambda: one.wait(0.01) or received.extend(one.receive()) or len(received) == 6)  # type: ignore[func-returns-value]
    assert received[-1] == (2, second, ReadIndexRequest(9))


def test_a_message_before_an_introduction_ends_the_connection(
    attach: Callable[..., TcpEndpoint], caplog: pytest.LogCaptureFixture
) -> None:
    """Nobody could say to which group it belongs. One introduction on another connection does not help."""
    addresses = free_addresses(2)
    with (
        served(attach(TcpNetwork(addresses, secret=SECRET), 1)) as received,
        HandmadePeer(addresses[1], 2, 1) as introduced,
        HandmadePeer(addresses[1], 2, 1) as peer,
    ):
        introduced.say_hello()
        introduced.prove()
        peer.say_hello()
        peer.prove(origin=None)
        peer.sock.sendall(peer.seal(encoder.encode(ReadIndexRequest(1))))
        assert is_over(peer.sock)
    assert received == []
    assert "a message before its sender has introduced itself" in caplog.text


@pytest.mark.parametrize(
    "origin",
    [
        b"",
        b"\xc1",
        msgspec.msgpack.encode([b"g", b"d", "one", 1]),
        msgspec.msgpack.encode([b"g" * 16]),
        b"\x91" * 99999,
    ],
    ids=["nothing", "no msgpack", "a word for a number", "too short", "nested"],
)
def test_an_introduction_that_is_none_ends_the_connection(
    attach: Callable[..., TcpEndpoint], caplog: pytest.LogCaptureFixture, origin: bytes
) -> None:
    """And nothing else."""
    addresses = free_addresses(2)
    endpoint = attach(TcpNetwork(addresses, secret=SECRET), 1)
    with served(endpoint), HandmadePeer(addresses[1], 2, 1) as peer:
        peer.say_hello()
        peer.prove()
        peer.sock.sendall(peer.seal(b"\xc1" + origin))
        assert is_over(peer.sock)
        wait_until(lambda: not endpoint.connected())
    assert "not a message" in caplog.text


@pytest.mark.parametrize("version", [b"ondisk-5", b"ondisk-9", b"ondisk-\n", b"ondisk-\xff"])
def test_another_version_of_the_protocol_is_refused_with_what_to_do(
    attach: Callable[..., TcpEndpoint], caplog: pytest.LogCaptureFixture, version: bytes
) -> None:
    """So that nobody looks for a wrong secret amid an upgrade. And no byte of it begins a new line."""
    addresses = free_addresses(2)
    with served(attach(TcpNetwork(addresses, secret=SECRET), 1)), HandmadePeer(addresses[1], 2, 1) as peer:
        peer.sock.sendall(version + peer.hello[8:])
        assert is_over(peer.sock)
    shown = version.decode("latin-1").encode("unicode_escape").decode()
    assert f"it speaks {shown}, and this side ondisk-6: stop all replicas, install" in caplog.text


# Configuration


def test_beyond_loopback_a_secret_is_required() -> None:
    """Without one anybody on the network could write."""
    with pytest.raises(ConfigurationError, match=r"beyond loopback: a shared secret is required"):
        TcpNetwork({1: ("127.0.0.1", 1), 2: ("192.0.2.7", 2)})
    TcpNetwork({1: ("127.0.0.1", 1), 2: ("192.0.2.7", 2)}, secret=SECRET)
    with pytest.raises(ConfigurationError, match="at least 16 bytes"):
        TcpNetwork({1: ("127.0.0.1", 1)}, secret=b"short")
    with pytest.raises(ConfigurationError, match="same address"):
        TcpNetwork({1: ("127.0.0.1", 1), 2: ("127.0.0.1", 1)})


def test_only_the_named_interface_is_listened_on(attach: Callable[..., TcpEndpoint]) -> None:
    """Loopback means loopback."""
    addresses = free_addresses(1)
    endpoint = attach(TcpNetwork(addresses), 1)
    assert endpoint._listener.getsockname()[0] == "127.0.0.1"


def test_a_port_in_use_fails_at_once_and_names_it(attach: Callable[..., TcpEndpoint]) -> None:
    """With the address, and the process that holds it."""
    addresses = free_addresses(1)
    with socket.create_server(addresses[1]):
        host, port = addresses[1]
        with pytest.raises(PortInUse, match=rf"{host}:{port}.*held by this process \({os.getpid()}\)"):
            attach(TcpNetwork(addresses), 1)


@pytest.mark.parametrize("text", ["", "localhost", ":1", "h:", "h:0", "h:65536", "h:x", "h:-1"])
def test_what_is_not_an_address_is_refused(text: str) -> None:
    """With the text that was given."""
    with pytest.raises(ConfigurationError, match="is not an address like localhost:63001"):
        parse_address(text)


@pytest.mark.parametrize(
    ("text", "address"),
    [
        ("localhost:63001", ("localhost", 63001)),
        ("[::1]:7", ("::1", 7)),
        (" 10.0.0.1:65535 ", ("10.0.0.1", 65535)),
    ],
)
def test_an_address_is_host_and_port(text: str, address: tuple[str, int]) -> None:
    """Names, IPv4 and IPv6."""
    assert parse_address(text) == address


def test_who_hangs_up_without_a_word_may_be_another_version(
    attach: Callable[..., TcpEndpoint], caplog: pytest.LogCaptureFixture
) -> None:
    """As one does that does not know how this version begins. Once is no reason to say so."""
    addresses = free_addresses(2)
    with socket.create_server(addresses[1]) as older:
        endpoint = attach(TcpNetwork(addresses), 2)
        with served(endpoint):
            for call in range(6):
                sock, _ = older.accept()
                sock.recv(56, socket.MSG_WAITALL)
                sock.close()
                if call == 0:
                    assert caplog.text == ""
            wait_until(lambda: "another version of ondisk" in caplog.text)
