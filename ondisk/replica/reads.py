"""Linearizable reads without the log: ReadIndex, and reads by a lease (Raft thesis, sections 6.4 and 6.4.1).

A leader notes its commit index, confirms with one round of messages that it still leads, and whoever asked
waits until that index is applied. Many reads share one round. Any other replica asks the leader for the
index, and looks at its own state.

Whoever asks for it by name spares the round while the leader has a lease: no message on the leader, and one
question with one answer elsewhere. Without a lease there is a round all the same.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

from ondisk.errors import NoLeader, ReplicaStopped
from ondisk.interrupts.futures import Future
from ondisk.net.clock import Clock
from ondisk.raft import Raft
from ondisk.raft.messages import ReadIndexRejection, ReadIndexRequest, ReadIndexResponse
from ondisk.replica.requests import Answer, Remote, Send, answer_due, begin, drain, refuse


class _Read(NamedTuple):
    deadline: float
    reply: Future[None] | Remote
    lease: bool  # whether the leader's lease is good enough for it


class Lookup(Future[Any]):
    """The future of a read that nobody waits for: when its turn has come, what it looks up is its result."""

    def __init__(self, look: Callable[[], Any]) -> None:
        super().__init__()
        self._look = look

    def set_result(self, result: None) -> None:
        """Its turn has come: look, in the thread that says so."""
        try:
            found = self._look()
        except BaseException as error:  # a panic in the binding to RocksDB is no Exception
            self.set_exception(error)
            if not isinstance(error, Exception):
                raise
        else:
            super().set_result(found)


class Reads:
    """Those of this replica's callers, and of the replicas that take it for the leader."""

    def __init__(self, raft: Raft, *, send: Send, answer: Answer, first_request: int, clock: Clock) -> None:
        """``first_request`` numbers what the leader is asked, and differs from that of an earlier life."""
        self._raft = raft
        self._clock = clock
        self._send = send
        self._tell = answer
        self._next_request = first_request
        self._ask_again_at = 0.0
        self._answer_due = 0.0  # when the leader's answer to the newest question is taken for lost
        # A read waits here, then for a leader's word, then until the index it was told is applied.
        self._waiting: deque[_Read] = deque()
        self._confirming: deque[tuple[int, int, list[_Read]]] = deque()  # round, index, reads
        self._asked: dict[int, tuple[int, list[_Read]]] = {}  # request: leader, reads
        self._catching_up: list[tuple[int, _Read]] = []  # index, read

    def __len__(self) -> int:
        """How many have not been answered yet; those that share a round count as one."""
        return len(self._waiting) + len(self._confirming) + len(self._asked) + len(self._catching_up)

    def ask(self, deadline: float, *, lease: bool = False, future: Future[Any] | None = None) -> Future[Any]:
        """A caller wants to read, from any thread; the ``future``, or a new one, ends when it may."""
        future = future or Future()
        self._waiting.append(_Read(deadline, future, lease))
        return future

    def receive(
        self, sender: int, message: ReadIndexRequest | ReadIndexResponse | ReadIndexRejection, now: float
    ) -> None:
        """Another replica asks, or answers."""
        if isinstance(message, ReadIndexRequest):
            self._waiting.append(_Read(float("inf"), Remote(sender, message.request), message.lease))
        elif message.request in self._asked:
            # Who asked this one had waited for the earlier ones, too: it is an answer to all of them.
            answered = [request for request in self._asked if request <= message.request]
            batch = [read for request in answered for read in self._asked.pop(request)[1]]
            if isinstance(message, ReadIndexResponse):
                self._catching_up.extend((message.index, read) for read in batch)
                return
            self._waiting.extend(batch)  # it does not lead: ask again, but not at the speed of the network
            if sender == self._raft.leader_id:
                self._ask_again_at = now + self._raft.timing.heartbeat

    def take(self, now: float) -> None:
        """Answer those that wait by the lease, begin a round for them, or ask the leader."""
        leader = self._raft.leader_id
        if self._asked and now >= self._answer_due and leader is not None:
            newest = max(self._asked)
            # It, or its answer, may have been lost.
            self._send(self._asked[newest][0], ReadIndexRequest(newest, self._a_lease_will_do()))
            self._answer_due = answer_due(now, self._raft.timing)
        if not self._waiting or leader is None or now < self._ask_again_at:
            return
        if self._raft.is_leader:
            if self._raft.leader.committed_in_current_term():
                batch = self._answer_by_lease(drain(self._waiting))
                if batch:
                    self._confirming.append((self._raft.leader.start_round(), self._raft.commit_index, batch))
            return
        batch = []
        for read in drain(self._waiting):
            if isinstance(read.reply, Remote):
                self._send(read.reply.replica_id, ReadIndexRejection(read.reply.request))
            else:
                batch.append(read)
        if batch:
            self._asked[self._next_request] = leader, batch
            self._send(leader, ReadIndexRequest(self._next_request, self._a_lease_will_do()))
            self._next_request += 1
            self._answer_due = answer_due(now, self._raft.timing)

    def _a_lease_will_do(self) -> bool:
        """For all that wait for the leader's word: the answer to the newest question is for all of them."""
        return all(read.lease for _, batch in self._asked.values() for read in batch)

    def _answer_by_lease(self, batch: list[_Read]) -> list[_Read]:
        """Answer those for whom the lease is good enough, if there is one; return the others.

        The clock is looked at now, after all of them have asked: since the step began much may have happened.
        """
        by_lease = [read for read in batch if read.lease]
        if not by_lease or not self._raft.leader.has_lease(self._clock()):
            return batch
        self._tell_index(self._raft.commit_index, by_lease)
        return [read for read in batch if not read.lease]

    @property
    def lease_until(self) -> float:
        """Up to when this replica, as leader, may answer by its lease; minus infinity if it may not.

        A lease says that nobody else leads, and an entry of one's own term what was committed before.
        """
        leader = self._raft.leader
        return leader.lease_until if leader.committed_in_current_term() else float("-inf")

    def _tell_index(self, index: int, batch: list[_Read]) -> None:
        """These may read what is applied when this index is."""
        for read in batch:
            if isinstance(read.reply, Remote):
                self._send(read.reply.replica_id, ReadIndexResponse(read.reply.request, index))
            else:
                self._catching_up.append((index, read))

    def serve(self) -> None:
        """Answer those whose round is confirmed, and whose index is applied."""
        if self._confirming:
            if not self._raft.is_leader:
                for _, _, batch in self._confirming:
                    self._waiting.extend(batch)
                self._confirming.clear()
            else:
                confirmed = self._raft.leader.confirmed_round()
                while self._confirming and self._confirming[0][0] <= confirmed:
                    _, index, batch = self._confirming.popleft()
                    self._tell_index(index, batch)
        if self._catching_up:
            applied = self._raft.applied_index
            waiting = []
            for index, read in self._catching_up:
                assert isinstance(read.reply, Future)
                if index > applied:
                    waiting.append((index, read))
                elif begin(read.reply):
                    self._tell(read.reply, None)
            self._catching_up = waiting

    def give_up(self, now: float) -> None:
        """End those whose deadline has passed."""
        self._waiting.extendleft(reversed(_in_time(drain(self._waiting), now)))
        self._confirming = deque(
            (number, index, _in_time(batch, now)) for number, index, batch in self._confirming
        )
        self._asked = {
            request: (leader, batch)
            for request, (leader, reads) in self._asked.items()
            if (batch := _in_time(reads, now))
        }
        self._catching_up = [(index, read) for index, read in self._catching_up if _in_time([read], now)]

    def give_up_on_former_leader(self) -> None:
        """A read may be asked again."""
        if not self._asked:
            return
        leader = self._raft.leader_id
        for request in [key for key, (asked, _) in self._asked.items() if asked != leader]:
            self._waiting.extend(self._asked.pop(request)[1])

    def refuse_all(self, stopped: str) -> None:
        """The replica has stopped; ``stopped`` says why."""
        reads = drain(self._waiting)
        reads += [read for _, read in self._catching_up]
        reads += [read for _, _, batch in drain(self._confirming) for read in batch]
        reads += [read for _, batch in self._asked.values() for read in batch]
        self._catching_up, self._asked = [], {}
        for read in reads:
            if isinstance(read.reply, Future):
                refuse(read.reply, ReplicaStopped(stopped))


def _in_time(reads: Sequence[_Read], now: float) -> list[_Read]:
    kept = []
    for read in reads:
        if read.deadline > now:
            kept.append(read)
        elif isinstance(read.reply, Future):
            refuse(read.reply, NoLeader("no majority confirmed a leader before the deadline; try again"))
    return kept
