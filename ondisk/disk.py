"""The disk: how RocksDB is opened, written and made durable, in one place.

The Raft log and the state machine both stand on a ``Store``. What is peculiar about RocksDB and
rocksdict is written down here once:

* ``write`` hands a batch to the operating system; only ``sync`` makes it durable. ``flush_wal(True)``
  gives up the GIL while it waits for the disk, a synchronous ``write`` does not, hence two calls.
* The default recovery mode silently keeps half of a damaged write-ahead log.
  ``tolerate_corrupted_tail_records`` reports damage and still forgives the torn tail of a power cut.
* A handle or an iterator that is still alive, be it in the traceback of an exception that somebody keeps,
  leaves a closed database locked, and closing beside a running call fails. So users are counted in and
  out, and nothing of RocksDB is handed out.
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
import threading
from collections.abc import Callable, Generator, Iterator
from contextlib import closing, contextmanager
from itertools import takewhile
from pathlib import Path

import psutil
from rocksdict import (
    BlockBasedOptions,
    Cache,
    Checkpoint,
    DBRecoveryMode,
    Options,
    Rdict,
    RdictIter,
    WriteBatch,
)

from ondisk import lines
from ondisk.errors import Corrupt, DirectoryInUse, StorageError, StoreClosed
from ondisk.paths import open_descriptor, read_regular, what_it_is
from ondisk.watch import Watch

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


def _translate(error: Exception, path: Path) -> Exception:
    """RocksDB's errors are plain ``Exception``s with a text: make them typed ones that name the place."""
    if type(error) is not Exception and not isinstance(error, OSError):
        return error  # not the disk's
    text = str(error)
    if text.startswith("Corruption:"):
        return Corrupt(f"{path}: the stored data is damaged ({text})")
    if text.startswith("IO error: lock hold by current process"):
        return DirectoryInUse(f"{path}: the database is already open in this process")
    if text.startswith("IO error: While lock file"):
        return DirectoryInUse(f"{path}: the database is open in another process")
    if "Too many open files" in text:
        return StorageError(f"{path}: this process may not open more files, see ulimit -n ({text})")
    return StorageError(f"{path}: the disk refused ({text})")


@contextmanager
def disk_errors(path: Path) -> Iterator[None]:
    """Turn errors of the disk and of RocksDB into typed ones that name the place."""
    try:
        yield
    except Exception as error:
        if (typed := _translate(error, path)) is error:
            raise
        raise typed from None


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


def _walk(iterator: RdictIter, start: bytes, backwards: bool) -> Generator[tuple[bytes, bytes]]:
    try:
        if backwards:
            iterator.seek_to_last()
        else:
            iterator.seek(start)
        while iterator.valid():
            yield iterator.key(), iterator.value()
            if backwards:
                iterator.prev()
            else:
                iterator.next()
        iterator.status()  # a damaged block looks like the end
    finally:
        del iterator


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


class _Use:
    """``with`` this, a database stays open, and its errors become typed ones.

    A class, and not a generator, because every read and write passes through it.
    """

    __slots__ = ("_store",)

    def __init__(self, store: Store) -> None:
        self._store = store

    def __enter__(self) -> None:
        store = self._store
        with store._idle:
            if not store._open:
                raise StoreClosed(f"{store.path}: closed")
            store._users += 1

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: object) -> None:
        store = self._store
        with store._idle:
            store._users -= 1
            if not store._open:
                store._idle.notify_all()
        if isinstance(error, Exception) and (typed := _translate(error, store.path)) is not error:
            raise typed from None


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
        self._users = 0
        self._idle = threading.Condition()
        self._after_cut = self.path.with_name(self.path.name + ".power-cut")
        self._before_cut = self.path.with_name(self.path.name + ".before-power-cut")
        try:
            if self._after_cut.exists() and not self.path.exists():  # killed in the middle of ``crash``
                self._after_cut.rename(self.path)
            if create:
                make_directory(self.path)
            self._check_files(create)
            self._db = Rdict(str(self.path), _options(), {"meta": _options()})
            self._meta = self._db.get_column_family("meta")
            self._meta_handle = self._db.get_column_family_handle("meta")
            self._durable = self._db.latest_sequence_number()  # opening syncs what it finds
            self._newest_log = self._newest_log_there()
            self._watch = Watch(self.path, self._lost_file)
        except Exception as error:
            raise _translate(error, self.path) from None
        self._open = True
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
            if not create or any(self.path.glob("*.sst")):
                raise Corrupt(f"{self.path}: CURRENT is missing, without it there is no database")
        # RocksDB always leaves a log behind, except when it was killed while it created the database.
        elif read_regular(current) != b"MANIFEST-000001\n" and not any(self.path.glob("*.log")):
            raise Corrupt(f"{self.path}: the write-ahead log is missing, recent writes are lost")
        for file in (*self.path.glob("*.log"), *self.path.glob("MANIFEST-*")):
            _refuse_recycled_records(file)

    def check(self) -> None:
        """Raise ``StorageError`` unless the files can still be found and written. Costs microseconds."""
        with self._using():
            self._watch.check()

    def _lost_file(self) -> str | None:
        """A file that RocksDB needs, and that is not there. It adds and removes some meanwhile."""
        suspects = self._needed_files() - set(os.listdir(self.path))
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
        except OSError:
            return {"CURRENT"}
        return {"CURRENT", manifest, *(file["name"].lstrip("/") for file in self._db.live_files())}

    def _newest_log_there(self) -> int:
        return max((int(log.stem) for log in self.path.glob("*.log") if log.stem.isdecimal()), default=0)

    @property
    def is_open(self) -> bool:
        """Whether it can be used: neither ``close`` nor ``crash`` has been called."""
        return self._open

    def _using(self) -> _Use:
        return _Use(self)

    def get(self, key: bytes) -> bytes | None:
        """The value of a data key; ``None`` if there is none."""
        with self._using():
            value: bytes | None = self._db.get(key)
            return value

    def get_many(self, keys: list[bytes]) -> list[bytes | None]:
        """The values of many data keys, in their order. Other threads run meanwhile."""
        with self._using():
            values: list[bytes | None] = self._db.get(keys)  # type: ignore[arg-type, assignment]
            return values

    def get_meta(self, key: bytes) -> bytes | None:
        """The value of a metadata key; user keys can never collide with one."""
        with self._using():
            value: bytes | None = self._meta.get(key)
            return value

    def meta_items(self, prefix: bytes) -> list[tuple[bytes, bytes]]:
        """All metadata whose key begins with ``prefix``, by key."""
        with self._using(), closing(_walk(self._meta.iter(), prefix, False)) as pairs:
            return list(takewhile(lambda pair: pair[0].startswith(prefix), pairs))

    @contextmanager
    def iterate(
        self, start: bytes = b"", *, backwards: bool = False
    ) -> Iterator[Iterator[tuple[bytes, bytes]]]:
        """The data as it is now, ``(key, value)`` by key from ``start`` on, or from the end ``backwards``.

        Later writes do not show. (RocksDB's own ``items()`` ends silently at a damaged block.)
        """
        with self._using():
            walk = _walk(self._db.iter(), start, backwards)
            try:
                yield walk
            finally:
                walk.close()

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
        with self._using():
            self._db.write(batch)
        self._disk.reach("written")

    def sync(self) -> None:
        """Return when every write so far would survive a power cut, and can be found afterwards."""
        with self._using():
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
        with self._using():
            self._db.flush(True)
            Checkpoint(self._db).create_checkpoint(str(directory))

    def close(self) -> None:
        """Wait for running reads, then close. A second call does nothing."""
        with self._idle:
            was_open, self._open = self._open, False
            self._idle.wait_for(lambda: self._users == 0)
        if was_open:
            try:
                if self._watch.what_is_wrong():  # closing would write tables into whatever has this name now
                    self._db.cancel_all_background(True)
                else:
                    self._meta.close()
                    self._db.close()
            except Exception as error:
                raise _translate(error, self.path) from None
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
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1


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
