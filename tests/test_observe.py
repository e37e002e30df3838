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
from ondisk.messages import (
    AppendEntries,
    AppendReply,
    AskReadIndex,
    Message,
    Outcome,
    Outcomes,
    Propose,
    ReadIndex,
    RequestVote,
    Vote,
)
from ondisk.network import Event
from ondisk.observe import (
    Recorder,
    Seen,
    View,
    capture,
    changes,
    describe,
    lags,
    wait_until_level,
    without_repeats,
)
from ondisk.raftlog import LogEntry
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
        (AppendReply(1, True, 17, 16, 0), "reply ok 17"),
        (AppendReply(1, False, 12, 16, 0), "reply no, try 12"),
        (RequestVote(3, 0, 0, pre=True), "pre_vote for term 3"),
        (RequestVote(3, 0, 0, pre=False), "request_vote for term 3"),
        (Vote(3, granted=True, pre=False), "vote yes in term 3"),
        (Propose(1, [b"a", b"b"]), "propose 2"),
        (Outcomes([Outcome(1, "applied", Result())]), "outcome: 1 of 1 done"),
        (AskReadIndex(1), "ask_read_index"),
        (ReadIndex(1, 17), "read_index 17"),
        (ReadIndex(1, None), "read_index: not leader"),
    ],
)
def test_a_message_is_described_without_its_payload(message: Message, label: str) -> None:
    """The label names what is carried; nothing as long as a command is kept."""
    seen = describe(event(message))
    assert seen.label == label
    assert len(repr(seen)) < 400


def test_repeated_heartbeats_are_left_out_and_news_is_kept() -> None:
    """A heartbeat that tells a new commit index, or asks for confirmation, is no repetition."""
    messages = [append(), append(7), append(commit=7), append(commit=7), append(commit=7, round=1), append(8)]
    events = [describe(event(message, number)) for number, message in enumerate(messages)]
    assert [seen.number for seen in without_repeats(events)] == [1, 2, 4, 5]


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
    """Entries to both followers, a reply, and the commit index, in this order; nothing before the mark."""
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
    assert (
        labels.index(entries) < labels.index(f"reply ok {index}") < labels.index(f"heartbeat, commit {index}")
    )


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
    """Milliseconds of the cluster's clock; nothing is behind when all is applied."""
    samples = [
        view(0.0, commit=5, applied=5),
        view(1.0, commit=6, applied=5),
        view(1.5, commit=8, applied=5),
        view(2.0, commit=8, applied=6),
        view(3.0, commit=8, applied=8),
    ]
    assert lags(samples, 2) == [(0, 0.0), (1, 0.0), (3, 500.0), (2, 500.0), (0, 0.0)]


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
    assert changes(before, after) == [
        "replica 2: follower -> failed, term 0: StorageError: disk full",
        "link 1->2 cut",
        "latency 200 ms",
        "network paused",
    ]
    assert changes(after, after) == []
    assert "link 1->2 healed" in changes(after, before)


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
