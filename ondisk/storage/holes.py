"""Holes: writes that are missing while later ones are there. RocksDB opens such a database without a word.

It numbers all writes. Its tables hold them up to some number, and its write-ahead logs go on from there, one
after the other. Where a log is cut off between two batches, nothing in it says that more came, and RocksDB
goes on with what there is. A copy made file by file of a database in use can be like that:

* A log was copied while it was still short, and the next one later.
* A log was removed before its turn came, for its writes had become a table; the MANIFEST was copied before.
* A log was copied while it was short, and later a MANIFEST that names a table with the data of more writes,
  but none yet with their metadata (``Store.checkpoint`` makes that of the data first).

The MANIFEST is a list of edits. A flush notes there from which log on they count. Older ones may be there or
not, for RocksDB removes them by and by; so a hole between those is none.

A power cut takes the end of the last log that was written. Should a disk lose what was never synced of one
log, and keep what was never synced of the next, it is a hole, too.

RocksDB 10 looks for holes itself (``track_and_verify_wals``), but rocksdict 0.3.29 has RocksDB 9.8. Its
``track_and_verify_wals_in_manifest`` does not help: where the MANIFEST is the oldest, it knows of nothing.
"""

from __future__ import annotations

from collections.abc import Iterator
from itertools import islice
from pathlib import Path

from ondisk.errors import Corrupt
from ondisk.storage.paths import names_in, read_regular
from ondisk.storage.records import beginning, written

# An edit begins with numbers, each behind a tag that says which it is, in the order of RocksDB's
# ``VersionEdit::EncodeTo``. The first is the length of a text that follows it.
_TEXT, _NEXT_LOG, _FIRST_LOG, _LAST_WRITE = 1, 2, 10, 4
_TAGS = {_TEXT, _NEXT_LOG, 9, 3, 203, _FIRST_LOG, _LAST_WRITE}


def refuse_hole(database: Path) -> None:
    """Raise ``Corrupt`` if a write is missing that came before one that is there."""
    names = names_in(database)
    manifest = read_regular(database / "CURRENT").decode("ascii", "replace").strip()
    if manifest not in names:
        return  # RocksDB says so
    first_log, due, in_tables = _where_logs_begin(read_regular(database / manifest))
    numbers = {int(name[:-4]): name for name in names if name.endswith(".log") and name[:-4].isdecimal()}
    logs = [numbers[number] for number in sorted(numbers) if number >= first_log]
    for name in logs:
        log = read_regular(database / name)
        for first in islice(written(log), 1):
            number, _ = _batch(log, first)
            if number > due:
                raise _hole(database, due, number - 1, f"{name} goes on after them")
            if name != logs[-1] or due <= in_tables:
                *_, last = written(log)
                due = sum(_batch(log, last))
    if due <= in_tables:
        raise _hole(database, due, in_tables, "some of them are in tables")


def _hole(database: Path, first: int, last: int, but: str) -> Corrupt:
    return Corrupt(
        f"{database}: the write-ahead logs lack writes {first} to {last}, and {but}. It is damaged, or was "
        "copied while it was in use: put back what belongs here, or rebuild this replica from the others"
    )


def _batch(log: bytes, at: int) -> tuple[int, int]:
    """The number of a batch's first write, and how many writes it has."""
    found = beginning(log, at)
    return int.from_bytes(found[:8], "little"), int.from_bytes(found[8:12], "little")


def _where_logs_begin(manifest: bytes) -> tuple[int, int, int]:
    """The first log that counts, the write with which it must begin at the latest, and the last in tables.

    A flush notes, for each column family, the log that comes next, and the last write that is in tables by
    then. When both have the same log next, it is the first that counts.
    """
    first_log = in_tables = 0
    before: dict[int, int] = {}  # the last write in tables, by the log that comes next
    for at in written(manifest):
        edit = _numbers(beginning(manifest, at))
        first_log = max(first_log, edit.get(_FIRST_LOG, 0))
        in_tables = max(in_tables, edit.get(_LAST_WRITE, 0))
        if _NEXT_LOG in edit:
            before[edit[_NEXT_LOG]] = in_tables
    return first_log, before.get(first_log, in_tables) + 1, in_tables


def _numbers(edit: bytes) -> dict[int, int]:
    """The numbers that an edit begins with, by their tags."""
    rest = iter(edit)
    found = {}
    while (tag := _varint(rest)) in _TAGS:
        found[tag] = _varint(rest)
        if tag == _TEXT:
            bytes(islice(rest, found[tag]))
    return found


def _varint(rest: Iterator[int]) -> int:
    """A number in 7 bits a byte, the lowest first; its last byte is below 128."""
    number = 0
    for position, byte in enumerate(rest):
        number |= (byte & 127) << 7 * position
        if byte < 128:
            break
    return number
