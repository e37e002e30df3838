"""Tests of ``open``, ``update`` and ``lookup``."""

from __future__ import annotations

import gc
import threading
import weakref
from collections.abc import Sequence
from itertools import pairwise
from typing import Any

import pytest

from ondisk.statemachine import Entry, Result
from ondisk.storage.disk import Disk
from ondisk.testing.crashing import Child, scratch_directory
from ondisk.testing.harness import COMMANDS, Harness, ListOfEntries, expect_exception, replay
from ondisk.testing.lookers import Lookers
from ondisk.testing.samples import Samples
from ondisk.testing.streams import Reader
from ondisk.testing.work import apply_all, look_while_closing


class UpdateTests(Samples):
    """Whether updates do the same everywhere, once, and whole."""

    def test_the_sample_commands_show_what_is_left_out_or_applied_twice(self, harness: Harness) -> None:
        """``command`` and ``state`` fit together: otherwise the tests below would prove nothing."""
        twice, seen = harness.open("twice"), []
        index = 0
        for number in range(1, COMMANDS + 1):
            for _ in range(2):
                seen.append(self.state(twice))
                index += 1
                twice.update([Entry(index, self.command(number))])
        for before, after in pairwise(seen):
            assert before != after, "applying the same command again must change what state() returns"
        whole = self.state(harness.filled("whole"))
        for left_out in (1, COMMANDS // 2, COMMANDS):
            machine = harness.open(f"without-{left_out}")
            machine.update([entry for entry in self.entries() if entry.index != left_out])
            assert self.state(machine) != whole, f"nobody notices that command {left_out} is missing"

    # open

    def test_a_new_machine_opens_at_0(self, harness: Harness) -> None:
        """Again and again, as long as nothing was applied."""
        for _ in range(3):
            machine = self.make(harness.path("new"), Disk())
            assert machine.open() == 0, "open() of a new machine returns 0"
            machine.close()

    def test_a_reopened_machine_has_the_last_index_with_its_data(
        self, harness: Harness, states: list[Any]
    ) -> None:
        """After any number of updates, and after none."""
        for number in (1, 2, 7, 7, COMMANDS):
            machine, opened = harness.reopen("a")
            replay(machine, self.entries(1, number), opened)
            machine.close()
            machine, opened = harness.reopen("a")
            assert opened == number, "open() returns the index of the last applied entry"
            assert self.state(machine) == states[number], "open() finds the data that belongs to its index"
            machine.close()

    def test_an_index_has_64_bits(self, harness: Harness) -> None:
        """No float, no 32-bit number and no text on its way to the disk, or into a snapshot."""
        machine = harness.open("a")
        for index in (2**31, 2**32 + 1, 2**53 + 1, 2**63 - 1):
            machine.update([Entry(index, self.command(1))])
            with harness.view(machine) as view:
                assert view.index == index
                data = harness.saved(machine, view)
            other = harness.open(f"from-{index}")
            assert other.recover_from_snapshot(Reader(data), threading.Event()) == index
            machine.close()
            machine, opened = harness.reopen("a")
            assert opened == index

    # update

    def test_update_answers_every_command_in_order(self, harness: Harness) -> None:
        """One result each, the same ones whatever the batches are."""
        entries = self.entries()
        one_by_one = harness.open("one-by-one")
        expected = [result for entry in entries for result in one_by_one.update([entry])]
        assert len(expected) == COMMANDS and all(isinstance(result, Result) for result in expected)
        for size in (2, 5, COMMANDS):
            machine = harness.open(f"by-{size}")
            results = [
                r for start in range(0, COMMANDS, size) for r in machine.update(entries[start:][:size])
            ]
            assert results == expected, f"update() answers otherwise in batches of {size}"

    def test_a_batch_has_the_same_outcome_as_its_commands_one_by_one(
        self, harness: Harness, states: list[Any]
    ) -> None:
        """Later commands of a batch see what the earlier ones did."""
        for size in (2, 5, COMMANDS):
            machine = harness.open(f"by-{size}")
            for start in range(0, COMMANDS, size):
                machine.update(self.entries(start + 1, min(start + size, COMMANDS)))
                done = min(start + size, COMMANDS)
                assert self.state(machine) == states[done], f"update() differs in batches of {size}"

    def test_machines_with_the_same_commands_have_the_same_state(
        self, harness: Harness, states: list[Any]
    ) -> None:
        """No clock, no random number and no path in the state. ``test_..._in_another_process`` does more."""
        for name in ("a", "b"):
            assert self.state(harness.filled(name)) == states[COMMANDS], "update() is not deterministic"

    def test_a_machine_in_another_process_has_the_same_state(self, states: list[Any]) -> None:
        """Not even the order of a set or a hash, which each process has of its own."""
        with scratch_directory() as folder, Child(type(self)) as child:
            found = child.run(apply_all, type(self), folder / "a").value
        assert found == states[COMMANDS], "update() depends on the process that it runs in"

    def test_indexes_may_have_gaps(self, harness: Harness, states: list[Any]) -> None:
        """Within a batch and between batches: some entries of the log are Raft's own."""
        machine = harness.open("a")
        for place, first in enumerate((5, 60, 600)):
            done = 4 * place
            machine.update([Entry(first + 7 * n, self.command(done + n + 1)) for n in range(4)])
            assert self.state(machine) == states[done + 4]
            machine.close()
            machine, opened = harness.reopen("a")
            assert opened == first + 7 * 3, "open() returns the index of the last entry, not a count"

    @pytest.mark.parametrize(
        "indexes", [(10,), (9,), (1,), (0,), (11, 11), (12, 11), (11, 12, 13, 10)], ids=str
    )
    def test_an_index_that_does_not_rise_is_refused_and_changes_nothing(
        self, harness: Harness, states: list[Any], indexes: tuple[int, ...]
    ) -> None:
        """Entry 10 was applied. What is handed over again, or in a wrong order, raises an exception."""
        machine = harness.filled("a", 10)
        wrong = [Entry(index, self.command(11 + place)) for place, index in enumerate(indexes)]
        expect_exception(lambda: machine.update(wrong), f"update() took the indexes {indexes} after 10")
        assert self.state(machine) == states[10], "update() refused, and changed something all the same"
        machine.close()
        machine, opened = harness.reopen("a")
        assert (opened, self.state(machine)) == (10, states[10])
        expect_exception(lambda: machine.update(wrong), f"after open(), update() took {indexes} after 10")

    def test_update_keeps_no_reference_to_its_input(self, harness: Harness, states: list[Any]) -> None:
        """Whoever called may use the list again."""
        machine = harness.open("a")
        batch = ListOfEntries(self.entries())
        gone = weakref.ref(batch)
        machine.update(batch)
        batch.clear()
        assert self.state(machine) == states[COMMANDS]
        del batch
        gc.collect()
        assert gone() is None, "update() keeps a reference to entries"

    def test_a_malformed_command_is_an_error_result_and_changes_nothing(
        self, harness: Harness, states: list[Any]
    ) -> None:
        """It raises nothing, its neighbours in the batch are applied, and its index counts."""
        for place, malformed in enumerate(self._malformed()):
            machine = harness.open(f"{place}")
            results = machine.update([Entry(1, self.command(1)), Entry(2, malformed)])
            assert results[1].error, f"update() answers the malformed {malformed!r:.60} without an error"
            assert self.state(machine) == states[1], f"the malformed {malformed!r:.60} changed something"
            machine.update([Entry(3, malformed)])
            machine.update([Entry(4, malformed), Entry(5, self.command(2))])
            assert self.state(machine) == states[2]
            machine.update([Entry(6, malformed)])
            machine.close()
            _, opened = harness.reopen(f"{place}")
            assert opened == 6, "the index of a command that failed counts as applied"

    def test_a_malformed_command_has_the_same_result_everywhere(self, harness: Harness) -> None:
        """Word for word: results go back to clients from whichever replica leads."""
        entries = [Entry(index, command) for index, command in enumerate(self._malformed(), 1)]
        results = harness.open("a").update(entries)
        assert harness.open("b").update(entries) == results
        with scratch_directory() as folder, Child(type(self)) as child:
            assert child.run(apply_all, type(self), folder / "c", entries).note == results

    def _malformed(self) -> Sequence[bytes]:
        malformed = self.malformed()
        if not malformed:
            pytest.skip("malformed() names no commands")
        return malformed

    # lookup

    def test_lookup_beside_update_never_sees_half_a_batch(self, harness: Harness, states: list[Any]) -> None:
        """Only states between two updates are ever seen."""
        with Lookers() as lookers:
            machine = harness.open("a", disk=lookers)
            lookers.begin(lambda: self.state(machine))
            for start in range(0, COMMANDS, 6):
                machine.update(self.entries(start + 1, start + 6))
        lookers.check(states[::6], "lookup() sees half an update")

    def test_lookup_beside_close_is_answered_or_refused(self, states: list[Any]) -> None:
        """It may raise an exception. It must not crash the process, hang, or answer nonsense."""
        with scratch_directory() as folder, Child(type(self), seconds=30) as child:
            for number in range(4):
                seen = child.run(look_while_closing, type(self), folder / f"{number}").value
                assert seen, "nobody looked"
                assert all(state == states[COMMANDS] for state in seen), "lookup() beside close() is wrong"
