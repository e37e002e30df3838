"""The files of a RocksDB database as one stream of bytes, and back.

The stream describes itself, so that a receiver needs to trust nothing::

    header   magic "DiskKV\\r\\n", version (4 bytes), applied index (8), number of files (4), checksum
    file     length of the name (2 bytes), size (8), name, content, checksum
    ...      one after the other, in the order of their names
    end      magic "the end\\n"

Numbers are big-endian. A checksum is the CRC-32 of the *whole stream before it* (without the checksums
themselves): so a file that is damaged, missing, doubled or in another place is noticed at its end.

Copying files is much faster than reading keys and writing them again, and nobody has to know what is in them.
The price is that the tables' own checksums are not looked at on the way: a block that was damaged on the
sender's disk arrives as it is, and is reported there too when it is read.
"""

from __future__ import annotations

import os
import re
import struct
import threading
import zlib
from io import FileIO
from pathlib import Path

from ondisk.errors import Corrupt, SnapshotStopped, StorageError
from ondisk.statemachine import SnapshotReader, SnapshotWriter
from ondisk.storage.disk import Disk, sync_directory
from ondisk.storage.errors import disk_errors
from ondisk.storage.lines import check_version

MAGIC = b"DiskKV\r\n"  # like PNG's: a transfer that "repairs" line ends is noticed at once
VERSION = 1
END = b"the end\n"
PIECE_BYTES = 256 << 10

# Where an experiment may crash, in the order in which they are reached. Pieces and files come many times.
RECEIVE_POINTS = (
    "recover: directory made",
    "recover: piece written",
    "recover: file written",
    "recover: files synced",
)

_HEADER = struct.Struct(">8sIQI")
_FILE = struct.Struct(">HQ")
_CHECKSUM = struct.Struct(">I")

# All that RocksDB needs. The rest (LOG, LOCK, OPTIONS, IDENTITY) it writes anew.
NEEDED = re.compile(r"CURRENT|MANIFEST-[0-9]{6,20}|[0-9]{6,20}\.(sst|log)", re.ASCII)
_MAX_FILES = 1 << 20
_MAX_SMALL_BYTES = 64 << 20  # what is not a table is read into memory by ``Store``


def save_files(directory: Path, index: int, writer: SnapshotWriter, stopped: threading.Event) -> None:
    """Write the database in a directory where nothing changes, with the index that belongs to it.

    Raises ``SnapshotStopped`` soon after ``stopped`` is set.
    """
    with disk_errors(directory):
        names = sorted(name for name in os.listdir(directory) if NEEDED.fullmatch(name))
    checksum = 0

    def write(data: bytes) -> None:
        nonlocal checksum
        if stopped.is_set():
            raise SnapshotStopped(f"{directory}: the snapshot is not wanted any more")
        checksum = zlib.crc32(data, checksum)
        writer.write(data)

    def write_checksum() -> None:
        writer.write(_CHECKSUM.pack(checksum))

    write(_HEADER.pack(MAGIC, VERSION, index, len(names)))
    write_checksum()
    for name in names:
        path = directory / name
        with _open(path, "rb") as file:
            left = os.fstat(file.fileno()).st_size
            write(_FILE.pack(len(name), left) + name.encode())
            while left:
                with disk_errors(path):
                    piece = file.read(min(left, PIECE_BYTES))
                if not piece:
                    raise StorageError(f"{path}: became shorter while it was read")
                write(piece)
                left -= len(piece)
            write_checksum()
    writer.write(END)


def _open(path: Path, mode: str) -> FileIO:
    with disk_errors(path):
        return FileIO(path, mode)


def _write(file: FileIO, data: bytes) -> None:
    left = memoryview(data)
    while left:
        left = left[file.write(left) :]


class _Incoming:
    """A stream that is checked as it is read."""

    def __init__(self, reader: SnapshotReader, stopped: threading.Event) -> None:
        self._reader = reader
        self._stopped = stopped
        self._checksum = 0

    def _exactly(self, size: int) -> bytes:
        if self._stopped.is_set():
            raise SnapshotStopped("the snapshot is not wanted any more")
        data = self._reader.read(size)
        if len(data) != size:
            raise Corrupt("the snapshot's stream was cut short")
        return data

    def read(self, size: int) -> bytes:
        data = self._exactly(size)
        self._checksum = zlib.crc32(data, self._checksum)
        return data

    def check(self, what: str) -> None:
        """Compare the checksum that comes next with that of all that was read."""
        if self._exactly(_CHECKSUM.size) != _CHECKSUM.pack(self._checksum):
            raise Corrupt(f"bad checksum of {what} in the snapshot")

    def check_end(self) -> None:
        if self._exactly(len(END)) != END:
            raise Corrupt("the snapshot's stream goes on where it should end")
        if self._reader.read(1):
            raise Corrupt("something follows the end of the snapshot's stream")


def receive_files(reader: SnapshotReader, directory: Path, stopped: threading.Event, disk: Disk) -> int:
    """Write what a stream brings into a new directory, durably; return the index that belongs to it.

    Raises ``Corrupt``, ``UnknownVersion``, ``SnapshotStopped`` or ``StorageError``; what is there by
    then is left to the caller.
    """
    stream = _Incoming(reader, stopped)
    magic, version, index, count = _HEADER.unpack(stream.read(_HEADER.size))
    if magic != MAGIC:
        raise Corrupt("this is not a DiskKV snapshot")
    stream.check("the header")  # it stands in the same place in every version
    check_version("the DiskKV snapshot", version, VERSION)
    if count > _MAX_FILES:
        raise Corrupt(f"the snapshot claims to have {count:,} files")
    with disk_errors(directory):
        directory.mkdir()
    disk.reach("recover: directory made")
    for _ in range(count):
        _receive_file(stream, directory, disk)
    stream.check_end()
    with disk_errors(directory):
        sync_directory(directory, disk)
    disk.reach("recover: files synced")
    assert isinstance(index, int)
    return index


def _receive_file(stream: _Incoming, directory: Path, disk: Disk) -> None:
    length, left = _FILE.unpack(stream.read(_FILE.size))
    name = stream.read(length).decode("ascii", "replace")
    if not NEEDED.fullmatch(name) or (left > _MAX_SMALL_BYTES and not name.endswith(".sst")):
        raise Corrupt(
            f"the snapshot has a file {name!r:.60} of {left:,} bytes, which is no part of a database"
        )
    path = directory / name
    if path.exists():
        raise Corrupt(f"the snapshot has the file {name} twice")
    with _open(path, "xb") as file:
        while left:
            piece = stream.read(min(left, PIECE_BYTES))
            with disk_errors(path):
                _write(file, piece)
            left -= len(piece)
            disk.reach("recover: piece written")
        stream.check(f"file {name}")
        with disk_errors(path):
            disk.sync(lambda: os.fsync(file.fileno()))
    disk.reach("recover: file written")
