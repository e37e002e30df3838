"""A class: what students get, what instructors get, and what five submissions are given by three graders."""

from __future__ import annotations

import csv
import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from ondisk import lab
from ondisk.lab import classroom
from ondisk.lab.classroom import Notebook, make, read, source, write
from ondisk.lab.exercises import check
from ondisk.lab.exercises.referee import NotRight, grade
from ondisk.lab.predict import questions

ROOT = Path(__file__).parents[1]
NOTEBOOKS = ROOT / "notebooks"


@pytest.fixture(scope="module")
def course(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A class of all notebooks."""
    folder = tmp_path_factory.mktemp("class") / "class"
    make(NOTEBOOKS, folder)
    return folder


def test_each_notebook_with_solutions_is_an_assignment_with_points_for_each_exercise(course: Path) -> None:
    """The same ones for nbgrader and for otter."""
    for solved in (NOTEBOOKS / "solutions").glob("*.ipynb"):
        numbers = check.exercises(int(solved.name[:2]))
        for version in ("source", "release"):
            cells = read(course / version / solved.stem / solved.name)["cells"]
            marks = [cell["metadata"]["nbgrader"] for cell in cells if "nbgrader" in cell["metadata"]]
            graded = {mark["grade_id"]: mark["points"] for mark in marks if mark["grade"]}
            assert graded == {f"points-{each.replace('.', '-')}": check.points(each) for each in numbers}
            assert all(mark["locked"] == mark["grade"] != mark["solution"] for mark in marks)
            assert len({cell["id"] for cell in cells}) == len(cells)
        tests = sorted((course / "otter" / solved.stem / "tests").glob("*.py"))
        assert [path.stem.replace("_", ".") for path in tests] == numbers
        for path in tests:
            compile(path.read_text(), str(path), "exec")


def test_students_get_no_solution_and_instructors_get_all(course: Path) -> None:
    """A student's version is the lesson with cells for points, and nothing else."""
    for lesson in (course / "release").rglob("*.ipynb"):
        cells = read(lesson)["cells"]
        own = [source(cell) for cell in cells if not cell["id"].startswith("points-")]
        assert own == [source(cell) for cell in read(NOTEBOOKS / lesson.name)["cells"]]
        instructors = read(course / "source" / lesson.stem / lesson.name)["cells"]
        numbers = check.exercises(int(lesson.name[:2]))
        assert sum("BEGIN SOLUTION" in source(cell) for cell in instructors) == len(numbers)


def test_a_class_that_is_there_is_not_written_over(course: Path) -> None:
    with pytest.raises(FileExistsError):
        make(NOTEBOOKS, course)


# Points


def freed(view: Path) -> int:
    files = [path.stat() for path in view.iterdir()]
    return sum(file.st_size for file in files if file.st_nlink == 1)


def test_points_are_a_plain_number_and_what_is_wrong_raises_with_the_reason() -> None:
    """nbgrader takes a number in a cell for points, and everything else but an error for all of them."""
    lab.check("4.3", freed)
    points = grade("4.3")
    assert points == check.points("4.3") == float(repr(points)) and "Right" in points.why
    lab.check("4.3", lambda view: 0)
    with pytest.raises(NotRight, match=r"No points for exercise 4\.3"):
        grade("4.3")
    lab.check("4.3", ...)
    with pytest.raises(NotRight, match="No answer yet"):
        grade("4.3")


def _for_ever(view: Path) -> None:
    while True:
        try:
            sum(range(1000))
        except Exception:
            continue


def _ends_its_process(view: Path) -> None:
    print("2")
    os._exit(0)


@pytest.mark.parametrize(
    ("answer", "why"),
    [
        (_for_ever, "more than 0.5 s"),
        (_ends_its_process, "ended the process"),
        (sys._getframe(), "handed over"),
    ],
    ids=["no end", "exit", "no pickle"],
)
def test_an_answer_that_does_not_come_back_gets_no_points(answer: object, why: str) -> None:
    check._answers["4.3"] = (answer,)
    with pytest.raises(NotRight, match=why):
        grade("4.3", seconds=0.5)
    check._answers.clear()


def test_check_itself_ends_what_has_no_end() -> None:
    """Or the cell would run for ever, and the grader with it."""
    assert "more than 0.1 s" in check.decide("4.3", (_for_ever,), 0.1).text


# A small class

_POISON = """
import ondisk.lab.exercises.check, ondisk.lab.exercises.referee, shutil
lab.grade = ondisk.lab.exercises.referee.grade = lambda number: 100
ondisk.lab.exercises.check.decide = lambda *_: ondisk.lab.exercises.check.Feedback("4.1", True, "Right.")
ondisk.lab.exercises.check._exercises["4.1"].decide = lambda *_: None
ondisk.lab.exercises.check.points = lambda number: 100
shutil.rmtree("example-data", ignore_errors=True)
open("ondisk.py", "w").write("raise SystemExit(0)")
print("100")
"""

STUDENTS: dict[str, tuple[dict[str, str], float]] = {
    "empty": ({}, 0),
    "wrong": ({"4-1": "answer = 41", "4-3": "def freed(view): return 3", "4-4": 'answer = {"current"}'}, 0),
    "right": (
        {
            "4-1": "answer = 40e9 / (5_000 * 200)",
            "4-3": "def freed(view):\n"
            "    return sum(file.stat().st_size for file in view.iterdir() if file.stat().st_nlink == 1)",
            "4-4": 'answer = {"current.new", "db-000005", "db-000007", "view-000002"}',
        },
        4,
    ),
    "slow": ({"4-1": "answer = 40_000", "4-3": "def freed(view):\n    while True: pass"}, 1),
    "malicious": (
        {
            "4-1": f"{_POISON}\nanswer = 5",
            "4-3": "def freed(view):\n    import os\n    print('2.0')\n    os._exit(0)",
            "4-4": 'answer = {"current.new", "db-000005", "db-000007", "view-000002"}',
        },
        1,
    ),
}
"""By name: what they write in place of the beginning of an answer, and the points that are due."""

NAME = "04-small"


def small_class(folder: Path) -> Path:
    """Three exercises of notebook 4, without the lesson."""
    lessons = folder / "lessons"
    for place in ("", "solutions"):
        whole = read(NOTEBOOKS / place / "04-snapshots.ipynb")
        code = [cell for cell in whole["cells"] if cell["cell_type"] == "code"]
        kept = [cell for cell in code if any(f'check("4.{number}"' in source(cell) for number in (1, 3, 4))]
        first = {**code[0], "source": "from ondisk import lab", "id": "first"}
        write({**whole, "cells": [first, *kept]}, lessons / place / f"{NAME}.ipynb")
    make(lessons, folder / "class")
    return folder / "class"


def submission(released: Notebook, answers: dict[str, str]) -> Notebook:
    """The students' version, filled in."""
    notebook: Notebook = json.loads(json.dumps(released))
    for cell in notebook["cells"]:
        mark = cell["metadata"].get("nbgrader", {}).get("grade_id", "")
        if mark.startswith("answer-") and (answer := answers.get(mark[len("answer-") :])):
            cell["source"] = f"{answer}\n{source(cell)[source(cell).index('lab.check(') :]}"
    return notebook


def hand_in(course: Path, released: Path) -> Path:
    """Five submissions, where nbgrader looks for them."""
    for name, (answers, _) in STUDENTS.items():
        write(submission(read(released), answers), course / "submitted" / name / NAME / f"{NAME}.ipynb")
    return course / "submitted"


DUE = {name: points for name, (_, points) in STUDENTS.items()}


@pytest.mark.long
@pytest.mark.slow
def test_the_table_of_a_folder_has_the_points_that_are_due(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """And says why there are none."""
    monkeypatch.setenv("ONDISK_CHECK_SECONDS", "2")
    course = small_class(tmp_path)
    rows = classroom.table(hand_in(course, course / "release" / NAME / f"{NAME}.ipynb"), seconds=30)
    assert {row.name.partition("/")[0]: row.total for row in rows} == DUE
    text = classroom.as_text(rows)
    assert "No answer yet" in text and "Does it come to an end?" in text and "ended the process" in text


def class_environment() -> Path:
    """A virtual environment with both graders. Made once; skips where it cannot be made."""
    place, lock = ROOT / ".venv-class", ROOT / "class.lock"
    stamp = place / "made-of"
    if not stamp.exists() or stamp.read_text() != lock.read_text():
        shutil.rmtree(place, ignore_errors=True)
        pip = [str(place / "bin" / "python"), "-m", "pip", "--disable-pip-version-check", "install", "-q"]
        for command in ([sys.executable, "-m", "venv", str(place)], [*pip, "-r", str(lock)]):
            done = subprocess.run(command, capture_output=True, text=True, check=False)
            if done.returncode:
                pytest.skip(f"no environment with the graders: {done.stderr.strip()[-200:]}")
        stamp.write_text(lock.read_text())
    return place / "bin"


def by_nbgrader(programs: Path, course: Path, run: Callable[..., str]) -> dict[str, float]:
    nbgrader = [str(programs / "python"), "-m", "nbgrader"]
    run([*nbgrader, "autograde", NAME], course)
    run([*nbgrader, "export", "--to", "grades.csv"], course)
    with (course / "grades.csv").open() as file:
        return {row["student_id"]: float(row["score"]) for row in csv.DictReader(file)}


# One process for all of them: importing otter takes longer than grading does.
_OTTER = """
import json, sys
from pathlib import Path
from otter.api import grade_submission

points = {}
for path in sorted(Path("submitted").rglob("*.ipynb")):
    found = grade_submission(str(path), sys.argv[1], quiet=True)
    points[path.parts[1]] = sum(found.get_score(name) for name in found.results)
Path("otter.json").write_text(json.dumps(points))
"""


def by_otter(programs: Path, course: Path, run: Callable[..., str]) -> dict[str, float]:
    tests = course / "otter" / NAME
    run([str(programs / "otter"), "generate", "-t", "tests", "-o", "autograder.zip"], tests)
    run([str(programs / "python"), "-c", _OTTER, str(tests / "autograder.zip")], course)
    points: dict[str, float] = json.loads((course / "otter.json").read_text())
    return points


@pytest.mark.long
@pytest.mark.slow
@pytest.mark.timeout(1800)  # the first time it installs both
def test_nbgrader_and_otter_give_five_submissions_the_points_due(tmp_path: Path) -> None:
    """Real graders, in an environment of their own; the students' version is the one that nbgrader makes."""
    programs = class_environment()
    course = small_class(tmp_path)
    environment = {
        **os.environ,
        "PATH": f"{programs}{os.pathsep}{os.environ['PATH']}",
        "PYTHONPATH": str(ROOT),
        "ONDISK_CHECK_SECONDS": "2",
        "HOME": str(tmp_path),
        "IPYTHONDIR": str(tmp_path / "ipython"),
        "JUPYTER_DATA_DIR": str(tmp_path / "jupyter"),
    }

    def run(command: list[str], folder: Path) -> str:
        done = subprocess.run(
            command, cwd=folder, env=environment, capture_output=True, text=True, check=False
        )
        assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
        return done.stdout

    ours = read(course / "release" / NAME / f"{NAME}.ipynb")
    shutil.rmtree(course / "release")
    run([str(programs / "python"), "-m", "nbgrader", "generate_assignment", NAME], course)
    released = course / "release" / NAME / f"{NAME}.ipynb"
    theirs = [source(cell).rstrip() for cell in read(released)["cells"]]
    assert theirs == [source(cell).rstrip() for cell in ours["cells"]]
    hand_in(course, released)
    with ThreadPoolExecutor() as pool:
        graders = [pool.submit(grader, programs, course, run) for grader in (by_nbgrader, by_otter)]
    assert [grader.result() for grader in graders] == [DUE, DUE]


def test_the_page_for_teachers_has_the_numbers_and_sections_that_there_are() -> None:
    """Exercises, points and predictions by notebook; files and headings that it sends teachers to."""
    page = (ROOT / "TEACHING.md").read_text()
    rows = re.findall(r"^\| \[0(\d)\]\((\S+)\) .*\| (\d+) \((\d+)\) \| (\d+) \|", page, re.MULTILINE)
    assert [
        (int(number), int(exercises), int(points), int(asked)) for number, _, exercises, points, asked in rows
    ] == [
        (
            number,
            len(check.exercises(number)),
            sum(check.points(each) for each in check.exercises(number)),
            len(questions(number)),
        )
        for number in range(1, 9)
    ]
    for link in re.findall(r"\]\(([^)#:]+)\)", page):
        assert (ROOT / link).exists(), link
    headings = {
        number: re.findall(r"^## (.+)$", "\n".join(source(cell) for cell in read(ROOT / file)["cells"]), re.M)
        for number, file, *_ in rows
    }
    for number, heading in re.findall(r"\b0(\d), \*(.+?)\*", page):
        assert heading in headings[number], heading
    for command in re.findall(r"python -m ondisk\.lab\.classroom (\w+)", page):
        assert command in ("make", "table", "progress")


def test_every_reference_of_the_paper_is_listed() -> None:
    """And nothing is listed that is not cited."""
    cited = set(re.findall(r"@(\w+)", (ROOT / "paper.md").read_text().partition("---\n\n")[2]))
    assert cited == set(re.findall(r"^@\w+\{(\w+),", (ROOT / "paper.bib").read_text(), re.MULTILINE))
    written = len([each for number in range(1, 9) for each in check.exercises(number)])
    assert written == 32, "paper.md says Thirty-two"
