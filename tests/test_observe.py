"""What can be watched, and that watching costs and keeps little."""

from __future__ import annotations

import dataclasses
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from ondisk import Cluster, ReplicaStatus, Result
from ondisk.net.memory import Event
from ondisk.observe import (
    STEP,
    Commits,
    Lag,
    LagRecorder,
    Reading,
    Recorder,
    Seen,
    View,
    capture,
    changes,
    describe,
    wait_until_level,
    without_repeats,
)
from ondisk.observe.lag import _worse
from ondisk.raft.messages import (
    AppendEntries,
    AppendEntriesRejection,
    AppendEntriesResponse,
    Message,
    NewerTerm,
    Outcome,
    Outcomes,
    Propose,
    ReadIndexRejection,
    ReadIndexRequest,
    ReadIndexResponse,
    RequestVote,
    RequestVoteResponse,
    SnapshotNeeded,
)
from ondisk.raft.records import LogEntry
from tests.waiting import wait_until


@pytest.fixture
def cluster(tmp_path: Path) -> Iterator[Cluster]:
    with Cluster(tmp_path / "data") as cluster:
        cluster.wait_for_leader()
        yield cluster


def event(message: Message, number: int = 1, kind: str = "sent", pair: tuple[int, int] = (1, 2)) -> Event:
    return Event(number, float(number), kind, *pair, message)


def append(*entries: int, commit: int = 0, round: int = 0, term: int = 1) -> AppendEntries:
    content = [LogEntry(index, term, b"x" * 1000) for index in entries]
    return AppendEntries(term, 0, 0, content, commit, round)


def view(time: float = 0.0, **applied_and_commit: Any) -> View:
    """A made-up view of replicas 1 (the leader) and 2."""
    commit, applied = applied_and_commit.get("commit", 0), applied_and_commit.get("applied", 0)
    return View(
        time,
        {
            1: ReplicaStatus(1, "leader", 1, 1, commit_index=commit, applied_index=commit),
            2: ReplicaStatus(2, "follower", 1, 1, commit_index=applied, applied_index=applied),
        },
        1,
    )


@pytest.mark.parametrize(
    ("message", "label"),
    [
        (append(17), "append_entries 17..17"),
        (append(17, 18, 19), "append_entries 17..19"),
        (append(commit=4), "heartbeat, commit 4"),
        (AppendEntriesResponse(1, 17, 16, 0), "response ok 17"),
        (AppendEntriesRejection(1, 12, 16, 0), "rejection, try 12"),
        (SnapshotNeeded(1, 0), "snapshot needed"),
        (NewerTerm(4), "it is term 4"),
        (RequestVote(3, 0, 0, pre=True), "pre_vote for term 3"),
        (RequestVote(3, 0, 0, pre=False), "request_vote for term 3"),
        (RequestVoteResponse(3, pre=False), "vote yes in term 3"),
        (Propose(1, [b"a", b"b"]), "propose 2"),
        (Outcomes([Outcome(1, "applied", Result())]), "outcome: 1 of 1 done"),
        (ReadIndexRequest(1), "read_index_request"),
        (ReadIndexResponse(1, 17), "read_index_response 17"),
        (ReadIndexRejection(1), "read_index_rejection"),
    ],
)
def test_a_message_is_described_without_its_payload(message: Message, label: str) -> None:
    """The label names what is carried; nothing as long as a command is kept."""
    seen = describe(event(message))
    assert seen.label == label
    assert len(repr(seen)) < 400


def test_repeated_heartbeats_are_left_out_and_news_is_kept() -> None:
    """A heartbeat that tells a new commit index, or asks for confirmation, is no repetition."""
    messages = [append(), append(7), append(commit=7), append(commit=7), append(commit=7), append(8)]
    events = [describe(event(message, number)) for number, message in enumerate(messages)]
    events[4] = events[4]._replace(time=3.01)  # before its time: somebody wants to read
    assert [seen.number for seen in without_repeats(events)] == [1, 2, 4, 5]


def test_an_answer_that_says_something_else_than_the_one_before_is_news() -> None:
    """Also if it names the same index."""
    equal, rejected = AppendEntriesResponse(1, 7, 7, 0), AppendEntriesRejection(1, 7, 9, 0)
    messages = [equal, equal, rejected, equal, equal]
    events = [describe(event(message, number)) for number, message in enumerate(messages)]
    assert [seen.number for seen in without_repeats(events)] == [2, 3]


def test_the_delivery_of_a_message_that_is_left_out_is_left_out_too() -> None:
    """So is a delivery whose sending is no longer on record."""
    heartbeat = append()
    events = [event(heartbeat), event(heartbeat, kind="delivered"), event(append(1), 99, "delivered")]
    assert without_repeats(map(describe, events)) == []


def test_a_view_shows_what_was_done_to_the_cluster(cluster: Cluster) -> None:
    """Cut links, latency, pause, and the messages under way."""
    leader = cluster.wait_for_leader()
    other = next(i for i in cluster.members if i != leader)
    cluster.network.cut((leader, other))
    cluster.network.set_latency(0.25)
    cluster.network.pause()
    future = cluster.put_async("k", "v")
    wait_until(lambda: capture(cluster).in_flight)
    seen = capture(cluster)
    assert seen.cut == {(leader, other)}
    assert (seen.latency, seen.paused, seen.leader_id) == (0.25, True, leader)
    assert set(seen.statuses) == {1, 2, 3}
    with pytest.raises(dataclasses.FrozenInstanceError):
        seen.paused = False  # type: ignore[misc]
    cluster.network.heal()
    cluster.network.resume()
    future.result(10)


def test_a_record_keeps_the_newest_and_forgets_the_rest(cluster: Cluster) -> None:
    """Every queue is bounded."""
    with Recorder(cluster, samples=3, messages=5, notes=2) as recorder:
        for number in range(20):
            cluster.put("k", str(number))
            cluster.network.set_latency(0.0001 * (number % 2))
            recorder.sample()
        assert len(recorder.samples) == 3
        assert len(recorder.messages(heartbeats=True)) <= 5
        assert len(recorder.view().notes) == 2


def test_a_record_can_be_closed_twice_and_read_afterwards(cluster: Cluster) -> None:
    """Closing ends the thread and the observation."""
    recorder = Recorder(cluster)
    recorder.mark()
    cluster.put("k", "v")
    wait_until_level(cluster)
    recorder.close()
    recorder.close()
    assert "ondisk-recorder" not in {thread.name for thread in threading.enumerate()}
    labels = [seen.label for seen in recorder.messages()]
    assert any(label.startswith("append_entries") for label in labels)
    cluster.put("k", "w")
    assert [seen.label for seen in recorder.messages()] == labels


def test_the_messages_of_one_put_tell_its_whole_path(cluster: Cluster) -> None:
    """Entries to both followers, a response, and the commit index, in this order; nothing before the mark."""
    wait_until_level(cluster)
    with Recorder(cluster) as recorder:
        cluster.put("k", "v")
        wait_until_level(cluster)
        recorder.mark()
        cluster.put("k", "w")
        wait_until_level(cluster)
        sent = [seen for seen in recorder.messages() if seen.kind == "sent"]
    index = cluster.status()[cluster.wait_for_leader()].last_index
    labels = [seen.label for seen in sent]
    entries = f"append_entries {index}..{index}"
    assert labels.count(entries) == 2
    response, commit = f"response ok {index}", f"heartbeat, commit {index}"
    assert labels.index(entries) < labels.index(response) < labels.index(commit)


@pytest.mark.parametrize("look", ["mark", "sample"])
def test_what_was_sent_before_is_taken_in_by_a_mark_and_by_a_sample(cluster: Cluster, look: str) -> None:
    """So a mark hides it, although nobody has looked for long; and with each sample its payload is gone."""
    events = cluster.network.observe()
    with Recorder(cluster, every=3600) as recorder:
        cluster.put("k", "v")
        before = events[-1].number
        getattr(recorder, look)()
        assert all(event.number > before for event in list(recorder._events))
        if look == "mark":
            cluster.put("k", "w")
            assert all(seen.number > before for seen in recorder.messages(heartbeats=True))
        assert recorder.messages(heartbeats=True)


def test_the_messages_of_a_request_are_not_pushed_out_by_heartbeats(cluster: Cluster) -> None:
    """They can be looked at long after, although heartbeats never end."""
    with Recorder(cluster, messages=30) as recorder:
        cluster.put("k", "v")
        wait_until_level(cluster)
        recorder.mark()
        cluster.put("k", "w")
        wait_until(lambda: all(seen.empty for seen in recorder.messages(heartbeats=True)))
        assert any(seen.name == "append_entries" for seen in recorder.messages())


def test_lag_counts_entries_and_the_time_since_the_first_missing_one_was_committed() -> None:
    """Milliseconds of the cluster's clock; nothing is behind when all is applied, or more than was seen."""
    commits = Commits()
    found = []
    for time, commit, applied in [
        (0.0, 5, 5),
        (1.0, 6, 5),
        (1.5, 8, 5),
        (2.0, 8, 6),
        (3.0, 8, 8),
        (4.0, 8, 9),
    ]:
        commits.see(commit, time)
        found.append(commits.lag(applied, time))
    assert found == [(0, 0.0), (1, 0.0), (3, 500.0), (2, 500.0), (0, 0.0), (0, 0.0)]


def test_what_was_committed_is_remembered_long_enough_and_not_for_ever() -> None:
    """The newest moments are exact; a lag from before the record counts from where the record begins."""
    commits = Commits(keep=10)
    for index in range(1, 1000):
        commits.see(index, float(index))
    assert commits.lag(990, 1000.0) == (9, 9000.0)
    assert len(commits._indices) < 20
    entries, milliseconds = commits.lag(0, 1000.0)
    assert entries == 999
    assert 10_000 <= milliseconds < 20_000


def test_a_stalled_follower_falls_behind_in_entries_and_in_time_and_catches_up(cluster: Cluster) -> None:
    """The readings show all of it: level, behind, further behind, level."""
    follower = next(i for i in cluster.members if i != cluster.wait_for_leader())
    links = [pair for i in cluster.members if i != follower for pair in ((i, follower), (follower, i))]
    wait_until_level(cluster)
    with LagRecorder(cluster, every=0.002) as recorder:
        recorder.read()
        cluster.network.stall(*links)
        recorder.note("stalled")
        for number in range(5):
            cluster.put("k", str(number))
        wait_until(lambda: recorder.read().lags[follower].milliseconds > 50)
        cluster.network.heal()
        wait_until(lambda: recorder.read().lags[follower] == (0, 0.0))
        readings, notes = recorder.readings, recorder.notes
    lags = [reading.lags[follower] for reading in readings]
    assert lags[0] == (0, 0.0)
    assert max(lag.entries for lag in lags) == 5
    assert [note.text for note in notes] == ["stalled"]
    assert [reading.time for reading in readings] == sorted(reading.time for reading in readings)
    behind = [(r.time, r.lags[follower].milliseconds) for r in readings if r.lags[follower].entries == 5]
    (began, first), (ended, last) = behind[0], behind[-1]
    assert last - first == pytest.approx((ended - began) * 1000)  # time passes: 1,000 ms per second


def test_the_data_of_a_replica_is_as_old_as_its_lag_says(cluster: Cluster) -> None:
    """A stale read answers what the leader would have answered so many milliseconds ago."""
    follower = next(i for i in cluster.members if i != cluster.wait_for_leader())
    wait_until_level(cluster)
    clock = cluster.network.clock
    with LagRecorder(cluster, every=0.001) as recorder:
        cluster.network.isolate(follower)
        committed: list[tuple[float, bytes | None]] = []  # when a value was replaced, and which
        for number in range(3):
            old = cluster.get("k")
            cluster.put("k", str(number))
            committed.append((clock(), old))
            recorder.read()
        reading = recorder.read()
    replaced_at, old = committed[0]
    assert cluster.stale_get("k", via=follower) == old
    since = reading.time - reading.lags[follower].milliseconds / 1000
    assert since <= committed[1][0]
    assert abs(since - replaced_at) < 0.5


def test_readings_are_bounded_and_begin_anew_on_request(cluster: Cluster) -> None:
    """Only the newest are kept; what came before ``begin`` is shown by ``worst`` alone."""
    with LagRecorder(cluster, every=3600, keep=5) as recorder:
        for _ in range(9):
            recorder.read()
        assert len(recorder.readings) == 5
        recorder.note("old")
        recorder.begin()
        recorder.note("new")
        assert recorder.readings == []
        assert recorder.gaps == (0.0, 0.0)
        assert recorder.worst(3600)
        assert recorder.worst(0) == []
        assert [note.text for note in recorder.notes] == ["new"]
        kept = [recorder.read() for _ in range(3)]
        assert recorder.readings == kept
        times = [reading.time for reading in kept]
        gaps = sorted((times[1] - times[0], times[2] - times[1]))
        assert recorder.gaps == (gaps[1], gaps[1])
    recorder.close()


def test_a_peak_that_lasted_one_reading_shows_in_the_short_record() -> None:
    """One point for each step, with the worst of each replica; the time is the newest one's."""
    one = Reading(1.0, 9, {1: 9, 2: 5}, {1: Lag(0, 0.0), 2: Lag(4, 50.0)})
    newer = Reading(1.1, 9, {1: 8, 2: 9, 3: 9}, {1: Lag(1, 2.0), 2: Lag(0, 0.0), 3: Lag(0, 0.0)})
    worse = _worse(one, newer)
    assert worse.time == 1.1
    assert worse.lags == {1: (1, 2.0), 2: (4, 50.0), 3: (0, 0.0)}


def test_the_short_record_has_one_reading_for_each_step(cluster: Cluster) -> None:
    """However often somebody looks."""
    with LagRecorder(cluster, every=3600) as recorder:
        wait_until(
            lambda: recorder.read() and len(recorder.worst(3600)) >= 4
        )  # a busy machine leaves some out
        short = recorder.worst(3600)
        assert len(recorder.readings) > len(short)
    steps = [int(reading.time / STEP) for reading in short]
    assert len(set(steps)) == len(steps)


def test_messages_that_are_held_are_described_once(cluster: Cluster) -> None:
    """However long a link holds them: thousands of views share what they say."""
    leader = cluster.wait_for_leader()
    follower = next(i for i in cluster.members if i != leader)
    cluster.network.stall((leader, follower))
    with Recorder(cluster) as recorder:
        cluster.put("k", "v")
        wait_until(lambda: recorder.sample().in_flight)
        first = recorder.sample().in_flight[0]
        cluster.put("k", "w")
        assert recorder.sample().in_flight[0] is first
    cluster.network.heal()


def test_a_replica_that_is_cut_off_falls_behind_and_catches_up(cluster: Cluster) -> None:
    """Live: three puts it cannot hear of are three entries of lag."""
    follower = next(i for i in cluster.members if i != cluster.wait_for_leader())
    with Recorder(cluster, every=0.01) as recorder:
        wait_until_level(cluster)
        cluster.network.isolate(follower)
        for number in range(3):
            cluster.put("k", str(number))
        wait_until_level(cluster, set(cluster.members) - {follower})
        assert recorder.lag()[follower].entries == 3
        wait_until(lambda: recorder.lag()[follower].milliseconds > 20)
        cluster.network.reconnect(follower)
        wait_until_level(cluster)
        assert recorder.lag()[follower] == (0, 0.0)


def test_changes_are_said_in_words() -> None:
    """Roles, failures with their reason, links, latency, pause."""
    before = view()
    failed = ReplicaStatus(2, "failed", error="StorageError: disk full")
    after = dataclasses.replace(
        before,
        statuses={1: before.statuses[1], 2: failed},
        cut=frozenset({(1, 2)}),
        latency=0.2,
        paused=True,
    )
    assert [note.text for note in changes(before, after)] == [
        "replica 2: follower -> failed, term 0: StorageError: disk full",
        "link 1->2 cut",
        "latency 200 ms",
        "network paused",
    ]
    assert changes(after, after) == []
    assert "link 1->2 healed" in [note.text for note in changes(after, before)]
    assert [note.kind for note in changes(before, after)] == ["replica", "link", "", ""]


def test_waiting_for_a_replica_that_is_cut_off_ends_at_the_deadline(cluster: Cluster) -> None:
    """The error says what was waited for."""
    follower = next(i for i in cluster.members if i != cluster.wait_for_leader())
    cluster.network.isolate(follower)
    cluster.put("k", "v")
    with pytest.raises(TimeoutError, match="whole log"):
        wait_until_level(cluster, [follower], timeout=0.2)


def test_observing_needs_no_notebook() -> None:
    """Neither ipywidgets nor matplotlib nor IPython is imported."""
    program = (
        "import sys, ondisk.observe; "
        "assert not {'ipywidgets', 'matplotlib', 'IPython', 'ondisk.lab'} & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", program], check=True, timeout=60)


def test_what_is_seen_of_a_message_is_numbers_and_words_only(cluster: Cluster) -> None:
    """However large the commands, a record stays small."""
    with Recorder(cluster) as recorder:
        cluster.put("k", "v" * 1_000_000)
        seen: list[Seen] = recorder.messages(heartbeats=True)
    assert seen
    assert all(isinstance(field, int | float | str) and len(str(field)) < 80 for one in seen for field in one)
