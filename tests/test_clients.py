"""The places of clients at an endpoint: so many, so much at once, and never one of a member."""

from __future__ import annotations

import contextlib
import logging
import pickle
import socket
import struct
from collections.abc import Callable, Iterator

import msgspec
import pytest

from ondisk import connect
from ondisk.net import client_messages, clients, tcp
from ondisk.net.addresses import format_address
from ondisk.net.client_messages import (
    MAX_REQUEST_BYTES,
    Command,
    Failed,
    Found,
    Look,
    Request,
    Response,
    response_decoder,
)
from ondisk.net.clients import MAX_UNDER_WAY
from ondisk.net.tcp import TcpEndpoint, TcpNetwork
from ondisk.raft.messages import ReadIndexRequest, encoder
from tests.tcp import SECRET, HandmadePeer, attach, free_addresses, is_over, serve, served
from tests.waiting import wait_until

__all__ = ["attach"]  # fixtures

Attach = Callable[..., TcpEndpoint]


@contextlib.contextmanager
def called(address: tuple[str, int]) -> Iterator[HandmadePeer]:
    """A client that has proved that it knows the secret."""
    with HandmadePeer(address, 0, 0) as peer:
        peer.say_hello()
        peer.ids = 0, struct.unpack_from(">8sQ", peer.answer)[1]
        peer.prove(origin=None)
        yield peer


def ask(peer: HandmadePeer, number: int, body: client_messages.Body) -> None:
    peer.sock.sendall(peer.seal(client_messages.encoder.encode(Request(number, 1000, body))))


def answer_of(peer: HandmadePeer) -> Response:
    (length,) = struct.unpack(">I", peer.read(4))
    return response_decoder.decode(peer.read(length + 16)[:length])


@pytest.fixture
def address() -> tuple[str, int]:
    return free_addresses(1)[1]


@pytest.fixture
def endpoint(attach: Attach, address: tuple[str, int]) -> TcpEndpoint:
    return attach(TcpNetwork({1: address}, secret=SECRET), 1)


def test_a_client_asks_and_is_answered_and_is_no_member(
    endpoint: TcpEndpoint, address: tuple[str, int]
) -> None:
    with contextlib.ExitStack() as opened:
        with served(endpoint):
            peer = opened.enter_context(called(address))
        ask(peer, 7, Look("status"))
        endpoint.wait(10.0)
        (call,) = endpoint.calls()
        assert call.request == Request(7, 1000, Look("status"))
        endpoint.answer(call, Response(7, 1, Found(b"found")))
        endpoint.flush_answers()
        assert answer_of(peer) == Response(7, 1, Found(b"found"))
        assert endpoint.connected() == frozenset() and endpoint.receive() == []
        assert endpoint.send(0, ReadIndexRequest(1)) is False


@pytest.mark.parametrize(
    "payload",
    [
        pytest.param(pickle.dumps(Exception("x")), id="pickle"),
        pytest.param(encoder.encode(ReadIndexRequest(1)), id="message of a member"),
        pytest.param(b"\xc1" + msgspec.msgpack.encode((b"g" * 16, b"d" * 16, 1, 1, ())), id="origin"),
        pytest.param(msgspec.msgpack.encode([1, 1000, ["command", "text"]]), id="text for bytes"),
        pytest.param(msgspec.msgpack.encode([1, 1000, ["look", "everything"]]), id="unknown look"),
        pytest.param(msgspec.msgpack.encode([-1, 1000, ["look", "status"]]), id="negative number"),
    ],
)
def test_what_is_no_request_ends_the_connection(
    endpoint: TcpEndpoint,
    address: tuple[str, int],
    caplog: pytest.LogCaptureFixture,
    payload: bytes,
) -> None:
    with served(endpoint) as received, called(address) as peer:
        peer.sock.sendall(peer.seal(payload))
        assert is_over(peer.sock)
    assert "not a request" in caplog.text and received == [] and endpoint.calls() == []


def test_a_frame_larger_than_a_request_is_not_waited_for(
    endpoint: TcpEndpoint, address: tuple[str, int], caplog: pytest.LogCaptureFixture
) -> None:
    """Members send larger ones; a client has no use for that."""
    with served(endpoint), called(address) as peer:
        peer.sock.sendall(struct.pack(">I", MAX_REQUEST_BYTES + 1))
        assert is_over(peer.sock)
    assert f"at most {MAX_REQUEST_BYTES:,} are allowed" in caplog.text


def test_who_does_not_know_the_secret_asks_nothing(
    endpoint: TcpEndpoint, address: tuple[str, int], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(clients, "request_decoder", None)
    with served(endpoint), HandmadePeer(address, 0, 0, secret=SECRET + b"?") as peer:
        peer.say_hello()
        peer.ids = 0, 1
        peer.sock.sendall(peer.derive(b"proof", 0))
        assert is_over(peer.sock)
    assert not endpoint.has_clients


def test_there_are_so_many_clients_and_a_member_finds_its_place(
    attach: Attach, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(clients, "MAX_CLIENTS", 3)
    addresses = free_addresses(2)
    network = TcpNetwork(addresses, secret=SECRET)
    endpoint = attach(network, 1)
    with contextlib.ExitStack() as opened, served(endpoint):
        peers = [opened.enter_context(called(addresses[1])) for _ in range(3)]
        with called(addresses[1]) as one_more:
            refused = answer_of(one_more).body
            assert isinstance(refused, Failed) and refused.error == "ReplicaStopped"
            assert is_over(one_more.sock)
        two = attach(network, 2)
        wait_until(lambda: serve(two) or (two.connected() == {1} and endpoint.connected() == {2}))
        peers[0].sock.close()
        wait_until(lambda: len(endpoint._clients) == 2)
        with called(addresses[1]) as again:
            ask(again, 1, Look("status"))
            wait_until(lambda: endpoint._clients.arrived)


def test_who_asks_without_end_is_told_to_wait_and_holds_up_nobody(
    endpoint: TcpEndpoint, address: tuple[str, int]
) -> None:
    """What it has sent stays in its own kernel; another client is answered meanwhile."""
    with contextlib.ExitStack() as opened:
        with served(endpoint):
            flood, other = (opened.enter_context(called(address)) for _ in range(2))
        sent, before = Flood(flood), -1
        while sent.more() > before:
            before = sent.requests
            endpoint._serve(0.0)
        arrived = len(endpoint._clients.arrived)
        assert MAX_UNDER_WAY <= arrived <= MAX_UNDER_WAY + 1000  # what one read brings beyond
        assert sent.requests > 2 * arrived
        ask(other, 1, Look("status"))
        endpoint._serve(1.0)
        assert [call.request.body for call in endpoint._clients.arrived[arrived:]] == [Look("status")]
        for call in endpoint.calls():
            endpoint.answer(call, Response(call.request.number, 1, Found(b"")))
        endpoint.flush_answers()
        endpoint.wait(1.0)
        assert answer_of(other).body == Found(b"")
        assert endpoint._clients.arrived  # it is read from again


class Flood:
    """Sends as many requests as its kernel takes."""

    def __init__(self, peer: HandmadePeer) -> None:
        self.requests = 0
        self._peer = peer
        self._frames = bytearray()
        peer.sock.setblocking(False)

    def more(self) -> int:
        """Send until nothing goes; return how many requests were begun by now."""
        while True:
            while len(self._frames) < 1 << 16:
                self.requests += 1
                request = Request(self.requests, 1000, Command(b"c" * 100))
                self._frames += self._peer.seal(client_messages.encoder.encode(request))
            try:
                del self._frames[: self._peer.sock.send(self._frames)]
            except BlockingIOError:
                return self.requests


def test_a_replica_that_answers_as_a_client_is_not_believed(address: tuple[str, int]) -> None:
    """A mirror: it proves nothing but what the client itself has said."""
    with socket.create_server(address) as mirror:
        mirror.settimeout(20)
        with connect(format_address(address), secret=SECRET) as client:
            reflected, _ = mirror.accept()
            with reflected:
                reflected.settimeout(20)
                reflected.sendall(reflected.recv(56))
                assert is_over(reflected)
            why = "who answered is a client, and no replica"
            wait_until(lambda: list(client.unreachable().values()) == [why])


def test_the_addresses_of_clients_fill_no_log(
    endpoint: TcpEndpoint, address: tuple[str, int], caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.WARNING, tcp.__name__), served(endpoint):
        for _ in range(20):
            with called(address) as peer:
                peer.sock.sendall(peer.seal(b"nonsense"))
                assert is_over(peer.sock)
    assert len(caplog.records) == 1
