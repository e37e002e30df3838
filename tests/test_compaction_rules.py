"""When the log is compacted, and how far: the rules alone, over a log and a Raft that note what is done."""

from __future__ import annotations

import pytest

from ondisk.replica import compaction
from ondisk.replica.compaction import Compaction
from ondisk.storage.disk import Disk

OPENED = 40


class FakeLog:
    base_index, bytes_since_compaction = 30, 0
    start = 1000

    def __init__(self, did: list[object]) -> None:
        self.did = did

    def start_of_last(self, entries: int, max_bytes: int) -> int:
        assert (entries, max_bytes) == (1_000, 4 << 20)
        return self.start

    def compact(self, index: int) -> None:
        self.did.append(("compact", index))
        self.base_index = index

    def sync(self) -> None:
        self.did.append("log synced")


class FakeRaft:
    recovering = needs_state = is_leader = False
    applied_index = 50
    slowest = 1000

    def __init__(self, log: FakeLog) -> None:
        self.log, self.leader = log, self

    def slowest_match(self, patience: int) -> int:
        assert patience == 40_000
        return self.slowest


class It:
    """A compaction, and what it did in which order."""

    def __init__(self) -> None:
        self.did: list[object] = []
        self.sent: int | None = None
        self.log = FakeLog(self.did)
        self.raft = FakeRaft(self.log)
        did = self.did

        class Machine:
            def sync(self) -> None:
                did.append("state synced")

        class Reached(Disk):
            def reach(self, point: str) -> None:
                did.append(point)

        self.it = Compaction(
            self.raft,  # type: ignore[arg-type]
            Machine(),  # type: ignore[arg-type]
            Reached(),
            opened_index=OPENED,
            oldest_index_sent=lambda: self.sent,
            now=100.0,
        )

    def compact(self, shown: int, *, keep: bool = False) -> object:
        """What was done when the state machine had seen so much."""
        self.did.clear()
        self.it.machine_index = shown
        return self.it.compact(keep=keep)


def test_the_state_is_synced_each_second_if_anything_was_applied() -> None:
    it = It()
    it.it.step(100.75)
    it.it.step(100.9375)
    assert it.did == [] and it.it.due_at == 101.0
    it.it.step(101.0)
    assert it.did == ["state synced"] and it.it.synced_index == 50 and it.it.due_at == 102.0
    it.it.step(103.0)
    assert it.did == ["state synced"] and it.it.due_at == 104.0  # nothing new
    it.raft.applied_index = 51
    it.it.step(104.0)
    assert it.did == ["state synced"] * 2 and it.it.synced_index == 51


@pytest.mark.parametrize("how", ["recovering", "needs_state"])
def test_a_state_that_is_not_there_is_neither_synced_nor_relied_upon(how: str) -> None:
    it = It()
    setattr(it.raft, how, True)
    it.it.step(101.0)
    assert it.did == [] and it.it.due_at == 102.0 and it.it.synced_index == OPENED
    assert it.compact(50) == 30 and it.did == []


@pytest.mark.parametrize(
    ("entries", "size", "compacts"),
    [(10_000, 64 << 20, False), (10_001, 0, True), (0, (64 << 20) + 1, True), (0, 0, False)],
)
def test_a_log_is_compacted_when_it_has_too_many_entries_or_bytes(
    entries: int, size: int, compacts: bool
) -> None:
    it = It()
    it.raft.applied_index = it.it.machine_index = it.log.base_index + entries
    it.log.bytes_since_compaction = size
    it.log.start = 35
    it.it.step(101.0)
    assert (("compact", 34) in it.did) is (compacts and entries > 4)


def test_the_state_is_durable_before_the_log_forgets_and_that_is_durable_before_it_is_done() -> None:
    it = It()
    assert it.compact(45) == 45
    assert it.did == [
        "state synced",
        "compact: state synced",
        ("compact", 45),
        "log synced",
        "compact: recorded",
    ]
    assert it.compact(45) == 45 and it.did == ["compact: state synced"]  # nothing to do
    assert it.compact(44) == 45 and it.did == ["compact: state synced"]  # nor backwards
    assert it.compact(46) == 46 and ("compact", 46) in it.did


def test_the_log_keeps_what_somebody_still_needs() -> None:
    def compacted(shown: int, **changes: object) -> object:
        it = It()
        it.log.start = changes.pop("start", 1000)  # type: ignore[assignment]
        it.sent = changes.pop("sent", None)  # type: ignore[assignment]
        keep = bool(changes.pop("keep", False))
        for name, value in changes.items():
            setattr(it.raft, name, value)
        return it.compact(shown, keep=keep)

    assert compacted(50) == 50
    assert compacted(50, start=40, keep=True) == 39
    assert compacted(50, start=40) == 50  # whoever asks for it, wants all of it gone
    assert compacted(50, start=60, keep=True) == 50
    assert compacted(50, slowest=42, is_leader=True) == 42
    assert compacted(50, slowest=42) == 50  # a follower feeds nobody
    assert compacted(50, slowest=60, is_leader=True) == 50
    assert compacted(50, sent=44) == 44 and compacted(50, sent=60) == 50 and compacted(50, sent=0) == 30
    assert compacted(50, sent=44, slowest=43, is_leader=True, start=46, keep=True) == 43


def test_what_a_snapshot_brought_is_durable() -> None:
    it = It()
    it.it.on_installed(50)
    assert (it.it.synced_index, it.it.machine_index) == (50, 50)
    it.it.step(101.0)
    assert it.did == []


def test_the_newest_entries_that_stay_are_fewer_than_those_that_are_compacted() -> None:
    assert compaction._KEEP_ENTRIES < compaction._COMPACT_AFTER_ENTRIES
    assert compaction._KEEP_BYTES < compaction._COMPACT_AFTER_BYTES
