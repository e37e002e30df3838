"""Ledgers: state machines of notebook 7. Money moves between accounts, and no account may be overdrawn.

``Accounts`` is what they share, with data and index in one batch (``naive.OneBatch``): a subclass has to
write ``apply`` and nothing else. ``Ledger`` is right; the others are wrong, each in its own way.
"""

from __future__ import annotations

import time
from abc import abstractmethod
from collections.abc import Iterator, MutableMapping, Sequence
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import msgspec

from ondisk.errors import InvalidCommand
from ondisk.lab.experiments.naive import OneBatch
from ondisk.statemachine import Entry, Result

_LARGEST = 1 << 53  # of an amount, and of a balance


class Deposit(msgspec.Struct, frozen=True, array_like=True, tag="deposit"):
    """Command: money comes in from outside. Answers the new balance."""

    account: str
    amount: int


class Transfer(msgspec.Struct, frozen=True, array_like=True, tag="transfer"):
    """Command: money moves. Answers the new balance of the giver."""

    giver: str
    taker: str
    amount: int


class Balances(msgspec.Struct, frozen=True):
    """Query: all accounts, as ``dict[str, int]``."""


_encoder = msgspec.msgpack.Encoder()
_decoder = msgspec.msgpack.Decoder(Deposit | Transfer)


def deposit(account: str, amount: int) -> bytes:
    """The command, as it stands in the log."""
    return _encoder.encode(Deposit(account, amount))


def transfer(giver: str, taker: str, amount: int) -> bytes:
    """The command, as it stands in the log."""
    return _encoder.encode(Transfer(giver, taker, amount))


class Book(MutableMapping[str, int]):
    """The balances as of the present command: what is stored, and over it what this update has changed."""

    def __init__(self, machine: Accounts, changes: dict[bytes, bytes | None]) -> None:
        self._machine = machine
        self._changes = changes

    def __getitem__(self, account: str) -> int:
        """An account that nobody has heard of holds nothing."""
        key = account.encode()
        return int(self._changes[key] or 0) if key in self._changes else self._machine.stored(account)

    def __setitem__(self, account: str, balance: int) -> None:
        self._changes[account.encode()] = b"%d" % balance

    def __delitem__(self, account: str) -> None:
        self._changes[account.encode()] = None

    def __iter__(self) -> Iterator[str]:
        return iter(sorted({*self._machine.lookup(Balances()), *map(bytes.decode, self._changes)}))

    def __len__(self) -> int:
        return len(list(iter(self)))


class Accounts(OneBatch):
    """Accounts on disk that leave one question open: what does a command do?"""

    @abstractmethod
    def apply(self, command: Deposit | Transfer, book: Book) -> Result:
        """Change the balances in ``book``, or return ``Result(error=...)`` and change nothing."""

    def stored(self, account: str) -> int:
        """The balance as it is on disk, without what the present update has changed."""
        return int(self.data.get(account.encode()) or 0)

    def _apply(self, command: bytes, changes: dict[bytes, bytes | None]) -> Result:
        try:
            decoded = _decoder.decode(command)
        except (msgspec.DecodeError, UnicodeDecodeError) as error:
            return Result(error=f"malformed command: {error}")
        return self.apply(decoded, Book(self, changes))

    def lookup(self, query: Any) -> Any:
        """``Balances`` answers ``dict[str, int]``."""
        if not isinstance(query, Balances):
            raise InvalidCommand(f"Balances is answered here, not {type(query).__name__}")
        with self.data.iterate() as pairs:
            return {account.decode(): int(balance) for account, balance in pairs}


class Ledger(Accounts):
    """The right one. It looks first, and changes something only when nothing can go wrong any more."""

    def apply(self, command: Deposit | Transfer, book: Book) -> Result:
        """No overdraft, and no amount that is none."""
        if not 0 < command.amount <= _LARGEST:
            return Result(error=f"an amount is a number from 1 to {_LARGEST}, not {command.amount}")
        if isinstance(command, Deposit):
            if book[command.account] + command.amount > _LARGEST:
                return Result(error=f"{command.account} would hold more than {_LARGEST}")
            book[command.account] += command.amount
            return Result(book[command.account])
        if book[command.giver] < command.amount:
            return Result(
                error=f"{command.giver} has {book[command.giver]}, and {command.amount} is asked for"
            )
        book[command.giver] -= command.amount
        book[command.taker] += command.amount
        return Result(book[command.giver])


class LooksAtTheDisk(Ledger):
    """Asks the disk what an account holds, and not what the command before this one has left of it."""

    def apply(self, command: Deposit | Transfer, book: Book) -> Result:
        """The same rules, on the balance as it is stored."""
        if isinstance(command, Deposit):
            return super().apply(command, book)
        if self.stored(command.giver) < command.amount:
            return Result(error=f"{command.giver} has not got {command.amount}")
        book[command.giver] -= command.amount
        book[command.taker] += command.amount
        return Result(book[command.giver])


class Raises(Ledger):
    """Takes a transfer that is not covered for an error of the program."""

    def apply(self, command: Deposit | Transfer, book: Book) -> Result:
        """The same rules, with an exception."""
        result = super().apply(command, book)
        if result.error:
            raise ValueError(result.error)
        return result


class AsksTheClock(Ledger):
    """Writes down when an account gave something the last time."""

    def apply(self, command: Deposit | Transfer, book: Book) -> Result:
        """The same rules, and the time."""
        result = super().apply(command, book)
        if isinstance(command, Transfer) and not result.error:
            book[f"last transfer of {command.giver}"] = time.time_ns()
        return result


def in_batches(
    machine: type[Accounts], commands: Sequence[bytes], size: int
) -> tuple[dict[str, int], list[Result]]:
    """What a new ledger holds after these commands, handed over ``size`` at a time, and what it answered."""
    with TemporaryDirectory(prefix="ondisk-ledger-") as folder:
        ledger = machine(Path(folder) / "state")
        ledger.open()
        try:
            entries = [Entry(index, command) for index, command in enumerate(commands, 1)]
            results = []
            for first in range(0, len(entries), size):
                results += ledger.update(entries[first : first + size])
            return ledger.lookup(Balances()), results
        finally:
            ledger.close()
