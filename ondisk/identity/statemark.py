"""The mark of a state: a file in the state machine's directory that names the disk it belongs to.

A state and a log belong together: the state holds the outcome of *this* log's entries up to its index. If
somebody puts in the state of another replica, or keeps the state of a log that is lost, the two still open,
and the replica would take for committed what its log does not hold. So the state's directory says whose it
is.

A state machine that keeps nothing in a directory has no mark, and needs none.
"""

from __future__ import annotations

import os
from pathlib import Path

from ondisk.errors import Corrupt, StorageError
from ondisk.raft.log import RaftLog
from ondisk.raft.members import short
from ondisk.storage import lines
from ondisk.storage.disk import Disk, sync_directory
from ondisk.storage.paths import read_regular

_NAME = "belongs-to"
_KIND, _VERSION = "ondisk-state", 1


def check_mark(log: RaftLog, state: Path) -> None:
    """Before the state machine opens: refuse the state of another disk. Raises ``Corrupt``."""
    file = state / _NAME
    try:
        stored = read_regular(file)
    except (FileNotFoundError, NotADirectoryError):
        return
    except OSError as error:
        raise StorageError(f"{file}: cannot be read ({error})") from None
    replica, _, disk = lines.decode(file, stored, _KIND, _VERSION).partition(" ")
    if disk != log.disk_id.hex():
        assert log.identity is not None
        raise Corrupt(
            f"{state}: this state belongs to the log of replica {replica} (disk {disk[:8]}), and the log "
            f"beside it is that of replica {log.identity.replica_id} (disk {short(log.disk_id)}): was one of "
            "them lost, or put in from elsewhere? Put back what belongs here, or rebuild the replica from "
            "the others"
        )


def mark(log: RaftLog, state: Path, opened_index: int, disk: Disk) -> None:
    """After the state machine has opened: mark its directory, durably, unless it is marked.

    One that holds anything and has lost its mark is from elsewhere. Raises ``Corrupt`` or ``StorageError``.
    """
    assert log.identity is not None
    file = state / _NAME
    if not state.is_dir() or file.exists():
        return
    if opened_index > 0 and log.identity.state_marked:
        raise Corrupt(
            f"{state}: this state says not whose it is, and the one that belongs to replica "
            f"{log.identity.replica_id} (disk {short(log.disk_id)}) did: was it put in from elsewhere? Put "
            "back what belongs here, or rebuild the replica from the others"
        )
    new = file.with_name(_NAME + ".new")
    try:
        with open(new, "wb", buffering=0) as out:
            out.write(lines.encode(_KIND, _VERSION, f"{log.identity.replica_id} {log.disk_id.hex()}"))
            disk.sync(lambda: os.fsync(out.fileno()))
        new.rename(file)
        sync_directory(state, disk)
    except OSError as error:
        raise StorageError(f"{file}: cannot be written ({error})") from None
    log.identify(state_marked=True)
