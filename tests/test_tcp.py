"""TCP: what strangers send is dropped, logged, and changes nothing; who lacks the secret stays outside."""

from __future__ import annotations

import contextlib
import hashlib
import hmac
import logging
import os
import pickle
import random
import socket
import struct
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import msgspec
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from ondisk import Cluster
from ondisk.errors import ConfigurationError, PortInUse
from ondisk.net import tcp
from ondisk.net.addresses import parse_address
from ondisk.net.tcp import (
    MAX_FRAME_BYTES,
    MAX_STRANGERS,
    MAX_UNKNOWN_PEERS,
    MAX_UNSENT_BYTES,
    TcpEndpoint,
    TcpNetwork,
)
from ondisk.raft.log import LogEntry
from ondisk.raft.messages import (
    AppendEntries,
    AskReadIndex,
    Message,
    Origin,
    Outcome,
    Outcomes,
    Propose,
    encoder,
)
from ondisk.statemachine import Result
from tests.lengths import short_and_long
from tests.waiting import wait_until

SECRET = b"a secret of sixteen bytes or more"
ORIGIN = Origin(b"g" * 16, b"d" * 16, 1, 1)


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
    return [(sender, message) for sender, _, message in endpoints[0].receive()]


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


def test_what_waits_for_a_slow_peer_is_not_copied_again_and_again(
    attach: Callable[..., TcpEndpoint],
) -> None:
    """Neither the rest of a large frame whenever a little of it has left, nor the queue at every send."""
    endpoint = attach(TcpNetwork(free_addresses(1)), 1)
    connection = tcp._Connection(Drip(512), endpoint, ("", 0), None)  # type: ignore[arg-type]
    begun = time.thread_time()
    connection.send(Propose(1, [bytes(8_000_000)]))
    while connection.unsent_bytes:
        connection.flush()
    large = time.thread_time() - begun
    connection.sock = Drip(0)  # type: ignore[assignment]
    connection.unsent.extend([b"x" * 20] * 400_000)
    begun = time.thread_time()
    for number in range(500):
        assert connection.send(AskReadIndex(number))
        connection.flush()
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
    assert two.send(1, AskReadIndex(7))
    received: list[tuple[int, Message]] = []
    wait_until(lambda: received.extend(serve(one, two)) or received)
    assert received == [(2, AskReadIndex(7))]


@pytest.mark.skipif(not hasattr(socket, "TCP_USER_TIMEOUT"), reason="only Linux gives up by itself")
def test_a_peer_that_takes_nothing_is_given_up(
    attach: Callable[..., TcpEndpoint], monkeypatch: pytest.MonkeyPatch
) -> None:
    """What waits for it is let go, and when it is back it is called anew."""
    monkeypatch.setattr(tcp, "_SILENCE_SECONDS", 1.0)
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
    endpoint.meet({2: text, 3: "127.0.0.1:7"})
    assert endpoint.addresses[3] == ("127.0.0.1", 7) and 2 not in endpoint.addresses
    assert "the address of replica 2" in caplog.text


def test_without_a_secret_nobody_beyond_loopback_is_met(
    attach: Callable[..., TcpEndpoint], caplog: pytest.LogCaptureFixture
) -> None:
    """As at the start: a member that was added later is no exception."""
    addresses = free_addresses(2)
    endpoint = attach(TcpNetwork({2: addresses[2]}), 2)
    endpoint.meet({1: "192.0.2.7:1"})
    assert endpoint.addresses == {2: addresses[2]} and not endpoint._call_at
    assert "replica 1 is beyond loopback: a shared secret is required" in caplog.text


def test_wake_ends_a_wait_from_another_thread(attach: Callable[..., TcpEndpoint]) -> None:
    """Also if it comes before the wait; and a closed endpoint can be woken without harm."""
    endpoint = attach(TcpNetwork(free_addresses(1)), 1)
    endpoint.wake()
    endpoint.wait(60.0)
    endpoint.close()
    endpoint.close()
    endpoint.wake()


# Strangers


class HandmadePeer:
    """Calls a port and speaks the protocol by hand, as the head of ``net/tcp.py`` describes it."""

    def __init__(
        self, address: tuple[str, int], sender: int, receiver: int, secret: bytes = SECRET, source: str = ""
    ) -> None:
        self.sock = socket.create_connection(address, 20, (source, 0) if source else None)
        self.ids = sender, receiver
        self.secret = secret
        self.hello = struct.pack(">8sQQ32s", b"ondisk-3", sender, receiver, os.urandom(32))
        self.answer = b""  # the other side's hello
        self.sent = self.received = 0

    def read(self, size: int) -> bytes:
        data = b""
        while len(data) < size:
            data += (more := self.sock.recv(size - len(data)))
            assert more, f"the end after {len(data)} of {size} bytes"
        return data

    def derive(self, purpose: bytes, sender: int) -> bytes:
        what = struct.pack(">8sQ", purpose, sender) + self.hello + self.answer
        return hmac.digest(self.secret, what, "sha256")

    def say_hello(self) -> None:
        """Exchange hellos. The other endpoint must be served meanwhile, by its own thread."""
        self.sock.sendall(self.hello)
        self.answer = self.read(56)

    def prove(self, origin: Origin | None = ORIGIN) -> None:
        self.sock.sendall(self.derive(b"proof", self.ids[0]))
        assert self.read(32) == self.derive(b"proof", self.ids[1])
        if origin is not None:
            self.introduce(origin)

    def introduce(self, origin: Origin) -> None:
        self.sock.sendall(self.seal(b"\xc1" + msgspec.msgpack.encode(origin)))

    def seal(self, payload: bytes, sender: int | None = None) -> bytes:
        """The next frame."""
        key = self.derive(b"frames", sender or self.ids[0])
        mac = hashlib.blake2b(self.sent.to_bytes(8, "big") + payload, key=key, digest_size=16)
        self.sent += 1
        return struct.pack(">I", len(payload)) + payload + mac.digest()

    def __enter__(self) -> HandmadePeer:
        return self

    def __exit__(self, *_: object) -> None:
        self.sock.close()


@contextlib.contextmanager
def served(*endpoints: TcpEndpoint) -> Iterator[list[tuple[int, Message]]]:
    """Serve endpoints from a thread, as a ``Node`` does; what the first one receives is collected."""
    over = threading.Event()
    received: list[tuple[int, Message]] = []

    def run() -> None:
        while not over.is_set():
            received.extend(serve(*endpoints))

    thread = threading.Thread(target=run)
    thread.start()
    try:
        yield received
    finally:
        over.set()
        thread.join()


def ends(endpoint: TcpEndpoint, peer: int) -> frozenset[object]:
    """Both ends of the connection to a peer."""
    sock = endpoint._connections[peer].sock
    return frozenset({sock.getsockname(), sock.getpeername()})


def is_over(sock: socket.socket) -> bool:
    """Wait until the other side has hung up, politely or not."""
    try:
        while sock.recv(4096):
            pass
    except ConnectionResetError:
        pass
    return True


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
        with caplog.at_level(logging.WARNING, "ondisk.net.tcp"):
            for address in addresses.values():
                for _ in range(3):
                    stranger = socket.create_connection(address)
                    strangers.append(stranger)
                    with contextlib.suppress(OSError):  # it may be over before all of it has left
                        stranger.sendall(attack(Bomb(fuse)))
                        stranger.shutdown(socket.SHUT_WR)
            cluster.put("after", "v", timeout=10)
            for stranger in strangers:
                stranger.settimeout(20)
                assert is_over(stranger)
                stranger.close()
        assert [cluster.get("after", via=member) for member in (1, 2, 3)] == [b"v"] * 3
        assert {status.term for status in cluster.status().values()} == terms
    assert not fuse.exists()


def test_who_breaks_the_rules_is_logged_with_address_and_reason(
    attach: Callable[..., TcpEndpoint], caplog: pytest.LogCaptureFixture
) -> None:
    """So that an operator can see who it was, and what."""
    addresses = free_addresses(2)
    with served(attach(TcpNetwork(addresses, secret=SECRET), 1)):
        with socket.create_connection(addresses[1]) as stranger:
            stranger.sendall(b"GET")
            assert is_over(stranger)
            assert f":{stranger.getsockname()[1]}: what it says is not the beginning" in caplog.text
        with HandmadePeer(addresses[1], 2, 1) as peer:
            peer.say_hello()
            peer.prove()
            peer.sock.sendall(struct.pack(">I", 1 << 31))
            assert is_over(peer.sock)
    assert "a frame of 2,147,483,648 bytes; at most 8,388,608 are allowed" in caplog.text


def test_what_strangers_make_up_cannot_fill_the_log(
    attach: Callable[..., TcpEndpoint], caplog: pytest.LogCaptureFixture
) -> None:
    """One line a minute for each host and reason, whatever the numbers in it; and not for too many hosts."""
    addresses = free_addresses(1)
    endpoint = attach(TcpNetwork(addresses, secret=SECRET), 1)
    with served(endpoint):
        for sender in range(2, 40):
            with HandmadePeer(addresses[1], sender, sender) as peer:
                peer.sock.sendall(peer.hello)
                assert is_over(peer.sock)
    assert len(caplog.records) == 1
    for number in range(1000):
        endpoint._complain((f"10.0.{number % 256}.{number // 256}", 1), tcp._Refused("no"))
    assert len(caplog.records) == MAX_STRANGERS
    for _ in range(2):
        endpoint._warn("", "has trouble of its own")
    assert len(caplog.records) == MAX_STRANGERS + 1  # which no crowd keeps out of the log


def test_a_stranger_learns_nothing_and_no_decoder_sees_what_it_sends(
    attach: Callable[..., TcpEndpoint], monkeypatch: pytest.MonkeyPatch
) -> None:
    """No byte before a hello, a nonce after it, no proof before the other's; at most 56 bytes are held."""
    addresses = free_addresses(2)
    endpoint = attach(TcpNetwork(addresses, secret=SECRET), 1)
    monkeypatch.setattr(tcp, "decoder", None)
    with served(endpoint), HandmadePeer(addresses[1], 2, 1) as stranger:
        stranger.sock.sendall(stranger.hello[:55])
        stranger.sock.settimeout(0.3)
        with pytest.raises(TimeoutError):
            stranger.sock.recv(1)
        stranger.sock.settimeout(20)
        stranger.sock.sendall(stranger.hello[55:] + bytes(31))
        stranger.answer = stranger.read(56)
        assert stranger.answer[:24] == struct.pack(">8sQQ", b"ondisk-3", 1, 2)
        stranger.sock.settimeout(0.3)
        with pytest.raises(TimeoutError):
            stranger.sock.recv(1)
        (held,) = endpoint._strangers
        assert len(held._received) == 31
        stranger.sock.settimeout(20)
        with contextlib.suppress(OSError):  # it may be over before all of it has left
            stranger.sock.sendall(bytes(1 << 20))
        assert is_over(stranger.sock)
        assert len(held._received) < 56


@pytest.mark.parametrize(
    ("sender", "receiver", "reason"),
    [
        (3, 2, "a call for replica 2; this is replica 3"),
        (0, 3, "replica 0 is none"),
        (3, 3, "two have the same number"),
    ],
)
def test_a_call_that_no_member_would_make_is_refused(
    attach: Callable[..., TcpEndpoint],
    caplog: pytest.LogCaptureFixture,
    sender: int,
    receiver: int,
    reason: str,
) -> None:
    """Even from one who knows the secret."""
    addresses = free_addresses(4)
    endpoint = attach(TcpNetwork({3: addresses[3], 2: addresses[2], 4: addresses[4]}, secret=SECRET), 3)
    with served(endpoint), HandmadePeer(addresses[3], sender, receiver) as peer:
        peer.sock.sendall(peer.hello)
        assert is_over(peer.sock)
    assert reason in caplog.text


def test_a_proof_for_one_member_does_not_let_another_in(attach: Callable[..., TcpEndpoint]) -> None:
    """Who says that it is replica 2 must prove that, and not that replica 3 has called."""
    addresses = free_addresses(3)
    endpoint = attach(TcpNetwork(addresses, secret=SECRET), 1)
    with served(endpoint), HandmadePeer(addresses[1], 2, 1) as peer:
        peer.say_hello()
        peer.sock.sendall(peer.derive(b"proof", 3))
        assert is_over(peer.sock)
        assert not endpoint.connected()


def test_who_sends_everything_back_is_not_let_in(
    attach: Callable[..., TcpEndpoint], caplog: pytest.LogCaptureFixture
) -> None:
    """A mirror at a member's address, and one that calls: hellos and proofs say whose they are."""
    addresses = free_addresses(2)
    with (
        socket.create_server(addresses[1]) as mirror,
        served(attach(TcpNetwork(addresses, secret=SECRET), 2)),
    ):
        mirror.settimeout(20)
        called, _ = mirror.accept()
        with called:
            called.settimeout(20)
            called.sendall(called.recv(56))
            assert is_over(called)
    assert "a call for replica 1; this is replica 2" in caplog.text
    endpoint = attach(TcpNetwork(addresses, secret=SECRET), 1)
    with served(endpoint), HandmadePeer(addresses[1], 2, 1) as peer:
        peer.say_hello()
        peer.sock.sendall(peer.answer[:32])  # the nonce and a bit
        assert is_over(peer.sock)
    assert not endpoint.connected()


def test_a_recorded_connection_cannot_be_replayed(attach: Callable[..., TcpEndpoint]) -> None:
    """All that a member said on it, proof and frames, is worth nothing to a fresh nonce."""
    addresses = free_addresses(2)
    endpoint = attach(TcpNetwork(addresses, secret=SECRET), 1)
    with served(endpoint) as received:
        with HandmadePeer(addresses[1], 2, 1) as genuine:
            genuine.say_hello()
            genuine.prove()
            frames = genuine.seal(encoder.encode(AskReadIndex(7)))
            genuine.sock.sendall(frames)
            wait_until(lambda: received == [(2, AskReadIndex(7))])
            recorded = genuine.hello + genuine.derive(b"proof", 2) + frames
        wait_until(lambda: not endpoint.connected())
        with socket.create_connection(addresses[1], 20) as replay:
            replay.sendall(recorded)
            assert is_over(replay)
    assert received == [(2, AskReadIndex(7))]
    assert not endpoint.connected()


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


@pytest.mark.parametrize(
    ("damage", "at_most"),
    [
        pytest.param(lambda one, two, other, back: one[:-17] + b"\x07" + one[-16:], 0, id="a flipped byte"),
        pytest.param(lambda one, two, other, back: one[:-1] + bytes([one[-1] ^ 1]), 0, id="a flipped bit"),
        pytest.param(lambda one, two, other, back: b"\0\0\0\0" + one[-16:], 0, id="nothing left of it"),
        pytest.param(lambda one, two, other, back: one + one, 1, id="twice"),
        pytest.param(lambda one, two, other, back: two, 0, id="the first left out"),
        pytest.param(lambda one, two, other, back: two + one, 0, id="in another order"),
        pytest.param(
            lambda one, two, other, back: one + one[:9] + two, 1, id="a piece of one before another"
        ),
        pytest.param(lambda one, two, other, back: other, 0, id="from another connection"),
        pytest.param(lambda one, two, other, back: back, 0, id="in the other direction"),
    ],
)
def test_a_frame_arrives_once_as_it_was_sealed_in_its_place_or_not_at_all(
    attach: Callable[..., TcpEndpoint], damage: Callable[..., bytes], at_most: int
) -> None:
    """Each frame is sealed with a key and a counter of its own direction of its own connection."""
    addresses = free_addresses(3)
    endpoint = attach(TcpNetwork(addresses, secret=SECRET), 1)
    with (
        served(endpoint) as received,
        HandmadePeer(addresses[1], 2, 1) as peer,
        HandmadePeer(addresses[1], 2, 1) as former,
    ):
        for each in (former, peer):
            each.say_hello()
            each.prove()
        payloads = [encoder.encode(AskReadIndex(n)) for n in (1, 2)]
        one, two = map(peer.seal, payloads)
        peer.sent = 0
        back = peer.seal(payloads[0], sender=1)
        peer.sock.sendall(damage(one, two, former.seal(payloads[0]), back))
        peer.sock.shutdown(socket.SHUT_WR)
        assert is_over(peer.sock)
        wait_until(lambda: not endpoint.connected())
    assert received in ([], [(2, AskReadIndex(1))][:at_most])


@pytest.mark.parametrize(
    "payload",
    [
        pytest.param(b"\x93\xaeask_read_index\x01" + b"\x91" * (1 << 20), id="nested a million times"),
        pytest.param(b"\x93\xaeask_read_index\x01\xdf\xff\xff\xff\xff", id="a giant map to skip"),
        pytest.param(b"\x93\xa7propose\x01\xdd\xff\xff\xff\xff", id="a giant list"),
        pytest.param(b"\x93\xa7propose\x01\x91\xc6\xff\xff\xff\xff", id="giant bytes"),
        pytest.param(b"\x92\xa4\xff\xff\xff\xff\x01", id="not even text"),
        pytest.param(b"\xc1", id="what msgpack never uses"),
        pytest.param(b"", id="nothing"),
        pytest.param(pickle.dumps(print), id="a pickle"),
    ],
)
def test_a_sealed_frame_that_is_no_message_ends_its_connection_and_nothing_else(
    attach: Callable[..., TcpEndpoint], payload: bytes
) -> None:
    """From one who knows the secret, or where there is none. (An endpoint that raises stops its replica.)"""
    addresses = free_addresses(2)
    endpoint = attach(TcpNetwork(addresses, secret=SECRET), 1)
    with served(endpoint) as received:
        for good in (0, 1):  # and after it another connection does well
            with HandmadePeer(addresses[1], 2, 1) as peer:
                peer.say_hello()
                peer.prove()
                peer.sock.sendall(peer.seal(encoder.encode(AskReadIndex(7)) if good else payload))
                if not good:
                    assert is_over(peer.sock)
                wait_until(lambda good=good: len(received) == good)


def test_strangers_are_few_and_keep_no_member_out(
    attach: Callable[..., TcpEndpoint], monkeypatch: pytest.MonkeyPatch
) -> None:
    """However many call and then say nothing: the newest is let in, and the oldest has to go."""
    monkeypatch.setattr(tcp, "_HANDSHAKE_SECONDS", 600.0)
    addresses = free_addresses(2)
    network = TcpNetwork(addresses, secret=SECRET)
    one = attach(network, 1)
    with contextlib.ExitStack() as strangers:
        for _ in range(MAX_STRANGERS + 60):
            strangers.enter_context(socket.create_connection(addresses[1]))
            serve(one)
            assert len(one._strangers) <= MAX_STRANGERS
        assert len(one._strangers) == MAX_STRANGERS
        connect(one, attach(network, 2))


@pytest.mark.skipif(sys.platform != "linux", reason="elsewhere only 127.0.0.1 is loopback")
def test_a_host_with_many_strangers_pushes_out_its_own(
    attach: Callable[..., TcpEndpoint], monkeypatch: pytest.MonkeyPatch
) -> None:
    """So a member far away has all the time that the handshake needs."""
    monkeypatch.setattr(tcp, "_HANDSHAKE_SECONDS", 600.0)
    addresses = free_addresses(2)
    endpoint = attach(TcpNetwork(addresses, secret=SECRET), 1)
    with (
        served(endpoint),
        contextlib.ExitStack() as strangers,
        HandmadePeer(addresses[1], 2, 1, source="127.0.0.2") as slow,
    ):
        slow.say_hello()
        for _ in range(2 * MAX_STRANGERS):
            strangers.enter_context(socket.create_connection(addresses[1]))
        wait_until(lambda: len(endpoint._strangers) == MAX_STRANGERS)
        slow.prove()


def test_a_handshake_that_drips_is_over_in_time(
    attach: Callable[..., TcpEndpoint], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A byte now and then does not buy more of it."""
    monkeypatch.setattr(tcp, "_HANDSHAKE_SECONDS", 0.5)
    addresses = free_addresses(2)
    endpoint = attach(TcpNetwork(addresses, secret=SECRET), 1)
    with served(endpoint), HandmadePeer(addresses[1], 2, 1) as drip:
        begun = time.monotonic()
        wait_until(lambda: endpoint._strangers)
        with contextlib.suppress(OSError):
            for byte in drip.hello:
                drip.sock.sendall(bytes([byte]))
                wait_until(lambda: True if not endpoint._strangers else (time.sleep(0.05) or True))
        assert time.monotonic() - begun < 2.0
        assert not endpoint._strangers


def test_a_caller_that_is_gone_before_it_was_answered_harms_nobody(
    attach: Callable[..., TcpEndpoint], monkeypatch: pytest.MonkeyPatch
) -> None:
    """On macOS the options of its socket cannot be set any more."""
    addresses = free_addresses(2)
    network = TcpNetwork(addresses, secret=SECRET)
    one = attach(network, 1)
    with monkeypatch.context() as gone:
        gone.setattr(tcp, "_notice_silence", _invalid_argument)
        with served(one), socket.create_connection(addresses[1], 20) as stranger:
            assert is_over(stranger)
    connect(one, attach(network, 2))


def _invalid_argument(sock: socket.socket) -> None:
    raise OSError(22, "Invalid argument")


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
    monkeypatch.setattr(tcp, "_PATIENCE_SECONDS", 0.0)
    rng = random.Random(head_start)
    for _ in range(rounds):
        network = TcpNetwork(free_addresses(2), secret=SECRET)
        with contextlib.closing(network.attach(1)) as one, contextlib.closing(network.attach(2)) as two:
            for endpoint in (one, two):
                endpoint._call_missing(time.monotonic())
            assert one._strangers and two._strangers  # both have called
            order = [one, two] if head_start == 1 else [two, one]
            deadline = time.monotonic() + 20
            while not (one.connected() and two.connected() and not one._strangers and not two._strangers):
                assert time.monotonic() < deadline
                for endpoint in order if head_start else [rng.choice(order)]:
                    endpoint.wait(0.001)
            kept = ends(one, 2)
            assert kept == ends(two, 1)
            assert two._connections[1].calling == 1 and one._connections[2].calling is None
            for _ in range(5):
                assert serve(one, two) == []
            assert ends(one, 2) == kept == ends(two, 1) and not one._strangers and not two._strangers
    assert caplog.records == []


def test_two_that_called_each_other_do_not_part_again(
    attach: Callable[..., TcpEndpoint], caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Longer than any of the times after which one of them would call."""
    monkeypatch.setattr(tcp, "_PATIENCE_SECONDS", 0.0)
    network = TcpNetwork(free_addresses(3), secret=SECRET)
    members = [attach(network, member) for member in (1, 2, 3)]
    connect(*members)
    wait_until(lambda: serve(*members) or not any(member._strangers for member in members))
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
    assert time.monotonic() - begun < tcp._PATIENCE_SECONDS + 3.0


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
            peers[number].sock.sendall(peers[number].seal(encoder.encode(AskReadIndex(number))))
            wait_until(lambda number=number: (number, AskReadIndex(number)) in received)
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
    endpoint.meet({1: elsewhere, 2: elsewhere, 3: "127.0.0.1:1"})
    assert endpoint.addresses == {1: addresses[1], 2: addresses[2], 3: ("127.0.0.1", 1)}
    moved = attach(TcpNetwork({3: addresses[4]}, secret=SECRET), 3)
    endpoint.meet({1: elsewhere, 2: elsewhere, 3: elsewhere})
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
        assert two.send(1, AskReadIndex(number))
    wait_until(lambda: one.wait(0.01) or received.extend(one.receive()) or len(received) == 5)  # type: ignore[func-returns-value]
    assert [(sender, message) for sender, _, message in received] == [
        (2, AskReadIndex(number)) for number in range(5)
    ]
    origins = [origin for _, origin, _ in received]
    assert origins == [first, first, second, second, first]
    assert origins[0] is origins[1] and origins[2] is origins[3]  # so that comparing them costs nothing
    two.close()
    wait_until(lambda: serve(one) or not one.connected())
    again = attach(network, 2)
    again.introduce(second)
    connect(one, again)
    assert again.send(1, AskReadIndex(9))
    wait_until(lambda: one.wait(0.01) or received.extend(one.receive()) or len(received) == 6)  # type: ignore[func-returns-value]
    assert received[-1] == (2, second, AskReadIndex(9))


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
        peer.sock.sendall(peer.seal(encoder.encode(AskReadIndex(1))))
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


@pytest.mark.parametrize("version", [b"ondisk-2", b"ondisk-9"])
def test_another_version_of_the_protocol_is_refused_with_what_to_do(
    attach: Callable[..., TcpEndpoint], caplog: pytest.LogCaptureFixture, version: bytes
) -> None:
    """So that nobody looks for a wrong secret in the middle of an upgrade."""
    addresses = free_addresses(2)
    with served(attach(TcpNetwork(addresses, secret=SECRET), 1)), HandmadePeer(addresses[1], 2, 1) as peer:
        peer.sock.sendall(version + peer.hello[8:])
        assert is_over(peer.sock)
    assert f"it speaks {version.decode()}, and this side ondisk-3: stop all replicas, install" in caplog.text


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
