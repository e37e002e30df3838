"""Each rule of the simulator by itself: what breaks it is noticed, and what only looks like it is not."""

from __future__ import annotations

import random
from dataclasses import dataclass, field
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import msgspec
import pytest

from ondisk.errors import OndiskError
from ondisk.raft import Timing
from ondisk.raft.log import RaftLog
from ondisk.raft.members import Members
from ondisk.raft.messages import (
    AppendEntries,
    AppendEntriesResponse,
    Message,
    NewerTerm,
    Origin,
    RequestVote,
    RequestVoteResponse,
)
from ondisk.raft.records import MEMBERS, LogEntry
from ondisk.replica import Replica
from ondisk.simulation import Simulation, Violation
from ondisk.simulation.faults import Fault
from ondisk.simulation.invariants import Invariants


def disk(member: int, number: int = 1) -> bytes:
    """The name of a disk: the first, or a later one, that stands behind a number."""
    return f"disk {member}.{number}".encode().ljust(16)


def members(*voters: int, group: bytes = b"group".ljust(16)) -> Members:
    """These voters, each with its first disk."""
    return Members(voters, group=group, disks=tuple((voter, disk(voter)) for voter in voters))


THREE = members(1, 2, 3)


@dataclass
class Log:
    """As much of a ``RaftLog`` as the rules look at. ``terms`` are those of its entries."""

    terms: list[int] = field(default_factory=list)
    base_index: int = 0
    base_term: int = 0
    synced_index: int = 0
    disk_id: bytes = b""
    nonce: int = 1
    configurations: list[tuple[int, Members]] = field(default_factory=lambda: [(0, THREE)])
    word: bytes = b"x"

    @property
    def last_index(self) -> int:
        return self.base_index + len(self.terms)

    @property
    def members(self) -> Members:
        return self.configurations[-1][1]

    @property
    def identity(self) -> Any:
        return SimpleNamespace(nonces=(self.nonce,))

    @property
    def configuration(self) -> tuple[int, Members]:
        return self.configurations[-1]

    def members_at(self, index: int) -> Members:
        return next(members for since, members in reversed(self.configurations) if since <= max(index, 0))

    def term_at(self, index: int) -> int | None:
        if index == self.base_index:
            return self.base_term
        place = index - self.base_index - 1
        return self.terms[place] if 0 <= place < len(self.terms) else None

    def entries(self, first: int, last: int) -> list[LogEntry]:
        return [LogEntry(index, self.term_at(index) or 0, self.word) for index in range(first, last + 1)]


class Group:
    """Three replicas and the books about them."""

    def __init__(self) -> None:
        self.logs: dict[int, Any] = {}
        self.disks: dict[bytes, Any] = {}
        self.replicas: dict[int, Any] = {}
        self.rules = Invariants(self)
        for member in (1, 2, 3):
            self.start(member)

    def start(self, member: int, opened: int = 0, how: dict[str, bool] | None = None, **log: Any) -> Any:
        """A replica with this log, and a state up to ``opened``."""
        self.logs[member] = Log(**{"disk_id": disk(member), **log})
        if how is None:
            self.disks[self.logs[member].disk_id] = self.logs[member]
        self.replicas[member] = SimpleNamespace(
            id=member,
            log=self.logs[member],
            opened_index=opened,
            raft=SimpleNamespace(term=1, is_leader=False, members=self.logs[member].members, timing=Timing()),
            status=SimpleNamespace(role="follower", error=None),
        )
        self.rules.started(self.replicas[member], **(how or {}))
        return self.replicas[member]

    def write(self, member: int, *terms: int, word: bytes = b"x", synced: bool = True) -> None:
        """Append entries of these terms."""
        log = self.logs[member]
        first, log.word = log.last_index + 1, word
        log.terms.extend(terms)
        self.rules.appended(self.replicas[member], log.entries(first, log.last_index))
        if synced:
            log.synced_index = log.last_index

    def send(self, sender: int, to: int, message: Message) -> None:
        self.rules.sending(self.replicas[sender], to, message)

    def count(self, member: int, sender: int, round: int = 0, **origin: Any) -> None:
        """Count an acknowledgement that came from there."""
        whose = {"group": THREE.group, "disk": disk(sender), "nonce": 1, **origin}
        reply = AppendEntriesResponse(1, 0, 0, round)
        self.rules.counts(self.replicas[member], sender, Origin(boot=1, **whose), reply)

    def commit(self, member: int, index: int, term: int = 1) -> None:
        """Say to somebody that this is committed."""
        self.replicas[member].raft.term = term
        self.send(member, 2, AppendEntries(term, 0, 0, [], index, 0))

    def apply(self, member: int, first: int, last: int) -> None:
        self.rules.applies(self.replicas[member], self.logs[member].entries(first, last))

    def lead(self, member: int, term: int) -> None:
        raft = self.replicas[member].raft
        raft.term, raft.is_leader = term, True
        self.rules.stepped(self.replicas[member])


@pytest.fixture
def group() -> Group:
    return Group()


def breaks(rule: str, about: str = "") -> Any:
    """This rule, and no other one."""
    return pytest.raises(Violation, match=f"^{rule}: .*{about}")


# Elections


def test_who_votes_for_two_in_a_term_breaks_one_vote(group: Group) -> None:
    group.send(1, 2, RequestVoteResponse(5, pre=False))
    group.send(1, 2, RequestVoteResponse(5, pre=False))  # said again
    group.send(1, 3, RequestVoteResponse(6, pre=False))
    group.send(1, 3, NewerTerm(5))
    group.send(1, 3, RequestVoteResponse(5, pre=True))  # a promise binds nobody
    with breaks("one vote", "replica 1 voted twice in term 5"):
        group.send(1, 3, RequestVoteResponse(5, pre=False))


def test_a_candidate_that_votes_for_another_breaks_one_vote(group: Group) -> None:
    group.send(1, 2, RequestVote(4, 0, 0, pre=True))  # asking whether anybody would is no vote
    group.send(1, 3, RequestVoteResponse(4, pre=False))
    group.send(1, 2, RequestVote(5, 0, 0, pre=False))
    group.send(1, 3, RequestVote(5, 0, 0, pre=False))
    with breaks("one vote", "replica 1 voted twice in term 5"):
        group.send(1, 3, RequestVoteResponse(5, pre=False))


def test_a_voter_that_becomes_a_candidate_of_the_same_term_breaks_one_vote(group: Group) -> None:
    group.send(1, 3, RequestVoteResponse(5, pre=False))
    with breaks("one vote", "replica 1 voted twice in term 5"):
        group.send(1, 2, RequestVote(5, 0, 0, pre=False))


def test_what_a_lost_disk_has_voted_stays_on_the_books_and_another_one_may_vote(group: Group) -> None:
    """It is somebody else under the same number."""
    group.send(1, 2, RequestVoteResponse(5, pre=False))
    group.start(1, disk_id=disk(1, 2))
    group.send(1, 3, RequestVoteResponse(5, pre=False))
    group.start(1)
    with breaks("one vote", "replica 1"):
        group.send(1, 3, RequestVoteResponse(5, pre=False))


def test_an_old_copy_may_have_forgotten_its_vote_and_must_not_be_counted(group: Group) -> None:
    group.send(1, 2, RequestVoteResponse(5, pre=False))
    group.start(1, how={"copy": True}, nonce=7)
    group.send(1, 3, RequestVoteResponse(5, pre=False))
    with breaks("newest life", "replica 3 counts an answer of an old copy of replica 1"):
        group.count(3, 1, nonce=7)


def test_only_the_disk_that_the_members_name_is_counted(group: Group) -> None:
    group.count(1, 2)
    with breaks("one disk", "replica 1 counts an answer of replica 2"):
        group.count(1, 2, disk=disk(2, 2))
    with breaks("one group", "replica 1 counts an answer of replica 2, of another group"):
        group.count(1, 2, group=b"another")
    group.count(1, 4, disk=disk(4))  # a learner has no disk yet, and is counted for nothing but its progress


def test_one_group_serves(group: Group) -> None:
    """A second one may be there by mistake, and must neither lead, nor acknowledge, nor be founded."""
    group.lead(1, term=1)
    other = [(0, members(1, 2, 3, group=b"another"))]
    group.start(2, how={"stranger": True}, configurations=other)
    group.rules.stepped(group.replicas[2])
    with breaks("one group", "replica 2 serves another group"):
        group.send(2, 3, AppendEntriesResponse(1, 0, 0, 0))
    group.start(3, configurations=other)
    with breaks("one group", "replica 3 belongs to another group"):
        group.rules.stepped(group.replicas[3])
    group.rules.begin_anew()  # a majority was lost, and an import takes its place
    group.rules.stepped(group.replicas[3])
    group.send(3, 2, AppendEntriesResponse(1, 0, 0, 0))


def test_a_leader_goes_on_only_with_answers_to_what_it_asked_within_an_election_timeout(group: Group) -> None:
    """Not with those that it has read within one."""
    leader, timeout = group.replicas[1], Timing().election_max
    group.lead(1, term=1)
    group.rules.sending(leader, 2, AppendEntries(1, 0, 0, [], 0, 7), 1.0)
    group.count(1, 2, round=7)
    group.rules.stepped(leader, 1.0 + timeout)
    group.rules.sending(leader, 2, AppendEntries(1, 0, 0, [], 0, 8), 2.0)
    group.count(1, 2, round=7)
    with breaks("fresh evidence", r"replica 1 goes on to lead term 1, .* of \[2, 3\]"):
        group.rules.stepped(leader, 1.1 + timeout)
    group.count(1, 2, round=8)
    group.rules.stepped(leader, 1.1 + timeout)


def test_a_leader_changes_the_members_only_if_a_majority_of_the_new_ones_has_answered(group: Group) -> None:
    leader, log = group.replicas[1], group.logs[1]
    group.lead(1, term=1)
    group.rules.sending(leader, 2, AppendEntries(1, 0, 0, [], 0, 7), 1.0)
    group.count(1, 2, round=7)
    change = [LogEntry(1, 1, MEMBERS)]
    group.rules.appended(leader, change, 2.0)
    log.configurations.append((1, members(1, 3)))
    with breaks("checked changes", r"replica 1 makes \[1, 3\] the voters, and has not heard \[3\]"):
        group.rules.appended(leader, change, 2.0)


def test_two_leaders_of_a_term_break_election_safety(group: Group) -> None:
    group.lead(1, term=5)
    group.lead(1, term=5)
    group.lead(2, term=6)
    with breaks("election safety", "1 and 2 both lead term 5"):
        group.lead(2, term=5)


def test_a_leader_that_lacks_what_is_committed_breaks_leader_completeness(group: Group) -> None:
    for member in (1, 2):
        group.write(member, 1, 1)
    group.commit(1, 2)
    group.lead(2, term=2)
    group.write(3, 1, 2)
    group.rules.stepped(group.replicas[3])  # as a follower it may lack it
    with breaks("leader completeness", "replica 3 leads term 3 without entry 2 of term 1"):
        group.lead(3, term=3)


def test_a_leader_is_asked_for_what_its_log_begins_after_only_by_term(group: Group) -> None:
    """What it has dropped is in its state."""
    for member in (1, 2):
        group.write(member, 1, 1, 1)
    group.commit(1, 3)
    group.start(3, opened=2, base_index=2, base_term=1, terms=[1], synced_index=3)
    group.lead(3, term=2)
    group.start(3, opened=2, base_index=2, base_term=1)
    with breaks("leader completeness", "without entry 3"):
        group.lead(3, term=3)
    group.start(3, opened=3, base_index=3, base_term=7)
    with breaks("leader completeness", "without entry 3"):
        group.lead(3, term=4)


def test_a_leader_that_has_started_again_is_looked_at_again(group: Group) -> None:
    group.lead(1, term=1)
    for member in (1, 2, 3):
        group.write(member, 1)
    group.commit(1, 1)
    group.start(1)
    group.lead(1, term=1)  # elected by late votes, in a term that is over: it has what was committed before
    with breaks("leader completeness", "replica 1 leads term 2 without entry 1"):
        group.lead(1, term=2)


# Logs


def test_an_index_and_a_term_that_name_two_entries_break_log_matching(group: Group) -> None:
    group.write(1, 1, 1)
    group.write(2, 1, 1)
    group.write(3, 1, 2)  # another term is another entry
    group.start(3)
    with breaks("log matching", "replica 3 has another entry 1 of term 1"):
        group.write(3, 1, word=b"another")


def test_an_entry_after_two_different_ones_breaks_log_matching(group: Group) -> None:
    group.write(1, 1, 3)
    group.write(2, 2)
    with breaks("log matching", "replica 2 has another entry 2 of term 3"):
        group.write(2, 3)


def test_a_log_is_looked_at_when_it_is_opened(group: Group) -> None:
    group.write(1, 1)
    with breaks("log matching", "replica 2 has another entry 1"):
        group.start(2, terms=[1], word=b"another")


def test_a_log_that_begins_after_the_state_breaks_compaction_unless_the_state_was_lost(group: Group) -> None:
    group.start(1, opened=2, base_index=2, base_term=1)
    group.rules.lost_state(disk(1))
    group.start(1, opened=0, base_index=2, base_term=1)
    group.rules.installed(group.replicas[1], 2)  # then it has one again
    with breaks("compaction", "dropped its log up to 2, but its state is back at 1"):
        group.start(1, opened=1, base_index=2, base_term=1)


# Commits


def test_what_no_majority_holds_durably_is_not_committed(group: Group) -> None:
    group.write(1, 1)
    group.write(2, 1, synced=False)
    with breaks("durable majority", r"entry 1 for committed, which only the disks of \[1\] hold"):
        group.commit(1, 1)
    group.logs[2].synced_index = 1
    group.commit(1, 1)


def test_another_entry_at_that_place_is_no_copy(group: Group) -> None:
    group.write(1, 2)
    group.write(2, 1)
    with breaks("durable majority"):
        group.commit(1, 1, term=2)


def test_what_was_compacted_away_is_held(group: Group) -> None:
    group.write(1, 1, 1)
    group.start(2, opened=2, base_index=2, base_term=1, synced_index=2)
    group.commit(1, 1)


def test_a_lost_disk_held_what_it_held_and_the_one_in_its_place_holds_nothing(group: Group) -> None:
    group.write(1, 1, 1)
    group.write(2, 1)
    group.start(2, disk_id=disk(2, 2), terms=[1, 1], synced_index=2)
    group.commit(1, 1)  # it was acknowledged before that disk was lost
    with breaks("durable majority", r"only the disks of \[1\] hold"):
        group.commit(1, 2)


def test_a_group_that_was_imported_begins_after_the_import(group: Group) -> None:
    group.rules.begin_anew(2, 7)
    new = [(0, members(1, 2, 3, group=b"new"))]
    for member in (1, 2):
        group.start(
            member, opened=2, base_index=2, base_term=7, terms=[1], synced_index=3, configurations=new
        )
    group.commit(1, 3)
    group.start(3, opened=2, base_index=2, base_term=6, configurations=new)
    with breaks("state machine safety"):
        group.commit(3, 2)


def test_the_new_members_alone_decide_about_the_entry_that_made_them_members_and_what_follows(
    group: Group,
) -> None:
    """A majority of the old ones may decide about what stands before it."""
    group.write(1, 1, 1, 1)
    group.write(2, 1, 1, 1)
    group.logs[1].configurations.append((2, members(1, 2, 3, 4)))
    group.commit(1, 1)
    for index in (2, 3):
        with breaks("durable majority", f"entry {index} for committed"):
            group.commit(1, index)
    group.write(3, 1, 1, 1)
    group.commit(1, 3)


def test_a_majority_of_the_new_members_is_enough(group: Group) -> None:
    group.write(1, 1, 1)
    group.logs[1].configurations.append((2, members(1)))
    group.commit(1, 2)


def test_only_a_commit_index_of_its_own_term_is_believed_to_be_the_senders(group: Group) -> None:
    """And no further than its log goes."""
    group.write(1, 1)
    group.send(1, 2, AppendEntries(0, 0, 0, [], 1, 0))  # one that waited, of a term before
    group.write(2, 1)
    group.commit(1, 7)


def test_another_entry_than_the_committed_one_breaks_state_machine_safety(group: Group) -> None:
    for member in (1, 2):
        group.write(member, 1)
    group.commit(1, 1)
    group.write(3, 2)
    with breaks("state machine safety", "takes entry 1 of term 2 for committed, which is of term 1"):
        group.commit(3, 1, term=2)
    group.start(3, opened=2, base_index=2, base_term=2)
    group.commit(3, 1, term=2)  # it does not know any more


def test_a_commit_beyond_what_the_log_holds_is_a_gap(group: Group) -> None:
    """Here entry 1 was in nobody's books, and the log begins after it."""
    for member in (1, 2):
        group.start(member, opened=2, base_index=2, base_term=1, terms=[1], synced_index=3)
    with breaks("gap", "replica 1 commits entry 1, which it does not hold"):
        group.commit(1, 3)


# What is applied


def test_entries_are_applied_one_after_the_other(group: Group) -> None:
    for member in (1, 2):
        group.write(member, 1, 1, 1, 1)
    group.apply(1, 1, 2)
    group.apply(1, 3, 3)
    for first in (3, 2):
        with breaks("order", f"replica 1 applies entry {first} after 3"):
            group.apply(1, first, 4)
    with breaks("order", "replica 2 applies entry 2 after 0"):
        group.apply(2, 2, 2)


def test_a_restart_goes_on_where_the_state_was(group: Group) -> None:
    for member in (1, 2):
        group.write(member, 1, 1, 1)
    group.apply(1, 1, 3)
    group.start(1, opened=1, terms=[1, 1, 1], synced_index=3)
    with breaks("order", "applies entry 3 after 1"):
        group.apply(1, 3, 3)
    group.apply(1, 2, 3)


def test_a_snapshot_leads_forwards_only(group: Group) -> None:
    for member in (1, 2):
        group.write(member, 1, 1, 1)
    group.apply(1, 1, 1)
    group.rules.installed(group.replicas[1], 2)
    group.apply(1, 3, 3)
    with breaks("order", "replica 1 goes back from 3 to 2"):
        group.rules.installed(group.replicas[1], 2)


def test_nothing_is_applied_beyond_the_durable_log(group: Group) -> None:
    for member in (1, 2, 3):
        group.write(member, 1, 1)
    group.logs[1].synced_index = 1
    group.apply(1, 1, 1)
    with breaks("applied beyond the log", "applies entry 2, its log is durable up to 1"):
        group.apply(1, 2, 2)


def test_what_is_applied_must_be_committed(group: Group) -> None:
    group.write(1, 1)
    with breaks("durable majority"):
        group.apply(1, 1, 1)


def test_two_that_apply_different_commands_break_state_machine_safety(group: Group) -> None:
    for member in (1, 2):
        group.write(member, 1)
    group.apply(1, 1, 1)
    group.apply(2, 1, 1)
    group.start(3, terms=[1], synced_index=1)
    group.logs[3].word = b"another"  # what is read from it is not what was appended
    with breaks("state machine safety", "replica 3 applies something else at 1"):
        group.apply(3, 1, 1)


# Failures


def test_a_replica_stops_for_no_other_reason_than_a_removal(group: Group) -> None:
    replica = group.replicas[1]
    replica.log, replica.status.role = None, "removed"
    group.rules.stepped(replica)
    replica.status.role = replica.status.error = "failed"
    with breaks("replica failed"):
        group.rules.stepped(replica)
    group.rules.sending(replica, 2, RequestVoteResponse(5, pre=False))  # and says nothing any more


def test_a_leader_replaces_no_disk_that_has_answered_what_it_asked_within_an_election_timeout(
    group: Group,
) -> None:
    leader, log, timeout = group.replicas[1], group.logs[1], Timing().election_max
    group.lead(1, term=1)
    for number, voter in ((7, 2), (8, 3)):
        group.rules.sending(leader, voter, AppendEntries(1, 0, 0, [], 0, number), float(number))
        group.count(1, voter, round=number)
    log.configurations.append((1, THREE.with_replaced(2, disk(2))))
    group.rules.appended(leader, [LogEntry(1, 1, MEMBERS)], 7.1 + timeout)
    group.rules.sending(leader, 2, AppendEntries(1, 0, 0, [], 0, 9), 9.0)
    group.count(1, 2, round=9)
    log.configurations[-1] = (1, THREE.with_replaced(3, disk(3)))
    with breaks("living disk", r"replica 1 replaces the disks of \[3\]"):
        group.rules.appended(leader, [LogEntry(1, 1, MEMBERS)], 7.1 + timeout)


# The run as a whole


class Short(Simulation):
    """Some seconds of a calm run."""

    def __init__(self, folder: Path, **options: Any) -> None:
        super().__init__(1, folder, seconds=3, schedule=(), **options)


class NobodyHears(Short):
    def _calm_down(self) -> None:
        self.loss = 1.0
        super()._calm_down()

    def _delivery(self, *about: Any) -> float | None:
        return None if self.elapsed > self.seconds else super()._delivery(*about)


class OneKnowsMore(Short):
    def _conclude(self) -> None:
        lookup = self.replicas[2].lookup

        def more(query: Any) -> Any:
            return [] if query.start else [(b"secret", b""), *lookup(query)]

        self.replicas[2].lookup = more  # type: ignore[method-assign]
        super()._conclude()


class OneReadsNonsense(Short):
    def _conclude(self) -> None:
        begun = self.history.begin("somebody", "get", "k0.0", at=self.elapsed)
        self.history.ok(begun, "nonsense", at=self.elapsed)
        super()._conclude()


class NotAgain(Replica):
    """Its second life does not begin."""

    def __init__(self, member: int, *arguments: Any, **options: Any) -> None:
        super().__init__(member, *arguments, **options)
        if self.opened_index:
            self.close()
            raise OndiskError("I would rather not")


@pytest.mark.parametrize(
    ("kind", "rule"),
    [
        (Short, None),
        (NobodyHears, "progress"),
        (OneKnowsMore, "equality"),
        (OneReadsNonsense, "linearizability"),
    ],
)
def test_a_run_ends_with_agreement_equality_and_an_order_that_explains_it(
    tmp_path: Path, kind: type[Short], rule: str | None
) -> None:
    if rule is None:
        kind(tmp_path).run()
        return
    with breaks(rule):
        kind(tmp_path).run()


def test_a_replica_that_cannot_start_again_is_a_violation(tmp_path: Path) -> None:
    simulation = Short(tmp_path, replica_type=NotAgain)
    simulation.faults = (Fault(2.0, "crash", 0.5, size=1),)
    with breaks("a replica that cannot start", "I would rather not"):
        simulation.run()


class TakesAnyDirectory(RaftLog):
    """It does not mind whose directory it is."""

    def _identify(self, replica_id: int, rng: random.Random) -> None:
        super()._identify(replica_id if self.identity is None else self.identity.replica_id, rng)


class TakesAnyPlace(Replica):
    log_type = TakesAnyDirectory


class ForgetsWhyItStopped(RaftLog):
    """Who was refused may try again."""

    def _identify(self, replica_id: int, rng: random.Random) -> None:
        if self.identity is not None:
            self.identity = msgspec.structs.replace(self.identity, refused="")
        super()._identify(replica_id, rng)


class TriesAgain(Replica):
    log_type = ForgetsWhyItStopped


@pytest.mark.parametrize(
    ("replica_type", "fault", "rule"),
    [
        (TakesAnyPlace, Fault(3.0, "swap", 1.0, who=1, other=2), "swapped directories"),
        (TriesAgain, Fault(3.0, "copy", 1.0, who=1), "refused for good"),
    ],
)
def test_a_directory_that_must_not_start_and_does_is_a_violation(
    tmp_path: Path, replica_type: type[Replica], fault: Fault, rule: str
) -> None:
    """And without the fault of the code the same run is a good one."""
    for tried in (Replica, replica_type):
        simulation = Simulation(
            1, tmp_path / tried.__name__, seconds=8, schedule=(fault,), replica_type=tried
        )
        if tried is Replica:
            simulation.run()
            assert simulation.counts["refused"] + simulation.counts["swap"] > 0
        else:
            with breaks(rule, "was started with"):
                simulation.run()


def test_what_goes_wrong_in_a_burst_ends_the_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def record(*about: object) -> None:
        raise RuntimeError("the record is broken")

    monkeypatch.setattr("ondisk.simulation.inject.record_outcome", record)
    simulation = Short(tmp_path)
    simulation.faults = (Fault(2.0, "burst", size=2),)
    with breaks("client", "the record is broken"):
        simulation.run()
