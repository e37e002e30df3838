"""Background work beside the steps of a replica: a job in a thread, and the pipe between the two.

A step must not wait, and saving or recovering a large state must. So that runs in a thread of its own, and
the two exchange chunks through a bounded pipe: the job waits at its end when the pipe is full or empty, the
step at the other end only looks.

In a simulation a job runs in *lockstep*: whatever the step does at its end of the pipe returns only when the
job has ended or waits for the step again. So the two never run at once, and a run can be repeated.
"""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable
from typing import Generic, TypeVar

from ondisk.errors import ResourceError, SnapshotStopped

_T = TypeVar("_T")
_R = TypeVar("_R")


def start_thread(thread: threading.Thread) -> None:
    """Start it. Raises ``ResourceError`` if there are too many already."""
    try:
        thread.start()
    except (RuntimeError, MemoryError) as error:
        reason = str(error) or "there is no memory"
        raise ResourceError(f"no thread can be started for {thread.name} ({reason})") from None


class Job(Generic[_T, _R]):
    """Runs ``work(job)`` in a thread, which may ``put`` items or ``get`` them, and returns a result.

    ``capacity`` items fit in the pipe. ``wake`` is called, in the job's thread, whenever a look is worth it.
    """

    def __init__(
        self,
        name: str,
        work: Callable[[Job[_T, _R]], _R],
        *,
        capacity: int,
        wake: Callable[[], None],
        lockstep: bool = False,
    ) -> None:
        """Start it. Raises ``ResourceError``."""
        self.stopped = threading.Event()
        self.taken = 0  # items that the job has got out of the pipe
        self._work = work
        self._capacity = capacity
        self._wake = wake
        self._lockstep = lockstep
        self._items: deque[_T] = deque()
        self._changed = threading.Condition()
        self._waits_for: Callable[[], bool] | None = None  # what the job needs before it can go on
        self._done = False
        self._result: _R | None = None
        self._error: BaseException | None = None
        self._thread = threading.Thread(target=self._run, name=name, daemon=True)
        start_thread(self._thread)
        self._settle()

    def _run(self) -> None:
        try:
            self._result = self._work(self)
        except BaseException as error:  # a panic in the binding to RocksDB is no Exception
            self._error = error
        with self._changed:
            self._done = True
            self._changed.notify_all()
        self._wake()

    # The job's end

    def put(self, item: _T) -> None:
        """Wait for room, and put. Raises ``SnapshotStopped``."""
        with self._changed:
            self._wait_until(lambda: len(self._items) < self._capacity)
            self._items.append(item)
        self._wake()

    def get(self) -> _T:
        """Wait for an item, and take it. Raises ``SnapshotStopped``."""
        with self._changed:
            self._wait_until(lambda: bool(self._items))
            item = self._items.popleft()
            self.taken += 1
        self._wake()
        return item

    def _wait_until(self, possible: Callable[[], bool]) -> None:
        self._waits_for = possible
        self._changed.notify_all()
        self._changed.wait_for(lambda: possible() or self.stopped.is_set())
        self._waits_for = None
        if self.stopped.is_set():
            raise SnapshotStopped("nobody needs this snapshot any more")

    # The step's end

    def offer(self, item: _T) -> bool:
        """Put an item if there is room."""
        with self._changed:
            if len(self._items) >= self._capacity:
                return False
            self._items.append(item)
            self._changed.notify_all()
        self._settle()
        return True

    def poll(self) -> _T | None:
        """Take an item if there is one."""
        with self._changed:
            if not self._items:
                return None
            item = self._items.popleft()
            self._changed.notify_all()
        self._settle()
        return item

    def stop(self) -> None:
        """Ask the job to end. It raises ``SnapshotStopped`` inside, soon."""
        with self._changed:
            self.stopped.set()
            self._changed.notify_all()
        self._settle()

    def _settle(self) -> None:
        """In lockstep: wait until the job has ended, or waits for this end of the pipe."""
        if not self._lockstep:
            return
        with self._changed:
            self._changed.wait_for(
                lambda: (
                    self._done
                    or (self._waits_for is not None and not self._waits_for() and not self.stopped.is_set())
                )
            )

    @property
    def done(self) -> bool:
        """Whether it has ended, well or not."""
        return self._done

    def join(self) -> None:
        """Wait for the end of the thread."""
        self._thread.join()

    def result(self) -> _R:
        """What the work returned; raises what it raised. Only once it is ``done``."""
        self._thread.join()
        if self._error is not None:
            raise self._error
        return self._result  # type: ignore[return-value]
