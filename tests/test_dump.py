"""Dump and load: all pairs, byte for byte, or an error; and an end in the middle can be gone on with."""

from __future__ import annotations

import io
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from ondisk import (
    Cluster,
    ConfigurationError,
    Corrupt,
    Node,
    NoLeader,
    StorageError,
    TcpNetwork,
    UnknownVersion,
    connect,
)
from ondisk.dump import PAGE, dump, load, pairs
from ondisk.net.addresses import format_address
from ondisk.net.memory import MemoryNetwork
from tests.processes import Terminal
from tests.tcp import free_addresses
from tests.terminals import alone

__all__ = ["alone"]  # a fixture

STRANGE = {
    b"plain": b"text",
    b"empty": b"",
    b"\xff\xfe": b"\x00\xff" * 50,
    "käse".encode(): b'quote " and \\ and \n',
    "\u2028".encode(): b"\xed\xa0\x80",  # a line separator; half of a surrogate pair, which is no UTF-8
    b"\x00": b'{"sha256": 1}',
}


@pytest.fixture
def node(tmp_path: Path) -> Any:
    """A group of one."""
    with Node(1, [1], tmp_path / "data", MemoryNetwork()) as node:
        node.wait_for_leader()
        yield node


def other_group(path: Path) -> Node:
    node = Node(1, [1], path, MemoryNetwork())
    node.start()
    node.wait_for_leader()
    return node


def everything(node: Node) -> dict[bytes, bytes]:
    return dict(node.scan(limit=10_000))


def test_what_is_loaded_is_what_was_dumped(node: Node, tmp_path: Path) -> None:
    """Whatever bytes they are, and over several pages; the checksum of equal contents is equal."""
    many = {f"k{number:04}".encode(): b"v" for number in range(2 * PAGE)}
    node.put_many((STRANGE | many).items())
    seen: list[int] = []
    complete = dump(node, tmp_path / "dump", progress=seen.append)
    assert complete.pairs == len(STRANGE) + len(many) == seen[-1] and len(seen) > 2
    assert (tmp_path / "dump").stat().st_mode & 0o777 == 0o600
    with other_group(tmp_path / "other") as other:
        other.put("mine", "stays")
        assert load(other, tmp_path / "dump") == complete.pairs
        assert everything(other) == STRANGE | many | {b"mine": b"stays"}
        other.delete("mine")
        assert dump(other, tmp_path / "again") == complete
    assert (tmp_path / "again").read_bytes() == (tmp_path / "dump").read_bytes()


def test_a_dump_is_what_the_head_of_the_module_says(node: Node, tmp_path: Path) -> None:
    node.put("name", "Ada")
    node.put("picture", b"\xff")
    node.put("zebra", "not asked for")
    assert dump(node, tmp_path / "d", prefix="n").pairs == 1
    dump(node, tmp_path / "dump")
    first, *middle, last = [json.loads(line) for line in (tmp_path / "dump").read_text().splitlines()]
    assert first == {"ondisk_dump": 1, "prefix": ""}
    assert middle[:2] == [{"key": "name", "value": "Ada"}, {"key": "picture", "value64": "/w=="}]
    assert last["pairs"] == 3 and len(last["sha256"]) == 64


def test_a_dump_of_nothing_is_complete(node: Node, tmp_path: Path) -> None:
    assert dump(node, tmp_path / "dump").pairs == 0
    assert list(pairs(io.BytesIO((tmp_path / "dump").read_bytes()))) == []


def test_a_dump_cut_at_any_byte_is_no_dump_and_can_be_gone_on_with(node: Node, tmp_path: Path) -> None:
    """The same file comes out, and a complete one is left as it is."""
    node.put_many(STRANGE.items())
    complete = dump(node, tmp_path / "dump")
    data = (tmp_path / "dump").read_bytes()
    cut = tmp_path / "cut"
    for length in [*range(0, len(data), 7), len(data) - 1]:
        with pytest.raises(Corrupt, match="line"):
            list(pairs(io.BytesIO(data[:length])))
        cut.write_bytes(data[:length])
        assert dump(node, cut, resume=True) == complete
        assert cut.read_bytes() == data
    assert dump(node, cut, resume=True) == complete


def test_a_changed_byte_is_noticed_before_anything_is_loaded(node: Node, tmp_path: Path) -> None:
    node.put_many([("a", "1"), ("b", "2")])
    dump(node, tmp_path / "dump")
    data = (tmp_path / "dump").read_bytes()
    bad = tmp_path / "bad"
    for place in range(len(data)):
        bad.write_bytes(data[:place] + bytes([data[place] ^ 1]) + data[place + 1 :])
        with pytest.raises((Corrupt, UnknownVersion)):
            load(node, bad)
    bad.write_bytes(data + b"\n")
    with pytest.raises(Corrupt, match="follows"):
        load(node, bad)
    bad.write_bytes(data.replace(b'"ondisk_dump": 1', b'"ondisk_dump": 2'))
    with pytest.raises(UnknownVersion, match="version 2"):
        load(node, bad)
    assert everything(node) == {b"a": b"1", b"b": b"2"}
    with pytest.raises(Corrupt, match="checksum"):
        bad.write_bytes(data.replace(b'"1"', b'"7"'))
        dump(node, bad, resume=True)


def test_a_file_that_is_there_is_not_replaced(node: Node, tmp_path: Path) -> None:
    (tmp_path / "mine").write_text("precious\n")
    with pytest.raises(StorageError, match="is there already"):
        dump(node, tmp_path / "mine")
    with pytest.raises(ConfigurationError, match="is no dump of these keys"):
        dump(node, tmp_path / "mine", resume=True)
    dump(node, tmp_path / "n", prefix="n")
    with pytest.raises(ConfigurationError, match="is no dump of these keys"):
        dump(node, tmp_path / "n", resume=True)
    assert (tmp_path / "mine").read_text() == "precious\n"
    with pytest.raises(ConfigurationError, match="directory of a replica"):
        dump(node, tmp_path / "data" / "replica-1" / "dump")
    with pytest.raises(ConfigurationError):
        load(node, tmp_path / "n", skip=-1)


def test_a_dump_outlives_a_leader(make_cluster: Callable[..., Cluster], tmp_path: Path) -> None:
    """An election in the middle costs time only."""
    cluster = make_cluster()
    cluster.put_many((f"k{number:04}", "v") for number in range(3 * PAGE))
    crashed: list[int] = []

    def crash_the_leader(done: int) -> None:
        if not crashed:
            crashed.append(cluster.wait_for_leader())
            cluster.crash(crashed[0])

    assert dump(cluster, tmp_path / "dump", progress=crash_the_leader).pairs == 3 * PAGE


def test_a_dump_and_a_load_from_elsewhere(tmp_path: Path) -> None:
    """Where an answer holds 8 MB, and so fewer of the largest pairs than a page."""
    many = {f"k{number:04}".encode(): b"v" for number in range(2 * PAGE)}
    large = {f"large{number}".encode(): b"x" * (1 << 20) for number in range(9)}
    address = free_addresses(1)
    with Node(1, [1], tmp_path / "data", TcpNetwork(address)) as node:
        node.wait_for_leader()
        node.put_many((many | large | {b"z": b""}).items())
        with connect(format_address(address[1])) as client:
            complete = dump(client, tmp_path / "dump")
            assert complete.pairs == len(many) + len(large) + 1
            node.delete("z")
            assert load(client, tmp_path / "dump") == complete.pairs
        assert node.get("z") == b""
        assert dump(node, tmp_path / "again") == complete


def test_without_a_leader_a_dump_ends_and_what_it_has_stays(
    node: Node, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """And so does a load, which says what is stored."""
    node.put_many((f"k{number:04}", "v") for number in range(2 * PAGE))
    monkeypatch.setattr("ondisk.dump.PATIENCE", 0.0)

    def stop(done: int) -> None:
        monkeypatch.setattr(node, "read", nobody)

    def nobody(*_: object, **__: object) -> None:
        raise NoLeader("nobody")

    with pytest.raises(NoLeader):
        dump(node, tmp_path / "dump", progress=stop)
    monkeypatch.undo()
    assert dump(node, tmp_path / "dump", resume=True).pairs == 2 * PAGE


def test_a_load_can_skip_what_is_stored(node: Node, tmp_path: Path) -> None:
    node.put_many([("a", "1"), ("b", "2"), ("c", "3")])
    dump(node, tmp_path / "dump")
    with other_group(tmp_path / "other") as other:
        assert load(other, tmp_path / "dump", skip=2) == 3
        assert everything(other) == {b"c": b"3"}


def test_dump_and_load_at_the_prompt(alone: Callable[..., Terminal], tmp_path: Path) -> None:
    """One line each, and a mistake says what to do."""
    terminal = alone()
    assert terminal.ask("put k v") == "ok"
    assert terminal.ask("dump all").startswith("ok: 1 pairs, sha256 ")
    assert "is there already: go on with it (resume)" in terminal.ask("dump all")
    assert terminal.ask("dump --resume all").startswith("ok: 1 pairs")
    assert terminal.ask("dump some k").startswith("ok: 1 pairs")
    assert terminal.ask("delete k") == "ok"
    assert terminal.ask("load all") == "ok: 1 pairs"
    assert terminal.ask("get k") == "query key: k, result: v"
    assert terminal.ask("load --skip 1 all") == "ok: 1 pairs"
    assert "invalid input" in terminal.ask("dump")
    assert terminal.ask("load nothing").startswith("error: ")
