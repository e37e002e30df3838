"""A link between two processes that can be cut, stalled and slowed down, each way by itself.

A replica is told the proxy's address in place of its peer's. What TCP promises holds through it: bytes arrive
in order or not at all. So a cut that has swallowed something ends the connection when it is healed, as if
one of the two had given up meanwhile.
"""

from __future__ import annotations

import contextlib
import socket
import threading
from collections.abc import Callable

Address = tuple[str, int]

_RECORDED_BYTES = 1 << 16  # of each direction of each connection


class Way:
    """One direction of a link."""

    def __init__(self) -> None:
        self.cut = False
        self.delay = 0.0  # seconds for each piece, so it is slow as well
        self.passes = True  # or it is stalled


class Proxy:
    """Listens on a free port of 127.0.0.1 and forwards what comes, and what comes back.

    ``there`` is the way from who calls, ``back`` the other one. ``recorded`` is the beginning of what was
    said on each connection, there and back. A context manager; at its end no thread and no socket is left.
    """

    def __init__(self, target: Address) -> None:
        self.there, self.back = Way(), Way()
        self.recorded: list[tuple[bytearray, bytearray]] = []
        self._target = target
        self._lock = threading.Lock()
        self._pairs: list[_Pair] = []
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.address: Address = self._listener.getsockname()
        self._thread = threading.Thread(target=self._accept, name=f"proxy-{self.address[1]}")
        self._thread.start()

    def heal(self) -> None:
        """End every fault, and the connections that have lost something."""
        for way in (self.there, self.back):
            way.cut, way.delay, way.passes = False, 0.0, True
        self._close(lambda pair: pair.spoiled)

    def reset(self) -> None:
        """End the connections that there are."""
        self._close(lambda pair: True)

    def _close(self, which: Callable[[_Pair], bool]) -> None:
        with self._lock:
            closing = [pair for pair in self._pairs if which(pair)]
            self._pairs = [pair for pair in self._pairs if pair not in closing]
        for pair in closing:
            pair.close()

    def _accept(self) -> None:
        while True:
            try:
                caller, _ = self._listener.accept()
            except OSError:
                return
            try:
                called = socket.create_connection(self._target, 5)
            except OSError:
                caller.close()
                continue
            called.settimeout(None)
            self._close(lambda pair: pair.ended)
            with self._lock:
                self.recorded.append((bytearray(), bytearray()))
                self._pairs.append(_Pair(self, caller, called, self.recorded[-1]))

    def __enter__(self) -> Proxy:
        return self

    def __exit__(self, *_: object) -> None:
        with contextlib.suppress(OSError):  # macOS
            self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()
        self._thread.join()
        self.heal()
        self.reset()


class _Pair:
    """Two connections, and a thread for each way."""

    def __init__(
        self,
        proxy: Proxy,
        caller: socket.socket,
        called: socket.socket,
        recorded: tuple[bytearray, bytearray],
    ) -> None:
        self.spoiled = False
        self._sockets = caller, called
        self._threads = [
            threading.Thread(target=self._pump, args=arguments, name=f"proxy-{proxy.address[1]}-pump")
            for arguments in (
                (proxy.there, caller, called, recorded[0]),
                (proxy.back, called, caller, recorded[1]),
            )
        ]
        self._ended = threading.Event()
        for sock in self._sockets:
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        for thread in self._threads:
            thread.start()

    def _pump(self, way: Way, source: socket.socket, sink: socket.socket, recorded: bytearray) -> None:
        lost = False
        with contextlib.suppress(OSError):
            while data := source.recv(1 << 16):
                if len(recorded) < _RECORDED_BYTES:
                    recorded += data
                if way.delay:
                    self._ended.wait(way.delay)
                self._wait_while(lambda: not way.passes)
                if way.cut:
                    lost = self.spoiled = True
                elif lost:  # healed in the moment when this was spoiled, and so it was passed over
                    break
                if not lost:
                    sink.sendall(data)
        self._wait_while(lambda: way.cut or not way.passes)  # a farewell does not get through either
        self.hang_up()

    def _wait_while(self, condition: Callable[[], bool]) -> None:
        while condition() and not self._ended.wait(0.02):
            pass

    @property
    def ended(self) -> bool:
        return not any(thread.is_alive() for thread in self._threads)

    def hang_up(self) -> None:
        self._ended.set()
        for sock in self._sockets:
            with contextlib.suppress(OSError):
                sock.shutdown(socket.SHUT_RDWR)

    def close(self) -> None:
        self.hang_up()
        for thread in self._threads:
            thread.join()
        for sock in self._sockets:
            sock.close()
