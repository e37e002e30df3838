"""What a log consists of, as it is stored and sent: entries, the identity, the base."""

from __future__ import annotations

from typing import Annotated

import msgspec

from ondisk.raft.members import Disk as DiskId
from ondisk.raft.members import Id, Members

# The first byte of a command says what it is. NO_OP is what PySyncObj's new leader begins with.
REGULAR, NO_OP, MEMBERS = b"\x00", b"\x01", b"\x02"


Natural = Annotated[int, msgspec.Meta(ge=0)]


class LogEntry(msgspec.Struct, frozen=True, array_like=True, gc=False):
    """One entry: its place in the log, the term of the leader that made it, and the command."""

    index: Natural
    term: Natural
    command: bytes


class Identity(msgspec.Struct, frozen=True, array_like=True):
    """Who this is, and what it has said before it belonged to a group. Written before anything else.

    ``boot`` counts how often the log was opened. ``first`` are the members that the replica was first started
    with. ``seed`` is the digest of the snapshot that was imported; ``round`` and ``roster`` are the vote for
    a founding (docs/protocol.md, F). ``state_marked``: the state machine's directory names this disk, too.
    """

    magic: str
    version: int
    replica_id: Natural
    disk: DiskId
    boot: Natural
    first: tuple[Id, ...] = ()
    seed: bytes = b""
    round: Natural = 0
    roster: tuple[tuple[Id, DiskId, str], ...] = ()
    state_marked: bool = False
    nonces: tuple[Natural, ...] = ()  # of this life and of some before, the newest first
    existing: DiskId = b""  # the directory was erased on purpose: it found no group, but joins this one
    refused: str = ""  # why the others will never hear this disk again
    promises: bool = False  # it may have promised a leader to help nobody else (``raft/elections.py``)


class Base(msgspec.Struct, frozen=True, array_like=True):
    """What is stored about the time before the first entry, and about changes of the members since."""

    index: Natural
    term: Natural
    configurations: list[tuple[Natural, Members]]
    installing: tuple[Natural, Natural, Members] | None
