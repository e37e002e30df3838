"""Endpoints over TCP, served by hand, and a peer that speaks the protocol by itself."""

from __future__ import annotations

import contextlib
import hashlib
import hmac
import os
import socket
import struct
import threading
from collections.abc import Callable, Iterator

import msgspec
import pytest

from ondisk.net.tcp import TcpEndpoint, TcpNetwork
from ondisk.raft.messages import (
    Message,
    Origin,
)
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


class HandmadePeer:
    """Calls a port and speaks the protocol by hand, as the head of ``net/channel.py`` describes it."""

    def __init__(
        self, address: tuple[str, int], sender: int, receiver: int, secret: bytes = SECRET, source: str = ""
    ) -> None:
        self.sock = socket.create_connection(address, 20, (source, 0) if source else None)
        self.ids = sender, receiver
        self.secret = secret
        self.hello = struct.pack(">8sQQ32s", b"ondisk-6", sender, receiver, os.urandom(32))
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
