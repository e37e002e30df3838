"""Messages as they are watched: without their payload, and without those that tell nothing new."""

from __future__ import annotations

from collections.abc import Iterable
from typing import NamedTuple

from ondisk.net.memory import Event
from ondisk.raft.messages import (
    AppendEntries,
    AppendEntriesRejection,
    AppendEntriesResponse,
    NewerTerm,
    Outcomes,
    Propose,
    ReadIndexRejection,
    ReadIndexRequest,
    ReadIndexResponse,
    RequestVote,
    RequestVoteResponse,
    SnapshotNeeded,
)

_ANSWERS = ("response", "rejection", "snapshot_needed", "newer_term")  # to entries, and to heartbeats


class Seen(NamedTuple):
    """One event of one message, without its payload.

    ``number`` is the same for all events of a message; ``time`` is in seconds of the cluster's clock;
    ``kind`` is ``sent``, ``delivered`` or ``lost``. ``label`` says in a word or two what it carries.
    """

    number: int
    time: float
    kind: str
    sender: int
    receiver: int
    name: str
    label: str
    first: int = 0  # entries first..last; in an answer, last is the index that it names
    last: int = 0
    commit: int = 0
    round: int = 0  # of a leader's check that it still leads
    empty: bool = False  # a heartbeat, or the answer to one
    term: int = 0

    @property
    def news(self) -> tuple[str, int, int]:
        """What it tells its receiver: two messages on one link with the same news are as good as one."""
        if self.name in _ANSWERS:
            return self.name, self.term, self.last
        return "entries", self.term, self.commit


def describe(event: Event) -> Seen:
    """A network event without its payload, and with a label such as ``append_entries 17..17``."""

    def seen(name: str, label: str) -> Seen:
        return Seen(event.number, event.time, event.kind, event.sender, event.receiver, name, label)

    match event.message:
        case AppendEntries(entries=entries) as m:
            empty = not entries
            if empty:
                what = seen("heartbeat", f"heartbeat, commit {m.commit_index}")
            else:
                first, last = entries[0].index, entries[-1].index
                what = seen("append_entries", f"append_entries {first}..{last}")
                what = what._replace(first=first, last=last)
            return what._replace(term=m.term, commit=m.commit_index, round=m.round, empty=empty)
        case AppendEntriesResponse() as m:
            what = seen("response", f"response ok {m.index}")
            empty = m.index == m.prev_index
            return what._replace(term=m.term, last=m.index, round=m.round, empty=empty)
        case AppendEntriesRejection() as m:
            what = seen("rejection", f"rejection, try {m.hint}")
            return what._replace(term=m.term, last=m.hint, round=m.round)
        case SnapshotNeeded() as m:
            return seen("snapshot_needed", "snapshot needed")._replace(term=m.term, round=m.round)
        case NewerTerm() as m:
            return seen("newer_term", f"it is term {m.term}")._replace(term=m.term)
        case RequestVote() as m:
            name = "pre_vote" if m.pre else "request_vote"
            return seen(name, f"{name} for term {m.term}")
        case RequestVoteResponse() as m:
            return seen("vote", f"vote yes in term {m.term}")
        case Propose(commands=commands):
            return seen("propose", f"propose {len(commands)}")
        case Outcomes(outcomes=outcomes):
            done = sum(outcome.result is not None for outcome in outcomes)
            return seen("outcomes", f"outcome: {done} of {len(outcomes)} done")
        case ReadIndexRequest():
            return seen("read_index_request", "read_index_request")
        case ReadIndexRejection():
            return seen("read_index_rejection", "read_index_rejection")
        case ReadIndexResponse(index=index):
            return seen("read_index_response", f"read_index_response {index}")._replace(last=index)
        case other:
            name = type(other).__name__
            return seen(name, name)


# A heartbeat that follows another message sooner than this is no routine: it asks whether its sender still
# leads, for a read. Seconds; a little less than ``Timing.heartbeat``.
_BEFORE_ITS_TIME = 0.08


class News:
    """Tells, message by message, which ones are worth keeping: see ``without_repeats``."""

    def __init__(self) -> None:
        self._told: dict[tuple[int, int], tuple[str, int, int]] = {}  # on each link
        self._told_at: dict[tuple[int, int], float] = {}
        self._under_way: set[int] = set()  # kept, and not yet delivered or lost

    def __call__(self, event: Seen) -> bool:
        if event.kind != "sent":
            known = event.number in self._under_way
            self._under_way.discard(event.number)
            return known
        if event.name in ("append_entries", "heartbeat", *_ANSWERS):
            link = event.sender, event.receiver
            before = self._told.get(link, event.news)
            self._told[link] = event.news
            since, self._told_at[link] = self._told_at.get(link, float("-inf")), event.time
            if event.empty and before == event.news and event.time >= since + _BEFORE_ITS_TIME:
                return False
        self._under_way.add(event.number)
        return True


def without_repeats(events: Iterable[Seen]) -> list[Seen]:
    """Leave out heartbeats, and answers to them, that tell nothing the same link has not told before.

    What is kept are entries, votes, requests, and the heartbeat that carries a new commit index or asks
    "am I still your leader?" for a read.
    """
    return list(filter(News(), events))
