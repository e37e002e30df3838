"""A look says what Python's own calls say, and keeps the interpreter's lock."""

from __future__ import annotations

import os
import time
from pathlib import Path

import pytest

from ondisk.storage.look import Found, Look, PythonLook

FASTER = Look is not PythonLook
ONLY_THERE = pytest.mark.skipif(not FASTER, reason="the C library has no statx")


def look(file: str | int) -> Found:
    return Look(file).found()


def as_python_says(file: str | int) -> Found:
    return PythonLook(file).found()


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
    for which in (look, as_python_says):
        with pytest.raises(OSError) as caught:
            which(str(tmp_path / name))
        errors.append((type(caught.value), caught.value.errno, caught.value.filename))
    assert errors[0] == errors[1]


def test_what_may_be_written(tmp_path: Path) -> None:
    assert Look(str(tmp_path)).may_write()
    assert not Look(str(tmp_path / "missing")).may_write()
    if os.geteuid():
        tmp_path.chmod(0o500)
        assert not Look(str(tmp_path)).may_write()
        tmp_path.chmod(0o700)


@pytest.mark.parametrize("kind", [Look, PythonLook])
def test_a_key_is_another_one_when_anything_has_changed(tmp_path: Path, kind: type[PythonLook]) -> None:
    """But not when it was only read."""
    looked_at = kind(str(tmp_path))
    keys = [looked_at.key()]
    for change in ((tmp_path / "new").touch, (tmp_path / "new").unlink, lambda: tmp_path.chmod(0o711)):
        time.sleep(0.02)  # a change time is as fine as a tick
        change()
        keys.append(looked_at.key())
        list(tmp_path.iterdir())
        assert looked_at.key() == keys[-1]
    tmp_path.rename(tmp_path.with_name("before"))
    tmp_path.mkdir()
    keys.append(looked_at.key())
    assert len(set(keys)) == 5
