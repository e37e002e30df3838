"""The receiver's end of a stream: recovered while it arrives, nothing is kept elsewhere first."""

from __future__ import annotations

from collections.abc import Callable

from ondisk.errors import StorageError
from ondisk.raft.messages import Chunk, SnapshotAck, SnapshotChunk
from ondisk.snapshot.background import Job
from ondisk.snapshot.sender import NEWS_CHUNKS, WINDOW
from ondisk.snapshot.stream import Header, Reader
from ondisk.statemachine import OnDiskStateMachine


class Receiving:
    """One stream from a leader, recovered while it arrives."""

    def __init__(
        self,
        leader: int,
        message: SnapshotChunk,
        header: Header,
        machine: OnDiskStateMachine,
        name: str,
        wake: Callable[[], None],
        now: float,
        *,
        lockstep: bool,
    ) -> None:
        self.leader = leader
        self.term = message.term
        self.stream = message.stream
        self.header = header
        self.bytes = 0
        self.heard_at = now
        self._next = 1
        self._told = 0
        self._ended = False

        self.job: Job[Chunk, None] = Job(
            name, lambda job: _recover(machine, job), capacity=WINDOW, wake=wake, lockstep=lockstep
        )
        self.job.offer(message.chunk)

    def on_chunk(self, chunk: Chunk, now: float) -> SnapshotAck:
        """Take a chunk if it is the next one and there is room for it."""
        self.heard_at = now
        if chunk.number == self._next and not self._ended and self.job.offer(chunk):
            self._next += 1
            self.bytes += len(chunk.data)
            self._ended = chunk.is_end
        return self.ack()

    @property
    def has_news(self) -> bool:
        return self.job.taken + WINDOW >= self._told + NEWS_CHUNKS

    def ack(self, *, installed: bool = False) -> SnapshotAck:
        """How far it has come. The end mark is acknowledged when all is installed."""
        self._told = self.job.taken + WINDOW
        return SnapshotAck(self.stream, self._next - (self._ended and not installed), self._told)


def _recover(machine: OnDiskStateMachine, job: Job[Chunk, None]) -> None:
    """Replace the state by the snapshot whose chunks come in.

    Raises ``Corrupt`` if they are damaged, and ``SnapshotStopped``; then the old state is whole. Raises
    ``StorageError`` if the disk or the state machine cannot go on.
    """
    reader = Reader(job.get)
    index = machine.recover_from_snapshot(reader, job.stopped)
    if index != reader.header.index:
        raise StorageError(
            f"the snapshot of entry {reader.header.index} brought the state after entry {index}: "
            f"the state machine does not keep its promise"
        )
