"""What a client that hosts no replica and a member say to each other, in frames of ``channel.py``.

A client asks, with a number and the milliseconds that it has patience for; a member answers under that
number, in any order, and says who leads as far as it knows. An answer with the number 0 answers nothing: the
member goes away, or has no place, and takes in nothing more.

As between members, ``msgspec`` checks every field against its type, and nothing is ever unpickled. What
a query and its answer look like is up to the state machine (``OnDiskStateMachine.queries``).
"""

from __future__ import annotations

from typing import Literal

import msgspec

from ondisk.raft.limits import MAX_COMMAND_BYTES, MAX_FRAME_BYTES
from ondisk.raft.messages import Change
from ondisk.raft.records import Natural
from ondisk.statemachine import Result

MAX_REQUEST_BYTES = MAX_COMMAND_BYTES + (64 << 10)  # one command, or a query; a group has larger frames
MAX_ANSWER_BYTES = MAX_FRAME_BYTES - (64 << 10)  # of a query, so that its frame is no larger than any other


class _Message(msgspec.Struct, frozen=True, array_like=True, forbid_unknown_fields=True, gc=False):
    """Immutable, and encoded as an array, which begins with the tag if there is one."""


class Command(_Message, frozen=True, tag="command"):
    """Replicate and apply it. Answered by ``Applied``."""

    command: bytes


class Query(_Message, frozen=True, tag="query"):
    """What does the state hold? ``how``: see ``Client.read`` and ``Client.stale_read``."""

    query: bytes
    how: Literal["linearizable", "lease", "stale"]


class ChangeGroup(_Message, frozen=True, tag="change_group"):
    """Change the members, or let another one lead. Answered by ``Applied``."""

    change: Change


class Look(_Message, frozen=True, tag="look"):
    """How is this replica, who are the members as it knows them, which are the newest entries of its log?

    Answered at once, leader or not.
    """

    what: Literal["status", "members", "inside"]


class Compact(_Message, frozen=True, tag="compact"):
    """Drop this replica's log up to what its state holds. Answered by ``Applied`` with the index."""


Body = Command | Query | ChangeGroup | Look | Compact


class Request(_Message, frozen=True):
    """Asked under a number from 1 on, which the client chooses and uses once on a connection."""

    number: Natural
    milliseconds: Natural
    body: Body


class Applied(_Message, frozen=True, tag="applied"):
    """It is committed and applied, and this came out."""

    result: Result


class Found(_Message, frozen=True, tag="found"):
    """The answer to a query or a look, encoded."""

    data: bytes


class Failed(_Message, frozen=True, tag="failed"):
    """The name of an error of ``errors.py``, and what it says: so both sides mean the same by it."""

    error: str
    text: str


class Response(_Message, frozen=True):
    """``leader`` is who leads as far as this replica knows, 0 if it knows of nobody."""

    number: Natural
    leader: Natural
    body: Applied | Found | Failed


encoder = msgspec.msgpack.Encoder()
request_decoder = msgspec.msgpack.Decoder(Request)
response_decoder = msgspec.msgpack.Decoder(Response)
