"""Dump and load: all pairs as lines of JSON, for another group, another store, or a person with ``grep``.

::

    {"ondisk_dump": 1, "prefix": ""}
    {"key": "name", "value": "Ada"}
    {"key": "picture", "value64": "/9j/4AAQ..."}
    {"pairs": 2, "sha256": "..."}

Keys and values that are not UTF-8 stand in base64, as ``key64`` and ``value64``. The last line has the number
of pairs and the SHA-256 of all bytes before it; a file without it is no complete dump. Memory stays bounded,
whatever the size: a page of pairs is read and written at a time.

Each page is from one point in time, the whole is not: of what is written meanwhile a part is there. For one
moment let nobody write, or dump what a group made of an exported snapshot holds: see docs/outgrowing.md.
"""

from __future__ import annotations

import base64
import binascii
import hashlib
import json
import os
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import IO, Any, NamedTuple

from ondisk.bulk import BulkLoad
from ondisk.client import Client, insist
from ondisk.diskkv import Text
from ondisk.errors import ConfigurationError, Corrupt, InvalidCommand, StorageError, UnknownVersion
from ondisk.storage.errors import disk_errors
from ondisk.storage.paths import check_target, open_descriptor, open_regular, resolved

VERSION = 1
PAGE = 100  # pairs; the largest have 1 MB each
PATIENCE = 30.0  # seconds for a page: an election takes two
_LONGEST_LINE = 16 << 20  # a value of 1 MB in which each byte is escaped, and a key


class Dumped(NamedTuple):
    """What a complete dump holds."""

    pairs: int
    sha256: str


def dump(
    client: Client,
    path: Path | str,
    *,
    prefix: Text = b"",
    resume: bool = False,
    progress: Callable[[int], object] = lambda _: None,
) -> Dumped:
    """Write all pairs whose keys begin with ``prefix`` into a new file, in the order of their keys.

    ``resume``: go on where an earlier dump into this file was ended, by an error or a Ctrl-C. ``progress`` is
    told the number of pairs after each page. Raises ``StorageError`` if the file is there (without
    ``resume``) or cannot be written, ``ConfigurationError`` if it is no dump of this prefix, and ``NoLeader``
    if nobody answers for ``PATIENCE`` seconds; what was written until then stays.
    """
    path = resolved(path, "the path of a dump")
    prefix = prefix.encode() if isinstance(prefix, str) else prefix
    check_target(path)
    flags = os.O_RDWR | os.O_CREAT | (0 if resume else os.O_EXCL)
    try:
        descriptor = open_descriptor(path, flags, 0o600)  # values may be secret
    except FileExistsError:
        raise StorageError(f"{path} is there already: go on with it (resume), or delete it") from None
    except OSError as error:
        raise StorageError(f"{path}: cannot be written ({error})") from None
    with disk_errors(path), open(descriptor, "r+b") as file:
        writer = _Writer(file, path)
        last = writer.continue_after(_encoded({"ondisk_dump": VERSION, **_as_text("prefix", prefix)}))
        limit = PAGE
        while writer.complete is None:
            try:
                page = _page(client, prefix, last, limit)
            except InvalidCommand:  # from elsewhere: so many of these do not go into an answer
                if limit == 1:
                    raise
                limit = max(1, limit // 4)
                continue
            limit = min(PAGE, 2 * limit)
            for key, value in page:
                writer.write(_encoded({**_as_text("key", key), **_as_text("value", value)}))
                writer.pairs += 1
                last = key
            progress(writer.pairs)
            if not page:
                writer.end()
        return writer.complete


def load(
    client: Client,
    path: Path | str,
    *,
    skip: int = 0,
    progress: Callable[[BulkLoad], object] | None = None,
) -> int:
    """Set all pairs of a dump; return how many there were. What else the store holds stays as it is.

    The file is checked to its end before anything is set: raises ``Corrupt`` or ``UnknownVersion``. Raises
    ``LoadFailed`` as ``Client.put_many`` does; ``skip`` is then how many of the pairs were stored before.
    """
    path = resolved(path, "the path of a dump")
    if skip < 0:
        raise ConfigurationError(f"so many pairs cannot be skipped: {skip}")
    with disk_errors(path), open_regular(path) as file:
        for _ in pairs(file):
            pass
        file.seek(0)
        numbered = enumerate(pairs(file))
        rest = (pair for number, pair in numbered if number >= skip)
        return skip + client.put_many(rest, progress=progress)


def pairs(lines: IO[bytes]) -> Iterator[tuple[bytes, bytes]]:
    """The pairs of a dump, as they come. Raises ``Corrupt`` at the latest after the last one.

    So they count only when they have come to their end.
    """
    hashed = hashlib.sha256()
    line = _next_line(lines, 1)
    if (version := _decoded(line, 1).get("ondisk_dump")) != VERSION:
        if isinstance(version, int):
            raise UnknownVersion(f"a dump of version {version}; this ondisk knows {VERSION}")
        raise Corrupt("line 1: this is no dump of ondisk")
    hashed.update(line)
    count = 0
    while True:
        line = _next_line(lines, count + 2)
        record = _decoded(line, count + 2)
        if "sha256" in record:
            break
        yield _as_bytes(record, "key", count + 2), _as_bytes(record, "value", count + 2)
        hashed.update(line)
        count += 1
    if record != {"pairs": count, "sha256": hashed.hexdigest()}:
        raise Corrupt(f"line {count + 2}: the checksum is wrong: this is not what was dumped")
    if lines.read(1):
        raise Corrupt(f"line {count + 3}: something follows the last line of the dump")


class _Writer:
    """A dump that is being written: what it holds so far, and the checksum of that."""

    def __init__(self, file: IO[bytes], path: Path) -> None:
        self._file = file
        self._path = path
        self._hash = hashlib.sha256()
        self.pairs = 0
        self.complete: Dumped | None = None

    def continue_after(self, header: bytes) -> bytes | None:
        """Begin, or find the end of what is there; return the last key. A torn line is cut off."""
        line = self._file.readline(_LONGEST_LINE)
        if line != header:
            if line.endswith(b"\n") or not header.startswith(line):
                raise ConfigurationError(f"{self._path}: is no dump of these keys that could be gone on with")
            self._cut(0)
            self.write(header)
            return None
        self._hash.update(line)
        last = None
        good = len(line)
        while (line := self._file.readline(_LONGEST_LINE)).endswith(b"\n"):
            record = _decoded(line, self.pairs + 2)
            if "sha256" in record:
                self.complete = Dumped(self.pairs, self._hash.hexdigest())
                if record != self.complete._asdict():
                    raise Corrupt(f"{self._path}: the checksum is wrong: delete it and dump again")
                return last
            last = _as_bytes(record, "key", self.pairs + 2)
            self._hash.update(line)
            self.pairs += 1
            good += len(line)
        self._cut(good)
        return last

    def _cut(self, length: int) -> None:
        self._file.seek(length)
        self._file.truncate()

    def write(self, line: bytes) -> None:
        self._file.write(line)
        self._hash.update(line)

    def end(self) -> None:
        """The last line; durable, as all before it."""
        complete = Dumped(self.pairs, self._hash.hexdigest())
        self._file.write(_encoded(complete._asdict()))
        self._file.flush()
        os.fsync(self._file.fileno())
        self.complete = complete


def _page(client: Client, prefix: bytes, last: bytes | None, limit: int) -> list[tuple[bytes, bytes]]:
    """At most ``limit`` pairs after the key ``last``; no pairs: there are no more."""
    start = b"" if last is None else last
    found, _ = insist(
        lambda seconds: client.scan(prefix, start=start, limit=limit + 1, timeout=seconds),
        time.monotonic() + PATIENCE,
    )
    return found[1:] if found and found[0][0] == last else found[:limit]


def _encoded(record: dict[str, Any]) -> bytes:
    return json.dumps(record, ensure_ascii=False).encode() + b"\n"


def _as_text(name: str, data: bytes) -> dict[str, str]:
    try:
        return {name: data.decode()}
    except UnicodeDecodeError:
        return {f"{name}64": base64.b64encode(data).decode()}


def _as_bytes(record: dict[str, Any], name: str, number: int) -> bytes:
    try:
        if name in record:
            return str.encode(record[name])
        return base64.b64decode(record[f"{name}64"], validate=True)
    except (KeyError, TypeError, UnicodeEncodeError, binascii.Error):
        raise Corrupt(f"line {number}: it has no good {name}") from None


def _next_line(lines: IO[bytes], number: int) -> bytes:
    line = lines.readline(_LONGEST_LINE)
    if not line.endswith(b"\n"):
        raise Corrupt(f"line {number}: the dump ends in the middle: go on with it (resume), or dump again")
    return line


def _decoded(line: bytes, number: int) -> dict[str, Any]:
    try:
        record = json.loads(line)
    except (ValueError, RecursionError) as error:
        raise Corrupt(f"line {number}: is no JSON ({error})") from None
    if not isinstance(record, dict):
        raise Corrupt(f"line {number}: is no object")
    return record
