"""What ``-o json`` prints: one object for each command. docs/clients.md lists them, and a test compares.

Keys and values are bytes, and JSON has text only: what is not UTF-8 is ``{"base64": "..."}`` instead.
"""

from __future__ import annotations

import base64
from typing import Literal

import msgspec


class Base64(msgspec.Struct, frozen=True):
    """Bytes that are no text."""

    base64: str


Data = str | Base64


def data(stored: bytes) -> Data:
    """Bytes for JSON."""
    try:
        return stored.decode()
    except UnicodeDecodeError:
        return Base64(base64.b64encode(stored).decode())


class Put(msgspec.Struct):
    """``put``."""

    key: Data


class Get(msgspec.Struct):
    """``get``: a key that is missing has the value ``null``."""

    key: Data
    value: Data | None


class Delete(msgspec.Struct):
    """``delete``: whether it was there."""

    key: Data
    deleted: bool


class Incr(msgspec.Struct):
    """``incr``: the new number."""

    key: Data
    value: int


class Cas(msgspec.Struct):
    """``cas``: whether the key held what was expected, and was set."""

    key: Data
    swapped: bool


class Pair(msgspec.Struct):
    """One of ``scan``."""

    key: Data
    value: Data


class Scan(msgspec.Struct):
    """``scan``. ``more``: it ended at the limit."""

    pairs: list[Pair]
    more: bool


class Dump(msgspec.Struct):
    """``dump``: what the file holds."""

    pairs: int
    sha256: str


class Load(msgspec.Struct):
    """``load``: how many pairs the file has, which are all set now."""

    pairs: int


class Txn(msgspec.Struct):
    """``txn``. ``answers``: the value of a ``get``, ``null`` if it is missing; of a ``delete`` whether it was
    there; of a ``put`` ``null``."""

    succeeded: bool
    index: int
    answers: list[Data | bool | None]


class Change(msgspec.Struct):
    """One of ``watch``; ``null``: the key was deleted."""

    key: Data
    value: Data | None


class Watch(msgspec.Struct):
    """A line of ``watch``: all that one entry has changed."""

    index: int
    pairs: list[Change]


class Lock(msgspec.Struct):
    """``lock``, before the command runs."""

    key: Data
    token: int


class Digest(msgspec.Struct):
    """One of ``digest``: what an endpoint said, or why it did not."""

    endpoint: str
    index: int
    hash: str
    count: int
    bytes: int
    error: str | None


class Digests(msgspec.Struct):
    """``digest``: of every endpoint, and whether all hold the same."""

    digests: list[Digest]
    same: bool


class Changed(msgspec.Struct):
    """``add``, ``move``, ``remove``, ``replace`` and ``transfer``: which replica it was about."""

    id: int


class Compact(msgspec.Struct):
    """``compact``: the last entry that the log has dropped."""

    dropped: int


class Replica(msgspec.Struct):
    """One of ``status``; the words of ``ReplicaStatus``."""

    id: int
    role: str
    term: int
    leader: int | None
    last_index: int
    commit_index: int
    applied_index: int
    group: str
    disk: str
    error: str | None


class Status(msgspec.Struct):
    """``status``: those that answered, and the endpoints that did not."""

    replicas: list[Replica]
    unreachable: list[str]


class Member(msgspec.Struct):
    """One of ``members``."""

    id: int
    kind: Literal["voter", "learner"]
    address: str


class Members(msgspec.Struct):
    """``members``."""

    group: str
    members: list[Member]


class Health(msgspec.Struct):
    """One endpoint: whether a linearizable read through it was answered, and after how long."""

    endpoint: str
    healthy: bool
    milliseconds: float
    error: str | None


class Healths(msgspec.Struct):
    """``health``: of every endpoint."""

    endpoints: list[Health]


class Failure(msgspec.Struct):
    """Any command that failed. ``outcome``: whether a write may have happened."""

    error: str
    message: str
    outcome: Literal["not done", "unknown"]
