"""Where to call: an address becomes what ``connect`` takes, and nobody waits for a name server.

``socket.getaddrinfo`` may take half a minute and cannot be ended. A replica that waits for it serves nobody
meanwhile. So it runs in a thread of its own, and who asks is told what is known by now, maybe nothing.
"""

from __future__ import annotations

import ipaddress
import socket
import threading
import time
from typing import NamedTuple

from ondisk.net.addresses import Address, canonical_host

MAX_LOOK_UPS = 8  # at once; each is a thread until it is done
_FRESH_SECONDS = 5.0
_PATIENCE_SECONDS = 5.0  # after which it is worth a line in the log that a look-up takes so long

Where = tuple[socket.AddressFamily, tuple[str | int | bytes, ...]]  # of a socket, and for its ``connect``


class _Answer(NamedTuple):
    time: float
    found: list[Where]
    error: str


class Resolver:
    """Looks names up in the background. Used by one thread; ``resolve`` never blocks.

    There is nothing to close: a thread ends with its look-up, and one that hangs keeps no process alive.
    """

    def __init__(self) -> None:
        # Both are shared with the threads that look up: of each, one key belongs to one thread.
        self._answers: dict[Address, _Answer] = {}
        self._under_way: dict[Address, float] = {}  # since when

    def resolve(self, address: Address) -> list[Where]:
        """Everything that the address stands for; empty as long as nothing is known.

        What was found once is good until something else is found: a name server may be away for a while.
        Raises ``OSError`` if the name cannot be looked up, or if that takes long.
        """
        if (literal := _without_looking_up(address)) is not None:
            return literal
        now = time.monotonic()
        answer = self._answers.get(address)
        if (answer is None or now - answer.time > _FRESH_SECONDS) and address not in self._under_way:
            self._look_up_soon(address, now)
        if answer is None:
            if now - self._under_way.get(address, now) > _PATIENCE_SECONDS:
                raise OSError("looking its name up takes long")
            return []
        if not answer.found:
            raise OSError(answer.error)
        return list(answer.found)

    def known_hosts(self, address: Address) -> set[str]:
        """The IP addresses that the address is known to stand for, by now."""
        found = _without_looking_up(address)
        if found is None:
            answer = self._answers.get(address)
            found = [] if answer is None else answer.found
        return {canonical_host(str(where[0])) for _, where in found}

    def _look_up_soon(self, address: Address, now: float) -> None:
        if len(self._under_way) >= MAX_LOOK_UPS:
            return  # the next attempt may find room
        self._under_way[address] = now
        thread = threading.Thread(
            target=self._look_up, args=(address,), name=f"look-up of {address[0]}", daemon=True
        )
        try:
            thread.start()
        except RuntimeError as error:  # no thread can be had
            self._answer(address, [], str(error))

    def _look_up(self, address: Address) -> None:
        found: list[Where] = []
        error = "it has no address"
        try:
            for family, _, _, _, where in socket.getaddrinfo(*address, type=socket.SOCK_STREAM):
                found.append((family, where))
        except Exception as failure:  # gaierror, but also UnicodeError and ValueError, of odd names
            error = str(failure) or repr(failure)
        self._answer(address, found, error)

    def _answer(self, address: Address, found: list[Where], error: str) -> None:
        if not found and (former := self._answers.get(address)) is not None:
            found = former.found
        self._answers[address] = _Answer(time.monotonic(), found, error)
        del self._under_way[address]


def _without_looking_up(address: Address) -> list[Where] | None:
    host, port = address
    if host == "localhost":  # whatever it is said to be elsewhere: this machine is meant
        return [(socket.AF_INET, ("127.0.0.1", port)), (socket.AF_INET6, ("::1", port))]
    try:
        version = ipaddress.ip_address(host).version
    except ValueError:
        return None
    return [(socket.AF_INET if version == 4 else socket.AF_INET6, (host, port))]
