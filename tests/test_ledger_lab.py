"""Notebook 7: ledgers, a cluster of them that pays, and what the exercises say."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from ondisk.lab import check
from ondisk.lab.experiments.grading import grade
from ondisk.lab.experiments.ledger import (
    Accounts,
    Balances,
    Deposit,
    Ledger,
    LooksAtTheDisk,
    Raises,
    Transfer,
    deposit,
    in_batches,
    transfer,
)
from ondisk.lab.experiments.payments import TOTAL, pay
from ondisk.statemachine import Entry, OnDiskStateMachine
from ondisk.storage.disk import Disk
from ondisk.testing import StateMachineBattery
from tests.lengths import LONG


class LedgerBattery(StateMachineBattery):
    """The contract, as the notebook asks for it."""

    def make(self, path: Path, disk: Disk) -> OnDiskStateMachine:
        return Ledger(path, disk)

    def command(self, number: int) -> bytes:
        account = f"account {number // 2 % 3}"
        if number % 2 == 0:
            return deposit(account, number)
        return transfer(account, "savings", number - 1) if number > 1 else deposit("savings", 1)

    def state(self, machine: OnDiskStateMachine) -> Any:
        return machine.lookup(Balances())

    def malformed(self) -> tuple[bytes, ...]:
        return b"", b"?", transfer("nobody", "savings", 5), transfer("savings", "me", -1)


@pytest.mark.long
@pytest.mark.slow
class TestLedger(LedgerBattery):
    """All of it. The notebook runs a part."""


def test_a_ledger_has_the_same_outcome_however_its_log_is_cut() -> None:
    commands = [deposit("a", 10), transfer("a", "b", 6), transfer("a", "c", 6), transfer("b", "b", 6)]
    outcomes = [in_batches(Ledger, commands, size) for size in (1, 2, 4)]
    assert outcomes[0][0] == {"a": 4, "b": 6}
    assert outcomes[0] == outcomes[1] == outcomes[2]
    assert in_batches(LooksAtTheDisk, commands, 1)[0] != in_batches(LooksAtTheDisk, commands, 4)[0]


@pytest.mark.parametrize(
    "command",
    [deposit("a", 0), deposit("a", -1), deposit("a", 1 << 53), transfer("b", "a", 1), transfer("a", "b", -1)],
    ids=lambda command: command.hex()[-12:],
)
def test_what_is_refused_changes_nothing(command: bytes) -> None:
    balances, results = in_batches(Ledger, [deposit("a", 10), command], 2)
    assert balances == {"a": 10} and results[-1].error


def test_a_book_shows_what_is_stored_and_what_has_changed(tmp_path: Path) -> None:
    class Lists(Accounts):
        seen: list[dict[str, int]] = []  # noqa: RUF012  of this test

        def apply(self, command: Deposit | Transfer, book: Any) -> Any:
            result = Ledger.apply(self, command, book)  # type: ignore[arg-type]
            self.seen.append(dict(book))
            return result

    ledger = Lists(tmp_path / "state")
    ledger.open()
    ledger.update([Entry(1, deposit("a", 1))])
    ledger.update([Entry(2, deposit("b", 2)), Entry(3, transfer("b", "c", 2))])
    ledger.close()
    assert ledger.seen == [{"a": 1}, {"a": 1, "b": 2}, {"a": 1, "b": 0, "c": 2}]


@pytest.mark.parametrize("crashes", [1, pytest.param(12, marks=LONG)])
def test_no_money_is_lost_and_all_replicas_agree_after_power_cuts(tmp_path: Path, crashes: int) -> None:
    paid = pay(tmp_path / "data", Ledger, crashes=crashes)
    assert paid.totals == {1: TOTAL, 2: TOTAL, 3: TOTAL} and not paid.stopped
    first, *others = paid.balances.values()
    assert all(other == first for other in others) and min(first.values()) >= 0
    assert paid.answers["moved"]


def test_an_exception_for_a_command_ends_the_service(tmp_path: Path) -> None:
    stopped = pay(tmp_path / "data", Raises, crashes=0).stopped
    assert len(stopped) >= 2 and all("is asked for" in why for why in stopped.values())


# The exercises


@pytest.mark.parametrize(
    ("number", "answer", "said"),
    [
        ("7.1", {"a": 1, "b": 3, "c": 6}, "Right."),
        ("7.1", {"a": 10}, "Each command sees"),
        ("7.1", {"a": -5, "b": 3, "c": 12}, "Look at who is refused"),
        ("7.1", {"a": 1, "b": 3, "c": 12}, "Money came from nowhere"),
        ("7.1", 10, "Give a dictionary"),
        ("7.2", {"AsksTheClock", "LooksAtTheDisk"}, "Right."),
        ("7.2", {"AsksTheClock", "Raises"}, "they stop, all at the same entry"),
        ("7.2", {"AsksTheClock"}, "There is another one"),
        ("7.2", {"Ledger"}, "is not one of the three"),
        ("7.2", "Raises", "Give all of them"),
        ("7.3", "no/such/file.py", "There is no file"),
        ("7.4", "no/such/file.py", "There is no file"),
    ],
    ids=lambda value: str(sorted(value) if isinstance(value, set) else value),  # the same in each process
)
def test_an_answer_is_told_what_is_wrong_with_it(number: str, answer: object, said: str) -> None:
    assert said in check(number, answer).text


MINE = """
from ondisk.lab.experiments.ledger import Accounts, Deposit, Ledger
from ondisk.statemachine import Result


class Mine(Accounts):
    def apply(self, command, book):
{}
"""


@pytest.mark.parametrize(
    ("body", "said"),
    [
        ("return Ledger.apply(self, command, book)", "Right."),
        ("book[command.giver] -= 1", "could not be checked"),
        (
            "return Result(book[command.account]) if isinstance(command, Deposit) else Result(error='no')",
            "10 were deposited in a, and a gave 11 to b",
        ),
        (
            "if command.amount < 1: return Result(error='no')\n"
            "        if isinstance(command, Deposit): return Ledger.apply(self, command, book)\n"
            "        if self.stored(command.giver) < command.amount: return Result(error='no')\n"
            "        return Ledger.apply(self, command, book)",
            "a has 10, and gives 6 to b, 6 to c",
        ),
        (
            "if command.amount < 0 and not isinstance(command, Deposit):\n"
            "            book[command.giver] -= command.amount\n"
            "            book[command.taker] += command.amount\n"
            "            return Result()\n"
            "        return Ledger.apply(self, command, book)",
            "b gives it -5",
        ),
    ],
    ids=["right", "no deposit", "nothing at all", "looks at the disk", "takes what is given as less than 0"],
)
def test_a_ledger_of_ones_own_is_told_what_is_wrong_with_it(tmp_path: Path, body: str, said: str) -> None:
    file = tmp_path / "mine.py"
    file.write_text(MINE.format(f"        {body}"))
    assert said in check("7.3", str(file)).text


def test_a_grade_names_what_fails_and_says_why(tmp_path: Path) -> None:
    file = tmp_path / "test_some.py"
    file.write_text("def test_good(): pass\n\ndef test_bad(): assert 1 == 2, 'because of this'\n")
    found = grade(file)
    assert (found.passed, found.failed) == (1, ("test_bad",)) and "because of this" in found.why
    assert "1 passed, 1 failed\n  test_bad" in repr(found)
    file.write_text("there is a mistake in it")
    with pytest.raises(ValueError, match="SyntaxError"):
        grade(file)
