"""What a user of a session sees; and sessions on a cluster with threads."""

from __future__ import annotations

import threading
from collections.abc import Callable
from pathlib import Path

import pytest

from ondisk import Cluster, Node, Result, import_snapshot
from ondisk.diskkv import incr, put
from ondisk.errors import (
    CommandTooLarge,
    ConfigurationError,
    NoLeader,
    NotDone,
    OutcomeUnknown,
    Rejected,
    ReplicaStopped,
    SessionExpired,
    SessionExpiredNotDone,
    SessionExpiredUnknown,
    Timeout,
    Unfinished,
)
from ondisk.lab.experiments.naive import OneBatch
from ondisk.replica.replica import MAX_COMMAND_BYTES
from ondisk.sessions import OUTDATED, UNKNOWN_SESSION, close, once
from tests.session_client import WorldClient, crash_before_the_answer, settle
from tests.virtual import World


@pytest.fixture
def group(world: World, monkeypatch: pytest.MonkeyPatch) -> WorldClient:
    """A client of three replicas, one of which leads."""
    world.elect()
    return WorldClient(world, monkeypatch)


def test_a_new_command_is_refused_while_one_is_unfinished(group: WorldClient) -> None:
    """Whoever answers ``OutcomeUnknown`` by another ``incr`` is told, and does not count twice."""
    session = group.session()
    world = group.world
    leader = world.elect()
    world.network.isolate(leader.id)
    with pytest.raises(Timeout):
        session.incr("n", via=leader.id, timeout=0.5)
    for _ in range(2):
        with pytest.raises(Unfinished):
            session.incr("n", timeout=20)
        with pytest.raises(Timeout):
            session.resume(via=leader.id, timeout=0.5)
    with pytest.raises(OutcomeUnknown, match=r"no replica 9.*resume\(\)"):
        session.resume(via=9)
    assert session.resume(timeout=20) == Result(1)
    with pytest.raises(Rejected, match="no command"):
        session.resume()
    assert session.incr("n") == Result(2)
    assert settle(group) == {b"n": b"2"}


def test_what_was_never_proposed_is_not_done_and_need_not_be_resumed(group: WorldClient) -> None:
    """No leader until the deadline; the next command goes on, and the first one never happens."""
    session = group.session()
    world = group.world
    for member in world.first_members:
        world.network.isolate(member)
    world.run(5)
    with pytest.raises(NoLeader):
        session.incr("n", timeout=2)
    with pytest.raises(ConfigurationError):
        session.incr("n", via=9)
    before = world.now
    with pytest.raises(CommandTooLarge):
        session.propose(b"x" * MAX_COMMAND_BYTES)
    assert world.now == before, "what can never succeed was tried again"
    world.network.heal()
    assert session.incr("n", 10, timeout=20) == Result(10)
    numbers = [group.propose(once(session.id, number, b"")) for number in (3, 4)]
    assert numbers == [Result(error=OUTDATED), Result(10)], "a number was used for two commands"
    assert settle(group) == {b"n": b"10"}


def test_a_session_that_was_pushed_out_says_whether_the_command_may_have_happened(
    group: WorldClient, room_for: Callable[[int], None]
) -> None:
    """``NotDone`` for the first attempt; unknown if there was an earlier one, and then never again."""
    room_for(1)
    session = group.session()
    follower = crash_before_the_answer(group)
    with pytest.raises(OutcomeUnknown):
        session.incr("n", via=follower.id, timeout=0.1)
    other = group.session(timeout=20)
    with pytest.raises(SessionExpired) as unknown:
        session.resume(timeout=20)
    assert isinstance(unknown.value, SessionExpiredUnknown | OutcomeUnknown)
    assert not isinstance(unknown.value, NotDone)
    with pytest.raises(SessionExpired) as not_done:
        session.incr("n", timeout=20)
    assert isinstance(not_done.value, SessionExpiredNotDone) and isinstance(not_done.value, NotDone)
    assert other.incr("n") == Result(2)
    assert settle(group) == {b"n": b"2"}


def test_a_closed_session_is_forgotten_and_takes_no_command(group: WorldClient) -> None:
    """Closing twice does nothing, and so does closing what has expired."""
    with group.session() as session:
        assert session.put("k", "v") == Result()
        assert session.compare_and_set("k", "v", "w") == Result(True)
        assert session.delete("k") == Result(True)
        session.put("n", "x")
        with pytest.raises(Rejected, match="not a number"):
            session.incr("n")
        assert session.delete("n") == Result(True)
    session.close()
    with pytest.raises(SessionExpiredNotDone, match="closed"):
        session.put("k", "v")
    assert group.propose(once(session.id, 99, put("k", "v"))) == Result(error=UNKNOWN_SESSION)
    lost = group.session()
    group.propose(close(lost.id))
    lost.close()
    assert settle(group) == {}


def test_a_session_closed_with_an_unfinished_command_leaves_its_outcome_unknown(group: WorldClient) -> None:
    """Nothing can find out any more."""
    session = group.session()
    follower = crash_before_the_answer(group)
    with pytest.raises(OutcomeUnknown):
        session.incr("n", via=follower.id, timeout=0.1)
    session.close(timeout=20)
    with pytest.raises(SessionExpiredUnknown):
        session.resume()


def test_an_interrupted_call_can_be_resumed(group: WorldClient) -> None:
    """Ctrl-C says nothing about the command that was under way."""
    session = group.session()
    began = group.world.now

    def interrupt() -> None:
        if group.world.now > began + 0.006:
            raise KeyboardInterrupt

    group.each_tick = interrupt
    with pytest.raises(KeyboardInterrupt):
        session.incr("n")
    group.each_tick = lambda: None
    with pytest.raises(Unfinished):
        session.incr("n")
    assert session.resume() == Result(1)
    assert settle(group) == {b"n": b"1"}


# On a real cluster


def test_a_stream_of_calls_counts_exactly_while_leaders_crash(make_cluster: Callable[..., Cluster]) -> None:
    """Several clients, each with a session: the counter is the number of calls that were answered."""
    cluster = make_cluster()
    cluster.wait_for_leader()
    acknowledged: list[int] = []
    errors: list[BaseException] = []
    stop = threading.Event()

    def count() -> None:
        try:
            with cluster.session(timeout=20) as session:
                while not stop.is_set():
                    number = session.incr("n", timeout=60).value
                    assert isinstance(number, int)
                    acknowledged.append(number)
        except BaseException as error:
            errors.append(error)

    threads = [threading.Thread(target=count, name="ondisk-test") for _ in range(3)]
    for thread in threads:
        thread.start()
    try:
        for _ in range(3):
            enough = len(acknowledged) + 40
            while len(acknowledged) < enough and not errors:
                threads[0].join(0.005)
            leader = cluster.wait_for_leader()
            cluster.crash(leader)
            enough = len(acknowledged) + 20
            while len(acknowledged) < enough and not errors:
                threads[0].join(0.005)
            cluster.start(leader)
    finally:
        stop.set()
        for thread in threads:
            thread.join(90)
    assert not errors
    assert len(acknowledged) > 150
    assert sorted(acknowledged) == list(range(1, len(acknowledged) + 1))
    assert cluster.get("n", timeout=20) == b"%d" % len(acknowledged)


def test_an_exported_snapshot_brings_the_sessions_along(
    make_cluster: Callable[..., Cluster], tmp_path: Path
) -> None:
    """What the old group answered, the new one answers."""
    cluster = make_cluster()
    cluster.wait_for_leader()
    session = cluster.session()
    assert session.incr("n", via=2) == Result(1)
    cluster.export_snapshot(cluster.wait_for_leader(), tmp_path / "backup")
    cluster.close()
    import_snapshot(tmp_path / "backup", tmp_path / "new", members=[1])
    new = make_cluster("new", members=[1])
    new.wait_for_leader()
    assert new.propose(once(session.id, 1, incr("n"))) == Result(1)
    assert new.get("n") == b"1"


def test_a_node_offers_sessions_as_a_cluster_does(make_cluster: Callable[..., Cluster]) -> None:
    """And one session is used by one caller at a time."""
    cluster = make_cluster()
    cluster.wait_for_leader()
    node: Node = cluster._nodes[3]
    with node.session(timeout=20) as session:
        assert session.incr("n") == Result(1)
        assert session.incr("n", via=3) == Result(2)
        with session._turn, pytest.raises(Unfinished, match="another call"):
            session.incr("n", timeout=0.05)
    node.stop()
    with pytest.raises(ReplicaStopped):
        node.session(timeout=0.1)


def test_a_machine_without_sessions_says_so_and_is_asked_nothing(
    make_cluster: Callable[..., Cluster],
) -> None:
    """An envelope would be an odd command to it."""
    cluster = make_cluster(state_machine=OneBatch)
    cluster.wait_for_leader()
    cluster.incr("n")
    applied = cluster.status()[cluster.wait_for_leader()].applied_index
    with pytest.raises(ConfigurationError, match="OneBatch offers no sessions"):
        cluster.session()
    assert cluster.status()[cluster.wait_for_leader()].applied_index == applied
