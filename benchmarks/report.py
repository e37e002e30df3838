"""What the benchmark prints: under which conditions, the tables, and whether the bars are met."""

from __future__ import annotations

import os
import platform
import statistics
import time
from collections.abc import Callable, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import NamedTuple

import psutil

Round = dict[str, dict[str, dict[str, float]]]  # load: subject: what was measured
Figures = dict[str, dict[str, list[float]]]  # row: column: one figure for each round


class Subject(NamedTuple):
    """Something that is measured. ``kind`` and ``layout`` say how the workers build it."""

    title: str
    kind: str  # ondisk, one-thread, stock, stock-nobatch, etcd
    layout: str  # memory, tcp, processes


SUBJECTS = {
    "memory": Subject("Cluster in memory", "ondisk", "memory"),
    "tcp": Subject("Cluster on TCP", "ondisk", "tcp"),
    "processes": Subject("Node, three processes", "ondisk", "processes"),
    "one-thread": Subject("One thread, nothing else", "one-thread", "memory"),
    "stock": Subject("PySyncObj", "stock", "tcp"),
    "stock-nobatch": Subject("PySyncObj, no batching", "stock-nobatch", "tcp"),
    "stock-processes": Subject("PySyncObj, three processes", "stock", "processes"),
    "stock-nobatch-processes": Subject(
        "PySyncObj, no batching, three processes", "stock-nobatch", "processes"
    ),
    "etcd": Subject("etcd, three processes", "etcd", "tcp"),
}
LOADS = (
    "put-1",
    "put-64",
    "put-256",
    "get-1",
    "get-64",
    "threads-64",
    "stale-1",
    "bulk-1",
)  # what, how many at once
LINEARIZABLE = ("ondisk", "etcd")  # the kinds that are asked to get


def is_asked(kind: str, load: str) -> bool:
    """Whether a load is for a kind of subject."""
    do = load.partition("-")[0]
    if kind == "one-thread":
        return do == "bulk"
    if do == "bulk":
        return kind == "ondisk"
    if do == "threads":  # etcd's gets in flight are in 64 goroutines anyway
        return kind == "ondisk"
    return do != "get" or kind in LINEARIZABLE


LARGE = {
    "snapshots": "A state machine saves and recovers its state; beside it a copy of the same bytes",
    "streams": "A cluster with 64 puts in flight, while a replica exports its state or is fed with another's",
    "compaction": "A leader compacts its log",
    "restart": "All three replicas start again: until the first linearizable read (PySyncObj: the first put)",
    "resident": "Three replicas in one process, overwritten and asked at random",
    "growth": "An empty cluster takes in every key by a put, 256 in flight",
    "beside-etcd": "The same keys in etcd's three members and in three replicas of one process",
    "failover": "The leader goes",
    "slow-disks": "Every fsync takes 5 ms",
    "stale": "Stale gets, and gets of the same RocksDB without anything around it",
    "scrape": "A leader's /metrics is asked for while puts are in flight",
    "idle": "A notebook's kernel with three replicas that nobody asks anything",
    "simulator": "Seeds with all faults and all checks",
    "shares": "Where the processor time of a put goes, three replicas in one process, in microseconds",
    "curves": "One thing changes, all else stays: three replicas in memory, 64 in flight (values: 16)",
}
WITHOUT_KEYS = ("failover", "slow-disks", "stale", "scrape", "idle", "simulator", "shares")
DURABLE = """\
Durable before a put is answered
  ondisk     on disk, fsynced, in the Raft logs of a majority
  etcd       on disk, fsynced, in the Raft logs of a majority
  PySyncObj  written to the journals of a majority (a mapped file), never fsynced
The one thread writes what a bulk load writes: to three logs with fsync and to three states, in turn."""


def file_system(path: Path) -> str:
    """The type of the file system that holds a directory, as the kernel names it."""
    holders = [
        (len(part.mountpoint), part.fstype)
        for part in psutil.disk_partitions(all=True)
        if path.resolve().is_relative_to(part.mountpoint)
    ]
    return max(holders)[1] if holders else "unknown"


def _fsync_latency(directory: Path, times: int = 200) -> str:
    took = []
    descriptor = os.open(directory / "fsync", os.O_WRONLY | os.O_CREAT)
    for _ in range(times):
        start = time.perf_counter()
        os.pwrite(descriptor, bytes(4096), 0)
        os.fsync(descriptor)
        took.append(1000 * (time.perf_counter() - start))
    os.close(descriptor)
    p99 = sorted(took)[times * 99 // 100]
    return f"median {statistics.median(took):.2f} ms, p99 {p99:.2f} ms ({times} times)"


def _cpu_model() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        lines = []
    models = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return models[0] if models else platform.processor() or platform.machine()


def load_average() -> str:
    """Over 1, 5 and 15 minutes."""
    return ", ".join(f"{load:.2f}" for load in os.getloadavg())


def conditions(directory: Path) -> dict[str, str]:
    """Everything about this machine and moment that the figures depend on."""
    packages = [f"{name} {version(name)}" for name in ("ondisk", "pysyncobj", "rocksdict", "msgspec")]
    return {
        "date": time.strftime("%Y-%m-%d %H:%M %Z"),
        "versions": ", ".join([f"Python {platform.python_version()}", *packages]),
        "machine": f"{os.cpu_count()} x {_cpu_model()}, {platform.system()} {platform.release()}",
        "load average": load_average(),
        "data directory": f"{directory.parent} ({file_system(directory)})",
        "fsync of 4 KB": _fsync_latency(directory),
    }


def _spread(values: Sequence[float]) -> str:
    """Median and range, with as many digits as mean something."""
    digits = 2 if max(values) < 10 else 1 if max(values) < 100 else 0
    middle, low, high = (
        f"{value:,.{digits}f}" for value in (statistics.median(values), min(values), max(values))
    )
    return middle if len(values) == 1 else f"{middle} ({low}..{high})"


def table(rounds: Sequence[Round], names: Sequence[str], columns: Sequence[tuple[str, str, str]]) -> str:
    """One line for each subject; a column is its heading, a load, and what to show of it."""
    rows = [["", *(heading for heading, _, _ in columns)]]
    for name in names:
        row = []
        for _, load, what in columns:
            values = [cells[load][name][what] for cells in rounds if name in cells.get(load, {})]
            row.append(_spread(values) if values else "-")
        rows.append([SUBJECTS[name].title, *row])
    return _layout(rows)


def _layout(rows: Sequence[Sequence[str]]) -> str:
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return "\n".join(
        "  " + "  ".join([row[0].ljust(widths[0]), *map(str.rjust, row[1:], widths[1:])]).rstrip()
        for row in rows
    )


def large_table(name: str, figures: Figures, keys: int) -> str:
    """What one measurement of a large state has found."""
    columns = list(dict.fromkeys(column for row in figures.values() for column in row))
    over = f"; {keys:,} keys" if name not in WITHOUT_KEYS else ""
    rows = [["", *columns]]
    for row, found in figures.items():
        rows.append([row, *(_spread(found[column]) if column in found else "-" for column in columns)])
    return f"{name}: {LARGE[name]}{over}\n{_layout(rows)}\n"


def tables(rounds: Sequence[Round], names: Sequence[str], seconds: float) -> str:
    """The figures, each as the median of the rounds with the lowest and the highest."""
    puts = [
        ("1: p50 ms", "put-1", "p50_ms"),
        ("1: p99 ms", "put-1", "p99_ms"),
        ("64 in flight: per s", "put-64", "per_second"),
        ("256 in flight: per s", "put-256", "per_second"),
        ("bulk load: per s", "bulk-1", "per_second"),
    ]
    gets = [
        ("linearizable: p50 ms", "get-1", "p50_ms"),
        ("p99 ms", "get-1", "p99_ms"),
        ("64 in flight: per s", "get-64", "per_second"),
        ("64 threads: per s", "threads-64", "per_second"),
        ("stale: per s", "stale-1", "per_second"),
    ]
    return (
        f"Median (lowest..highest) of {len(rounds)} rounds, {seconds:g} s for each figure\n\n"
        f"Puts: 16-byte keys (1,000 of them), 128-byte values\n{table(rounds, names, puts)}\n\n"
        f"Gets, in the process that leads; a stale one of stock is a look into its dict\n"
        f"{table(rounds, names, gets)}"
    )


class Verdict(NamedTuple):
    """Whether something meets one bar, with what was found in each round."""

    subject: str
    bar: str
    met: bool
    found: list[float]

    def __str__(self) -> str:
        return f"{self.subject}: {self.bar}: {'yes' if self.met else 'NO'}, {_spread(self.found)}"


class Bar(NamedTuple):
    """What one column of a measurement shall be, in one row or in all. ``judge`` makes one of many rounds."""

    measurement: str
    row: str | None
    column: str
    text: str
    holds: Callable[[float], bool]
    judge: Callable[[Sequence[float]], float] = max


def _p99(values: Sequence[float]) -> float:
    return sorted(values)[len(values) * 99 // 100]


_WITH_PANEL = "three replicas and a panel"

BARS = (
    Bar("snapshots", "save", "M keys/s", "M keys/s >= 1.8", lambda x: x >= 1.8, statistics.median),
    Bar("snapshots", "recover", "M keys/s", "M keys/s >= 1.4", lambda x: x >= 1.4, statistics.median),
    Bar("snapshots", None, "memory grew MB", "memory grows by <= 64 MB", lambda x: x <= 64),
    Bar("snapshots", None, "wrong lookups", "no lookup fails or is wrong", lambda x: x == 0),
    Bar("streams", None, "ratio", "puts/s >= 0.5x those alone", lambda x: x >= 0.5, statistics.median),
    Bar("streams", None, "memory grew MB", "memory grows by <= 64 MB", lambda x: x <= 64),
    Bar("compaction", None, "ratio", "time <= 1.5x the small state's", lambda x: x <= 1.5, statistics.median),
    Bar("compaction", None, "record bytes", "the record has < 4096 bytes", lambda x: x < 4096),
    Bar("restart", None, "ratio", "time <= 1.5x the small state's", lambda x: x <= 1.5, statistics.median),
    Bar("resident", None, "MB resident at most", "resident memory <= 450 MB", lambda x: x <= 450),
    Bar("growth", None, "MB resident at most", "resident memory <= 450 MB", lambda x: x <= 450),
    Bar("failover", None, "election timeouts", "half of them <= 2", lambda x: x <= 2, statistics.median),
    Bar("failover", None, "election timeouts", "99 of 100 <= 2", lambda x: x <= 2, _p99),
    Bar("slow-disks", None, "in fsyncs", "one put <= 1.3 fsyncs", lambda x: x <= 1.3, statistics.median),
    Bar("slow-disks", None, "of 256 a fsync", ">= 0.7 of 256 a fsync", lambda x: x >= 0.7, statistics.median),
    Bar("stale", None, "ratio", ">= 0.6x bare rocksdict", lambda x: x >= 0.6, statistics.median),
    Bar("scrape", None, "% lost to one a second", "<= 1 % of puts", lambda x: x <= 1, statistics.median),
    Bar("idle", "three replicas", "% of a core", "<= 2 % of a core", lambda x: x <= 2, statistics.median),
    Bar("idle", _WITH_PANEL, "% of a core", "<= 6 % of a core", lambda x: x <= 6, statistics.median),
    Bar("simulator", None, "virtual s/s", ">= 300 virtual s/s", lambda x: x >= 300, statistics.median),
)


def _beside_etcd(figures: Figures) -> list[Verdict]:
    """Ours against etcd, where both were measured."""
    ours, others = figures.get("ondisk", {}), figures.get("etcd", {})
    found = []
    if "starts again: s" in others and "starts again: s" in ours:
        times = statistics.median(others["starts again: s"]) / statistics.median(ours["starts again: s"])
        found.append(Verdict("beside-etcd", "starts again >= 10 times as fast", times >= 10, [times]))
        [one], [three] = others["a member: MB resident"], ours["three replicas: MB resident"]
        bar = "three replicas <= the memory of one member"
        found.append(Verdict("beside-etcd", bar, three <= one, [three / one]))
    return found


def large_verdicts(large: dict[str, Figures]) -> list[Verdict]:
    """What was measured beside the bars."""
    return _beside_etcd(large.get("beside-etcd", {})) + [
        Verdict(f"{name}, {row}", bar.text, bar.holds(bar.judge(found[bar.column])), found[bar.column])
        for name, figures in large.items()
        for bar in BARS
        for row, found in figures.items()
        if bar.measurement == name and bar.row in (None, row) and bar.column in found
    ]


class Against(NamedTuple):
    """What one figure of ours shall be, as a multiple of another one's in the same round."""

    subject: str
    load: str
    figure: str
    at_most: float | None = None
    at_least: float | None = None
    other: str = "etcd"
    other_load: str | None = None  # if it is not the same

    def verdict(self, rounds: Sequence[Round]) -> Verdict | None:
        """``None`` if the two were not measured beside each other."""
        other_load = self.other_load or self.load
        found = [
            cells[self.load][self.subject][self.figure] / cells[other_load][self.other][self.figure]
            for cells in rounds
            if self.subject in cells.get(self.load, {}) and self.other in cells.get(other_load, {})
        ]
        if not found:
            return None
        middle = statistics.median(found)
        if self.at_most is not None:
            bar, met = f"<= {self.at_most:g}x", middle <= self.at_most
        else:
            assert self.at_least is not None
            bar, met = f">= {self.at_least:g}x", middle >= self.at_least
        than = self.other if other_load == self.load else f"{self.other}'s {other_load}"
        return Verdict(SUBJECTS[self.subject].title, f"{self.load}, {self.figure} {bar} {than}", met, found)


AGAINST = (
    Against("memory", "put-1", "p50_ms", at_most=0.7),
    Against("memory", "put-64", "per_second", at_least=4),
    Against("memory", "put-256", "per_second", at_least=5),
    Against("memory", "get-1", "p50_ms", at_most=0.4),
    Against("memory", "get-64", "per_second", at_least=4),
    Against("processes", "put-1", "p50_ms", at_most=0.9),
    Against("processes", "put-64", "per_second", at_least=2.5),
    Against("processes", "put-256", "per_second", at_least=3),
    Against("memory", "bulk-1", "per_second", at_least=8, other_load="put-256"),
    Against("memory", "bulk-1", "per_second", at_least=0.7, other="one-thread"),
)


def verdicts(rounds: Sequence[Round], names: Sequence[str]) -> list[Verdict]:
    """Ours against the others, round by round."""
    against = [each.verdict(rounds) for each in AGAINST]
    return [*_against_stock(rounds, names), *(each for each in against if each is not None)]


def _against_stock(rounds: Sequence[Round], names: Sequence[str]) -> list[Verdict]:
    """Against PySyncObj in as many processes."""
    found = []
    for name in names:
        if SUBJECTS[name].kind != "ondisk":
            continue
        suffix = "-processes" if SUBJECTS[name].layout == "processes" else ""
        stock, stock_nobatch = f"stock{suffix}", f"stock-nobatch{suffix}"
        everybody = {name, stock, stock_nobatch}
        throughputs, latencies = [], []
        for cells in rounds:
            if everybody <= (of := cells.get("put-256", {})).keys():
                better = max(of[stock]["per_second"], of[stock_nobatch]["per_second"])
                throughputs.append(of[name]["per_second"] / better)
            if everybody <= (of := cells.get("put-1", {})).keys():
                latencies.append(of[name]["p50_ms"] / of[stock_nobatch]["p50_ms"])
        if throughputs:
            bar = "puts/s with 256 in flight >= 5x the better PySyncObj"
            found.append(Verdict(SUBJECTS[name].title, bar, statistics.median(throughputs) >= 5, throughputs))
        if latencies:
            bar = "time of one put <= 1.2x PySyncObj without batching"
            found.append(Verdict(SUBJECTS[name].title, bar, statistics.median(latencies) <= 1.2, latencies))
    return found
