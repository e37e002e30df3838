"""TCP without the secret: what is sent is dropped, logged, and changes nothing."""

from __future__ import annotations

import contextlib
import logging
import os
import pickle
import socket
import struct
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from ondisk import Cluster
from ondisk.net import channel, connection, tcp
from ondisk.net.places import MAX_UNAUTHENTICATED
from ondisk.net.tcp import TcpEndpoint, TcpNetwork
from ondisk.raft.messages import (
    ReadIndexRequest,
    encoder,
)
from tests.tcp import SECRET, HandmadePeer, attach, connect, free_addresses, is_over, serve, served
from tests.waiting import wait_until

__all__ = ["attach"]  # fixtures


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
        endpoint._log.outside(f"10.0.{number % 256}.{number // 256}", "no", "dropped")
    assert len(caplog.records) == MAX_UNAUTHENTICATED
    for _ in range(2):
        endpoint._log.own("", "has trouble of its own")
    assert len(caplog.records) == MAX_UNAUTHENTICATED + 1  # which no crowd keeps out of the log


def test_a_stranger_learns_nothing_and_no_decoder_sees_what_it_sends(
    attach: Callable[..., TcpEndpoint], monkeypatch: pytest.MonkeyPatch
) -> None:
    """No byte before a hello, a nonce after it, no proof before the other's; at most 56 bytes are held."""
    addresses = free_addresses(2)
    endpoint = attach(TcpNetwork(addresses, secret=SECRET), 1)
    monkeypatch.setattr(channel, "decoder", None)
    with served(endpoint), HandmadePeer(addresses[1], 2, 1) as stranger:
        stranger.sock.sendall(stranger.hello[:55])
        stranger.sock.settimeout(0.3)
        with pytest.raises(TimeoutError):
            stranger.sock.recv(1)
        stranger.sock.settimeout(20)
        stranger.sock.sendall(stranger.hello[55:] + bytes(31))
        stranger.answer = stranger.read(56)
        assert stranger.answer[:24] == struct.pack(">8sQQ", b"ondisk-6", 1, 2)
        stranger.sock.settimeout(0.3)
        with pytest.raises(TimeoutError):
            stranger.sock.recv(1)
        (held,) = endpoint._unauthenticated
        assert len(held.channel._received) == 31
        stranger.sock.settimeout(20)
        with contextlib.suppress(OSError):  # it may be over before all of it has left
            stranger.sock.sendall(bytes(1 << 20))
        assert is_over(stranger.sock)
        assert len(held.channel._received) < 56


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
            frames = genuine.seal(encoder.encode(ReadIndexRequest(7)))
            genuine.sock.sendall(frames)
            wait_until(lambda: received == [(2, ReadIndexRequest(7))])
            recorded = genuine.hello + genuine.derive(b"proof", 2) + frames
        wait_until(lambda: not endpoint.connected())
        with socket.create_connection(addresses[1], 20) as replay:
            replay.sendall(recorded)
            assert is_over(replay)
    assert received == [(2, ReadIndexRequest(7))]
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
        wait_until(lambda: serve(two) or two._unauthenticated)
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
        assert {each.peer for each in one._unauthenticated} <= {None}


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
        payloads = [encoder.encode(ReadIndexRequest(n)) for n in (1, 2)]
        one, two = map(peer.seal, payloads)
        peer.sent = 0
        back = peer.seal(payloads[0], sender=1)
        peer.sock.sendall(damage(one, two, former.seal(payloads[0]), back))
        peer.sock.shutdown(socket.SHUT_WR)
        assert is_over(peer.sock)
        wait_until(lambda: not endpoint.connected())
    assert received in ([], [(2, ReadIndexRequest(1))][:at_most])


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
                peer.sock.sendall(peer.seal(encoder.encode(ReadIndexRequest(7)) if good else payload))
                if not good:
                    assert is_over(peer.sock)
                wait_until(lambda good=good: len(received) == good)


def test_strangers_are_few_and_keep_no_member_out(
    attach: Callable[..., TcpEndpoint], monkeypatch: pytest.MonkeyPatch
) -> None:
    """However many call and then say nothing: the newest is let in, and the oldest has to go."""
    monkeypatch.setattr(connection, "HANDSHAKE_SECONDS", 600.0)
    addresses = free_addresses(2)
    network = TcpNetwork(addresses, secret=SECRET)
    one = attach(network, 1)
    with contextlib.ExitStack() as strangers:
        for _ in range(MAX_UNAUTHENTICATED + 60):
            strangers.enter_context(socket.create_connection(addresses[1]))
            serve(one)
            assert len(one._unauthenticated) <= MAX_UNAUTHENTICATED
        assert len(one._unauthenticated) == MAX_UNAUTHENTICATED
        connect(one, attach(network, 2))


@pytest.mark.skipif(sys.platform != "linux", reason="elsewhere only 127.0.0.1 is loopback")
def test_a_host_with_many_strangers_pushes_out_its_own(
    attach: Callable[..., TcpEndpoint], monkeypatch: pytest.MonkeyPatch
) -> None:
    """So a member far away has all the time that the handshake needs."""
    monkeypatch.setattr(connection, "HANDSHAKE_SECONDS", 600.0)
    addresses = free_addresses(2)
    endpoint = attach(TcpNetwork(addresses, secret=SECRET), 1)
    with (
        served(endpoint),
        contextlib.ExitStack() as strangers,
        HandmadePeer(addresses[1], 2, 1, source="127.0.0.2") as slow,
    ):
        slow.say_hello()
        for _ in range(2 * MAX_UNAUTHENTICATED):
            strangers.enter_context(socket.create_connection(addresses[1]))
        wait_until(lambda: len(endpoint._unauthenticated) == MAX_UNAUTHENTICATED)
        slow.prove()


def test_a_handshake_that_drips_is_over_in_time(
    attach: Callable[..., TcpEndpoint], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A byte now and then does not buy more of it."""
    monkeypatch.setattr(connection, "HANDSHAKE_SECONDS", 0.5)
    addresses = free_addresses(2)
    endpoint = attach(TcpNetwork(addresses, secret=SECRET), 1)
    with served(endpoint), HandmadePeer(addresses[1], 2, 1) as drip:
        begun = time.monotonic()
        wait_until(lambda: endpoint._unauthenticated)
        with contextlib.suppress(OSError):
            for byte in drip.hello:
                drip.sock.sendall(bytes([byte]))
                wait_until(lambda: True if not endpoint._unauthenticated else (time.sleep(0.05) or True))
        assert time.monotonic() - begun < 2.0
        assert not endpoint._unauthenticated


def test_a_caller_that_is_gone_before_it_was_answered_harms_nobody(
    attach: Callable[..., TcpEndpoint], monkeypatch: pytest.MonkeyPatch
) -> None:
    """On macOS the options of its socket cannot be set any more."""
    addresses = free_addresses(2)
    network = TcpNetwork(addresses, secret=SECRET)
    one = attach(network, 1)
    with monkeypatch.context() as gone:
        gone.setattr(tcp, "notice_silence", _invalid_argument)
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
