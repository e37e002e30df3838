"""Console: a line becomes a request, and its outcome text. It knows neither terminal nor process."""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Iterable
from pathlib import Path

from ondisk.bulk import LoadFailed
from ondisk.cli.words import first_word, value, words
from ondisk.client import Client
from ondisk.dump import dump, load
from ondisk.errors import (
    ConfigurationError,
    Discarded,
    NoLeader,
    NotDone,
    OndiskError,
    OutcomeUnknown,
    ReplicaStopped,
    StorageError,
)
from ondisk.net.addresses import parse_address
from ondisk.node import Node
from ondisk.raft.limits import MAX_COMMAND_BYTES
from ondisk.remote import RemoteClient
from ondisk.replica import ReplicaStatus
from ondisk.snapshot.streaming import StreamProgress
from ondisk.storage.paths import open_regular

COMMANDS = {
    "put key value": "set a key to the rest of the line",
    "get key": "what a majority agrees on",
    "put --file path key": "set a key to what a file holds",
    "stale key": "what this replica has now, maybe old; also: get --stale key",
    "delete key": "remove a key",
    "incr key [by]": "add 1, or another whole number, to a number",
    "scan [prefix] [limit]": "keys in order, 100 if no limit is given",
    "scan --from key [prefix] [limit]": "the same, from this key on",
    "status": "this replica's part in the group, how far its log has come, and who else is there",
    "members": "who belongs to the group, and where they are",
    "add id host:port": "make a new replica a member; start it with --join",
    "remove id": "take a member out, for good: its id is never let in again",
    "move id host:port": "say where a member is from now on, also while it is away",
    "replace id": "take the disk of a member for lost: it never counts again",
    "found id id ...": "found a new group with these only: the other first ones do not come",
    "transfer id": "let another member lead",
    "compact": "drop the log up to what the state of this replica holds",
    "export [--force] file": "write the state of this replica into a file, a new one without --force",
    "dump [--resume] file [prefix]": "write all pairs into a new file, as lines of JSON, or go on with it",
    "load [--skip number] file": "set the pairs of a dump, without so many that are stored already",
    "help [command]": "this text; also: ?",
    "exit": "close the replica; also: quit, Ctrl-D",
}
USAGE = "\n".join(["Usage - ", *COMMANDS])
_WIDTH = max(map(len, COMMANDS)) + 2
HELP = "\n".join(
    [f"{command:<{_WIDTH}}{what}" for command, what in COMMANDS.items()]
    + [
        "",
        'A value is the rest of the line, as it is typed: put j {"a": 1}. Quote it if it is empty, or begins',
        "or ends with a blank, and a key that has one: put 'two words' ''. In double quotes \\\" is a quote.",
        "Bytes that are not text, and control characters, are shown as \\xff.",
        "A request without an answer in 3 s is given up.",
        "'not done' means: it had no effect, try again, here or at another replica;",
        "'refused' means: it had no effect, and will have none until what is said has changed;",
        "'outcome unknown' means: it may have happened, get the key before you try again.",
    ]
)
_ALIASES = {"?": "help", "quit": "exit"}
_OF_ITS_OWN_PROMPT = ("found", "compact", "export")
_NAMES = {command.split()[0] for command in COMMANDS}

# Exit statuses: the highest one that a line deserved is that of the process, if the lines come from a pipe.
MISTAKEN, WITHOUT_EFFECT, UNKNOWN = 2, 3, 4

_SAYS_ITSELF = re.compile(r"[^\s'\"\\]{1,2000}")  # a value that nobody can have meant otherwise
_SHOWN_OF_VALUE = 60  # characters
_SHORT_NAME = 8  # digits of a group or a disk, as in messages

# A stored value must not be able to move the cursor, or to look like another line.
_CONTROL_CHARACTERS = {code: f"\\x{code:02x}" for code in (*range(0x20), *range(0x7F, 0xA0))}


def show(data: bytes) -> str:
    """Stored bytes as one line of text: what is not UTF-8, and control characters, as ``\\xff``."""
    return data.decode("utf-8", "backslashreplace").translate(_CONTROL_CHARACTERS)


def is_command(name: str) -> bool:
    """Whether a line may begin with it."""
    return _ALIASES.get(name.lower(), name.lower()) in _NAMES


class Console:
    """Lines in, answers out: all that a user of the command line can ask of a ``Client``."""

    def __init__(
        self, client: Client, status: Callable[[], Iterable[ReplicaStatus]], node: Node | None = None
    ) -> None:
        """``status`` tells what the command ``status`` shows: one row for each replica.

        ``node`` is the replica that ``compact``, ``export`` and ``found`` are about.
        """
        self._client = client
        self._node = node
        self._status = status
        self.exit_status = 0  # what the worst line so far deserved

    def execute(self, line: str) -> str:
        """Carry out one line and return the answer, without a newline at its end.

        Whatever goes wrong is an answer too, of one line, and ``exit_status`` remembers it. Only ``exit``
        raises: ``EOFError``, as if the input had ended.
        """
        try:
            return self._execute(line)
        except NotDone as error:
            may_try_again = isinstance(error, NoLeader | ReplicaStopped | Discarded)
            return self._failed(WITHOUT_EFFECT, f"{'not done' if may_try_again else 'refused'}: {error}")
        except OutcomeUnknown as error:
            return self._failed(
                UNKNOWN, f"outcome unknown: {error}: it may have happened, get the key before trying again"
            )
        except OndiskError as error:
            return self._failed(WITHOUT_EFFECT, f"error: {error}")
        except ValueError as error:  # of the line: a quote without its other half, not a number
            return self._failed(MISTAKEN, f"invalid input: {error}")

    def _failed(self, exit_status: int, answer: str) -> str:
        self.exit_status = max(self.exit_status, exit_status)
        return answer

    def _execute(self, line: str) -> str:
        if not line.strip():
            return ""
        name, rest = first_word(line)
        if not is_command(name):
            raise ValueError(f"there is no command {name.lower()!r:.60} (help lists them)")
        name = _ALIASES.get(name.lower(), name.lower())
        if name in _OF_ITS_OWN_PROMPT and self._node is None:
            raise ValueError(f"{name} is about one replica, and only the prompt of that one has it")
        try:
            answer = self._put(rest) if name == "put" else self._carry_out([name, *words(rest)])
        except ValueError as error:
            if isinstance(error, OndiskError):  # of the group, or of what it stores
                raise
            raise ValueError(f"{error} (usage: {_usage(name)})") from None
        if answer is None:
            raise ValueError(f"usage: {_usage(name)}")
        return answer

    def _put(self, rest: str) -> str | None:
        data: str | bytes
        if rest.split(maxsplit=1)[:1] == ["--file"]:  # in quotes it is a key
            match words(rest):
                case [_, path, key]:
                    data = _read(path)
                case _:
                    return None
        else:
            key, rest = first_word(rest)
            if not rest:
                return None
            data = value(rest)
        self._client.put(key, data)
        return "ok" if isinstance(data, str) and _SAYS_ITSELF.fullmatch(data) else f"ok: {_described(data)}"

    def _carry_out(self, words: list[str]) -> str | None:
        """What is answered, ``None`` if this is not how the command is used."""
        match words:
            case ["get", key]:
                return self._found(key, self._client.get(key))
            case ["stale", key] | ["get", "--stale", key]:
                return self._found(key, self._client.stale_get(key))
            case ["delete", key]:
                return "ok" if self._client.delete(key).value else "ok (there was none)"
            case ["incr", key]:
                return str(self._client.incr(key).value)
            case ["incr", key, by]:
                return str(self._client.incr(key, _whole_number(by)).value)
            case ["scan", "--from", start, *rest] if len(rest) <= 2:
                return self._scan(rest, start)
            case ["scan", *rest] if len(rest) <= 2:
                return self._scan(rest)
            case ["status"]:
                return self._table()
            case ["members"]:
                return self._members()
            case ["add", replica_id, address]:
                self._client.add_replica(_whole_number(replica_id), _address(address))
                return "ok: it catches up from now on, and counts when it has (see members)"
            case ["remove", replica_id]:
                self._client.remove_replica(_whole_number(replica_id))
                return "ok"
            case ["move", replica_id, address]:
                self._client.move_replica(_whole_number(replica_id), _address(address))
                return "ok: who is started with --members later is to be told the new address there, too"
            case ["replace", replica_id]:
                return self._replace(_whole_number(replica_id))
            case ["found", *ids] if ids and self._node is not None:
                self._node.found([_whole_number(each) for each in ids])
                return f"ok: the group is founded when all of {', '.join(ids)} are there (see status)"
            case ["transfer", replica_id]:
                self._client.transfer_leadership(_whole_number(replica_id))
                return "ok"
            case ["compact"] if self._node is not None:
                return f"ok: the log begins after entry {self._node.compact()}"
            case ["export", "--force", file] if self._node is not None:
                return _export(self._node, file)
            case ["export", file] if self._node is not None:
                if os.path.lexists(file):
                    raise StorageError(f"{file} is there already: export --force replaces it")
                return _export(self._node, file)
            case ["dump", "--resume", file, *rest] if len(rest) <= 1:
                return self._dump(file, rest, resume=True)
            case ["dump", file, *rest] if len(rest) <= 1:
                return self._dump(file, rest, resume=False)
            case ["load", "--skip", number, file]:
                return self._load(file, _whole_number(number))
            case ["load", file]:
                return self._load(file, 0)
            case ["help"]:
                return HELP
            case ["help", command]:
                return _help(command)
            case ["exit"]:
                raise EOFError
        return None

    def _found(self, key: str, value: bytes | None) -> str:
        result = "not found" if value is None else f"result: {show(value)}"
        return f"query key: {show(key.encode())}, {result}"

    def _scan(self, words: list[str], start: str = "") -> str:
        prefix, number = words + ["", "100"][len(words) :]
        limit = _whole_number(number)
        pairs = self._client.scan(prefix, start=start, limit=limit)
        lines = [f"{show(key)} = {show(value)}" for key, value in pairs]
        if len(pairs) == limit:
            lines.append(f"(stopped at the limit of {limit})")
        return "\n".join(lines or ["(no keys)"])

    def _dump(self, file: str, rest: list[str], *, resume: bool) -> str:
        complete = dump(self._client, file, prefix="".join(rest), resume=resume)
        return f"ok: {complete.pairs:,} pairs, sha256 {complete.sha256}"

    def _load(self, file: str, skip: int) -> str:
        try:
            return f"ok: {load(self._client, file, skip=skip):,} pairs"
        except LoadFailed as error:
            stored = skip + error.load.stored
            raise StorageError(
                f"{error.__cause__ or error} (go on with: load --skip {stored} {file})"
            ) from None

    def _replace(self, replica_id: int) -> str:
        self._client.replace_replica(replica_id)
        return (
            f"ok: its disk counts no more. Now end replica {replica_id} if it runs, delete its directory "
            f"replica-{replica_id}, and start it again: it catches up, and counts when it has"
        )

    def _table(self) -> str:
        numbers = ["id", "role", "term", "leader", "last", "durable", "commit", "applied", "synced"]
        rows = [[*numbers, "group", "disk"]]
        errors: list[str] = []
        streams = []
        for status in self._status():
            names = [name[:_SHORT_NAME] or "-" for name in (status.group, status.disk)]
            rows.append(["-" if field is None else str(field) for field in status[: len(numbers)]] + names)
            if status.error is not None:
                errors.append(f"replica {status.id}: {status.error}")
            for under_way in status.streams:
                streams.append(_describe(under_way))
        rows += self._others(len(rows[0]))
        widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
        lines = ["  ".join(map(str.ljust, row, widths)).rstrip() for row in rows]
        lines += streams
        return "\n".join(lines + errors)

    def _others(self, columns: int) -> list[list[str]]:
        """Rows for the other members: how far they have come is known to the leader only."""
        if self._node is None:
            return []
        status, connected = self._node.status, self._node.connected
        rows = []
        for other in sorted({*status.voters, *status.learners} - {status.id}):
            role = "leader" if other == status.leader_id else "voter" if other in status.voters else "learner"
            reached = str(status.match_index.get(other, "-"))
            row = [str(other), role if other in connected else "away", "-", "-", reached]
            rows.append(row + ["-"] * (columns - len(row)))
        return rows

    def _members(self) -> str:
        status = list(self._status())
        if not status:
            raise ReplicaStopped("no replica answers")
        newest = max(status, key=lambda status: (status.term, status.last_index))
        node, where = self._node, dict[int, str]()
        if isinstance(self._client, RemoteClient):
            where = self._client.members().addresses
        elif node is not None and node.status.running:
            where = node.configuration[1].addresses
        kinds = {"voters": newest.voters, "learners": newest.learners}
        lines = [
            f"{kind}: " + ", ".join(f"{i} ({where[i]})" if i in where else str(i) for i in ids)
            for kind, ids in kinds.items()
            if ids
        ]
        return "; ".join(lines) or "(none: it belongs to no group)"


def _describe(under_way: StreamProgress) -> str:
    other = f" replica {under_way.peer}" if under_way.peer else ""
    return f"snapshot of entry {under_way.index} {under_way.kind}{other}: {under_way.bytes:,} bytes so far"


def _usage(name: str) -> str:
    return ", or ".join(command for command in COMMANDS if command.split()[0] == name)


def _help(name: str) -> str:
    name = _ALIASES.get(name.lower(), name.lower())
    if name not in _NAMES:
        raise ValueError(f"there is no command {name!r:.60}")
    return "\n".join(
        f"{command:<{_WIDTH}}{what}" for command, what in COMMANDS.items() if command.split()[0] == name
    )


def _read(path: str) -> bytes:
    """What a file holds, or so much of it that it is refused. Raises ``StorageError``."""
    try:
        with open_regular(Path(path)) as file:
            return file.read(MAX_COMMAND_BYTES + 1)
    except OSError as error:
        raise StorageError(f"{path}: cannot be read ({error})") from None


def _described(value: str | bytes) -> str:
    """What was stored, or the beginning of it, and how much it is."""
    data = value.encode() if isinstance(value, str) else value
    text = show(data[: 4 * _SHOWN_OF_VALUE])[:_SHOWN_OF_VALUE]
    if not data:
        return "an empty value"
    return text if text == show(data) else f"{text}... ({len(data):,} bytes)"


def _export(node: Node, file: str) -> str:
    snapshot = node.export_snapshot(file)
    return f"ok: the state after entry {snapshot.index}, {snapshot.bytes:,} bytes"


def _address(text: str) -> str:
    try:
        parse_address(text)
    except ConfigurationError as error:
        raise ValueError(str(error)) from None
    return text


def _whole_number(text: str) -> int:
    try:
        return int(text)
    except ValueError:
        raise ValueError(f"{text!r:.60} is not a whole number") from None
