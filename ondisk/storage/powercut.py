"""What a power cut would leave of a database that is in use, made on purpose.

RocksDB writes its memory to tables when it closes. So its files are copied first (tables as hard links), the
write-ahead log of the copy is cut where it was last synced, and then the copy takes the place. Only what
holds data is copied: the rest (its own log, its options) RocksDB writes anew.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable
from pathlib import Path

from ondisk.storage.filestream import NEEDED
from ondisk.storage.records import beginning, records


def copy_files(source: Path, target: Path) -> bool:
    """Copy a database as it is; return whether it stayed the same meanwhile."""

    def state() -> tuple[set[str], int]:
        manifest = (source / "CURRENT").read_text().strip()
        names = {name for name in os.listdir(source) if NEEDED.fullmatch(name)}
        return names, os.stat(source / manifest).st_size

    shutil.rmtree(target, ignore_errors=True)
    target.mkdir()
    try:
        before = state()
        for name in before[0]:
            if name.endswith(".sst"):
                os.link(source / name, target / name)
            else:
                shutil.copyfile(source / name, target / name)
        return state() == before
    except FileNotFoundError:
        return False


def cut_after(wal: Path, sequence: int, survivors: Callable[[int], int]) -> None:
    """Cut a write-ahead log behind the last batch that has at most this sequence number.

    ``survivors`` says how many of the bytes after it are there all the same, as in a torn write.
    """
    data = wal.read_bytes()
    for at, _, kind in records(data):
        if kind not in (1, 2):  # neither a batch of its own nor the first of several records
            continue
        if int.from_bytes(beginning(data, at)[:8], "little") > sequence:
            os.truncate(wal, at + survivors(len(data) - at))
            return
