"""Events: what an operator reads afterwards is said, once, and cannot fill a disk."""

from __future__ import annotations

import logging
import re
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from ondisk import Cluster, Node, ReplicaStatus
from ondisk.events import MINUTE, MOST, SLOW_FSYNC, Events, WatchedDisk
from ondisk.net.memory import MemoryNetwork
from ondisk.snapshot.streaming import StreamProgress
from tests.waiting import wait_until

Said = Callable[..., list[dict[str, Any]]]


@pytest.fixture
def said(caplog: pytest.LogCaptureFixture) -> Said:
    """What was said so far under these names, or all of it: the fields, and the name as ``event``."""
    caplog.set_level(logging.INFO, "ondisk.events")

    def said(*names: str) -> list[dict[str, Any]]:
        records = [vars(record) for record in caplog.records if hasattr(record, "event")]
        return [
            {"event": record["event"], **record["fields"]}
            for record in records
            if not names or record["event"] in names
        ]

    return said


class Clock:
    now = 0.0

    def __call__(self) -> float:
        return self.now


def test_what_happens_to_a_group_is_told_by_each_of_its_replicas(tmp_path: Path, said: Said) -> None:
    """Start, election, a lost leader and the next one, members, a snapshot, compaction, the end."""
    with Cluster(tmp_path) as cluster:
        leader = cluster.wait_for_leader()
        cluster.put("k", "v")
        cluster.crash(leader)
        following = cluster.wait_for_leader()
        cluster.put("k", "w")
        cluster.start(leader)
        wait_until(lambda: cluster.compact(following) > 2)
        cluster.add_replica(4)
    started = said("replica_started")
    assert sorted(each["replica"] for each in started) == sorted([1, 2, 3, 4, leader])
    others = {1, 2, 3} - {leader}
    assert {each["replica"] for each in said("leader_lost") if each["leader"] == leader} == others
    found = [each for each in said("leader_found") if each["leader"] == following]
    assert {each["replica"] for each in found} >= others
    assert all(re.fullmatch(r"\d+\.\d{3}s", each["after"]) for each in found)
    assert {"event": "members_changed", "replica": 4, "voters": "1,2,3,4"} in said("members_changed")
    assert [each for each in said("snapshot_began") if each["kind"] == "to" and each["peer"] == 4]
    assert said("snapshot_ended") and said("log_compacted") and said("election_started")
    assert {each["replica"] for each in said("replica_stopped")} == {1, 2, 3, 4}
    assert {each["peer"] for each in said("peer_connected")} == {1, 2, 3, 4}


def test_a_line_is_a_name_and_its_fields(caplog: pytest.LogCaptureFixture) -> None:
    """As text for a person, and on the record for a program."""
    caplog.set_level(logging.INFO, "ondisk.events")
    Events(2).say("leader_found", leader=1, term=5, error="")
    (record,) = caplog.records
    assert record.getMessage() == "leader_found replica=2 leader=1 term=5"
    assert vars(record)["fields"] == {"replica": 2, "leader": 1, "term": 5}


def test_what_repeats_is_left_out_and_counted(said: Said) -> None:
    """Of each name so many in a minute; others are not kept out."""
    clock = Clock()
    events = Events(1, clock=clock)
    for _ in range(MOST + 7):
        events.say("peer_lost", peer=2)
    events.say("leader_lost", leader=2)
    assert len(said("peer_lost")) == MOST and len(said("leader_lost")) == 1
    clock.now += MINUTE
    events.say("peer_lost", peer=3)
    assert said("peer_lost")[-1] == {"event": "peer_lost", "replica": 1, "peer": 3, "left_out_before": 7}


def test_nothing_is_said_where_nothing_has_changed(said: Said) -> None:
    """Indexes and bytes move all the time."""
    events = Events(1)
    stream = StreamProgress("to", 3, 1000, 5)
    events.look(ReplicaStatus(1, "leader", 2, 1, last_index=5, voters=(1, 2), streams=(stream,)), {2})
    before = len(said())
    moved = StreamProgress("to", 3, 1000, 99)
    events.look(ReplicaStatus(1, "leader", 2, 1, last_index=9, voters=(1, 2), streams=(moved,)), {2})
    assert len(said()) == before > 0


def test_a_failed_replica_says_why(said: Said) -> None:
    """Once, and not that it has lost its leader, too."""
    events = Events(1)
    events.look(ReplicaStatus(1, "leader", 2, 1), set())
    events.look(ReplicaStatus(1, "failed", 2, None, error="OSError: no space"), set())
    assert said("replica_failed") == [{"event": "replica_failed", "replica": 1, "error": "OSError: no space"}]
    assert said("leader_lost") == []


def test_a_slow_fsync_is_told(said: Said, monkeypatch: pytest.MonkeyPatch) -> None:
    """And a quick one is not."""
    clock = Clock()
    monkeypatch.setattr("ondisk.events.time.monotonic", clock)
    disk = WatchedDisk(Events(1))

    def takes(seconds: float) -> None:
        clock.now += seconds

    for seconds in (SLOW_FSYNC / 2, SLOW_FSYNC * 2):
        disk.sync(partial(takes, seconds))
    assert said() == [{"event": "slow_fsync", "replica": 1, "seconds": f"{SLOW_FSYNC * 2:.3f}"}]


def test_a_node_watches_its_disk(tmp_path: Path, said: Said, monkeypatch: pytest.MonkeyPatch) -> None:
    """Unless it was given one of somebody else's, such as a test's."""
    monkeypatch.setattr("ondisk.events.SLOW_FSYNC", 0.0)
    with Node(1, [1], tmp_path, MemoryNetwork()) as node:
        node.wait_for_leader()
    assert said("slow_fsync")


def test_every_event_is_in_the_manual() -> None:
    """And none that is not there any more."""
    root = Path(__file__).parents[1]
    source = (root / "ondisk" / "events.py").read_text()
    names = set(re.findall(r'\.say\("(\w+)"', source)) | {
        f"replica_{role}" for role in ("stopped", "failed", "removed")
    }
    manual = (root / "docs" / "operating.md").read_text()
    table = manual.partition("## What the log tells")[2].partition("\n## ")[0]
    assert set(re.findall(r"^\| `(\w+)`", table, re.MULTILINE)) == names
