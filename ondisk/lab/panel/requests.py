"""What a panel asks of its cluster: put, get and the like; and the history that this makes."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from concurrent.futures import Future
from contextlib import suppress
from typing import TypeVar

from ondisk import diskkv
from ondisk.client import DEFAULT_TIMEOUT
from ondisk.cluster import Cluster
from ondisk.errors import OndiskError, Rejected
from ondisk.interrupts.futures import in_background
from ondisk.lab.experiments.clients import Call, Noted
from ondisk.lab.panel.answers import Answers
from ondisk.lab.panel.controls import Controls
from ondisk.lab.panel.screen import Screen
from ondisk.lab.panel.watched import Watched
from ondisk.linearizability.history import History
from ondisk.statemachine import Result

_TIMEOUT_PAUSED = 30.0  # seconds; nobody can answer while the network stands still

_T = TypeVar("_T")


async def in_thread(work: Callable[[], _T]) -> _T:
    """Await what may block. Not in an executor: its locks are taken here, where an interrupt may come."""
    return await asyncio.wrap_future(in_background(work))


class Requests:
    """Sends what is typed in, through the replica that is chosen."""

    def __init__(self, controls: Controls, answers: Answers, screen: Screen, watched: Watched) -> None:
        self._controls = controls
        self._answers = answers
        self._screen = screen
        self._watched = watched
        for button, request in (
            (controls.put, self._put),
            (controls.get, self._get),
            (controls.stale_get, self._stale_get),
            (controls.delete, self._delete),
            (controls.incr, self._incr),
        ):
            answers.connect(button, request)

    # The requests

    def _put(self) -> None:
        key, via, timeout = self._typed()
        cluster = self._watched.mine
        value = self._controls.value.value
        self._write(
            f"put {key} = {value}",
            ("put", key, value),
            lambda: cluster.put_async(key, value, via=via, timeout=timeout),
            lambda _: "done",
        )

    def _delete(self) -> None:
        key, via, timeout = self._typed()
        cluster = self._watched.mine
        self._write(
            f"delete {key}",
            ("delete", key),
            lambda: cluster.propose_async(diskkv.delete(key), via=via, timeout=timeout),
            lambda result: "done" if result.value else "there was no such key",
        )

    def _incr(self) -> None:
        key, via, timeout = self._typed()
        cluster = self._watched.mine
        self._write(
            f"incr {key}",
            ("incr", key, 1),
            lambda: cluster.propose_async(diskkv.incr(key), via=via, timeout=timeout),
            lambda result: f"now {result.value!r}",
        )

    def _get(self) -> None:
        key, via, timeout = self._typed()
        client = self._watched.client
        self._read(f"get {key}", key, lambda: client.get(key, via=via, timeout=timeout))

    def _stale_get(self) -> None:
        key, via, _ = self._typed()
        client = self._watched.client
        self._read(f"stale get {key}", key, lambda: client.stale_get(key, via=via), stale=True)

    def _typed(self) -> tuple[str, int | None, float]:
        """The key, through whom, and for how many seconds to wait for an answer.

        The usual time, and a few round trips more on a slow network.
        """
        timeout = DEFAULT_TIMEOUT
        if isinstance(cluster := self._watched.cluster, Cluster):
            network = cluster.network
            timeout = _TIMEOUT_PAUSED if network.paused else timeout + 6 * network.latency
        return self._controls.key.value, self._via(), timeout

    def _via(self) -> int | None:
        return self._controls.via.value or None

    # Their way

    def _write(
        self, what: str, call: Call, send: Callable[[], Future[Result]], say: Callable[[Result], str]
    ) -> None:
        async def request() -> Result:
            result = await asyncio.wrap_future(send())
            if result.error is not None:
                raise Rejected(result.error)
            return result

        self._ask(what, call, request, say)

    def _read(self, what: str, key: str, read: Callable[[], bytes | None], *, stale: bool = False) -> None:
        self._ask(what, ("get", key), lambda: in_thread(read), _shown, stale=stale)

    def _ask(
        self,
        what: str,
        call: Call,
        request: Callable[[], Awaitable[_T]],
        say: Callable[[_T], str],
        *,
        stale: bool = False,
    ) -> None:
        """Make a request of a client. ``call`` is for the history."""
        asked = self._via() or self._watched.cluster.leader_id
        client = (f"replica {asked}" if asked else "no leader") + ", stale" * stale

        async def answer() -> str:
            history = self._watched.history
            if isinstance(self._watched.cluster, Cluster):
                self._note_what_was_there(history, call[1])
            with Noted(history, client, call) as noted:
                noted.answer = answered = await request()
            said = say(answered)
            self._watched.recorder.sample()  # so that the note has the present time
            self._watched.recorder.note(f"{what}: {said}", "answer")
            return said

        self._watched.recorder.mark()
        self._watched.recorder.note(what, "request")
        if self._answers.begin(what, answer, f", replica {asked}" if asked else ", no leader known"):
            self._screen.go_live()

    def _note_what_was_there(self, history: History, key: str) -> None:
        """The first time that a key is asked for: what the replica that has applied most has in it."""
        if any(operation.key == key for operation in history.operations):
            return
        statuses = self._watched.recorder.sample().statuses
        newest = max(statuses.values(), key=lambda status: (status.running, status.applied_index))
        with suppress(OndiskError):  # nobody runs
            if (value := self._watched.client.stale_get(key, via=newest.id)) is not None:
                history.ok(history.begin("before", "put", key, value))


def _shown(value: bytes | None) -> str:
    if value is None:
        return "no such key"
    text = value.decode(errors="backslashreplace")
    return text if len(text) <= 80 else f"{text[:80]}… ({len(value):,} bytes)"
