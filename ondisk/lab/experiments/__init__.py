"""Experiments of the notebooks: each makes something happen and hands out what came of it.

============  ======================================================================
``crash``     a process that dies at a chosen point of its disk
``naive``     state machines that keep their index in the wrong way
``faults``    stalled messages, slow disks, and the way back
``failures``  a leader that fails under load, and what clients saw of it
``load``      many puts, and what they cost
``sizes``     logs, states and snapshots in bytes
``catch_up``  a replica that lags so far that it needs a snapshot
``runs``      many runs of the simulator, and what was found
============  ======================================================================

Imports the library and ``pictures``; imported by the panel, the exercises and the notebooks.

Invariant: what an experiment did to a cluster is undone when it ends, however it ends.
"""
