"""AsyncClient: the verbs of ``RemoteClient`` with ``await``. The same courier does the work.

A request is a future of the courier, which asyncio awaits: thousands may be under way, and none has a thread.
What is a conversation and not one request (a session, a bulk load, status) runs in asyncio's pool of threads.
"""

from __future__ import annotations

import math
import time
from collections.abc import AsyncIterator, Callable, Iterable, Sequence
from concurrent.futures import Future
from typing import TYPE_CHECKING, Any, ParamSpec, TypeVar

from ondisk import diskkv, locks
from ondisk.bulk import TIMEOUT, Pairs
from ondisk.client import DEFAULT_TIMEOUT, Number, Session, Truth, Via, checked, done
from ondisk.diskkv import Text
from ondisk.errors import InvalidCommand, LeaseEnded, NoLeader, NotDone, OutcomeUnknown, ReplicaStopped
from ondisk.raft.members import Members
from ondisk.remote.client import RemoteClient, connect
from ondisk.replica import ReplicaStatus
from ondisk.statemachine import Result
from ondisk.verbs import changes, digest, txn
from ondisk.verbs.changes import Changed, Changes, Page
from ondisk.verbs.texts import as_key, as_value
from ondisk.watching import POLL_SECONDS, Place

if TYPE_CHECKING:
    from ondisk.net.tls import Certificates

_P = ParamSpec("_P")
_T = TypeVar("_T")


async def _end_of(future: Future[_T]) -> _T:
    import asyncio  # which only those pay for who use it

    return await asyncio.wrap_future(future)


async def _in_thread(work: Callable[_P, _T], *arguments: _P.args, **options: _P.kwargs) -> _T:
    import asyncio

    return await asyncio.to_thread(work, *arguments, **options)


class _AsyncWrites:
    """The commands of ``DiskKV``: see ``Writes``."""

    async def propose(self, command: bytes, *, via: Via = None, timeout: float = DEFAULT_TIMEOUT) -> Result:
        raise NotImplementedError

    async def put(
        self, key: Text, value: Text, *, via: Via = None, timeout: float = DEFAULT_TIMEOUT
    ) -> Result:
        """Set a key."""
        return await self._command(diskkv.put(key, value), via, timeout)

    async def delete(self, key: Text, *, via: Via = None, timeout: float = DEFAULT_TIMEOUT) -> Truth:
        """Remove a key. ``value`` of the result says whether it was there."""
        return Truth(*await self._command(diskkv.delete(key), via, timeout))

    async def incr(
        self, key: Text, by: int = 1, *, via: Via = None, timeout: float = DEFAULT_TIMEOUT
    ) -> Number:
        """Add to a number. ``value`` of the result is the new one."""
        return Number(*await self._command(diskkv.incr(key, by), via, timeout))

    async def compare_and_set(
        self,
        key: Text,
        expected: Text | None,
        value: Text,
        *,
        via: Via = None,
        timeout: float = DEFAULT_TIMEOUT,
    ) -> Truth:
        """Set a key if it holds ``expected`` (``None``: if it is missing). ``value`` says whether it did."""
        return Truth(*await self._command(diskkv.compare_and_set(key, expected, value), via, timeout))

    async def txn(
        self,
        compare: Sequence[txn.Compare] = (),
        then: Sequence[txn.Operation] = (),
        otherwise: Sequence[txn.Operation] = (),
        *,
        via: Via = None,
        timeout: float = DEFAULT_TIMEOUT,
    ) -> txn.Answer:
        """Do ``then`` if all of ``compare`` holds, and otherwise ``otherwise``: see ``Writes.txn``."""
        result = await self._command(txn.txn(compare, then, otherwise), via, timeout)
        if result.error is not None:
            raise OutcomeUnknown(result.error)
        return txn.answer(result.value)

    async def _command(self, command: bytes, via: Via, timeout: float) -> Result:
        return done(await self.propose(command, via=via, timeout=timeout))


class AsyncClient(_AsyncWrites):
    """A client that is no member, for asyncio: ``async with AsyncClient("a:63001,b:63001") as client``."""

    def __init__(
        self, endpoints: str | Iterable[str], *, secret: bytes | None = None, tls: Certificates | None = None
    ) -> None:
        """As ``connect``, and as quick: nobody has to be there yet."""
        self.sync: RemoteClient = connect(endpoints, secret=secret, tls=tls)

    async def aclose(self) -> None:
        """Let go of the connections. A second call does nothing."""
        await _in_thread(self.sync.close)

    async def __aenter__(self) -> AsyncClient:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.aclose()

    async def propose(self, command: bytes, *, via: Via = None, timeout: float = DEFAULT_TIMEOUT) -> Result:
        """Replicate a command and wait until it is applied."""
        return await _end_of(self.sync.propose_async(command, via=via, timeout=timeout))

    async def read(
        self, query: Any, *, via: Via = None, timeout: float = DEFAULT_TIMEOUT, lease: bool = False
    ) -> Any:
        """A linearizable read."""
        return await _end_of(self.sync.read_async(query, via=via, timeout=timeout, lease=lease))

    async def stale_read(self, query: Any, *, via: Via = None, timeout: float = DEFAULT_TIMEOUT) -> Any:
        """What one replica's own state says, maybe old."""
        return await _end_of(self.sync.stale_read_async(query, via=via, timeout=timeout))

    async def get(
        self, key: Text, *, via: Via = None, timeout: float = DEFAULT_TIMEOUT, lease: bool = False
    ) -> bytes | None:
        """The value of a key, ``None`` if it is missing."""
        value: bytes | None = await self.read(diskkv.get(key), via=via, timeout=timeout, lease=lease)
        return value

    async def stale_get(
        self, key: Text, *, via: Via = None, timeout: float = DEFAULT_TIMEOUT
    ) -> bytes | None:
        """What one replica's own state says, maybe an old value."""
        value: bytes | None = await self.stale_read(diskkv.get(key), via=via, timeout=timeout)
        return value

    async def scan(
        self,
        prefix: Text = b"",
        *,
        start: Text = b"",
        limit: int = 100,
        via: Via = None,
        timeout: float = DEFAULT_TIMEOUT,
        lease: bool = False,
    ) -> list[tuple[bytes, bytes]]:
        """Pairs in key order, from one point in time."""
        query = diskkv.scan(prefix, start, limit)
        pairs: list[tuple[bytes, bytes]] = await self.read(query, via=via, timeout=timeout, lease=lease)
        return pairs

    async def changes(
        self,
        prefix: Text = b"",
        after: int = 0,
        limit: int = 1000,
        *,
        via: Via = None,
        timeout: float = DEFAULT_TIMEOUT,
    ) -> changes.Page:
        """What entries after index ``after`` have changed under a prefix: see ``Client.changes``."""
        query = changes.changes_after(prefix, after, limit)
        page: changes.Page = await self.read(query, via=via, timeout=timeout)
        return page

    async def watch(
        self,
        prefix: Text = b"",
        from_index: int | None = None,
        *,
        via: Via = None,
        timeout: float = DEFAULT_TIMEOUT,
    ) -> AsyncIterator[Changed]:
        """``async for`` each change under a prefix, without an end: see ``Client.watch``."""
        import asyncio

        place = Place(changes.changes_after(prefix), from_index)
        while True:
            told = place.take_in(await self._page(place.question, via, timeout))
            for changed in told:
                yield changed
            if not told:
                await asyncio.sleep(POLL_SECONDS)

    async def _page(self, question: Changes, via: Via, timeout: float) -> Page:
        import asyncio

        deadline = time.monotonic() + checked(timeout)
        while True:
            try:
                left = max(0.0, deadline - time.monotonic())
                page: Page = await self.read(question, via=via, timeout=left)
                return page
            except (NoLeader, ReplicaStopped):  # an election, or a replica that comes back
                if time.monotonic() >= deadline:
                    raise
                await asyncio.sleep(POLL_SECONDS)

    async def key_lease(self, ttl: float, *, timeout: float = DEFAULT_TIMEOUT) -> AsyncKeyLease:
        """Begin a lease of ``ttl`` seconds: ``async with`` it, it is kept alive. See ``Client.key_lease``."""
        return AsyncKeyLease(await _in_thread(self.sync.key_lease, ttl, timeout=timeout))

    async def lock(self, name: Text, *, ttl: float = 10.0, timeout: float = math.inf) -> AsyncHeld:
        """Wait until nobody else holds this lock, and hold it: ``async with await client.lock("jobs")``.

        See ``Client.lock``. Who waits takes no thread.
        """
        return await self._take(as_key(name), b"", ttl, timeout)

    async def elect(
        self, name: Text, value: Text, *, ttl: float = 10.0, timeout: float = math.inf
    ) -> AsyncHeld:
        """Wait until nobody else leads, and lead: see ``Client.elect``."""
        return await self._take(as_key(name), as_value(value), ttl, timeout)

    async def elected(self, name: Text, *, timeout: float = DEFAULT_TIMEOUT) -> bytes | None:
        """What the one who leads has said of itself; ``None``: nobody does."""
        return locks.holder(await self.get(name, timeout=timeout))

    async def _take(self, key: bytes, told: bytes, ttl: float, timeout: float) -> AsyncHeld:
        """As ``locks.take``, which has a thread to wait in."""
        import asyncio

        deadline = time.monotonic() + checked(timeout)
        while True:
            soon = min(deadline, time.monotonic() + locks.ATTEMPT)
            try:
                if await self.get(key, timeout=max(0.0, soon - time.monotonic())) is None:
                    held = await _take_or_undo(self.sync, key, told, ttl, soon)
                    if held is not None:
                        return AsyncHeld(held)
            except (InvalidCommand, LeaseEnded):
                raise
            except (NotDone, OutcomeUnknown):  # an election
                if time.monotonic() >= deadline:
                    raise
            await asyncio.sleep(max(0.0, min(locks.PAUSE, deadline - time.monotonic())))
            if time.monotonic() >= deadline:
                raise locks.held_by_another(key)

    async def digest(
        self,
        prefix: Text = b"",
        *,
        index: int | None = None,
        hashed: bool = True,
        via: Via = None,
        timeout: float = DEFAULT_TIMEOUT,
    ) -> digest.Digest:
        """The hash, the count and the size of what is under a prefix: see ``Client.digest``."""
        query = digest.digest_of(prefix, index, hashed=hashed)
        found: digest.Digest = await self.read(query, via=via, timeout=timeout)
        return found

    async def put_many(self, pairs: Pairs, *, via: Via = None, timeout: float = TIMEOUT) -> int:
        """Set many keys, in their order: see ``Client.put_many``. The pairs are taken in another thread."""
        return await _in_thread(self.sync.put_many, pairs, via=via, timeout=timeout)

    async def session(self, *, via: Via = None, timeout: float = DEFAULT_TIMEOUT) -> AsyncSession:
        """Open a session: what is written through it is applied once."""
        return AsyncSession(await _in_thread(self.sync.session, via=via, timeout=timeout))

    async def status(self, *, timeout: float = 1.0) -> dict[int, ReplicaStatus]:
        """Every replica that answers."""
        return await _in_thread(self.sync.status, timeout=timeout)

    async def members(self, *, via: Via = None, timeout: float = DEFAULT_TIMEOUT) -> Members:
        """Who belongs to the group and where."""
        return await _in_thread(self.sync.members, via=via, timeout=timeout)


async def _take_or_undo(
    client: RemoteClient, key: bytes, told: bytes, ttl: float, deadline: float
) -> locks.Held | None:
    """``take_free`` in a thread. A task that is cancelled meanwhile releases what it got."""
    import asyncio

    taking = asyncio.ensure_future(_in_thread(locks.take_free, client, key, told, ttl, deadline))
    try:
        return await asyncio.shield(taking)
    except asyncio.CancelledError:
        await asyncio.wait([taking])
        if taking.exception() is None and (held := taking.result()) is not None:
            await _in_thread(held.release)
        raise


class AsyncKeyLease:
    """A ``KeyLease`` with ``await``. Within ``async with`` a thread keeps it alive; the end of it ends it."""

    def __init__(self, lease: locks.KeyLease) -> None:
        """Made by ``AsyncClient.key_lease``."""
        self.sync = lease

    @property
    def id(self) -> int:
        """For ``txn.put(key, value, lease=lease.id)``."""
        return self.sync.id

    @property
    def left(self) -> float:
        """For so many seconds it has certainly not ended: see ``KeyLease.left``."""
        return self.sync.left

    async def keep(self, *, timeout: float | None = None) -> None:
        """Begin its time anew. Raises as ``KeyLease.keep`` does."""
        await _in_thread(self.sync.keep, timeout=timeout)

    async def end(self, *, timeout: float | None = None) -> None:
        """End it, and delete its keys."""
        await _in_thread(self.sync.end, timeout=timeout)

    async def __aenter__(self) -> AsyncKeyLease:
        self.sync.start()
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.end()


class AsyncHeld:
    """A ``Held`` with ``await``: ``async with await client.lock("jobs") as held``."""

    def __init__(self, held: locks.Held) -> None:
        """Made by ``AsyncClient.lock`` and ``elect``."""
        self.sync = held
        self.token = held.token
        self.guard = held.guard

    @property
    def left(self) -> float:
        """For so many seconds nobody else has it: see ``Held.left``."""
        return self.sync.left

    async def release(self, *, timeout: float = DEFAULT_TIMEOUT) -> None:
        """Let the next one have it."""
        await _in_thread(self.sync.release, timeout=timeout)

    async def __aenter__(self) -> AsyncHeld:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.release()


class AsyncSession(_AsyncWrites):
    """A ``Session`` with ``await``: ``async with await client.session() as session``.

    If a task is cancelled in the middle of a call, that goes on to its end, and the next one waits for it.
    """

    def __init__(self, session: Session) -> None:
        """Made by ``AsyncClient.session``."""
        self.sync = session

    @property
    def id(self) -> int:
        """The number of the session."""
        return self.sync.id

    async def propose(self, command: bytes, *, via: Via = None, timeout: float = DEFAULT_TIMEOUT) -> Result:
        """Apply a command once: see ``Session.propose``."""
        return await _in_thread(self.sync.propose, command, via=via, timeout=timeout)

    async def resume(self, *, via: Via = None, timeout: float = DEFAULT_TIMEOUT) -> Result:
        """Finish the command whose outcome is unknown."""
        return await _in_thread(self.sync.resume, via=via, timeout=timeout)

    async def aclose(self) -> None:
        """Let the group forget the session. A second call does nothing."""
        await _in_thread(self.sync.close)

    async def __aenter__(self) -> AsyncSession:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.aclose()
