"""A battery of tests for what the contract says. Run it over a state machine of your own:

    # test_ledger.py
    from ondisk.testing import StateMachineBattery

    class TestLedger(StateMachineBattery):
        def make(self, path, disk):
            return Ledger(path, disk)

        def command(self, number):
            return transfer("alice", "bob", number)

        def state(self, machine):
            return machine.lookup(all_accounts())

and ``python -m pytest test_ledger.py`` runs some thirty tests, whose names say what they claim. A test that
fails names the method of ``OnDiskStateMachine`` where the promise stands.

Crashes happen in child processes (``testing/crashing.py``), which import the file of your test class. The
machine should hand the ``disk`` it is given to its ``Store``, or call ``disk.reach`` itself between two
steps that a crash may separate. One that does neither is crashed only between its updates, which proves
much less.

The only module that needs pytest. The idea of one battery for every implementation is trio's
(``_tests/test_sync.py``).
"""

from __future__ import annotations

import gc
import shutil
import sys
import threading
import weakref
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from itertools import pairwise
from operator import ge
from pathlib import Path
from typing import Any, NamedTuple, TypeVar
from weakref import WeakKeyDictionary

import pytest

from ondisk.errors import Corrupt, SnapshotStopped
from ondisk.statemachine import Entry, OnDiskStateMachine, Result
from ondisk.storage.disk import Disk
from ondisk.testing.crashing import Child, CrashingDisk, How, Point, Run, scratch_directory

COMMANDS = 24  # in most tests
MAX_POINTS = 60  # crashes of each kind in one test; a machine with more steps is crashed at some of them
_DEADLINE = 10.0  # seconds, for what takes milliseconds
_HOWS: tuple[How, How] = ("kill", "power cut")


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


class StateMachineBattery:
    """Subclass it as ``class TestMine(StateMachineBattery)`` and write ``make``, ``command`` and ``state``.

    The three are also called on fresh objects and in child processes, so they should depend on nothing else.
    """

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
        return [Entry(number, self.command(number)) for number in range(first, last + 1)]

    @pytest.fixture
    def bench(self, tmp_path: Path) -> Iterator[Bench]:
        """The machines of one test. They are closed at its end."""
        bench = Bench(self, tmp_path)
        yield bench
        bench.close()

    @pytest.fixture
    def states(self, tmp_path_factory: pytest.TempPathFactory) -> list[Any]:
        """``states[n]`` is the state after the first n commands, for n from 0 to ``COMMANDS``."""
        return _once(type(self), "states", lambda: _all_states(self, tmp_path_factory.mktemp("states")))

    def test_the_sample_commands_show_what_is_left_out_or_applied_twice(self, bench: Bench) -> None:
        """``command`` and ``state`` fit together: otherwise the tests below would prove nothing."""
        twice, seen = bench.open("twice"), []
        index = 0
        for number in range(1, COMMANDS + 1):
            for _ in range(2):
                seen.append(self.state(twice))
                index += 1
                twice.update([Entry(index, self.command(number))])
        for before, after in pairwise(seen):
            assert before != after, "applying the same command again must change what state() returns"
        whole = self.state(bench.filled("whole"))
        for left_out in (1, COMMANDS // 2, COMMANDS):
            machine = bench.open(f"without-{left_out}")
            machine.update([entry for entry in self.entries() if entry.index != left_out])
            assert self.state(machine) != whole, f"nobody notices that command {left_out} is missing"

    # open

    def test_a_new_machine_opens_at_0(self, bench: Bench) -> None:
        """Again and again, as long as nothing was applied."""
        for _ in range(3):
            machine = self.make(bench.path("new"), Disk())
            assert machine.open() == 0, "open() of a new machine returns 0"
            machine.close()

    def test_a_reopened_machine_has_the_last_index_with_its_data(
        self, bench: Bench, states: list[Any]
    ) -> None:
        """After any number of updates, and after none."""
        for number in (1, 2, 7, 7, COMMANDS):
            machine, opened = bench.reopen("a")
            replay(machine, self.entries(1, number), opened)
            machine.close()
            machine, opened = bench.reopen("a")
            assert opened == number, "open() returns the index of the last applied entry"
            assert self.state(machine) == states[number], "open() finds the data that belongs to its index"
            machine.close()

    def test_an_index_has_64_bits(self, bench: Bench) -> None:
        """No float, no 32-bit number and no text on its way to the disk, or into a snapshot."""
        machine = bench.open("a")
        for index in (2**31, 2**32 + 1, 2**53 + 1, 2**63 - 1):
            machine.update([Entry(index, self.command(1))])
            with bench.view(machine) as view:
                assert view.index == index
                data = bench.saved(machine, view)
            other = bench.open(f"from-{index}")
            assert other.recover_from_snapshot(_Reader(data), threading.Event()) == index
            machine.close()
            machine, opened = bench.reopen("a")
            assert opened == index

    # update

    def test_update_answers_every_command_in_order(self, bench: Bench) -> None:
        """One result each, the same ones whatever the batches are."""
        entries = self.entries()
        one_by_one = bench.open("one-by-one")
        expected = [result for entry in entries for result in one_by_one.update([entry])]
        assert len(expected) == COMMANDS and all(isinstance(result, Result) for result in expected)
        for size in (2, 5, COMMANDS):
            machine = bench.open(f"by-{size}")
            results = [
                r for start in range(0, COMMANDS, size) for r in machine.update(entries[start:][:size])
            ]
            assert results == expected, f"update() answers otherwise in batches of {size}"

    def test_a_batch_has_the_same_outcome_as_its_commands_one_by_one(
        self, bench: Bench, states: list[Any]
    ) -> None:
        """Later commands of a batch see what the earlier ones did."""
        for size in (2, 5, COMMANDS):
            machine = bench.open(f"by-{size}")
            for start in range(0, COMMANDS, size):
                machine.update(self.entries(start + 1, min(start + size, COMMANDS)))
                done = min(start + size, COMMANDS)
                assert self.state(machine) == states[done], f"update() differs in batches of {size}"

    def test_machines_with_the_same_commands_have_the_same_state(
        self, bench: Bench, states: list[Any]
    ) -> None:
        """No clock, no random number and no path in the state. ``test_..._in_another_process`` does more."""
        for name in ("a", "b"):
            assert self.state(bench.filled(name)) == states[COMMANDS], "update() is not deterministic"

    def test_a_machine_in_another_process_has_the_same_state(self, states: list[Any]) -> None:
        """Not even the order of a set or a hash, which each process has of its own."""
        with scratch_directory() as folder, Child(type(self)) as child:
            found = child.run(_apply_all, type(self), folder / "a").value
        assert found == states[COMMANDS], "update() depends on the process that it runs in"

    def test_indexes_may_have_gaps(self, bench: Bench, states: list[Any]) -> None:
        """Within a batch and between batches: some entries of the log are Raft's own."""
        machine = bench.open("a")
        for place, first in enumerate((5, 60, 600)):
            done = 4 * place
            machine.update([Entry(first + 7 * n, self.command(done + n + 1)) for n in range(4)])
            assert self.state(machine) == states[done + 4]
            machine.close()
            machine, opened = bench.reopen("a")
            assert opened == first + 7 * 3, "open() returns the index of the last entry, not a count"

    @pytest.mark.parametrize(
        "indexes", [(10,), (9,), (1,), (0,), (11, 11), (12, 11), (11, 12, 13, 10)], ids=str
    )
    def test_an_index_that_does_not_rise_is_refused_and_changes_nothing(
        self, bench: Bench, states: list[Any], indexes: tuple[int, ...]
    ) -> None:
        """Entry 10 was applied. What is handed over again, or in a wrong order, raises an exception."""
        machine = bench.filled("a", 10)
        wrong = [Entry(index, self.command(11 + place)) for place, index in enumerate(indexes)]
        _expect_exception(lambda: machine.update(wrong), f"update() took the indexes {indexes} after 10")
        assert self.state(machine) == states[10], "update() refused, and changed something all the same"
        machine.close()
        machine, opened = bench.reopen("a")
        assert (opened, self.state(machine)) == (10, states[10])
        _expect_exception(lambda: machine.update(wrong), f"after open(), update() took {indexes} after 10")

    def test_update_keeps_no_reference_to_its_input(self, bench: Bench, states: list[Any]) -> None:
        """Whoever called may use the list again."""
        machine = bench.open("a")
        batch = _Entries(self.entries())
        gone = weakref.ref(batch)
        machine.update(batch)
        batch.clear()
        assert self.state(machine) == states[COMMANDS]
        del batch
        gc.collect()
        assert gone() is None, "update() keeps a reference to entries"

    def test_a_malformed_command_is_an_error_result_and_changes_nothing(
        self, bench: Bench, states: list[Any]
    ) -> None:
        """It raises nothing, its neighbours in the batch are applied, and its index counts."""
        for place, malformed in enumerate(self._malformed()):
            machine = bench.open(f"{place}")
            results = machine.update([Entry(1, self.command(1)), Entry(2, malformed)])
            assert results[1].error, f"update() answers the malformed {malformed!r:.60} without an error"
            assert self.state(machine) == states[1], f"the malformed {malformed!r:.60} changed something"
            machine.update([Entry(3, malformed)])
            machine.update([Entry(4, malformed), Entry(5, self.command(2))])
            assert self.state(machine) == states[2]
            machine.update([Entry(6, malformed)])
            machine.close()
            _, opened = bench.reopen(f"{place}")
            assert opened == 6, "the index of a command that failed counts as applied"

    def test_a_malformed_command_has_the_same_result_everywhere(self, bench: Bench) -> None:
        """Word for word: results go back to clients from whichever replica leads."""
        entries = [Entry(index, command) for index, command in enumerate(self._malformed(), 1)]
        results = bench.open("a").update(entries)
        assert bench.open("b").update(entries) == results
        with scratch_directory() as folder, Child(type(self)) as child:
            assert child.run(_apply_all, type(self), folder / "c", entries).note == results

    def _malformed(self) -> Sequence[bytes]:
        malformed = self.malformed()
        if not malformed:
            pytest.skip("malformed() names no commands")
        return malformed

    # lookup

    def test_lookup_beside_update_never_sees_half_a_batch(self, bench: Bench, states: list[Any]) -> None:
        """Only states between two updates are ever seen."""
        with _Lookers() as lookers:
            machine = bench.open("a", disk=lookers)
            lookers.begin(lambda: self.state(machine))
            for start in range(0, COMMANDS, 6):
                machine.update(self.entries(start + 1, start + 6))
        lookers.check(states[::6], "lookup() sees half an update")

    def test_lookup_beside_close_is_answered_or_refused(self, states: list[Any]) -> None:
        """It may raise an exception. It must not crash the process, hang, or answer nonsense."""
        with scratch_directory() as folder, Child(type(self), seconds=30) as child:
            for number in range(4):
                seen = child.run(_look_while_closing, type(self), folder / f"{number}").value
                assert seen, "nobody looked"
                assert all(state == states[COMMANDS] for state in seen), "lookup() beside close() is wrong"

    # sync, close, and what is left without them

    def test_what_was_synced_survives_a_power_cut(self, bench: Bench, states: list[Any]) -> None:
        """All of it, also when later updates were not synced. Whether the rest fits is the next test's."""
        for synced, more in ((1, 0), (6, 0), (6, 6), (18, 6)):
            name = f"{synced}-and-{more}"
            machine = bench.filled(name, synced)
            replay(machine, self.entries(1, synced + more), synced)
            machine.crash()
            machine, opened = bench.reopen(name)
            assert opened >= synced, "sync() had returned, and open() is behind it"
            assert self.state(machine) in states[synced:], "sync() had returned, and its data is lost"

    def test_without_sync_a_power_cut_leaves_a_prefix_and_the_index_says_which(
        self, bench: Bench, states: list[Any]
    ) -> None:
        """Older is fine, the log has the rest. Data and index that do not fit are not."""
        for size in (1, 4, COMMANDS):
            machine = bench.open(f"by-{size}")
            for start in range(0, COMMANDS, size):
                machine.update(self.entries(start + 1, start + size))
            machine.crash()
            machine, opened = bench.reopen(f"by-{size}")
            assert self.state(machine) == states[opened], "after a power cut data and index do not fit"
            replay(machine, self.entries(), opened, batch=5)
            assert self.state(machine) == states[COMMANDS]

    def test_closing_twice_does_nothing(self, bench: Bench, states: list[Any]) -> None:
        """Also after a crash, and before ``open``."""
        self.make(bench.path("never-opened"), Disk()).close()
        machine = bench.filled("a", 3)
        machine.close()
        machine.close()
        again, opened = bench.reopen("a")
        machine.close()  # has nothing to do with the one that is open now
        assert (opened, self.state(again)) == (3, states[3])
        again.crash()
        again.close()
        assert bench.reopen("a")[1] == 3

    def test_nothing_depends_on_close(self, states: list[Any]) -> None:
        """The process is killed after ``sync``, with a view and lookups under way."""
        with scratch_directory() as folder, Child(type(self)) as child:
            child.run(_apply_and_never_close, type(self), folder / "a")
            machine = self.make(folder / "a", Disk())
            assert machine.open() == COMMANDS
            assert self.state(machine) == states[COMMANDS]
            machine.close()

    # Crashes anywhere

    @pytest.fixture
    def crashes(self, states: list[Any]) -> list[Crash]:
        """What a crash leaves behind, for every point that the disk reaches; made once."""
        return _once(type(self), "crashes", lambda: _crash_everywhere(self, states))

    def test_a_crash_at_any_write_applies_nothing_twice(self, crashes: list[Crash]) -> None:
        """The data is never ahead of the index: the log would hand over again what it already holds."""
        twice = [crash for crash in crashes if crash.found is not None and crash.found > crash.opened]
        assert not twice, _list("update() stores data before its index: entries are applied twice", twice)

    def test_a_crash_at_any_write_loses_nothing(self, crashes: list[Crash]) -> None:
        """The index is never ahead of the data, and what was synced is there."""
        lost = [
            crash
            for crash in crashes
            if (crash.found is not None and crash.found < crash.opened) or crash.opened < crash.synced
        ]
        assert not lost, _list("update() stores the index before its data: entries are lost", lost)

    def test_a_crash_at_any_write_leaves_whole_updates_that_the_log_completes(
        self, crashes: list[Crash]
    ) -> None:
        """Never half an update; ``open`` succeeds; and a replay leads where it should."""
        half = [
            crash
            for crash in crashes
            if crash.found is None
            or (crash.found == crash.opened and not (crash.completed and crash.found in _BOUNDARIES))
        ]
        assert not half, _list("a crash leaves what no number of whole updates explains", half)

    # Snapshots

    def test_a_view_stays_as_it_was_while_updates_go_on(self, bench: Bench, states: list[Any]) -> None:
        """It holds the state of the moment when it was prepared, whenever it is saved."""
        machine = bench.filled("a", 10)
        with bench.view(machine) as view:
            machine.update(self.entries(11, 17))
            machine.sync()
            with bench.view(machine) as later:
                machine.update(self.entries(18, 20))
                assert (view.index, later.index) == (10, 17), "a view has the index of its own state"
                streams = {10: bench.saved(machine, view), 17: bench.saved(machine, later)}
        for index, data in streams.items():
            other = bench.open(f"from-{index}")
            assert other.recover_from_snapshot(_Reader(data), threading.Event()) == index
            assert self.state(other) == states[index], "updates show in a view that was prepared before"
        assert self.state(machine) == states[20], "saving a view changed the machine"

    def test_a_view_gives_the_same_bytes_each_time(self, bench: Bench) -> None:
        """Also with updates in between: a transfer that broke off can begin again."""
        machine = bench.filled("a", 10)
        with bench.view(machine) as view:
            first = bench.saved(machine, view)
            machine.update(self.entries(11, 17))
            assert bench.saved(machine, view) == first, "save_snapshot() gives other bytes the second time"

    def test_a_view_that_is_not_saved_leaves_nothing_behind(self, bench: Bench, states: list[Any]) -> None:
        """It may be closed unsaved, twice, after the machine, or never."""
        machine = bench.filled("a", 10)
        view = machine.prepare_snapshot()
        view.close()
        view.close()
        left_open, never_closed = machine.prepare_snapshot(), machine.prepare_snapshot()
        machine.update(self.entries(11, 12))
        machine.close()
        left_open.close()
        machine, opened = bench.reopen("a")
        assert (opened, self.state(machine)) == (12, states[12])
        del never_closed

    @pytest.mark.parametrize("before", [0, 3, 10, COMMANDS], ids=["empty", "behind", "level", "ahead"])
    def test_a_snapshot_replaces_the_state(self, bench: Bench, states: list[Any], before: int) -> None:
        """Whatever was there before is gone. It holds at once, after reopening, and after a power cut."""
        data = bench.snapshot(10)
        machine = bench.filled("a", before)
        assert machine.recover_from_snapshot(_Reader(data), threading.Event()) == 10
        assert self.state(machine) == states[10], "recover_from_snapshot() leaves another state"
        machine.crash()
        machine, opened = bench.reopen("a")
        assert (opened, self.state(machine)) == (10, states[10]), "recover_from_snapshot() was not durable"
        machine.update(self.entries(11, 15))
        machine.close()
        machine, opened = bench.reopen("a")
        assert (opened, self.state(machine)) == (15, states[15]), "no updates after a recovery"

    def test_updates_go_on_right_after_a_recovery(self, bench: Bench, states: list[Any]) -> None:
        """From the snapshot's index on, also where that is lower than before."""
        data = bench.snapshot(10)
        for before in (0, COMMANDS):
            machine = bench.filled(f"{before}", before)
            machine.recover_from_snapshot(_Reader(data), threading.Event())
            machine.update(self.entries(11, 15))
            assert self.state(machine) == states[15]
            with bench.view(machine) as view:
                assert view.index == 15

    def test_saving_stops_when_it_is_told_to(self, bench: Bench) -> None:
        """``SnapshotStopped``, soon. The view is as good as before."""
        machine = bench.filled("a", 10)
        stopped = threading.Event()
        stopped.set()
        with bench.view(machine) as view:
            whole = bench.saved(machine, view)
            with pytest.raises(SnapshotStopped):
                machine.save_snapshot(view, _Writer(), stopped)
            with pytest.raises(SnapshotStopped):  # whoever takes the bytes may say so as well
                machine.save_snapshot(view, _Writer(SnapshotStopped("no longer")), threading.Event())
            assert bench.saved(machine, view) == whole

    def test_a_writer_that_fails_can_be_followed_by_another(self, bench: Bench) -> None:
        """The error goes to the caller, and the next attempt writes everything."""
        machine = bench.filled("a", 10)
        with bench.view(machine) as view:
            whole = bench.saved(machine, view)
            for after in {0, 1, len(whole) // 2, len(whole) - 1}:
                with pytest.raises(ConnectionError, match="gone"):
                    machine.save_snapshot(view, _Writer(ConnectionError("gone"), after), threading.Event())
            assert bench.saved(machine, view) == whole

    def test_recovering_stops_when_it_is_told_to_and_keeps_the_old_state(
        self, bench: Bench, states: list[Any]
    ) -> None:
        """``SnapshotStopped``, soon, wherever the stream is."""
        data = bench.snapshot(10)
        machine = bench.filled("a", 5)
        stopped = threading.Event()
        stopped.set()
        with pytest.raises(SnapshotStopped):
            machine.recover_from_snapshot(_Reader(data), stopped)
        assert self.state(machine) == states[5]
        for place in {0, len(data) // 2}:
            with pytest.raises(SnapshotStopped):  # the rest will not come
                machine.recover_from_snapshot(
                    _Reader(data, SnapshotStopped("no longer"), place), threading.Event()
                )
            assert self.state(machine) == states[5]
        machine.close()
        machine, opened = bench.reopen("a")
        assert (opened, self.state(machine)) == (5, states[5]), "a recovery that stopped changed something"

    def test_a_damaged_stream_leaves_the_old_state_whole(self, bench: Bench, states: list[Any]) -> None:
        """Damage shows as ``Corrupt`` from ``read``, at any byte. Updates, and a next attempt, go on."""
        data = bench.snapshot(10)
        machine = bench.filled("a", 5)
        for place in sorted({0, 1, len(data) // 3, len(data) // 2, len(data) - 1}):
            with pytest.raises(Corrupt):
                machine.recover_from_snapshot(_Reader(data, Corrupt("damaged"), place), threading.Event())
            assert self.state(machine) == states[5], f"damage at byte {place} changed the state"
        machine.close()
        machine, opened = bench.reopen("a")
        assert (opened, self.state(machine)) == (5, states[5]), "a damaged snapshot changed what is stored"
        with pytest.raises(Corrupt):
            machine.recover_from_snapshot(_Reader(data, Corrupt("damaged"), len(data) - 1), threading.Event())
        machine.update(self.entries(6, 7))
        assert self.state(machine) == states[7]
        assert machine.recover_from_snapshot(_Reader(data), threading.Event()) == 10
        assert self.state(machine) == states[10]

    def test_lookups_go_on_while_a_snapshot_is_recovered(self, bench: Bench, states: list[Any]) -> None:
        """They see the old state or the new one, never an error, and nobody waits for the stream."""
        data = bench.snapshot(10)
        with _Lookers() as lookers:
            machine = bench.filled("a", COMMANDS, disk=lookers)
            lookers.begin(lambda: self.state(machine))
            reader = _Reader(data, pause=lookers.wait)
            machine.recover_from_snapshot(reader, threading.Event())
        lookers.check([states[COMMANDS], states[10]], "lookup() sees a mixture while recovering")
        assert reader.paused_well, "no lookup was answered while the snapshot was under way"

    def test_a_crash_while_recovering_leaves_the_old_state_or_the_new_one(
        self, bench: Bench, states: list[Any]
    ) -> None:
        """Each with its own index; and once the call has returned, the new one."""
        bad = _crash_while_recovering(self, bench, states)
        assert not bad, _list("recover_from_snapshot() is not one atomic step", bad)


class Crash(NamedTuple):
    """What one crash left: the index after ``open``, and how many commands the data holds.

    ``found`` is ``None`` if no number of commands explains the data. ``synced`` is the last index that a
    ``sync`` had covered. ``completed``: a replay of the rest led to the right state.
    """

    how: How
    where: str
    opened: int
    found: int | None
    synced: int
    completed: bool
    error: str = ""

    def __str__(self) -> str:
        if self.error:
            return f"{self.how} at {self.where}: {self.error}"
        data = "is no prefix of the commands" if self.found is None else f"holds {self.found} commands"
        return (
            f"{self.how} at {self.where}: open() returned {self.opened}, the data {data}, {self.synced} "
            f"were synced; after a replay the state is {'right' if self.completed else 'wrong'}"
        )


def _list(what: str, crashes: list[Crash]) -> str:
    more = f"\n  and {len(crashes) - 5} more" if len(crashes) > 5 else ""
    return what + "".join(f"\n  {crash}" for crash in crashes[:5]) + more


class Bench:
    """The machines of one test, each in a directory with a name, closed at its end."""

    def __init__(self, battery: StateMachineBattery, folder: Path) -> None:
        self._battery = battery
        self._folder = folder
        self._machines: list[OnDiskStateMachine] = []

    def path(self, name: str) -> Path:
        return self._folder / name

    def reopen(self, name: str, disk: Disk | None = None) -> tuple[OnDiskStateMachine, int]:
        """Another machine in the same directory, and what ``open`` returned. The former one is closed."""
        machine = self._battery.make(self.path(name), disk or Disk())
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
            machine.update(self._battery.entries(1, count))
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
        writer = _Writer()
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


def _once(cls: type, name: str, make: Callable[[], _T]) -> _T:
    """What many tests of one class need, made by the first of them."""
    kept = _made.setdefault(cls, {})
    if name not in kept:
        kept[name] = make()
    value: _T = kept[name]
    return value


def _all_states(battery: StateMachineBattery, folder: Path) -> list[Any]:
    machine = battery.make(folder / "a", Disk())
    machine.open()
    try:
        states = [battery.state(machine)]
        for entry in battery.entries():
            machine.update([entry])
            states.append(battery.state(machine))
    finally:
        machine.close()
    for number, state in enumerate(states):
        assert state not in states[:number], f"state() cannot tell {number} commands from fewer"
    return states


def _expect_exception(call: Callable[[], object], otherwise: str) -> None:
    try:
        call()
    except Exception:
        return
    raise AssertionError(otherwise)


class _Entries(list[Entry]):
    """A list that a weak reference can follow."""


# The two ends of a snapshot's stream


class _Writer:
    """Keeps what is written; raises ``error`` instead of taking byte number ``after``."""

    def __init__(self, error: Exception | None = None, after: int = 0) -> None:
        self.data = bytearray()
        self._error = error
        self._after = after

    def write(self, data: bytes) -> None:
        if self._error is not None and len(self.data) + len(data) > self._after:
            raise self._error
        self.data += data


class _Reader:
    """Hands out what was written; raises ``error`` when byte number ``place`` is asked for.

    In the middle it calls ``pause``, and remembers in ``paused_well`` whether that returned true.
    """

    def __init__(
        self,
        data: bytes,
        error: Exception | None = None,
        place: int = 0,
        pause: Callable[[], bool] | None = None,
    ) -> None:
        self._data = data
        self._error = error
        self._place = place
        self._at = 0
        self._pause = pause
        self.paused_well = False

    def read(self, size: int) -> bytes:
        if self._error is not None and self._at + size > self._place:
            raise self._error
        if self._pause is not None and self._at + size > len(self._data) // 2:
            self.paused_well = self._pause()
            self._pause = None
        data = self._data[self._at : self._at + size]
        self._at += len(data)
        return data


# Lookups beside everything


class _Lookers(Disk):
    """Threads that look again and again. As a disk, it waits at each point until all have looked once more.

    So every moment between two steps of a machine is looked at, and nothing depends on luck.
    """

    def __init__(self, count: int = 2) -> None:
        self._count = count
        self._looked = threading.Condition()
        self._lookups = [0] * count
        self._threads: list[threading.Thread] = []
        self._ended = False
        self._seen: list[Any] = []  # each state once
        self._errors: list[Exception] = []

    def begin(self, look: Callable[[], Any]) -> None:
        """Begin to look, in threads. What they see and what they raise is kept."""

        def run(number: int) -> None:
            while not self._ended:
                try:
                    seen = look()
                except Exception as error:
                    self._errors.append(error)
                    self._ended = True
                else:
                    if seen not in self._seen:
                        self._seen.append(seen)
                with self._looked:
                    self._lookups[number] += 1
                    self._looked.notify_all()

        self._interval = sys.getswitchinterval()
        sys.setswitchinterval(1e-5)
        self._threads = [
            threading.Thread(target=run, args=(number,), name="ondisk-battery", daemon=True)
            for number in range(self._count)
        ]
        for thread in self._threads:
            thread.start()
        self.wait()

    def wait(self, seconds: float = _DEADLINE) -> bool:
        """Return whether each has begun and ended a lookup within ``seconds``."""
        with self._looked:
            enough = [lookups + 2 for lookups in self._lookups]  # one may have begun before

            def done() -> bool:
                return self._ended or all(map(ge, self._lookups, enough))

            return self._looked.wait_for(done, seconds) and not self._ended

    def reach(self, point: str) -> None:
        if self._threads and threading.current_thread() not in self._threads:
            self.wait(0.5)  # a machine may let nobody look at this point: that is its right

    def __enter__(self) -> _Lookers:
        return self

    def __exit__(self, *_: object) -> None:
        self._ended = True
        if self._threads:
            sys.setswitchinterval(self._interval)
        for thread in self._threads:
            thread.join(_DEADLINE)
            assert not thread.is_alive(), "lookup() does not return"

    def check(self, allowed: Sequence[Any], otherwise: str) -> None:
        """After the end: fail if a lookup raised something, or saw what is not ``allowed``."""
        if self._errors:
            raise self._errors[0]
        wrong = [state for state in self._seen if state not in allowed]
        assert not wrong, f"{otherwise}: {wrong[0]!r:.300}"


# Work for child processes

_PLAN: tuple[int | str, ...] = (
    1,
    5,
    "sync",
    6,
    12,
    "reopen",
    18,
    "sync",
    COMMANDS,
)  # int: update up to there
_BOUNDARIES = (0, *(step for step in _PLAN if isinstance(step, int)))


def _live(disk: CrashingDisk, cls: type[StateMachineBattery], path: Path) -> None:
    """A machine's life, from its creation on. Notes how far it was synced."""
    battery = cls()
    disk.note = applied = 0

    def make() -> OnDiskStateMachine:
        machine = battery.make(path, disk)
        disk.power_cut = machine.crash
        machine.open()
        return machine

    machine = make()
    for step in _PLAN:
        if isinstance(step, int):
            machine.update(battery.entries(applied + 1, step))
            applied = step
        elif step == "sync":
            machine.sync()
            disk.note = applied
        else:
            machine.close()
            machine = make()
        disk.reach(f"the end of {'update' if isinstance(step, int) else step}")


def _crash_everywhere(battery: StateMachineBattery, states: list[Any]) -> list[Crash]:
    cls, crashes = type(battery), []
    with scratch_directory() as folder, Child(cls) as child:
        points = child.run(_live, cls, folder / "whole").points
        for point in _points(len(points)):
            path = folder / f"{point.how}-{point.occurrence}"
            run = child.run(_live, cls, path, crash=point)

            def complete(machine: OnDiskStateMachine, opened: int) -> bool:
                replay(machine, battery.entries(), opened, batch=5)
                return bool(battery.state(machine) == states[COMMANDS])

            where = f"point {point.occurrence}, {run.crashed!r}"
            crashes.append(_look_after(battery, path, states, point.how, where, run.note, complete))
    return crashes


def _points(count: int) -> list[Point]:
    """Every point out of ``count`` in both ways, or ``MAX_POINTS`` of them, evenly spread."""
    chosen = sorted({round(1 + n * (count - 1) / (MAX_POINTS - 1)) for n in range(MAX_POINTS)})
    return [Point(number, how=how) for how in _HOWS for number in chosen]


def _look_after(
    battery: StateMachineBattery,
    path: Path,
    states: list[Any],
    how: How,
    where: str,
    synced: int,
    complete: Callable[[OnDiskStateMachine, int], bool],
) -> Crash:
    """Open what a crash has left, and look."""
    machine = battery.make(path, Disk())
    try:
        opened = machine.open()
        state = battery.state(machine)
        found = states.index(state) if state in states else None
        return Crash(how, where, opened, found, synced, complete(machine, opened))
    except Exception as error:
        return Crash(how, where, 0, None, synced, False, f"{type(error).__name__}: {error}")
    finally:
        machine.close()
        shutil.rmtree(path, ignore_errors=True)


def _recover(disk: CrashingDisk, cls: type[StateMachineBattery], path: Path, data: bytes) -> None:
    """Recover from a snapshot. Notes when that is over."""
    machine = cls().make(path, disk)
    disk.power_cut = machine.crash
    disk.note = False
    machine.open()
    machine.recover_from_snapshot(_Reader(data), threading.Event())
    disk.note = True
    disk.reach("the end of recover_from_snapshot")


def _crash_while_recovering(battery: StateMachineBattery, bench: Bench, states: list[Any]) -> list[Crash]:
    """The crashes that left something else than the old state, of 5 commands, or the new one, of 10."""
    cls, bad, data = type(battery), [], bench.snapshot(10)
    bench.filled("old", 5).close()
    with scratch_directory() as folder, Child(cls) as child:

        def run(name: str, crash: Point | None) -> Run:
            shutil.copytree(bench.path("old"), folder / name)
            return child.run(_recover, cls, folder / name, data, crash=crash)

        def complete(machine: OnDiskStateMachine, _: int) -> bool:
            machine.recover_from_snapshot(_Reader(data), threading.Event())
            return bool(battery.state(machine) == states[10])

        for point in _points(len(run("whole", None).points)):
            name = f"{point.how}-{point.occurrence}"
            ended = run(name, point)
            where, least = f"point {point.occurrence}, {ended.crashed!r}", 10 if ended.note else 5
            crash = _look_after(battery, folder / name, states, point.how, where, least, complete)
            if not (crash.found == crash.opened in (5, 10) and crash.opened >= least and crash.completed):
                bad.append(crash)
    return bad


def _apply_all(
    disk: CrashingDisk, cls: type[StateMachineBattery], path: Path, entries: Sequence[Entry] = ()
) -> Any:
    battery = cls()
    machine = battery.make(path, disk)
    machine.open()
    disk.note = machine.update(entries or battery.entries())
    return battery.state(machine)


def _apply_and_never_close(disk: CrashingDisk, cls: type[StateMachineBattery], path: Path) -> None:
    battery = cls()
    machine = battery.make(path, disk)
    machine.open()
    machine.update(battery.entries(1, 10))
    machine.prepare_snapshot()
    machine.update(battery.entries(11))
    machine.sync()
    looks = _Lookers()
    looks.begin(lambda: battery.state(machine))


def _look_while_closing(disk: CrashingDisk, cls: type[StateMachineBattery], path: Path) -> list[Any]:
    """Close beside lookups; return what they saw, each state once."""
    battery = cls()
    machine = battery.make(path, disk)
    machine.open()
    machine.update(battery.entries())
    seen: list[Any] = []
    closed = threading.Event()
    looked = threading.Semaphore(0)

    def look() -> None:
        while True:
            last = closed.is_set()
            try:
                state = battery.state(machine)
            except Exception:
                return
            if state not in seen:
                seen.append(state)
            looked.release()
            if last:
                return

    sys.setswitchinterval(1e-5)
    threads = [threading.Thread(target=look, daemon=True) for _ in range(3)]
    for thread in threads:
        thread.start()
    for _ in range(20):
        assert looked.acquire(timeout=_DEADLINE), "lookup() does not return"
    machine.close()
    closed.set()
    for thread in threads:
        thread.join(_DEADLINE)
        assert not thread.is_alive(), "lookup() beside close() does not return"
    return seen
