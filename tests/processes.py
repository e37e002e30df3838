"""Real processes for tests: replicas in terminals of their own, driven as a person or a program would."""

from __future__ import annotations

import os
import pty
import re
import socket
import subprocess
import sys
import threading
from collections.abc import Mapping
from pathlib import Path

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
        terminal = {"TERM": "xterm", "PROMPT_TOOLKIT_NO_CPR": "1", "COLUMNS": "120"}
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

    def ask(self, line: str, timeout: float = 20.0) -> str:
        """Send one line and return the next line of output. Over pipes only."""
        assert self._tty is None
        self.say(line)
        return self.expect("\n", timeout)

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
