"""The exercises of notebook 4: snapshots."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable
from pathlib import Path
from tempfile import TemporaryDirectory

from ondisk.diskkv import DiskKV, put
from ondisk.lab.exercises.answers import function, names, near, number
from ondisk.lab.exercises.check import exercise
from ondisk.raft.log import RaftLog
from ondisk.raft.records import REGULAR, LogEntry
from ondisk.statemachine import Entry
from ondisk.storage.disk import Disk

_STATE, _PUT, _EVERY = 40e9, 200, 5_000


@exercise(
    "4.1",
    hints=[
        "Between two dumps 5,000 puts come in. How many bytes have the clients put by then?",
        "And how many bytes does the dump at the end of that time write?",
        "Divide the bytes of one dump by the bytes of 5,000 puts.",
    ],
)
def bytes_written_for_each_byte_put(answer: object) -> str | None:
    """``answer`` is the factor."""
    right = _STATE / (_EVERY * _PUT)
    return near(
        number(answer),
        right,
        [
            (1 / right, "It is the other way round: bytes of the dumps for each byte that was put."),
            (_STATE / _EVERY, "These are the bytes for each put. A put has 200 bytes."),
            (_STATE / _PUT, "That would be so if every single put were followed by a dump."),
            (_STATE, "So much is written by one dump, whatever the clients put since the one before."),
        ],
        large="It is too large.",
        small="It is too small.",
        tolerance=0.01,
    )


# 4.2: in which order

_ENTRIES = 20

Compact = Callable[[RaftLog, DiskKV, int], object]


class _PowerCut(Exception):
    """The power fails here."""


class _FailingDisk(Disk):
    """The power fails at the n-th point that is reached after ``begin``; with 0 never."""

    def __init__(self) -> None:
        self.points: list[str] = []
        self._fail_at = 0

    def begin(self, fail_at: int) -> None:
        self.points, self._fail_at = [], fail_at

    def reach(self, point: str) -> None:
        self.points.append(point)
        if len(self.points) == self._fail_at:
            raise _PowerCut


@exercise(
    "4.2",
    points=2,
    hints=[
        "Of these three calls, log.compact(index) alone writes nothing: log.sync() makes it durable.",
        "Imagine a power cut after each line. Is an entry that the log has dropped in the state, durably?",
        "First make the state durable (machine.sync()), then let the log drop the entries, durably.",
    ],
)
def compacts_in_an_order_that_loses_nothing(answer: object) -> str | None:
    """``answer`` takes a log, a state machine and an index."""
    compact = function(answer, "compact")
    disk = _FailingDisk()
    base, applied = _compact(compact, disk, fail_at=0)
    if base < _ENTRIES:
        return (
            f"Without any power cut, the log should have dropped the entries up to {_ENTRIES}, durably. "
            f"It has dropped those up to {base}."
        )
    points = list(disk.points)
    if applied < base:
        return f"{_lost(base, applied)} A power cut right after your function is enough."
    for place, point in enumerate(points, 1):
        base, applied = _compact(compact, disk, fail_at=place)
        if applied < base:
            return f"{_lost(base, applied)} The power was cut at point {place} of {len(points)}: {point!r}."
    return None


def _lost(base: int, applied: int) -> str:
    return f"The log has dropped the entries up to {base}, but the state ends with entry {applied}."


def _compact(compact: Compact, disk: _FailingDisk, *, fail_at: int) -> tuple[int, int]:
    """Fill, compact, cut the power, open again: where the log's base is, and where the state ends."""
    disk.begin(0)
    with TemporaryDirectory(prefix="ondisk-") as name:
        folder = Path(name)
        log, machine = RaftLog(folder / "log", disk, members=(1,)), DiskKV(folder / "state", disk=disk)
        machine.open()
        entries = [Entry(index, put("key", f"{index}")) for index in range(1, _ENTRIES + 1)]
        log.append([LogEntry(entry.index, 1, REGULAR + entry.command) for entry in entries])
        log.sync()
        machine.update(entries)
        disk.begin(fail_at)
        try:
            compact(log, machine, _ENTRIES)
        except _PowerCut:
            pass
        finally:
            points = list(disk.points)
            disk.begin(0)
            log.crash()
            machine.crash()
        log, machine = RaftLog(folder / "log"), DiskKV(folder / "state")
        try:
            found = log.base_index, machine.open()
        finally:
            log.close()
            machine.close()
    disk.points = points
    return found


# 4.3: hard links


@exercise(
    "4.3",
    points=2,
    hints=[
        "A file goes away when its last name goes away.",
        "os.stat(path).st_nlink says how many names a file has, wherever they are.",
        "Add up st_size of the files in the view that have one name only.",
    ],
)
def bytes_that_closing_a_view_frees(answer: object) -> str | None:
    """``answer`` takes the directory of a view."""
    freed = function(answer, "freed")
    with TemporaryDirectory(prefix="ondisk-") as name:
        live, view, other = (Path(name) / each for each in ("db-000001", "view-000001", "view-000002"))
        for directory in (live, view, other):
            directory.mkdir()
        for size, file, *more in (
            (7_000, view / "000010.sst", live),
            (500, view / "MANIFEST-000004"),
            (30, view / "CURRENT"),
            (90_000, live / "000020.sst"),
        ):
            _write(file, size, more)
        if (said := freed(view)) != 530:
            return (
                "A fresh view: one table of 7,000 bytes that the live database has too, and 530 bytes of "
                f"small files of its own. Closing it frees 530 bytes, and you say {said!r}."
            )
        (live / "000010.sst").unlink()
        if (said := freed(view)) != 7_530:
            return (
                f"Now the live database has dropped that table. 7,530 bytes would be freed; you say {said!r}."
            )
        os.link(view / "000010.sst", other / "000010.sst")
        if (said := freed(view)) != 530:
            return f"Now a second view has that table as well. 530 bytes would be freed; you say {said!r}."
    return None


def _write(file: Path, size: int, more: Iterable[Path]) -> None:
    file.write_bytes(bytes(size))
    for directory in more:
        os.link(file, directory / file.name)


# 4.4: what the next open() removes

FILES = ("owner", "current", "current.new", "db-000005", "db-000006", "db-000007", "view-000002", "notes.txt")
LIVE = "db-000006"
_LEFTOVERS = {"current.new", "db-000005", "db-000007", "view-000002"}


@exercise(
    "4.4",
    hints=[
        "One file alone says which database counts. Everything else of that kind does not.",
        "A view lives no longer than the process that reads it. And current.new?",
        "It removes what it might have made itself, and what current does not name. What is none of its own?",
    ],
)
def what_the_next_open_removes(answer: Iterable[str]) -> str | None:
    """``answer`` names files and directories."""
    listed = answer if isinstance(answer, str) else [name.rstrip("/") for name in answer]
    named = names(listed, FILES, "There is no {} in this directory.")
    if LIVE in named:
        return "You would remove the state."
    if "current" in named:
        return "Without the pointer nobody would know which database is live."
    if "owner" in named:
        return "The owner file is the lock of whoever opens: it stays, and is used again."
    if "notes.txt" in named:
        return "Somebody put notes.txt there. A state machine removes only what it may have made itself."
    if not named:
        return "Something is removed: whatever the killed process was making."
    return "All that you name is removed, and not that alone." if _LEFTOVERS - named else None
