"""The same replicas in virtual time, under faults drawn from a seed: ``python -m ondisk.simulation``.

======================  ==================================================================
``group``               a run from its beginning to its verdict: ``Simulation``
``world``               time, random numbers and the network
``host``                the computer under a replica: its clock, disk and processor
``hosts``               a replica on each host: it starts, stops, crashes, is lost
``checked``             the same, with every start, step and message checked
``places``              which directory lies where, and which disk is in it
``connections``         which of two processes under one number is reached; endpoints
``watch``               probes: replicas that say what they do
``faults``              what can go wrong, and the schedule drawn from a seed
``schedule``            when each fault begins and ends
``inject``              faults of hosts, disks, clocks and the network; load
``inject_directories``  faults of directories: lost, copied, moved
``inject_processes``    second processes under one number
``leases``              clocks that drift, and what hurts a lease
``operator``            what a person does: adds, removes, rebuilds, imports
``verbs``               who transacts, watches and locks, and the rules of that
``clients``             who puts and gets, and remembers the answers
``machine``             the state machine of the simulated replicas
``invariants``          the rules that are checked after every step
``verdict``             what must be true when all faults have ended
``trace``               events in words
``run``                 one seed, or many
``safeguards``          replicas without one of their safeguards
``weakened``            the parts that lack one
``stock``               PySyncObj as it comes, in the same world
``model``               the protocol without a network: every order of events
======================  ==================================================================

Imports ``replica``, ``linearizability`` and what is below; imported by the lab and tests.

Invariant: a seed decides everything: the same seed gives the same run, event for event.
"""

from ondisk.simulation.faults import Fault, draw
from ondisk.simulation.group import Simulation
from ondisk.simulation.invariants import Violation

__all__ = ["Fault", "Simulation", "Violation", "draw"]
