"""How messages travel: the small interface that a network in memory and TCP have in common.

Replicas speak over *links*: one from each replica to each other one. A link delivers in order (FIFO), and
may lose messages. That is what Raft needs, and all that TCP gives when connections break.

A replica sees only its ``Endpoint``. It never waits in ``send`` and nothing is delivered behind its
back: it asks with ``receive`` when its step begins.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Protocol

from ondisk.raft.messages import Message, Origin


class Endpoint(Protocol):
    """One replica's end of the network."""

    @property
    def advertised(self) -> str:
        """Where others reach this replica, ``host:port`` on TCP, empty in memory."""

    def introduce(self, origin: Origin) -> None:
        """Stamp everything that is sent from now on with this."""

    def send(self, to: int, message: Message) -> bool:
        """Send, or lose, one message. Never blocks. ``False``: it certainly did not leave."""

    def receive(self) -> list[tuple[int, Origin, Message]]:
        """Everything that has arrived since the last call, as (sender, its origin, message), in order.

        The origin is the same object as long as the sender has not introduced itself anew.
        """

    def connected(self) -> frozenset[int]:
        """The replicas that seem reachable. A silent loss of messages does not show here."""

    def add_peers(self, addresses: Mapping[int, str]) -> None:
        """Learn where members are that were added to the group. A network in memory knows."""

    def wait(self, seconds: float) -> None:
        """Return when something arrives, when ``wake`` is called, or after ``seconds``."""

    def wake(self) -> None:
        """End the present or the next ``wait``. May be called from any thread."""

    def close(self) -> None:
        """Leave the network. A second call does nothing."""


class Network(Protocol):
    """Where endpoints come from."""

    def attach(self, replica_id: int) -> Endpoint:
        """Join as this replica. Raises ``PortInUse`` if the address is taken."""
