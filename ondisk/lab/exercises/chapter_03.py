"""The exercises of notebook 3: the index and the data."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

from ondisk.lab.exercises.check import exercise
from ondisk.lab.experiments.crash import Crashed, Workload, crash, crash_everywhere
from ondisk.testing.crashing import ChildFailed, How

_OPENED, _HELD, _LAST = 40, 43, 50


@exercise(
    "3.1",
    hints=[
        "After a restart the log hands over everything above the index that open() returned.",
        "Applied twice is an entry that is in the data already, and is handed over as well.",
        "It is in the data if its number is at most 43; it is handed over if its number is above 40.",
    ],
)
def entries_applied_twice(answer: Iterable[int]) -> str | None:
    """``answer`` names entries."""
    if isinstance(answer, int | str):
        return "Which entries, not how many: give a list of their numbers, such as [7, 8]."
    named = set(answer)
    if not named:
        return "There are some. Which entries are in the data, and are handed over all the same?"
    if any(entry > _LAST or entry < 1 for entry in named):
        return f"The log has entries 1 to {_LAST} and no others."
    if any(entry <= _OPENED for entry in named):
        return "You name an entry that the log will not hand over again: open() has said that it is done."
    if any(entry > _HELD for entry in named):
        return "You name an entry that the data does not hold yet: it is applied once, as it should be."
    if len(named) < _HELD - _OPENED:
        return "All that you name is right, and something is missing."
    return None


@exercise(
    "3.2",
    points=2,
    hints=[
        "A killed process leaves all that it has written. Which way to die does not?",
        'With how="power cut", and no sync, nothing of the data survives. What does the index say by then?',
        "An update of TwoWrites is two writes, and the index comes second: after write 2 it says 1. Go on.",
    ],
)
def a_crash_that_loses(answer: object) -> str | None:
    """``answer`` comes from ``lab.crash(TwoWrites, ...)``."""
    if not isinstance(answer, Crashed):
        return "Give what lab.crash returns."
    if answer.machine != "TwoWrites":
        return f"This is about TwoWrites; you crashed {answer.machine}."
    if len(answer.lost) >= 2:
        return None
    if answer.lost:
        return f"One entry is lost. At least two are asked for. ({answer})"
    return f"Nothing is lost here. ({answer})"


@exercise(
    "3.3",
    points=3,
    hints=[
        "Look at the crash that is named: which pieces were written by then, and what did the index say?",
        "All keys that an update changed belong to one index. How many writes may lie between old and new?",
        "One batch for all of the changes, put_meta for the index into the same batch, and then one write.",
    ],
)
def whole_after_every_crash(answer: str) -> str | None:
    """``answer`` is the name of a file that defines a ``Keeper``."""
    if not Path(answer).is_file():
        return f"There is no file {answer}. The cell that begins with %%writefile makes it."
    compile(Path(answer).read_text(), answer, "exec")  # the child would show how it got there, too
    try:
        ended = crash(answer, at="never", workload=_SEVERAL_KEYS)
    except ChildFailed as error:
        return f"It could not be run: {str(error).strip().splitlines()[-1]}"
    if (ended.index, len(ended.held)) != (ended.last, ended.last):
        return (
            f"Without any crash, {ended.last} entries were applied, and the data should hold all of them: "
            f"open() returns {ended.index}, the data holds {len(ended.held)}."
        )
    ways: tuple[How, How] = ("kill", "power cut")
    for how in ways:
        for crashed in crash_everywhere(answer, how=how, workload=_SEVERAL_KEYS):
            if crashed.verdict != "whole":
                return f"Not after every crash. {crashed}."
    return None


_SEVERAL_KEYS = Workload(updates=3, each=4, keys=4, sync_every=2)
