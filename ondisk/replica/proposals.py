"""Proposals: from a caller to the log, by way of the leader, and the answer back.

A proposal waits until somebody leads. A leader puts it into its log and answers when the entry is applied;
any other replica forwards it, and passes on what the leader says. Whatever happens on the way, the caller is
told the truth about its write: it has happened, it never will, or nobody knows (``errors.py``).
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator, Sequence
from typing import Literal, NamedTuple

from ondisk.errors import (
    ConfigurationError,
    Discarded,
    NoLeader,
    NotDone,
    OndiskError,
    OutcomeUnknown,
    ReplicaStopped,
    Timeout,
)
from ondisk.interrupts.futures import Future
from ondisk.raft import Raft
from ondisk.raft.limits import COMMAND_OVERHEAD, OUTCOMES_BYTES, result_bytes, sendable
from ondisk.raft.messages import (
    AddReplica,
    Change,
    MembersChange,
    Outcome,
    Outcomes,
    Propose,
    ProposeChange,
    RemoveReplica,
    ReplaceReplica,
    TransferLeadership,
)
from ondisk.raft.records import LogEntry
from ondisk.replica.requests import Answer, Remote, Send, answer_due, begin, drain, refuse
from ondisk.statemachine import Entry, Result

_DISCARDED = "a new leader discarded the entry before it was committed"
_LOST_BY_LEADER = "the leader lost the entry; another replica may still hold it"
_NOT_YET = "replica {} did not take over in time; it still may"
_PASSED_BY_SNAPSHOT = "a snapshot passed the entry, and does not tell whether it was this one"


class _Proposal(NamedTuple):
    command: bytes | Change
    deadline: float
    reply: Future[Result] | Remote


class Proposals:
    """Those of this replica's callers, and of the replicas that take it for the leader."""

    def __init__(
        self,
        replica_id: int,
        raft: Raft,
        *,
        send: Send,
        answer: Answer,
        first_request: int,
        failed: Callable[[], object] = lambda: None,
    ) -> None:
        """``first_request`` numbers what is forwarded, and differs from that of an earlier life.

        ``failed`` is called when a caller here is told of an error.
        """
        self._count_failed = failed
        self.blocked = False  # whether the present step could not send to the leader it knows
        self._id = replica_id
        self._raft = raft
        self._send = send
        self._tell = answer
        self._next_request = first_request
        self._outcomes: dict[int, list[Outcome]] = {}  # to be told to other replicas
        # A proposal waits here until it is taken, then in one of the next two until it is answered.
        self._waiting: deque[_Proposal] = deque()
        self._in_log: dict[int, tuple[int, _Proposal]] = {}  # index: term, proposal
        self._forwarded: dict[int, tuple[int, _Proposal]] = {}  # request: leader, proposal
        self._changes_of_others: set[Remote] = set()  # not answered yet: they may be asked for again
        self._answer_due = 0.0  # when to ask again for a change that was forwarded
        self._does_not_lead: int | None = None  # who has said so since the last look
        self._ask_again: tuple[int, float] = (0, 0.0)  # whom, and not before
        self._patience: dict[int, float] = {}  # for a former leader: until when it may tell how things ended
        self._handing_over: _Proposal | None = None  # a wish for another leader, until it leads
        self._in_hand: list[_Proposal] = []  # on the way from the first of these to another one

    def __len__(self) -> int:
        """How many have not been answered yet."""
        return len(self._waiting) + len(self._in_log) + len(self._forwarded)

    def ask(self, command: bytes | Change, deadline: float) -> Future[Result]:
        """A caller proposes, from any thread."""
        future: Future[Result] = Future()
        self._waiting.append(_Proposal(command, deadline, future))
        return future

    def receive(self, sender: int, message: Propose | ProposeChange | Outcomes) -> None:
        """Another replica proposes, or says what became of what was forwarded to it."""
        if isinstance(message, Propose):
            for request, command in enumerate(message.commands, message.first):
                self._waiting.append(_Proposal(command, float("inf"), Remote(sender, request)))
        elif isinstance(message, ProposeChange):
            asked = Remote(sender, message.request)
            if asked not in self._changes_of_others:
                self._changes_of_others.add(asked)
                self._waiting.append(_Proposal(message.change, float("inf"), asked))
        else:
            self._on_outcomes(message)

    # Out: into the log, or to the leader

    @property
    def more_to_take(self) -> bool:
        """Whether another step could take more of them at once."""
        if not self._waiting or self.blocked:
            return False
        return self._raft.leader_id is not None and not self._raft.transferring

    def take(self, now: float) -> None:
        """Raft is ready for new ones: propose them, forward them, or let them wait for a leader."""
        if self._raft.is_leader:
            if not self._raft.transferring:
                self._propose(now)
        else:
            if self._waiting:
                self._return_remote()
            if (leader := self._raft.leader_id) is not None:
                if now >= self._answer_due:
                    self._forward_again(leader, now)
                if self._waiting and not self._has_to_wait(leader, now):
                    self._forward(leader, now)
        self._in_hand = []

    def _has_to_wait(self, leader: int, now: float) -> bool:
        """Whether this one has just said that it does not lead: asked at once, it would say so again."""
        if self._does_not_lead is not None:
            self._ask_again = self._does_not_lead, now + self._raft.timing.heartbeat
            self._does_not_lead = None
        whom, since = self._ask_again
        if whom != leader or now >= since:
            return False
        self.blocked = True
        return True

    def _take(self, now: float) -> list[_Proposal]:
        taken = self._in_hand
        size = 0
        while self._waiting and size < self._raft.timing.batch_bytes:
            proposal = self._waiting.popleft()
            if proposal.deadline <= now:
                self._too_late(proposal)
            elif isinstance(proposal.reply, Remote) or begin(proposal.reply):
                taken.append(proposal)
                if isinstance(proposal.command, bytes):
                    size += len(proposal.command) + COMMAND_OVERHEAD
        return taken

    def _propose(self, now: float) -> None:
        commands, changes = _split(self._take(now))
        if commands:
            first = self._raft.append([command for command, _ in commands])
            for index, (_, proposal) in enumerate(commands, first):
                self._await(index, proposal)
        for change, proposal in changes:
            try:
                self._propose_change(change, proposal)
            except ConfigurationError as error:
                self._answer(proposal.reply, Result(error=str(error)))

    def _await(self, index: int, proposal: _Proposal) -> None:
        if index in self._in_log:  # from an earlier term of ours, and cut off since
            self._refuse(self._in_log[index][1].reply, OutcomeUnknown(_LOST_BY_LEADER))
        self._in_log[index] = self._raft.term, proposal

    def _propose_change(self, change: Change, proposal: _Proposal) -> None:
        raft = self._raft
        if isinstance(change, TransferLeadership):
            if change.to == self._id:
                self._answer(proposal.reply, Result())
            elif self._handing_over is not None:
                self._wait_for_turn(proposal)
            else:
                raft.transfer(change.to)
                self._handing_over = proposal
        elif (
            isinstance(change, RemoveReplica | ReplaceReplica)
            and change.id == self._id
            and len(raft.members.voters) > 1
        ):
            if (successor := raft.best_successor()) is not None:
                raft.transfer(successor)  # who will be asked instead of this one
            if isinstance(proposal.reply, Remote):
                self._report(proposal.reply, "not_leader")
            else:
                self._wait_for_turn(proposal)
        elif (index := raft.change(change)) is None:
            self._wait_for_turn(proposal)
        elif index > 0:
            self._await(index, proposal)
        else:
            self._answer(proposal.reply, Result())

    def _wait_for_turn(self, proposal: _Proposal) -> None:
        self.blocked = True
        self._waiting.append(proposal)

    def watch_leadership_transfer(self, now: float) -> None:
        """Answer who wanted another leader, once it leads or has not made it in time."""
        raft = self._raft
        if (proposal := self._handing_over) is None or raft.transferring:
            return
        assert isinstance(proposal.command, TransferLeadership)
        if raft.leader_id is None and now < proposal.deadline:
            return  # an election is going on
        self._handing_over = None
        if raft.leader_id == proposal.command.to:
            self._answer(proposal.reply, Result())
        else:  # the request to take over may still be on its way
            self._refuse(proposal.reply, OutcomeUnknown(_NOT_YET.format(proposal.command.to)))

    def _forward(self, leader: int, now: float) -> None:
        commands, changes = _split(self._take(now))
        if commands:
            first = self._next_request
            for _, proposal in commands:
                self._note_forwarded(leader, proposal)
            self._send(leader, Propose(first, [command for command, _ in commands]))
        for change, proposal in changes:
            request = self._note_forwarded(leader, proposal)
            self._send(leader, ProposeChange(request, change))
        if changes:
            self._answer_due = answer_due(now, self._raft.timing)

    def _forward_again(self, leader: int, now: float) -> None:
        """A change of the members, or the answer to it, may have been lost; done twice is done once.

        But not an address: a question that comes late would undo a move that somebody else made since.
        """
        self._answer_due = answer_due(now, self._raft.timing)  # also if none was: not every step looks
        for request, (asked, proposal) in self._forwarded.items():
            if asked == leader and isinstance(proposal.command, AddReplica | RemoveReplica | ReplaceReplica):
                self._send(leader, ProposeChange(request, _again(proposal.command)))

    def _note_forwarded(self, leader: int, proposal: _Proposal) -> int:
        request = self._next_request
        self._forwarded[request] = leader, proposal
        self._next_request += 1
        return request

    def take_back(self, message: Propose | ProposeChange) -> None:
        """The leader is gone and the commands never left: they wait for the next one."""
        self.blocked = True
        if isinstance(message, ProposeChange):
            requests = range(message.request, message.request + 1)
        else:
            requests = range(message.first, message.first + len(message.commands))
        for request in reversed(requests):
            if (waiting := self._forwarded.pop(request, None)) is not None:  # else given up meanwhile
                proposal = waiting[1]
                if isinstance(message, ProposeChange):  # it may have been sent before
                    proposal = proposal._replace(command=message.change)
                self._waiting.appendleft(proposal)

    def _return_remote(self) -> None:
        """Another replica took this one for the leader: it may ask elsewhere."""
        ours = []
        for proposal in drain(self._waiting):
            if isinstance(proposal.reply, Remote):
                self._report(proposal.reply, "not_leader")
            else:
                ours.append(proposal)
        self._waiting.extendleft(reversed(ours))

    # Back: what became of them

    def on_applied(
        self, entries: Sequence[LogEntry], commands: Sequence[Entry], results: Sequence[Result]
    ) -> None:
        """Entries of the log were applied; those of them that are ``commands`` have ``results``."""
        if not self._in_log:
            return
        answers = {entry.index: result for entry, result in zip(commands, results, strict=True)}
        for entry in entries:
            if (waiting := self._in_log.pop(entry.index, None)) is None:
                continue
            term, proposal = waiting
            if term == entry.term:
                self._answer(proposal.reply, sendable(answers.get(entry.index, Result())))
            else:
                self._refuse(proposal.reply, Discarded(_DISCARDED))

    def on_installed(self, index: int) -> None:
        """A snapshot took the place of all entries up to ``index``."""
        for passed in [waiting for waiting in self._in_log if waiting <= index]:
            self._refuse(self._in_log.pop(passed)[1].reply, OutcomeUnknown(_PASSED_BY_SNAPSHOT))

    def _on_outcomes(self, message: Outcomes) -> None:
        for outcome in message.outcomes:
            if (waiting := self._forwarded.pop(outcome.request, None)) is None:
                continue  # given up already
            asked, proposal = waiting
            assert isinstance(proposal.reply, Future)
            if outcome.result is not None:
                self._tell(proposal.reply, outcome.result)
            elif outcome.verdict == "not_leader":  # it has handed over, say, and has not taken this in
                if isinstance(proposal.command, bytes):
                    self._does_not_lead = asked
                self._wait_for_turn(proposal)
            elif outcome.verdict == "discarded":
                self._fail(proposal.reply, Discarded(_DISCARDED))
            elif isinstance(proposal.command, TransferLeadership):
                self._fail(proposal.reply, OutcomeUnknown(_NOT_YET.format(proposal.command.to)))
            else:
                self._fail(proposal.reply, OutcomeUnknown(_LOST_BY_LEADER))

    def _answer(self, reply: Future[Result] | Remote, result: Result) -> None:
        if isinstance(reply, Remote):
            self._report(reply, "applied", result)
        else:
            self._tell(reply, result)

    def _refuse(self, reply: Future[Result] | Remote, error: OndiskError) -> None:
        if isinstance(reply, Remote):
            self._report(reply, "discarded" if isinstance(error, NotDone) else "unknown")
        else:
            self._fail(reply, error)

    def _fail(self, reply: Future[Result], error: OndiskError) -> None:
        if refuse(reply, error):
            self._count_failed()

    def _report(
        self,
        to: Remote,
        verdict: Literal["applied", "not_leader", "discarded", "unknown"],
        result: Result | None = None,
    ) -> None:
        self._changes_of_others.discard(to)
        outcome = Outcome(to.request, verdict, result)
        self._outcomes.setdefault(to.replica_id, []).append(outcome)

    def send_outcomes(self) -> None:
        """Tell the other replicas what became of theirs, in one message each, or in several that fit."""
        if not self._outcomes:
            return
        for replica_id, outcomes in self._outcomes.items():
            for some in _in_parts(outcomes):
                self._send(replica_id, Outcomes(some))
        self._outcomes = {}

    def keep_outcomes(self, replica_id: int, message: Outcomes) -> None:
        """There was no room for them: the next step tries again."""
        self._outcomes.setdefault(replica_id, []).extend(message.outcomes)

    # Giving up

    def give_up(self, now: float) -> None:
        """End those whose deadline has passed, and those of others that this log does not hold any more."""
        in_time = []
        for proposal in drain(self._waiting):
            if proposal.deadline > now:
                in_time.append(proposal)
            else:
                self._too_late(proposal)
        self._waiting.extendleft(reversed(in_time))
        for table in (self._in_log, self._forwarded):
            late = [key for key, (_, proposal) in table.items() if proposal.deadline <= now]
            for key in late:
                self._refuse(
                    table.pop(key)[1].reply,
                    Timeout("proposed, but not known to be committed before the deadline"),
                )
        self._forget_cut_off()

    def _forget_cut_off(self) -> None:
        """Commands of other replicas that are in this log no more; those know no better than we do."""
        last = self._raft.log.last_index
        for index in [index for index in self._in_log if index > last]:
            if isinstance(reply := self._in_log[index][1].reply, Remote):
                del self._in_log[index]
                self._refuse(reply, OutcomeUnknown(_LOST_BY_LEADER))

    def _too_late(self, proposal: _Proposal) -> None:
        """Its deadline passed before it was proposed."""
        if not isinstance(proposal.reply, Future):
            return
        if proposal.reply.running() and not isinstance(proposal.command, bytes):
            # It may have been proposed to a leader that went away: see ``give_up_on_former_leader``.
            error: OndiskError = Timeout("asked for, but not known to be done before the deadline")
        else:
            error = NoLeader("no leader could be reached before the deadline; nothing was proposed")
        self._fail(proposal.reply, error)

    def give_up_on_former_leader(self, now: float) -> None:
        """What was forwarded to who does not lead any more: ask again if that does no harm.

        A leader that hands over goes on, and tells how commands have ended that it took in before.
        """
        if not self._forwarded:
            self._patience.clear()
            return
        leader = self._raft.leader_id
        self._patience = {asked: until for asked, until in self._patience.items() if asked != leader}
        for request in [key for key, (asked, _) in self._forwarded.items() if asked != leader]:
            asked, proposal = self._forwarded[request]
            change = proposal.command
            if isinstance(change, bytes) and self._may_still_tell(asked, now):
                continue
            if isinstance(change, TransferLeadership) and leader in (None, change.to):
                if leader is None:
                    continue  # going away is what it was asked for
                self._answer(proposal.reply, Result())
            elif isinstance(change, bytes | TransferLeadership):
                self._refuse(
                    proposal.reply, OutcomeUnknown("the leader went away after the command was sent to it")
                )
            else:
                self._wait_for_turn(proposal._replace(command=_again(change)))
            del self._forwarded[request]

    def _may_still_tell(self, former: int, now: float) -> bool:
        """Whether a former leader is there, and had not long enough yet."""
        if former not in self._raft.connected:
            return False
        return now < self._patience.setdefault(former, answer_due(now, self._raft.timing))

    def refuse_all(self, stopped: str) -> None:
        """The replica has stopped; ``stopped`` says why."""
        for proposal in drain(self._waiting):
            if not isinstance(proposal.reply, Future):
                continue
            if proposal.reply.running() and not isinstance(proposal.command, bytes):
                self._fail(proposal.reply, OutcomeUnknown(f"{stopped}; it had been asked for"))
            else:
                self._fail(proposal.reply, ReplicaStopped(stopped))
        in_hand, self._in_hand = self._in_hand, []
        for proposal in in_hand:  # an error came in between
            self._refuse(proposal.reply, OutcomeUnknown(f"{stopped}; the command may have been proposed"))
        for table in (self._in_log, self._forwarded):
            while table:
                _, (_, proposal) = table.popitem()
                self._refuse(proposal.reply, OutcomeUnknown(f"{stopped}; the command had been proposed"))
        if self._handing_over is not None:
            self._refuse(self._handing_over.reply, OutcomeUnknown(stopped))
        self._handing_over = None


def _again(change: MembersChange) -> MembersChange:
    """The same change, of which nobody knows whether it was made."""
    return AddReplica(change.id, change.address, again=True) if isinstance(change, AddReplica) else change


def _in_parts(outcomes: Sequence[Outcome]) -> Iterator[list[Outcome]]:
    """Cut them so that each part fits into a message."""
    part: list[Outcome] = []
    size = 0
    for outcome in outcomes:
        more = result_bytes(outcome.result)
        if part and size + more > OUTCOMES_BYTES:
            yield part
            part, size = [], 0
        part.append(outcome)
        size += more
    if part:
        yield part


def _split(
    proposals: Sequence[_Proposal],
) -> tuple[list[tuple[bytes, _Proposal]], list[tuple[Change, _Proposal]]]:
    """Commands for the state machine, and changes of the group."""
    commands, changes = [], []
    for proposal in proposals:
        if isinstance(proposal.command, bytes):
            commands.append((proposal.command, proposal))
        else:
            changes.append((proposal.command, proposal))
    return commands, changes
