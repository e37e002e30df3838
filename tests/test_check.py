"""Exercises: feedback that says what is wrong, three hints, and solutions that are right."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from ondisk.lab import check as module  # the function of that name
from ondisk.lab import crash, hint, runs
from ondisk.lab.exercises.chapter_06 import trace_of_6_2
from ondisk.lab.exercises.check import HINTS, _exercises, check, exercise, exercises
from ondisk.lab.experiments.naive import OneBatch, TwoWrites
from ondisk.lab.experiments.trace import Moment
from ondisk.simulation.faults import Fault
from tests.test_notebooks import NOTEBOOKS, read, run

SOLUTIONS = sorted((NOTEBOOKS[0].parent / "solutions").glob("*.ipynb"))
CHAPTERS = [path for path in NOTEBOOKS if exercises(int(path.name[:2]))]


def code_of(path: Path) -> str:
    return "\n".join(cell.source for cell in read(path).cells if cell.cell_type == "code")


@pytest.fixture
def sample() -> Iterator[str]:
    """An exercise that is not in any notebook."""

    @exercise("99.1", hints=["look", "look again", "it is 7"])
    def seven(answer: int) -> str | None:
        return None if answer + 0 == 7 else f"{answer} is not it"

    yield "99.1"
    del _exercises["99.1"]


def test_the_lab_offers_the_function_and_not_the_module() -> None:
    """``lab.check`` is what a notebook calls."""
    assert module is check


def test_a_right_answer_is_right_and_a_wrong_one_says_why(sample: str) -> None:
    """In the text, in the HTML, and for programs."""
    right, wrong = check(sample, 7), check(sample, 8)
    assert (right.right, wrong.right) == (True, False)
    assert (repr(right), repr(wrong)) == ("99.1: Right.", "99.1: 8 is not it")
    assert "8 is not it" in wrong._repr_html_() and "Right." in right._repr_html_()
    assert "&lt;b&gt;" in check(sample, "<b>")._repr_html_() or "TypeError" in check(sample, "<b>").text


def test_an_answer_that_is_missing_or_makes_no_sense_raises_nothing(sample: str) -> None:
    """A notebook with open exercises runs to its end."""
    assert not check(sample).right
    assert "No answer yet" in check(sample, ...).text
    assert "TypeError" in check(sample, "seven").text
    assert "TypeError" in check(sample, 1, 2).text


def test_hints_come_one_at_a_time_and_then_the_solution_is_named(sample: str) -> None:
    """Three of them, in order."""
    assert [hint(sample).text for _ in range(5)] == [
        "Hint 1 of 3: look",
        "Hint 2 of 3: look again",
        "Hint 3 of 3: it is 7",
        *["There are no more hints. A solution is in notebooks/solutions/99-*.ipynb."] * 2,
    ]


def test_what_is_no_exercise_is_a_clear_error() -> None:
    """``LookupError``, with those that there are."""
    with pytest.raises(LookupError, match=r"no exercise 3\.9; this chapter has 3\.1, 3\.2, 3\.3"):
        check("3.9", 1)
    with pytest.raises(LookupError, match=r"no exercise 98\.1; this chapter has none"):
        hint("98.1")
    for number in ("3", "3.10", "x", "", "3.1 "):
        with pytest.raises(LookupError, match="not the number of an exercise"):
            check(number, 1)
    with pytest.raises(ValueError, match="has 2 hints"):
        exercise("99.2", hints=["one", "two"])


@pytest.mark.parametrize("path", CHAPTERS, ids=lambda path: path.stem)
def test_every_exercise_is_in_its_notebook_has_three_hints_and_a_solution(path: Path) -> None:
    """And the notebook names no exercise that does not exist."""
    solution = path.parent / "solutions" / path.name
    for number in exercises(int(path.name[:2])):
        assert len(set(_exercises[number].hints)) == HINTS
        assert f'check("{number}"' in code_of(path)
        assert f'check("{number}"' in code_of(solution)
    assert code_of(path).count("check(") == len(exercises(int(path.name[:2])))


@pytest.mark.parametrize("path", SOLUTIONS, ids=lambda path: path.stem)
def test_a_solution_is_stored_without_outputs(path: Path) -> None:
    """As the notebooks are."""
    for cell in read(path).cells:
        assert not cell.get("outputs") and cell.get("execution_count") is None


@pytest.mark.slow
@pytest.mark.parametrize("path", SOLUTIONS, ids=lambda path: path.stem)
def test_every_solution_is_right(path: Path, tmp_path: Path) -> None:
    """Run from top to bottom, each check says so."""
    notebook = read(path)
    run(notebook, tmp_path)
    said = [
        output.data["text/plain"]
        for cell in notebook.cells
        for output in cell.get("outputs", ())
        if output.output_type == "execute_result" and "check(" in cell.source
    ]
    assert said == [f"{number}: Right." for number in exercises(int(path.name[:2]))]


# Chapter 3


@pytest.mark.parametrize(
    ("answer", "said"),
    [
        ([41, 42, 43], "Right."),
        ({43, 42, 41}, "Right."),
        (range(41, 44), "Right."),
        (range(40, 44), "not hand over again"),
        (range(41, 51), "does not hold yet"),
        ([41, 42], "something is missing"),
        ([], "There are some"),
        ([51], "entries 1 to 50"),
        (3, "Which entries"),
        (None, "No answer yet"),
    ],
    ids=str,
)
def test_3_1_says_what_is_wrong_with_the_entries(answer: object, said: str) -> None:
    """Without naming one that is right."""
    assert said in check("3.1", answer).text


@pytest.mark.slow
def test_3_2_wants_a_crash_that_loses_two_entries() -> None:
    """Of the right machine."""
    assert check("3.2", crash(TwoWrites, at=4, how="power cut")).right
    assert "One entry is lost" in check("3.2", crash(TwoWrites, at=2, how="power cut")).text
    assert "Nothing is lost" in check("3.2", crash(TwoWrites)).text
    assert "you crashed OneBatch" in check("3.2", crash(OneBatch)).text
    assert not check("3.2", "lost: 1, 2").right


BODIES = {
    "one batch": ("batch = self.data.batch()\n{puts}{index}self.data.write(batch)\n", "Right."),
    "data first": ("self.write_data(changes)\nself.write_index(index)\n", "applied twice"),
    "index first": ("self.write_index(index)\nself.write_data(changes)\n", "lost"),
    "synced in between": (
        "self.write_data(changes)\nself.data.sync()\nself.write_index(index)\nself.data.sync()\n",
        "applied twice",
    ),
    "no index": ("self.write_data(changes)\n", "open() returns 0"),
    "no data": ("self.write_index(index)\n", "the data holds 0"),
    "nothing": ("pass\n", "open() returns 0"),
    "error": ("raise RuntimeError('not finished')\n", "not finished"),
}


@pytest.mark.slow
@pytest.mark.parametrize("name", BODIES)
def test_3_3_crashes_what_the_reader_has_written(name: str, tmp_path: Path) -> None:
    """Only one way to save is whole after every crash."""
    body, said = BODIES[name]
    body = body.format(
        puts="for key, value in changes.items():\n    batch.put(key, value)\n",
        index="self.data.put_meta(batch, APPLIED_INDEX, index.to_bytes(8, 'big'))\n",
    )
    lines = "".join(f"        {line}\n" for line in body.splitlines())
    file = tmp_path / "mine.py"
    file.write_text(
        "from ondisk.lab.experiments.naive import APPLIED_INDEX, Keeper\n\n\n"
        f"class Mine(Keeper):\n    def save(self, changes, index):\n{lines}"
    )
    assert said in check("3.3", os.fspath(file)).text


def test_3_3_wants_a_file_that_is_there(tmp_path: Path) -> None:
    """The feedback says where it comes from."""
    assert "There is no file" in check("3.3", os.fspath(tmp_path / "mine.py")).text


# Chapter 6


@pytest.mark.parametrize(
    ("answer", "said"),
    [
        (5 / 12, "Right."),
        (0.42, "Right."),
        (5, "in months"),
        (250 / 12, "There are 50"),
        (250, "So many crashes"),
        (2.4, "in a year"),
        (1.0, "too long"),
        (0.1, "too short"),
        ("long", "Give a number"),
    ],
    ids=str,
)
def test_6_1_says_what_is_wrong_with_the_years(answer: object, said: str) -> None:
    """Without giving the number."""
    assert said in check("6.1", answer).text


def test_6_2_wants_a_crash_that_loses_something() -> None:
    """Any moment will do in which too few have what is committed."""
    exposure = runs.longest(trace_of_6_2())
    assert check("6.2", (exposure.since + exposure.until) / 2).right
    assert "Nothing was lost" in check("6.2", 2.0).text
    assert "Give a time" in check("6.2", "soon").text


def _as_it_should_be(moment: Moment) -> bool:
    have = [m for m in moment.members if m.id in moment.voters and m.durable >= moment.committed]
    return 2 * len(have) <= len(moment.voters)


@pytest.mark.parametrize(
    ("exposed", "said"),
    [
        (_as_it_should_be, "Right."),
        (lambda moment: moment.too_few, "Right."),
        (lambda moment: False, "one of three"),
        (lambda moment: sum(m.durable >= moment.committed for m in moment.members) < 2, "two of four"),
        (lambda moment: _as_it_should_be(_without_those_down(moment)), "on its disk"),
        (lambda moment: sum(m.durable >= moment.committed for m in moment.members) <= 1, "two of four"),
        (lambda moment: None, "True or False"),
        (3, "function itself"),
    ],
)
def test_6_3_tries_moments_of_all_kinds(exposed: object, said: str) -> None:
    """Ties, replicas that are down, and those that do not count."""
    assert said in check("6.3", exposed).text


def _without_those_down(moment: Moment) -> Moment:
    return moment._replace(members=tuple(m for m in moment.members if m.role != "down"))


def _fewest(faults: list[Fault], breaks: Callable[[list[Fault]], bool]) -> list[Fault]:
    for fault in faults:
        rest = [other for other in faults if other != fault]
        if breaks(rest):
            return _fewest(rest, breaks)
    return faults


def _fewest_in_one_pass(faults: list[Fault], breaks: Callable[[list[Fault]], bool]) -> list[Fault]:
    for fault in list(faults):
        rest = [other for other in faults if other != fault]
        faults = rest if breaks(rest) else faults
    return faults


def _first_that_breaks(faults: list[Fault], breaks: Callable[[list[Fault]], bool]) -> list[Fault]:
    return next(([fault] for fault in faults if breaks([fault])), [])


def _for_ever(faults: list[Fault], breaks: Callable[[list[Fault]], bool]) -> None:
    while True:
        breaks(faults)


@pytest.mark.parametrize(
    ("fewest", "said"),
    [
        (_fewest, "Right."),
        (_fewest_in_one_pass, "2 can be left out"),
        (_first_that_breaks, "does not break it"),
        (lambda faults, breaks: faults, "can be left out"),
        (lambda faults, breaks: None, "returned nothing"),
        (_for_ever, "no end"),
        ([], "function itself"),
    ],
)
def test_6_4_wants_what_cannot_be_less(fewest: object, said: str) -> None:
    """And an end to it."""
    assert said in check("6.4", fewest).text


def test_3_3_shows_the_line_of_the_reader_and_nothing_of_the_kit(tmp_path: Path) -> None:
    """For what is no Python, and for what is no state machine."""
    file = tmp_path / "mine.py"
    file.write_text("class Mine\n    pass\n")
    assert check("3.3", os.fspath(file)).text == "This is no Python yet, in line 1: expected ':'."
    file.write_text("x = 1\n")
    said = check("3.3", os.fspath(file)).text
    assert "should define one state machine" in said and "\n" not in said


def test_a_way_to_die_that_does_not_exist_is_refused() -> None:
    """A typo would have been a kill."""
    with pytest.raises(ValueError, match="'kill' and 'power cut'"):
        crash(TwoWrites, at=4, how="power_cut")  # type: ignore[arg-type]


# Chapter 1


@pytest.mark.parametrize(
    ("number", "answer", "said"),
    [
        ("1.1", 400, "Right."),
        ("1.1", 200, "asked a follower"),
        ("1.1", 300, "Who tells the follower"),
        ("1.1", 0.4, "in seconds"),
        ("1.2", lambda n: (n - 1) // 2, "Right."),
        ("1.2", lambda n: n // 2, "no majority"),
        ("1.2", lambda n: 1, "One more"),
        ("1.2", lambda n: ..., "no number yet"),
        ("1.2", 1, "function itself"),
        ("1.3", {"NoLeader", "NotDone"}, "Right."),
        ("1.3", {"NoLeader"}, "an error more"),
        ("1.3", {"NotDone", "Timeout"}, "in time"),
        ("1.3", {"OutcomeUnknown"}, "added twice"),
        ("1.3", {"Whatever"}, "not one of the four"),
    ],
    ids=lambda value: str(value)[:16] if isinstance(value, str | int | float) else None,
)
def test_chapter_1_says_what_is_wrong(number: str, answer: object, said: str) -> None:
    assert said in check(number, answer).text
