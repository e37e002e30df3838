"""The protocol's hard cases as scripts (``tests/scenarios``): what happens today is what stands there.

``pytest tests/test_scenarios.py --update-scenarios`` writes the traces anew: look at what has changed.
"""

from __future__ import annotations

from pathlib import Path

import pytest

from tests import scenario

FOLDER = Path(__file__).parent / "scenarios"
SCRIPTS = sorted(FOLDER.glob("*.txt"))


@pytest.mark.parametrize("script", SCRIPTS, ids=lambda script: script.stem)
def test_each_step_of_a_scenario_leaves_the_trace_that_is_written_under_it(
    script: Path, tmp_path: Path, compare: scenario.Compare
) -> None:
    compare(script, scenario.run(script.read_text(encoding="utf-8"), tmp_path))


def test_each_scenario_begins_with_the_question_that_the_list_has_for_it() -> None:
    listed = (FOLDER / "README.md").read_text(encoding="utf-8")
    for script in SCRIPTS:
        question = script.read_text(encoding="utf-8").splitlines()[0].removeprefix("# ")
        assert question.endswith("?")
        assert f"| [{script.stem}]({script.name}) | {question} |" in listed
    assert listed.count(".txt) |") == len(SCRIPTS) >= 12


def test_a_command_that_does_not_exist_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="no such command: explode 1"):
        scenario.run("# Why?\n\nexplode 1\n----\n", tmp_path)
