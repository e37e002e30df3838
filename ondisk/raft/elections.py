"""Elections: who leads (paper, 5.2 and 5.4.1; PreVote and CheckQuorum: thesis, 6.2, 6.4 and 9.6).

With leases on (``Timing.clock_drift``) a voter that answers a leader promises to help nobody else to lead for
``election_min``: it votes for nobody, and does not stand (thesis, 6.4.1). It keeps that although the
connection to the leader ends, and although it is started again in between; only the leader itself can release
it, when it tells another one to stand.
"""

from __future__ import annotations

from ondisk.raft.engine import ELECT_NOW, Engine, time_of_step
from ondisk.raft.membership import Membership
from ondisk.raft.messages import NewerTerm, RequestVote, RequestVoteResponse, TimeoutNow


class Elections:
    """Asks for votes, gives them, and counts them.

    Invariants: a vote is given once in a term, and only to a log that ends no earlier than one's own. No term
    begins before a majority has said that it would take part. PySyncObj stands for election when it finds
    the deadline passed, so the deadline has passed only if that is wanted. No vote is given, and no deadline
    lies, before ``_bound_until``, unless the leader wants it.
    """

    def __init__(self, engine: Engine, membership: Membership) -> None:
        self._engine = engine
        self._membership = membership
        self._prevotes: tuple[int, set[int]] = (0, set())  # term that is asked about, who would vote
        self._votes: tuple[int, set[int]] = (0, set())  # term, who has voted for this replica
        self._heard_from_leader = float("-inf")
        self._bound_until = float("-inf")  # so long a leader counts on this voter
        self._told_to_stand: int | None = None  # the term whose leader wants this replica to lead

    def begin_life(self) -> None:
        """The replica starts. What it had promised before it was stopped, it does not remember."""
        log = self._engine.log
        if self._may_have_promised():
            self._bound_until = time_of_step() + self._engine.timing.election_min
        elif self.promise and log.identity is not None:
            log.identify(promises=True)  # with the next sync, before any promise leaves
        self.wait_briefly_for_leader()

    def _may_have_promised(self) -> bool:
        """Whether leases were ever on here, as far as this disk knows."""
        identity = self._engine.log.identity
        return identity is not None and identity.promises

    @property
    def promise(self) -> int:
        """For how many milliseconds an answer to the leader is a promise to help nobody else."""
        timing = self._engine.timing
        return int(1000 * timing.election_min) if timing.clock_drift is not None else 0

    # The timer

    def tick(self, *, may_lead: bool) -> None:
        """Who does not lead: ask for votes if the leader was silent for too long."""
        engine = self._engine
        if ELECT_NOW < engine.election_deadline < time_of_step():
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
        since = max(time_of_step(), self._bound_until)
        self._engine.election_deadline = since + self._engine.rng.uniform(wait, 3 * wait)

    def _wait(self) -> None:
        self._engine.election_deadline = time_of_step() + self._engine.random_election_timeout()

    def on_leader_contact(self, leader: int, term: int) -> None:
        """The leader of this term, which is not older than one's own, has said something."""
        self._engine.follow(leader, term)
        self._prevotes = (0, set())  # late answers to a PreVote must not depose it
        self._heard_from_leader = time_of_step()
        if self.promise:
            self._bound_until = self._heard_from_leader + self._engine.timing.election_min
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

    def is_handed_over(self, term: int) -> bool:
        """Whether the leader of the term before wants this replica to lead ``term``."""
        return self._told_to_stand == term - 1

    # Giving

    def on_request_vote(self, sender: int, message: RequestVote) -> None:
        """Somebody wants to lead, or (``pre``) asks who would vote for it."""
        engine = self._engine
        if message.term < engine.term:
            engine.send(sender, NewerTerm(engine.term))
        elif not message.pre:
            if self._is_free_to_vote(message):
                engine.consider_vote(sender, message)
        elif not self._leader_is_alive() and not self._is_bound():
            ends_with = (message.last_term, message.last_index)
            if ends_with >= (engine.log.last_term, engine.log.last_index):
                engine.send(sender, RequestVoteResponse(message.term, pre=True))

    def _is_free_to_vote(self, message: RequestVote) -> bool:
        """Only the leader to which it was given takes a promise back."""
        return message.handed_over or not self._is_bound()

    def _is_bound(self) -> bool:
        """Whether a leader counts on this voter not to help anybody else."""
        return time_of_step() < self._bound_until

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

    @property
    def prevotes(self) -> tuple[int, frozenset[int]]:
        """The term that this replica asks about before it stands for it, and who would vote for it."""
        return self._prevotes[0], frozenset(self._prevotes[1])

    def _has_voted(self, voter: int, granted: set[int]) -> bool:
        """A voter has one vote, however often it says so."""
        return voter in granted
