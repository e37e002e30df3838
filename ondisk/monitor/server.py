"""``/metrics``, ``/livez`` and ``/readyz`` of one node, over HTTP.

Anybody who can connect may look, and change nothing: listen on loopback, or where only those are who may.
"""

from __future__ import annotations

import errno
import socket
import threading
from collections.abc import Iterable
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import parse_qs, urlsplit

from ondisk.errors import ConfigurationError, PortInUse
from ondisk.monitor.exposition import CONTENT_TYPE, exposition
from ondisk.monitor.health import Check, liveness, readiness
from ondisk.net.addresses import Address, format_address
from ondisk.node import Node

_REQUEST_SECONDS = 5.0  # for who connects and says nothing
_MOST_AT_ONCE = 16  # requests; more wait


class Monitor:
    """Answers for a node until it is closed. A context manager.

    The node may be stopped, fail and start meanwhile: that is what is told.
    """

    def __init__(self, node: Node, address: Address = ("127.0.0.1", 0)) -> None:
        """Listen there; port 0 is any that is free. Raises ``PortInUse`` or ``ConfigurationError``."""
        try:
            self._server = _Server(node, address)
        except OSError as error:
            where = f"cannot listen on {format_address(address)}: {error.strerror or error}"
            raise (PortInUse if error.errno == errno.EADDRINUSE else ConfigurationError)(where) from None
        host, port = self._server.server_address[:2]
        self.address: Address = (str(host), port)
        self._thread = threading.Thread(
            target=self._server.serve_forever, args=(0.1,), name=f"ondisk-monitor-{node.id}", daemon=True
        )
        self._thread.start()

    def close(self) -> None:
        """Answer who has asked, and nobody else. A second call does nothing."""
        self._server.shutdown()
        self._thread.join()
        self._server.server_close()

    def __enter__(self) -> Monitor:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


class _Server(ThreadingHTTPServer):
    daemon_threads = False  # so that closing waits for them

    def __init__(self, node: Node, address: Address) -> None:
        self.node = node
        self._places = threading.BoundedSemaphore(_MOST_AT_ONCE)
        self.address_family = socket.AF_INET6 if ":" in address[0] else socket.AF_INET
        super().__init__(address, _Handler)

    def server_bind(self) -> None:
        """Without HTTPServer's question to the name server who this is."""
        self.socket.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        self.socket.bind(self.server_address)
        self.server_address = self.socket.getsockname()

    def process_request(self, request: object, client_address: object) -> None:
        """In a thread of its own, as soon as there is a place."""
        self._places.acquire()
        super().process_request(request, client_address)  # type: ignore[arg-type]

    def process_request_thread(self, request: object, client_address: object) -> None:
        """In that thread."""
        try:
            super().process_request_thread(request, client_address)  # type: ignore[arg-type]
        finally:
            self._places.release()

    def handle_error(self, request: object, client_address: object) -> None:
        """Who hangs up in the middle is no news."""


class _Handler(BaseHTTPRequestHandler):
    server: _Server
    timeout = _REQUEST_SECONDS

    def do_GET(self) -> None:
        asked = urlsplit(self.path)
        verbose = "verbose" in parse_qs(asked.query, keep_blank_values=True)
        node = self.server.node
        if asked.path == "/metrics":
            self._answer(200, exposition(node), CONTENT_TYPE)
        elif asked.path == "/livez":
            self._report("livez", liveness(node), verbose)
        elif asked.path == "/readyz":
            self._report("readyz", readiness(node), verbose)
        else:
            self._answer(404, b"there are /metrics, /livez and /readyz\n")

    def _report(self, what: str, asked: Iterable[Check], verbose: bool) -> None:
        """Why it is not so is told also to who has not asked for it."""
        checks = list(asked)
        passed = all(check.problem is None for check in checks)
        verdict = f"{what} check {'passed' if passed else 'failed'}"
        lines = [*map(str, checks), verdict] if verbose or not passed else ["ok"]
        self._answer(200 if passed else 503, "".join(f"{line}\n" for line in lines).encode())

    def _answer(self, code: int, body: bytes, content_type: str = "text/plain; charset=utf-8") -> None:
        self.send_response(code)
        self.send_header("Content-Type", content_type)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, format: str, *args: object) -> None:
        """A scrape a second is no news either."""
