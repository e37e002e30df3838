"""Members: who belongs to the group. Its changes are entries of the log like everything else.

A change takes effect when it is *appended*, not when it is committed, and there is one at a time, by one
replica. So any majority of the old members and any majority of the new ones have a replica in common, and
no two leaders can be elected beside each other (Raft thesis, 4.1).

A new replica begins as a *learner*: it is sent everything and counts for nothing. When it has caught up,
the leader makes it a *voter*. An id that was removed stays out for good: the directory of a removed
replica, started again by mistake, must not find its way back.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable
from typing import Annotated

import msgspec

from ondisk.errors import ConfigurationError

MAX_ID = (1 << 63) - 1
Id = Annotated[int, msgspec.Meta(ge=1, le=MAX_ID)]


def check_id(replica_id: object) -> None:
    """Raise ``ConfigurationError`` for what cannot be the id of a replica."""
    if not isinstance(replica_id, int) or isinstance(replica_id, bool) or not 1 <= replica_id <= MAX_ID:
        raise ConfigurationError(f"the id of a replica is a whole number from 1 on, not {replica_id!r:.60}")


def check_ids(replica_ids: Collection[object]) -> None:
    """Raise ``ConfigurationError`` unless these can be the first members: all different, and one at least."""
    for replica_id in replica_ids:
        check_id(replica_id)
    if len(set(replica_ids)) != len(replica_ids) or not replica_ids:
        raise ConfigurationError(f"members must be different and at least one: {list(replica_ids)}")


class Members(msgspec.Struct, frozen=True, array_like=True, forbid_unknown_fields=True):
    """The configuration of a group at one index of its log."""

    voters: tuple[Id, ...]
    learners: tuple[Id, ...] = ()
    removed: tuple[Id, ...] = ()
    where: tuple[tuple[Id, str], ...] = ()  # of those added; the first ones know each other by other means

    @property
    def addresses(self) -> dict[int, str]:
        """``host:port`` of the members that were added, on TCP."""
        return dict(self.where)

    @property
    def all(self) -> frozenset[int]:
        """Voters and learners."""
        return frozenset(self.voters + self.learners)

    def with_learner(self, replica_id: int, address: str = "") -> Members:
        """Add a replica that does not count yet; the same members if it is there already, at this address.

        Raises ``ConfigurationError`` if it must not be.
        """
        if replica_id in self.removed:
            raise ConfigurationError(
                f"replica {replica_id} was removed, and a removed id stays out: choose another one"
            )
        if address and (replica_id, address) in self.where:
            return self
        if replica_id in self.all:
            raise ConfigurationError(f"replica {replica_id} is a member already")
        if address and address in self.addresses.values():
            raise ConfigurationError(f"another member has the address {address}")
        where = (*self.where, (replica_id, address)) if address else self.where
        return Members(self.voters, _sorted({*self.learners, replica_id}), self.removed, where)

    def with_voter(self, replica_id: int) -> Members:
        """Let a learner count. Raises ``ConfigurationError`` if it is none."""
        if replica_id not in self.learners:
            raise ConfigurationError(f"replica {replica_id} is not a learner")
        learners = tuple(other for other in self.learners if other != replica_id)
        return Members(_sorted({*self.voters, replica_id}), learners, self.removed, self.where)

    def without(self, replica_id: int) -> Members:
        """Remove a replica for good; the same members if that was done already.

        Raises ``ConfigurationError`` if it is no member, or the last voter.
        """
        if replica_id in self.removed:
            return self
        if replica_id not in self.all:
            raise ConfigurationError(f"replica {replica_id} is not a member: {sorted(self.all)} are")
        voters = tuple(other for other in self.voters if other != replica_id)
        if not voters:
            raise ConfigurationError(f"replica {replica_id} is the last voter and cannot be removed")
        learners = tuple(other for other in self.learners if other != replica_id)
        where = tuple((other, address) for other, address in self.where if other != replica_id)
        return Members(voters, learners, _sorted({*self.removed, replica_id}), where)


def _sorted(ids: Iterable[int]) -> tuple[int, ...]:
    return tuple(sorted(ids))


_encoder = msgspec.msgpack.Encoder()
_decoder = msgspec.msgpack.Decoder(Members)


def encode(members: Members) -> bytes:
    """As it stands in the log."""
    return _encoder.encode(members)


def decode(data: bytes) -> Members:
    """The other way round. Raises ``msgspec.DecodeError``."""
    return _decoder.decode(data)
