"""Predict, run, compare: the reader commits to an answer before an experiment and sees both after it."""

from __future__ import annotations

from collections.abc import Sequence
from html import escape
from typing import Any

import ipywidgets as w
from IPython.display import HTML

from ondisk.lab.panel import close_widgets

_predictions: dict[str, Prediction] = {}


class Prediction:
    """A question with a choice of answers. Show it as the last value of a cell."""

    def __init__(self, question: str, options: Sequence[str]) -> None:
        """Ask. A question that was asked before is asked anew: its former widget is closed."""
        if (former := _predictions.pop(question, None)) is not None:
            close_widgets(former.box)
        self.question = question
        self.choice = w.RadioButtons(
            options=list(options),
            value=None,
            tooltip=question,
            layout=w.Layout(width="auto"),
        )
        self.outcome = w.HTML()
        self.box: Any = w.VBox(
            [
                w.HTML(f"<b>Predict:</b> {escape(question)}"),
                self.choice,
                self.outcome,
            ]
        )
        _predictions[question] = self

    def compare(self, happened: str) -> Any:
        """Say what happened, one of the options or a sentence; from now on the choice stands."""
        self.choice.disabled = True
        chosen = self.choice.value
        if chosen is None:
            verdict = "You made no prediction. To make one, run the cell with the question again."
        elif happened == chosen:
            verdict = "As you predicted."
        elif happened in self.choice.options:
            verdict = "Not what you predicted: what did you leave out?"
        else:
            verdict = ""
        rows = [("You predicted", chosen or "nothing"), ("It happened", happened)]
        said = "".join(f"<div><b>{name}:</b> {escape(text)}</div>" for name, text in rows) + escape(verdict)
        if chosen is not None:  # else the outcome would stand under a question yet to be answered
            self.outcome.value = said
        return HTML(f"<div>{said}</div>")  # type: ignore[no-untyped-call]

    def _repr_mimebundle_(self, **options: Any) -> Any:
        return self.box._repr_mimebundle_(**options)
