"""``connect``: the verbs of ``Client`` for a program that hosts no replica."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable
from concurrent.futures import Future
from contextlib import suppress
from typing import TYPE_CHECKING, Any

import msgspec

from ondisk import diskkv
from ondisk.client import DEFAULT_TIMEOUT, Client, Via, checked, wait_for
from ondisk.diskkv import Scan, Text
from ondisk.errors import (
    CommandTooLarge,
    ConfigurationError,
    InvalidCommand,
    NoLeader,
    OndiskError,
    Rejected,
)
from ondisk.interrupts.shielded import pause, shielded, still_wanted
from ondisk.net.addresses import Address, parse_address
from ondisk.net.client_messages import MAX_ANSWER_BYTES, Body, ChangeGroup, Command, Compact, Look, Query
from ondisk.raft.limits import MAX_COMMAND_BYTES
from ondisk.raft.members import Members, check_id
from ondisk.raft.messages import (
    AddReplica,
    Change,
    MoveReplica,
    RemoveReplica,
    ReplaceReplica,
    TransferLeadership,
)
from ondisk.remote.courier import GRACE, Ask, Courier
from ondisk.replica import Inside, ReplicaStatus
from ondisk.statemachine import Result

if TYPE_CHECKING:
    from ondisk.net.tls import Certificates

_MORE = 2 * GRACE  # seconds that a caller waits longer than the courier, which has the last word


@shielded
def connect(
    endpoints: str | Iterable[str], *, secret: bytes | None = None, tls: Certificates | None = None
) -> RemoteClient:
    """A client of the group that is at these addresses: ``"a:63001,b:63001,c:63001"``, or a list.

    Some of the replicas are enough, and all of them better: what is not named here is not called. ``secret``
    is that of the group, and required beyond loopback; ``tls`` if the replicas speak TLS. Nobody has to be
    there yet: each request waits for its ``timeout``. Raises ``ConfigurationError`` for what is no
    address, and ``ResourceError``.
    """
    client = RemoteClient(endpoints, secret, tls)
    try:
        client._courier.start()
        still_wanted()
    except BaseException:
        client.close()
        raise
    return client


class RemoteClient(Client):
    """A client that is no member: made by ``connect``, and a context manager.

    Any number of threads may use it, and each have requests under way: there is one connection to each
    endpoint. It connects again by itself; what it sends again, and what not, stands in ``courier.py``.
    ``via`` is the number of a replica or an endpoint (``"a:63001"``), which then is the only one to be asked.
    """

    def __init__(
        self, endpoints: str | Iterable[str], secret: bytes | None, tls: Certificates | None
    ) -> None:
        """See ``connect``."""
        self._courier = Courier(self, _parsed(endpoints), secret, tls)

    @property
    def endpoints(self) -> tuple[str, ...]:
        """Where it calls."""
        return tuple(line.name for line in self._courier.lines)

    def unreachable(self) -> dict[str, str]:
        """The endpoints to which there is no connection now, and why."""
        return {line.name: line.why for line in self._courier.lines if not line.ready}

    @property
    def leader_id(self) -> int | None:
        """Who leads, as the answers so far have said."""
        return self._courier.leader or None

    @shielded
    def close(self) -> None:
        """Let go of the connections; what is under way is ``OutcomeUnknown``. A second call does nothing."""
        self._courier.close()

    def __enter__(self) -> RemoteClient:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    # Any state machine

    def propose_async(
        self, command: bytes, *, via: Via = None, timeout: float = DEFAULT_TIMEOUT
    ) -> Future[Result]:
        """Replicate a command. Callbacks of the future run in the client's thread and must be quick."""
        if not isinstance(command, bytes):
            raise TypeError(f"a command is bytes, not {type(command).__name__}")
        if len(command) > MAX_COMMAND_BYTES:
            raise CommandTooLarge(
                f"the command has {len(command):,} bytes; at most {MAX_COMMAND_BYTES:,} are allowed"
            )
        return self._ask(Command(command), via, timeout)

    def propose(self, command: bytes, *, via: Via = None, timeout: float = DEFAULT_TIMEOUT) -> Result:
        """Replicate a command and wait until it is applied."""
        return wait_for(self.propose_async(command, via=via, timeout=timeout), checked(timeout) + _MORE)

    def read_async(
        self, query: Any, *, via: Via = None, timeout: float = DEFAULT_TIMEOUT, lease: bool = False
    ) -> Future[Any]:
        """A linearizable read, without waiting for its answer."""
        return self._query(query, "lease" if lease else "linearizable", via, timeout)

    def read(
        self, query: Any, *, via: Via = None, timeout: float = DEFAULT_TIMEOUT, lease: bool = False
    ) -> Any:
        """A linearizable read: see ``Client.read``. The query is one of those that the machine names."""
        return wait_for(
            self.read_async(query, via=via, timeout=timeout, lease=lease), checked(timeout) + _MORE
        )

    def stale_read_async(
        self, query: Any, *, via: Via = None, timeout: float = DEFAULT_TIMEOUT
    ) -> Future[Any]:
        """What some replica's own state says, without waiting for its answer."""
        return self._query(query, "stale", via, timeout)

    def stale_read(self, query: Any, *, via: Via = None, timeout: float = DEFAULT_TIMEOUT) -> Any:
        """What one replica's own state says: it may be old, even by hours, and older than the time before."""
        return wait_for(self.stale_read_async(query, via=via, timeout=timeout), checked(timeout) + _MORE)

    def stale_get(self, key: Text, *, via: Via = None, timeout: float = DEFAULT_TIMEOUT) -> bytes | None:
        """What one replica's own state says: maybe an old value."""
        value: bytes | None = self.stale_read(diskkv.get(key), via=via, timeout=timeout)
        return value

    def _query(self, query: Any, how: Any, via: Via, timeout: float) -> Future[Any]:
        answer = getattr(query, "answer", None)
        if not isinstance(query, msgspec.Struct) or answer is None:
            raise InvalidCommand(
                f"{type(query).__name__} does not travel: a query is a msgspec.Struct that names its answer "
                "(see OnDiskStateMachine.queries)"
            )
        if isinstance(query, Scan) and query.max_bytes is None:
            query = msgspec.structs.replace(query, max_bytes=MAX_ANSWER_BYTES - 64)
        try:
            encoded = msgspec.msgpack.encode(query)
        except (TypeError, OverflowError) as error:
            raise InvalidCommand(f"this query cannot be sent: {error}") from None
        decode = msgspec.msgpack.Decoder(answer).decode
        return self._ask(Query(encoded, how), via, timeout, repeatable=True, decode=decode)

    def _ask(
        self,
        body: Body,
        via: Via,
        timeout: float,
        *,
        repeatable: bool = False,
        decode: Callable[[bytes], Any] | None = None,
    ) -> Future[Any]:
        deadline = time.monotonic() + checked(timeout)
        return self._courier.ask(Ask(body, deadline, via, repeatable=repeatable, decode=decode))

    # The group

    def status(self, *, timeout: float = 1.0) -> dict[int, ReplicaStatus]:
        """Every replica that answers at one of the endpoints, as it was at the end of its last step."""
        decode = msgspec.msgpack.Decoder(ReplicaStatus).decode
        asked = [
            self._ask(Look("status"), endpoint, timeout, repeatable=True, decode=decode)
            for endpoint in self.endpoints
        ]
        found = {}
        for future in asked:
            with suppress(OndiskError):
                status: ReplicaStatus = wait_for(future, timeout + _MORE)
                found[status.id] = status
        return dict(sorted(found.items()))

    def members(self, *, via: Via = None, timeout: float = DEFAULT_TIMEOUT) -> Members:
        """Who belongs to the group and where, as one replica knows it: the leader, if it can be asked."""
        decode = msgspec.msgpack.Decoder(Members).decode
        found: Members = wait_for(
            self._ask(Look("members"), via, timeout, repeatable=True, decode=decode), timeout + _MORE
        )
        return found

    def inside(self, via: Via, *, timeout: float = 1.0) -> Inside:
        """The newest entries of one replica's log, and its election, for pictures: see ``Node.inside``.

        The command of an entry that is longer than 4 kB is left out: it is empty.
        """
        decode = msgspec.msgpack.Decoder(Inside).decode
        found: Inside = wait_for(
            self._ask(Look("inside"), via, timeout, repeatable=True, decode=decode), timeout + _MORE
        )
        return found

    def wait_for_leader(self, timeout: float = 10.0) -> int:
        """Return the leader's id as soon as a replica knows of one. Raises ``NoLeader``."""
        deadline = time.monotonic() + checked(timeout)
        while True:
            left = deadline - time.monotonic()
            known = [each.leader_id for each in self.status(timeout=min(1.0, max(0.05, left))).values()]
            leaders = [leader for leader in known if leader is not None]
            if leaders:
                return leaders[0]
            if left <= 0:
                raise NoLeader(
                    f"no replica at {', '.join(self.endpoints)} knows of a leader within {timeout:g} s"
                )
            pause(0.02)

    def add_replica(self, replica_id: int, address: str = "", *, timeout: float = DEFAULT_TIMEOUT) -> None:
        """Make another replica a member; return when that is committed."""
        self._change(AddReplica(_checked_id(replica_id), address), timeout)

    def remove_replica(self, replica_id: int, *, timeout: float = DEFAULT_TIMEOUT) -> None:
        """Take a member out of the group, for good."""
        self._change(RemoveReplica(_checked_id(replica_id)), timeout)

    def replace_replica(self, replica_id: int, *, timeout: float = DEFAULT_TIMEOUT) -> None:
        """Take the disk of a member for lost: see ``Client.replace_replica``."""
        disk = self.members(timeout=timeout).disk_of(_checked_id(replica_id))
        self._change(ReplaceReplica(replica_id, disk), timeout)

    def move_replica(self, replica_id: int, address: str, *, timeout: float = DEFAULT_TIMEOUT) -> None:
        """Say where a member is from now on (``host:port``)."""
        parse_address(address)
        self._change(MoveReplica(_checked_id(replica_id), address), timeout)

    def transfer_leadership(self, to: int, *, timeout: float = DEFAULT_TIMEOUT) -> None:
        """Let another voter lead."""
        self._change(TransferLeadership(_checked_id(to)), timeout)

    def compact(self, via: Via, *, timeout: float = DEFAULT_TIMEOUT) -> int:
        """Let one replica drop its log up to what its state holds: see ``Node.compact``."""
        result: Result = wait_for(
            self._ask(Compact(), via, timeout, repeatable=True), checked(timeout) + _MORE
        )
        assert isinstance(result.value, int)
        return result.value

    def _change(self, change: Change, timeout: float) -> None:
        result: Result = wait_for(self._ask(ChangeGroup(change), None, timeout), checked(timeout) + _MORE)
        if result.error is not None:
            raise Rejected(result.error)


def _parsed(endpoints: str | Iterable[str]) -> list[Address]:
    texts = endpoints.split(",") if isinstance(endpoints, str) else list(endpoints)
    addresses = list(dict.fromkeys(map(parse_address, texts)))
    if not addresses:
        raise ConfigurationError("a client needs the address of one replica at least")
    return addresses


def _checked_id(replica_id: int) -> int:
    check_id(replica_id)
    return replica_id
