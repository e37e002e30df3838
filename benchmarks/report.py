"""What the benchmark prints: under which conditions, the tables, and whether the bars are met."""

from __future__ import annotations

import os
import platform
import statistics
import time
from collections.abc import Sequence
from importlib.metadata import version
from pathlib import Path
from typing import NamedTuple

import psutil

Round = dict[str, dict[str, dict[str, float]]]  # load: subject: what was measured


class Subject(NamedTuple):
    """Something that is measured. ``kind`` and ``layout`` say how the workers build it."""

    title: str
    kind: str  # ondisk, stock, stock-nobatch
    layout: str  # memory, tcp, processes


SUBJECTS = {
    "memory": Subject("Cluster in memory", "ondisk", "memory"),
    "tcp": Subject("Cluster on TCP", "ondisk", "tcp"),
    "processes": Subject("Node, three processes", "ondisk", "processes"),
    "stock": Subject("PySyncObj", "stock", "tcp"),
    "stock-nobatch": Subject("PySyncObj, no batching", "stock-nobatch", "tcp"),
    "stock-processes": Subject("PySyncObj, three processes", "stock", "processes"),
    "stock-nobatch-processes": Subject(
        "PySyncObj, no batching, three processes", "stock-nobatch", "processes"
    ),
}
LOADS = ("put-1", "put-64", "put-256", "get-1", "get-64", "stale-1")  # what, how many at once
DURABLE = """\
Durable before a put is answered
  ondisk     on disk, fsynced, in the Raft logs of a majority
  PySyncObj  written to the journals of a majority (a mapped file), never fsynced"""


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
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return "\n".join(
        "  " + "  ".join([row[0].ljust(widths[0]), *map(str.rjust, row[1:], widths[1:])]) for row in rows
    )


def tables(rounds: Sequence[Round], names: Sequence[str], seconds: float) -> str:
    """The figures, each as the median of the rounds with the lowest and the highest."""
    puts = [
        ("1: p50 ms", "put-1", "p50_ms"),
        ("1: p99 ms", "put-1", "p99_ms"),
        ("64 in flight: per s", "put-64", "per_second"),
        ("256 in flight: per s", "put-256", "per_second"),
    ]
    gets = [
        ("linearizable: p50 ms", "get-1", "p50_ms"),
        ("p99 ms", "get-1", "p99_ms"),
        ("64 threads: per s", "get-64", "per_second"),
        ("stale: per s", "stale-1", "per_second"),
    ]
    return (
        f"Median (lowest..highest) of {len(rounds)} rounds, {seconds:g} s for each figure\n\n"
        f"Puts: 16-byte keys (1,000 of them), 128-byte values\n{table(rounds, names, puts)}\n\n"
        f"Gets, in the process that leads; a stale one of stock is a look into its dict\n"
        f"{table(rounds, names, gets)}"
    )


class Verdict(NamedTuple):
    """Whether one of ours meets one bar, with the ratio of each round."""

    subject: str
    bar: str
    met: bool
    ratios: list[float]

    def __str__(self) -> str:
        met = "yes" if self.met else "NO"
        return f"{SUBJECTS[self.subject].title}: {self.bar}: {met} {_spread(self.ratios)}x"


def verdicts(rounds: Sequence[Round], names: Sequence[str]) -> list[Verdict]:
    """Ours against stock in as many processes, round by round."""
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
            found.append(Verdict(name, bar, statistics.median(throughputs) >= 5, throughputs))
        if latencies:
            bar = "time of one put <= 1.2x PySyncObj without batching"
            found.append(Verdict(name, bar, statistics.median(latencies) <= 1.2, latencies))
    return found
