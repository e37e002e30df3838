"""Runs a scenario: a script of the protocol's hard cases, with the trace that is expected under each step.

``tests/scenarios/README.md`` has the language. The replicas are real ones in virtual time, without chance:
messages take 4 ms, and of several replicas without a leader the one with the lowest number stands first.
"""

from __future__ import annotations

import random
import re
import shutil
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future
from pathlib import Path
from typing import Any, NamedTuple

import msgspec

from ondisk import diskkv
from ondisk.diskkv import Put
from ondisk.errors import ConfigurationError
from ondisk.net.memory import Event
from ondisk.raft import Timing, members
from ondisk.raft.members import Members
from ondisk.raft.messages import (
    AddReplica,
    AppendEntries,
    AppendEntriesAnswer,
    AppendEntriesRejection,
    AppendEntriesResponse,
    Change,
    Found,
    Membership,
    Message,
    NewerTerm,
    ReadIndexRejection,
    ReadIndexRequest,
    ReadIndexResponse,
    Refused,
    Removed,
    RemoveReplica,
    ReplaceReplica,
    RequestVote,
    RequestVoteResponse,
    SnapshotAck,
    SnapshotChunk,
    SnapshotNeeded,
    SnapshotRejection,
    TimeoutNow,
    TransferLeadership,
)
from ondisk.raft.records import MEMBERS, REGULAR, LogEntry
from ondisk.replica import Replica
from ondisk.simulation.host import Host
from ondisk.simulation.machine import PaddedKV
from tests.virtual import World

FOREVER = float("inf")
Compare = Callable[[Path, str], None]  # what is on file with what happens
SETTLED = 0.3  # virtual seconds without a change, less than any election timeout

KINDS: dict[str, tuple[type, ...]] = {
    "votes": (RequestVote, RequestVoteResponse, NewerTerm, TimeoutNow),
    "entries": (AppendEntries, AppendEntriesAnswer, NewerTerm),
    "snapshots": (SnapshotChunk, SnapshotAck, SnapshotRejection),
    "reads": (ReadIndexRequest, ReadIndexResponse, ReadIndexRejection),
    "members": (Found, Membership, Refused, Removed),
}


class Step(NamedTuple):
    """What a script says and does between two traces."""

    comments: tuple[str, ...]
    commands: tuple[str, ...]
    trace: tuple[str, ...]


def parse(text: str) -> tuple[str, list[Step]]:
    """A script as its question, with what else is said before the first step, and its steps."""
    question, _, rest = text.partition("\n\n")
    steps = []
    for block in re.split(r"\n\n+", rest.strip()):
        said, _, trace = block.partition("\n----")
        lines = said.splitlines()
        comments = tuple(line for line in lines if line.startswith("#"))
        steps.append(Step(comments, tuple(lines[len(comments) :]), tuple(trace.splitlines()[1:])))
    return question, steps


def written(question: str, steps: Iterable[Step]) -> str:
    """As it stands in the file."""
    blocks = [[*step.comments, *step.commands, "----", *step.trace] for step in steps]
    return "\n\n".join([question, *("\n".join(block) for block in blocks)]) + "\n"


def run(text: str, directory: Path) -> str:
    """The same script with the trace that its steps have today. Raises ``ValueError`` for a wrong command."""
    question, steps = parse(text)
    stage = Stage(directory)
    try:
        return written(question, [step._replace(trace=tuple(stage.play(step))) for step in steps])
    finally:
        stage.close()


class Order(random.Random):
    """Timeouts without chance: the lower a replica's number, the sooner it stands for election."""

    def __init__(self, member: int, life: int) -> None:
        super().__init__(f"{member} {life}")
        self._place = (member - 1) / 8

    def uniform(self, low: float, high: float) -> float:
        return low + (high - low) * self._place


class Stage(World):
    """A world that is told what to do by commands, and says what has changed."""

    def __init__(self, directory: Path) -> None:
        self._disks: dict[int, list[str]] = {}  # by number: the disks that it has had
        self._shown: dict[int, str] = {}
        self._asked: dict[str, Future[Any]] = {}  # requests that have not been answered
        self._watched: tuple[type, ...] = ()
        self._sent_now: list[Event] = []  # messages sent in this step
        self._lost: set[int] = set()
        super().__init__(directory, 0, machine=PaddedKV, founded=False)
        self._unread_events = self.network.observe()

    def replica_rng(self, host: Host) -> random.Random:
        return Order(host.member, sum(each.lives for each in self.hosts.values()))

    def play(self, step: Step) -> Iterator[str]:
        """Obey the commands of one step; say what was sent, answered and changed."""
        self._sent_now, new = [], dict(self._asked)
        for command in step.commands:
            yield from self._obey(command)
            self._take_events()
        yield from self._messages()
        for request, future in tuple(self._asked.items()):
            if future.done():
                del self._asked[request]
                yield f"{request}: {answer(future)}"
            elif request not in new:
                yield f"{request}: waits"
        yield from self._changes()

    def _obey(self, command: str) -> Iterable[str]:
        verb, *words = command.split()
        method: Callable[..., Iterable[str] | None] | None = getattr(self, f"_do_{verb}", None)
        if method is None:
            raise ValueError(f"no such command: {command}")
        return method(*words) or ()

    # Commands: replicas

    def _do_group(self, *numbers: str) -> None:
        """Start these as the first members, let them found their group and elect replica 1."""
        self._do_members(*numbers)
        assert not list(self._do_start(*numbers))
        self.run_until(lambda: all(replica.raft.members.group for replica in self.replicas.values()))
        self._do_settle()

    def _do_members(self, *numbers: str) -> None:
        """Say who the first members are, without starting any."""
        self.first_members = tuple(map(int, numbers))

    def _do_start(self, *numbers: str) -> Iterator[str]:
        for member in map(int, numbers):
            try:
                disk = self.start(member).status.disk
            except ConfigurationError as error:
                yield f"start {member}: {without_path(str(error))}"
                continue
            disks = self._disks.setdefault(member, [])
            disks += [disk] if disk not in disks else []

    def _do_crash(self, *numbers: str) -> None:
        for member in map(int, numbers):
            self.crash(member)

    def _do_stop(self, *numbers: str) -> None:
        for member in map(int, numbers):
            self.stop(member)

    def _do_wipe(self, *numbers: str) -> None:
        """Lose all that a stopped replica has on disk."""
        for member in map(int, numbers):
            self.lose(member)

    def _do_copy(self, number: str) -> None:
        """Put a copy of a stopped replica's directory aside."""
        shutil.copytree(self.folder(int(number)), self._copy_of(number))

    def _do_restore(self, number: str) -> None:
        """Put the copy in the place of a stopped replica's directory."""
        shutil.rmtree(self.folder(int(number)))
        self._copy_of(number).rename(self.folder(int(number)))

    def _copy_of(self, number: str) -> Path:
        return self.directory / f"copy-{number}"

    def _do_freeze(self, *numbers: str) -> None:
        self.freeze(*map(int, numbers))

    def _do_thaw(self, *numbers: str) -> None:
        self.thaw(*map(int, numbers))

    def _do_timeout(self, *numbers: str) -> None:
        """The election timers of these run out now."""
        for member in map(int, numbers):
            self.replicas[member].raft.election_deadline = self.now

    def _do_one(self, *words: str) -> None:
        """``one entry a message``: for replicas that start from now on."""
        if words != ("entry", "a", "message"):
            raise ValueError("one entry a message")
        self.timing = Timing(batch_bytes=1)

    # Commands: network

    def _do_cut(self, *words: str) -> None:
        self.network.cut(*self._pairs(words))

    def _do_stall(self, *words: str) -> None:
        self.network.stall(*self._pairs(words))

    def _do_heal(self, *words: str) -> None:
        self.network.heal(*self._pairs(words))

    def _pairs(self, words: tuple[str, ...]) -> Iterator[tuple[int, int]]:
        """``1>2`` is one way, ``1-2`` both, ``1`` all links to and from it."""
        for word in words:
            if ">" in word:
                sender, receiver = map(int, word.split(">"))
                yield sender, receiver
                continue
            first, *rest = map(int, word.split("-"))
            for other in rest or [other for other in self._disks if other != first]:
                yield first, other
                yield other, first

    # Commands: requests

    def _do_put(self, what: str, at: str = "at", number: str = "") -> None:
        """``put x=1 at 2``: through replica 2, else through the leader."""
        key, _, value = what.partition("=")
        replica = self._asked_one(number)
        self._ask(f"put {what} at {replica.id}", replica.propose(diskkv.put(key, value), FOREVER))

    def _do_get(self, key: str, at: str = "at", number: str = "") -> None:
        """A linearizable read."""
        replica = self._asked_one(number)
        done: Future[object] = Future()
        barrier = replica.read_barrier(FOREVER)

        def look(barrier: Future[None]) -> None:
            error = barrier.exception()
            if error is None:
                done.set_result(replica.lookup(diskkv.get(key)))
            else:
                done.set_exception(error)

        barrier.add_done_callback(look)
        self._ask(f"get {key} at {replica.id}", done)

    def _do_stale(self, key: str, at: str, number: str) -> Iterable[str]:
        """``stale x at 2``: what replica 2 holds, now."""
        yield f"stale {key} at {number}: {found(self.replicas[int(number)].lookup(diskkv.get(key)))}"

    def _do_add(self, number: str) -> None:
        self._change(f"add {number}", AddReplica(int(number)))

    def _do_remove(self, number: str) -> None:
        self._change(f"remove {number}", RemoveReplica(int(number)))

    def _do_replace(self, number: str) -> None:
        disk = self._asked_one("").raft.members.disk_of(int(number))
        self._change(f"replace {number}", ReplaceReplica(int(number), disk))

    def _do_transfer(self, to: str, number: str) -> None:
        """``transfer to 2``."""
        self._change(f"transfer to {number}", TransferLeadership(int(number)))

    def _change(self, request: str, change: Change) -> None:
        self._ask(request, self._asked_one("").propose_change(change, FOREVER))

    def _do_compact(self, *numbers: str) -> None:
        for member in map(int, numbers):
            future = self.replicas[member].compact()
            self.run_until(future.done)

    def _do_found(self, *numbers: str) -> None:
        """An operator tells the first of these to found with these only."""
        request = f"found {' '.join(numbers)}"
        self._ask(request, self.replicas[int(numbers[0])].found([*map(int, numbers)]))

    def _asked_one(self, number: str) -> Replica:
        if number:
            return self.replicas[int(number)]
        if self.leader is None:
            raise ValueError("nobody leads: say through which replica")
        return self.leader

    def _ask(self, request: str, future: Future[Any]) -> None:
        if request in self._asked:
            raise ValueError(f"{request}: this request waits already, ask for something else")
        self._asked[request] = future

    # Commands: time

    def _do_run(self, seconds: str) -> None:
        self.run(float(seconds))

    def _do_settle(self) -> None:
        """Until nothing has changed for a while. Heartbeats go on."""
        before, since = self._lines(), self.now
        while self.now < since + SETTLED:
            self.tick()
            if (lines := self._lines()) != before:
                before, since = lines, self.now

    def _do_until(self, number: str, what: str, *rest: str) -> None:
        """``until 2 leads``, ``until 2 has 5`` entries, ``until 2 votes``: is a voter."""
        member = int(number)
        conditions: dict[str, Callable[[Replica], bool]] = {
            "leads": lambda replica: replica.raft.is_leader,
            "stands": lambda replica: replica.raft.role == "candidate",
            "follows": lambda replica: replica.raft.leader_id == int(rest[0]),
            "has": lambda replica: replica.raft.log.last_index >= int(rest[0]),
            "commits": lambda replica: replica.raft.commit_index >= int(rest[0]),
            "votes": lambda replica: member in replica.raft.members.voters,
            "stops": lambda replica: not replica.running,
        }
        if what not in conditions:
            raise ValueError(f"until {number} {what}: there are {', '.join(conditions)}")
        self.run_until(lambda: conditions[what](self.replicas[member]))

    # The trace

    def _do_watch(self, *kinds: str) -> None:
        """From now on the trace has these messages."""
        self._watched = tuple(kind for name in kinds if name != "nothing" for kind in KINDS[name])

    def _do_show(self) -> None:
        """Show all replicas, changed or not."""
        self._shown = {}

    def _take_events(self) -> None:
        """After a command, and before the next one stops or starts anybody."""
        while self._unread_events:
            event = self._unread_events.popleft()
            if event.kind == "sent" and event.receiver in self.replicas:  # else nobody is there
                self._sent_now.append(event)
            elif event.kind == "lost":
                self._lost.add(event.number)

    def _messages(self) -> Iterator[str]:
        """What was sent, each thing once, and how often."""
        count: dict[str, int] = {}
        for event in self._sent_now:
            if isinstance(event.message, self._watched) and (words := said(event.message)):
                lost = " (lost)" if event.number in self._lost else ""
                line = f"{event.sender} to {event.receiver}: {words}{lost}"
                count[line] = count.get(line, 0) + 1
        for line, times in count.items():
            yield line + (f" x{times}" if times > 1 else "")

    def _changes(self) -> Iterator[str]:
        lines = self._lines()
        changed = [member for member in lines if self._shown.get(member) != lines[member]]
        self._shown = lines
        rows = [lines[member].split("\t") for member in changed]
        widths = [
            max(map(len, column)) for column in zip(*(row for row in rows if len(row) > 1), strict=True)
        ]
        for row in rows:
            padded = [cell.ljust(width) for cell, width in zip(row, widths, strict=False)] or row
            yield "  ".join(padded if len(row) > 1 else row).rstrip()

    def _lines(self) -> dict[int, str]:
        """Each replica in a line: number, disk, role, term, log, and how much is applied."""
        return {member: self._line(member) for member in sorted(self._disks)}

    def _line(self, member: int) -> str:
        replica = self.replicas.get(member)
        if replica is None:
            return f"{member}  down"
        status = replica.status
        name = f"{member}{disk_letter(self._disks[member], status.disk)}"
        if replica.log is None:
            return f"{name}  {status.role}: {without_path(status.error)}"
        raft = replica.raft
        role = status.role
        if member in raft.members.learners:
            role = "learner"
        if raft.leader_id not in (None, member):
            role += f" of {raft.leader_id}"
        if raft.log.voted_for not in (None, raft.leader_id):
            role += f", voted for {raft.log.voted_for}"
        problem = without_path(status.error) if status.error else ""
        if not raft.members.group:
            return f"{name}  without a group: {problem}"
        return "\t".join(
            (name, role, f"term {status.term}", cells(replica), f"applied {status.applied_index}", problem)
        )


def disk_letter(disks: list[str], disk: str) -> str:
    """Nothing for the first disk of a replica, b for the second."""
    place = disks.index(disk)
    return "" if place == 0 else "abcdefgh"[place]


def cells(replica: Replica) -> str:
    """The log: a cell for each entry, with its term; a bar behind what is known to be committed."""
    log = replica.raft.log
    shown = [f"(..{log.base_index})"] if log.base_index else []
    entries = log.entries(log.base_index + 1, log.last_index) if log.last_index > log.base_index else []
    committed = [cell(entry) for entry in entries if entry.index <= replica.raft.commit_index]
    return " ".join([*shown, *committed, "|", *[cell(entry) for entry in entries[len(committed) :]]])


def cell(entry: LogEntry) -> str:
    kind, body = entry.command[:1], entry.command[1:]
    if kind == REGULAR:
        what = command(body)
    elif kind == MEMBERS:
        what = configuration(members.decode(body))
    else:
        what = "-"
    return f"{entry.term}:{what}"


def command(body: bytes) -> str:
    decoded = msgspec.msgpack.decode(body, type=Put)
    return f"{decoded.key.decode()}={decoded.value.decode()}"


def configuration(group: Members) -> str:
    """``{1,2,3+4}``: 1, 2 and 3 are voters, 4 is a learner."""
    learners = "".join(f"+{learner}" for learner in group.learners)
    return "{" + ",".join(map(str, group.voters)) + learners + "}"


def answer(future: Future[Any]) -> str:
    """How a request has ended."""
    if (error := future.exception()) is not None:
        return f"{type(error).__name__}: {error}"
    result = future.result()
    if isinstance(result, bytes) or result is None:
        return found(result)
    return f"refused: {result.error}" if getattr(result, "error", None) else "done"


def found(value: bytes | None) -> str:
    return "nothing" if value is None else value.decode()


def without_path(text: str | None) -> str:
    return re.sub(r"/\S*/(?=replica-\d)", "", text or "")


def said(message: Message) -> str:
    """A message in words; nothing for heartbeats and their answers."""
    match message:
        case RequestVote():
            question = "would you vote for me" if message.pre else "vote for me"
            last = f"my last entry is {message.last_index} of term {message.last_term}"
            return f"{question} in term {message.term}? {last}"
        case RequestVoteResponse():
            return f"{'yes, I would' if message.pre else 'yes'}, term {message.term}"
        case NewerTerm():
            return f"no, it is term {message.term}"
        case TimeoutNow():
            return f"stand for election now, term {message.term}"
        case AppendEntries():
            shown = " ".join(cell(entry) for entry in message.entries)
            return f"append {shown} after {message.prev_index} of term {message.prev_term}" if shown else ""
        case AppendEntriesResponse():
            return f"equal up to {message.index}" if message.index > message.prev_index else ""
        case AppendEntriesRejection():
            return f"rejected, term {message.term}, try {message.hint}"
        case SnapshotNeeded():
            return f"I need a snapshot, term {message.term}"
        case SnapshotChunk():
            return f"chunk {message.chunk.number} of a snapshot"
        case SnapshotAck():
            return f"next chunk {message.next}"
        case SnapshotRejection():
            return "I have no use for this snapshot"
        case ReadIndexRequest():
            return "which index must I have applied?"
        case ReadIndexResponse():
            return f"{message.index}"
        case ReadIndexRejection():
            return "I do not lead"
        case Found():
            return f"I belong to no group, and was started with {list(message.members)}" + (
                f"; I vote in round {message.round}" if message.round else ""
            )
        case Membership():
            return f"the group is {configuration(message.members)}"
        case Refused():
            return f"refused: {message.reason}"
        case _:
            return type(message).__name__
