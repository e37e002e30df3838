"""TCP: the same small interface as the network in memory, between processes and machines.

PySyncObj brings a TCP transport, but it unpickles what anybody sends, believes any length, listens on every
interface and buffers without limit. So this is our own, and deliberately plain: who has proved to know the
shared secret exchanges sealed frames (``channel``), and who has not gets few places for a short time
(``places``).

On loopback the secret may be left out, and then it is a word that everybody knows: nothing keeps another
user of this machine, or a program in a sandbox that may open connections, from speaking as a member.

Programs that host no replica call, too (``clients``). What they ask is handed out beside the messages of
members, and answered by who has the endpoint (``serving.py``).

The endpoint has no thread. Its owner calls ``wait``, and sockets are served in there.
"""

from __future__ import annotations

import contextlib
import logging
import selectors
import socket
import time
from collections import Counter
from collections.abc import Mapping
from typing import TYPE_CHECKING

from ondisk.errors import ConfigurationError
from ondisk.interrupts import forked
from ondisk.net import dialer
from ondisk.net.addresses import Address, canonical_host, format_address, is_loopback, parse_address
from ondisk.net.channel import CLIENT, Channel, Refused
from ondisk.net.client_messages import Failed, Response
from ondisk.net.clients import MAX_CLIENTS, Call, Clients
from ondisk.net.connection import Connection
from ondisk.net.dialer import Dialer
from ondisk.net.places import MAX_UNAUTHENTICATED, who_makes_room
from ondisk.net.ratelimit import RateLimitedLog
from ondisk.net.sockets import NO_DESCRIPTORS, listen, notice_silence, reason, round_trip
from ondisk.net.waker import Waker
from ondisk.raft.messages import Message, Origin

if TYPE_CHECKING:
    from ondisk.net.tls import Certificates

MAX_UNKNOWN_PEERS = 16  # proved, but at no address that is known here: joining, or not yet heard of
_HUNG_UP_OFTEN = 5
_DEAF_SECONDS = 0.5  # when no descriptor is left for who calls
KNOWN_TO_ALL = b"loopback"  # in place of a secret

logger = logging.getLogger(__name__)


def check_secret(secret: bytes | None, host: str, who: str) -> None:
    """Raise ``ConfigurationError`` for a secret that is too short, or missing beyond loopback."""
    if secret is None and not is_loopback(host):
        raise ConfigurationError(f"{who} is at {host}, beyond loopback: a shared secret is required")
    if secret is not None and len(secret) < 16:
        raise ConfigurationError("the shared secret needs at least 16 bytes")


class TcpNetwork:
    """Members and their addresses. Each process attaches one member, or one process several."""

    def __init__(
        self,
        addresses: Mapping[int, Address],
        *,
        secret: bytes | None = None,
        bind: Mapping[int, Address] | None = None,
        tls: Certificates | None = None,
    ) -> None:
        """``addresses``: host and port where the others reach each member, this one included.

        ``secret`` (at least 16 bytes) must be the same everywhere. It is required as soon as one address is
        not loopback. ``bind``: where a member listens instead, if that differs, as behind a router or in a
        container: ``{1: ("0.0.0.0", 63001)}``. ``tls``: speak TLS with the members; either all do, or none.
        Raises ``ConfigurationError``.
        """
        bind = {} if bind is None else bind
        if len(set(addresses.values())) != len(addresses):
            raise ConfigurationError("two members have the same address")
        if unknown := sorted(bind.keys() - addresses.keys()):
            raise ConfigurationError(
                f"replica {unknown[0]} has an address to listen at, and none where others reach it"
            )
        for member, (host, _) in (*addresses.items(), *bind.items()):
            check_secret(secret, host, f"member {member}")
        self.addresses = dict(addresses)
        self._secret = secret
        self._bind = dict(bind)
        self._tls = tls

    def attach(self, replica_id: int) -> TcpEndpoint:
        """Listen at this member's address. Raises ``PortInUse`` or ``ConfigurationError``."""
        if replica_id not in self.addresses:
            raise ConfigurationError(
                f"replica {replica_id} has no address; the members are {sorted(self.addresses)}"
            )
        return TcpEndpoint(replica_id, self.addresses, self._secret, self._bind.get(replica_id), self._tls)


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
        tls: Certificates | None = None,
    ) -> None:
        self.id = replica_id
        self.addresses = dict(addresses)
        self.secret = KNOWN_TO_ALL if secret is None else secret
        self._has_secret = secret is not None
        self._tls = tls
        self.origin = Origin(b"", b"", 0, 0)
        self.advertised = format_address(addresses[replica_id])
        self._given = frozenset(addresses)  # by a person, who knows better than the log
        self._inbox: list[tuple[int, Origin, Message]] = []
        self._connections: dict[int, Connection] = {}  # proved peers
        self._unauthenticated: dict[Connection, None] = {}  # the oldest first
        self._clients = Clients()
        self._log = RateLimitedLog(logger, replica_id, most=MAX_UNAUTHENTICATED)
        self._dialer = Dialer(replica_id, self.addresses, self._log)
        self._hung_up: Counter[int] = Counter()  # by whom that was called, in a row
        self._closed = False
        self._deaf_until = 0.0  # the listener is not served before, if not 0
        with contextlib.ExitStack() as opened:
            self._listener = opened.enter_context(listen(bind or addresses[replica_id]))
            try:
                self._waker = Waker()
                opened.callback(self._waker.close)
                self._selector = selectors.DefaultSelector()
            except OSError as error:
                raise ConfigurationError(f"replica {replica_id} cannot be woken: {reason(error)}") from None
            opened.pop_all()
        self._listener.setblocking(False)
        for sock in (self._listener, self._waker.receiver):
            self._selector.register(sock, selectors.EVENT_READ)
        forked.register(self)

    def introduce(self, origin: Origin) -> None:
        """Stamp everything that is sent from now on with this."""
        self.origin = origin

    def send(self, to: int, message: Message) -> bool:
        """Send at once what the socket takes and queue the rest; ``False`` if not connected."""
        connection = self._connections.get(to)
        if connection is None or not connection.send(message, self.origin):
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

    def round_trips(self) -> dict[int, float]:
        """How long a round trip to each peer takes, in seconds, where the kernel tells. From any thread."""
        measured = {peer: round_trip(each.sock) for peer, each in list(self._connections.items())}
        return {peer: seconds for peer, seconds in measured.items() if seconds is not None}

    def add_peers(self, addresses: Mapping[int, str]) -> None:
        """Learn where members are that were added to the group.

        The log says so, and this must not stop a replica: an address that is no use is ignored, aloud.
        """
        for member, text in addresses.items():
            try:
                address = parse_address(text)
            except ConfigurationError as error:
                self._log.own("the log", "the address of replica %d: %s", member, error)
                continue
            if member == self.id or member in self._given or self.addresses.get(member) == address:
                continue
            if not self._has_secret and not is_loopback(address[0]):
                self._log.own(
                    address[0], "replica %d is beyond loopback: a shared secret is required", member
                )
                continue
            self.addresses[member] = address
            self._dialer.on_address(member)

    # Clients

    @property
    def has_clients(self) -> bool:
        """Whether there are any. From any thread."""
        return bool(self._clients)

    def calls(self) -> list[Call]:
        """Every request of a client that has arrived since the last call."""
        arrived, self._clients.arrived = self._clients.arrived, []
        return arrived

    def answer(self, call: Call, response: Response) -> None:
        """Queue an answer. It leaves with ``flush_answers``."""
        self._clients.answer(call, response)

    def tell_clients(self, response: Response) -> None:
        """Queue for all clients what they have not asked for."""
        for connection in self._clients.connections:
            self._clients.tell(connection, response)

    def flush_answers(self) -> None:
        """Write what the sockets of clients take."""
        for connection in self._clients.to_flush():
            if self._clients.takes_nothing(connection):
                self._drop(connection, Refused("a client does not take its answers"))
            else:
                self._flush(connection)

    def wait(self, seconds: float) -> None:
        """Serve the sockets until a message arrives, ``wake`` is called, or time is up."""
        deadline = time.monotonic() + seconds
        self._waker.begin()
        while not self._inbox and not self._clients.arrived and not self._waker.awake:
            left = deadline - time.monotonic()
            if left <= 0:
                break
            changed = self.connected()
            self._serve(min(left, dialer.RECONNECT_SECONDS))
            if self.connected() != changed:
                break
        self._waker.end()

    def wake(self) -> None:
        """End the present or the next wait. From any thread, and a closed endpoint does not mind."""
        self._waker.wake()

    def close(self) -> None:
        """Close every socket. A second call does nothing."""
        if self._closed:
            return
        self._closed = True
        for connection in (*self._connections.values(), *self._unauthenticated, *self._clients.connections):
            connection.sock.close()
        self._connections, self._unauthenticated, self._clients = {}, {}, Clients()
        self._selector.close()
        self._listener.close()
        self._waker.close()

    def forget_parent(self) -> None:
        """In a child: close the copies of the descriptors. That ends no connection, and none is unregistered:

        what the kernel watches is one for both processes.
        """
        self.close()

    # Inside

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
            elif key.fileobj is self._waker.receiver:
                self._waker.take_tokens()
            else:
                self._serve_connection(key.data, events)
        for connection in [each for each in self._unauthenticated if each.is_old(now)]:
            self._drop(connection, Refused("it did not finish the handshake in time"))

    def _serve_connection(self, connection: Connection, events: int) -> None:
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

    def _read(self, connection: Connection) -> bool:
        known = connection.peer is not None
        messages: list[tuple[Origin, Message]] = []
        try:
            if connection.peer == CLIENT:
                self._clients.take(connection, connection.read_payloads())
            else:
                messages = connection.read()
        except Refused as error:
            self._drop(connection, error)
            return False
        except EOFError:
            self._drop(connection, self._on_end(connection))
            return False
        except OSError:
            self._drop(connection)
            return False
        if connection.peer is not None:
            if not known and not self._promote(connection, connection.peer):
                return False
            peer = connection.peer
            self._inbox.extend((peer, origin, message) for origin, message in messages)
        return True

    def _promote(self, connection: Connection, peer: int) -> bool:
        """Keep one connection for each pair, the same on both sides; ``False`` if it is not this one."""
        self._unauthenticated.pop(connection, None)
        if peer == CLIENT:
            return self._admit(connection)
        former = self._connections.get(peer)
        if former is not None:
            # Calls that crossed: the one of the higher id stays. Else the peer was restarted, and this side
            # has not noticed yet.
            crossed = (former.calling is None) != (connection.calling is None)
            mine_wins = self.id > peer
            if crossed and (former.calling is not None) == mine_wins and not former.is_old(time.monotonic()):
                self._drop(connection)
                return False
            self._drop(former)
        elif peer not in self.addresses:
            unknown = [other for other in self._connections if other not in self.addresses]
            if len(unknown) >= MAX_UNKNOWN_PEERS:
                self._drop(self._connections[unknown[0]])
        self._connections[peer] = connection
        self._dialer.on_connected(peer)
        self._hung_up.pop(peer, None)
        return True

    def _admit(self, connection: Connection) -> bool:
        """Let a client in; ``False`` if there are too many, which it is told."""
        if self._clients.admit(connection):
            return True
        full = Failed(
            "ReplicaStopped", f"replica {self.id} has {MAX_CLIENTS} clients, and no place for one more"
        )
        self._clients.tell(connection, Response(0, 0, full))
        with contextlib.suppress(OSError):
            connection.flush()
        self._drop(connection, Refused("there are %d clients already", MAX_CLIENTS))
        return False

    def _flush(self, connection: Connection) -> None:
        try:
            if connection.unsent:
                connection.flush()
        except OSError:
            self._drop(connection)
            return
        connection.watch(self._selector, reading=self._clients.may_ask(connection))

    def _on_end(self, connection: Connection) -> Refused | None:
        """The other side has hung up. Say so if this may be a mistake that somebody can put right."""
        peer = connection.calling
        if peer is None or connection.peer is not None or peer in self._connections:  # it has called, too
            return None
        if connection.channel.greeted:
            return Refused(
                "replica %d hung up when this side had proved itself: maybe it has another shared secret",
                peer,
            )
        self._hung_up[peer] += 1
        if self._hung_up[peer] >= _HUNG_UP_OFTEN:  # once may be chance: it is just stopping, say
            self._log.own(
                f"replica {peer}",
                "who answers for replica %d at %s hangs up without a word: is it another version of ondisk? "
                "Stop all replicas, install the same one everywhere, and start them again",
                peer,
                format_address(connection.address),
            )
        return None

    def _drop(self, connection: Connection, refused: Refused | None = None) -> None:
        if refused is not None:
            host, port = connection.address
            self._log.outside(host, str(refused.args[0]), "dropped %s:%s: %s", host, port, refused)
        connection.close(self._selector)
        self._unauthenticated.pop(connection, None)
        self._clients.forget(connection)
        if connection.peer is not None and self._connections.get(connection.peer) is connection:
            del self._connections[connection.peer]
            self._dialer.on_lost(connection.peer)
        elif connection.calling is not None:
            self._dialer.on_failed(connection.calling)

    def _accept(self) -> None:
        try:
            sock, address = self._listener.accept()
        except OSError as error:
            # Either who called has gone before it was answered, or no descriptor is left. Then the caller
            # stays in the queue and ``select`` would report it again at once, for ever.
            if error.errno in NO_DESCRIPTORS:
                self._selector.unregister(self._listener)
                self._deaf_until = time.monotonic() + _DEAF_SECONDS
                self._log.own("", "cannot answer who calls: %s", reason(error))
            return
        host, port = address[:2]
        self._make_room()
        self._adopt(sock, (canonical_host(host), port), None)

    def _make_room(self) -> None:
        callers = [each for each in self._unauthenticated if each.calling is None]
        if (caller := who_makes_room(callers, self._dialer.known_hosts)) is not None:
            self._drop(caller)

    def _call_missing(self, now: float) -> None:
        for peer in self._dialer.due(now):
            if peer in self._connections:
                continue
            self._dialer.postpone(peer, now)
            if any(each.calling == peer for each in self._unauthenticated):
                continue
            if (sock := self._dialer.dial(peer)) is not None:
                self._adopt(sock, self.addresses[peer], peer)

    def _adopt(self, sock: socket.socket, address: Address, calling: int | None) -> None:
        sock.setblocking(False)
        try:
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            notice_silence(sock)
        except OSError:  # macOS: the other side has gone already
            sock.close()
            return
        hostname = None if calling is None else address[0]
        tls = None if self._tls is None else self._tls.session(hostname)
        connection = Connection(sock, Channel(self.id, self.secret, calling), address, tls)
        self._unauthenticated[connection] = None
        connection.watch(self._selector)
