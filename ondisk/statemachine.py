"""The contract: what a replicated state machine that lives on disk must do.

Start here. A *replicated state machine* is a function that every replica applies to the same
log of commands in the same order, so that all of them reach the same state (Schneider, 1990).
Raft agrees on the log; this class is the function. Its state lives *on disk*, which changes
two things compared with one in memory:

* It is not rebuilt by replaying the log at every start. It remembers, next to its data, the index
  of the last entry whose outcome the data holds, and asks only for what came after.
* It can be larger than memory, and nobody copies it whole just to shorten the log.

Both rest on one rule, **the index is stored atomically with the data**. If the data could be
stored first, a crash in between would apply an entry twice; if the index could be stored first,
a crash would lose one.

The shape follows Dragonboat's ``IOnDiskStateMachine`` (``statemachine/disk.go``).
"""

from __future__ import annotations

import threading
from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, NamedTuple, Protocol


@dataclass(frozen=True, slots=True)
class Entry:
    """One committed command. ``index`` is its place in the log (1, 2, 3, ... with gaps: see ``update``)."""

    index: int
    command: bytes


class Result(NamedTuple):
    """What a command answered: the same on every replica, because ``update`` is deterministic.

    ``error`` is ``None``, or a sentence that says why the command changed nothing. A result may have to
    travel to another replica: a number has at most 64 bits, with its sign, and all together 1 MB. Of a larger
    one its caller is told, wherever it is, that the command was applied, and no more (``raft/limits.py``).
    """

    value: bytes | int | bool | None = None
    error: str | None = None


class SnapshotView(Protocol):
    """The state as it was at one point in time, held still while updates go on."""

    @property
    def index(self) -> int:
        """Index of the last entry whose outcome the view holds."""

    def close(self) -> None:
        """Let go of what holds the state still. A second call does nothing."""


class SnapshotWriter(Protocol):
    """Where a snapshot goes: to another replica, or into a file."""

    def write(self, data: bytes) -> None:
        """Take any number of bytes. Waits while the other side does not keep up.

        Raises ``SnapshotStopped`` when nobody wants the rest.
        """


class SnapshotReader(Protocol):
    """Where a snapshot comes from. What it returns has been checked: it is what was written."""

    def read(self, size: int) -> bytes:
        """The next ``size`` bytes, fewer only at the end of the stream. Waits until they have arrived.

        Raises ``Corrupt`` for a stream that is damaged or cut short, ``SnapshotStopped`` when the rest
        will not come.
        """


class OnDiskStateMachine(ABC):
    """A state machine on disk. Implement it, and a ``Cluster`` replicates it.

    Who calls what beside whom: ``open``, ``update``, ``sync``, ``prepare_snapshot``,
    ``recover_from_snapshot`` and ``close`` never overlap each other. ``lookup`` is called from any number
    of threads beside all of them, even ``close``; ``save_snapshot`` beside all but ``close``.

    An exception from ``open``, ``update``, ``sync`` or ``prepare_snapshot`` means that this replica cannot
    go on (a full disk, a damaged file). It stops this replica alone, and the others continue without it. A
    command that makes no sense is *not* such a case: every replica must answer it with the same
    ``Result(error=...)``, or one bad client would stop them all, again at every replay.

    ``ondisk.testing`` has a battery of tests for all that is said here.
    """

    # Whether ``update`` understands the envelopes of ``sessions.py``: then clients may open sessions, and a
    # command that they send twice is applied once. To a machine that does not, they are odd commands.
    offers_sessions: ClassVar[bool] = False

    # The queries that clients which host no replica may ask over TCP: a union of ``msgspec.Struct``s, each
    # with a tag and an ``answer``, the type of what ``lookup`` answers. ``None``: such clients cannot read.
    queries: ClassVar[Any] = None

    @abstractmethod
    def open(self) -> int:
        """Open what is stored, or create it, and return the index of the last applied entry.

        Called once, before anything else. Returns 0 when new. The index and the data must belong
        together whatever happened before: a crash, a power cut, a half finished creation. It may be
        older than the last ``update`` that returned, if that was never synced: the log holds the rest
        and will hand it over again.
        """

    @abstractmethod
    def update(self, entries: Sequence[Entry]) -> list[Result]:
        """Apply entries in order; return one result for each, in the same order.

        Their indexes strictly increase and lie above the index that ``open`` returned. There are gaps:
        Raft's own entries (a new leader's no-op) take an index too and are not shown here.

        The new data and the index of the last entry must become visible, and later durable, in one
        step. Everything must follow from the entries and the state alone: no clock, no random number,
        no set order. Keep no reference to ``entries``.
        """

    @abstractmethod
    def lookup(self, query: Any) -> Any:
        """Answer a read-only query from the present state. May run beside everything else.

        It never sees half of an ``update``. Any object will do: the query does not travel over the network,
        unless it is one of ``queries``. Raise ``InvalidCommand`` for one that makes no sense.
        """

    @abstractmethod
    def sync(self) -> None:
        """Return when everything applied so far would survive a power cut.

        ``update`` need not sync: a committed entry is durable in the logs of a majority, and would be
        applied again. But the log may forget an entry only after this call has covered it.
        """

    @abstractmethod
    def prepare_snapshot(self) -> SnapshotView:
        """Hold the present state still, and return at once: no update runs meanwhile.

        Cheap whatever the size of the state. The caller closes the view, whether or not it was saved.
        """

    @abstractmethod
    def save_snapshot(self, view: SnapshotView, writer: SnapshotWriter, stopped: threading.Event) -> None:
        """Write the state that ``view`` holds, in whatever form ``recover_from_snapshot`` reads.

        Runs beside ``update``, which must not show in it, and in bounded memory. The same view gives the
        same bytes each time. Raises ``SnapshotStopped`` soon after ``stopped`` is set.
        """

    @abstractmethod
    def recover_from_snapshot(self, reader: SnapshotReader, stopped: threading.Event) -> int:
        """Replace the state by the one that ``reader`` brings; return the index of its last entry.

        The new state is built beside the old one, which goes on answering ``lookup``, and takes its place
        in one atomic step, durably. A crash or an exception at any moment leaves the old state whole or the
        new one, and leftovers are removed by the next ``open``. Takes whatever index the snapshot has, also
        a lower one. Raises ``Corrupt`` for a stream that it cannot read, and ``SnapshotStopped`` soon
        after ``stopped`` is set.
        """

    @abstractmethod
    def close(self) -> None:
        """Let go of files and threads. A second call does nothing.

        Nothing may depend on it: a process that is killed never calls it.
        """

    def crash(self) -> None:
        """Let go as a power cut would: what was not synced is lost.

        Only experiments call this. A machine that cannot do it closes instead, which is also a
        possible outcome of a power cut.
        """
        self.close()
