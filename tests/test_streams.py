"""The two ends of a stream by themselves: their pace, what they send again, and when they end."""

from __future__ import annotations

import random
import threading
from pathlib import Path
from typing import Any

import pytest

from ondisk.errors import ConfigurationError, Corrupt, ResourceError, SnapshotStopped, StorageError
from ondisk.interrupts.futures import Future
from ondisk.raft.log import RaftLog
from ondisk.raft.members import Members
from ondisk.raft.messages import DATA, Message, SnapshotAck, SnapshotChunk, SnapshotRejection
from ondisk.raft.records import LogEntry
from ondisk.snapshot import export, receiver, sender, streaming
from ondisk.snapshot.sender import WINDOW
from ondisk.snapshot.stream import Chunk, Writer, make_header
from ondisk.snapshot.streaming import Streaming, StreamProgress
from ondisk.storage.disk import Disk

RESEND, REST = 0.5, 0.1
NEWS = WINDOW // 4


class FakeJob:
    """Hands out the chunks that a test has put in, and ends when a test says so."""

    room = True  # whether a thread can be started

    def __init__(
        self, name: str, work: object, *, capacity: int, wake: object, lockstep: bool = False
    ) -> None:
        if not FakeJob.room:
            raise ResourceError("no thread")
        self.chunks: list[Chunk] = []
        self.offered: list[Chunk] = []
        self.capacity = capacity
        self.taken = 0
        self.stopped = threading.Event()
        self.done = False
        self.error: Exception | None = None

    def poll(self) -> Chunk | None:
        return self.chunks.pop(0) if self.chunks else None

    def offer(self, chunk: Chunk) -> bool:
        if len(self.offered) - self.taken >= self.capacity:
            return False
        self.offered.append(chunk)
        return True

    def stop(self) -> None:
        self.stopped.set()

    def join(self) -> None:
        assert self.stopped.is_set()
        self.done = True

    def result(self) -> None:
        assert self.done
        if self.error is not None:
            raise self.error


class FakeView:
    index = 5

    def __init__(self) -> None:
        self.closed = False

    def close(self) -> None:
        self.closed = True


class FakeMachine:
    def __init__(self) -> None:
        self.views: list[FakeView] = []

    def prepare_snapshot(self) -> FakeView:
        self.views.append(FakeView())
        return self.views[-1]


class FakeRaft:
    def __init__(self, log: RaftLog) -> None:
        self.log = log
        self.term, self.leader_id = 3, 1
        self.is_leader = True
        self.needs_snapshot: frozenset[int] = frozenset()
        self.still: set[int] = set()
        self.recovering = self.needs_state = False
        self.applied_index = self.commit_index = 5
        self.installed: list[tuple[int, int]] = []

    def still_needs_snapshot(self, peer: int) -> bool:
        return peer in self.still

    def need(self, *peers: int) -> None:
        self.needs_snapshot, self.still = frozenset(peers), set(peers)

    def on_snapshot_installed(self, peer: int, index: int) -> None:
        self.installed.append((peer, index))

    def on_leader_contact(self, leader: int, term: int) -> bool:
        self.leader_id = leader
        return term >= self.term

    def install(self, index: int, term: int, members: Members) -> None:
        self.log.install(index, term, members)
        self.commit_index = self.applied_index = index


class Streams:
    def __init__(self, directory: Path) -> None:
        self.log = RaftLog(directory / "log", None, (1, 2, 3))
        self.log.append([LogEntry(index, 3, b"\x00x") for index in range(1, 6)])
        self.log.sync()
        self.raft = FakeRaft(self.log)
        self.machine = FakeMachine()
        self.sent: list[tuple[int, Message]] = []
        self.installed: list[int] = []
        self.streams = Streaming(
            1,
            self.machine,  # type: ignore[arg-type]
            self.raft,  # type: ignore[arg-type]
            send=lambda to, message: self.sent.append((to, message)),
            wake=lambda: None,
            rng=random.Random(1),
            disk=Disk(),
            lockstep=True,
        )

    def step(self, now: float) -> list[tuple[int, Message]]:
        self.sent.clear()
        if (index := self.streams.poll(now)) is not None:
            self.installed.append(index)
        self.streams.advance(now)
        return list(self.sent)

    def numbers(self, now: float) -> list[int]:
        """The chunks that one step sends."""
        return [message.chunk.number for _, message in self.step(now) if isinstance(message, SnapshotChunk)]

    def begin(self, peer: int = 2, now: float = 10.0) -> Any:
        self.raft.need(peer)
        self.step(now)
        return self.streams._sending[peer]

    def ack(self, peer: int, next: int, limit: int, now: float) -> None:
        self.streams.on_ack(peer, SnapshotAck(self.streams._sending[peer].stream, next, limit), now)

    def reject(self, peer: int, now: float) -> None:
        self.streams.on_rejection(peer, SnapshotRejection(self.streams._sending[peer].stream), now)

    def chunk(
        self, number: int, stream: int = 77, term: int = 3, leader: int = 2, now: float = 10.0
    ) -> list[Any]:
        """A leader sends one; return the answers."""
        self.sent.clear()
        self.streams.on_chunk(leader, SnapshotChunk(term, stream, chunks(9, index=9)[number]), now)
        return [message for _, message in self.sent]


def chunks(count: int, index: int = 5) -> list[Chunk]:
    """A whole stream of so many chunks with data, between its header and its end mark."""
    made: list[Chunk] = []
    writer = Writer(make_header(index, 3, Members((1, 2, 3))), made.append, 1)
    for _ in range(count):
        writer.write(b"x")
    writer.finish()
    return made


@pytest.fixture
def it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    for module in (sender, receiver, export):
        monkeypatch.setattr(module, "Job", FakeJob)
    monkeypatch.setattr(FakeJob, "room", True)
    streams = Streams(tmp_path)
    yield streams
    streams.log.close()


# Sending


def test_no_more_is_sent_than_there_is_room_for_and_what_is_not_answered_goes_again(it: Streams) -> None:
    sending = it.begin()
    sending.job.chunks += chunks(8)
    assert it.numbers(10.0) == [0]  # until the receiver has seen the header
    it.ack(2, 1, 4, 10.1)
    assert it.numbers(10.1) == [1, 2, 3]
    it.ack(2, 3, 4, 10.2)
    assert it.streams.progress() == (StreamProgress("to", 2, 5, len(chunks(8)[0].data) + 2),)
    assert it.numbers(10.2 + RESEND - 0.01) == []
    assert it.numbers(10.2 + RESEND) == [3]
    assert it.numbers(10.2 + RESEND + 0.1) == []  # just sent again
    it.ack(2, 3, 3, 10.8)  # an older limit
    it.ack(2, 4, 6, 10.8)
    assert it.numbers(10.8) == [4, 5]
    it.ack(2, 6, 6, 10.9)
    assert it.numbers(11.4) == []  # there is nothing to repeat yet
    assert it.numbers(16.8) == [5]  # a sign of life, known already
    it.ack(2, 6, 99, 17.0)
    assert it.numbers(17.0) == [6, 7, 8, 9] and not it.raft.installed
    it.ack(2, 9, 99, 17.1)
    assert not it.raft.installed and it.streams.busy
    it.ack(2, 10, 99, 17.2)
    assert it.raft.installed == [(2, 5)]
    it.raft.need()
    assert it.streams.busy  # its job was asked to stop
    assert sending.job.stopped.is_set()
    sending.job.done = True
    it.step(17.3)
    assert not it.streams.busy and it.streams.oldest_index_sent is None


def test_a_stream_rests_while_entries_come_in_and_not_otherwise(it: Streams) -> None:
    sending = it.begin(now=10.0)
    sending.job.chunks += chunks(3 * WINDOW)
    it.step(10.0)
    it.ack(2, 1, 4 * WINDOW, 10.01)
    it.log.append([LogEntry(it.log.last_index + 1, 3, b"\x00x")])
    assert it.numbers(10.01) == list(range(1, WINDOW))
    assert it.numbers(10.04) == []  # the window was taken within 0.04 s: as long it rests
    assert it.numbers(10.07) == []
    assert it.numbers(10.085) == list(range(WINDOW, 2 * WINDOW))
    assert it.numbers(10.12) == list(range(2 * WINDOW, 3 * WINDOW + 2))  # nobody has written since


def test_a_rest_begins_when_the_window_has_been_taken(it: Streams) -> None:
    sending = it.begin(now=10.0)
    sending.job.chunks += chunks(3 * WINDOW)
    it.step(10.0)
    now = 10.0

    def numbers(now: float) -> list[int]:
        it.log.append([LogEntry(it.log.last_index + 1, 3, b"\x00x")])
        return it.numbers(now)

    it.ack(2, 1, WINDOW + 1, now)
    assert numbers(10.01) == list(range(1, WINDOW))
    assert numbers(10.4) == []
    it.ack(2, WINDOW, 2 * WINDOW - NEWS, 10.41)  # not all of it has been taken out of the pipe
    assert numbers(10.41) == [] == numbers(10.45)
    it.ack(2, WINDOW, 2 * WINDOW - NEWS + 1, 10.45)
    assert numbers(10.45) == []
    assert numbers(10.45 + REST - 0.01) == []  # no longer than that, however long the window took
    assert numbers(10.45 + REST + 0.01) == list(range(WINDOW, 2 * WINDOW - NEWS + 1))


@pytest.mark.parametrize("how", ["silent", "not needed", "deposed", "another term", "rejected"])
def test_a_stream_that_is_of_no_use_ends(it: Streams, how: str) -> None:
    sending = it.begin(now=10.0)
    sending.job.chunks += chunks(3)
    it.step(10.0)
    it.ack(2, 1, 1, 11.0)
    it.step(11.0 + streaming.GIVE_UP_SECONDS)
    assert it.streams._sending[2] is sending
    if how == "silent":
        it.raft.needs_snapshot = frozenset()
        it.step(11.1 + streaming.GIVE_UP_SECONDS)
    elif how == "not needed":
        it.raft.need()
        it.step(12.0)
    elif how == "deposed":
        it.raft.is_leader = False
        it.step(12.0)
    elif how == "another term":
        it.raft.term += 1
        it.raft.needs_snapshot = frozenset()
        it.step(12.0)
    else:
        it.reject(2, 42.0)
        assert it.step(42.9) == []
    assert 2 not in it.streams._sending and sending.job.stopped.is_set()
    assert [job is sending.job for job in it.streams._jobs()] == [True]
    if how == "rejected":
        it.step(43.0)
        assert 2 in it.streams._sending  # another try
    else:
        it.streams.on_ack(2, SnapshotAck(sending.stream, 4, 9), 50.0)  # too late
        assert not it.raft.installed


def test_an_acknowledgement_of_another_stream_counts_for_nothing(it: Streams) -> None:
    sending = it.begin()
    sending.job.chunks += chunks(3)
    it.step(10.0)
    it.streams.on_ack(2, SnapshotAck(sending.stream + 1, 1, 9), 10.1)
    it.streams.on_ack(3, SnapshotAck(sending.stream, 1, 9), 10.1)
    it.streams.on_rejection(2, SnapshotRejection(sending.stream + 1), 10.1)
    it.streams.on_rejection(3, SnapshotRejection(sending.stream), 10.1)
    assert it.numbers(10.2) == [] and 2 in it.streams._sending


def test_an_installation_of_an_older_term_says_nothing_to_this_one(it: Streams) -> None:
    sending = it.begin()
    sending.job.chunks += chunks(1)
    it.step(10.0)
    it.ack(2, 1, 9, 10.0)
    it.step(10.1)
    it.raft.term += 1
    it.ack(2, 3, 9, 10.2)
    assert not it.raft.installed and 2 not in it.streams._sending


def test_without_a_thread_a_stream_is_tried_again_later(it: Streams, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(FakeJob, "room", False)
    it.raft.need(2)
    it.step(10.0)
    assert not it.streams._sending and [view.closed for view in it.machine.views] == [True]
    it.step(14.9)
    assert len(it.machine.views) == 1
    monkeypatch.setattr(FakeJob, "room", True)
    it.step(15.0)
    assert 2 in it.streams._sending and it.streams.oldest_index_sent == 5


def test_the_log_is_kept_from_the_oldest_stream_on(it: Streams) -> None:
    it.begin(2)
    FakeView.index = 3
    try:
        it.raft.need(2, 3)
        it.step(10.0)
    finally:
        FakeView.index = 5
    assert it.streams.oldest_index_sent == 3


def test_a_view_that_cannot_be_described_is_closed(it: Streams) -> None:
    it.log.members_at = lambda index: 1 / 0  # type: ignore[assignment, method-assign, return-value]
    with pytest.raises(ZeroDivisionError):
        it.begin()
    assert [view.closed for view in it.machine.views] == [True]


# Receiving


def test_a_receiver_takes_chunks_in_order_and_says_how_far_it_may_go(it: Streams) -> None:
    assert it.chunk(0) == [SnapshotAck(77, 1, WINDOW)]
    assert it.raft.recovering and it.log.installing is not None and it.log.installing[0] == 9
    receiving = it.streams._receiving
    assert receiving is not None and it.streams.busy
    assert it.chunk(2) == [SnapshotAck(77, 1, WINDOW)]
    assert it.chunk(1) == [SnapshotAck(77, 2, WINDOW)]
    assert it.chunk(1) == [SnapshotAck(77, 2, WINDOW)]
    assert it.streams.progress() == (StreamProgress("from", 2, 9, 1),)
    job: Any = receiving.job
    job.taken = NEWS - 1
    assert it.step(10.0) == []
    job.taken = NEWS
    assert it.step(10.0) == [(2, SnapshotAck(77, 2, WINDOW + NEWS))]
    assert it.step(10.0) == []  # told
    for number in range(2, 10):
        it.chunk(number)
    assert it.chunk(10) == [SnapshotAck(77, 10, WINDOW + NEWS)]  # the end, which is not yet installed
    job.done = True
    assert it.step(10.1) == [(2, SnapshotAck(77, 11, WINDOW + NEWS))]
    assert it.installed == [9] and it.log.base_index == 9 and not it.raft.recovering
    assert not it.streams.busy


def test_without_room_a_chunk_is_not_taken(it: Streams) -> None:
    it.chunk(0)
    assert it.streams._receiving is not None
    job: Any = it.streams._receiving.job
    job.capacity = 2
    it.chunk(1)
    assert it.chunk(2) == [SnapshotAck(77, 2, WINDOW)]


@pytest.mark.parametrize("how", ["silent", "term", "leader", "log", "another stream"])
def test_a_stream_that_brings_nothing_any_more_is_stopped_and_the_old_state_kept(
    it: Streams, how: str
) -> None:
    it.chunk(0)
    assert it.streams._receiving is not None
    job: Any = it.streams._receiving.job
    it.step(10.0 + streaming.GIVE_UP_SECONDS)
    it.raft.leader_id = None  # type: ignore[assignment]
    it.step(10.0)
    assert not job.stopped.is_set()
    it.raft.leader_id = 2
    if how == "silent":
        it.step(10.1 + streaming.GIVE_UP_SECONDS)
    elif how == "term":
        it.raft.term += 1
    elif how == "leader":
        it.raft.leader_id = 3
    elif how == "log":
        it.raft.commit_index = 9
    else:
        it.chunk(0, stream=78)
    it.step(10.2)
    assert job.stopped.is_set() and it.raft.recovering
    job.done, job.error = True, SnapshotStopped("stopped")
    assert it.step(10.3) == [(2, SnapshotRejection(77))]
    assert not it.raft.recovering and it.log.installing is None and it.installed == []
    assert it.log.base_index == 0 and not it.log.unsynced


@pytest.mark.parametrize(
    "how", ["in the middle", "older", "before the log", "damaged", "no thread", "old term"]
)
def test_a_stream_of_no_use_is_rejected_at_its_beginning(
    it: Streams, monkeypatch: pytest.MonkeyPatch, how: str
) -> None:
    rejected = [SnapshotRejection(77)]
    if how == "in the middle":
        assert it.chunk(3) == rejected
    elif how == "older":
        it.raft.applied_index = 9
        assert it.chunk(0) == rejected
    elif how == "before the log":
        it.log.install(10, 3, Members((1, 2, 3)))
        assert it.chunk(0) == rejected
    elif how == "damaged":
        broken = Chunk(0, 0, b"no header", 1)
        it.streams.on_chunk(2, SnapshotChunk(3, 77, broken), 10.0)
        assert [message for _, message in it.sent] == rejected
    elif how == "no thread":
        monkeypatch.setattr(FakeJob, "room", False)
        assert it.chunk(0) == rejected
    else:
        assert it.chunk(0, term=2) == []  # who says so leads no more
    assert it.streams._receiving is None and not it.raft.recovering and it.log.installing is None


def test_all_jobs_are_stopped_and_waited_for_at_the_end(it: Streams, tmp_path: Path) -> None:
    sending = it.begin(2)
    it.raft.need(2, 3)
    it.step(10.0)
    it.reject(3, 10.1)
    it.chunk(0)
    future: Future[Any] = Future()
    it.raft.recovering = False
    it.streams.export(tmp_path / "file", future, threading.Event())
    assert StreamProgress("export", 0, 5, 0) in it.streams.progress()
    jobs: list[Any] = it.streams._jobs()
    assert len(jobs) == 4 and sending.job in jobs
    it.streams.close()
    assert all(job.done for job in jobs) and future.done() and not it.streams.busy
    assert it.streams.progress() == ()


@pytest.mark.parametrize("how", ["recovering", "needs_state"])
def test_one_that_waits_for_a_snapshot_itself_exports_nothing(it: Streams, tmp_path: Path, how: str) -> None:
    setattr(it.raft, how, True)
    future: Future[Any] = Future()
    it.streams.export(tmp_path / "file", future, threading.Event())
    assert "waiting for a snapshot itself" in str(future.exception(0)) and not it.machine.views


def test_an_export_ends_when_it_is_done_or_when_nobody_wants_it(it: Streams, tmp_path: Path) -> None:
    futures: list[Future[Any]] = [Future(), Future()]
    stops = [threading.Event(), threading.Event()]
    for future, stop in zip(futures, stops, strict=True):
        it.streams.export(tmp_path / "file", future, stop)
    first, second = it.streams._exporting
    first_job: Any = first.job
    first_job.done = True
    stops[1].set()
    it.step(10.0)
    assert [future.done() for future in futures] == [True, False]
    assert second.job.stopped.is_set() and it.streams._exporting == [second]


@pytest.mark.parametrize(
    ("error", "where"),
    [
        (StorageError("no room"), "view"),
        (ResourceError("no thread"), "thread"),
        (Corrupt("a bad block"), "view"),
    ],
)
def test_an_export_that_cannot_begin_is_told_and_leaves_nothing(
    it: Streams, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, error: Exception, where: str
) -> None:
    """Damage is no matter of this export alone: it is raised, and ends the replica."""

    def fail() -> FakeView:
        raise error

    if where == "view":
        it.machine.prepare_snapshot = fail  # type: ignore[method-assign]
    else:
        monkeypatch.setattr(FakeJob, "room", False)
    future: Future[Any] = Future()
    if isinstance(error, Corrupt):
        with pytest.raises(Corrupt):
            it.streams.export(tmp_path / "file", future, threading.Event())
        assert not future.done()
    else:
        it.streams.export(tmp_path / "file", future, threading.Event())
        assert isinstance(future.exception(0), type(error))
    assert all(view.closed for view in it.machine.views) and not it.streams.busy


class Saving(FakeMachine):
    """Writes three chunks of a byte each."""

    def save_snapshot(self, view: FakeView, writer: Writer, stopped: threading.Event) -> None:
        for _ in range(3):
            writer._send(DATA, b"x")
            writer.bytes += 1


@pytest.mark.parametrize("idle", [True, False])
def test_an_export_rests_after_each_chunk_while_entries_come_in(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, idle: bool
) -> None:
    """For as long as the chunk took, and no longer than a tenth of a second."""
    now, rests = [10.0], []
    monkeypatch.setattr(export.time, "monotonic", lambda: now[0])
    machine, view = Saving(), FakeView()
    future: Future[Any] = Future()

    class Rested(threading.Event):
        def wait(self, timeout: float | None = None) -> bool:
            rests.append(timeout)
            now[0] += timeout or 0
            return False

    class HereAndNow(FakeJob):
        """Does its work at once."""

        def __init__(self, name: str, work: Any, **options: Any) -> None:
            super().__init__(name, work, **options)
            self.stopped = Rested()
            self.value = work(self)

        def result(self) -> Any:
            return self.value

    def slow_put(self: Writer, kind: int, data: bytes) -> None:
        now[0] += 0.04 if kind != DATA else 0.4
        send(self, kind, data)

    send = Writer._send
    monkeypatch.setattr(Writer, "_send", slow_put)
    monkeypatch.setattr(export, "Job", HereAndNow)
    made = export.Export(
        tmp_path / "file",
        future,
        threading.Event(),
        make_header(5, 3, Members((1,))),
        machine,  # type: ignore[arg-type]
        view,  # type: ignore[arg-type]
        lambda: None,
        lambda: idle,
    )
    assert rests == ([] if idle else pytest.approx([0.04, REST, REST, REST, 0.04]))
    made.answer()
    assert future.result(0).index == 5 and view.closed
    assert made.bytes > 3


def test_an_export_that_fails_says_why_and_closes_its_view(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    view, future = FakeView(), Future[Any]()
    made = export.Export(
        tmp_path / "nowhere" / "file",
        future,
        threading.Event(),
        make_header(5, 3, Members((1,))),
        FakeMachine(),  # type: ignore[arg-type]
        view,  # type: ignore[arg-type]
        lambda: None,
        lambda: True,
    )
    made.job.join()
    made.answer()
    assert isinstance(future.exception(0), StorageError | ConfigurationError) and view.closed
