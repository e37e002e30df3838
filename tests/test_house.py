"""The house: imports point one way, doors are maps, old names go on working, errors are at the front door."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

import pytest

import ondisk
from ondisk import errors
from ondisk.moved import MOVED

ROOT = Path(__file__).parents[1]
ROOMS = sorted(path.parent for path in (ROOT / "ondisk").rglob("__init__.py") if path.parent.name != "ondisk")


def _lint(root: Path) -> subprocess.CompletedProcess[str]:
    """The contracts in ``pyproject.toml`` on the package in ``root``."""
    program = "import sys; from importlinter.cli import lint_imports; sys.exit(lint_imports(no_cache=True))"
    return subprocess.run(
        [sys.executable, "-c", f"import sys; sys.path.insert(0, {str(root)!r}); {program}"],
        cwd=root,
        capture_output=True,
        text=True,
        check=False,
        timeout=60,
    )


def test_imports_point_one_way_and_to_doors_only() -> None:
    done = _lint(ROOT)
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.mark.parametrize(
    ("where", "what", "contract"),
    [
        ("storage/paths.py", "from ondisk.raft.log import RaftLog", "Imports point one way"),
        ("lab/display.py", "from ondisk.raft.engine import Raft", "The inside of raft/"),
        ("new_on_top.py", "", "Imports point one way"),
        (
            "lab/experiments/load.py",
            "from ondisk.lab.pictures.drawing import Picture",
            "The lab: experiments",
        ),
        ("lab/new_room.py", "", "The lab: experiments"),
    ],
)
def test_an_arrow_that_points_back_or_inside_is_noticed(
    tmp_path: Path, where: str, what: str, contract: str
) -> None:
    """A module that stands on no floor counts, too."""
    for source in (ROOT / "ondisk").rglob("*.py"):
        copy = tmp_path / source.relative_to(ROOT)
        copy.parent.mkdir(parents=True, exist_ok=True)
        copy.write_text(source.read_text())
    (tmp_path / "pyproject.toml").write_text((ROOT / "pyproject.toml").read_text())
    with (tmp_path / "ondisk" / where).open("a") as file:
        file.write(f"\n{what}\n")
    done = _lint(tmp_path)
    assert done.returncode != 0 and contract in done.stdout + done.stderr, done.stdout + done.stderr


@pytest.mark.parametrize("room", ROOMS, ids=lambda room: str(room.relative_to(ROOT)))
def test_the_map_of_a_room_names_all_that_is_in_it_and_its_invariant(room: Path) -> None:
    text = ast.get_docstring(ast.parse((room / "__init__.py").read_text())) or ""
    inside = {path.stem for path in room.glob("*.py")} | {
        path.name for path in room.iterdir() if path.is_dir()
    }
    missing = {name for name in inside - {"__init__", "__main__", "__pycache__"} if f"``{name}" not in text}
    missing = {name for name in missing if not (name.startswith("chapter_") and "``chapter_NN``" in text)}
    assert not missing, f"{room.name}/__init__.py does not say what is in {missing}"
    assert "Imports" in text and "Invariant:" in text
    rows = [line.split()[0] for line in text.splitlines() if line.startswith("``")]
    assert len(rows) == len(set(rows)), f"{room.name}/__init__.py says twice what is in it"


@pytest.mark.parametrize("names", [sorted(MOVED), sorted(MOVED, reverse=True)], ids=["A to Z", "Z to A"])
def test_an_old_name_is_the_same_module(names: list[str]) -> None:
    """In a process of its own, that has not imported the new names."""
    program = "".join(
        f"import {name} as old, {MOVED[name]} as new; assert old is new, {name!r}\n" for name in names
    )
    subprocess.run([sys.executable, "-c", program], check=True, timeout=60)


def test_every_error_is_at_the_front_door() -> None:
    """Who catches one imports it from ``ondisk``."""
    named = {name for name, found in vars(errors).items() if isinstance(found, type)}
    assert named <= set(ondisk.__all__)
    assert all(getattr(ondisk, name) is getattr(errors, name) for name in named)
    assert all(hasattr(ondisk, name) for name in ondisk.__all__)


def test_the_battery_says_that_it_needs_pytest() -> None:
    """The rest of the room does not."""
    program = (
        "import sys; sys.modules['pytest'] = None; import ondisk.testing; ondisk.testing.CrashingDisk\n"
        "from ondisk.testing import StateMachineBattery"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False)
    assert done.stderr.endswith(
        "ImportError: ondisk.testing.StateMachineBattery needs pytest: pip install pytest\n"
    )
