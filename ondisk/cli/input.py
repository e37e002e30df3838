"""Where lines come from: a person, or a program that sees no election; and where the answers go."""

from __future__ import annotations

import os
import shutil
import sys
import time
from collections.abc import Iterable, Iterator
from contextlib import suppress

import click

from ondisk.cli.console import Console
from ondisk.cli.waiting import Hints, wait_for_leader
from ondisk.node import Node

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
    """From a person: with editing, history, completion and colours, if prompt_toolkit is there."""
    try:
        from ondisk.cli.prompt import edited_lines
    except ModuleNotFoundError:
        return _plain_lines(prompt)
    return edited_lines(prompt)


def _plain_lines(prompt: str) -> Iterator[str]:
    with suppress(ImportError):
        import readline  # noqa: F401  # from now on a line can be edited
    with suppress(EOFError):
        while True:
            yield input(prompt)


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
            took = f"({1000 * (time.monotonic() - began):.0f} ms)"
            if _is_long(answer):
                click.echo_via_pager(answer)
                answer = took
            else:
                answer += f"\n{took}"
        if answer:
            print(answer, flush=True)


def _is_long(answer: str) -> bool:
    """Whether it does not fit on the screen, and there is a pager: none if PAGER is empty, as in psql."""
    if not os.environ.get("PAGER", "less").strip():
        return False
    os.environ.setdefault("LESS", "FRX")  # as git: what fits is shown at once, and stays there
    width, height = shutil.get_terminal_size()
    lines = sum(1 + max(0, len(line) - 1) // width for line in answer.splitlines())
    return lines > height - 2
