"""Real processes: there is one holder of a lock at a time, whoever is killed or stopped.

Programs take a lock, write under it, and do not look whether they still hold it. Their processes are killed,
or stopped for longer than the time to live, and so are leaders. Two things are written to: the group itself,
behind ``Held.guard``, and a resource elsewhere that refuses a fencing token smaller than the largest that it
has seen. ``python -m tests.test_lock_processes 20`` does more of it, and says what happened.
"""

from __future__ import annotations

import os
import signal
import socketserver
import subprocess
import sys
import tempfile
import threading
import time
from collections import Counter
from contextlib import closing, suppress
from itertools import groupby
from pathlib import Path
from socket import create_connection

import pytest

from ondisk import NotDone, OutcomeUnknown, RemoteClient, connect
from ondisk.verbs import txn
from tests.lengths import LONG
from tests.processes import Replicas
from tests.waiting import wait_until

ROOT = Path(__file__).parents[1]
HOLDERS = 4
TTL = 0.5
LOCK, RECORD = "lock/", "lock/record"
STEPS = 20  # that a holder writes before it lets go


class Resource(socketserver.ThreadingTCPServer):
    """Takes lines ``TOKEN NAME STEP``, one at a time, and refuses those with an old token."""

    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), _Lines)
        self.lock = threading.Lock()
        self.written: list[tuple[int, str, int]] = []
        self.refused = Counter[str]()
        self.thread = threading.Thread(target=self.serve_forever, args=(0.05,), daemon=True)
        self.thread.start()

    def write(self, token: int, name: str, step: int) -> bool:
        """Whether it was written."""
        with self.lock:
            if self.written and token < self.written[-1][0]:
                self.refused[name] += 1
                return False
            self.written.append((token, name, step))
            return True

    def close(self) -> None:
        self.shutdown()
        self.thread.join()
        self.server_close()


class _Lines(socketserver.StreamRequestHandler):
    server: Resource

    def handle(self) -> None:
        with suppress(ConnectionError):
            for line in self.rfile:
                token, name, step = line.decode().split()
                self.wfile.write(b"yes\n" if self.server.write(int(token), name, int(step)) else b"no\n")


def hold(endpoints: str, port: int, name: str) -> None:
    """What each program runs, for ever: as careless as one can be with a lock."""
    with (
        connect(endpoints) as client,
        create_connection(("127.0.0.1", port)) as connection,
        connection.makefile("rwb", 0) as resource,
    ):
        while True:
            with suppress(NotDone, OutcomeUnknown), client.lock(LOCK, ttl=TTL, timeout=60) as held:
                for step in range(STEPS):
                    resource.write(f"{held.token} {name} {step}\n".encode())
                    if resource.readline() != b"yes\n":
                        break
                    what = f"{held.token} {name} {step}"
                    if not client.txn([held.guard], [txn.put(RECORD, what)], timeout=5).succeeded:
                        break


class Holders:
    """The programs."""

    def __init__(self, endpoints: str, port: int) -> None:
        self._arguments = [sys.executable, "-m", "tests.test_lock_processes", "hold", endpoints, str(port)]
        self._processes = dict[str, subprocess.Popen[bytes]]()
        self._numbers = iter(range(1 << 30))
        for _ in range(HOLDERS):
            self._start()

    def _start(self) -> None:
        name = f"n{next(self._numbers)}"
        self._processes[name] = subprocess.Popen([*self._arguments, name], cwd=ROOT)

    def kill(self, name: str) -> None:
        process = self._processes.pop(name)
        process.kill()
        assert process.wait() == -signal.SIGKILL  # it has not ended by itself
        self._start()

    def signal(self, name: str, number: int) -> None:
        os.kill(self._processes[name].pid, number)

    def close(self) -> None:
        for process in self._processes.values():
            process.kill()
            process.wait()


def run(directory: Path, rounds: int) -> str:
    """Kill a leader, kill who holds it, stop who holds it, so many times; return what happened."""
    began = time.monotonic()
    with (
        closing(Replicas(directory)) as replicas,
        closing(Resource()) as resource,
        connect(replicas.endpoints) as client,
        closing(Holders(replicas.endpoints, resource.server_address[1])) as holders,
    ):

        def others_have_written(than: str, since: int) -> str:
            """Wait until somebody else has the lock; return who."""

            def look() -> str:
                with resource.lock:
                    return next((name for _, name, _ in resource.written[since:] if name != than), "")

            return wait_until(look, 60)

        for number in range(rounds):
            holder = others_have_written("", len(resource.written))
            leader = client.wait_for_leader(30) if number % 2 == 0 else None
            if leader is not None:
                replicas.kill(leader)
            holders.signal(holder, signal.SIGSTOP)  # wherever it is
            since, stopped = len(resource.written), holder
            holder = others_have_written(stopped, since)
            holders.kill(holder)
            others_have_written(holder, len(resource.written))
            if leader is not None:
                replicas.start(leader)
            holders.signal(stopped, signal.SIGCONT)
        told = changes(client)
        with resource.lock:
            written, refused_all = list(resource.written), resource.refused.total()
    lost = check_log(told)
    check_resource(written)
    tokens = len({token for token, _, _ in written})
    return (
        f"{rounds} rounds in {time.monotonic() - began:.0f} s: {(rounds + 1) // 2} leaders killed, {rounds} "
        f"holders killed, {rounds} stopped; {tokens} holders have written, {len(written):,} times, and "
        f"{refused_all} times were refused for their token; the log has ended a lock {lost} times"
    )


def changes(client: RemoteClient) -> list[tuple[int, str, str | None]]:
    """All that ever was under the lock's prefix, with its index."""
    found, after = [], 0
    while (page := client.changes(LOCK, after, 10_000, timeout=60)).entries:
        for entry in page.entries:
            found += [(entry.index, key.decode(), value and value.decode()) for key, value in entry.pairs]
        after = page.through
    return found


def check_log(told: list[tuple[int, str, str | None]]) -> int:
    """The lock goes from nobody to one holder, and what is written meanwhile is that one's.

    Returns how often it went to nobody.
    """
    token, mine, ended = 0, None, 0
    for index, key, value in told:
        if key == RECORD:
            assert value is not None and mine is not None and int(value.split()[0]) == token
        elif value is None:
            mine, ended = None, ended + 1
        elif value != mine:  # and not the second attempt of the same one
            assert mine is None and index > token
            mine, token = value, index
        else:
            token = index
    return ended


def check_resource(written: list[tuple[int, str, int]]) -> None:
    """Tokens only grow, each belongs to one program, and its steps follow each other."""
    last = 0
    for (token, _), run_of in groupby(written, key=lambda each: each[:2]):
        assert token > last
        last = token
        steps = [step for _, _, step in run_of]
        assert steps == list(range(len(steps)))


@pytest.mark.parametrize("rounds", [pytest.param(2, id="long", marks=LONG)])
def test_whoever_is_killed_or_stopped_a_lock_has_one_holder_at_a_time(tmp_path: Path, rounds: int) -> None:
    run(tmp_path, rounds)


if __name__ == "__main__":
    if sys.argv[1] == "hold":
        hold(sys.argv[2], int(sys.argv[3]), sys.argv[4])
    else:
        with tempfile.TemporaryDirectory() as name:
            print(run(Path(name), int(sys.argv[1])))
