"""A full disk: the replica stops and says why, the others go on, and it comes back when there is room."""

from __future__ import annotations

import random
import subprocess
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path

import psutil
import pytest

from ondisk import Cluster, OutcomeUnknown
from tests.processes import Terminal, free_ports
from tests.waiting import wait_until

VALUE = "x" * 1000


@pytest.fixture
def terminals(tmp_path: Path) -> Iterator[Callable[[int], Terminal]]:
    """Start replica 1, 2 or 3 in a process of its own."""
    members = ",".join(f"127.0.0.1:{port}" for port in free_ports(3))
    with ExitStack() as stack:

        def start(replica_id: int) -> Terminal:
            terminal = Terminal("--replica-id", str(replica_id), "--members", members, cwd=tmp_path)
            stack.enter_context(terminal)
            terminal.ready()
            return terminal

        yield start


def leads(terminal: Terminal) -> bool:
    return terminal.status()[0][1] == "leader"


@pytest.mark.parametrize("who", ["follower", "leader"])
def test_a_process_that_may_not_write_more_stops_and_comes_back(
    terminals: Callable[[int], Terminal], who: str
) -> None:
    """A limit on the size of its files is set while it runs, and the operating system enforces it."""
    group = {member: terminals(member) for member in (1, 2, 3)}
    assert group[1].ask("put k v") == "ok"
    victim = next(member for member in group if leads(group[member]) == (who == "leader"))
    other = next(member for member in group if member != victim)
    psutil.Process(group[victim].pid).rlimit(psutil.RLIMIT_FSIZE, (100_000, 100_000))

    acknowledged = 0
    for number in range(300):
        answer = group[other].ask(f"put k{number:03} {number}{VALUE}")
        if answer == "ok":
            acknowledged += 1
        else:
            assert answer.startswith(("not done", "outcome unknown")), answer
            assert group[other].ask(f"put k{number:03} {number}{VALUE}") == "ok"
    assert acknowledged > 290

    wait_until(lambda: group[victim].status()[0][1] == "failed")
    assert "the disk refused" in " ".join(group[victim].status()[-1])  # the reason, below the table
    assert group[victim].ask("put x y").startswith("not done: replica")
    assert group[other].ask("get k") == "query key: k, result: v"

    group[victim].end_input()
    assert group[victim].wait() == 1
    assert "the disk refused" in group[victim].errors
    again = terminals(victim)
    for number in range(300):
        assert again.ask(f"get k{number:03}") == f"query key: k{number:03}, result: {number}{VALUE}"


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system with 24 MB, if this user may mount one."""
    path = tmp_path / "small"
    path.mkdir()
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=24m", "ondisk-test", path], capture_output=True, check=False
    )
    if mounted.returncode != 0:
        pytest.skip(f"no file system can be mounted here: {mounted.stderr.decode().strip()}")
    yield path
    subprocess.run(["umount", path], check=True)


def test_a_replica_on_a_full_file_system_stops_and_comes_back(tmp_path: Path, small_disk: Path) -> None:
    """Something else fills the file system; when that is gone, the replica goes on where it was."""
    data = tmp_path / "data"
    data.mkdir()
    (data / "replica-3").symlink_to(small_disk)
    with Cluster(data) as cluster:
        cluster.wait_for_leader()
        if cluster.leader_id == 3:
            cluster.transfer_leadership(1)
        cluster.put("before", "1")
        filler = small_disk / "filler"
        with filler.open("wb", buffering=0) as file, pytest.raises(OSError, match="No space left"):
            while True:
                file.write(bytes(4096))
        for number in range(200):
            try:
                cluster.put(f"k{number}", VALUE, timeout=20)
            except OutcomeUnknown:  # on a slow machine replica 3 may lead again when its disk is full
                cluster.put(f"k{number}", VALUE, timeout=20)
        wait_until(lambda: cluster.status()[3].role == "failed")
        assert "No space left" in (cluster.status()[3].error or "")
        filler.unlink()
        cluster.start(3)
        assert cluster.get("k199", via=3, timeout=20) == VALUE.encode()
        assert cluster.get("before", via=3) == b"1"


def test_a_disk_that_is_full_during_a_snapshot_keeps_the_old_state(tmp_path: Path, small_disk: Path) -> None:
    """The state that arrives is larger than the room; the replica stops, and is fed when there is room."""
    data = tmp_path / "data"
    data.mkdir()
    (data / "replica-3").symlink_to(small_disk)
    with Cluster(data) as cluster:
        cluster.put("old", "state")
        assert cluster.get("old", via=3) == b"state"
        cluster.stop(3)
        chance = random.Random(1)  # what can be compressed would fit
        for future in [cluster.put_async(f"k{number}", chance.randbytes(8000)) for number in range(400)]:
            future.result(10)
        cluster.put("last", "one")
        filler = small_disk / "filler"
        filler.write_bytes(bytes(22 << 20))
        for member in (1, 2):
            wait_until(lambda member=member: cluster.compact(member) > 400)
        cluster.start(3)
        wait_until(lambda: cluster.status()[3].role == "failed")
        assert "No space left" in (cluster.status()[3].error or "")
        filler.unlink()
        cluster.start(3)
        assert cluster.get("last", via=3, timeout=20) == b"one"
        assert cluster.get("old", via=3) == b"state"
