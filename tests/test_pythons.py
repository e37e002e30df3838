"""The other Pythons on this machine run the core as well."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.digests import digest

ROOT = Path(__file__).parent.parent
CORE = [
    "test_raft.py",
    "test_raftlog.py",
    "test_raftlog_damage.py",
    "test_raftlog_sync.py",
    "test_diskkv.py",
    "test_diskkv_durability.py",
    "test_network.py",
    "test_cluster.py",
]


def find_python(version: str) -> str | None:
    """An interpreter of that version that really runs (a shim of pyenv may only say that it cannot)."""
    candidates = [f"python{version}", *sorted(Path.home().glob(f".pyenv/versions/{version}.*/bin/python"))]
    for candidate in candidates:
        try:
            subprocess.run([candidate, "-c", "import venv, ensurepip"], check=True, capture_output=True)
        except (OSError, subprocess.CalledProcessError):
            continue
        return str(candidate)
    return None


@pytest.mark.slow
@pytest.mark.long
@pytest.mark.timeout(1800)
@pytest.mark.parametrize("version", ["3.11", "3.12", "3.13"])
def test_the_core_works_on_every_supported_python(version: str, tmp_path: Path) -> None:
    """Installed from the same pinned set into a fresh environment, without the notebooks' packages."""
    if sys.version_info[:2] == tuple(map(int, version.split("."))):
        pytest.skip("this is the Python that runs all the tests")
    interpreter = find_python(version)
    if interpreter is None:
        pytest.skip(f"there is no Python {version} on this machine")
    subprocess.run([interpreter, "-m", "venv", str(tmp_path / "venv")], check=True)
    python = str(tmp_path / "venv" / "bin" / "python")
    pip = [python, "-m", "pip", "--disable-pip-version-check", "install", "--quiet"]
    tools = ["pytest", "pytest-timeout", "pytest-xdist", "hypothesis"]
    subprocess.run([*pip, "-c", "requirements.lock", "-e", ".", *tools], cwd=ROOT, check=True)
    done = subprocess.run(
        [python, "-m", "pytest", "-q", "-p", "no:cacheprovider", "-m", "not slow"]
        + [f"tests/{name}" for name in CORE],
        cwd=ROOT,
        env={**os.environ, "PYTEST_ADDOPTS": "", "HYPOTHESIS_STORAGE_DIRECTORY": str(tmp_path)},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        check=False,
    )
    print(done.stdout[-4000:])
    assert done.returncode == 0, done.stdout[-4000:]
    for seed in (0, 1):
        simulated = subprocess.run(
            [python, "-m", "tests.digests", str(seed)], cwd=ROOT, capture_output=True, text=True, check=True
        )
        assert simulated.stdout.strip() == digest(seed), f"seed {seed} is another run on Python {version}"
