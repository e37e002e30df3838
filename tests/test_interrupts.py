"""An interrupt at any bytecode of a public call leaves no lock taken, no directory held, no thread stuck."""

from __future__ import annotations

import asyncio
import concurrent.futures
import itertools
import os
import random
import shutil
import signal
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from queue import SimpleQueue
from typing import Any

import pytest

from ondisk import BulkLoad, Cluster, Corrupt, OndiskError
from ondisk.client import wait_for
from ondisk.errors import NoLeader, ReplicaStopped
from ondisk.inspect import inspect
from ondisk.interrupts.futures import Future
from ondisk.interrupts.shielded import CallerGone, Turn, shielded, still_wanted
from ondisk.observe import wait_until_level
from tests.interrupts import (
    DEADLINE,
    Button,
    Interrupted,
    another_thread,
    bytecodes,
    interrupt_at,
)
from tests.lengths import short_and_long
from tests.waiting import wait_until

SAID = "ONDISK_INTERRUPTS" in os.environ  # so many of each call, also of those that stop and start something
TIMES = short_and_long(20, int(os.environ.get("ONDISK_INTERRUPTS", "100")))
SEED = int(os.environ.get("ONDISK_INTERRUPTS_SEED", "8"))

# In the callback of a weak reference Python reports an exception and goes on: what stays is a dead reference.
pytestmark = pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")


class Subject:
    """A cluster under interrupts, and which of its writes were acknowledged."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.cluster = Cluster(path / "data")
        self.cluster.put("a", "1")
        wait_until_level(self.cluster)
        self.numbers = itertools.count()
        self.acknowledged: set[str] = set()
        self.load: BulkLoad | None = None

    def put(self) -> None:
        key = f"put {next(self.numbers)}"
        self.cluster.put(key, "x")
        self.acknowledged.add(key)

    def put_async(self) -> None:
        key = f"async {next(self.numbers)}"
        self.cluster.put_async(key, "x").result(10)
        self.acknowledged.add(key)

    def many(self) -> None:
        keys = [f"many {next(self.numbers)}" for _ in range(3)]
        futures = [self.cluster.put_async(key, "x") for key in keys]
        assert not concurrent.futures.wait(futures, 10).not_done
        self.acknowledged.update(keys)

    def as_completed(self) -> None:
        keys = [f"as completed {next(self.numbers)}" for _ in range(3)]
        futures = [self.cluster.put_async(key, "x") for key in keys]
        assert len(list(concurrent.futures.as_completed(futures, 10))) == 3
        self.acknowledged.update(keys)

    def cancelled(self) -> None:
        future = self.cluster.put_async("cancelled", "x")
        if not future.cancel():
            future.result(10)

    def get_async(self) -> None:
        assert self.cluster.get_async("a").result(10) == b"1"

    def put_many(self) -> None:
        new = [f"put many {next(self.numbers)}" for _ in range(20)]
        assert self.cluster.put_many(((key, "x") for key in new), timeout=10) == 20
        self.acknowledged.update(new)

    def bulk_load(self) -> None:
        """In several commands; a load that was interrupted goes on with the next call."""
        if self.load is None:
            self.new = [f"load {next(self.numbers)}" for _ in range(20)]
            self.load = self.cluster.bulk_load([(key, "x") for key in self.new], batch_bytes=50, timeout=10)
        assert self.load.run() == 20
        self.acknowledged.update(self.new)
        self.load = None

    def asked_again(self) -> None:
        key = f"session {next(self.numbers)}"
        with self.cluster.session() as session:
            session.put(key, "x")
            self.acknowledged.add(key)

    def other_writes(self) -> None:
        self.cluster.incr("number")
        self.cluster.delete("number")
        self.cluster.compare_and_set("a", "1", "1")

    def reads(self) -> None:
        for via in (1, 2, 3):
            assert self.cluster.get("a", via=via) == b"1"

    def stale_reads(self) -> None:
        for via in (1, 2, 3):
            assert self.cluster.stale_get("a", via=via) == b"1"

    def scan(self) -> None:
        self.cluster.scan(limit=3)

    def look(self) -> None:
        self.cluster.status()
        self.cluster.wait_for_leader()
        network = self.cluster.network
        network.in_flight(), network.cut_links(), network.stalled_links()

    def faults(self) -> None:
        network = self.cluster.network
        network.observe()
        network.isolate(1)
        network.stall((2, 3))
        network.pause()
        network.step_one_message()
        network.resume()
        network.partition({1, 2}, {3})
        network.heal()

    def compact(self) -> None:
        self.cluster.compact(self.cluster.wait_for_leader())

    def export(self) -> None:
        self.cluster.export_snapshot(1, self.path / "exported")

    def transfer(self) -> None:
        leader = self.cluster.wait_for_leader()
        with suppress(OndiskError):  # it may not take over in time, on a busy machine
            self.cluster.transfer_leadership(leader % 3 + 1)

    def restart(self) -> None:
        self.cluster.stop(3)
        self.cluster.start(3)

    def crash(self) -> None:
        self.cluster.crash(2)
        self.cluster.start(2)

    def rebuild(self) -> None:
        with suppress(OndiskError):  # the one before may go on, if that was interrupted
            self.cluster.rebuild(3)

    def move(self) -> None:
        self.cluster.move_replica(3, f"three:{1 + next(self.numbers)}")

    def replace(self) -> None:
        with suppress(OndiskError):
            self.cluster.replace_replica(3)
        with suppress(OndiskError):
            self.cluster.rebuild(3)

    def add_and_remove(self) -> None:
        fresh = 4 + next(self.numbers)
        self.cluster.add_replica(fresh)
        self.cluster.remove_replica(fresh)

    def reopen(self) -> None:
        self.cluster.close()
        self.cluster = Cluster(self.path / "data")

    def repair(self) -> None:
        """What whoever pressed the button does next: run the cell again."""
        self.cluster.network.resume()
        self.cluster.network.heal()
        for member in (1, 2, 3):
            try:
                self.cluster.start(member)
            except Corrupt:  # it was taken for lost, and told so
                pass
            except ReplicaStopped:  # the cluster is closed
                self.cluster = Cluster(self.path / "data")
        for member in self.cluster.members[3:]:
            self.cluster.remove_replica(member, timeout=DEADLINE)

    def check(self) -> None:
        for via in self.cluster.members:
            assert self.cluster.get("a", via=via, timeout=DEADLINE) == b"1"


@pytest.fixture
def subject(tmp_path: Path) -> Iterator[Subject]:
    """Closed at the end within the deadline, and opened again: every acknowledged write is there."""
    subject = Subject(tmp_path)
    yield subject
    with another_thread() as do:
        do(subject.cluster.close)
        for folder in (tmp_path / "data").iterdir():  # of whom was removed: hundreds take their time to open
            if int(folder.name.removeprefix("replica-")) not in subject.cluster.members:
                shutil.rmtree(folder)
        with do(lambda: Cluster(tmp_path / "data")) as again:
            assert do(lambda: keys(again)) >= subject.acknowledged


def keys(cluster: Cluster) -> set[str]:
    found: set[str] = set()
    start = b""
    while pairs := cluster.scan(start=start, limit=10_000, timeout=DEADLINE):
        found.update(key.decode() for key, _ in pairs)
        start = pairs[-1][0] + b"\0"
    return found


DATA = [
    Subject.put,
    Subject.put_async,
    Subject.many,
    Subject.as_completed,
    Subject.cancelled,
    Subject.get_async,
    Subject.put_many,
    Subject.bulk_load,
    Subject.asked_again,
    Subject.other_writes,
    Subject.reads,
    Subject.stale_reads,
    Subject.scan,
    Subject.look,
    Subject.compact,
    Subject.export,
]
CONTROL = [
    Subject.faults,
    Subject.transfer,
    Subject.restart,
    Subject.crash,
    Subject.rebuild,
    Subject.replace,
    Subject.move,
    Subject.add_and_remove,
    Subject.reopen,
]


def name(call: Any) -> str:
    return str(call.__name__)


@pytest.mark.parametrize("call", [*DATA, *CONTROL], ids=name)
@pytest.mark.parametrize("times", TIMES)
def test_an_interrupt_before_any_bytecode_holds_nobody_up(
    subject: Subject, call: Callable[[Subject], None], times: int
) -> None:
    """Raised where a signal handler would raise, in the package and in the library below it."""
    total = bytecodes(lambda: call(subject))
    subject.repair()
    few = times if call in DATA or SAID else max(6, times // 8)
    chosen = sorted(random.Random(SEED).sample(range(1, total + 1), min(total, few)))
    with another_thread() as do:
        for number in chosen:
            interrupt_at(lambda: call(subject), number)
            if call not in DATA:
                do(subject.repair)
            if call in (Subject.rebuild, Subject.replace):
                do(lambda: subject.cluster.rebuild(3, timeout=DEADLINE))
            do(subject.check)
        subject.put()


@pytest.mark.parametrize("call", [*DATA, *CONTROL], ids=name)
@pytest.mark.parametrize("times", TIMES)
def test_an_interrupt_at_a_random_moment_holds_nobody_up(
    subject: Subject, call: Callable[[Subject], None], times: int
) -> None:
    """A real signal, seeded."""
    began = time.perf_counter()
    call(subject)
    seconds = 1.2 * (time.perf_counter() - began)
    few = times if call in DATA or SAID else max(6, times // 8)
    hits = 0

    def again_and_again() -> None:
        while call in DATA:
            call(subject)
        call(subject)

    with another_thread() as do, Button(SEED) as button:
        for tried in range(10 * few):  # one that was slow once and is fast now is met seldom
            if tried >= few and hits:
                break
            hits += button.during(again_and_again, min(max(seconds, 0.005), 0.5))
            if call not in DATA:
                do(subject.repair)
            if call in (Subject.rebuild, Subject.replace):
                do(lambda: subject.cluster.rebuild(3, timeout=DEADLINE))
            do(subject.check)
        subject.put()
    assert hits


@pytest.mark.parametrize("times", TIMES)
def test_an_interrupted_opening_can_be_repeated_at_once(tmp_path: Path, times: int) -> None:
    """At no moment does it leave the directory to nobody."""
    Cluster(tmp_path / "data").close()
    began = time.perf_counter()
    Cluster(tmp_path / "data").close()
    seconds = time.perf_counter() - began
    with Button(seed=2) as button:
        for _ in range(max(10, times // 6)):
            button.during(lambda: Cluster(tmp_path / "data").close(), seconds)
            Cluster(tmp_path / "data").close()
    Cluster(tmp_path / "data").close()


def test_an_interrupted_export_leaves_no_file(subject: Subject) -> None:
    """Not even a part of one, unless it was done just then; and the next export succeeds."""
    with Button(seed=3) as button:
        path = subject.path / "interrupted"
        while not button.during(lambda: subject.cluster.export_snapshot(1, path), 0.005):
            path.unlink()
        wait_until(lambda: not subject.cluster.status()[1].streams)
        if path.exists():
            assert inspect(path).damage == []
            path.unlink()
        assert not list(subject.path.glob("interrupted*"))
    subject.export()


def test_who_is_interrupted_need_not_wait_for_the_end() -> None:
    """A second interrupt ends the waiting, and the work goes on without."""
    begun, go_on, ended = threading.Event(), threading.Event(), threading.Event()
    pressed: SimpleQueue[None] = SimpleQueue()

    @shielded
    def work() -> None:
        begun.set()
        go_on.wait(DEADLINE)
        try:
            still_wanted()
        except CallerGone:
            ended.set()
            raise

    def press_twice() -> None:
        begun.wait(DEADLINE)
        for _ in range(2):
            os.kill(os.getpid(), signal.SIGUSR2)
            pressed.get(timeout=DEADLINE)

    def handle(*_: object) -> None:
        pressed.put(None)
        raise Interrupted

    before = signal.signal(signal.SIGUSR2, handle)
    thread = threading.Thread(target=press_twice)
    thread.start()
    try:
        with pytest.raises(Interrupted):
            work()
        assert not ended.is_set()
    finally:
        signal.signal(signal.SIGUSR2, before)
        thread.join(DEADLINE)
    go_on.set()
    assert ended.wait(DEADLINE)


def test_a_shielded_function_returns_and_raises_as_it_would_unshielded() -> None:
    """From the main thread and from any other one."""

    @shielded
    def divide(a: int, b: int) -> tuple[float, str]:
        return a / b, threading.current_thread().name

    assert divide(1, b=2)[0] == 0.5
    assert divide(1, 2)[1] != threading.current_thread().name
    with pytest.raises(ZeroDivisionError):
        divide(1, 0)
    with another_thread() as do:
        assert do(lambda: divide(1, 2)) == (0.5, "another")


def test_a_turn_that_an_interrupt_tore_out_goes_to_the_next_one() -> None:
    """At whatever bytecode, also while the exception and its frames are kept."""
    turn = Turn()
    inside = 0

    def hold() -> None:
        nonlocal inside
        with turn:
            inside += 1

    with another_thread() as do:
        for number in range(1, bytecodes(hold) + 1):
            interrupt_at(hold, number)
            do(hold)
    assert inside > 10


def test_only_one_at_a_time_has_the_turn() -> None:
    """Four threads count up together, a bytecode from each other, and none is lost."""
    turn, count = Turn(), 0

    def add() -> None:
        nonlocal count
        for _ in range(300):
            with turn:
                before = count
                time.sleep(0)
                count = before + 1

    threads = [threading.Thread(target=add) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(DEADLINE)
    assert count == 1200


# The future


def test_a_future_works_with_all_that_the_standard_library_has_for_it() -> None:
    """``wait``, ``as_completed``, ``wrap_future`` and callbacks."""
    futures = [Future[int]() for _ in range(4)]
    called: list[int] = []
    futures[0].set_result(0)
    futures[1].cancel()

    def end() -> None:
        for number in (2, 3):
            futures[number].set_result(number)

    thread = threading.Thread(target=end)
    thread.start()
    assert concurrent.futures.wait(futures, DEADLINE) == (set(futures), set())
    thread.join()
    as_completed: Any = concurrent.futures.as_completed  # whose type knows no subclasses
    assert set(as_completed(futures, DEADLINE)) == set(futures)
    for future in futures:
        future.add_done_callback(lambda done: called.append(futures.index(done)))  # type: ignore[arg-type]
    assert called == [0, 1, 2, 3]

    async def wrapped() -> int:
        late = Future[int]()
        threading.Timer(0.01, lambda: late.set_result(7)).start()
        return await asyncio.wrap_future(late)

    assert asyncio.run(wrapped()) == 7


def test_a_future_ends_once() -> None:
    """With the first outcome; later ones are refused, and so is a cancelled one's."""
    future = Future[int]()
    assert not future.done() and future.set_running_or_notify_cancel() and future.running()
    assert not future.cancel()
    future.set_result(1)
    with pytest.raises(concurrent.futures.InvalidStateError):
        future.set_result(2)
    with pytest.raises(concurrent.futures.InvalidStateError):
        future.set_exception(ValueError())
    assert future.result() == 1 and future.exception() is None
    cancelled = Future[int]()
    assert cancelled.cancel() and not cancelled.set_running_or_notify_cancel()
    with pytest.raises(concurrent.futures.CancelledError):
        cancelled.result()
    with pytest.raises(TimeoutError):
        Future[int]().result(0.01)


def test_what_is_refused_never_looks_as_if_it_were_under_way() -> None:
    """At no bytecode: a caller whose time is up in that moment would say that it may still happen."""
    for number in itertools.count(1):
        future = Future[int]()
        reached = interrupt_at(lambda f=future: f.refuse(ValueError()), number)  # type: ignore[misc]
        assert not future.running()
        assert future.cancel() or isinstance(future.exception(), ValueError)
        if not reached:
            break
    assert not future.refuse(KeyError()) and isinstance(future.exception(), ValueError)


def test_what_is_refused_while_its_caller_gives_up_is_refused() -> None:
    """Not a ``Timeout``, which says that it may still happen."""

    class Late(Future[int]):
        def cancel(self) -> bool:
            self.refuse(NoLeader("in this very moment"))
            return super().cancel()

    with pytest.raises(NoLeader, match="moment"):
        wait_for(Late(), 0.01)


def test_everybody_who_waits_for_a_future_is_told_once() -> None:
    """Whether they came before, in the very moment, or after it had ended."""
    for _ in range(200):
        future, told = Future[int](), list[int]()

        def wait(future: Future[int] = future, told: list[int] = told) -> None:
            told.append(future.result(DEADLINE))

        threads = [threading.Thread(target=wait) for _ in range(3)]
        for thread in threads[:2]:
            thread.start()
        future.add_done_callback(lambda done, told=told: told.append(done.result()))  # type: ignore[misc]
        threads.append(threading.Thread(target=future.set_result, args=(1,)))
        for thread in threads[2:]:
            thread.start()
        assert not concurrent.futures.wait([future], DEADLINE).not_done
        for thread in threads:
            thread.join(DEADLINE)
        assert told == [1, 1, 1, 1]
