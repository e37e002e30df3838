"""A bank whose total must never change: a snapshot that mixes two moments is seen at once."""

from __future__ import annotations

import random
import threading
from collections.abc import Callable, Sequence
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import NamedTuple

from ondisk.diskkv import DiskKV, DiskKVView, incr, put, scan
from ondisk.lab.experiments.directories import files
from ondisk.lab.experiments.fingerprint import Saved, save
from ondisk.statemachine import Entry, Result


class Use(NamedTuple):
    """Bytes in the live database and in the view, those in both (hard links), and all, each file once."""

    moment: str
    live: int
    view: int
    shared: int
    total: int


class Bank:
    """A ``DiskKV`` of its own with accounts. Money only moves, so the total is always the same.

    A transfer takes 1 from an account of the upper half and gives it to one of the lower half, in *one*
    update; it also writes a receipt of 1 kB, over an old one. A context manager.
    """

    ACCOUNTS, BALANCE = 1_000, 1_000
    RECEIPTS = 5_000

    def __init__(self) -> None:
        """Open the accounts, each with the same balance, and fill the receipts."""
        self._folder = TemporaryDirectory(prefix="ondisk-bank-")
        self.directory = Path(self._folder.name) / "state"
        self.machine = DiskKV(self.directory)
        self.index = self.machine.open()
        self._random = random.Random(1)
        self._update([incr(_account(number), self.BALANCE) for number in range(self.ACCOUNTS)])
        for first in range(0, self.RECEIPTS, 250):
            self._update([self._receipt(number) for number in range(first, first + 250)])

    def __enter__(self) -> Bank:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Close it and remove its directory. A second call does nothing."""
        self.machine.close()
        self._folder.cleanup()

    def _update(self, commands: Sequence[bytes]) -> list[Result]:
        entries = [Entry(self.index + place, command) for place, command in enumerate(commands, 1)]
        self.index += len(entries)
        return self.machine.update(entries)

    def _receipt(self, number: int) -> bytes:
        return put(f"receipt {number:06}", self._random.randbytes(1_000))

    def transfer(self, count: int) -> None:
        """Move money so many times."""
        half = self.ACCOUNTS // 2
        for _ in range(count):
            giver, taker = half + self._random.randrange(half), self._random.randrange(half)
            receipt = self._receipt(self._random.randrange(self.RECEIPTS))
            self._update([incr(_account(giver), -1), incr(_account(taker), 1), receipt])

    def transfer_until_rewritten(self, limit: int = 200_000) -> int:
        """Go on until RocksDB has merged away the tables that the view shares; return how many transfers.

        ``TimeoutError`` after ``limit`` of them.
        """
        for done in range(0, limit, 2_500):
            use = self.use("")
            if use.shared < use.view / 10:
                return done
            self.transfer(2_500)
        raise TimeoutError(f"after {limit:,} transfers the live database still has the tables of the view")

    def total(self) -> int:
        """What all accounts hold together, in one lookup."""
        return _total(self.machine.lookup(scan("account", limit=self.ACCOUNTS)))

    def total_page_by_page(self, transfers: int) -> int:
        """The same in pages of 100 accounts, as a naive dump would read; between two pages money moves."""
        total, start = 0, b""
        while page := self.machine.lookup(scan("account", start=start, limit=100)):
            total += _total(page)
            start = page[-1][0] + b"\0"
            self.transfer(transfers)
        return total

    def save(self, view: DiskKVView) -> Saved:
        """Write the snapshot, keep its fingerprint."""
        return save(self.machine, view)

    def total_in(self, view: DiskKVView) -> int:
        """What the accounts hold together in another state machine that recovered from this view."""
        with TemporaryDirectory(prefix="ondisk-") as name:
            file, other = Path(name) / "snapshot", DiskKV(Path(name) / "state")
            with file.open("wb") as writer:
                self.machine.save_snapshot(view, _Into(writer.write), threading.Event())
            other.open()
            try:
                with file.open("rb") as reader:
                    other.recover_from_snapshot(reader, threading.Event())
                return _total(other.lookup(scan("account", limit=self.ACCOUNTS)))
            finally:
                other.close()

    def use(self, moment: str) -> Use:
        """How the disk is used now."""
        databases = {
            kind: dict((status.st_ino, status.st_size) for _, status in files(*self.directory.glob(pattern)))
            for kind, pattern in (("live", "db-*"), ("view", "view-*"))
        }
        live, view = databases["live"], databases["view"]
        return Use(
            moment,
            sum(live.values()),
            sum(view.values()),
            sum(size for inode, size in view.items() if inode in live),
            sum((live | view).values()),
        )


class _Into:
    """A ``SnapshotWriter`` out of a function."""

    def __init__(self, write: Callable[[bytes], object]) -> None:
        self._write = write

    def write(self, data: bytes) -> None:
        self._write(data)


def _account(number: int) -> str:
    return f"account {number:06}"


def _total(pairs: Sequence[tuple[bytes, bytes]]) -> int:
    return sum(int(balance) for _, balance in pairs)
