"""Elections: who leads (paper, 5.2 and 5.4.1; PreVote and CheckQuorum: thesis, 6.2, 6.4 and 9.6)."""

from __future__ import annotations

from ondisk.raft.engine import ELECT_NOW, Engine, time_of_step
from ondisk.raft.membership import Membership
from ondisk.raft.messages import NewerTerm, RequestVote, RequestVoteResponse, TimeoutNow


class Elections:
    """Asks for votes, gives them, and counts them.

    Invariants: a vote is given once in a term, and only to a log that ends no earlier than one's own. No term
    begins before a majority has said that it would take part. PySyncObj stands for election when it finds
    the deadline passed, so the deadline has passed only if that is wanted.
    """

    def __init__(self, engine: Engine, membership: Membership) -> None:
        self._engine = engine
        self._membership = membership
        self._prevotes: tuple[int, set[int]] = (0, set())  # term that is asked about, who would vote
        self._votes: tuple[int, set[int]] = (0, set())  # term, who has voted for this replica
        self._heard_from_leader = float("-inf")
        self._told_to_stand: int | None = None  # the term whose leader wants this replica to lead

    # The timer

    def tick(self, *, may_lead: bool) -> None:
        """Ask for votes if the leader was silent for too long."""
        engine = self._engine
        if not engine.is_leader and ELECT_NOW < engine.election_deadline < time_of_step():
            if may_lead:
                self._ask_before_election()
            else:
                self._ask_for_leader()

    def after_timers(self) -> None:
        """Wait again, if there was nobody to be elected by."""
        engine = self._engine
        self._told_to_stand = None
        if engine.election_deadline == ELECT_NOW and not engine.is_leader:
            self._wait()

    def wait_briefly_for_leader(self) -> None:
        """No leader is known: no reason to wait as long as for one that may be slow."""
        wait = self._engine.timing.first_election
        self._engine.election_deadline = time_of_step() + self._engine.rng.uniform(wait, 3 * wait)

    def _wait(self) -> None:
        self._engine.election_deadline = time_of_step() + self._engine.random_election_timeout()

    def on_leader_contact(self, leader: int, term: int) -> None:
        """The leader of this term, which is not older than one's own, has said something."""
        self._engine.follow(leader, term)
        self._prevotes = (0, set())  # late answers to a PreVote must not depose it
        self._heard_from_leader = time_of_step()
        if self._told_to_stand != term:  # entries that come behind the word to stand do not take it back
            self._wait()

    def on_leader_unreachable(self) -> None:
        """The connection to the leader has ended."""
        self._engine.forget_leader()
        self._heard_from_leader = float("-inf")
        self.wait_briefly_for_leader()

    # Asking

    def _ask_before_election(self) -> None:
        """PreVote: begin an election only when a majority would take part in it."""
        engine = self._engine
        engine.forget_leader()
        self._wait()
        self._prevotes = (engine.term + 1, set())
        request = RequestVote(engine.term + 1, engine.log.last_index, engine.log.last_term, pre=True)
        for voter in self._membership.others:
            engine.send(voter, request)
        self._start_election_if_wanted()

    def _ask_for_leader(self) -> None:
        """For one that must not lead: whoever knows that it was removed will say so, others ignore it."""
        self._engine.forget_leader()
        self._wait()
        for replica_id in self._engine.connected:
            self._engine.send(replica_id, RequestVote(0, 0, 0, pre=True))

    def _start_election_if_wanted(self) -> None:
        term, granted = self._prevotes
        if term == self._engine.term + 1 and len(granted) + 1 >= self._membership.majority:
            self._prevotes = (0, set())
            self._engine.election_deadline = ELECT_NOW  # PySyncObj's tick starts the election itself

    def on_timeout_now(self, sender: int, message: TimeoutNow, *, may_lead: bool) -> None:
        """The leader wants this replica to lead: no PreVote, since it is alive (thesis, 3.10)."""
        engine = self._engine
        if message.term == engine.term and sender == engine.leader_id and may_lead and not engine.is_leader:
            engine.election_deadline = ELECT_NOW
            self._told_to_stand = message.term

    # Giving

    def on_request_vote(self, sender: int, message: RequestVote) -> None:
        """Somebody wants to lead, or (``pre``) asks who would vote for it."""
        engine = self._engine
        if message.term < engine.term:
            engine.send(sender, NewerTerm(engine.term))
        elif not message.pre:
            engine.consider_vote(sender, message)
        elif not self._leader_is_alive():
            ends_with = (message.last_term, message.last_index)
            if ends_with >= (engine.log.last_term, engine.log.last_index):
                engine.send(sender, RequestVoteResponse(message.term, pre=True))

    def _leader_is_alive(self) -> bool:
        recently = time_of_step() < self._heard_from_leader + self._engine.timing.election_min
        return self._engine.is_leader or recently

    # Counting

    def on_vote(self, sender: int, message: RequestVoteResponse) -> None:
        """A vote for this replica, or the promise of one."""
        engine = self._engine
        if sender not in self._membership.others:
            return  # it does not count (yet, or any more)
        if not message.pre and message.term != engine.term:
            return  # of an election that is over
        if message.pre:
            term, granted = self._prevotes
            if message.term == term and not engine.is_leader:
                granted.add(sender)
                self._start_election_if_wanted()
            return
        if self._votes[0] != message.term:
            self._votes = (message.term, set())
        if self._has_voted(sender, self._votes[1]):
            return
        self._votes[1].add(sender)
        engine.count_vote(sender, message.term)

    @property
    def votes(self) -> tuple[int, frozenset[int]]:
        """The term of the newest election of this replica, and who has voted for it."""
        return self._votes[0], frozenset(self._votes[1])

    def _has_voted(self, voter: int, granted: set[int]) -> bool:
        """A voter has one vote, however often it says so."""
        return voter in granted
