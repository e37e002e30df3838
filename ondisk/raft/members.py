"""Members: who belongs to the group. Its changes are entries of the log like everything else.

A change takes effect when it is *appended*, not when it is committed, and there is one at a time, by one
replica. So any majority of the old members and any majority of the new ones have a replica in common, and
no two leaders can be elected beside each other (Raft thesis, 4.1).

A new replica begins as a *learner*: it is sent everything and counts for nothing. When it has caught up,
the leader makes it a *voter*. An id that was removed stays out for good: the directory of a removed
replica, started again by mistake, must not find its way back.

A voter is a number *and a disk* (Kafka's KIP-853): a replica that lost its directory has another disk, and so
does not count under its old number, whatever it says. What is not named here cannot be counted by anybody.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable
from typing import Annotated

import msgspec

from ondisk.errors import ConfigurationError

MAX_ID = (1 << 63) - 1
Id = Annotated[int, msgspec.Meta(ge=1, le=MAX_ID)]
Disk = Annotated[bytes, msgspec.Meta(max_length=16)]

# The group of all directories that were written before groups had ids: voters have no disks in it.
LEGACY = b"legacy".ljust(16, b"\0")


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


def short(name: bytes) -> str:
    """The id of a group or a disk for people: its first eight digits."""
    return "legacy" if name == LEGACY else name.hex()[:8] or "none"


class Members(msgspec.Struct, frozen=True, array_like=True, forbid_unknown_fields=True):
    """The configuration of a group at one index of its log."""

    voters: tuple[Id, ...]
    learners: tuple[Id, ...] = ()
    removed: tuple[Id, ...] = ()
    where: tuple[tuple[Id, str], ...] = ()  # on TCP; in memory everybody is found by number
    group: Disk = b""  # the group's id: empty before it is founded
    disks: tuple[tuple[Id, Disk], ...] = ()  # of the voters
    replaced: tuple[Disk, ...] = ()  # disks that were lost: nothing that they say counts any more

    @property
    def addresses(self) -> dict[int, str]:
        """``host:port`` of the members, on TCP."""
        return dict(self.where)

    @property
    def all(self) -> frozenset[int]:
        """Voters and learners."""
        return frozenset(self.voters + self.learners)

    def disk_of(self, replica_id: int) -> bytes:
        """The disk that votes under this number; empty if none is known."""
        return dict(self.disks).get(replica_id, b"")

    def _with(self, **changes: object) -> Members:
        return msgspec.structs.replace(self, **changes)

    def with_learner(self, replica_id: int, address: str = "") -> Members:
        """Add a replica that does not count yet; the same members if it is there already, at this address.

        Raises ``ConfigurationError`` if it must not be.
        """
        if replica_id in self.removed:
            raise ConfigurationError(
                f"replica {replica_id} was removed, and a removed id stays out: choose another one"
            )
        if (replica_id, address) in self.where:
            return self
        if replica_id in self.all:
            at = self.addresses.get(replica_id)
            raise ConfigurationError(
                f"replica {replica_id} is a member already"
                + (f", at {at}: if it has another address now, move it" if address and at else "")
            )
        self._check_address(address)
        where = (*self.where, (replica_id, address)) if address else self.where
        return self._with(learners=_sorted({*self.learners, replica_id}), where=where)

    def _check_address(self, address: str) -> None:
        if any(taken == address for _, taken in self.where):
            raise ConfigurationError(f"another member has the address {address}")

    def with_voter(self, replica_id: int, disk: bytes) -> Members:
        """Let a learner count, with this disk. Raises ``ConfigurationError`` if it is none."""
        if replica_id not in self.learners:
            raise ConfigurationError(f"replica {replica_id} is not a learner")
        if disk in self.replaced:
            raise ConfigurationError(f"the disk {short(disk)} of replica {replica_id} was taken for lost")
        return self._with(
            voters=_sorted({*self.voters, replica_id}),
            learners=_without(self.learners, replica_id),
            disks=(*self._other_disks(replica_id), (replica_id, disk)),
        )

    def with_replaced(self, replica_id: int, disk: bytes) -> Members:
        """Forget the disk of a voter, which is a learner from now on; the same members if that is done.

        Raises ``ConfigurationError`` if it is no member, or the last voter.
        """
        if replica_id in self.learners or (replica_id in self.voters and self.disk_of(replica_id) != disk):
            return self
        self._check_may_go(replica_id)
        return self._with(
            voters=_without(self.voters, replica_id),
            learners=_sorted({*self.learners, replica_id}),
            disks=self._other_disks(replica_id),
            replaced=(*self.replaced, disk) if disk else self.replaced,
        )

    def with_address(self, replica_id: int, address: str) -> Members:
        """Say where a member is now; the same members if that is known. Raises ``ConfigurationError``."""
        if replica_id not in self.all:
            raise ConfigurationError(f"replica {replica_id} is not a member: {sorted(self.all)} are")
        if (replica_id, address) in self.where:
            return self
        self._check_address(address)
        others = tuple(pair for pair in self.where if pair[0] != replica_id)
        return self._with(where=(*others, (replica_id, address)))

    def without(self, replica_id: int) -> Members:
        """Remove a replica for good; the same members if that was done already.

        Raises ``ConfigurationError`` if it is no member, or the last voter.
        """
        if replica_id in self.removed:
            return self
        self._check_may_go(replica_id)
        return self._with(
            voters=_without(self.voters, replica_id),
            learners=_without(self.learners, replica_id),
            removed=_sorted({*self.removed, replica_id}),
            where=tuple(pair for pair in self.where if pair[0] != replica_id),
            disks=self._other_disks(replica_id),
        )

    def _check_may_go(self, replica_id: int) -> None:
        if replica_id not in self.all:
            raise ConfigurationError(f"replica {replica_id} is not a member: {sorted(self.all)} are")
        if self.voters == (replica_id,):
            raise ConfigurationError(
                f"replica {replica_id} is the last voter: nobody else could go on, or bring it up to date"
            )

    def identified(self, group: bytes, disks: Iterable[tuple[int, bytes]]) -> Members:
        """Give a group from before groups had ids one, and its voters disks (docs/protocol.md, L2)."""
        return self._with(group=group, disks=tuple(sorted(disks)))

    def _other_disks(self, replica_id: int) -> tuple[tuple[int, bytes], ...]:
        return tuple(pair for pair in self.disks if pair[0] != replica_id)


def _sorted(ids: Iterable[int]) -> tuple[int, ...]:
    return tuple(sorted(ids))


def _without(ids: Iterable[int], replica_id: int) -> tuple[int, ...]:
    return tuple(other for other in ids if other != replica_id)


_encoder = msgspec.msgpack.Encoder()
_decoder = msgspec.msgpack.Decoder(Members)


def encode(members: Members) -> bytes:
    """As it stands in the log."""
    return _encoder.encode(members)


def decode(data: bytes) -> Members:
    """The other way round. Raises ``msgspec.DecodeError``."""
    return _decoder.decode(data)
