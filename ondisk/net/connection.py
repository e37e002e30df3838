"""One TCP connection: a socket, what waits to be written to it, and the conversation over it, or in TLS."""

from __future__ import annotations

import contextlib
import selectors
import socket
import time
from collections import deque
from itertools import islice
from typing import TYPE_CHECKING

from ondisk.net.addresses import Address, neighbourhood
from ondisk.net.channel import Channel, Refused
from ondisk.raft.limits import MAX_UNSENT_BYTES
from ondisk.raft.messages import Message, Origin

if TYPE_CHECKING:
    from ondisk.net.tls import Session

HANDSHAKE_SECONDS = 3.0  # for all of it
_READ_BYTES = 1 << 16  # a larger buffer costs more to make than it saves


class Connection:
    """A connection to ``channel.peer``, or to whoever has not proved yet to be somebody."""

    def __init__(
        self, sock: socket.socket, channel: Channel, address: Address, tls: Session | None = None
    ) -> None:
        self.sock = sock
        self._tls = tls
        self.channel = channel
        self.address = address
        self.neighbourhood = neighbourhood(address[0])
        self.born = time.monotonic()
        self.unsent = deque[bytes | memoryview]()
        self.unsent_bytes = 0
        self.queued_bytes = 0  # ever
        self.events = 0  # what its selector looks for, 0 if it does not know the socket
        self.connecting = channel.calling is not None
        if tls is not None:
            self._push(tls.to_send())
        elif channel.calling is not None:
            self._queue(channel.call())

    @property
    def calling(self) -> int | None:
        """Whom this side has called, ``None`` if the other side called."""
        return self.channel.calling

    @property
    def peer(self) -> int | None:
        """The other side, ``None`` before it has proved who it is."""
        return self.channel.peer

    def is_old(self, now: float) -> bool:
        """Whether its handshake should be over.

        Then it was there before the other side could have called at the same moment.
        """
        return now > self.born + HANDSHAKE_SECONDS

    def send(self, message: Message, origin: Origin) -> bool:
        """Queue a message; ``False`` if there is no room because the other side does not keep up.

        Or if the channel cannot send it at all.
        """
        if self.unsent_bytes >= MAX_UNSENT_BYTES:
            return False
        data = self.channel.seal(message, origin)
        self._queue(data)
        return bool(data)

    def _queue(self, data: bytes) -> None:
        if self._tls is not None and data:
            self._tls.write(data)
            data = self._tls.to_send()
        self._push(data)

    def _push(self, data: bytes) -> None:
        if data:
            self.unsent.append(data)
            self.unsent_bytes += len(data)
            self.queued_bytes += len(data)

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

    def send_payload(self, payload: bytes) -> int:
        """Queue what a client and a member say to each other.

        Returns how many bytes will have been written when all of it has left: see ``written_bytes``.
        """
        self._queue(self.channel.frame(payload))
        return self.queued_bytes

    @property
    def written_bytes(self) -> int:
        """How many bytes the kernel has taken, in TLS or not."""
        return self.queued_bytes - self.unsent_bytes

    def read(self) -> list[tuple[Origin, Message]]:
        """What has arrived, each message with its origin. Raises ``Refused``, ``EOFError``, ``OSError``."""
        data = self._receive()
        return self.channel.open(data) if data else []

    def read_payloads(self) -> list[bytes]:
        """The same between a client and a member: what frames hold, undecoded."""
        data = self._receive()
        return self.channel.payloads(data) if data else []

    def _receive(self) -> bytes:
        """Bytes of frames, none if nothing is there or the handshake is going on."""
        if self._tls is not None:
            return self._receive_tls(self._tls)
        shaking_hands = self.peer is None
        try:
            data = self.sock.recv(self.channel.missing if shaking_hands else _READ_BYTES)
        except (BlockingIOError, InterruptedError):
            return b""
        if not data:
            raise EOFError
        if shaking_hands:
            self._queue(self.channel.shake_hands(data))
            return b""
        return data

    def _receive_tls(self, tls: Session) -> bytes:
        try:
            data = self.sock.recv(_READ_BYTES)
        except (BlockingIOError, InterruptedError):
            return b""
        if not data:
            raise EOFError
        established = tls.established
        found = b""
        try:
            tls.take_in(data)
            if tls.established and not established and self.calling is not None:
                self._queue(self.channel.call())
            while data := tls.read(self.channel.missing if self.peer is None else _READ_BYTES):
                if self.peer is None:
                    self._queue(self.channel.shake_hands(data))
                else:
                    found += data
        except Refused:
            with contextlib.suppress(OSError):
                self.sock.send(tls.to_send())  # so that the other side learns why
            raise
        self._push(tls.to_send())
        return found

    def watch(self, selector: selectors.BaseSelector, *, reading: bool = True) -> None:
        """Let a selector tell when there is something to read, if it shall be, or room for what is unsent."""
        wanted = (selectors.EVENT_READ if reading else 0) | (selectors.EVENT_WRITE if self.unsent else 0)
        if wanted == self.events:
            return
        if not wanted:
            selector.unregister(self.sock)
        elif not self.events:
            selector.register(self.sock, wanted, self)
        else:
            selector.modify(self.sock, wanted, self)
        self.events = wanted

    def close(self, selector: selectors.BaseSelector) -> None:
        """Close the socket, which a selector looks at or not."""
        if self.events:
            selector.unregister(self.sock)
            self.events = 0
        self.sock.close()
