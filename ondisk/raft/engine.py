"""Raft: PySyncObj's engine, hardened. The only file that touches PySyncObj's private names.

What PySyncObj 0.3.17 does here: terms, elections, the rule for commitment, heartbeats by timer, stepping
down without a majority. What it does not do safely is replaced, by overriding the method that does it:

==========================  ===========================================================================
stock PySyncObj             here
==========================  ===========================================================================
truncates its log at every  only where an entry really conflicts, and never a committed one
message of the leader
commits up to its own last  commits at most up to what the message proved to be equal (paper, fig. 2)
replies carry no term       they do, and replies from another term count for nothing
counts a vote per message   counts a vote per voter
looks at timers first       drains messages first; time stands still within one step
applies one by one, retries applies in batches; an exception stops the replica
backs up one index a time   the follower says where its log ends, or where the conflicting term begins
sends until memory is full  at most ``Timing.window_bytes`` beyond what a follower has acknowledged
no PreVote, 30 s fallback   PreVote; a leader without a majority steps down within an election timeout
no linearizable reads       ReadIndex rounds (thesis, 6.4), many reads sharing one
sends its dump unasked,     says who needs a snapshot; it is streamed with acknowledgement
believes what arrives       (``snapshot/transfer.py``); the log begins anew when the state has it durably
changes members by any      one replica at a time, checked first, effective when appended; learners catch up
node, anybody may ask       before they count (``raft/members.py``); a removed id stays out
counts numbers              counts numbers with their disks: who lost its directory is no voter
dates answers when read     an answer is evidence as of when the message that it answers was sent
==========================  ===========================================================================

Time and chance are handed in. PySyncObj reads a module-wide clock, so that name is bound once to a
function which answers with the step's own time for our engines, and with real time for everybody else.
"""

from __future__ import annotations

import _socket
import logging
import operator
import random
import socket
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, NamedTuple

import pysyncobj.syncobj
from pysyncobj import SyncObj, SyncObjConf
from pysyncobj.node import Node
from pysyncobj.transport import Transport

from ondisk.errors import ConfigurationError, Corrupt
from ondisk.raft import members as encoding
from ondisk.raft.limits import check_members
from ondisk.raft.log import MEMBERS, REGULAR, LogEntry, RaftLog
from ondisk.raft.members import LEGACY, Members, short
from ondisk.raft.messages import (
    AddReplica,
    AppendEntries,
    AppendReply,
    MembersChange,
    Message,
    Refused,
    Removed,
    RemoveReplica,
    ReplaceReplica,
    RequestVote,
    TakeOver,
    Vote,
)

PYSYNCOBJ_VERSION = "0.3.17"

_CAUGHT_UP_ENTRIES = 100  # a learner that is no further behind may become a voter

_ELECT_NOW = float("-inf")  # an election deadline that has certainly passed

_FOLLOWER, _CANDIDATE, _LEADER = 0, 1, 2
_ROLES = {_FOLLOWER: "follower", _CANDIDATE: "candidate", _LEADER: "leader"}

logger = logging.getLogger(__name__)

_step = threading.local()


def _time_of_step() -> float:
    now: float | None = getattr(_step, "now", None)
    return time.monotonic() if now is None else now


pysyncobj.syncobj.monotonicTime = _time_of_step


@contextmanager
def time_stands_still(now: float) -> Iterator[None]:
    """For every engine of PySyncObj that is called inside, the time is ``now`` (seconds)."""
    before = getattr(_step, "now", None)
    _step.now = now
    try:
        yield
    finally:
        _step.now = before


# Importing PySyncObj puts a function for Windows in this place, for the whole process.
socket.inet_ntop = _socket.inet_ntop


class Timing(NamedTuple):
    """Periods in seconds, sizes in bytes.

    A follower waits between ``election_min`` and ``election_max`` for its leader. The shorter one must
    exceed a heartbeat plus the longest stall of a disk (700 ms are not rare on shared machines).
    """

    heartbeat: float = 0.1
    election_min: float = 1.0
    election_max: float = 2.0
    first_election: float = 0.15  # no leader known yet, or it visibly went away: no reason to wait long
    commit_notice: float = 0.005  # followers learn of a commit from the next entries, or after this long
    batch_bytes: int = 1 << 20
    window_bytes: int = 8 << 20


def _private(name: str) -> Any:
    """A private attribute of ``SyncObj`` behind a plain name; fails loudly when PySyncObj moves it."""
    private = f"_SyncObj__{name}"

    def set_private(engine: SyncObj, value: Any) -> None:
        if private not in engine.__dict__:
            raise AttributeError(f"PySyncObj has no {private}: only {PYSYNCOBJ_VERSION} is supported")
        engine.__dict__[private] = value

    # attrgetter, because these are read dozens of times in a step, and it needs no Python frame.
    return property(operator.attrgetter(private), set_private)


class _Member(Node):
    """A replica in PySyncObj's eyes. There is one object for each, so identity is equality, and fast.

    The hash is the id, not the address in memory: so sets of members have the same order in every run.
    """

    __eq__ = object.__eq__
    __ne__ = object.__ne__

    def __hash__(self) -> int:
        number: int = self._id
        return number


class _NoSockets:
    """PySyncObj polls its sockets at the end of each tick, and has none here."""

    def poll(self, timeout: float) -> None:
        pass


class _Wire(Transport):
    """What PySyncObj itself sends (requests for votes, and votes), as our messages."""

    def __init__(self, send: Callable[[int, Message], None]) -> None:
        super().__init__(None, None, [])
        self._send = send

    def send(self, node: Node, message: dict[str, Any]) -> bool:
        if message["type"] == "request_vote":
            last_index, last_term = message["last_log_index"], message["last_log_term"]
            self._send(node.id, RequestVote(message["term"], last_index, last_term, pre=False))
        elif message["type"] == "response_vote":
            self._send(node.id, Vote(message["term"], granted=True, pre=False))
        else:
            raise NotImplementedError(f"PySyncObj sends {message['type']!r}")
        return True


class _Journal:
    """RaftLog in the shape that PySyncObj expects: a sequence of (command, index, term).

    Position 0 is the log's base, so there is always an entry, as PySyncObj demands.
    """

    def __init__(self, log: RaftLog) -> None:
        self._log = log

    def __len__(self) -> int:
        return self._log.last_index - self._log.base_index + 1

    def __getitem__(self, position: int) -> tuple[bytes, int, int | None]:
        index = position + (self._log.base_index if position >= 0 else self._log.last_index + 1)
        return b"", index, self._log.term_at(index)

    def add(self, command: bytes, index: int, term: int) -> None:
        self._log.append([LogEntry(index, term, command)])

    def setCurrentTerm(self, term: int, voted_for: int | None) -> None:
        self._log.set_hard_state(term, voted_for)

    def setRaftCommitIndex(self, index: int) -> None:
        """Not stored: after a restart the state machine's own index takes its place."""

    def onOneSecondTimer(self) -> None:
        """Nothing is due."""

    def _destroy(self) -> None:
        """The replica closes its log itself."""


class _Peer:
    """What a leader knows of a follower beyond PySyncObj's next and match index."""

    __slots__ = (
        "acked_round",
        "in_flight",
        "needs_snapshot",
        "probe_sent",
        "probing",
        "was_behind",
    )

    def __init__(self) -> None:
        self.needs_snapshot = False  # what it needs next is no longer in the log
        self.was_behind = 0  # by so many entries, when that was looked at last
        self.probing = True  # not yet known where its log agrees: entries in one message at a time
        self.probe_sent = False
        self.in_flight = 0  # bytes sent beyond its match index
        self.acked_round = 0


class _Newcomer(NamedTuple):
    """Who speaks under the number of a voter, and has another disk."""

    disk: bytes
    since_round: int  # of the leader, when it was heard first
    since: float
    heard: float


class _Check(NamedTuple):
    """A change of the members that is being checked (docs/protocol.md, C2)."""

    round: int
    commit_index: int  # of the leader, when the check began
    until: float


class Raft(SyncObj):
    """The Raft engine of one replica: no thread, no socket, no clock. Its replica steps it."""

    _state: int = _private("raftState")
    _term: int = _private("raftCurrentTerm")
    _voted_for: int | None = _private("votedForNodeId")
    _leader: Node | None = _private("raftLeader")
    _journal: _Journal = _private("raftLog")
    _commit: int = _private("raftCommitIndex")
    _applied: int = _private("raftLastApplied")
    _leader_commit: int | None = _private("leaderCommitIndex")
    _next: dict[Node, int] = _private("raftNextIndex")
    _match: dict[Node, int] = _private("raftMatchIndex")
    _last_response: dict[Node, float] = _private("lastResponseTime")
    _others: set[Node] = _private("otherNodes")  # the voters but this one
    _learners: set[Node] = _private("readonlyNodes")
    _connected: set[Node] = _private("connectedNodes")
    _election_deadline: float = _private("raftElectionDeadline")

    def __init__(
        self,
        replica_id: int,
        log: RaftLog,
        applied_index: int,
        *,
        send: Callable[[int, Message], None],
        apply: Callable[[Sequence[LogEntry]], None],
        take_requests: Callable[[], None],
        use_members: Callable[[Members], None],
        rng: random.Random,
        now: float,
        timing: Timing,
    ) -> None:
        """``applied_index`` is what the state machine's ``open`` returned.

        ``send`` queues a message, ``apply`` gets committed entries in order, ``take_requests`` is called
        when the engine is ready for new ones, ``use_members`` when the members are others from now on.
        Raises ``Corrupt`` if the log has lost entries that the state machine holds.
        """
        if pysyncobj.version.VERSION != PYSYNCOBJ_VERSION:
            raise ImportError(
                f"ondisk needs PySyncObj {PYSYNCOBJ_VERSION}, this is {pysyncobj.version.VERSION}"
            )
        if applied_index > log.last_index:
            raise Corrupt(
                f"{log.path}: the log ends at entry {log.last_index}, but the state machine holds entry "
                f"{applied_index}: the log has lost entries"
            )
        self.log = log
        self.timing = timing
        self.round = 0  # number of what was sent last
        self._sent_at: deque[tuple[int, float]] = deque()  # rounds, the oldest first, and when they were sent
        self._send = send
        self._apply = apply
        self._take_requests = take_requests
        self._tell_members = use_members
        self._rng = rng
        self._id = replica_id
        self._member: dict[int, Node] = {}
        self._members = log.members
        self._peers: dict[Node, _Peer] = {}  # as leader: all other members
        self._disks: dict[Node, bytes] = {}  # who spoke last under this number
        self._counted: set[Node] = set()  # other voters that speak with the disk that the members name
        self._newcomers: dict[Node, _Newcomer] = {}
        self._checks: dict[object, _Check] = {}  # by change
        self._leading_since = 0.0
        # The state is older than the log begins (its directory was lost or rolled back): ask for a snapshot.
        self.needs_state = self._lacks_state(applied_index)
        self.recovering = False  # the state machine is busy with a snapshot: nothing is applied meanwhile
        self._transfer: tuple[Node, float] | None = None  # who shall lead, and until when that is tried
        self._next_take_over = 0.0  # when to ask the successor again
        self._prevotes: tuple[int, set[Node]] = (0, set())  # term that is asked about, who would vote
        self._votes: tuple[int, set[Node]] = (0, set())  # term, who has voted for this replica
        self._heard_from_leader = float("-inf")
        self._must_send = False
        self._next_send = 0.0
        self._next_probe = 0.0
        self._connected_ids: frozenset[int] = frozenset()
        conf = SyncObjConf(
            autoTick=False,
            raftMinTimeout=timing.election_min,
            raftMaxTimeout=timing.election_max,
            appendEntriesPeriod=timing.heartbeat,
            leaderFallbackTimeout=self._fallback_seconds(timing),
            connectionTimeout=timing.election_max * 2,
        )
        with self.at(now):
            super().__init__(
                _Member(replica_id),
                [self._node(voter) for voter in self._members.voters if voter != replica_id],
                conf,
                transport=_Wire(send),
            )
            self._poller = _NoSockets()
            self._journal = _Journal(log)
            self._term = max(log.term, log.last_term)
            self._voted_for = log.voted_for
            self._commit = self._applied = applied_index
            self._SyncObj__needLoadDumpFile = False
            self._learners = {self._node(learner) for learner in self._members.learners} - {self.selfNode}
            self._wait_briefly_for_leader()
            self._count()
        use_members(self._members)

    def _fallback_seconds(self, timing: Timing) -> float:
        """How long a leader goes on that a majority does not answer (CheckQuorum)."""
        return timing.election_max

    def _lacks_state(self, applied_index: int) -> bool:
        return applied_index < self.log.base_index

    def _node(self, replica_id: int) -> Node:
        if replica_id == self._id:
            return self.selfNode
        return self._member.setdefault(replica_id, _Member(replica_id))

    # What the replica asks

    @property
    def role(self) -> str:
        """``leader``, ``follower`` or ``candidate``."""
        return _ROLES[self._state]

    @property
    def is_leader(self) -> bool:
        """Whether this replica believes that it leads. Another one may lead by now: see ``confirmed``."""
        return self._state == _LEADER

    @property
    def term(self) -> int:
        """The current term."""
        return self._term

    @property
    def leader_id(self) -> int | None:
        """The leader of this term as far as it is known."""
        return None if self._leader is None else self._leader.id

    @property
    def commit_index(self) -> int:
        """Entries up to here are committed."""
        return self._commit

    @property
    def applied_index(self) -> int:
        """Entries up to here have been applied."""
        return self._applied

    @property
    def match_index(self) -> dict[int, int]:
        """As leader: up to where each follower's log is known to be equal, and durable there."""
        return {node.id: self._match[node] for node in self._peers} if self.is_leader else {}

    def counted_of(self, replica_id: int) -> tuple[object, ...]:
        """What this replica counts of what another one has said: it changes when an answer is counted.

        As leader its match index, the newest round that it answered and when that was sent; else the term in
        which votes are counted, and whether it has given one.
        """
        node = self._node(replica_id)
        if self.is_leader and (peer := self._peers.get(node)) is not None:
            return self._match[node], peer.acked_round, self._last_response[node]
        return self._votes[0], node in self._votes[1]

    at = staticmethod(time_stands_still)

    def set_connected(self, replica_ids: frozenset[int]) -> None:
        """Tell which replicas seem reachable."""
        if replica_ids == self._connected_ids:
            return
        self._connected_ids = replica_ids
        connected = {self._node(replica_id) for replica_id in replica_ids}
        for node in connected - self._connected:
            self._forget_in_flight(node)
        if self._leader in self._connected - connected and not self.is_leader:
            self._leader = None
            self._heard_from_leader = float("-inf")
            self._wait_briefly_for_leader()
        self._connected = connected

    def receive(self, sender: int, message: Message) -> None:
        """Handle one message. Answers go through ``send``."""
        if sender in self._removed():
            self._send(sender, Removed())
            return
        # Any other sender is heard: a leader may have members that this log does not know of yet. But an
        # answer counts only with the disk that the members name (docs/protocol.md, O2).
        node = self._node(sender)
        if isinstance(message, AppendReply | Vote) and not self.counts(sender):
            return
        if isinstance(message, AppendEntries):
            self._on_append_entries(node, message)
        elif isinstance(message, AppendReply):
            self._on_append_reply(node, message)
        elif isinstance(message, RequestVote):
            self._on_request_vote(node, message)
        elif isinstance(message, Vote):
            self._on_vote(node, message)
        elif isinstance(message, TakeOver):
            self._on_take_over(node, message)

    def tick(self) -> None:
        """Run the timers; commit, apply and send what can be."""
        if self.is_leader and not self._has_quorum():  # before it acts on anything: it may have been frozen
            self._SyncObj__setState(_FOLLOWER)
            self._leader = None
        if not self.is_leader and _ELECT_NOW < self._election_deadline < _time_of_step():
            if self._may_lead:  # PySyncObj must not find the deadline passed: it knows no PreVote
                self._ask_before_election()
            else:
                self._ask_for_leader()
        if self.is_leader:
            self._take_care_of_members()
            self._go_on_with_transfer()
        self._onTick(0.0)
        if self._election_deadline == _ELECT_NOW and not self.is_leader:  # nobody to be elected by
            self._election_deadline = _time_of_step() + self._SyncObj__generateRaftTimeout()

    def next_wakeup(self) -> float:
        """When ``tick`` must be called again even if nothing happens, in the clock's seconds."""
        if self.is_leader:
            return self._next_send
        return self._election_deadline

    def append(self, commands: Sequence[bytes]) -> int:
        """As leader: put commands into the log; return the index of the first one."""
        first = self.log.last_index + 1
        term = self._term
        self.log.append(
            [LogEntry(index, term, REGULAR + command) for index, command in enumerate(commands, first)]
        )
        self._must_send = True
        return first

    # Linearizable reads: ReadIndex

    def start_round(self) -> int:
        """As leader: ask every follower whether this is still its leader; return the number of that round."""
        self._must_send = True
        return self.round + 1

    def confirmed_round(self) -> int:
        """As leader: a majority has answered this round or a later one, so it follows this leader."""
        acked = [self._peers[node].acked_round if node in self._counted else 0 for node in self._others]
        rounds = sorted([self.round + 1, *acked])  # a leader follows itself
        return rounds[(len(rounds) - 1) // 2]

    def _begin_round(self) -> None:
        """What is sent from now on has another number."""
        now = _time_of_step()
        self.round += 1
        self._sent_at.append((self.round, now))
        while len(self._sent_at) > 1 and self._sent_at[1][1] < now - self._fallback_seconds(self.timing):
            self._sent_at.popleft()

    def _when_sent(self, round_number: int) -> float:
        """When this round was sent; long ago, if that is forgotten (docs/protocol.md, E1)."""
        oldest, _ = self._sent_at[0] if self._sent_at else (0, 0.0)
        position = round_number - oldest
        return self._sent_at[position][1] if 0 <= position < len(self._sent_at) else float("-inf")

    def _has_quorum(self) -> bool:
        """Whether a majority has answered what was sent within an election timeout (CheckQuorum)."""
        since = _time_of_step() - self._fallback_seconds(self.timing)
        answering = sum(self._last_response[node] > since for node in self._others)
        return 2 * (answering + 1) > len(self._others) + 1

    def knows_commit_index(self) -> bool:
        """As leader: whether an entry of its own term has committed, and with it all before (thesis, 6.4)."""
        return bool(self.log.term_at(self._commit) == self._term)

    # Members

    @property
    def members(self) -> Members:
        """Who counts, as far as this replica knows."""
        return self._members

    def _removed(self) -> tuple[int, ...]:
        """The ids that are out for good. A removal that is not committed may be taken back."""
        return self._members.removed and self.committed_members.removed

    def change(self, change: MembersChange) -> int | None:
        """As leader: append a change; return its index, or ``None`` if it must wait: for the one before, or
        until it is known that a majority of the new voters is there (docs/protocol.md, C2).

        0 if the change was made before: it may have been asked for twice, because its answer was lost. Raises
        ``ConfigurationError`` if it makes no sense, or if that majority is not there.
        """
        members = self._after(change)
        if members is self._members and self.log.configuration[0] <= self._commit:
            return 0
        if not self._may_change_members() or not self._passes_check(change, members):
            return None
        return self._append_members(members)

    def _after(self, change: MembersChange) -> Members:
        members = self._members
        if isinstance(change, AddReplica):
            if change.again and change.id in members.all:
                return members
            members = members.with_learner(change.id, change.address)
        elif isinstance(change, RemoveReplica):
            members = members.without(change.id)
        elif isinstance(change, ReplaceReplica):
            members = members.with_replaced(change.id, change.disk)
        else:
            members = members.with_address(change.id, change.address)
        check_members(members)
        return members

    def _passes_check(self, change: object, members: Members) -> bool:
        """Whether a majority of the new voters has answered since the change was asked for, caught up (C2).

        Raises ``ConfigurationError`` if it has not within an election timeout.
        """
        now = _time_of_step()
        for other, check in tuple(self._checks.items()):
            if check.until < now - self.timing.election_max:
                del self._checks[other]  # nobody asks for that one any more
        check = self._checks.get(change) or _Check(
            self.start_round(), self._commit, now + self.timing.election_max
        )
        self._checks[change] = check
        missing = [voter for voter in members.voters if not self._is_there(voter, check)]
        there = 2 * len(missing) < len(members.voters)
        if not there and now <= check.until:
            return False
        del self._checks[change]
        if there:
            return True
        raise ConfigurationError(
            f"refused, nothing was changed: of the voters {list(members.voters)} that there would be, "
            f"{missing} did not answer with all that is committed, and without a majority the group could "
            "not go on: get them back first"
        )

    def _is_there(self, voter: int, check: _Check) -> bool:
        node = self._node(voter)
        if node is self.selfNode:
            return True
        peer = self._peers.get(node)
        return (
            peer is not None
            and (node in self._counted or node in self._learners)
            and peer.acked_round >= check.round
            and self._match[node] >= check.commit_index
        )

    def _append_members(self, members: Members) -> int | None:
        if not self._may_change_members():
            return None
        index = self.log.last_index + 1
        self.log.append([LogEntry(index, self._term, MEMBERS + encoding.encode(members))])
        self._use_members()
        self._must_send = True
        return index

    def _may_change_members(self) -> bool:
        """Two changes under way at once could make two majorities that share nobody, and so could one that
        begins before this leader knows what the last leader did (thesis, 4.1, and its later correction).
        """
        return self.log.configuration[0] <= self._commit and self.knows_commit_index()

    def _use_members(self) -> None:
        """The newest configuration in the log counts from the moment it is there."""
        members = self.log.members
        if members is self._members:
            return
        self._members = members
        learned = self._learners
        self._others = {self._node(voter) for voter in members.voters} - {self.selfNode}
        self._learners = {self._node(learner) for learner in members.learners} - {self.selfNode}
        for node in self._learners - learned:  # whoever spoke under this number before is somebody else
            self._disks.pop(node, None)
        self._count()
        if self.is_leader:
            for node in (self._others | self._learners) - (self._peers.keys() - (self._learners - learned)):
                self._peers[node] = _Peer()
                self._next[node], self._match[node] = self.log.last_index + 1, 0
                self._last_response[node] = _time_of_step()
            for node in self._peers.keys() - self._others - self._learners:
                del self._peers[node], self._next[node], self._match[node], self._last_response[node]
        self._tell_members(members)

    def _count(self) -> None:
        """Find out again which of the voters speak with the disks that the members name.

        In a group from before disks had ids, whoever is in it: only directories that remember can be.
        """
        members = self._members
        disks = dict(members.disks)
        self._counted = {
            node
            for node in self._others
            if node in self._disks and (members.group == LEGACY or disks.get(node.id) == self._disks[node])
        }

    def speaks(self, replica_id: int, disk: bytes) -> None:
        """From now on what comes under this number comes from this disk."""
        node = self._node(replica_id)
        if self._disks.get(node) == disk:
            return
        self._disks[node] = disk
        self._count()
        if self.is_leader and node in self._learners:
            self._forget_progress(node)

    def _forget_progress(self, node: Node) -> None:
        """As leader: it speaks with another disk, and whatever the one before it had is not here."""
        self._peers[node] = _Peer()
        self._next[node], self._match[node] = self.log.last_index + 1, 0
        self._last_response[node] = float("-inf")

    def counts(self, replica_id: int) -> bool:
        """Whether answers under this number are believed: not those of a voter with another disk."""
        node = self._node(replica_id)
        return node in self._counted or node not in self._others

    def on_newcomer(self, replica_id: int, disk: bytes) -> None:
        """As leader: somebody speaks under this number whose disk is not the one that counts (W2)."""
        node, now = self._node(replica_id), _time_of_step()
        if not self.is_leader or node not in self._others or self._members.disk_of(replica_id) == disk:
            return
        known = self._newcomers.get(node)
        if known is None or known.disk != disk or known.heard < now - self.timing.election_max:
            known = _Newcomer(disk, self.start_round(), now, now)
        self._newcomers[node] = known._replace(heard=now)

    def _take_care_of_members(self) -> None:
        """One at a time: give an old group an id, replace lost disks, let learners count."""
        if not self._may_change_members():
            return
        if self._members.group == LEGACY:
            self._identify_group()
        elif not self._replace_lost_disks():
            self._promote_learners()

    def _identify_group(self) -> None:
        """Give the group an id, and disks to those voters that have answered (docs/protocol.md, L2)."""
        disks = {self._id: self.log.disk_id}
        for node in self._others & self._counted:
            if self._match[node] >= self._commit:
                disks[node.id] = self._disks[node]
        everybody = len(disks) == len(self._members.voters)
        waited = _time_of_step() > self._leading_since + self.timing.election_max
        if everybody or (waited and 2 * len(disks) > len(self._members.voters)):
            group = self._rng.getrandbits(128).to_bytes(16, "big")
            self._append_members(self._members.identified(group, disks.items()))

    def _replace_lost_disks(self) -> bool:
        """Whether there is one to be replaced: silent since another disk came under its number."""
        now = _time_of_step()
        for node, newcomer in tuple(self._newcomers.items()):
            if node not in self._others or newcomer.heard < now - self.timing.election_max:
                del self._newcomers[node]
            elif self._peers[node].acked_round >= newcomer.since_round:  # only the disk that counts is heard
                del self._newcomers[node]
                self._send(
                    node.id,
                    Refused(
                        newcomer.disk,
                        f"replica {node.id} is alive, with disk {short(self._members.disk_of(node.id))}, and "
                        f"this is a second one, with disk {short(newcomer.disk)}: stop it, and delete its "
                        "directory",
                    ),
                )
            elif self._is_silent(newcomer, now):
                change = ReplaceReplica(node.id, self._members.disk_of(node.id))
                try:
                    members = self._after(change)
                    if self._passes_check(change, members):
                        logger.warning(
                            "replica %d has a new disk, %s: it is fed anew", node.id, short(newcomer.disk)
                        )
                        self._append_members(members)
                except ConfigurationError as error:
                    logger.warning("the lost disk of replica %d cannot be replaced: %s", node.id, error)
                    self._newcomers[node] = newcomer._replace(since=now)
                return True
        return False

    def _is_silent(self, newcomer: _Newcomer, now: float) -> bool:
        """Whether the disk that counts has had the time to answer since another one was heard (W2)."""
        return now > newcomer.since + self.timing.election_max

    def _promote_learners(self) -> None:
        for node in self._learners:
            behind = self._commit - self._match[node]
            disk = self._disks.get(node)
            if (
                not self._match[node]
                or behind > _CAUGHT_UP_ENTRIES
                or disk in (None, *self._members.replaced)
            ):
                continue
            members = self._members.with_voter(node.id, self._disks[node])
            try:
                if self._passes_check(members, members):
                    self._append_members(members)
            except ConfigurationError as error:
                logger.info("replica %d cannot become a voter yet: %s", node.id, error)
            return  # one at a time

    @property
    def _may_lead(self) -> bool:
        """Whether an election may be tried: only a voter, and only if it could serve as leader."""
        return self._id in self._members.voters and not self.needs_state and not self.recovering

    # Handing leadership over

    def transfer(self, to: int) -> None:
        """As leader: let another voter lead, once it has everything. Raises ``ConfigurationError``.

        Gives up after an election timeout: see ``transferring``.
        """
        node = self._node(to)
        if node not in self._others:
            raise ConfigurationError(
                f"replica {to} is not another voter: {sorted(n.id for n in self._others)} are"
            )
        if node not in self._counted:
            raise ConfigurationError(f"replica {to} is not there, or not with the disk that counts")
        self._transfer = node, _time_of_step() + self.timing.election_max
        self._next_take_over = 0.0
        self._must_send = True

    @property
    def transferring(self) -> bool:
        """As leader: whether leadership is being handed over; no request is taken in meanwhile."""
        return self.is_leader and self._transfer is not None

    def best_successor(self) -> int | None:
        """As leader: the other voter whose log has come furthest, among those that answer."""
        alive = [node for node in self._others if node in self._connected]
        return max(alive, key=lambda node: self._match[node]).id if alive else None

    def _go_on_with_transfer(self) -> None:
        if self._transfer is None:
            return
        node, deadline = self._transfer
        if node not in self._others or _time_of_step() > deadline:
            self._transfer = None
        elif self._match[node] == self.log.last_index and _time_of_step() >= self._next_take_over:
            self._next_take_over = _time_of_step() + self.timing.heartbeat
            self._send(node.id, TakeOver(self._term))

    def _on_take_over(self, node: Node, message: TakeOver) -> None:
        if message.term == self._term and node is self._leader and self._may_lead and not self.is_leader:
            self._election_deadline = _ELECT_NOW

    # Snapshots: who needs one, and what follows from having installed one

    @property
    def needs_snapshot(self) -> frozenset[int]:
        """As leader: the reachable members that need what is no longer in the log."""
        if not self.is_leader:
            return frozenset()
        return frozenset(
            node.id for node, peer in self._peers.items() if peer.needs_snapshot and node in self._connected
        )

    def still_needs_snapshot(self, replica_id: int) -> bool:
        """As leader: whether a stream to this member, reachable or not, is of use."""
        peer = self._peers.get(self._node(replica_id))
        return peer is not None and peer.needs_snapshot

    def slowest_match(self, patience: int) -> int:
        """As leader: up to where everybody who answers, and is fed from the log, has the log.

        Who is more than ``patience`` entries behind is waited for only while it comes nearer, from one call
        to the next: it may have missed that much while it was sent a snapshot.
        """
        recently = _time_of_step() - self.timing.election_min
        slowest = self.log.last_index
        for node, peer in self._peers.items():
            if node in self._connected and self._last_response[node] > recently and not peer.needs_snapshot:
                behind = self._applied - self._match[node]
                if behind < max(patience, peer.was_behind):
                    slowest = min(slowest, self._match[node])
                peer.was_behind = behind
        return slowest

    def on_snapshot_installed(self, replica_id: int, index: int) -> None:
        """As leader: this member has installed a snapshot of this term's stream, durably."""
        node = self._node(replica_id)
        if self.is_leader and (peer := self._peers.get(node)) is not None:
            peer.needs_snapshot, peer.probing = False, True
            peer.was_behind = self.log.last_index  # farther than it can be
            self._on_match(node, peer, index)

    def hear(self, leader: int, term: int) -> bool:
        """A chunk of a snapshot counts as a heartbeat. ``False``: it must not be answered."""
        if term < self._term or leader in self._removed():
            return False
        self._follow(self._node(leader), term)
        return True

    def begin_group(self) -> None:
        """The log has got its first members: from now on this replica may vote, and lead."""
        self._use_members()
        self._wait_briefly_for_leader()

    @property
    def committed_members(self) -> Members:
        """The members as of the newest entry that is known to be committed."""
        return self.log.members_at(self._commit)

    def install(self, index: int, term: int, members: Members) -> None:
        """The state machine now holds the state after entry ``index``, durably: begin there."""
        self.log.install(index, term, members)
        self._commit = max(self._commit, index)
        self._applied = index
        self.needs_state = False
        self._use_members()

    # Elections

    def _SyncObj__generateRaftTimeout(self) -> float:
        return self._rng.uniform(self.timing.election_min, self.timing.election_max)

    def _wait_briefly_for_leader(self) -> None:
        wait = self.timing.first_election
        self._election_deadline = _time_of_step() + self._rng.uniform(wait, 3 * wait)

    def _ask_before_election(self) -> None:
        """PreVote: begin an election only when a majority would take part in it."""
        self._leader = None
        self._election_deadline = _time_of_step() + self._SyncObj__generateRaftTimeout()
        self._prevotes = (self._term + 1, set())
        for node in self._others:
            self._send(
                node.id,
                RequestVote(self._term + 1, self.log.last_index, self.log.last_term, pre=True),
            )
        self._start_election_if_wanted()

    def _ask_for_leader(self) -> None:
        """For one that must not lead: whoever knows that it was removed will say so, others ignore it."""
        self._leader = None
        self._election_deadline = _time_of_step() + self._SyncObj__generateRaftTimeout()
        for node in self._connected:
            self._send(node.id, RequestVote(0, 0, 0, pre=True))

    def _start_election_if_wanted(self) -> None:
        term, granted = self._prevotes
        if term == self._term + 1 and 2 * (len(granted) + 1) > len(self._others) + 1:
            self._prevotes = (0, set())
            self._election_deadline = _ELECT_NOW  # PySyncObj's tick starts the election itself

    def _on_request_vote(self, node: Node, message: RequestVote) -> None:
        if message.term < self._term:
            self._send(node.id, Vote(self._term, granted=False, pre=message.pre))
            return
        if message.pre:
            leader_is_alive = self.is_leader or (
                _time_of_step() < self._heard_from_leader + self.timing.election_min
            )
            ends_with = (message.last_term, message.last_index)
            if not leader_is_alive and ends_with >= (self.log.last_term, self.log.last_index):
                self._send(node.id, Vote(message.term, granted=True, pre=True))
            return
        # PySyncObj compares the ends of the logs, and votes once in a term.
        self._SyncObj__onMessageReceived(
            node,
            {
                "type": "request_vote",
                "term": message.term,
                "last_log_index": message.last_index,
                "last_log_term": message.last_term,
            },
        )

    def _on_vote(self, node: Node, message: Vote) -> None:
        if not message.granted:
            self._adopt_newer_term(message.term)
            return
        if node not in self._others:
            return  # it does not count (yet, or any more)
        if not message.pre and message.term != self._term:
            return  # of an election that is over
        if message.pre:
            term, granted = self._prevotes
            if message.term == term and not self.is_leader:
                granted.add(node)
                self._start_election_if_wanted()
            return
        if self._votes[0] != message.term:
            self._votes = (message.term, set())
        if self._has_voted(node, self._votes[1]):
            return  # PySyncObj counts messages
        self._votes[1].add(node)
        self._SyncObj__onMessageReceived(node, {"type": "response_vote", "term": message.term})

    def _has_voted(self, node: Node, granted: set[Node]) -> bool:
        """A voter has one vote, however often it says so."""
        return node in granted

    def _adopt_newer_term(self, term: int) -> None:
        if term > self._term:
            self._SyncObj__setCurrentTerm(term, None)
            self._SyncObj__setState(_FOLLOWER)
            self._leader = None

    def _SyncObj__onBecomeLeader(self) -> None:
        self._peers = {node: _Peer() for node in self._others | self._learners}
        self._transfer = None
        self._checks, self._newcomers = {}, {}
        self._sent_at.clear()
        self._leading_since = _time_of_step()
        super()._SyncObj__onBecomeLeader()

    # Followers: the leader's entries

    def _on_append_entries(self, node: Node, message: AppendEntries) -> None:
        if message.term < self._term:
            self._tell_deposed(node)
            return
        self._follow(node, message.term)
        self._leader_commit = message.commit_index
        if self.needs_state:
            self._reply(node, message, success=False, index=0)
            return

        entries, prev_index = message.entries, message.prev_index
        if prev_index < self.log.base_index:  # what lies below the base is committed, hence equal
            entries = [entry for entry in entries if entry.index > self.log.base_index]
            prev_index = self.log.base_index
        elif any(entry.index != index for index, entry in enumerate(entries, prev_index + 1)):
            return  # no leader sends that
        elif self.log.term_at(prev_index) != message.prev_term:
            self._refuse_other_history(prev_index, message.prev_term)
            self._reply(node, message, success=False, index=self._conflict_hint(prev_index))
            return
        last = prev_index + len(entries)
        if entries := self._cut_conflict(prev_index, entries):
            self.log.append(entries)
            self._use_members()
        self._commit = max(self._commit, self._proven_commit(message.commit_index, last))
        self._reply(node, message, success=True, index=last)

    def _tell_deposed(self, node: Node) -> None:
        """Or it would never know. It may lead this very term by now, so the answer must not confirm a check,
        or deny an entry, of the term that it asked in.
        """
        self._send(node.id, AppendReply(self._term, False, 1, 0, 0))

    def _follow(self, node: Node, term: int) -> None:
        """Believe in the leader of this term, which is not older than one's own."""
        self._adopt_newer_term(term)
        self._SyncObj__setState(_FOLLOWER)
        self._leader = node
        self._prevotes = (0, set())  # late answers to a PreVote must not depose it
        self._heard_from_leader = _time_of_step()
        self._election_deadline = _time_of_step() + self._SyncObj__generateRaftTimeout()

    def _cut_conflict(self, prev_index: int, entries: list[LogEntry]) -> list[LogEntry]:
        """Cut the log where it contradicts ``entries``, and nowhere else; return those that it lacks."""
        if prev_index >= self.log.last_index:
            return entries
        for position, entry in enumerate(entries):
            term = self.log.term_at(entry.index)
            if term == entry.term or entry.index <= self.log.base_index:
                continue
            self._refuse_other_history(entry.index, entry.term)
            if term is not None:
                self.log.truncate_from(entry.index)
                self._use_members()
            return entries[position:]
        return []

    def _refuse_other_history(self, index: int, term: int) -> None:
        """What is committed here, no leader of this group can contradict."""
        if index <= self._commit:
            raise Corrupt(
                f"{self.log.path}: entry {index} is committed here with term {self.log.term_at(index)}, and "
                f"the leader has one of term {term}: the group has another history. Was this directory left "
                "out of an import? Delete it, and let the others feed it anew"
            )

    def _proven_commit(self, commit_index: int, last: int) -> int:
        """How much of what the leader has committed is here: up to ``last`` the logs are equal."""
        return min(commit_index, last)

    def _conflict_hint(self, prev_index: int) -> int:
        """Where the leader should try next: after this log's end, or where the conflicting term begins."""
        conflicting = self.log.term_at(prev_index)
        if conflicting is None:
            return self.log.last_index + 1
        index = prev_index
        while index > self._commit + 1 and self.log.term_at(index - 1) == conflicting:
            index -= 1
        return index

    def _reply(self, node: Node, message: AppendEntries, *, success: bool, index: int) -> None:
        self._send(node.id, AppendReply(self._term, success, index, message.prev_index, message.round))

    # Leaders: sending, and what comes back

    def _SyncObj__sendAppendEntries(self) -> None:
        self._must_send = False
        self._begin_round()
        now = _time_of_step()
        if now > self._next_probe:
            self._next_probe = now + self.timing.heartbeat
            for peer in self._peers.values():
                peer.probe_sent = False  # it may have been lost: try again with each heartbeat
        self._next_send = self._SyncObj__newAppendEntriesTime = now + self.timing.heartbeat
        for node in self._peers:
            if node in self._connected:
                self._send_entries(node)

    def _send_entries(self, node: Node) -> None:
        peer = self._peers[node]
        last = self.log.last_index
        ready = not peer.probe_sent if peer.probing else peer.in_flight < self.timing.window_bytes
        while True:
            next_index = self._next[node]
            entries: list[LogEntry] = []
            if next_index <= self.log.base_index:
                peer.needs_snapshot = True
            if peer.needs_snapshot:  # a heartbeat; and should it have that much after all, it will say so
                next_index = self.log.base_index + 1
            elif next_index <= last and ready:
                entries = self.log.entries(next_index, last, self.timing.batch_bytes)
            prev_term = self.log.term_at(next_index - 1)
            assert prev_term is not None
            self._send(
                node.id,
                AppendEntries(
                    self._term,
                    next_index - 1,
                    prev_term,
                    entries,
                    self._commit,
                    self.round,
                ),
            )
            peer.probe_sent = peer.probing
            if peer.probing or not entries:
                return
            peer.in_flight += sum(len(entry.command) for entry in entries)
            self._next[node] = entries[-1].index + 1
            ready = peer.in_flight < self.timing.window_bytes
            if entries[-1].index >= last or not ready:
                return

    def _on_append_reply(self, node: Node, message: AppendReply) -> None:
        self._adopt_newer_term(message.term)
        if not self.is_leader or not self._of_this_term(message):
            return
        if (peer := self._peers.get(node)) is None:
            return
        if (message.success and message.index > self.log.last_index) or message.round > self.round:
            self._refuse_claim(node, message)
            return
        self._last_response[node] = max(self._last_response[node], self._when_sent(message.round))
        peer.acked_round = max(peer.acked_round, self._round_of(message))
        if not message.success and message.prev_index == 0 and message.index > 0:
            return  # nobody can deny the beginning: this is meant for a former leader, see ``_tell_deposed``
        if message.success:
            peer.needs_snapshot = False
            if message.index > self._match[node] or peer.probing:
                self._on_match(node, peer, message.index)
        elif message.index == 0:
            peer.needs_snapshot = True
        elif peer.needs_snapshot:
            if message.index > self.log.base_index + 1:  # its log is longer than it seemed
                peer.needs_snapshot = False
                self._next[node] = message.index
                self._probe(peer)
        elif message.prev_index <= self._match[node]:
            self._refuse_rolled_back(node, message)
        elif not peer.probing or message.prev_index == self._next[node] - 1:
            self._next[node] = max(self._match[node] + 1, min(message.index, message.prev_index))
            self._probe(peer)
            self._send_entries(node)

    def _round_of(self, message: AppendReply) -> int:
        """Which round this confirms, with all before: the one that it answers, however late it comes."""
        return message.round

    def _refuse_rolled_back(self, node: Node, message: AppendReply) -> None:
        """Links keep their order, so this is no old answer: the disk has lost what it had acknowledged."""
        logger.error("replica %d denies entry %d, which it had acknowledged", node.id, message.prev_index)
        if node in self._disks:
            reason = (
                f"replica {node.id} (disk {short(self._disks[node])}) has acknowledged entry "
                f"{self._match[node]} and does not hold entry {message.prev_index} any more: is it an old "
                "copy of its directory, or has its disk lied? Delete it, and let the others feed it anew"
            )
            self._send(node.id, Refused(self._disks[node], reason))

    def _refuse_claim(self, node: Node, message: AppendReply) -> None:
        """An acknowledgement of what this leader never sent: one of the two logs is not what it seems."""
        logger.error(
            "replica %d (disk %s) acknowledges entry %d and round %d, and the log of its leader, replica %d, "
            "ends at entry %d, round %d: it is not believed",
            node.id,
            short(self._disks.get(node, b"")),
            message.index,
            message.round,
            self._id,
            self.log.last_index,
            self.round,
        )

    def _of_this_term(self, message: AppendReply) -> bool:
        return message.term == self._term

    def _on_match(self, node: Node, peer: _Peer, index: int) -> None:
        """The follower's log is known to be equal up to ``index``, and durable."""
        if peer.probing:
            peer.probing, peer.in_flight = False, 0
            self._next[node] = index + 1
        else:
            newly, sent = index - self._match[node], self._next[node] - 1 - self._match[node]
            peer.in_flight -= peer.in_flight * newly // max(newly, sent)  # sizes alike: near enough
        self._match[node] = max(self._match[node], index)
        self._next[node] = max(self._next[node], self._match[node] + 1)
        self._must_send = self._must_send or self._next[node] <= self.log.last_index
        self._advance_commit()

    @staticmethod
    def _probe(peer: _Peer) -> None:
        peer.probing, peer.probe_sent, peer.in_flight = True, False, 0

    def _advance_commit(self) -> None:
        """What a majority holds is committed, if it is of this term (paper, 5.4.2).

        PySyncObj's tick would find the same, entry by entry.
        """
        matches = sorted([self.log.last_index, *(self._match[node] for node in self._others)])
        majority = matches[(len(matches) - 1) // 2]
        if majority > self._commit and self._may_commit(majority):
            self._commit = majority
            self._next_send = min(self._next_send, _time_of_step() + self.timing.commit_notice)

    def _may_commit(self, index: int) -> bool:
        """Only what is of this term: what a majority holds of an older one can still be overwritten."""
        return self.log.term_at(index) == self._term

    def _forget_in_flight(self, node: Node) -> None:
        """A new connection: what was under way on the old one is lost."""
        if self.is_leader and node in self._peers:
            self._probe(self._peers[node])
            self._must_send = True

    # What PySyncObj's tick calls

    def _SyncObj__applyLogEntries(self) -> bool:
        if self._applied < self._commit:
            self._sync_before_apply()
        while self._applied < self._commit and not self.recovering and not self.needs_state:
            entries = self.log.entries(self._applied + 1, self._commit, self.timing.batch_bytes)
            self._apply(entries)
            self._applied = entries[-1].index
        self._take_requests()
        return self._must_send or self._next_send <= _time_of_step()

    def _sync_before_apply(self) -> None:
        self.log.sync()  # a new leader's no-op may just have been added

    def _SyncObj__getEntries(
        self, first: int, count: int | None = None, max_bytes: int | None = None
    ) -> list[tuple[bytes, int, int | None]]:
        """PySyncObj asks for terms only; entries go through the log itself."""
        if count != 1:
            raise NotImplementedError("PySyncObj asked for more than one entry")
        return [(b"", first, self.log.term_at(first))]

    def _checkCommandsToApply(self) -> None:
        """Proposals are taken in ``_SyncObj__applyLogEntries``, so that the same tick sends them."""

    def _SyncObj__tryLogCompaction(self) -> None:
        """The log is compacted by the replica, never by dumping the state."""
