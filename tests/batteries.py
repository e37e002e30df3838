"""Machines that break the contract, each under the battery. ``test_testing.py`` runs what stands here.

A mutant is ``DiskKV`` or the right machine of the lab with one fault. ``MUTANTS`` says which tests notice it.
"""

from __future__ import annotations

import os
import random
import threading
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

from ondisk.diskkv import DiskKV, incr, put, scan
from ondisk.lab.experiments.naive import Changes, DataFirst, IndexFirst, OneBatch, TwoWrites
from ondisk.statemachine import (
    Entry,
    OnDiskStateMachine,
    Result,
    SnapshotReader,
    SnapshotView,
    SnapshotWriter,
)
from ondisk.storage.disk import Disk
from ondisk.testing import StateMachineBattery


class KV(StateMachineBattery):
    """What ``DiskKV`` and the machines of the lab have in common: ``incr``, and a scan over everything."""

    machine: type[Any]

    def make(self, path: Path, disk: Disk) -> OnDiskStateMachine:
        made: OnDiskStateMachine = self.machine(path, disk=disk)
        return made

    def command(self, number: int) -> bytes:
        return incr(f"counter {number % 3 + number // 12}", number)

    def state(self, machine: OnDiskStateMachine) -> Any:
        return machine.lookup(scan())

    def malformed(self) -> Sequence[bytes]:
        return b"", b"\xc1", incr("n")[:-1], incr("n") + b"\0", b"\x93\xa3add\xc4\x01n\x01"


class TestDiskKV(KV):
    machine = DiskKV


class TestOneBatch(KV):
    machine = OneBatch


class TestDataFirst(KV):
    machine = DataFirst


class TestIndexFirst(KV):
    machine = IndexFirst


class TestTwoWrites(KV):
    machine = TwoWrites


# The mutants. Each has one fault, and the tests that must notice it


class NeverNew(OneBatch):
    """Has applied something before anybody handed it over."""

    def open(self) -> int:
        index = super().open()
        self.save({}, index or 1)
        return index


class Forgetful(OneBatch):
    """Opens at 0 whatever it holds."""

    def open(self) -> int:
        return super().open() * 0


class Float(OneBatch):
    """Its index goes through a float, as a JSON number may."""

    def save(self, changes: Changes, index: int) -> None:
        super().save(changes, int(float(index)) & 0xFFFFFFFFFFFFFFFF)


class Backwards(OneBatch):
    """Answers in the wrong order."""

    def update(self, entries: Sequence[Entry]) -> list[Result]:
        return super().update(entries)[::-1]


class Blind(OneBatch):
    """Later commands of a batch do not see earlier ones."""

    def _apply(self, command: bytes, changes: dict[bytes, bytes | None]) -> Result:
        own: dict[bytes, bytes | None] = {}
        result = super()._apply(command, own)
        changes.update(own)
        return result


class Random(OneBatch):
    """Stores a random number beside the data."""

    def save(self, changes: Changes, index: int) -> None:
        super().save({**changes, b"random": b"%d" % random.getrandbits(64)}, index)


class Hashed(OneBatch):
    """Stores what is the same within a process only."""

    def save(self, changes: Changes, index: int) -> None:
        super().save({**changes, b"hash": b"%d" % hash("hash")}, index)


class Counting(OneBatch):
    """Takes the number of entries for an index."""

    def open(self) -> int:
        self._count = super().open()
        return self._count

    def update(self, entries: Sequence[Entry]) -> list[Result]:
        renumbered = [Entry(self._count + n, entry.command) for n, entry in enumerate(entries, 1)]
        self._count += len(entries)
        return super().update(renumbered)


class Obedient(OneBatch):
    """Applies what was applied before."""

    def update(self, entries: Sequence[Entry]) -> list[Result]:
        self._applied = 0
        results = []
        for entry in entries:
            self._applied = min(self._applied, entry.index - 1)
            results += super().update([entry])
        return results


class Clinging(OneBatch):
    """Keeps the list."""

    def update(self, entries: Sequence[Entry]) -> list[Result]:
        self.entries = entries
        return super().update(entries)


class Strict(OneBatch):
    """Raises an exception for a command that makes no sense."""

    def _apply(self, command: bytes, changes: dict[bytes, bytes | None]) -> Result:
        result = super()._apply(command, changes)
        if result.error:
            raise ValueError(result.error)
        return result


class Talkative(OneBatch):
    """Names itself in an error."""

    def _apply(self, command: bytes, changes: dict[bytes, bytes | None]) -> Result:
        result = super()._apply(command, changes)
        return Result(error=f"{result.error} (in {self._path})") if result.error else result


class PieceByPiece(OneBatch):
    """Saves a large update in pieces, the last of them with the index."""

    def save(self, changes: Changes, index: int) -> None:
        *first, last = changes.items()
        for change in first:
            self.write_data(dict([change]))
        super().save(dict([last]), index)


class Empty(OneBatch):
    """When it is closed it has nothing to show."""

    def lookup(self, query: Any) -> Any:
        return super().lookup(query) if self.data.is_open else []


class NoSync(OneBatch):
    """Promises durability and does nothing for it."""

    def sync(self) -> None:
        pass


class HalfSynced(TwoWrites):
    """Makes the data durable, and not the index."""

    def sync(self) -> None:
        self.data.sync()

    def crash(self) -> None:
        self.data.crash()
        self.index.crash()


class CloseOnce(OneBatch):
    """A second ``close`` is an error."""

    def close(self) -> None:
        if not self.data.is_open:
            raise RuntimeError("already closed")
        super().close()


class IndexAtClose(OneBatch):
    """Stores the index when it is closed."""

    def save(self, changes: Changes, index: int) -> None:
        self.write_data(changes)

    def close(self) -> None:
        if hasattr(self, "data") and self.data.is_open:
            self.write_index(self._applied)
        super().close()


class Moving(OneBatch):
    """Its view is a look at the present."""

    def save_snapshot(self, view: SnapshotView, writer: SnapshotWriter, stopped: threading.Event) -> None:
        super().save_snapshot(self.prepare_snapshot(), writer, stopped)


class Salted(OneBatch):
    """Its stream begins with something new each time."""

    def save_snapshot(self, view: SnapshotView, writer: SnapshotWriter, stopped: threading.Event) -> None:
        writer.write(os.urandom(8))
        super().save_snapshot(view, writer, stopped)


class Attached(DiskKV):
    """Cannot be closed while a view is open."""

    def close(self) -> None:
        if self._views:
            raise RuntimeError("a view is open")
        super().close()


class Merging(OneBatch):
    """Lays the snapshot over what is there."""

    def save(self, changes: Changes, index: int) -> None:
        super().save({key: value for key, value in changes.items() if value is not None}, index)


class Unsynced(OneBatch):
    """A recovery that a power cut undoes."""

    def recover_from_snapshot(self, reader: SnapshotReader, stopped: threading.Event) -> int:
        self.sync, kept = lambda: None, self.sync  # type: ignore[method-assign]
        try:
            return super().recover_from_snapshot(reader, stopped)
        finally:
            self.sync = kept  # type: ignore[method-assign]


class Stuck(OneBatch):
    """After a recovery it goes on counting from where it was."""

    def recover_from_snapshot(self, reader: SnapshotReader, stopped: threading.Event) -> int:
        before = self._applied
        index = super().recover_from_snapshot(reader, stopped)
        self._applied = before
        return index


class Unstoppable(OneBatch):
    """Saves and recovers to the end, whatever it is told."""

    def save_snapshot(self, view: SnapshotView, writer: SnapshotWriter, stopped: threading.Event) -> None:
        super().save_snapshot(view, writer, threading.Event())

    def recover_from_snapshot(self, reader: SnapshotReader, stopped: threading.Event) -> int:
        return super().recover_from_snapshot(reader, threading.Event())


class Swallowing(OneBatch):
    """Nobody hears that the writer failed."""

    def save_snapshot(self, view: SnapshotView, writer: SnapshotWriter, stopped: threading.Event) -> None:
        with suppress(ConnectionError):
            super().save_snapshot(view, writer, stopped)


class Clearing(OneBatch):
    """Throws the old state away before it has the new one."""

    def recover_from_snapshot(self, reader: SnapshotReader, stopped: threading.Event) -> int:
        with self.data.iterate() as pairs:
            old: Changes = {key: None for key, _ in pairs}
        self.write_data(old)
        return super().recover_from_snapshot(reader, stopped)


class Closed(OneBatch):
    """Answers nothing while it recovers."""

    def __init__(self, path: Path, disk: Disk) -> None:
        super().__init__(path, disk)
        self._lock = threading.Lock()

    def lookup(self, query: Any) -> Any:
        with self._lock:
            return super().lookup(query)

    def recover_from_snapshot(self, reader: SnapshotReader, stopped: threading.Event) -> int:
        with self._lock:
            return super().recover_from_snapshot(reader, stopped)


class TestSamplesThatProveNothing(KV):
    """Not the machine is at fault here: the sample commands may be applied twice and nobody notices."""

    machine = OneBatch

    def command(self, number: int) -> bytes:
        return put(f"key {number}", "value")


MUTANTS: dict[type[Any], set[str]] = {
    NeverNew: {"test_a_new_machine_opens_at_0"},
    Forgetful: {"test_a_reopened_machine_has_the_last_index_with_its_data"},
    Float: {"test_an_index_has_64_bits"},
    Backwards: {"test_update_answers_every_command_in_order"},
    Blind: {"test_a_batch_has_the_same_outcome_as_its_commands_one_by_one"},
    Random: {"test_machines_with_the_same_commands_have_the_same_state"},
    Hashed: {"test_a_machine_in_another_process_has_the_same_state"},
    Counting: {"test_indexes_may_have_gaps"},
    Obedient: {"test_an_index_that_does_not_rise_is_refused_and_changes_nothing"},
    Clinging: {"test_update_keeps_no_reference_to_its_input"},
    Strict: {"test_a_malformed_command_is_an_error_result_and_changes_nothing"},
    Talkative: {"test_a_malformed_command_has_the_same_result_everywhere"},
    PieceByPiece: {
        "test_lookup_beside_update_never_sees_half_a_batch",
        "test_a_crash_at_any_write_leaves_whole_updates_that_the_log_completes",
    },
    Empty: {"test_lookup_beside_close_is_answered_or_refused"},
    NoSync: {"test_what_was_synced_survives_a_power_cut", "test_a_crash_at_any_write_loses_nothing"},
    HalfSynced: {"test_what_was_synced_survives_a_power_cut"},
    CloseOnce: {"test_closing_twice_does_nothing"},
    IndexAtClose: {"test_nothing_depends_on_close", "test_a_crash_at_any_write_applies_nothing_twice"},
    TwoWrites: {"test_without_sync_a_power_cut_leaves_a_prefix_and_the_index_says_which"},
    Moving: {"test_a_view_stays_as_it_was_while_updates_go_on"},
    Salted: {"test_a_view_gives_the_same_bytes_each_time"},
    Attached: {"test_a_view_that_is_not_saved_leaves_nothing_behind"},
    Merging: {"test_a_snapshot_replaces_the_state"},
    Unsynced: {"test_a_snapshot_replaces_the_state"},
    Stuck: {"test_updates_go_on_right_after_a_recovery"},
    Unstoppable: {
        "test_saving_stops_when_it_is_told_to",
        "test_recovering_stops_when_it_is_told_to_and_keeps_the_old_state",
    },
    Swallowing: {"test_a_writer_that_fails_can_be_followed_by_another"},
    Clearing: {
        "test_a_damaged_stream_leaves_the_old_state_whole",
        "test_a_crash_while_recovering_leaves_the_old_state_or_the_new_one",
    },
    Closed: {"test_lookups_go_on_while_a_snapshot_is_recovered"},
}

for _mutant in MUTANTS:  # their test classes
    _name = f"TestMutant{_mutant.__name__}"
    globals()[_name] = type(_name, (KV,), {"machine": _mutant, "__module__": __name__})
