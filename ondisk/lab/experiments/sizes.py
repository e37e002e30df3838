"""How large things are: a log, the record of its compaction, a state, a snapshot. Measured, then drawn.

``measure`` fills a log and a state machine of one replica, without Raft and without a network, and weighs
what is there. ``Bank`` is a state machine of its own whose total must never change, so that a snapshot which
mixes two moments can be seen at once. Everything is in a temporary directory that is gone afterwards.

Sizes are in bytes as ``ls -l`` tells them (RocksDB reserves more for its newest log), times in seconds.
"""

from __future__ import annotations

import base64
import gzip
import hashlib
import pickle
import random
import shutil
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future
from dataclasses import dataclass
from html import escape
from io import BytesIO
from pathlib import Path
from stat import S_ISREG
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any, NamedTuple

import msgspec
from IPython.display import HTML

from ondisk.cluster import Cluster
from ondisk.diskkv import DiskKV, DiskKVView, incr, put, scan
from ondisk.lab.pictures import cluster as picture
from ondisk.raft.log import REGULAR, LogEntry, RaftLog
from ondisk.replica import ReplicaStatus
from ondisk.statemachine import Entry, Result

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

_PAGE = 10_000  # pairs in one scan
_IN_FLIGHT = 128  # puts

# A directory


def disk_use(*directories: Path | str) -> int:
    """Bytes of all files below, each counted once however many names (hard links) it has."""
    return sum({status.st_ino: status.st_size for _, status in _files(*directories)}.values())


def _files(*directories: Path | str) -> Iterator[tuple[Path, Any]]:
    """All regular files below and what ``os.stat`` says of them; a database may delete some meanwhile."""
    for directory in directories:
        for path in sorted(Path(directory).rglob("*")):
            try:
                status = path.lstat()
            except FileNotFoundError:
                continue
            if S_ISREG(status.st_mode):
                yield path, status


def show_directory(directory: Path | str) -> HTML:
    """What a state machine's directory holds, one row a name, with the files' sizes and links."""
    rows = []
    for child in sorted(Path(directory).iterdir()):
        if child.is_dir():
            files = [status for _, status in _files(child)]
            shared = sum(status.st_size for status in files if status.st_nlink > 1)
            said = f"{len(files)} files" + (f", {in_bytes(shared)} of them hard links" if shared else "")
            rows.append((f"{child.name}/", in_bytes(disk_use(child)), said))
        else:
            text = child.read_text(errors="replace").strip()
            rows.append((child.name, in_bytes(child.stat().st_size), f"“{text}”" if text else "empty"))
    return table(Path(directory).name + "/", ("name", "size", "what is in it"), rows)


# One replica, without Raft


class Sizes(NamedTuple):
    """What ``measure`` found when the state had so many keys. Bytes and seconds."""

    keys: int
    entries: int  # what the entries in the log hold: keys, values, and what encodes them
    state: int  # the state machine's directory
    snapshot: int  # what would travel to another replica
    dump: int  # the whole state pickled and compressed, as PySyncObj does it
    record: int  # the record of a compaction
    dump_seconds: float
    prepare_seconds: float  # to hold the state still
    record_seconds: float  # for a compaction with all of its steps
    log_before: int  # the log's directory
    log_after: int  # the same, right after the compaction


def measure(keys: int, value_bytes: int = 100) -> Sizes:
    """Put so many keys through a log into a state machine; weigh what is there; compact the log."""
    with TemporaryDirectory(prefix="ondisk-") as name:
        folder = Path(name)
        log, machine = RaftLog(folder / "log", members=(1, 2, 3)), DiskKV(folder / "state")
        try:
            machine.open()
            entries = _fill(log, machine, keys, value_bytes)
            state, log_before = disk_use(folder / "state"), disk_use(folder / "log")
            dump, dump_seconds = _dump(machine, folder / "dump")
            view, prepare_seconds = _timed(machine.prepare_snapshot)
            snapshot = _save(machine, view).bytes
            view.close()

            def compact() -> int:
                machine.sync()  # what the log forgets must be durable elsewhere
                log.compact(log.last_index)
                log.sync()
                return len(log.compaction_record())

            record, record_seconds = _timed(compact)
            log_after = disk_use(folder / "log")
        finally:
            machine.close()
            log.close()
    return Sizes(
        keys,
        entries,
        state,
        snapshot,
        dump,
        record,
        dump_seconds,
        prepare_seconds,
        record_seconds,
        log_before,
        log_after,
    )


def _fill(log: RaftLog, machine: DiskKV, keys: int, value_bytes: int, batch: int = 500) -> int:
    """Append, sync, apply, as a replica does; return how many bytes the entries hold."""
    values = random.Random(keys)  # bytes that no compression makes smaller
    log.set_hard_state(1, 1)
    size = 0
    for first in range(1, keys + 1, batch):
        commands = [
            Entry(index, put(f"key {index:09}", values.randbytes(value_bytes)))
            for index in range(first, min(first + batch, keys + 1))
        ]
        log.append([LogEntry(entry.index, 1, REGULAR + entry.command) for entry in commands])
        log.sync()
        machine.update(commands)
        if first // batch % 20 == 0:
            machine.sync()  # a replica does it every second
        size += sum(len(entry.command) for entry in commands)
    return size


def _dump(machine: DiskKV, file: Path) -> tuple[int, float]:
    """Write all pairs as PySyncObj's ``fullDumpFile`` does: pickled, through gzip (its ``serializer.py``).

    Only the writing is timed: PySyncObj has its state in memory anyway.
    """
    pairs = dict(_pairs(machine))

    def write() -> None:
        with gzip.open(file, "wb") as compressed:
            pickle.dump(pairs, compressed)

    _, seconds = _timed(write)
    return file.stat().st_size, seconds


def _pairs(machine: DiskKV) -> Iterator[tuple[bytes, bytes]]:
    start = b""
    while page := machine.lookup(scan(start=start, limit=_PAGE)):
        yield from page
        start = page[-1][0] + b"\0"


def _timed(work: Callable[[], Any]) -> tuple[Any, float]:
    began = time.perf_counter()
    result = work()
    return result, time.perf_counter() - began


# A view that is held still


@dataclass(frozen=True)
class Saved:
    """A snapshot that was written: of which entry, how long, and a fingerprint of all its bytes."""

    index: int
    bytes: int
    sha256: str

    def __str__(self) -> str:
        return f"after entry {self.index:,}: {self.bytes:,} bytes, sha256 {self.sha256[:12]}…"


class _Fingerprint:
    """Takes a snapshot and keeps only what identifies it."""

    def __init__(self) -> None:
        self.bytes = 0
        self._hash = hashlib.sha256()

    def write(self, data: bytes) -> None:
        self.bytes += len(data)
        self._hash.update(data)

    def saved(self, index: int) -> Saved:
        return Saved(index, self.bytes, self._hash.hexdigest())


def _save(machine: DiskKV, view: DiskKVView) -> Saved:
    writer = _Fingerprint()
    machine.save_snapshot(view, writer, threading.Event())
    return writer.saved(view.index)


class Bank:
    """A ``DiskKV`` of its own with accounts. Money only moves, so the total is always the same.

    A transfer takes 1 from an account of the upper half and gives it to one of the lower half, in *one*
    update; it also writes a receipt of 1 kB, over an old one. A context manager.
    """

    ACCOUNTS, BALANCE = 1_000, 1_000
    RECEIPTS = 5_000

    def __init__(self) -> None:
        """Open the accounts, each with the same balance, and fill the receipts."""
        self._folder = TemporaryDirectory(prefix="ondisk-bank-")
        self.directory = Path(self._folder.name) / "state"
        self.machine = DiskKV(self.directory)
        self.index = self.machine.open()
        self._random = random.Random(1)
        self._update([incr(_account(number), self.BALANCE) for number in range(self.ACCOUNTS)])
        for first in range(0, self.RECEIPTS, 250):
            self._update([self._receipt(number) for number in range(first, first + 250)])

    def __enter__(self) -> Bank:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Close it and remove its directory. A second call does nothing."""
        self.machine.close()
        self._folder.cleanup()

    def _update(self, commands: Sequence[bytes]) -> list[Result]:
        entries = [Entry(self.index + place, command) for place, command in enumerate(commands, 1)]
        self.index += len(entries)
        return self.machine.update(entries)

    def _receipt(self, number: int) -> bytes:
        return put(f"receipt {number:06}", self._random.randbytes(1_000))

    def transfer(self, count: int) -> None:
        """Move money so many times."""
        half = self.ACCOUNTS // 2
        for _ in range(count):
            giver, taker = half + self._random.randrange(half), self._random.randrange(half)
            receipt = self._receipt(self._random.randrange(self.RECEIPTS))
            self._update([incr(_account(giver), -1), incr(_account(taker), 1), receipt])

    def transfer_until_rewritten(self, limit: int = 200_000) -> int:
        """Go on until RocksDB has merged away the tables that the view shares; return how many transfers.

        ``TimeoutError`` after ``limit`` of them.
        """
        for done in range(0, limit, 2_500):
            use = self.use("")
            if use.shared < use.view / 10:
                return done
            self.transfer(2_500)
        raise TimeoutError(f"after {limit:,} transfers the live database still has the tables of the view")

    def total(self) -> int:
        """What all accounts hold together, in one lookup."""
        return _total(self.machine.lookup(scan("account", limit=self.ACCOUNTS)))

    def total_page_by_page(self, transfers: int) -> int:
        """The same in pages of 100 accounts, as a naive dump would read; between two pages money moves."""
        total, start = 0, b""
        while page := self.machine.lookup(scan("account", start=start, limit=100)):
            total += _total(page)
            start = page[-1][0] + b"\0"
            self.transfer(transfers)
        return total

    def save(self, view: DiskKVView) -> Saved:
        """Write the snapshot, keep its fingerprint."""
        return _save(self.machine, view)

    def total_in(self, view: DiskKVView) -> int:
        """What the accounts hold together in another state machine that recovered from this view."""
        with TemporaryDirectory(prefix="ondisk-") as name:
            file, other = Path(name) / "snapshot", DiskKV(Path(name) / "state")
            with file.open("wb") as writer:
                self.machine.save_snapshot(view, _Into(writer.write), threading.Event())
            other.open()
            try:
                with file.open("rb") as reader:
                    other.recover_from_snapshot(reader, threading.Event())
                return _total(other.lookup(scan("account", limit=self.ACCOUNTS)))
            finally:
                other.close()

    def use(self, moment: str) -> Use:
        """How the disk is used now."""
        databases = {
            kind: dict((status.st_ino, status.st_size) for _, status in _files(*self.directory.glob(pattern)))
            for kind, pattern in (("live", "db-*"), ("view", "view-*"))
        }
        live, view = databases["live"], databases["view"]
        return Use(
            moment,
            sum(live.values()),
            sum(view.values()),
            sum(size for inode, size in view.items() if inode in live),
            sum((live | view).values()),
        )


class _Into:
    """A ``SnapshotWriter`` out of a function."""

    def __init__(self, write: Callable[[bytes], object]) -> None:
        self._write = write

    def write(self, data: bytes) -> None:
        self._write(data)


def _account(number: int) -> str:
    return f"account {number:06}"


def _total(pairs: Sequence[tuple[bytes, bytes]]) -> int:
    return sum(int(balance) for _, balance in pairs)


class Use(NamedTuple):
    """Bytes in the live database and in the view, those in both (hard links), and all, each file once."""

    moment: str
    live: int
    view: int
    shared: int
    total: int


def show_use(uses: Sequence[Use]) -> HTML:
    """A bar for each moment: what only the live database has, what both have, what only the view keeps."""
    left, width, row = 210, 400, 44
    most = max(use.total for use in uses) or 1
    parts, said = [], []
    for place, use in enumerate(uses):
        y, x = 30 + place * row, float(left)
        parts.append(f'<text class="small" x="8" y="{y + 16}">{escape(use.moment)}</text>')
        kinds = (
            (use.live - use.shared, "live only", "card"),
            (use.shared, "both", "mark"),
            (use.view - use.shared, "view only", "card off"),
        )
        words = []
        for size, name, style in kinds:
            long = width * size / most
            if long >= 0.5:
                parts.append(
                    f'<rect class="{style}" x="{x:.1f}" y="{y}" width="{long:.1f}" height="18">'
                    f"<title>{name}: {in_bytes(size)}</title></rect>"
                )
            x += long
            words += [f"{name} {in_bytes(size)}"] * (size > 0)
        parts.append(
            f'<text class="bold small" x="{x + 8:.1f}" y="{y + 14}">{in_bytes(use.total)}</text>'
            f'<text class="small" x="{left}" y="{y + 32}">{escape(", ".join(words))}</text>'
        )
        said.append(f"{use.moment}: {in_bytes(use.total)} on disk, {', '.join(words)}")
    parts.append(
        '<text class="small" x="8" y="16">solid outline: only in the live database; '
        "filled: hard links, in both; dashed outline: only in the view</text>"
    )
    drawn = picture.svg("Disk use of a view", ". ".join(said) + ".", 780, 30 + len(uses) * row, parts)
    numbers = [[use.moment, *map(in_bytes, use[1:])] for use in uses]
    names = ("moment", "live database", "view", "of it in both", "on disk")
    return as_html(drawn + table("The same as numbers", names, numbers).data)


# A cluster


def start_over(data_dir: Path | str) -> Cluster:
    """A new cluster on empty disks: what is in the directory is deleted.

    One that this process has open there is closed first; another process's is left alone
    (``DirectoryInUse``).
    """
    with Cluster(data_dir) as former:
        pass
    shutil.rmtree(former.data_dir)
    return Cluster(data_dir)


def fill(cluster: Cluster, keys: int, value_bytes: int) -> int:
    """Put so many keys, many at a time; return the bytes of their keys and values."""
    values, waiting = random.Random(1), deque[Future[Result]]()
    size = 0
    for number in range(keys):
        key, value = f"key {number:09}", values.randbytes(value_bytes)
        size += len(key) + len(value)
        waiting.append(cluster.put_async(key, value, timeout=60))
        if len(waiting) >= _IN_FLIGHT:
            waiting.popleft().result()
    for future in waiting:
        future.result()
    return size


def show_log(cluster: Cluster, replica_id: int) -> HTML:
    """What one replica's log holds now, and how large its directory is."""
    status = cluster.status()[replica_id]
    directory = cluster.data_dir / f"replica-{replica_id}" / "log"
    row = (
        f"replica {replica_id}",
        log_in_words(status),
        f"{status.applied_index:,}",
        in_bytes(disk_use(directory)),
    )
    return table("One log", ("", "entries", "state after entry", "log directory"), [row])


def compaction_record(cluster: Cluster, replica_id: int) -> bytes:
    """What a *stopped* replica has stored of its last compaction. ``DirectoryInUse`` if it runs."""
    log = RaftLog(cluster.data_dir / f"replica-{replica_id}" / "log")
    try:
        return log.compaction_record()
    finally:
        log.close()


def read_record(record: bytes) -> dict[str, Any]:
    """The record in words."""
    index, term, configurations, installing = msgspec.msgpack.decode(record)
    members = [configuration[1][0] for configuration in configurations]
    return {
        "last index that was dropped": index,
        "its term": term,
        "the members": members[-1],
        "a snapshot that may be half installed": installing,
    }


# Drawing


def log_in_words(status: ReplicaStatus) -> str:
    """``log 12 to 40``, or ``log empty, next is 41``."""
    if status.first_index > status.last_index:
        return f"log empty, next is {status.first_index:,}"
    return f"log {status.first_index:,} to {status.last_index:,}"


def as_html(text: str) -> HTML:
    """Shown as it is."""
    return HTML(text)  # type: ignore[no-untyped-call]


def in_bytes(size: int) -> str:
    """``23 B``, ``4.1 kB``, ``12.0 MB``."""
    if size < 1_000:
        return f"{size} B"
    return f"{size / 1e3:,.1f} kB" if size < 1_000_000 else f"{size / 1e6:,.1f} MB"


def in_seconds(seconds: float) -> str:
    """``0.4 ms``, ``1.20 s``."""
    return f"{seconds * 1e3:,.1f} ms" if seconds < 1 else f"{seconds:,.2f} s"


def table(caption: str, names: Sequence[str], rows: Sequence[Sequence[object]]) -> HTML:
    """A table with a heading for each column; the first cell of a row is its heading."""
    return as_html(picture.table(names, rows, caption))


def image(figure: Figure, words: str) -> HTML:
    """A matplotlib figure as the output of a cell, with ``words`` for those who cannot see it.

    In a white box, because its lines are made for one, in a dark theme too.
    """
    buffer = BytesIO()
    figure.savefig(buffer, format="svg")
    data = base64.b64encode(buffer.getvalue()).decode()
    return as_html(
        f'<img alt="{escape(words)}" style="max-width:100%;background:#fff" '
        f'src="data:image/svg+xml;base64,{data}">'
    )


_LINES = (
    ("state", "state on disk", "s-"),
    ("snapshot", "snapshot as a stream", "^:"),
    ("entries", "entries in the log", "D-."),
    ("dump", "dump of the state", "v--"),
    ("record", "compaction record", "o-"),
)
_TIMES = (
    ("dump_seconds", "dump the state", "v--"),
    ("prepare_seconds", "hold it still", "^:"),
    ("record_seconds", "compact the log", "o-"),
)


def plot_growth(found: Sequence[Sizes]) -> HTML:
    """Bytes and seconds as the number of keys grows, on logarithmic scales, and the same as a table."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(9.6, 4.2), layout="constrained")
    left, right = figure.subplots(1, 2)
    _draw(left, found, _LINES)
    left.set(title="How large it is", ylabel="bytes")
    _draw(right, found, _TIMES)
    right.set(title="How long it takes", ylabel="seconds")
    first, last = found[0], found[-1]
    words = f"From {first.keys:,} to {last.keys:,} keys: " + "; ".join(
        [f"{name} from {in_bytes(getattr(first, field))} to {in_bytes(getattr(last, field))}"
         for field, name, _ in _LINES]
        + [f"to {name} takes {in_seconds(getattr(first, field))}, then {in_seconds(getattr(last, field))}"
           for field, name, _ in _TIMES]
    )  # fmt: skip
    tables = [
        _growth_table("How large it is", found, _LINES, in_bytes),
        _growth_table("How long it takes", found, _TIMES, in_seconds),
    ]
    return as_html(image(figure, words + ".").data + "".join(each.data for each in tables))


def _growth_table(
    caption: str, found: Sequence[Sizes], lines: Sequence[tuple[str, str, str]], say: Callable[[Any], str]
) -> HTML:
    names = ["keys", *(name for _, name, _ in lines)]
    rows = [[f"{sizes.keys:,}", *(say(getattr(sizes, field)) for field, _, _ in lines)] for sizes in found]
    return table(caption, names, rows)


def _draw(axes: Axes, found: Sequence[Sizes], lines: Sequence[tuple[str, str, str]]) -> None:
    """One line each, told apart by its mark and its dashes too."""
    for field, name, style in lines:
        axes.plot(
            [sizes.keys for sizes in found], [getattr(sizes, field) for sizes in found], style, label=name
        )
    axes.set(xscale="log", yscale="log", xlabel="keys")
    axes.grid(alpha=0.3)
    axes.legend(fontsize="small")
