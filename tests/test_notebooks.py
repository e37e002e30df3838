"""Every notebook: stored clean, and run from top to bottom; in a long run twice, and then cell by cell."""

from __future__ import annotations

import json
import os
import pkgutil
import re
from collections import Counter
from copy import deepcopy
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from tests.lengths import LONG
from tests.test_browser import CHROMIUM

if TYPE_CHECKING:
    from nbformat import NotebookNode

# Of Jupyter everything is imported where it is used: it takes seconds, and each process reads this file.

NOTEBOOKS = sorted((Path(__file__).parent.parent / "notebooks").glob("*.ipynb"))

EVERY = "ONDISK_CELLS_ALONE" in os.environ  # each notebook cell by cell takes ten minutes

COUNT = """
import asyncio, json, threading
await asyncio.sleep(0)  # cancelled tasks end
print("threads", json.dumps([thread.name for thread in threading.enumerate()]))
print("tasks", len(asyncio.all_tasks()))
from ondisk.lab.predict import _predictions, why_not
print("contradicted", [
    question
    for question, asked in _predictions.items()
    if asked.options and (happened := asked._comparison.happened) and why_not(question, happened)
])
"""

PROBE = """
panel.key.value, panel.value.value = "probe", "put by the test"
panel.put.click()
await panel.idle()
assert "put probe = put by the test: done" in panel.last_answer, panel.last_answer
panel.get.click()
await panel.idle()
assert "get probe: put by the test" in panel.last_answer, panel.last_answer
panel.refresh()
assert "Replica 1: " in panel.picture.value
print("probe", cluster.get("probe"))
panel.close()
cluster.close()
"""


def read(path: Path) -> NotebookNode:
    import nbformat

    notebook: NotebookNode = nbformat.read(path, as_version=4)  # type: ignore[no-untyped-call]
    return notebook


def code(source: str) -> NotebookNode:
    from nbformat.v4 import new_code_cell

    cell: NotebookNode = new_code_cell(source)  # type: ignore[no-untyped-call]
    return cell


def run(notebook: NotebookNode, folder: Path) -> str:
    """Execute a copy in ``folder``; return all that its cells printed. An error in a cell raises."""
    from nbclient import NotebookClient

    for number, cell in enumerate(notebook.cells):
        cell["id"] = f"cell-{number}"
    client = NotebookClient(notebook, timeout=120, resources={"metadata": {"path": str(folder)}})
    client.execute(env={**os.environ, "IPYTHONDIR": str(folder / "ipython")})
    return "".join(
        output.text
        for cell in notebook.cells
        for output in cell.get("outputs", ())
        if output.output_type == "stream"
    )


def test_there_are_notebooks() -> None:
    """The tests below do not pass for want of anything to test."""
    assert [path.name[:2] for path in NOTEBOOKS] == [
        f"{number:02}" for number in range(1, len(NOTEBOOKS) + 1)
    ]
    assert len(NOTEBOOKS) >= 6


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_a_notebook_is_stored_without_outputs(path: Path) -> None:
    """No output, no execution count, no widget state, no path of the machine it was written on."""
    import nbformat

    notebook = read(path)
    nbformat.validate(notebook)
    assert "widgets" not in notebook.metadata
    assert notebook.metadata.kernelspec.name == "python3"
    for cell in notebook.cells:
        assert not cell.get("outputs")
        assert cell.get("execution_count") is None
    text = json.dumps(notebook)
    assert "/home/" not in text
    assert str(path.parent.parent) not in text


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_a_notebook_has_one_title_and_ends_with_five_questions(path: Path) -> None:
    """Answers are one click away."""
    prose = "\n".join(cell.source for cell in read(path).cells if cell.cell_type == "markdown")
    assert sum(line.startswith("# ") for line in prose.splitlines()) == 1
    assert prose.count("<details>") == prose.count("</details>") >= 5


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_links_inside_the_project_lead_somewhere(path: Path) -> None:
    """A relative link names a file that exists."""
    for cell in read(path).cells:
        for link in cell.source.split("](")[1:]:
            target = link.split(")")[0].split("#")[0]
            if cell.cell_type == "markdown" and target and "://" not in target:
                assert (path.parent / target).exists(), target


@pytest.mark.parametrize(
    "name",
    [
        "ondisk.lab.exercises.chapter_06.film_of_6_2",
        "ondisk.lab.experiments.catch_up.Watch.until_fed",
        "ondisk.lab.experiments.runs.film_with_an_exposure",
        "ondisk.lab.experiments.sizes.show_use",
        "ondisk.lab.feeding.Watch.until_fed",
        "ondisk.lab.film.film",
        "ondisk.lab.runs.film_with_an_exposure",
    ],
)
def test_a_name_that_a_notebook_once_used_is_still_there(name: str) -> None:
    """Somebody may have copied that notebook."""
    assert callable(pkgutil.resolve_name(name))


def kinds(line: str) -> Counter[str]:
    """How many threads there are of each kind. A panel has up to four, as many as were busy at a time."""
    names = [re.sub(r"[-_ (]*\d.*", "", name) for name in json.loads(line.partition(" ")[2])]
    counted = Counter(names)
    assert counted.pop("ondisk-panel", 0) <= 4
    return counted


def hurry(cells: list[Any]) -> None:
    """A cell that tries seeds for 20 or 10 seconds does it for a quarter. With ``--long`` nothing changes."""
    quarter = {f"seconds={seconds})": f"seconds={seconds / 4})" for seconds in (10, 20)}
    for cell in cells:
        for whole, part in quarter.items():
            cell.source = cell.source.replace(whole, part)


def once_and_twice() -> list[Any]:
    """Each notebook once, unless a browser runs it, too; and each twice, with ``--long``."""
    in_browser = {"02-replication-lag"} if CHROMIUM else set()
    return [
        *(pytest.param(path, 1, id=path.stem) for path in NOTEBOOKS if path.stem not in in_browser),
        *(pytest.param(path, 2, id=f"{path.stem} twice", marks=LONG) for path in NOTEBOOKS),
    ]


@pytest.mark.slow
@pytest.mark.parametrize(("path", "times"), once_and_twice())
def test_a_notebook_runs_and_nothing_grows_when_it_runs_again(path: Path, tmp_path: Path, times: int) -> None:
    """No error; and in a long run no more threads or tasks after the second time than after the first."""
    notebook = read(path)
    if times == 1:
        hurry(notebook.cells)
    once = [*notebook.cells, code(COUNT)]
    has_panel = path.stem == "01-three-replicas"
    notebook.cells = [cell for _ in range(times) for cell in deepcopy(once)]
    notebook.cells += [code(PROBE)] if has_panel else []
    printed = run(notebook, tmp_path).splitlines()
    threads = [kinds(line) for line in printed if line.startswith("threads ")]
    tasks = [int(line.split()[1]) for line in printed if line.startswith("tasks ")]
    assert len(threads) == len(tasks) == times
    if path.stem[:2] in ("03", "04", "07", "08"):  # where what happens is no matter of speed
        assert "contradicted []" in printed  # no sentence says that what has happened cannot be
    assert not threads[-1] - threads[0]
    assert tasks[-1] <= tasks[0]
    assert ("probe b'put by the test'" in printed) == has_panel


@pytest.mark.parametrize(
    "path",
    [pytest.param(path, id=path.stem, marks=LONG) for path in NOTEBOOKS if EVERY or path.stem[:2] == "01"],
)
def test_each_cell_runs_alone_after_run_all(path: Path, tmp_path: Path) -> None:
    """From the last one to the first: no cell counts on what the one before it in the text has just done."""
    notebook = read(path)
    notebook.cells += reversed([cell for cell in deepcopy(notebook.cells) if cell.cell_type == "code"])
    run(notebook, tmp_path)
