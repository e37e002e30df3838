"""The experiments and exercises of notebook 5."""

from __future__ import annotations

import itertools
import time
from collections.abc import Callable

import pytest

from ondisk import Cluster, NoLeader, OutcomeUnknown, Rejected
from ondisk.lab import (
    Clients,
    RecordingClient,
    fail_the_leader,
    judge,
    lease_on_a_slow_clock,
    measure_reads,
    show_outages,
    show_reads,
    stall,
    undo_faults,
    what_contradicts,
)
from ondisk.lab.exercises.chapter_05 import PUTS, may_answer
from ondisk.lab.exercises.check import check
from ondisk.linearizability.history import History, Operation
from ondisk.observe import wait_until_level
from ondisk.raft import Timing

MakeCluster = Callable[..., Cluster]


def op(name: str, *args: str, call: float, end: float | None, result: object = None) -> Operation:
    return Operation("Ann", name, "k", args, call, end, result)


# Clients


def test_a_recording_client_writes_down_what_may_have_happened(make_cluster: MakeCluster) -> None:
    """Answers with their values; nothing of what was refused; an open end if nobody knows."""
    cluster = make_cluster()
    leader = cluster.wait_for_leader()
    history = History()
    client = RecordingClient(cluster, history, "me", via=leader)
    client.put("k", "7")
    assert client.incr("k", 2) == 9
    assert client.get("k") == client.stale_get("k") == b"9"
    client.put("word", "w")
    with pytest.raises(Rejected):
        client.incr("word")
    for other in set(cluster.members) - {leader}:
        stall(cluster, other)
    with pytest.raises(OutcomeUnknown):
        client.put("k", "late", timeout=0.2)
    with pytest.raises(NoLeader):
        client.get("k", timeout=0.2)
    assert [(each.name, each.args, each.end is None, each.result) for each in history.operations] == [
        ("put", ("7",), False, None),
        ("incr", (2,), False, 9),
        ("get", (), False, "9"),
        ("get", (), False, "9"),
        ("put", ("w",), False, None),
        ("put", ("late",), True, None),
    ]


@pytest.mark.slow
@pytest.mark.parametrize("stale", [False, True])
def test_only_stale_reads_through_a_replica_that_is_cut_off_contradict(
    make_cluster: MakeCluster, stale: bool
) -> None:
    """Three clients, each through its replica; the same fault for both kinds of reads."""
    cluster = make_cluster()
    leader = cluster.wait_for_leader()
    follower = next(i for i in cluster.members if i != leader)
    wait_until_level(cluster)
    with Clients(cluster, stale=stale) as clients:
        deadline = time.monotonic() + 30

        def wait_for(count: int) -> None:
            """Until each of the other two clients has seen so many answers more."""
            seen = len(clients.history.operations) + count
            while len(clients.history.operations) < seen:
                assert time.monotonic() < deadline
                time.sleep(0.01)

        wait_for(6)
        cluster.network.isolate(follower)
        wait_for(30)
        cluster.network.reconnect(follower)
        wait_for(6)
    judged = judge(clients.history.operations)
    assert judged.verdict.linearizable == (not stale), judged.words
    puts = [each.args for each in clients.history.operations if each.name == "put"]
    assert len(set(puts)) == len(puts), "no two clients put the same"
    assert {each.client for each in clients.history.operations} == {
        f"via replica {replica_id}" for replica_id in cluster.members
    }


@pytest.mark.slow
def test_no_failure_of_a_leader_loses_what_was_acknowledged(make_cluster: MakeCluster) -> None:
    """Whoever was asked meanwhile is told the truth, and the others take over."""
    cluster = make_cluster()
    cluster.wait_for_leader()
    outages = [fail_the_leader(cluster, fault) for fault in ("crash", "stall", "cut off")]
    assert all(each.before and each.after and each.seconds < 10 for each in outages)
    assert [each.said for each in outages] == ["not done", "outcome unknown", "outcome unknown"]
    assert not outages[0].late
    shown = show_outages(outages)
    assert shown.html.count("<tr>") == 4
    assert "leader: cut off, a put through it: outcome unknown" in shown.words
    with pytest.raises(ValueError, match="no such fault"):
        fail_the_leader(cluster, "flood")
    undo_faults(cluster)


# Exercises


def test_5_1_is_decided_by_the_checker() -> None:
    """What has been answered in the exercise cannot be None or e; and feedback gives nothing away."""
    right = {value for value in ("a", "b", "c", "d", "e", None) if may_answer(value)}
    assert right == {"a", "b", "c", "d"}
    assert len(PUTS) == 5
    assert check("5.1", right).right
    assert check("5.1", ["d", "c", "b", "a"]).right
    assert "not these alone" in check("5.1", {"a", "b"}).text
    assert "not these alone" not in check("5.1", set()).text and not check("5.1", set()).right
    assert "'e' contradicts" in check("5.1", right | {"e"}).text
    assert "None contradicts" in check("5.1", right | {None}).text
    assert "Nobody put 'z'" in check("5.1", {"z"}).text
    assert "Give all of them" in check("5.1", "abcd").text


BLUE, GREEN = op("put", "blue", call=0, end=1), op("put", "green", call=2, end=3)


@pytest.mark.parametrize(
    ("answer", "said"),
    [
        ([BLUE, GREEN, op("get", call=4, end=5, result="blue")], "Right."),
        ([tuple(BLUE), tuple(GREEN), tuple(op("get", call=4, end=5, result="blue"))], "Right."),
        ([BLUE, GREEN], "These are 2 operations"),
        ([BLUE, GREEN, op("get", call=4, end=5, result="green")], "It is linearizable: put blue"),
        ([BLUE, GREEN, op("get", call=4, end=5, result="red")], "these alone contradict each other"),
        ([BLUE, GREEN._replace(key="other"), BLUE], "different keys"),
        ([op("put", "a", call=0, end=None)] * 3, "none of them need have happened"),
        (["put", "put", "get"], "TypeError"),
        ([BLUE, GREEN, op("fetch", call=4, end=5)], "BadHistory"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_5_2_wants_three_that_need_each_other(answer: object, said: str) -> None:
    """And says which of them suffice."""
    assert said in check("5.2", answer).text


def explains(order: list[Operation]) -> bool:
    if any(later.end < earlier.call for earlier, later in itertools.combinations(order, 2)):  # type: ignore[operator]
        return False
    return answers_fit(order)


def answers_fit(order: list[Operation]) -> bool:
    value = None
    for each in order:
        if each.name == "put":
            (value,) = each.args
        elif each.result != value:
            return False
    return True


WRONG = {
    "always": lambda order: True,
    "never": lambda order: False,
    "only the answers": answers_fit,
    "only who comes first": lambda order: all(
        later.end >= earlier.call for earlier, later in itertools.combinations(order, 2)
    ),
    "neighbours only": lambda order: (
        answers_fit(order) and all(later.end >= earlier.call for earlier, later in itertools.pairwise(order))
    ),
    "no overlap": lambda order: (
        answers_fit(order)
        and all(earlier.end <= later.call for earlier, later in itertools.combinations(order, 2))
    ),
    "touching is after": lambda order: (
        answers_fit(order)
        and all(later.end > earlier.call for earlier, later in itertools.combinations(order, 2))
    ),
    "sorted by call": lambda order: answers_fit(order) and order == sorted(order, key=lambda each: each.call),
    "nothing": lambda order: None,
    "an error": lambda order: order[99],
}


def test_5_3_accepts_the_definition() -> None:
    """However it is written."""
    assert check("5.3", explains).right


@pytest.mark.parametrize("wrong", WRONG)
def test_5_3_notices_half_of_the_definition(wrong: str) -> None:
    """With an order as an example."""
    feedback = check("5.3", WRONG[wrong])
    assert not feedback.right
    assert "Does this order explain them?" in feedback.text or wrong in ("nothing", "an error")


def test_5_4_wants_a_contradiction() -> None:
    """Of what was read."""
    stale = op("get", call=4, end=5, result="blue")
    assert check("5.4", (BLUE, GREEN, stale)).right
    assert "Nothing was asked" in check("5.4", ()).text
    assert "Nobody has read" in check("5.4", (BLUE, GREEN)).text
    assert "all 2 operations" in check("5.4", (BLUE, stale)).text


# Leases


def test_a_read_by_lease_saves_a_round_trip_and_its_cost_is_shown(make_cluster: MakeCluster) -> None:
    cluster = make_cluster(timing=Timing(clock_drift=0.25))
    costs = measure_reads(cluster, latency=0.05, gets=5)
    took = {(each.through, each.lease): each.seconds for each in costs}
    assert took["the leader", False] > took["the leader", True] + 0.05
    assert took["a follower", False] > took["a follower", True] + 0.05
    assert "a get through the leader, answered by the leader's lease, takes" in show_reads(costs).words


def test_only_a_clock_beyond_the_bound_makes_a_read_stale_and_three_operations_show_it() -> None:
    for rate, rule in ((1, None), (0.9, None), (0.4, "linearizability")):
        report = lease_on_a_slow_clock(rate)
        assert report.rule == rule
        few = what_contradicts(report.history)
        assert bool(few) == (rule is not None)
    assert len(few) < 6 and few[-1].name == "get" and not judge(list(few)).verdict.linearizable
