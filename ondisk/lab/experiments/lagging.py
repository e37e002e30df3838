"""A replica that lags so far behind that it needs a snapshot, watched while it catches up and answers.

All the while one thread asks it for a hundred keys that carry the same word, over and over, and counts: old
word, new word, both at once (which must never be), or an error.
"""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import NamedTuple, Self

from ondisk.cluster import Cluster
from ondisk.diskkv import DiskKV, scan
from ondisk.errors import OndiskError
from ondisk.interrupts.shielded import shielded
from ondisk.observe import wait_until, wait_until_level
from ondisk.replica import ReplicaStatus
from ondisk.snapshot.stream import Reader, open_file, read_file
from ondisk.testing.crashing import Child, CrashingDisk, Point

STAMPS = 100
_QUESTION = scan("stamp ", limit=STAMPS + 1)
_EVERY_LOOKUP = 0.002  # seconds between two questions
_EVERY_POLL = 0.05  # and between two polls


def stamp(cluster: Cluster, word: str) -> None:
    """Put the same word under a hundred keys. Whoever sees two words in one answer sees a mixture."""
    for future in [cluster.put_async(f"stamp {number:02}", word, timeout=30) for number in range(STAMPS)]:
        future.result()


def leave_behind(cluster: Cluster, replica_id: int, change: Callable[[], object]) -> None:
    """Cut a follower off, let ``change`` write, and compact all the others past the end of its log.

    Nobody's log has then what it needs next. It is still cut off at the end.
    """
    others = [other for other in cluster.members if other != replica_id]
    if cluster.wait_for_leader() == replica_id:
        cluster.transfer_leadership(others[0])
    wait_until_level(cluster)
    cluster.network.isolate(replica_id)
    cluster.wait_for_leader()
    change()
    wait_until_level(cluster, others)
    end = cluster.status()[replica_id].last_index
    # A leader keeps what a follower lacks for as long as it takes that follower to be on its way back.
    wait_until(lambda: all(cluster.compact(other) > end for other in others), "the others have compacted")


class Answers(NamedTuple):
    """How often the replica answered with what. ``slowest`` is in seconds."""

    old: int = 0
    new: int = 0
    mixed: int = 0
    failed: int = 0
    slowest: float = 0.0

    def __str__(self) -> str:
        return f"old {self.old:,}, new {self.new:,}, mixed {self.mixed:,}, failed {self.failed:,}"


class Moment(NamedTuple):
    """What was seen at once. ``arrived``: bytes of a snapshot so far, ``None`` if none is under way."""

    time: float  # seconds since the watch began
    statuses: Mapping[int, ReplicaStatus]
    arrived: int | None
    answers: Answers


class Watch:
    """Looks at one replica while it catches up. A context manager; what was seen stays readable after it.

    ``old`` and ``new`` are the words of ``stamp``. ``saw`` is called with what was seen when the ``with``
    block begins and ends, and again and again while its cell awaits: never by the thread that asks.
    """

    def __init__(
        self,
        cluster: Cluster,
        replica_id: int,
        *,
        old: str,
        new: str,
        saw: Callable[[Moment], None] = lambda _: None,
    ) -> None:
        self.moments: list[Moment] = []
        self.replica_id = replica_id
        self._cluster = cluster
        self._words = {old.encode(): "old", new.encode(): "new"}
        self._saw = saw
        self._answers = Answers()
        self._began = time.perf_counter()
        self._closed = threading.Event()
        self._thread = threading.Thread(target=self._ask, name="ondisk-watch", daemon=True)

    def __enter__(self) -> Self:
        self._saw(self.poll())
        shielded(self._thread.start)()
        return self

    def __exit__(self, *_: object) -> None:
        self._end()
        self._saw(self.poll())

    @shielded
    def _end(self) -> None:
        self._closed.set()
        self._thread.join()

    def _ask(self) -> None:
        while not self._closed.wait(_EVERY_LOOKUP):
            began = time.perf_counter()
            try:
                kind = self._kind(self._cluster.stale_read(_QUESTION, via=self.replica_id))
            except OndiskError:
                kind = "failed"
            slowest = max(self._answers.slowest, time.perf_counter() - began)
            count = getattr(self._answers, kind) + 1
            self._answers = self._answers._replace(**{kind: count, "slowest": slowest})

    def _kind(self, pairs: list[tuple[bytes, bytes]]) -> str:
        words = {word for _, word in pairs}
        if len(pairs) == STAMPS and len(words) == 1:
            return self._words.get(words.pop(), "mixed")
        return "mixed"

    def poll(self) -> Moment:
        """What can be seen now; it is kept in ``moments``."""
        statuses = self._cluster.status()
        arriving = [move.bytes for move in statuses[self.replica_id].streams if move.kind == "from"]
        now = time.perf_counter() - self._began
        self.moments.append(Moment(now, statuses, arriving[0] if arriving else None, self._answers))
        return self.moments[-1]

    async def until(self, condition: Callable[[Moment], bool], what: str, timeout: float = 60.0) -> Moment:
        """Poll until it holds. ``TimeoutError`` names ``what``."""
        deadline = time.monotonic() + timeout
        while not condition(moment := self.poll()):
            if time.monotonic() > deadline:
                raise TimeoutError(f"not within {timeout:g} s: {what}")
            self._saw(moment)
            await asyncio.sleep(_EVERY_POLL)
        self._saw(moment)
        return moment

    async def until_caught_up(self) -> Moment:
        """Until it has answered from the new state a hundred times."""
        return await self.until(lambda now: now.answers.new >= 100, "the replica answers from the new state")

    async def until_arrived(self, size: int) -> Moment:
        """Until so many bytes of a snapshot have arrived, or all of it."""
        return await self.until(
            lambda now: (now.arrived or 0) >= size or now.answers.new > 0, f"{size:,} bytes have arrived"
        )


# Crashing it in the middle


def kill_while_recovering(cluster: Cluster, replica_id: int, snapshot: Path, pieces: int) -> str | None:
    """Recover a *stopped* replica's state in a process of its own, which is killed after so many pieces.

    Returns the point where it died. SIGKILL: nothing in that process can tidy up. What it had written stays
    with the operating system; that is not what a power cut leaves.
    """
    state = cluster.data_dir / f"replica-{replica_id}" / "state"
    with Child() as child:
        return child.run(_recover, state, snapshot, crash=Point(pieces, "recover: piece written")).crashed


def _recover(disk: CrashingDisk, state: Path, snapshot: Path) -> None:
    machine = DiskKV(state, disk=disk)
    machine.open()
    with open_file(snapshot) as file:
        machine.recover_from_snapshot(Reader(read_file(file)), threading.Event())
