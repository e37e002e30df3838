"""The records of RocksDB's write-ahead log and MANIFEST, as far as they must be read without RocksDB."""

from __future__ import annotations

import struct
from collections.abc import Iterator
from pathlib import Path

from ondisk.errors import Corrupt
from ondisk.storage.paths import read_regular

_BLOCK_BYTES = 32 << 10
HEADER_BYTES = 7
_FULL, _FIRST, _LAST = 1, 2, 4  # what is written at once is one record, or several where a block ends within
_BEGINNING_BYTES = 64


def records(data: bytes, at: int = 0) -> Iterator[tuple[int, int, int]]:
    """Where each record of a write-ahead log or a MANIFEST begins and ends, and of which type it is.

    Both are blocks of 32 KB full of records: checksum (4 bytes), length (2), type (1), data.
    """
    while at + HEADER_BYTES <= len(data):
        left = _BLOCK_BYTES - at % _BLOCK_BYTES
        if left < HEADER_BYTES:
            at += left
            continue
        length, kind = struct.unpack_from("<HB", data, at + 4)
        yield at, at + HEADER_BYTES + length, kind
        at += HEADER_BYTES + length


def written(data: bytes) -> Iterator[int]:
    """Where everything begins that was written at once: a batch in a log, an edit in a MANIFEST.

    What the end of the file cuts off is left out.
    """
    begins = 0
    for at, end, kind in records(data):
        if kind in (_FULL, _FIRST):
            begins = at
        if kind in (_FULL, _LAST) and end <= len(data):
            yield begins


def beginning(data: bytes, at: int) -> bytes:
    """The first bytes of what was written there at once. A block may end within them."""
    found = b""
    for begins, end, kind in records(data, at):
        found += data[begins + HEADER_BYTES : min(end, begins + HEADER_BYTES + _BEGINNING_BYTES)]
        if kind in (_FULL, _LAST) or len(found) >= _BEGINNING_BYTES:
            break
    return found


def refuse_recycled_records(path: Path) -> None:
    """Refuse a damaged byte that would send RocksDB 9.8 into an endless loop, with the GIL in its hands.

    The types 5 to 8 mean a log file that is used again, which RocksDB does only if it is told to.
    """
    for at, _, kind in records(read_regular(path)):
        if 5 <= kind <= 8:
            raise Corrupt(f"{path}: the stored data is damaged at byte {at + 6}")
