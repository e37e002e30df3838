"""The same replicas in virtual time, under faults drawn from a seed: ``python -m ondisk.simulation``.

==============  ==================================================================
``group``       the simulated group: ``Simulation``
``watch``       probes: replicas that say what they do
``world``       time, chance, the network and the disks
``faults``      what can go wrong, and the schedule drawn from a seed
``clients``     who puts and gets, and remembers the answers
``machine``     the state machine of the simulated replicas
``invariants``  the rules that are checked after every step
``record``      events in words
``run``         one seed, or many
``safeguards``  replicas without one of their safeguards
``stock``       PySyncObj as it comes, in the same world
``model``       the protocol without a network: every order of events
==============  ==================================================================

Imports ``replica``, ``linearizability`` and what is below; imported by the lab and tests.

Invariant: a seed decides everything: the same seed gives the same run, event for event.
"""

from ondisk.simulation.faults import Fault, draw
from ondisk.simulation.group import Simulation
from ondisk.simulation.invariants import Violation

__all__ = ["Fault", "Simulation", "Violation", "draw"]
