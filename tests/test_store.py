"""A ``Store`` in use: its readers, its handles, its place, and how it comes to be."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path

import psutil
import pytest

from ondisk.errors import Corrupt, DirectoryInUse, StorageError, StoreClosed
from ondisk.storage import rocksdb
from ondisk.storage.lock import DirectoryLock
from ondisk.storage.store import Store
from tests.stores import flip, held, largest_table, reopened, write

# Users, handles and threads


def test_a_closed_store_says_so(tmp_path: Path) -> None:
    """Every call after ``close`` raises ``StoreClosed``."""
    store = Store(tmp_path / "db")
    batch = store.batch()
    store.close()

    def iterate() -> None:
        with store.iterate():
            pass

    calls: list[Callable[[], object]] = [
        lambda: store.get(b"k"),
        lambda: store.get_many([b"k"]),
        lambda: store.get_meta(b"k"),
        lambda: store.put_meta(batch, b"k", b"v"),
        lambda: store.write(batch),
        store.sync,
        iterate,
    ]
    for call in calls:
        with pytest.raises(StoreClosed, match="closed"):
            call()


def test_nothing_that_is_kept_locks_a_closed_store(tmp_path: Path) -> None:
    """Walks and exceptions that somebody keeps do not hinder the next opening in this process."""
    path = tmp_path / "db"
    store = Store(path)
    write(store, 1)
    with store.iterate() as pairs:
        next(pairs)
    with pytest.raises(KeyError) as kept:
        store.get(5)  # type: ignore[arg-type]
    with pytest.raises(ZeroDivisionError) as kept_too, store.iterate() as more_pairs:
        _ = next(more_pairs), 1 / 0
    store.close()
    assert reopened(path) == 1
    assert kept.value and kept_too.value and list(pairs) == []


def test_an_error_while_walking_lets_go_of_the_database(tmp_path: Path) -> None:
    """The exception of a damaged table can be kept, and the directory opened again."""
    path = tmp_path / "db"
    store = Store(path)
    for number in range(1, 50):
        write(store, number, 1000)
    store.close()
    flip(largest_table(path), 10, 0)
    store = Store(path)
    with pytest.raises(Corrupt, match="db") as kept:
        held(store)
    store.close()
    Store(path).close()
    assert kept.value


def test_an_error_of_the_user_of_a_walk_stays_what_it_is(tmp_path: Path) -> None:
    """Only RocksDB's errors become storage errors."""
    store = Store(tmp_path / "db")
    with pytest.raises(KeyError), store.iterate():
        raise KeyError("mine")
    store.close()


def test_a_walk_sees_one_moment(tmp_path: Path) -> None:
    """Writes after the walk began do not show in it, in either direction."""
    store = Store(tmp_path / "db")
    for number in range(1, 4):
        write(store, number)
    with store.iterate() as forwards, store.iterate(backwards=True) as backwards:
        for number in range(4, 50):
            write(store, number)
        ahead = [int.from_bytes(key, "big") for key, _ in forwards]
        back = [int.from_bytes(key, "big") for key, _ in backwards]
    assert ahead == [1, 2, 3]
    assert back == [3, 2, 1]
    with store.iterate((48).to_bytes(8, "big")) as pairs:
        assert [int.from_bytes(key, "big") for key, _ in pairs] == [48, 49]
    store.close()


def test_close_waits_for_who_is_reading_and_lets_nobody_else_in(tmp_path: Path) -> None:
    """A walk that has begun ends as it would have; calls that come later are refused."""
    store = Store(tmp_path / "db")
    for number in range(1, 100):
        write(store, number)
    closer = threading.Thread(target=store.close)
    with store.iterate() as pairs:
        next(pairs)
        closer.start()
        closer.join(0.1)
        assert closer.is_alive() and not store.is_open
        with pytest.raises(StoreClosed):
            store.get(b"k")
        assert len(list(pairs)) == 98
    closer.join(10)
    assert not closer.is_alive()
    assert reopened(tmp_path / "db") == 99


def test_close_tries_again_until_the_call_that_is_under_way_has_ended(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A call inside RocksDB is answered in full, and the database is closed after it, and not before."""
    path, keys = tmp_path / "db", [number.to_bytes(8, "big") for number in range(20_000)]
    store = Store(path)
    batch = store.batch()
    for key in keys:
        batch.put(key, key)
    store.write(batch)
    store.close()
    tries = 0
    sleep = time.sleep

    def try_again(seconds: float) -> None:
        nonlocal tries
        tries += seconds == rocksdb.LENT_SECONDS
        sleep(seconds)

    monkeypatch.setattr("ondisk.storage.rocksdb.time.sleep", try_again)
    deadline = time.monotonic() + 20
    while not tries:  # until it met the call under way, which takes some 50 ms
        assert time.monotonic() < deadline
        store = Store(path)
        begun, answers = threading.Event(), list[object]()

        def read(
            store: Store = store, begun: threading.Event = begun, answers: list[object] = answers
        ) -> None:
            begun.set()
            try:
                answers.append(store.get_many(keys * 3) == keys * 3)
            except StoreClosed as error:
                answers.append(error)

        thread = threading.Thread(target=read)
        thread.start()
        begun.wait()
        store.close()
        thread.join(20)
        assert answers == [True] or (isinstance(answers[0], StoreClosed) and not tries), answers
    Store(path).close()


class _Busy:
    """A database inside which somebody is for as many attempts as there are errors."""

    def __init__(self, *errors: str) -> None:
        self.errors = list(errors)
        self.closed = False

    def close(self) -> None:
        if self.errors:
            raise RuntimeError(self.errors.pop(0))
        self.closed = True


def test_only_a_call_under_way_is_a_reason_to_try_again() -> None:
    busy = _Busy("Already borrowed", "Already mutably borrowed", "Already borrowed")
    rocksdb.close(busy)  # type: ignore[arg-type]
    assert busy.closed and not busy.errors
    broken = _Busy("Already borrowed", "something else", "Already borrowed")
    with pytest.raises(RuntimeError, match="something else"):
        rocksdb.close(broken)  # type: ignore[arg-type]
    assert not broken.closed and broken.errors == ["Already borrowed"]


@pytest.mark.parametrize("end", ["close", "crash"])
def test_readers_beside_the_end_get_an_answer_or_store_closed(tmp_path: Path, end: str) -> None:
    """Reads that run while the store is closed are right or refused, and it opens again at once."""
    for _ in range(3):
        store = Store(tmp_path / "db")
        number = held(store) + 1
        write(store, number)
        store.sync()
        reads: list[Callable[[], bool]] = [
            lambda number=number, store=store: store.get(number.to_bytes(8, "big")) == b"\0",
            lambda store=store: store.get_many([(1).to_bytes(8, "big")] * 20) == [b"\0"] * 20,
            lambda number=number, store=store: held(store) == number,
        ]
        running = threading.Barrier(2 * len(reads) + 1)
        wrong: list[object] = []

        def read_on(read: Callable[[], bool], running: threading.Barrier, wrong: list[object]) -> None:
            try:
                right = read()
                running.wait()
                while right:
                    right = read()
                wrong.append("a wrong answer")
            except StoreClosed:
                pass
            except BaseException as error:
                wrong.append(error)

        threads = [threading.Thread(target=read_on, args=(read, running, wrong)) for read in reads * 2]
        for thread in threads:
            thread.start()
        running.wait()
        getattr(store, end)()
        Store(tmp_path / "db").close()
        for thread in threads:
            thread.join(10)
        assert wrong == []


def test_no_file_stays_open(tmp_path: Path) -> None:
    """Opening and ending leaves no file descriptor behind, however it ends."""

    def lives() -> None:
        for end in ("close", "crash", "close"):
            store = Store(tmp_path / "db")
            write(store, held(store) + 1)
            with pytest.raises(DirectoryInUse):
                Store(tmp_path / "db")
            getattr(store, end)()
            lock = DirectoryLock(tmp_path)
            with pytest.raises(DirectoryInUse):
                DirectoryLock(tmp_path)
            lock.release()
        store = Store(tmp_path / "broken")
        store.close()
        (tmp_path / "broken" / "CURRENT").write_text("nonsense")
        with pytest.raises(Corrupt):
            Store(tmp_path / "broken")
        shutil.rmtree(tmp_path / "broken")

    lives()  # RocksDB opens some files once per process
    before = psutil.Process().num_fds()
    lives()
    assert psutil.Process().num_fds() == before


# Creation, places


CREATE_AND_DIE = """
import os, resource, signal, sys, time
from pathlib import Path
from ondisk.storage.store import Store

base = Path(sys.argv[1])

def create(path, limit):
    process = os.fork()  # before RocksDB has threads
    if process == 0:
        os.dup2(os.open(os.devnull, os.O_WRONLY), 2)
        if limit:
            files = max(int(name) for name in os.listdir("/proc/self/fd")) + limit
            resource.setrlimit(resource.RLIMIT_NOFILE, (files, files))
        try:
            Store(path)
        finally:
            os._exit(0)
    return process

for limit in range(1, 22):  # opening one of its files fails: each limit stops it elsewhere
    os.waitpid(create(base / f"limit-{limit}", limit), 0)

for count in range(1, 9):  # killed as soon as there are so many files
    path = base / f"kill-{count}"
    process = create(path, 0)
    while not os.waitpid(process, os.WNOHANG)[0]:
        if path.is_dir() and len(os.listdir(path)) >= count:
            os.kill(process, signal.SIGKILL)
            os.waitpid(process, 0)
            break
"""


@pytest.mark.skipif(not Path("/proc/self/fd").is_dir(), reason="counts open files as Linux does")
def test_a_creation_that_died_anywhere_opens_as_new(tmp_path: Path) -> None:
    """What a process leaves that failed or was killed while it created a database can be used."""
    subprocess.run(
        [sys.executable, "-c", CREATE_AND_DIE, str(tmp_path)],
        check=True,
        timeout=60,
        cwd=Path(__file__).parents[1],
    )
    states = set()
    for path in sorted(tmp_path.iterdir()):
        states.add(frozenset(file.name for file in path.iterdir()))
        store = Store(path)
        assert held(store) == 0, path
        write(store, 1)
        store.close()
        assert reopened(path) == 1, path
    assert len(states) > 4, "the creations were not stopped at different points"
    assert any("CURRENT" in names and "000004.log" not in names for names in states)


def test_a_moved_directory_opens(tmp_path: Path) -> None:
    """No path is stored."""
    store = Store(tmp_path / "here" / "db")
    write(store, 1)
    store.close()
    (tmp_path / "here").rename(tmp_path / "there")
    assert reopened(tmp_path / "there" / "db") == 1


@pytest.mark.parametrize("end", ["close", "crash"])
def test_the_working_directory_may_change(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, end: str) -> None:
    """A relative path means the place that it meant when the store was opened."""
    monkeypatch.setattr(rocksdb, "WRITE_BUFFER_BYTES", 64 << 10)
    (tmp_path / "a").mkdir()
    (tmp_path / "b").mkdir()
    monkeypatch.chdir(tmp_path / "a")
    store = Store(Path("db"))
    monkeypatch.chdir(tmp_path / "b")
    for number in range(1, 100):
        write(store, number, 2000)
    store.sync()
    getattr(store, end)()
    assert reopened(tmp_path / "a" / "db") == 99
    assert os.listdir(tmp_path / "b") == []


def test_the_name_of_the_directory_does_not_change_the_error(tmp_path: Path) -> None:
    """Errors are told apart by RocksDB's own words, not by a path or a name that contains them."""
    for name in ("checksum", "Corruption: demo", "While lock file", "lock hold by current process"):
        path = tmp_path / name / "db"
        store = Store(path)
        write(store, 1)
        store.close()
        manifest = next(path.glob("MANIFEST-*"))
        manifest.rename(path / "elsewhere")
        with pytest.raises(StorageError, match="disk refused") as raised:
            Store(path)
        assert type(raised.value) is StorageError
        (path / "elsewhere").rename(manifest)
        flip(next(path.glob("*.sst")), 3, 1)  # "block checksum mismatch" also contains "lock"
        with pytest.raises(Corrupt, match="damaged"):
            reopened(path)
