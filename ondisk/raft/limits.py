"""Limits: the sizes and times that hang together, and the checks that hold them together.

A message travels in one frame of at most ``MAX_FRAME_BYTES``. One that is larger would be lost at each try,
for ever, so none may become so large:

==================  ===========================================================================
message             holds at most
==================  ===========================================================================
``AppendEntries``   8192 entries: ``Timing.batch_bytes`` of commands, or a single larger one
``Propose``         less than ``Timing.batch_bytes``, and one command more
``Outcomes``        ``OUTCOMES_BYTES``, or a single larger one (``MAX_RESULT_BYTES``)
``Membership``      ``MAX_MEMBERS_BYTES``: some 7,000 changes in the life of a group
``SnapshotChunk``   ``CHUNK_BYTES`` of the state, or a header with the members
``Found``           two lists of ``MAX_MEMBERS`` members, with addresses of 255 letters
all others          numbers, one address, one sentence: ``_SMALL``
==================  ===========================================================================

``largest_messages`` computes it, and ``check_timing`` refuses a ``Timing`` with which it would not hold.

What one peer has not taken yet waits in its connection, up to ``MAX_UNSENT_BYTES``. A leader's window of
entries and a window of chunks have room there. Outcomes may be more: they are kept until there is room.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import msgspec

from ondisk.errors import ConfigurationError
from ondisk.raft import members as encoding
from ondisk.raft.members import Members
from ondisk.sessions import APPLIED_BUT
from ondisk.statemachine import Result

if TYPE_CHECKING:
    from ondisk.raft.timing import Timing

MAX_FRAME_BYTES = 8 << 20
MAX_UNSENT_BYTES = 16 << 20  # to one peer; what does not fit is lost, and Raft sends it again
MAX_COMMAND_BYTES = 2 << 20
MAX_RESULT_BYTES = 1 << 20  # encoded
OUTCOMES_BYTES = 1 << 20
MAX_ENTRIES = 8192  # in a message, as ``RaftLog.entries`` hands them out
MAX_MEMBERS = 255  # voters and learners
MAX_MEMBERS_BYTES = 128 << 10  # encoded, with all removed ids and replaced disks
CHUNK_BYTES = 256 << 10  # of a snapshot in one chunk, at most
WINDOW_CHUNKS = 16  # of a snapshot, so 4 MB on each side

# What MessagePack adds: to a command in a list, to an entry, to an outcome, and to a message around all that.
COMMAND_OVERHEAD, ENTRY_OVERHEAD, OUTCOME_OVERHEAD, _ENVELOPE = 5, 24, 40, 128
_ADDRESS = 3 + 255 + 6  # a host and a port
_MEMBER = 1 + 9 + 18 + _ADDRESS + 9  # a number, a disk, an address, and the number once more
_SMALL = 4 << 10

_PLAIN = (bytes, int, bool, type(None))
_encoder = msgspec.msgpack.Encoder()
_results = msgspec.msgpack.Decoder(Result)


def largest_messages(timing: Timing) -> dict[str, int]:
    """The most bytes that a message of each type can have, by its tag."""
    entry = max(timing.batch_bytes, MAX_COMMAND_BYTES + 1, MAX_MEMBERS_BYTES + 1)
    sizes = {
        "append_entries": entry + MAX_ENTRIES * ENTRY_OVERHEAD,
        "propose": timing.batch_bytes + MAX_COMMAND_BYTES + COMMAND_OVERHEAD,
        "outcomes": max(OUTCOMES_BYTES, MAX_RESULT_BYTES + OUTCOME_OVERHEAD),
        "membership": MAX_MEMBERS_BYTES,
        "snapshot_chunk": max(CHUNK_BYTES, MAX_MEMBERS_BYTES + _ENVELOPE),
        "found": MAX_MEMBERS * _MEMBER + _ADDRESS,
    }
    return {tag: size + _ENVELOPE for tag, size in sizes.items()} | {"others": _SMALL}


def check_timing(timing: Timing) -> None:
    """Raise ``ConfigurationError``, which names the fields, for what no group could work with."""
    for field, value in timing._asdict().items():
        if field == "clock_drift":
            _check_drift(value)
            continue
        kinds = int if field.endswith("_bytes") else (int, float)
        right = isinstance(value, kinds) and not isinstance(value, bool)
        if not right or not math.isfinite(value) or value <= 0:
            what = "a whole number of bytes" if field.endswith("_bytes") else "a number of seconds"
            raise ConfigurationError(f"timing: {field} is {what} above 0, not {value!r:.60}")
    if timing.election_min < 2 * timing.heartbeat:
        raise ConfigurationError(
            f"timing: election_min ({timing.election_min:g} s) must be twice the heartbeat "
            f"({timing.heartbeat:g} s) at least, or one heartbeat that is late deposes the leader"
        )
    if timing.election_max < timing.election_min:
        raise ConfigurationError(
            f"timing: election_max ({timing.election_max:g} s) is less than election_min "
            f"({timing.election_min:g} s)"
        )
    tag, size = max(largest_messages(timing).items(), key=lambda item: item[1])
    if size > MAX_FRAME_BYTES:
        raise ConfigurationError(
            f"timing: with batch_bytes {timing.batch_bytes:,} a message ({tag}) could have {size:,} bytes, "
            f"and a frame has at most {MAX_FRAME_BYTES:,}"
        )
    unsent = timing.window_bytes + max(timing.batch_bytes, MAX_COMMAND_BYTES)
    if unsent > MAX_UNSENT_BYTES:
        raise ConfigurationError(
            f"timing: with window_bytes {timing.window_bytes:,} and batch_bytes {timing.batch_bytes:,} there "
            f"could be {unsent:,} bytes under way to one follower, and a connection holds "
            f"{MAX_UNSENT_BYTES:,}"
        )


def _check_drift(drift: object) -> None:
    right = isinstance(drift, int | float) and not isinstance(drift, bool) and 0 < drift <= 1
    if drift is not None and not right:
        raise ConfigurationError(
            f"timing: clock_drift is a part of a second, above 0 and at most 1, by which one clock may count "
            f"more than another in each second (None: no leases), not {drift!r:.60}"
        )


def check_first_members(count: int) -> None:
    """Raise ``ConfigurationError`` for more than a group may have."""
    if count > MAX_MEMBERS:
        raise ConfigurationError(f"a group has at most {MAX_MEMBERS} members, not {count}")


def check_members(members: Members) -> None:
    """Raise ``ConfigurationError`` for a configuration that is too large to be told to others."""
    check_first_members(len(members.all))
    size = len(encoding.encode(members))
    if size > MAX_MEMBERS_BYTES:
        raise ConfigurationError(
            f"refused, nothing was changed: with all the ids that were removed and the disks that were "
            f"replaced, the members would have {size:,} bytes, and at most {MAX_MEMBERS_BYTES:,} are "
            "allowed: export the state, and import it into a new group"
        )


def sendable(result: Result) -> Result:
    """The result, or what is said in its place if it could not be sent to another replica.

    Whoever asks is told the same, also where the command was applied: not one thing here and another there.
    """
    try:
        encoded = _encoder.encode(result)
        if type(result.value) not in _PLAIN or type(result.error) not in (str, type(None)):
            _results.decode(encoded)  # what the other side would not believe
    except (OverflowError, TypeError, ValueError, msgspec.MsgspecError) as error:
        return Result(error=f"{APPLIED_BUT}its result cannot be sent: {error}")
    if len(encoded) > MAX_RESULT_BYTES:
        return Result(
            error=f"{APPLIED_BUT}its result of {len(encoded):,} bytes is too large to be sent: at most "
            f"{MAX_RESULT_BYTES:,}"
        )
    return result


def result_bytes(result: Result | None) -> int:
    """How many bytes an outcome with this result has in a message, or a few more."""
    if result is None:
        return OUTCOME_OVERHEAD
    value = len(result.value) if isinstance(result.value, bytes) else 0
    return OUTCOME_OVERHEAD + value + 4 * len(result.error or "")  # a letter has four bytes at most
