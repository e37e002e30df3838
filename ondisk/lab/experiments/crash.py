"""Crash a state machine on purpose, open what is left, and compare: the experiments of notebook 3.

Every command here is an ``incr``, so that one applied twice and one left out can both be seen. The machine
lives and dies in a child process (``ondisk/testing/crashing.py``); another one opens its directory and looks.
"""

from __future__ import annotations

import shutil
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import get_args

from ondisk.diskkv import get, incr
from ondisk.statemachine import Entry, OnDiskStateMachine
from ondisk.storage.disk import Disk
from ondisk.testing.crashing import (
    Child,
    ChildFailed,
    CrashingDisk,
    How,
    Point,
    Run,
    load_file,
    scratch_directory,
)

Machine = type[OnDiskStateMachine] | str
"""A class to be imported, made as ``Class(path, disk=disk)``, or the name of a file that defines one."""

_CUTS_AT_ONCE = 20


@dataclass(frozen=True)
class Workload:
    """What is applied: ``updates`` batches of ``each`` entries, which add 1 to ``keys`` counters in turn.

    With ``sync_every`` the machine is synced after every so many updates; with 0 never.
    """

    updates: int = 5
    each: int = 1
    keys: int = 1
    sync_every: int = 0

    @property
    def last(self) -> int:
        """Index of the last entry."""
        return self.updates * self.each

    def entries(self) -> list[Entry]:
        """The log, from entry 1 on."""
        return [Entry(index, incr(self.key(index))) for index in range(1, self.last + 1)]

    def key(self, index: int) -> str:
        """The counter that an entry adds 1 to."""
        return f"counter {index % self.keys}"

    def held(self, counters: dict[str, int]) -> tuple[int, ...]:
        """The entries whose outcome the counters hold: each key's first ones, as many as it has counted."""
        left = dict(counters)
        held = []
        for index in range(1, self.last + 1):
            if left.get(self.key(index), 0) > 0:
                left[self.key(index)] -= 1
                held.append(index)
        return tuple(held)


@dataclass(frozen=True)
class Crashed:
    """What a crash has left.

    ``index`` is what ``open`` returned; the right state for it holds the entries 1 to ``index``. ``held`` are
    the entries that the data does hold. ``total`` is what all counters say together once the log, of
    ``last`` entries, has handed over everything above ``index``: it should be ``last``.
    """

    machine: str
    how: How
    point: str
    index: int
    held: tuple[int, ...]
    total: int
    last: int

    @property
    def twice(self) -> tuple[int, ...]:
        """The entries that the data holds already, and that the log is going to hand over again."""
        return tuple(entry for entry in self.held if entry > self.index)

    @property
    def lost(self) -> tuple[int, ...]:
        """The entries that the data lacks, and that the log is not going to hand over."""
        return tuple(entry for entry in range(1, self.index + 1) if entry not in self.held)

    @property
    def verdict(self) -> str:
        """``whole``, ``applied twice: 7`` or ``lost: 3, 4``."""
        said = [
            f"{what}: {', '.join(map(str, entries))}"
            for what, entries in (("applied twice", self.twice), ("lost", self.lost))
            if entries
        ]
        return "; ".join(said) or "whole"

    def __str__(self) -> str:
        return (
            f"{self.machine}, {self.how} {self.point}: open() returns {self.index}, the data holds "
            f"{len(self.held)}, after the replay {self.total} of {self.last} are counted: {self.verdict}"
        )


def crash(
    machine: Machine,
    *,
    at: int | str = "written",
    occurrence: int = 1,
    how: How = "kill",
    workload: Workload | None = None,
) -> Crashed:
    """Crash a machine once, open what is left, and hand over the rest of the log.

    ``at=3`` is just after its third write. ``at="synced", occurrence=2`` is when its disk says ``synced`` for
    the second time (``Disk.reach`` has the names). ``how`` is ``"kill"``: what was written to the operating
    system survives; or ``"power cut"``: only what was synced is certain to. A point that is never reached
    leaves a machine that did all of its work, and was killed then.

    Raises ``ChildFailed`` for a machine that raises an error, or that cannot be imported; ``ValueError`` for
    another way to die.
    """
    _is_a_way(how)
    point = Point(at, "written", how) if isinstance(at, int) else Point(occurrence, at, how)
    with scratch_directory() as folder, _child(machine) as child:
        return _crash_at(child, folder, machine, point, workload or Workload())


def _is_a_way(how: str) -> None:
    if how not in get_args(How):
        raise ValueError(f"how={how!r} is no way to die: there are {' and '.join(map(repr, get_args(How)))}")


def crash_everywhere(
    machine: Machine, *, at: str | None = None, how: How = "kill", workload: Workload | None = None
) -> list[Crashed]:
    """One crash at each point, in the order of the points; with ``at`` only at those of that name.

    Points from before the first update are left out: there is nothing to lose yet.
    """
    _is_a_way(how)
    work = workload or Workload()
    with scratch_directory() as folder, _child(machine) as child:
        run = child.run(_live, machine, folder / "whole", work)
        before = run.note
        found = []
        for place, name in enumerate(run.points):
            if place >= before and at in (None, name):
                occurrence = run.points[: place + 1].count(name)
                found.append(_crash_at(child, folder, machine, Point(occurrence, name, how), work))
        return found


@dataclass(frozen=True, order=True)
class Cut:
    """A write-ahead log that ends after ``length`` bytes: the index, and how many entries the data holds."""

    length: int
    index: int
    held: int


def cut_wal(
    machine: Machine,
    *,
    workload: Workload | None = None,
    seconds: float = 20.0,
    progress: Callable[[int, int], None] | None = None,
    stopped: threading.Event | None = None,
) -> list[Cut]:
    """Cut the write-ahead log at every byte, open each copy, and look; sorted by length.

    The lengths are visited in an order that refines evenly. So after ``seconds``, or when ``stopped`` is set,
    what there is covers the whole log, only more coarsely. ``progress`` is called with the number of cuts
    that are done and that there are.

    Raises ``ChildFailed`` as ``crash`` does, and ``ValueError`` for a machine with several such logs.
    """
    work = workload or Workload()
    deadline = time.monotonic() + seconds
    cuts: list[Cut] = []
    with scratch_directory() as folder, _child(machine) as child:
        child.run(_live, machine, folder / "whole", work)
        logs = [path for path in (folder / "whole").rglob("*.log") if path.stat().st_size]
        if len(logs) != 1:
            raise ValueError(f"{_name(machine)} has {len(logs)} write-ahead logs, not one")
        log, size = logs[0].relative_to(folder / "whole"), logs[0].stat().st_size
        lengths = _evenly(size)
        for start in range(0, len(lengths), _CUTS_AT_ONCE):
            some = lengths[start : start + _CUTS_AT_ONCE]
            cuts += child.run(_look_at_cuts, machine, folder, log, some, work).value
            if progress is not None:
                progress(len(cuts), len(lengths))
            if time.monotonic() > deadline or (stopped is not None and stopped.is_set()):
                break
    return sorted(cuts)


def _evenly(size: int) -> list[int]:
    """0 to ``size``, the ends first, then halves, quarters, and so on."""
    step = 1
    while step < size:
        step *= 2
    order = dict.fromkeys((size, 0))
    while step:
        order |= dict.fromkeys(range(0, size, step))
        step //= 2
    return list(order)


def _name(machine: Machine) -> str:
    return machine if isinstance(machine, str) else machine.__name__


def _child(machine: Machine) -> Child:
    return Child() if isinstance(machine, str) else Child(machine)


def _crash_at(child: Child, folder: Path, machine: Machine, point: Point, work: Workload) -> Crashed:
    path = folder / "crashed"
    run = child.run(_live, machine, path, work, crash=point)
    index, held, total = child.run(_look, machine, path, work).value
    shutil.rmtree(path)
    return Crashed(_name(machine), point.how, _in_words(run, point), index, held, total, work.last)


def _in_words(run: Run, point: Point) -> str:
    if run.crashed is None:
        return f"at the end: {point.name!r} was not reached {point.occurrence} times"
    words = {"write": "before write", "written": "after write", "synced": "after sync"}
    return f"{words.get(run.crashed, repr(run.crashed))} {point.occurrence}"


# Work for the child process


def _make(machine: Machine, path: Path, disk: Disk) -> OnDiskStateMachine:
    if isinstance(machine, str):
        module = load_file(machine, "ondisk_machine_of_a_file")
        machines = [
            value
            for value in vars(module).values()
            if isinstance(value, type)
            and issubclass(value, OnDiskStateMachine)
            and value.__module__ == module.__name__
        ]
        if len(machines) != 1:
            raise ChildFailed(f"{machine} should define one state machine, and defines {len(machines)}")
        machine = machines[0]
    made: OnDiskStateMachine = machine(path, disk=disk)  # type: ignore[call-arg]
    return made


def _live(disk: CrashingDisk, machine: Machine, path: Path, work: Workload) -> None:
    """Notes how many points there were before the first update."""
    live = _make(machine, path, disk)
    disk.power_cut = live.crash
    live.open()
    disk.note = len(disk.points)
    entries = work.entries()
    for update in range(1, work.updates + 1):
        live.update(entries[(update - 1) * work.each : update * work.each])
        if work.sync_every and update % work.sync_every == 0:
            live.sync()


def _look(
    disk: CrashingDisk, machine: Machine, path: Path, work: Workload
) -> tuple[int, tuple[int, ...], int]:
    """The index, the entries that the data holds, and what is counted after the log has done the rest."""
    left = _make(machine, path, disk)
    index = left.open()
    held = work.held(_counters(left, work))
    rest = [entry for entry in work.entries() if entry.index > index]
    if rest:
        left.update(rest)
    return index, held, sum(_counters(left, work).values())


def _counters(machine: OnDiskStateMachine, work: Workload) -> dict[str, int]:
    keys = {work.key(index) for index in range(1, work.last + 1)}
    return {key: int(machine.lookup(get(key)) or b"0") for key in sorted(keys)}


def _look_at_cuts(
    disk: CrashingDisk, machine: Machine, folder: Path, log: Path, lengths: Sequence[int], work: Workload
) -> list[Cut]:
    cuts = []
    for length in lengths:
        copy = folder / "cut"
        shutil.copytree(folder / "whole", copy)
        with open(copy / log, "r+b") as file:
            file.truncate(length)
        opened = _make(machine, copy, disk)
        index = opened.open()
        cuts.append(Cut(length, index, len(work.held(_counters(opened, work)))))
        opened.close()
        shutil.rmtree(copy)
    return cuts
