"""The battery: DiskKV passes it, naive machines fail exactly what they should, each fault is noticed."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from xml.etree import ElementTree

import pytest

from ondisk.testing import StateMachineBattery
from tests import batteries
from tests.batteries import MUTANTS, TestDiskKV
from tests.lengths import LONG

__all__ = ["TestDiskKV"]  # the battery over DiskKV runs here

ALL = {name for name in dir(StateMachineBattery) if name.startswith("test_")}
IN_TWO_STEPS = "test_a_crash_while_recovering_leaves_the_old_state_or_the_new_one"
TWICE = "test_a_crash_at_any_write_applies_nothing_twice"
LOST = "test_a_crash_at_any_write_loses_nothing"
POWER_CUT = "test_without_sync_a_power_cut_leaves_a_prefix_and_the_index_says_which"


def run(tests: list[str], folder: Path) -> dict[tuple[str, str], str]:
    """Run tests of ``batteries.py`` in another process: (class, test) to passed, skipped or failed.

    A test with parameters has failed if it has failed with some.
    """
    report = folder / "report.xml"
    file = Path(batteries.__file__)
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", f"--junitxml={report}"]
    command += [f"--basetemp={folder / 'temp'}", *(f"{file}::{test}" for test in tests)]
    root = file.parent.parent
    ended = subprocess.run(command, cwd=root, capture_output=True, text=True, timeout=280, check=False)
    assert report.exists(), ended.stdout + ended.stderr
    outcomes: dict[tuple[str, str], str] = {}
    for case in ElementTree.parse(report).iter("testcase"):
        place = case.attrib["classname"].rpartition(".")[2], case.attrib["name"].partition("[")[0]
        failed = case.find("failure") is not None or case.find("error") is not None
        now = "failed" if failed else "skipped" if case.find("skipped") is not None else "passed"
        if outcomes.get(place) != "failed":
            outcomes[place] = now
    return outcomes


@pytest.mark.slow
@pytest.mark.parametrize(
    ("machine", "fails"),
    [
        ("OneBatch", set()),
        pytest.param("DataFirst", {TWICE, IN_TWO_STEPS}, marks=LONG),
        pytest.param("IndexFirst", {LOST, IN_TWO_STEPS}, marks=LONG),
        pytest.param("TwoWrites", {TWICE, LOST, POWER_CUT, IN_TWO_STEPS}, marks=LONG),
    ],
)
def test_each_machine_of_the_lab_fails_exactly_what_it_should(
    machine: str, fails: set[str], tmp_path: Path
) -> None:
    """Every other test is passed, none is skipped."""
    outcomes = run([f"Test{machine}"], tmp_path)
    assert {test for _, test in outcomes} == ALL
    assert {test for (_, test), outcome in outcomes.items() if outcome == "failed"} == fails
    assert "skipped" not in outcomes.values()


@pytest.mark.slow
def test_every_fault_is_noticed(tmp_path: Path) -> None:
    """Each test of the battery has a machine that it, and not only another test, must reject."""
    expected = {
        (f"TestMutant{mutant.__name__}", test): "failed"
        for mutant, tests in MUTANTS.items()
        for test in tests
    }
    samples = "test_the_sample_commands_show_what_is_left_out_or_applied_twice"
    expected["TestSamplesThatProveNothing", samples] = "failed"
    assert run(["::".join(place) for place in expected], tmp_path) == expected
    assert {test for _, test in expected} == ALL
