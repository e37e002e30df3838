"""Places: which directory lies where a replica is started, and which disk is in it.

Who copies, swaps and puts back directories (``inject_directories``) notes here where each one is now.
"""

from __future__ import annotations

import shutil
from pathlib import Path

A_COPY = "a copy"  # an old copy of the directory that belongs there
THE_OLD_ONE = "the old one"  # which was put aside, and others have taken its place
A_STRANGER = "a stranger"  # a directory of another group
ANOTHERS = "that of another replica"


class Places:
    """The places of all members in one folder. What is lost is in none."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self.told: dict[int, tuple[int, ...]] = {}  # by member: the first members that it was started with
        self.disk_in: dict[int, bytes] = {}  # by member: the disk in its place
        self.path_of: dict[bytes, Path] = {}  # by disk: where it is; those that are lost are nowhere
        self.aside: set[str] = set()  # directories that will be put back
        self.away: set[int] = set()  # who has no directory in its place now, and is not started
        self.instead: dict[int, str] = {}  # by member: what stands there that is not its newest directory

    def of(self, member: int) -> Path:
        """Where this one is started."""
        return self._folder / f"replica-{member}"

    def will_go(self, member: int) -> bool:
        """Whether who put in what stands there takes it away again."""
        return self.instead.get(member) in (A_STRANGER, ANOTHERS)

    def holds_its_own(self, member: int) -> bool:
        """Whether the newest directory that it has ever had is in its place."""
        return member not in self.instead and member in self.disk_in

    def settle(self, member: int, disk: bytes) -> None:
        """This disk is the one of this member now, and is in its place."""
        self.disk_in[member], self.path_of[disk] = disk, self.of(member)

    def lose(self, member: int) -> None:
        """What lies there is gone for good."""
        shutil.rmtree(self.of(member), ignore_errors=True)
        self.instead.pop(member, None)
        if (disk := self.disk_in.pop(member, None)) is not None:
            del self.path_of[disk]

    def forget_disk_in(self, folder: Path) -> bool:
        """A directory beside the places is gone for good; return whether it was a disk of its own."""
        shutil.rmtree(folder, ignore_errors=True)
        disks = [disk for disk, path in self.path_of.items() if path == folder]
        for disk in disks:
            del self.path_of[disk]
        return bool(disks)

    def put_aside(self, member: int, name: str) -> tuple[bytes, Path]:
        """Empty a place; return the disk that was in it, and where it is now."""
        disk = self.disk_in.pop(member)
        self.path_of[disk] = self.of(member).rename(self._folder / name)
        return disk, self.path_of[disk]

    def put_back(self, member: int, disk: bytes, aside: Path) -> None:
        """The opposite; nothing must be in that place."""
        self.path_of[disk] = aside.rename(self.of(member))

    def exchange(self, first: int, second: int) -> None:
        """Each directory to the place of the other."""
        between = self._folder / "between"
        self.of(first).rename(between)
        self.of(second).rename(self.of(first))
        between.rename(self.of(second))

    def clear(self) -> None:
        """All directories are gone."""
        for known in (self.told, self.disk_in, self.path_of, self.aside, self.away, self.instead):
            known.clear()
