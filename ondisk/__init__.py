"""On-disk replicated state machines: PySyncObj's Raft with the state in RocksDB.

Begin with ``statemachine.py`` (the contract), then ``diskkv.py`` (a state machine) and
``replica/replica.py`` (the step).
"""

from typing import TYPE_CHECKING

from ondisk import moved as _moved  # noqa: F401
from ondisk.bulk import BulkLoad, LoadFailed
from ondisk.client import Session
from ondisk.cluster import Cluster
from ondisk.diskkv import DiskKV
from ondisk.errors import (
    CommandTooLarge,
    Compacted,
    ConfigurationError,
    Corrupt,
    DirectoryInUse,
    Discarded,
    InvalidCommand,
    LeaseEnded,
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
    Unreachable,
    WrongProcess,
)
from ondisk.net.tcp import TcpNetwork
from ondisk.node import Node
from ondisk.remote import AsyncClient, RemoteClient, connect
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

if TYPE_CHECKING:
    __version__: str
else:

    def __getattr__(name):
        """The version is looked up when somebody asks: that takes a fifth of the time of this import."""
        if name != "__version__":
            raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
        from importlib.metadata import version

        return version("ondisk")


__all__ = [
    "AsyncClient",
    "BulkLoad",
    "Cluster",
    "CommandTooLarge",
    "Compacted",
    "ConfigurationError",
    "Corrupt",
    "DirectoryInUse",
    "Discarded",
    "DiskKV",
    "Entry",
    "InvalidCommand",
    "LeaseEnded",
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
    "RemoteClient",
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
    "Unreachable",
    "WrongProcess",
    "connect",
    "import_snapshot",
]
