"""Where the processor time of puts goes: to the client, Raft, the log, the state machine, messages, threads.

A sampling profiler looks when Python changes threads, which is where a step waits for a disk, so it would
charge everything to that. Here the calls that are the borders between the parts read the clock of their
thread when they begin and when they end. That costs a put some microseconds.
"""

from __future__ import annotations

import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import ExitStack, closing, contextmanager
from typing import Any
from unittest.mock import patch

from benchmarks.instruments import Order, figure, lasting, progress
from benchmarks.worker import Ondisk, puts
from ondisk import Cluster
from ondisk.diskkv import DiskKV
from ondisk.net.memory import _MemoryEndpoint
from ondisk.raft import Raft
from ondisk.raft.log import RaftLog
from ondisk.replica import Replica
from ondisk.replica.proposals import Proposals

AT_ONCE = (1, 64, 256)

# Innermost first: what one calls is not counted as its own.
BORDERS: tuple[tuple[str, type, tuple[str, ...]], ...] = (
    ("client", Cluster, ("put_async",)),
    ("callers hear of it", Replica, ("_tell_callers",)),
    ("Raft", Raft, ("receive", "append", "tick", "replicate", "committed_entries", "on_applied")),
    ("log", RaftLog, ("append", "entries", "sync", "truncate_from", "set_hard_state", "compact")),
    ("state machine", DiskKV, ("update", "sync")),
    ("messages", _MemoryEndpoint, ("send", "receive", "connected", "wake")),
    ("waiting", _MemoryEndpoint, ("wait",)),
    ("proposals", Proposals, ("take", "on_applied", "send_outcomes")),
    ("rest of the step", Replica, ("step",)),
)
LOAD = "the load itself"


class Shares:
    """Seconds of the processor by part. Each thread has its own."""

    def __init__(self) -> None:
        self._own = threading.local()
        self._all: list[Counter[str]] = []

    def part(self, name: str, call: Callable[..., Any]) -> Callable[..., Any]:
        """The same call, whose time counts for that part."""

        def counted(*args: Any, **kwargs: Any) -> Any:
            before = self._enter(name)
            try:
                return call(*args, **kwargs)
            finally:
                self._enter(before)

        return counted

    def _enter(self, name: str) -> str:
        """From now on the time of this thread is this part's; return whose it was."""
        own, now = self._own, time.thread_time()
        if not hasattr(own, "part"):
            own.part, own.since, own.seconds = LOAD, now, Counter()
            self._all.append(own.seconds)
        before: str = own.part
        own.seconds[before] += now - own.since
        own.part, own.since = name, now
        return before

    def total(self) -> Counter[str]:
        """Of all threads, so far."""
        return sum((Counter(seconds) for seconds in tuple(self._all)), Counter())


@contextmanager
def counting() -> Iterator[Shares]:
    """The borders count. What was made before does not, if it has kept a method."""
    found = Shares()
    with ExitStack() as patched:
        for part, owner, methods in BORDERS:
            for method in methods:
                patched.enter_context(patch.object(owner, method, found.part(part, getattr(owner, method))))
        yield found


def shares(order: Order) -> None:
    """Microseconds of the processor for each put, by what they are spent on."""
    with counting() as found, closing(Ondisk(order.scratch, None, [])) as subject:
        subject.cluster.wait_for_leader()
        puts(subject, AT_ONCE[-1], lasting(order.seconds))  # a warm-up
        for number in range(1, order.rounds + 1):
            progress(f"round {number} of {order.rounds}")
            for at_once in AT_ONCE:
                before, used, done = found.total(), time.process_time(), 0

                def enough(took: float, count: int) -> bool:
                    nonlocal done
                    done = count
                    return took >= order.seconds

                puts(subject, at_once, enough)
                used, spent = time.process_time() - used, found.total() - before
                row, count = f"{at_once} at once", done + at_once - 1  # those under way end, too
                for part in (*(part for part, _, _ in BORDERS), LOAD):
                    figure(row, part, 1e6 * spent[part] / count)
                figure(row, "all", 1e6 * used / count)
