"""Real processes for tests: replicas in terminals of their own, driven as a person or a program would."""

from __future__ import annotations

import contextlib
import itertools
import json
import os
import pty
import re
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any

from ondisk import Node, NotDone, OutcomeUnknown
from ondisk.client import Client
from ondisk.net.addresses import Address
from ondisk.net.tcp import TcpNetwork

_ESCAPES = re.compile(r"\x1b\[[0-9;?]*[A-Za-z]")  # a prompt's colours and movements of the cursor


def free_ports(count: int) -> list[int]:
    """Ports on 127.0.0.1 that nobody listens on now, all different."""
    sockets = [socket.socket() for _ in range(count)]
    try:
        for sock in sockets:
            sock.bind(("127.0.0.1", 0))
        return [sock.getsockname()[1] for sock in sockets]
    finally:
        for sock in sockets:
            sock.close()


class Terminal:
    """``python -m ondisk ARGUMENTS`` as a process, over pipes or (``tty=True``) a pseudo-terminal.

    A context manager: at its end the process is killed if it still runs.
    """

    def __init__(
        self, *arguments: str, cwd: Path, tty: bool = False, environment: Mapping[str, str] | None = None
    ) -> None:
        self._output = ""
        self._errors = ""
        self._seen = 0  # how much of the output ``expect`` has gone past
        self._changed = threading.Condition()
        inherited = {
            k: v for k, v in os.environ.items() if k not in ("ONDISK_SECRET_FILE", "PYTHONUNBUFFERED")
        }
        terminal = {
            "TERM": "xterm",
            "PROMPT_TOOLKIT_NO_CPR": "1",
            "COLUMNS": "120",
            "XDG_STATE_HOME": str(cwd),
        }
        ours, theirs = pty.openpty() if tty else (None, subprocess.PIPE)
        self._process = subprocess.Popen(
            [sys.executable, "-m", "ondisk", *arguments],
            stdin=theirs,
            stdout=theirs,
            stderr=subprocess.PIPE,
            cwd=cwd,
            env={**inherited, **terminal, **(environment or {})},
            start_new_session=True,  # a Ctrl-C for pytest is not for it
        )
        assert self._process.stderr is not None
        if ours is None:
            assert self._process.stdin is not None and self._process.stdout is not None
            self._stdin, stdout = self._process.stdin.fileno(), self._process.stdout.fileno()
        else:
            os.close(theirs)
            self._stdin = stdout = ours
        self._tty = ours
        self._readers = [
            threading.Thread(target=self._read, args=(stdout, "_output"), daemon=True),
            threading.Thread(target=self._read, args=(self._process.stderr.fileno(), "_errors"), daemon=True),
        ]
        for reader in self._readers:
            reader.start()

    def _read(self, fd: int, where: str) -> None:
        data = b""
        while True:
            try:
                chunk = os.read(fd, 65536)
            except OSError:  # how a pseudo-terminal says that the other side has gone
                return
            if not chunk:
                return
            data += chunk
            with self._changed:
                setattr(self, where, _ESCAPES.sub("", data.decode("utf-8", "replace")))
                self._changed.notify_all()

    @property
    def pid(self) -> int:
        """The process id."""
        return self._process.pid

    @property
    def output(self) -> str:
        """All of stdout so far."""
        return self._output

    @property
    def errors(self) -> str:
        """All of stderr so far."""
        return self._errors

    def type(self, text: str | bytes) -> None:
        """Send these characters, and no more."""
        os.write(self._stdin, text.encode() if isinstance(text, str) else text)

    def say(self, line: str) -> None:
        """Send one line."""
        self.type(line + "\n")

    def expect(self, text: str, timeout: float = 20.0) -> str:
        """Wait for ``text`` in what ``expect`` has not gone past; return what came before it."""
        with self._changed:
            found = self._changed.wait_for(lambda: text in self._output[self._seen :], timeout)
            assert found, (
                f"no {text!r} within {timeout:g} s in {self._output[self._seen :]!r};"
                f" stderr: {self._errors!r}; exit status: {self._process.poll()}"
            )
            start = self._seen
            end = self._output.index(text, start)
            self._seen = end + len(text)
            return self._output[start:end]

    def ready(self) -> None:
        """Wait until it serves."""
        self.expect("node address: ")
        self.expect("\n")

    def ask(self, line: str, timeout: float = 20.0) -> str:
        """Send one line and return the next line of output. Over pipes only."""
        assert self._tty is None
        self.say(line)
        return self.expect("\n", timeout)

    def status(self) -> list[list[str]]:
        """The words of what ``status`` says: a line for this replica, lines for others, and so on."""
        self.say("status\nhelp exit")
        self.expect("disk\n")
        lines = self.expect("close the replica").splitlines()
        self.expect("\n")
        return [line.split() for line in lines[:-1]]

    def end_input(self) -> None:
        """Close stdin (over pipes), or press Ctrl-D."""
        if self._tty is not None:
            self.type("\x04")
        else:
            assert self._process.stdin is not None
            self._process.stdin.close()

    def signal(self, number: int) -> None:
        """Send a signal."""
        self._process.send_signal(number)

    def wait(self, timeout: float = 20.0) -> int:
        """Wait for the end, and for all output; return the exit status, negative for a signal."""
        status = self._process.wait(timeout)
        for reader in self._readers:
            reader.join(timeout)
        return status

    def kill(self) -> None:
        """``kill -9``. Does nothing if the process has ended."""
        self._process.kill()
        self.wait()

    def __enter__(self) -> Terminal:
        return self

    def __exit__(self, *_: object) -> None:
        self.kill()
        for stream in (self._process.stdin, self._process.stdout, self._process.stderr):
            if stream is not None:
                stream.close()
        if self._tty is not None:
            os.close(self._tty)


class Replicas:
    """Three of them, each in a process of its own."""

    def __init__(self, directory: Path) -> None:
        self._directory = directory
        self._terminals: dict[int, Terminal] = {}
        self._all: list[Terminal] = []
        self.endpoints = ",".join(f"127.0.0.1:{port}" for port in free_ports(3))
        for member in (1, 2, 3):
            self.start(member)

    def start(self, member: int) -> None:
        self._terminals[member] = Terminal(
            "--serve", "--replica-id", str(member), "--members", self.endpoints, cwd=self._directory
        )
        self._all.append(self._terminals[member])
        self._terminals[member].ready()

    def kill(self, member: int) -> None:
        """``kill -9``."""
        self._terminals[member].kill()

    def restart(self, member: int) -> None:
        """As an operator does it."""
        self._terminals[member].signal(signal.SIGTERM)
        assert self._terminals[member].wait() == 0
        self.start(member)

    def close(self) -> None:
        for terminal in self._all:
            terminal.__exit__()


Outcome = tuple[str, Any]
"""``ok`` and the result, ``not_done`` or ``unknown``: the words of ``History``."""

REQUEST_SECONDS = 1.0


def carry_out(client: Client, name: str, key: str, arguments: list[Any], via: int | None = None) -> Outcome:
    """One request for ``DiskKV``, through a ``Node`` or a ``Cluster``."""
    try:
        if name == "get":
            value = client.get(key, via=via, timeout=REQUEST_SECONDS)
            return "ok", None if value is None else value.decode()
        result = getattr(client, name)(key, *arguments, via=via, timeout=REQUEST_SECONDS).value
        return "ok", None if name == "put" else result
    except NotDone:
        return "not_done", None
    except OutcomeUnknown:
        return "unknown", None


class Server:
    """A replica in a process of its own that carries out many requests at once, a line for each.

    Where the terminal is for one person, this is for many clients: ``ask`` may be called from any thread.
    A context manager; at its end the process is killed if it still runs.
    """

    def __init__(self, replica_id: int, addresses: Mapping[int, Address], data_dir: Path) -> None:
        self._numbers = itertools.count()
        self._waiting: dict[int, Future[Outcome]] = {}
        self._lock = threading.Lock()
        self._ended = False
        self._errors = (data_dir / f"errors-{replica_id}").open("ab")
        self._process = subprocess.Popen(
            [sys.executable, "-m", "tests.processes", str(replica_id), json.dumps(addresses), str(data_dir)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._errors,
            cwd=Path(__file__).parent.parent,
            start_new_session=True,
        )
        self.pid = self._process.pid
        self.ready = threading.Event()
        self._reader = threading.Thread(target=self._read, name=f"answers-of-{replica_id}")
        self._reader.start()

    def _read(self) -> None:
        assert self._process.stdout is not None
        for line in self._process.stdout:
            if not line.endswith(b"\n"):
                break  # it was killed in the middle of it
            number, outcome, result = json.loads(line)
            if outcome == "ready":
                self.ready.set()
                continue
            with self._lock:
                waiting = self._waiting.pop(number, None)
            if waiting is not None:
                waiting.set_result((outcome, result))
        with self._lock:
            self._ended = True
            left, self._waiting = self._waiting, {}
        for waiting in left.values():
            waiting.set_result(("unknown", None))

    def ask(self, name: str, key: str, *arguments: Any, timeout: float = 3.0) -> Outcome:
        """Send a request and wait for its outcome: unknown if the process ends or does not answer."""
        waiting: Future[Outcome] = Future()
        with self._lock:
            if self._ended:
                return "not_done", None
            number = next(self._numbers)
            self._waiting[number] = waiting
            line = json.dumps([number, name, key, arguments]) + "\n"
            try:
                assert self._process.stdin is not None
                os.write(self._process.stdin.fileno(), line.encode())  # at once: it is short
            except BrokenPipeError:  # nobody has read it, and nobody will
                del self._waiting[number]
                return "not_done", None
        try:
            return waiting.result(timeout)
        except TimeoutError:
            with self._lock:
                self._waiting.pop(number, None)
            return "unknown", None

    def signal(self, number: int) -> None:
        """Send a signal."""
        self._process.send_signal(number)

    def end(self) -> int:
        """Close its stdin, so that it stops cleanly, and return its exit status."""
        assert self._process.stdin is not None
        self._process.stdin.close()
        return self._process.wait(30)

    @property
    def running(self) -> bool:
        """Whether the process has not ended."""
        return self._process.poll() is None

    def __enter__(self) -> Server:
        return self

    def __exit__(self, *_: object) -> None:
        self._process.kill()
        self._process.wait()
        self._reader.join()
        for stream in (self._process.stdin, self._process.stdout, self._errors):
            assert stream is not None
            with contextlib.suppress(BrokenPipeError):
                stream.close()


def _serve(replica_id: int, addresses: dict[int, Address], data_dir: str) -> None:
    """What a ``Server`` runs."""
    lock = threading.Lock()

    def answer(number: int, outcome: str, result: Any = None) -> None:
        with lock:
            print(json.dumps([number, outcome, result]), flush=True)

    def request(number: int, name: str, key: str, arguments: list[Any]) -> None:
        answer(number, *carry_out(node, name, key, arguments))

    node = Node(replica_id, tuple(addresses), data_dir, TcpNetwork(addresses, secret=b"of sixteen bytes"))
    node.start()
    answer(-1, "ready")
    with ThreadPoolExecutor(16) as requests:
        for line in sys.stdin:
            requests.submit(request, *json.loads(line))
    node.stop()


if __name__ == "__main__":
    _serve(int(sys.argv[1]), {int(k): tuple(v) for k, v in json.loads(sys.argv[2]).items()}, sys.argv[3])
