"""The whole state, when the log does not reach back far enough.

==============  ======================================================================
``stream``      the stream of a snapshot, in numbered and checked chunks
``streaming``   the snapshots of one replica that are under way
``sender``      the sender's end of a stream to a follower
``receiver``    the receiver's end
``export``      a snapshot on its way into a file
``restore``     a group out of an exported file
``background``  work beside the steps, and the pipe to it
==============  ======================================================================

Imports ``raft``, ``identity``, ``storage`` and ``diskkv`` (what is restored if nothing else is
named). Imported by ``replica``, ``node`` and what uses them.

Invariant: a replica has its old state or all of the new one, whatever breaks, and never a mixture.
"""
