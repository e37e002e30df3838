"""Clients of a simulated group: they ask, wait, and remember what they were told, in a ``History``."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from concurrent.futures import Future
from functools import partial
from typing import Any, Protocol

from ondisk import diskkv, sessions
from ondisk.errors import NotDone
from ondisk.linearizability import History
from ondisk.replica import Replica
from ondisk.simulation.invariants import Violation
from ondisk.simulation.world import World
from ondisk.statemachine import Result

REQUEST_SECONDS = 2.0  # the deadline that a client gives
_PATIENCE = 4.0  # then it goes on, answered or not: a replica that gets no processor answers nobody
_THINK_SECONDS = 1.0  # at most, between an answer and the next question
_BY_LEASE = 0.8  # the part of the reads that ask for it, in a world with leases
_NEW_KEYS_EVERY = 10.0  # seconds, so that no key's history becomes long


def hot_key(now: float, fraction: float) -> str:
    """A key that is asked for at this time, so that operations meet."""
    return f"k{int(now / _NEW_KEYS_EVERY)}.{int(fraction * 2)}"


class Service(Protocol):
    """Where clients find replicas."""

    def any_replica(self, fraction: float) -> tuple[Replica, float] | None:
        """One that runs, and its time now; ``fraction`` in 0..1 picks it."""

    def report(self, violation: Violation) -> None:
        """End the run with this."""


def when_done(future: Future[Any], then: Callable[[Future[Any]], None], service: Service) -> None:
    """Call ``then`` with the future. What it raises is a violation: a future would keep it to itself."""

    def call(ended: Future[Any]) -> None:
        try:
            then(ended)
        except Exception as error:
            service.report(Violation("client", repr(error)))

    future.add_done_callback(call)


class Epochs(History):
    """A history that goes on when a group has lost its majority, and another one begins with an import.

    What was not imported is gone for good, so from then on every key is another one: it begins as imported.
    """

    def __init__(self) -> None:
        super().__init__()
        self.epoch = 0

    def key(self, name: str) -> str:
        """What this key is called in the present epoch."""
        return f"{self.epoch}:{name}" if self.epoch else name

    def begin(
        self, client: int | str, name: str, key: str | bytes, *args: Any, at: float | None = None
    ) -> int:
        """A client calls, in the present epoch."""
        return super().begin(client, name, self.key(str(key)), *args, at=at)

    def begin_epoch(self, contents: Mapping[bytes, bytes], at: float) -> None:
        """From now on there is what was imported, and nothing else."""
        self.epoch += 1
        for key, value in contents.items():
            self.ok(self.begin("the import", "put", key.decode(), value, at=at), at=at)


class Client:
    """Asks one thing after the other, on few keys, so that operations meet."""

    def __init__(
        self, number: int, world: World, service: Service, history: History, *, leases: bool = False
    ) -> None:
        """``leases``: most of its reads are content with a leader's lease."""
        self._world = world
        self._service = service
        self._history = history
        self._rng = world.rng("client", number)
        self._leases = world.rng("leases of a client", number) if leases else None
        self._number = number
        self._lives = 0
        self._asked = 0  # which question is waited for
        self._stopped = False
        self._think()

    def stop(self) -> None:
        """Ask nothing more."""
        self._stopped = True

    def _think(self) -> None:
        self._world.after(_THINK_SECONDS * self._rng.random(), self._ask)

    @property
    def _name(self) -> str:
        # Who was never answered may still be at work, so what comes next is said by somebody else.
        return f"{self._number}.{self._lives}"

    def _ask(self) -> None:
        if self._stopped:
            return
        rng, history = self._rng, self._history
        found = self._service.any_replica(rng.random())
        if found is None:
            self._think()
            return
        replica, deadline = found[0], found[1] + REQUEST_SECONDS
        epoch = int(self._world.elapsed / _NEW_KEYS_EVERY)
        key, number = hot_key(self._world.elapsed, rng.random()), f"n{epoch}"
        value = f"v{self._number}.{self._asked}"
        kind, now = rng.random(), self._world.elapsed
        self._asked += 1
        if kind < 0.35:
            which = key if rng.random() < 0.7 else number
            self._read(replica, deadline, which, history.begin(self._name, "get", which, at=now))
            return
        if kind < 0.6:
            command, begun = diskkv.put(key, value), history.begin(self._name, "put", key, value, at=now)
        elif kind < 0.8:
            command, begun = diskkv.incr(number), history.begin(self._name, "incr", number, 1, at=now)
        elif kind < 0.9:
            expected = f"v{int(rng.random() * 3)}.{max(0, self._asked - 1 - int(rng.random() * 3))}"
            command = diskkv.compare_and_set(key, expected, value)
            begun = history.begin(self._name, "compare_and_set", key, expected, value, at=now)
        else:
            command, begun = diskkv.delete(key), history.begin(self._name, "delete", key, at=now)
        self._wait(replica.propose(command, deadline), begun, lambda result: result.value)

    def _read(self, replica: Replica, deadline: float, key: str, begun: int) -> None:
        def look(_: None) -> Any:
            return replica.lookup(diskkv.get(key))

        lease = self._leases is not None and self._leases.random() < _BY_LEASE
        self._wait(replica.read_barrier(deadline, lease=lease), begun, look)

    def _wait(self, future: Future[Any], begun: int, answer: Callable[[Any], Any]) -> None:
        asked = self._asked
        waiting = True

        def done(ended: Future[Any]) -> None:
            nonlocal waiting
            if not waiting:
                return
            waiting = False
            self._end(ended, begun, answer)

        def give_up() -> None:
            nonlocal waiting
            if waiting and asked == self._asked:
                waiting = False
                self._history.unknown(begun, at=self._world.elapsed)
                self._lives += 1
                self._think()

        when_done(future, done, self._service)
        self._world.after(_PATIENCE, give_up)

    def _end(self, ended: Future[Any], begun: int, answer: Callable[[Any], Any]) -> None:
        record_outcome(self._history, begun, ended, answer, self._world.elapsed)
        if ended.exception() is not None and not isinstance(ended.exception(), NotDone):
            self._lives += 1
        self._think()


class SessionClient:
    """Counts in a session: sends each increment again, with its number, until the outcome is known.

    For the history that is one operation, however often it was sent. Applied twice, it would show.
    """

    def __init__(self, number: int, world: World, service: Service, history: History) -> None:
        self._world = world
        self._service = service
        self._history = history
        self._rng = world.rng("session client", number)
        self._number = number
        self._lives = 0
        self._session = 0
        self._sequence = 0
        self._attempts = 0
        self._begun: int | None = None
        self._stopped = False
        self._send(sessions.register(), self._registered)

    @property
    def _name(self) -> str:
        return f"session {self._number}.{self._lives}" if self._lives else f"session {self._number}"

    def stop(self) -> None:
        """Begin nothing more; what is unfinished has no known outcome."""
        self._stopped = True

    def begin_anew(self) -> None:
        """The group has lost a majority of its disks, and its sessions may be among what is gone."""
        if self._begun is not None:
            self._history.unknown(self._begun, at=self._world.elapsed)
            self._begun = None
        self._attempts += 1
        self._lives += 1
        self._send(sessions.register(), self._registered)

    def _registered(self, result: Result) -> None:
        assert isinstance(result.value, int)
        self._session = result.value
        self._next()

    def _next(self) -> None:
        self._world.after(_THINK_SECONDS * self._rng.random(), partial(self._count, self._lives))

    def _count(self, life: int) -> None:
        if self._stopped or life != self._lives:
            return
        self._sequence += 1
        key = f"s{int(self._world.elapsed / _NEW_KEYS_EVERY)}"
        self._begun = self._history.begin(self._name, "incr", key, 1, at=self._world.elapsed)
        self._send(sessions.once(self._session, self._sequence, diskkv.incr(key)), self._counted)

    def _counted(self, result: Result) -> None:
        assert self._begun is not None
        if result.error is not None:
            self._service.report(Violation("exactly once", f"{self._name}: {result.error}"))
            return
        self._history.ok(self._begun, result.value, at=self._world.elapsed)
        self._begun = None
        self._next()

    def _send(self, command: bytes, then: Callable[[Result], None]) -> None:
        """Until it is known what came of it, or the group is another one."""
        self._attempts += 1
        attempt = self._attempts
        found = self._service.any_replica(self._rng.random())

        def again() -> None:
            if attempt == self._attempts:
                self._send(command, then)

        def done(ended: Future[Result]) -> None:
            if attempt != self._attempts:
                return
            if ended.exception() is not None:
                self._world.after(0.1, again)
            else:
                self._attempts += 1
                then(ended.result())

        if found is not None:
            when_done(found[0].propose(command, found[1] + REQUEST_SECONDS), done, self._service)
        self._world.after(_PATIENCE if found is not None else 0.5, again)


def record_outcome(
    history: History, begun: int, ended: Future[Any], answer: Callable[[Any], Any], now: float
) -> None:
    """Tell the history how a request ended."""
    error = ended.exception()
    if isinstance(error, NotDone):
        history.not_done(begun)
    elif error is not None:
        history.unknown(begun, at=now)
    elif isinstance(result := ended.result(), Result) and result.error is not None:
        history.not_done(begun)
    else:
        history.ok(begun, answer(result), at=now)
