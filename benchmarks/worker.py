"""One process that is measured: it builds what it is told and answers requests over its pipes.

``python -m benchmarks.worker '{"kind": "ondisk", ...}'``: each line of standard input is one request and gets
one line as its answer, both in JSON; the end of the input ends it. The load comes from inside this process,
where a user's program would be, and everybody gets the same keys, values, windows and loop.
"""

from __future__ import annotations

import contextlib
import itertools
import json
import logging
import os
import shutil
import signal
import socket
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from functools import partial
from pathlib import Path
from queue import Empty, SimpleQueue
from typing import Any

import psutil

from benchmarks.etcd import Etcd

KEYS = [f"{number:016d}".encode() for number in range(1000)]
VALUES = [os.urandom(128) for _ in KEYS]
ANSWER_WITHIN = 10.0  # seconds; far beyond what any put takes

Finish = Callable[[object], None]  # called with what went wrong, or None
Begin = Callable[[bytes, bytes, Finish], None]  # of a key and a value


class Ondisk:
    """A ``Cluster``, in memory or over TCP, or with ``member`` one ``Node`` of three processes."""

    def __init__(
        self,
        directory: Path,
        member: int | None,
        ports: list[int],
        *,
        disks: Any = None,
        replicas: int = 3,
    ) -> None:
        from ondisk import Cluster, Node
        from ondisk.client import Client
        from ondisk.net.tcp import TcpNetwork

        network = TcpNetwork({id: ("127.0.0.1", port) for id, port in enumerate(ports, 1)}) if ports else None
        self._client: Client
        if member is None:
            cluster = self.cluster = Cluster(
                directory, network=network, disks=disks, members=range(1, replicas + 1)
            )
            self._client, self._status, self.close = cluster, cluster.status, cluster.close
        else:
            assert network is not None
            node = Node(member, (1, 2, 3), directory, network)
            node.start()
            self._client, self._status, self.close = node, lambda: {member: node.status}, node.stop
        self.read, self.stale_get = self._client.get, self._client.stale_get

    def look(self) -> dict[str, bool]:
        """Whether everybody here knows a leader, and whether it is here."""
        statuses = self._status().values()
        return {
            "ready": all(status.leader_id is not None for status in statuses),
            "leads": any(status.role == "leader" for status in statuses),
        }

    def put(self, key: bytes, value: bytes, finish: Finish) -> None:
        def on_done(future: Future[Any]) -> None:
            finish(future.exception() or future.result().error)

        self._client.put_async(key, value, timeout=ANSWER_WITHIN).add_done_callback(on_done)

    def get(self, key: bytes, _: bytes, finish: Finish) -> None:
        def on_done(future: Future[Any]) -> None:
            finish(future.exception() or (f"{key!r} is missing" if future.result() is None else None))

        self._client.get_async(key, timeout=ANSWER_WITHIN).add_done_callback(on_done)

    def bulk(self, pairs: Iterator[tuple[bytes, bytes]]) -> int:
        """Load all pairs; return how many."""
        return self._client.put_many(pairs)


class OneThread:
    """What no group can do without: each command of a bulk load to three logs, and its pairs to three states.

    In turn, in the thread that has the pairs: no messages, no other threads, and only the disk is waited for.
    """

    def __init__(self, directory: Path) -> None:
        from ondisk.storage.store import Store

        self._logs = [Store(directory / f"log-{number}") for number in (1, 2, 3)]
        self._states = [Store(directory / f"state-{number}") for number in (1, 2, 3)]
        self._index = 0

    def look(self) -> dict[str, bool]:
        """There is nothing to wait for."""
        return {"ready": True, "leads": True}

    def bulk(self, pairs: Iterator[tuple[bytes, bytes]]) -> int:
        """Write all pairs; return how many."""
        from ondisk.bulk import BATCH_BYTES
        from ondisk.diskkv import encode_pairs

        count = 0
        while True:
            part, size = {}, 0
            for key, value in pairs:
                part[key] = value
                size += len(key) + len(value)
                if size >= BATCH_BYTES:
                    break
            if not part:
                break
            self._write(encode_pairs(part), part)
            count += len(part)
        for state in self._states:
            state.sync()
        return count

    def _write(self, command: bytes, part: dict[bytes, bytes]) -> None:
        self._index += 1
        index = self._index.to_bytes(8, "big")
        for log in self._logs:
            batch = log.batch()
            batch.put(index, command)
            log.write(batch)
            log.sync()
        for state in self._states:
            batch = state.batch()
            for key, value in part.items():
                batch.put(key, value)
            state.put_meta(batch, b"applied_index", index)
            state.write(batch)

    def close(self) -> None:
        for store in (*self._logs, *self._states):
            store.close()


class Stock:
    """PySyncObj as it comes, with a journal: all three replicas, or one of three processes.

    With a dump file too: without one it forgets what the compaction of its journal drops.
    """

    def __init__(self, directory: Path, member: int | None, ports: list[int], batching: bool) -> None:
        from pysyncobj import FAIL_REASON, SyncObj, SyncObjConf, replicated

        class Store(SyncObj):  # type: ignore[misc]
            def __init__(self, *args: Any) -> None:
                super().__init__(*args)
                self.data: dict[bytes, bytes] = {}

            @replicated  # type: ignore[untyped-decorator]
            def put(self, key: bytes, value: bytes) -> None:
                self.data[key] = value

        logging.disable()  # it complains at critical level under plain load, and writing that costs it time
        directory.mkdir(parents=True, exist_ok=True)
        addresses = [f"127.0.0.1:{port}" for port in ports]
        self._directory = directory
        self._success = FAIL_REASON.SUCCESS
        self._replicas = [
            Store(
                address,
                [other for other in addresses if other != address],
                SyncObjConf(
                    journalFile=str(directory / f"{number}.journal"),
                    fullDumpFile=str(directory / f"{number}.dump"),
                    appendEntriesUseBatch=batching,
                ),
            )
            for number, address in enumerate(addresses, 1)
            if member in (None, number)
        ]
        self._used = self._replicas[0]

    def look(self) -> dict[str, bool]:
        """Whether everybody here knows a leader, and whether it is here; if so, it is used from now on."""
        leaders = [replica for replica in self._replicas if replica._isLeader()]
        self._used = (leaders or self._replicas)[0]
        ready = all(replica.isReady() and replica._getLeader() for replica in self._replicas)
        return {"ready": ready, "leads": bool(leaders)}

    def put(self, key: bytes, value: bytes, finish: Finish) -> None:
        def on_done(_: object, reason: int) -> None:
            finish(None if reason == self._success else f"FAIL_REASON {reason}")

        self._used.put(key, value, callback=on_done)

    def stale_get(self, key: bytes) -> bytes | None:
        found: bytes | None = self._used.data.get(key)
        return found

    def dump(self, pairs: Iterable[tuple[bytes, bytes]]) -> None:
        """Let one replica have this state and dump it; copy that for the others. Puts would take minutes."""
        self._used.data = dict(pairs)
        self._used.forceLogCompaction()
        while not (dumps := list(self._directory.glob("*.dump"))):
            time.sleep(0.01)
        for number in range(1, len(self._replicas) + 1):
            if (other := self._directory / f"{number}.dump") != dumps[0]:
                shutil.copy(dumps[0], other)

    def close(self) -> None:
        for replica in self._replicas:
            replica.destroy_synchronous()
        for child in psutil.Process().children():  # a dump that is still being written
            with contextlib.suppress(psutil.NoSuchProcess, psutil.TimeoutExpired):
                child.wait(5)


def free_ports(count: int) -> list[int]:
    """Ports on loopback that nobody uses now."""
    with contextlib.ExitStack() as stack:
        sockets = [stack.enter_context(socket.socket()) for _ in range(count)]
        for each in sockets:
            each.bind(("127.0.0.1", 0))
        return [each.getsockname()[1] for each in sockets]


def measured(latencies: list[float], seconds: float) -> dict[str, float]:
    """What is reported: operations per second, and percentiles in milliseconds."""
    in_order = sorted(latencies)
    return {
        "per_second": len(in_order) / seconds,
        "p50_ms": 1000 * in_order[len(in_order) // 2],
        "p99_ms": 1000 * in_order[len(in_order) * 99 // 100],
    }


def puts(
    subject: Ondisk | Stock,
    in_flight: int,
    enough: Callable[[float, int], bool],
    pairs: Iterator[tuple[bytes, bytes]] | None = None,
) -> dict[str, float]:
    """Keep ``in_flight`` puts under way from this thread, until ``enough(seconds, count)``."""
    return _under_way(subject.put, in_flight, enough, pairs)


def _under_way(
    request: Begin,
    in_flight: int,
    enough: Callable[[float, int], bool],
    pairs: Iterator[tuple[bytes, bytes]] | None = None,
) -> dict[str, float]:
    ended: SimpleQueue[float | str] = SimpleQueue()
    pairs = pairs or itertools.cycle(zip(KEYS, VALUES, strict=True))

    def finish(began: float, error: object) -> None:
        ended.put(time.perf_counter() - began if error is None else f"a request failed: {error}")

    def begin() -> None:
        request(*next(pairs), partial(finish, time.perf_counter()))

    def take() -> float:
        try:
            latency = ended.get(timeout=ANSWER_WITHIN)
        except Empty:
            raise RuntimeError(f"a request was not answered within {ANSWER_WITHIN:g} s") from None
        if isinstance(latency, str):
            raise RuntimeError(latency)
        return latency

    latencies = []
    start = time.perf_counter()
    for _ in range(in_flight):
        begin()
    while True:
        latencies.append(take())
        took = time.perf_counter() - start
        if enough(took, len(latencies)):
            break
        begin()
    for _ in range(in_flight - 1):
        take()
    return measured(latencies, took)


def gets(
    read: Callable[[bytes], object], threads: int, seconds: float, keys: Sequence[bytes] = KEYS
) -> dict[str, float]:
    """Read in a loop in each of ``threads``."""
    start = time.perf_counter()

    def loop() -> list[float]:
        latencies = []
        now = time.perf_counter()
        for key in itertools.cycle(keys):
            if read(key) is None:
                raise RuntimeError(f"{key!r} is missing")
            before, now = now, time.perf_counter()
            latencies.append(now - before)
            if now - start >= seconds:
                break
        return latencies

    if threads == 1:
        return measured(loop(), time.perf_counter() - start)
    with ThreadPoolExecutor(threads) as pool:
        loops = [pool.submit(loop) for _ in range(threads)]
        latencies = [latency for each in loops for latency in each.result()]
    return measured(latencies, time.perf_counter() - start)


def bulk_load(subject: Ondisk | OneThread, seconds: float) -> dict[str, float]:
    """Load pairs for so many seconds, each key once and in scattered order, until all are stored."""
    start = time.perf_counter()

    def pairs() -> Iterator[tuple[bytes, bytes]]:
        for number, value in enumerate(itertools.cycle(VALUES)):
            if time.perf_counter() - start >= seconds:
                return
            yield b"%016d" % (number * 982_451_653 % 10**12), value

    count = subject.bulk(pairs())
    return {"per_second": count / (time.perf_counter() - start)}


def answer(
    subject: Ondisk | OneThread | Stock | Etcd, do: str, at_once: int, seconds: float
) -> dict[str, Any]:
    """Do what one line of the input asks."""
    if do == "look":
        return subject.look()
    if isinstance(subject, Etcd):
        return subject.measure(do, at_once, seconds)
    if isinstance(subject, OneThread) or do == "bulk":
        return bulk_load(subject, seconds)  # type: ignore[arg-type]
    if do == "fill":
        return puts(subject, at_once, lambda took, count: took >= seconds and count >= len(KEYS))
    if do == "put":
        return puts(subject, at_once, lambda took, _: took >= seconds)
    if do == "get" and at_once > 1:
        return _under_way(subject.get, at_once, lambda took, _: took >= seconds)  # type: ignore[union-attr]
    return gets(subject.stale_get if do == "stale" else subject.read, at_once, seconds)  # type: ignore[union-attr]


def main() -> None:
    """Build, answer until the input ends, close."""
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(1))  # break off, but close
    order = json.loads(sys.argv[1])
    where = Path(order["directory"]), order["member"], order["ports"][:3]
    subject: Ondisk | OneThread | Stock | Etcd
    if order["kind"] == "ondisk":
        subject = Ondisk(*where)
    elif order["kind"] == "one-thread":
        subject = OneThread(where[0])
    elif order["kind"] == "etcd":
        subject = Etcd(Path(order["directory"]), order["ports"][:3], order["ports"][3:])
    else:
        subject = Stock(*where, order["kind"] == "stock")
    with contextlib.closing(subject):
        for line in sys.stdin:
            try:
                reply = answer(subject, *json.loads(line))
            except Exception as error:
                reply = {"error": f"{type(error).__name__}: {error}"}
            print(json.dumps(reply), flush=True)


if __name__ == "__main__":
    main()
