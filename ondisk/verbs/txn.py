"""Txn: compare, then, else. Many keys in one step of the log, as in etcd.

If all comparisons hold, the operations of *then* are done, and otherwise those of *else*: all of them, at one
index, and nobody sees a part of it. The answer says which branch it was, at which index, and what each of its
operations found.

``Unchanged`` makes optimistic transactions: read what you need as of some index, and write only if none of it
has changed since. The history of changes answers it (``changes.py``), so nothing has to be stored beside
each key. What it cannot tell any more counts as changed.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated

import msgspec

from ondisk.errors import InvalidCommand
from ondisk.statemachine import Result
from ondisk.verbs.changes import changed
from ondisk.verbs.pending import Pending
from ondisk.verbs.texts import MAX_KEY_BYTES, MAX_VALUE_BYTES, Text, as_key, as_value, too_long

MAX_PARTS = 128  # comparisons, and operations of each branch

_Index = Annotated[int, msgspec.Meta(ge=0, le=(1 << 63) - 1)]


class _Part(msgspec.Struct, frozen=True, array_like=True, forbid_unknown_fields=True):
    """An array that begins with its tag, like the commands of ``DiskKV``."""

    key: bytes


class Equals(_Part, frozen=True, tag="equals"):
    """Compare: whether the key holds this value."""

    value: bytes


class Exists(_Part, frozen=True, tag="exists"):
    """Compare: whether there is such a key."""


class Missing(_Part, frozen=True, tag="missing"):
    """Compare: whether there is no such key."""


class Unchanged(_Part, frozen=True, tag="unchanged"):
    """Compare: whether the last change of the key, if any, came at index ``since`` or before."""

    since: _Index


class PutKey(_Part, frozen=True, tag="put"):
    """Operation: set the key, and put it under a lease. Answers ``None``."""

    value: bytes
    lease: Annotated[int, msgspec.Meta(ge=1, le=(1 << 63) - 1)] | None = None


class DeleteKey(_Part, frozen=True, tag="delete"):
    """Operation: remove the key. Answers whether it was there."""


class GetKey(_Part, frozen=True, tag="get"):
    """Operation: answers the value as of before this command; ``None``: there is no such key."""


Compare = Equals | Exists | Missing | Unchanged
Operation = PutKey | DeleteKey | GetKey


class Txn(msgspec.Struct, frozen=True, array_like=True, forbid_unknown_fields=True, tag="txn"):
    """If all of ``compare`` holds do ``then``, else ``otherwise``. Answers ``Answer``, encoded."""

    compare: Annotated[tuple[Compare, ...], msgspec.Meta(max_length=MAX_PARTS)]
    then: Annotated[tuple[Operation, ...], msgspec.Meta(max_length=MAX_PARTS)]
    otherwise: Annotated[tuple[Operation, ...], msgspec.Meta(max_length=MAX_PARTS)]


class Answer(msgspec.Struct, frozen=True, array_like=True):
    """What a transaction did: whether the comparisons held, at which index, and what each operation answers.

    The index is larger than that of every entry before it: a fencing token, if one is needed.
    """

    succeeded: bool
    index: int
    answers: tuple[bytes | bool | None, ...]


_encoder = msgspec.msgpack.Encoder()
_answers = msgspec.msgpack.Decoder(Answer)


def equals(key: Text, value: Text) -> Equals:
    """Compare: the key holds this value."""
    return Equals(as_key(key), as_value(value))


def exists(key: Text) -> Exists:
    """Compare: there is such a key."""
    return Exists(as_key(key))


def missing(key: Text) -> Missing:
    """Compare: there is no such key."""
    return Missing(as_key(key))


def unchanged(key: Text, since: int) -> Unchanged:
    """Compare: no entry after index ``since`` has changed the key."""
    if not isinstance(since, int) or not 0 <= since < 1 << 63:  # type: ignore[redundant-expr]
        raise InvalidCommand("an index is a whole number, at least 0")
    return Unchanged(as_key(key), since)


def put(key: Text, value: Text, *, lease: int | None = None) -> PutKey:
    """Operation: set a key. With a ``lease`` (``KeyLease.id``) it goes when that ends."""
    return PutKey(as_key(key), as_value(value), lease)


def delete(key: Text) -> DeleteKey:
    """Operation: remove a key."""
    return DeleteKey(as_key(key))


def get(key: Text) -> GetKey:
    """Operation: what the key holds before this command."""
    return GetKey(as_key(key))


def txn(
    compare: Sequence[Compare] = (), then: Sequence[Operation] = (), otherwise: Sequence[Operation] = ()
) -> bytes:
    """The command. Raises ``InvalidCommand`` for too many parts, or a branch that writes a key twice."""
    made = Txn(tuple(compare), tuple(then), tuple(otherwise))
    if (wrong := _wrong(made)) is not None:
        raise InvalidCommand(wrong)
    command = _encoder.encode(made)
    try:
        _check.decode(command)
    except msgspec.ValidationError as error:
        raise InvalidCommand(f"no transaction: {error}") from None
    return command


_check = msgspec.msgpack.Decoder(Txn)


def answer(value: object) -> Answer:
    """What a transaction answered, of the value of its ``Result``."""
    assert isinstance(value, bytes)
    return _answers.decode(value)


def _wrong(command: Txn) -> str | None:
    """What is wrong with a transaction that can be decoded; ``None``: nothing."""
    for part in (*command.compare, *command.then, *command.otherwise):
        if len(part.key) > MAX_KEY_BYTES:
            return too_long("key", part.key, MAX_KEY_BYTES)
        if isinstance(part, Equals | PutKey) and len(part.value) > MAX_VALUE_BYTES:
            return too_long("value", part.value, MAX_VALUE_BYTES)
    for branch in (command.then, command.otherwise):
        written = [operation.key for operation in branch if not isinstance(operation, GetKey)]
        if len(set(written)) < len(written):
            return "a branch of a transaction writes a key once at most"
    return None


def apply(command: Txn, index: int, pending: Pending) -> Result:
    """Do it, on top of what is pending; return its result."""
    if (wrong := _wrong(command)) is not None:
        return Result(error=wrong)

    def holds(compare: Compare) -> bool:
        if isinstance(compare, Unchanged):
            return pending.recording.is_unchanged(pending.store, compare.key, compare.since, index)
        present = pending.get(compare.key)
        if isinstance(compare, Equals):
            return present == compare.value
        return (present is None) == isinstance(compare, Missing)

    succeeded = all(map(holds, command.compare))
    operations = command.then if succeeded else command.otherwise
    leased = [(each.key, each.lease) for each in operations if isinstance(each, PutKey) and each.lease]
    if leased and (refused := pending.leases.refuses(leased)) is not None:
        return Result(error=refused)
    pairs: list[tuple[bytes, bytes | None]] = []
    answers: list[bytes | bool | None] = []
    for operation in operations:
        if isinstance(operation, PutKey):
            pairs.append((operation.key, operation.value))
            answers.append(None)
        elif isinstance(operation, DeleteKey):
            if present := pending.get(operation.key) is not None:
                pairs.append((operation.key, None))
            answers.append(present)
        else:
            answers.append(pending.get(operation.key))
    if pairs:
        pending.data.update(pairs)
        pending.record(index, changed(pairs), (key for key, _ in pairs))
        for key, lease in leased:
            pending.leases.attach(key, lease)
    return Result(_encoder.encode(Answer(succeeded, index, tuple(answers))))
