"""Belonging: a replica looks for a group, or keeps to its own (docs/protocol.md)."""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence

from ondisk.errors import ConfigurationError
from ondisk.identity.founding import Founding
from ondisk.identity.origins import Origins
from ondisk.interrupts.futures import Future
from ondisk.net.endpoint import Endpoint
from ondisk.raft import Raft
from ondisk.raft.log import RaftLog
from ondisk.raft.members import Members, short
from ondisk.raft.messages import Found, Membership, Message, Origin, Refused

logger = logging.getLogger(__name__)


class Belonging:
    """Says who is heard, and tells the network who belongs to the group and where they are.

    Invariant: a replica belongs to one group for ever, durably before it says so. Until then it votes for a
    founding only.
    """

    def __init__(
        self,
        raft: Raft,
        log: RaftLog,
        endpoint: Endpoint,
        first: Sequence[int],
        *,
        send: Callable[[int, Message], None],
        origins_type: type[Origins],
        founding_type: type[Founding],
    ) -> None:
        """``first`` are the members that the replica was first started with."""
        self._raft = raft
        self._log = log
        self._endpoint = endpoint
        self._members_known = raft.members  # to the network
        self._committed_known = raft.committed_members
        endpoint.add_peers(raft.members.addresses)
        self.origins = origins_type(raft.id, log, raft, send)
        endpoint.introduce(self.origins.own())
        self._founding: Founding | None = None
        if not log.members.group:
            self._founding = founding_type(log, first, endpoint.advertised, send)
        self._connected: frozenset[int] = frozenset()

    @property
    def refused(self) -> str | None:
        """Why this replica must stop, if it must."""
        return self.origins.refused

    def hears(self, sender: int, origin: Origin, message: Message) -> bool:
        """Whether a message comes from a member of this group."""
        return self.origins.known.get(sender) is origin or self.origins.accept(sender, origin, message)

    def receive_from_outside(self, sender: int, origin: Origin, message: Message) -> None:
        """What may be said between a group and who is not in it, or not yet; all else is not heard."""
        if isinstance(message, Refused):
            self.origins.on_refused(sender, origin, message)
        elif isinstance(message, Found):
            if self._founding is not None:
                self._founding.on_found(sender, origin, message)
            elif not origin.group:
                self.origins.introduce_members(sender, origin)
        elif isinstance(message, Membership):
            if self._founding is None or origin.group != message.members.group:
                self.origins.on_membership(origin, message)
                return
            self._endpoint.add_peers(message.members.addresses)
            if (members := self._founding.on_membership(sender, message)) is not None:
                self._begin(members)

    def set_connected(self, connected: frozenset[int]) -> None:
        """Tell which replicas seem reachable: those that are new hear who the members are."""
        if connected != self._connected:
            self.origins.greet(sorted(connected - self._connected))
            self._connected = connected

    def step(self, now: float) -> None:
        """Tell who has become a member; ask and vote, as long as this replica belongs to no group."""
        if (committed := self._raft.committed_members) is not self._committed_known:
            new = committed.all - self._committed_known.all
            self._committed_known = committed
            if self._raft.is_leader:  # before its next entries, which nobody hears who belongs to no group
                self.origins.greet(sorted(new & self._connected))
        if self._founding is not None:
            members = self._founding.step(now, self._endpoint.connected())
            if members is not None:
                self._begin(members)

    def _begin(self, members: Members) -> None:
        self._founding = None
        self._connected = frozenset()  # now there is something to greet them with
        self._log.begin_group(members)
        self._raft.begin_group()
        logger.info("replica %d belongs to group %s", self._raft.id, short(members.group))

    def found(self, members: Sequence[int], future: Future[None]) -> None:
        """Found the group with these members only; the future ends when that is noted."""
        if self._founding is None:
            group = short(self._raft.members.group)
            reason = f"replica {self._raft.id} belongs to group {group} already"
            future.set_exception(ConfigurationError(reason))
            return
        try:
            self._founding.use_fewer(members)
        except ConfigurationError as error:
            future.set_exception(error)
        else:
            future.set_result(None)

    def before_sending(self) -> None:
        """Tell the network what it stamps messages with, and where the members are."""
        if self._raft.members is not self._members_known:
            self._members_known = self._raft.members
            self._endpoint.add_peers(self._members_known.addresses)
        if (origin := self.origins.changed()) is not None:
            self._endpoint.introduce(origin)

    def next_wakeup(self) -> float:
        """When ``step`` must be called again even if nothing happens, in the clock's seconds."""
        return float("inf") if self._founding is None else self._founding.next_wakeup()

    def problem(self) -> str | None:
        """What keeps this replica from taking part, for people."""
        if self._founding is not None:
            return self._founding.problem()
        return self.origins.problem() if self._raft.leader_id is None else None
