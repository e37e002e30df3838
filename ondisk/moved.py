"""Modules under the names that they had, before the library had rooms.

A notebook that somebody copied last term, and a program that imports ``ondisk.tcp``, go on working. Nothing
in this package uses these names. What a module holds may have changed since.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from importlib import import_module
from importlib.abc import Loader, MetaPathFinder
from importlib.machinery import ModuleSpec
from types import ModuleType

MOVED = {
    "ondisk.addresses": "ondisk.net.addresses",
    "ondisk.background": "ondisk.snapshot.background",
    "ondisk.clock": "ondisk.net.clock",
    "ondisk.crashing": "ondisk.testing.crashing",
    "ondisk.disk": "ondisk.storage.disk",
    "ondisk.filestream": "ondisk.storage.filestream",
    "ondisk.forked": "ondisk.interrupts.forked",
    "ondisk.founding": "ondisk.identity.founding",
    "ondisk.futures": "ondisk.interrupts.futures",
    "ondisk.generations": "ondisk.storage.generations",
    "ondisk.histories": "ondisk.linearizability.history",
    "ondisk.lab.exercises_06": "ondisk.lab.exercises.chapter_06",
    "ondisk.lab.experiments.catch_up": "ondisk.lab.catch_up",
    "ondisk.lab.experiments.runs": "ondisk.lab.runs",
    "ondisk.lab.experiments.sizes": "ondisk.lab.sizes",
    "ondisk.lab.feeding": "ondisk.lab.catch_up",
    "ondisk.lab.film": "ondisk.lab.experiments.trace",
    "ondisk.lab.naive": "ondisk.lab.experiments.naive",
    "ondisk.limits": "ondisk.raft.limits",
    "ondisk.lines": "ondisk.storage.lines",
    "ondisk.members": "ondisk.raft.members",
    "ondisk.messages": "ondisk.raft.messages",
    "ondisk.network": "ondisk.net.memory",
    "ondisk.origins": "ondisk.identity.origins",
    "ondisk.paths": "ondisk.storage.paths",
    "ondisk.proposals": "ondisk.replica.proposals",
    "ondisk.raftlog": "ondisk.raft.log",
    "ondisk.reads": "ondisk.replica.reads",
    "ondisk.requests": "ondisk.replica.requests",
    "ondisk.resolver": "ondisk.net.resolver",
    "ondisk.restore": "ondisk.snapshot.restore",
    "ondisk.shielded": "ondisk.interrupts.shielded",
    "ondisk.statemark": "ondisk.identity.statemark",
    "ondisk.stream": "ondisk.snapshot.stream",
    "ondisk.tcp": "ondisk.net.tcp",
    "ondisk.transfer": "ondisk.snapshot.streaming",
    "ondisk.watch": "ondisk.storage.watch",
}


class _Finder(MetaPathFinder, Loader):
    """Asked after all others, so it costs nothing for modules that are where their name says."""

    def find_spec(
        self, fullname: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        return ModuleSpec(fullname, self) if fullname in MOVED else None

    def exec_module(self, module: ModuleType) -> None:
        sys.modules[module.__name__] = import_module(MOVED[module.__name__])  # the same one, not a copy


sys.meta_path.append(_Finder())
