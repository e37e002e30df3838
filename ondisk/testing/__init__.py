"""What tests a state machine: yours, or ours.

==============  =====================================================================
``battery``     the tests that any ``OnDiskStateMachine`` passes
``updates``     of these: ``open``, ``update``, ``lookup``
``durability``  of these: ``sync``, ``close``, and crashes at any point
``snapshots``   of these: saved and recovered
``samples``     what is written for a machine, and what its tests stand on
``harness``     the machines of one test, and what they should hold
``streams``     the two ends of a snapshot's stream
``lookers``     lookups beside everything else
``crashes``     what a crash leaves of a machine, for every point of its disk
``work``        what else a child process does with a machine
``crashing``    a child process that dies at a chosen point of its disk
==============  =====================================================================

The first five need pytest.

Imports ``statemachine``, ``storage`` and ``errors``; imported by the lab (``crashing``) and tests.

Invariant: a crash leaves on the disk what a real one could leave: everything synced, and of the
rest no promise.

    from ondisk.testing import StateMachineBattery
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from ondisk.testing.crashing import Child, ChildFailed, CrashingDisk, Point

if TYPE_CHECKING:
    from ondisk.testing.battery import StateMachineBattery, replay

__all__ = ["Child", "ChildFailed", "CrashingDisk", "Point", "StateMachineBattery", "replay"]

_WITH_PYTEST = ("StateMachineBattery", "replay")


def __getattr__(name: str) -> Any:
    """The battery when it is asked for: a child that is going to be crashed needs no pytest."""
    if name not in _WITH_PYTEST:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    try:
        import pytest  # noqa: F401
    except ModuleNotFoundError:
        raise ImportError(f"ondisk.testing.{name} needs pytest: pip install pytest") from None
    from ondisk.testing import battery

    return getattr(battery, name)
