"""Connections: two processes may run under one number, and each of the others is connected to one of them.

A connection stands for a number, and a newer one takes its place: so with a second process a number has two
*hosts*, and who speaks to it reaches the one that has called last. What the other one says is lost.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable

from ondisk.net.endpoint import Endpoint
from ondisk.raft.messages import Message, Origin

_SECOND = 1000  # added to a number: the host of its second process


def second_of(member: int) -> int:
    """The host of the second process under this number. The first one's host is the number itself."""
    return member + _SECOND


def number_of(host: int) -> int:
    """The number under which the process on this host runs."""
    return host % _SECOND


class Connections:
    """Whom each host reaches under a number."""

    def __init__(self) -> None:
        self._reached: dict[tuple[int, int], int] = {}  # by calling host and number
        self._broken: set[int] = set()  # numbers to and from which no connection lasts

    def reached(self, caller: int, number: int) -> int:
        """The host that this one reaches under a number."""
        return self._reached.get((caller, number), number)

    def connect(self, caller: int, host: int) -> None:
        """From now on this one is reached under its number."""
        self._reached[caller, number_of(host)] = host

    def hang_up(self, host: int) -> None:
        """Nobody reaches this one any more, if there is another one under its number."""
        self._reached = {pair: reached for pair, reached in self._reached.items() if reached != host}

    def break_off(self, number: int) -> None:
        """All connections to and from this number end, which both ends notice, and no new one is made."""
        self._broken.add(number)

    def mend(self, number: int) -> None:
        """There can be connections again."""
        self._broken.discard(number)

    def mend_all(self) -> None:
        """With everybody."""
        self._broken.clear()

    def lasting(self, caller: int, numbers: frozenset[int]) -> frozenset[int]:
        """With which of these a host is connected."""
        if not self._broken:  # nearly always
            return numbers
        return frozenset() if number_of(caller) in self._broken else numbers - self._broken


class ConnectedEndpoint:
    """The endpoint of a host: its replica sees numbers, and the network below has hosts.

    What leaves is looked at, and may become something else; of what is received it knows whose it is.
    """

    def __init__(
        self,
        host: int,
        endpoint: Endpoint,
        connections: Connections,
        leaving: Callable[[int, Message], Iterable[Message]],
    ) -> None:
        self._host = host
        self._endpoint = endpoint
        self._connections = connections
        self._leaving = leaving
        self.origins: dict[int, Origin] = {}  # of what was received last, by the identity of the message
        self._seen: frozenset[int] = frozenset()  # the hosts that seemed reachable at the last look
        self._numbers: frozenset[int] = frozenset()  # and their numbers
        self.introduce, self.advertised = endpoint.introduce, endpoint.advertised
        self.add_peers = endpoint.add_peers
        self.wait, self.wake, self.close = endpoint.wait, endpoint.wake, endpoint.close

    def receive(self) -> list[tuple[int, Origin, Message]]:
        """What has arrived from those whose connection stands for their number."""
        self.origins = {}
        received = []
        for sender, origin, message in self._endpoint.receive():
            number = number_of(sender)
            if self._connections.reached(self._host, number) == sender:
                received.append((number, origin, message))
                self.origins[id(message)] = origin
        return received

    def send(self, to: int, message: Message) -> bool:
        """Send what becomes of it to whoever is reached under this number."""
        reached = self._connections.reached(self._host, to)
        return all([self._endpoint.send(reached, each) for each in self._leaving(to, message)])

    def connected(self) -> frozenset[int]:
        """The numbers of the others that seem reachable."""
        if (seen := self._endpoint.connected()) is not self._seen:
            self._seen = seen
            self._numbers = frozenset(map(number_of, seen)) - {number_of(self._host)}
        return self._connections.lasting(self._host, self._numbers)
