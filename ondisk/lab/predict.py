"""Predict, run, compare: the reader commits to an answer before an experiment and sees both after it."""

from __future__ import annotations

import math
from collections.abc import Sequence
from html import escape
from typing import Any

import ipywidgets as w
from IPython.display import HTML

from ondisk.lab.widgets import close_widgets

# The question is the label of the control, so that it is read out with it; here it may take several lines.
# (The class is named twice to win over the style sheet of ipywidgets.)
_STYLE = """<style>
.ondisk-question.ondisk-question > label { width: auto; height: auto; line-height: 1.5; white-space: normal;
  overflow: visible; text-align: left; font-weight: bold; }
.ondisk-question.ondisk-question > select, .ondisk-question.ondisk-question > input { flex: none;
  width: fit-content; min-width: 14em; height: auto; min-height: 0; padding: 4px; }
.ondisk-question option { padding: 2px 4px; }
</style>"""

_predictions: dict[str, Prediction] = {}


class Prediction:
    """A question with a choice of answers, or one to be answered by a number.

    Show it as the last value of a cell.
    """

    def __init__(self, question: str, options: Sequence[str] = (), *, unit: str = "") -> None:
        """Ask: give ``options`` to choose from, or the ``unit`` of a number.

        A question that was asked before is asked anew: its former widget is closed.
        """
        if (former := _predictions.pop(question, None)) is not None:
            close_widgets(former.box)
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
        self.outcome = w.HTML()
        self.box: Any = w.VBox([w.HTML(_STYLE), self.choice, self.outcome])
        _predictions[question] = self

    def compare(self, happened: str | float) -> Any:
        """Say what happened: one of the options, a sentence, or a number. From now on the choice stands."""
        self.choice.disabled = True
        chosen: str | None = self.choice.value or None
        if chosen is None:
            verdict = "You made no prediction. To make one, run the cell with the question again."
        elif not isinstance(happened, str):
            verdict = _how_far(chosen, happened)
        elif happened == chosen:
            verdict = "As you predicted."
        elif happened in self.options:
            verdict = "Not what you predicted: what did you leave out?"
        else:
            verdict = ""
        fact = happened if isinstance(happened, str) else f"{happened:,.3g} {self.unit}".strip()
        rows = [("You predicted", chosen or "nothing"), ("It happened", fact)]
        said = "".join(f"<div><b>{name}:</b> {escape(text)}</div>" for name, text in rows) + escape(verdict)
        if chosen is not None:  # else the outcome would stand under a question yet to be answered
            self.outcome.value = said
        return HTML(f"<div>{said}</div>")  # type: ignore[no-untyped-call]

    def _repr_mimebundle_(self, **options: Any) -> Any:
        return self.box._repr_mimebundle_(**options)


def _how_far(chosen: str, happened: float) -> str:
    """What to say about a number that was typed in."""
    try:
        guess = float(chosen.replace(",", ""))
    except ValueError:
        return "Your prediction is not a number."
    if min(guess, happened) <= 0:
        return "As you predicted." if guess == happened else "One of the two is not above zero."
    factor = math.exp(abs(math.log(guess / happened)))
    if factor < 1.25:
        return "As you predicted, near enough."
    return f"Off by a factor of {factor:,.2g}: what did you leave out?"
