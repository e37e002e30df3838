"""Tests of ``prepare_snapshot``, ``save_snapshot`` and ``recover_from_snapshot``."""

from __future__ import annotations

import threading
from typing import Any

import pytest

from ondisk.errors import Corrupt, SnapshotStopped
from ondisk.testing.crashes import crash_while_recovering, listed
from ondisk.testing.harness import COMMANDS, Harness
from ondisk.testing.lookers import Lookers
from ondisk.testing.samples import Samples
from ondisk.testing.streams import Reader, Writer


class SnapshotTests(Samples):
    """Whether a snapshot holds one state, whole, and replaces another one in one step."""

    def test_a_view_stays_as_it_was_while_updates_go_on(self, harness: Harness, states: list[Any]) -> None:
        """It holds the state of the moment when it was prepared, whenever it is saved."""
        machine = harness.filled("a", 10)
        with harness.view(machine) as view:
            machine.update(self.entries(11, 17))
            machine.sync()
            with harness.view(machine) as later:
                machine.update(self.entries(18, 20))
                assert (view.index, later.index) == (10, 17), "a view has the index of its own state"
                streams = {10: harness.saved(machine, view), 17: harness.saved(machine, later)}
        for index, data in streams.items():
            other = harness.open(f"from-{index}")
            assert other.recover_from_snapshot(Reader(data), threading.Event()) == index
            assert self.state(other) == states[index], "updates show in a view that was prepared before"
        assert self.state(machine) == states[20], "saving a view changed the machine"

    def test_a_view_gives_the_same_bytes_each_time(self, harness: Harness) -> None:
        """Also with updates in between: a stream that broke off can begin again."""
        machine = harness.filled("a", 10)
        with harness.view(machine) as view:
            first = harness.saved(machine, view)
            machine.update(self.entries(11, 17))
            assert harness.saved(machine, view) == first, "save_snapshot() gives other bytes the second time"

    def test_a_view_that_is_not_saved_leaves_nothing_behind(
        self, harness: Harness, states: list[Any]
    ) -> None:
        """It may be closed unsaved, twice, after the machine, or never."""
        machine = harness.filled("a", 10)
        view = machine.prepare_snapshot()
        view.close()
        view.close()
        left_open, never_closed = machine.prepare_snapshot(), machine.prepare_snapshot()
        machine.update(self.entries(11, 12))
        machine.close()
        left_open.close()
        machine, opened = harness.reopen("a")
        assert (opened, self.state(machine)) == (12, states[12])
        del never_closed

    @pytest.mark.parametrize("before", [0, 3, 10, COMMANDS], ids=["empty", "behind", "level", "ahead"])
    def test_a_snapshot_replaces_the_state(self, harness: Harness, states: list[Any], before: int) -> None:
        """Whatever was there before is gone. It holds at once, after reopening, and after a power cut."""
        data = harness.snapshot(10)
        machine = harness.filled("a", before)
        assert machine.recover_from_snapshot(Reader(data), threading.Event()) == 10
        assert self.state(machine) == states[10], "recover_from_snapshot() leaves another state"
        machine.crash()
        machine, opened = harness.reopen("a")
        assert (opened, self.state(machine)) == (10, states[10]), "recover_from_snapshot() was not durable"
        machine.update(self.entries(11, 15))
        machine.close()
        machine, opened = harness.reopen("a")
        assert (opened, self.state(machine)) == (15, states[15]), "no updates after a recovery"

    def test_updates_go_on_right_after_a_recovery(self, harness: Harness, states: list[Any]) -> None:
        """From the snapshot's index on, also where that is lower than before."""
        data = harness.snapshot(10)
        for before in (0, COMMANDS):
            machine = harness.filled(f"{before}", before)
            machine.recover_from_snapshot(Reader(data), threading.Event())
            machine.update(self.entries(11, 15))
            assert self.state(machine) == states[15]
            with harness.view(machine) as view:
                assert view.index == 15

    def test_saving_stops_when_it_is_told_to(self, harness: Harness) -> None:
        """``SnapshotStopped``, soon. The view is as good as before."""
        machine = harness.filled("a", 10)
        stopped = threading.Event()
        stopped.set()
        with harness.view(machine) as view:
            whole = harness.saved(machine, view)
            with pytest.raises(SnapshotStopped):
                machine.save_snapshot(view, Writer(), stopped)
            with pytest.raises(SnapshotStopped):  # whoever takes the bytes may say so as well
                machine.save_snapshot(view, Writer(SnapshotStopped("no longer")), threading.Event())
            assert harness.saved(machine, view) == whole

    def test_a_writer_that_fails_can_be_followed_by_another(self, harness: Harness) -> None:
        """The error goes to the caller, and the next attempt writes everything."""
        machine = harness.filled("a", 10)
        with harness.view(machine) as view:
            whole = harness.saved(machine, view)
            for after in {0, 1, len(whole) // 2, len(whole) - 1}:
                with pytest.raises(ConnectionError, match="gone"):
                    machine.save_snapshot(view, Writer(ConnectionError("gone"), after), threading.Event())
            assert harness.saved(machine, view) == whole

    def test_recovering_stops_when_it_is_told_to_and_keeps_the_old_state(
        self, harness: Harness, states: list[Any]
    ) -> None:
        """``SnapshotStopped``, soon, wherever the stream is."""
        data = harness.snapshot(10)
        machine = harness.filled("a", 5)
        stopped = threading.Event()
        stopped.set()
        with pytest.raises(SnapshotStopped):
            machine.recover_from_snapshot(Reader(data), stopped)
        assert self.state(machine) == states[5]
        for place in {0, len(data) // 2}:
            with pytest.raises(SnapshotStopped):  # the rest will not come
                machine.recover_from_snapshot(
                    Reader(data, SnapshotStopped("no longer"), place), threading.Event()
                )
            assert self.state(machine) == states[5]
        machine.close()
        machine, opened = harness.reopen("a")
        assert (opened, self.state(machine)) == (5, states[5]), "a recovery that stopped changed something"

    def test_a_damaged_stream_leaves_the_old_state_whole(self, harness: Harness, states: list[Any]) -> None:
        """Damage shows as ``Corrupt`` from ``read``, at any byte. Updates, and a next attempt, go on."""
        data = harness.snapshot(10)
        machine = harness.filled("a", 5)
        for place in sorted({0, 1, len(data) // 3, len(data) // 2, len(data) - 1}):
            with pytest.raises(Corrupt):
                machine.recover_from_snapshot(Reader(data, Corrupt("damaged"), place), threading.Event())
            assert self.state(machine) == states[5], f"damage at byte {place} changed the state"
        machine.close()
        machine, opened = harness.reopen("a")
        assert (opened, self.state(machine)) == (5, states[5]), "a damaged snapshot changed what is stored"
        with pytest.raises(Corrupt):
            machine.recover_from_snapshot(Reader(data, Corrupt("damaged"), len(data) - 1), threading.Event())
        machine.update(self.entries(6, 7))
        assert self.state(machine) == states[7]
        assert machine.recover_from_snapshot(Reader(data), threading.Event()) == 10
        assert self.state(machine) == states[10]

    def test_lookups_go_on_while_a_snapshot_is_recovered(self, harness: Harness, states: list[Any]) -> None:
        """They see the old state or the new one, never an error, and nobody waits for the stream."""
        data = harness.snapshot(10)
        with Lookers() as lookers:
            machine = harness.filled("a", COMMANDS, disk=lookers)
            lookers.begin(lambda: self.state(machine))
            reader = Reader(data, pause=lookers.wait)
            machine.recover_from_snapshot(reader, threading.Event())
        lookers.check([states[COMMANDS], states[10]], "lookup() sees a mixture while recovering")
        assert reader.paused_well, "no lookup was answered while the snapshot was under way"

    def test_a_crash_while_recovering_leaves_the_old_state_or_the_new_one(
        self, harness: Harness, states: list[Any]
    ) -> None:
        """Each with its own index; and once the call has returned, the new one."""
        bad = crash_while_recovering(self, harness, states)
        assert not bad, listed("recover_from_snapshot() is not one atomic step", bad)
