"""Inspect: what a stopped replica's directory holds, or an exported snapshot, and whether it is whole.

Nothing in there is changed, not even by RocksDB's habit of tidying up when it opens a database: what is
opened is a *view* in a temporary directory, where tables are symlinks and all else is copied. It is opened by
the same code that a replica uses, so whatever a replica would refuse is found here, too. Then every entry and
every key is read, which makes RocksDB compare all checksums.
"""

from __future__ import annotations

import fcntl
import json
import os
import re
import sys
import tempfile
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import msgspec

from ondisk.diskkv import DiskKV
from ondisk.errors import ConfigurationError, Corrupt, DirectoryInUse, OndiskError, StorageError
from ondisk.raft import members as encoding
from ondisk.raft.log import RaftLog
from ondisk.raft.members import Members
from ondisk.raft.records import MEMBERS
from ondisk.snapshot.stream import VERSION as SNAPSHOT_VERSION
from ondisk.snapshot.stream import Reader, open_file, read_file
from ondisk.storage import lines
from ondisk.storage.lock import describe_process
from ondisk.storage.paths import open_descriptor, read_regular, resolved
from ondisk.storage.rocksdb import fresh_cache
from ondisk.storage.store import Store

Facts = dict[str, Any]  # what was found, by name; everything in it can be written as JSON
_KNOWN_RECORDS = (b"hard_state", b"identity", b"base", b"batches")


@dataclass
class Replica:
    """One replica's directory. ``log`` and ``state`` hold what could be read of them."""

    path: str
    number: int | None
    bytes: int
    log: Facts = field(default_factory=dict)
    state: Facts = field(default_factory=dict)
    damage: list[str] = field(default_factory=list)


@dataclass
class Snapshot:
    """An exported snapshot."""

    path: str
    bytes: int
    header: Facts = field(default_factory=dict)
    damage: list[str] = field(default_factory=list)


@dataclass
class Inspection:
    """All that was found at ``path``."""

    path: str
    replicas: list[Replica] = field(default_factory=list)
    snapshot: Snapshot | None = None

    @property
    def damage(self) -> list[str]:
        """Every damage that was met, with its place."""
        found = [damage for replica in self.replicas for damage in replica.damage]
        return found + (self.snapshot.damage if self.snapshot else [])


def inspect(path: Path | str) -> Inspection:
    """Look at a replica's directory, at a data directory with several, or at an exported snapshot.

    Raises ``DirectoryInUse`` if one of them runs, and ``ConfigurationError`` if the path is none of these.
    """
    place = resolved(path, "what is inspected")
    found = Inspection(str(place))
    if place.is_dir():
        replicas = [place] if _is_replica(place) else sorted(filter(_is_replica, place.glob("replica-*")))
        if not replicas:
            raise ConfigurationError(f"{place}: no replica has its directory here")
        found.replicas = [_inspect_replica(replica) for replica in replicas]
    else:
        found.snapshot = _inspect_snapshot(place)
    return found


def _is_replica(path: Path) -> bool:
    return path.is_dir() and any((path / name).exists() for name in ("owner", "log", "state"))


def _inspect_replica(path: Path) -> Replica:
    number = re.fullmatch(r"replica-([1-9][0-9]*)", path.name)
    found = Replica(str(path), int(number[1]) if number else None, _size(path))
    with _nobody_else(path), fresh_cache(), tempfile.TemporaryDirectory(prefix="ondisk-inspect-") as scratch:
        for name, look in (("log", _inspect_log), ("state", _inspect_state)):
            if not (path / name).is_dir():
                found.damage.append(f"{path / name}: is missing")
                continue

            def note(error: BaseException) -> None:
                # The view has another name, and that is of no use to anybody.
                found.damage.append(str(error).replace(scratch, str(path)))

            try:
                _make_view(path / name, Path(scratch) / name)
                look(Path(scratch) / name, found.log if name == "log" else found.state, note)
            except (OndiskError, OSError) as error:
                note(error)
    _compare(found)
    return found


def _compare(found: Replica) -> None:
    """Whether log and state belong together: no entry may be missing between the two."""
    log, index = found.log, found.state.get("index")
    if index is None or "last_index" not in log or index == log["installing"]:
        return
    if log["last_index"] < index:
        found.damage.append(
            f"{found.path}/log: ends at entry {log['last_index']}, but the state holds entry {index}"
        )
    elif log["base_index"] > index:
        found.damage.append(
            f"{found.path}/state: ends at entry {index}, but the log begins after entry {log['base_index']}"
        )


def _size(path: Path) -> int:
    return sum(file.lstat().st_size for file in path.rglob("*") if file.is_file())


@contextmanager
def _nobody_else(directory: Path) -> Iterator[None]:
    """Hold the lock of a directory, without a word in it. Raises ``DirectoryInUse``."""
    try:
        descriptor = open_descriptor(directory / "owner", os.O_RDONLY)
    except FileNotFoundError:  # never opened, or copied without it
        yield
        return
    try:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            stored = os.pread(descriptor, 200, 0)
            numbers = re.findall(rb"\b[0-9]{2,}\b", stored)
            who = describe_process(numbers[0].decode() if numbers else None)
            raise DirectoryInUse(f"{directory} is in use by {who}. Stop it first") from None
        yield
    finally:
        os.close(descriptor)


def _make_view(directory: Path, view: Path) -> None:
    """The same files elsewhere: tables, which never change, by symlinks, and copies of all the rest."""
    view.mkdir()
    for child in directory.iterdir():
        if child.is_dir():
            if not re.fullmatch(r"view-[0-9]+.*", child.name):  # a leftover, of which nothing is needed
                _make_view(child, view / child.name)
        elif child.suffix == ".sst":
            (view / child.name).symlink_to(child)
        elif not child.name.startswith(("LOG", "LOCK", "owner")):
            (view / child.name).write_bytes(read_regular(child))


def _inspect_log(view: Path, facts: Facts, note: Callable[[BaseException], None]) -> None:
    store = Store(view / "rocksdb", create=False)
    try:
        for key, stored in store.meta_items(b""):
            if key not in _KNOWN_RECORDS:  # whatever they are
                facts[key.decode("ascii", "replace")] = _plain(stored)
    finally:
        store.close()
    log = RaftLog(view)
    try:
        index, members = log.configuration
        if (identity := log.identity) is None:
            facts["identity"] = "none: of the version before, or empty"
        else:
            facts.update(
                replica=identity.replica_id,
                disk=identity.disk.hex(),
                life=identity.boot,
                first_members=list(identity.first),
                import_seed=identity.seed.hex() or None,
                refused=identity.refused or None,
            )
        facts.update(
            term=log.term,
            voted_for=log.voted_for,
            base_index=log.base_index,
            base_term=log.base_term,
            first_index=log.base_index + 1,
            last_index=log.last_index,
            last_term=log.last_term,
            members={"since": index, **_members(members)},
            installing=log.installing[0] if log.installing else None,
        )
        _check_entries(log, note)
    finally:
        log.store.close()  # not the log itself, which would have more to write
    witness = view / "witness"
    if not witness.exists() and log.last_index == log.base_index == log.term == 0:
        return  # nothing was ever durable
    if not witness.exists():
        note(Corrupt(f"{witness}: is missing, so nobody would notice if the end of the log were lost"))
    elif len(stored := witness.read_bytes()) != 12:
        lines.decode(witness, stored, "ondisk-witness", 1)


def _check_entries(log: RaftLog, note: Callable[[BaseException], None]) -> None:
    """Every entry: none is missing, terms never go back, and changes of the members can be read."""
    index, term = log.base_index, log.base_term
    with closing(log.store.every_entry()) as entries:
        for entry in entries:
            if entry.index != index + 1 or entry.term < term:
                raise Corrupt(
                    f"{log.path}: entry {entry.index} of term {entry.term} follows "
                    f"entry {index} of term {term}"
                )
            index, term = entry.index, entry.term
            if entry.command.startswith(MEMBERS):
                try:
                    encoding.decode(entry.command[len(MEMBERS) :])
                except (msgspec.DecodeError, UnicodeDecodeError) as error:
                    note(Corrupt(f"{log.path}: entry {index} holds members that cannot be read ({error})"))


def _inspect_state(view: Path, facts: Facts, note: Callable[[BaseException], None]) -> None:
    if not (view / "current").exists() and not any(view.glob("db-*")):
        facts["kind"] = "another state machine's: not looked into" if any(view.iterdir()) else "empty"
        return
    machine = DiskKV(view)
    index = machine.open()
    try:
        store = machine._open_store
        facts.update(
            kind="DiskKV", database=store.path.name, index=index, sessions=len(machine._sessions._table)
        )
        stored = store.get_meta(b"format")
        facts["format"] = stored.decode().split()[1] if stored else "none: of the version before, or empty"
        facts["keys"] = 0
        with store.iterate() as pairs:
            for _ in pairs:
                facts["keys"] += 1
    finally:
        machine.close()


def _plain(stored: bytes) -> Any:
    """A record as something to print: decoded if it is MessagePack, else its hexadecimal digits."""
    try:
        return _for_json(msgspec.msgpack.decode(stored))
    except (ValueError, msgspec.DecodeError):
        return stored.hex()


def _for_json(value: Any) -> Any:
    if isinstance(value, dict):  # of disks, perhaps
        value = {key.hex() if isinstance(key, bytes) else key: each for key, each in value.items()}
    return json.loads(json.dumps(value, default=lambda other: other.hex()))


def _members(members: Members) -> Facts:
    """All fields, whatever this version's configurations have."""
    fields: Facts = _for_json(msgspec.structs.asdict(members))
    return fields


def _inspect_snapshot(path: Path) -> Snapshot:
    with open_file(path) as file:
        found = Snapshot(str(path), os.fstat(file.fileno()).st_size)
        try:
            reader = Reader(read_file(file), str(path))
            header = reader.header
            found.header = dict(
                version=SNAPSHOT_VERSION,
                index=header.index,
                term=header.term,
                members=_members(header.members),
            )
            while reader.read(1 << 20):
                pass
            reader.finish()
            found.header["state_bytes"] = reader.bytes
        except StorageError as error:
            found.damage.append(str(error))
    return found


# On a terminal


def print_inspection(found: Inspection) -> None:
    """Print it."""
    for replica in found.replicas:
        print(f"{replica.path}: {replica.bytes:,} bytes")
        for name, facts in (("log", replica.log), ("state", replica.state)):
            _print_facts(name, facts)
    if (snapshot := found.snapshot) is not None:
        print(f"{snapshot.path}: {snapshot.bytes:,} bytes")
        _print_facts("snapshot", snapshot.header)
    for damage in found.damage:
        print(f"damage: {damage}")
    print("damaged" if found.damage else "whole: all checksums are right")


def _print_facts(name: str, facts: Facts) -> None:
    for key, value in facts.items():
        shown = value if isinstance(value, str) else json.dumps(value)
        print(f"  {name:9}{key.replace('_', ' '):14}{shown}")


if __name__ == "__main__":
    from ondisk.cli import main

    sys.argv.insert(1, "inspect")
    main()
