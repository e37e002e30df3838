"""Is this machine fast enough? Its disk and its loopback, measured, and what follows for a group.

After etcd's ``check perf``. All is done in a directory of its own, below the one that is named, which is
deleted at the end. Three replicas in one process share one disk here: three machines have one each.
"""

from __future__ import annotations

import math
import os
import shutil
import socket
import tempfile
import threading
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import psutil

from ondisk.cluster import Cluster
from ondisk.errors import ConfigurationError, OndiskError, StorageError
from ondisk.net.tcp import TcpNetwork
from ondisk.raft import Timing
from ondisk.storage.errors import disk_errors
from ondisk.storage.paths import resolved

SECONDS = 60.0
FREE_BYTES = 1 << 30  # that must be there: the disk is not to become full by this
IN_FLIGHT = 64

_BLOCK, _FILE_BYTES = 1 << 20, 256 << 20  # of what is written in sequence, again and again
_RECORD = 4096  # bytes before each fsync, about what a step with a few dozen small puts has
_KEYS, _VALUE_BYTES = 1000, 128
_PUT_WITHIN = 10.0  # seconds
_MEMORY = ("tmpfs", "ramfs")

# What each measurement gets of the time.
_SHARES = {"fsync": 0.3, "sequential write": 0.1, "loopback": 0.1, "put": 0.25, "puts in flight": 0.25}

Tell = Callable[[str, float], object]  # what is being measured, and how much of all is done, from 0 to 1


class Latency(NamedTuple):
    """Of many operations of one kind, in milliseconds."""

    operations: int
    per_second: float
    p50_ms: float
    p99_ms: float
    worst_ms: float


class Finding(NamedTuple):
    """One sentence of the verdict, and whether it is good."""

    ok: bool
    text: str


@dataclass
class Performance:
    """What was measured. What is missing was not reached, or failed: ``failure``."""

    directory: str
    file_system: str
    load_average: float
    fsync: Latency | None = None
    write_mb_per_second: float | None = None
    loopback: Latency | None = None
    put: Latency | None = None
    puts_in_flight: Latency | None = None
    failure: str | None = None
    findings: list[Finding] = field(default_factory=list)

    @property
    def ok(self) -> bool:
        """Whether nothing was found that would trouble a group."""
        return all(finding.ok for finding in self.findings)

    def as_json(self) -> dict[str, Any]:
        """All of it, for a program."""
        found = asdict(self)
        for name, value in found.items():
            if isinstance(value := getattr(self, name), Latency):
                found[name] = value._asdict()
        return {**found, "findings": [each._asdict() for each in self.findings], "ok": self.ok}


def check_perf(path: Path | str, *, seconds: float = SECONDS, tell: Tell = lambda *_: None) -> Performance:
    """Measure for so many seconds, in a directory that exists and is written to.

    Raises ``ConfigurationError`` for a path or a time that makes no sense, and ``StorageError`` if the disk
    refuses.
    """
    if not isinstance(seconds, int | float) or not 0 < seconds <= 3600:  # type: ignore[redundant-expr]
        raise ConfigurationError(f"a check takes from 0 to 3600 seconds, not {seconds!r:.60}")
    directory = _checked(path)
    found = Performance(str(directory), _file_system(directory), os.getloadavg()[0])
    clock = _Clock(seconds, tell)
    with _scratch(directory) as scratch:
        with disk_errors(scratch):
            with clock.part("fsync") as going:
                found.fsync = _fsync(scratch, going)
            with clock.part("sequential write") as going:
                found.write_mb_per_second = _write(scratch, going)
        with clock.part("loopback") as going:
            found.loopback = _loopback(going)
        try:
            with Cluster(scratch / "replicas", network=TcpNetwork(_free_addresses(3))) as cluster:
                cluster.put("warm", "up", timeout=_PUT_WITHIN)
                with clock.part("put") as going:
                    found.put = _puts(cluster, going, 1)
                with clock.part("puts in flight") as going:
                    found.puts_in_flight = _puts(cluster, going, IN_FLIGHT)
        except OndiskError as error:
            found.failure = f"{type(error).__name__}: {error}"
    found.findings = list(verdict(found))
    return found


# The verdict


def verdict(found: Performance, timing: Timing | None = None) -> Iterator[Finding]:
    """What the figures mean for a group with this timing."""
    timing = timing or Timing()
    if found.load_average > (cpus := os.cpu_count() or 1):
        yield Finding(
            True, f"the machine is busy, so expect better figures of a quiet one ({cpus} processors)"
        )
    if found.file_system in _MEMORY:
        yield Finding(False, f"the directory is in memory ({found.file_system}): a power cut loses it all")
    if found.fsync is not None:
        yield from _about_the_disk(found.fsync, timing)
    if (speed := found.write_mb_per_second) is not None:
        took = 1000 / speed
        yield Finding(
            speed >= 20,
            f"it writes {speed:,.0f} MB/s: a replica needs {took:,.0f} s to take in 1 GB of state",
        )
    if (loopback := found.loopback) is not None:
        yield Finding(
            loopback.p99_ms <= 1000 * timing.heartbeat / 2,
            f"a round trip on loopback takes {_ms(loopback.p50_ms)}, p99 {_ms(loopback.p99_ms)}",
        )
    if found.failure is not None:
        yield Finding(False, f"three replicas did not work here: {found.failure}")
    if (put := found.put) is not None:
        yield Finding(
            put.p99_ms <= 100, f"a put to three replicas takes {_ms(put.p50_ms)}, p99 {_ms(put.p99_ms)}"
        )
    if (puts := found.puts_in_flight) is not None:
        yield Finding(
            puts.per_second >= 1000,
            f"{puts.per_second:,.0f} puts/s with {IN_FLIGHT} under way, p99 {_ms(puts.p99_ms)}",
        )


def _about_the_disk(fsync: Latency, timing: Timing) -> Iterator[Finding]:
    share = fsync.p99_ms / (1000 * timing.election_min)
    yield Finding(
        fsync.p99_ms <= 10,  # what etcd asks of a disk
        f"an fsync takes {_ms(fsync.p50_ms)}, p99 {_ms(fsync.p99_ms)}: {100 * share:.2g} % of election_min "
        f"({timing.election_min:g} s)",
    )
    needed = least_election_timeout(fsync, timing)
    stands = needed <= timing.election_min
    told = "a leader keeps its place over that" if stands else "it may cost a leader its place"
    advice = "" if stands else f": Timing(election_min={needed:g}, election_max={2 * needed:g})"
    yield Finding(
        stands,
        f"the longest of {fsync.operations:,} took {_ms(fsync.worst_ms)}, {told}: this disk needs an "
        f"election_min of {needed:g} s at least{advice}",
    )


def least_election_timeout(fsync: Latency, timing: Timing) -> float:
    """A heartbeat, and twice the longest stall that was seen: a step of the leader and one of a follower."""
    return math.ceil(10 * (timing.heartbeat + 2 * fsync.worst_ms / 1000)) / 10


def _ms(value: float) -> str:
    return f"{value:,.2f} ms" if value < 10 else f"{value:,.0f} ms"


# Where


def _checked(path: Path | str) -> Path:
    directory = resolved(path, "a directory to check")
    if not directory.exists():
        raise ConfigurationError(
            f"{directory}: there is no such directory. Name the one that data is kept in"
        )
    if not directory.is_dir():
        raise ConfigurationError(f"{directory}: is no directory")
    if (free := shutil.disk_usage(directory).free) < FREE_BYTES:
        raise StorageError(
            f"{directory}: {free / 1e6:,.0f} MB are free, and a check wants {FREE_BYTES / 1e6:,.0f} MB, so "
            "that it fills no disk"
        )
    return directory


@contextmanager
def _scratch(directory: Path) -> Iterator[Path]:
    try:
        temporary = tempfile.TemporaryDirectory(prefix="ondisk-check-", dir=directory)
    except OSError as error:
        raise StorageError(f"{directory}: cannot be written to ({error.strerror})") from None
    with temporary as name:
        yield Path(name)


def _file_system(directory: Path) -> str:
    """Its type, as the kernel names it."""
    holders = [
        (len(part.mountpoint), part.fstype)
        for part in psutil.disk_partitions(all=True)
        if directory.is_relative_to(part.mountpoint)
    ]
    return max(holders)[1] if holders else "unknown"


# How long


class _Clock:
    """Divides the time, and tells how much of it has passed."""

    def __init__(self, seconds: float, tell: Tell) -> None:
        self._seconds = seconds
        self._tell = tell
        self._done = 0.0

    @contextmanager
    def part(self, what: str) -> Iterator[Callable[[], bool]]:
        """A function that says whether there is time left for this part."""
        share = _SHARES[what]
        start = time.perf_counter()
        told = 0.0

        def going() -> bool:
            nonlocal told
            passed = time.perf_counter() - start
            if passed - told >= 0.1:
                told = passed
                self._tell(what, self._done + min(share, passed / self._seconds))
            return passed < share * self._seconds

        self._tell(what, self._done)
        yield going
        self._done += share
        self._tell(what, self._done)


# The measurements


def _latency(took: Iterable[float], seconds: float) -> Latency:
    in_order = sorted(1000 * each for each in took)
    count = len(in_order)
    return Latency(count, count / seconds, in_order[count // 2], in_order[count * 99 // 100], in_order[-1])


def _timed(do: Callable[[], object], going: Callable[[], bool]) -> Latency:
    took = []
    start = now = time.perf_counter()
    while True:
        do()
        before, now = now, time.perf_counter()
        took.append(now - before)
        if not going():
            return _latency(took, now - start)
        now = time.perf_counter()


def _fsync(scratch: Path, going: Callable[[], bool]) -> Latency:
    """As a log does it: a record at the end of a file, then wait for the disk."""
    with (scratch / "fsync").open("wb", buffering=0) as file:
        record = os.urandom(_RECORD)

        def append() -> None:
            if file.tell() >= _FILE_BYTES:
                file.seek(0)
            file.write(record)
            os.fsync(file.fileno())

        found = _timed(append, going)
    (scratch / "fsync").unlink()
    return found


def _write(scratch: Path, going: Callable[[], bool]) -> float:
    """MB/s, with what it takes until they are durable."""
    written = 0
    block = os.urandom(_BLOCK)
    start = time.perf_counter()
    with (scratch / "sequential").open("wb", buffering=0) as file:
        while True:
            written += file.write(block)
            if file.tell() % (16 * _BLOCK) == 0:
                os.fsync(file.fileno())
            if file.tell() >= _FILE_BYTES:
                file.seek(0)
            if not going():
                break
        os.fsync(file.fileno())
    (scratch / "sequential").unlink()
    return written / (time.perf_counter() - start) / 1e6


def _loopback(going: Callable[[], bool]) -> Latency:
    """One byte there and back, over TCP, to another thread."""
    with ExitStack() as opened:
        listener = opened.enter_context(socket.create_server(("127.0.0.1", 0)))
        here = opened.enter_context(socket.create_connection(listener.getsockname(), timeout=_PUT_WITHIN))
        there = opened.enter_context(listener.accept()[0])
        here.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        there.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)

        def echo() -> None:
            while data := there.recv(1):
                there.sendall(data)

        thread = threading.Thread(target=echo, daemon=True)
        thread.start()

        def there_and_back() -> None:
            here.sendall(b"x")
            here.recv(1)

        try:
            return _timed(there_and_back, going)
        finally:
            here.shutdown(socket.SHUT_WR)
            thread.join(_PUT_WITHIN)


def _puts(cluster: Cluster, going: Callable[[], bool], in_flight: int) -> Latency:
    """Puts of 128 bytes to a thousand keys, so many of them under way."""
    value = os.urandom(_VALUE_BYTES)
    under_way: deque[tuple[float, Any]] = deque()
    took: list[float] = []
    start = time.perf_counter()
    number = 0
    more = True
    while more or under_way:
        while more and len(under_way) < in_flight:
            began = time.perf_counter()
            future = cluster.put_async(b"%016d" % (number % _KEYS), value, timeout=_PUT_WITHIN)
            under_way.append((began, future))
            number += 1
        began, oldest = under_way.popleft()
        oldest.result(2 * _PUT_WITHIN)
        took.append(time.perf_counter() - began)
        more = more and going()
    return _latency(took, time.perf_counter() - start)


def _free_addresses(count: int) -> dict[int, tuple[str, int]]:
    """Ports on loopback that nobody uses now."""
    with ExitStack() as opened:
        found = [opened.enter_context(socket.create_server(("127.0.0.1", 0))) for _ in range(count)]
        return {number: each.getsockname() for number, each in enumerate(found, 1)}
