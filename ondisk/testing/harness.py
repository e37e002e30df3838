"""The harness of a test: machines, each in a directory with a name, and what they should hold."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Protocol, TypeVar
from weakref import WeakKeyDictionary

from ondisk.statemachine import Entry, OnDiskStateMachine, Result
from ondisk.storage.disk import Disk
from ondisk.testing.streams import Writer

COMMANDS = 24  # in most tests


class Sample(Protocol):
    """A state machine under test, with commands for it. ``StateMachineBattery`` says what each is about."""

    def make(self, path: Path, disk: Disk) -> OnDiskStateMachine:
        """A machine that is not open yet."""

    def command(self, number: int) -> bytes:
        """The ``number``-th sample command, from 1."""

    def state(self, machine: OnDiskStateMachine) -> Any:
        """All that can be observed."""


def sample_entries(sample: Sample, first: int = 1, last: int = COMMANDS) -> list[Entry]:
    """Entries ``first`` to ``last``: the sample commands, each at its own number as index."""
    return [Entry(number, sample.command(number)) for number in range(first, last + 1)]


def replay(
    machine: OnDiskStateMachine, entries: Sequence[Entry], opened: int, *, batch: int = COMMANDS
) -> list[Result]:
    """Hand over the log as a replica does after a restart: only what lies above ``opened``.

    ``entries`` is the whole log, ``opened`` what ``open`` returned. A batch that straddles that index is
    delivered in part, and one that lies below it not at all.
    """
    results = []
    for start in range(0, len(entries), batch):
        rest = [entry for entry in entries[start : start + batch] if entry.index > opened]
        if rest:
            results += machine.update(rest)
    return results


class Harness:
    """The machines of one test, each in a directory with a name, closed at its end."""

    def __init__(self, sample: Sample, folder: Path) -> None:
        self._sample = sample
        self._folder = folder
        self._machines: list[OnDiskStateMachine] = []

    def path(self, name: str) -> Path:
        return self._folder / name

    def reopen(self, name: str, disk: Disk | None = None) -> tuple[OnDiskStateMachine, int]:
        """Another machine in the same directory, and what ``open`` returned. The former one is closed."""
        machine = self._sample.make(self.path(name), disk or Disk())
        opened = machine.open()
        self._machines.append(machine)
        return machine, opened

    def open(self, name: str, disk: Disk | None = None) -> OnDiskStateMachine:
        """A new machine."""
        machine, opened = self.reopen(name, disk)
        assert opened == 0, "open() of a new machine returns 0"
        return machine

    def filled(self, name: str, count: int = COMMANDS, *, disk: Disk | None = None) -> OnDiskStateMachine:
        """A new machine that has applied the first ``count`` commands, and synced them."""
        machine = self.open(name, disk)
        if count:
            machine.update(sample_entries(self._sample, 1, count))
            machine.sync()
        return machine

    @contextmanager
    def view(self, machine: OnDiskStateMachine) -> Iterator[Any]:
        view = machine.prepare_snapshot()
        try:
            yield view
        finally:
            view.close()

    def saved(self, machine: OnDiskStateMachine, view: Any) -> bytes:
        """The bytes of a view."""
        writer = Writer()
        machine.save_snapshot(view, writer, threading.Event())
        return bytes(writer.data)

    def snapshot(self, count: int) -> bytes:
        """A snapshot of the first ``count`` commands."""
        machine = self.filled(f"snapshot-of-{count}", count)
        with self.view(machine) as view:
            data = self.saved(machine, view)
        machine.close()
        return data

    def close(self) -> None:
        for machine in self._machines:
            machine.close()


_T = TypeVar("_T")
_made: WeakKeyDictionary[type, dict[str, Any]] = WeakKeyDictionary()


def once(cls: type, name: str, make: Callable[[], _T]) -> _T:
    """What many tests of one class need, made by the first of them."""
    kept = _made.setdefault(cls, {})
    if name not in kept:
        kept[name] = make()
    value: _T = kept[name]
    return value


def all_states(sample: Sample, folder: Path) -> list[Any]:
    machine = sample.make(folder / "a", Disk())
    machine.open()
    try:
        states = [sample.state(machine)]
        for entry in sample_entries(sample):
            machine.update([entry])
            states.append(sample.state(machine))
    finally:
        machine.close()
    for number, state in enumerate(states):
        assert state not in states[:number], f"state() cannot tell {number} commands from fewer"
    return states


def expect_exception(call: Callable[[], object], otherwise: str) -> None:
    try:
        call()
    except Exception:
        return
    raise AssertionError(otherwise)


class ListOfEntries(list[Entry]):
    """A list that a weak reference can follow."""
