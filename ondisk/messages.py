"""What replicas say to each other. Small immutable values, the same in memory and on the wire.

``msgspec`` checks every field against its type when it decodes, so a message that arrives over TCP is
well formed or is refused, and nothing is ever unpickled.
"""

from __future__ import annotations

from typing import Literal

import msgspec

from ondisk.raftlog import LogEntry, Natural
from ondisk.statemachine import Result


class _Message(msgspec.Struct, frozen=True, array_like=True, gc=False):
    """Immutable, and encoded as an array that begins with the tag."""


class RequestVote(_Message, frozen=True, tag="request_vote"):
    """Elect me in ``term``; my log ends with entry ``last_index`` of ``last_term``.

    With ``pre`` it only asks "would you?" and changes nothing (PreVote, Raft thesis 9.6): a replica that
    was cut off for a while then cannot depose a leader that the others still hear.
    """

    term: Natural
    last_index: Natural
    last_term: Natural
    pre: bool


class Vote(_Message, frozen=True, tag="vote"):
    """The answer to a ``RequestVote`` that is granted (``term`` is the request's) or comes from the past."""

    term: Natural
    granted: bool
    pre: bool


class AppendEntries(_Message, frozen=True, tag="append_entries"):
    """The leader's entries after ``prev_index``, or a heartbeat. ``round`` numbers leadership checks."""

    term: Natural
    prev_index: Natural
    prev_term: Natural
    entries: list[LogEntry]
    commit_index: Natural
    round: Natural


class AppendReply(_Message, frozen=True, tag="append_reply"):
    """Answer to ``AppendEntries``, carrying the term in which it was given.

    ``success``: this log equals the leader's up to ``index``, durably. Otherwise the entry at
    ``prev_index`` did not match, and ``index`` is where the leader should try next.
    """

    term: Natural
    success: bool
    index: Natural
    prev_index: Natural
    round: Natural


class Propose(_Message, frozen=True, tag="propose"):
    """Commands from a follower's clients. ``first`` is the request number of the first one."""

    first: Natural
    commands: list[bytes]


class Outcome(_Message, frozen=True):
    """How one proposed command ended, as far as the asked replica can tell.

    ``result`` is set if it was ``applied``. ``not_leader`` and ``discarded`` are certain: it never will be.
    ``unknown`` is not: another replica may still hold the entry.
    """

    request: Natural
    verdict: Literal["applied", "not_leader", "discarded", "unknown"]
    result: Result | None = None


class Outcomes(_Message, frozen=True, tag="outcomes"):
    """Answers to ``Propose``, as they become known."""

    outcomes: list[Outcome]


class AskReadIndex(_Message, frozen=True, tag="ask_read_index"):
    """Which index must I have applied before a read that starts now is linearizable?"""

    request: Natural


class ReadIndex(_Message, frozen=True, tag="read_index"):
    """Answer to ``AskReadIndex``; ``index`` is ``None`` if the asked replica does not lead."""

    request: Natural
    index: Natural | None


Message = RequestVote | Vote | AppendEntries | AppendReply | Propose | Outcomes | AskReadIndex | ReadIndex

encoder = msgspec.msgpack.Encoder()
decoder = msgspec.msgpack.Decoder(Message)
