"""What a type checker knows of each verb's answer. ``make lint`` checks it; nothing here is ever run."""

from __future__ import annotations

from concurrent.futures import Future
from typing import assert_type

from ondisk import AsyncClient, Cluster, Node, RemoteClient, ReplicaStatus, Result, Session, connect
from ondisk.client import Number, Truth
from ondisk.locks import Held, KeyLease
from ondisk.raft.members import Members
from ondisk.remote.asyncio import AsyncHeld, AsyncKeyLease, AsyncSession
from ondisk.verbs.changes import Changed, Page
from ondisk.verbs.digest import Digest
from ondisk.verbs.txn import Answer, equals, put
from ondisk.watching import Watch

Pairs = list[tuple[bytes, bytes]]


def here_and_elsewhere(client: Cluster | Node | RemoteClient) -> None:
    """The same for whoever is asked."""
    assert_type(client.put("k", b"v"), Result)
    assert_type(client.put_async("k", "v", via=3), Future[Result])
    assert_type(client.delete("k").value, bool)
    assert_type(client.incr("n", 5), Number)
    assert_type(client.incr("n").value, int)
    assert_type(client.compare_and_set("k", None, "v"), Truth)
    assert_type(client.compare_and_set("k", "v", "w").value, bool)
    assert_type(client.get("k", via=1), bytes | None)
    assert_type(client.get_async("k"), Future[bytes | None])
    assert_type(client.stale_get("k", via=1), bytes | None)
    assert_type(client.scan("k", limit=3), Pairs)
    assert_type(client.put_many({"k": "v"}.items()), int)
    assert_type(client.txn([equals("k", "v")], [put("k", "w")]), Answer)
    assert_type(client.changes("k"), Page)
    assert_type(client.watch("k", from_index=1), Watch)
    assert_type(next(client.watch("k")), Changed)
    assert_type(client.digest("k").hash, str)
    assert_type(client.key_lease(10), KeyLease)
    assert_type(client.lock("k"), Held)
    assert_type(client.lock("k").token, int)
    assert_type(client.elected("k"), bytes | None)
    with client.session() as session:
        assert_type(session, Session)
        assert_type(session.incr("n").value, int)


def elsewhere() -> None:
    """A client that is no member names an endpoint, too."""
    with connect("localhost:63001") as client:
        assert_type(client, RemoteClient)
        assert_type(client.put("k", "v", via="localhost:63001"), Result)
        assert_type(client.get("k", via="localhost:63001"), bytes | None)
        assert_type(client.incr("n", via="localhost:63001").value, int)
        assert_type(client.digest(via="localhost:63001"), Digest)
        assert_type(client.status(), dict[int, ReplicaStatus])
        assert_type(client.members(), Members)
        assert_type(client.compact(via=1), int)
        client.put("k", "v", via=1.5)  # type: ignore[arg-type]
        client.put("k", 5)  # type: ignore[arg-type]


async def with_await(client: AsyncClient) -> None:
    """And with asyncio."""
    assert_type(await client.put("k", "v", via="localhost:63001"), Result)
    assert_type((await client.delete("k")).value, bool)
    assert_type((await client.incr("n")).value, int)
    assert_type((await client.compare_and_set("k", None, "v")).value, bool)
    assert_type(await client.get("k"), bytes | None)
    assert_type(await client.scan("k"), Pairs)
    assert_type(await client.txn(), Answer)
    assert_type(await client.changes(), Page)
    assert_type(await client.digest(), Digest)
    assert_type(await client.key_lease(10), AsyncKeyLease)
    assert_type(await client.session(), AsyncSession)
    assert_type(await client.elected("k"), bytes | None)
    async for changed in client.watch("k"):
        assert_type(changed, Changed)
    async with await client.lock("k") as held:
        assert_type(held, AsyncHeld)
        assert_type(held.token, int)
    async with await client.session() as session:
        assert_type((await session.incr("n")).value, int)
