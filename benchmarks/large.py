"""One measurement of a large state, in a process of its own, so that its memory is its own too.

``python -m benchmarks.large '{"measure": "snapshots", "keys": 1000000, ...}'`` prints one JSON line for each
figure, ``[row, column, value]``, and a string for what it is doing. ``MEASUREMENTS`` says what there is.
Keys have 16 bytes and values 128, random ones, which do not compress; every key is there once.
"""

from __future__ import annotations

import contextlib
import faulthandler
import itertools
import json
import multiprocessing
import os
import shutil
import signal
import sys
import threading
import time
import zlib
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, closing
from functools import partial
from io import FileIO
from pathlib import Path
from typing import Any

from benchmarks.beside import beside_etcd
from benchmarks.curves import curves
from benchmarks.instruments import (
    VALUE_BYTES,
    Order,
    Pair,
    Peak,
    figure,
    lasting,
    pairs,
    progress,
    resident,
    timed,
)
from benchmarks.scraped import scrape
from benchmarks.shares import shares
from benchmarks.small import failover, idle, simulator, slow_disks, stale
from benchmarks.worker import Ondisk, Stock, free_ports, puts
from ondisk import Cluster
from ondisk.diskkv import DiskKV, get, put, scan
from ondisk.observe import wait_until, wait_until_level
from ondisk.raft.log import RaftLog
from ondisk.raft.members import Members
from ondisk.snapshot.restore import import_snapshot
from ondisk.snapshot.stream import Chunk, Header, Writer, make_header, write_file
from ondisk.statemachine import Entry

BATCH = 2000  # keys in one update while a state is made
MARKS = 100  # keys that tell one state from another
IN_FLIGHT = 64
COMPACTIONS = 5  # in each round
RESTARTS = 2
ENDS_WITHIN = 600.0  # seconds; then it says where it hangs, and ends


# States


def load(machine: DiskKV, new: Iterable[Pair]) -> None:
    """What a replica does with puts: hand them over in batches."""
    index = machine.open()
    for batch in iter(lambda: list(itertools.islice(new, BATCH)), []):
        machine.update([Entry(index + i, put(key, value)) for i, (key, value) in enumerate(batch, 1)])
        index += len(batch)
    machine.sync()


def mark(machine: DiskKV, index: int, value: bytes) -> None:
    machine.update([Entry(index + i, put(f"mark-{i}", value)) for i in range(MARKS)])


def save(machine: DiskKV, path: Path) -> None:
    """Write a snapshot as the state machine makes it."""
    view = machine.prepare_snapshot()
    with closing(view), FileIO(path, "wb") as file:
        machine.save_snapshot(view, file, threading.Event())  # type: ignore[arg-type]
        os.fsync(file.fileno())


def export(machine: DiskKV, path: Path) -> None:
    """Write a snapshot as a replica exports it."""
    view = machine.prepare_snapshot()
    header = make_header(view.index, 1, Members((1,)))

    def write(put: Callable[[Chunk], None]) -> Header:
        writer = Writer(header, put)
        machine.save_snapshot(view, writer, threading.Event())
        writer.finish()
        return header

    with closing(view):
        write_file(path, write)


def prepared(order: Order, keys: int) -> Path:
    """A directory with a loaded state machine and its snapshot in a file, made by whoever needs it first.

    In another process, or what loading leaves in the memory of this one would count.
    """
    directory = order.prepared / str(keys)
    if not directory.exists():
        progress(f"loading {keys:,} keys")
        loading = multiprocessing.get_context("spawn").Process(target=prepare, args=(directory, keys))
        loading.start()
        loading.join()
        if loading.exitcode != 0:
            raise RuntimeError("the state could not be loaded")
    return directory


def prepare(directory: Path, keys: int) -> None:
    incomplete = directory.with_suffix(".incomplete")
    shutil.rmtree(incomplete, ignore_errors=True)
    with closing(DiskKV(incomplete / "state")) as machine:
        load(machine, itertools.islice(pairs(keys, keys), keys))
        export(machine, incomplete / "snapshot")
    incomplete.rename(directory)


def three_replicas(order: Order, keys: int, name: str) -> Path:
    """A directory for a cluster whose replicas hold ``keys`` keys."""
    import_snapshot(prepared(order, keys) / "snapshot", order.scratch / name)
    return order.scratch / name


def size_of(directory: Path) -> int:
    """Bytes of all files in a directory where files come and go."""
    total = 0
    for path in directory.rglob("*"):
        with contextlib.suppress(FileNotFoundError):
            total += path.stat().st_size
    return total


# Measurements


def snapshots(order: Order) -> None:
    """A state machine alone: save, recover and a plain copy of the same bytes; lookups during a recovery."""
    files = [order.scratch / "old", order.scratch / "new"]
    with (
        closing(DiskKV(prepared(order, order.keys) / "state")) as source,
        closing(DiskKV(order.scratch / "state")) as target,
    ):
        index = source.open()
        for file in files:
            mark(source, index + 1, file.name.encode())
            index += MARKS
            save(source, file)
        target.open()
        with files[0].open("rb") as stream:
            target.recover_from_snapshot(stream, threading.Event())
        figure("copy", "MB", files[0].stat().st_size / 1e6)
        with files[0].open("rb") as stream:
            sample = stream.read(8 << 20)
        figure("copy", "zlib leaves", len(zlib.compress(sample, 1)) / len(sample))

        def measure(row: str, do: Callable[[], object]) -> None:
            with Peak(resident) as memory:
                seconds = timed(do)
            figure(row, "s", seconds)
            figure(row, "M keys/s", order.keys / seconds / 1e6)
            figure(row, "memory grew MB", memory.growth)

        for number in range(1, order.rounds + 1):
            progress(f"round {number} of {order.rounds}")
            figure("copy", "s", timed(lambda: copy(files[0], order.scratch / "copy")))
            measure("save", lambda: save(source, order.scratch / "saved"))
            (order.scratch / "copy").unlink()
            (order.scratch / "saved").unlink()
            with files[1].open("rb") as stream:
                measure("recover", partial(target.recover_from_snapshot, stream, threading.Event()))
            with files[0].open("rb") as stream, Lookups(target) as lookups:
                measure(
                    "recover, asked meanwhile",
                    partial(target.recover_from_snapshot, stream, threading.Event()),
                )
            figure("recover, asked meanwhile", "lookups", lookups.asked)
            figure("recover, asked meanwhile", "wrong lookups", lookups.wrong)


def copy(source: Path, target: Path) -> None:
    with FileIO(source) as file, FileIO(target, "wb") as new:
        while piece := file.read(1 << 20):
            new.write(piece)
        os.fsync(new.fileno())


class Lookups:
    """Asks a state machine without a pause, and counts answers that no state would give."""

    def __init__(self, machine: DiskKV) -> None:
        self._machine = machine
        self._ended = threading.Event()
        self._seen: list[bytes] = []  # each state, when it was seen first
        self.asked = self.wrong = 0
        self._thread = threading.Thread(target=self._run)

    def _run(self) -> None:
        some_key = next(pairs(1, 0))[0]
        while not self._ended.is_set():
            self.asked += 1
            try:
                found = {value for _, value in self._machine.lookup(scan("mark-", limit=MARKS + 1))}
                if len(found) != 1 or self._machine.lookup(get(some_key)) is None:
                    self.wrong += 1
                elif self._seen[-1:] != [*found]:
                    self._seen.append(*found)
            except Exception as error:
                progress(f"a lookup failed: {error!r}")
                self.wrong += 1

    def __enter__(self) -> Lookups:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._ended.set()
        self._thread.join()
        if self._seen != [b"new", b"old"]:
            progress(f"lookups saw the states {self._seen}")
            self.wrong += 1


def streams(order: Order) -> None:
    """A cluster under puts, alone and while a snapshot is exported or a follower is fed."""
    for network in ("memory", "TCP"):
        directory = three_replicas(order, order.keys, network)
        with closing(Ondisk(directory, None, free_ports(3) if network == "TCP" else [])) as subject:
            put_beside_streams(order, subject, network)
        shutil.rmtree(directory)


def put_beside_streams(order: Order, subject: Ondisk, network: str) -> None:
    cluster = subject.cluster
    leader = cluster.wait_for_leader()
    followers = [member for member in cluster.members if member != leader]
    file = order.scratch / "exported"

    def do_without() -> None:
        cluster.stop(followers[0])
        time.sleep(order.seconds)
        cluster.start(followers[0])

    def feed() -> None:
        # Its state is lost, but not its log: without any memory it would keep quiet for three seconds first.
        cluster.stop(followers[0])
        shutil.rmtree(cluster.data_dir / f"replica-{followers[0]}" / "state")
        cluster.start(followers[0])
        wait_until(lambda: is_fed(cluster, followers[0], order.keys), "the follower is fed", 300)

    works: dict[str, Callable[[], object]] = {
        "leader exports": lambda: cluster.export_snapshot(leader, file),
        "follower exports": lambda: cluster.export_snapshot(followers[1], file),
        "follower is down": do_without,  # what the next one loses already by that
        "follower is fed": feed,
    }
    puts(subject, IN_FLIGHT, lasting(order.seconds))  # warms up
    with ThreadPoolExecutor(1) as pool:
        for number in range(1, order.rounds + 1):
            progress(f"{network}: round {number} of {order.rounds}")
            for what, do in works.items():
                row = f"{what}, {network}"
                if do is not do_without:
                    figure(row, "idle s", timed(do))
                alone = puts(subject, IN_FLIGHT, lasting(order.seconds))["per_second"]
                with Peak(resident) as memory:
                    work = pool.submit(timed, do)
                    meanwhile = puts(subject, IN_FLIGHT, lambda *_, work=work: work.done())["per_second"]
                figure(row, "busy s", work.result())
                figure(row, "memory grew MB", memory.growth)
                figure(row, "puts/s alone", alone)
                figure(row, "meanwhile", meanwhile)
                figure(row, "ratio", meanwhile / alone)


def is_fed(cluster: Cluster, member: int, index: int) -> bool:
    status = cluster.status()[member]
    return status.applied_index >= index and status.error is None and not status.streams


def two_sizes(order: Order, smaller: int) -> dict[str, Path]:
    """Directories for a cluster with a small state and one with all keys, by what their rows are called."""
    sizes = (max(1, order.keys // smaller), order.keys)
    return {f"{keys:,} keys": three_replicas(order, keys, str(keys)) for keys in sizes}


def compaction(order: Order) -> None:
    """Compact the leader's log, by as many entries, whatever the size of the state."""
    directories = two_sizes(order, 1000)
    with ExitStack() as stack:
        subjects = {
            size: stack.enter_context(closing(Ondisk(directory, None, [])))
            for size, directory in directories.items()
        }
        for _ in range(order.rounds * COMPACTIONS):
            small, large = (compact(size, subject) for size, subject in subjects.items())
            figure([*subjects][1], "ratio", large / small)
    for size, directory in directories.items():
        with closing(RaftLog(directory / "replica-1" / "log")) as log:
            figure(size, "record bytes", len(log.compaction_record()))


def compact(size: str, subject: Ondisk) -> float:
    leader = subject.cluster.wait_for_leader()
    puts(subject, IN_FLIGHT, lambda _, count: count >= 1000)
    wait_until_level(subject.cluster)
    first = subject.cluster.status()[leader].first_index
    start = time.perf_counter()
    base = subject.cluster.compact(leader)
    seconds = time.perf_counter() - start
    figure(size, "entries dropped", base + 1 - first)
    figure(size, "ms", 1000 * seconds)
    return seconds


def restart(order: Order) -> None:
    """All three replicas again after a stop or a power cut, until the first linearizable read."""
    directories = two_sizes(order, 100)
    for number in range(1, order.rounds * RESTARTS + 1):
        progress(f"round {number} of {order.rounds * RESTARTS}")
        for end in ("stop", "power cut"):
            took = []
            for size, directory in directories.items():
                with closing(Ondisk(directory, None, [])) as subject:
                    subject.cluster.wait_for_leader()
                    puts(subject, IN_FLIGHT, lambda _, count: count >= 2000)
                    if end == "power cut":
                        for member in subject.cluster.members:
                            subject.cluster.crash(member)
                start = time.perf_counter()
                with closing(Ondisk(directory, None, [])) as subject:
                    subject.cluster.get(b"%016d" % 0, timeout=60)
                    took.append(time.perf_counter() - start)
                figure(f"after a {end}", f"{size}: s", took[-1])
            figure(f"after a {end}", "ratio", took[1] / took[0])
    for smaller in (10, 1):
        restart_stock(order, max(1, order.keys // smaller))


def restart_stock(order: Order, keys: int) -> None:
    """The same once for stock PySyncObj with a dump file: until the first put, as it has no such reads."""
    directory = order.scratch / f"stock-{keys}"
    ports = free_ports(3)
    column = f"{keys:,} keys: s"

    def first_put(stock: Stock) -> None:
        wait_until(lambda: all(stock.look().values()), "PySyncObj has a leader", 300)
        puts(stock, 1, lambda *_: True)

    progress(f"PySyncObj dumps {keys:,} keys")
    with closing(Stock(directory, None, ports, batching=False)) as stock:
        first_put(stock)
        seconds = timed(lambda: stock.dump(itertools.islice(pairs(keys, keys), keys)))
        figure("PySyncObj compacts its log: one replica dumps", column, seconds)
    progress(f"PySyncObj starts with {keys:,} keys")
    start = time.perf_counter()
    with closing(Stock(directory, None, ports, batching=False)) as stock:
        first_put(stock)
        figure("PySyncObj, from its dump", column, time.perf_counter() - start)
        if len(stock.stale_get(b"%016d" % 0) or b"") != VALUE_BYTES:
            raise RuntimeError("PySyncObj came back without its data")
    shutil.rmtree(directory)


def resident_memory(order: Order) -> None:
    """Three replicas in one process, which hold all keys, and are asked for many of them."""
    with Peak(resident) as memory:
        directory = three_replicas(order, order.keys, "cluster")
        with closing(Ondisk(directory, None, [])) as subject:
            some_pairs = pairs(order.keys, order.keys + 1)
            figure(
                "three replicas",
                "puts/s",
                puts(subject, 256, lasting(order.seconds * 5), some_pairs)["per_second"],
            )
            ask_everybody(order, subject.cluster)
            figure("three replicas", "MB resident at the end", resident())
    figure("three replicas", "MB resident before", memory.before)
    figure("three replicas", "MB resident at most", memory.highest)


def ask_everybody(order: Order, cluster: Cluster) -> None:
    for member in cluster.members:
        for key, _ in itertools.islice(pairs(order.keys, 0), min(order.keys, 20_000)):
            if cluster.stale_get(key, via=member) is None:
                raise RuntimeError(f"{key!r} is missing")


def growth(order: Order) -> None:
    """An empty cluster takes in every key by a put; empty members join on the way."""
    before = resident()
    joins = {max(1, order.keys // 10): 4, order.keys: 5}
    directory = order.scratch / "cluster"
    with ExitStack() as stack:
        subject = stack.enter_context(closing(Ondisk(directory, None, [])))
        memory = stack.enter_context(Peak(resident, 0.02))
        logs = stack.enter_context(
            Peak(lambda: max(size_of(path) for path in directory.glob("replica-[123]/log")) / 1e6, 0.1)
        )
        subject.cluster.wait_for_leader()
        new = pairs(order.keys, order.keys)
        loaded, putting = 0, 0.0
        for keys, member in joins.items():
            while loaded < keys:
                some = min(keys - loaded, max(1, order.keys // 10))
                putting += timed(lambda some=some: puts(subject, 256, lambda _, n: n >= some, new))  # type: ignore[misc]
                loaded += some
                progress(f"{loaded:,} of {order.keys:,} keys put, {resident():.0f} MB resident")
            seconds = timed(lambda member=member: subject.cluster.add_replica(member, timeout=300))  # type: ignore[misc]
            figure("an empty member joins", f"{keys:,} keys: s", seconds)
            figure("three replicas", f"{keys:,} keys: MB resident", resident())
            subject.cluster.remove_replica(member)
        figure("three replicas", "puts/s", order.keys / putting)
        ask_everybody(order, subject.cluster)
        figure("three replicas", "MB resident at the end", resident())
    figure("three replicas", "MB resident at most", memory.highest)
    figure("three replicas", "MB resident before", before)
    figure("three replicas", "a log: MB on disk at most", logs.highest)


MEASUREMENTS: dict[str, Callable[[Order], None]] = {
    "snapshots": snapshots,
    "streams": streams,
    "compaction": compaction,
    "restart": restart,
    "resident": resident_memory,
    "growth": growth,
    "beside-etcd": beside_etcd,
    "failover": failover,
    "slow-disks": slow_disks,
    "stale": stale,
    "scrape": scrape,
    "idle": idle,
    "simulator": simulator,
    "shares": shares,
    "curves": curves,
}


def main() -> None:
    """Measure what the argument says. SIGTERM breaks it off, but closes what is open."""
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(1))
    faulthandler.dump_traceback_later(ENDS_WITHIN, exit=True)
    given: dict[str, Any] = json.loads(sys.argv[1])
    order = Order(**{**given, "prepared": Path(given["prepared"]), "scratch": Path(given["scratch"])})
    order.prepared.mkdir(parents=True, exist_ok=True)
    order.scratch.mkdir(parents=True)
    try:
        MEASUREMENTS[order.measure](order)
    finally:
        shutil.rmtree(order.scratch, ignore_errors=True)


if __name__ == "__main__":
    main()
