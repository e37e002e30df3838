"""Clients that are no members: what they ask over TCP, and what they are told when something goes wrong."""

from __future__ import annotations

import asyncio
import gc
import os
import re
import sys
import threading
import weakref
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from ondisk import (
    AsyncClient,
    Cluster,
    CommandTooLarge,
    ConfigurationError,
    InvalidCommand,
    LeaseEnded,
    NoLeader,
    NotDone,
    OndiskError,
    Rejected,
    RemoteClient,
    ReplicaStopped,
    TcpNetwork,
    Unreachable,
    WrongProcess,
    connect,
    locks,
)
from ondisk.diskkv import MAX_VALUE_BYTES
from ondisk.net.addresses import format_address
from ondisk.raft.limits import MAX_COMMAND_BYTES
from ondisk.remote import courier
from ondisk.verbs import changes, txn
from tests.interrupts import another_thread, bytecodes, interrupt_at
from tests.remote import Group, client, group
from tests.tcp import SECRET, free_addresses
from tests.waiting import wait_until

__all__ = ["client", "group"]  # fixtures


def test_every_verb_does_over_tcp_what_it_does_in_the_process_of_a_replica(
    group: Group, client: RemoteClient
) -> None:
    assert client.put("verb/a", "1").value is None
    assert client.get("verb/a") == client.stale_get("verb/a", via=client.leader_id) == b"1"
    assert client.get("verb/missing") is None
    assert client.incr("verb/n", 5).value == 5
    assert client.delete("verb/missing").value is False
    assert client.compare_and_set("verb/a", "1", b"\xff").value is True
    assert client.compare_and_set("verb/a", "1", "2").value is False
    assert client.scan("verb/") == group.cluster.scan("verb/") == [(b"verb/a", b"\xff"), (b"verb/n", b"5")]
    assert client.put_many((f"verb/many/{i}", "v") for i in range(3000)) == 3000
    assert len(client.scan("verb/many/", limit=10_000)) == 3000
    assert client.put_async("verb/later", "v").result(10).error is None
    with pytest.raises(Rejected, match="not a number"):
        client.incr("verb/a")
    with pytest.raises(InvalidCommand):
        client.get(5)  # type: ignore[arg-type]
    with pytest.raises(InvalidCommand, match="does not travel"):
        client.read(object())
    with pytest.raises(CommandTooLarge):
        client.propose(bytes(MAX_COMMAND_BYTES + 1))


def test_who_is_asked_can_be_chosen(group: Group, client: RemoteClient) -> None:
    client.put("via", "v")
    for via in (1, 2, 3, *group.endpoints.values()):
        assert client.get("via", via=via) == b"v"
        assert client.incr("via/n", via=via).value
    with pytest.raises(Unreachable, match="none of the endpoints is 9"):
        client.get("via", via=9)


def test_the_leader_is_found_and_followed(group: Group, client: RemoteClient) -> None:
    client.put("leader", "v")
    wait_until(lambda: client.put("leader", "v") and client.leader_id == group.cluster.leader_id)
    (successor, *_) = {1, 2, 3} - {group.cluster.leader_id}
    client.transfer_leadership(successor, timeout=20)
    wait_until(lambda: client.put("leader", "v", timeout=10) and client.leader_id == successor)
    assert client.wait_for_leader() == successor


def test_status_and_members_tell_of_the_whole_group(group: Group, client: RemoteClient) -> None:
    assert {member: each.disk for member, each in client.status().items()} == {
        member: each.disk for member, each in group.cluster.status().items()
    }
    assert client.members().voters == (1, 2, 3)
    assert client.members().addresses == group.endpoints
    with group.connect(2) as one:
        assert list(one.status()) == [2]


def test_a_session_counts_once_and_is_closed(client: RemoteClient) -> None:
    with client.session() as session:
        assert [session.incr("session").value for _ in range(3)] == [1, 2, 3]
    assert client.get("session") == b"3"


def test_what_the_state_machine_may_not_hold_is_refused_as_everywhere(client: RemoteClient) -> None:
    with pytest.raises(InvalidCommand, match="at most 1,048,576"):
        client.put("large", bytes(MAX_VALUE_BYTES + 1))
    for key in range(9):
        client.put(f"large/{key}", bytes(MAX_VALUE_BYTES))
    with pytest.raises(InvalidCommand, match="scan fewer at once"):
        client.scan("large/", timeout=20)
    assert len(client.scan("large/", limit=7, timeout=20)) == 7


def test_many_threads_share_one_client(client: RemoteClient) -> None:
    def add() -> None:
        for _ in range(20):
            client.incr("threads", timeout=20)

    threads = [threading.Thread(target=add) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert client.get("threads") == b"160"


def test_asyncio_awaits_the_same_client(group: Group) -> None:
    async def ask() -> None:
        async with AsyncClient(list(group.endpoints.values()), secret=SECRET) as client:
            await client.put("async/a", "1")
            assert await client.get("async/a") == b"1"
            assert await client.stale_get("async/a", via=client.sync.leader_id) == b"1"
            await asyncio.gather(*(client.incr("async/n", timeout=20) for _ in range(200)))
            assert await client.scan("async/") == [(b"async/a", b"1"), (b"async/n", b"200")]
            assert (await client.compare_and_set("async/a", "2", "3")).value is False
            assert (await client.delete("async/a")).value is True
            assert await client.put_many([("async/b", "1")]) == 1
            assert len(await client.status()) == len((await client.members()).voters) == 3
            async for changed in client.watch("async/a", from_index=1):
                assert changed.pairs == ((b"async/a", b"1"),)
                break
            async with await client.session() as session:
                assert (await session.incr("async/n")).value == 201
            with pytest.raises(Rejected):
                await client.incr("async/b", by=1 << 62, timeout=20) and await client.incr("async/b", 1 << 62)

    asyncio.run(ask())


def test_asyncio_leases_locks_and_elects(group: Group) -> None:
    """Many more wait for one lock than asyncio's pool has threads."""

    async def ask() -> None:
        async with AsyncClient(list(group.endpoints.values()), secret=SECRET) as client:
            async with await client.key_lease(20) as lease:
                await client.txn([], [txn.put("async/leased", "v", lease=lease.id)])
                await lease.keep()
                assert lease.left > 10
            assert await client.get("async/leased") is None
            with pytest.raises(LeaseEnded):
                await client.txn([], [txn.put("async/leased", "v", lease=lease.id)])

            tokens, holders = [], 0

            async def work() -> None:
                nonlocal holders
                async with await client.lock("async/lock", ttl=20, timeout=60) as held:
                    holders += 1
                    assert holders == 1
                    assert (await client.txn([held.guard], [txn.put("async/done", "v")])).succeeded
                    tokens.append(held.token)
                    holders -= 1

            await asyncio.gather(*(work() for _ in range(20)))
            assert tokens == sorted(set(tokens)) and len(tokens) == 20
            async with await client.elect("async/boss", "me", ttl=20):
                assert await client.elected("async/boss") == b"me"
                with pytest.raises(NotDone, match="held by somebody else"):
                    await client.elect("async/boss", "you", timeout=0.2)
            assert await client.elected("async/boss") is None

    asyncio.run(ask())


def test_a_task_that_is_cancelled_leaves_no_lock_behind(
    group: Group, monkeypatch: pytest.MonkeyPatch
) -> None:
    """At the worst moment: the lock is got, in a thread, and nobody has been told."""
    got, cancelled = threading.Event(), threading.Event()
    really = locks.take_free

    def take_free(*arguments: Any) -> locks.Held | None:
        held = really(*arguments)
        got.set()
        cancelled.wait(60)
        return held

    monkeypatch.setattr(locks, "take_free", take_free)

    async def ask() -> None:
        async with AsyncClient(list(group.endpoints.values()), secret=SECRET) as client:
            taking = asyncio.ensure_future(client.lock("async/cancelled", ttl=60))
            await asyncio.to_thread(got.wait)
            taking.cancel()
            cancelled.set()
            with pytest.raises(asyncio.CancelledError):
                await taking
            assert await client.get("async/cancelled") is None

    asyncio.run(ask())


def test_asyncio_watches_go_on_when_nobody_answers_for_a_while(
    group: Group, monkeypatch: pytest.MonkeyPatch
) -> None:
    """More of them than asyncio's pool has threads, which others need meanwhile."""
    real, failures = AsyncClient.read, iter([True, False] * 5)

    async def read(self: AsyncClient, query: Any, **options: Any) -> Any:
        if isinstance(query, changes.Changes) and next(failures, False):
            raise NoLeader("an election")
        return await real(self, query, **options)

    monkeypatch.setattr(AsyncClient, "read", read)

    async def ask() -> None:
        async with AsyncClient(list(group.endpoints.values()), secret=SECRET) as client:

            async def first(key: str) -> object:
                async for changed in client.watch(key):
                    return changed.pairs[0]
                return None

            watching = [asyncio.ensure_future(first(f"async/watch/{n}")) for n in range(50)]
            await asyncio.sleep(0)
            while not all(each.done() for each in watching):
                await client.put_many([(f"async/watch/{n}", "v") for n in range(50)])
            assert {each.result() for each in watching} == {
                (f"async/watch/{n}".encode(), b"v") for n in range(50)
            }

    asyncio.run(ask())


def test_a_lock_is_held_by_one_client_at_a_time(group: Group, client: RemoteClient) -> None:
    """Its lease is commands and queries, too; each holder has a higher fencing token."""
    with client.lock("remote", ttl=20, timeout=20) as held:
        with group.connect() as other, pytest.raises(NotDone):
            other.lock("remote", ttl=20, timeout=0.2)
        first = held.token
    with client.lock("remote", ttl=20, timeout=20) as held:
        assert held.token > first


def test_the_programs_of_the_document_run_as_they_are_written(group: Group) -> None:
    """With the addresses and the secret of this group."""
    text = (Path(__file__).parents[1] / "docs" / "clients.md").read_text(encoding="utf-8")
    programs = re.findall(r"```python\n(.*?)```", text, re.DOTALL)
    assert len(programs) == 2
    for program in programs:
        for member, endpoint in group.endpoints.items():
            program = program.replace(f"localhost:{63000 + member}", endpoint)
        program = program.replace("(endpoints)", "(endpoints, secret=SECRET)")
        exec(program.replace('") as', '", secret=SECRET) as'), {"SECRET": SECRET})


# Who goes away


def test_a_replica_that_stops_in_order_fails_no_request_of_its_clients(
    make_cluster: Callable[..., Cluster],
) -> None:
    """Clients that cannot reach the leader, so that they ask those that go away, one after the other."""
    addresses = free_addresses(3)
    cluster = make_cluster(network=TcpNetwork(addresses, secret=SECRET))
    leader = cluster.wait_for_leader()
    followers = sorted({1, 2, 3} - {leader})
    over, errors = threading.Event(), list[OndiskError]()

    def ask(name: str) -> None:
        while not over.is_set():
            try:
                client.put(name, "v", timeout=20)
                client.get(name, timeout=20)
            except OndiskError as error:
                errors.append(error)

    with connect([format_address(addresses[each]) for each in followers], secret=SECRET) as client:
        threads = [threading.Thread(target=ask, args=(f"k{number}",)) for number in range(8)]
        for thread in threads:
            thread.start()
        try:
            for follower in followers:
                applied = cluster.status()[leader].applied_index
                wait_until(lambda applied=applied: cluster.status()[leader].applied_index > applied + 50)
                cluster._nodes[follower].hand_over()
                cluster.stop(follower)
                cluster.start(follower)
                wait_until(lambda: not client.unreachable())
        finally:
            over.set()
            for thread in threads:
                thread.join()
    assert errors == []


# Who is not there


def test_nobody_there_is_not_done_and_says_of_each_endpoint_why() -> None:
    (address,) = free_addresses(1).values()
    with connect(f"127.0.0.1:{address[1]}") as client:
        with pytest.raises(Unreachable, match=r"Connection refused\); nothing was sent"):
            client.put("k", "v", timeout=0.1)
        with pytest.raises(Unreachable):
            client.get("k", timeout=0.1)
        assert client.status(timeout=0.1) == {}


def test_another_secret_is_named_as_what_may_be_wrong(group: Group) -> None:
    with (
        connect(group.endpoints[1], secret=SECRET + b"?") as client,
        pytest.raises(Unreachable, match="maybe it has another shared secret"),
    ):
        client.get("k", timeout=0.3)


@pytest.mark.parametrize(
    ("endpoints", "secret", "why"),
    [
        ("nowhere", None, "is not an address"),
        ("", None, "is not an address"),
        ([], None, "one replica at least"),
        ("10.0.0.1:1", None, "a shared secret is required"),
        ("localhost:1", b"short", "at least 16 bytes"),
    ],
)
def test_what_can_be_no_group_is_refused_at_once(endpoints: object, secret: bytes | None, why: str) -> None:
    with pytest.raises(ConfigurationError, match=why):
        connect(endpoints, secret=secret)  # type: ignore[arg-type]


def test_a_closed_client_says_so_and_closes_twice(group: Group) -> None:
    client = group.connect()
    client.get("k", timeout=10)
    client.close()
    client.close()
    with pytest.raises(ReplicaStopped, match="closed"):
        client.put("k", "v")


def test_a_client_that_nobody_holds_ends(group: Group, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(courier, "_IDLE", 0.1)
    client = group.connect()
    client.get("k", timeout=10)
    thread, dropped = client._courier._thread, weakref.ref(client)
    del client
    gc.collect()
    assert dropped() is None
    thread.join(10)
    assert not thread.is_alive()


@pytest.mark.filterwarnings(
    "ignore::pytest.PytestUnraisableExceptionWarning"
)  # it hits a weak reference, too
def test_an_interrupt_at_any_bytecode_leaves_the_client_usable(group: Group) -> None:
    """Fifty of them, all over what a put, a get and the ends of a client execute; it is used after each."""
    client = group.connect()

    def use() -> None:
        client.put("interrupt", "v", timeout=20)
        client.get("interrupt", timeout=20)

    def open_and_close() -> None:
        with group.connect():
            pass

    with another_thread() as elsewhere:
        for call in (use, open_and_close):
            use()
            count = bytecodes(call)
            for number in range(1, count, max(1, count // 25)):
                interrupt_at(call, number)
                elsewhere(use)
        use()
        elsewhere(client.close)
    sys.last_value = sys.last_traceback = None  # which hold clients that were torn
    gc.collect()
    wait_until(lambda: not [thread for thread in threading.enumerate() if thread.name == "ondisk-client"])


def test_a_child_process_is_refused_and_its_parent_goes_on(group: Group, client: RemoteClient) -> None:
    client.put("fork", "v")
    if not (child := os.fork()):
        try:
            client.get("fork")
        except WrongProcess:
            client.close()
            os._exit(7)
        os._exit(1)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 7
    assert client.get("fork") == b"v"


def test_transactions_changes_and_digests_travel_too(group: Group, client: RemoteClient) -> None:
    """They are commands and queries like any other, and a watch is questions."""
    client.put("verbs/a", "1")
    assert client.txn([txn.equals("verbs/a", "1")], [txn.put("verbs/a", "2")]).succeeded
    page = client.changes("verbs/")
    assert [changed.pairs for changed in page.entries] == [((b"verbs/a", b"1"),), ((b"verbs/a", b"2"),)]
    watch = client.watch("verbs/", from_index=page.entries[-1].index)
    assert next(watch).pairs == ((b"verbs/a", b"2"),)
    digests = {client.digest("verbs/", via=member).hash for member in (1, 2, 3)}
    assert digests == {group.cluster.digest("verbs/").hash}
