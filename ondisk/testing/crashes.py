"""What a crash leaves of a machine, for every point that its disk reaches. Each is a child process."""

from __future__ import annotations

import shutil
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

from ondisk.statemachine import OnDiskStateMachine
from ondisk.storage.disk import Disk
from ondisk.testing.crashing import Child, CrashingDisk, How, Point, Run, scratch_directory
from ondisk.testing.harness import COMMANDS, Harness, Sample, replay, sample_entries
from ondisk.testing.streams import Reader

MAX_POINTS = 60  # crashes of each kind in one test; a machine with more steps is crashed at some of them
_HOWS: tuple[How, How] = ("kill", "power cut")


class Crash(NamedTuple):
    """What one crash left: the index after ``open``, and how many commands the data holds.

    ``found`` is ``None`` if no number of commands explains the data. ``synced`` is the last index that a
    ``sync`` had covered. ``completed``: a replay of the rest led to the right state.
    """

    how: How
    where: str
    opened: int
    found: int | None
    synced: int
    completed: bool
    error: str = ""

    def __str__(self) -> str:
        if self.error:
            return f"{self.how} at {self.where}: {self.error}"
        data = "is no prefix of the commands" if self.found is None else f"holds {self.found} commands"
        return (
            f"{self.how} at {self.where}: open() returned {self.opened}, the data {data}, {self.synced} "
            f"were synced; after a replay the state is {'right' if self.completed else 'wrong'}"
        )


def listed(what: str, crashes: list[Crash]) -> str:
    more = f"\n  and {len(crashes) - 5} more" if len(crashes) > 5 else ""
    return what + "".join(f"\n  {crash}" for crash in crashes[:5]) + more


_PLAN: tuple[int | str, ...] = (
    1,
    5,
    "sync",
    6,
    12,
    "reopen",
    18,
    "sync",
    COMMANDS,
)  # int: update up to there
BOUNDARIES = (0, *(step for step in _PLAN if isinstance(step, int)))


def _live(disk: CrashingDisk, cls: type[Sample], path: Path) -> None:
    """A machine's life, from its creation on. Notes how far it was synced."""
    sample = cls()
    disk.note = applied = 0

    def make() -> OnDiskStateMachine:
        machine = sample.make(path, disk)
        disk.power_cut = machine.crash
        machine.open()
        return machine

    machine = make()
    for step in _PLAN:
        if isinstance(step, int):
            machine.update(sample_entries(sample, applied + 1, step))
            applied = step
        elif step == "sync":
            machine.sync()
            disk.note = applied
        else:
            machine.close()
            machine = make()
        disk.reach(f"the end of {'update' if isinstance(step, int) else step}")


def crash_everywhere(sample: Sample, states: list[Any]) -> list[Crash]:
    cls, crashes = type(sample), []
    with scratch_directory() as folder, Child(cls) as child:
        points = child.run(_live, cls, folder / "whole").points
        for point in _points(len(points)):
            path = folder / f"{point.how}-{point.occurrence}"
            run = child.run(_live, cls, path, crash=point)

            def complete(machine: OnDiskStateMachine, opened: int) -> bool:
                replay(machine, sample_entries(sample), opened, batch=5)
                return bool(sample.state(machine) == states[COMMANDS])

            where = f"point {point.occurrence}, {run.crashed!r}"
            crashes.append(_look_after(sample, path, states, point.how, where, run.note, complete))
    return crashes


def _points(count: int) -> list[Point]:
    """Every point out of ``count`` in both ways, or ``MAX_POINTS`` of them, evenly spread."""
    chosen = sorted({round(1 + n * (count - 1) / (MAX_POINTS - 1)) for n in range(MAX_POINTS)})
    return [Point(number, how=how) for how in _HOWS for number in chosen]


def _look_after(
    sample: Sample,
    path: Path,
    states: list[Any],
    how: How,
    where: str,
    synced: int,
    complete: Callable[[OnDiskStateMachine, int], bool],
) -> Crash:
    """Open what a crash has left, and look."""
    machine = sample.make(path, Disk())
    try:
        opened = machine.open()
        state = sample.state(machine)
        found = states.index(state) if state in states else None
        return Crash(how, where, opened, found, synced, complete(machine, opened))
    except Exception as error:
        return Crash(how, where, 0, None, synced, False, f"{type(error).__name__}: {error}")
    finally:
        machine.close()
        shutil.rmtree(path, ignore_errors=True)


def _recover(disk: CrashingDisk, cls: type[Sample], path: Path, data: bytes) -> None:
    """Recover from a snapshot. Notes when that is over."""
    machine = cls().make(path, disk)
    disk.power_cut = machine.crash
    disk.note = False
    machine.open()
    machine.recover_from_snapshot(Reader(data), threading.Event())
    disk.note = True
    disk.reach("the end of recover_from_snapshot")


def crash_while_recovering(sample: Sample, harness: Harness, states: list[Any]) -> list[Crash]:
    """The crashes that left something else than the old state, of 5 commands, or the new one, of 10."""
    cls, bad, data = type(sample), [], harness.snapshot(10)
    harness.filled("old", 5).close()
    with scratch_directory() as folder, Child(cls) as child:

        def run(name: str, crash: Point | None) -> Run:
            shutil.copytree(harness.path("old"), folder / name)
            return child.run(_recover, cls, folder / name, data, crash=crash)

        def complete(machine: OnDiskStateMachine, _: int) -> bool:
            machine.recover_from_snapshot(Reader(data), threading.Event())
            return bool(sample.state(machine) == states[10])

        for point in _points(len(run("whole", None).points)):
            name = f"{point.how}-{point.occurrence}"
            ended = run(name, point)
            where, least = f"point {point.occurrence}, {ended.crashed!r}", 10 if ended.note else 5
            crash = _look_after(sample, folder / name, states, point.how, where, least, complete)
            if not (crash.found == crash.opened in (5, 10) and crash.opened >= least and crash.completed):
                bad.append(crash)
    return bad
