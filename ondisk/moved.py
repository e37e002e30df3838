"""Modules that notebooks and documents once named, under the names that they had.

A notebook that somebody copied last term goes on working. Nothing in this package uses these names.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from importlib import import_module
from importlib.abc import Loader, MetaPathFinder
from importlib.machinery import ModuleSpec
from types import ModuleType

MOVED = {
    "ondisk.histories": "ondisk.linearizability.history",
    "ondisk.lab.exercises_06": "ondisk.lab.exercises.chapter_06",
    "ondisk.lab.experiments.catch_up": "ondisk.lab.catch_up",
    "ondisk.lab.experiments.runs": "ondisk.lab.runs",
    "ondisk.lab.experiments.sizes": "ondisk.lab.sizes",
    "ondisk.lab.feeding": "ondisk.lab.catch_up",
    "ondisk.lab.film": "ondisk.lab.experiments.trace",
    "ondisk.lab.naive": "ondisk.lab.experiments.naive",
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
