"""A snapshot on its way into a file. It rests while entries come in, as a stream to a follower does."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from pathlib import Path

from ondisk.interrupts.futures import Future
from ondisk.raft.messages import Chunk
from ondisk.snapshot.background import Job
from ondisk.snapshot.sender import LONGEST_REST, save
from ondisk.snapshot.stream import Header, SnapshotFile, Writer, write_file
from ondisk.statemachine import OnDiskStateMachine, SnapshotView


class Export:
    """A snapshot on its way into a file."""

    def __init__(
        self,
        path: Path,
        future: Future[SnapshotFile],
        stopped: threading.Event,
        header: Header,
        machine: OnDiskStateMachine,
        view: SnapshotView,
        wake: Callable[[], None],
        idle: Callable[[], bool],
    ) -> None:
        self.stopped = stopped
        self.header = header
        self.bytes = 0
        self._future = future

        def work(job: Job[Chunk, SnapshotFile]) -> SnapshotFile:
            def write(put: Callable[[Chunk], None]) -> Header:
                began = time.monotonic()

                def count(chunk: Chunk) -> None:
                    nonlocal began
                    put(chunk)
                    self.bytes += len(chunk.data)
                    if not idle():
                        job.stopped.wait(min(time.monotonic() - began, LONGEST_REST))
                    began = time.monotonic()

                save(machine, view, Writer(header, count), job)
                return header

            try:
                return write_file(path, write)
            finally:
                view.close()  # also if the file could not be opened

        self.job: Job[Chunk, SnapshotFile] = Job(f"ondisk-export-{path.name}", work, capacity=1, wake=wake)

    def answer(self) -> None:
        try:
            self._future.set_result(self.job.result())
        except BaseException as error:
            self._future.set_exception(error)
