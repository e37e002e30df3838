"""Clients that write down what they ask, while something fails: the experiments of notebook 5."""

from __future__ import annotations

import itertools
import random
import threading
import time
from collections.abc import Callable, Iterable
from typing import Any, NamedTuple, TypeVar

from ondisk.client import DEFAULT_TIMEOUT
from ondisk.cluster import Cluster
from ondisk.errors import NotDone, OndiskError, OutcomeUnknown
from ondisk.interrupts.shielded import shielded
from ondisk.lab.experiments.faults import stall, undo_faults
from ondisk.lab.pictures.cluster import Picture, table
from ondisk.linearizability.history import History
from ondisk.statemachine import Result

_T = TypeVar("_T")


class RecordingClient:
    """Asks a cluster, always through the same replica, and writes down what was asked and what came of it.

    Errors are raised as always: ``NotDone`` leaves nothing in the history, ``OutcomeUnknown`` an open end.
    A history is about keys that were missing when it began.
    """

    def __init__(
        self, cluster: Cluster, history: History, name: int | str, *, via: int | None = None
    ) -> None:
        """``name`` is that of the client in the history; without ``via`` it is the leader that is asked."""
        self._cluster = cluster
        self._history = history
        self._name = name
        self._via = via

    def put(self, key: str, value: str, *, timeout: float = DEFAULT_TIMEOUT) -> None:
        """Set a key."""
        self._ask(("put", key, value), lambda: self._cluster.put(key, value, via=self._via, timeout=timeout))

    def incr(self, key: str, by: int = 1, *, timeout: float = DEFAULT_TIMEOUT) -> Any:
        """Add to a number; return the new one."""
        ask = self._ask(
            ("incr", key, by), lambda: self._cluster.incr(key, by, via=self._via, timeout=timeout)
        )
        return ask.value

    def get(self, key: str, *, timeout: float = DEFAULT_TIMEOUT) -> bytes | None:
        """The value of a key: a linearizable read."""
        return self._ask(("get", key), lambda: self._cluster.get(key, via=self._via, timeout=timeout))

    def stale_get(self, key: str) -> bytes | None:
        """What the replica's own state says; written down as a get, as if it were one."""
        return self._ask(("get", key), lambda: self._cluster.stale_get(key, via=self._via))

    def _ask(self, operation: tuple[str, *tuple[Any, ...]], ask: Callable[[], _T]) -> _T:
        name, key, *arguments = operation
        number = self._history.begin(self._name, name, key, *arguments)
        try:
            answered = ask()
        except NotDone:
            self._history.not_done(number)
            raise
        except BaseException:
            self._history.unknown(number)
            raise
        self._history.ok(number, answered.value if isinstance(answered, Result) else answered)
        return answered


class Clients:
    """A client for each replica, in a thread of its own, that asks through it while a ``with`` block runs.

    Each puts a value that nobody else puts, and then gets twice. ``history`` is what all of them saw.
    """

    def __init__(self, cluster: Cluster, *, key: str = "colour", stale: bool = False) -> None:
        """With ``stale`` they ask for what their replica has, and else for linearizable reads."""
        self.history = History()
        self._key = key
        self._stale = stale
        self._closed = threading.Event()
        self._threads = [
            threading.Thread(target=self._run, args=(cluster, replica_id), name="ondisk-client", daemon=True)
            for replica_id in cluster.members
        ]

    @shielded
    def __enter__(self) -> Clients:
        for thread in self._threads:
            thread.start()
        return self

    @shielded
    def __exit__(self, *_: object) -> None:
        self._closed.set()
        for thread in self._threads:
            thread.join()

    def _run(self, cluster: Cluster, replica_id: int) -> None:
        client = RecordingClient(cluster, self.history, f"via replica {replica_id}", via=replica_id)
        pauses = random.Random(replica_id)
        for number in itertools.count(replica_id):  # they do not all put at the same time
            if self._closed.wait(pauses.uniform(0.1, 0.3)):
                return
            try:
                if number % 3 == 0:
                    client.put(self._key, f"{'xabcdefgh'[replica_id % 9]}{number}", timeout=0.4)
                elif self._stale:
                    client.stale_get(self._key)
                else:
                    client.get(self._key, timeout=0.4)
            except OndiskError:
                pass  # the history has what there is to know


class Outage(NamedTuple):
    """What the failure of a leader did to its clients. Times in seconds."""

    fault: str
    said: str  # to a put through this leader
    seconds: float  # until a put through one of the others was done
    before: bool  # what was acknowledged before is there at the end
    late: bool  # and the put through the failed leader
    after: bool  # and the one through the others


def fail_the_leader(cluster: Cluster, fault: str) -> Outage:
    """Let the leader ``crash``, ``stall`` or be ``cut off``, go on asking, and see what is there at the end.

    Raises an ``OndiskError`` if nobody else takes over within ten seconds.
    """
    leader = undo_faults(cluster)
    other = next(replica_id for replica_id in cluster.members if replica_id != leader)
    for key in ("before", "late", "after"):
        cluster.delete(key)
    cluster.put("before", "acknowledged")
    if fault == "crash":
        cluster.crash(leader)
    elif fault == "stall":
        stall(cluster, leader)
    elif fault == "cut off":
        cluster.network.isolate(leader)
    else:
        raise ValueError(f"no such fault: {fault!r}")
    began = time.perf_counter()
    said = "done"
    try:
        cluster.put("late", "maybe", via=leader, timeout=0.5)
    except NotDone:
        said = "not done"
    except OutcomeUnknown:
        said = "outcome unknown"
    _put_until_done(cluster, "after", via=other, timeout=10)
    seconds = time.perf_counter() - began
    undo_faults(cluster)
    there = [cluster.get(key) is not None for key in ("before", "late", "after")]
    return Outage(fault, said, seconds, *there)


def _put_until_done(cluster: Cluster, key: str, *, via: int, timeout: float) -> None:
    """A put may be repeated: twice is as good as once."""
    deadline = time.monotonic() + timeout
    while True:
        try:
            cluster.put(key, "acknowledged", via=via, timeout=0.5)
            return
        except OndiskError:
            if time.monotonic() > deadline:
                raise


def show_outages(outages: Iterable[Outage]) -> Picture:
    """A table, a row for each."""
    names = ("leader", "a put through it", "others lead after", "put before", "put through it", "put after")
    rows = [
        (each.fault, each.said, f"{each.seconds:.1f} s", *map(_there, (each.before, each.late, each.after)))
        for each in outages
    ]
    caption = "What clients heard, and which puts are there in the end"
    words = "; ".join(
        ", ".join(f"{name}: {cell}" for name, cell in zip(names, row, strict=True)) for row in rows
    )
    return Picture(table(names, rows, caption), f"{caption}. {words}.")


def _there(there: bool) -> str:
    return "there" if there else "not there"
