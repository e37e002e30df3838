"""Progress: what a leader knows of one follower (etcd's ``tracker/`` has the same three states).

::

            rejected, or a new connection
        +----------------------------------+
        v                                  |
      PROBE ------- equal up to ... ---> REPLICATE
        ^  \\                                |
        |   `-- what it needs is no longer --+
        |        in the log                  v
        +------- it has caught up ------- SNAPSHOT
"""

from __future__ import annotations

from enum import Enum


class State(Enum):
    """How much is sent at a time."""

    PROBE = "probe"  # where the logs agree is not known: one message, then wait for its answer or a heartbeat
    REPLICATE = "replicate"  # messages follow each other, up to ``Timing.window_bytes`` unacknowledged
    SNAPSHOT = "snapshot"  # what it needs next is no longer in the log: heartbeats only, beside the stream


PROBE, REPLICATE, SNAPSHOT = State.PROBE, State.REPLICATE, State.SNAPSHOT


class Progress:
    """One follower, as its leader knows it.

    Invariant: ``match`` < ``next``; the follower's log equals the leader's up to ``match``, durably, as long
    as it speaks with the same disk.
    """

    __slots__ = (
        "acked_round",
        "in_flight",
        "lag_at_last_check",
        "last_response",
        "match",
        "next",
        "probe_sent",
        "promised_until",
        "state",
    )

    def __init__(self, next_index: int, last_response: float) -> None:
        """``last_response`` in seconds of the clock: as of when it is known to follow."""
        self.state = PROBE
        self.match = 0
        self.next = next_index
        self.probe_sent = False
        self.in_flight = 0  # bytes sent beyond ``match``
        self.acked_round = 0
        self.last_response = last_response
        self.promised_until = float("-inf")  # as far as clocks can be trusted, it helps nobody else to lead
        self.lag_at_last_check = 0  # in entries

    def is_ready(self, window_bytes: int) -> bool:
        """Whether entries may be sent, and not only a heartbeat."""
        return not self.probe_sent if self.state is PROBE else self.in_flight < window_bytes

    def become_probe(self) -> None:
        """Where the logs agree is to be found out (again)."""
        self.state, self.probe_sent, self.in_flight = PROBE, False, 0

    def become_snapshot(self) -> None:
        """What it needs is no longer in the log."""
        self.state = SNAPSHOT

    def matches(self, index: int) -> bool:
        """Its log is known to be equal up to ``index``, and durable; return whether that is news."""
        if self.state is not REPLICATE:
            self.state, self.in_flight = REPLICATE, 0
            self.next = index + 1
        elif index > self.match:
            newly, sent = index - self.match, self.next - 1 - self.match
            self.in_flight -= self.in_flight * newly // max(newly, sent)  # sizes alike: near enough
        else:
            return False
        self.match = max(self.match, index)
        self.next = max(self.next, self.match + 1)
        return True
