"""TCP: what strangers send is dropped, logged, and changes nothing; who lacks the secret stays outside."""

from __future__ import annotations

import logging
import os
import pickle
import socket
import struct
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from ondisk import Cluster
from ondisk.errors import ConfigurationError, PortInUse
from ondisk.messages import AppendEntries, AskReadIndex, Message
from ondisk.raftlog import LogEntry
from ondisk.tcp import (
    MAX_FRAME_BYTES,
    MAX_STRANGERS,
    MAX_UNSENT_BYTES,
    TcpEndpoint,
    TcpNetwork,
    parse_address,
)
from tests.waiting import wait_until

SECRET = b"a secret of sixteen bytes or more"


def free_addresses(count: int) -> dict[int, tuple[str, int]]:
    sockets = [socket.create_server(("127.0.0.1", 0)) for _ in range(count)]
    addresses = {number: sock.getsockname() for number, sock in enumerate(sockets, 1)}
    for sock in sockets:
        sock.close()
    return addresses


@pytest.fixture
def attach() -> Iterator[Callable[..., TcpEndpoint]]:
    """Attach endpoints that are closed at the end."""
    endpoints: list[TcpEndpoint] = []

    def attach(network: TcpNetwork, member: int) -> TcpEndpoint:
        endpoints.append(network.attach(member))
        return endpoints[-1]

    yield attach
    for endpoint in endpoints:
        endpoint.close()


def serve(*endpoints: TcpEndpoint) -> list[tuple[int, Message]]:
    """Let all endpoints work a little; return what the first one received."""
    for endpoint in endpoints[1:]:
        endpoint.wait(0.005)
    endpoints[0].wait(0.005)
    return endpoints[0].receive()


def connect(*endpoints: TcpEndpoint) -> None:
    wait_until(lambda: serve(*endpoints) or all(len(e.connected()) == len(endpoints) - 1 for e in endpoints))


# Peers


def test_messages_arrive_whole_and_in_order_in_both_directions(attach: Callable[..., TcpEndpoint]) -> None:
    """Large and small ones, many at once."""
    network = TcpNetwork(free_addresses(2), secret=SECRET)
    one, two = attach(network, 1), attach(network, 2)
    connect(one, two)
    entries = [LogEntry(n, 1, os.urandom(1000 * n)) for n in range(1, 40)]
    big = AppendEntries(1, 0, 0, entries, 0, 0)
    expected = [big if n % 50 == 0 else AskReadIndex(n) for n in range(500)]
    received: list[Message] = []
    for item in expected:
        assert two.send(1, item)
        received += [got for _, got in serve(one, two)]
    wait_until(lambda: received.extend(got for _, got in serve(one, two)) or len(received) == 500)
    assert received == expected
    assert one.send(2, AskReadIndex(7))
    got: list[tuple[int, Message]] = []
    wait_until(lambda: got.extend(serve(two, one)) or got)
    assert got == [(1, AskReadIndex(7))]


def test_a_peer_that_comes_back_is_connected_again(attach: Callable[..., TcpEndpoint]) -> None:
    """Whichever side went away."""
    network = TcpNetwork(free_addresses(2))
    one, two = attach(network, 1), attach(network, 2)
    connect(one, two)
    one.close()
    wait_until(lambda: serve(two) or not two.connected())
    assert two.send(1, AskReadIndex(1)) is False
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
    connection = one._connections[2]
    assert connection.unsent_bytes < MAX_UNSENT_BYTES + MAX_FRAME_BYTES


def test_wake_ends_a_wait_from_another_thread(attach: Callable[..., TcpEndpoint]) -> None:
    """Also if it comes before the wait; and a closed endpoint can be woken without harm."""
    endpoint = attach(TcpNetwork(free_addresses(1)), 1)
    endpoint.wake()
    endpoint.wait(60.0)
    endpoint.close()
    endpoint.close()
    endpoint.wake()


# Strangers


class Bomb:
    """Unpickling this creates a file."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[object, ...]:
        return Path.touch, (self.path,)


def frame(payload: bytes) -> bytes:
    return struct.pack(">I", len(payload)) + payload + bytes(16)


@pytest.mark.parametrize(
    "attack",
    [
        pytest.param(lambda bomb: b"GET / HTTP/1.1\r\nHost: x\r\n\r\n", id="another protocol"),
        pytest.param(lambda bomb: os.urandom(4096), id="random bytes"),
        pytest.param(lambda bomb: b"\x00", id="one byte"),
        pytest.param(lambda bomb: frame(b"x" * 64)[:40], id="a truncated frame"),
        pytest.param(lambda bomb: struct.pack(">I", 0xFFFFFFFF), id="a giant length"),
        pytest.param(lambda bomb: struct.pack("<i", -1), id="a negative length"),
        pytest.param(lambda bomb: frame(pickle.dumps(bomb)), id="a pickle bomb in a frame"),
        pytest.param(lambda bomb: struct.pack("i", 60) + pickle.dumps(bomb), id="as PySyncObj frames it"),
    ],
)
def test_what_a_stranger_sends_is_dropped_and_the_replicas_go_on(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, attack: Callable[[Bomb], bytes]
) -> None:
    """Sent to the port of every replica of a live cluster, several times."""
    addresses = free_addresses(3)
    fuse = tmp_path / "the bomb went off"
    with Cluster(tmp_path / "data", network=TcpNetwork(addresses, secret=SECRET)) as cluster:
        cluster.put("before", "v", timeout=10)
        wait_until(lambda: len({status.applied_index for status in cluster.status().values()}) == 1)
        terms = {status.term for status in cluster.status().values()}
        strangers = []
        with caplog.at_level(logging.WARNING, "ondisk.tcp"):
            for address in addresses.values():
                for _ in range(3):
                    stranger = socket.create_connection(address)
                    strangers.append(stranger)
                    stranger.sendall(attack(Bomb(fuse)))
                    stranger.shutdown(socket.SHUT_WR)
            cluster.put("after", "v", timeout=10)
            for stranger in strangers:
                stranger.settimeout(20)
                while stranger.recv(4096):  # the hello, then the end
                    pass
                stranger.close()
        assert [cluster.get("after", via=member) for member in (1, 2, 3)] == [b"v"] * 3
        assert {status.term for status in cluster.status().values()} == terms
    assert not fuse.exists()


def test_a_frame_that_breaks_the_rules_is_logged_with_its_sender(
    attach: Callable[..., TcpEndpoint], caplog: pytest.LogCaptureFixture
) -> None:
    """So that an operator can see who it was, and what."""
    addresses = free_addresses(1)
    endpoint = attach(TcpNetwork(addresses), 1)
    with socket.create_connection(addresses[1]) as stranger:
        stranger.sendall(struct.pack(">I", 1 << 31))
        wait_until(lambda: serve(endpoint) or "2,147,483,648 bytes" in caplog.text)
        assert str(stranger.getsockname()[1]) in caplog.text


def test_without_the_secret_nobody_joins(attach: Callable[..., TcpEndpoint]) -> None:
    """In either role: as the one who calls, and as the one who is called."""
    addresses = free_addresses(3)
    inside, outside = TcpNetwork(addresses, secret=SECRET), TcpNetwork(addresses, secret=SECRET + b"?")
    two = attach(inside, 2)
    callers = attach(outside, 3)
    called = attach(outside, 1)
    for _ in range(200):
        serve(two, callers, called)
    assert (two.connected(), callers.connected() & {2}, called.connected() & {2}) == (
        frozenset(),
        frozenset(),
        frozenset(),
    )


def test_a_proof_cannot_be_replayed_on_another_connection(attach: Callable[..., TcpEndpoint]) -> None:
    """What a member once said proves nothing to a fresh nonce."""
    addresses = free_addresses(2)
    network = TcpNetwork(addresses, secret=SECRET)
    with socket.create_server(addresses[1]) as spy:
        two = attach(network, 2)
        spy.settimeout(20)
        wait_until(lambda: serve(two) or two._strangers)
        overheard, _ = spy.accept()
    one = attach(network, 1)
    with overheard, socket.create_connection(addresses[1]) as replay:
        overheard.settimeout(20)
        replay.sendall(overheard.recv(4096))
        for _ in range(50):
            serve(one, two)
        wait_until(lambda: serve(one, two) or one.connected() == {2})
        genuine = one._connections[2].sock.getpeername()
        assert genuine != replay.getsockname()
        assert {connection.peer for connection in one._strangers} <= {None}


def test_a_frame_cannot_be_tampered_with_repeated_or_left_out(attach: Callable[..., TcpEndpoint]) -> None:
    """Each frame is sealed with a key and a counter of its own connection."""
    for damage in ("flip", "repeat", "omit"):
        addresses = free_addresses(2)
        network = TcpNetwork(addresses, secret=SECRET)
        one, two = attach(network, 1), attach(network, 2)
        connect(one, two)
        connection = two._connections[1]
        connection._queue(b"\x92\xaeask_read_index\x01")
        connection._queue(b"\x92\xaeask_read_index\x02")
        first, second = connection.unsent
        connection.unsent.clear()
        frames = {
            "flip": [first[:-17] + b"\x07" + first[-16:]],
            "repeat": [first, first],
            "omit": [second],
        }[damage]
        connection.unsent.extend(frames)
        received: list[tuple[int, Message]] = []
        two._flush(connection)
        wait_until(
            lambda one=one, two=two, received=received: received.extend(one.receive()) or not one._connections
        )
        assert received in ([], [(2, AskReadIndex(1))][: damage == "repeat"])
        one.close()
        two.close()


def test_connections_that_never_finish_their_handshake_are_limited(
    attach: Callable[..., TcpEndpoint],
) -> None:
    """Slow strangers cannot use up memory or files, and members still get in."""
    addresses = free_addresses(2)
    network = TcpNetwork(addresses)
    one = attach(network, 1)
    strangers = [socket.create_connection(addresses[1]) for _ in range(MAX_STRANGERS + 20)]
    wait_until(lambda: serve(one) or len(one._strangers) == MAX_STRANGERS)
    for _ in range(20):
        serve(one)
    assert len(one._strangers) == MAX_STRANGERS
    wait_until(lambda: serve(one) or not one._strangers)  # their time is up
    two = attach(network, 2)
    connect(one, two)
    for stranger in strangers:
        stranger.close()


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.binary(max_size=300))
def test_no_bytes_at_all_make_an_endpoint_raise(data: bytes) -> None:
    """Whatever arrives before the handshake, the endpoint stays and nobody is connected."""
    addresses = free_addresses(1) | {2: ("127.0.0.1", 1)}
    endpoint = TcpNetwork(addresses).attach(1)
    try:
        with socket.create_connection(addresses[1]) as stranger:
            stranger.sendall(data)
            for _ in range(5):
                serve(endpoint)
        assert not endpoint.connected()
    finally:
        endpoint.close()


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
