"""Measure ondisk beside stock PySyncObj and etcd, interleaved in rounds, in one run.

A machine's speed drifts, so only what ran side by side is compared: each round measures every subject under
one load, then under the next, and the verdicts are medians of ratios within a round. Then come the
measurements of a large state, one after the other, each in a process of its own.
"""

from __future__ import annotations

import argparse
import json
import os
import select
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

from benchmarks import etcd, report
from benchmarks.report import LARGE, LOADS, SUBJECTS, Figures, Round, Subject, is_asked
from benchmarks.worker import free_ports

READY_WITHIN = 30.0  # seconds; stock tries a lost connection again after 5
CLOSE_WITHIN = 15.0
ANSWER_WITHIN = 60.0  # beyond the time of the load
SETTLE = 0.2  # between two measurements, for what the last one left to do
SETTLE_AFTER_BULK = 3.0  # RocksDB compacts what a bulk load has left


class Worker:
    """A process that runs ``worker.py``."""

    def __init__(self, order: dict[str, Any], log: Path) -> None:
        self._log = log
        with log.open("wb") as stderr:
            self._process = subprocess.Popen(
                [sys.executable, "-m", "benchmarks.worker", json.dumps(order)],
                cwd=Path(__file__).parents[1],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=stderr,
                start_new_session=True,  # Ctrl-C is for the parent, and a hanging one can be killed whole
            )
        assert self._process.stdin is not None and self._process.stdout is not None
        self._stdin, self._stdout = self._process.stdin, self._process.stdout

    def ask(self, do: str, at_once: int = 0, seconds: float = 0.0) -> dict[str, Any]:
        """Send one request and wait for its answer. Raises ``RuntimeError`` if it failed."""
        answer = b""
        try:
            self._stdin.write(json.dumps([do, at_once, seconds]).encode() + b"\n")
            self._stdin.flush()
            if select.select([self._stdout], [], [], seconds + ANSWER_WITHIN)[0]:
                answer = self._stdout.readline()
        except BrokenPipeError:
            pass
        if not answer:
            raise RuntimeError(f"a worker ended or hangs\n{self._log.read_text()[-2000:]}")
        told: dict[str, Any] = json.loads(answer)
        if "error" in told:
            raise RuntimeError(told["error"])
        return told

    def hurry(self) -> None:
        """Break off what it measures."""
        self._process.terminate()

    def close(self) -> bool:
        """End it; say whether it closed cleanly."""
        with suppress(BrokenPipeError):
            self._stdin.close()
        try:
            self._process.wait(CLOSE_WITHIN)
        except subprocess.TimeoutExpired:
            os.killpg(self._process.pid, signal.SIGKILL)
            self._process.wait()
        self._stdout.close()
        return self._process.returncode == 0


class Running:
    """One subject, in one process or three."""

    def __init__(self, name: str, subject: Subject, directory: Path) -> None:
        self.name = name
        self.kind = subject.kind
        members = [1, 2, 3] if subject.layout == "processes" else [None]
        order = {
            "kind": subject.kind,
            "directory": str(directory / name),
            "ports": [] if subject.layout == "memory" else free_ports(6),
        }
        self.workers: list[Worker] = []
        for member in members:
            self.workers.append(Worker({**order, "member": member}, directory / f"{name}-{member}.log"))

    def leader(self) -> Worker:
        """The process that leads, once everybody is ready. Raises ``RuntimeError`` if that takes too long."""
        deadline = time.monotonic() + READY_WITHIN
        while time.monotonic() < deadline:
            looks = [worker.ask("look") for worker in self.workers]
            leaders = [worker for worker, look in zip(self.workers, looks, strict=True) if look["leads"]]
            if len(leaders) == 1 and all(look["ready"] for look in looks):
                return leaders[0]
            time.sleep(0.02)
        raise RuntimeError(f"{self.name}: no leader within {READY_WITHIN:g} s")


class Large:
    """A process that runs ``large.py``."""

    def __init__(self, order: dict[str, Any], log: Path) -> None:
        self._log = log
        with log.open("wb") as stderr:
            self._process = subprocess.Popen(
                [sys.executable, "-m", "benchmarks.large", json.dumps(order)],
                cwd=Path(__file__).parents[1],
                stdout=subprocess.PIPE,
                stderr=stderr,
                start_new_session=True,
            )

    def read(self, figures: Figures, tell: Callable[[str], object]) -> None:
        """Collect what it prints. Raises ``RuntimeError`` if it failed."""
        assert self._process.stdout is not None
        for line in self._process.stdout:
            told = json.loads(line)
            if isinstance(told, str):
                tell(told)
            else:
                row, column, value = told
                figures.setdefault(row, {}).setdefault(column, []).append(value)
        if self._process.wait() != 0:
            raise RuntimeError(f"it ended with {self._process.returncode}\n{self._log.read_text()[-2000:]}")

    def close(self) -> None:
        """Break it off if it still runs; leave no process behind."""
        self._process.terminate()
        with suppress(subprocess.TimeoutExpired):
            self._process.wait(CLOSE_WITHIN)
        with suppress(ProcessLookupError):
            os.killpg(self._process.pid, signal.SIGKILL)
        self._process.wait()
        assert self._process.stdout is not None
        self._process.stdout.close()


def progress(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


class Benchmark:
    """What is running, and what was measured so far."""

    def __init__(self, seconds: float, rounds: int, keys: int) -> None:
        self.rounds: list[Round] = []
        self.large: dict[str, Figures] = {}
        self.failures: list[str] = []
        self._seconds = seconds
        self._rounds = rounds
        self._keys = keys
        self._running: list[Running] = []
        self._large: Large | None = None

    def run(self, subjects: list[str], large: list[str], directory: Path) -> bool:
        """Measure, and end every process; say whether Ctrl-C (or SIGTERM) cut that short."""
        interrupted = False
        try:
            if subjects:
                self._run_subjects(subjects, directory)
            for name in large:
                self._run_large(name, directory)
        except KeyboardInterrupt:
            interrupted = True
            progress("interrupted; this is what was measured so far")
        finally:
            signal.signal(signal.SIGINT, signal.SIG_IGN)  # a second one would leave processes behind
            signal.signal(signal.SIGTERM, signal.SIG_IGN)
            self._close(hurry=True)
        return interrupted

    def _run_subjects(self, names: list[str], directory: Path) -> None:
        try:
            if "etcd" in names:
                progress("etcd: building the program that makes its load, a minute the first time")
                etcd.build(directory)
            for name in names:
                self._running.append(Running(name, SUBJECTS[name], directory))
            for running in self._running:
                running.leader().ask("fill", 256, self._seconds)  # every key once; this also warms up
                progress(f"ready: {running.name}")
            for number in range(1, self._rounds + 1):
                self._run_round()
                progress(f"round {number} of {self._rounds}")
            self._close(hurry=False)
        except RuntimeError as error:
            self.failures.append(f"starting: {error}")
            self._close(hurry=True)

    def _run_large(self, name: str, directory: Path) -> None:
        progress(f"{name}: load average {report.load_average()}")
        order = {
            "measure": name,
            "keys": self._keys,
            "rounds": self._rounds,
            "seconds": self._seconds,
            "prepared": str(directory / "prepared"),
            "scratch": str(directory / name),
        }
        self._large = Large(order, directory / f"{name}.log")
        try:
            figures = self.large.setdefault(name, {})
            self._large.read(figures, lambda text: progress(f"{name}: {text}"))
        except RuntimeError as error:
            self.failures.append(f"{name}: {error}")
        self._large.close()
        self._large = None

    def _run_round(self) -> None:
        cells: Round = {}
        self.rounds.append(cells)
        for load in LOADS:
            do, at_once = load.split("-")
            for running in self._running:
                if not is_asked(running.kind, load):
                    continue
                time.sleep(min(SETTLE, self._seconds))
                try:
                    cell = running.leader().ask(do, int(at_once), self._seconds)
                    cells.setdefault(load, {})[running.name] = cell
                except RuntimeError as error:
                    self.failures.append(f"{running.name}, {load}: {error}")
        if any(is_asked(running.kind, "bulk-1") for running in self._running):
            time.sleep(min(SETTLE_AFTER_BULK, 3 * self._seconds))

    def _close(self, *, hurry: bool) -> None:
        workers = [(running.name, worker) for running in self._running for worker in running.workers]
        if hurry:
            for _, worker in workers:
                worker.hurry()
        for name, worker in workers:
            if not worker.close() and not hurry:
                self.failures.append(f"{name}: did not close cleanly")
        self._running = []
        if self._large is not None:
            self._large.close()


def data_directory() -> str:
    """Where temporary files go, unless that is in memory."""
    for path in (tempfile.gettempdir(), "/var/tmp"):
        if report.file_system(Path(path)) not in ("tmpfs", "ramfs"):
            return path
    return os.getcwd()


def main() -> int:
    """0 when everything was measured, 1 when something failed, 130 after Ctrl-C."""
    parser = argparse.ArgumentParser("python -m benchmarks", description=__doc__)
    parser.add_argument("--seconds", type=float, default=1.0, help="for each figure (1.0)")
    parser.add_argument("--rounds", type=int, default=3, help="how often everything is measured (3)")
    choices = [*SUBJECTS, *LARGE]
    parser.add_argument("--keys", type=int, default=1_000_000, help="of the large state (1000000)")
    parser.add_argument("--only", nargs="+", choices=choices, metavar="NAME", help=", ".join(choices))
    parser.add_argument("--dir", default=data_directory(), help="where the data goes meanwhile: a real disk")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write everything that was measured there")
    options = parser.parse_args()
    only = options.only or choices
    names = [name for name in SUBJECTS if name in only]
    left_out = etcd.missing() if "etcd" in names else None
    if left_out is not None:
        left_out = f"etcd is not measured: {left_out} (docs/benchmarks.md says what it needs)"
        names.remove("etcd")
        progress(left_out)
    for number in (
        signal.SIGINT,
        signal.SIGTERM,
    ):  # also if it was started with Ctrl-C ignored, in the background
        signal.signal(number, signal.default_int_handler)
    benchmark = Benchmark(options.seconds, options.rounds, options.keys)
    with tempfile.TemporaryDirectory(prefix="ondisk-bench-", dir=options.dir) as temporary:
        conditions = report.conditions(Path(temporary))
        interrupted = benchmark.run(names, [name for name in LARGE if name in only], Path(temporary))
    conditions["load average after"] = report.load_average()
    for what, value in conditions.items():
        print(f"{what:18}  {value}")
    print(f"\n{report.DURABLE}\n")
    if names:
        print(f"{report.tables(benchmark.rounds, names, options.seconds)}\n")
    for name, figures in benchmark.large.items():
        print(report.large_table(name, figures, options.keys))
    verdicts = [*report.verdicts(benchmark.rounds, names), *report.large_verdicts(benchmark.large)]
    for line in (*verdicts, *(f"failed: {failure}" for failure in benchmark.failures)):
        print(line)
    if left_out is not None:
        print(left_out)
    if options.json is not None:
        measured = {
            "conditions": conditions,
            "seconds": options.seconds,
            "keys": options.keys,
            "rounds": benchmark.rounds,
            "large": benchmark.large,
            "verdicts": [verdict._asdict() for verdict in verdicts],
            "failures": benchmark.failures,
            "left out": left_out,
        }
        options.json.write_text(json.dumps(measured, indent=1) + "\n")
    return 130 if interrupted else 1 if benchmark.failures else 0


if __name__ == "__main__":
    sys.exit(main())
