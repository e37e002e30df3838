"""The exercises of notebook 7: a state machine of one's own."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from ondisk.lab.exercises.answers import names
from ondisk.lab.exercises.check import exercise
from ondisk.lab.experiments.grading import grade
from ondisk.lab.experiments.ledger import (
    Accounts,
    Ledger,
    LooksAtTheDisk,
    deposit,
    in_batches,
    transfer,
)
from ondisk.testing.crashing import load_file

_COMMANDS = [deposit("a", 10), transfer("a", "b", 6), transfer("a", "c", 6), transfer("b", "a", 3)]
_COMMANDS += [transfer("a", "c", 6)]


@exercise(
    "7.1",
    hints=[
        "Go through the five commands with pen and paper: each one sees what those before it have left.",
        "Refused is a transfer that is more than its giver has at that moment. It changes nothing.",
        "After the second command a has 4, so the third is refused; after the fourth a has 7.",
    ],
)
def what_is_left(answer: object) -> str | None:
    """``answer`` says what each account holds."""
    if not isinstance(answer, Mapping):
        return 'Give a dictionary, such as {"a": 1, "b": 2, "c": 3}.'
    right, _ = in_batches(Ledger, _COMMANDS, 1)
    stored, _ = in_batches(LooksAtTheDisk, _COMMANDS, len(_COMMANDS))
    given = {account: amount for account, amount in answer.items() if amount}
    if given == right:
        return None
    if sum(given.values()) != 10:
        return "Money came from nowhere, or has gone: 10 was deposited, and transfers only move it."
    if given == {account: amount for account, amount in stored.items() if amount}:
        return "Each command sees what those before it have left, also within one update."
    return "The sum is right. Look at who is refused, and when."


_WRONG = ("LooksAtTheDisk", "Raises", "AsksTheClock")


@exercise(
    "7.2",
    hints=[
        "What happens at one replica, and not at the others, cannot be a matter of the commands.",
        "The log is the same everywhere. How it is cut into updates is not; and neither is the time.",
        "It is all that differs between two runs of the same log: batches, and clocks. Nothing else here.",
    ],
)
def what_makes_replicas_differ(answer: set[str]) -> str | None:
    """``answer`` names machines whose replicas can come to hold different things."""
    named = names(answer, _WRONG, "{} is not one of the three wrong ledgers.")
    if "Raises" in named:
        return "Raises does the same on all replicas: they stop, all at the same entry."
    if named != {"LooksAtTheDisk", "AsksTheClock"}:
        return "There is another one: what can differ between two replicas that are handed the same log?"
    return None


@exercise(
    "7.3",
    points=3,
    hints=[
        "Read what is wrong. Where is the book changed for the first time, and is that too early?",
        "A command that is refused must have changed nothing. So look first, and change last.",
        "Refuse amounts below 1 at the very beginning; refuse if book[giver] < amount; only then subtract.",
    ],
)
def a_ledger_of_ones_own(answer: str) -> str | None:
    """``answer`` is the name of a file that defines ``Mine``."""
    if not Path(answer).is_file():
        return f"There is no file {answer}. The cell that begins with %%writefile makes it."
    mine: type[Accounts] = load_file(answer, "ondisk_ledger_of_a_reader").Mine
    for (commands, what), size in [(case, size) for case in _CASES for size in (1, len(case[0]))]:
        want, _ = in_batches(Ledger, commands, size)
        have, results = in_batches(mine, commands, size)
        if {name: amount for name, amount in have.items() if amount} != want:
            return f"{what}: there should be {want}, and there is {have}."
        if results[-1].error is None:
            return f"{what}: it should be refused, with Result(error=...)."
    return None


_CASES = [
    ([deposit("a", 10), transfer("a", "b", 11)], "10 were deposited in a, and a gave 11 to b"),
    ([deposit("a", 10), transfer("a", "b", 6), transfer("a", "c", 6)], "a has 10, and gives 6 to b, 6 to c"),
    ([deposit("a", 10), transfer("b", "a", -5)], "a has 10, and b gives it -5"),
    ([deposit("a", 10), transfer("a", "b", 0)], "a has 10, and gives 0 to b"),
    ([deposit("a", 10), deposit("a", -3)], "10 and then -3 were deposited in a"),
]


@exercise(
    "7.4",
    points=3,
    hints=[
        "A sample command must show when it is applied twice, or left out: what does a refused one show?",
        "Every command must move something, and no two states may be equal. What if all of them deposit?",
        'deposit(f"account {number % 3}", number): no two of its states are equal.',
    ],
)
def an_exam_for_it(answer: str) -> str | None:
    """``answer`` is the name of a file of tests, with a battery in it."""
    if not Path(answer).is_file():
        return f"There is no file {answer}. The cell that begins with %%writefile makes it."
    found = grade(answer, "update or index or malformed or sample or opens")
    if found.failed:
        return f"{found.failed[0]} fails: {found.why}"
    return None if found.passed >= 10 else "Where are the tests? The class inherits from StateMachineBattery."
