"""A client with sessions in virtual time, and the crash that a session is for."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from concurrent.futures import Future
from typing import Any

import pytest

from ondisk import Result, client
from ondisk.client import Client
from ondisk.diskkv import incr
from ondisk.errors import (
    ConfigurationError,
    ReplicaStopped,
)
from ondisk.raft.messages import Message, Outcomes
from ondisk.replica import Replica
from tests.virtual import World

FOREVER = float("inf")


class WorldClient(Client):
    """A client in virtual time: whoever waits for an answer lets time pass."""

    def __init__(self, world: World, monkeypatch: pytest.MonkeyPatch) -> None:
        self.world = world
        self.each_tick: Callable[[], object] = lambda: None

        class Time:
            monotonic = staticmethod(lambda: world.now)
            sleep = staticmethod(self._run)

        monkeypatch.setattr(client, "time", Time)

    def propose_async(
        self, command: bytes, *, via: int | None = None, timeout: float = client.DEFAULT_TIMEOUT
    ) -> Future[Result]:
        running = [replica for replica in self.world.replicas.values() if replica.log is not None]
        leader = self.world.leader
        if via is not None and via not in self.world.first_members:
            raise ConfigurationError(f"there is no replica {via}")
        replica = leader or next(iter(running), None) if via is None else self.world.replicas.get(via)
        if replica is None:
            raise ReplicaStopped("not running")
        future = replica.propose(command, self.world.now + timeout)

        def wait(seconds: float = 0.0) -> Result:
            self._run(seconds, future.done)
            if not future.done():
                raise TimeoutError
            return Future.result(future, 0)

        future.result = wait  # type: ignore[assignment, method-assign]
        return future

    def _run(self, seconds: float, condition: Callable[[], bool] = lambda: False) -> None:
        until = self.world.now + seconds
        while self.world.now < until and not condition():
            self.world.tick()
            self.each_tick()

    def read(self, *_: Any, **__: Any) -> Any:
        raise NotImplementedError

    read_async = stale_read = add_replica = remove_replica = transfer_leadership = read
    replace_replica = move_replica = read


def crash_before_the_answer(group: WorldClient) -> Replica:
    """The leader will crash when it has applied a follower's command and before it tells. Returns another."""
    world, leader = group.world, group.world.elect()
    answered: list[int] = []

    def lose(sender: int, _: int, message: Message) -> Iterable[Message]:
        if isinstance(message, Outcomes) and sender == leader.id:
            answered.extend(outcome.request for outcome in message.outcomes if outcome.result is not None)
            return []
        return [message]

    def crash() -> None:
        if answered and leader.id in world.replicas:
            world.crash(leader.id)

    world.edit, group.each_tick = lose, crash
    return world.replicas[world.others(leader.id)[0]]


def settle(group: WorldClient) -> dict[bytes, bytes]:
    """Heal and start everything; return what all replicas hold."""
    world = group.world
    world.edit, group.each_tick = None, lambda: None
    world.network.heal()
    for member in world.first_members:
        if member not in world.replicas:
            world.start(member)
    world.run_until(world.converged)
    return world.assert_equal()


def attempts(world: World) -> int:
    """How many entries of the leader's log hold ``incr("n")``, in an envelope or not."""
    log = world.elect().log
    assert log is not None
    return sum(incr("n") in entry.command for entry in log.entries(1, log.last_index))
