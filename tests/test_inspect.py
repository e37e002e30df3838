"""``ondisk inspect``: it finds what is there and what is damaged, and leaves everything as it was."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from ondisk import Cluster, ReplicaStatus
from ondisk.errors import ConfigurationError, DirectoryInUse
from ondisk.inspect import inspect
from ondisk.lab.experiments.naive import OneBatch
from ondisk.storage import lines
from tests.waiting import wait_until


def is_acknowledged(leader: ReplicaStatus) -> bool:
    """Whether all others have said that they hold its whole log."""
    return set(leader.match_index.values()) == {leader.last_index}


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Three stopped replicas with tables, logs, a session, a compaction, an export. Do not change it."""
    path = tmp_path_factory.mktemp("inspected")
    with Cluster(path / "data") as cluster:
        for number in range(50):
            cluster.put(f"k{number}", "v" * 1000)
        cluster.get("k49", via=1)  # so that it has applied all of them
        leader = cluster.wait_for_leader()
        # If it leads, it keeps what a follower has not acknowledged yet.
        wait_until(lambda: is_acknowledged(cluster.status()[leader]))
        cluster.compact(1)
        cluster.session().incr("n")
        for member in (1, 2, 3):
            cluster.get("n", via=member)
        cluster.export_snapshot(1, path / "backup")
        cluster.crash(3)  # so that it has write-ahead logs, and not only tables
    return path


@pytest.fixture
def data(made: Path, tmp_path: Path) -> Path:
    """A copy to be damaged."""
    shutil.copytree(made / "data", tmp_path / "data")
    return tmp_path / "data"


def state_of(directory: Path) -> dict[str, tuple[int, int, int, bytes]]:
    """All names, with times, inodes and contents."""
    return {
        str(path): (
            state.st_mode,
            state.st_mtime_ns,
            state.st_ino,
            path.read_bytes() if path.is_file() else b"",
        )
        for path in directory.rglob("*")
        for state in [path.lstat()]
    }


def test_it_says_what_is_there_and_changes_nothing(made: Path) -> None:
    before = state_of(made)
    found = inspect(made / "data")
    assert found.damage == []
    assert [replica.number for replica in found.replicas] == [1, 2, 3]
    first = found.replicas[0]
    assert first.log["voted_for"] in (1, 2, 3) and first.log["term"] >= 1
    assert first.log["members"]["voters"] == [1, 2, 3]
    assert first.log["base_index"] > 49 and first.log["last_index"] >= first.log["base_index"]
    assert found.replicas[1].log["base_index"] == 0
    for replica in found.replicas[:2]:
        assert (replica.state["keys"], replica.state["sessions"], replica.state["format"]) == (51, 1, "2")
        assert replica.state["index"] == replica.log["last_index"]
    snapshot = inspect(made / "backup").snapshot
    assert snapshot is not None and snapshot.damage == []
    assert snapshot.header["index"] == first.state["index"]
    assert state_of(made) == before


def test_a_running_replica_is_refused(make_cluster: Callable[..., Cluster]) -> None:
    cluster = make_cluster()
    cluster.stop(2)
    with pytest.raises(DirectoryInUse, match=r"replica-1 is in use by this process"):
        inspect(cluster.data_dir)
    assert inspect(cluster.data_dir / "replica-2").damage == []
    cluster.start(2)


def flip(pattern: str) -> Callable[[Path], object]:
    def harm(replica: Path) -> None:
        file = max(replica.glob(pattern), key=lambda file: file.stat().st_size)
        stored = bytearray(file.read_bytes())
        stored[min(100, len(stored) // 2)] ^= 1
        file.write_bytes(stored)

    return harm


def remove(pattern: str) -> Callable[[Path], object]:
    def harm(replica: Path) -> None:
        for file in replica.glob(pattern):
            shutil.rmtree(file) if file.is_dir() else file.unlink()

    return harm


def cut(pattern: str) -> Callable[[Path], object]:
    def harm(replica: Path) -> None:
        file = max(replica.glob(pattern), key=lambda file: file.stat().st_size)
        file.write_bytes(file.read_bytes()[: file.stat().st_size // 2])

    return harm


def later(name: str, kind: str) -> Callable[[Path], object]:
    return lambda replica: (replica / name).write_bytes(lines.encode(kind, 2, "something new"))


HARMS: list[tuple[int, Callable[[Path], object], str]] = [
    (1, flip("log/rocksdb/*.sst"), "log/rocksdb"),
    (1, flip("state/db-*/*.sst"), "state/db-000001"),
    (3, flip("log/rocksdb/*.log"), "log"),
    (3, cut("log/rocksdb/*.log"), "the end of the log is lost"),
    (1, flip("log/rocksdb/MANIFEST-*"), "log/rocksdb"),
    (1, flip("log/witness"), "log/witness"),
    (1, remove("log/witness"), "log/witness"),
    (1, later("log/witness", "ondisk-witness"), "log/witness: has version 2"),
    (1, remove("log/rocksdb/CURRENT"), "CURRENT is missing"),
    (1, remove("log/rocksdb/*.sst"), "log/rocksdb"),
    (1, remove("log"), "log: is missing"),
    (1, remove("state"), "state: is missing"),
    (1, flip("state/current"), "state/current"),
    (1, remove("state/current"), "state/current"),
    (1, later("state/current", "ondisk-current"), "state/current: has version 2"),
    (1, remove("state/db-000001"), "state/db-000001"),
    (1, remove("state/db-000001/*.log"), "state/db-000001"),
]


@pytest.mark.parametrize("number", range(len(HARMS)))
def test_damage_is_found_with_its_place_and_everything_else_is_told(data: Path, number: int) -> None:
    member, harm, place = HARMS[number]
    replica = data / f"replica-{member}"
    harm(replica)
    before = state_of(data)
    found = inspect(data)
    assert found.damage, "it was not noticed"
    assert all(str(replica) in damage for damage in found.damage), found.damage
    assert any(place in damage for damage in found.damage), found.damage
    others = [other for other in found.replicas if other.number != member]
    assert all(other.log and other.state and not other.damage for other in others)
    assert state_of(data) == before


def test_damage_of_an_exported_snapshot_is_found(made: Path, tmp_path: Path) -> None:
    stored = (made / "backup").read_bytes()
    damaged = tmp_path / "backup"
    for content in (
        stored[:-1],
        stored[: len(stored) // 2],
        stored[:3000] + bytes([stored[3000] ^ 1]) + stored[3001:],
        b"text",
        b"",
    ):
        damaged.write_bytes(content)
        snapshot = inspect(damaged).snapshot
        assert snapshot is not None and [str(damaged) in text for text in snapshot.damage] == [True]


def test_another_state_machines_directory_is_not_called_damaged(tmp_path: Path) -> None:
    with Cluster(tmp_path / "data", members=(1,), state_machine=OneBatch) as cluster:
        cluster.wait_for_leader()
    found = inspect(tmp_path / "data")
    assert found.damage == [] and "another state machine" in found.replicas[0].state["kind"]


def test_what_is_neither_a_replica_nor_a_snapshot_is_refused(tmp_path: Path) -> None:
    for path in (tmp_path, tmp_path / "nothing"):
        with pytest.raises(ConfigurationError):
            inspect(path)


def on_a_terminal(*arguments: str, module: str = "ondisk") -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", module, *arguments]
    return subprocess.run(command, capture_output=True, text=True, check=False, timeout=60)


def test_the_command_prints_it_and_its_status_tells_damage(made: Path, data: Path, tmp_path: Path) -> None:
    whole = on_a_terminal("inspect", str(made / "data"))
    assert (whole.returncode, whole.stderr) == (0, "")
    assert "replica-3: " in whole.stdout and whole.stdout.endswith("whole: all checksums are right\n")
    flip("state/db-*/*.sst")(data / "replica-1")
    damaged = on_a_terminal(str(data), "-o", "json", module="ondisk.inspect")
    assert damaged.returncode == 1, damaged.stderr
    told = json.loads(damaged.stdout)
    assert told["damaged"] and told["replicas"][0]["damage"] and not told["replicas"][1]["damage"]
    wrong = on_a_terminal("inspect", str(tmp_path / "nothing"))
    assert wrong.returncode == 2 and wrong.stderr.startswith("error: ")
    assert len(wrong.stderr.splitlines()) == 1
