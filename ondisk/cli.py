"""The ``ondisk`` command: one replica of a key-value store in a terminal. Three of them make a group.

``Console`` turns a line into a request and its outcome into text; it knows neither terminal nor process.
The rest opens the replica and brings lines to the console: from a prompt with history and completion, or
from a pipe; or from nowhere, as a service. After Dragonboat's ``ondisk`` example, whose flags and answers it
keeps.
"""

from __future__ import annotations

import io
import json
import logging
import os
import shlex
import signal
import sys
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Any

from ondisk.client import Client
from ondisk.errors import ConfigurationError, NotDone, OndiskError, OutcomeUnknown, StorageError
from ondisk.inspect import inspect, print_inspection
from ondisk.net.addresses import Address, format_address, parse_address
from ondisk.net.tcp import TcpNetwork
from ondisk.node import Node
from ondisk.replica import ReplicaStatus
from ondisk.snapshot.restore import import_snapshot
from ondisk.snapshot.transfer import Progress
from ondisk.storage.paths import read_regular

try:
    import click
    from prompt_toolkit import PromptSession
    from prompt_toolkit.completion import WordCompleter
    from prompt_toolkit.patch_stdout import patch_stdout
    from prompt_toolkit.shortcuts import CompleteStyle
except ModuleNotFoundError as missing:
    print(f"error: {missing.name} is missing: pip install 'ondisk[cli]'", file=sys.stderr)
    raise SystemExit(2) from None

COMMANDS = {
    "put key value": "set a key",
    "get key": "what a majority agrees on; (none) if the key is missing",
    "stale key": "what this replica has now, maybe old; also: get --stale key",
    "delete key": "remove a key",
    "incr key [by]": "add 1, or another whole number, to a number",
    "scan [prefix] [limit]": "keys in order, 100 if no limit is given",
    "status": "this replica's part in the group, and how far its log has come",
    "members": "who belongs to the group, and where they are",
    "add id host:port": "make a new replica a member; start it with --join",
    "remove id": "take a member out, for good: its id is never let in again",
    "move id host:port": "say where a member is from now on, also while it is away",
    "replace id": "take the disk of a member for lost: it never counts again",
    "found id id ...": "found a new group with these only: the other first ones do not come",
    "transfer id": "let another member lead",
    "compact": "drop the log up to what the state of this replica holds",
    "export file": "write the state of this replica into a file",
    "help": "this text",
    "exit": "close the replica; Ctrl-D does it too",
}
USAGE = "\n".join(["Usage - ", *COMMANDS])
HELP = "\n".join(
    [f"{command:<23}{what}" for command, what in COMMANDS.items()]
    + [
        "",
        "Quote as in a shell: put 'two words' \"\"",
        "Bytes that are not text, and control characters, are shown as \\xff.",
        "A request without an answer in 3 s is given up. 'not done' means: it had no effect, try again;",
        "'outcome unknown' means: it may have happened, get the key before you try again.",
    ]
)
_ASK_THE_LEADER = ("put", "get", "delete", "incr", "scan", "add", "remove", "move", "replace", "transfer")
_FIRST_LEADER_SECONDS = 10.0
_FIRST_WORD_SECONDS = 0.5  # in which the others may answer before it is said that they do not
_LOOK_SECONDS = 0.2
_SHORT_NAME = 8  # digits of a group or a disk, as in messages

# A stored value must not be able to move the cursor, or to look like another line.
_CONTROL_CHARACTERS = {code: f"\\x{code:02x}" for code in (*range(0x20), *range(0x7F, 0xA0))}


def show(data: bytes) -> str:
    """Stored bytes as one line of text: what is not UTF-8, and control characters, as ``\\xff``."""
    return data.decode("utf-8", "backslashreplace").translate(_CONTROL_CHARACTERS)


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

    def execute(self, line: str) -> str:
        """Carry out one line and return the answer, without a newline at its end.

        Whatever goes wrong is an answer too. Only ``exit`` raises: ``EOFError``, as if the input had ended.
        """
        try:
            return self._execute(shlex.split(line))
        except NotDone as error:
            return f"not done: {error}"
        except OutcomeUnknown as error:
            return f"outcome unknown: {error}: it may have happened, get the key before trying again"
        except OndiskError as error:
            return f"error: {error}"
        except ValueError as error:  # of the line: a quote without its other half, not a number
            return f"invalid input: {error}\n{USAGE}"

    def _execute(self, words: list[str]) -> str:
        match words:
            case []:
                return ""
            case ["put", key, value]:
                self._client.put(key, value)
                return "ok"
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
            case ["scan", *rest] if len(rest) <= 2:
                prefix, limit = rest + ["", "100"][len(rest) :]
                return self._scan(prefix, _whole_number(limit))
            case ["status"]:
                return self._table()
            case ["members"]:
                return self._members()
            case ["add", replica_id, address]:
                self._client.add_replica(_whole_number(replica_id), _address(address))
                return "ok: it is fed from now on, and counts when it has caught up (see members)"
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
            case ["export", file] if self._node is not None:
                snapshot = self._node.export_snapshot(file)
                return f"ok: the state after entry {snapshot.index}, {snapshot.bytes:,} bytes"
            case ["help"]:
                return HELP
            case ["exit"]:
                raise EOFError
        raise ValueError(shlex.join(words))

    def _found(self, key: str, value: bytes | None) -> str:
        result = "(none)" if value is None else show(value)
        return f"query key: {show(key.encode())}, result: {result}"

    def _scan(self, prefix: str, limit: int) -> str:
        pairs = self._client.scan(prefix, limit=limit)
        lines = [f"{show(key)} = {show(value)}" for key, value in pairs]
        if len(pairs) == limit:
            lines.append(f"(stopped at the limit of {limit})")
        return "\n".join(lines or ["(no keys)"])

    def _replace(self, replica_id: int) -> str:
        self._client.replace_replica(replica_id)
        return (
            f"ok: its disk counts no more. Now end replica {replica_id} if it runs, delete its directory "
            f"replica-{replica_id}, and start it again: it is fed, and counts when it has caught up"
        )

    def _table(self) -> str:
        numbers = ["id", "role", "term", "leader", "last", "durable", "commit", "applied", "synced"]
        rows = [[*numbers, "group", "disk"]]
        errors: list[str] = []
        transfers = []
        for status in self._status():
            names = [name[:_SHORT_NAME] or "-" for name in (status.group, status.disk)]
            rows.append(["-" if field is None else str(field) for field in status[: len(numbers)]] + names)
            if status.error is not None:
                errors.append(f"replica {status.id}: {status.error}")
            for under_way in status.transfers:
                transfers.append(_describe(under_way))
        widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
        lines = ["  ".join(map(str.ljust, row, widths)).rstrip() for row in rows]
        lines += transfers
        return "\n".join(lines + errors)

    def _members(self) -> str:
        newest = max(self._status(), key=lambda status: (status.term, status.last_index))
        node = self._node
        where = node.configuration[1].addresses if node is not None and node.status.running else {}
        kinds = {"voters": newest.voters, "learners": newest.learners}
        lines = [
            f"{kind}: " + ", ".join(f"{i} ({where[i]})" if i in where else str(i) for i in ids)
            for kind, ids in kinds.items()
            if ids
        ]
        return "; ".join(lines) or "(none: it belongs to no group)"


def _describe(under_way: Progress) -> str:
    other = f" replica {under_way.peer}" if under_way.peer else ""
    return f"snapshot of entry {under_way.index} {under_way.kind}{other}: {under_way.bytes:,} bytes so far"


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


# Where lines come from


def _typed_lines(replica_id: int) -> Iterator[str]:
    """From a person, with history, editing and completion."""
    session: PromptSession[str] = PromptSession(
        f"replica {replica_id}> ",
        completer=WordCompleter(
            [name + " " * bool(arguments) for name, *arguments in map(str.split, COMMANDS)],
            sentence=True,
        ),
        complete_while_typing=False,
        complete_style=CompleteStyle.READLINE_LIKE,
    )
    while True:
        try:
            with patch_stdout():  # a warning goes above the prompt, not into it
                line = session.prompt()
        except EOFError:
            return
        except KeyboardInterrupt:
            if not session.default_buffer.text:
                raise
            continue  # as in a shell: the line is forgotten
        yield from line.split("\n")  # several, if they were pasted


class _Hints:
    """What the replica waits for, on stderr: each once, until it is something else."""

    def __init__(self) -> None:
        self._last: str | None = None

    def say(self, hint: str | None) -> None:
        if hint is not None and hint != self._last:
            print(hint, file=sys.stderr, flush=True)
        self._last = hint


def _piped_lines(node: Node, hints: _Hints) -> Iterator[str]:
    """From a program or a file, which cannot see the first election going on: wait for its end."""
    waited = False
    for line in sys.stdin:
        if not waited and line.lstrip().startswith(_ASK_THE_LEADER):
            _wait_for_leader(node, hints)
            waited = True
        yield line


def _wait_for_leader(node: Node, hints: _Hints) -> None:
    deadline = time.monotonic() + _FIRST_LEADER_SECONDS
    while (status := node.status).leader_id is None and status.running and time.monotonic() < deadline:
        hints.say(status.error or "waiting for a leader")
        time.sleep(0.02)


def _wait_for_group(node: Node, hints: _Hints) -> None:
    """At the first start: say who is missing, unless they are there in a moment."""
    deadline = time.monotonic() + _FIRST_WORD_SECONDS
    while not (status := node.status).group and status.running:
        if time.monotonic() > deadline:
            hints.say(status.error)
            return
        time.sleep(0.02)


def _run_until_signal(node: Node, hints: _Hints) -> None:
    """As a service: until a signal raises ``SystemExit`` here, or the replica ends by itself."""
    while (status := node.status).running:
        hints.say(status.error)
        time.sleep(_LOOK_SECONDS)
    if status.role == "removed":
        hints.say(status.error)


def _carry_out(console: Console, lines: Iterable[str], *, typed: bool) -> None:
    for line in lines:
        try:
            answer = console.execute(line)
        except EOFError:
            return
        except KeyboardInterrupt:
            if not typed:
                raise
            answer = "interrupted: a write may have happened, get the key before trying again"
        if answer:
            print(answer, flush=True)


# The process


class _OneLine(logging.Formatter):
    """An exception as its message: a traceback is for ``--log-level debug``."""

    def formatException(self, ei: Any) -> str:
        return f"{ei[0].__name__}: {ei[1]}"


def _log_to_stderr(level: str) -> None:
    make = logging.Formatter if level == "debug" else _OneLine
    handler = logging.lastResort  # it looks up stderr each time, and a prompt replaces that
    assert handler is not None
    handler.setFormatter(make("%(levelname)s: %(message)s"))
    handler.setLevel(logging.NOTSET)
    logging.basicConfig(level=level.upper(), handlers=[handler])


def _end(*_: object) -> None:
    """Leave, and try again in a second: the exception may land in a callback that swallows it."""
    signal.setitimer(signal.ITIMER_REAL, 1.0)
    sys.exit(0)


def _keep_standard_streams() -> None:
    """Let no file of the database get a number under which a library may write to the terminal."""
    for number in range(3):
        try:
            os.fstat(number)
        except OSError:  # it was closed by who started this process
            os.open(os.devnull, os.O_RDWR)  # gets the lowest number that is free


def _secret(path: Path) -> bytes:
    """What the file holds. A FIFO would keep everybody waiting, a device might never end."""
    try:
        return read_regular(path).strip()
    except (OSError, StorageError) as error:
        raise click.BadParameter(f"{path}: cannot be read ({error})", param_hint="'--secret-file'") from None


def _import(file: Path, data_dir: Path, members: tuple[int, ...], replica_id: int) -> None:
    with click.progressbar(length=file.stat().st_size, label=f"replica {replica_id}", file=sys.stderr) as bar:

        def progress(_: int, done: int) -> None:
            bar.update(done - bar.pos)

        snapshot = import_snapshot(
            file, data_dir, members=members, replica_ids=(replica_id,), progress=progress
        )
    print(f"replica {replica_id} holds the state after entry {snapshot.index}")
    print("do the same with the same file for every other member, then start them without --import-snapshot")


def _addresses(members: str, replica_id: int, own: str | None) -> dict[int, Address]:
    addresses = {i: parse_address(text) for i, text in enumerate(members.split(","), 1)}
    if own is not None:
        addresses[replica_id] = parse_address(own)
    if replica_id not in addresses:
        last = len(addresses)
        raise click.UsageError(
            f"replica {replica_id} has no address: --members ends with replica {last}; give --addr HOST:PORT"
        )
    return addresses


@click.command(context_settings={"help_option_names": ["-h", "--help"], "show_default": True})
@click.option("--replica-id", "-replicaid", type=click.IntRange(min=1), required=True, help="1, 2, 3, ...")
@click.option(
    "--members",
    metavar="HOST:PORT,...",
    default="localhost:63001,localhost:63002,localhost:63003",
    help="The addresses of all replicas, in the order of their ids. The same for every replica.",
)
@click.option(
    "--addr",
    "-addr",
    metavar="HOST:PORT",
    help="Where others call this replica, instead of what --members says.",
)
@click.option(
    "--bind",
    metavar="HOST:PORT",
    help="Listen here, if that is not the address that the others call: 0.0.0.0:63001, a container.",
)
@click.option(
    "--serve",
    is_flag=True,
    help="Run as a service: read no input, until SIGTERM or SIGINT.",
)
@click.option(
    "--join",
    "-join",
    is_flag=True,
    help="A new replica for a running group: it waits until a member is told `add ID HOST:PORT`.",
)
@click.option(
    "--import-snapshot",
    metavar="FILE",
    type=click.Path(exists=True, dir_okay=False, path_type=Path),
    help="Replace what this replica has by an exported snapshot, then exit. Do it for every member.",
)
@click.option(
    "--data-dir",
    type=click.Path(path_type=Path),
    default=Path("example-data"),
    help="Where data is kept. One may serve all: each replica has a folder of its own in it.",
)
@click.option(
    "--secret-file",
    type=click.Path(exists=True, dir_okay=False, path_type=Path),
    envvar="ONDISK_SECRET_FILE",
    show_envvar=True,
    help="Holds at least 16 bytes that all replicas share. Required beyond loopback.",
)
@click.option(
    "--log-level",
    type=click.Choice(["debug", "info", "warning", "error"]),
    default="warning",
    help="What to tell on stderr.",
)
def run(
    replica_id: int,
    members: str,
    addr: str | None,
    bind: str | None,
    serve: bool,
    join: bool,
    import_snapshot: Path | None,
    data_dir: Path,
    secret_file: Path | None,
    log_level: str,
) -> None:
    """One replica of a key-value store. Run it in three terminals, with ids 1, 2 and 3.

    Each line of input is a command: `put key value`, `get key`, ...; `help` lists them. The end of input,
    `exit` and SIGTERM close the replica with status 0, Ctrl-C with 130. Status 2 means wrong use, 1 that it
    could not start or that its disk failed. A request that fails ends nothing. With --serve no input is read:
    SIGTERM and SIGINT close the replica with status 0.
    """
    _log_to_stderr(log_level)
    for stream, errors in ((sys.stdin, "surrogateescape"), (sys.stdout, "backslashreplace")):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(encoding="utf-8", errors=errors)  # no input and no value may end the process
    addresses = _addresses(members, replica_id, addr)
    if import_snapshot is not None:
        _import(import_snapshot, data_dir, tuple(addresses), replica_id)
        return
    if sys.stdin is None and not serve:
        raise click.UsageError("standard input is closed: to run as a service, give --serve")
    secret = _secret(secret_file) if secret_file else None
    options: dict[str, Any] = {} if bind is None else {"bind": {replica_id: parse_address(bind)}}
    network = TcpNetwork(addresses, secret=secret, **options)
    node = Node(replica_id, () if join else tuple(addresses), data_dir, network)
    for number in (signal.SIGTERM, signal.SIGALRM, *([signal.SIGINT] if serve else [])):
        signal.signal(number, _end)
    try:
        node.start()
        hints = _Hints()
        address = format_address(addresses[replica_id])
        print(f"node address: {address}" if serve else f"node address: {address}\n{USAGE}", flush=True)
        if join and not node.status.group:
            hints.say(f"waiting until a member is told: add {replica_id} {address}")
        elif not serve:
            _wait_for_group(node, hints)
        if serve:
            _run_until_signal(node, hints)
        else:
            typed = sys.stdin.isatty() and sys.stdout.isatty()
            lines = _typed_lines(replica_id) if typed else _piped_lines(node, hints)
            _carry_out(Console(node, lambda: [node.status], node), lines, typed=typed)
    finally:
        for number in (signal.SIGTERM, signal.SIGALRM, signal.SIGINT):
            signal.signal(number, signal.SIG_IGN)  # nothing may interrupt what follows
        node.stop()
    if node.status.role == "failed":
        raise StorageError(f"replica {replica_id} failed: {node.status.error}")


@click.command(name="ondisk inspect", context_settings={"help_option_names": ["-h", "--help"]})
@click.argument("path", type=click.Path(path_type=Path))
@click.option("-o", "--output", type=click.Choice(["text", "json"]), default="text", help="How to print it.")
def inspect_command(path: Path, output: str) -> int:
    """Print what a stopped replica holds, and compare all checksums. Nothing is changed.

    PATH is its directory, a data directory with several, or an exported snapshot. The status is 1 if anything
    is damaged.
    """
    found = inspect(path)
    if output == "json":
        print(json.dumps({**asdict(found), "damaged": bool(found.damage)}, indent=2))
    else:
        print_inspection(found)
    return 1 if found.damage else 0


def main() -> None:
    """Run the command; whatever goes wrong becomes one line on stderr and an exit status."""
    _keep_standard_streams()
    command, arguments = run, sys.argv[1:]
    if arguments[:1] == ["inspect"]:
        command, arguments = inspect_command, arguments[1:]
    try:
        sys.exit(command(arguments, standalone_mode=False))
    except click.Abort:  # Ctrl-C
        sys.exit(130)
    except click.ClickException as error:
        complaint, status = error.format_message(), error.exit_code
    except ConfigurationError as error:
        complaint, status = str(error), 2
    except Exception as error:
        logging.getLogger(__name__).debug("the end", exc_info=True)
        known = isinstance(error, OndiskError)
        complaint, status = str(error) if known else f"{type(error).__name__}: {error}", 1
    hint = " (see --help)" if status == 2 else ""
    print(f"error: {' '.join(complaint.split()).rstrip('.')}{hint}", file=sys.stderr)
    sys.exit(status)
