"""One passive member of a group: it moves only when ``step`` is called.

==============  =============================================================
``replica``     log, state machine and Raft together: the step
``opening``     what is looked at before a replica takes part
``belonging``   it looks for a group, or keeps to its own: who is heard
``proposals``   from a caller to the log, and the answer back
``reads``       linearizable reads without the log (ReadIndex)
``requests``    what the two have in common
``admin``       what an operator asks: compact, export, found
``compaction``  the state becomes durable, and the log is dropped up to there
``status``      what can be seen of a replica
==============  =============================================================

Imports ``raft``, ``identity``, ``snapshot``, ``net`` and what is below; imported by ``node``, the
simulator and those who watch.

Invariant: no promise leaves, and nothing is applied, before the log that it rests on is durable.
"""

from ondisk.replica.replica import Replica
from ondisk.replica.status import Inside, ReplicaStatus, failure

__all__ = ["Inside", "Replica", "ReplicaStatus", "failure"]
