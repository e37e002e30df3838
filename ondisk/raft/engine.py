"""PySyncObj under plain names: the only file that touches its private ones.

What PySyncObj 0.3.17 does here, some 170 of its 1,431 lines: roles and terms, the election timer, becoming a
candidate, granting and counting votes, becoming a leader with an entry of its own term, the rule for
commitment once more as long as something is not committed, and the heartbeat's timer. What it does not do
safely is done by the other modules of this room, each in the place that the table names:

==========================  =================================================================  ==============
stock PySyncObj             here                                                               module
==========================  =================================================================  ==============
truncates its log at every  only where an entry really conflicts, and never a committed one    ``follower``
message of the leader
commits up to its own last  commits no further than the message proved to be equal (fig. 2)    ``follower``
backs up one index a time   the follower says where its log ends, or the conflict begins       ``follower``
replies carry no term       they do, and replies from another term count for nothing           ``leader``
sends until memory is full  at most ``Timing.window_bytes`` beyond what was acknowledged       ``progress``
no linearizable reads       ReadIndex rounds (thesis, 6.4), many reads sharing one             ``leader``
dates answers when read     an answer is evidence as of when its question was sent             ``rounds``
counts a vote per message   counts a vote per voter                                            ``elections``
no PreVote, 30 s fallback   PreVote, and CheckQuorum within an election timeout                ``elections``
counts numbers              counts numbers with their disks: who lost its directory does not   ``membership``
changes members by any      one replica at a time, checked first, effective when appended;     ``changes``
node, anybody may ask       learners catch up before they count; a removed id stays out
looks at timers first       drains messages first; time stands still within one step           ``core``
applies one by one          applies in batches; an exception stops the replica                 ``core``
sends its dump unasked,     says who needs a snapshot; it is streamed with acknowledgement,    ``leader``
believes what arrives       and the log begins anew when the state has it durably              and ``core``
==========================  =================================================================  ==============

Time and chance are handed in. PySyncObj reads a module-wide clock, so that name is bound once to a
function which answers with the step's own time for our engines, and with real time for everybody else.
"""

from __future__ import annotations

import _socket
import operator
import random
import socket
import threading
import time
from collections.abc import Callable, Iterable
from typing import Any

import pysyncobj.syncobj
from pysyncobj import SyncObj, SyncObjConf
from pysyncobj.node import Node
from pysyncobj.transport import Transport

from ondisk.raft.log import RaftLog
from ondisk.raft.messages import Message, RequestVote, RequestVoteResponse
from ondisk.raft.progress import Progress
from ondisk.raft.records import LogEntry
from ondisk.raft.timing import Timing

PYSYNCOBJ_VERSION = "0.3.17"

ELECT_NOW = float("-inf")  # an election deadline that has certainly passed

_FOLLOWER, _CANDIDATE, _LEADER = 0, 1, 2
_ROLES = {_FOLLOWER: "follower", _CANDIDATE: "candidate", _LEADER: "leader"}

_step = threading.local()


def time_of_step() -> float:
    """The time of the present step, in seconds of the replica's clock; outside of a step, real time."""
    now: float | None = getattr(_step, "now", None)
    return time.monotonic() if now is None else now


pysyncobj.syncobj.monotonicTime = time_of_step


class time_stands_still:  # named like the function that it is used as
    """For every engine of PySyncObj that is called inside, the time is ``now`` (seconds)."""

    def __init__(self, now: float) -> None:
        self._now = now

    def __enter__(self) -> None:
        self._before = getattr(_step, "now", None)
        _step.now = self._now

    def __exit__(self, *_: object) -> None:
        _step.now = self._before


# Importing PySyncObj puts a function for Windows in this place, for the whole process.
socket.inet_ntop = _socket.inet_ntop


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
    id: int = property(operator.attrgetter("_id"))  # type: ignore[assignment]  # as below: without a frame

    def __hash__(self) -> int:
        number: int = self._id
        return number


class _NoSockets:
    """PySyncObj polls its sockets at the end of each tick, and has none here."""

    def poll(self, timeout: float) -> None:
        pass


class _Wire(Transport):
    """What PySyncObj itself sends (requests for votes, and votes), as our messages."""

    def __init__(self, send: Callable[[int, Message], None], handed_over: Callable[[int], bool]) -> None:
        """``handed_over``: whether the leader before wants this replica to lead a term."""
        super().__init__(None, None, [])
        self._send = send
        self._handed_over = handed_over

    def send(self, node: Node, message: dict[str, Any]) -> bool:
        if message["type"] == "request_vote":
            last_index, last_term = message["last_log_index"], message["last_log_term"]
            term = message["term"]
            handed_over = self._handed_over(term)
            self._send(node.id, RequestVote(term, last_index, last_term, pre=False, handed_over=handed_over))
        elif message["type"] == "response_vote":
            self._send(node.id, RequestVoteResponse(message["term"], pre=False))
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


class _Column:
    """One attribute of every follower's ``Progress``, as the dictionary by node that PySyncObj works on."""

    def __init__(self, progress: dict[int, Progress], name: str) -> None:
        self._progress = progress
        self._name = name

    def __getitem__(self, node: Node) -> Any:
        return getattr(self._progress[node.id], self._name)

    def __setitem__(self, node: Node, value: Any) -> None:
        setattr(self._progress[node.id], self._name, value)

    def clear(self) -> None:
        """A new leader has new objects already."""


class Engine(SyncObj):
    """One engine of PySyncObj: no thread, no socket, no clock. Members are numbers, as everywhere in here.

    Built upon by ``core.Raft``, which says what happens in the hooks: ``_on_elected``,
    ``_on_heartbeat_due`` and ``_is_handed_over``.
    """

    _state: int = _private("raftState")
    _term: int = _private("raftCurrentTerm")
    _voted_for: int | None = _private("votedForNodeId")
    _leader: Node | None = _private("raftLeader")
    _journal: _Journal = _private("raftLog")
    _next: _Column = _private("raftNextIndex")
    _match: _Column = _private("raftMatchIndex")
    _last_response: _Column = _private("lastResponseTime")
    _other_nodes: set[Node] = _private("otherNodes")  # the voters but this one
    _learner_nodes: set[Node] = _private("readonlyNodes")
    _connected_nodes: set[Node] = _private("connectedNodes")
    # What the modules of this room read and write:
    commit_index: int = _private("raftCommitIndex")  # entries up to here are committed
    applied_index: int = _private("raftLastApplied")  # entries up to here have been applied
    leader_commit: int | None = _private("leaderCommitIndex")
    election_deadline: float = _private("raftElectionDeadline")

    def __init__(
        self,
        replica_id: int,
        log: RaftLog,
        *,
        send: Callable[[int, Message], None],
        rng: random.Random,
        timing: Timing,
        check_quorum_seconds: float,
    ) -> None:
        """``check_quorum_seconds``: a leader that a majority does not answer for so long steps down."""
        if pysyncobj.version.VERSION != PYSYNCOBJ_VERSION:
            raise ImportError(
                f"ondisk needs PySyncObj {PYSYNCOBJ_VERSION}, this is {pysyncobj.version.VERSION}"
            )
        self.id = replica_id
        self.log = log
        self.timing = timing
        self.send = send
        self.rng = rng
        self.check_quorum_seconds = check_quorum_seconds
        self.progress: dict[int, Progress] = {}  # as leader: of all other members
        self.connected: set[int] = set()  # those that seem reachable
        self._member: dict[int, Node] = {}
        self.is_leader = False  # whether it believes that it leads: another one may lead by now

    def start(self, applied_index: int, now: float) -> None:
        """Begin as a follower with the term, the vote and the members that the log holds.

        ``applied_index``: up to where the entries are committed, and applied.

        Not in ``__init__``: PySyncObj reads every attribute of the object when it begins, those of the
        subclass, too.
        """
        conf = SyncObjConf(
            autoTick=False,
            raftMinTimeout=self.timing.election_min,
            raftMaxTimeout=self.timing.election_max,
            appendEntriesPeriod=self.timing.heartbeat,
            leaderFallbackTimeout=self.check_quorum_seconds,
            connectionTimeout=self.timing.election_max * 2,
        )
        with time_stands_still(now):
            super().__init__(
                _Member(self.id),
                [self._node(voter) for voter in self.log.members.voters if voter != self.id],
                conf,
                transport=_Wire(self.send, self._is_handed_over),
            )
            self._poller = _NoSockets()
            self._journal = _Journal(self.log)
            self._next = _Column(self.progress, "next")
            self._match = _Column(self.progress, "match")
            self._last_response = _Column(self.progress, "last_response")
            self._term = max(self.log.term, self.log.last_term)
            self._voted_for = self.log.voted_for
            self.commit_index = self.applied_index = applied_index
            self._SyncObj__needLoadDumpFile = False

    def _node(self, replica_id: int) -> Node:
        if replica_id == self.id:
            return self.selfNode
        return self._member.setdefault(replica_id, _Member(replica_id))

    # Role and term

    @property
    def role(self) -> str:
        """``leader``, ``follower`` or ``candidate``."""
        return _ROLES[self._state]

    @property
    def term(self) -> int:
        """The current term."""
        return self._term

    @property
    def leader_id(self) -> int | None:
        """The leader of this term as far as it is known."""
        return None if self._leader is None else self._leader.id

    def forget_leader(self) -> None:
        """No leader is known any more."""
        self._leader = None

    def step_down(self) -> None:
        """Be a follower in the same term, without a leader."""
        self._SyncObj__setState(_FOLLOWER)
        self._leader = None

    def adopt_newer_term(self, term: int) -> None:
        """Whoever hears of a newer term is a follower in it (paper, 5.1)."""
        if term > self._term:
            self._SyncObj__setCurrentTerm(term, None)
            self.step_down()

    def follow(self, leader: int, term: int) -> None:
        """Be a follower of the leader of this term, which is not older than one's own."""
        node = self._node(leader)
        if node is self._leader and term == self._term and self._state == _FOLLOWER:
            return  # nearly always: each message of a leader says so
        self.adopt_newer_term(term)
        self._SyncObj__setState(_FOLLOWER)
        self._leader = node

    # Members

    def use_members(self, others: Iterable[int], learners: Iterable[int]) -> None:
        """Take the other voters, and the learners, for those that there are."""
        self._other_nodes = {self._node(voter) for voter in others}
        self._learner_nodes = {self._node(learner) for learner in learners}

    def use_connected(self, replica_ids: Iterable[int]) -> None:
        """Take these for reachable."""
        self.connected = set(replica_ids)
        self._connected_nodes = {self._node(replica_id) for replica_id in self.connected}

    # Elections

    def random_election_timeout(self) -> float:
        """Seconds until a follower that hears nothing stands for election (paper, 5.2)."""
        return self.rng.uniform(self.timing.election_min, self.timing.election_max)

    def consider_vote(self, candidate: int, request: RequestVote) -> None:
        """Vote if this log is no newer, and not twice in a term: PySyncObj does that."""
        self._SyncObj__onMessageReceived(
            self._node(candidate),
            {
                "type": "request_vote",
                "term": request.term,
                "last_log_index": request.last_index,
                "last_log_term": request.last_term,
            },
        )

    def count_vote(self, voter: int, term: int) -> None:
        """Another voter wants this one to lead in ``term``. PySyncObj counts messages: call once for each."""
        self._SyncObj__onMessageReceived(self._node(voter), {"type": "response_vote", "term": term})

    # The tick, and what PySyncObj calls in it

    def run_timers(self) -> None:
        """PySyncObj's tick, if anything is due: stand for election; as leader, commit, send a heartbeat."""
        now = time_of_step()
        if self.is_leader:
            is_due = now > self._SyncObj__newAppendEntriesTime or self.commit_index < self.log.last_index
        else:
            is_due = now > self.election_deadline
        if is_due:
            self._onTick(0.0)

    def heartbeat_sent(self, now: float) -> float:
        """Put off the next heartbeat; return when it is due."""
        due: float = now + self.timing.heartbeat
        self._SyncObj__newAppendEntriesTime = due
        return due

    def _is_handed_over(self, term: int) -> bool:
        """Hook: whether the leader of the term before wants this replica to lead ``term``."""
        return False

    def _on_elected(self) -> None:
        """Hook: this replica leads from now on, and appends its first entry next."""

    def _on_heartbeat_due(self) -> None:
        """Hook: the followers must hear from their leader in this step."""

    def _SyncObj__generateRaftTimeout(self) -> float:
        return self.random_election_timeout()

    def _SyncObj__setState(self, state: int) -> None:
        super()._SyncObj__setState(state)
        self.is_leader = state == _LEADER  # asked for many times in a step

    def _SyncObj__onBecomeLeader(self) -> None:
        self._on_elected()
        super()._SyncObj__onBecomeLeader()

    def _SyncObj__sendAppendEntries(self) -> None:
        self._on_heartbeat_due()

    def _SyncObj__applyLogEntries(self) -> bool:
        """Entries are applied by the replica, after the tick. ``False``: there is nothing to send now."""
        return False

    def _SyncObj__getEntries(
        self, first: int, count: int | None = None, max_bytes: int | None = None
    ) -> list[tuple[bytes, int, int | None]]:
        """PySyncObj asks for terms only; entries go through the log itself."""
        if count != 1:
            raise NotImplementedError("PySyncObj asked for more than one entry")
        return [(b"", first, self.log.term_at(first))]

    def _checkCommandsToApply(self) -> None:
        """Proposals are taken by the replica, so that the same tick sends them."""

    def _SyncObj__tryLogCompaction(self) -> None:
        """The log is compacted by the replica, never by dumping the state."""
