"""The lines of a client: one connection to each of its endpoints, called again when it is lost.

The other end of ``clients.py``. Nothing here knows what is asked: frames leave, frames arrive, and of each it
can be told whether all of it has left. Used by one thread, but for ``wake``.
"""

from __future__ import annotations

import contextlib
import os
import selectors
import socket
import time
from collections.abc import Sequence
from typing import TYPE_CHECKING

from ondisk.errors import ConfigurationError
from ondisk.net.addresses import Address, format_address
from ondisk.net.channel import CLIENT, Channel, Refused
from ondisk.net.connection import Connection
from ondisk.net.resolver import Resolver, Where
from ondisk.net.sockets import notice_silence, reason
from ondisk.net.tcp import KNOWN_TO_ALL, check_secret
from ondisk.net.waker import Waker

if TYPE_CHECKING:
    from ondisk.net.tls import Certificates

_FIRST_PAUSE, _LONGEST_PAUSE = 0.05, 1.0  # seconds between two calls: each twice as long as the one before
_FULL_BYTES = 1 << 20  # that have not left yet: more would only wait here


class Line:
    """One endpoint and the connection to it. ``why`` says why there is none."""

    def __init__(self, address: Address) -> None:
        self.address = address
        self.name = format_address(address)
        self.replica_id = 0  # who answers there, once somebody has
        self.why = "not reached yet"
        self.connection: Connection | None = None
        self.untried: list[Where] = []
        self.call_at = 0.0
        self.pause = _FIRST_PAUSE
        self.lost_after = 0  # so many bytes had left when the connection was lost
        self._failed = False

    @property
    def ready(self) -> bool:
        """Whether the other side has proved that it is a replica of this group."""
        return self.connection is not None and self.connection.peer is not None

    @property
    def failed(self) -> bool:
        """Whether it was called in vain, at each address that its name stands for."""
        return self.connection is None and self._failed and not self.untried

    @property
    def full(self) -> bool:
        """Whether what was sent has to leave first."""
        return self.connection is None or self.connection.unsent_bytes >= _FULL_BYTES

    def send(self, payload: bytes) -> int:
        """Queue a frame. When the line is lost, all of it had left if ``lost_after`` is no less than this."""
        assert self.connection is not None
        return self.connection.send_payload(payload)

    def fail(self, why: str) -> None:
        """It cannot be called, or not any more."""
        self.why, self._failed = why, True
        if self.untried:  # localhost may be 127.0.0.1 or ::1
            self.call_at = 0.0

    def end(self) -> None:
        """There is no connection any more."""
        if self.connection is not None:
            self.lost_after = self.connection.written_bytes
            self.connection = None


class Lines:
    """All of a client's."""

    def __init__(self, addresses: Sequence[Address], secret: bytes | None, tls: Certificates | None) -> None:
        """Raises ``ConfigurationError``. Nobody is called before ``wait``."""
        for address in addresses:
            check_secret(secret, address[0], f"the endpoint {format_address(address)}")
        self._secret = KNOWN_TO_ALL if secret is None else secret
        self._tls = tls
        self._resolver = Resolver()
        self.lines = tuple(map(Line, addresses))
        self._closed = False
        try:
            self._waker = Waker()
            self._selector = selectors.DefaultSelector()
        except OSError as error:
            raise ConfigurationError(f"a client cannot be woken: {reason(error)}") from None
        self._selector.register(self._waker.receiver, selectors.EVENT_READ)

    def wake(self) -> None:
        """End the present or the next ``wait``. From any thread."""
        self._waker.wake()

    def wait(self, seconds: float) -> tuple[list[tuple[Line, list[bytes]]], list[Line]]:
        """Call who is to be called, and serve what happens within ``seconds``.

        Returns what has arrived, and the lines that were lost: what arrived there before is among it.
        """
        arrived: list[tuple[Line, list[bytes]]] = []
        lost: list[Line] = []
        now = time.monotonic()
        for line in self.lines:
            if line.connection is not None and line.connection.peer is None and line.connection.is_old(now):
                self._lose(line, "it did not finish the handshake in time")
            if line.connection is None:
                if now >= line.call_at:
                    self._call(line, now)
                seconds = min(seconds, max(0.0, line.call_at - now))
        self._waker.begin()
        if self._waker.awake:
            seconds = 0.0
        for key, events in self._selector.select(seconds):
            if key.fileobj is self._waker.receiver:
                self._waker.take_tokens()
                continue
            line = next(line for line in self.lines if line.connection is key.data)
            was_ready = line.ready
            if payloads := self._serve(line, events):
                arrived.append((line, payloads))
            if was_ready and line.connection is None:
                lost.append(line)
        self._waker.end()
        return arrived, lost

    def flush(self, line: Line) -> bool:
        """Write what the socket takes; ``False``: the line is lost."""
        if line.connection is None:
            return False
        try:
            line.connection.flush()
        except OSError as error:
            self._lose(line, reason(error))
            return False
        line.connection.watch(self._selector)
        return True

    def hang_up(self, line: Line, why: str, seconds: float) -> None:
        """The other side waits for that, and is not called again for so long."""
        if line.connection is not None:
            self._lose(line, why)
        line.call_at = time.monotonic() + seconds

    def drop(self, line: Line, why: str) -> None:
        """Whoever answers there does not keep to the protocol."""
        self._lose(line, why)

    def close(self) -> None:
        """Close all sockets; in a child only its copies, which ends nothing. A second call does nothing."""
        if self._closed:
            return
        self._closed = True
        for line in self.lines:
            if line.connection is not None:
                line.connection.sock.close()
                line.end()
        self._selector.close()
        self._waker.close()

    # Inside

    def _call(self, line: Line, now: float) -> None:
        line.call_at = now + line.pause
        line.pause = min(2 * line.pause, _LONGEST_PAUSE)
        try:
            line.untried = line.untried or self._resolver.resolve(line.address)
        except OSError as error:
            line.fail(str(error))
            return
        if not line.untried:
            line.why = "its name is being looked up"
            return
        family, where = line.untried.pop(0)
        try:
            sock = socket.socket(family, socket.SOCK_STREAM)
        except OSError as error:
            line.fail(reason(error))
            return
        try:
            sock.setblocking(False)
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            notice_silence(sock)
            with contextlib.suppress(BlockingIOError):
                sock.connect(where)
        except OSError as error:
            sock.close()
            line.fail(reason(error))
            return
        tls = None if self._tls is None else self._tls.session(line.address[0])
        line.connection = Connection(sock, Channel(CLIENT, self._secret, CLIENT), line.address, tls)
        line.connection.watch(self._selector)

    def _serve(self, line: Line, events: int) -> list[bytes]:
        connection = line.connection
        assert connection is not None
        if connection.connecting:
            connection.connecting = False
            if error := connection.sock.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR):
                self._lose(line, reason(OSError(error, os.strerror(error))))
                return []
        payloads: list[bytes] = []
        try:
            if events & selectors.EVENT_READ:
                payloads = connection.read_payloads()
        except Refused as error:
            self._lose(line, str(error))
            return []
        except EOFError:
            greeted = connection.channel.greeted and connection.peer is None
            self._lose(
                line,
                "it hung up when this side had proved itself: maybe it has another shared secret"
                if greeted
                else "it hung up",
            )
            return []
        except OSError as error:
            self._lose(line, reason(error))
            return []
        if connection.peer is not None:
            line.replica_id, line.pause, line.untried = connection.peer, _FIRST_PAUSE, []
        self.flush(line)
        return payloads

    def _lose(self, line: Line, why: str) -> None:
        assert line.connection is not None
        line.connection.close(self._selector)
        line.end()
        line.fail(why)
