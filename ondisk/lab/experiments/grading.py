"""A file of tests, run by pytest in a process of its own."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

_SECONDS = 100.0  # then it is given up


@dataclass(frozen=True)
class Grade:
    """What the tests say: how many passed, which failed (with their class), and why the first did."""

    passed: int
    failed: tuple[str, ...]
    why: str

    def __repr__(self) -> str:
        lines = [f"{self.passed} passed, {len(self.failed)} failed", *(f"  {name}" for name in self.failed)]
        return "\n".join([*lines, self.why] if self.why else lines)


def grade(file: Path | str, only: str = "") -> Grade:
    """Run the tests in ``file``; ``only`` is an expression as for ``pytest -k``.

    Raises ``ValueError`` if there is nothing that pytest could run, and says what it says.
    """
    file = Path(file).resolve()
    command = [sys.executable, "-m", "pytest", "-q", "-rfE", "--tb=short", "--color=no"]
    command += ["-p", "no:cacheprovider", "-c", "/dev/null", "--rootdir", str(file.parent), str(file)]
    done = subprocess.run(
        [*command, "-k", only] if only else command,
        capture_output=True,
        text=True,
        check=False,
        timeout=_SECONDS,
        cwd=file.parent,
        env={**os.environ, "COLUMNS": "1000"},  # else a reason is cut short
    )
    failed = tuple(re.findall(r"^(?:FAILED|ERROR) \S+?::([\w:]+)", done.stdout, re.MULTILINE))
    counted = re.search(r"(\d+) passed", done.stdout)
    if counted is None and not failed:
        errors = re.findall(r"^E +(.+)$", done.stdout, re.MULTILINE)
        raise ValueError(errors[-1] if errors else (done.stdout + done.stderr).strip()[-400:])
    why = re.findall(r"^(?:FAILED|ERROR) \S+ - (.+)$", done.stdout, re.MULTILINE)
    return Grade(int(counted[1]) if counted else 0, failed, why[0] if why else "")
