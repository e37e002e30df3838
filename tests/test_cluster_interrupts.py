"""A cluster whose stop or close is interrupted, or ended by a callback."""

from __future__ import annotations

import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from ondisk import (
    Cluster,
    Node,
    NotDone,
    OutcomeUnknown,
    Rejected,
    ReplicaStopped,
    Result,
)
from ondisk.errors import ResourceError
from ondisk.interrupts.shielded import CallerGone
from ondisk.net.memory import MemoryNetwork
from ondisk.raft.log import RaftLog
from ondisk.storage.disk import Disk
from tests.waiting import wait_until


class Slow(Disk):
    """A disk whose next syncs wait until they may go on."""

    def __init__(self) -> None:
        self.go_on = threading.Event()
        self.go_on.set()
        self.waiting = threading.Event()

    def sync(self, flush: Callable[[], None]) -> None:
        if not self.go_on.is_set():
            self.waiting.set()
            assert self.go_on.wait(20)
        flush()


def test_a_replica_whose_stop_was_interrupted_can_be_started_and_stopped(tmp_path: Path) -> None:
    """Ctrl-C while it waits for the thread, which ends a moment later."""
    disk = Slow()
    with Cluster(tmp_path, members=[1], disks={1: disk}) as cluster:
        cluster.put("k", "v", timeout=10)
        disk.go_on.clear()
        future = cluster.put_async("k", "w", timeout=20)
        assert disk.waiting.wait(10)
        node = cluster._nodes[1]
        assert node._stepper is not None
        thread = node._stepper.thread

        def interrupted(timeout: float | None = None) -> None:
            raise KeyboardInterrupt

        thread.join = interrupted  # type: ignore[method-assign]
        with pytest.raises(KeyboardInterrupt):
            cluster.stop(1)
        del thread.join  # type: ignore[method-assign]
        disk.go_on.set()
        wait_until(lambda: not thread.is_alive())
        cluster.start(1)
        assert cluster.put("after", "v", timeout=10) == Result()
        assert future.exception(0) is None or isinstance(future.exception(0), OutcomeUnknown)


def test_a_close_that_was_interrupted_goes_on_at_the_next_call(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whatever was still open then is closed, so that the directory can be opened again."""
    cluster = Cluster(tmp_path, members=[1])
    cluster.put("k", "v", timeout=10)

    close, interrupts = RaftLog.close, [KeyboardInterrupt]

    def interrupted(log: RaftLog) -> None:
        if interrupts:
            raise interrupts.pop()
        close(log)

    monkeypatch.setattr(RaftLog, "close", interrupted)
    with pytest.raises(KeyboardInterrupt):
        cluster.close()
    cluster.close()
    cluster.close()
    with Cluster(tmp_path, members=[1]) as again:
        assert again.get("k", timeout=10) == b"v"


def test_a_node_that_gets_no_thread_is_stopped_and_can_be_started_later(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Too many threads: an error, and nothing is open."""
    node = Node(1, [1], tmp_path, MemoryNetwork())

    def refused(thread: threading.Thread) -> None:
        raise RuntimeError("can't start new thread")

    with monkeypatch.context() as patch:
        patch.setattr(threading.Thread, "start", refused)
        with pytest.raises(ResourceError, match="no thread"):
            node.start()
    assert node.status.role == "stopped"
    node.stop()
    node.start()
    node.put("k", "v", timeout=10)
    node.stop()


def test_a_callback_that_asks_again_while_its_replica_stops_is_answered(cluster: Cluster) -> None:
    """It is called by whoever stops the replica, and so is what it asks for."""
    leader = cluster.wait_for_leader()
    cluster.network.isolate(leader)
    node, again = cluster._nodes[leader], []
    replica = node._running_replica()
    future = node.put_async("k", "v", timeout=60)
    future.add_done_callback(lambda _: again.append(replica.propose(b"x", 1e9)))
    future.add_done_callback(lambda _: again.append(_error_of(node.start)))
    stopping = threading.Thread(target=node.crash, daemon=True)
    stopping.start()
    stopping.join(20)
    assert not stopping.is_alive()
    assert isinstance(again[0].exception(0), ReplicaStopped)
    assert isinstance(again[1], RuntimeError)
    node.start()


def _error_of(call: Callable[[], object]) -> BaseException | None:
    try:
        call()
    except RuntimeError as error:
        return error
    return None


@pytest.mark.filterwarnings("ignore::pytest.PytestUnhandledThreadExceptionWarning")  # that is what it does
def test_a_callback_that_ends_its_replica_leaves_nobody_unanswered(cluster: Cluster) -> None:
    """``SystemExit`` in a callback is none of the errors that futures swallow."""

    def leave(_: object) -> None:
        raise SystemExit

    leader = cluster.wait_for_leader()
    first = cluster.put_async("first", "v", via=leader)
    first.add_done_callback(leave)
    others = [cluster.put_async(f"k{number}", "v", via=leader) for number in range(20)]
    for future in others:
        error = future.exception(10)
        assert error is None or isinstance(error, OutcomeUnknown | NotDone)


@pytest.mark.parametrize("when", ["before", "after"])
@pytest.mark.parametrize("call", ["start", "rebuild", "add_replica"])
def test_what_another_thread_closes_stays_closed(
    make_cluster: Callable[..., Cluster], monkeypatch: pytest.MonkeyPatch, call: str, when: str
) -> None:
    """Whoever is about to start a replica in that moment leaves none behind, and does not wait for it."""
    cluster = make_cluster()
    cluster.put("k", "v", timeout=10)
    cluster.stop(3)
    start = Node.start

    def start_and_close(node: Node) -> None:
        for todo in (cluster.close, lambda: start(node))[:: 1 if when == "before" else -1]:
            todo()

    with monkeypatch.context() as patch:
        patch.setattr(Node, "start", start_and_close)
        with pytest.raises(ReplicaStopped):
            getattr(cluster, call)(4 if call == "add_replica" else 3)
    assert not any(status.running for status in cluster.status().values())
    with pytest.raises(ReplicaStopped, match="closed: open it again"):
        cluster.start(1)
    assert make_cluster().get("k", timeout=10) == b"v"


def test_an_addition_that_was_not_begun_leaves_no_directory(
    make_cluster: Callable[..., Cluster], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """Or the next ``Cluster`` would take it for a replica, which nobody knows."""
    cluster = make_cluster()
    cluster.wait_for_leader()
    start = Node.start

    def interrupted(node: Node) -> None:
        start(node)
        node.stop()
        raise CallerGone

    with monkeypatch.context() as patch:
        patch.setattr(Node, "start", interrupted)
        with pytest.raises(CallerGone):
            cluster.add_replica(4)
    cluster.close()
    assert make_cluster().members == (1, 2, 3)
    assert not (tmp_path / "data" / "replica-4").exists()


def test_a_rebuild_begins_when_the_one_before_has_ended(
    cluster: Cluster, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One that was interrupted goes on for a moment: it would stop what the next one has started."""
    begun, go_on, said = threading.Event(), threading.Event(), list[str]()
    erase, check = Node.erase, Node.check_reaches

    def slow_erase(node: Node, group: bytes = b"") -> None:
        begun.set()
        assert go_on.wait(20)
        erase(node, group)
        said.append("erased")

    def told_check(node: Node, *arguments: Any, **options: Any) -> None:
        said.append("asked")
        check(node, *arguments, **options)

    monkeypatch.setattr(Node, "erase", slow_erase)
    monkeypatch.setattr(Node, "check_reaches", told_check)
    with ThreadPoolExecutor(2) as pool:
        first = pool.submit(cluster.rebuild, 3)
        assert begun.wait(20)
        with pytest.raises(Rejected, match="by somebody else"):
            cluster.rebuild(3, timeout=0.01)
        second = pool.submit(cluster.rebuild, 3)
        go_on.set()
        first.result(20), second.result(20)
    assert said == ["asked", "erased"] * 2
