"""Every kind of file says what it is: earlier versions are read, later ones refused, damage is reported."""

from __future__ import annotations

import io
import subprocess
import threading
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path

import msgspec
import pytest

from ondisk import Cluster, DiskKV, import_snapshot
from ondisk.errors import Corrupt, StorageError, UnknownVersion
from ondisk.raft.log import RaftLog
from ondisk.raft.members import Members
from ondisk.raft.records import LogEntry
from ondisk.snapshot.stream import (
    Chunk,
    Reader,
    Writer,
    _checksum,
    make_header,
    open_file,
    read_file,
    read_header,
)
from ondisk.storage import lines
from ondisk.storage.filestream import save_files
from ondisk.storage.lock import DirectoryLock
from ondisk.storage.store import Store
from tests.machines import opened

BEFORE = Path(__file__).with_name("data") / "before-identity.tar.xz"


@pytest.fixture
def before(tmp_path: Path) -> Path:
    """A data directory with three replicas, and a snapshot, as the version before wrote them."""
    subprocess.run(["tar", "-C", tmp_path, "-xf", BEFORE], check=True)
    return tmp_path / "before"


def test_a_group_of_the_version_before_opens_with_all_it_had(before: Path) -> None:
    with Cluster(before / "data") as cluster:
        found = dict(cluster.scan(limit=100))
        assert found == {
            **{f"k{number}".encode(): f"v{number}".encode() for number in range(1, 40)},
            b"counter": b"5",
            b"again1": b"1",
            b"again2": b"1",
        }
        cluster.put("new", "1")
        for member in (1, 2, 3):
            assert cluster.get("new", via=member) == b"1"
    for file in before.glob("data/replica-*/state/current"):
        assert file.read_bytes().startswith(b"ondisk-current 1 db-")
    for file in before.glob("data/replica-*/log/witness"):
        assert file.read_bytes().startswith(b"ondisk-witness 1 ")
    for database in before.glob("data/replica-*/state/db-*"):
        with closing(Store(database, create=False)) as store:
            assert (store.get_meta(b"format") or b"").startswith(b"ondisk-diskkv 2 ")


def test_the_log_of_the_version_before_still_notices_that_its_end_is_lost(before: Path) -> None:
    """The note beside it had neither kind nor version, and is believed all the same."""
    log = before / "data" / "replica-3" / "log"
    for wal in (log / "rocksdb").glob("*.log"):
        wal.write_bytes(b"")
    with pytest.raises(Corrupt, match="the end of the log is lost"):
        RaftLog(log)


def test_a_snapshot_of_the_version_before_makes_a_group(before: Path, tmp_path: Path) -> None:
    import_snapshot(before / "snapshot", tmp_path / "data", members=[1])
    with Cluster(tmp_path / "data", members=[1]) as cluster:
        assert cluster.get("k0") == b"v0" and cluster.get("counter") == b"5"


# Later versions


@contextmanager
def refused_untouched(directory: Path, place: str, version: int = 2) -> Iterator[None]:
    """The error names the place and the version, and no file is another one afterwards."""

    def files() -> dict[Path, bytes]:
        found = (file for file in directory.rglob("*") if file.is_file())
        # Whoever looks at a database leaves RocksDB's diary and the like.
        return {file: file.read_bytes() for file in found if file.name in ("current", "witness", "owner")}

    before = files()
    with pytest.raises(UnknownVersion, match=rf"{place}.*version {version}.*later ondisk"):
        yield
    assert {file: content for file, content in files().items() if file.name != "owner"} == {
        file: content for file, content in before.items() if file.name != "owner"
    }


def test_a_pointer_of_a_later_version_is_refused(tmp_path: Path) -> None:
    opened(tmp_path / "kv").close()
    pointer = tmp_path / "kv" / "current"
    pointer.write_bytes(lines.encode("ondisk-current", 2, "db-000001 and something new"))
    with refused_untouched(tmp_path, "kv/current"):
        DiskKV(tmp_path / "kv").open()
    assert (tmp_path / "kv" / "db-000001").is_dir()


def test_a_state_of_a_later_version_is_refused_when_opened_and_when_it_arrives(tmp_path: Path) -> None:
    opened(tmp_path / "kv").close()
    with closing(Store(tmp_path / "kv" / "db-000001")) as store:
        batch = store.batch()
        store.put_meta(batch, b"format", lines.encode("ondisk-diskkv", 3, ""))
        store.write(batch)
    with refused_untouched(tmp_path, "db-000001", 3):
        DiskKV(tmp_path / "kv").open()
    (tmp_path / "kv" / "db-000001").rename(tmp_path / "later")

    class Collected(list[bytes]):
        write = list.append

    stream = Collected()
    save_files(tmp_path / "later", 0, stream, threading.Event())

    with closing(opened(tmp_path / "receiver")) as machine:
        with refused_untouched(tmp_path / "receiver", "db-000002", 3):
            machine.recover_from_snapshot(io.BytesIO(b"".join(stream)), threading.Event())
        assert machine.lookup is not None and sorted(p.name for p in (tmp_path / "receiver").iterdir()) == [
            "current",
            "db-000001",
            "owner",
        ]


def test_a_witness_of_a_later_version_is_refused(tmp_path: Path) -> None:
    log = RaftLog(tmp_path / "log")
    log.append([LogEntry(1, 1, b"\0x")])
    log.close()
    (tmp_path / "log" / "witness").write_bytes(lines.encode("ondisk-witness", 2, "1 of 3"))
    with refused_untouched(tmp_path, "log/witness"):
        RaftLog(tmp_path / "log")


def test_a_lock_of_a_later_version_is_refused(tmp_path: Path) -> None:
    (tmp_path / "owner").write_bytes(lines.encode("ondisk-owner", 2, "4711 since monday"))
    with refused_untouched(tmp_path, "owner"):
        DirectoryLock(tmp_path)


@pytest.mark.parametrize("content", [b"", b"4711\n", b"\0" * 20, lines.encode("ondisk-owner", 1, "4711")])
def test_a_lock_that_nobody_holds_can_be_taken(tmp_path: Path, content: bytes) -> None:
    """Of this version and the one before, and what a power cut may leave."""
    (tmp_path / "owner").write_bytes(content)
    DirectoryLock(tmp_path).release()


def test_somebody_elses_file_called_owner_is_not_overwritten(tmp_path: Path) -> None:
    (tmp_path / "owner").write_text("Ada Lovelace\n")
    with pytest.raises(StorageError, match="owner: is no file of ondisk"):
        DirectoryLock(tmp_path)
    assert (tmp_path / "owner").read_text() == "Ada Lovelace\n"


def header_chunk(*fields: object) -> Chunk:
    """The first chunk of a stream whose header has these fields, with a right checksum."""
    found: list[Chunk] = []
    Writer(make_header(1, 1, Members((1,))), found.append)
    data = msgspec.msgpack.encode(fields)

    made = Chunk(0, found[0].kind, data, 0)
    return Chunk(0, found[0].kind, data, _checksum(made, 0))


@pytest.mark.parametrize(
    "rest", [(), (1, 1, [[1]]), ({"index": 7}, "other", None), (1, 1, [[1], [], [], [], 9])]
)
def test_a_snapshot_of_a_later_version_is_refused_whatever_its_header_looks_like(rest: tuple[object]) -> None:
    with pytest.raises(UnknownVersion, match=r"backup: has version 2"):
        read_header(header_chunk("ondisk snapshot", 2, *rest), "backup")


@pytest.mark.parametrize(
    "fields", [(), ("ondisk snapshot",), ("other", 2), ("ondisk snapshot", "2"), (1, 2, 3)]
)
def test_a_header_that_makes_no_sense_is_damage(fields: tuple[object]) -> None:
    with pytest.raises(Corrupt, match="backup"):
        read_header(header_chunk(*fields), "backup")


def test_damage_in_an_exported_file_is_reported_with_its_path(before: Path) -> None:
    file = before / "snapshot"
    stored = file.read_bytes()
    for place in range(0, len(stored), 7):
        file.write_bytes(stored[:place] + bytes([stored[place] ^ 1]) + stored[place + 1 :])
        with open_file(file) as opened_file, pytest.raises(StorageError, match="before/snapshot"):
            reader = Reader(read_file(opened_file), str(file))
            while reader.read(1 << 20):
                pass
            reader.finish()


# Records that cannot be decoded


@pytest.mark.parametrize("record", [b"hard_state", b"base"])
@pytest.mark.parametrize(
    "damage", [b"", b"\xc1", b"\x93\x01", b"\xa3\xff\xff\xff", msgspec.msgpack.encode(["x"])]
)
def test_a_record_of_the_log_that_cannot_be_read_is_damage(
    tmp_path: Path, record: bytes, damage: bytes
) -> None:
    RaftLog(tmp_path / "log").close()
    with closing(Store(tmp_path / "log" / "rocksdb")) as store:
        batch = store.batch()
        store.put_meta(batch, record, damage)
        store.write(batch)
    with pytest.raises(Corrupt, match=r"log: the record of .* is damaged"):
        RaftLog(tmp_path / "log")


@pytest.mark.parametrize("key", [b"applied_index", b"format", b"session/12345678", b"history"])
def test_a_record_of_the_state_that_cannot_be_read_is_damage(tmp_path: Path, key: bytes) -> None:
    opened(tmp_path / "kv").close()
    with closing(Store(tmp_path / "kv" / "db-000001")) as store:
        batch = store.batch()
        store.put_meta(batch, key, b"\xc1\xff\xff")
        store.write(batch)
    with pytest.raises(Corrupt, match="kv/db-000001"):
        DiskKV(tmp_path / "kv").open()


# The lines themselves


def test_every_changed_bit_of_a_line_is_damage_and_no_later_version(tmp_path: Path) -> None:
    line = lines.encode("ondisk-test", 1, "content of the line")
    assert lines.decode(tmp_path, line, "ondisk-test", 1) == "content of the line"
    for place in range(len(line)):
        for bit in range(8):
            changed = line[:place] + bytes([line[place] ^ 1 << bit]) + line[place + 1 :]
            with pytest.raises(Corrupt, match="is damaged"):
                lines.decode(tmp_path, changed, "ondisk-test", 1)


def test_a_line_that_is_cut_or_goes_on_is_damage(tmp_path: Path) -> None:
    line = lines.encode("ondisk-test", 1, "x")
    for other in (b"", line[:-1], line[1:], line + b"x", line * 2, b"\xff" * 40):
        with pytest.raises(Corrupt):
            lines.decode(tmp_path, other, "ondisk-test", 1)
