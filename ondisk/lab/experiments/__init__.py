"""Experiments of the notebooks: each makes something happen and hands out what came of it.

===============  ======================================================================
``faults``       stalled messages, slow disks, and the way back
``load``         many puts, and what they cost
``absence``      a follower whose links fail for a while
``crash``        a process that dies at a chosen point of its disk
``naive``        state machines that keep their index in the wrong way
``growth``       logs, states and snapshots in bytes, as the state grows
``bank``         a bank whose total must never change, and a view of it
``fingerprint``  a snapshot, by its length and its hash
``directories``  what a directory holds
``compaction``   the log of a replica, filled and compacted
``lagging``      a replica that lags so far that it needs a snapshot
``clients``      clients that write down what they ask
``failures``     a leader that fails, and what its client hears
``leases``       reads by a lease: what they cost, and a clock that is too slow
``seeds``        many runs of the simulator, and what was found
``trace``        what every replica of a run was at each moment
``exposure``     how long something committed is in too few logs
``ledger``       state machines that move money, a right one and three that are wrong
``payments``     a cluster of them, whose replicas lose their power while clients pay
``grading``      a file of tests, run by pytest
``own_raft``     a Raft with holes, a test for each stage, and the simulator as the judge
===============  ======================================================================

Imports the library; imported by ``pictures`` and what stands above.

Invariant: nothing is drawn here, and what an experiment did to a cluster is undone when it ends, however
it ends.
"""
