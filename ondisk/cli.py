"""The ``ondisk`` command: one replica of a key-value store in a terminal. Three of them make a group.

``Console`` turns a line into a request and its outcome into text; it knows neither terminal nor process.
The rest opens the replica and brings lines to the console: from a prompt with history and completion, or
from a pipe. After Dragonboat's ``ondisk`` example, whose flags and answers it keeps.
"""

from __future__ import annotations

import logging
import shlex
import signal
import sys
import time
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from types import TracebackType
from typing import BinaryIO

from ondisk.client import Client
from ondisk.errors import ConfigurationError, NotDone, OndiskError, OutcomeUnknown, StorageError
from ondisk.node import Node
from ondisk.replica import ReplicaStatus
from ondisk.tcp import Address, TcpNetwork, parse_address

try:
    import click
    from prompt_toolkit import PromptSession
    from prompt_toolkit.completion import NestedCompleter
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
    "help": "this text",
    "exit": "close the replica; Ctrl-D does it too",
}
USAGE = "\n".join(["Usage - ", *COMMANDS])
HELP = "\n".join(
    [f"{command:<23}{what}" for command, what in COMMANDS.items()]
    + [
        "",
        "Quote as in a shell: put 'two words' \"\".",
        "Bytes that are not text are shown as \\xff.",
        "A request that gets no answer in 3 s is given up. Its last line then says whether it is",
        "not done (try again) or its outcome is unknown (get the key before you try again).",
    ]
)
_ASK_THE_LEADER = {"put", "get", "delete", "incr", "scan"}
_FIRST_LEADER_SECONDS = 10.0

_CONTROL_CHARACTERS = {
    code: f"\\x{code:02x}" for code in (*range(0x20), *range(0x7F, 0xA0))
}  # a stored value must not be able to move the cursor or to look like another line


def show(data: bytes) -> str:
    """Stored bytes as one line of text: what is not UTF-8, and control characters, as ``\\xff``."""
    return data.decode("utf-8", "backslashreplace").translate(_CONTROL_CHARACTERS)


class Console:
    """Lines in, answers out: all that a user of the command line can ask of a ``Client``."""

    def __init__(self, client: Client, status: Callable[[], Iterable[ReplicaStatus]]) -> None:
        """``status`` tells what the command ``status`` shows: one row for each replica."""
        self._client = client
        self._status = status

    def execute(self, line: str) -> str:
        """Carry out one line and return the answer, without a newline at its end.

        Whatever goes wrong is an answer too. Only ``exit`` raises: ``EOFError``, as if the input had ended.
        """
        try:
            return self._execute(shlex.split(line))
        except ValueError as error:  # of shlex or int
            if isinstance(error, OndiskError):
                return f"not done: {error}"
            return f"invalid input: {error}\n{USAGE}"
        except NotDone as error:
            return f"not done: {error}"
        except OutcomeUnknown as error:
            return (
                f"outcome unknown: {error}: it may have happened, get the key before trying again"
            )
        except OndiskError as error:
            return f"error: {error}"

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
                return "ok" if self._client.delete(key).value else "ok, it was not there"
            case ["incr", key, *by] if len(by) <= 1:
                return str(self._client.incr(key, *map(int, by)).value)
            case ["scan", *rest] if len(rest) <= 2:
                prefix, limit = (*rest, "", "100")[:2] if not rest[1:] else rest
                return self._scan(prefix, int(limit))
            case ["status"]:
                return self._table()
            case ["help"]:
                return HELP
            case ["exit"]:
                raise EOFError
        return f"invalid input: {shlex.join(words)}\n{USAGE}"
