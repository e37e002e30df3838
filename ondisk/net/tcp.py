"""TCP: the same small interface as the network in memory, between processes and machines.

PySyncObj brings a TCP transport, but it unpickles what anybody sends, believes any length, listens on every
interface and buffers without limit. So this is our own, and deliberately plain:

* Handshake: two *hellos* of 56 bytes say who calls whom, with a fresh random number (a *nonce*) each. Then
  the caller proves that it knows the shared secret, for exactly these two hellos, and then the called one
  does: who calls and does not know it gets nothing to try guesses on. Of a stranger no more than 88 bytes
  are read, and no decoder sees them.
* A frame is a length, a payload of at most 8 MB and a MAC. Each direction of each connection has a key and
  a counter of its own, so a frame that was forged, repeated, left out, reordered, sent back, or taken from
  another connection does not verify. That ends the connection and nothing else.
* Only then is the payload decoded, by ``raft/messages.py``, type by type. Nothing is ever unpickled.
* Before its first message, and whenever it changes, each side says its *origin*: which group, which disk,
  which life. It stamps all that follows, so it costs nothing per message. Who belongs together is decided
  above (``identity/origins.py``), by origin and not by address: whoever knows an address calls.

The idea is that of TLS 1.3 with a pre-shared key (RFC 8446), without its encryption: HMAC-SHA256 over what
both sides said makes proofs and keys, and keyed BLAKE2b (RFC 7693) seals the frames. Anybody who can listen
can read them: between machines use a private network or a tunnel. The secret is that of the group: who knows
it can speak as any member.

On loopback the secret may be left out, and then it is a word that everybody knows: nothing keeps another
user of this machine, or a program in a sandbox that may open connections, from speaking as a member.

The endpoint has no thread. Its owner calls ``wait``, and sockets are served in there.
"""

from __future__ import annotations

import contextlib
import errno
import hashlib
import hmac
import logging
import math
import os
import selectors
import socket
import struct
import time
from collections import Counter, deque
from collections.abc import Mapping
from itertools import islice
from typing import NamedTuple

import msgspec
import psutil

from ondisk.errors import ConfigurationError, PortInUse
from ondisk.interrupts import forked
from ondisk.net.addresses import (
    Address,
    canonical_host,
    format_address,
    is_loopback,
    neighbourhood,
    parse_address,
)
from ondisk.net.resolver import Resolver, Where
from ondisk.raft.messages import Message, Origin, decoder, encoder
from ondisk.storage.lock import describe_process

MAX_FRAME_BYTES = 8 << 20
MAX_UNSENT_BYTES = 16 << 20  # to one peer; what does not fit is lost, and Raft sends it again
MAX_STRANGERS = 64  # connections that have not finished their handshake
MEMBERS_PLACES = 16  # of these, that callers from elsewhere than a member's host cannot take
_HANDSHAKE_SECONDS = 3.0
_SILENCE_SECONDS = 10.0  # a machine that lost its power says no goodbye
_RECONNECT_SECONDS = 0.2
_HUNG_UP_OFTEN = 5
_PATIENCE_SECONDS = 1.0  # of the lower id, for a call of the higher one
_COMPLAIN_SECONDS = 60.0
_DEAF_SECONDS = 0.5  # when no descriptor is left for who calls
_NO_DESCRIPTORS = {errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM}
_READ_BYTES = 1 << 16  # a larger buffer costs more to make than it saves
_MAC_BYTES = 16
_LENGTH_BYTES = 4
_PROOF_BYTES = 32
_FAMILY, _MAGIC = b"ondisk-", b"ondisk-3"
_ORIGIN_TAG = b"\xc1"  # of a frame that holds an origin: MessagePack never begins so
MAX_UNKNOWN_PEERS = 16  # proved, but at no address that is known here: joining, or not yet heard of
_HELLO = struct.Struct(">8sQQ32s")  # the magic, sender, receiver, nonce
_KNOWN_TO_ALL = b"loopback"  # in place of a secret

_origin_encoder = msgspec.msgpack.Encoder()
_origin_decoder = msgspec.msgpack.Decoder(Origin)

logger = logging.getLogger(__name__)


class TcpNetwork:
    """Members and their addresses. Each process attaches one member, or one process several."""

    def __init__(
        self,
        addresses: Mapping[int, Address],
        *,
        secret: bytes | None = None,
        bind: Mapping[int, Address] | None = None,
    ) -> None:
        """``addresses``: host and port where the others reach each member, this one included.

        ``secret`` (at least 16 bytes) must be the same everywhere. It is required as soon as one address is
        not loopback. ``bind``: where a member listens instead, if that differs, as behind a router or in a
        container: ``{1: ("0.0.0.0", 63001)}``. Raises ``ConfigurationError``.
        """
        bind = {} if bind is None else bind
        if len(set(addresses.values())) != len(addresses):
            raise ConfigurationError("two members have the same address")
        if unknown := sorted(bind.keys() - addresses.keys()):
            raise ConfigurationError(
                f"replica {unknown[0]} has an address to listen at, and none where others reach it"
            )
        if secret is None:
            for member, (host, _) in (*addresses.items(), *bind.items()):
                if not is_loopback(host):
                    raise ConfigurationError(
                        f"member {member} is at {host}, beyond loopback: a shared secret is required"
                    )
        elif len(secret) < 16:
            raise ConfigurationError("the shared secret needs at least 16 bytes")
        self.addresses = dict(addresses)
        self._secret = secret
        self._bind = dict(bind)

    def attach(self, replica_id: int) -> TcpEndpoint:
        """Listen at this member's address. Raises ``PortInUse`` or ``ConfigurationError``."""
        if replica_id not in self.addresses:
            raise ConfigurationError(
                f"replica {replica_id} has no address; the members are {sorted(self.addresses)}"
            )
        return TcpEndpoint(replica_id, self.addresses, self._secret, self._bind.get(replica_id))


class _Hello(NamedTuple):
    """Who calls whom, and a fresh random number. Nothing of it is believed before the proof."""

    sender: int
    receiver: int
    nonce: bytes

    def encode(self) -> bytes:
        return _HELLO.pack(_MAGIC, *self)


class _Refused(Exception):
    """The other side broke the protocol; the connection must end. The arguments are those of a log call."""

    def __str__(self) -> str:
        text, *values = self.args
        return str(text % tuple(values))


class _Connection:
    """One TCP connection: framing, handshake, and buffers with limits."""

    def __init__(
        self, sock: socket.socket, endpoint: TcpEndpoint, address: Address, calling: int | None
    ) -> None:
        self.sock = sock
        self.address = address
        self.neighbourhood = neighbourhood(address[0])
        self.calling = calling  # whom, or ``None`` if the other side called
        self.peer: int | None = None  # known, and proved, once the handshake is done
        self.born = time.monotonic()
        self.unsent = deque[bytes | memoryview]()
        self.unsent_bytes = 0
        self.connecting = calling is not None
        self.origin: Origin | None = None  # of the other side, as it was said last
        self._introduced: Origin | None = None  # this side's, as it was said last
        self._endpoint = endpoint
        self._nonce = os.urandom(32)
        self._hellos: tuple[_Hello, _Hello] | None = None  # the caller's, then that of the called one
        self._received = bytearray()
        self._send_key = self._receive_key = b""
        self._sent_frames = self._received_frames = 0
        if calling is not None:
            self._queue(self._hello(calling).encode())

    def is_old(self) -> bool:
        """Whether it was there before the other side could have called at the same moment."""
        return time.monotonic() > self.born + _HANDSHAKE_SECONDS

    # Out

    def send(self, message: Message) -> bool:
        """Queue a message; ``False`` if there is no room because the other side does not keep up.

        Or if it is too large, for which the other side would end the connection, or cannot be encoded.
        """
        if self.unsent_bytes >= MAX_UNSENT_BYTES:
            return False
        if self._introduced is not (origin := self._endpoint.origin):
            self._introduced = origin
            self._seal(_ORIGIN_TAG + _origin_encoder.encode(origin))
        try:
            payload = encoder.encode(message)
        except (OverflowError, TypeError):  # with a result that no state machine should give
            return False
        if len(payload) > MAX_FRAME_BYTES:
            return False
        self._seal(payload)
        return True

    def _seal(self, payload: bytes) -> None:
        mac = self._mac(self._send_key, self._sent_frames, payload)
        self._sent_frames += 1
        self._queue(len(payload).to_bytes(_LENGTH_BYTES, "big") + payload + mac)

    def _queue(self, data: bytes) -> None:
        self.unsent.append(data)
        self.unsent_bytes += len(data)

    def flush(self) -> None:
        """Write what the socket takes. Raises ``OSError`` if the connection is broken."""
        while self.unsent:
            frames = list(islice(self.unsent, 64))
            try:
                written = self.sock.sendmsg(frames)
            except (BlockingIOError, InterruptedError):
                return
            self.unsent_bytes -= written
            while written:
                frame = self.unsent.popleft()
                if written < len(frame):
                    self.unsent.appendleft(memoryview(frame)[written:])  # no copy for each bit of progress
                    break
                written -= len(frame)

    # In

    def read(self) -> list[tuple[Origin, Message]]:
        """What has arrived, each message with its origin. Raises ``_Refused``, ``EOFError``, ``OSError``."""
        wanted = _READ_BYTES if self.peer is not None else self._handshake_bytes - len(self._received)
        try:
            data = self.sock.recv(wanted)
        except (BlockingIOError, InterruptedError):
            return []
        if not data:
            self._on_end()
        self._received += data
        if self.peer is None:
            self._shake_hands()
            return []
        messages: list[tuple[Origin, Message]] = []
        while (payload := self._next_frame()) is not None:
            try:
                if payload.startswith(_ORIGIN_TAG):
                    self.origin = _origin_decoder.decode(memoryview(payload)[1:])
                elif self.origin is None:
                    raise _Refused("a message before its sender has introduced itself")
                else:
                    messages.append((self.origin, decoder.decode(payload)))
            except (msgspec.DecodeError, UnicodeDecodeError, RecursionError, MemoryError) as error:
                raise _Refused("not a message: %s", error) from None
        return messages

    def _on_end(self) -> None:
        crossed = self.calling in self._endpoint.connected()  # the other side has called, too
        if self.peer is None and self.calling is not None and self._hellos is not None and not crossed:
            raise _Refused(
                "replica %d hung up when this side had proved itself: maybe it has another shared secret",
                self.calling,
            )
        if self.calling is not None and self._hellos is None and not crossed:
            self._endpoint.hung_up_on(self.calling, self.address)
        raise EOFError

    def _next_frame(self) -> bytes | None:
        if len(self._received) < _LENGTH_BYTES:
            return None
        length = int.from_bytes(self._received[:_LENGTH_BYTES], "big")
        if length > MAX_FRAME_BYTES:
            raise _Refused(
                "a frame of %s bytes; at most %s are allowed", f"{length:,}", f"{MAX_FRAME_BYTES:,}"
            )
        end = _LENGTH_BYTES + length + _MAC_BYTES
        if len(self._received) < end:
            return None
        payload = bytes(self._received[_LENGTH_BYTES : _LENGTH_BYTES + length])
        mac = self._mac(self._receive_key, self._received_frames, payload)
        if not hmac.compare_digest(mac, bytes(self._received[end - _MAC_BYTES : end])):
            raise _Refused("a frame that was tampered with, or that does not belong here")
        self._received_frames += 1
        del self._received[:end]
        return payload

    # The handshake. Nothing of the next step is read before this one is done: what a stranger sends
    # beyond it stays in the kernel.

    @property
    def _handshake_bytes(self) -> int:
        return _HELLO.size if self._hellos is None else _PROOF_BYTES

    def _shake_hands(self) -> None:
        start = bytes(self._received[: len(_MAGIC)])
        if (
            self._hellos is None
            and start.startswith(_FAMILY)
            and len(start) == len(_MAGIC)
            and start != _MAGIC
        ):
            raise _Refused(
                "it speaks %s, and this side %s: stop all replicas, install the same version of ondisk "
                "everywhere, and start them again",
                start.decode("ascii", "replace"),
                _MAGIC.decode(),
            )
        if self._hellos is None and not _MAGIC.startswith(start):
            raise _Refused("what it says is not the beginning of a conversation between replicas")
        if len(self._received) < self._handshake_bytes:
            return
        data = bytes(self._received)
        self._received.clear()
        if self._hellos is None:
            self._on_hello(_Hello(*_HELLO.unpack(data)[1:]))
        else:
            self._on_proof(data)

    def _hello(self, receiver: int) -> _Hello:
        return _Hello(self._endpoint.id, receiver, self._nonce)

    def _on_hello(self, hello: _Hello) -> None:
        mine = self._endpoint
        if hello.receiver != mine.id:
            raise _Refused("a call for replica %d; this is replica %d", hello.receiver, mine.id)
        if self.calling is not None:
            if hello.sender != self.calling:
                raise _Refused("replica %d answered instead of replica %d", hello.sender, self.calling)
            self._hellos = self._hello(hello.sender), hello
            self._queue(self._proof(mine.id))
            return
        if hello.sender == 0:
            raise _Refused("replica %d is none: ids begin with 1", hello.sender)
        if hello.sender == mine.id:
            raise _Refused("another replica %d calls: two have the same number", hello.sender)
        self._hellos = hello, self._hello(hello.sender)
        self._queue(self._hellos[1].encode())

    def _on_proof(self, proof: bytes) -> None:
        assert self._hellos is not None
        peer = self._hellos[0].sender if self.calling is None else self.calling
        if not hmac.compare_digest(proof, self._proof(peer)):
            raise _Refused("who claims to be replica %d does not know the shared secret", peer)
        if self.calling is None:
            self._queue(self._proof(self._endpoint.id))
        self._send_key = self._derive(b"frames", self._endpoint.id)
        self._receive_key = self._derive(b"frames", peer)
        self.peer = peer

    def _proof(self, sender: int) -> bytes:
        return self._derive(b"proof", sender)

    def _derive(self, purpose: bytes, sender: int) -> bytes:
        """32 bytes that belong to this connection, this purpose and what ``sender`` says on it."""
        assert self._hellos is not None
        caller, called = self._hellos
        what = struct.pack(">8sQ", purpose, sender) + caller.encode() + called.encode()
        return hmac.digest(self._endpoint.secret, what, "sha256")

    @staticmethod
    def _mac(key: bytes, number: int, payload: bytes) -> bytes:
        mac = hashlib.blake2b(number.to_bytes(8, "big"), key=key, digest_size=_MAC_BYTES)
        mac.update(payload)
        return mac.digest()


class TcpEndpoint:
    """One member's listening socket and its connections. Used by one thread, except ``wake``.

    Whoever knows an address calls. If two call each other, the call of the one with the higher id stays.
    """

    def __init__(
        self,
        replica_id: int,
        addresses: Mapping[int, Address],
        secret: bytes | None,
        bind: Address | None = None,
    ) -> None:
        self.id = replica_id
        self.addresses = dict(addresses)
        self.secret = _KNOWN_TO_ALL if secret is None else secret
        self._has_secret = secret is not None
        self.origin = Origin(b"", b"", 0, 0)
        self.advertised = format_address(addresses[replica_id])
        self._given = frozenset(addresses)  # by a person, who knows better than the log
        self._inbox: list[tuple[int, Origin, Message]] = []
        self._connections: dict[int, _Connection] = {}  # proved peers
        self._strangers: dict[_Connection, None] = {}  # the oldest first
        self._resolver = Resolver()
        self._untried: dict[int, list[Where]] = {}  # of all that a peer's address stands for
        self._call_at: dict[int, float] = {}
        for peer in self.addresses:
            self._call_soon(peer)
        self._hung_up: Counter[int] = Counter()  # by whom that was called, in a row
        self._complained: dict[tuple[str, str], float] = {}
        self._closed = False
        self._awake = self._asleep = False
        self._deaf_until = 0.0  # the listener is not served before, if not 0
        with contextlib.ExitStack() as opened:
            self._listener = opened.enter_context(_listen(bind or addresses[replica_id]))
            try:
                # Datagrams, so that one may be empty: see ``wake``.
                self._wake_receiver, self._wake_sender = socket.socketpair(type=socket.SOCK_DGRAM)
                opened.push(self._wake_receiver)
                opened.push(self._wake_sender)
                self._selector = selectors.DefaultSelector()
            except OSError as error:
                raise ConfigurationError(f"replica {replica_id} cannot be woken: {_reason(error)}") from None
            opened.pop_all()
        for sock in (self._listener, self._wake_receiver, self._wake_sender):
            sock.setblocking(False)
        for sock in (self._listener, self._wake_receiver):
            self._selector.register(sock, selectors.EVENT_READ)
        forked.register(self)

    def introduce(self, origin: Origin) -> None:
        """Stamp everything that is sent from now on with this."""
        self.origin = origin

    def send(self, to: int, message: Message) -> bool:
        """Send at once what the socket takes and queue the rest; ``False`` if not connected."""
        connection = self._connections.get(to)
        if connection is None or not connection.send(message):
            return False
        self._flush(connection)
        return True

    def receive(self) -> list[tuple[int, Origin, Message]]:
        """Everything that has arrived."""
        self._serve(0.0)
        inbox, self._inbox = self._inbox, []
        return inbox

    def connected(self) -> frozenset[int]:
        """The members with a proved connection."""
        return frozenset(self._connections)

    def meet(self, addresses: Mapping[int, str]) -> None:
        """Learn where members are that were added to the group.

        The log says so, and this must not stop a replica: an address that is no use is ignored, aloud.
        """
        for member, text in addresses.items():
            try:
                address = parse_address(text)
            except ConfigurationError as error:
                self._warn("the log", "the address of replica %d: %s", member, error)
                continue
            if member == self.id or member in self._given or self.addresses.get(member) == address:
                continue
            if not self._has_secret and not is_loopback(address[0]):
                self._warn(address[0], "replica %d is beyond loopback: a shared secret is required", member)
                continue
            self.addresses[member] = address
            self._untried.pop(member, None)
            self._call_soon(member)

    def wait(self, seconds: float) -> None:
        """Serve the sockets until a message arrives, ``wake`` is called, or time is up."""
        deadline = time.monotonic() + seconds
        self._asleep = True  # before the flag is looked at: who sets it from now on sends a token, too
        while not self._inbox and not self._awake:
            left = deadline - time.monotonic()
            if left <= 0:
                break
            changed = self.connected()
            self._serve(min(left, _RECONNECT_SECONDS))
            if self.connected() != changed:
                break
        self._asleep = False
        self._awake = False  # last: what was announced before is looked at after this wait

    def wake(self) -> None:
        """End the present or the next wait. From any thread, and a closed endpoint does not mind.

        There is no lock that an interrupted caller could leave locked: flag first, then a token for who
        sleeps already. Interrupted between the two, it delays this wake and takes nothing from the next.
        """
        self._awake = True
        if not self._asleep or self._closed:
            return
        # It is closed, or so many tokens are there that one more makes no difference.
        with contextlib.suppress(OSError):
            # Empty, because the endpoint may be closed right now, in its own thread, and the number of the
            # socket given to another one: no byte can stray into a conversation.
            self._wake_sender.send(b"")

    def close(self) -> None:
        """Close every socket. A second call does nothing."""
        if self._closed:
            return
        self._closed = True
        for connection in (*self._connections.values(), *self._strangers):
            connection.sock.close()
        self._connections, self._strangers = {}, {}
        self._selector.close()
        for sock in (self._listener, self._wake_receiver, self._wake_sender):
            sock.close()

    def forget_parent(self) -> None:
        """In a child: close the copies of the descriptors. That ends no connection, and none is unregistered:

        what the kernel watches is one for both processes.
        """
        self.close()

    # Inside

    def _call_soon(self, peer: int) -> None:
        """The one with the higher id calls at once; the other one gives it some time, and then calls, too.

        For who calls may be the only one that knows an address.
        """
        if peer != self.id:
            self._call_at[peer] = 0.0 if peer < self.id else time.monotonic() + _PATIENCE_SECONDS

    def _serve(self, seconds: float) -> None:
        if self._closed:
            return
        now = time.monotonic()
        self._call_missing(now)
        if self._deaf_until and now >= self._deaf_until:
            self._deaf_until = 0.0
            self._selector.register(self._listener, selectors.EVENT_READ)
        for key, events in self._selector.select(seconds):
            if key.fileobj is self._listener:
                self._accept()
            elif key.fileobj is self._wake_receiver:
                self._take_tokens()
            else:
                self._serve_connection(key.data, events)
        for connection in [c for c in self._strangers if c.born + _HANDSHAKE_SECONDS < now]:
            self._drop(connection, _Refused("it did not finish the handshake in time"))

    def _take_tokens(self) -> None:
        try:
            while True:
                self._wake_receiver.recv(1)
        except (BlockingIOError, InterruptedError):
            pass

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
            self._drop(connection, error)
            return False
        except (OSError, EOFError):
            self._drop(connection)
            return False
        if connection.peer is not None:
            if not known and not self._welcome(connection, connection.peer):
                return False
            peer = connection.peer
            self._inbox.extend((peer, origin, message) for origin, message in messages)
        return True

    def _welcome(self, connection: _Connection, peer: int) -> bool:
        """Keep one connection for each pair, the same on both sides; ``False`` if it is not this one."""
        self._strangers.pop(connection, None)
        former = self._connections.get(peer)
        if former is not None:
            # Calls that crossed: the one of the higher id stays. Else the peer was restarted, and this side
            # has not noticed yet.
            crossed = (former.calling is None) != (connection.calling is None)
            mine_wins = self.id > peer
            if crossed and (former.calling is not None) == mine_wins and not former.is_old():
                self._drop(connection)
                return False
            self._drop(former)
        elif peer not in self.addresses:
            unknown = [other for other in self._connections if other not in self.addresses]
            if len(unknown) >= MAX_UNKNOWN_PEERS:
                self._drop(self._connections[unknown[0]])
        self._connections[peer] = connection
        self._untried.pop(peer, None)
        self._hung_up.pop(peer, None)
        return True

    def _flush(self, connection: _Connection) -> None:
        try:
            connection.flush()
        except OSError:
            self._drop(connection)
            return
        events = selectors.EVENT_READ | (selectors.EVENT_WRITE if connection.unsent else 0)
        if self._selector.get_key(connection.sock).events != events:
            self._selector.modify(connection.sock, events, connection)

    def _drop(self, connection: _Connection, refused: _Refused | None = None) -> None:
        if refused is not None:
            self._complain(connection.address, refused)
        self._selector.unregister(connection.sock)
        connection.sock.close()
        self._strangers.pop(connection, None)
        if connection.peer is not None and self._connections.get(connection.peer) is connection:
            del self._connections[connection.peer]
            if connection.peer in self._call_at:
                self._call_soon(connection.peer)
        elif connection.calling is not None and self._untried.get(connection.calling):
            self._call_at[connection.calling] = 0.0  # at the next of its addresses

    def hung_up_on(self, peer: int, address: Address) -> None:
        """Who was called ended the call without a word. Once may be chance: it is just stopping, say."""
        self._hung_up[peer] += 1
        if self._hung_up[peer] >= _HUNG_UP_OFTEN:
            self._warn(
                f"replica {peer}",
                "who answers for replica %d at %s hangs up without a word: is it another version of ondisk? "
                "Stop all replicas, install the same one everywhere, and start them again",
                peer,
                format_address(address),
            )

    def _complain(self, address: Address, refused: _Refused) -> None:
        """Log it, but not each time that the same host tries again, and never without limit."""
        self._log((address[0], str(refused.args[0])), "dropped %s:%s: %s", *address, refused)

    def _warn(self, about: str, text: str, *values: object) -> None:
        """The same for what no stranger causes: no crowd of them may keep it out of the log."""
        self._log((about, text), text, *values, always=True)

    def _log(self, what: tuple[str, str], text: str, *values: object, always: bool = False) -> None:
        now = time.monotonic()
        recently = {what: when for what, when in self._complained.items() if now - when < _COMPLAIN_SECONDS}
        if what not in recently and (always or len(recently) < MAX_STRANGERS):
            recently[what] = now
            logger.warning("replica %d " + text, self.id, *values)
        self._complained = recently

    def _accept(self) -> None:
        try:
            sock, address = self._listener.accept()
        except OSError as error:
            # Either who called has gone before it was answered, or no descriptor is left. Then the caller
            # stays in the queue and ``select`` would report it again at once, for ever.
            if error.errno in _NO_DESCRIPTORS:
                self._selector.unregister(self._listener)
                self._deaf_until = time.monotonic() + _DEAF_SECONDS
                self._warn("", "cannot answer who calls: %s", _reason(error))
            return
        host, port = address[:2]
        self._make_room()
        self._adopt(sock, (canonical_host(host), port), None)

    def _make_room(self) -> None:
        """Let go of the oldest stranger from the network that has most: so nobody can keep others out.

        Who has addresses in many networks can push out everybody else, but no caller from the host of a
        member as long as there are no more of those than places are kept for them.
        """
        callers = [stranger for stranger in self._strangers if stranger.calling is None]
        if len(callers) < MAX_STRANGERS:
            return
        hosts = set[str]().union(*map(self._resolver.known_hosts, self.addresses.values()))
        of_members = [caller for caller in callers if caller.address[0] in hosts]
        if len(of_members) > MEMBERS_PLACES:
            from_where = {caller: caller.address[0] for caller in of_members}
        else:
            from_where = {
                caller: caller.neighbourhood for caller in callers if caller.address[0] not in hosts
            }
        ((most, _),) = Counter(from_where.values()).most_common(1)
        self._drop(next(caller for caller in from_where if from_where[caller] == most))

    def _call_missing(self, now: float) -> None:
        for peer, call_at in self._call_at.items():
            if now < call_at or peer in self._connections:
                continue
            self._call_at[peer] = now + _RECONNECT_SECONDS
            if not any(stranger.calling == peer for stranger in self._strangers):
                self._call(peer)

    def _call(self, peer: int) -> None:
        """Call one of the addresses that a peer's name stands for; if it fails, it is the next one's turn."""
        address = self.addresses[peer]
        try:
            untried = self._untried[peer] = self._untried.get(peer) or self._resolver.resolve(address)
        except OSError as error:
            self._warn(address[0], "cannot call replica %d at %s:%s: %s", peer, *address, error)
            return
        while untried:
            family, where = untried.pop(0)
            try:
                sock = socket.socket(family, socket.SOCK_STREAM)
            except OSError as error:
                if not untried:  # this machine may have no IPv6, for one
                    self._warn(
                        address[0], "cannot call replica %d at %s:%s: %s", peer, *address, _reason(error)
                    )
                continue
            sock.setblocking(False)
            try:
                sock.connect(where)
            except BlockingIOError:
                pass
            except OSError:
                sock.close()
                continue
            self._adopt(sock, address, peer)
            return

    def _adopt(self, sock: socket.socket, address: Address, calling: int | None) -> None:
        sock.setblocking(False)
        try:
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            _notice_silence(sock)
        except OSError:  # macOS: the other side has gone already
            sock.close()
            return
        connection = _Connection(sock, self, address, calling)
        self._strangers[connection] = None
        self._selector.register(sock, selectors.EVENT_READ | selectors.EVENT_WRITE, connection)


def _notice_silence(sock: socket.socket) -> None:
    """Let the kernel end a connection whose other side does not answer, or takes nothing, for so long.

    Otherwise a peer that lost its power and came back would be reached only when a retransmission comes
    round, which can take minutes.
    """
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    for option, value in (
        ("TCP_KEEPIDLE", math.ceil(_SILENCE_SECONDS / 2)),
        ("TCP_KEEPINTVL", 1),
        ("TCP_KEEPCNT", math.ceil(_SILENCE_SECONDS / 2)),
        ("TCP_USER_TIMEOUT", int(_SILENCE_SECONDS * 1000)),  # of what was sent, not of silence
    ):
        if hasattr(socket, option):  # not every system has each
            sock.setsockopt(socket.IPPROTO_TCP, getattr(socket, option), value)


def _listen(address: Address) -> socket.socket:
    """Listen at the first that the address stands for and that this machine has."""
    host, port = address
    try:
        found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)
    except (OSError, UnicodeError) as error:
        raise ConfigurationError(f"{host}:{port} cannot be resolved: {error}") from None
    failure: OSError | None = None
    for family, kind, protocol, _, resolved in found:
        listener: socket.socket | None = None
        try:
            listener = socket.socket(family, kind, protocol)
            listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            listener.bind(resolved)
            listener.listen(128)
            return listener
        except OSError as error:
            if listener is not None:
                listener.close()
            if error.errno == errno.EADDRINUSE:
                what = f"cannot listen on {host}:{port}: {error.strerror}{_holder(port)}"
                raise PortInUse(what) from None
            failure = failure or error
    reason = _reason(failure) if failure is not None else "it stands for no address"
    raise ConfigurationError(f"cannot listen on {host}:{port}: {reason}")


def _reason(error: OSError) -> str:
    """What is wrong, and what to do about it."""
    text = error.strerror or str(error)
    if error.errno in _NO_DESCRIPTORS:
        return f"{text}: close other files and connections, or raise the limit (ulimit -n)"
    if error.errno == errno.EADDRNOTAVAIL:
        return (
            f"{text}: this machine does not have it; where to listen and where others call may differ (bind)"
        )
    return text


def _holder(port: int) -> str:
    """Who listens on a port, as far as this user may know."""
    try:
        for connection in psutil.net_connections("tcp"):
            if connection.status == psutil.CONN_LISTEN and tuple(connection.laddr)[1:] == (port,):
                return f", it is held by {describe_process(connection.pid)}"
    except psutil.Error:
        pass
    return ""
