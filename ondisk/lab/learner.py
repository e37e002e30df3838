"""What one learner has done, in one file: exercises, predictions, and how sure they were.

A line is one thing that happened, as JSON. Lines are only ever added, each by one write at the end of the
file: so a second kernel loses nothing of the first, and a line that a crash cut short costs only itself.
Where nothing can be written, all is kept in memory, and ``trouble()`` says why.

Nothing is kept before a notebook says which one it is (``begin``): tests and solutions leave no file.
"""

from __future__ import annotations

import json
import os
import time
from pathlib import Path
from typing import Any

FILE = "my-progress.jsonl"
"""In the folder of the notebook, unless ``ONDISK_PROGRESS`` names another one."""

Line = dict[str, Any]


class _Here:
    """Of this kernel."""

    chapter: int | None = None
    file = Path(FILE)
    unwritten: list[Line] = []  # noqa: RUF012  # one kernel, one list
    trouble = ""


def begin(chapter: int) -> None:
    """From now on what happens is kept, as of this notebook."""
    _Here.chapter = chapter
    _Here.file = Path(os.environ.get("ONDISK_PROGRESS", FILE)).absolute()


def note(**what: Any) -> None:
    """Keep what happened. Raises nothing: a lesson does not end for want of a file."""
    if _Here.chapter is None:
        return
    _Here.unwritten.append({"at": round(time.time(), 1), "chapter": _Here.chapter, **what})
    try:
        _append(_Here.file, _Here.unwritten)
    except OSError as error:
        _Here.trouble = f"{error.strerror}: {error.filename or _Here.file}"
    else:
        _Here.unwritten, _Here.trouble = [], ""


def _append(file: Path, lines: list[Line]) -> None:
    # A newline first: should the last line have been cut short, this one is whole all the same.
    text = "".join(f"\n{json.dumps(line, ensure_ascii=False)}" for line in lines)
    descriptor = os.open(file, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o666)
    try:
        os.write(descriptor, text.encode())
    finally:
        os.close(descriptor)


def lines() -> list[Line]:
    """All that is known of this learner, the oldest first."""
    return [*read(_Here.file), *_Here.unwritten]


def read(file: Path) -> list[Line]:
    """What a file says. Nothing if there is none; a line that is no line is left out."""
    try:
        text = file.read_bytes().decode(errors="replace")
    except OSError:
        return []
    found = []
    for line in text.splitlines():
        try:
            said = json.loads(line)
        except ValueError:
            continue
        if isinstance(said, dict):
            found.append(said)
    return found


def trouble() -> str:
    """Why nothing can be written; empty if all is well."""
    return _Here.trouble
