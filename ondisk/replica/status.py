"""What can be seen of a replica, at one moment."""

from __future__ import annotations

from typing import NamedTuple

from ondisk.errors import Corrupt
from ondisk.raft.records import LogEntry
from ondisk.snapshot.streaming import StreamProgress


class Inside(NamedTuple):
    """What a running replica has in memory, for pictures: its newest entries, and how its election stands.

    ``election_at``: when it would call for an election, in seconds of its clock; not for a leader.
    ``votes`` are those that it has from others in its present term, if it is a candidate.
    ``prevotes``: who would vote for it, while it asks that before it stands; ``None``: it does not ask.
    """

    entries: tuple[LogEntry, ...] = ()
    election_at: float = 0.0
    votes: frozenset[int] = frozenset()
    prevotes: frozenset[int] | None = None


class ReplicaStatus(NamedTuple):
    """One replica at one moment. All indexes are places in the log.

    ``last_index`` >= ``durable_index`` (synced in the log) >= ``applied_index`` >= ``synced_index``
    (synced in the state machine). ``commit_index`` is what this replica knows to be committed.
    """

    id: int
    role: str  # leader, follower, candidate, stopped, failed or removed
    term: int = 0
    leader_id: int | None = None
    last_index: int = 0
    durable_index: int = 0
    commit_index: int = 0
    applied_index: int = 0
    synced_index: int = 0
    opened_index: int = 0  # what the state machine's open() returned
    log_syncs: int = 0  # how often the log waited for the disk since it was opened
    waiting: int = 0  # requests that have not been answered yet
    match_index: dict[int, int] = {}  # a leader's knowledge of its followers  # noqa: RUF012
    error: str | None = None
    first_index: int = 1  # the first entry that is still in the log, or would be
    voters: tuple[int, ...] = ()  # the members that count, as far as this replica knows
    learners: tuple[int, ...] = ()  # those that catch up until they can
    streams: tuple[StreamProgress, ...] = ()  # snapshots under way
    group: str = ""  # the id of its group, in hexadecimal digits; empty while it belongs to none
    disk: str = ""  # the id of its directory

    @property
    def running(self) -> bool:
        """Whether it takes requests: not stopped, not failed, not removed."""
        return self.role not in ("stopped", "failed", "removed")


def failure(error: BaseException, replica_id: int) -> str:
    """What the status of a replica says that ``error`` has ended; of a damaged one also what to do."""
    reason = f"{type(error).__name__}: {error}"
    if not isinstance(error, Corrupt):
        return reason
    return (
        f"{reason}. What to do: cluster.rebuild({replica_id}); or `replace {replica_id}` at the prompt of "
        f"another replica, then delete the directory replica-{replica_id} and start it again"
    )
