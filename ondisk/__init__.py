"""On-disk replicated state machines: PySyncObj's Raft with the state in RocksDB.

Begin with ``statemachine.py`` (the contract), then ``diskkv.py`` (a state machine) and
``replica/replica.py`` (the step).
"""

from importlib.metadata import version

from ondisk import moved as _moved  # noqa: F401
from ondisk.bulk import BulkLoad, LoadFailed
from ondisk.client import Session
from ondisk.cluster import Cluster
from ondisk.diskkv import DiskKV
from ondisk.errors import (
    CommandTooLarge,
    Corrupt,
    InvalidCommand,
    NoLeader,
    NotDone,
    OndiskError,
    OutcomeUnknown,
    Rejected,
    ReplicaStopped,
    ResourceError,
    SessionExpired,
    SnapshotStopped,
    StorageError,
    Timeout,
    Unfinished,
    UnknownVersion,
    WrongProcess,
)
from ondisk.node import Node
from ondisk.replica import ReplicaStatus
from ondisk.snapshot.restore import import_snapshot
from ondisk.statemachine import (
    Entry,
    OnDiskStateMachine,
    Result,
    SnapshotReader,
    SnapshotView,
    SnapshotWriter,
)

__version__ = version("ondisk")

__all__ = [
    "BulkLoad",
    "Cluster",
    "CommandTooLarge",
    "Corrupt",
    "DiskKV",
    "Entry",
    "InvalidCommand",
    "LoadFailed",
    "NoLeader",
    "Node",
    "NotDone",
    "OnDiskStateMachine",
    "OndiskError",
    "OutcomeUnknown",
    "Rejected",
    "ReplicaStatus",
    "ReplicaStopped",
    "ResourceError",
    "Result",
    "Session",
    "SessionExpired",
    "SnapshotReader",
    "SnapshotStopped",
    "SnapshotView",
    "SnapshotWriter",
    "StorageError",
    "Timeout",
    "Unfinished",
    "UnknownVersion",
    "WrongProcess",
    "import_snapshot",
]
