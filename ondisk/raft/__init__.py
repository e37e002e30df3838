"""Agree on a log.

==============  ===============================================================================
``core``        ``Raft``: the modules below put together, the tick, and who gets a message
``elections``   who leads: PreVote, votes given and counted (paper, 5.2)
``follower``    what becomes of the leader's entries (5.3)
``leader``      entries for the followers, commitment, the read quorum check (5.3, 5.4)
``progress``    what a leader knows of one follower: probe, replicate, snapshot
``rounds``      what a leader has sent, and when
``membership``  who votes, and with which disk
``changes``     how the members become others (6)
``handover``    a leader lets another voter lead
``engine``      PySyncObj under plain names
``log``         the durable log: entries, term, vote, members, the replica's identity
``tail``        its newest entries, in memory
``logstore``    what is on disk of it, and whether that is whole
``watermark``   how far it was durable, to notice one that has lost its end
``records``     what it consists of, as it is stored and sent
``members``     a configuration: voters, learners, disks, addresses
``messages``    what replicas say to each other
``limits``      the sizes and times that hang together
``timing``      periods and sizes that can be set
==============  ===============================================================================

Imports ``storage``, ``interrupts`` and the modules at the top; knows nothing of networks, threads
or replicas. May be imported by what is above it: ``identity``, ``snapshot``, ``net``, ``replica``
and all that uses them.

Invariant: two replicas that have committed an entry at an index have committed the same (paper, figure 3).
"""

from ondisk.raft.core import Raft
from ondisk.raft.timing import Timing

__all__ = ["Raft", "Timing"]
