"""How messages travel.

===================  ==================================================================
``endpoint``         the interface
``memory``           a network in one process, with faults
``tcp``              the network over TCP
``dialer``           whom to call when, and at which of its addresses
``connection``       one TCP connection: a socket, and what waits to be written
``channel``          what is said on it: handshake and frames, no sockets
``tls``              encryption below it, with certificates that can be renewed
``places``           who may stay among those that have not proved who they are
``clients``          those that are no members: how many, and how much they may ask
``client_messages``  what they and a member say to each other
``lines``            the client's side: a connection to each endpoint
``sockets``          what is peculiar about sockets
``waker``            ends a wait for sockets from another thread
``ratelimit``        a log that nobody can fill from outside
``addresses``        addresses as people write them
``resolver``         what the names in them stand for now
``reach``            whether a leader hears who speaks under a number, and is heard
``clock``            time, as it is handed to replicas
===================  ==================================================================

Imports ``raft.messages``, ``storage`` and ``interrupts``; imported by ``replica`` and what uses it.

Invariant: a link delivers what was sent, in order, at most once, from who says so; or it loses it.
"""
