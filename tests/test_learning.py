"""Predictions that gate and come back, and what a learner has done in one file that loses nothing."""

from __future__ import annotations

import ast
import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from ondisk import lab
from ondisk.lab import classroom, course, learner
from ondisk.lab.predict import Prediction, _reasons, questions, why_not

NOTEBOOKS = sorted((Path(__file__).parents[1] / "notebooks").glob("*.ipynb"))


@pytest.fixture
def file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """Notebook 1 has begun, and its file is this one."""
    monkeypatch.setenv("ONDISK_PROGRESS", str(tmp_path / learner.FILE))
    monkeypatch.setattr(learner._Here, "unwritten", [])
    monkeypatch.setattr(learner._Here, "trouble", "")
    learner.begin(1)
    yield tmp_path / learner.FILE
    learner._Here.chapter = None


# Questions


def asked(notebook: Path) -> dict[str, list[str]]:
    """The questions of a notebook, with the answers that there are to choose from."""
    found = {}
    for cell in json.loads(notebook.read_text())["cells"]:
        source = "".join(cell["source"])
        if cell["cell_type"] != "code" or "lab.predict(" not in source:
            continue
        for node in ast.walk(ast.parse(source)):
            if isinstance(node, ast.Call) and ast.unparse(node.func) == "lab.predict":
                question, *options = [ast.literal_eval(argument) for argument in node.args]
                found[question] = options[0] if options else []
    return found


@pytest.mark.parametrize("notebook", NOTEBOOKS, ids=lambda path: path.stem)
def test_each_wrong_answer_to_each_question_has_a_sentence(notebook: Path) -> None:
    """All options but one, which is what happens; and no sentence is about something that nobody asks."""
    found = asked(notebook)
    chapter = int(notebook.name[:2])
    assert sorted(found) == sorted(questions(chapter))
    for question, options in found.items():
        reasons = _reasons()[str(chapter)][question]
        assert set(reasons) <= set(options or ["a number"])
        assert len(set(options) - set(reasons)) == (1 if options else 0), question
        assert all(why.endswith(".") for why in reasons.values())


@pytest.mark.parametrize("notebook", NOTEBOOKS, ids=lambda path: path.stem)
def test_a_notebook_begins_with_ones_progress_and_ends_with_what_was_predicted(notebook: Path) -> None:
    sources = ["".join(cell["source"]) for cell in json.loads(notebook.read_text())["cells"]]
    number = int(notebook.name[:2])
    assert f"lab.progress({number})" in sources[1]
    assert f"lab.summary({number})" in sources[-2]
    assert course.COURSE[number][0] == notebook.stem


QUESTION = "The leader is stopped. What does the next put do?"
RIGHT, WRONG = "it waits for a new leader and is done", "it fails"


def test_nothing_is_told_before_there_is_a_prediction(file: Path) -> None:
    """As after Run All. Then one chooses, and both stand there, with why it was wrong."""
    guess = Prediction(QUESTION, [WRONG, RIGHT])
    compared = guess.compare(RIGHT)
    compared.now.click()  # nothing is chosen yet
    assert RIGHT not in compared.text.value + guess.outcome.value and not guess.choice.disabled
    guess.choice.value, guess.sure.value = WRONG, "certain"
    assert RIGHT not in compared.text.value + guess.outcome.value  # arrow keys pass over options
    compared.now.click()
    for said in (compared.text.value, guess.outcome.value, compared.in_words()):
        assert RIGHT in said and "certain" in said and why_not(QUESTION, WRONG) in said
    assert guess.choice.disabled
    (line,) = learner.read(file)
    assert (line["chosen"], line["happened"], line["sure"]) == (WRONG, RIGHT, "certain")
    assert line["late"] and not line["as_predicted"]


def test_one_can_do_without_a_prediction(file: Path) -> None:
    """It is shown, and counts as none."""
    compared = Prediction(QUESTION, [WRONG, RIGHT]).compare(RIGHT)
    compared.skip.click()
    assert RIGHT in compared.in_words() and "no prediction" in compared.in_words()
    assert course.chapter(1, learner.lines()).predicted == 0


def predicted(question: str, chosen: str, happened: str, sure: str | None = None) -> None:
    guess = Prediction(question, [chosen, happened] if chosen != happened else [chosen])
    guess.choice.value, guess.sure.value = chosen, sure
    guess.compare(happened)


def test_the_summary_has_what_was_wrong_first_what_one_was_sure_of_on_top(file: Path) -> None:
    """The first answer counts: whoever asks again knows what happens."""
    predicted("One?", "a", "b", "a guess")
    predicted("Two?", "a", "b", "certain")
    predicted("Three?", "b", "b")
    predicted("Two?", "b", "b")
    words = repr(lab.summary(1)).splitlines()
    assert words[0] == "1 of 3 as it happened."
    assert [line[:4] for line in words[1:]] == ["Two?", "One?"]
    assert "1 wrong though certain" in repr(lab.progress(1))


def test_progress_counts_an_exercise_that_was_right_once(file: Path) -> None:
    lab.check("1.1", 400)
    lab.check("1.1", 300)
    lab.check("1.3", ...)
    assert "1 of 3 right" in repr(lab.progress(1)) and "1 of 3 right" in lab.progress(1)._repr_html_()
    assert "01-three-replicas.ipynb" in lab.progress()._repr_html_()
    assert len(learner.read(file)) == 2  # three dots are no answer


# The file


def test_nothing_is_written_before_a_notebook_begins(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    lab.check("1.1", 400)
    assert os.listdir() == []


_KERNEL = """
import sys
from ondisk.lab import learner
learner.begin(1)
for number in range(300):
    learner.note(kernel=sys.argv[1], number=number)
"""


def test_two_kernels_at_once_lose_nothing(file: Path) -> None:
    kernels = [subprocess.Popen([sys.executable, "-c", _KERNEL, name]) for name in ("a", "b")]
    assert [kernel.wait(60) for kernel in kernels] == [0, 0]
    lines = learner.read(file)
    for name in ("a", "b"):
        assert [line["number"] for line in lines if line["kernel"] == name] == list(range(300))


def test_a_line_that_was_cut_short_costs_only_itself(file: Path) -> None:
    learner.note(number=1)
    with file.open("ab") as torn:
        torn.write(b'\n{"number": 2, "exer')
    learner.note(number=3)
    assert [line["number"] for line in learner.read(file)] == [1, 3]


def test_where_nothing_can_be_written_nothing_breaks_and_all_is_kept_until_it_can(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, file: Path
) -> None:
    """A file stands where the folder should be, which stops root as well."""
    place = tmp_path / "folder"
    place.write_text("")
    monkeypatch.setenv("ONDISK_PROGRESS", str(place / learner.FILE))
    learner.begin(1)
    lab.check("1.1", 400)
    said = repr(lab.progress(1))
    assert "1 of 3 right" in said and "in memory only" in said
    place.unlink()
    place.mkdir()
    lab.check("1.3", {"NoLeader", "NotDone"})
    assert len(learner.read(place / learner.FILE)) == 2
    assert "in memory only" not in repr(lab.progress(1))


def test_a_teacher_sees_the_files_of_all_learners_in_one_table(tmp_path: Path, file: Path) -> None:
    lab.check("1.1", 400)
    predicted(QUESTION, WRONG, RIGHT, "certain")
    for name in ("ann", "bob"):
        (tmp_path / "class" / name).mkdir(parents=True)
    (tmp_path / "class" / "ann" / learner.FILE).write_bytes(file.read_bytes())
    (tmp_path / "class" / "bob" / learner.FILE).write_text("no JSON\n[1]\n")
    head, ann, bob = classroom.progress(tmp_path / "class").splitlines()
    assert head.startswith("learner") and ann.split()[:3] == ["ann", "1/3,", "0/1"]
    assert ann.split()[-1] == "1" and bob.split()[:3] == ["bob", "0/3,", "0/0"]
