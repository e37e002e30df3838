"""The panel's picture as plain data: what it says of logs, values, disks, elections and messages."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from ondisk import Cluster, ReplicaStatus, diskkv
from ondisk.lab.browser import LivingPicture
from ondisk.lab.pictures.living import CELLS, living_picture
from ondisk.observe import Contents, Lag, Looker, Note, Recorder, Seen, SeenEntry, View, wait_until_level
from ondisk.storage.store import Sizes
from tests.waiting import wait_until

STATUSES = {
    1: ReplicaStatus(1, "leader", 4, 1, 17, 17, 16, 16, 12, 3),
    2: ReplicaStatus(2, "follower", 4, 1, 17, 16, 15, 14, 14, 3),
    3: ReplicaStatus(3, "stopped", 3, None, 15, 15, 10, 8, 8, 3, first_index=15),
}
ENTRIES = tuple(SeenEntry(index, 4, f"put n = {index}", (b"n",)) for index in range(12, 18))
CONTENTS = {
    1: Contents(ENTRIES, (("n", "16"),), Sizes(1200, 7, 1, 34_000), applied_index=16),
    2: Contents(ENTRIES, (("n", "14"),), Sizes(0, 0, 2, 4_000_000), applied_index=14),
    3: Contents(ENTRIES[:4], (("n", None),), Sizes(10, 1, 0, 0), applied_index=8),
}
MESSAGE = Seen(7, 1.0, "sent", 1, 2, "append_entries", "append_entries 17..17", 17, 17, 16)
VIEW = View(1.1, STATUSES, 1, latency=0.2, in_flight=(MESSAGE,), contents=CONTENTS)


def replica(view: View, replica_id: int) -> Any:
    return next(each for each in living_picture(view)["replicas"] if each["id"] == replica_id)


def test_the_picture_is_plain_data() -> None:
    """It comes back from JSON as it was, so that a browser gets the same."""
    plain = living_picture(VIEW, notes=[Note(1.0, "replica 3: follower -> stopped, term 3")])
    assert json.loads(json.dumps(plain)) == plain
    assert plain["notes"] == ["replica 3: follower -> stopped, term 3"]
    assert "Replica 3: stopped" in plain["words"]


def test_the_cards_show_the_same_places_of_their_logs() -> None:
    """An entry, or the word why there is none; how far it has come here, in words and as marks."""
    rows = {each["id"]: each["cells"] for each in living_picture(VIEW)["replicas"]}
    assert [cell["index"] for cell in rows[1]] == list(range(13, 18)) == [cell["index"] for cell in rows[3]]
    assert [cell["text"] for cell in rows[3]] == [
        "compacted",
        "compacted",
        "put n = 15",
        "not here",
        "not here",
    ]
    newest = rows[2][-1]
    assert (newest["durable"], newest["committed"], newest["applied"]) == (False, False, False)
    assert newest["words"] == "Entry 17, term 4: put n = 17. Here it is not durable yet."
    assert rows[1][0]["words"].endswith("Here it is durable, committed, applied.")


def test_a_short_log_begins_with_its_first_entry() -> None:
    """There is no entry 0, and as many rows as there will be."""
    empty = View(0.0, {1: ReplicaStatus(1, "follower", 1)}, None)
    assert [cell["index"] for cell in replica(empty, 1)["cells"]] == list(range(1, CELLS + 1))


def test_under_load_a_value_is_old_only_after_a_moment() -> None:
    """Some milliseconds behind, in every other picture, would flicker."""
    for behind, old in ((20.0, False), (900.0, True)):
        lags = {1: Lag(0, 0.0), 2: Lag(2, behind), 3: Lag(8, 5_000.0)}
        values = {each["id"]: each["values"] for each in living_picture(VIEW, lags=lags)["replicas"]}
        assert [values[i][0]["old"] for i in (1, 2, 3)] == [False, old, True]


def test_who_asks_before_it_stands_says_how_many_would_vote_for_it() -> None:
    asks = {**CONTENTS, 2: CONTENTS[2]._replace(prevotes=frozenset({2}))}
    assert replica(replace(VIEW, contents=asks), 2)["note"] == "pre-votes: 1 of 2"


def test_a_value_says_whether_it_is_old() -> None:
    """The newest is what the state says that has applied most."""
    assert replica(VIEW, 1)["values"][0]["old"] is False
    [value] = replica(VIEW, 2)["values"]
    assert (value["key"], value["value"], value["old"]) == ("n", "14", True)
    assert replica(VIEW, 3)["values"] == [
        {
            "key": "n",
            "value": "no such key",
            "old": True,
            "words": "In the state of replica 3, n is missing: that is old.",
        }
    ]


def test_what_a_stopped_replica_did_unseen_is_not_made_up() -> None:
    """Its state went on after it was looked at: no value rather than a wrong one."""
    contents = {**CONTENTS, 3: CONTENTS[3]._replace(applied_index=7)}
    assert replica(replace(VIEW, contents=contents), 3)["values"] == []


def test_the_parts_of_rocksdb_say_what_is_synced() -> None:
    wal, memtable, tables = replica(VIEW, 1)["disk"]
    assert (wal["name"], memtable["name"], tables["name"]) == ("WAL 1 kB", "memtable 7", "1 table 34 kB")
    assert not wal["whole"]
    assert "4 entries are not synced yet" in wal["words"]
    assert replica(VIEW, 2)["disk"][0]["whole"]
    assert replica(VIEW, 2)["disk"][2]["name"] == "2 tables 4 MB"


def test_a_candidate_says_how_many_votes_it_has() -> None:
    status = STATUSES[2]._replace(role="candidate", voters=(1, 2, 3))
    contents = {2: CONTENTS[2]._replace(votes=frozenset({2}), election_at=1.5)}
    found = replica(View(1.1, {2: status}, None, contents=contents), 2)
    assert found["note"] == "has 1 of 2 votes that it needs"
    assert found["electionAt"] == 1.5


@pytest.mark.parametrize(
    ("changed", "not_now"),
    [
        ({}, {"start", "reconnect"}),
        ({"cut": frozenset({(1, 2), (2, 1), (1, 3), (3, 1)})}, {"start", "cut_off"}),
        ({"stalled": frozenset({(1, 2), (2, 1), (1, 3), (3, 1)})}, {"start", "stall"}),
        (
            {"statuses": {**STATUSES, 1: STATUSES[3]._replace(id=1)}},
            {"stop", "crash", "compact", "reconnect"},
        ),
    ],
)
def test_what_cannot_be_done_now_says_why(changed: dict[str, Any], not_now: set[str]) -> None:
    actions = replica(replace(VIEW, **changed), 1)["actions"]
    assert {action["do"] for action in actions if action["not"]} == not_now


def test_a_link_says_how_it_is() -> None:
    cut = replace(VIEW, cut=frozenset({(1, 2)}), stalled=frozenset({(2, 1)}))
    links = {(each["from"], each["to"]): each for each in living_picture(cut)["links"]}
    assert [links[pair]["word"] for pair in ((1, 2), (2, 1), (1, 3))] == ["cut", "stalled", "down"]
    assert {each["do"] for each in links[1, 2]["actions"] if not each["not"]} == {"stall", "heal"}


def test_messages_have_a_departure_and_an_arrival() -> None:
    """Those under way arrive a latency later; of those that came and went it is known."""
    gone = MESSAGE._replace(number=6, time=0.9, receiver=3)
    events = [gone, gone._replace(kind="lost", time=0.95), MESSAGE]
    first, second = living_picture(VIEW, events=events)["flights"]
    assert (first["n"], first["sent"], first["due"], first["lost"], first["done"]) == (
        6,
        0.9,
        0.95,
        True,
        True,
    )
    assert (second["n"], second["sent"], second["due"], second["done"]) == (7, 1.0, 1.2, False)


def test_a_picture_of_the_past_says_so_and_stands_still() -> None:
    plain = living_picture(VIEW, recorded="Recorded 3 s ago.", rate=0.0)
    assert plain["rate"] == 0
    assert living_picture(VIEW)["rate"] == 1
    assert living_picture(replace(VIEW, paused=True))["rate"] == 0
    assert plain["words"].startswith("Recorded 3 s ago. Cluster of 3 replicas")


def test_nothing_is_sent_when_only_the_time_has_changed() -> None:
    picture = LivingPicture()
    try:
        sent: list[object] = []
        picture.observe(lambda change: sent.append(change["new"]["time"]), "state")
        for time in (1.1, 1.2, 1.3):
            picture.show(living_picture(replace(VIEW, time=time)))
        picture.show(living_picture(replace(VIEW, time=1.4, latency=0.3)))
        assert sent == [1.1, 1.4]
    finally:
        picture.layout.close()
        picture.close()


def test_only_what_looks_like_an_action_is_heard() -> None:
    """Anything may come from a browser."""
    picture = LivingPicture()
    heard: list[tuple[str, Any]] = []
    try:
        picture.on_act(lambda do, on: heard.append((do, on)))
        for content in ({"do": "stop", "on": 3}, {"do": 5}, "stop", None, {}):
            picture._handle_custom_msg(content, [])
        assert heard == [("stop", 3)]
    finally:
        picture.layout.close()
        picture.close()


# What is looked at


COMMANDS = {
    diskkv.put("k", "v"): "put k = v",
    diskkv.put("k", "v" * 100): f"put k = {'v' * 60}… (100 bytes)",
    diskkv.delete("<b>"): "delete <b>",
    diskkv.incr("n", -2): "incr n by -2",
    diskkv.compare_and_set("k", "v", "w"): "cas k = w",
    diskkv.put_many([("a", "1"), ("b", "2")]): "put 2 keys",
    b"of another machine": "18 bytes",
}


def test_a_looker_reads_logs_and_states_and_remembers_the_stopped(tmp_path: Path) -> None:
    """Commands in words, the newest keys with their values; what stops is shown as it was last."""
    with Cluster(tmp_path) as cluster:
        looker = Looker(cluster)

        def look() -> dict[int, Contents]:
            return looker.look(cluster.status(), cluster.network.clock())

        for command, words in COMMANDS.items():
            cluster.propose(command)
            assert look()[cluster.wait_for_leader()].entries[-1].words == words
        cluster.put("k", "newest")
        wait_until_level(cluster)
        for found in look().values():
            assert dict(found.values) == {"k": "newest", "a": "1", "b": "2"}
            assert found.sizes is not None
            assert found.sizes.memtable
        looker.key = "n"
        assert look()[1].values[0] == ("n", "-2")
        cluster.stop(3)
        cluster.put("k", "newer")
        after = look()
        assert dict(after[3].values)["k"] == "newest"
        assert after[3].entries[-1].words == "put k = newest"
        assert dict(after[cluster.wait_for_leader()].values)["k"] == "newer"


def test_a_state_is_asked_only_after_it_has_changed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """So watching a cluster that rests costs nothing."""
    with Cluster(tmp_path) as cluster:
        cluster.put("k", "v")
        wait_until_level(cluster)
        looker = Looker(cluster)
        asked: list[object] = []
        ask: Callable[..., Any] = Looker._ask

        def count(*arguments: Any) -> Any:
            asked.append(arguments)
            return ask(*arguments)

        monkeypatch.setattr(Looker, "_ask", count)
        for _ in range(3):
            looker.look(cluster.status(), 0.0)
        assert 3 <= len(asked) <= 6  # once each, or again for what was synced meanwhile


def test_a_follower_that_hears_no_leader_shows_when_it_calls_for_an_election(tmp_path: Path) -> None:
    """While it hears one nothing is shown, or the picture would change with each heartbeat."""
    with Cluster(tmp_path) as cluster:
        leader = cluster.wait_for_leader()
        follower = next(each for each in cluster.members if each != leader)
        with Recorder(cluster, looker=Looker(cluster)) as recorder:
            wait_until(lambda: cluster.status()[follower].leader_id == leader)
            wait_until(lambda: recorder.sample().contents[follower].election_at is None)
            cluster.network.isolate(follower)
            wait_until(lambda: recorder.sample().contents[follower].election_at is not None)
            seen = next(view for view in recorder.samples if view.contents[follower].election_at is not None)
            assert seen.time < seen.contents[follower].election_at < seen.time + 0.7
            assert seen.contents[leader].election_at is None
            wait_until(lambda: recorder.sample().contents[follower].prevotes == {follower})
