"""A run of the simulator as one number, to compare processes and Pythons: ``tests.digests SEED``."""

from __future__ import annotations

import hashlib
import sys

from ondisk.simulation.run import run


def digest(seed: int) -> str:
    """Of every line of the record."""
    record = "\n".join(map(str, run(seed).trace))
    return hashlib.sha256(record.encode()).hexdigest()


if __name__ == "__main__":
    print(digest(int(sys.argv[1])))
