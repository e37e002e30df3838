"""A client in a program that hosts no replica: ``ondisk.connect("a:63001,b:63001", secret=...)``.

============  ==================================================================
``client``    what can be asked: the same as of a ``Node`` or a ``Cluster``
``asyncio``   the same with ``await``
``courier``   the one thread that sends, receives, and decides what is sent again
``endpoint``  one address and the connection to it
============  ==================================================================

As in etcd's client, one connection to each endpoint carries everything, and what certainly had no effect is
asked again elsewhere; whoever leads is asked first (docs/clients.md).

Imports ``client``, ``replica`` (what a status is) and ``net``; imported by ``ondisk`` and ``cli``.

Invariant: a command leaves a second time only if its first copy has certainly not been taken in.
"""

from ondisk.client import Via
from ondisk.remote.asyncio import AsyncClient, AsyncSession
from ondisk.remote.client import RemoteClient, connect

__all__ = ["AsyncClient", "AsyncSession", "RemoteClient", "Via", "connect"]
