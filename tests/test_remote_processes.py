"""Real processes: replicas that serve, and programs that ask them; each is killed, and comes back."""

from __future__ import annotations

import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from ondisk import OndiskError, RemoteClient, connect
from tests.lengths import LONG
from tests.processes import Replicas
from tests.waiting import wait_until

ROOT = Path(__file__).parents[1]
CLIENTS = 4  # threads with a session each, in the client's process


@pytest.fixture
def replicas(tmp_path: Path) -> Iterator[Replicas]:
    replicas = Replicas(tmp_path)
    yield replicas
    replicas.close()


class Writer:
    """A program that counts its steps in sessions, and notes what it began and what was acknowledged."""

    def __init__(self, endpoints: str, notes: Path, life: int) -> None:
        self._process = subprocess.Popen(
            [sys.executable, "-m", "tests.test_remote_processes", endpoints, str(notes), str(life)], cwd=ROOT
        )

    def kill(self) -> None:
        self._process.kill()
        assert self._process.wait() == -signal.SIGKILL  # it has not ended by itself


def write(endpoints: str, notes: Path, life: int) -> None:
    """What a ``Writer`` runs: for ever, in some threads."""
    client = connect(endpoints)
    threads = [threading.Thread(target=_count, args=(client, notes, f"{life}-{n}")) for n in range(CLIENTS)]
    for thread in threads:
        thread.start()


def _count(client: RemoteClient, notes: Path, name: str) -> None:
    """Each step has a key of its own, which is incremented once: whatever happens, it is never 2."""
    session = client.session(timeout=60)
    with (notes / name).open("a", buffering=1) as file:  # a line is written before the next step
        for step in range(1 << 30):
            key = f"{name}/{step}"
            file.write(f"began {key}\n")
            value = session.incr(key, timeout=60).value
            file.write(f"acknowledged {key} {value}\n")


def noted(notes: Path) -> tuple[set[str], dict[str, int]]:
    """What was begun, and what was acknowledged with which number."""
    began, acknowledged = set(), {}
    for file in notes.iterdir():
        for line in file.read_text().splitlines():
            match line.split():
                case ["began", key]:
                    began.add(key)
                case ["acknowledged", key, value]:
                    acknowledged[key] = int(value)
    return began, acknowledged


@pytest.mark.parametrize("kills", [pytest.param(20, id="long", marks=LONG)])
def test_whoever_is_killed_every_acknowledged_write_of_a_session_is_there_once(
    replicas: Replicas, tmp_path: Path, kills: int
) -> None:
    """SIGKILL to the leader, again and again, and to the client every fourth time; both come back."""
    notes = tmp_path / "notes"
    notes.mkdir()
    with connect(replicas.endpoints) as client:
        writer, life = Writer(replicas.endpoints, notes, 0), 0
        try:
            for number in range(kills):
                before = len(noted(notes)[1])
                wait_until(lambda before=before: len(noted(notes)[1]) > before + 20, 60)
                leader = client.wait_for_leader()
                if number % 4 == 3:
                    writer.kill()
                replicas.kill(leader)
                if number % 4 == 3:
                    life += 1
                    writer = Writer(replicas.endpoints, notes, life)
                replicas.start(leader)
        finally:
            writer.kill()
        began, acknowledged = noted(notes)
        stored = contents(client)
    assert len(acknowledged) > 20 * kills
    assert set(acknowledged.values()) == {1}
    assert {key: stored.get(key) for key in acknowledged} == dict.fromkeys(acknowledged, 1)
    assert set(stored) <= began and set(stored.values()) == {1}  # of what was under way: once, or not at all


def contents(client: RemoteClient) -> dict[str, int]:
    """Every key, a page after the other."""
    found: dict[str, int] = {}
    start = b""
    while page := client.scan(start=start, limit=10_000, timeout=20):
        found |= {key.decode(): int(value) for key, value in page}
        start = page[-1][0] + b"\0"
    return found


@pytest.mark.parametrize("rounds", [pytest.param(3, id="long", marks=LONG)])
def test_a_rolling_restart_fails_no_request_of_a_client_without_a_session(
    replicas: Replicas, rounds: int
) -> None:
    """SIGTERM, one replica after the other: it hands over, says goodbye, and answers what it has taken in."""
    errors: list[OndiskError] = []
    over = threading.Event()
    with connect(replicas.endpoints) as client:

        def ask(name: str) -> None:
            for step in range(1 << 30):
                if over.is_set():
                    return
                try:
                    client.put(name, str(step), timeout=20)
                    assert client.get(name, timeout=20) == str(step).encode()
                except OndiskError as error:
                    errors.append(error)

        client.wait_for_leader()
        threads = [threading.Thread(target=ask, args=(f"t{number}",)) for number in range(CLIENTS)]
        for thread in threads:
            thread.start()
        try:
            for _ in range(rounds):
                for member in (1, 2, 3):
                    replicas.restart(member)
                    wait_until(lambda: _all_caught_up(client), 60)
        finally:
            over.set()
            for thread in threads:
                thread.join()
    assert errors == []


def _all_caught_up(client: RemoteClient) -> bool:
    status = client.status().values()
    newest = max((each.commit_index for each in status), default=0)
    return len(status) == 3 and all(each.leader_id and each.applied_index > newest - 100 for each in status)


if __name__ == "__main__":
    write(sys.argv[1], Path(sys.argv[2]), int(sys.argv[3]))
