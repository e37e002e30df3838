"""The rules of docs/protocol.md: explored to the end with all of them, and with each of them switched off.

`tests/counterexamples` keeps the shortest one for each rule, to be read. ``--update-scenarios`` writes them
anew (with ``--long`` the others); look at what has changed. ``--long`` explores the wider bounds.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from ondisk.simulation.model import CASES, LIMITS, NOT_FOR_SAFETY, Case, Off, Outcome, Step, explore, replay
from tests.lengths import LONG
from tests.scenario import Compare

COUNTEREXAMPLES = Path(__file__).parent / "counterexamples"
PROTOCOL = Path(__file__).parent.parent / "docs" / "protocol.md"
# Without --long these counterexamples, which have many steps, are only gone again from their files.
FAR = {"F2-last", "F4", "F4-round", "C1-term"}
SWITCHED = [(case, rule) for case in CASES for rule in case.rules]


def wide(case: Case, *rules: str) -> Any:
    """A case as a parameter, for the long run if it takes that."""
    long = not FAR.isdisjoint(rules) if rules else case.long
    return pytest.param(case, *rules, marks=LONG if long else [])


def file_of(case: Case, rule: str) -> Path:
    return COUNTEREXAMPLES / f"{rule}-{re.sub('[^a-z0-9]+', '-', case.name.lower())}.txt"


def written(case: Case, rule: str, outcome: Outcome) -> str:
    """As it stands in the file."""
    lines = [f"Without {rule}: {case.name}.", "", str(outcome), ""]
    if rule == "limit":
        lines[0] = f"No rule keeps this away: {case.name}."
    else:
        allowed = replay(case.model, outcome.steps)
        lines.append(f"With {rule}, step {allowed + 1} does not happen.\n")
    return "\n".join(lines)


def steps_in(text: str) -> tuple[str, ...]:
    return tuple(re.findall(r"^ *\d+\. (.*)$", text, re.MULTILINE))


@pytest.mark.parametrize("case", [wide(case) for case in CASES], ids=lambda case: case.name)
def test_with_all_rules_no_state_breaks_an_invariant(case: Case) -> None:
    outcome = explore(case.model)
    print(f"{case.name}: {outcome.states} states")
    assert outcome.broken is None, str(outcome)
    assert outcome.states > 1
    assert f"| {case.name} | {outcome.states:,} |" in PROTOCOL.read_text(encoding="utf-8")


@pytest.mark.parametrize(
    ("case", "rule"), [wide(*each) for each in SWITCHED], ids=lambda value: getattr(value, "name", value)
)
def test_without_a_rule_the_shortest_counterexample_is_the_one_on_file(
    case: Case, rule: str, compare: Compare
) -> None:
    outcome = explore(case.model, rule)
    assert outcome.broken is not None, f"{rule} is not needed: {outcome.states} states"
    compare(file_of(case, rule), written(case, rule, outcome))


@pytest.mark.parametrize("case", [wide(case) for case in LIMITS], ids=lambda case: case.name)
def test_what_no_rule_keeps_away_is_found_and_on_file(case: Case, compare: Compare) -> None:
    outcome = explore(case.model)
    assert outcome.broken is not None, "a limit that is none: say so in docs/protocol.md"
    compare(file_of(case, "limit"), written(case, "limit", outcome))


@pytest.mark.parametrize(("case", "rule"), SWITCHED, ids=lambda value: getattr(value, "name", value))
def test_each_scenario_can_happen_without_its_rule_and_cannot_with_it(case: Case, rule: str) -> None:
    steps = steps_in(file_of(case, rule).read_text(encoding="utf-8"))
    assert steps
    assert replay(case.model, steps, rule) == len(steps)
    assert replay(case.model, steps) < len(steps)


@pytest.mark.parametrize("case", LIMITS, ids=lambda case: case.name)
def test_each_limit_on_file_can_happen_with_all_rules(case: Case) -> None:
    steps = steps_in(file_of(case, "limit").read_text(encoding="utf-8"))
    assert steps
    assert replay(case.model, steps) == len(steps)


def test_each_rule_of_the_page_is_switched_off_somewhere_or_has_a_reason() -> None:
    on_the_page = set(
        re.findall(r"^- \*\*([A-Z]\d)\.\*\*", PROTOCOL.read_text(encoding="utf-8"), re.MULTILINE)
    )
    shown = {rule.split("-")[0] for _, rule in SWITCHED}
    assert len(on_the_page) > 20
    assert shown | set(NOT_FOR_SAFETY) == on_the_page
    assert not shown & set(NOT_FOR_SAFETY)


def test_each_file_belongs_to_a_rule() -> None:
    expected = {file_of(case, rule) for case, rule in SWITCHED} | {file_of(case, "limit") for case in LIMITS}
    assert set(COUNTEREXAMPLES.glob("*.txt")) == expected


class Walk:
    """Steps of one and of three, to 7. There is a way of seven steps, and one of three."""

    def start(self) -> int:
        return 0

    def steps(self, state: int, off: Off) -> Iterator[Step]:
        for far in (1, 3):
            if state + far <= 7:
                yield f"{far} farther", state + far

    def broken(self, state: Any) -> str | None:
        return "there" if state == 7 else None


def test_the_way_that_is_found_is_a_shortest_one_and_can_be_gone_again() -> None:
    outcome = explore(Walk())
    assert outcome.broken == "there"
    assert sorted(outcome.steps) == ["1 farther", "3 farther", "3 farther"]
    assert replay(Walk(), outcome.steps) == 3
    assert replay(Walk(), ("3 farther", "3 farther", "3 farther")) == 2


def test_bounds_that_are_too_wide_are_an_error_and_no_silence() -> None:
    with pytest.raises(MemoryError, match="too wide"):
        explore(CASES[-1].model, limit=100)
