"""Crashes on purpose: a child dies where it is told to, the results are exact, the pictures say them."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import psutil
import pytest

from ondisk import DiskKV, lab
from ondisk.lab import (
    Workload,
    crash,
    crash_everywhere,
    crash_picture,
    crash_table,
    cut_picture,
    cut_table,
    cut_wal,
)
from ondisk.lab.experiments.crash import Crashed, Cut, _evenly
from ondisk.lab.experiments.naive import DataFirst, IndexFirst, OneBatch, TwoWrites
from ondisk.lab.pictures.crash import stretches
from ondisk.lab.pictures.drawing import Picture
from ondisk.testing.crashing import Child, ChildFailed, CrashingDisk, Point, scratch_directory
from tests.waiting import wait_until

THREE = Workload(updates=3)

# The child


def three_points(disk: CrashingDisk, folder: Path) -> int:
    """Work for a child: writes a file at each of three points, and prints."""
    disk.power_cut = (folder / "power-cut").touch
    for name in ("a", "b", "a"):
        disk.note = name
        print("what the work prints is no answer")
        disk.reach(name)
        (folder / f"after-{len(disk.points)}").touch()
    return os.getpid()


def failing(disk: CrashingDisk) -> None:
    raise ValueError("the work has an error")


def dying(disk: CrashingDisk) -> None:
    os.abort()


def hanging(disk: CrashingDisk) -> None:
    threading.Event().wait()


def test_a_run_dies_at_its_point_and_no_other(tmp_path: Path) -> None:
    """Counted over all points, or over those of one name."""
    with Child() as child:
        whole = child.run(three_points, tmp_path)
        assert whole[:3] == (None, ("a", "b", "a"), "a")
        assert whole.value not in (os.getpid(), None)
        for number, (point, crashed) in enumerate(
            [(Point(1), "a"), (Point(2), "b"), (Point(3), "a"), (Point(2, "a"), "a"), (Point(1, "b"), "b")]
        ):
            folder = tmp_path / f"{number}"
            folder.mkdir()
            run = child.run(three_points, folder, crash=point)
            assert (run.crashed, run.note, run.value) == (crashed, crashed, None)
            reached = 3 if point == Point(2, "a") else 2 if point.name == "b" else point.occurrence
            assert len(list(folder.iterdir())) == reached - 1
        assert child.run(three_points, tmp_path, crash=Point(3, "b")).crashed is None


def test_a_power_cut_is_made_before_the_process_dies(tmp_path: Path) -> None:
    """A kill makes none."""
    with Child() as child:
        child.run(three_points, tmp_path, crash=Point(2, how="kill"))
        assert not (tmp_path / "power-cut").exists()
        child.run(three_points, tmp_path, crash=Point(2, how="power cut"))
        assert (tmp_path / "power-cut").exists()


def test_what_goes_wrong_in_a_child_is_a_clear_error() -> None:
    """And the child goes on with the next run."""
    with Child(seconds=3) as child:
        for work, said in (
            (failing, "ValueError: the work has an error"),
            (dying, "died of itself, with status -6"),
            (hanging, "more than 3 s"),
            (failing, "ValueError"),
        ):
            with pytest.raises(ChildFailed, match=said):
                child.run(work)


def test_a_child_leaves_no_process() -> None:
    """Also when it is left in the middle of a run, as by an interrupt."""

    def run() -> None:
        with pytest.raises(ChildFailed, match="has gone"):
            child.run(hanging)

    with Child(seconds=100) as child:
        runner = threading.Thread(target=run, daemon=True)
        runner.start()
        server = psutil.Process(child._process.pid)
        (fork,) = wait_until(server.children)
    runner.join(20)
    assert not runner.is_alive() and not server.is_running()
    with pytest.raises(ChildFailed, match="was closed"):
        child.run(hanging)
    wait_until(lambda: not fork.is_running() or fork.status() == psutil.STATUS_ZOMBIE)


def test_a_class_without_a_file_is_refused_with_a_way_out() -> None:
    """What is defined in a notebook's cell cannot be imported by another process."""
    mine = type("Mine", (OneBatch,), {"__module__": "__main__"})
    with pytest.raises(ChildFailed, match=r"cannot import Mine: define it in a file .*%%writefile"):
        crash(mine)


def test_a_scratch_directory_is_gone_afterwards() -> None:
    """Wherever it was."""
    with scratch_directory() as folder:
        (folder / "file").touch()
    assert not folder.exists()


def test_the_lab_needs_no_widgets_for_crashes_and_exercises() -> None:
    """Nor pytest. And a function keeps its name when the module of that name was imported first."""
    program = """
import sys
from ondisk import lab
from ondisk.lab.experiments.naive import OneBatch
import ondisk.lab.experiments.crash, ondisk.lab.exercises.check
assert callable(lab.crash) and callable(lab.check)
assert not {"ipywidgets", "IPython", "matplotlib", "pytest"} & set(sys.modules)
lab.Prediction
assert callable(lab.predict) and lab.predict is lab.Prediction
assert all(getattr(lab, name) is not None for name in lab.__all__)
try:
    lab.nothing_of_that_name
except AttributeError:
    print("done")
"""
    said = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False)
    assert said.stdout == "done\n", said.stderr


# One machine, one crash


def verdicts(crashes: list[Crashed]) -> list[str]:
    return [found.verdict for found in crashes]


TWICE = ["applied twice: 1", "whole", "applied twice: 2", "whole", "applied twice: 3", "whole"]
LOST = ["lost: 1", "whole", "lost: 2", "whole", "lost: 3", "whole"]


@pytest.mark.parametrize(
    ("machine", "killed"),
    [
        (DataFirst, TWICE),
        (IndexFirst, LOST),
        (TwoWrites, TWICE),
        (OneBatch, ["whole"] * 3),
        (DiskKV, ["whole"] * 3),
    ],
)
def test_a_kill_in_the_gap_shows_the_order_of_the_writes(machine: Any, killed: list[str]) -> None:
    """After every write of three updates; and the replay counts what the verdict says."""
    found = crash_everywhere(machine, at="written", workload=THREE)
    assert verdicts(found) == killed
    for each in found:
        assert each.total - each.last == len(each.twice) - len(each.lost)
        assert (each.machine, each.how, each.last) == (machine.__name__, "kill", 3)


def test_a_power_cut_takes_back_what_was_never_synced() -> None:
    """One batch goes back as a whole; of two files one may stay."""
    synced = Workload(updates=3, sync_every=2)
    whole = crash_everywhere(OneBatch, how="power cut", workload=synced)
    assert [(each.point, each.index, len(each.held), each.total) for each in whole] == [
        ("before write 1", 0, 0, 3),
        ("after write 1", 0, 0, 3),
        ("before write 2", 0, 0, 3),
        ("after write 2", 0, 0, 3),
        ("after sync 1", 2, 2, 3),
        ("before write 3", 2, 2, 3),
        ("after write 3", 2, 2, 3),
    ]
    crooked = crash_everywhere(TwoWrites, at="written", how="power cut", workload=synced)
    assert verdicts(crooked) == ["whole", "lost: 1", "lost: 1", "lost: 1, 2", "whole", "lost: 3"]


def test_a_point_is_a_write_or_has_a_name() -> None:
    """One that never comes leaves a machine that did everything and was never closed."""
    assert crash(DataFirst, at=3).point == "after write 3"
    assert crash(DataFirst, at="write", occurrence=2).verdict == "applied twice: 1"
    never = crash(DataFirst, at="synced")
    assert (never.index, never.verdict, never.total) == (5, "whole", 5)
    assert "not reached" in never.point
    synced = crash(OneBatch, at="synced", how="power cut", workload=Workload(sync_every=3))
    assert (synced.index, synced.point) == (3, "after sync 1")


def test_what_comes_before_the_first_update_is_not_crashed() -> None:
    """A machine has steps of its own when it is created."""
    assert [each.point for each in crash_everywhere(DiskKV, workload=Workload(updates=1))] == [
        "before write 1",
        "after write 1",
    ]


def test_half_an_update_names_the_entries_that_are_there() -> None:
    """With several keys the data need not be a prefix of the log."""
    work = Workload(updates=2, each=3, keys=3)
    assert work.held({"counter 1": 1, "counter 2": 2, "counter 0": 0}) == (1, 2, 5)
    half = Crashed("M", "kill", "after write 1", 3, (1, 2, 5), 0, 6)
    assert (half.twice, half.lost, half.verdict) == ((5,), (3,), "applied twice: 5; lost: 3")


MACHINE = """
from ondisk.lab.experiments.naive import {base}


class Mine({base}):
    pass
"""


def test_a_machine_of_a_file_is_read_afresh_each_time(tmp_path: Path) -> None:
    """So a reader may repair it and try again."""
    file = tmp_path / "mine.py"
    file.write_text(MACHINE.format(base="DataFirst"))
    assert crash(os.fspath(file), at=3).verdict == "applied twice: 2"
    file.write_text(MACHINE.format(base="OneBatch"))
    assert crash(os.fspath(file), at=3).verdict == "whole"
    file.write_text("nothing = 0\n")
    with pytest.raises(ChildFailed, match="should define one state machine, and defines 0"):
        crash(os.fspath(file))


# The cut write-ahead log


@pytest.mark.slow
def test_a_cut_log_holds_whole_batches_of_data_and_index() -> None:
    """At every byte exactly once; with two writes the gap is some bytes long."""
    work, done = Workload(updates=2), []
    cuts = cut_wal(OneBatch, workload=work, progress=lambda *of: done.append(of))
    size = cuts[-1].length
    assert [cut.length for cut in cuts] == list(range(size + 1))
    assert [(s.index, s.held) for s in stretches(cuts)] == [(0, 0), (1, 1), (2, 2)]
    assert done == sorted(done) and done[-1] == (size + 1, size + 1)

    for machine, verdict in ((DataFirst, "applied twice"), (IndexFirst, "lost")):
        found = stretches(cut_wal(machine, workload=work))
        assert [s.verdict for s in found] == ["whole", verdict, "whole", verdict, "whole"]


def test_cutting_can_be_stopped_and_still_covers_the_log() -> None:
    """By an event or by the clock, after the first few; both ends are among them."""
    work, stopped = Workload(updates=2), threading.Event()
    for cuts in (
        cut_wal(OneBatch, workload=work, seconds=0),
        cut_wal(OneBatch, workload=work, progress=lambda *_: stopped.set(), stopped=stopped),
    ):
        lengths = [cut.length for cut in cuts]
        assert lengths == sorted(set(lengths)) and lengths[0] == 0
        assert 10 <= len(lengths) < 40
        assert max(b - a for a, b in pairwise(lengths)) <= lengths[-1] / 8


@pytest.mark.parametrize("size", [0, 1, 2, 7, 64, 305])
def test_lengths_are_visited_once_and_evenly(size: int) -> None:
    """Each prefix of the order is spread over all of them."""
    order = _evenly(size)
    assert sorted(order) == list(range(size + 1))
    for count in range(2, len(order)):
        some = sorted(order[:count])
        assert max(b - a for a, b in pairwise(some)) <= 4 * size / count + 1


def test_a_machine_with_two_logs_is_refused() -> None:
    """Which of them should be cut?"""
    with pytest.raises(ValueError, match="TwoWrites has 2 write-ahead logs"):
        cut_wal(TwoWrites, workload=Workload(updates=1))


# Pictures

CRASHES = [
    Crashed("Mine<T>", "kill", "after write 1", 0, (1,), 4, 3),
    Crashed("Mine<T>", "power cut", "after write 4", 2, (), 1, 3),
    Crashed("Mine<T>", "kill", "after write 6", 3, (1, 2, 3), 3, 3),
]
CUTS = {
    "Mine<T>": [
        Cut(0, 0, 0),
        Cut(1, 0, 0),
        Cut(2, 0, 1),
        Cut(3, 0, 1),
        Cut(4, 1, 1),
        Cut(5, 2, 1),
        Cut(6, 2, 2),
    ],
    "Other": [Cut(0, 0, 0), Cut(5, 1, 1)],
}


def svg_of(picture: Picture) -> ElementTree.Element:
    """The drawing, which must be well formed."""
    start, end = picture.html.index("<svg"), picture.html.index("</svg>") + 6
    return ElementTree.fromstring(picture.html[start:end])


def texts(element: ElementTree.Element) -> list[str]:
    return [text.text or "" for text in element.iter("text")]


@pytest.mark.parametrize("make", [crash_picture, crash_table])
def test_what_a_crash_left_is_shown_in_words(make: Callable[[Any], Picture]) -> None:
    """Index, data, verdict and count of every crash: in the picture's text and in its description."""
    picture = make(CRASHES)
    assert repr(picture) == picture.words
    for each in CRASHES:
        assert str(each) in picture.words
        assert each.verdict in picture.html
        assert f"{each.total} of {each.last}" in picture.html
    assert "Mine<T>" not in picture.html and "Mine&lt;T&gt;" in picture.html


def test_index_and_data_differ_in_shape_and_stand_where_they_should() -> None:
    """Squares and discs on one scale; a line between them where they part, solid or dotted."""
    svg = svg_of(crash_picture(CRASHES))
    assert svg.attrib["aria-label"] == crash_picture(CRASHES).words
    squares = [float(square.attrib["x"]) + 7 for square in svg.iter("rect")][1:]  # the first: the legend
    discs = [float(disc.attrib["cx"]) for disc in svg.iter("circle")][1:]
    zero, last = squares[0], squares[2]
    assert [round(3 * (x - zero) / (last - zero)) for x in squares] == [0, 2, 3]
    assert [round(3 * (x - zero) / (last - zero)) for x in discs] == [1, 0, 3]
    assert [line.attrib["class"] for line in svg.iter("line") if "gap" in line.attrib["class"]] == [
        "gap",
        "gap dotted",
    ]


def test_a_cut_log_is_shown_with_its_bytes_and_its_gaps() -> None:
    """One diagram a machine; every boundary is a number, and each kind of gap a word."""
    picture = cut_picture(CUTS)
    svg = svg_of(picture)
    said = texts(svg)
    for text in ("Mine<T>", "Other", "applied twice", "lost", "0", "2", "4", "5", "6"):
        assert text in said
    assert sum(rect.attrib["class"] == "area" for rect in svg.iter("rect")) == 2
    assert "2 to 3 bytes: open() returns 0, the data holds 1, applied twice" in picture.words
    assert "5 bytes: open() returns 2, the data holds 1, lost" in picture.words
    table = cut_table(CUTS)
    assert table.html.count("<tr>") == 1 + 5 + 2
    assert "<td>2 to 3</td><td>0</td><td>1</td><td>applied twice</td>" in table.html


def test_pictures_of_nothing_are_drawn_too() -> None:
    """No crash, or a log with nothing in it."""
    svg_of(crash_picture([]))
    svg_of(cut_picture({}))
    svg_of(cut_picture({"M": [Cut(0, 0, 0)]}))


def test_the_lab_shows_them() -> None:
    """A notebook finds everything in one place."""
    assert {"crash", "crash_everywhere", "cut_wal", "cut_picture", "check", "hint"} <= set(lab.__all__)
