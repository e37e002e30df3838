"""A process that dies at any step of creation, opening or recovery leaves the old state or the new one.

Each named point is reached by a real process, which ends there at once (``os._exit``: no cleaning up, nothing
flushed). What it leaves is opened again here.
"""

from __future__ import annotations

import io
import os
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from ondisk.diskkv import MAX_SCAN_ITEMS, POINTS, DiskKV, incr, put, scan
from ondisk.statemachine import Entry
from ondisk.storage.disk import Disk
from ondisk.storage.generations import CREATE_POINTS, OPEN_POINTS, POINTER_POINTS

# The states before and after, with indexes that do not fit in 32 bits.
OLD = {b"old %03d" % number: b"o" * 50 for number in range(200)} | {b"count": b"1"}
NEW = {b"new %05d" % number: os.urandom(100) for number in range(6000)} | {b"count": b"2"}
OLD_INDEX, NEW_INDEX = 2**40, 2**41 + 3

CHILD = """
import os, sys, threading
from pathlib import Path
from ondisk.storage.disk import Disk
from ondisk.diskkv import DiskKV, incr
from ondisk.statemachine import Entry

path, stream, action, point, times = sys.argv[1:]

class Deadly(Disk):
    left = int(times)

    def reach(self, reached):
        if reached == point:
            self.left -= 1
            if self.left == 0:
                os._exit(42)

machine = DiskKV(path, disk=Deadly())
index = machine.open()
if action == "recover":
    machine.update([Entry(index + 1, incr("count"))])  # neither synced nor flushed by a close
    with open(stream, "rb") as file:
        machine.recover_from_snapshot(file, threading.Event())
elif action == "prepare":
    machine.prepare_snapshot()
os._exit(0)
"""

# Which points each of a process's actions reaches.
RECOVER_POINTS = tuple(point for point in POINTS if point.startswith("recover:"))
REACHED = {
    "create": CREATE_POINTS + POINTER_POINTS,
    "open": OPEN_POINTS,
    "recover": OPEN_POINTS + RECOVER_POINTS + POINTER_POINTS,
    "prepare": (*OPEN_POINTS, "prepare: view made"),
}


def dies(path: Path, stream: Path, action: str, point: str, times: int = 1) -> None:
    """Run a process that dies when it reaches a point for the so-manieth time."""
    command = [sys.executable, "-c", CHILD, str(path), str(stream), action, point, str(times)]
    ended = subprocess.run(
        command, capture_output=True, text=True, timeout=60, cwd=Path(__file__).parents[1], check=False
    )
    assert ended.returncode == 42, f"{point} was not reached {times} times: {ended.stderr}"


def state(machine: DiskKV) -> dict[bytes, bytes]:
    return dict(machine.lookup(scan(limit=MAX_SCAN_ITEMS)))


def fill(path: Path, content: dict[bytes, bytes], index: int) -> DiskKV:
    machine = DiskKV(path)
    machine.open()
    first = index - len(content) + 1
    machine.update([Entry(first + step, put(*pair)) for step, pair in enumerate(content.items())])
    return machine


@pytest.fixture(scope="module")
def stream(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The new state as a stream, in a file."""
    directory = tmp_path_factory.mktemp("stream")
    machine = fill(directory / "kv", NEW, NEW_INDEX)
    view = machine.prepare_snapshot()
    with (directory / "stream").open("wb") as file:
        machine.save_snapshot(view, file, threading.Event())  # type: ignore[arg-type]
    machine.close()
    return directory / "stream"


@pytest.fixture
def path(tmp_path: Path) -> Path:
    """A closed machine with the old state."""
    fill(tmp_path / "kv", OLD, OLD_INDEX).close()
    return tmp_path / "kv"


def opened_clean(path: Path) -> tuple[DiskKV, int]:
    """Open it; nothing but the live database may be left beside the pointer."""
    machine = DiskKV(path)
    index = machine.open()
    live = (path / "current").read_text().split()[2]
    assert sorted(os.listdir(path)) == ["current", live, "owner"]
    return machine, index


def goes_on(machine: DiskKV, stream: Path) -> None:
    """A recovery works now, and so does what follows."""
    with stream.open("rb") as file:
        assert machine.recover_from_snapshot(file, threading.Event()) == NEW_INDEX
    assert state(machine) == NEW
    machine.update([Entry(NEW_INDEX + 9, incr("count"))])
    machine.crash()
    assert machine.open() == NEW_INDEX and state(machine) == NEW
    machine.close()


@pytest.mark.parametrize("point", REACHED["create"])
def test_a_creation_that_dies_anywhere_opens_as_new(tmp_path: Path, stream: Path, point: str) -> None:
    """Whatever the first start left, the second one begins with nothing, and works."""
    dies(tmp_path / "kv", stream, "create", point)
    machine, index = opened_clean(tmp_path / "kv")
    assert (index, state(machine)) == (0, {})
    goes_on(machine, stream)


@pytest.mark.parametrize(
    ("point", "times"),
    [(point, 1) for point in RECOVER_POINTS + POINTER_POINTS]
    + [("recover: piece written", 2), ("recover: file written", 2)],
)
def test_a_recovery_that_dies_anywhere_leaves_the_old_state_or_the_new_one(
    path: Path, stream: Path, point: str, times: int
) -> None:
    """Until the pointer is renamed it is the old one, data and index, and from then on the new one."""
    dies(path, stream, "recover", point, times)
    machine, index = opened_clean(path)
    order = POINTS.index
    if order(point) < order("pointer: renamed"):
        assert (index, state(machine)) == (OLD_INDEX + 1, OLD | {b"count": b"2"})
    else:
        assert (index, state(machine)) == (NEW_INDEX, NEW)
    goes_on(machine, stream)


@pytest.mark.parametrize("point", OPEN_POINTS)
@pytest.mark.parametrize("before", ["recover: file written", "pointer: renamed", "recover: switched"])
def test_an_opening_that_dies_after_a_recovery_that_died_loses_nothing(
    path: Path, stream: Path, before: str, point: str
) -> None:
    """Clearing up may be interrupted too."""
    dies(path, stream, "recover", before)
    dies(path, stream, "open", point)
    machine, index = opened_clean(path)
    if before == "recover: file written":
        assert (index, state(machine)) == (OLD_INDEX + 1, OLD | {b"count": b"2"})
    else:
        assert (index, state(machine)) == (NEW_INDEX, NEW)
    goes_on(machine, stream)


def test_a_process_that_dies_with_a_view_leaves_nothing_after_the_next_opening(
    path: Path, stream: Path
) -> None:
    """A view has no life beyond its process."""
    dies(path, stream, "prepare", "prepare: view made")
    assert (path / "view-000001").is_dir()
    machine, index = opened_clean(path)
    assert (index, state(machine)) == (OLD_INDEX, OLD)
    goes_on(machine, stream)


def test_every_named_point_is_one_where_something_dies() -> None:
    """A new point cannot be forgotten here."""
    assert len(set(POINTS)) == len(POINTS)
    assert {point for points in REACHED.values() for point in points} == set(POINTS)


class Noting(Disk):
    """Notes which points are reached, in the order of the last time."""

    def __init__(self) -> None:
        self.reached: dict[str, None] = {}

    def reach(self, point: str) -> None:
        self.reached.pop(point, None)
        self.reached[point] = None


@pytest.mark.parametrize("action", REACHED)
def test_the_points_are_reached_in_the_order_of_their_names(
    tmp_path: Path, stream: Path, action: str
) -> None:
    """What ``POINTS`` says about the order is true for each action."""
    if action != "create":
        fill(tmp_path / "kv", OLD, OLD_INDEX).close()
    disk = Noting()
    machine = DiskKV(tmp_path / "kv", disk=disk)
    machine.open()
    if action == "recover":
        machine.recover_from_snapshot(io.BytesIO(stream.read_bytes()), threading.Event())
    elif action == "prepare":
        machine.prepare_snapshot().close()
    machine.close()
    of_the_machine = [point for point in disk.reached if point in POINTS]  # a ``Store`` has some of its own
    assert of_the_machine == [point for point in POINTS if point in REACHED[action]]
