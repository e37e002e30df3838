"""The disk: what survives a power cut, what is reported, and who may open a directory."""

from __future__ import annotations

import errno
import os
import re
import shutil
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import psutil
import pytest

from ondisk.errors import Corrupt, DirectoryInUse, StorageError, StoreClosed
from ondisk.storage import rocksdb
from ondisk.storage.disk import Disk
from ondisk.storage.lock import DirectoryLock, describe_process
from ondisk.storage.powercut import copy_files
from ondisk.storage.store import Store

INDEX = b"index"


class FullDisk(Disk):
    """A disk that is full for as long as ``full`` is set."""

    full = False

    def sync(self, flush: Callable[[], None]) -> None:
        if self.full:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        flush()


def copy_live(source: Path, target: Path) -> Path:
    """Copy a directory as a killed process would leave it. Returns the copy."""
    shutil.rmtree(target, ignore_errors=True)
    return Path(shutil.copytree(source, target))


def newest_wal(directory: Path) -> Path:
    """The write-ahead log that was written to last, wherever it is below the directory."""
    return max(directory.rglob("*.log"), key=lambda log: int(log.stem))


def largest_table(directory: Path) -> Path:
    """The table with most in it: the data, not the metadata."""
    return max(directory.rglob("*.sst"), key=lambda table: table.stat().st_size)


def flip(file: Path, position: int, bit: int) -> None:
    """Damage one bit of a file."""
    stored = bytearray(file.read_bytes())
    stored[position] ^= 1 << bit
    file.write_bytes(stored)


def record_starts(file: Path) -> list[int]:
    """Where the records of a write-ahead log or MANIFEST of less than 32 KB begin."""
    stored, at, starts = file.read_bytes(), 0, []
    while at + 7 <= len(stored):
        starts.append(at)
        at += 7 + int.from_bytes(stored[at + 4 : at + 6], "little")
    return starts


def write(store: Store, number: int, size: int = 1) -> None:
    """Write data ``number``, and ``number`` as the index that belongs to it, in one batch."""
    batch = store.batch()
    batch.put(number.to_bytes(8, "big"), bytes(size))
    store.put_meta(batch, INDEX, number.to_bytes(8, "big"))
    store.write(batch)


def held(store: Store) -> int:
    """How many numbers the store holds; fails if index and data do not belong together."""
    with store.iterate() as pairs:
        numbers = [int.from_bytes(key, "big") for key, _ in pairs]
    assert numbers == list(range(1, len(numbers) + 1))
    assert int.from_bytes(store.get_meta(INDEX) or b"", "big") == len(numbers)
    return len(numbers)


def reopened(path: Path) -> int:
    """What a store holds after it is opened again."""
    store = Store(path)
    try:
        return held(store)
    finally:
        store.close()


# Power cut and close


@pytest.mark.parametrize("synced", [0, 1, 5])
@pytest.mark.parametrize("unsynced", [0, 1, 5])
def test_a_crash_loses_exactly_what_was_not_synced(tmp_path: Path, synced: int, unsynced: int) -> None:
    """Writes after the last sync are gone, those before it are there."""
    store = Store(tmp_path / "db")
    for number in range(1, synced + 1):
        write(store, number)
    if synced:
        store.sync()
    for number in range(synced + 1, synced + unsynced + 1):
        write(store, number)
    store.crash()
    assert reopened(tmp_path / "db") == synced


@pytest.mark.parametrize("left", [0, 1, 6, 7, 8, 10, 14, 15, 18, 19, 20])
def test_a_crash_finds_its_place_where_a_batch_is_split_over_two_blocks(tmp_path: Path, left: int) -> None:
    """A synced batch that begins ``left`` bytes before a block's end stays, the next one goes."""
    block = 32 << 10
    probe = Store(tmp_path / "probe")
    write(probe, 1, 30_000)
    overhead = newest_wal(tmp_path / "probe").stat().st_size - 30_000
    probe.close()
    store = Store(tmp_path / "db")
    write(store, 1, block - left - overhead)
    assert newest_wal(tmp_path / "db").stat().st_size == block - left
    write(store, 2)
    store.sync()
    write(store, 3)
    store.crash()
    assert reopened(tmp_path / "db") == 2


def test_a_crash_after_tables_were_written_leaves_a_prefix_with_everything_synced(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Data that RocksDB moved to tables keeps its index, and nothing synced is lost."""
    monkeypatch.setattr(rocksdb, "WRITE_BUFFER_BYTES", 64 << 10)
    for round_ in range(3):
        path = tmp_path / f"db{round_}"
        store = Store(path)
        for number in range(1, 100):
            write(store, number, 2000)
        store.sync()
        for number in range(100, 200 + 17 * round_):
            write(store, number, 2000)
        store.crash()
        assert any(path.glob("*.sst"))
        assert 99 <= reopened(path) < 200 + 17 * round_


def test_tables_alone_hold_the_index_that_belongs_to_their_data(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Data and index go to tables together: without any write-ahead log they still agree."""
    monkeypatch.setattr(rocksdb, "WRITE_BUFFER_BYTES", 64 << 10)
    store = Store(tmp_path / "db")
    for number in range(1, 200):
        write(store, number, 2000)
    copy = tmp_path / "copy"
    while not copy_files(store.path, copy):
        pass  # tables are being written meanwhile
    store.close()
    for log in copy.glob("*.log"):
        os.truncate(log, 0)
    assert 0 <= reopened(copy) < 199


def test_sync_makes_rocksdb_sync_its_log_and_a_write_does_not(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """RocksDB itself counts one sync of the write-ahead log for each ``sync``."""
    make_options = rocksdb.options
    counting = make_options()
    counting.enable_statistics()
    first = iter([counting])
    monkeypatch.setattr(rocksdb, "options", lambda: next(first, None) or make_options())

    def syncs() -> int:
        counted = re.search(r"rocksdb\.wal\.synced COUNT : (\d+)", counting.get_statistics() or "")
        assert counted
        return int(counted[1])

    store = Store(tmp_path / "db")
    before = syncs()
    for number in range(1, 4):
        write(store, number)
        assert syncs() == before + number - 1
        store.sync()
        assert syncs() == before + number
    store.close()


def test_close_keeps_what_was_not_synced(tmp_path: Path) -> None:
    """A clean end is not a power cut."""
    store = Store(tmp_path / "db")
    write(store, 1)
    store.close()
    assert reopened(tmp_path / "db") == 1


def test_what_survived_a_crash_survives_the_next(tmp_path: Path) -> None:
    """What a power cut left is durable, even if nothing is synced again."""
    path = tmp_path / "db"
    for number in range(1, 5):
        store = Store(path)
        assert held(store) == number - 1
        write(store, number)
        store.sync()
        write(store, number + 1)
        store.crash()
        Store(path).crash()
    assert reopened(path) == 4


def test_crash_and_close_do_nothing_to_a_closed_store(tmp_path: Path) -> None:
    """A second end is no end: it does not touch the files of who opened them since."""
    former = Store(tmp_path / "db")
    former.close()
    former.close()
    store = Store(tmp_path / "db")
    write(store, 1)
    former.crash()
    former.close()
    write(store, 2)
    store.sync()
    write(store, 3)
    assert held(store) == 3
    for end in (store.crash, store.crash, store.close):
        end()
    assert reopened(tmp_path / "db") == 2


@pytest.mark.parametrize("step", range(4))
def test_a_crash_that_is_killed_halfway_loses_nothing_synced(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, step: int
) -> None:
    """Whatever ``crash`` has done to the directory when its process dies, opening finishes it."""

    class Killed(BaseException):
        pass

    steps = iter(range(100))

    def counted(function: Callable[..., object]) -> Callable[..., object]:
        def call(*arguments: object, **options: object) -> object:
            if next(steps) == step:
                raise Killed
            return function(*arguments, **options)

        return call

    path = tmp_path / "db"
    store = Store(path)
    write(store, 1)
    store.sync()
    write(store, 2)
    with monkeypatch.context() as patch, pytest.raises(Killed):
        patch.setattr(os, "truncate", counted(os.truncate))
        patch.setattr(Path, "rename", counted(Path.rename))

        def remove(directory: Path, ignore_errors: bool = False) -> None:
            if not ignore_errors:
                next(iter(directory.glob("CURRENT"))).unlink()
                raise Killed
            real(directory, ignore_errors=ignore_errors)

        real = shutil.rmtree
        patch.setattr(shutil, "rmtree", remove)
        store.crash()
    store.close()
    assert reopened(path) in (1, 2)
    assert [child.name for child in tmp_path.iterdir()] == ["db"]


def test_leftovers_of_a_crash_are_removed_and_not_believed(tmp_path: Path) -> None:
    """A half-made copy beside a whole database is thrown away."""
    store = Store(tmp_path / "db")
    write(store, 1)
    store.close()
    for name in ("db.power-cut", "db.before-power-cut"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "CURRENT").write_text("MANIFEST-000042\n")
    assert reopened(tmp_path / "db") == 1
    assert [child.name for child in tmp_path.iterdir()] == ["db"]


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


# Who has the directory


@pytest.fixture
def other_process(tmp_path: Path) -> Iterator[subprocess.Popen[str]]:
    """A process that holds ``tmp_path / "held"``, lock and database, until it is killed."""
    program = (
        "import sys; from pathlib import Path\n"
        "from ondisk.storage.lock import DirectoryLock; from ondisk.storage.store import Store\n"
        "path = Path(sys.argv[1]); lock = DirectoryLock(path); store = Store(path / 'db')\n"
        "print('ready', flush=True); sys.stdin.read()"
    )
    process = subprocess.Popen(
        [sys.executable, "-c", program, str(tmp_path / "held")],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        cwd=Path(__file__).parents[1],
    )
    try:
        assert process.stdout is not None and process.stdout.readline() == "ready\n"
        yield process
    finally:
        process.kill()
        process.communicate()


def test_a_directory_of_another_process_is_refused_with_its_name_until_it_dies(
    tmp_path: Path, other_process: subprocess.Popen[str]
) -> None:
    """The error says which process; when that is killed the directory is free at once."""
    with pytest.raises(DirectoryInUse, match=rf"process {other_process.pid} \(.*-c"):
        DirectoryLock(tmp_path / "held")
    with pytest.raises(DirectoryInUse, match="another process"):
        Store(tmp_path / "held" / "db")
    other_process.kill()
    other_process.wait()
    DirectoryLock(tmp_path / "held").release()
    Store(tmp_path / "held" / "db").close()


def test_a_directory_of_this_process_is_refused_with_its_name(tmp_path: Path) -> None:
    """Two objects in one process exclude each other as two processes do."""
    lock = DirectoryLock(tmp_path / "data")
    with pytest.raises(DirectoryInUse, match=rf"this process \({os.getpid()}\)"):
        DirectoryLock(tmp_path / "data")
    lock.release()
    lock.release()
    DirectoryLock(tmp_path / "data").release()
    store = Store(tmp_path / "db")
    with pytest.raises(DirectoryInUse, match="this process"):
        Store(tmp_path / "db")
    store.close()


def test_a_process_that_cannot_be_found_is_described_all_the_same() -> None:
    """An owner's note may be empty, nonsense, or name a process that is gone."""
    assert describe_process("") == describe_process(None) == "process unknown"
    assert describe_process("junk") == "process junk"
    assert describe_process(2**22 + 1) == f"process {2**22 + 1}"


@pytest.mark.parametrize("opener", [Store, DirectoryLock])
def test_a_path_that_cannot_be_a_directory_is_a_clear_error(
    tmp_path: Path, opener: Callable[[Path], object]
) -> None:
    """A file in the way is a ``StorageError`` that names the place."""
    (tmp_path / "file").write_text("not a directory")
    for path in (tmp_path / "file", tmp_path / "file" / "below"):
        with pytest.raises(StorageError, match="file"):
            opener(path)


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


# Damage


@pytest.fixture
def damaged(tmp_path: Path) -> Path:
    """A copy of a live store with numbers 1 to 9 in a table and 10 to 20 in the write-ahead log."""
    store = Store(tmp_path / "db")
    for number in range(1, 10):
        write(store, number, 100)
    store.close()
    store = Store(tmp_path / "db")
    for number in range(10, 21):
        write(store, number, 100)
    store.sync()
    copy = copy_live(tmp_path / "db", tmp_path / "copy")
    store.close()
    assert reopened(copy_live(copy, tmp_path / "check")) == 20
    return copy


@pytest.mark.parametrize(
    "damage",
    [
        lambda path: newest_wal(path).unlink(),
        lambda path: next(path.glob("*.sst")).unlink(),
        lambda path: os.truncate(max(path.glob("*.sst")), 500),
        lambda path: (path / "CURRENT").write_bytes(b""),
        lambda path: (path / "CURRENT").write_bytes(b"MANIFEST-000099\n"),
        lambda path: (path / "CURRENT").unlink(),
        lambda path: ((path / "CURRENT").unlink(), newest_wal(path).unlink()),
        lambda path: next(path.glob("MANIFEST-*")).unlink(),
        lambda path: os.truncate(next(path.glob("MANIFEST-*")), 0),
        lambda path: flip(next(path.glob("MANIFEST-*")), 20, 3),
        lambda path: flip(path / "CURRENT", 12, 0),
        lambda path: flip(newest_wal(path), 40, 0),
        lambda path: flip(newest_wal(path), record_starts(newest_wal(path))[-1] + 20, 7),
        lambda path: flip(largest_table(path), 0, 0),
    ],
    ids=[
        "no WAL", "no table", "short table", "empty CURRENT", "wrong CURRENT", "no CURRENT",
        "no CURRENT, no WAL", "no MANIFEST", "empty MANIFEST", "bit in MANIFEST", "bit in CURRENT",
        "bit in WAL", "bit at WAL's end", "bit in table",
    ],
)  # fmt: skip
def test_damage_is_reported_with_its_place(
    damaged: Path, damage: Callable[[Path], object], monkeypatch: pytest.MonkeyPatch
) -> None:
    """What is missing or changed is an error when opening or reading, and never silently less."""
    monkeypatch.setattr(rocksdb, "shared_cache", [])  # it still knows the tables as they were
    damage(damaged)
    with pytest.raises(StorageError, match=r"copy.*(damaged|missing|refused)"):
        reopened(damaged)


@pytest.mark.parametrize("file", ["WAL", "MANIFEST"])
def test_a_damaged_record_type_is_reported_and_not_looped_over(damaged: Path, file: str) -> None:
    """One flipped bit that makes RocksDB itself spin for ever is refused before it can."""
    pick = newest_wal if file == "WAL" else lambda path: next(path.glob("MANIFEST-*"))
    for start in record_starts(pick(damaged)):
        copy = copy_live(damaged, damaged.with_name("again"))
        flip(pick(copy), start + 6, 2)
        with pytest.raises(Corrupt, match=f"damaged at byte {start + 6}"):
            Store(copy)


def test_a_torn_tail_leaves_a_prefix(damaged: Path) -> None:
    """A write-ahead log that ends anywhere opens to the writes before that place, index and all."""
    length = newest_wal(damaged).stat().st_size
    starts = record_starts(newest_wal(damaged))
    seen = []
    for cut in sorted({*range(0, length, 61), *starts, *(at - 1 for at in starts[1:]), length}):
        copy = copy_live(damaged, damaged.with_name("torn"))
        os.truncate(newest_wal(copy), cut)
        seen.append(reopened(copy))
        whole = sum(cut >= end for end in [*starts[1:], length])
        assert seen[-1] == 9 + whole, f"cut at byte {cut}"
    assert seen[0] == 9 and seen[-1] == 20


# A disk that fails


def test_a_full_disk_is_a_typed_error_and_loses_nothing_synced(tmp_path: Path) -> None:
    """``OSError`` from the disk becomes a ``StorageError`` that says what and where."""
    disk = FullDisk()
    store = Store(tmp_path / "db", disk)
    write(store, 1)
    store.sync()
    disk.full = True
    write(store, 2)
    with pytest.raises(StorageError, match=r"db: the disk refused .*No space left") as raised:
        store.sync()
    assert type(raised.value) is StorageError
    store.crash()
    assert reopened(tmp_path / "db") == 1


REALLY_FULL = """
import resource, signal, sys
from pathlib import Path
from ondisk.errors import Corrupt, StorageError
from ondisk.raft.log import LogEntry, RaftLog

signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
everything = resource.RLIM_INFINITY
log = RaftLog(Path(sys.argv[1]))
resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, everything))  # no file may become larger
durable = 0
try:
    while True:
        log.append([LogEntry(durable + 1, 1, bytes(5000))])
        log.sync()
        durable += 1
except StorageError as error:
    assert "the disk refused" in str(error) and not isinstance(error, Corrupt), error
for _ in range(2):
    try:
        log.close()
    except StorageError:
        pass
resource.setrlimit(resource.RLIMIT_FSIZE, (everything, everything))
log = RaftLog(Path(sys.argv[1]))
assert durable > 5 and log.last_index in (durable, durable + 1), (durable, log.last_index)
log.append([LogEntry(log.last_index + 1, 1, b"room again")])
log.close()
"""


def test_rocksdb_refused_by_the_kernel_stops_cleanly_and_opens_when_there_is_room(
    tmp_path: Path,
) -> None:
    """A real write error is typed, everything durable is there afterwards, and it goes on."""
    subprocess.run(
        [sys.executable, "-c", REALLY_FULL, str(tmp_path / "log")],
        check=True,
        timeout=60,
        cwd=Path(__file__).parents[1],
    )
