"""etcd as a contestant: three real members on loopback, and the load from a program in Go (``load.go``).

From Go, because its users write Go: a client in Python would hold it back. From Debian: ``etcd-server``,
``golang-go`` and ``golang-etcd-server-dev``, which has the client's sources. Where they are not, ``missing``
says so and the others are measured without it.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import urllib.request
from contextlib import ExitStack, suppress
from pathlib import Path
from typing import Any

import psutil

_GO_SOURCES = Path("/usr/share/gocode")
_CONNECTIONS = 8
_END_WITHIN = 10.0  # seconds


def missing() -> str | None:
    """What keeps it from being measured here, for people; ``None`` if nothing does."""
    programs = [program for program in ("etcd", "go") if shutil.which(program) is None]
    if programs:
        return f"no {' and no '.join(programs)} is installed"
    if not (_GO_SOURCES / "src/go.etcd.io/etcd/clientv3").is_dir():
        return f"no Go client of etcd is in {_GO_SOURCES}"
    return None


class Etcd:
    """A group of three, as it comes: every put is fsynced by a majority before it is answered."""

    def __init__(self, directory: Path, client_ports: list[int], peer_ports: list[int]) -> None:
        directory.mkdir(parents=True, exist_ok=True)
        self._directory = directory
        self._clients = [f"127.0.0.1:{port}" for port in client_ports]
        peers = [f"http://127.0.0.1:{port}" for port in peer_ports]
        self._client: tuple[str, subprocess.Popen[bytes]] | None = None  # of which leader
        with ExitStack() as undo:
            undo.callback(self.close)
            self._members: list[subprocess.Popen[bytes]] = []
            for number, (client, peer) in enumerate(zip(self._clients, peers, strict=True), 1):
                arguments = {
                    "name": f"m{number}",
                    "data-dir": str(directory / f"m{number}"),
                    "listen-client-urls": f"http://{client}",
                    "advertise-client-urls": f"http://{client}",
                    "listen-peer-urls": peer,
                    "initial-advertise-peer-urls": peer,
                    "initial-cluster": ",".join(f"m{each}={url}" for each, url in enumerate(peers, 1)),
                    "logger": "zap",
                    "log-level": "error",
                }
                command = ["etcd", *(f"--{name}={value}" for name, value in arguments.items())]
                self._members.append(subprocess.Popen(command, stdin=subprocess.DEVNULL))
            undo.pop_all()

    def look(self) -> dict[str, bool]:
        """Whether everybody knows the same leader. It is here: all of them are."""
        leader = self._leader()
        return {"ready": leader is not None, "leads": leader is not None}

    def _leader(self) -> str | None:
        """The address of the member that all of them call their leader."""
        ids, leaders = {}, set()
        for address in self._clients:
            request = urllib.request.Request(f"http://{address}/v3/maintenance/status", b"{}")
            try:
                with urllib.request.urlopen(request, timeout=2) as response:
                    status = json.load(response)
            except OSError:  # it has not begun to listen
                return None
            ids[status["header"]["member_id"]] = address
            leaders.add(status.get("leader"))
        return ids.get(leaders.pop()) if len(leaders) == 1 else None

    def answers(self) -> bool:
        """Whether a linearizable get is answered now."""
        for address in self._clients:
            request = urllib.request.Request(f"http://{address}/v3/kv/range", b'{"key": "a2V5"}')
            with suppress(OSError), urllib.request.urlopen(request, timeout=5) as response:
                return "header" in json.load(response)
        return False

    def resident(self) -> list[int]:
        """Resident memory of the members, in bytes."""
        return [psutil.Process(member.pid).memory_info().rss for member in self._members]

    def measure(self, do: str, at_once: int, seconds: float) -> dict[str, Any]:
        """Let the program in Go do it, at the leader."""
        leader = self._leader()
        if leader is None:
            raise RuntimeError("etcd has no leader")
        if self._client is None or self._client[0] != leader:
            self._end_client()
            command = [str(_program(self._directory.parent)), *[leader] * _CONNECTIONS]
            self._client = leader, subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE)
        process = self._client[1]
        assert process.stdin is not None and process.stdout is not None
        process.stdin.write(json.dumps([do, at_once, seconds]).encode() + b"\n")
        process.stdin.flush()
        answer = process.stdout.readline()
        if not answer:
            raise RuntimeError("the load's program has ended")
        told: dict[str, Any] = json.loads(answer)
        return told

    def _end_client(self) -> None:
        if self._client is not None:
            process, self._client = self._client[1], None
            process.terminate()
            process.communicate()

    def close(self) -> None:
        """End all processes."""
        self._end_client()
        for member in self._members:
            member.terminate()
        for member in self._members:
            with suppress(subprocess.TimeoutExpired):
                member.wait(_END_WITHIN)
                continue
            member.kill()
            member.wait()


def _program(directory: Path) -> Path:
    return directory / "load"


def build(directory: Path) -> None:
    """Put the program that makes the load there, beside the members. Raises ``RuntimeError`` if it cannot."""
    environment = {**os.environ, "GO111MODULE": "off", "GOPATH": str(_GO_SOURCES)}
    source = Path(__file__).with_name("load.go")
    command = ["go", "build", "-o", str(_program(directory)), str(source)]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    if done.returncode:
        raise RuntimeError(f"the load's program cannot be built: {done.stderr[-500:]}")
