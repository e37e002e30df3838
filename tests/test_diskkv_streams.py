"""The stream of a snapshot of DiskKV: believed only whole."""

from __future__ import annotations

import io
import os
import threading
import zlib
from pathlib import Path

import pytest

from ondisk.diskkv import DiskKV
from ondisk.errors import Corrupt, SnapshotStopped, StorageError, UnknownVersion
from ondisk.storage.filestream import END
from tests.kvsnapshots import File, Pieces, compose, kv, large, parse, recover, small, still_works, unchanged

__all__ = ["kv", "large", "small"]  # fixtures


def test_the_format_is_what_its_description_says(small: Pieces, kv: DiskKV) -> None:
    """Taken apart and put together again by the description alone, it is the same stream."""
    assert compose(500, parse(small.whole)) == small.whole
    assert recover(kv, small.whole) == 500


def refused(
    machine: DiskKV, stream: bytes, match: str | None = None, error: type[Exception] = Corrupt
) -> None:
    with pytest.raises(error, match=match):
        recover(machine, stream)


def test_a_damaged_bit_anywhere_is_refused(tmp_path: Path, kv: DiskKV, small: Pieces) -> None:
    """One bit in every byte of the stream, headers, names, tables and marks."""
    stream = small.whole
    with unchanged(kv, tmp_path / "kv"):
        for place in range(len(stream)):
            damaged = bytearray(stream)
            damaged[place] ^= 1 << place % 8
            refused(kv, bytes(damaged))
    still_works(kv, small)


def test_a_damaged_file_is_named(tmp_path: Path, kv: DiskKV, small: Pieces) -> None:
    """The error says which file's checksum is wrong."""
    for file in parse(small.whole):
        if file.content:
            damaged = bytearray(small.whole)
            damaged[small.whole.index(file.content) + len(file.content) // 2] ^= 1
            refused(kv, bytes(damaged), f"bad checksum of file {file.name}")
    damaged = bytearray(small.whole)
    damaged[15] ^= 1
    refused(kv, bytes(damaged), "bad checksum of the header")


def test_a_stream_cut_short_anywhere_is_refused(tmp_path: Path, kv: DiskKV, small: Pieces) -> None:
    """At every length, also just before the end mark's last byte."""
    with unchanged(kv, tmp_path / "kv"):
        for length in range(len(small.whole)):
            refused(kv, small.whole[:length], "cut short")
    still_works(kv, small)


def test_missing_doubled_and_swapped_pieces_are_refused(tmp_path: Path, kv: DiskKV, large: Pieces) -> None:
    """Whichever piece it is, and also where pieces of the same length change places."""
    with unchanged(kv, tmp_path / "kv"):
        for place, piece in enumerate(large):
            refused(kv, b"".join([*large[:place], *large[place + 1 :]]))
            refused(kv, b"".join([*large[: place + 1], *large[place:]]))
            other = next(step for step in range(1, len(large)) if large[place - step] != piece)
            swapped = list(large)
            swapped[place], swapped[place - other] = swapped[place - other], swapped[place]
            refused(kv, b"".join(swapped))
    still_works(kv, large)


def test_what_follows_the_end_is_refused(tmp_path: Path, kv: DiskKV, small: Pieces) -> None:
    """A stream is one snapshot, no more: also two good ones in a row are none."""
    with unchanged(kv, tmp_path / "kv"):
        for more in (b"\0", b"\n", END, small.whole):
            refused(kv, small.whole + more, "follows the end")
    still_works(kv, small)


def test_a_stream_of_something_else_is_refused_with_what_it_is_not(
    tmp_path: Path, kv: DiskKV, small: Pieces
) -> None:
    """Nothing, text, another version, a transfer that changed the line ends."""
    stream = small.whole
    with unchanged(kv, tmp_path / "kv"):
        refused(kv, b"", "cut short")
        refused(kv, b"GET / HTTP/1.1\r\nHost: example.org\r\n\r\n", "not a DiskKV snapshot")
        refused(kv, stream.replace(b"\r\n", b"\n", 1) + b"x", "not a DiskKV snapshot")
        later = stream[:8] + (7).to_bytes(4, "big") + stream[12:24]
        refused(kv, later + zlib.crc32(later).to_bytes(4, "big") + stream[28:], "version 7", UnknownVersion)
    still_works(kv, small)


def test_a_stream_made_to_do_harm_is_refused(tmp_path: Path, kv: DiskKV, small: Pieces) -> None:
    """Checksums are right here: names, sizes and counts are not trusted all the same."""
    good = parse(small.whole)
    tables = [file for file in good if file.name.endswith(".sst")]
    names = [
        "../current",
        "/tmp/x",
        "a/b",
        "..",
        ".",
        "",
        "x" * 300,
        "000001.sst/../../current",
        "LOCK",
        "owner",
    ]
    names += [
        "current",
        "CURRENT\n",
        "000001.sst\0",
        "٠٠٠٠٠١.sst",
        "MANIFEST-1",
        "OPTIONS-000007",
        "0" * 40 + ".sst",
    ]
    with unchanged(kv, tmp_path / "kv"):
        for name in names:
            refused(kv, compose(500, [*good, File(name, b"x")]), "no part of a database")
        refused(kv, compose(500, [*good, good[-1]]), "twice")
        refused(kv, compose(500, good, count=2**32 - 1), "claims to have")
        refused(kv, compose(500, good, count=len(good) + 1), "no part of a database|cut short")
        refused(kv, compose(500, good, count=len(good) - 1), "goes on")
        refused(kv, compose(500, good, sizes={"CURRENT": 1 << 40}), "no part of a database")
        refused(kv, compose(500, good, sizes={tables[0].name: 2**64 - 1}), "cut short")
        for index in (0, 499, 501, 2**64 - 1):
            refused(kv, compose(index, good), f"says that it holds index {index}, but it holds 500")
        refused(kv, compose(500, []), "CURRENT is missing")
        for missing in good:
            with pytest.raises(StorageError):
                recover(kv, compose(500, [file for file in good if file != missing]))
        with pytest.raises(StorageError):  # one table under the name of the other
            swapped = dict(
                zip([tables[0].name, tables[1].name], [tables[1].content, tables[0].content], strict=True)
            )
            recover(kv, compose(500, [File(name, swapped.get(name, content)) for name, content in good]))
    assert sorted(os.listdir(tmp_path)) == ["kv"]
    still_works(kv, small)


@pytest.mark.parametrize("after", range(12))
def test_a_recovery_ends_soon_after_it_is_stopped(
    tmp_path: Path, kv: DiskKV, small: Pieces, after: int
) -> None:
    """``SnapshotStopped``, and nothing more is read."""
    stopped = threading.Event()
    reads = 0

    class Stopping(io.BytesIO):
        def read(self, size: int | None = -1) -> bytes:
            nonlocal reads
            reads += 1
            if reads == after:
                stopped.set()
            return super().read(size)

    if after == 0:
        stopped.set()
    with unchanged(kv, tmp_path / "kv"), pytest.raises(SnapshotStopped):
        kv.recover_from_snapshot(Stopping(small.whole), stopped)
    assert reads == after
    still_works(kv, small)


@pytest.mark.parametrize(
    "error", [SnapshotStopped("gone"), Corrupt("chunk 7 is damaged"), KeyboardInterrupt(), KeyError("bug")]
)
def test_the_readers_own_error_comes_through(
    tmp_path: Path, kv: DiskKV, large: Pieces, error: BaseException
) -> None:
    """In the middle of a stream, with half a database on the disk."""

    class Failing(io.BytesIO):
        def read(self, size: int | None = -1) -> bytes:
            if self.tell() > 500_000:
                raise error
            return super().read(size)

    with unchanged(kv, tmp_path / "kv"), pytest.raises(type(error)) as raised:
        kv.recover_from_snapshot(Failing(large.whole), threading.Event())
    assert raised.value is error
    still_works(kv, large)
