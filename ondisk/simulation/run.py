"""Runs: one seed, many of them, and the smallest schedule of faults that still breaks something."""

from __future__ import annotations

import logging
import multiprocessing
import os
import signal
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

from ondisk.linearizability import Operation
from ondisk.raft import Raft
from ondisk.replica import Replica
from ondisk.simulation.faults import KINDS, Fault
from ondisk.simulation.group import SECONDS, Simulation
from ondisk.simulation.invariants import Violation
from ondisk.simulation.machine import PaddedKV
from ondisk.simulation.safeguards import machine_without, replica_without
from ondisk.simulation.stock import StockSimulation
from ondisk.simulation.verbs import VerbsKV
from ondisk.simulation.world import TraceEvent, World
from ondisk.testing.crashing import ram_disk

_ROOM_BYTES = 50 << 20  # a run takes some MB, and a power cut that is simulated needs no disk
_LATER = 10.0  # virtual seconds by which the same violation may come later, with fewer faults


class Setting(NamedTuple):
    """What a run is like, apart from its seed.

    ``replicas``: 0 means ``replicas_of`` the seed. ``seconds``: of virtual time, while there are faults.
    ``without`` names the safeguards that are taken away; ``stock`` puts stock PySyncObj to the test.
    ``drift``: clients read by leases, and one clock counts so much more in a second than another, at most.
    ``verbs``: some clients transact, watch and lock, too. ``raft_type``: another Raft in the place of the
    engine's. ``kinds`` of faults that are drawn; none: all.
    """

    replicas: int = 0
    seconds: float = SECONDS
    without: tuple[str, ...] = ()
    stock: bool = False
    drift: float | None = None
    raft_type: type[Raft] | None = None
    kinds: tuple[str, ...] = ()
    verbs: bool = False

    @property
    def replica_type(self) -> type[Replica]:
        """What the replicas are."""
        weak = replica_without(self.without)
        return type("Replica", (weak,), {"raft_type": self.raft_type}) if self.raft_type is not None else weak

    @property
    def machine_type(self) -> type[PaddedKV]:
        """What their state machines are."""
        return machine_without(self.without, VerbsKV if self.verbs else PaddedKV)


def replicas_of(seed: int, *, stock: bool = False) -> int:
    """How many replicas found the group: 3 if the seed is even, else 5, but 1 if it ends with 9."""
    return 3 if seed % 2 == 0 else 1 if seed % 10 == 9 and not stock else 5


class Report(NamedTuple):
    """What came of one run. ``seconds``: how long it was, in virtual time."""

    seed: int
    rule: str | None  # the one that was violated
    violation: str | None  # in words
    seconds: float
    faults: tuple[Fault, ...]
    trace: tuple[TraceEvent, ...]
    history: tuple[Operation, ...]
    counts: Mapping[str, int]
    repeatable: bool = True  # whether a second run of the same seed did the same, if there was one

    @property
    def record(self) -> tuple[TraceEvent, ...]:
        """The trace, under the name that copied notebooks have for it."""
        return self.trace


class Ended(SystemExit):
    """The process was told to end by a signal; ``code`` is what it shall return."""

    code: int


class _Ending:
    """Told to end, a process ends between two steps of its run, where no code can catch that by mistake.

    A replica stops with the reason whatever is raised in it, and Python swallows what is raised while it
    throws an object away: an exception in the middle of a step may be lost, and the run would go on.
    """

    def __init__(self) -> None:
        self._told: int | None = None
        self._runs = 0

    def tell(self, number: int, frame: object) -> None:
        self._told = number
        if not self._runs:
            self.look()

    def look(self) -> None:
        if self._told is not None:
            raise Ended(128 + self._told)

    @contextmanager
    def between_steps(self) -> Iterator[None]:
        self._runs += 1
        try:
            yield
        finally:
            self._runs -= 1
        self.look()


_ending = _Ending()


def end_cleanly() -> None:
    """Let this process leave by way of its ``finally``s when it is told to end: no directory stays behind."""
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, _ending.tell)


@contextmanager
def _quiet() -> Iterator[None]:
    """What replicas complain of is in the trace."""
    loggers = [logging.getLogger(name) for name in ("ondisk", "pysyncobj.syncobj")]
    levels = [logger.level for logger in loggers]
    for logger in loggers:
        logger.setLevel(logging.CRITICAL + 1)
    try:
        yield
    finally:
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)


def run(
    seed: int,
    setting: Setting = Setting(),  # noqa: B008  an immutable value
    faults: Sequence[Fault] | None = None,
    observe: Callable[[World], None] | None = None,
    *,
    tracing: bool = True,
) -> Report:
    """One run. ``faults`` are drawn from the seed if not given; ``observe`` is called after each step.

    Without ``tracing`` the report has no trace. The run is the same, and faster.
    """
    replicas = setting.replicas or replicas_of(seed, stock=setting.stock)
    violation: Violation | None = None

    def look(world: World) -> None:
        _ending.look()
        if observe is not None:
            observe(world)

    with (
        _ending.between_steps(),
        tempfile.TemporaryDirectory(prefix="ondisk-simulation-", dir=ram_disk(_ROOM_BYTES)) as folder,
        _quiet(),
    ):
        simulation: Simulation | StockSimulation
        if setting.stock:
            simulation = StockSimulation(
                seed,
                Path(folder),
                replicas=replicas,
                seconds=setting.seconds,
                schedule=faults,
                observe=look,
            )
        else:
            simulation = Simulation(
                seed,
                Path(folder),
                replicas=replicas,
                seconds=setting.seconds,
                schedule=faults,
                replica_type=setting.replica_type,
                kinds={name: KINDS[name] for name in setting.kinds} or KINDS,
                drift=setting.drift,
                verbs=setting.verbs,
                machine_type=setting.machine_type,
                observe=look,
            )
        simulation.tracing = tracing
        try:
            simulation.run()
        except Violation as found:
            violation = found
            simulation.note("violation", str(found))
    history = () if isinstance(simulation, StockSimulation) else simulation.history.operations
    return Report(
        seed,
        violation.rule if violation else None,
        str(violation) if violation else None,
        simulation.elapsed,
        simulation.faults,
        tuple(simulation.trace),
        history,
        dict(simulation.counts),
    )


def _brief(seed: int, setting: Setting) -> Report:
    """With a trace only if there is something to look for in it. A violation is told even if it was once."""
    report = run(seed, setting, tracing=False)
    if report.rule is None:
        return report._replace(history=())
    again = run(seed, setting)
    return again if again.rule == report.rule else report._replace(repeatable=False)


def _in_a_worker(seed: int, setting: Setting) -> Report:
    """``_brief``, but told to end it does not begin the next run that the pool has for it."""
    try:
        return _brief(seed, setting)
    except Ended as ended:
        os._exit(ended.code)


def run_all(seeds: Sequence[int], setting: Setting, jobs: int = 1) -> Iterator[Report]:
    """Many runs, in so many processes; the reports as they become known."""
    if jobs == 1:
        yield from (_brief(seed, setting) for seed in seeds)
        return
    # Not forked: RocksDB has threads.
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(jobs, mp_context=context, initializer=end_cleanly) as pool:
        try:
            for done in as_completed([pool.submit(_in_a_worker, seed, setting) for seed in seeds]):
                yield done.result()
        except BaseException:  # nobody wants the rest: told to end, or the first violation was enough
            pool.shutdown(wait=False, cancel_futures=True)
            for worker in multiprocessing.active_children():
                worker.terminate()
            raise


def reduce(
    report: Report,
    setting: Setting,
    *,
    tries: int = 200,
    progress: Callable[[int, int], object] = lambda tried, left: None,
) -> Report:
    """The run with the fewest faults, found in so many tries, that violates the same rule.

    Delta debugging (Zeller and Hildebrandt, 2002): leave out halves, then quarters, and so on, as long as
    the rest still does it. ``progress`` is told how many were tried, and how many faults are left. What came
    after the violation goes first, and no run is tried for much longer than the violation took.
    """
    setting = setting._replace(seconds=min(setting.seconds, report.seconds + _LATER))
    best, parts, tried = report, 2, 0
    before = [fault for fault in report.faults if fault.at < report.seconds]
    if 0 < len(before) < len(report.faults):
        tried = 1
        found = run(report.seed, setting, before)
        progress(tried, len(best.faults))
        best = found if found.rule == report.rule else best
    while best.faults and tried < tries:
        size = -(-len(best.faults) // parts)
        for first in range(0, len(best.faults), size):
            rest = best.faults[:first] + best.faults[first + size :]
            tried += 1
            found = run(report.seed, setting, rest)
            progress(tried, len(best.faults))
            if found.rule == report.rule:
                best, parts = found, max(2, parts - 1)
                break
            if tried == tries:
                return best
        else:
            if size == 1:
                return best
            parts = min(2 * parts, len(best.faults))
    return best
