"""Compaction: the state becomes durable now and then, and the log is dropped up to there."""

from __future__ import annotations

from collections.abc import Callable

from ondisk.raft import Raft
from ondisk.statemachine import OnDiskStateMachine
from ondisk.storage.disk import Disk

_SYNC_STATE_EVERY = 1.0  # seconds

# The log is compacted when it has so many entries or bytes; the newest stay for those who lag a bit.
_COMPACT_AFTER_ENTRIES, _KEEP_ENTRIES = 10_000, 1_000
_COMPACT_AFTER_BYTES, _KEEP_BYTES = 64 << 20, 4 << 20
_WAIT_FOR_SLOW_ENTRIES = 4 * _COMPACT_AFTER_ENTRIES  # for those who lag more, but answer, even if no better

# Where an experiment may crash a replica that compacts its log.
POINTS = ("compact: state synced", "compact: recorded")


class Compaction:
    """Decides how much of the log can go.

    Invariant: the log forgets only what the state machine holds durably, and what no snapshot that is being
    sent, and no follower that keeps up, still needs. A compaction is metadata only: the state is on the disk
    already, and no snapshot is made.
    """

    def __init__(
        self,
        raft: Raft,
        machine: OnDiskStateMachine,
        disk: Disk,
        *,
        opened_index: int,
        oldest_index_sent: Callable[[], int | None],
        now: float,
    ) -> None:
        """``oldest_index_sent``: of the snapshots that are being sent, where the oldest was taken."""
        self._raft = raft
        self._log = raft.log
        self._machine = machine
        self._disk = disk
        self._oldest_index_sent = oldest_index_sent
        self.synced_index = opened_index  # durable in the state machine
        self.machine_index = opened_index  # the last entry that the state machine was shown
        self.due_at = now + _SYNC_STATE_EVERY

    def on_installed(self, index: int) -> None:
        """A snapshot took the place of all entries up to ``index``, durably."""
        self.synced_index = self.machine_index = index

    def step(self, now: float) -> None:
        """Sync the state machine, and compact the log, if it is time."""
        if now < self.due_at:
            return
        self.due_at = now + _SYNC_STATE_EVERY
        if self._raft.recovering or self._raft.needs_state:
            return
        self._sync_machine()
        entries = self._raft.applied_index - self._log.base_index
        if entries > _COMPACT_AFTER_ENTRIES or self._log.bytes_since_compaction > _COMPACT_AFTER_BYTES:
            self.compact(keep=True)

    def _sync_machine(self) -> None:
        if self.synced_index < self._raft.applied_index:
            index = self._raft.applied_index
            self._machine.sync()
            self.synced_index = index

    def compact(self, *, keep: bool) -> int:
        """Drop the log up to what the state holds durably; return its new base.

        ``keep`` leaves the newest entries for those who are a little behind.
        """
        raft, log = self._raft, self._log
        if raft.recovering or raft.needs_state:
            return log.base_index
        # This order, or a power cut could leave neither the entry nor its outcome: sync, record, drop.
        self._sync_machine()
        self._disk.reach("compact: state synced")
        index = self.machine_index  # not Raft's own entries after it: open() would not know of them
        if keep:
            index = min(index, log.start_of_last(_KEEP_ENTRIES, _KEEP_BYTES) - 1)
        if raft.is_leader:
            index = min(index, raft.leader.slowest_match(_WAIT_FOR_SLOW_ENTRIES))
        if (sent := self._oldest_index_sent()) is not None:
            index = min(index, sent)
        if index > log.base_index:
            log.compact(index)
            log.sync()
            self._disk.reach("compact: recorded")
        return log.base_index
