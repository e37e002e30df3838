"""Handover: a leader lets another voter lead (thesis, 3.10)."""

from __future__ import annotations

from ondisk.errors import ConfigurationError
from ondisk.raft.engine import Engine, time_of_step
from ondisk.raft.leader import Leader
from ondisk.raft.membership import Membership
from ondisk.raft.messages import TimeoutNow


class Handover:
    """Waits until the successor has the whole log, then tells it to stand for election.

    Invariant: while it is under way, the leader takes no requests, so the log ends somewhere. It is given up
    after an election timeout. But the word to stand may still arrive, at any time in this term: so a leader
    that has said it has no lease any more.
    """

    def __init__(self, engine: Engine, membership: Membership, leader: Leader) -> None:
        self._engine = engine
        self._membership = membership
        self._leader = leader
        self._successor: tuple[int, float] | None = None  # who shall lead, and until when that is tried
        self._ask_again_at = 0.0

    @property
    def under_way(self) -> bool:
        """Whether leadership is being handed over."""
        return self._successor is not None

    def begin(self, to: int) -> None:
        """Let this voter lead. Raises ``ConfigurationError`` if it is none, or is not there."""
        if to not in self._membership.others:
            raise ConfigurationError(
                f"replica {to} is not another voter: {sorted(self._membership.others)} are"
            )
        if to not in self._membership.counted:
            raise ConfigurationError(f"replica {to} is not there, or not with the disk that counts")
        self._successor = to, time_of_step() + self._engine.timing.election_max
        self._ask_again_at = 0.0

    def give_up(self) -> None:
        """Forget about it."""
        self._successor = None

    def go_on(self) -> None:
        """Tell the successor to stand for election, once it has everything."""
        if self._successor is None:
            return
        engine, now = self._engine, time_of_step()
        successor, deadline = self._successor
        if successor not in self._membership.others or now > deadline:
            self._successor = None
        elif engine.progress[successor].match == engine.log.last_index and now >= self._ask_again_at:
            self._ask_again_at = now + engine.timing.heartbeat
            self._leader.end_lease()
            engine.send(successor, TimeoutNow(engine.term))
