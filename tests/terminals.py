"""Replicas in terminals and from a command line, for the tests of it."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest

from tests.processes import Terminal, free_ports


class Terminals:
    """Three replicas in three processes on one data directory, over TCP."""

    def __init__(self, cwd: Path) -> None:
        self.cwd = cwd
        self.members = ",".join(f"127.0.0.1:{port}" for port in free_ports(3))
        self._stack = ExitStack()

    def start(self, replica_id: int, *more: str, environment: dict[str, str] | None = None) -> Terminal:
        arguments = ("--replica-id", str(replica_id), "--members", self.members, *more)
        return self._stack.enter_context(Terminal(*arguments, cwd=self.cwd, environment=environment))

    def close(self) -> None:
        self._stack.close()


@pytest.fixture
def terminals(tmp_path: Path) -> Iterator[Terminals]:
    """Where to start replicas; what still runs at the end is killed."""
    terminals = Terminals(tmp_path)
    yield terminals
    terminals.close()


@pytest.fixture
def three(terminals: Terminals) -> dict[int, Terminal]:
    """Three replicas that serve."""
    started = {i: terminals.start(i) for i in (1, 2, 3)}
    for terminal in started.values():
        terminal.ready()
    return started


def leader_of(terminal: Terminal) -> str:
    """Whom this replica takes for the leader: an id, or ``-``."""
    return terminal.status()[0][3]


@pytest.fixture
def alone(tmp_path: Path) -> Iterator[Callable[..., Terminal]]:
    """Start a group of one, which needs nobody else to answer."""
    (port,) = free_ports(1)
    with ExitStack() as stack:

        def start(*more: str, tty: bool = False) -> Terminal:
            arguments = ("--replica-id", "1", "--members", f"127.0.0.1:{port}", *more)
            terminal = stack.enter_context(Terminal(*arguments, cwd=tmp_path, tty=tty))
            terminal.ready()
            return terminal

        yield start


def ondisk(*arguments: str, cwd: Path, text: str = "") -> subprocess.CompletedProcess[str]:
    """Run the command to its end."""
    return subprocess.run(
        [sys.executable, "-m", "ondisk", *arguments],
        input=text,
        capture_output=True,
        text=True,
        cwd=cwd,
        timeout=60,
        check=False,
    )


def complaint(done: subprocess.CompletedProcess[str], status: int) -> str:
    """The one line on stderr of a run that failed with this status, and said nothing else."""
    assert (done.returncode, done.stdout) == (status, ""), done
    assert done.stderr.startswith("error: ") and done.stderr.count("\n") == 1, done.stderr
    return done.stderr
