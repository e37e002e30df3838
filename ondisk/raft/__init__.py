"""Agree on a log.

============  =================================================================================
``engine``    the paper's rules on PySyncObj: elections, replication, the read quorum check
``log``       the durable log: entries, term, vote, members, the replica's identity
``members``   who belongs to the group
``messages``  what replicas say to each other
``limits``    the sizes and times that hang together
============  =================================================================================

Imports ``storage``, ``interrupts`` and the modules at the top; knows nothing of networks, threads
or replicas. May be imported by what is above it: ``identity``, ``snapshot``, ``net``, ``replica``
and all that uses them.

Invariant: two replicas that have committed an entry at an index have committed the same (paper, figure 3).
"""

from ondisk.raft.engine import Raft, Timing

__all__ = ["Raft", "Timing"]
