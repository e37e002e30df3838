"""Forked: what a child process must forget (``os.fork``, ``multiprocessing``, pre-fork servers).

A child has a copy of every object, every descriptor and none of the threads. So what is open here registers
itself, and in a child it is told to let go of what the two share, without touching anything of the parent's:
descriptors are closed and nothing else, locks are made anew, and RocksDB is left alone for ever, even at
exit: it would wait for its threads.

RocksDB cannot be used in a child at all if the parent has opened a database: its pool of threads is one for
the process, and the child would put work into it that nobody does. ``check`` refuses that.
"""

from __future__ import annotations

import ctypes
import os
import threading
import weakref
from typing import Any, Protocol

from ondisk.errors import WrongProcess

_SPAWN = "Open it before the parent opens any cluster, or start the child by another method than fork"


class Inherited(Protocol):
    """Something open that a child gets a copy of."""

    def forget_parent(self) -> None:
        """Called in a child: let go of what is the parent's, and wait for nothing."""


_open: weakref.WeakSet[Any] = weakref.WeakSet()
_parents: list[int] = []  # the processes this one was forked from, whose RocksDB it has a copy of
_rocksdb_was_opened = False
_me = os.getpid()


def register(thing: Inherited) -> None:
    """From now on a child lets ``thing`` forget its parent, as long as somebody holds it."""
    _open.add(thing)


class Lock:
    """A lock of a module, which is free in a child, whoever holds it in the parent."""

    def __init__(self) -> None:
        self.forget_parent()
        register(self)

    def forget_parent(self) -> None:
        self._lock = threading.Lock()

    def __enter__(self) -> None:
        self._lock.acquire()

    def __exit__(self, *_: object) -> None:
        self._lock.release()


def opens_rocksdb() -> None:
    """Say that a database is about to be opened. Raises ``WrongProcess`` where that cannot work."""
    global _rocksdb_was_opened
    if _parents:
        raise WrongProcess(
            f"process {os.getpid()} was forked from {_parents[-1]} when that had opened a database, "
            f"and RocksDB's threads are not here. {_SPAWN}"
        )
    _rocksdb_was_opened = True


def check(opened_by: int, what: str) -> None:
    """Raise ``WrongProcess`` if this is not the process that opened ``what``."""
    if opened_by != os.getpid():
        raise WrongProcess(
            f"{what} belongs to process {opened_by}, and this is its child {os.getpid()}: ask there. To have "
            f"a cluster here: {_SPAWN[0].lower()}{_SPAWN[1:]}"
        )


def leak(thing: object) -> None:
    """Keep an object alive for ever, even when the interpreter ends."""
    ctypes.pythonapi.Py_IncRef(ctypes.py_object(thing))


def _in_child() -> None:
    global _me
    for thing in list(_open):
        thing.forget_parent()
    if _rocksdb_was_opened and not _parents:
        _leave_without_rocksdb()
    if _rocksdb_was_opened or _parents:
        _parents.append(_me)
    _me = os.getpid()


def _leave_without_rocksdb() -> None:
    """When this process exits, skip what RocksDB does then: it joins threads that are not here, and crashes.

    By then Python has done all it does at an exit. The C library runs what was registered last first: it
    writes out its own buffers, and then leaves with the status that it was given.
    """
    libc = ctypes.CDLL(None)
    if hasattr(libc, "on_exit") and hasattr(libc, "__cxa_atexit"):  # GNU
        libc.on_exit(libc._exit, None)
        libc["__cxa_atexit"](libc.fflush, None, None)


os.register_at_fork(after_in_child=_in_child)
