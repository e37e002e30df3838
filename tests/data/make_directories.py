"""Make ``before-identity.tar.xz``: data directories and a snapshot as the version before wrote them.

``PYTHONPATH=<ondisk at 5c6d5b8> python tests/data/make_directories.py``. Run once, by hand: later versions
must read what that one wrote.
"""

import subprocess
import tempfile
from pathlib import Path

from ondisk import Cluster

here = Path(__file__).resolve().parent
with tempfile.TemporaryDirectory() as scratch:
    data = Path(scratch) / "before" / "data"
    with Cluster(data) as cluster:
        for number in range(40):
            cluster.put(f"k{number}", f"v{number}")
        for replica in (1, 2, 3):
            cluster.compact(replica)
        session = cluster.session()
        session.incr("counter", 5)
        cluster.export_snapshot(1, data.with_name("snapshot"))
        cluster.delete("k0")
        for number in range(1, 4):
            cluster.get("k0", via=number)
    for replica in (1, 2):  # so that one has its newest entries in tables, and the others in logs
        with Cluster(data) as cluster:
            cluster.put(f"again{replica}", "1")
            cluster.crash(3)
    for log in data.rglob("LOG*"):  # RocksDB's diary
        log.unlink()
    tar = here / "before-identity.tar.xz"
    subprocess.run(["tar", "-C", scratch, "-cJf", tar, "before"], check=True)
print(tar.stat().st_size, "bytes")
