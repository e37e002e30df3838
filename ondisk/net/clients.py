"""The clients of one endpoint: so many and no more, and none asks faster than it takes its answers.

A client has proved that it knows the secret, as a member has; but it is none: nothing that it says reaches
Raft, it takes no place of a member, and it cannot make this side hold more than some MB for it. Who has many
requests under way, or does not take its answers, is not read from for a while: TCP tells it to wait.
"""

from __future__ import annotations

from typing import NamedTuple

import msgspec

from ondisk.net.channel import Refused
from ondisk.net.client_messages import Request, Response, encoder, request_decoder
from ondisk.net.connection import Connection
from ondisk.raft.limits import MAX_UNSENT_BYTES

MAX_CLIENTS = 256
MAX_UNDER_WAY = 256  # requests of one client; one read of its socket may bring more
MAX_UNDER_WAY_BYTES = 4 << 20
MAX_UNTAKEN_BYTES = 1 << 20  # of answers, before a client may ask again


class Call(NamedTuple):
    """A request, who asks, and how many bytes it has."""

    connection: Connection
    request: Request
    size: int


class _Load:
    """What one client has under way."""

    __slots__ = ("requests", "size")

    def __init__(self) -> None:
        self.requests = self.size = 0


class Clients:
    """Used by the thread of the endpoint, which serves their sockets."""

    def __init__(self) -> None:
        self.arrived: list[Call] = []
        self._loads: dict[Connection, _Load] = {}
        self._answered: dict[Connection, None] = {}

    def __len__(self) -> int:
        return len(self._loads)

    @property
    def connections(self) -> tuple[Connection, ...]:
        """Of those that are there now."""
        return tuple(self._loads)

    def admit(self, connection: Connection) -> bool:
        """Give it a place; ``False`` if there is none left."""
        if len(self._loads) >= MAX_CLIENTS:
            return False
        self._loads[connection] = _Load()
        return True

    def forget(self, connection: Connection) -> None:
        """It has gone. What it asked for goes on, and the answer to it is dropped."""
        self._loads.pop(connection, None)
        self._answered.pop(connection, None)

    def take(self, connection: Connection, payloads: list[bytes]) -> None:
        """These have arrived from it. Raises ``Refused`` for what is no request."""
        load = self._loads[connection]
        for payload in payloads:
            try:
                request = request_decoder.decode(payload)
            except (msgspec.DecodeError, UnicodeDecodeError, RecursionError, MemoryError) as error:
                raise Refused("not a request: %s", error) from None
            load.requests += 1
            load.size += len(payload)
            self.arrived.append(Call(connection, request, len(payload)))

    def may_ask(self, connection: Connection) -> bool:
        """Whether it is to be read from; whoever is no client is, always."""
        if (load := self._loads.get(connection)) is None:
            return True
        return (
            load.requests < MAX_UNDER_WAY
            and load.size < MAX_UNDER_WAY_BYTES
            and connection.unsent_bytes < MAX_UNTAKEN_BYTES
        )

    def answer(self, call: Call, response: Response) -> None:
        """Queue an answer; ``to_flush`` tells that there is something to write."""
        if (load := self._loads.get(call.connection)) is None:
            return
        load.requests -= 1
        load.size -= call.size
        self.tell(call.connection, response)

    def tell(self, connection: Connection, response: Response) -> None:
        """Queue what nobody has asked for."""
        connection.send_payload(encoder.encode(response))
        self._answered[connection] = None

    def to_flush(self) -> list[Connection]:
        """Those with new answers since the last call."""
        answered, self._answered = list(self._answered), {}
        return answered

    @staticmethod
    def takes_nothing(connection: Connection) -> bool:
        """Whether it asked for more than it takes, and has to go."""
        return connection.unsent_bytes > MAX_UNSENT_BYTES
