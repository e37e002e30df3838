"""Real processes: a watch tells every change once, in order, whoever is killed.

Three replicas, a writer, and a program that watches and notes what it was told. The leader is killed again
and again, the watching program sometimes; it goes on after the last index that it noted.
``python -m tests.test_watch_processes 20 100000`` does it with other numbers, and says what happened.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections import deque
from collections.abc import Iterator
from concurrent.futures import Future
from contextlib import closing
from itertools import pairwise
from pathlib import Path

import pytest

from ondisk import NotDone, OutcomeUnknown, RemoteClient, connect
from ondisk.verbs import txn
from ondisk.verbs.changes import Changed
from tests.lengths import LONG
from tests.processes import Replicas
from tests.waiting import wait_until

ROOT = Path(__file__).parents[1]
UNDER_WAY = 64  # puts
EACH_TXN = 50  # of so many changes one is a transaction, of two keys, and tells its index

Line = tuple[int, list[tuple[str, str | None]]]  # an index, and what its entry has changed


class Watcher:
    """A program that watches, and appends a line for each entry to a file."""

    def __init__(self, endpoints: str, notes: Path) -> None:
        self._arguments = [sys.executable, "-m", "tests.test_watch_processes", "watch", endpoints, str(notes)]
        self.lives = 0
        self.start()

    def start(self) -> None:
        """Again, if it was killed."""
        self._process = subprocess.Popen(self._arguments, cwd=ROOT)
        self.lives += 1

    def kill(self) -> None:
        """``kill -9``."""
        self._process.kill()
        assert self._process.wait() == -signal.SIGKILL  # it has not ended by itself


def watch(endpoints: str, notes: Path) -> None:
    """What a ``Watcher`` runs, for ever. The index and what came of it are one line, and one write."""
    with notes.open("ab+") as file:
        file.seek(0)
        whole = file.read()
        whole = whole[: whole.rfind(b"\n") + 1]  # it may have been killed in the middle of a line
        file.truncate(len(whole))
        last = json.loads(whole.splitlines()[-1])[0] if whole else 0
        with connect(endpoints) as client:
            for changed in client.watch("w/", from_index=last + 1, timeout=60):
                os.write(file.fileno(), json.dumps(as_line(changed)).encode() + b"\n")


def as_line(changed: Changed) -> Line:
    return changed.index, [(key.decode(), value and value.decode()) for key, value in changed.pairs]


class Writer(threading.Thread):
    """Puts many keys, each once, and notes how each put has ended. Every fiftieth is a transaction."""

    def __init__(self, client: RemoteClient, changes: int) -> None:
        super().__init__(name="writer", daemon=True)
        self._client = client
        self._changes = changes
        self._under_way = deque[tuple[str, Future[object]]]()
        self.indexes = dict[str, int]()  # of transactions, as they were told
        self.acknowledged, self.unknown, self.refused = set[str](), set[str](), set[str]()

    def run(self) -> None:
        for number in range(self._changes):
            key = f"w/{number}"
            if number % EACH_TXN == 0:
                self._transact(key)
                continue
            self._under_way.append((key, self._client.put_async(key, key, timeout=30)))
            if len(self._under_way) == UNDER_WAY:
                self._wait_for_one()
        while self._under_way:
            self._wait_for_one()

    def _transact(self, key: str) -> None:
        with _Noted(self, key):
            answer = self._client.txn([], [txn.put(key, key), txn.put(f"{key}/too", key)], timeout=30)
            self.indexes[key] = answer.index

    def _wait_for_one(self) -> None:
        key, future = self._under_way.popleft()
        with _Noted(self, key):
            future.result(60)


class _Noted:
    """Notes how what is done inside has ended."""

    def __init__(self, writer: Writer, key: str) -> None:
        self._writer, self._key = writer, key

    def __enter__(self) -> None:
        pass

    def __exit__(self, _: object, error: BaseException | None, __: object) -> bool:
        noted = {NotDone: self._writer.refused, OutcomeUnknown: self._writer.unknown}
        where = next((noted[kind] for kind in noted if isinstance(error, kind)), self._writer.acknowledged)
        where.add(self._key)
        return isinstance(error, NotDone | OutcomeUnknown)


def noted(notes: Path) -> list[Line]:
    return [json.loads(line) for line in notes.read_text().splitlines()] if notes.exists() else []


def run(directory: Path, kills: int, changes: int) -> str:
    """All of it; return what happened, in a sentence."""
    notes, began = directory / "notes", time.monotonic()
    with closing(Replicas(directory)) as replicas, connect(replicas.endpoints) as client:
        client.wait_for_leader()
        writer, watcher = Writer(client, changes), Watcher(replicas.endpoints, notes)
        writer.start()
        try:
            for number in range(kills):
                target = changes * (number + 1) // (kills + 1)
                wait_until(lambda target=target: ended(writer) >= target, 300)
                leader = client.wait_for_leader(60)
                replicas.kill(leader)
                if number % 3 == 1:
                    watcher.kill()
                    watcher.start()
                replicas.start(leader)
            writer.join(300)
            assert not writer.is_alive()
            last = client.changes("w/", after=1 << 62, timeout=60).through
            client.put("w/last", "last", timeout=60)  # what a watch tells after everything else
            wait_until(lambda: notes.exists() and b'"w/last"' in notes.read_bytes()[-100:], 120)
        finally:
            watcher.kill()
        check(noted(notes), writer, last)
        for member in (1, 2, 3):  # every replica would have told the same
            told = [as_line(each) for each in all_changes(client, member)]
            assert json.loads(json.dumps(told)) == noted(notes)
    return (
        f"{changes:,} changes in {time.monotonic() - began:.0f} s, {kills} leaders killed, "
        f"{watcher.lives - 1} times the watching program; {len(writer.acknowledged):,} acknowledged, "
        f"{len(writer.unknown)} unknown ({len(writer.unknown & keys(noted(notes)))} of them happened), "
        f"{len(writer.refused)} refused"
    )


def ended(writer: Writer) -> int:
    return len(writer.acknowledged) + len(writer.unknown) + len(writer.refused)


def keys(lines: list[Line]) -> set[str]:
    return {key for _, pairs in lines for key, _ in pairs}


def check(lines: list[Line], writer: Writer, last: int) -> None:
    """Every change once and in order; what was acknowledged all of it, and what was refused none of it."""
    assert all(one[0] < other[0] for one, other in pairwise(lines))
    *told, (end, _) = lines
    assert told[-1][0] <= last < end
    index_of = {pairs[0][0]: index for index, pairs in told}
    assert len(index_of) == len(told)  # no key has changed twice
    assert writer.acknowledged <= index_of.keys() <= writer.acknowledged | writer.unknown
    for _, pairs in told:
        key = pairs[0][0]
        transacted = int(key.partition("/")[2]) % EACH_TXN == 0
        assert pairs == [[name, key] for name in ((key, f"{key}/too") if transacted else (key,))]
    for key, index in writer.indexes.items():
        assert index_of[key] == index
    assert all(index_of[one] < index_of[other] for one, other in pairwise(writer.indexes))


def all_changes(client: RemoteClient, via: int) -> Iterator[Changed]:
    after = 0
    while (page := client.changes("w/", after, 10_000, via=via, timeout=60)).entries:
        yield from page.entries
        after = page.through


@pytest.mark.parametrize(("kills", "changes"), [pytest.param(3, 5000, id="long", marks=LONG)])
def test_whoever_is_killed_a_watch_tells_every_change_once_in_order(
    tmp_path: Path, kills: int, changes: int
) -> None:
    run(tmp_path, kills, changes)


if __name__ == "__main__":
    if sys.argv[1] == "watch":
        watch(sys.argv[2], Path(sys.argv[3]))
    else:
        with tempfile.TemporaryDirectory() as name:
            print(run(Path(name), int(sys.argv[1]), int(sys.argv[2])))
