"""What a directory holds, and how large it is.

Sizes are in bytes as ``ls -l`` tells them (RocksDB reserves more for its newest log).
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from stat import S_ISREG
from typing import Any, NamedTuple


class Content(NamedTuple):
    """One name in a directory: a file with its ``text``, or a directory with so many ``files``."""

    name: str
    bytes: int
    text: str = ""
    files: int | None = None  # of a directory
    shared: int = 0  # bytes of a directory's files that have further names (hard links)


def disk_use(*directories: Path | str) -> int:
    """Bytes of all files below, each counted once however many names (hard links) it has."""
    return sum({status.st_ino: status.st_size for _, status in files(*directories)}.values())


def files(*directories: Path | str) -> Iterator[tuple[Path, Any]]:
    """All regular files below and what ``os.stat`` says of them; a database may delete some meanwhile."""
    for directory in directories:
        for path in sorted(Path(directory).rglob("*")):
            try:
                status = path.lstat()
            except FileNotFoundError:
                continue
            if S_ISREG(status.st_mode):
                yield path, status


def contents(directory: Path | str) -> list[Content]:
    """All that a directory holds, by name."""
    found = []
    for child in sorted(Path(directory).iterdir()):
        if child.is_dir():
            below = [status for _, status in files(child)]
            shared = sum(status.st_size for status in below if status.st_nlink > 1)
            found.append(Content(f"{child.name}/", disk_use(child), files=len(below), shared=shared))
        else:
            text = child.read_text(errors="replace").strip()
            found.append(Content(child.name, child.stat().st_size, text))
    return found
