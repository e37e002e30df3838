"""Where lines come from: a person with history and completion, or a program that sees no election."""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Iterable, Iterator
from pathlib import Path

from prompt_toolkit import PromptSession
from prompt_toolkit.completion import WordCompleter
from prompt_toolkit.history import FileHistory, History, InMemoryHistory
from prompt_toolkit.patch_stdout import patch_stdout
from prompt_toolkit.shortcuts import CompleteStyle

from ondisk.cli.console import COMMANDS, Console
from ondisk.cli.waiting import Hints, wait_for_leader
from ondisk.errors import StorageError
from ondisk.node import Node
from ondisk.storage.paths import open_descriptor

_ASK_THE_LEADER = (
    "put",
    "get",
    "delete",
    "incr",
    "scan",
    "dump",
    "load",
    "add",
    "remove",
    "move",
    "replace",
    "transfer",
)


def typed_lines(prompt: str) -> Iterator[str]:
    """From a person, with history, editing and completion."""
    names = dict.fromkeys(name + " " * bool(arguments) for name, *arguments in map(str.split, COMMANDS))
    session: PromptSession[str] = PromptSession(
        prompt,
        history=_history(),
        completer=WordCompleter(list(names), sentence=True),
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


def _history() -> History:
    """Earlier lines, also those of earlier processes; only of this one if there is no file for them.

    Nobody else may read the file: values may be secret.
    """
    try:
        state = os.environ.get("XDG_STATE_HOME") or Path.home() / ".local" / "state"
        path = Path(state) / "ondisk" / "history"
        path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        os.close(open_descriptor(path, os.O_RDWR | os.O_CREAT | os.O_APPEND, 0o600))
    except (OSError, RuntimeError, StorageError):  # RuntimeError: nobody knows of a home
        return InMemoryHistory()
    return FileHistory(path)


def piped_lines(node: Node, hints: Hints) -> Iterator[str]:
    """From a program or a file, which cannot see the first election going on: wait for its end."""
    waited = False
    for line in sys.stdin:
        if not waited and line.lstrip().lower().startswith(_ASK_THE_LEADER):
            wait_for_leader(node, hints)
            waited = True
        yield line


def carry_out(console: Console, lines: Iterable[str], *, typed: bool) -> None:
    """Answer each line on stdout, until the lines end. An interrupt ends a pipe, and of a person one line."""
    for line in lines:
        began = time.monotonic()
        try:
            answer = console.execute(line)
        except EOFError:
            return
        except KeyboardInterrupt:
            if not typed:
                raise
            answer = "interrupted: a write may have happened, get the key before trying again"
        if answer and typed:
            answer += f"\n({1000 * (time.monotonic() - began):.0f} ms)"
        if answer:
            print(answer, flush=True)
