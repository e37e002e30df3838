r"""An adapter for Maelstrom, so that an outside judge can look: ``python -m ondisk.maelstrom``.

Maelstrom (Jepsen's workbench) starts programs as nodes of a network, brings every message as a line of JSON
on standard input, takes what they send from standard output, and decides whether what its clients saw is
linearizable::

    printf '#!/bin/sh\nexec python3 -m ondisk.maelstrom\n' > node; chmod +x node
    maelstrom test -w lin-kv --bin node --node-count 3 --concurrency 4n --rate 100 --nemesis partition

Inside is the replica that ``Node`` runs, passive as it is, with the messages that go over TCP elsewhere. Here
they are base64 in a message of type ``ondisk``, numbered: Maelstrom lets messages overtake each other, and a
link of ``net/endpoint.py`` keeps their order, so what comes late counts as lost.
"""

from __future__ import annotations

import base64
import json
import os
import random
import select
import sys
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future
from contextlib import suppress
from pathlib import Path
from typing import Any

import msgspec

from ondisk import diskkv
from ondisk.diskkv import DiskKV
from ondisk.errors import InvalidCommand, NotDone, OndiskError, OutcomeUnknown
from ondisk.net.clock import Clock, since_boot
from ondisk.raft.messages import Message, Origin, decoder, encoder
from ondisk.replica import Replica
from ondisk.statemachine import Result

REQUEST_SECONDS = 5.0

# Maelstrom's codes. Of 13 its clients do not know whether it happened; of the others that it did not.
NOT_SUPPORTED, UNAVAILABLE, MALFORMED, CRASH, MISSING, NOT_EQUAL = 10, 11, 12, 13, 20, 22

Body = dict[str, Any]

_origin_decoder = msgspec.msgpack.Decoder(Origin)


class Links:
    """The endpoint of a replica whose network is Maelstrom's."""

    advertised = ""

    def __init__(self, peers: Mapping[int, str], send: Callable[[str, Body], None], wake: int) -> None:
        """``peers``: the names of the others. ``wake``: a descriptor to write to from other threads."""
        self._peers = dict(peers)
        self._send = send
        self._wake = wake
        self._origin = Origin(b"", b"", 0, 0)
        self._sent = (time.time_ns(), 0)  # a later life of this node counts from a later time
        self._received: dict[int, tuple[int, int]] = {}
        self._origins: dict[int, tuple[str, Origin]] = {}
        self._inbox: list[tuple[int, Origin, Message]] = []
        self._ids = {peer: number for number, peer in self._peers.items()}

    def introduce(self, origin: Origin) -> None:
        """See ``Endpoint``."""
        self._origin = origin

    def send(self, to: int, message: Message) -> bool:
        """See ``Endpoint``."""
        self._sent = life, number = self._sent[0], self._sent[1] + 1
        body = {
            "type": "ondisk",
            "number": [life, number],
            "origin": _text(msgspec.msgpack.encode(self._origin)),
            "message": _text(encoder.encode(message)),
        }
        self._send(self._peers[to], body)
        return True

    def deliver(self, source: str, body: Body) -> None:
        """A message of another replica has arrived."""
        sender = self._ids[source]
        life, number = body["number"]
        if (life, number) <= self._received.get(sender, (0, 0)):
            return
        self._received[sender] = life, number
        known, origin = self._origins.get(sender, ("", None))
        if origin is None or known != body["origin"]:
            origin = _origin_decoder.decode(base64.b64decode(body["origin"]))
            self._origins[sender] = body["origin"], origin
        self._inbox.append((sender, origin, decoder.decode(base64.b64decode(body["message"]))))

    def receive(self) -> list[tuple[int, Origin, Message]]:
        """See ``Endpoint``."""
        inbox, self._inbox = self._inbox, []
        return inbox

    def connected(self) -> frozenset[int]:
        """All: nothing tells of a partition but silence."""
        return frozenset(self._peers)

    def add_peers(self, addresses: Mapping[int, str]) -> None:
        """See ``Endpoint``: the nodes stay the same."""

    def wait(self, seconds: float) -> None:
        """Nobody waits here: see ``Adapter.step``."""

    def wake(self) -> None:
        """See ``Endpoint``."""
        with suppress(BlockingIOError):  # there is enough in it
            os.write(self._wake, b"w")

    def close(self) -> None:
        """See ``Endpoint``."""


class Adapter:
    """One node: messages in, messages out, no streams. ``replica`` is there when ``init`` has come."""

    def __init__(
        self,
        directory: Path,
        send: Callable[[Body], None],
        *,
        wake: int,
        clock: Clock = since_boot,
        rng: random.Random | None = None,
    ) -> None:
        """``send`` takes each message of this node. ``wake``: see ``Links``."""
        self._directory = directory
        self._send_message = send
        self._wake = wake
        self._clock = clock
        self._rng = rng or random.Random()
        self.name = ""
        self.replica: Replica | None = None
        self._links: Links | None = None

    def receive(self, message: Body) -> None:
        """One message for this node."""
        source, body = message["src"], message["body"]
        kind = body.get("type")
        if kind == "init":
            self._begin(body["node_id"], body["node_ids"])
            self._reply(source, body, {"type": "init_ok"})
        elif self.replica is None or self._links is None:
            self._fail(source, body, UNAVAILABLE, "init comes first")
        elif kind == "ondisk":
            self._links.deliver(source, body)
        elif (request := {"read": self._read, "write": self._write, "cas": self._cas}.get(kind)) is None:
            self._fail(source, body, NOT_SUPPORTED, f"there is no {kind!r:.60}")
        else:
            try:
                request(self.replica, source, body)
            except KeyError as missing:
                self._fail(source, body, MALFORMED, f"{missing} is missing")
            except OndiskError as error:
                self._fail_with(source, body, error)

    def step(self) -> float:
        """Do what there is to do now; return for how many seconds nothing more will be."""
        return float("inf") if self.replica is None else self.replica.step()

    def close(self) -> None:
        """End in order."""
        if self.replica is not None:
            self.replica.close()

    def _begin(self, name: str, names: Sequence[str]) -> None:
        self.name = name
        ids = {each: number for number, each in enumerate(sorted(names), 1)}
        peers = {number: each for each, number in ids.items() if each != name}
        self._links = Links(peers, self._send, self._wake)
        self.replica = Replica(
            ids[name],
            tuple(sorted(ids.values())),
            self._directory,
            DiskKV(self._directory / "state"),
            self._links,
            clock=self._clock,
            rng=self._rng,
        )

    # Requests. A key and a value are any JSON: stored as their text, in one spelling.

    def _read(self, replica: Replica, source: str, body: Body) -> None:
        query = diskkv.get(_encoded(body["key"]))

        def answer(future: Future[Any]) -> None:
            if (error := future.exception()) is not None:
                self._fail_with(source, body, error, reading=True)
            elif (found := future.result()) is None:
                self._fail(source, body, MISSING, "there is no such key")
            else:
                self._reply(source, body, {"type": "read_ok", "value": json.loads(found)})

        replica.read(query, self._clock() + REQUEST_SECONDS).add_done_callback(answer)

    def _write(self, replica: Replica, source: str, body: Body) -> None:
        command = diskkv.put(_encoded(body["key"]), _encoded(body["value"]))
        self._propose(replica, source, body, command, lambda _: {"type": "write_ok"})

    def _cas(self, replica: Replica, source: str, body: Body) -> None:
        key = _encoded(body["key"])
        command = diskkv.compare_and_set(key, _encoded(body["from"]), _encoded(body["to"]))

        def answer(result: Result) -> Body:
            if result.value:
                return {"type": "cas_ok"}
            if replica.lookup(diskkv.get(key)) is None:
                return _error(MISSING, "there is no such key")
            return _error(NOT_EQUAL, "it has another value")

        self._propose(replica, source, body, command, answer)

    def _propose(
        self, replica: Replica, source: str, body: Body, command: bytes, told: Callable[[Result], Body]
    ) -> None:
        def answer(future: Future[Result]) -> None:
            if (error := future.exception()) is not None:
                self._fail_with(source, body, error)
            elif (result := future.result()).error is not None:
                self._fail(source, body, MALFORMED, result.error)
            else:
                self._reply(source, body, told(result))

        replica.propose(command, self._clock() + REQUEST_SECONDS).add_done_callback(answer)

    # Answers

    def _fail_with(self, source: str, body: Body, error: BaseException, *, reading: bool = False) -> None:
        if isinstance(error, InvalidCommand):
            code = MALFORMED
        else:
            unknown = isinstance(error, OutcomeUnknown) or not isinstance(error, NotDone)
            code = CRASH if unknown and not reading else UNAVAILABLE
        self._fail(source, body, code, f"{type(error).__name__}: {error}")

    def _fail(self, source: str, body: Body, code: int, text: str) -> None:
        self._reply(source, body, _error(code, text))

    def _reply(self, to: str, request: Body, body: Body) -> None:
        if "msg_id" in request:
            self._send(to, {**body, "in_reply_to": request["msg_id"]})

    def _send(self, to: str, body: Body) -> None:
        self._send_message({"src": self.name, "dest": to, "body": body})


def _error(code: int, text: str) -> Body:
    return {"type": "error", "code": code, "text": text}


def _text(data: bytes) -> str:
    return base64.b64encode(data).decode()


def _encoded(value: object) -> bytes:
    return json.dumps(value, sort_keys=True).encode()


def main() -> None:
    """Speak with Maelstrom until the end of input. A directory as argument outlives the process."""
    if len(sys.argv) > 1:
        _serve(Path(sys.argv[1]))
    else:
        with tempfile.TemporaryDirectory(prefix="ondisk-maelstrom-") as directory:
            _serve(Path(directory))


def _serve(directory: Path) -> None:
    woken, wake = os.pipe()
    os.set_blocking(woken, False)
    os.set_blocking(wake, False)
    adapter = Adapter(directory, _print, wake=wake)
    rest = b""
    try:
        while True:
            seconds = adapter.step()
            if adapter.replica is not None and not adapter.replica.running:
                sys.exit(f"error: {adapter.replica.status.error}")
            sys.stdout.flush()
            readable, _, _ = select.select([0, woken], [], [], min(seconds, 3600.0))
            if woken in readable:
                os.read(woken, 4096)
            if 0 in readable:
                data = os.read(0, 1 << 16)
                if not data:
                    return
                *lines, rest = (rest + data).split(b"\n")
                for line in lines:
                    adapter.receive(json.loads(line))
    finally:
        adapter.close()
        sys.stdout.flush()


def _print(message: Body) -> None:
    sys.stdout.write(json.dumps(message) + "\n")


if __name__ == "__main__":
    main()
