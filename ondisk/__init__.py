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
    ConfigurationError,
    Corrupt,
    DirectoryInUse,
    Discarded,
    InvalidCommand,
    MembersUnknown,
    NoLeader,
    NotDone,
    OndiskError,
    OutcomeUnknown,
    PortInUse,
    Rejected,
    ReplicaStopped,
    ResourceError,
    SessionExpired,
    SessionExpiredNotDone,
    SessionExpiredUnknown,
    SnapshotStopped,
    StorageError,
    StoreClosed,
    Timeout,
    Unfinished,
    UnknownVersion,
    WrongProcess,
)
from ondisk.net.tcp import TcpNetwork
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
    "ConfigurationError",
    "Corrupt",
    "DirectoryInUse",
    "Discarded",
    "DiskKV",
    "Entry",
    "InvalidCommand",
    "LoadFailed",
    "MembersUnknown",
    "NoLeader",
    "Node",
    "NotDone",
    "OnDiskStateMachine",
    "OndiskError",
    "OutcomeUnknown",
    "PortInUse",
    "Rejected",
    "ReplicaStatus",
    "ReplicaStopped",
    "ResourceError",
    "Result",
    "Session",
    "SessionExpired",
    "SessionExpiredNotDone",
    "SessionExpiredUnknown",
    "SnapshotReader",
    "SnapshotStopped",
    "SnapshotView",
    "SnapshotWriter",
    "StorageError",
    "StoreClosed",
    "TcpNetwork",
    "Timeout",
    "Unfinished",
    "UnknownVersion",
    "WrongProcess",
    "import_snapshot",
]
