"""A replica that lags so far behind that it must be fed by a stream, watched while it answers.

All the while one thread asks it for a hundred keys that carry the same word, over and over, and counts: old
word, new word, both at once (which must never be), or an error. The thread touches no widget and prints
nothing. The picture is drawn by the cell that awaits, from what the replicas say of themselves.
"""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Callable, Mapping
from html import escape
from pathlib import Path
from typing import NamedTuple

from IPython.display import HTML, display

from ondisk.cluster import Cluster
from ondisk.diskkv import DiskKV, scan
from ondisk.errors import OndiskError
from ondisk.interrupts.shielded import shielded
from ondisk.lab.experiments import sizes
from ondisk.lab.experiments.sizes import as_html, in_bytes, log_in_words, table
from ondisk.lab.pictures.cluster import svg
from ondisk.observe import wait_until, wait_until_level
from ondisk.raft.limits import CHUNK_BYTES
from ondisk.replica import ReplicaStatus
from ondisk.snapshot.stream import Reader, open_file, read_file
from ondisk.testing.crashing import Child, CrashingDisk, Point

STAMPS = 100
_QUESTION = scan("stamp ", limit=STAMPS + 1)
_EVERY_LOOKUP = 0.002  # seconds between two questions
_EVERY_LOOK = 0.05  # and between two pictures


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
    """Looks at one replica while it is fed. A context manager; what was seen stays readable after it.

    ``old`` and ``new`` are the words of ``stamp``. ``expected`` is how many bytes a snapshot has, for the
    picture. The picture is shown where ``with`` stands, and changes while its cell awaits.
    """

    def __init__(self, cluster: Cluster, replica_id: int, *, old: str, new: str, expected: int) -> None:
        self.moments: list[Moment] = []
        self._cluster = cluster
        self._id = replica_id
        self._words = {old.encode(): "old", new.encode(): "new"}
        self._expected = expected
        self._answers = Answers()
        self._began = time.perf_counter()
        self._closed = threading.Event()
        self._thread = threading.Thread(target=self._ask, name="ondisk-watch", daemon=True)

    def __enter__(self) -> Watch:
        self._picture = display(self._draw(self.look()), display_id=True)  # type: ignore[no-untyped-call]
        shielded(self._thread.start)()
        return self

    def __exit__(self, *_: object) -> None:
        self._end()
        self._show(self.look())

    @shielded
    def _end(self) -> None:
        self._closed.set()
        self._thread.join()

    def _ask(self) -> None:
        while not self._closed.wait(_EVERY_LOOKUP):
            began = time.perf_counter()
            try:
                kind = self._kind(self._cluster.stale_read(_QUESTION, via=self._id))
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

    def look(self) -> Moment:
        """What can be seen now; it is kept in ``moments``."""
        statuses = self._cluster.status()
        arriving = [move.bytes for move in statuses[self._id].transfers if move.kind == "from"]
        now = time.perf_counter() - self._began
        self.moments.append(Moment(now, statuses, arriving[0] if arriving else None, self._answers))
        return self.moments[-1]

    async def until(self, condition: Callable[[Moment], bool], what: str, timeout: float = 60.0) -> Moment:
        """Look and draw again and again until it holds. ``TimeoutError`` names ``what``."""
        deadline = time.monotonic() + timeout
        while not condition(moment := self.look()):
            if time.monotonic() > deadline:
                raise TimeoutError(f"not within {timeout:g} s: {what}")
            self._show(moment)
            await asyncio.sleep(_EVERY_LOOK)
        self._show(moment)
        return moment

    async def until_fed(self) -> Moment:
        """Until it has answered from the new state a hundred times."""
        return await self.until(lambda now: now.answers.new >= 100, "the replica answers from the new state")

    async def until_arrived(self, size: int) -> Moment:
        """Until so many bytes of a snapshot have arrived, or all of it."""
        return await self.until(
            lambda now: (now.arrived or 0) >= size or now.answers.new > 0, f"{in_bytes(size)} have arrived"
        )

    def _show(self, moment: Moment) -> None:
        if self._picture is not None:  # outside a notebook there is nothing to draw on
            self._picture.update(self._draw(moment))

    def _draw(self, moment: Moment) -> HTML:
        return feeding_picture(moment, self._id, self._expected)

    def plot(self) -> HTML:
        """What arrived and what was answered, over time."""
        return plot_feeding(self.moments, self._id)


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


# Drawing

_LEFT, _WIDTH, _ROW = 170, 330, 28


def feeding_picture(moment: Moment, replica_id: int, expected: int) -> HTML:
    """The logs of all replicas on one scale, what has arrived, and what was answered; then as a table."""
    statuses = moment.statuses
    low = min(min(status.first_index, status.applied_index) for status in statuses.values())
    high = max(max(status.last_index, status.first_index) for status in statuses.values())

    def x(index: int) -> float:
        return _LEFT + _WIDTH * (index - low) / max(1, high - low)

    parts, y = [], 18
    for other, status in sorted(statuses.items()):
        parts.append(f'<text class="bold" x="8" y="{y + 5}">Replica {other}: {escape(status.role)}</text>')
        parts.append(f'<line class="faint" x1="{_LEFT}" y1="{y}" x2="{_LEFT + _WIDTH}" y2="{y}"/>')
        wide = max(2.0, x(status.last_index) - x(status.first_index))
        parts.append(
            f'<rect class="card" x="{x(status.first_index):.1f}" y="{y - 7}" width="{wide:.1f}" height="14"/>'
            f'<circle class="mark" cx="{x(status.applied_index):.1f}" cy="{y}" r="5"/>'
            f'<text class="small" x="{_LEFT + _WIDTH + 14}" y="{y + 5}">{log_in_words(status)}, '
            f"state after {status.applied_index:,}</text>"
        )
        y += _ROW
    parts.append(
        f'<text class="small" x="{_LEFT}" y="{y}">entries {low:,} to {high:,}; '
        "box: what is in the log; disc: what the state holds</text>"
    )
    y += _ROW
    arrived = moment.arrived or 0
    full = _WIDTH * min(1.0, arrived / max(1, expected))
    stream = stream_in_words(moment)
    parts.append(
        f'<text class="bold" x="8" y="{y + 5}">Stream to {replica_id}</text>'
        f'<rect class="card" x="{_LEFT}" y="{y - 8}" width="{_WIDTH}" height="16"/>'
        f'<rect class="mark" x="{_LEFT}" y="{y - 8}" width="{full:.1f}" height="16"/>'
        f'<text class="small" x="{_LEFT + _WIDTH + 14}" y="{y + 5}">{stream}</text>'
    )
    y += _ROW
    answers = f"{moment.answers}; slowest {moment.answers.slowest * 1e3:.1f} ms"
    parts.append(
        f'<text class="bold" x="8" y="{y + 5}">Its answers</text>'
        f'<text x="{_LEFT}" y="{y + 5}">{answers}</text>'
    )
    words = [
        f"Replica {other}: {status.role}, {log_in_words(status)}, state after {status.applied_index}"
        for other, status in sorted(statuses.items())
    ]
    words += [f"Stream to replica {replica_id}: {stream}", f"Its answers: {answers}"]
    picture = svg("A replica is fed", ". ".join(words) + ".", 780, y + 20, parts)
    return as_html(picture + feeding_table([("now", moment)], replica_id).data)


def stream_in_words(moment: Moment) -> str:
    """How much of a snapshot has arrived."""
    if moment.arrived is None:
        return "nothing under way"
    return f"{in_bytes(moment.arrived)}, {-(-moment.arrived // CHUNK_BYTES)} chunks so far"


def feeding_table(moments: list[tuple[str, Moment]], replica_id: int) -> HTML:
    """One row for each of these moments, which have names."""
    rows = []
    for name, moment in moments:
        status, answers = moment.statuses[replica_id], moment.answers
        rows.append(
            (name, log_in_words(status), f"{status.applied_index:,}", stream_in_words(moment), *answers[:4])
        )
    names = (f"replica {replica_id}", "log", "state after", "stream", "old", "new", "mixed", "failed")
    return table("The same as numbers", names, rows)


def plot_feeding(moments: list[Moment], replica_id: int) -> HTML:
    """Above: bytes that have arrived. Below: how many answers came from the old and the new state."""
    from matplotlib.figure import Figure

    times = [moment.time for moment in moments]
    figure = Figure(figsize=(8.4, 4.4), layout="constrained")
    above, below = figure.subplots(2, 1, sharex=True)
    streaming = [(moment.time, moment.arrived / 1e6) for moment in moments if moment.arrived is not None]
    above.plot(*zip((times[0], 0.0), *streaming, strict=True), "o-", markersize=3)
    above.set(ylabel="MB arrived", title=f"Replica {replica_id} while it is fed")
    below.plot(
        times, [moment.answers.old for moment in moments], "s--", markersize=3, label="from the old state"
    )
    below.plot(
        times, [moment.answers.new for moment in moments], "o-", markersize=3, label="from the new state"
    )
    below.set(xlabel="seconds", ylabel="answers so far")
    below.legend()
    swap = next((moment for moment in moments if moment.answers.new), None)
    words = [f"Replica {replica_id} while it is fed"]
    if streaming:
        most = max(arrived for _, arrived in streaming)
        words.append(f"{most:.1f} MB arrived from second {streaming[0][0]:.1f} on")
    if swap is not None:
        for axes in (above, below):
            axes.axvline(swap.time, color="black", linestyle=":")
        above.annotate("swapped", (swap.time, 0), xytext=(-4, 4), textcoords="offset points", ha="right")
        words.append(f"swapped at second {swap.time:.1f}")
    words.append(f"answers in the end: {moments[-1].answers}")
    first_new = [("at the swap", swap)] if swap is not None else []
    named = [("at the beginning", moments[0]), *first_new, ("at the end", moments[-1])]
    return as_html(sizes.image(figure, ". ".join(words) + ".").data + feeding_table(named, replica_id).data)
