"""TCP: the same small interface as the network in memory, between processes and machines.

PySyncObj brings a TCP transport, but it unpickles what anybody sends, believes any length, listens on every
interface and buffers without limit. So this is our own, and deliberately plain:

* A frame is a length, a payload and a MAC. Before the handshake a frame may have 128 bytes, afterwards
  8 MB. What does not fit, or does not verify, ends the connection and nothing else.
* Handshake: both sides say who they are and a fresh nonce, then each proves that it knows the shared secret
  for exactly these two nonces. From then on each direction has a key and a counter of its own, so frames
  cannot be forged, replayed, dropped or reordered without notice.
* Messages are decoded by ``messages.py``, type by type. Nothing is ever unpickled.

On loopback the secret may be left out: then any local user can speak to the port. The bytes are not
encrypted: between machines use a private network or a tunnel.

The endpoint has no thread. Its owner calls ``wait``, and sockets are served in there.
"""

from __future__ import annotations

import hashlib
import hmac
import ipaddress
import logging
import os
import selectors
import socket
import threading
import time
from collections import deque
from collections.abc import Mapping

import msgspec
import psutil

from ondisk.disk import describe_process
from ondisk.errors import ConfigurationError, PortInUse
from ondisk.messages import Message, decoder, encoder

Address = tuple[str, int]

MAX_FRAME_BYTES = 8 << 20
MAX_HELLO_BYTES = 128
MAX_UNSENT_BYTES = 16 << 20  # to one peer; what does not fit is lost, and Raft sends it again
MAX_STRANGERS = 64  # connections that have not finished their handshake
_HANDSHAKE_SECONDS = 3.0
_RECONNECT_SECONDS = 0.2
_COMPLAIN_SECONDS = 60.0
_READ_BYTES = 1 << 16  # a larger buffer costs more to make than it saves
_MAC_BYTES = 16
_LENGTH_BYTES = 4

logger = logging.getLogger(__name__)


def parse_address(text: str) -> Address:
    """``host:port`` or ``[::1]:port``. Raises ``ConfigurationError``."""
    host, colon, port = text.strip().rpartition(":")
    if not colon or not host or not port.isdecimal() or not 0 < int(port) < 1 << 16:
        raise ConfigurationError(f"{text!r} is not an address like localhost:63001")
    return host.strip("[]"), int(port)


def _is_loopback(host: str) -> bool:
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


class TcpNetwork:
    """Members and their addresses. Each process attaches one member, or one process several."""

    def __init__(self, addresses: Mapping[int, Address], *, secret: bytes | None = None) -> None:
        """``addresses``: host and port of every member, this one included.

        ``secret`` (at least 16 bytes) must be the same everywhere. It is required as soon as one address is
        not loopback. Raises ``ConfigurationError``.
        """
        if len(set(addresses.values())) != len(addresses):
            raise ConfigurationError("two members have the same address")
        if secret is None:
            for member, (host, _) in addresses.items():
                if not _is_loopback(host):
                    raise ConfigurationError(
                        f"member {member} is at {host}, beyond loopback: a shared secret is required"
                    )
        elif len(secret) < 16:
            raise ConfigurationError("the shared secret needs at least 16 bytes")
        self.addresses = dict(addresses)
        self._secret = secret or b"loopback"

    def attach(self, replica_id: int) -> TcpEndpoint:
        """Listen at this member's address. Raises ``PortInUse`` or ``ConfigurationError``."""
        if replica_id not in self.addresses:
            raise ConfigurationError(
                f"replica {replica_id} has no address; the members are {sorted(self.addresses)}"
            )
        return TcpEndpoint(replica_id, self.addresses, self._secret)


class _Hello(msgspec.Struct, frozen=True, array_like=True, tag="ondisk-1"):
    """Who is calling whom, and a fresh random number."""

    sender: int
    receiver: int | None  # the caller names whom it wants; the called side leaves it open
    nonce: bytes


class _Proof(msgspec.Struct, frozen=True, array_like=True, tag="proof"):
    """Only who knows the secret can say this after these two hellos."""

    proof: bytes


_hello_decoder = msgspec.msgpack.Decoder(_Hello)
_proof_decoder = msgspec.msgpack.Decoder(_Proof)


class _Refused(Exception):
    """The other side broke the protocol; the connection must end."""


class _Connection:
    """One TCP connection: framing, handshake, and buffers with limits."""

    def __init__(self, sock: socket.socket, endpoint: TcpEndpoint, calling: int | None) -> None:
        self.sock = sock
        self.peer: int | None = None  # known, and proved, once the handshake is done
        self.born = time.monotonic()
        self.unsent = deque[bytes]()
        self.unsent_bytes = 0
        self.connecting = calling is not None
        self._endpoint = endpoint
        self._calling = calling
        self._nonce = os.urandom(32)
        self._hello: _Hello | None = None
        self._received = bytearray()
        self._send_key = self._receive_key = b""
        self._sent_frames = self._received_frames = 0
        self._queue(encoder.encode(_Hello(endpoint.id, calling, self._nonce)))

    @property
    def name(self) -> tuple[str, int]:
        try:
            return self.sock.getpeername()[:2]  # type: ignore[no-any-return]
        except OSError:
            return "an address that is gone", 0

    # Out

    def send(self, message: Message) -> bool:
        """Queue a message; ``False`` if there is no room because the other side does not keep up."""
        if self.unsent_bytes >= MAX_UNSENT_BYTES:
            return False
        self._queue(encoder.encode(message))
        return True

    def _queue(self, payload: bytes) -> None:
        mac = self._mac(self._send_key, self._sent_frames, payload)
        self._sent_frames += 1
        frame = len(payload).to_bytes(_LENGTH_BYTES, "big") + payload + mac
        self.unsent.append(frame)
        self.unsent_bytes += len(frame)

    @staticmethod
    def _mac(key: bytes, number: int, payload: bytes) -> bytes:
        mac = hashlib.blake2b(number.to_bytes(8, "big"), key=key, digest_size=_MAC_BYTES)
        mac.update(payload)
        return mac.digest()

    def flush(self) -> None:
        """Write what the socket takes. Raises ``OSError`` if the connection is broken."""
        while self.unsent:
            frames = list(self.unsent)[:64]
            try:
                written = self.sock.sendmsg(frames)
            except (BlockingIOError, InterruptedError):
                return
            self.unsent_bytes -= written
            while written:
                frame = self.unsent.popleft()
                if written < len(frame):
                    self.unsent.appendleft(frame[written:])
                    break
                written -= len(frame)

    # In

    def read(self) -> list[Message]:
        """The messages that have arrived. Raises ``_Refused``, ``EOFError`` or ``OSError``."""
        try:
            data = self.sock.recv(_READ_BYTES)
        except (BlockingIOError, InterruptedError):
            return []
        if not data:
            raise EOFError
        self._received += data
        messages: list[Message] = []
        while (payload := self._next_frame()) is not None:
            try:
                if self.peer is not None:
                    messages.append(decoder.decode(payload))
                elif self._hello is None:
                    self._on_hello(_hello_decoder.decode(payload))
                else:
                    self._on_proof(_proof_decoder.decode(payload))
            except (msgspec.DecodeError, UnicodeDecodeError) as error:
                raise _Refused(f"not a message: {error}") from None
        return messages

    def _next_frame(self) -> bytes | None:
        if len(self._received) < _LENGTH_BYTES:
            return None
        length = int.from_bytes(self._received[:_LENGTH_BYTES], "big")
        limit = MAX_HELLO_BYTES if self.peer is None else MAX_FRAME_BYTES
        if length > limit:
            raise _Refused(f"a frame of {length:,} bytes; at most {limit:,} are allowed")
        end = _LENGTH_BYTES + length + _MAC_BYTES
        if len(self._received) < end:
            return None
        payload = bytes(self._received[_LENGTH_BYTES : _LENGTH_BYTES + length])
        mac = self._mac(self._receive_key, self._received_frames, payload)
        if not hmac.compare_digest(mac, bytes(self._received[end - _MAC_BYTES : end])):
            raise _Refused("a frame that was not sealed with the shared secret, or was tampered with")
        self._received_frames += 1
        del self._received[:end]
        return payload

    def _on_hello(self, hello: _Hello) -> None:
        mine = self._endpoint
        if len(hello.nonce) != len(self._nonce):
            raise _Refused("a hello with a nonce of the wrong length")
        if self._calling is not None and hello.sender != self._calling:
            raise _Refused(f"replica {hello.sender} answered instead of replica {self._calling}")
        if self._calling is None and hello.receiver != mine.id:
            raise _Refused(f"a call for replica {hello.receiver}; this is replica {mine.id}")
        if hello.sender not in mine.addresses or hello.sender == mine.id:
            raise _Refused(f"replica {hello.sender} is not a member")
        self._hello = hello
        self._queue(encoder.encode(_Proof(self._derive(b"proof", mine.id))))

    def _on_proof(self, proof: _Proof) -> None:
        assert self._hello is not None
        peer = self._hello.sender
        if not hmac.compare_digest(proof.proof, self._derive(b"proof", peer)):
            raise _Refused(f"who claims to be replica {peer} does not know the shared secret")
        self._send_key = self._derive(b"frames", self._endpoint.id)
        self._receive_key = self._derive(b"frames", peer)
        self.peer = peer

    def _derive(self, purpose: bytes, sender: int) -> bytes:
        """A key that belongs to this connection, this purpose and what ``sender`` says on it."""
        assert self._hello is not None
        caller_first = self._calling is not None
        nonces = (self._nonce, self._hello.nonce) if caller_first else (self._hello.nonce, self._nonce)
        ids = (self._endpoint.id, self._hello.sender)
        caller, called = ids if caller_first else ids[::-1]
        what = encoder.encode((purpose, sender, caller, called, *nonces))
        return hmac.digest(self._endpoint.secret, what, "sha256")


class TcpEndpoint:
    """One member's listening socket and its connections. Used by one thread, except ``wake``.

    Of two members the one with the higher id calls the other, so that there is one connection for each pair.
    """

    def __init__(self, replica_id: int, addresses: Mapping[int, Address], secret: bytes) -> None:
        self.id = replica_id
        self.addresses = dict(addresses)
        self.secret = secret
        self._inbox: list[tuple[int, Message]] = []
        self._connections: dict[int, _Connection] = {}  # proved peers
        self._strangers: set[_Connection] = set()
        self._call_at = {peer: 0.0 for peer in addresses if peer < replica_id}
        self._complained: dict[tuple[str, str], float] = {}
        self._closed = False
        self._wake_lock = threading.Lock()
        self._awake = False
        self._listener = _listen(addresses[replica_id])
        self._wake_receiver, self._wake_sender = socket.socketpair()
        self._selector = selectors.DefaultSelector()
        for sock in (self._listener, self._wake_receiver):
            sock.setblocking(False)
            self._selector.register(sock, selectors.EVENT_READ)

    def send(self, to: int, message: Message) -> bool:
        """Send at once what the socket takes and queue the rest; ``False`` if not connected."""
        connection = self._connections.get(to)
        if connection is None or not connection.send(message):
            return False
        self._flush(connection)
        return True

    def receive(self) -> list[tuple[int, Message]]:
        """Everything that has arrived."""
        self._serve(0.0)
        inbox, self._inbox = self._inbox, []
        return inbox

    def connected(self) -> frozenset[int]:
        """The members with a proved connection."""
        return frozenset(self._connections)

    def meet(self, addresses: Mapping[int, str]) -> None:
        """Learn where members are that were added to the group."""
        for member, text in addresses.items():
            if member != self.id and self.addresses.get(member) != (address := parse_address(text)):
                self.addresses[member] = address
                if member < self.id:
                    self._call_at[member] = 0.0

    def wait(self, seconds: float) -> None:
        """Serve the sockets until a message arrives, ``wake`` is called, or time is up."""
        deadline = time.monotonic() + seconds
        while not self._inbox and not self._awake:
            left = deadline - time.monotonic()
            if left <= 0:
                break
            changed = self.connected()
            self._serve(min(left, _RECONNECT_SECONDS))
            if self.connected() != changed:
                break
        with self._wake_lock:
            self._awake = False

    def wake(self) -> None:
        """End a wait. From any thread."""
        with self._wake_lock:
            if not self._awake and not self._closed:
                self._awake = True
                self._wake_sender.send(b"w")

    def close(self) -> None:
        """Close every socket. A second call does nothing."""
        with self._wake_lock:
            if self._closed:
                return
            self._closed = True
        for connection in (*self._connections.values(), *self._strangers):
            connection.sock.close()
        self._connections, self._strangers = {}, set()
        self._selector.close()
        for sock in (self._listener, self._wake_receiver, self._wake_sender):
            sock.close()

    # Inside

    def _serve(self, seconds: float) -> None:
        if self._closed:
            return
        now = time.monotonic()
        self._call_missing(now)
        for key, events in self._selector.select(seconds):
            if key.fileobj is self._listener:
                self._accept()
            elif key.fileobj is self._wake_receiver:
                self._wake_receiver.recv(64)
            else:
                self._serve_connection(key.data, events)
        for connection in [c for c in self._strangers if c.born + _HANDSHAKE_SECONDS < now]:
            self._drop(connection, "it did not finish the handshake in time")

    def _serve_connection(self, connection: _Connection, events: int) -> None:
        if connection.sock.fileno() < 0:
            return  # dropped while this round of events was served
        if connection.connecting:
            connection.connecting = False
            if connection.sock.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR):
                self._drop(connection)
                return
        if events & selectors.EVENT_READ and not self._read(connection):
            return
        self._flush(connection)

    def _read(self, connection: _Connection) -> bool:
        known = connection.peer is not None
        try:
            messages = connection.read()
        except _Refused as error:
            self._drop(connection, str(error))
            return False
        except (OSError, EOFError):
            self._drop(connection)
            return False
        if connection.peer is not None:
            if not known:
                self._welcome(connection, connection.peer)
            self._inbox.extend((connection.peer, message) for message in messages)
        return True

    def _welcome(self, connection: _Connection, peer: int) -> None:
        self._strangers.discard(connection)
        former = self._connections.get(peer)
        if former is not None:  # the peer was restarted, and this side has not noticed yet
            self._drop(former)
        self._connections[peer] = connection

    def _flush(self, connection: _Connection) -> None:
        try:
            connection.flush()
        except OSError:
            self._drop(connection)
            return
        events = selectors.EVENT_READ | (selectors.EVENT_WRITE if connection.unsent else 0)
        if self._selector.get_key(connection.sock).events != events:
            self._selector.modify(connection.sock, events, connection)

    def _drop(self, connection: _Connection, complaint: str | None = None) -> None:
        if complaint is not None:
            self._complain(connection, complaint)
        self._selector.unregister(connection.sock)
        connection.sock.close()
        self._strangers.discard(connection)
        if connection.peer is not None and self._connections.get(connection.peer) is connection:
            del self._connections[connection.peer]

    def _complain(self, connection: _Connection, complaint: str) -> None:
        """Log it, but not each time that the same host tries again."""
        host, port = connection.name
        now = time.monotonic()
        if self._complained.get((host, complaint), 0.0) < now - _COMPLAIN_SECONDS:
            if len(self._complained) >= MAX_STRANGERS:
                self._complained.clear()
            self._complained[host, complaint] = now
            logger.warning("replica %d dropped %s:%s: %s", self.id, host, port, complaint)

    def _accept(self) -> None:
        try:
            sock, _ = self._listener.accept()
        except OSError:
            return  # gone before it was answered, or no file descriptor is left
        if len(self._strangers) >= MAX_STRANGERS:
            sock.close()
            return
        self._adopt(sock, None)

    def _call_missing(self, now: float) -> None:
        for peer, call_at in self._call_at.items():
            if now < call_at or peer in self._connections:
                continue
            self._call_at[peer] = now + _RECONNECT_SECONDS
            if any(stranger._calling == peer for stranger in self._strangers):
                continue
            try:
                family, kind, protocol, _, address = socket.getaddrinfo(
                    *self.addresses[peer], type=socket.SOCK_STREAM
                )[0]
                sock = socket.socket(family, kind, protocol)
            except OSError as error:
                logger.warning("replica %d cannot call replica %d: %s", self.id, peer, error)
                continue
            sock.setblocking(False)
            try:
                sock.connect(address)
            except BlockingIOError:
                pass
            except OSError:
                sock.close()
                continue
            self._adopt(sock, peer)

    def _adopt(self, sock: socket.socket, calling: int | None) -> None:
        sock.setblocking(False)
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
        connection = _Connection(sock, self, calling)
        self._strangers.add(connection)
        self._selector.register(sock, selectors.EVENT_READ | selectors.EVENT_WRITE, connection)


def _listen(address: Address) -> socket.socket:
    host, port = address
    try:
        family, kind, protocol, _, resolved = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
        listener = socket.socket(family, kind, protocol)
    except OSError as error:
        raise ConfigurationError(f"{host}:{port} cannot be resolved: {error}") from None
    try:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind(resolved)
        listener.listen(128)
    except OSError as error:
        listener.close()
        raise PortInUse(f"cannot listen on {host}:{port}: {error.strerror}{_holder(port)}") from None
    return listener


def _holder(port: int) -> str:
    """Who listens on a port, as far as this user may know."""
    try:
        for connection in psutil.net_connections("tcp"):
            if connection.status == psutil.CONN_LISTEN and tuple(connection.laddr)[1:] == (port,):
                return f", it is held by {describe_process(connection.pid)}"
    except psutil.Error:
        pass
    return ""
