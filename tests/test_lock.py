"""Who has a directory: one process at a time, and the next one is told which."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from ondisk.errors import DirectoryInUse, StorageError
from ondisk.storage.lock import DirectoryLock, describe_process
from ondisk.storage.store import Store


@pytest.fixture
def other_process(tmp_path: Path) -> Iterator[subprocess.Popen[str]]:
    """A process that holds ``tmp_path / "held"``, lock and database, until it is killed."""
    program = (
        "import sys; from pathlib import Path\n"
        "from ondisk.storage.lock import DirectoryLock; from ondisk.storage.store import Store\n"
        "path = Path(sys.argv[1]); lock = DirectoryLock(path); store = Store(path / 'db')\n"
        "print('ready', flush=True); sys.stdin.read()"
    )
    process = subprocess.Popen(
        [sys.executable, "-c", program, str(tmp_path / "held")],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        cwd=Path(__file__).parents[1],
    )
    try:
        assert process.stdout is not None and process.stdout.readline() == "ready\n"
        yield process
    finally:
        process.kill()
        process.communicate()


def test_a_directory_of_another_process_is_refused_with_its_name_until_it_dies(
    tmp_path: Path, other_process: subprocess.Popen[str]
) -> None:
    """The error says which process; when that is killed the directory is free at once."""
    with pytest.raises(DirectoryInUse, match=rf"process {other_process.pid} \(.*-c"):
        DirectoryLock(tmp_path / "held")
    with pytest.raises(DirectoryInUse, match="another process"):
        Store(tmp_path / "held" / "db")
    other_process.kill()
    other_process.wait()
    DirectoryLock(tmp_path / "held").release()
    Store(tmp_path / "held" / "db").close()


def test_a_directory_of_this_process_is_refused_with_its_name(tmp_path: Path) -> None:
    """Two objects in one process exclude each other as two processes do."""
    lock = DirectoryLock(tmp_path / "data")
    with pytest.raises(DirectoryInUse, match=rf"this process \({os.getpid()}\)"):
        DirectoryLock(tmp_path / "data")
    lock.release()
    lock.release()
    DirectoryLock(tmp_path / "data").release()
    store = Store(tmp_path / "db")
    with pytest.raises(DirectoryInUse, match="this process"):
        Store(tmp_path / "db")
    store.close()


def test_a_process_that_cannot_be_found_is_described_all_the_same() -> None:
    """An owner's note may be empty, nonsense, or name a process that is gone."""
    assert describe_process("") == describe_process(None) == "process unknown"
    assert describe_process("junk") == "process junk"
    assert describe_process(2**22 + 1) == f"process {2**22 + 1}"


@pytest.mark.parametrize("opener", [Store, DirectoryLock])
def test_a_path_that_cannot_be_a_directory_is_a_clear_error(
    tmp_path: Path, opener: Callable[[Path], object]
) -> None:
    """A file in the way is a ``StorageError`` that names the place."""
    (tmp_path / "file").write_text("not a directory")
    for path in (tmp_path / "file", tmp_path / "file" / "below"):
        with pytest.raises(StorageError, match="file"):
            opener(path)
