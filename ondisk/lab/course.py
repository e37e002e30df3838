"""How far one learner is: at the top of a notebook, as a map of the course, and in a summary at the end."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from html import escape
from typing import NamedTuple

from ondisk.lab import learner
from ondisk.lab.exercises import check
from ondisk.lab.learner import Line
from ondisk.lab.predict import questions

COURSE = {
    1: ("01-three-replicas", "what happens when I press Put?", 30),
    2: ("02-replication-lag", "who knows what, and when?", 40),
    3: ("03-atomic-index", "why must the index be written with the data?", 40),
    4: ("04-snapshots", "what is a snapshot when the state is on disk already?", 45),
    5: ("05-failures", "what can I rely on?", 45),
    6: ("06-simulation", "how do you find a bug that happens once a year?", 45),
    7: ("07-your-own-state-machine", "can I build one?", 50),
    8: ("08-your-own-raft", "can I write the hard part?", 120),
}
"""By number: the file, its question, and minutes."""


class Chapter(NamedTuple):
    """What somebody has done in one notebook."""

    exercises: int
    right: int
    questions: int
    predicted: int
    as_predicted: int
    sure_and_wrong: int


def chapter(number: int, lines: Iterable[Line]) -> Chapter:
    """Count. Of an answer that was given twice the last one counts; but what was right once stays right."""
    lines = [line for line in lines if line.get("chapter") == number]
    known = check.exercises(number)
    right = {line["exercise"] for line in lines if line.get("right") and line.get("exercise") in known}
    predicted = predictions(number, lines)
    wrong = [line for line in predicted if not line.get("as_predicted")]
    return Chapter(
        exercises=len(known),
        right=len(right),
        questions=len(questions(number)),
        predicted=len(predicted),
        as_predicted=len(predicted) - len(wrong),
        sure_and_wrong=sum(line.get("sure") == "certain" for line in wrong),
    )


def predictions(number: int, lines: Iterable[Line]) -> list[Line]:
    """The first prediction for each question of a notebook: whoever asks again knows the answer."""
    first: dict[str, Line] = {}
    for line in lines:
        if line.get("chapter") == number and line.get("chosen") is not None and "prediction" in line:
            first.setdefault(str(line["prediction"]), line)
    return list(first.values())


class _Html:
    """Something to be shown as the last value of a cell."""

    def __init__(self, html: str, words: str) -> None:
        self._html, self._words = html, words

    def __repr__(self) -> str:
        return self._words

    def _repr_html_(self) -> str:
        return self._html


def progress(number: int | None = None) -> _Html:
    """Begin notebook ``number``: from now on what you do is kept. Without a number: the whole course."""
    if number is not None:
        learner.begin(number)
    lines = learner.lines()
    shown = [number] if number is not None else list(COURSE)
    rows = [_row(each, chapter(each, lines)) for each in shown]
    words = "\n".join(f"{name}: {exercises}; {predicted}" for name, _, exercises, predicted in rows)
    notes = [
        f"Kept in {learner.FILE}, beside the notebook."
        if not learner.trouble()
        else f"Kept in memory only, until this kernel ends ({learner.trouble()})."
    ]
    if number is not None:
        notes.insert(0, "Go cell by cell: each experiment asks for your prediction first.")
    return _Html(_table(rows) + f"<p>{escape(' '.join(notes))}</p>", f"{words}\n{' '.join(notes)}")


def _row(number: int, done: Chapter) -> tuple[str, str, str, str]:
    file, question, minutes = COURSE[number]
    exercises = f"{done.right} of {done.exercises} right" if done.exercises else "none"
    predicted = f"{done.predicted} of {done.questions} made, {done.as_predicted} as it happened"
    if done.sure_and_wrong:
        predicted += f", {done.sure_and_wrong} wrong though certain"
    return file, f"{question} ({minutes} minutes)", exercises, predicted


def _table(rows: Sequence[tuple[str, str, str, str]]) -> str:
    head = "".join(
        f'<th scope="col" style="text-align:left">{name}</th>'
        for name in ("notebook", "question", "exercises", "predictions")
    )
    body = "".join(
        f'<tr><th scope="row" style="text-align:left"><a href="{file}.ipynb">{file}</a></th>'
        + "".join(f'<td style="text-align:left">{escape(text)}</td>' for text in rest)
        + "</tr>"
        for file, *rest in rows
    )
    return f"<table><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table>"


def summary(number: int) -> _Html:
    """What you predicted wrongly in this notebook, what happened, and why; the surest on top."""
    made = predictions(number, learner.lines())
    if not made:
        words = "You have made no prediction in this notebook yet."
        return _Html(f"<p>{words}</p>", words)
    wrong = [line for line in made if not line.get("as_predicted")]
    wrong.sort(key=lambda line: _SURE.index(str(line.get("sure"))) if line.get("sure") in _SURE else -1)
    wrong.reverse()
    words = f"{len(made) - len(wrong)} of {len(made)} as it happened."
    items = []
    for line in wrong:
        sure = f" ({line['sure']})" if line.get("sure") else ""
        said = f"You said: {line['chosen']}{sure}. It happened: {line['happened']}. {line.get('why', '')}"
        words += f"\n{line['prediction']} {said}"
        items.append(f"<li><b>{escape(str(line['prediction']))}</b><br>{escape(said)}</li>")
    listed = f"<p>What you got wrong, and why:</p><ol>{''.join(items)}</ol>" if items else ""
    return _Html(f"<p>{escape(words.splitlines()[0])}</p>{listed}", words)


_SURE = ("a guess", "rather sure", "certain")
