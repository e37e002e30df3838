"""Run tests, each without a safeguard: ``python -m tests.without < orders``, which are JSON, name to test.

One process imports what all of them need, and each test runs in a fork of it. No database is open here: a
process whose RocksDB has threads must not fork.
"""

from __future__ import annotations

import json
import os
import sys
import tempfile

import hypothesis
import pytest

from tests import virtual

__all__ = ["hypothesis", "virtual"]  # what takes long to import


def outcome(name: str, test: str) -> tuple[int, str]:
    """The status with which pytest ends, and what it prints."""
    with tempfile.TemporaryFile() as output:
        if (child := os.fork()) == 0:
            os.dup2(output.fileno(), 1)
            os.dup2(output.fileno(), 2)
            status = pytest.main(["-x", "-q", "-n", "0", "-p", "no:cacheprovider", "--without", name, test])
            sys.stdout.flush()
            os._exit(status)
        _, ended = os.waitpid(child, 0)
        output.seek(0)
        return os.waitstatus_to_exitcode(ended), output.read().decode(errors="replace")


if __name__ == "__main__":
    json.dump({name: outcome(name, test) for name, test in json.load(sys.stdin).items()}, sys.stdout)
