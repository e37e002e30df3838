"""RocksDB: how a database is set up and closed, and what is peculiar about it and about rocksdict.

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
* Where it cannot start a thread it throws an exception that nobody can catch, which ends the process. It
  starts those of its pool when a process opens its first database, so whether there is room is tried before.
  It does the same where it gets no memory. Nobody can ask before, and what was synced is there afterwards.
* Two column families are flushed to tables one after the other, unless ``atomic_flush`` is set. Without it
  the tables alone would hold data without the index that belongs to it.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from rocksdict import BlockBasedOptions, Cache, DBRecoveryMode, Options, Rdict

from ondisk.errors import ResourceError

# Six databases live in one Jupyter kernel on a free machine with 1 GB, so they share one block
# cache, and each may hold only a few MB of recent writes before it flushes them.
_CACHE_BYTES = 32 << 20
WRITE_BUFFER_BYTES = 8 << 20
_OPEN_TABLES = 128  # for each of the six; many systems allow a process 1024 open files
_BACKGROUND_JOBS = 8  # RocksDB keeps a quarter of them for flushes
_MANIFEST_BYTES = 4 << 20  # then RocksDB begins a new one; it is read whole when opening
_POOL_THREADS = _BACKGROUND_JOBS + 1  # and its timer
shared_cache: list[Cache] = []
_has_threads = False  # since this process opened its first database

_LENT = "Already"  # borrowed, or mutably borrowed: how PyO3 says that somebody is inside
LENT_SECONDS = 0.0002  # between two attempts to close


def options() -> Options:
    """How each database, and each column family of one, is opened."""
    if not shared_cache:
        shared_cache.append(Cache(_CACHE_BYTES))
    table = BlockBasedOptions()
    table.set_block_cache(shared_cache[0])
    chosen = Options(raw_mode=True)
    chosen.create_if_missing(True)
    chosen.create_missing_column_families(True)
    chosen.set_block_based_table_factory(table)
    chosen.set_wal_recovery_mode(DBRecoveryMode.tolerate_corrupted_tail_records())
    chosen.set_atomic_flush(True)
    chosen.set_write_buffer_size(WRITE_BUFFER_BYTES)
    chosen.set_keep_log_file_num(2)
    chosen.set_max_open_files(_OPEN_TABLES)
    chosen.set_max_manifest_file_size(_MANIFEST_BYTES)
    chosen.set_max_background_jobs(_BACKGROUND_JOBS)
    chosen.set_max_file_opening_threads(1)  # each opening would start 15 of them, for a moment
    return chosen


def open_database(path: Path) -> Rdict:
    """Open a database, with the column family ``meta``.

    Raises ``ResourceError`` if no thread can be started for it, and plain ``Exception``s of RocksDB.
    """
    global _has_threads
    if not _has_threads:
        _try_threads(path)
    database = Rdict(str(path), options(), {"meta": options()})
    _has_threads = True
    return database


def _try_threads(path: Path) -> None:
    """Start as many threads as RocksDB is going to start, and let them end again."""
    over = threading.Event()
    started: list[threading.Thread] = []
    try:
        for _ in range(_POOL_THREADS):
            thread = threading.Thread(target=over.wait, name="ondisk-try", daemon=True)
            thread.start()
            started.append(thread)
    except (RuntimeError, MemoryError) as error:
        reason = str(error) or "there is no memory"
        raise ResourceError(f"{path}: no thread can be started for RocksDB ({reason})") from None
    finally:
        over.set()
        for thread in started:
            thread.join()


@contextmanager
def fresh_cache() -> Iterator[None]:
    """Databases that are opened inside know nothing of blocks that were read before: they ask the disk."""
    known, shared_cache[:] = shared_cache[:], []
    try:
        yield
    finally:
        shared_cache[:] = known


def close(database: Rdict) -> None:
    """Close a database, or a column family of one, when the calls that run in it have ended."""
    while True:
        try:
            database.close()
            return
        except RuntimeError as error:
            if not str(error).startswith(_LENT):
                raise
            time.sleep(LENT_SECONDS)  # for a call inside RocksDB, which no Python code can make longer
