"""A battery of tests for what the contract says. Run it over a state machine of your own:

    # test_ledger.py
    from ondisk.testing import StateMachineBattery

    class TestLedger(StateMachineBattery):
        def make(self, path, disk):
            return Ledger(path, disk)

        def command(self, number):
            return transfer("alice", "bob", number)

        def state(self, machine):
            return machine.lookup(all_accounts())

and ``python -m pytest test_ledger.py`` runs some thirty tests, whose names say what they claim. A test that
fails names the method of ``OnDiskStateMachine`` where the promise stands.

Crashes happen in child processes (``testing/crashing.py``), which import the file of your test class. The
machine should hand the ``disk`` it is given to its ``Store``, or call ``disk.reach`` itself between two
steps that a crash may separate. One that does neither is crashed only between its updates, which proves
much less.

The tests stand in ``updates``, ``durability`` and ``snapshots``; these and ``samples`` need pytest. The
idea of one battery for every implementation is trio's (``_tests/test_sync.py``).
"""

from __future__ import annotations

from ondisk.testing.durability import DurabilityTests
from ondisk.testing.harness import replay
from ondisk.testing.snapshots import SnapshotTests
from ondisk.testing.updates import UpdateTests

__all__ = ["StateMachineBattery", "replay"]


class StateMachineBattery(UpdateTests, DurabilityTests, SnapshotTests):
    """Subclass it as ``class TestMine(StateMachineBattery)`` and write ``make``, ``command`` and ``state``.

    The three are also called on fresh objects and in child processes, so they should depend on nothing else.
    """
