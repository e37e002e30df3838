"""Predict, run, compare: the reader commits to an answer before an experiment and sees both after it.

The outcome is not shown before there is a prediction, or a press of *Show without a prediction*: also not
after *Run All*. What was answered is kept (``learner``), and so is how sure one was.
"""

from __future__ import annotations

import math
import tomllib
from collections.abc import Sequence
from functools import cache
from html import escape
from pathlib import Path
from typing import Any

import ipywidgets as w

from ondisk.lab import learner
from ondisk.lab.widgets import Shown, button, close_widgets, row, spoken

# The question is the label of the control, so that it is read out with it; here it may take several lines.
# (The class is named twice to win over the style sheet of ipywidgets.)
_STYLE = """<style>
.ondisk-question.ondisk-question > label { width: auto; height: auto; line-height: 1.5; white-space: normal;
  overflow: visible; text-align: left; font-weight: bold; }
.ondisk-question.ondisk-question > select, .ondisk-question.ondisk-question > input { flex: none;
  width: fit-content; min-width: 14em; height: auto; min-height: 0; padding: 4px; }
.ondisk-question option { padding: 2px 4px; }
</style>"""

SURE = ("a guess", "rather sure", "certain")

_predictions: dict[str, Prediction] = {}


@cache
def _reasons() -> dict[str, dict[str, dict[str, str]]]:
    """By notebook and question: a sentence for each answer that is wrong."""
    with (Path(__file__).parent / "why.toml").open("rb") as file:
        return tomllib.load(file)


def questions(chapter: int) -> list[str]:
    """All that notebook ``chapter`` asks."""
    return list(_reasons().get(str(chapter), {}))


def why_not(question: str, chosen: str) -> str:
    """Why this answer is wrong, if there is a sentence about it. For a number there is one for all."""
    for chapter in _reasons().values():
        if question in chapter:
            return chapter[question].get(chosen) or chapter[question].get("a number", "")
    return ""


class Prediction:
    """A question with a choice of answers, or one to be answered by a number.

    Show it as the last value of a cell.
    """

    def __init__(self, question: str, options: Sequence[str] = (), *, unit: str = "") -> None:
        """Ask: give ``options`` to choose from, or the ``unit`` of a number.

        A question that was asked before is asked anew: its former widget is closed.
        """
        if (former := _predictions.pop(question, None)) is not None:
            former.close()
        self.question = question
        self.options = tuple(options)
        self.unit = unit
        column = w.Layout(flex_flow="column", width="auto", height="auto", align_items="flex-start")
        if options:  # a list and not radio buttons: those have no name as a group, and arrow keys do not work
            self.choice: Any = w.Select(
                options=list(options),
                value=None,
                rows=len(options),
                description=f"Predict: {question}",
                layout=column,
            )
        else:
            self.choice = w.Text(
                description=f"Predict: {question}", placeholder=f"a number ({unit})", layout=column
            )
        self.choice.add_class("ondisk-question")
        self.sure: Any = w.Dropdown(
            options=list(SURE),
            value=None,
            description="How sure are you?",
            style={"description_width": "initial"},
        )
        self.outcome = w.HTML()
        self.box: Any = w.VBox([w.HTML(_STYLE), self.choice, self.sure, self.outcome])
        self._comparison: Comparison | None = None
        _predictions[question] = self

    def compare(self, happened: str | float) -> Comparison:
        """Say what happened: one of the options, a sentence, or a number. From now on the choice stands.

        Without a choice nothing is said yet: the reader can still make one, or do without.
        """
        if self._comparison is not None:
            self._comparison.close()
        self._comparison = Comparison(self, happened)
        return self._comparison

    def close(self) -> None:
        """Close the question, and what it was compared with."""
        if self._comparison is not None:
            self._comparison.close()
        close_widgets(self.box)

    def _repr_mimebundle_(self, **options: Any) -> Any:
        return self.box._repr_mimebundle_(**options)


class Comparison(Shown):
    """What was predicted beside what happened, once there is a prediction."""

    def __init__(self, asked: Prediction, happened: str | float) -> None:
        self.asked = asked
        self.happened = happened
        self.text: Any = w.HTML()
        self.now = button("Compare with my prediction", "You have chosen above, and it shall stand", "240px")
        self.skip = button("Show without a prediction", "See what happened, and predict nothing", "240px")
        self._buttons = row([self.now, self.skip])
        self.box = w.VBox([self.text, self._buttons])
        if asked.choice.value:
            self._show(late=False)
            return
        self._say("What happened is not shown yet. Predict first: choose above.")
        self.now.on_click(lambda _: self._show(late=True) if asked.choice.value else None)
        self.skip.on_click(lambda _: self._show(late=True))

    def in_words(self) -> str:
        """The same as text."""
        return str(self._words)

    def close(self) -> None:
        """Close its widgets."""
        close_widgets(self.box)

    def _say(self, words: str, html: str = "") -> None:
        self._words = words
        self.text.value = spoken(html or escape(words))

    def _show(self, late: bool) -> None:
        asked, happened = self.asked, self.happened
        asked.choice.disabled = asked.sure.disabled = True
        self._buttons.layout.display = "none"
        chosen: str | None = asked.choice.value or None
        right, verdict = _verdict(asked, chosen, happened)
        why = why_not(asked.question, chosen) if chosen is not None and not right else ""
        fact = happened if isinstance(happened, str) else f"{happened:,.3g} {asked.unit}".strip()
        sure = f" ({asked.sure.value})" if chosen and asked.sure.value else ""
        rows = [("You predicted", (chosen or "nothing") + sure), ("It happened", fact)]
        said = "".join(f"<div><b>{name}:</b> {escape(text)}</div>" for name, text in rows)
        said += escape(f"{verdict} {why}")
        self._say(". ".join([*(f"{name}: {text}" for name, text in rows), f"{verdict} {why}"]), said)
        if chosen is not None:  # else the outcome would stand under a question yet to be answered
            asked.outcome.value = said
        kept = {"prediction": asked.question, "chosen": chosen, "sure": asked.sure.value, "late": late}
        learner.note(**kept, happened=fact, as_predicted=right, why=why)


def _verdict(asked: Prediction, chosen: str | None, happened: str | float) -> tuple[bool, str]:
    if chosen is None:
        return False, "You made no prediction. To make one, run the cell with the question again."
    if not isinstance(happened, str):
        return _how_far(chosen, happened)
    if happened == chosen:
        return True, "As you predicted."
    return False, "Not what you predicted." if happened in asked.options else ""


def _how_far(chosen: str, happened: float) -> tuple[bool, str]:
    """What to say about a number that was typed in."""
    try:
        guess = float(chosen.replace(",", ""))
    except ValueError:
        return False, "Your prediction is not a number."
    if min(guess, happened) <= 0:
        right = guess == happened
        return right, "As you predicted." if right else "One of the two is not above zero."
    factor = math.exp(abs(math.log(guess / happened)))
    if factor < 1.25:
        return True, "As you predicted, near enough."
    return False, f"Off by a factor of {factor:,.2g}."
