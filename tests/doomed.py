"""A group whose replica 3 ends the whole process at a point: ``python -m tests.doomed DIRECTORY POINT``.

It prints a line for each acknowledged put, and before the dangerous moment the index and the number of keys
that replica 3 holds (``old``) and those that the others hold (``new``).
"""

from __future__ import annotations

import os
import sys
import time
from pathlib import Path

from ondisk import Cluster
from ondisk.replica.compaction import POINTS as COMPACTION_POINTS
from ondisk.storage.disk import Disk

DEAD = 77  # the exit status of a process that died where it should


class Doomed(Disk):
    """Ends the process, without any cleaning up, when an armed point is reached."""

    def __init__(self, point: str) -> None:
        self._point = point
        self.armed = False

    def reach(self, point: str) -> None:
        if self.armed and point == self._point:
            sys.stdout.flush()
            os._exit(DEAD)


def put(cluster: Cluster, first: int, last: int) -> None:
    for number in range(first, last):
        cluster.put(f"k{number}", f"v{number}")
        print("ack", number, flush=True)


def tell(cluster: Cluster, what: str, member: int, keys: int) -> None:
    while cluster.stale_get(f"k{keys - 1}", via=member) is None:
        time.sleep(0.01)
    with_index = cluster.machine(member).prepare_snapshot()
    print(what, with_index.index, keys, flush=True)
    with_index.close()


def main(directory: Path, point: str) -> None:
    disk = Doomed(point)
    with Cluster(directory, disks={3: disk}) as cluster:
        put(cluster, 0, 30)
        if cluster.wait_for_leader() == 3:
            cluster.transfer_leadership(1)
        tell(cluster, "old", 3, 30)
        if point in COMPACTION_POINTS:
            tell(cluster, "new", 3, 30)
            disk.armed = True
            cluster.compact(3)
        else:
            cluster.stop(3)
            put(cluster, 30, 60)
            for member in (1, 2):
                tell(cluster, "new", member, 60)
                cluster.compact(member)
            disk.armed = True
            cluster.start(3)
            cluster.get("k59", via=3, timeout=20)
    print("survived", flush=True)


if __name__ == "__main__":
    main(Path(sys.argv[1]), sys.argv[2])
