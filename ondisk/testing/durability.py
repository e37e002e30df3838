"""Tests of ``sync`` and ``close``, and of what a crash leaves."""

from __future__ import annotations

from typing import Any

import pytest

from ondisk.storage.disk import Disk
from ondisk.testing.crashes import BOUNDARIES, Crash, crash_everywhere, listed
from ondisk.testing.crashing import Child, scratch_directory
from ondisk.testing.harness import COMMANDS, Harness, once, replay
from ondisk.testing.samples import Samples
from ondisk.testing.work import apply_and_never_close


class DurabilityTests(Samples):
    """Whether what was synced survives, and whether data and index fit after any crash."""

    def test_what_was_synced_survives_a_power_cut(self, harness: Harness, states: list[Any]) -> None:
        """All of it, also when later updates were not synced. Whether the rest fits is the next test's."""
        for synced, more in ((1, 0), (6, 0), (6, 6), (18, 6)):
            name = f"{synced}-and-{more}"
            machine = harness.filled(name, synced)
            replay(machine, self.entries(1, synced + more), synced)
            machine.crash()
            machine, opened = harness.reopen(name)
            assert opened >= synced, "sync() had returned, and open() is behind it"
            assert self.state(machine) in states[synced:], "sync() had returned, and its data is lost"

    def test_without_sync_a_power_cut_leaves_a_prefix_and_the_index_says_which(
        self, harness: Harness, states: list[Any]
    ) -> None:
        """Older is fine, the log has the rest. Data and index that do not fit are not."""
        for size in (1, 4, COMMANDS):
            machine = harness.open(f"by-{size}")
            for start in range(0, COMMANDS, size):
                machine.update(self.entries(start + 1, start + size))
            machine.crash()
            machine, opened = harness.reopen(f"by-{size}")
            assert self.state(machine) == states[opened], "after a power cut data and index do not fit"
            replay(machine, self.entries(), opened, batch=5)
            assert self.state(machine) == states[COMMANDS]

    def test_closing_twice_does_nothing(self, harness: Harness, states: list[Any]) -> None:
        """Also after a crash, and before ``open``."""
        self.make(harness.path("never-opened"), Disk()).close()
        machine = harness.filled("a", 3)
        machine.close()
        machine.close()
        again, opened = harness.reopen("a")
        machine.close()  # has nothing to do with the one that is open now
        assert (opened, self.state(again)) == (3, states[3])
        again.crash()
        again.close()
        assert harness.reopen("a")[1] == 3

    def test_nothing_depends_on_close(self, states: list[Any]) -> None:
        """The process is killed after ``sync``, with a view and lookups under way."""
        with scratch_directory() as folder, Child(type(self)) as child:
            child.run(apply_and_never_close, type(self), folder / "a")
            machine = self.make(folder / "a", Disk())
            assert machine.open() == COMMANDS
            assert self.state(machine) == states[COMMANDS]
            machine.close()

    # Crashes anywhere

    @pytest.fixture
    def crashes(self, states: list[Any]) -> list[Crash]:
        """What a crash leaves behind, for every point that the disk reaches; made once."""
        return once(type(self), "crashes", lambda: crash_everywhere(self, states))

    def test_a_crash_at_any_write_applies_nothing_twice(self, crashes: list[Crash]) -> None:
        """The data is never ahead of the index: the log would hand over again what it already holds."""
        twice = [crash for crash in crashes if crash.found is not None and crash.found > crash.opened]
        assert not twice, listed("update() stores data before its index: entries are applied twice", twice)

    def test_a_crash_at_any_write_loses_nothing(self, crashes: list[Crash]) -> None:
        """The index is never ahead of the data, and what was synced is there."""
        lost = [
            crash
            for crash in crashes
            if (crash.found is not None and crash.found < crash.opened) or crash.opened < crash.synced
        ]
        assert not lost, listed("update() stores the index before its data: entries are lost", lost)

    def test_a_crash_at_any_write_leaves_whole_updates_that_the_log_completes(
        self, crashes: list[Crash]
    ) -> None:
        """Never half an update; ``open`` succeeds; and a replay leads where it should."""
        half = [
            crash
            for crash in crashes
            if crash.found is None
            or (crash.found == crash.opened and not (crash.completed and crash.found in BOUNDARIES))
        ]
        assert not half, listed("a crash leaves what no number of whole updates explains", half)
