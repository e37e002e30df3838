"""Who belongs together (docs/protocol.md, F, O and W).

=============  ====================================================================
``founding``   how a group begins, and how a replica without one finds it
``origins``    whose word counts: groups, disks and lives
``statemark``  the file in a state's directory that says whose state it is
=============  ====================================================================

Imports ``raft`` and ``storage``; imported by ``snapshot`` and ``replica``.

Invariant: for one number in one group at most one disk counts, and of that disk its newest life.
"""
