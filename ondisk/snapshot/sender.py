"""The sender's end of a stream: what the receiver has room for, and again what it has not answered to.

While entries come in, a stream rests for as long as it works: the disks, the network and the processors are
for clients first. When nobody writes it goes as fast as it can.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from typing import Any

from ondisk.raft.limits import WINDOW_CHUNKS
from ondisk.raft.messages import Chunk, SnapshotAck
from ondisk.snapshot.background import Job
from ondisk.snapshot.stream import Header, Writer
from ondisk.statemachine import OnDiskStateMachine, SnapshotView

WINDOW = WINDOW_CHUNKS
NEWS_CHUNKS = WINDOW // 4  # the sender is told when there is room for that many more
LONGEST_REST = 0.1
_RESEND_SECONDS = 0.5
_SIGN_OF_LIFE_SECONDS = 5.0  # while the state machine of either side takes its time


class Sending:
    """One stream to one follower. Belongs to the steps of the leader, except ``save``."""

    def __init__(
        self,
        stream: int,
        term: int,
        header: Header,
        machine: OnDiskStateMachine,
        view: SnapshotView,
        name: str,
        wake: Callable[[], None],
        now: float,
        *,
        chunk_bytes: int | None,
        lockstep: bool,
    ) -> None:
        self.stream = stream
        self.term = term
        self.header = header
        self.bytes = 0
        self.heard_at = now
        self._unacknowledged: deque[Chunk] = deque()
        self._newest: Chunk | None = None  # of those that were sent
        self._next = 0  # the first chunk that was not sent yet
        self._limit = 1  # until the receiver has seen the header
        self._end_sent = False
        self._resend_at = now
        self._burst_end = WINDOW  # chunks from here on wait until the receiver has taken those before
        self._burst_at = now
        self._rest_until: float | None = None

        def work(job: Job[Chunk, None]) -> None:
            save(machine, view, Writer(header, job.put, chunk_bytes), job)

        self.job: Job[Chunk, None] = Job(name, work, capacity=4, wake=wake, lockstep=lockstep)

    def on_ack(self, ack: SnapshotAck, now: float) -> None:
        while self._unacknowledged and self._unacknowledged[0].number < ack.next:
            self.bytes += len(self._unacknowledged.popleft().data)
            self._resend_at = now + _RESEND_SECONDS
        self.heard_at = now
        self._limit = max(self._limit, ack.limit)

    @property
    def installed(self) -> bool:
        return self._end_sent and not self._unacknowledged

    def _end_of_burst(self, now: float) -> int:
        """A window of chunks goes at once; when it has been taken, the stream rests as long as that took."""
        if self._next >= self._burst_end and self._limit > self._next + WINDOW - NEWS_CHUNKS:
            if self._rest_until is None:
                self._rest_until = now + min(now - self._burst_at, LONGEST_REST)
            if now >= self._rest_until:
                self._burst_end, self._burst_at, self._rest_until = self._next + WINDOW, now, None
        return self._burst_end

    def chunks_to_send(self, now: float, *, idle: bool) -> list[Chunk]:
        """What the receiver has room for, after what it has not answered to in time."""
        chunks: list[Chunk] = []
        if self._unacknowledged and now >= self._resend_at:
            chunks += self._unacknowledged
        elif self._newest is not None and now >= self._resend_at + _SIGN_OF_LIFE_SECONDS:
            chunks.append(self._newest)  # known already, but it will be answered
        limit = self._limit if idle else min(self._limit, self._end_of_burst(now))
        while self._next < limit and (chunk := self.job.poll()) is not None:
            self._unacknowledged.append(chunk)
            self._newest = chunk
            self._next = chunk.number + 1
            self._end_sent = chunk.is_end
            chunks.append(chunk)
        if chunks:
            self._resend_at = now + _RESEND_SECONDS
        return chunks


def save(machine: OnDiskStateMachine, view: SnapshotView, writer: Writer, job: Job[Any, Any]) -> None:
    """Write a view, in the thread of a job, and close it."""
    try:
        machine.save_snapshot(view, writer, job.stopped)
        writer.finish()
    finally:
        view.close()
