"""Load on a cluster: a steady pace, to have something to lag behind, or all that it bears, to measure it."""

from __future__ import annotations

import asyncio
import statistics
import threading
import time
from collections import Counter, deque
from concurrent.futures import Future, ThreadPoolExecutor
from functools import partial
from typing import NamedTuple

from ondisk.cluster import Cluster
from ondisk.errors import OndiskError
from ondisk.interrupts.shielded import shielded
from ondisk.statemachine import Result

_ANSWER_WITHIN = 10.0  # seconds, for each put


class Load:
    """Puts at a steady pace, from a thread of its own, while a ``with`` block runs.

    It does not wait for one put before it sends the next: the pace stays the same when the cluster is slow.
    Every put stores the time in the key ``clock``, so that data tells how old it is.
    """

    def __init__(self, cluster: Cluster, *, per_second: float = 200, value_bytes: int = 0) -> None:
        """``value_bytes`` makes the values longer than the time alone."""
        self._cluster = cluster
        self._per_second = per_second
        self._value_bytes = value_bytes
        self._waiting: deque[Future[Result]] = deque()
        self._closed = threading.Event()
        self._thread = threading.Thread(target=self._run, name="ondisk-load", daemon=True)
        self.done = 0
        self.failed: Counter[str] = Counter()  # class of the error

    @shielded
    def start(self) -> Load:
        """Begin. Only once."""
        self._thread.start()
        return self

    __enter__ = start

    def __exit__(self, *_: object) -> None:
        self.stop()
        self.wait()

    @shielded
    def stop(self) -> None:
        """Send no more. A second call does nothing."""
        self._closed.set()
        self._thread.join()

    def wait(self) -> None:
        """After ``stop``: return when everything that was sent has been answered."""
        while self._waiting:
            self._count(self._waiting.popleft())

    def _run(self) -> None:
        due = time.perf_counter()
        while not self._closed.wait(max(0.0, due - time.perf_counter())):
            due += 1 / self._per_second
            value = f"{self._cluster.network.clock():.3f}".ljust(self._value_bytes)
            try:
                self._waiting.append(self._cluster.put_async("clock", value, timeout=_ANSWER_WITHIN))
            except OndiskError as error:  # no replica runs
                self.failed[type(error).__name__] += 1
            while self._waiting and self._waiting[0].done():
                self._count(self._waiting.popleft())

    def _count(self, put: Future[Result]) -> None:
        try:
            put.result()
            self.done += 1
        except OndiskError as error:
            self.failed[type(error).__name__] += 1

    def __repr__(self) -> str:
        errors = "".join(f", {count} {name}" for name, count in self.failed.items())
        return f"{self.done} puts done, {self.failed.total()} failed{errors}"


class Cost(NamedTuple):
    """What puts cost with so many under way at once. Times in seconds."""

    in_flight: int
    puts: int
    seconds: float
    log_syncs: int  # of the leader
    latency: float  # the median, from asking until the answer

    @property
    def puts_per_second(self) -> float:
        """How many were done in a second."""
        return self.puts / self.seconds

    @property
    def puts_per_sync(self) -> float:
        """How many shared one fsync of the leader's log."""
        return self.puts / self.log_syncs


async def measure_puts(cluster: Cluster, in_flight: int, *, seconds: float = 0.3, rounds: int = 3) -> Cost:
    """Put, with so many under way at any time: an answer makes room for the next.

    Of several rounds of so many ``seconds`` the one with the median speed counts: once in a while a machine
    stands still. Begins again, twice, if the leader has changed. Raises an ``OndiskError`` if a put fails.
    """
    loop = asyncio.get_running_loop()
    with ThreadPoolExecutor(1, "ondisk-measure") as aside:  # so that the pictures go on moving
        for _ in range(3):
            leader = await loop.run_in_executor(aside, cluster.wait_for_leader)
            measure = partial(_measure, cluster, leader, in_flight, seconds)
            try:
                costs = [await loop.run_in_executor(aside, measure) for _ in range(rounds)]
            except OndiskError:
                if cluster.leader_id == leader:
                    raise
                continue
            if cluster.leader_id == leader:
                return sorted(costs, key=lambda cost: cost.puts_per_second)[rounds // 2]
    raise RuntimeError("the leader changed again and again, so its fsyncs cannot be counted")


def _measure(cluster: Cluster, leader: int, in_flight: int, seconds: float) -> Cost:
    room = threading.Semaphore(in_flight)
    latencies: list[float] = []
    errors: list[BaseException] = []

    def put(number: int) -> None:
        asked = time.perf_counter()

        def answered(future: Future[Result]) -> None:  # in the thread of the leader: must be quick
            if (error := future.exception()) is not None:
                errors.append(error)
            latencies.append(time.perf_counter() - asked)
            room.release()

        cluster.put_async(f"key-{number % 100}", "value", timeout=_ANSWER_WITHIN).add_done_callback(answered)

    syncs_before, began, number = cluster.status()[leader].log_syncs, time.perf_counter(), 0
    while time.perf_counter() < began + seconds and not errors:
        room.acquire()
        put(number)
        number += 1
    for _ in range(in_flight):  # all have been answered
        room.acquire()
    took = time.perf_counter() - began
    if errors:
        raise errors[0]
    syncs = cluster.status()[leader].log_syncs - syncs_before
    return Cost(in_flight, number, took, syncs, statistics.median(latencies))
