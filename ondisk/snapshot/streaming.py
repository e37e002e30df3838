"""Snapshots under way: which streams one replica sends, receives and exports, and when each of them ends.

Chunks are numbered and acknowledged. The receiver says how far the sender may go (*back-pressure*), so that
neither side ever holds more than a window of chunks, however large the state and however slow the disk. What
is not acknowledged in time is sent again, so a lost link only delays a stream.

All here belongs to the step of one replica, except what the jobs do: ``save_snapshot`` and
``recover_from_snapshot``, each in a thread of its own.
"""

from __future__ import annotations

import logging
import random
import threading
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ondisk.errors import Corrupt, Rejected, ResourceError, SnapshotStopped, StorageError, UnknownVersion
from ondisk.interrupts.futures import Future
from ondisk.raft import Raft
from ondisk.raft.messages import Chunk, Message, SnapshotAck, SnapshotChunk, SnapshotRejection
from ondisk.snapshot.background import Job
from ondisk.snapshot.export import Export
from ondisk.snapshot.receiver import Receiving
from ondisk.snapshot.sender import Sending
from ondisk.snapshot.stream import Header, SnapshotFile, make_header, read_header
from ondisk.statemachine import OnDiskStateMachine, SnapshotView
from ondisk.storage.disk import Disk

GIVE_UP_SECONDS = 30.0  # without a sign of the other side
_TRY_AGAIN_SECONDS = 1.0  # after a stream that was rejected or broke off
_NO_ROOM_SECONDS = 5.0  # after one that could not begin, because there was no thread for it
_IDLE_SECONDS = 0.1  # without a new entry: then a stream need not rest

# Where an experiment may crash a replica that installs a snapshot.
POINTS = ("install: noted", "install: state replaced", "install: log begins anew")

logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class StreamProgress:
    """A snapshot under way: ``to`` or ``from`` another replica, or ``export`` (``peer`` is 0 then).

    ``bytes`` of the state machine have arrived so far; ``index`` is the entry whose state it holds.
    """

    kind: str
    peer: int
    index: int
    bytes: int


class Streaming:
    """The snapshots that one replica sends, receives and exports. Belongs to its step."""

    chunk_bytes: int | None = None  # of what is sent; the stream's own size if not given

    def __init__(
        self,
        replica_id: int,
        machine: OnDiskStateMachine,
        raft: Raft,
        *,
        send: Callable[[int, Message], None],
        wake: Callable[[], None],
        rng: random.Random,
        disk: Disk,
        lockstep: bool,
    ) -> None:
        """``lockstep``: no job ever runs beside a step (see ``Job``)."""
        self._id = replica_id
        self._machine = machine
        self._raft = raft
        self._send = send
        self._wake = wake
        self._installed: int | None = None  # what ``poll`` is to return
        self._rng = rng
        self._disk = disk
        self._lockstep = lockstep
        self._sending: dict[int, Sending] = {}
        self._again_at: dict[int, float] = {}
        self._receiving: Receiving | None = None
        self._exporting: list[Export] = []
        self._ending: list[Job[Chunk, Any]] = []  # asked to stop
        self._last_index = raft.log.last_index
        self._written_at = float("-inf")
        self._idle = True  # whether nobody writes

    # Every step

    def poll(self, now: float) -> int | None:
        """At the beginning of a step: take notice of what the jobs have done.

        Return the index where the state and the log begin anew, if a snapshot has been installed.
        """
        if self._last_index != self._raft.log.last_index:
            self._last_index, self._written_at = self._raft.log.last_index, now
        self._idle = now > self._written_at + _IDLE_SECONDS
        if self._ending:
            self._ending = [job for job in self._ending if not job.done]
        if self._receiving is not None:
            self._poll_receiving(self._receiving, now)
        for export in tuple(self._exporting):
            if export.job.done:
                self._exporting.remove(export)
                export.answer()
            elif export.stopped.is_set():
                export.job.stop()
        installed, self._installed = self._installed, None
        return installed

    def _jobs(self) -> list[Job[Any, Any]]:
        jobs: list[Job[Any, Any]] = [sending.job for sending in self._sending.values()]
        jobs += [export.job for export in self._exporting]
        jobs += self._ending
        return jobs + ([self._receiving.job] if self._receiving is not None else [])

    def advance(self, now: float) -> None:
        """As leader: stream to those that need it, and only while they do."""
        needed = self._raft.needs_snapshot
        if not (needed or self._sending):
            return
        for peer in [peer for peer, sending in self._sending.items() if sending.term != self._raft.term]:
            self._end_sending(peer)
        for peer in needed - self._sending.keys():
            if now >= self._again_at.get(peer, now):
                self._begin_sending(peer, now)
        for peer, sending in tuple(self._sending.items()):
            silent = now > sending.heard_at + GIVE_UP_SECONDS
            if silent or not (self._raft.is_leader and self._raft.still_needs_snapshot(peer)):
                self._end_sending(peer)
                continue
            if sending.job.done:
                sending.job.result()  # raises if this state cannot be read: then this replica must not lead
            for chunk in sending.chunks_to_send(now, idle=self._idle):
                self._send(peer, SnapshotChunk(sending.term, sending.stream, chunk))

    @property
    def busy(self) -> bool:
        """Whether anything is under way."""
        return bool(self._sending or self._exporting or self._ending or self._receiving is not None)

    @property
    def oldest_index_sent(self) -> int | None:
        """The log must keep what comes after this entry, or a stream would end in front of a gap."""
        return min((sending.header.index for sending in self._sending.values()), default=None)

    def progress(self) -> tuple[StreamProgress, ...]:
        """What is under way."""
        if not self.busy:
            return ()
        found = [StreamProgress("to", peer, s.header.index, s.bytes) for peer, s in self._sending.items()]
        if (r := self._receiving) is not None:
            found.append(StreamProgress("from", r.leader, r.header.index, r.bytes))
        found += [StreamProgress("export", 0, e.header.index, e.bytes) for e in self._exporting]
        return tuple(found)

    def close(self) -> None:
        """Stop everything, and wait for it: the state machine is closed next."""
        jobs = self._jobs()
        for job in jobs:
            job.stop()
        for job in jobs:
            job.join()
        for export in self._exporting:
            export.answer()
        self._sending, self._exporting, self._ending, self._receiving = {}, [], [], None

    # Sending

    def _prepare(self) -> tuple[SnapshotView, Header]:
        view, log = self._machine.prepare_snapshot(), self._raft.log
        try:
            term = log.term_at(view.index)
            assert term is not None
            return view, make_header(view.index, term, log.members_at(view.index))
        except BaseException:
            view.close()
            raise

    def _begin_sending(self, peer: int, now: float) -> None:
        view, header = self._prepare()
        logger.info("replica %d streams its state after entry %d to replica %d", self._id, header.index, peer)
        try:
            self._sending[peer] = Sending(
                self._rng.getrandbits(48),
                self._raft.term,
                header,
                self._machine,
                view,
                f"ondisk-{self._id}-save-for-{peer}",
                self._wake,
                now,
                chunk_bytes=self.chunk_bytes,
                lockstep=self._lockstep,
            )
        except ResourceError as error:  # there are too many threads: a leader goes on without the stream
            view.close()
            self._again_at[peer] = now + _NO_ROOM_SECONDS
            logger.warning("replica %d: replica %d must wait for its snapshot: %s", self._id, peer, error)

    def _end_sending(self, peer: int) -> None:
        job = self._sending.pop(peer).job
        job.stop()
        self._ending.append(job)

    def on_ack(self, peer: int, ack: SnapshotAck, now: float) -> None:
        """A follower says how far it has come."""
        if (sending := self._stream_to(peer, ack.stream)) is None:
            return
        sending.on_ack(ack, now)
        if sending.installed:
            if sending.term == self._raft.term:
                self._raft.on_snapshot_installed(peer, sending.header.index)
            self._end_sending(peer)

    def on_rejection(self, peer: int, rejection: SnapshotRejection, now: float) -> None:
        """A follower has no use for this stream. Another one may do, but not at once."""
        if self._stream_to(peer, rejection.stream) is not None:
            self._end_sending(peer)
            self._again_at[peer] = now + _TRY_AGAIN_SECONDS

    def _stream_to(self, peer: int, stream: int) -> Sending | None:
        """The one that an answer is about; ``None`` if it has ended."""
        sending = self._sending.get(peer)
        return sending if sending is not None and sending.stream == stream else None

    # Receiving

    def on_chunk(self, leader: int, message: SnapshotChunk, now: float) -> None:
        """A leader sends a piece of its state."""
        if not self._raft.on_leader_contact(leader, message.term):
            return
        receiving = self._receiving
        if receiving is not None and (receiving.leader, receiving.stream) == (leader, message.stream):
            self._send(leader, receiving.on_chunk(message.chunk, now))
        elif receiving is not None:
            receiving.job.stop()  # the leader began anew: so shall we, once this one has ended
        elif message.chunk.number == 0:
            self._begin_receiving(leader, message, now)
        else:
            self._reject(leader, message.stream)  # its beginning was lost with an earlier life

    def _reject(self, leader: int, stream: int) -> None:
        self._send(leader, SnapshotRejection(stream))

    def _begin_receiving(self, leader: int, message: SnapshotChunk, now: float) -> None:
        try:
            header = read_header(message.chunk)
        except (Corrupt, UnknownVersion) as error:
            logger.warning("replica %d: from replica %d: %s", self._id, leader, error)
            self._reject(leader, message.stream)
            return
        # Newer than this state, and no older than this log's base: else a gap would remain between the two.
        if header.index <= self._raft.applied_index or header.index < self._raft.log.base_index:
            self._reject(leader, message.stream)
            return
        # If the power fails after the state machine has replaced its state, and before the log follows, this
        # note says that the two belong together.
        log = self._raft.log
        log.begin_install(header.index, header.term, header.members)
        log.sync()
        self._disk.reach("install: noted")
        self._raft.recovering = True
        name = f"ondisk-{self._id}-recover"
        try:
            self._receiving = Receiving(
                leader, message, header, self._machine, name, self._wake, now, lockstep=self._lockstep
            )
        except ResourceError as error:
            logger.warning("replica %d cannot take in a snapshot now: %s", self._id, error)
            log.abandon_install()
            log.sync()
            self._raft.recovering = False
            self._reject(leader, message.stream)
            return
        self._send(leader, self._receiving.ack())

    def _poll_receiving(self, receiving: Receiving, now: float) -> None:
        if receiving.job.done:
            self._receiving = None
            self._end_receiving(receiving)
        elif (
            self._raft.term != receiving.term
            or self._raft.leader_id not in (None, receiving.leader)
            or now > receiving.heard_at + GIVE_UP_SECONDS
            or self._raft.commit_index >= receiving.header.index  # the log brought as much meanwhile
        ):
            receiving.job.stop()
        elif receiving.has_news:
            self._send(receiving.leader, receiving.ack())

    def _end_receiving(self, receiving: Receiving) -> None:
        try:
            receiving.job.result()
        except (SnapshotStopped, Corrupt, UnknownVersion) as error:
            self._keep_old_state(receiving, error)
        else:
            self._begin_anew(receiving)
        self._raft.recovering = False

    def _keep_old_state(self, receiving: Receiving, error: Exception) -> None:
        logger.warning("replica %d keeps its old state: %s", self._id, error)
        self._raft.log.abandon_install()
        self._raft.log.sync()
        self._reject(receiving.leader, receiving.stream)

    def _begin_anew(self, receiving: Receiving) -> None:
        header = receiving.header
        self._disk.reach("install: state replaced")
        self._raft.install(header.index, header.term, header.members)
        self._raft.log.sync()
        self._disk.reach("install: log begins anew")
        self._installed = header.index
        self._send(receiving.leader, receiving.ack(installed=True))

    # Exporting

    def export(self, path: Path, future: Future[SnapshotFile], stopped: threading.Event) -> None:
        """Write a snapshot into a file; the future ends with what was written, or when ``stopped`` is set."""
        if self._raft.recovering or self._raft.needs_state:
            future.set_exception(
                Rejected(f"replica {self._id} is waiting for a snapshot itself: export from another one")
            )
            return
        try:
            view, header = self._prepare()
        except StorageError as error:
            if isinstance(error, Corrupt):
                raise
            future.set_exception(error)  # no room for a view; if that is not all, the next sync will tell
            return
        try:
            export = Export(
                path,
                future,
                stopped,
                header,
                self._machine,
                view,
                self._wake,
                idle=lambda: self._idle or self._lockstep,
            )
        except ResourceError as error:
            view.close()
            future.set_exception(error)
        else:
            self._exporting.append(export)
