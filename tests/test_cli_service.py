"""The command line as a service: no input, signals, standard streams."""

from __future__ import annotations

import os
import pty
import re
import shlex
import signal
import subprocess
import sys
import tempfile
import threading
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from pathlib import Path
from typing import IO, Any

import psutil
import pytest

from ondisk.cli import run
from ondisk.errors import ConfigurationError
from tests.lengths import LONG
from tests.processes import Terminal, free_ports
from tests.terminals import Terminals, alone, complaint, leader_of, ondisk, terminals
from tests.waiting import wait_until

__all__ = ["alone", "terminals"]  # fixtures


def test_a_service_reads_no_input(tmp_path: Path) -> None:
    """With standard input closed, empty, or full of commands: it runs until it is told to end."""
    (tmp_path / "commands").write_text("exit\n")
    for feed in ("<&-", "</dev/null", "<commands"):
        (port,) = free_ports(1)
        with Service(f"--replica-id 1 --members 127.0.0.1:{port} --serve {feed}", tmp_path) as service:
            service.expect(f"node address: 127.0.0.1:{port}\n")
            with pytest.raises(subprocess.TimeoutExpired):
                service.wait(0.7)
            status, output, errors = service.end(signal.SIGTERM)
            assert (status, output, complaints(errors)) == (0, "", [])


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_service_ends_cleanly(tmp_path: Path, number: int) -> None:
    """Status 0 for the signals of an init system and of a person; what was written is there again."""
    (port,) = free_ports(1)
    alone = f"--replica-id 1 --members 127.0.0.1:{port}"
    assert ondisk(*alone.split(), cwd=tmp_path, text="put k v").stdout.endswith("\nok\n")
    with Service(f"{alone} --serve <&-", tmp_path) as service:
        service.expect("node address: ")
        status, _, errors = service.end(number)
        assert (status, complaints(errors)) == (0, [])
        assert "INFO: replica_started replica=1 " in errors and "INFO: replica_stopped replica=1\n" in errors
    assert "result: v" in ondisk(*alone.split(), cwd=tmp_path, text="get k").stdout


def test_services_say_who_is_missing_and_make_a_group(tmp_path: Path) -> None:
    """On stderr, for the journal. Two services and a person at the third one are a group."""
    members = ",".join(f"127.0.0.1:{port}" for port in free_ports(3))
    with ExitStack() as stack:
        one, two = (
            stack.enter_context(Service(f"--replica-id {i} --members {members} --serve <&-", tmp_path))
            for i in (1, 2)
        )
        third = stack.enter_context(Terminal("--replica-id", "3", "--members", members, cwd=tmp_path))
        third.ready()
        assert third.ask("put k v") == "ok"
        assert two.end(signal.SIGTERM)[0] == 0
        assert third.ask("get k") == "query key: k, result: v"
        status, _, errors = one.end(signal.SIGTERM)
        assert status == 0 and "waiting for replica" in errors and "a group is founded when all" in errors


def python(*arguments: str, cwd: Path, **options: Any) -> subprocess.CompletedProcess[str]:
    """Run this Python, with this ondisk, to its end."""
    return subprocess.run(
        [sys.executable, *arguments],
        **{"stdin": subprocess.DEVNULL, **options},
        capture_output=True,
        text=True,
        cwd=cwd,
        timeout=60,
        check=False,
        env={**os.environ, "PYTHONPATH": str(Path(__file__).parent.parent)},
    )


def test_a_service_whose_disk_fails_ends_with_status_1(tmp_path: Path) -> None:
    """An init system cannot see a status, but it sees an exit."""
    (port,) = free_ports(1)
    alone = f"--replica-id 1 --members 127.0.0.1:{port}"
    code = (
        "import sys; from ondisk import cli, diskkv\n"
        "def fail(*_): raise OSError('the disk is gone')\n"
        "diskkv.DiskKV.sync = fail; diskkv.DiskKV.update = fail\n"
        "cli.main()"
    )
    assert ondisk(*alone.split(), cwd=tmp_path, text="put k v").returncode == 0
    done = python("-c", code, *alone.split(), "--serve", cwd=tmp_path)
    assert done.returncode == 1, done
    assert "error: replica 1 failed: OSError: the disk is gone" in done.stderr
    assert "Traceback" not in done.stderr


def test_a_job_in_the_background_of_a_terminal_is_told_to_serve(tmp_path: Path) -> None:
    """It would be stopped when it reads: status 2 and one line instead."""
    (port,) = free_ports(1)
    command = [sys.executable, "-m", "ondisk", "--replica-id", "1", "--members", f"127.0.0.1:{port}"]
    shell = (
        "import fcntl, subprocess, sys, termios; fcntl.ioctl(0, termios.TIOCSCTTY, 0);"
        f"sys.exit(subprocess.run({command!r}, process_group=0).returncode)"
    )
    ours, theirs = pty.openpty()
    done = python("-c", shell, cwd=tmp_path, stdin=theirs, start_new_session=True)
    os.close(ours)
    os.close(theirs)
    assert complaint(done, 2).startswith("error: the terminal belongs to another job: ")
    assert list(tmp_path.iterdir()) == []


def test_a_failed_replica_ends_with_status_1_also_by_a_signal(tmp_path: Path) -> None:
    """From a pipe it goes on to say why, at once; a supervisor that ends it sees that it had failed."""
    (port,) = free_ports(1)
    with Terminal("--replica-id", "1", "--members", f"127.0.0.1:{port}", cwd=tmp_path) as terminal:
        terminal.ready()
        assert terminal.ask("put k v") == "ok"
        psutil.Process(terminal.pid).rlimit(psutil.RLIMIT_FSIZE, (100_000, 100_000))
        while terminal.ask(f"put k {'x' * 1000}") == "ok":
            pass
        assert "the disk refused" in terminal.ask("put k v")
        terminal.signal(signal.SIGTERM)
        assert terminal.wait() == 1
        assert "error: replica 1 failed: " in terminal.errors


@pytest.mark.parametrize("rounds", [pytest.param(10, marks=LONG)])
def test_a_rolling_restart_fails_no_put(terminals: Terminals, rounds: int) -> None:
    """The recipe of docs/operating.md: one after the other, the leader last, under load through the rest."""
    group = {i: terminals.start(i) for i in (1, 2, 3)}
    for terminal in group.values():
        terminal.ready()
    assert group[1].ask("put k v") == "ok"
    answers: list[str] = []

    def load(terminal: Terminal, stopping: threading.Event) -> None:
        while not stopping.is_set():
            answers.append(terminal.ask("incr n"))

    for _ in range(rounds):
        leader = int(leader_of(group[1]))
        for member in sorted(group, key=lambda member: member == leader):
            stopping = threading.Event()
            others = [terminal for other, terminal in group.items() if other != member]
            with ThreadPoolExecutor() as clients:
                loads = [clients.submit(load, other, stopping) for other in others]
                try:
                    group[member].signal(signal.SIGTERM)
                    assert group[member].wait() == 0
                    group[member] = terminals.start(member)
                    group[member].ready()
                    wait_until(lambda: leader_of(group[member]) != "-")  # noqa: B023
                finally:
                    stopping.set()
                for each in loads:
                    each.result()
            wait_until(lambda: group[member].ask("get n").startswith("query"))  # noqa: B023
    assert sorted(map(int, answers)) == list(range(1, len(answers) + 1))


def test_a_closed_standard_input_needs_serve(tmp_path: Path) -> None:
    """Status 2 and one line; nothing is left in the directory. An empty input is just the end of it."""
    (port,) = free_ports(1)
    alone = f"--replica-id 1 --members 127.0.0.1:{port}"
    with Service(f"{alone} <&-", tmp_path) as closed:
        assert closed.wait() == 2
        assert closed.output == ""
        assert (
            closed.errors
            == "error: standard input is closed: to run as a service, give --serve (see --help)\n"
        )
    assert list(tmp_path.iterdir()) == []
    with Service(f"{alone} </dev/null", tmp_path) as empty:
        assert empty.wait() == 0


def test_no_file_gets_the_number_of_a_closed_standard_stream(tmp_path: Path) -> None:
    """What a library writes to the terminal must not land in the database."""
    (port,) = free_ports(1)
    alone = f"--replica-id 1 --members 127.0.0.1:{port} --serve"
    with Service(f"{alone} <&- >&- 2>&-", tmp_path) as service:
        folder = Path(f"/proc/{service.pid}/fd")
        if not folder.exists():
            pytest.skip("this system does not tell which files a process has open")
        wait_until(lambda: list(tmp_path.glob("example-data/replica-1/state/*")))
        assert [os.readlink(folder / str(number)) for number in range(3)] == ["/dev/null"] * 3
        assert service.end(signal.SIGTERM)[0] == 0


def test_bind_is_where_it_listens_and_addr_what_it_tells(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The network is given both; without ``--bind`` it is not told about one."""
    told: list[tuple[Any, Any]] = []

    def network(addresses: Any, **options: Any) -> Any:
        told.append((addresses, options))
        raise ConfigurationError("enough")

    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("ondisk.cli.serve.TcpNetwork", network)
    for more in ([], ["--bind", "0.0.0.0:7000"]):
        arguments = ["--replica-id", "2", "--members", "a:1,b:2", "--addr", "c:3", *more]
        with pytest.raises(ConfigurationError, match="enough"):
            run.main(arguments, standalone_mode=False)
    addresses = {1: ("a", 1), 2: ("c", 3)}
    assert told == [
        (addresses, {"secret": None, "tls": None}),
        (addresses, {"secret": None, "tls": None, "bind": {2: ("0.0.0.0", 7000)}}),
    ]


def complaints(errors: str) -> list[str]:
    """What stands on stderr beside events."""
    event = re.compile(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3} INFO: ")
    return [line for line in errors.splitlines() if not event.match(line)]


class Service:
    """``python -m ondisk ARGUMENTS`` as a shell starts it, with its redirections. A context manager."""

    def __init__(self, arguments: str, cwd: Path) -> None:
        cwd.mkdir(exist_ok=True)
        self._output, self._errors = (tempfile.TemporaryFile() for _ in range(2))  # noqa: SIM115
        self._process = subprocess.Popen(
            ["sh", "-c", f"exec {shlex.quote(sys.executable)} -m ondisk {arguments}"],
            stdin=subprocess.PIPE,  # open, and nobody says anything: what is to be had is in the redirection
            stdout=self._output,
            stderr=self._errors,
            cwd=cwd,
            env={**os.environ, "PYTHONPATH": str(Path(__file__).parent.parent)},
            start_new_session=True,
        )
        self.pid = self._process.pid

    @staticmethod
    def _text(file: IO[bytes]) -> str:
        return os.pread(file.fileno(), 1 << 20, 0).decode()

    @property
    def output(self) -> str:
        return self._text(self._output)

    @property
    def errors(self) -> str:
        return self._text(self._errors)

    def expect(self, text: str) -> None:
        """Wait until it has printed this."""
        wait_until(lambda: text in self.output or self._process.poll() is not None)
        assert text in self.output, (self.output, self.errors)

    def wait(self, seconds: float = 20.0) -> int:
        """Wait for its end; return its exit status."""
        return self._process.wait(seconds)

    def end(self, number: int) -> tuple[int, str, str]:
        """Send a signal; return the exit status, what was printed after the first line, and the errors."""
        self._process.send_signal(number)
        return self.wait(), self.output.partition("\n")[2], self.errors

    def __enter__(self) -> Service:
        return self

    def __exit__(self, *_: object) -> None:
        self._process.kill()
        self._process.wait()
        for file in (self._process.stdin, self._output, self._errors):
            assert file is not None
            file.close()
