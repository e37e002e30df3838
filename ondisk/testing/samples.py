"""What is written for a state machine under test, and what all tests of the battery stand on."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest

from ondisk.statemachine import Entry, OnDiskStateMachine
from ondisk.storage.disk import Disk
from ondisk.testing.harness import COMMANDS, Harness, all_states, once, sample_entries


class Samples:
    """The sample commands of one machine. What raises ``NotImplementedError`` is to be written."""

    def make(self, path: Path, disk: Disk) -> OnDiskStateMachine:
        """A machine that is not open yet. ``path`` does not exist, or is what another one has left."""
        raise NotImplementedError("write make(self, path, disk)")

    def command(self, number: int) -> bytes:
        """The ``number``-th sample command, from 1. Always the same for the same number.

        Applying one twice, or leaving one out, must show in ``state``: add to a number, do not set it.
        """
        raise NotImplementedError("write command(self, number)")

    def state(self, machine: OnDiskStateMachine) -> Any:
        """All that can be observed, as a value that ``==`` compares and ``pickle`` takes.

        Ask with *one* lookup, because it is called beside updates too.
        """
        raise NotImplementedError("write state(self, machine)")

    def malformed(self) -> Sequence[bytes]:
        """Commands that make no sense. Without any, two tests are skipped."""
        return ()

    # What the tests stand on

    def entries(self, first: int = 1, last: int = COMMANDS) -> list[Entry]:
        """Entries ``first`` to ``last``: the sample commands, each at its own number as index."""
        return sample_entries(self, first, last)

    @pytest.fixture
    def harness(self, tmp_path: Path) -> Iterator[Harness]:
        """The machines of one test. They are closed at its end."""
        harness = Harness(self, tmp_path)
        yield harness
        harness.close()

    @pytest.fixture
    def states(self, tmp_path_factory: pytest.TempPathFactory) -> list[Any]:
        """``states[n]`` is the state after the first n commands, for n from 0 to ``COMMANDS``."""
        return once(type(self), "states", lambda: all_states(self, tmp_path_factory.mktemp("states")))
