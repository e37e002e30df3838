"""A look says what Python's own calls say, and keeps the interpreter's lock."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from ondisk.storage import look as module
from ondisk.storage.look import Found, look, may_write

FASTER = look is not module._python_look
ONLY_THERE = pytest.mark.skipif(not FASTER, reason="the C library has no statx")


def as_python_says(file: str | int) -> Found:
    return module._python_look(file)


@ONLY_THERE
def test_a_look_says_what_python_says(tmp_path: Path) -> None:
    """Of directories, of files by name and by descriptor, with several names and with none, old and new."""
    path = tmp_path / "ä file"
    path.write_bytes(b"text")
    for wanted in ("/", "/dev/null", str(tmp_path), str(path)):
        assert look(wanted) == as_python_says(wanted)
    before = look(str(path))
    (tmp_path / "second").hardlink_to(path)
    path.chmod(0o400)
    assert look(str(path)) == as_python_says(str(path)) != before
    assert look(str(path)).links == 2
    with path.open() as opened:
        path.unlink()
        (tmp_path / "second").unlink()
        assert look(opened.fileno()) == as_python_says(opened.fileno())
        assert look(opened.fileno()).links == 0


@ONLY_THERE
@pytest.mark.parametrize("name", ["missing", "file/below", "x" * 300])
def test_what_cannot_be_looked_at_is_the_same_error(tmp_path: Path, name: str) -> None:
    (tmp_path / "file").touch()
    errors = []
    for which in (look, module._python_look):
        with pytest.raises(OSError) as caught:
            which(str(tmp_path / name))
        errors.append((type(caught.value), caught.value.errno, caught.value.filename))
    assert errors[0] == errors[1]


def test_what_may_be_written(tmp_path: Path) -> None:
    assert may_write(str(tmp_path))
    assert not may_write(str(tmp_path / "missing"))
    if os.geteuid():
        tmp_path.chmod(0o500)
        assert not may_write(str(tmp_path))
        tmp_path.chmod(0o700)
