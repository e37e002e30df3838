"""What ``DiskKV`` can do beside single keys: parts of the state machine, decided by the log alone.

=============  ==================================================================
``texts``      keys and values as bytes, and how long they may be
``changes``    the newest changes with their indexes, for ``watch``
``keyleases``  keys that go when nobody keeps them; what time it is, by the log
``pending``    what one update has changed so far
``txn``        compare, then, else: many keys in one step
``digest``     what the contents come to: a hash, a count, a size
=============  ==================================================================

Imports ``storage``, ``statemachine`` and ``errors``; imported by ``diskkv`` and by clients.

Invariant: what an entry does follows from the entries before it, and from nothing else: no clock, no random
number, no order of a set, and not where an update begins or ends.
"""
