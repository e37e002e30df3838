"""The prompt: lines with history, editing, completion and colours, by prompt_toolkit."""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Iterator
from pathlib import Path

from prompt_toolkit import PromptSession
from prompt_toolkit.completion import WordCompleter
from prompt_toolkit.document import Document
from prompt_toolkit.formatted_text import StyleAndTextTuples
from prompt_toolkit.history import FileHistory, History, InMemoryHistory
from prompt_toolkit.lexers import Lexer
from prompt_toolkit.patch_stdout import patch_stdout
from prompt_toolkit.shortcuts import CompleteStyle

from ondisk.cli.console import COMMANDS, is_command
from ondisk.errors import StorageError
from ondisk.storage.paths import open_descriptor

_PARTS = re.compile(
    r"""(?P<blanks>\s++)|(?P<option>--[a-z]++(?!\S))|(?P<quoted>'[^']*+'?|"(?:[^"\\]|\\.)*+"?)|(?P<word>\S++)"""
)
_LONGEST = 10_000  # characters that get colours


class _Colours(Lexer):
    """A command that there is, one that there is not, options, and what is quoted."""

    def lex_document(self, document: Document) -> Callable[[int], StyleAndTextTuples]:
        return lambda number: coloured(document.lines[number])


def coloured(line: str) -> StyleAndTextTuples:
    """The parts of a line, each with the style in which it is shown."""
    if len(line) > _LONGEST:
        return [("", line)]
    parts: StyleAndTextTuples = []
    command = True
    for part in _PARTS.finditer(line):
        style = ""
        if part["option"]:
            style = "ansicyan"
        elif part["quoted"]:
            style = "ansigreen"
        elif part["word"] and command:
            is_whole = part.end() < len(line)  # behind it stands a blank
            style = "bold" if is_command(part["word"]) else "ansired" if is_whole else ""
        if not part["blanks"]:
            command = False
        parts.append((style, part[0]))
    return parts


def edited_lines(prompt: str) -> Iterator[str]:
    """From a person, with history, editing, completion and colours."""
    names = dict.fromkeys(name + " " * bool(arguments) for name, *arguments in map(str.split, COMMANDS))
    session: PromptSession[str] = PromptSession(
        prompt,
        history=_history(),
        lexer=_Colours(),
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
