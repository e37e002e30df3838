"""Waker: ends a wait for sockets, from any thread and without a lock."""

from __future__ import annotations

import contextlib
import socket


class Waker:
    """A flag for who has not begun to wait yet, and a token through a socket for who sleeps in ``select``.

    There is no lock that an interrupted caller could leave locked: flag first, then a token for who sleeps
    already. Interrupted between the two, it delays this wake and takes nothing from the next.
    """

    def __init__(self) -> None:
        """Raises ``OSError``. Who waits selects on ``receiver``."""
        # Datagrams, so that one may be empty.
        self.receiver, self._sender = socket.socketpair(type=socket.SOCK_DGRAM)
        for sock in (self.receiver, self._sender):
            sock.setblocking(False)
        self._closed = False
        self._waits = 0
        self._asleep = 0  # the number of the present wait; 0 between two waits
        self._told = 0  # the wait for which a token was sent last
        self.awake = False

    def begin(self) -> None:
        """A wait begins: from now on who wakes sends a token. ``awake`` is looked at after this."""
        self._waits += 1
        self._asleep = self._waits

    def end(self) -> None:
        """The wait is over."""
        self._asleep = 0
        self.awake = False  # last: what was announced before is looked at after this wait

    def wake(self) -> None:
        """End the present or the next wait. From any thread, and a closed one does not mind."""
        self.awake = True
        wait = self._asleep
        if not wait or wait == self._told or self._closed:
            return  # nobody sleeps, or who sleeps has got its token, and only has to be let run
        # It is closed, or so many tokens are there that one more makes no difference.
        with contextlib.suppress(OSError):
            # Empty, because the endpoint may be closed right now, in its own thread, and the number of the
            # socket given to another one: no byte can stray into a conversation.
            self._sender.send(b"")
        self._told = wait  # not before: who was interrupted has sent none

    def take_tokens(self) -> None:
        """Take a token that has arrived at ``receiver``. There is hardly ever another one."""
        with contextlib.suppress(BlockingIOError, InterruptedError):
            self.receiver.recv(1)

    def close(self) -> None:
        """Close both sockets. A second call does nothing."""
        self._closed = True
        self.receiver.close()
        self._sender.close()
