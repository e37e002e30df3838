"""The disk: how RocksDB is opened, written and made durable, in one place.

The Raft log and the state machine both stand on a ``Store``. What is peculiar about RocksDB and
rocksdict is written down here once:

* ``write`` hands a batch to the operating system; only ``sync`` makes it durable. ``flush_wal(True)``
  gives up the GIL while it waits for the disk, a synchronous ``write`` does not, hence two calls.
* The default recovery mode silently keeps half of a damaged write-ahead log.
  ``tolerate_corrupted_tail_records`` reports damage and still forgives the torn tail of a power cut.
* A handle or an iterator that is still alive keeps a closed database locked, and closing beside a
  running call fails. So users are counted in and out.
"""

from __future__ import annotations

import fcntl
import os
import shutil
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import psutil
from rocksdict import (
    BlockBasedOptions,
    Cache,
    DBRecoveryMode,
    Options,
    Rdict,
    RdictIter,
    WriteBatch,
)

from ondisk.errors import Corrupt, DirectoryInUse, StorageError, StoreClosed

# Six databases live in one Jupyter kernel on a free machine with 1 GB, so they share one block
# cache, and each may hold only a few MB of recent writes before it flushes them.
_CACHE_BYTES = 32 << 20
_WRITE_BUFFER_BYTES = 8 << 20
_shared_cache: list[Cache] = []


class Disk:
    """What a replica asks of its disk. Tests and the simulation hand in one that stalls or fails."""

    def sync(self, flush: Callable[[], None]) -> None:
        """Call ``flush``, which returns when the bytes are durable, or raise ``OSError``."""
        flush()


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
    options.set_write_buffer_size(_WRITE_BUFFER_BYTES)
    options.set_keep_log_file_num(2)
    return options


def _translate(error: Exception, path: Path) -> StorageError:
    """RocksDB's errors are plain ``Exception``s with a text: make them typed ones that name the place."""
    text = str(error)
    if "orruption" in text or "checksum" in text:
        return Corrupt(f"{path}: the stored data is damaged ({text})")
    return StorageError(f"{path}: the disk refused ({text})")


class Store:
    """One RocksDB with the column families ``default`` and ``meta``, both with keys and values in bytes.

    Reads may come from any thread. ``write``, ``sync``, ``close`` and ``crash`` come from one at a time.
    """

    def __init__(self, path: Path, disk: Disk | None = None) -> None:
        """Open or create. Raises ``DirectoryInUse``, ``Corrupt`` or ``StorageError``."""
        self.path = path
        self._disk = disk or Disk()
        self._users = 0
        self._idle = threading.Condition()
        self._wal_durable: tuple[str, int] = ("", 0)  # newest write-ahead log, and its synced length
        existed = (path / "CURRENT").exists()
        if existed and not any(path.glob("*.log")):
            # RocksDB always leaves one behind, and opens without a word when it has gone missing.
            raise Corrupt(f"{path}: the write-ahead log is missing, recent writes are lost")
        path.mkdir(parents=True, exist_ok=True)
        try:
            self._db: Rdict | None = Rdict(str(path), _options(), {"meta": _options()})
            self._meta: Rdict | None = self._db.get_column_family("meta")
            self._meta_handle = self._db.get_column_family_handle("meta")
        except Exception as error:
            if "lock" in str(error).lower():
                raise DirectoryInUse(f"{path}: the database is open elsewhere ({error})") from None
            raise _translate(error, path) from None

    @contextmanager
    def _using(self) -> Iterator[tuple[Rdict, Rdict]]:
        with self._idle:
            if self._db is None or self._meta is None:
                raise StoreClosed(f"{self.path}: closed")
            self._users += 1
            handles = self._db, self._meta
        try:
            yield handles
        except StorageError:
            raise
        except Exception as error:
            raise _translate(error, self.path) from None
        finally:
            del handles
            with self._idle:
                self._users -= 1
                self._idle.notify_all()

    def get(self, key: bytes) -> bytes | None:
        """The value of a data key; ``None`` if there is none."""
        with self._using() as (db, _):
            value: bytes | None = db.get(key)
            return value

    def get_many(self, keys: list[bytes]) -> list[bytes | None]:
        """The values of many data keys, in their order. Other threads run meanwhile."""
        with self._using() as (db, _):
            values: list[bytes | None] = db.get(keys)  # type: ignore[assignment]
            return values

    def get_meta(self, key: bytes) -> bytes | None:
        """The value of a metadata key; user keys can never collide with one."""
        with self._using() as (_, meta):
            value: bytes | None = meta.get(key)
            return value

    @contextmanager
    def iterate(self) -> Iterator[RdictIter]:
        """An iterator over the data as it is now; later writes do not show. Check ``status()`` at the end.

        (``items()`` would be shorter, but ends silently at a damaged block.)
        """
        with self._using() as (db, _):
            iterator = db.iter()
            try:
                yield iterator
                iterator.status()
            finally:
                del iterator

    def batch(self) -> WriteBatch:
        """A new, empty batch: whatever is put in becomes visible and durable together."""
        return WriteBatch(raw_mode=True)

    def put_meta(self, batch: WriteBatch, key: bytes, value: bytes) -> None:
        """Add a metadata key to a batch."""
        batch.put(key, value, self._meta_handle)

    def write(self, batch: WriteBatch) -> None:
        """Apply a batch: visible at once, durable after the next ``sync``."""
        with self._using() as (db, _):
            db.write(batch)

    def sync(self) -> None:
        """Return when every write so far would survive a power cut."""
        with self._using() as (db, _):
            self._disk.sync(lambda: db.flush_wal(True))
        newest = self._newest_wal()
        self._wal_durable = (newest.name, newest.stat().st_size) if newest else ("", 0)

    def _newest_wal(self) -> Path | None:
        return max(self.path.glob("*.log"), key=lambda path: int(path.stem), default=None)

    def close(self) -> None:
        """Wait for running reads, then close. A second call does nothing."""
        with self._idle:
            db, self._db, self._meta, self._meta_handle = self._db, None, None, None  # type: ignore[assignment]
            self._idle.wait_for(lambda: self._users == 0)
        if db is not None:
            db.close()

    def crash(self) -> None:
        """Close as a power cut would: the write-ahead log ends where it was last synced.

        RocksDB writes its memory to tables when it closes, so the directory is copied first (tables
        as hard links) and the copy takes its place.
        """
        after = self.path.with_name(self.path.name + ".power-cut")
        while not self._copy_files(after):
            pass  # RocksDB changed its set of files meanwhile
        newest = max(after.glob("*.log"), key=lambda path: int(path.stem), default=None)
        if newest is not None:
            name, durable = self._wal_durable
            os.truncate(newest, durable if newest.name == name else 0)
        self.close()
        shutil.rmtree(self.path)
        after.rename(self.path)

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

    def __init__(self, directory: Path) -> None:
        """Take the lock. Raises ``DirectoryInUse`` at once, with the owner's name."""
        try:
            directory.mkdir(parents=True, exist_ok=True)
            self._fd = os.open(directory / "owner", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
        except OSError as error:
            raise StorageError(f"{directory}: cannot be used as a data directory ({error})") from None
        try:
            fcntl.flock(self._fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            owner = os.pread(self._fd, 20, 0).decode("ascii", "replace").strip()
            os.close(self._fd)
            raise DirectoryInUse(
                f"{directory} is in use by {describe_process(owner)}. Stop it, or choose another directory."
            ) from None
        os.ftruncate(self._fd, 0)
        os.pwrite(self._fd, f"{os.getpid()}\n".encode(), 0)

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
