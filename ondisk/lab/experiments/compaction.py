"""The log of a replica in a live group: filled, compacted, and what it has stored of that."""

from __future__ import annotations

import random
import shutil
from collections import deque
from concurrent.futures import Future
from pathlib import Path
from typing import Any

import msgspec

from ondisk.cluster import Cluster
from ondisk.raft.log import RaftLog
from ondisk.statemachine import Result

_IN_FLIGHT = 128  # puts


def start_over(data_dir: Path | str) -> Cluster:
    """A new cluster on empty disks: what is in the directory is deleted.

    One that this process has open there is closed first; another process's is left alone
    (``DirectoryInUse``).
    """
    with Cluster(data_dir) as former:
        pass
    shutil.rmtree(former.data_dir)
    return Cluster(data_dir)


def fill(cluster: Cluster, keys: int, value_bytes: int) -> int:
    """Put so many keys, many at a time; return the bytes of their keys and values."""
    values, waiting = random.Random(1), deque[Future[Result]]()
    size = 0
    for number in range(keys):
        key, value = f"key {number:09}", values.randbytes(value_bytes)
        size += len(key) + len(value)
        waiting.append(cluster.put_async(key, value, timeout=60))
        if len(waiting) >= _IN_FLIGHT:
            waiting.popleft().result()
    for future in waiting:
        future.result()
    return size


def log_directory(cluster: Cluster, replica_id: int) -> Path:
    """Where a replica of this cluster has its log."""
    return cluster.data_dir / f"replica-{replica_id}" / "log"


def compaction_record(cluster: Cluster, replica_id: int) -> bytes:
    """What a *stopped* replica has stored of its last compaction. ``DirectoryInUse`` if it runs."""
    log = RaftLog(log_directory(cluster, replica_id))
    try:
        return log.compaction_record()
    finally:
        log.close()


def read_record(record: bytes) -> dict[str, Any]:
    """The record in words."""
    index, term, configurations, installing = msgspec.msgpack.decode(record)
    members = [configuration[1][0] for configuration in configurations]
    return {
        "last index that was dropped": index,
        "its term": term,
        "the members": members[-1],
        "a snapshot that may be half installed": installing,
    }
