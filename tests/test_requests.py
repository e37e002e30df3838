"""Proposals and reads by themselves, over a Raft that says what a test wants: who is told what, and when."""

from __future__ import annotations

from contextlib import nullcontext
from typing import Any

import pytest

from ondisk.errors import (
    ConfigurationError,
    Corrupt,
    Discarded,
    NoLeader,
    OutcomeUnknown,
    Rejected,
    ReplicaStopped,
    Timeout,
)
from ondisk.interrupts.futures import Future
from ondisk.raft import Timing
from ondisk.raft.limits import OUTCOMES_BYTES
from ondisk.raft.members import Members
from ondisk.raft.messages import (
    AddReplica,
    Change,
    Message,
    MoveReplica,
    Outcome,
    Outcomes,
    Propose,
    ProposeChange,
    ReadIndexRejection,
    ReadIndexRequest,
    ReadIndexResponse,
    RemoveReplica,
    ReplaceReplica,
    TransferLeadership,
)
from ondisk.raft.records import LogEntry
from ondisk.replica.proposals import Proposals
from ondisk.replica.reads import Lookup, Reads
from ondisk.statemachine import Entry, Result

FIRST = 100  # the first request number
HEARTBEAT = Timing().heartbeat
FOREVER = float("inf")


class FakeRaft:
    """What proposals and reads look at, as plain attributes."""

    def __init__(self) -> None:
        self.timing = Timing()
        self.leader_id: int | None = None
        self.is_leader = False
        self.connected: frozenset[int] = frozenset()
        self.transferring = False
        self.knows = True
        self.term, self.round, self.confirmed = 1, 0, 0
        self.commit_index = self.applied_index = 0
        self.members = Members((1, 2, 3))
        self.log = self.leader = self
        self.last_index = 0
        self.entries: list[bytes] = []
        self.changed: list[Change] = []
        self.change_answer: int | Exception | None = None
        self.successor: int | None = 2
        self.transferred: list[int] = []

    def lead(self) -> None:
        self.leader_id, self.is_leader = 1, True

    def follow(self, leader: int | None) -> None:
        self.leader_id, self.is_leader = leader, False

    def committed_in_current_term(self) -> bool:
        return self.knows

    def start_round(self) -> int:
        self.round += 1
        return self.round

    def confirmed_round(self) -> int:
        return self.confirmed

    def append(self, commands: list[bytes]) -> int:
        self.entries += commands
        self.last_index += len(commands)
        return self.last_index - len(commands) + 1

    def change(self, change: Change) -> int | None:
        self.changed.append(change)
        if isinstance(self.change_answer, Exception):
            raise self.change_answer
        return self.change_answer

    def transfer(self, to: int) -> None:
        self.transferred.append(to)
        self.transferring = True

    def best_successor(self) -> int | None:
        return self.successor


class Told:
    """What left, and which callers were told what."""

    def __init__(self) -> None:
        self.raft = FakeRaft()
        self.sent: list[tuple[int, Message]] = []

    def send(self, to: int, message: Message) -> None:
        self.sent.append((to, message))

    @staticmethod
    def answer(future: Future[Any], result: Any) -> None:
        future.set_result(result)

    def outbox(self) -> list[tuple[int, Message]]:
        sent, self.sent[:] = list(self.sent), []
        return sent


class Reading(Told):
    def __init__(self) -> None:
        super().__init__()
        self.reads = Reads(
            self.raft,  # type: ignore[arg-type]
            send=self.send,
            answer=self.answer,
            first_request=FIRST,
            clock=lambda: 0.0,
        )


class Proposing(Told):
    def __init__(self) -> None:
        super().__init__()
        self.proposals = Proposals(
            1,
            self.raft,  # type: ignore[arg-type]
            send=self.send,
            answer=self.answer,
            first_request=FIRST,
        )

    def outcomes(self) -> list[tuple[int, Message]]:
        self.proposals.send_outcomes()
        return self.outbox()

    def apply(self, term: int, first: int, *results: Result) -> None:
        entries = [LogEntry(index, term, b"\x00x") for index, _ in enumerate(results, first)]
        commands = [Entry(each.index, b"x") for each in entries]
        self.proposals.on_applied(entries, commands, results)


# Reads


def test_what_a_read_looks_up_is_looked_up_when_its_turn_has_come() -> None:
    it = Reading()
    it.raft.lead()
    it.raft.applied_index = it.raft.commit_index = 7
    seen = []
    future = it.reads.ask(FOREVER, future=Lookup(lambda: seen.append(it.raft.applied_index) or "found"))
    it.reads.take(0.0)
    it.raft.confirmed, it.raft.applied_index = 1, 8
    assert not seen
    it.reads.serve()
    assert seen == [8] and future.result(0) == "found"


@pytest.mark.parametrize("kind", [Corrupt, KeyboardInterrupt])
def test_a_lookup_that_raises_is_told_to_who_asked(kind: type[BaseException]) -> None:
    """Also what is no ``Exception``, as a panic in RocksDB's binding: then the step ends with it, too."""

    def look() -> None:
        raise kind("damaged")

    future = Lookup(look)
    with nullcontext() if issubclass(kind, Exception) else pytest.raises(kind):
        future.set_result(None)
    assert isinstance(future.exception(0), kind)


def test_a_leaders_read_waits_for_its_round_and_then_for_the_index() -> None:
    it = Reading()
    it.raft.lead()
    it.raft.commit_index, it.raft.knows = 7, False
    first, second = it.reads.ask(FOREVER), it.reads.ask(FOREVER)
    it.reads.take(0.0)
    assert it.raft.round == 0 and len(it.reads) == 2  # not before it knows what is committed
    it.raft.knows = True
    it.reads.take(0.0)
    assert it.raft.round == 1 and len(it.reads) == 1  # they share it
    it.raft.commit_index = 9
    later = it.reads.ask(FOREVER)
    it.reads.take(0.0)
    it.raft.applied_index = 9
    it.reads.serve()
    assert not first.done()
    it.raft.confirmed, it.raft.applied_index = 1, 6
    it.reads.serve()
    assert not first.done() and not later.done()
    it.raft.applied_index = 7
    it.reads.serve()
    assert first.done() and second.done() and not later.done() and not it.outbox()
    it.raft.confirmed, it.raft.applied_index = 2, 8
    it.reads.serve()
    assert not later.done() and len(it.reads) == 1
    it.raft.applied_index = 9
    it.reads.serve()
    assert later.done() and len(it.reads) == 0
    it.reads.take(0.0)
    assert it.raft.round == 2  # nobody asks for another one


def test_a_leader_tells_another_replica_the_index_when_the_round_is_confirmed() -> None:
    it = Reading()
    it.raft.lead()
    it.raft.commit_index = 7
    it.reads.receive(3, ReadIndexRequest(55), 0.0)
    it.reads.take(0.0)
    it.reads.serve()
    assert it.outbox() == []
    it.raft.confirmed = 1
    it.reads.serve()
    assert it.outbox() == [(3, ReadIndexResponse(55, 7))] and len(it.reads) == 0


def test_reads_of_a_leader_that_is_deposed_ask_the_next_one() -> None:
    it = Reading()
    it.raft.lead()
    mine = it.reads.ask(FOREVER)
    it.reads.receive(3, ReadIndexRequest(55), 0.0)
    it.reads.take(0.0)
    it.raft.follow(2)
    it.raft.confirmed = 1
    it.reads.serve()
    it.reads.take(0.0)
    assert it.outbox() == [(3, ReadIndexRejection(55)), (2, ReadIndexRequest(FIRST))] and not mine.done()


def test_a_followers_read_asks_once_and_again_after_two_heartbeats() -> None:
    it = Reading()
    first = it.reads.ask(FOREVER)
    it.reads.take(10.0)
    assert it.outbox() == []  # nobody to ask
    it.raft.follow(2)
    it.reads.take(10.0)
    assert it.outbox() == [(2, ReadIndexRequest(FIRST))]
    it.reads.take(10.0 + 1.9 * HEARTBEAT)
    assert it.outbox() == []
    second = it.reads.ask(FOREVER)
    it.reads.take(10.0 + 1.95 * HEARTBEAT)
    assert it.outbox() == [(2, ReadIndexRequest(FIRST + 1))] and len(it.reads) == 2
    it.reads.take(10.0 + 2 * HEARTBEAT)
    assert it.outbox() == []  # the newest question counts
    it.reads.take(10.0 + 4 * HEARTBEAT)
    assert it.outbox() == [(2, ReadIndexRequest(FIRST + 1))]
    it.reads.take(10.0 + 5 * HEARTBEAT)
    assert it.outbox() == []
    it.reads.take(10.0 + 6.1 * HEARTBEAT)
    assert it.outbox() == [(2, ReadIndexRequest(FIRST + 1))]
    it.reads.receive(2, ReadIndexResponse(FIRST, 5), 11.0)
    it.raft.applied_index = 5
    it.reads.serve()
    assert first.done() and not second.done()
    it.reads.receive(2, ReadIndexResponse(FIRST + 7, 5), 11.0)  # nobody asked that
    it.reads.receive(2, ReadIndexResponse(FIRST + 1, 6), 11.0)
    it.reads.serve()
    assert not second.done()
    it.raft.applied_index = 6
    it.reads.serve()
    assert second.done() and len(it.reads) == 0
    it.reads.take(20.0)
    assert it.outbox() == []


def test_one_that_does_not_lead_is_asked_again_after_a_heartbeat_and_another_one_at_once() -> None:
    it = Reading()
    it.raft.follow(2)
    read = it.reads.ask(FOREVER)
    it.reads.take(10.0)
    it.outbox()
    it.reads.receive(2, ReadIndexRejection(FIRST), 10.0)
    it.reads.take(10.0 + HEARTBEAT / 2)
    assert it.outbox() == [] and len(it.reads) == 1
    it.reads.take(10.0 + HEARTBEAT)
    assert it.outbox() == [(2, ReadIndexRequest(FIRST + 1))]
    it.raft.follow(3)
    it.reads.receive(2, ReadIndexRejection(FIRST + 1), 10.2)
    it.reads.take(10.2)
    assert it.outbox() == [(3, ReadIndexRequest(FIRST + 2))] and not read.done()


def test_a_read_goes_with_the_leader_that_it_asked() -> None:
    it = Reading()
    it.raft.follow(2)
    read = it.reads.ask(FOREVER)
    it.reads.take(10.0)
    it.reads.give_up_on_former_leader()
    it.outbox()
    it.reads.take(10.0)
    assert it.outbox() == []
    it.raft.follow(3)
    it.reads.give_up_on_former_leader()
    it.reads.take(10.0)
    assert it.outbox() == [(3, ReadIndexRequest(FIRST + 1))]
    it.reads.receive(2, ReadIndexResponse(FIRST, 1), 10.0)  # too late
    it.raft.applied_index = 1
    it.reads.serve()
    assert not read.done()
    it.raft.follow(None)
    it.reads.give_up_on_former_leader()
    it.outbox()
    it.reads.take(20.0)
    assert it.outbox() == [] and len(it.reads) == 1


@pytest.mark.parametrize("where", ["waiting", "confirming", "asked", "catching up"])
@pytest.mark.parametrize("end", ["deadline", "stopped"])
def test_wherever_a_read_waits_it_ends(where: str, end: str) -> None:
    it = Reading()
    late, early = it.reads.ask(20.0), it.reads.ask(10.0)
    cancelled = it.reads.ask(10.0)
    cancelled.cancel()
    if where in ("confirming", "catching up"):
        it.raft.lead()
        it.raft.commit_index = 7
    elif where == "asked":
        it.raft.follow(2)
    it.reads.receive(3, ReadIndexRequest(55), 0.0)
    it.reads.take(0.0)
    if where == "catching up":
        it.raft.confirmed = 1
        it.reads.serve()
    it.reads.give_up(9.9)
    assert not early.done()
    if end == "deadline":
        it.reads.give_up(10.0)
        assert isinstance(early.exception(0), NoLeader) and not late.done()
        assert len(it.reads) >= 1
        it.reads.give_up(20.0)
        assert isinstance(late.exception(0), NoLeader)
    else:
        it.reads.refuse_all("it is stopped")
        for read in (early, late):
            assert isinstance(read.exception(0), ReplicaStopped) and "it is stopped" in str(read.exception(0))
        assert len(it.reads) == 0


# Proposals


def test_commands_are_appended_in_order_and_answered_when_they_are_applied() -> None:
    it = Proposing()
    it.raft.last_index = 4
    futures = [it.proposals.ask(command, FOREVER) for command in (b"a", b"b")]
    it.proposals.receive(3, Propose(55, [b"c", b"d"]))
    gone = it.proposals.ask(b"x", FOREVER)
    gone.cancel()
    it.raft.lead()
    assert it.proposals.more_to_take and len(it.proposals) == 5
    it.proposals.take(0.0)
    assert it.raft.entries == [b"a", b"b", b"c", b"d"] and futures[0].running()
    assert not it.proposals.more_to_take and len(it.proposals) == 4
    it.apply(1, 5, Result(1), Result(2), Result(3))
    assert [future.result(0) for future in futures] == [Result(1), Result(2)]
    assert it.outcomes() == [(3, Outcomes([Outcome(55, "applied", Result(3))]))]
    it.proposals.on_applied([LogEntry(8, 2, b"\x00x")], [Entry(8, b"x")], [Result(4)])
    assert it.outcomes() == [(3, Outcomes([Outcome(56, "discarded", None)]))]
    assert len(it.proposals) == 0 and it.outcomes() == []


def test_an_entry_of_another_term_is_not_ones_own() -> None:
    it = Proposing()
    it.raft.lead()
    future = it.proposals.ask(b"a", FOREVER)
    it.proposals.take(0.0)
    it.apply(2, 1, Result(1))
    assert isinstance(future.exception(0), Rejected)


def test_nothing_is_taken_while_there_is_no_leader_or_leadership_is_handed_over() -> None:
    it = Proposing()
    it.proposals.ask(b"a", FOREVER)
    it.proposals.take(0.0)
    assert it.outbox() == [] and not it.proposals.more_to_take
    it.raft.lead()
    it.raft.transferring = True
    it.proposals.take(0.0)
    assert it.raft.entries == [] and not it.proposals.more_to_take
    it.raft.transferring = False
    assert it.proposals.more_to_take
    it.proposals.blocked = True
    assert not it.proposals.more_to_take


def test_a_batch_is_taken_at_a_time() -> None:
    it = Proposing()
    size = it.raft.timing.batch_bytes // 2
    for _ in range(3):
        it.proposals.ask(b"x" * size, FOREVER)
    it.raft.lead()
    it.proposals.take(0.0)
    assert len(it.raft.entries) == 2 and it.proposals.more_to_take


def test_a_follower_forwards_and_passes_on_what_it_hears() -> None:
    it = Proposing()
    it.raft.follow(2)
    futures = [it.proposals.ask(name, FOREVER) for name in (b"a", b"b", b"c", b"d", b"e")]
    change = it.proposals.ask(AddReplica(4), FOREVER)
    move = it.proposals.ask(TransferLeadership(3), FOREVER)
    it.proposals.receive(3, Propose(55, [b"z"]))
    it.proposals.receive(3, ProposeChange(56, AddReplica(9)))
    it.proposals.take(0.0)
    assert it.outbox() == [
        (2, Propose(FIRST, [b"a", b"b", b"c", b"d", b"e"])),
        (2, ProposeChange(FIRST + 5, AddReplica(4))),
        (2, ProposeChange(FIRST + 6, TransferLeadership(3))),
    ]
    assert it.outcomes() == [(3, Outcomes([Outcome(55, "not_leader"), Outcome(56, "not_leader")]))]
    said = [
        Outcome(FIRST, "applied", Result(1)),
        Outcome(FIRST + 1, "not_leader"),
        Outcome(FIRST + 2, "discarded"),
        Outcome(FIRST + 3, "unknown"),
        Outcome(FIRST + 99, "applied", Result(1)),  # given up already
        Outcome(FIRST + 5, "not_leader"),
        Outcome(FIRST + 6, "unknown"),
    ]
    it.proposals.receive(2, Outcomes(said))
    assert futures[0].result(0) == Result(1)
    assert not futures[1].done()  # it is asked for again
    assert isinstance(futures[2].exception(0), Discarded)
    assert isinstance(futures[3].exception(0), OutcomeUnknown)
    assert "replica 3 did not take over in time" in str(move.exception(0))
    assert not futures[4].done() and not change.done() and it.proposals.blocked
    it.proposals.take(HEARTBEAT)
    asked_again = [(2, Propose(FIRST + 7, [b"b"])), (2, ProposeChange(FIRST + 8, AddReplica(4)))]
    it.proposals.take(2 * HEARTBEAT)
    assert it.outbox() == asked_again


def test_what_never_left_waits_in_its_old_order() -> None:
    it = Proposing()
    it.raft.follow(2)
    for name in (b"a", b"b"):
        it.proposals.ask(name, FOREVER)
    it.proposals.take(0.0)
    ((_, message),) = it.outbox()
    it.proposals.ask(b"c", FOREVER)
    assert isinstance(message, Propose)
    it.proposals.take_back(message)
    assert it.proposals.blocked
    it.raft.follow(3)
    it.proposals.give_up_on_former_leader(0.0)
    it.proposals.take(0.0)
    assert it.outbox() == [(3, Propose(FIRST + 2, [b"a", b"b", b"c"]))]
    for end in ("deadline", "stopped"):  # it has certainly not happened
        it = Proposing()
        it.raft.follow(2)
        future = it.proposals.ask(b"a", 10.0)
        it.proposals.take(0.0)
        it.proposals.take_back(Propose(FIRST, [b"a"]))
        if end == "deadline":
            it.proposals.give_up(10.0)
        else:
            it.proposals.refuse_all("it is stopped")
        assert isinstance(future.exception(0), NoLeader if end == "deadline" else ReplicaStopped)
    changes = Proposing()
    changes.raft.follow(2)
    changes.proposals.ask(AddReplica(4), FOREVER)
    changes.proposals.ask(AddReplica(5), FOREVER)
    changes.proposals.take(0.0)
    (_, first), _ = changes.outbox()
    assert isinstance(first, ProposeChange)
    changes.proposals.take_back(first)
    changes.proposals.take(0.0)
    assert changes.outbox() == [(2, ProposeChange(FIRST + 2, AddReplica(4)))]


def test_what_a_former_leader_was_sent_is_asked_again_only_if_that_does_no_harm() -> None:
    it = Proposing()
    it.raft.follow(2)
    command = it.proposals.ask(b"a", FOREVER)
    it.proposals.ask(AddReplica(4, "four:4"), FOREVER)
    it.proposals.ask(RemoveReplica(3), FOREVER)
    to_three = it.proposals.ask(TransferLeadership(3), FOREVER)
    to_one = it.proposals.ask(TransferLeadership(1), FOREVER)
    it.proposals.take(0.0)
    it.proposals.give_up_on_former_leader(0.0)
    assert len(it.proposals) == 5 and not command.done()
    it.outbox()
    it.raft.follow(None)
    it.proposals.give_up_on_former_leader(0.0)
    assert "after the command was sent to it" in str(command.exception(0))
    assert not to_three.done() and not to_one.done()  # going away is what it was asked for
    it.raft.follow(3)
    it.proposals.give_up_on_former_leader(0.0)
    assert to_three.result(0) == Result() and isinstance(to_one.exception(0), OutcomeUnknown)
    it.proposals.take(0.0)
    assert [message.change for _, message in it.outbox() if isinstance(message, ProposeChange)] == [
        AddReplica(4, "four:4", again=True),
        RemoveReplica(3),
    ]
    assert len(it.proposals) == 2


def test_changes_are_answered_refused_or_wait_their_turn() -> None:
    it = Proposing()
    it.raft.lead()
    future = it.proposals.ask(AddReplica(4), FOREVER)
    it.proposals.take(0.0)
    assert not future.done() and it.proposals.blocked and len(it.proposals) == 1
    it.raft.change_answer = 0
    it.proposals.take(0.0)
    assert future.result(0) == Result() and it.raft.changed == [AddReplica(4)] * 2
    it.raft.change_answer = ConfigurationError("no")
    refused = it.proposals.ask(AddReplica(4), FOREVER)
    it.proposals.take(0.0)
    assert refused.result(0) == Result(error="no")
    it.raft.change_answer = 9
    made = it.proposals.ask(AddReplica(4), FOREVER)
    it.proposals.take(0.0)
    assert not made.done()
    it.proposals.on_applied([LogEntry(9, 1, b"\x02x")], [], [])
    assert made.result(0) == Result()


def test_a_command_that_a_former_leader_did_not_take_is_asked_for_again() -> None:
    """Of the next leader at once, of the same one not at the speed of the network."""
    for leader, again_at in ((3, 0.0), (2, HEARTBEAT)):
        it = Proposing()
        it.raft.follow(2)
        future = it.proposals.ask(b"a", FOREVER)
        it.proposals.take(0.0)
        it.outbox()
        it.proposals.receive(2, Outcomes([Outcome(FIRST, "not_leader")]))
        it.raft.follow(leader)
        it.proposals.take(0.0)
        if again_at:
            assert it.outbox() == [] and not it.proposals.more_to_take
            it.proposals.blocked = False  # as at the beginning of a step
            it.proposals.take(again_at)
        assert it.outbox() == [(leader, Propose(FIRST + 1, [b"a"]))]
        it.proposals.receive(leader, Outcomes([Outcome(FIRST + 1, "applied", Result(1))]))
        assert future.result(0) == Result(1)


def test_a_former_leader_that_is_there_may_still_tell_for_a_while() -> None:
    """As after a handover. Who has gone, or says nothing for two heartbeats, leaves it unknown."""
    for end in ("it tells", "it is silent", "it goes", "it leads again"):
        it = Proposing()
        it.raft.connected = frozenset({2, 3})
        it.raft.follow(2)
        future = it.proposals.ask(b"a", FOREVER)
        it.proposals.take(0.0)
        it.raft.follow(3)
        it.proposals.give_up_on_former_leader(1.0)
        it.proposals.give_up_on_former_leader(1.0 + 1.9 * HEARTBEAT)
        assert not future.done()
        if end == "it tells":
            it.proposals.receive(2, Outcomes([Outcome(FIRST, "applied", Result(1))]))
            assert future.result(0) == Result(1)
        elif end == "it leads again":
            it.raft.follow(2)
            it.proposals.give_up_on_former_leader(9.0)
            it.raft.follow(3)
            it.proposals.give_up_on_former_leader(10.0)
            assert not future.done()
        else:
            if end == "it goes":
                it.raft.connected = frozenset({3})
            it.proposals.give_up_on_former_leader(1.0 + (2.1 if end == "it is silent" else 1.9) * HEARTBEAT)
            assert isinstance(future.exception(0), OutcomeUnknown)


@pytest.mark.parametrize("remote", [False, True])
def test_a_leader_that_is_to_go_hands_over_first(remote: bool) -> None:
    it = Proposing()
    it.raft.lead()
    if remote:
        it.proposals.receive(3, ProposeChange(55, RemoveReplica(1)))
    else:
        future = it.proposals.ask(RemoveReplica(1), FOREVER)
    it.proposals.take(0.0)
    assert it.raft.transferred == [2] and not it.raft.changed
    if remote:
        assert it.outcomes() == [(3, Outcomes([Outcome(55, "not_leader")]))]
    else:
        assert not future.done() and len(it.proposals) == 1
        it.raft.transferring = False
        it.raft.successor = None  # nobody answers
        it.proposals.take(0.0)
        assert it.raft.transferred == [2] and len(it.proposals) == 1
        it.raft.members = Members((1,), (2,))
        it.raft.change_answer = ConfigurationError("the last voter")
        it.proposals.take(0.0)
        assert future.result(0).error == "the last voter"


def test_a_wish_for_another_leader_is_answered_by_who_leads_in_the_end() -> None:
    for leads, deadline, answered in (
        (2, 50.0, True),
        (3, 50.0, True),
        (None, 50.0, False),
        (None, 5.0, True),
    ):
        it = Proposing()
        it.raft.lead()
        future = it.proposals.ask(TransferLeadership(2), deadline)
        second = it.proposals.ask(TransferLeadership(3), 50.0)
        itself = it.proposals.ask(TransferLeadership(1), 50.0)
        it.proposals.take(0.0)
        assert it.raft.transferred == [2] and itself.result(0) == Result() and not second.done()
        it.proposals.watch_leadership_transfer(10.0)
        assert not future.done()
        it.raft.transferring = False
        it.raft.follow(leads)
        it.proposals.watch_leadership_transfer(10.0)
        assert future.done() == answered
        if leads == 2:
            assert future.result(0) == Result()
        elif answered:
            assert "replica 2 did not take over in time; it still may" in str(future.exception(0))


def test_a_proposal_ends_at_its_deadline_with_what_is_known() -> None:
    it = Proposing()
    waiting = it.proposals.ask(b"a", 10.0)
    later = it.proposals.ask(b"b", 11.0)
    it.proposals.give_up(9.99)
    assert not waiting.done()
    it.proposals.give_up(10.0)
    assert isinstance(waiting.exception(0), NoLeader) and not later.done()
    it.raft.follow(2)
    it.proposals.take(10.5)
    it.proposals.give_up(10.9)
    assert not later.done()
    it.proposals.give_up(11.0)
    assert isinstance(later.exception(0), Timeout) and len(it.proposals) == 0
    it.raft.lead()
    too_late, in_log = it.proposals.ask(b"c", 12.0), it.proposals.ask(b"d", 13.0)
    it.proposals.take(12.0)
    assert isinstance(too_late.exception(0), NoLeader) and it.raft.entries == [b"d"]
    it.proposals.give_up(13.0)
    assert isinstance(in_log.exception(0), Timeout)
    it.raft.change_answer = None
    change = it.proposals.ask(AddReplica(4), 20.0)
    it.proposals.take(13.0)
    it.proposals.give_up(20.0)
    assert isinstance(change.exception(0), Timeout)  # it may have been proposed to another leader


def test_what_was_cut_off_is_unknown_to_other_replicas() -> None:
    it = Proposing()
    it.raft.lead()
    it.proposals.receive(3, Propose(55, [b"a", b"b"]))
    mine = it.proposals.ask(b"c", FOREVER)
    it.proposals.take(0.0)
    it.proposals.give_up(0.0)
    assert it.outcomes() == []
    it.raft.last_index = 1
    it.proposals.give_up(0.0)
    assert it.outcomes() == [(3, Outcomes([Outcome(56, "unknown")]))] and not mine.done()
    it.raft.term = 2
    again = it.proposals.ask(b"d", FOREVER)
    it.raft.last_index = 2
    it.proposals.take(0.0)  # at the place where mine was
    assert isinstance(mine.exception(0), OutcomeUnknown) and not again.done()


def test_a_snapshot_passes_entries_and_does_not_tell_whose_they_were() -> None:
    it = Proposing()
    it.raft.lead()
    futures = [it.proposals.ask(b"a", FOREVER) for _ in range(3)]
    it.proposals.take(0.0)
    it.proposals.on_installed(2)
    assert [future.done() for future in futures] == [True, True, False]
    assert "a snapshot passed the entry" in str(futures[0].exception(0))


def test_whatever_waits_in_a_replica_that_stops_is_told() -> None:
    it = Proposing()
    it.raft.follow(2)
    forwarded = it.proposals.ask(b"f", FOREVER)
    it.proposals.take(0.0)
    it.raft.lead()
    in_log = it.proposals.ask(b"a", FOREVER)
    move = it.proposals.ask(TransferLeadership(2), FOREVER)
    it.proposals.take(0.0)
    it.raft.transferring = False
    change = it.proposals.ask(AddReplica(4), FOREVER)
    it.proposals.take(0.0)  # it must wait, and may have been proposed to another leader before
    it.proposals.receive(3, Propose(55, [b"z"]))
    waiting = it.proposals.ask(b"w", FOREVER)
    it.proposals.refuse_all("it is stopped")
    for future in (in_log, move, forwarded):
        assert isinstance(future.exception(0), OutcomeUnknown)
        assert "it is stopped" in str(future.exception(0))
    assert isinstance(waiting.exception(0), ReplicaStopped)
    assert isinstance(change.exception(0), OutcomeUnknown)
    assert len(it.proposals) == 0
    it.proposals.refuse_all("again")


def test_outcomes_go_in_parts_that_fit_and_those_that_did_not_leave_go_again() -> None:
    it = Proposing()
    it.raft.lead()
    it.proposals.receive(3, Propose(1, [b"a"] * 4))
    it.proposals.take(0.0)
    third = b"x" * (OUTCOMES_BYTES // 3)
    it.apply(1, 1, Result(b"y" * (OUTCOMES_BYTES - 20)), Result(third), Result(third), Result(third))
    sent = it.outcomes()
    assert [[each.request for each in message.outcomes] for _, message in sent] == [[1], [2, 3], [4]]  # type: ignore[union-attr]
    assert it.outcomes() == []
    _, message = sent[1]
    assert isinstance(message, Outcomes)
    it.proposals.keep_outcomes(3, message)
    assert it.outcomes() == [(3, message)]


def test_a_change_that_another_replica_asks_for_again_is_made_once_and_answered_once() -> None:
    it = Proposing()
    it.raft.lead()
    for _ in range(3):
        it.proposals.receive(3, ProposeChange(55, AddReplica(4)))
        it.proposals.take(0.0)
    assert len(it.proposals) == 1
    it.proposals.receive(2, ProposeChange(55, AddReplica(4)))  # somebody else's
    assert len(it.proposals) == 2
    it.raft.change_answer = 0
    it.proposals.take(0.0)
    done = Outcome(55, "applied", Result())
    assert it.outcomes() == [(3, Outcomes([done])), (2, Outcomes([done]))]
    it.proposals.receive(3, ProposeChange(55, AddReplica(4)))  # its answer was lost
    it.proposals.take(0.0)
    assert it.outcomes() == [(3, Outcomes([done]))] and len(it.proposals) == 0


def test_only_changes_that_are_done_once_are_asked_for_again_and_only_of_who_was_asked() -> None:
    it = Proposing()
    it.raft.follow(2)
    for each in (
        b"a",
        AddReplica(4, "four:4"),
        RemoveReplica(5),
        ReplaceReplica(6, b"d" * 16),
        MoveReplica(3, "three:3"),
        TransferLeadership(3),
    ):
        it.proposals.ask(each, FOREVER)
    it.proposals.take(0.0)
    assert len(it.outbox()) == 6
    it.proposals.take(2.0)
    again = [
        (2, ProposeChange(FIRST + 1, AddReplica(4, "four:4", again=True))),
        (2, ProposeChange(FIRST + 2, RemoveReplica(5))),
        (2, ProposeChange(FIRST + 3, ReplaceReplica(6, b"d" * 16))),
    ]
    assert it.outbox() == again
    it.proposals.take(2.0)
    assert it.outbox() == []
    it.raft.follow(3)
    it.proposals.take(4.0)
    assert it.outbox() == []


def test_what_was_being_proposed_when_an_error_came_may_have_happened() -> None:
    it = Proposing()
    it.raft.lead()

    def fail(commands: list[bytes]) -> int:
        raise OSError("the disk")

    it.raft.append = fail  # type: ignore[method-assign]
    first, late = it.proposals.ask(b"a", FOREVER), it.proposals.ask(b"b", -1.0)
    it.proposals.receive(3, Propose(55, [b"c"]))
    with pytest.raises(OSError, match="the disk"):
        it.proposals.take(0.0)
    it.proposals.refuse_all("it is stopped")
    assert "it is stopped; the command may have been proposed" in str(first.exception(0))
    assert isinstance(late.exception(0), NoLeader)
    assert it.outcomes() == [(3, Outcomes([Outcome(55, "unknown")]))]


def test_a_wish_to_remove_the_leader_goes_to_the_log_if_it_is_about_another_one() -> None:
    it = Proposing()
    it.raft.lead()
    it.raft.change_answer = 7
    for change in (RemoveReplica(2), ReplaceReplica(2, b"d" * 16), MoveReplica(1, "one:1")):
        it.proposals.ask(change, FOREVER)
    it.proposals.take(0.0)
    assert not it.raft.transferred and len(it.raft.changed) == 3
    it.proposals.ask(ReplaceReplica(1, b"d" * 16), FOREVER)
    it.proposals.take(0.0)
    assert it.raft.transferred == [2] and len(it.raft.changed) == 3


def test_only_answers_that_can_be_sent_are_given() -> None:
    """To whoever asks here, too: not one thing here and another there."""
    it = Proposing()
    it.raft.lead()
    mine = it.proposals.ask(b"a", FOREVER)
    it.proposals.receive(3, Propose(55, [b"b"]))
    it.proposals.take(0.0)
    it.apply(1, 1, Result(3.5), Result(3.5))  # type: ignore[arg-type]
    ((_, message),) = it.outcomes()
    assert isinstance(message, Outcomes) and message.outcomes[0].result == mine.result(0)
    assert "the command was applied" in str(mine.result(0).error)


def test_a_read_that_was_answered_or_given_up_is_not_answered_again() -> None:
    it = Reading()
    it.raft.follow(2)
    early = it.reads.ask(5.0)
    it.reads.take(0.0)
    it.reads.give_up(5.0)
    assert early.done() and len(it.reads) == 0
    it.reads.receive(2, ReadIndexResponse(FIRST, 3), 6.0)
    it.reads.serve()
    first, second = it.reads.ask(FOREVER), it.reads.ask(FOREVER)
    it.reads.take(6.0)
    second.cancel()
    it.raft.applied_index = 2
    it.reads.receive(2, ReadIndexResponse(FIRST + 1, 3), 6.0)
    it.reads.receive(2, ReadIndexResponse(FIRST + 1, 1), 6.0)  # once more
    it.reads.serve()
    assert not first.done() and len(it.reads) == 2
    it.raft.applied_index = 3
    it.reads.serve()
    assert first.done() and second.cancelled() and len(it.reads) == 0


def test_nobody_is_asked_again_while_no_leader_is_known() -> None:
    it = Reading()
    it.raft.follow(2)
    it.reads.ask(FOREVER)
    it.reads.take(0.0)
    assert len(it.outbox()) == 1
    it.raft.follow(None)
    it.reads.take(9.0)
    assert it.outbox() == [] and len(it.reads) == 1
    it.reads.give_up_on_former_leader()
    it.raft.follow(3)
    it.reads.take(9.0)
    assert it.outbox() == [(3, ReadIndexRequest(FIRST + 1))]
