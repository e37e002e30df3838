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
* Two column families are flushed to tables one after the other, unless ``atomic_flush`` is set. Without it
  the tables alone would hold data without the index that belongs to it.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager

from rocksdict import BlockBasedOptions, Cache, DBRecoveryMode, Options, Rdict

# Six databases live in one Jupyter kernel on a free machine with 1 GB, so they share one block
# cache, and each may hold only a few MB of recent writes before it flushes them.
_CACHE_BYTES = 32 << 20
WRITE_BUFFER_BYTES = 8 << 20
_OPEN_TABLES = 128  # for each of the six; many systems allow a process 1024 open files
_BACKGROUND_JOBS = 8  # RocksDB keeps a quarter of them for flushes
_MANIFEST_BYTES = 4 << 20  # then RocksDB begins a new one; it is read whole when opening
shared_cache: list[Cache] = []

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
    return chosen


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
