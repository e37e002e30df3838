"""The disk: how bytes become durable, and how damage is noticed.

===============  =====================================================================
``disk``         ``Disk``, where faults are put in; ``Store``, a RocksDB; a directory's lock
``errors``       typed errors for what the operating system and RocksDB report
``generations``  the databases of a state machine, one live: the pointer file says which
``filestream``   the files of a checkpoint as one stream of bytes, and back
``lines``        files of one line that say what they are, with a version and a checksum
``paths``        paths that people name
``watch``        whether a directory that is in use is still there
===============  =====================================================================

Imports ``errors``, ``statemachine`` and ``interrupts``; everybody may import it.

Invariant: when a sync has returned, a power cut leaves what was synced, whole; whatever else it
leaves is noticed and reported as ``Corrupt``."""
