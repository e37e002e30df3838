"""The rules of docs/protocol.md, small enough to be explored to the end.

==============  ==============================================================
``explorer``    visit every state, the nearest first: ``explore``, ``replay``
``founding``    who belongs to which group
``raft_state``  the state of the next: disks, members, logs, what was said
``raft``        elections, the log, its members and their disks
``reads``       what an answer proves, and when
``leases``      for how long a leader may answer reads without asking: the only one with clocks
``lives``       copies of one disk
``cases``       what is explored, within which bounds
==============  ==============================================================

No bytes, no threads: a state is a tuple, a step is one thing that a replica does, a message that
arrives, or a fault. Each rule has a name and can be switched off: without it there should be a way to a
broken invariant, or the rule is not needed for safety (``NOT_FOR_SAFETY`` says what for).

Five small models instead of a big one, each with what the others leave out. Messages are not kept one by one.
What was once said can arrive at any later time, or never, or twice; so a vote or an acknowledgement stays in
the state for ever, and a replica may act on it or not. That is more than FIFO links allow, hence what holds
here holds there. A partition is a message that does not arrive.

Imports nothing of this package; imported by tests.

Invariant: with all rules on, no state that can be reached breaks anything.
"""

from ondisk.simulation.model.cases import CASES, LIMITS, NOT_FOR_SAFETY, Case
from ondisk.simulation.model.explorer import Model, Off, Outcome, Step, explore, replay

__all__ = [
    "CASES",
    "LIMITS",
    "NOT_FOR_SAFETY",
    "Case",
    "Model",
    "Off",
    "Outcome",
    "Step",
    "explore",
    "replay",
]
