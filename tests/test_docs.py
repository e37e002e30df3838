"""The documents name tests, files, classes and functions that exist, and draw the house as it is."""

from __future__ import annotations

import ast
import json
import os
import re
import shutil
import subprocess
import tomllib
from functools import cache
from pathlib import Path

import pytest

from tests.mutants import MUTANTS
from tests.processes import free_ports

ROOT = Path(__file__).parent.parent


@pytest.mark.parametrize("document", sorted((ROOT / "docs").glob("*.md")), ids=lambda path: path.name)
def test_every_test_that_a_document_names_exists(document: Path) -> None:
    """A table of promises is worth as much as its tests."""
    sources = [*(ROOT / "tests").glob("*.py"), *(ROOT / "ondisk" / "testing").glob("*.py")]
    defined = set(re.findall(r"def (test_\w+)", "".join(path.read_text() for path in sources)))
    files = {path.stem for path in sources}
    named = set(re.findall(r"\b(test_\w+)\b(?!\.\.\.)", document.read_text()))
    assert named <= defined | files


def test_the_table_of_faults_is_the_list_that_can_be_run() -> None:
    """And each fault can still be made: the text that it changes is there, once."""
    table = (ROOT / "docs" / "mutations.md").read_text()
    rows = re.findall(r"^\| `(.+?)` \| (.+?) \|", table, re.MULTILINE)
    assert rows == [(mutant.file, mutant.name) for mutant in MUTANTS]
    for mutant in MUTANTS:
        assert (ROOT / "ondisk" / mutant.file).read_text().count(mutant.old) == 1, mutant.name
        assert all(name in table for name in mutant.test.split("::")), mutant.name


@pytest.mark.skipif(shutil.which("make") is None, reason="there is no make")
def test_make_lab_opens_the_first_notebook_also_for_root() -> None:
    """JupyterLab refuses root unless told otherwise, and prints the address that it is to open."""
    recipe = subprocess.run(
        ["make", "-n", "lab"], cwd=ROOT, capture_output=True, text=True, check=True
    ).stdout
    notebook = re.search(r"default_url=/lab/tree/(\S+)", recipe)
    assert notebook is not None and (ROOT / notebook[1]).exists()
    assert ("--allow-root" in recipe) == (os.getuid() == 0)


def test_every_message_that_the_manual_quotes_is_said() -> None:
    """Who sees a message looks for its words. Numbers and names in it are filled in."""
    literals = "".join(path.read_text() for path in (ROOT / "ondisk").rglob("*.py"))
    said = re.sub(r'"\s*\n\s*f?"', "", literals)  # a sentence over two lines
    said = re.sub(r"\{[^{}]*\}", "#", said)
    quoted = re.findall("“(.+?)”", (ROOT / "docs" / "operating.md").read_text())
    assert len(quoted) > 15
    for message in quoted:
        words = re.split(r"\[[\d, ]+\]|\d+(?:, \d+)*", message)
        for part in filter(None, (word.strip() for word in words)):
            assert part in said or part.replace("replicas", "replica#") in said, message


def test_the_readme_runs_as_it_is_written_and_once_more(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A reader pastes it, and pastes it again; what the first run has left does not matter."""
    monkeypatch.chdir(tmp_path)
    group, member = re.findall(r"```python\n(.*?)```", (ROOT / "README.md").read_text(), re.DOTALL)
    for _ in range(2):
        exec(group, {})
    (port,) = free_ports(1)
    exec(member.replace("[1, 2, 3]", "[1]").replace("63001", str(port)), {})


@pytest.mark.parametrize("document", sorted((ROOT / "docs").glob("*.md")), ids=lambda path: path.name)
def test_every_file_that_a_document_links_exists(document: Path) -> None:
    links = re.findall(r"\]\(([^)#:]+)(?:#[^)]*)?\)", document.read_text(encoding="utf-8"))
    assert [link for link in links if not (document.parent / link).exists()] == []


ARCHITECTURE = (ROOT / "docs" / "architecture.md").read_text(encoding="utf-8")
WALKS = ("A put", "A get", "A snapshot", "A press of a button in the panel")
GROUPS = dict.fromkeys(("cluster", "node", "stepping", "events", "client"), "entrance") | dict.fromkeys(
    ("diskkv", "sessions", "statemachine"), "machine"
)


@cache
def parsed(file: Path) -> ast.Module:
    return ast.parse(file.read_text(encoding="utf-8"))


def names_in(tree: ast.Module | ast.ClassDef) -> dict[str, ast.AST]:
    """What a module or a class defines, by name."""
    defined: dict[str, ast.AST] = {}
    for each in tree.body:
        if isinstance(each, ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
            defined[each.name] = each
        elif isinstance(each, ast.Assign | ast.AnnAssign):
            targets = each.targets if isinstance(each, ast.Assign) else [each.target]
            named = [name for target in targets for name in ast.walk(target)]
            defined |= {name.id: each for name in named if isinstance(name, ast.Name)}
    return defined


def is_defined(file: Path, name: str) -> bool:
    """``name`` is a class, a function or a constant of this file, or ``Class.method``."""
    place: ast.AST = parsed(file)
    for part in name.split("."):
        if not isinstance(place, ast.Module | ast.ClassDef) or part not in names_in(place):
            return False
        place = names_in(place)[part]
    return True


def section(title: str) -> str:
    found = re.search(rf"^## {re.escape(title)}\n(.*?)(?=^## |\Z)", ARCHITECTURE, re.MULTILINE | re.DOTALL)
    assert found, title
    return found[1]


def test_every_file_and_every_name_of_the_architecture_is_there() -> None:
    """``file.py``: ``name`` is in that file; a name of a class and a method, anywhere; a folder, too."""
    pairs = re.findall(r"`([\w/]+\.py)`: `([\w.]+)`", ARCHITECTURE)
    assert len(pairs) > 60
    assert [(file, name) for file, name in pairs if not is_defined(ROOT / "ondisk" / file, name)] == []
    anywhere = {
        f"{name}.{inner}"
        for file in (ROOT / "ondisk").rglob("*.py")
        for name, each in names_in(parsed(file)).items()
        if isinstance(each, ast.ClassDef)
        for inner in names_in(each)
    }
    assert set(re.findall(r"`([A-Z]\w+\.\w+)`", ARCHITECTURE)) <= anywhere
    outside_of_code = re.sub(r"```.*?```", "", ARCHITECTURE, flags=re.DOTALL)
    for path in re.findall(r"`([\w/]+(?:\.py|/))`", outside_of_code):
        folders = (ROOT, ROOT / "ondisk", ROOT / "ondisk" / "lab")
        assert any((folder / path).exists() for folder in folders), path


def test_every_term_of_the_glossary_is_where_it_says() -> None:
    """Term, meaning, source, place; by name, so that a term is found."""
    lines = (ROOT / "docs" / "glossary.md").read_text(encoding="utf-8").splitlines()
    rows = [line for line in lines if line.startswith("| ")][1:]
    places = [re.fullmatch(r"\| (.+) \| .+ \| .* ?\| `([\w/]+\.py)`: `([\w.]+)` \|", row) for row in rows]
    assert len(rows) > 40
    wrong = [
        row
        for row, at in zip(rows, places, strict=True)
        if not at or not is_defined(ROOT / "ondisk" / at[2], at[3])
    ]
    assert wrong == []
    terms = [at[1].casefold() for at in places if at]
    assert terms == sorted(terms)


@pytest.mark.parametrize("title", WALKS)
def test_a_walk_has_at_most_six_rooms_in_the_order_of_the_imports(title: str) -> None:
    """And all files that it names are in them."""
    contract = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["importlinter"]["contracts"][0]
    floor = {name: n for n, layer in enumerate(contract["layers"]) for name in layer.split(" | ")}
    floor |= {"entrance": floor["cluster"], "machine": floor["diskkv"]}
    text = section(title)
    rooms = re.findall(r"`(\w+)`", re.search(r"^Rooms: (.*)$", text, re.MULTILINE)[1])  # type: ignore[index]
    assert 2 <= len(rooms) == len(set(rooms)) <= 6
    floors = [floor[room] for room in rooms]
    assert floors == sorted(set(floors))  # from the top down, no two on one
    visited = {path.split("/")[0].removesuffix(".py") for path in re.findall(r"`([\w/]+\.py)`: ", text)}
    assert {GROUPS.get(room, room) for room in visited} <= set(rooms)
    assert set(re.findall(r"\*\*(\w+)\*\*", text)) >= set(rooms)


def test_ten_things_are_found_in_the_house() -> None:
    rows = re.findall(r"^\| .+ \| .+ \| (`.+\.py`: `.+) \|$", section("Where is ...?"), re.MULTILINE)
    assert len(rows) == 10


def test_the_house_is_as_it_is_drawn() -> None:
    """Each arrow is an import, and each import is an arrow, or follows from several."""
    drawn = re.search(r"```mermaid\n(.*?)```", section("The house"), re.DOTALL)
    assert drawn
    arrows = re.findall(r"^ *(\w+) --> (\w+)$", drawn[1], re.MULTILINE)
    rooms = set(re.findall(r"^ *(\w+)\[\"[\w.]+/?\"\]$", drawn[1], re.MULTILINE))
    there = {path.stem for path in (ROOT / "ondisk").iterdir() if path.suffix == ".py" or path.is_dir()}
    assert rooms == there - {"__init__", "__main__", "__pycache__", "moved", "py"}
    imports = set()
    for file in (ROOT / "ondisk").rglob("*.py"):
        room = file.relative_to(ROOT / "ondisk").parts[0].removesuffix(".py")
        for each in ast.walk(parsed(file)):
            if isinstance(each, ast.ImportFrom) and (each.module or "").split(".")[0] == "ondisk":
                inside = (each.module or "").split(".")[1:2] or [alias.name for alias in each.names]
                imports |= {(room, name) for name in inside if room in rooms and name in rooms - {room}}
    imports -= {("inspect", "cli"), ("simulation", "lab")}  # only as programs
    assert set(arrows) <= imports
    reached = set(arrows)
    while more := {(a, d) for a, b in reached for c, d in reached if b == c} - reached:
        reached |= more
    assert imports <= reached


@pytest.mark.parametrize("notebook", sorted((ROOT / "notebooks").glob("*.ipynb")), ids=lambda path: path.stem)
def test_a_chapter_begins_with_its_invariants_and_ends_with_a_checkpoint(notebook: Path) -> None:
    """Each question has an answer, and a link to a heading of this notebook, as JupyterLab names it."""
    cells = json.loads(notebook.read_text(encoding="utf-8"))["cells"]
    texts = ["".join(cell["source"]) for cell in cells if cell["cell_type"] == "markdown"]
    assert re.match(r"# .+\n\n\*\*Invariants: .+\*\*\n\n(- .+\n){3,4}\n\*\*After this notebook", texts[0])
    assert cells[-1]["cell_type"] == "markdown" and texts[-1].startswith("## Checkpoint\n")
    headings = {
        title.replace(" ", "-")
        for text in texts[:-1]
        for title in re.findall(r"^## (.+)$", text, re.MULTILINE)
    }
    questions = texts[-1].split("<details>")[1:]
    assert 3 <= len(questions) <= 5
    for question in questions:
        shown = re.findall(r"\]\(#([\w,.:?-]+)\)", question)  # a browser escapes what else there may be
        assert shown and set(shown) <= headings
