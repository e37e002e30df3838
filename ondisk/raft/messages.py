"""What replicas say to each other. Small immutable values, the same in memory and on the wire.

``msgspec`` checks every field against its type when it decodes, so a message that arrives over TCP is
well formed or is refused, and nothing is ever unpickled.
"""

from __future__ import annotations

from typing import Annotated, Literal, NamedTuple

import msgspec

from ondisk.raft.members import Disk, Id, Members
from ondisk.raft.records import LogEntry, Natural
from ondisk.statemachine import Result


class _Message(msgspec.Struct, frozen=True, array_like=True, gc=False):
    """Immutable, and encoded as an array that begins with the tag."""


class Origin(NamedTuple):
    """Who says it: every message is stamped with its sender's (docs/protocol.md, O).

    ``group`` is empty for a replica that belongs to none. ``boot`` counts how often the disk was opened,
    ``nonce`` is a random number for this time, and ``former`` are those of the times before, the newest
    first.
    """

    group: Disk
    disk: Disk
    boot: Natural
    nonce: Natural
    former: Annotated[tuple[Natural, ...], msgspec.Meta(max_length=256)] = ()


Roster = tuple[tuple[Id, Disk, str], ...]  # number, disk and address of each first member, by number


class Found(_Message, frozen=True, tag="found"):
    """I belong to no group. ``members`` are those that I was started with; none if I am to be added.

    ``round`` and ``roster`` are my vote for a group of exactly these disks, ``seed`` is the digest of the
    import that I hold, if any. ``fewer``: an operator has named these members in place of those.
    """

    members: tuple[Id, ...]
    address: str = ""
    seed: bytes = b""
    round: Natural = 0
    roster: Roster = ()
    fewer: bool = False


class Membership(_Message, frozen=True, tag="membership"):
    """The members of my group as of entry ``index``, which is committed."""

    index: Natural
    members: Members


class Refused(_Message, frozen=True, tag="refused"):
    """This disk must not take part, and why. What it says next will not be heard either.

    It is for the disk and not for the number: two replicas may claim that.
    """

    disk: Disk
    reason: str


class RequestVote(_Message, frozen=True, tag="request_vote"):
    """Elect me in ``term``; my log ends with entry ``last_index`` of ``last_term``.

    With ``pre`` it only asks "would you?" and changes nothing (PreVote, Raft thesis 9.6): a replica that
    was cut off for a while then cannot depose a leader that the others still hear.

    ``handed_over``: the leader of the term before has told me to stand, so a promise to it binds nobody.
    """

    term: Natural
    last_index: Natural
    last_term: Natural
    pre: bool
    handed_over: bool = False


class RequestVoteResponse(_Message, frozen=True, tag="request_vote_response"):
    """My vote in ``term``, or with ``pre`` the promise of one. Who does not vote says nothing."""

    term: Natural
    pre: bool


class NewerTerm(_Message, frozen=True, tag="newer_term"):
    """Tells who asked for a vote, or led, in an older term that the newest one is ``term``."""

    term: Natural


class AppendEntries(_Message, frozen=True, tag="append_entries"):
    """The leader's entries after ``prev_index``, or a heartbeat.

    ``round`` numbers what the leader sends. A response repeats it, and is evidence as of when it was sent.
    """

    term: Natural
    prev_index: Natural
    prev_term: Natural
    entries: list[LogEntry]
    commit_index: Natural
    round: Natural


class AppendEntriesResponse(_Message, frozen=True, tag="append_entries_response"):
    """My log equals the leader's up to ``index``, durably. The next two repeat what it answers.

    ``promise``: for so many milliseconds since I heard the leader I help nobody else to lead.
    """

    term: Natural
    index: Natural
    prev_index: Natural
    round: Natural
    promise: Natural = 0


class AppendEntriesRejection(_Message, frozen=True, tag="append_entries_rejection"):
    """My log has another entry, or none, at ``prev_index``. The leader should try at ``hint`` next."""

    term: Natural
    hint: Natural
    prev_index: Natural
    round: Natural
    promise: Natural = 0


class SnapshotNeeded(_Message, frozen=True, tag="snapshot_needed"):
    """My state is older than my log begins (it was lost, or rolled back): I need a snapshot."""

    term: Natural
    round: Natural
    promise: Natural = 0


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


class ReadIndexRequest(_Message, frozen=True, tag="read_index_request"):
    """Which index must I have applied before a read that starts now is linearizable?

    ``lease``: whoever reads would take the leader's word for it, if that has a lease.
    """

    request: Natural
    lease: bool = False


class ReadIndexResponse(_Message, frozen=True, tag="read_index_response"):
    """A read that was asked for is linearizable once ``index`` is applied: by a round, or a lease."""

    request: Natural
    index: Natural


class ReadIndexRejection(_Message, frozen=True, tag="read_index_rejection"):
    """I do not lead, so I cannot say which index. The asker should try another replica."""

    request: Natural


class TimeoutNow(_Message, frozen=True, tag="timeout_now"):
    """The leader of ``term`` wants the receiver to lead: start an election now (thesis, 3.10)."""

    term: Natural


class Removed(_Message, frozen=True, tag="removed"):
    """The receiver is no member any more, for good."""


class AddReplica(_Message, frozen=True, tag="add_replica"):
    """Change: a new member, at first as a learner. ``address`` is ``host:port`` on TCP, else empty.

    ``again``: it was asked for before and the answer was lost, so it may be a member already.
    """

    id: Id
    address: str = ""
    again: bool = False


class RemoveReplica(_Message, frozen=True, tag="remove_replica"):
    """Change: take a member out, for good."""

    id: Id


class ReplaceReplica(_Message, frozen=True, tag="replace_replica"):
    """Change: this disk of a voter is lost. Its number is a learner, until another disk votes under it."""

    id: Id
    disk: Disk


class MoveReplica(_Message, frozen=True, tag="move_replica"):
    """Change: this member is at another address now."""

    id: Id
    address: str


class TransferLeadership(_Message, frozen=True, tag="transfer_leadership"):
    """Change: let another voter lead."""

    to: Id


MembersChange = AddReplica | RemoveReplica | ReplaceReplica | MoveReplica
Change = MembersChange | TransferLeadership


class ProposeChange(_Message, frozen=True, tag="propose_change"):
    """A change of the members from a follower's operator. Answered by ``Outcomes``."""

    request: Natural
    change: Change


HEADER, DATA, END = 0, 1, 2  # kinds of chunks


class Chunk(msgspec.Struct, frozen=True, array_like=True, gc=False):
    """One piece of a snapshot's stream (``snapshot/stream.py``)."""

    number: Natural
    kind: Natural
    data: bytes
    checksum: Natural

    @property
    def is_end(self) -> bool:
        """Whether it claims to be the end mark. ``Reader`` checks whether that is true."""
        return self.kind == END


class SnapshotChunk(_Message, frozen=True, tag="snapshot_chunk"):
    """One chunk of the snapshot that the leader of ``term`` streams under the number ``stream``."""

    term: Natural
    stream: Natural
    chunk: Chunk


class SnapshotAck(_Message, frozen=True, tag="snapshot_ack"):
    """Answer to a chunk: the next one wanted is ``next``, and those below ``limit`` may be sent.

    When ``next`` has passed the end mark, the snapshot is installed, durably.
    """

    stream: Natural
    next: Natural
    limit: Natural


class SnapshotRejection(_Message, frozen=True, tag="snapshot_rejection"):
    """This stream is of no use to me and should end. The state that I had is whole."""

    stream: Natural


# Answers to ``AppendEntries``, and all that a leader or a candidate counts: from a disk, not from a number.
AppendEntriesAnswer = AppendEntriesResponse | AppendEntriesRejection | SnapshotNeeded
Response = RequestVoteResponse | NewerTerm | AppendEntriesAnswer
SnapshotAnswer = SnapshotAck | SnapshotRejection  # to a chunk

Message = (
    Found
    | Membership
    | Refused
    | RequestVote
    | RequestVoteResponse
    | NewerTerm
    | AppendEntries
    | AppendEntriesResponse
    | AppendEntriesRejection
    | SnapshotNeeded
    | Propose
    | Outcomes
    | ReadIndexRequest
    | ReadIndexResponse
    | ReadIndexRejection
    | TimeoutNow
    | Removed
    | ProposeChange
    | SnapshotChunk
    | SnapshotAck
    | SnapshotRejection
)

encoder = msgspec.msgpack.Encoder()
decoder = msgspec.msgpack.Decoder(Message)
