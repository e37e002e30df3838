"""AsyncClient: the verbs of ``RemoteClient`` with ``await``. The same courier does the work.

A request is a future of the courier, which asyncio awaits: thousands may be under way, and none has a thread.
What is a conversation and not one request (a session, a bulk load, status) runs in asyncio's pool of threads.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Iterable, Sequence
from concurrent.futures import Future
from typing import TYPE_CHECKING, Any, ParamSpec, TypeVar

from ondisk import diskkv
from ondisk.bulk import TIMEOUT, Pairs
from ondisk.client import DEFAULT_TIMEOUT, Number, Session, Truth, Via, done
from ondisk.diskkv import Text
from ondisk.errors import OutcomeUnknown
from ondisk.raft.members import Members
from ondisk.remote.client import RemoteClient, connect
from ondisk.replica import ReplicaStatus
from ondisk.statemachine import Result
from ondisk.verbs import changes, digest, txn
from ondisk.verbs.changes import Changed
from ondisk.watching import POLL_SECONDS

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

        watch = await _in_thread(self.sync.watch, prefix, from_index, via=via, timeout=timeout)
        while True:
            told = await _in_thread(watch.poll)
            for changed in told:
                yield changed
            if not told:
                await asyncio.sleep(POLL_SECONDS)

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
