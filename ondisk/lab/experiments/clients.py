"""Clients that write down what they ask and what comes of it."""

from __future__ import annotations

import itertools
import random
import threading
from collections.abc import Callable
from typing import Any, Self, TypeVar

from ondisk.client import DEFAULT_TIMEOUT
from ondisk.cluster import Cluster
from ondisk.errors import NotDone, OndiskError
from ondisk.interrupts.shielded import shielded
from ondisk.linearizability.history import History
from ondisk.statemachine import Result

_T = TypeVar("_T")

Call = tuple[str, *tuple[Any, ...]]
"""The name of an operation, its key and its arguments."""


class Noted:
    """A ``with`` block that asks for something, and writes down what came of it.

    Inside, set ``answer``. ``NotDone`` leaves nothing in the history, any other error an open end.
    """

    def __init__(self, history: History, client: int | str, call: Call) -> None:
        """``client`` is its name in the history."""
        self.answer: Any = None
        self._history = history
        self._client = client
        self._call = call

    def __enter__(self) -> Self:
        name, key, *arguments = self._call
        self._number = self._history.begin(self._client, name, key, *arguments)
        return self

    def __exit__(self, _: object, error: BaseException | None, __: object) -> None:
        if isinstance(error, NotDone):
            self._history.not_done(self._number)
        elif error is not None:  # nobody will hear the answer
            self._history.unknown(self._number)
        else:
            answer = self.answer.value if isinstance(self.answer, Result) else self.answer
            self._history.ok(self._number, answer)


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

    def _ask(self, operation: Call, ask: Callable[[], _T]) -> _T:
        with Noted(self._history, self._name, operation) as noted:
            noted.answer = answered = ask()
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
