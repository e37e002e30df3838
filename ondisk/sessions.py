"""Sessions: a command that is sent again because nobody heard its outcome is applied once.

After ``OutcomeUnknown`` a client must send its command again, and the first copy may be applied all the same.
So it *registers* a session, and numbers its commands. The state machine keeps for each session the number of
the last command and its result: a number that it has seen is answered from there, and nothing is applied
(Raft thesis, 6.3).

This file holds the rules, for any state machine, and knows neither a disk nor a client:

* An *envelope* is a command about sessions. It may hold a command of the machine, whatever that looks like.
* ``Sessions`` is the table as of the last ``update``, and ``Batch`` what the next one makes of it.

The machine stores ``Batch.records()`` in the same atomic step as its data and its index. In two steps, a
crash in between would forget that a command was applied, or remember one that was not. From then on
snapshots carry the table like everything else, and a replica that recovers from one knows who asked what.

All of it follows from the log: a session's id is the index of the entry that registered it, and the one that
goes when there is no more room is the one that was used least recently, *by index*.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Iterable, Iterator
from typing import Annotated

import msgspec

from ondisk.errors import Corrupt
from ondisk.statemachine import Entry, Result

# Part of the state machine: replicas that disagree about these two numbers would reach different states.
MAX_SESSIONS = 4096
MAX_RESULT_BYTES = 1024  # encoded. So the table never holds more than some MB, on disk and in memory

UNKNOWN_SESSION = (
    "the session is not known: it was closed, or pushed out by newer ones. This entry was not applied"
)
OUTDATED = "the session has gone on to a later command. This entry was not applied"
APPLIED_BUT = "the command was applied, but "  # so begin the errors of commands that were
RESULT_NOT_KEPT = f"{APPLIED_BUT}a session keeps no result of more than {MAX_RESULT_BYTES:,} bytes"

# No command of a machine that uses MessagePack begins like this: it never uses the byte c1.
MAGIC = b"\xc1session"
_ENVELOPE = MAGIC + b"\x01"  # and the version of what follows

_Index = Annotated[int, msgspec.Meta(ge=1, le=(1 << 63) - 1)]


class _Envelope(msgspec.Struct, frozen=True, array_like=True, forbid_unknown_fields=True):
    """An array that begins with its tag, like the commands of ``DiskKV``."""


class Register(_Envelope, frozen=True, tag="register"):
    """Begin a session. Answers its id, which no other session ever has."""


class Once(_Envelope, frozen=True, tag="once"):
    """Apply ``command`` unless the session has seen this ``sequence`` number, or a later one.

    Answers what the command answered when it was applied, or ``UNKNOWN_SESSION`` or ``OUTDATED``.
    """

    session: _Index
    sequence: _Index
    command: bytes


class Close(_Envelope, frozen=True, tag="close"):
    """End a session. Answers whether there was one."""

    session: _Index


class Record(msgspec.Struct, frozen=True, array_like=True, tag=1):
    """What is kept of one session. The tag is the version of this format."""

    used: int  # index of the last entry that named the session
    sequence: int = 0  # of the last command that was applied; 0: none yet
    result: Result = Result()


_encoder = msgspec.msgpack.Encoder()
_envelopes = msgspec.msgpack.Decoder(Register | Once | Close)
_records = msgspec.msgpack.Decoder(Record)


def register() -> bytes:
    """The envelope that begins a session."""
    return _ENVELOPE + _encoder.encode(Register())


def once(session: int, sequence: int, command: bytes) -> bytes:
    """The envelope that applies a command once. ``sequence`` counts from 1, and gaps do no harm."""
    if not isinstance(command, bytes):
        raise TypeError(f"a command is bytes, not {type(command).__name__}")
    return _ENVELOPE + _encoder.encode(Once(session, sequence, command))


def close(session: int) -> bytes:
    """The envelope that ends a session."""
    return _ENVELOPE + _encoder.encode(Close(session))


def decode(command: bytes) -> Register | Once | Close:
    """What an envelope of this version says. Raises ``msgspec.DecodeError``."""
    envelope: Register | Once | Close = _envelopes.decode(command[len(_ENVELOPE) :])
    return envelope


def is_envelope(command: bytes) -> bool:
    """Whether a command is for ``Batch.answer``, in this version or another one."""
    return command.startswith(MAGIC)


class Sessions:
    """The sessions as of the last update: at most ``MAX_SESSIONS``, the least recently used one first."""

    def __init__(self, stored: Iterable[tuple[bytes, bytes]] = ()) -> None:
        """``stored`` is what ``Batch.records`` gave, in any order. Raises ``Corrupt``."""
        try:
            records = [(int.from_bytes(key, "big"), _records.decode(record)) for key, record in stored]
        except (msgspec.DecodeError, UnicodeDecodeError) as error:
            raise Corrupt(f"the record of a session is damaged: {error}") from None
        self._table = OrderedDict(sorted(records, key=lambda pair: pair[1].used))

    def batch(self) -> Batch:
        """Begin an update. Nothing changes here until its ``commit``."""
        return Batch(self._table)


class Batch:
    """What one update makes of the sessions. Its entries see what earlier ones in it have done."""

    def __init__(self, table: OrderedDict[int, Record]) -> None:
        self._table = table
        self._used: OrderedDict[int, Record] = OrderedDict()  # later than all in the table that are not here
        self._ended: dict[int, None] = {}
        self._next_to_go = iter(table)
        self._count = len(table)

    def answer(self, entry: Entry, apply: Callable[[bytes], Result]) -> Result:
        """The result of an entry that is an envelope. ``apply`` applies a command of the machine."""
        if not entry.command.startswith(_ENVELOPE):
            return Result(error="malformed command: an envelope of another version")
        try:
            decoded = _envelopes.decode(entry.command[len(_ENVELOPE) :])
        except (msgspec.DecodeError, UnicodeDecodeError) as error:
            return Result(error=f"malformed command: {error}")
        if isinstance(decoded, Register):
            while self._count >= MAX_SESSIONS:
                self._end(self._least_recently_used())
            self._count += 1
            self._use(entry.index, Record(entry.index))
            return Result(entry.index)
        session = decoded.session
        record = self._find(session)
        if isinstance(decoded, Close):
            if record is not None:
                self._end(session)
            return Result(record is not None)
        if record is None:
            return Result(error=UNKNOWN_SESSION)
        if decoded.sequence > record.sequence:
            record = Record(entry.index, decoded.sequence, _small(apply(decoded.command)))
        self._use(session, Record(entry.index, record.sequence, record.result))
        return Result(error=OUTDATED) if decoded.sequence < record.sequence else record.result

    def _find(self, session: int) -> Record | None:
        if session in self._ended:
            return None
        return self._used.get(session) or self._table.get(session)

    def _use(self, session: int, record: Record) -> None:
        self._used[session] = record
        self._used.move_to_end(session)

    def _end(self, session: int) -> None:
        self._used.pop(session, None)
        self._ended[session] = None
        self._count -= 1

    def _least_recently_used(self) -> int:
        for session in self._next_to_go:  # goes on where it was: what it has passed is not below any more
            if session not in self._used and session not in self._ended:
                return session
        return next(iter(self._used))

    def records(self) -> Iterator[tuple[bytes, bytes | None]]:
        """What to store, or (``None``) to delete: ``(key, record)``, with a key of 8 bytes."""
        for session in self._ended:
            yield session.to_bytes(8, "big"), None
        for session, record in self._used.items():
            yield session.to_bytes(8, "big"), _encoder.encode(record)

    def commit(self) -> None:
        """The update is stored: from now on the table is like this."""
        for session in self._ended:
            self._table.pop(session, None)
        for session, record in self._used.items():
            self._table[session] = record
            self._table.move_to_end(session)


def _small(result: Result) -> Result:
    """A result that is kept. A larger one is never answered, so that this is noticed before it matters."""
    try:
        small = len(_encoder.encode(result)) <= MAX_RESULT_BYTES
    except OverflowError:  # a number of more than 64 bits
        small = False
    return result if small else Result(error=RESULT_NOT_KEPT)
