"""How messages travel.

=============  =====================================================================
``memory``     the interface, and a network in one process, with faults
``tcp``        the network over TCP
``addresses``  addresses as people write them
``resolver``   what the names in them stand for now
``clock``      time, as it is handed to replicas
=============  =====================================================================

Imports ``raft.messages``, ``storage`` and ``interrupts``; imported by ``replica`` and what uses it.

Invariant: a link delivers what was sent, in order, at most once, from who says so; or it loses it.
"""
