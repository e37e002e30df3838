"""The stream of a snapshot: the same bytes on the network and in an exported file.

A stream is a sequence of numbered chunks. The first is the header, with a magic word, a version, and the
index, term and members that the snapshot stands for. The last is an end mark that counts what came before.
Those between are the state machine's own bytes, which mean nothing here.

Each checksum covers the chunk, its number, and *the checksum before it*. So a chunk that is damaged, missing,
doubled, out of order or from another stream is noticed when it arrives, and a stream without its end mark
is never taken for a whole one.
"""

from __future__ import annotations

import hashlib
import os
import struct
import zlib
from collections import deque
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import IO

import msgspec

from ondisk.errors import ConfigurationError, Corrupt, StorageError
from ondisk.raft.limits import CHUNK_BYTES
from ondisk.raft.members import Members
from ondisk.raft.messages import DATA, END, HEADER, Chunk
from ondisk.raft.records import Natural
from ondisk.storage.disk import sync_directory
from ondisk.storage.lines import check_version
from ondisk.storage.paths import check_target, open_regular, partial_name, resolved

MAGIC = "ondisk snapshot"
VERSION = 1

_MAX_ENCODED = CHUNK_BYTES + 64
_LENGTH = struct.Struct(">I")
_PLACE = struct.Struct(">QB")


class _Beginning(msgspec.Struct, frozen=True, array_like=True):
    """What every version's header begins with."""

    magic: str
    version: int


class Header(msgspec.Struct, frozen=True, array_like=True):
    """What the snapshot stands for: the state after entry ``index``, which a leader of ``term`` made."""

    magic: str
    version: int
    index: Natural
    term: Natural
    members: Members


_encoder = msgspec.msgpack.Encoder()
_beginning_decoder = msgspec.msgpack.Decoder(_Beginning)
_header_decoder = msgspec.msgpack.Decoder(Header)
_end_decoder = msgspec.msgpack.Decoder(tuple[int, int])
_chunk_decoder = msgspec.msgpack.Decoder(Chunk)


def make_header(index: int, term: int, members: Members) -> Header:
    """The header of a stream of this version."""
    return Header(MAGIC, VERSION, index, term, members)


def read_header(chunk: Chunk, name: str = "the snapshot") -> Header:
    """What the first chunk of a stream says. Raises ``Corrupt`` or ``UnknownVersion``."""
    if chunk.number != 0 or chunk.kind != HEADER or chunk.checksum != _checksum(chunk, 0):
        raise Corrupt(f"{name}: this is not the beginning of a snapshot, or it is damaged")
    try:
        beginning = _beginning_decoder.decode(chunk.data)  # however the rest is in another version
        if beginning.magic == MAGIC:
            check_version(name, beginning.version, VERSION)
            return _header_decoder.decode(chunk.data)
    except (msgspec.DecodeError, UnicodeDecodeError):
        pass
    raise Corrupt(f"{name}: this is not an ondisk snapshot, or its header is damaged")


def _checksum(chunk: Chunk, before: int) -> int:
    place = _PLACE.pack(chunk.number, chunk.kind)
    return zlib.crc32(chunk.data, zlib.crc32(place, before))


class Writer:
    """Cuts what a state machine writes into chunks and hands each to ``put``, which may make it wait."""

    def __init__(self, header: Header, put: Callable[[Chunk], None], chunk_bytes: int | None = None) -> None:
        self.bytes = 0  # of the state machine's own, so far
        self._chunk_bytes = chunk_bytes or CHUNK_BYTES
        self._put = put
        self._number = 0
        self._before = 0
        self._waiting = bytearray()
        self._send(HEADER, _encoder.encode(header))

    def write(self, data: bytes) -> None:
        """Take any number of bytes."""
        self.bytes += len(data)
        view = memoryview(data)
        while len(self._waiting) + len(view) >= self._chunk_bytes:
            taken = self._chunk_bytes - len(self._waiting)
            if self._waiting:
                self._send(DATA, bytes(self._waiting) + view[:taken])
                self._waiting.clear()
            else:
                self._send(DATA, bytes(view[:taken]))
            view = view[taken:]
        self._waiting += view

    def finish(self) -> None:
        """Put the rest and the end mark."""
        if self._waiting:
            self._send(DATA, bytes(self._waiting))
        self._send(END, _encoder.encode((self._number, self.bytes)))

    def _send(self, kind: int, data: bytes) -> None:
        chunk = Chunk(self._number, kind, data, 0)
        self._before = _checksum(chunk, self._before)
        self._number += 1
        self._put(Chunk(chunk.number, kind, data, self._before))


class Reader:
    """Hands a state machine what the chunks from ``get`` hold, each checked before it is believed."""

    def __init__(self, get: Callable[[], Chunk], name: str = "the snapshot") -> None:
        """Reads the header at once. Raises ``Corrupt`` or ``UnknownVersion``. Errors tell the ``name``."""
        self._name = name
        self.bytes = 0  # of the state machine's own, so far
        self._get = get
        first = get()
        self.header = read_header(first, name)
        self._number = 1
        self._before = first.checksum
        self._pieces: deque[memoryview] = deque()
        self._available = 0
        self._ended = False

    def read(self, size: int) -> bytes:
        """The next ``size`` bytes, fewer only at the end. Raises ``Corrupt``."""
        while self._available < size and not self._ended:
            self._next_chunk()
        parts = []
        left = size
        while left and self._pieces:
            piece = self._pieces.popleft()
            parts.append(piece[:left])
            if len(piece) > left:
                self._pieces.appendleft(piece[left:])
            left -= len(parts[-1])
        data = bytes(parts[0]) if len(parts) == 1 else b"".join(parts)
        self._available -= len(data)
        return data

    @property
    def digest(self) -> bytes:
        """Names the whole stream, once it has been read to its end."""
        return hashlib.blake2b(_encoder.encode((self.header, self._before)), digest_size=16).digest()

    def finish(self) -> None:
        """Make sure that nothing is left and that the end mark is there. Raises ``Corrupt``."""
        if self._available or self.read(1):
            raise Corrupt(f"{self._name} goes on after what the state machine took for its end")

    def _next_chunk(self) -> None:
        chunk = self._get()
        if chunk.number != self._number:
            raise Corrupt(f"{self._name}: chunk {chunk.number} came where chunk {self._number} was due")
        if chunk.checksum != _checksum(chunk, self._before):
            raise Corrupt(f"{self._name}: chunk {chunk.number} is damaged")
        self._number += 1
        self._before = chunk.checksum
        if chunk.kind == DATA:
            self._pieces.append(memoryview(chunk.data))
            self._available += len(chunk.data)
            self.bytes += len(chunk.data)
        elif chunk.kind == END and self._end_is_true(chunk):
            self._ended = True
        else:
            raise Corrupt(f"{self._name}: chunk {chunk.number} makes no sense")

    def _end_is_true(self, chunk: Chunk) -> bool:
        try:
            return _end_decoder.decode(chunk.data) == (chunk.number, self.bytes)
        except msgspec.DecodeError:
            return False


# In a file


@dataclass(frozen=True, slots=True)
class SnapshotFile:
    """An exported snapshot: the state after entry ``index`` of ``term``, in ``bytes`` bytes at ``path``."""

    path: Path
    index: int
    term: int
    bytes: int


def write_file(path: Path, write: Callable[[Callable[[Chunk], None]], Header]) -> SnapshotFile:
    """Call ``write`` with a function that stores a chunk; the file appears at ``path`` when all is durable.

    A file that is there is replaced at that moment, and anything else is refused; a symlink is followed, so
    it is the file behind it that is replaced. Raises ``StorageError`` or ``ConfigurationError``, and then
    there is no new file, unless the error says so.
    """
    path = resolved(path, "the path of a snapshot")
    check_target(path)
    partial = partial_name(path)
    try:
        with partial.open("xb") as file:

            def put(chunk: Chunk) -> None:
                encoded = _encoder.encode(chunk)
                file.write(_LENGTH.pack(len(encoded)))
                file.write(encoded)

            header = write(put)
            file.flush()
            os.fsync(file.fileno())
            size = file.tell()
        partial.replace(path)
    except BaseException as error:
        rest = _remove_partial(partial)
        if isinstance(error, OSError):
            raise StorageError(f"{path}: the snapshot cannot be written ({error}){rest}") from None
        raise
    try:
        sync_directory(path.parent)
    except OSError as error:
        raise StorageError(
            f"{path}: the snapshot is complete and in its place, but a power cut may still take it ({error})"
        ) from None
    return SnapshotFile(path, header.index, header.term, size)


def _remove_partial(partial: Path) -> str:
    """Remove what was written so far, or tell what is left."""
    try:
        partial.unlink(missing_ok=True)
    except OSError as error:
        return f"; {partial.name} is left there ({error})"
    return ""


def read_file(file: IO[bytes]) -> Callable[[], Chunk]:
    """A function that returns the next chunk of a file. It raises ``Corrupt`` or ``StorageError``."""
    chunks = _chunks(file)

    def get() -> Chunk:
        for chunk in chunks:
            return chunk
        raise Corrupt(f"{file.name}: the snapshot has no end: the file was cut short")

    return get


def _chunks(file: IO[bytes]) -> Iterator[Chunk]:
    try:
        while length := file.read(_LENGTH.size):
            size = int.from_bytes(length, "big")
            if size > _MAX_ENCODED:
                raise Corrupt(f"{file.name}: this is not an ondisk snapshot, or it is damaged")
            encoded = file.read(size)
            if len(length) < _LENGTH.size or len(encoded) < size:
                return
            try:
                yield _chunk_decoder.decode(encoded)
            except (msgspec.DecodeError, UnicodeDecodeError):
                raise Corrupt(f"{file.name}: a chunk of the snapshot is damaged") from None
    except OSError as error:
        raise StorageError(f"{file.name}: cannot be read ({error})") from None


def open_file(path: Path) -> IO[bytes]:
    """Open an exported snapshot. Raises ``ConfigurationError`` if there is none."""
    try:
        return open_regular(path)
    except (OSError, StorageError) as error:
        raise ConfigurationError(f"{path}: there is no snapshot to read ({error})") from None
