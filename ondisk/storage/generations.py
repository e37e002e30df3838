"""Generations: a state that can be replaced as a whole, in one atomic step.

A state machine's directory holds::

    owner        who has it open (``DirectoryLock``)
    current      the pointer: the name of the live database, ``ondisk-current 1 db-000002 1f0c9a57``
    db-000002/   the live database, one ``Store``
    db-000003/   the next one, while it is being built
    view-000001/ a snapshot that somebody still reads

Whatever ``current`` does not name is a leftover of a crash, and ``open`` removes it. So everything that is
built elsewhere counts at the moment when the pointer is replaced, and not before. A file is replaced
atomically in four steps: write another one, fsync it, rename it over the old one, fsync the directory.

Names in the pointer are relative: a directory that was moved opens, and so does one from elsewhere.
"""

from __future__ import annotations

import os
import re
import shutil
import zlib
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path

from ondisk.errors import Corrupt, StorageError
from ondisk.storage import lines
from ondisk.storage.disk import Disk, sync_directory
from ondisk.storage.errors import NOT_THERE, disk_errors
from ondisk.storage.lock import DirectoryLock
from ondisk.storage.paths import names_in, read_regular
from ondisk.storage.store import Store
from ondisk.storage.watch import Watch

# Where an experiment may crash (``Disk.reach``). In the order in which they are reached:
CREATE_POINTS = ("create: directory made", "create: database made")
POINTER_POINTS = ("pointer: written", "pointer: synced", "pointer: renamed", "pointer: durable")
OPEN_POINTS = ("open: pointer read", "open: leftovers removed", "open: database opened")

_POINTER = "current"
_KIND, _VERSION = "ondisk-current", 1
_NEW_POINTER = "current.new"
_DATABASE = re.compile(r"db-[0-9]{6,}")
_OURS = re.compile(r"(db|view)-[0-9]{6,}(\..+)?|" + re.escape(_NEW_POINTER))


def remove(path: Path) -> None:
    """Remove a leftover, whatever it is. What cannot be removed now is left to the next ``open``."""
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path, ignore_errors=True)
    else:
        with suppress(OSError):
            path.unlink()


class Generations:
    """The databases of one state machine, one of which is live."""

    def __init__(self, path: Path, disk: Disk) -> None:
        """``path`` is a directory of its own, created when missing. Nothing is touched before ``open``."""
        self.path = path.absolute()
        self._disk = disk
        self._lock: DirectoryLock | None = None
        self._watch: Watch | None = None
        self._number = 0  # of the live database
        self._views = 0  # made so far

    def open(self) -> Store:
        """Open the live database, or create the first one. Nobody else can, until ``close``.

        Raises ``DirectoryInUse``, ``Corrupt`` or ``StorageError``.
        """
        with ExitStack() as undo, disk_errors(self.path):
            lock = DirectoryLock(self.path)  # first: what looks like a leftover may be in somebody's use
            undo.callback(lock.release)
            live = self._read_pointer()
            store = self._create() if live is None else self._open(live)
            undo.callback(store.close)
            self._watch = Watch(self.path, self._lost_file)
            undo.pop_all()
        self._lock = lock
        return store

    def check(self) -> None:
        """Raise ``StorageError`` unless the directory and its pointer are where they were."""
        if self._watch is not None:
            self._watch.check(durable=False)

    def _lost_file(self) -> str | None:
        if self._lock is not None and not self._lock.is_there():
            return self._lock.name
        try:
            pointer = (self.path / _POINTER).read_bytes()
        except NOT_THERE:
            return _POINTER
        return None if pointer == _pointer(f"db-{self._number:06d}") else _POINTER

    def close(self) -> None:
        """Let the next owner in. A second call does nothing."""
        if self._lock is not None:
            self._lock.release()
            self._lock = None

    def _read_pointer(self) -> str | None:
        """The name of the live database, ``None`` before the first one is complete."""
        file = self.path / _POINTER
        try:
            stored = read_regular(file)
        except FileNotFoundError:
            self._refuse_a_lost_pointer()
            return None
        try:
            name = stored.decode("ascii", "replace").partition(" ")[0]
            if not _DATABASE.fullmatch(name) or stored != _before_versions(name):
                name = lines.decode(file, stored, _KIND, _VERSION)
        except Corrupt:
            name = ""
        if not _DATABASE.fullmatch(name):
            raise Corrupt(f"{file}: the pointer file is damaged, so nobody knows which database is live")
        return name

    def _refuse_a_lost_pointer(self) -> None:
        """Tell a creation that was cut short, which holds nothing, from a pointer that has gone missing.

        A creation's database has no tables yet and an empty write-ahead log.
        """
        within = [self.path / name for name in names_in(self.path) if name.startswith(("db-", "view-"))]
        for directory in (*within, self.path):
            names = names_in(directory)
            tables = [name for name in names if name.endswith(".sst")]
            logs = [directory / name for name in names if name.endswith(".log")]
            if tables or any(log.stat().st_size for log in logs):
                raise Corrupt(
                    f"{self.path / _POINTER}: the pointer file is missing, but {directory} holds data"
                )

    def _create(self) -> Store:
        self._disk.reach("create: directory made")
        store = Store(self.next_database(), self._disk)
        with _closed_unless_done(store):
            self._disk.reach("create: database made")
            self.point_to(store.path)
        return store

    def _open(self, live: str) -> Store:
        # Whoever was killed between renaming the pointer and making that durable left two databases, of which
        # a power cut might still choose the other one: do not remove it before the pointer is certain.
        sync_directory(self.path, self._disk)
        self._disk.reach("open: pointer read")
        self._remove_leftovers(live)
        self._disk.reach("open: leftovers removed")
        self._refuse_another_file_system(self.path / live)
        store = Store(self.path / live, self._disk, create=False)
        with _closed_unless_done(store):
            self._number = int(live.removeprefix("db-"))
            self._disk.reach("open: database opened")
            if not self.points_to(store.path):  # it is of the version before: bring it up to date
                self.point_to(store.path)
        return store

    def _refuse_another_file_system(self, live: Path) -> None:
        """A snapshot is hard links to the tables beside them; between two it would be a long copy."""
        if live.exists() and os.stat(live).st_dev != os.stat(self.path).st_dev:
            raise StorageError(
                f"{live}: is on another file system than {self.path}. Move the whole of that there instead"
            )

    def _remove_leftovers(self, live: str) -> None:
        for child in self.path.iterdir():
            # What ``Store.crash`` left beside the live database is the Store's to clear up.
            if _OURS.fullmatch(child.name) and child.name.split(".")[0] != live:
                remove(child)

    def next_database(self) -> Path:
        """Where the database that replaces the live one is built. Nothing is there yet."""
        path = self.path / f"db-{self._number + 1:06d}"
        remove(path)
        return path

    def next_view(self) -> Path:
        """A name for a view that no other one had since ``open``."""
        self._views += 1
        return self.path / f"view-{self._views:06d}"

    def point_to(self, database: Path) -> None:
        """Make a database the live one, atomically and durably. Raises ``StorageError``.

        After an error, ``points_to`` tells whether the pointer was replaced.
        """
        new = self.path / _NEW_POINTER
        with disk_errors(new):
            with open(new, "wb", buffering=0) as file:
                file.write(_pointer(database.name))
                self._disk.reach("pointer: written")
                self._disk.sync(lambda: os.fsync(file.fileno()))
            self._disk.reach("pointer: synced")
            new.rename(self.path / _POINTER)
            self._disk.reach("pointer: renamed")
        try:
            sync_directory(self.path, self._disk)
        except OSError as error:
            raise StorageError(
                f"{self.path / _POINTER}: is in place and names {database.name}, but a power cut may still "
                f"take that back ({error}). Open it again"
            ) from None
        self._number = int(database.name.removeprefix("db-"))
        self._disk.reach("pointer: durable")

    def points_to(self, database: Path) -> bool:
        """Whether this database is the live one, as far as can be seen."""
        try:
            return (self.path / _POINTER).read_bytes() == _pointer(database.name)
        except OSError:
            return True  # better a directory too many than one too few


@contextmanager
def _closed_unless_done(store: Store) -> Iterator[None]:
    try:
        yield
    except BaseException:
        store.close()
        raise


def _pointer(name: str) -> bytes:
    return lines.encode(_KIND, _VERSION, name)


def _before_versions(name: str) -> bytes:
    """The pointer as it was when it had neither a kind nor a version."""
    return f"{name} {zlib.crc32(name.encode()):08x}\n".encode()
