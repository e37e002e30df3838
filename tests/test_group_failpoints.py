"""A process that ends at any step of a compaction or an installation: old or new whole, nothing lost."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from ondisk import Cluster, DiskKV
from ondisk.diskkv import POINTS as MACHINE_POINTS
from ondisk.diskkv import Scan
from ondisk.replica.compaction import POINTS as COMPACTION_POINTS
from ondisk.snapshot.streaming import POINTS as INSTALL_POINTS
from tests.doomed import DEAD

RECOVERY_POINTS = tuple(
    point for point in MACHINE_POINTS if point.startswith(("recover:", "pointer:", "open:"))
)
ROOT = Path(__file__).parent.parent


@pytest.mark.parametrize("point", COMPACTION_POINTS + INSTALL_POINTS + RECOVERY_POINTS)
def test_a_process_that_ends_there_loses_nothing(tmp_path: Path, point: str) -> None:
    """Replica 3 holds the old state or the new one, with the index that belongs to it, and catches up."""
    child = subprocess.run(
        [sys.executable, "-m", "tests.doomed", tmp_path / "data", point],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert child.returncode == DEAD, (child.stdout[-300:], child.stderr[-1000:])
    told = [line.split() for line in child.stdout.splitlines()]
    acknowledged = [int(words[1]) for words in told if words[0] == "ack"]
    whole = {(int(words[1]), int(words[2])) for words in told if words[0] in ("old", "new")}

    machine = DiskKV(tmp_path / "data" / "replica-3" / "state")
    index = machine.open()
    keys = [key for key, _ in machine.lookup(Scan(prefix=b"k"))]
    machine.close()
    assert (index, len(keys)) in whole

    with Cluster(tmp_path / "data") as cluster:
        content = cluster.scan(timeout=20)
        assert {f"k{number}".encode() for number in acknowledged} <= dict(content).keys()
        for member in cluster.members:
            assert cluster.scan(via=member, timeout=20) == content
        cluster.put("goes", "on", via=3)
    left = {path.name for path in (tmp_path / "data" / "replica-3" / "state").iterdir()}
    assert len([name for name in left if name.startswith(("db-", "view-"))]) == 1, left
