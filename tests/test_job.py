"""A job beside the steps of a replica, and the pipe between the two (``snapshot/background.py``)."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from typing import Any

import pytest

from ondisk.errors import ResourceError, SnapshotStopped
from ondisk.snapshot.background import Job, start_thread
from tests.waiting import wait_until


def lockstep(work: Callable[[Job[Any, Any]], Any], capacity: int = 2) -> tuple[Job[Any, Any], list[bool]]:
    """A job that never runs beside this thread, and the times that it has asked for a look."""
    woken: list[bool] = []
    wake = lambda: woken.append(True)  # noqa: E731
    return Job("job", work, capacity=capacity, wake=wake, lockstep=True), woken


def test_a_job_puts_no_more_than_there_is_room_for() -> None:
    done: list[int] = []

    def work(job: Job[int, str]) -> str:
        time.sleep(0.05)  # a step that would not wait for it would see nothing of what follows
        for number in range(4):
            job.put(number)
            done.append(number)
        return "result"

    job, woken = lockstep(work)
    assert done == [0, 1] and len(woken) == 2 and not job.done
    assert job.poll() == 0 and done == [0, 1, 2] and len(woken) == 3
    assert [job.poll(), job.poll(), job.poll(), job.poll()] == [1, 2, 3, None]
    job.join()
    assert job.done and job.result() == "result" and len(woken) == 5  # its end, too, is worth a look
    assert job.taken == 0


def test_a_job_gets_what_is_offered_in_order_and_there_is_room_for_so_much() -> None:
    got: list[int] = []
    may_go_on = threading.Event()

    def work(job: Job[int, None]) -> None:
        got.append(job.get())
        may_go_on.wait()
        got.extend([job.get(), job.get()])

    job: Job[int, None] = Job("job", work, capacity=2, wake=lambda: None)
    assert job.offer(1)
    wait_until(lambda: got == [1])
    assert job.offer(2) and job.offer(3) and not job.offer(4)
    assert job.taken == 1 and not job.done
    may_go_on.set()
    wait_until(lambda: job.done)
    assert got == [1, 2, 3] and job.taken == 3 and job.result() is None


def test_a_job_that_gets_asks_for_a_look_each_time() -> None:
    job, woken = lockstep(lambda job: [job.get(), job.get()])
    assert job.offer("a") and job.taken == 1 and len(woken) == 1
    assert job.offer("b") and job.result() == ["a", "b"]
    job.join()
    assert len(woken) == 3


@pytest.mark.parametrize("end", ["put", "get"])
def test_a_job_that_waits_ends_when_it_is_stopped(end: str) -> None:
    def work(job: Job[int, None]) -> None:
        while True:
            if end == "put":
                job.put(1)
            else:
                job.get()

    job, _ = lockstep(work, capacity=1)
    assert not job.done and not job.stopped.is_set()
    job.stop()
    assert job.done and job.stopped.is_set()
    with pytest.raises(SnapshotStopped):
        job.result()


def test_a_stopped_job_ends_even_if_it_need_not_wait() -> None:
    may_go_on = threading.Event()

    def work(job: Job[int, None]) -> None:
        may_go_on.wait()
        job.put(1)

    job: Job[int, None] = Job("job", work, capacity=9, wake=lambda: None)
    job.stop()
    may_go_on.set()
    wait_until(lambda: job.done)
    assert job.poll() is None
    with pytest.raises(SnapshotStopped):
        job.result()


@pytest.mark.parametrize("error", [ValueError("here"), KeyboardInterrupt("here")])
def test_what_a_job_raises_is_raised_where_its_result_is_asked_for(error: BaseException) -> None:
    def work(job: Job[int, None]) -> None:
        raise error

    job, woken = lockstep(work)
    assert job.done
    with pytest.raises(type(error), match="here"):
        job.result()
    assert woken == [True]


def test_a_job_keeps_no_process_from_ending_and_has_a_name() -> None:
    job, _ = lockstep(lambda job: (threading.current_thread().daemon, threading.current_thread().name))
    assert job.result() == (True, "job")


def test_a_job_is_at_its_end_when_it_was_waited_for() -> None:
    job: Job[int, int] = Job("job", lambda job: job.get(), capacity=1, wake=lambda: None)
    assert not job.done
    job.offer(7)
    job.join()
    assert job.done and job.result() == 7


@pytest.mark.parametrize(
    ("error", "words"),
    [
        (RuntimeError("can't start new thread"), "can't start new thread"),
        (MemoryError(), "there is no memory"),
    ],
)
def test_without_a_thread_there_is_no_job(
    monkeypatch: pytest.MonkeyPatch, error: Exception, words: str
) -> None:
    def fail(_: threading.Thread) -> None:
        raise error

    monkeypatch.setattr(threading.Thread, "start", fail)
    with pytest.raises(ResourceError, match=rf"no thread can be started for it \({words}\)"):
        start_thread(threading.Thread(name="it"))
