"""A snapshot's stream by itself: how it is cut, what is believed of it, and what stands in a file."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import msgspec
import pytest

from ondisk.errors import ConfigurationError, Corrupt, StorageError, UnknownVersion
from ondisk.raft.limits import CHUNK_BYTES
from ondisk.raft.members import Members
from ondisk.raft.messages import DATA, END, HEADER, Chunk
from ondisk.snapshot import stream
from ondisk.snapshot.stream import (
    Header,
    Reader,
    SnapshotFile,
    Writer,
    make_header,
    open_file,
    read_file,
    read_header,
    write_file,
)

MEMBERS = Members((1, 2), (3,), group=b"g" * 16)


def written(pieces: Sequence[bytes], chunk_bytes: int | None = None) -> list[Chunk]:
    """A whole stream, into which these were written."""
    made: list[Chunk] = []
    writer = Writer(make_header(7, 3, MEMBERS), made.append, chunk_bytes)
    for piece in pieces:
        writer.write(piece)
    writer.finish()
    assert writer.bytes == sum(map(len, pieces))
    return made


def reading(chunks: Sequence[Chunk]) -> Reader:
    return Reader(iter(chunks).__next__, "it")


def sealed(number: int, kind: int, data: bytes, before: int = 0) -> Chunk:
    """A chunk whose checksum is right."""
    chunk = Chunk(number, kind, data, 0)
    return Chunk(number, kind, data, stream._checksum(chunk, before))


# Cut into chunks


@pytest.mark.parametrize("pieces", [[1] * 9, [10], [3, 4, 5], [4], [8], [0, 4, 0, 1], [3, 1, 4, 4, 9, 2]])
def test_all_chunks_but_the_last_are_full_however_the_data_came(pieces: list[int]) -> None:
    data = bytes(range(sum(pieces)))
    made = written([data[sum(pieces[:n]) : sum(pieces[: n + 1])] for n in range(len(pieces))], 4)
    assert [chunk.number for chunk in made] == list(range(len(made)))
    assert [chunk.kind for chunk in made] == [HEADER, *[DATA] * (len(made) - 2), END]
    sizes = [len(chunk.data) for chunk in made[1:-1]]
    assert sizes == [4] * (len(data) // 4) + [len(data) % 4] * (len(data) % 4 > 0)
    assert b"".join(chunk.data for chunk in made[1:-1]) == data
    assert msgspec.msgpack.decode(made[-1].data) == [len(made) - 1, len(data)]


def test_a_chunk_is_handed_on_as_soon_as_it_is_full() -> None:
    made: list[Chunk] = []
    writer = Writer(make_header(7, 3, MEMBERS), made.append, 4)
    assert len(made) == 1
    writer.write(b"abc")
    assert len(made) == 1
    writer.write(b"d")
    assert [chunk.data for chunk in made[1:]] == [b"abcd"]


def test_a_stream_without_data_is_a_header_and_an_end() -> None:
    made = written([])
    assert [chunk.kind for chunk in made] == [HEADER, END]
    reader = reading(made)
    assert reader.read(5) == b"" and reader.bytes == 0
    reader.finish()


def test_chunks_have_the_size_that_a_message_has_room_for() -> None:
    made = written([bytes(2 * CHUNK_BYTES + 1)])
    assert [len(chunk.data) for chunk in made[1:-1]] == [CHUNK_BYTES, CHUNK_BYTES, 1]


# Read


@pytest.mark.parametrize("size", [1, 2, 3, 4, 5, 7, 8, 9, 20, 99])
def test_a_reader_gives_as_many_bytes_as_were_asked_for_and_fewer_only_at_the_end(size: int) -> None:
    data = bytes(range(20))
    reader = reading(written([data], 4))
    assert reader.header == make_header(7, 3, MEMBERS)
    got: list[bytes] = []
    while piece := reader.read(size):
        got.append(piece)
    assert b"".join(got) == data and reader.bytes == len(data)
    assert all(len(piece) == size for piece in got[:-1])
    assert reader.read(size) == b""  # and again
    reader.finish()


def test_a_reader_looks_no_further_than_it_must() -> None:
    taken: list[int] = []
    made = written([bytes(20)], 4)

    def get() -> Chunk:
        taken.append(len(taken))
        return made[taken[-1]]

    reader = Reader(get)
    assert reader.read(0) == b"" and len(taken) == 1
    assert reader.read(4) == bytes(4) and len(taken) == 2
    assert reader.read(5) == bytes(5) and len(taken) == 4 and reader.bytes == 12
    assert reader.read(3) == bytes(3) and len(taken) == 4


@pytest.mark.parametrize("left", [1, 3, 4, 5, 20])
def test_a_stream_that_goes_on_after_its_end_is_refused(left: int) -> None:
    reader = reading(written([bytes(20)], 4))
    reader.read(20 - left)
    with pytest.raises(Corrupt, match="it goes on after what the state machine took for its end"):
        reader.finish()


def test_the_digest_names_the_whole_stream() -> None:
    def digest(chunks: list[Chunk]) -> bytes:
        reader = reading(chunks)
        while reader.read(9):
            pass
        return reader.digest

    names = {digest(written([data], 4)) for data in (b"", b"a", b"b", b"a" * 9)}
    assert len(names) == 4 and all(len(name) == 16 for name in names)
    assert digest(written([b"a"], 4)) in names
    assert digest(written([b"aa"], 1)) != digest(written([b"aa"], 2))


@pytest.mark.parametrize(
    ("chunk", "words"),
    [
        (lambda before: sealed(2, DATA, b"x", before), "chunk 2 came where chunk 1 was due"),
        (lambda before: sealed(0, DATA, b"x", before), "chunk 0 came where chunk 1 was due"),
        (lambda before: sealed(1, DATA, b"x", before + 1), "chunk 1 is damaged"),
        (lambda before: sealed(1, HEADER, b"x", before), "chunk 1 makes no sense"),
        (lambda before: sealed(1, 9, b"x", before), "chunk 1 makes no sense"),
        (lambda before: sealed(1, END, b"\xc1", before), "chunk 1 makes no sense"),
        (lambda before: sealed(1, END, msgspec.msgpack.encode([1, 1]), before), "chunk 1 makes no sense"),
        (lambda before: sealed(1, END, msgspec.msgpack.encode([2, 0]), before), "chunk 1 makes no sense"),
    ],
)
def test_a_chunk_that_is_not_the_next_one_is_not_believed(chunk: Callable[[int], Chunk], words: str) -> None:
    first = written([])[0]
    reader = reading([first, chunk(first.checksum)])
    with pytest.raises(Corrupt, match=f"it: {words}"):
        reader.read(1)


@pytest.mark.parametrize(
    ("first", "error", "words"),
    [
        (sealed(1, HEADER, b""), Corrupt, "not the beginning of a snapshot"),
        (sealed(0, DATA, b""), Corrupt, "not the beginning of a snapshot"),
        (Chunk(0, HEADER, b"", 1), Corrupt, "not the beginning of a snapshot"),
        (sealed(0, HEADER, b"\xc1"), Corrupt, "not an ondisk snapshot"),
        (sealed(0, HEADER, msgspec.msgpack.encode(["other", 1, 7, 3])), Corrupt, "not an ondisk snapshot"),
        (sealed(0, HEADER, msgspec.msgpack.encode([stream.MAGIC, 1, -1, 3])), Corrupt, "not an ondisk"),
        (sealed(0, HEADER, msgspec.msgpack.encode([stream.MAGIC, 2])), UnknownVersion, "version 2"),
    ],
)
def test_what_does_not_begin_as_a_snapshot_is_not_read(
    first: Chunk, error: type[Exception], words: str
) -> None:
    with pytest.raises(error, match=words):
        read_header(first, "it")


# In a file


def store(path: Path, chunks: Sequence[Chunk]) -> SnapshotFile:
    def write(put: Callable[[Chunk], None]) -> Header:
        for chunk in chunks:
            put(chunk)
        return make_header(7, 3, MEMBERS)

    return write_file(path, write)


@pytest.fixture
def chunks() -> Iterator[list[Chunk]]:
    yield written([b"x" * 10], 4)


def test_a_file_holds_what_was_written_and_is_told_of(tmp_path: Path, chunks: list[Chunk]) -> None:
    path = tmp_path / "file"
    path.write_bytes(b"the one before")
    assert store(path, chunks) == SnapshotFile(path, 7, 3, path.stat().st_size)
    assert os.listdir(tmp_path) == ["file"]
    with open_file(path) as file:
        get = read_file(file)
        assert [get() for _ in chunks] == chunks
        with pytest.raises(Corrupt, match="file: the snapshot has no end: the file was cut short"):
            get()


def test_a_file_that_was_cut_short_is_told_from_one_that_is_damaged(
    tmp_path: Path, chunks: list[Chunk]
) -> None:
    path = tmp_path / "file"
    store(path, chunks)
    stored = path.read_bytes()
    for size in range(len(stored)):
        path.write_bytes(stored[:size])
        with open_file(path) as file, pytest.raises(Corrupt, match="the file was cut short"):
            get = read_file(file)
            for _ in chunks:
                get()


def test_a_file_of_something_else_is_not_read_as_a_whole(tmp_path: Path) -> None:
    path = tmp_path / "file"
    largest = CHUNK_BYTES + 64
    for size, words in (
        (largest + 1, "not an ondisk snapshot"),
        (largest, "a chunk of the snapshot is damaged"),
    ):
        path.write_bytes(size.to_bytes(4, "big") + b"\xc1" * (largest + 1))
        with open_file(path) as file, pytest.raises(Corrupt, match=words):
            read_file(file)()
    store(path, [sealed(0, DATA, bytes(CHUNK_BYTES))])  # the largest that there is
    with open_file(path) as file:
        assert len(read_file(file)().data) == CHUNK_BYTES


@pytest.mark.parametrize("error", [OSError("full"), ValueError("a bug")])
def test_a_file_that_could_not_be_written_leaves_what_was_there(tmp_path: Path, error: Exception) -> None:
    path = tmp_path / "file"
    path.write_bytes(b"before")

    def write(put: Callable[[Chunk], None]) -> Header:
        put(sealed(0, DATA, b"x"))
        raise error

    with pytest.raises(
        StorageError if isinstance(error, OSError) else ValueError,
        match=r"cannot be written \(full\)$" if isinstance(error, OSError) else "a bug",
    ):
        write_file(path, write)
    assert os.listdir(tmp_path) == ["file"] and path.read_bytes() == b"before"


def test_a_file_is_durable_under_another_name_before_it_takes_its_place(
    tmp_path: Path, chunks: list[Chunk], monkeypatch: pytest.MonkeyPatch
) -> None:
    path, seen = tmp_path / "file", []
    fsync, sync_directory = os.fsync, stream.sync_directory

    def sync(descriptor: int) -> None:
        seen.append(("file", path.exists(), os.fstat(descriptor).st_size))
        fsync(descriptor)

    def sync_names(directory: Path, *rest: Any) -> None:
        monkeypatch.setattr(os, "fsync", fsync)
        seen.append((directory.name, path.exists(), path.stat().st_size))
        sync_directory(directory, *rest)

    monkeypatch.setattr(os, "fsync", sync)
    monkeypatch.setattr(stream, "sync_directory", sync_names)
    made = store(path, chunks)
    assert seen == [("file", False, made.bytes), (tmp_path.name, True, made.bytes)]


def test_a_file_whose_name_may_be_lost_says_so(
    tmp_path: Path, chunks: list[Chunk], monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: object) -> None:
        raise OSError("no more")

    monkeypatch.setattr(stream, "sync_directory", fail)
    with pytest.raises(StorageError, match=r"complete and in its place.*\(no more\)"):
        store(tmp_path / "file", chunks)
    assert os.listdir(tmp_path) == ["file"]


def test_what_cannot_be_removed_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def write(put: Callable[[Chunk], None]) -> Header:
        raise OSError("full")

    def fail(*_: object, **__: object) -> None:
        raise OSError("held")

    with monkeypatch.context() as patch:
        patch.setattr(Path, "unlink", fail)
        with pytest.raises(StorageError, match=r"\(full\); .* is left there \(held\)"):
            write_file(tmp_path / "file", write)
    assert len(os.listdir(tmp_path)) == 1


def test_a_file_that_cannot_be_read_is_no_damage(tmp_path: Path) -> None:
    class Broken:
        name = "it"

        def read(self, size: int) -> bytes:
            raise OSError("bad block")

    with pytest.raises(StorageError, match=r"it: cannot be read \(bad block\)") as caught:
        read_file(Broken())()  # type: ignore[arg-type]
    assert not isinstance(caught.value, Corrupt)
    with pytest.raises(ConfigurationError, match="there is no snapshot to read"):
        open_file(tmp_path / "nothing")
