"""One TCP connection: a socket, what waits to be written to it, and the conversation over it."""

from __future__ import annotations

import socket
import time
from collections import deque
from itertools import islice

from ondisk.net.addresses import Address, neighbourhood
from ondisk.net.channel import Channel
from ondisk.raft.limits import MAX_UNSENT_BYTES
from ondisk.raft.messages import Message, Origin

HANDSHAKE_SECONDS = 3.0  # for all of it
_READ_BYTES = 1 << 16  # a larger buffer costs more to make than it saves


class Connection:
    """A connection to ``channel.peer``, or to whoever has not proved yet to be somebody."""

    def __init__(self, sock: socket.socket, channel: Channel, address: Address) -> None:
        self.sock = sock
        self.channel = channel
        self.address = address
        self.neighbourhood = neighbourhood(address[0])
        self.born = time.monotonic()
        self.unsent = deque[bytes | memoryview]()
        self.unsent_bytes = 0
        self.awaits_room = True  # whether its selector tells when there is room to write: from the beginning
        self.connecting = channel.calling is not None
        if channel.calling is not None:
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
        if data:
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

    def read(self) -> list[tuple[Origin, Message]]:
        """What has arrived, each message with its origin. Raises ``Refused``, ``EOFError``, ``OSError``."""
        shaking_hands = self.peer is None
        try:
            data = self.sock.recv(self.channel.missing if shaking_hands else _READ_BYTES)
        except (BlockingIOError, InterruptedError):
            return []
        if not data:
            raise EOFError
        if shaking_hands:
            self._queue(self.channel.shake_hands(data))
            return []
        return self.channel.open(data)
