"""The disk: how RocksDB is opened, written and made durable, in one place.

The Raft log and the state machine both stand on a ``Store``. What is peculiar about RocksDB and
rocksdict is written down here once:

* ``write`` hands a batch to the operating system; only ``sync`` makes it durable. ``flush_wal(True)``
  gives up the GIL while it waits for the disk, a synchronous ``write`` does not, hence two calls.
* The default recovery mode silently keeps half of a damaged write-ahead log.
  ``tolerate_corrupted_tail_records`` reports damage and still forgives the torn tail of a power cut.
* A handle or an iterator that is still alive, be it in the traceback of an exception that somebody keeps,
  leaves a closed database locked. So nothing of RocksDB is handed out, and iterators are kept in boxes that
  are emptied.
* Closing beside a running call fails, and a call beside a running close: PyO3 lends an object to one who
  changes it or to many who read. That is its own lock, which no interrupt can leave taken. So readers take
  none (see interrupts/shielded.py), ``close`` tries until the last call has ended, and who comes too late is
  told.
* All databases of a process share RocksDB's threads. Closing one whose compaction still waits for a thread
  waits for that, too, *with the GIL*: every Python thread stands still until other databases have finished
  theirs, for seconds. So there are more threads than databases that compact at the same time.
* Two column families are flushed to tables one after the other, unless ``atomic_flush`` is set. Without it
  the tables alone would hold data without the index that belongs to it.
"""

from __future__ import annotations

import fcntl
import os
import shutil
import struct
import sys
import threading
import time
from collections.abc import Callable, Generator, Iterator
from contextlib import contextmanager
from itertools import takewhile
from pathlib import Path
from types import FrameType

import psutil
from rocksdict import (
    BlockBasedOptions,
    Cache,
    Checkpoint,
    DbClosedError,
    DBRecoveryMode,
    Options,
    Rdict,
    RdictIter,
    WriteBatch,
)

from ondisk.errors import Corrupt, DirectoryInUse, StorageError, StoreClosed
from ondisk.interrupts import forked
from ondisk.interrupts.shielded import has_ended
from ondisk.storage import lines
from ondisk.storage.errors import NOT_THERE, typed
from ondisk.storage.paths import names_in, open_descriptor, read_regular, what_it_is
from ondisk.storage.watch import Watch

# Six databases live in one Jupyter kernel on a free machine with 1 GB, so they share one block
# cache, and each may hold only a few MB of recent writes before it flushes them.
_CACHE_BYTES = 32 << 20
_WRITE_BUFFER_BYTES = 8 << 20
_OPEN_TABLES = 128  # for each of the six; many systems allow a process 1024 open files
_BACKGROUND_JOBS = 8  # RocksDB keeps a quarter of them for flushes
_MANIFEST_BYTES = 4 << 20  # then RocksDB begins a new one; it is read whole when opening
_LOG_BLOCK_BYTES = 32 << 10
_RECORD_HEADER = 7
_shared_cache: list[Cache] = []

_LENT = "Already"  # borrowed, or mutably borrowed: how PyO3 says that somebody is inside
_LENT_SECONDS = 0.0002  # between two attempts to close
_TOO_LATE = (DbClosedError, RuntimeError, AttributeError, IndexError)  # what a call meets that comes so


class Disk:
    """What a replica asks of its disk. Tests and the simulation hand in one that stalls or fails."""

    def sync(self, flush: Callable[[], None]) -> None:
        """Call ``flush``, which returns when the bytes are durable, or raise ``OSError``."""
        flush()

    def survivors(self, unsynced: int) -> int:
        """How many of so many bytes, written to a log and never synced, outlive a power cut."""
        return 0

    def reach(self, point: str) -> None:
        """Called between two steps on the disk that a crash may separate. An experiment may crash here.

        A ``Store`` says ``write`` before each batch, ``written`` after it, and ``synced`` when all is
        durable. ``DiskKV`` has more of them: ``diskkv.POINTS``.
        """


def _options() -> Options:
    if not _shared_cache:
        _shared_cache.append(Cache(_CACHE_BYTES))
    table = BlockBasedOptions()
    table.set_block_cache(_shared_cache[0])
    options = Options(raw_mode=True)
    options.create_if_missing(True)
    options.create_missing_column_families(True)
    options.set_block_based_table_factory(table)
    options.set_wal_recovery_mode(DBRecoveryMode.tolerate_corrupted_tail_records())
    options.set_atomic_flush(True)
    options.set_write_buffer_size(_WRITE_BUFFER_BYTES)
    options.set_keep_log_file_num(2)
    options.set_max_open_files(_OPEN_TABLES)
    options.set_max_manifest_file_size(_MANIFEST_BYTES)
    options.set_max_background_jobs(_BACKGROUND_JOBS)
    return options


@contextmanager
def fresh_cache() -> Iterator[None]:
    """Databases that are opened inside know nothing of blocks that were read before: they ask the disk."""
    known, _shared_cache[:] = _shared_cache[:], []
    try:
        yield
    finally:
        _shared_cache[:] = known


def make_directory(path: Path) -> None:
    """Create a directory, and make its name durable too: it stands in its parent. Raises ``OSError``."""
    if path.is_dir():
        return
    make_directory(path.parent)
    path.mkdir(exist_ok=True)
    sync_directory(path.parent)


def sync_directory(path: Path, disk: Disk | None = None) -> None:
    """Make the names in a directory durable. Raises ``OSError``."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        (disk or Disk()).sync(lambda: os.fsync(descriptor))
    finally:
        os.close(descriptor)


_Box = list[RdictIter]  # one, or none any more


def _walk(box: _Box, start: bytes, backwards: bool) -> Generator[tuple[bytes, bytes]]:
    # No variable holds the iterator: this frame may outlive it, in a traceback.
    if backwards:
        box[0].seek_to_last()
    else:
        box[0].seek(start)
    while box[0].valid():
        yield box[0].key(), box[0].value()
        if backwards:
            box[0].prev()
        else:
            box[0].next()
    box[0].status()  # a damaged block looks like the end


class _Walk:
    """``with`` this, a function walks over the data, and the database stays open until it has ended.

    An interrupt may keep it from saying that it has. So ``close`` looks at the function, too.
    """

    def __init__(self, store: Store, make: Callable[[], RdictIter], start: bytes, backwards: bool) -> None:
        self._store = store
        self._make = make
        self._box: _Box = []
        self._walker: FrameType | None = None
        self._pairs: Generator[tuple[bytes, bytes]] = _walk(self._box, start, backwards)

    @property
    def abandoned(self) -> bool:
        return self._walker is None or has_ended(self._walker)

    def __enter__(self) -> Iterator[tuple[bytes, bytes]]:
        store = self._store
        self._walker = sys._getframe(1)
        try:
            # In this order: ``close`` says that it closes, and then looks for walks.
            store._walks[id(self)] = self
            self._box.append(self._make())
            if not store._open:
                raise StoreClosed(f"{store.path}: closed")
        except Exception as error:
            self.leave()
            raise store.typed(error) from None
        return self._pairs

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: object) -> None:
        self.leave()
        self._store.raise_typed(error)

    def leave(self) -> None:
        """Let go of the iterator. A second call does nothing."""
        self._box.clear()
        self._pairs.close()
        self._walker = None
        self._store._walks.pop(id(self), None)


def _records(data: bytes) -> Iterator[tuple[int, int, int]]:
    """Where each record of a write-ahead log or a MANIFEST begins and ends, and of which type it is.

    Both are blocks of 32 KB full of records: checksum (4 bytes), length (2), type (1), data.
    """
    at = 0
    while at + _RECORD_HEADER <= len(data):
        left = _LOG_BLOCK_BYTES - at % _LOG_BLOCK_BYTES
        if left < _RECORD_HEADER:
            at += left
            continue
        length, kind = struct.unpack_from("<HB", data, at + 4)
        yield at, at + _RECORD_HEADER + length, kind
        at += _RECORD_HEADER + length


def _refuse_recycled_records(path: Path) -> None:
    """Refuse a damaged byte that would send RocksDB 9.8 into an endless loop, with the GIL in its hands.

    The types 5 to 8 mean a log file that is used again, which RocksDB does only if it is told to.
    """
    for at, _, kind in _records(read_regular(path)):
        if 5 <= kind <= 8:
            raise Corrupt(f"{path}: the stored data is damaged at byte {at + 6}")


def _cut_after(wal: Path, sequence: int, survivors: Callable[[int], int]) -> None:
    """Cut a write-ahead log behind the last batch that has at most this sequence number.

    ``survivors`` says how many of the bytes after it are there all the same, as in a torn write.
    """
    data = wal.read_bytes()
    for at, end, kind in _records(data):
        if kind not in (1, 2):  # neither a batch of its own nor the first of several records
            continue
        # A block may end within the number: it goes on in the next record.
        number = (data[at + _RECORD_HEADER : end] + data[end + _RECORD_HEADER : end + 15])[:8]
        if int.from_bytes(number, "little") > sequence:
            os.truncate(wal, at + survivors(len(data) - at))
            return


def _close(database: Rdict) -> None:
    while True:
        try:
            database.close()
            return
        except RuntimeError as error:
            if not str(error).startswith(_LENT):
                raise
            time.sleep(_LENT_SECONDS)  # for a call inside RocksDB, which no Python code can make longer


class _Call:
    """``with`` this: a call of RocksDB, whose errors become typed ones. (A class, as the cheapest way.)"""

    __slots__ = ("_store",)

    def __init__(self, store: Store) -> None:
        self._store = store

    def __enter__(self) -> None:
        if not self._store._open:
            raise StoreClosed(f"{self._store.path}: closed")

    def __exit__(self, kind: object, error: BaseException | None, trace: object) -> None:
        if error is not None:
            self._store.raise_typed(error)


class Store:
    """One RocksDB with the column families ``default`` and ``meta``, both with keys and values in bytes.

    Reads may come from any thread. ``write``, ``sync``, ``close`` and ``crash`` come from one at a time.
    """

    def __init__(self, path: Path, disk: Disk | None = None, *, create: bool = True) -> None:
        """Open or create; without ``create`` a database that is missing is ``Corrupt``.

        Raises ``DirectoryInUse``, ``Corrupt`` or ``StorageError``.
        """
        self.path = path.absolute()  # RocksDB opens files later on, whatever the working directory is then
        self._disk = disk or Disk()
        self._open = False
        self._walks: dict[int, _Walk] = {}  # under way, by their id
        self._closing = threading.Lock()  # of those who close, and of nobody else
        self._after_cut = self.path.with_name(self.path.name + ".power-cut")
        self._before_cut = self.path.with_name(self.path.name + ".before-power-cut")
        try:
            if self._after_cut.exists() and not self.path.exists():  # killed in the middle of ``crash``
                self._after_cut.rename(self.path)
            if create:
                make_directory(self.path)
            self._check_files(create)
            forked.opens_rocksdb()
            self._db = Rdict(str(self.path), _options(), {"meta": _options()})
            self._meta = self._db.get_column_family("meta")
            self._meta_handle = self._db.get_column_family_handle("meta")
            self._durable = self._db.latest_sequence_number()  # opening syncs what it finds
            self._newest_log = self._newest_log_there()
            self._watch = Watch(self.path, self._lost_file)
        except Exception as error:
            raise typed(error, self.path) from None
        self._open = True
        forked.register(self)
        shutil.rmtree(self._after_cut, ignore_errors=True)
        shutil.rmtree(self._before_cut, ignore_errors=True)

    def _check_files(self, create: bool) -> None:
        """Report what RocksDB does not: it opens without a word when files have gone missing.

        And it would wait for ever for the other end of a FIFO.
        """
        for entry in os.scandir(self.path) if self.path.is_dir() else ():
            if not entry.is_file() and not entry.is_dir():
                kind = what_it_is(entry.stat(follow_symlinks=False).st_mode)
                raise StorageError(f"{entry.path}: is {kind}, which is no part of a database")
        current = self.path / "CURRENT"
        if not current.exists():
            if not create or any(name.endswith(".sst") for name in names_in(self.path)):
                raise Corrupt(f"{self.path}: CURRENT is missing, without it there is no database")
        # RocksDB always leaves a log behind, except when it was killed while it created the database.
        elif read_regular(current) != b"MANIFEST-000001\n" and not self._newest_log_there():
            raise Corrupt(f"{self.path}: the write-ahead log is missing, recent writes are lost")
        for name in names_in(self.path):
            if name.endswith(".log") or name.startswith("MANIFEST-"):
                _refuse_recycled_records(self.path / name)

    def check(self) -> None:
        """Raise ``StorageError`` unless the files can still be found. Costs a microsecond or two.

        Whether what was written since is durable is another question: ``sync`` answers it.
        """
        with _Call(self):
            self._watch.check(durable=False)

    def _lost_file(self) -> str | None:
        """A file that RocksDB needs, and that is not there. It adds and removes some meanwhile.

        Raises ``OSError`` if that cannot be found out.
        """
        suspects = self._needed_files() - set(names_in(self.path))
        if lost := suspects & self._needed_files():  # before and after, and not in between
            return min(lost)
        for _ in range(3):  # a log that is listed neither before it is made nor after it is removed is there
            if (newest := self._newest_log_there()) >= self._newest_log:
                self._newest_log = newest
                return None
        return f"{self._newest_log:06}.log"

    def _needed_files(self) -> set[str]:
        try:
            manifest = (self.path / "CURRENT").read_text("ascii", "replace").strip()
        except NOT_THERE:
            return {"CURRENT"}
        return {"CURRENT", manifest, *(file["name"].lstrip("/") for file in self._db.live_files())}

    def _newest_log_there(self) -> int:
        logs = (name.removesuffix(".log") for name in names_in(self.path) if name.endswith(".log"))
        return max((int(number) for number in logs if number.isdecimal()), default=0)

    @property
    def is_open(self) -> bool:
        """Whether it can be used: neither ``close`` nor ``crash`` has been called."""
        return self._open

    def forget_parent(self) -> None:
        """In a child: leave the database alone, for ever. Its threads are the parent's."""
        self._open = False
        for mine in (getattr(self, "_db", None), getattr(self, "_meta", None), self._walks, *_shared_cache):
            forked.leak(mine)
        forked.leak(getattr(self, "_meta_handle", None))

    def typed(self, error: Exception) -> Exception:
        """What to raise for an error of a call: a typed one, if it is the disk's or came of closing."""
        if isinstance(error, _TOO_LATE) and not self._open:
            return StoreClosed(f"{self.path}: closed")
        return typed(error, self.path)

    def raise_typed(self, error: BaseException | None) -> None:
        """Raise the typed error in place of this one, if there is one and it is another."""
        if isinstance(error, Exception) and (typed := self.typed(error)) is not error:
            raise typed from None

    def get(self, key: bytes) -> bytes | None:
        """The value of a data key; ``None`` if there is none."""
        try:
            if not self._open:
                raise StoreClosed(f"{self.path}: closed")
            value: bytes | None = self._db.get(key)
        except Exception as error:
            raise self.typed(error) from None
        return value

    def get_many(self, keys: list[bytes]) -> list[bytes | None]:
        """The values of many data keys, in their order. Other threads run meanwhile."""
        with _Call(self):
            values: list[bytes | None] = self._db.get(keys)  # type: ignore[arg-type, assignment]
            return values

    def get_meta(self, key: bytes) -> bytes | None:
        """The value of a metadata key; user keys can never collide with one."""
        with _Call(self):
            value: bytes | None = self._meta.get(key)
            return value

    def meta_items(self, prefix: bytes) -> list[tuple[bytes, bytes]]:
        """All metadata whose key begins with ``prefix``, by key."""
        with _Walk(self, lambda: self._meta.iter(), prefix, False) as pairs:  # noqa: PLW0108 (it may be closed)
            return list(takewhile(lambda pair: pair[0].startswith(prefix), pairs))

    def iterate(self, start: bytes = b"", *, backwards: bool = False) -> _Walk:
        """``with`` this: the data as it is now, ``(key, value)`` by key from ``start``, or ``backwards``.

        Later writes do not show. (RocksDB's own ``items()`` ends silently at a damaged block.)
        """
        return _Walk(self, lambda: self._db.iter(), start, backwards)  # noqa: PLW0108 (it may be closed)

    def batch(self) -> WriteBatch:
        """A new, empty batch: whatever is put in becomes visible and durable together."""
        return WriteBatch(raw_mode=True)

    def put_meta(self, batch: WriteBatch, key: bytes, value: bytes | None) -> None:
        """Add a metadata key to a batch, or (``None``) that it goes."""
        if not self._open:
            raise StoreClosed(f"{self.path}: closed")
        if value is None:
            batch.delete(key, self._meta_handle)
        else:
            batch.put(key, value, self._meta_handle)

    def write(self, batch: WriteBatch) -> None:
        """Apply a batch: visible at once, durable after the next ``sync``."""
        self._disk.reach("write")
        with _Call(self):
            self._db.write(batch)
        self._disk.reach("written")

    def sync(self) -> None:
        """Return when every write so far would survive a power cut, and can be found afterwards."""
        with _Call(self):
            self._disk.sync(lambda: self._db.flush_wal(True))
            self._watch.check()
            self._durable = self._db.latest_sequence_number()
        self._disk.reach("synced")

    def checkpoint(self, directory: Path) -> None:
        """Make a second database in a new directory that holds what this one holds now.

        It takes milliseconds: tables never change, so it gets hard links to them, and recent writes become
        tables first. It must be on the same file system. No write may run meanwhile.
        """
        # RocksDB would do the same in there, but with the GIL in its hands. This flushes the data alone, so
        # the write-ahead log must hold their metadata: that is why it is synced first.
        self.sync()
        with _Call(self):
            self._db.flush(True)
            Checkpoint(self._db).create_checkpoint(str(directory))

    def close(self) -> None:
        """Wait for running reads, then close. A second call does nothing."""
        with self._closing:
            self._open = False
            if not hasattr(self, "_db"):
                return
            while self._walks:
                for walk in tuple(self._walks.values()):
                    if walk.abandoned:
                        walk.leave()
                    else:
                        time.sleep(_LENT_SECONDS)
            try:
                if not self._watch.is_certain():  # closing would write tables into what has this name now
                    self._db.cancel_all_background(True)
                else:
                    for database in (self._meta, self._db):
                        _close(database)
            except Exception as error:
                raise typed(error, self.path) from None
            finally:
                del self._meta_handle, self._meta, self._db

    def crash(self) -> None:
        """Close as a power cut would: the write-ahead log ends where it was last synced.

        What was never synced may survive in part, as it may in a real one: RocksDB moves older writes to
        tables on its own. Once closed, a call does nothing.

        RocksDB writes its memory to tables when it closes, so the directory is copied first (tables
        as hard links) and the copy takes its place.
        """
        if not self._open:
            return
        while not self._copy_files(self._after_cut):
            pass  # RocksDB changed its set of files meanwhile
        for wal in self._after_cut.glob("*.log"):
            _cut_after(wal, self._durable, self._disk.survivors)
        self.close()
        shutil.rmtree(self._before_cut, ignore_errors=True)
        self.path.rename(self._before_cut)  # whoever is killed here finds the copy when opening again
        self._after_cut.rename(self.path)
        shutil.rmtree(self._before_cut)

    def _copy_files(self, target: Path) -> bool:
        """Copy the database as it is; say whether it stayed the same meanwhile."""

        def state() -> tuple[set[str], int]:
            manifest = (self.path / "CURRENT").read_text().strip()
            return {file.name for file in self.path.iterdir()}, os.stat(self.path / manifest).st_size

        shutil.rmtree(target, ignore_errors=True)
        target.mkdir()
        try:
            before = state()
            for name in before[0] - {"LOCK"}:
                if name.endswith(".sst"):
                    os.link(self.path / name, target / name)
                else:
                    shutil.copy2(self.path / name, target / name)
            return state() == before
        except FileNotFoundError:
            return False


class DirectoryLock:
    """One owner for a replica's directory, who leaves a name so that the next one can be told.

    The kernel drops the lock when the owner ends, however it ends.
    """

    name = "owner"
    _KIND, _VERSION = "ondisk-owner", 1

    def __init__(self, directory: Path) -> None:
        """Take the lock. Raises ``DirectoryInUse`` at once, with the owner's name."""
        self._fd = -1
        forked.register(self)
        try:
            make_directory(directory)
            self._path = directory / self.name
            self._fd = open_descriptor(self._path, os.O_RDWR | os.O_CREAT)
        except OSError as error:
            raise StorageError(f"{directory}: cannot be used as a data directory ({error})") from None
        try:
            fcntl.flock(self._fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
            self._watch = Watch(directory, lambda: None if self.is_there() else self.name)
            self._refuse_a_foreign_file()
            os.ftruncate(self._fd, 0)
            os.pwrite(self._fd, lines.encode(self._KIND, self._VERSION, str(os.getpid())), 0)
        except BlockingIOError:
            owner = self._owner()
            self.release()
            raise DirectoryInUse(
                f"{directory} is in use by {describe_process(owner)}. Stop it, or choose another directory."
            ) from None
        except BaseException as error:
            self.release()
            if isinstance(error, OSError):
                raise StorageError(f"{directory}: cannot be used as a data directory ({error})") from None
            raise

    def _owner(self) -> str:
        """The process that left its number; the number alone, before the file had a version."""
        stored = os.pread(self._fd, 200, 0)
        try:
            return lines.decode(self._path, stored, self._KIND, self._VERSION)
        except StorageError:
            return stored[:20].decode("ascii", "replace").strip()

    def _refuse_a_foreign_file(self) -> None:
        """Somebody may have a file of this name that is none of ours: it would be overwritten."""
        stored = os.pread(self._fd, 200, 0).strip(b"\0\n")  # a power cut may leave zeros
        if stored and not stored.isdigit():
            try:
                lines.decode(self._path, stored + b"\n", self._KIND, self._VERSION)
            except Corrupt:
                raise StorageError(
                    f"{self._path}: is no file of ondisk, and would be overwritten. Choose another directory"
                ) from None

    def is_there(self) -> bool:
        """Whether the file that is locked is the one that somebody else would try to lock."""
        try:
            return os.path.samestat(os.stat(self._path), os.fstat(self._fd))
        except OSError:
            return False

    def check(self) -> None:
        """Raise ``StorageError`` if another owner could get in: the directory or its ``owner`` is gone."""
        self._watch.check()

    def release(self) -> None:
        """Let the next owner in. A second call does nothing."""
        descriptor, self._fd = self._fd, -1
        if descriptor >= 0:
            os.close(descriptor)

    def forget_parent(self) -> None:
        """In a child: close the copy of the descriptor, which would keep the parent from opening again."""
        self.release()


def describe_process(pid: int | str | None) -> str:
    """``process 4711 (python -m ondisk ...)``, or as much of it as can be found out."""
    try:
        number = int(pid or "")
        if number == os.getpid():
            return f"this process ({number})"
        command = " ".join(psutil.Process(number).cmdline())[:80]
    except (ValueError, psutil.Error):
        return f"process {pid or 'unknown'}"
    return f"process {number} ({command})"
