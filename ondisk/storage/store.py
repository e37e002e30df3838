"""Store: one RocksDB, as the Raft log and the state machine use it.

What it writes is durable after ``sync`` and not before. Damage that RocksDB does not report by itself is
looked for when it opens.
"""

from __future__ import annotations

import os
import shutil
import threading
from itertools import takewhile
from pathlib import Path
from typing import NamedTuple

from rocksdict import Checkpoint, WriteBatch

from ondisk.errors import Corrupt, StorageError
from ondisk.interrupts import forked
from ondisk.storage import rocksdb
from ondisk.storage.calls import Calls, Walk
from ondisk.storage.disk import Disk, make_directory
from ondisk.storage.errors import NOT_THERE, disk_errors, typed
from ondisk.storage.holes import refuse_hole
from ondisk.storage.paths import names_in, read_regular, what_it_is
from ondisk.storage.powercut import copy_files, cut_after
from ondisk.storage.records import refuse_recycled_records
from ondisk.storage.watch import Watch


class Sizes(NamedTuple):
    """Where the data of a database are. The write-ahead log may be longer than what recovery needs of it."""

    log_bytes: int  # the write-ahead log, from which recent writes are recovered
    memtable: int  # how many writes of data are in memory, sorted, and in no table yet
    tables: int  # how many files
    table_bytes: int


class Store:
    """One RocksDB with the column families ``default`` and ``meta``, both with keys and values in bytes.

    Reads may come from any thread. ``write``, ``sync``, ``close`` and ``crash`` come from one at a time.
    """

    def __init__(self, path: Path, disk: Disk | None = None, *, create: bool = True) -> None:
        """Open or create; without ``create`` a database that is missing is ``Corrupt``.

        Raises ``DirectoryInUse``, ``Corrupt``, ``StorageError`` or ``ResourceError``.
        """
        self.path = path.absolute()  # RocksDB opens files later on, whatever the working directory is then
        self._current = str(self.path / "CURRENT")
        self._disk = disk or Disk()
        self._calls = Calls(self.path)
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
            self._db = rocksdb.open_database(self.path)
            self._meta = self._db.get_column_family("meta")
            self._meta_handle = self._db.get_column_family_handle("meta")
            self._durable = self._db.latest_sequence_number()  # opening syncs what it finds
            self._newest_log = _newest_log(names_in(self.path))
            self._watch = Watch(self.path, self._lost_file)
        except Exception as error:
            self._let_go(write=False)  # what failed may be kept, and this with it
            raise typed(error, self.path) from None
        self._calls.open = True
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
        elif read_regular(current) != b"MANIFEST-000001\n" and not _newest_log(names_in(self.path)):
            raise Corrupt(f"{self.path}: the write-ahead log is missing, recent writes are lost")
        for name in names_in(self.path):
            if name.endswith(".log") or name.startswith("MANIFEST-"):
                refuse_recycled_records(self.path / name)
        if current.exists():
            refuse_hole(self.path)

    def check(self) -> None:
        """Raise ``StorageError`` unless the files can still be found. Costs a microsecond or two.

        Whether what was written since is durable is another question: ``sync`` answers it.
        """
        with self._calls:
            self._watch.check(durable=False)

    def _lost_file(self) -> str | None:
        """A file that RocksDB needs, and that is not there. It adds and removes some meanwhile.

        Raises ``OSError`` if that cannot be found out.
        """
        needed = self._needed_files()
        names = names_in(self.path)
        suspects = needed.difference(names)
        if suspects and (lost := suspects & self._needed_files()):  # before and after, and not in between
            return min(lost)
        for _ in range(3):  # a log that is listed neither before it is made nor after it is removed is there
            if (newest := _newest_log(names)) >= self._newest_log:
                self._newest_log = newest
                return None
            names = names_in(self.path)
        return f"{self._newest_log:06}.log"

    def _needed_files(self) -> set[str]:
        try:
            with open(self._current, "rb", buffering=0) as file:
                manifest = file.read().decode("ascii", "replace").strip()
        except NOT_THERE:
            return {"CURRENT"}
        return {"CURRENT", manifest, *[file["name"].lstrip("/") for file in self._db.live_files()]}

    @property
    def is_open(self) -> bool:
        """Whether it can be used: neither ``close`` nor ``crash`` has been called."""
        return self._calls.open

    def forget_parent(self) -> None:
        """In a child: leave the database alone, for ever. Its threads are the parent's."""
        self._calls.open = False
        mine = getattr(self, "_db", None), getattr(self, "_meta", None), self._calls.walks
        for each in (*mine, *rocksdb.shared_cache):
            forked.leak(each)
        forked.leak(getattr(self, "_meta_handle", None))

    def get(self, key: bytes) -> bytes | None:
        """The value of a data key; ``None`` if there is none."""
        try:
            self._calls.check_open()
            value: bytes | None = self._db.get(key)
        except Exception as error:
            raise self._calls.typed(error) from None
        return value

    def get_many(self, keys: list[bytes]) -> list[bytes | None]:
        """The values of many data keys, in their order. Other threads run meanwhile."""
        with self._calls:
            values: list[bytes | None] = self._db.get(keys)  # type: ignore[arg-type, assignment]
            return values

    def get_meta(self, key: bytes) -> bytes | None:
        """The value of a metadata key; user keys can never collide with one."""
        with self._calls:
            value: bytes | None = self._meta.get(key)
            return value

    def meta_items(self, prefix: bytes) -> list[tuple[bytes, bytes]]:
        """All metadata whose key begins with ``prefix``, by key."""
        with self.iterate_meta(prefix) as pairs:
            return list(takewhile(lambda pair: pair[0].startswith(prefix), pairs))

    def sizes(self) -> Sizes:
        """How much there is of what it consists of. Costs some system calls."""
        log = sum(path.stat().st_size for path in self.path.glob("*.log"))
        with self._calls:
            memtable = self._db.property_int_value("rocksdb.num-entries-active-mem-table") or 0
            tables = self._db.live_files()
        return Sizes(log, memtable, len(tables), sum(table["size"] for table in tables))

    def iterate(self, start: bytes = b"", *, backwards: bool = False) -> Walk:
        """``with`` this: the data as it is now, ``(key, value)`` by key from ``start``, or ``backwards``.

        Later writes do not show. (RocksDB's own ``items()`` ends silently at a damaged block.)
        """
        return Walk(self._calls, lambda: self._db.iter(), start, backwards)  # noqa: PLW0108 (it may be closed)

    def iterate_meta(self, start: bytes) -> Walk:
        """``with`` this: the metadata as they are now, ``(key, value)`` by key from ``start``."""
        return Walk(self._calls, lambda: self._meta.iter(), start, False)  # noqa: PLW0108 (it may be closed)

    def batch(self) -> WriteBatch:
        """A new, empty batch: whatever is put in becomes visible and durable together."""
        return WriteBatch(raw_mode=True)

    def put_meta(self, batch: WriteBatch, key: bytes, value: bytes | None) -> None:
        """Add a metadata key to a batch, or (``None``) that it goes."""
        self._calls.check_open()
        if value is None:
            batch.delete(key, self._meta_handle)
        else:
            batch.put(key, value, self._meta_handle)

    def delete_meta(self, batch: WriteBatch, first: bytes, end: bytes) -> None:
        """Add to a batch that all metadata from ``first`` on go whose key is less than ``end``."""
        self._calls.check_open()
        batch.delete_range(first, end, self._meta_handle)

    def write(self, batch: WriteBatch) -> None:
        """Apply a batch: visible at once, durable after the next ``sync``."""
        self._disk.reach("write")
        with self._calls:
            self._db.write(batch)
        self._disk.reach("written")

    def sync(self) -> None:
        """Return when every write so far would survive a power cut, and can be found afterwards."""
        with self._calls:
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
        with self._calls:
            self._db.flush(True)
            Checkpoint(self._db).create_checkpoint(str(directory))

    def close(self) -> None:
        """Wait for running reads, then close. A second call does nothing."""
        with self._closing:
            self._calls.open = False
            if not hasattr(self, "_db"):
                return
            self._calls.wait_for_walks()
            try:
                self._let_go(write=self._watch.is_certain())
            except Exception as error:
                raise typed(error, self.path) from None

    def _let_go(self, *, write: bool) -> None:
        """Close what is open. Closing may ``write`` tables, into what has the name of the directory now."""
        try:
            if write:
                for database in (self._meta, self._db):
                    rocksdb.close(database)
            elif hasattr(self, "_db"):
                self._db.cancel_all_background(True)
        finally:
            for name in ("_meta_handle", "_meta", "_db"):
                self.__dict__.pop(name, None)

    def crash(self) -> None:
        """Close as a power cut would: the write-ahead log ends where it was last synced.

        What was never synced may survive in part, as it may in a real one: RocksDB moves older writes to
        tables on its own. Once closed, a call does nothing.
        """
        if not self._calls.open:
            return
        with disk_errors(self.path):  # somebody may rename the directory meanwhile
            while not copy_files(self.path, self._after_cut):
                pass  # RocksDB changed its set of files meanwhile
            for wal in self._after_cut.glob("*.log"):
                cut_after(wal, self._durable, self._disk.survivors)
            self.close()
            shutil.rmtree(self._before_cut, ignore_errors=True)
            self.path.rename(self._before_cut)  # whoever is killed here finds the copy when opening again
            self._after_cut.rename(self.path)
            shutil.rmtree(self._before_cut)


def _newest_log(names: list[str]) -> int:
    """The number of the newest write-ahead log among the names of a directory; 0 if there is none."""
    logs = [name.removesuffix(".log") for name in names if name.endswith(".log")]
    return max([int(number) for number in logs if number.isdecimal()], default=0)
