"""What a Ctrl-C must not tear, and a child process must forget (docs/interrupts.md).

==============  =======================================================================
``shielded``    a function that an exception from a signal cannot end halfway
``futures``     what a caller waits for, without a lock that a signal could leave locked
``forked``      what a child process must forget of its parent
==============  =======================================================================

Imports ``errors`` only; everybody may import it.

Invariant: after a ``KeyboardInterrupt`` at any bytecode, whatever is shared between threads is as
it was before the call or as it is after it, and no lock stays locked."""
