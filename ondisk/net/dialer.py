"""Dialer: whom to call when, and at which of the addresses that a name stands for."""

from __future__ import annotations

import socket
import time
from collections.abc import Iterator, Mapping

from ondisk.net.addresses import Address
from ondisk.net.ratelimit import RateLimitedLog
from ondisk.net.resolver import Resolver, Where
from ondisk.net.sockets import reason

RECONNECT_SECONDS = 0.2
PATIENCE_SECONDS = 1.0  # of the lower id, for a call of the higher one


class Dialer:
    """Calls the peers of one endpoint, until they are reached. Used by its thread."""

    def __init__(self, own_id: int, addresses: Mapping[int, Address], log: RateLimitedLog) -> None:
        """``addresses`` is the endpoint's own mapping, as it is at each time."""
        self._id = own_id
        self._addresses = addresses
        self._log = log
        self._resolver = Resolver()
        self._untried: dict[int, list[Where]] = {}  # of all that a peer's address stands for
        self._call_at: dict[int, float] = {}
        for peer in addresses:
            self._call_soon(peer)

    def _call_soon(self, peer: int) -> None:
        """The one with the higher id calls at once; the other one gives it some time, and then calls, too.

        For who calls may be the only one that knows an address.
        """
        if peer != self._id:
            self._call_at[peer] = 0.0 if peer < self._id else time.monotonic() + PATIENCE_SECONDS

    def on_address(self, peer: int) -> None:
        """A peer has another address, or is new."""
        self._untried.pop(peer, None)
        self._call_soon(peer)

    def on_connected(self, peer: int) -> None:
        """A peer was reached, or has called."""
        self._untried.pop(peer, None)

    def on_lost(self, peer: int) -> None:
        """The connection to a peer has ended. One at no known address has to call by itself."""
        if peer in self._call_at:
            self._call_soon(peer)

    def on_failed(self, peer: int) -> None:
        """A call ended before the peer had proved who it is: try its next address, if there is one."""
        if self._untried.get(peer):
            self._call_at[peer] = 0.0

    def due(self, now: float) -> Iterator[int]:
        """The peers to be called now, if they are not connected; each again after ``RECONNECT_SECONDS``."""
        for peer, call_at in self._call_at.items():
            if now >= call_at:
                yield peer

    def postpone(self, peer: int, now: float) -> None:
        """Do not call a peer again before ``RECONNECT_SECONDS`` have passed."""
        self._call_at[peer] = now + RECONNECT_SECONDS

    def dial(self, peer: int) -> socket.socket | None:
        """A socket that is connecting to the next address of a peer; ``None`` if there is none to try."""
        address = self._addresses[peer]
        try:
            untried = self._untried[peer] = self._untried.get(peer) or self._resolver.resolve(address)
        except OSError as error:
            self._log.own(address[0], "cannot call replica %d at %s:%s: %s", peer, *address, error)
            return None
        while untried:
            family, where = untried.pop(0)
            try:
                sock = socket.socket(family, socket.SOCK_STREAM)
            except OSError as error:
                if not untried:  # this machine may have no IPv6, for one
                    self._log.own(
                        address[0], "cannot call replica %d at %s:%s: %s", peer, *address, reason(error)
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
            return sock
        return None

    def known_hosts(self) -> set[str]:
        """The IP addresses that members are known to have."""
        return set[str]().union(*map(self._resolver.known_hosts, self._addresses.values()))
