"""Clients that transact, watch and lock, and the rules that they hold what they are told against.

* *atomic*: a transaction writes the same value to two keys, and nobody sees two. So both count as one key in
  the history, and the checker of linearizability, which looks at one key at a time, checks transactions, too.
* *watch*: every change once and in order: indexes grow, what two watchers are told of one is the same, and
  all changes together make the contents.
* *one holder*: while the clock of who holds a lock says that it does, nobody else is given it.
* *fencing*: what holders write carries tokens that never go back.
"""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import Future
from functools import partial
from typing import Any, ClassVar

from ondisk import diskkv
from ondisk.errors import Compacted, OndiskError
from ondisk.locks import CLOCK_ERROR
from ondisk.replica import Replica
from ondisk.simulation.clients import REQUEST_SECONDS, Client, Epochs, Service, when_done
from ondisk.simulation.invariants import Violation
from ondisk.simulation.machine import PaddedKV, content
from ondisk.simulation.world import World
from ondisk.statemachine import Result
from ondisk.verbs import keyleases, txn
from ondisk.verbs.changes import Changed, changes_after

_PATIENCE = 4.0  # seconds until a client goes on, answered or not
_NEW_PAIRS_EVERY = 10.0  # seconds, as of other keys
_LOCK, _FENCE = "lock", b"fence"
_TTL = 1.0  # seconds


def is_in_history(key: bytes) -> bool:
    """Whether what is done to this key is recorded for the checker of linearizability."""
    return key not in (_LOCK.encode(), _FENCE) and not key.endswith(
        b".b"
    )  # the other of a pair stands for both


class VerbsKV(PaddedKV):
    """With a change history so short that a watcher may miss its beginning."""

    segment_bytes: ClassVar[int] = 256


class Transactor(Client):
    """Writes and reads pairs of keys that hold the same value, always."""

    def _ask(self) -> None:
        if self._stopped:
            return
        rng, history, now = self._rng, self._history, self._world.elapsed
        found = self._service.any_replica(rng.random())
        if found is None:
            self._think()
            return
        replica, deadline = found[0], found[1] + REQUEST_SECONDS
        pair = f"p{int(now / _NEW_PAIRS_EVERY)}"
        first, second = f"{pair}.a", f"{pair}.b"
        value = f"v{self._number}.{self._asked}"
        kind = rng.random()
        self._asked += 1
        both = [txn.put(first, value), txn.put(second, value)]
        tell: Callable[[txn.Answer], object]
        if kind < 0.4:
            begun = history.begin(self._name, "put", first, value, at=now)
            command, tell = txn.txn([], both), lambda _: None
        elif kind < 0.7:
            earlier = max(0, self._asked - 1 - int(rng.random() * 3))
            expected = f"v{self._number + 1 - int(rng.random() * 3)}.{earlier}"
            begun = history.begin(self._name, "compare_and_set", first, expected, value, at=now)
            command, tell = txn.txn([txn.equals(first, expected)], both), lambda answer: answer.succeeded
        else:
            begun = history.begin(self._name, "get", first, at=now)
            command, tell = txn.txn([], [txn.get(first), txn.get(second)]), self._equal
        self._wait(replica.propose(command, deadline), begun, lambda result: tell(txn.answer(result.value)))

    def _equal(self, answer: txn.Answer) -> object:
        first, second = answer.answers
        if first != second:
            self._service.report(Violation("atomic", f"entry {answer.index} saw {first!r} and {second!r}"))
        return first


class Watcher:
    """Follows all changes, wherever they are told, and knows what the contents should be."""

    def __init__(
        self,
        number: int,
        world: World,
        service: Service,
        history: Epochs,
        told: dict[tuple[int, int], Changed],
    ) -> None:
        """``told``: what watchers were told of each index, by epoch."""
        self._world = world
        self._service = service
        self._history = history
        self._told = told
        self._rng = world.rng("watcher", number)
        self._epoch = 0
        self._after = 0
        self._token = 0
        self._contents: dict[bytes, bytes] = {}
        self._asked = 0
        self._stopped = False
        self._look_later()

    def stop(self) -> None:
        """Ask nothing more."""
        self._stopped = True

    def _look_later(self) -> None:
        seconds = 30.0 if self._rng.random() < 0.03 else self._rng.random()  # some are away for long
        self._asked += 1
        self._world.after(seconds, partial(self._look, self._asked))

    def _look(self, asked: int) -> None:
        if asked != self._asked or self._stopped:
            return
        found = self._service.any_replica(self._rng.random())
        if found is None:
            self._look_later()
            return

        def see(ended: Future[Any]) -> None:
            if asked == self._asked:
                if ended.exception() is None:
                    self.see(found[0], limit=1 + int(10 * self._rng.random()))
                self._look_later()

        when_done(found[0].read_barrier(found[1] + REQUEST_SECONDS), see, self._service)
        self._world.after(_PATIENCE, lambda: self._look_later() if asked == self._asked else None)

    def see(self, replica: Replica, *, limit: int) -> bool:
        """Take in what is new at this replica, in this moment; return whether that is all."""
        if self._epoch != self._history.epoch:
            self._begin_anew(replica)
        try:
            page = replica.lookup(changes_after(b"", self._after, limit))
        except Compacted:
            self._world.counts["compacted"] += 1
            self._begin_anew(replica)
            return True
        except OndiskError:
            return False  # it has stopped
        if page.through < self._after:
            self._wrong(
                "watch", f"it was told all up to {self._after}, and then that {page.through} is the last"
            )
        for changed in page.entries:
            self._take_in(changed)
        self._after = page.through
        if len(page.entries) < limit and self._contents != content(replica.lookup):
            self._wrong("watch", f"all changes up to {self._after} do not make the contents")
        return len(page.entries) < limit

    def _take_in(self, changed: Changed) -> None:
        self._world.counts["watched"] += 1
        if changed.index <= self._after:
            self._wrong("watch", f"entry {changed.index} was told after {self._after}")
        self._after = changed.index
        if self._told.setdefault((self._epoch, changed.index), changed) != changed:
            self._wrong("watch", f"entry {changed.index} was told in two ways")
        for key, value in changed.pairs:
            if value is None:
                self._contents.pop(key, None)
            else:
                self._contents[key] = value
            if key == _FENCE and value is not None:
                if int(value) < self._token:
                    self._wrong("fencing", f"token {int(value)} came after {self._token}")
                self._token = int(value)

    def _begin_anew(self, replica: Replica) -> None:
        """What it should know is gone: it reads everything, as of this moment."""
        self._epoch = self._history.epoch
        self._after = replica.lookup(changes_after(after=1 << 62)).through
        self._contents = content(replica.lookup)
        self._token = int(self._contents.get(_FENCE, b"0"))

    def _wrong(self, rule: str, words: str) -> None:
        self._service.report(Violation(rule, words))


# The epoch, the token, and until when the clock of who holds the lock says that it does.
Holders = dict["Locker", tuple[int, int, float]]


class Locker:
    """Takes the one lock that there is, keeps it for a while, and lets it go or does not come back.

    Its own clock is right, and it counts on nine tenths of a time to live.
    """

    def __init__(
        self, number: int, world: World, service: Service, history: Epochs, holders: Holders
    ) -> None:
        self._world = world
        self._service = service
        self._history = history
        self._holders = holders
        self._rng = world.rng("locker", number)
        self._epoch = 0
        self._asked = 0
        self._lease = 0
        self._sure_until = 0.0
        self._rounds = 0
        self._stopped = False
        self._later(self._look)

    def stop(self) -> None:
        """Ask nothing more."""
        self._stopped = True

    @property
    def _mine(self) -> str:
        return f"{self._lease}"

    def _later(self, what: Callable[[], None], most: float = 1.0) -> None:
        self._asked += 1
        asked = self._asked

        def then() -> None:
            if asked == self._asked and not self._stopped:
                what()

        self._world.after(most * self._rng.random(), then)

    def _ask(
        self, ask: Callable[[Replica, float], Future[Any]], then: Callable[[Replica, Any], None]
    ) -> None:
        """Ask once. Whatever goes wrong, it looks again whether the lock is free."""
        self._asked += 1
        asked = self._asked
        found = self._service.any_replica(self._rng.random())
        if found is None:
            self._later(self._look)
            return

        def done(ended: Future[Any]) -> None:
            if asked != self._asked:
                return
            if ended.exception() is not None or self._epoch != self._history.epoch:
                self._epoch = self._history.epoch
                self._later(self._look)
            else:
                then(found[0], ended.result())

        when_done(ask(found[0], found[1] + REQUEST_SECONDS), done, self._service)
        self._world.after(_PATIENCE, lambda: self._later(self._look) if asked == self._asked else None)

    def _look(self) -> None:
        def see(replica: Replica, _: object) -> None:
            if replica.lookup(diskkv.get(_LOCK)) is None:
                self._grant()
            else:
                self._later(self._look, 0.3)

        self._ask(lambda replica, deadline: replica.read_barrier(deadline), see)

    def _grant(self) -> None:
        sure = self._world.elapsed + _TTL * (1 - CLOCK_ERROR)

        def granted(_: Replica, result: Result) -> None:
            if not isinstance(result.value, int):
                self._later(self._look)
                return
            self._lease, self._sure_until = result.value, sure
            put = txn.txn([txn.missing(_LOCK)], [txn.put(_LOCK, self._mine, lease=self._lease)])
            self._propose(put, self._taken)

        self._propose(keyleases.grant(_TTL), granted)

    def _propose(self, command: bytes, then: Callable[[Replica, Result], None]) -> None:
        self._ask(lambda replica, deadline: replica.propose(command, deadline), then)

    def _taken(self, _: Replica, result: Result) -> None:
        if result.error is not None or not (answer := txn.answer(result.value)).succeeded:
            self._later(self._look)
            return
        self._world.counts["locked"] += 1
        self._rounds = 1 + int(self._rng.random() * 5)
        self._hold(answer.index)

    def _hold(self, token: int) -> None:
        """It has just heard that it has the lock, or has it still."""
        now = self._world.elapsed
        self._holders[self] = self._epoch, token, self._sure_until
        for other, (epoch, others, until) in self._holders.items():
            if other is not self and epoch == self._epoch and min(until, self._sure_until) > now:
                self._service.report(Violation("one holder", f"tokens {others} and {token} at {now:.3f} s"))
        guard = [txn.equals(_LOCK, self._mine)]
        self._rounds -= 1
        if self._rounds > 0:
            write = txn.txn(guard, [txn.put(_FENCE, str(token))])
            self._later(partial(self._propose, write, lambda _, result: self._keep(token)), _TTL / 3)
        elif self._rng.random() < 0.5:
            del self._holders[self]  # from now on it does not count on it
            self._propose(txn.txn(guard, [txn.delete(_LOCK)]), lambda _, result: self._later(self._look))
        else:
            self._later(self._look, 10.0)

    def _keep(self, token: int) -> None:
        sure = self._world.elapsed + _TTL * (1 - CLOCK_ERROR)

        def kept(_: Replica, result: Result) -> None:
            if result.value is not True:
                self._later(self._look)
                return
            self._sure_until = sure
            self._hold(token)

        self._propose(keyleases.keep(self._lease), kept)
