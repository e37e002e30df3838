"""Digest: what the contents come to, to compare replicas: a hash, how many keys, how many bytes.

A replica walks over all pairs under the prefix, at one point in time and beside everything else that it does:
that takes about a second for 1 GB. Nothing is kept for it, so who never asks pays nothing.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from typing import Any, ClassVar

import msgspec

from ondisk.errors import Compacted, InvalidCommand
from ondisk.storage.store import Store
from ondisk.verbs.changes import Changes, page
from ondisk.verbs.texts import Text, as_key


class Digest(msgspec.Struct, frozen=True, array_like=True):
    """Of the pairs under a prefix, as of entry ``index``: their SHA-256, how many they are, their bytes."""

    index: int
    hash: str
    count: int
    bytes: int


class DigestOf(msgspec.Struct, frozen=True, array_like=True, forbid_unknown_fields=True, tag="digest"):
    """Query: the ``Digest`` of what is under a prefix. With ``hashed=False`` its hash is empty, and it is
    quicker.

    ``index``: as of this entry. Raises ``Compacted`` if a later one has changed something under the prefix,
    and ``InvalidCommand`` if the replica has not come so far. ``None``: as of now.
    """

    answer: ClassVar[Any] = Digest

    prefix: bytes = b""
    index: int | None = None
    hashed: bool = True


def digest_of(prefix: Text = b"", index: int | None = None, *, hashed: bool = True) -> DigestOf:
    """The query. Raises ``InvalidCommand``."""
    if index is not None and (not isinstance(index, int) or index < 0):  # type: ignore[redundant-expr]
        raise InvalidCommand("an index is a whole number, at least 0")
    return DigestOf(as_key(prefix), index, hashed)


def digest(store: Store, query: DigestOf, applied: Callable[[], int]) -> Digest:
    """The answer. ``applied`` tells the index that the database holds."""
    while (found := _walk(store, query, applied)) is None:
        pass
    if query.index is None or query.index == found.index:
        return found
    if query.index > found.index:
        raise InvalidCommand(f"entry {query.index} is not applied here yet: {found.index} is the last one")
    later = page(store, Changes(query.prefix, query.index, 1), found.index).entries
    if later and later[0].index <= found.index:
        raise Compacted(f"the contents as of entry {query.index} are gone: there are later changes")
    return msgspec.structs.replace(found, index=query.index)


def _walk(store: Store, query: DigestOf, applied: Callable[[], int]) -> Digest | None:
    """``None``: there was an update in the moment in which it began, so nobody knows what it would see."""
    index, total, count, size = applied(), hashlib.sha256(), 0, 0
    with store.iterate(query.prefix) as pairs:
        if applied() != index:
            return None
        for key, value in pairs:
            if not key.startswith(query.prefix):
                break
            count += 1
            size += len(key) + len(value)
            if query.hashed:
                total.update(b"%d %d " % (len(key), len(value)))
                total.update(key)
                total.update(value)
    return Digest(index, total.hexdigest() if query.hashed else "", count, size)
