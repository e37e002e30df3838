"""Probes: replicas that say what they do where it becomes visible, within their steps.

They extend public methods of the replica, of its engine and of its log, and change nothing of what those do.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Protocol

from ondisk.raft import Raft
from ondisk.raft.log import RaftLog
from ondisk.raft.messages import Message, Response
from ondisk.raft.records import LogEntry
from ondisk.replica import Replica

_CHUNK_BYTES = 2500  # so that a small state has many chunks


class Watcher(Protocol):
    """Who is told."""

    def applies(self, replica: Replica, entries: Sequence[LogEntry]) -> None:
        """Committed entries are about to be handed to the state machine."""

    def appended(self, replica: Replica, entries: Sequence[LogEntry]) -> None:
        """These are in the log, not durably yet."""

    def installs(self, replica: Replica, index: int) -> None:
        """A snapshot has taken the place of all entries up to ``index``."""

    def counted(self, replica: Replica, sender: int, message: Response) -> None:
        """A vote or an acknowledgement has made a difference."""


class _WatchedLog(RaftLog):
    look: Callable[[Sequence[LogEntry]], None] | None = None

    def append(self, entries: Sequence[LogEntry]) -> None:
        super().append(entries)
        if self.look is not None:
            self.look(entries)


class _WatchedRaft(Raft):
    look: Callable[[int, Response], None] | None = None

    def receive(self, sender: int, message: Message) -> None:
        if self.look is None or not isinstance(message, Response):
            super().receive(sender, message)
            return
        before = self.counted_of(sender)
        super().receive(sender, message)
        if self.counted_of(sender) != before:
            self.look(sender, message)


class WatchedReplica(Replica):
    """A replica that tells its watcher, once it has one."""

    watcher: Watcher | None = None
    host: int  # where it runs

    def tell(self, watcher: Watcher) -> None:
        """Tell this one from now on."""
        log, raft = self.log, self.raft
        assert isinstance(log, _WatchedLog) and isinstance(raft, _WatchedRaft)
        self.watcher = watcher
        log.look = lambda entries: watcher.appended(self, entries)
        raft.look = lambda sender, message: watcher.counted(self, sender, message)

    def apply(self, entries: Sequence[LogEntry]) -> None:
        """Tell, then apply."""
        if self.watcher is not None:
            self.watcher.applies(self, entries)
        super().apply(entries)

    def on_installed(self, index: int) -> None:
        """Tell, then go on from there."""
        if self.watcher is not None:
            self.watcher.installs(self, index)
        super().on_installed(index)


def watched(replica_type: type[Replica]) -> type[WatchedReplica]:
    """The same replica, with probes, and with snapshots in small chunks."""

    def on_top(probe: type, of: type) -> Any:
        return type(of.__name__, (probe, of), {})

    parts = {
        "log_type": on_top(_WatchedLog, replica_type.log_type),
        "raft_type": on_top(_WatchedRaft, replica_type.raft_type),
        "streaming_type": type("Streaming", (replica_type.streaming_type,), {"chunk_bytes": _CHUNK_BYTES}),
    }
    kind: type[WatchedReplica] = type("Replica", (WatchedReplica, replica_type), parts)
    return kind
