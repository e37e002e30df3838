"""The machine that makes faults (``mutation.py``) makes them, and sees that they are noticed."""

from __future__ import annotations

import ast
import subprocess
import sys

from tests.mutation import ENGINE, ROOMS, ROOT, TESTS, File, places

SOURCE = """
def f(self, limit: int = 3):
    assert limit > 0
    logger.info("%d", 5)
    if limit < 2 and not self.full:
        self.count = 7
"""


def test_each_operator_number_condition_and_statement_is_changed() -> None:
    (function,) = ast.parse(SOURCE).body
    before = ast.unparse(function)
    changed = []
    for place in places(function):
        old = place.put(place.new)
        changed.append(ast.unparse(function).splitlines()[-2:])
        place.put(old)
    assert ast.unparse(function) == before
    conditions = [line[0].strip() for line in changed if line[1].strip() == "self.count = 7"]
    assert sorted(conditions) == [
        "if limit < 1 and (not self.full):",
        "if limit < 2 and self.full:",
        "if limit < 2 or not self.full:",
        "if limit < 2:",
        "if limit < 3 and (not self.full):",
        "if limit <= 2 and (not self.full):",
        "if limit >= 2 and (not self.full):",
        "if not (limit < 2 and (not self.full)):",
        "if not self.full:",
    ]
    statements = [
        line[1].strip() for line in changed if line[0].strip() == "if limit < 2 and (not self.full):"
    ]
    assert sorted(statements) == ["pass", "self.count = 6", "self.count = 8"]


def test_a_fault_is_tried_and_noticed() -> None:
    command = [sys.executable, "-m", "tests.mutation", "--count", "3", "--seed", "1", "raft/members.py"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "'noticed': 3, 'NOT NOTICED': 0" in done.stderr


def test_every_file_of_the_engine_is_in_the_table_and_its_tests_are_there() -> None:
    files = [path for room in ROOMS for path in (ENGINE / room).glob("*.py")]
    names = {str(path.relative_to(ENGINE)) for path in files}
    assert {name for name in names if File(name).places} <= TESTS.keys()
    for name, tests in TESTS.items():
        assert (ENGINE / name).exists()
        for test in tests.split():
            assert (ROOT / "tests" / f"test_{test}.py").exists()
