"""Serving: answers clients that host no replica, for one replica (``net/client_messages.py``).

To the replica such a client is a caller like any other: its command is proposed, its read waits for the same
barrier. The answer comes from a future's callback, in the replica's thread. Only lookups, which may take
long, have threads of their own.
"""

from __future__ import annotations

import logging
import threading
from collections import deque
from collections.abc import Callable
from concurrent.futures import Future
from functools import partial
from queue import SimpleQueue
from typing import Any

import msgspec

from ondisk import errors
from ondisk.errors import InvalidCommand, NoLeader, OndiskError, Rejected, ReplicaStopped, ResourceError
from ondisk.net.client_messages import (
    MAX_ANSWER_BYTES,
    Applied,
    ChangeGroup,
    Command,
    Compact,
    Failed,
    Found,
    Look,
    Query,
    Response,
)
from ondisk.net.clients import Call
from ondisk.net.clock import Clock
from ondisk.net.tcp import TcpEndpoint
from ondisk.raft.members import Members
from ondisk.raft.messages import AddReplica
from ondisk.replica import Inside, Replica
from ondisk.snapshot.background import start_thread
from ondisk.statemachine import Result

_NEWEST_ENTRIES = 6  # of the log, for who looks inside
_LONG_COMMAND = 4096  # bytes

_LOOKERS = 2  # threads, from the first read on

Answer = Applied | Found | Failed

logger = logging.getLogger(__name__)


class Serving:
    """Belongs to the thread that steps the replica: ``take`` before a step, ``flush`` after it."""

    def __init__(self, replica: Replica, endpoint: TcpEndpoint, clock: Clock) -> None:
        """``clock`` is that of the replica."""
        self._replica = replica
        self._endpoint = endpoint
        self._clock = clock
        self._leaving = False
        self._said_goodbye = False
        self._looks = SimpleQueue[tuple[Call, Any] | None]()
        self._looked = deque[tuple[Call, Answer]]()
        self._lookers: list[threading.Thread] = []
        queries = replica.machine.queries
        self._queries = None if queries is None else msgspec.msgpack.Decoder(queries)

    @property
    def has_clients(self) -> bool:
        """Whether there are any. From any thread."""
        return self._endpoint.has_clients

    def leave(self) -> None:
        """The replica is about to stop: take in nothing more, and say so. From any thread.

        A client hangs up when it has heard of it and has its answers: then nothing that it asked is unknown.
        """
        self._leaving = True
        self._endpoint.wake()

    def take(self) -> None:
        """Begin what clients have asked for since the last call."""
        if self._looked:
            self.flush()  # no step is needed for these
        if self._leaving and not self._said_goodbye:
            self._said_goodbye = True
            self._endpoint.tell_clients(Response(0, 0, _failed(self._going())))
        for call in self._endpoint.calls():
            try:
                self._begin(call)
            except OndiskError as error:  # before anything was begun
                self._answer(call, _failed(error))
            except Exception as error:
                logger.warning("what a client has asked for failed", exc_info=True)
                self._answer(call, _failed(Rejected(f"{type(error).__name__}: {error}")))

    def flush(self) -> None:
        """Let the answers leave."""
        while self._looked:
            self._answer(*self._looked.popleft())
        self._endpoint.flush_answers()

    def close(self) -> None:
        """End the threads. A second call does nothing."""
        lookers, self._lookers = self._lookers, []
        for _ in lookers:
            self._looks.put(None)
        for thread in lookers:
            thread.join()

    # Inside

    def _begin(self, call: Call) -> None:
        body, replica = call.request.body, self._replica
        if self._leaving:
            raise self._going()
        if isinstance(body, Look):
            self._answer(call, self._look(body))
            return
        if isinstance(body, Compact):
            compacted = partial(self._on_end, call, lambda index: Applied(Result(index)))
            replica.compact().add_done_callback(compacted)
            return
        if isinstance(body, Query):
            query = self._decoded(body.query)
            if body.how == "stale":
                self._look_up(call, query)
                return
        if replica.status.leader_id is None:  # another one may know of one: so the client need not wait here
            raise NoLeader(f"replica {replica.id} knows of no leader{self._problem()}")
        deadline = self._clock() + call.request.milliseconds / 1000
        if isinstance(body, Query):
            barrier = replica.read_barrier(deadline, lease=body.how == "lease")
            barrier.add_done_callback(partial(self._on_barrier, call, query))
        elif isinstance(body, Command):
            replica.propose(body.command, deadline).add_done_callback(partial(self._on_end, call, Applied))
        else:
            self._change(call, body, deadline)

    def _change(self, call: Call, body: ChangeGroup, deadline: float) -> None:
        change = body.change
        if isinstance(change, AddReplica) and change.again:
            raise InvalidCommand("only a member asks again for the same change")
        self._replica.propose_change(change, deadline).add_done_callback(partial(self._on_end, call, Applied))

    def _on_end(self, call: Call, answer: Callable[[Any], Answer], future: Future[Any]) -> None:
        if (error := future.exception()) is not None:
            self._answer(call, _failed(error))
        else:
            self._answer(call, answer(future.result()))

    def _on_barrier(self, call: Call, query: Any, barrier: Future[None]) -> None:
        if (error := barrier.exception()) is not None:
            self._answer(call, _failed(error))
        else:
            self._look_up(call, query)

    def _answer(self, call: Call, answer: Answer) -> None:
        self._endpoint.answer(
            call, Response(call.request.number, self._replica.status.leader_id or 0, answer)
        )

    def _look(self, look: Look) -> Found:
        if look.what == "status":
            return Found(msgspec.msgpack.encode(self._replica.status))
        if look.what == "inside":
            return Found(msgspec.msgpack.encode(_short(self._replica.inside(_NEWEST_ENTRIES))))
        members: Members = self._replica.configuration[1]
        return Found(msgspec.msgpack.encode(members))

    def _decoded(self, query: bytes) -> Any:
        machine = type(self._replica.machine).__name__
        if self._queries is None:
            raise InvalidCommand(f"{machine} answers nobody over TCP (see OnDiskStateMachine.queries)")
        try:
            return self._queries.decode(query)
        except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
            raise InvalidCommand(f"no query of {machine}: {error}") from None

    def _going(self) -> ReplicaStopped:
        return ReplicaStopped(f"replica {self._replica.id} is about to stop")

    def _problem(self) -> str:
        error = self._replica.status.error
        return f": {error}" if error else ""

    # Lookups

    def _look_up(self, call: Call, query: Any) -> None:
        if not self._lookers:
            for _ in range(_LOOKERS):
                name = f"ondisk-{self._replica.id}-lookups"
                thread = threading.Thread(target=self._run_lookups, name=name, daemon=True)
                try:
                    start_thread(thread)
                except ResourceError:
                    if not self._lookers:
                        raise
                    break
                self._lookers.append(thread)
        self._looks.put((call, query))

    def _run_lookups(self) -> None:
        while (look := self._looks.get()) is not None:
            call, query = look
            self._looked.append((call, self._found(query)))
            self._endpoint.wake()

    def _found(self, query: Any) -> Answer:
        try:
            data = msgspec.msgpack.encode(self._replica.lookup(query))
        except Exception as error:  # an error is the answer, whatever the state machine has to say
            return _failed(error)
        if len(data) > MAX_ANSWER_BYTES:
            what = (
                f"the answer has {len(data):,} bytes, and at most {MAX_ANSWER_BYTES:,} travel: ask for less"
            )
            return _failed(Rejected(what))
        return Found(data)


def _short(inside: Inside) -> Inside:
    """Without the commands that are long, and without a time of this machine's clock."""
    entries = tuple(
        msgspec.structs.replace(entry, command=b"") if len(entry.command) > _LONG_COMMAND else entry
        for entry in inside.entries
    )
    return inside._replace(entries=entries, election_at=0.0)


def _failed(error: BaseException) -> Failed:
    """An error by its name in ``errors.py``, or by that of the one there that it is a kind of."""
    for kind in type(error).__mro__:
        if getattr(errors, kind.__name__, None) is kind:
            return Failed(kind.__name__, str(error))
    return Failed(OndiskError.__name__, f"{type(error).__name__}: {error}")
