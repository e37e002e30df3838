"""The disk: how bytes become durable, and how damage is noticed.

===============  =====================================================================
``disk``         ``Disk``, where faults are put in; directories that are durable
``store``        ``Store``, one RocksDB
``rocksdb``      how a RocksDB is set up and closed, and what is peculiar about it
``calls``        the calls of a database: refused, waited for, their errors typed
``records``      what is read of RocksDB's log files without RocksDB
``holes``        whether a write is missing that came before one that is there
``powercut``     what a power cut would leave, made on purpose
``watch``        whether a directory that is in use is still there
``look``         what the kernel knows of a file, without a change of threads
``lock``         the lock of a directory, and who has it
``generations``  the databases of a state machine, one live: the pointer file says which
``filestream``   the files of a checkpoint as one stream of bytes, and back
``lines``        files of one line that say what they are, with a version and a checksum
``paths``        paths that people name
``errors``       typed errors for what the operating system and RocksDB report
===============  =====================================================================

Imports ``errors``, ``statemachine`` and ``interrupts``; everybody may import it.

Invariant: when a sync has returned, a power cut leaves what was synced, whole; whatever else it
leaves is noticed and reported as ``Corrupt``."""
