"""A class: notebooks that nbgrader and otter-grader take in, and a table of what was handed in.

    python -m ondisk.lab.classroom make FOLDER        (``make class``)
    python -m ondisk.lab.classroom table FOLDER       the points of a folder of submissions
    python -m ondisk.lab.classroom progress FOLDER    what each learner's own file says

A lesson and its solutions (``notebooks/``, ``notebooks/solutions/``) become two notebooks: the instructor's,
with each solution behind the reader's own answer, and the student's, without. Behind each exercise stands a
locked cell with its points (``referee``). Neither grader is needed to make them; how to go on from there is
in ``TEACHING.md``.
"""

from __future__ import annotations

import argparse
import copy
import json
import re
import shutil
import tempfile
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from ondisk.lab import course, learner
from ondisk.lab.exercises import check

Notebook = dict[str, Any]  # as it is stored: JSON
Cell = dict[str, Any]

_BEGIN, _END = "### BEGIN SOLUTION", "### END SOLUTION"

# The module is read anew: a cell above may have put something else in place of its functions.
_POINTS = """import importlib

from ondisk.lab.exercises import referee  # looks at what you checked last

importlib.reload(referee).grade("{number}")"""

_NBGRADER = '''"""nbgrader's configuration: run it in this folder."""

c = get_config()  # noqa: F821
c.CourseDirectory.course_id = "ondisk"
c.ClearSolutions.code_stub = {"python": ""}  # the answer stands before the solution
c.ClearSolutions.enforce_metadata = True
c.Execute.timeout = 180  # seconds, for one cell
'''

_OTTER = '''"""Exercise {number}, for otter-grader."""

from otter.test_files import test_case

OK_FORMAT = False
name = "{number}"
points = {points}


@test_case()
def test_exercise():
    import importlib

    from ondisk.lab.exercises import referee

    importlib.reload(referee).grade("{number}")
'''


def make(notebooks: Path, folder: Path) -> list[str]:
    """Write all that a class needs into ``folder``; return the names of the assignments.

    ``source/`` and ``release/`` are nbgrader's, the instructor's version and the students'; ``otter/`` has
    the tests. Raises ``FileExistsError`` if there is such a folder already: a class may be at work in it.
    """
    folder.mkdir(parents=True)
    (folder / "nbgrader_config.py").write_text(_NBGRADER)
    names = []
    for lesson in sorted(notebooks.glob("[0-9][0-9]-*.ipynb")):
        solved = notebooks / "solutions" / lesson.name
        if not solved.exists():
            continue
        names.append(lesson.stem)
        instructors = with_points(read(lesson), read(solved))
        write(instructors, folder / "source" / lesson.stem / lesson.name)
        write(for_students(instructors), folder / "release" / lesson.stem / lesson.name)
        tests = folder / "otter" / lesson.stem / "tests"
        tests.mkdir(parents=True)
        for number in _checked(instructors["cells"]):
            text = _OTTER.format(number=number, points=check.points(number))
            (tests / f"{number.replace('.', '_')}.py").write_text(text)
    return names


def read(path: Path) -> Notebook:
    """A notebook as JSON."""
    found: Notebook = json.loads(path.read_text(encoding="utf-8"))
    return found


def write(notebook: Notebook, path: Path) -> None:
    """Store it, with the folders that are missing."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(notebook, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")


def with_points(lesson: Notebook, solved: Notebook) -> Notebook:
    """The instructor's version: solutions behind the answers, and a locked cell behind each exercise."""
    notebook = copy.deepcopy(lesson)
    solutions = dict(_solutions(solved["cells"]))
    cells: list[Cell] = []
    for cell in notebook["cells"]:
        cells.append(cell)
        for number in _checked([cell]):
            answer = _writes_a_file(cells) or cell
            solution = solutions[number]
            if answer is not cell:  # the file has the answer in it, and the solution's file its solution
                solution = solution.split("\n", 1)[1]
            answer["source"] = f"{source(answer)}\n\n{_BEGIN}\n{solution}\n{_END}"
            label = number.replace(".", "-")
            _mark(answer, f"answer-{label}", solution=True)
            cells.append(_points_cell(number, label))
    notebook["cells"] = cells
    return notebook


def for_students(instructors: Notebook) -> Notebook:
    """The same without what stands between ``BEGIN SOLUTION`` and ``END SOLUTION``."""
    notebook = copy.deepcopy(instructors)
    for cell in notebook["cells"]:
        cell["source"] = re.sub(rf"\n\n{_BEGIN}\n.*?\n{_END}", "", source(cell), flags=re.DOTALL)
    return notebook


def source(cell: Cell) -> str:
    """Its text, which may be stored as a list of lines."""
    return "".join(cell["source"])


def _checked(cells: Iterable[Cell]) -> Iterator[str]:
    """The numbers of the exercises that are checked in these cells."""
    for cell in cells:
        if cell["cell_type"] == "code":
            yield from re.findall(r'^lab\.check\("([\d.]+)"', source(cell), re.MULTILINE)


def _writes_a_file(cells: Sequence[Cell]) -> Cell | None:
    """The last cell but one of those that hold code, if it is the file that the last one checks."""
    code = [cell for cell in cells if cell["cell_type"] == "code"]
    checks_a_file = len(code) > 1 and source(code[-1]).startswith("lab.check(")
    return code[-2] if checks_a_file and source(code[-2]).startswith("%%writefile") else None


def _solutions(cells: Sequence[Cell]) -> Iterator[tuple[str, str]]:
    """By exercise: all code since the exercise before. A file that is written stands for the check of it."""
    since: list[Cell] = []
    for cell in cells:
        if cell["cell_type"] != "code":
            continue
        since.append(cell)
        for number in _checked([cell]):
            file = _writes_a_file(since)
            yield number, source(file) if file else "\n\n".join(map(source, since))
            since = []


def _points_cell(number: str, label: str) -> Cell:
    cell: Cell = {"cell_type": "code", "execution_count": None, "id": f"points-{label}"}
    cell |= {"metadata": {}, "outputs": [], "source": _POINTS.format(number=number)}
    _mark(cell, f"points-{label}", points=check.points(number))
    return cell


def _mark(cell: Cell, grade_id: str, *, solution: bool = False, points: int | None = None) -> None:
    """What nbgrader wants to know of a cell."""
    graded = points is not None
    mark = {"grade": graded, "grade_id": grade_id, "locked": graded, "schema_version": 3}
    mark |= {"solution": solution, "task": False} | ({"points": points} if graded else {})
    cell["metadata"]["nbgrader"] = mark


# The table


class Row(NamedTuple):
    """What one submission gets. ``marks`` has points and a reason by exercise."""

    name: str
    marks: dict[str, tuple[float, str]]

    @property
    def total(self) -> float:
        """All points."""
        return sum(points for points, _ in self.marks.values())


def table(folder: Path, seconds: float = 180.0) -> list[Row]:
    """Run every submission in ``folder`` in a kernel of its own, on a copy, and look at its exercises.

    ``seconds`` is for one cell; one that takes longer is interrupted, and the next one runs.
    """
    found = sorted(path for path in folder.rglob("*.ipynb") if ".ipynb_checkpoints" not in path.parts)
    return [Row(str(path.relative_to(folder).with_suffix("")), _run(path, seconds)) for path in found]


def _run(path: Path, seconds: float) -> dict[str, tuple[float, str]]:
    """The marks of one submission, by exercise. Its own cells with points are replaced by others."""
    import nbformat
    from nbclient import NotebookClient
    from nbclient.exceptions import DeadKernelError

    notebook: Any = nbformat.from_dict(read(path))  # type: ignore[no-untyped-call]
    numbers = list(dict.fromkeys(_checked(notebook.cells)))
    marks = {number: (0.0, "The kernel did not live until here.") for number in numbers}
    notebook.cells = [cell for cell in notebook.cells if not cell.id.startswith("points-")]
    for number in numbers:
        cell = _points_cell(number, number.replace(".", "-"))
        notebook.cells.append(nbformat.from_dict(cell))  # type: ignore[no-untyped-call]
    with tempfile.TemporaryDirectory() as copied:
        shutil.copytree(path.parent, copied, dirs_exist_ok=True)
        options: Any = {"timeout": seconds, "interrupt_on_timeout": True, "allow_errors": True}
        options["error_on_timeout"] = {
            "ename": "Timeout",
            "evalue": f"more than {seconds:g} s",
            "traceback": [],
        }
        try:
            NotebookClient(notebook, resources={"metadata": {"path": copied}}, **options).execute()
        except DeadKernelError:
            return marks
    for number, cell in zip(numbers, notebook.cells[-len(numbers) :], strict=True):
        marks[number] = _mark_of(cell)
    return marks


def _mark_of(cell: Any) -> tuple[float, str]:
    for output in cell.outputs:
        if output.output_type == "error":
            return 0.0, output.evalue
        if output.output_type == "execute_result":
            return float(output.data["text/plain"]), "Right."
    return 0.0, "No points were given."


def as_text(rows: Sequence[Row]) -> str:
    """A table for a terminal, and why something got nothing, below it."""
    numbers = sorted({number for row in rows for number in row.marks})
    wide = max([len("submission"), *(len(row.name) for row in rows)])
    head = [*numbers, "points"]
    lines = ["  ".join([f"{'submission':{wide}}", *(f"{each:>6}" for each in head)])]
    for row in rows:
        points = [f"{row.marks[each][0]:6g}" if each in row.marks else "     -" for each in numbers]
        lines.append("  ".join([f"{row.name:{wide}}", *points, f"{row.total:6g}"]))
    for row in rows:
        lines += [f"{row.name}: {why}" for points, why in row.marks.values() if not points]
    return "\n".join(lines)


def progress(folder: Path) -> str:
    """A table of all files of progress in ``folder``: exercises, and predictions as it happened, by notebook.

    They are the learners' own files, and say what those did, or wrote: points come from ``table``.
    """
    found = sorted(folder.rglob(learner.FILE))
    wide = max([len("learner"), *(len(str(path.parent.relative_to(folder))) for path in found)])
    lines = [
        "  ".join([f"{'learner':{wide}}", *(f"{number:>12}" for number in course.COURSE), "  sure, wrong"])
    ]
    for path in found:
        done = {number: course.chapter(number, learner.read(path)) for number in course.COURSE}
        cells = [
            f"{each.right}/{each.exercises}, {each.as_predicted}/{each.predicted}" for each in done.values()
        ]
        wrong = sum(each.sure_and_wrong for each in done.values())
        name = str(path.parent.relative_to(folder))
        lines.append("  ".join([f"{name:{wide}}", *(f"{cell:>12}" for cell in cells), f"{wrong:>13}"]))
    return "\n".join(lines)


def main() -> None:
    """``make``, ``table`` or ``progress``."""
    parser = argparse.ArgumentParser(prog="python -m ondisk.lab.classroom", description="A class.")
    does = parser.add_subparsers(dest="does", required=True)
    making = does.add_parser("make", help="write the notebooks of a class into a new folder")
    making.add_argument("--notebooks", type=Path, default=Path("notebooks"))
    making.add_argument("folder", type=Path)
    showing = does.add_parser("table", help="run a folder of submissions, and show their points")
    showing.add_argument("--seconds", type=float, default=180.0, help="for one cell (default: 180)")
    showing.add_argument("folder", type=Path)
    reading = does.add_parser("progress", help="show what each learner's own file says, by notebook")
    reading.add_argument("folder", type=Path)
    given = parser.parse_args()
    if given.does == "make":
        for name in make(given.notebooks, given.folder):
            print(name)
    elif given.does == "progress":
        print(progress(given.folder))
    else:
        print(as_text(table(given.folder, given.seconds)))


if __name__ == "__main__":
    main()
