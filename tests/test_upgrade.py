"""Directories that the version before wrote, which knew neither groups nor disks: they open, and get both."""

from __future__ import annotations

import shutil
import subprocess
import tarfile
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path

import pytest

from ondisk import Cluster, Node, import_snapshot
from ondisk.errors import NoLeader
from ondisk.net.memory import MemoryNetwork
from ondisk.raft.members import LEGACY
from tests.processes import Terminal, free_ports
from tests.waiting import wait_until

ROOT = Path(__file__).parents[1]

# Made by version 0.1.0 (commit 5c6d5b8): ``plain`` is three replicas that were closed, ``grown`` has a
# fourth one, compacted logs and a session; ``backup`` is an export of it.
DATA = Path(__file__).parent / "data" / "version-1.tar.gz"


@pytest.fixture
def old(tmp_path: Path) -> Path:
    with tarfile.open(DATA) as tar:
        tar.extraction_filter = getattr(tarfile, "data_filter", None)  # Python 3.11.2 has none
        tar.extractall(tmp_path)
    return tmp_path


def assert_holds_all(cluster: Cluster, via: int | None = None) -> None:
    for number in range(30):
        assert cluster.get(f"k{number}", via=via, timeout=10) == f"v{number}".encode()


def identified(cluster: Cluster) -> bool:
    """Whether all are in one group with an id, and each with its own disk among the voters."""
    found = {status.group for status in cluster.status().values() if status.running}
    return len(found) == 1 and found.isdisjoint({"", LEGACY.hex()})


@pytest.mark.parametrize("name", ["plain", "grown"])
def test_they_open_and_are_given_an_identity_that_stays(
    old: Path, make_cluster: Callable[..., Cluster], name: str
) -> None:
    cluster = make_cluster(name)
    members = (1, 2, 3) if name == "plain" else (1, 2, 3, 4)
    assert cluster.members == members
    assert_holds_all(cluster)
    wait_until(lambda: identified(cluster))
    wait_until(lambda: all(status.voters == members for status in cluster.status().values()))
    group = cluster.status()[1].group
    cluster.put("new", "v")
    cluster.close()
    again = make_cluster(name)
    again.put("newer", "v", timeout=10)
    assert {status.group for status in again.status().values()} == {group}
    for member in members:
        assert_holds_all(again, via=member)


def test_a_majority_is_enough_and_who_comes_later_is_taken_in_with_its_log(old: Path) -> None:
    """It has no disk in the new members, so it does not count before it has caught up."""
    network = MemoryNetwork()
    nodes = {member: Node(member, (1, 2, 3), old / "plain", network) for member in (1, 2, 3)}
    try:
        nodes[1].start()
        nodes[2].start()
        nodes[1].put("new", "v", timeout=10)
        wait_until(lambda: nodes[1].status.group == nodes[2].status.group != LEGACY.hex())
        assert nodes[1].configuration[1].disk_of(3) == b""
        nodes[3].start()
        wait_until(lambda: bool(nodes[1].configuration[1].disk_of(3)), 30)
        assert {node.status.group for node in nodes.values()} == {nodes[1].status.group}
        assert nodes[3].get("k7", timeout=10) == b"v7" and nodes[3].get("new") == b"v"
        nodes[1].stop()
        nodes[2].put("newer", "v", timeout=10)
    finally:
        for node in nodes.values():
            node.stop()


def test_a_majority_is_enough_and_one_that_was_lost_is_fed_anew(
    old: Path, make_cluster: Callable[..., Cluster]
) -> None:
    shutil.rmtree(old / "plain" / "replica-3")
    cluster = make_cluster("plain")
    cluster.put("new", "v", timeout=10)
    wait_until(lambda: identified(cluster) and cluster.status()[3].voters == (1, 2, 3), 30)
    for member in (1, 2, 3):
        assert_holds_all(cluster, via=member)
        assert cluster.get("new", via=member) == b"v"


def test_one_of_three_alone_gets_no_identity_and_serves_nothing(
    old: Path, make_cluster: Callable[..., Cluster]
) -> None:
    """The other two may have what it lacks."""
    for member in (1, 2):
        shutil.rmtree(old / "plain" / f"replica-{member}")
    cluster = make_cluster("plain")
    assert cluster.members == (1, 2, 3)
    with pytest.raises(NoLeader):
        cluster.get("k1", timeout=4)
    assert cluster.status()[3].group == LEGACY.hex()


def test_an_export_of_the_version_before_is_imported(old: Path, make_cluster: Callable[..., Cluster]) -> None:
    import_snapshot(old / "backup", old / "new")
    cluster = make_cluster("new")
    assert_holds_all(cluster)
    assert cluster.get("n") == b"1"


VERSION_1 = "5c6d5b8"  # the commit


@pytest.fixture
def old_code(tmp_path: Path) -> dict[str, str]:
    """The environment of a process that runs version 0.1.0."""
    archive = tmp_path / "old.tar"
    made = subprocess.run(
        ["git", "archive", "-o", str(archive), VERSION_1, "ondisk"],
        cwd=ROOT,
        capture_output=True,
        check=False,
    )
    if made.returncode:
        pytest.skip("the history of this repository does not go back to version 0.1.0")
    with tarfile.open(archive) as tar:
        tar.extraction_filter = getattr(tarfile, "data_filter", None)
        tar.extractall(tmp_path / "old")
    return {"PYTHONPATH": str(tmp_path / "old")}


@pytest.mark.long
@pytest.mark.slow
def test_one_process_after_the_other_is_upgraded_and_no_write_is_lost(
    tmp_path: Path, old_code: dict[str, str]
) -> None:
    """The two versions do not hear each other, so from the first to the second nobody may be away."""
    members = ",".join(f"127.0.0.1:{port}" for port in free_ports(3))
    acknowledged: list[int] = []

    def put(terminal: Terminal) -> None:
        number = len(acknowledged)
        assert terminal.ask(f"put k{number} v{number}") == "ok"
        acknowledged.append(number)

    with ExitStack() as stack:

        def start(replica_id: int, environment: dict[str, str]) -> Terminal:
            arguments = ("--replica-id", str(replica_id), "--members", members)
            return stack.enter_context(Terminal(*arguments, cwd=tmp_path, environment=environment))

        replicas = {number: start(number, old_code) for number in (1, 2, 3)}
        for replica in replicas.values():
            replica.expect("\nexit\n")  # the end of the usage, with which it greets
            put(replica)
        for number in (3, 2, 1):
            replicas[number].end_input()
            assert replicas[number].wait() == 0
            if number != 2:  # then one of each version is left, and no majority
                put(replicas[1 if number == 3 else 2])
            replicas[number] = start(number, {"PYTHONPATH": str(ROOT)})
            replicas[number].ready()
            put(replicas[1 if number == 3 else number])
        for replica in replicas.values():
            for number in acknowledged:
                assert replica.ask(f"get k{number}").endswith(f"result: v{number}")
