"""What a client can ask: the same for one replica (``Node``) and for a whole ``Cluster``.

Every call has a deadline, ``timeout`` in seconds. Errors say whether a write may have happened: see
``errors.py``. A ``Result`` that carries an error is raised as ``Rejected`` by the key-value calls, and
returned as it is by ``propose``.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from concurrent.futures import Future
from typing import Any, TypeVar

from ondisk import diskkv
from ondisk.diskkv import Text
from ondisk.errors import NoLeader, Rejected, Timeout
from ondisk.statemachine import Result

DEFAULT_TIMEOUT = 3.0  # seconds, as in the original example

_T = TypeVar("_T")


def wait_for(future: Future[_T], timeout: float) -> _T:
    """The future's result. After ``timeout`` seconds ``NoLeader`` if it was never begun, else ``Timeout``."""
    try:
        return future.result(timeout)
    except TimeoutError:
        if future.done() and not future.cancelled():
            return future.result()
        if future.cancel():
            raise NoLeader(f"no leader answered within {timeout:.3g} s; nothing was proposed") from None
        raise Timeout(
            f"proposed, but not known to be committed within {timeout:.3g} s: it may still happen"
        ) from None


class Client(ABC):
    """Proposals and reads for any state machine, and the commands of ``DiskKV``."""

    # Any state machine

    @abstractmethod
    def propose_async(
        self, command: bytes, *, via: int | None = None, timeout: float = DEFAULT_TIMEOUT
    ) -> Future[Result]:
        """Replicate a command. The future ends with its ``Result`` once it is applied, or with an error.

        ``via`` is the replica to ask; it forwards to the leader if it must. Callbacks of the future run in
        the replica's thread and must be quick.
        """

    @abstractmethod
    def read(self, query: Any, *, via: int | None = None, timeout: float = DEFAULT_TIMEOUT) -> Any:
        """A linearizable read: it sees every write that was acknowledged, anywhere, before this call.

        Any replica can answer: it asks the leader how far it must have applied, and looks there.
        Raises ``NoLeader`` if nobody can confirm that in time.
        """

    @abstractmethod
    def stale_read(self, query: Any, *, via: int | None = None) -> Any:
        """What this replica's own state says, asking nobody. It may be old, even by hours."""

    def propose(self, command: bytes, *, via: int | None = None, timeout: float = DEFAULT_TIMEOUT) -> Result:
        """Replicate a command and wait until it is applied.

        Raises ``NotDone`` (it had no effect) or ``OutcomeUnknown`` (it may have).
        """
        return wait_for(self.propose_async(command, via=via, timeout=timeout), timeout)

    # The group

    @abstractmethod
    def add_replica(self, replica_id: int, address: str = "", *, timeout: float = DEFAULT_TIMEOUT) -> None:
        """Make another replica a member, at ``address`` (``host:port``, on TCP).

        It is fed from then on, and becomes a voter when it has caught up. Raises ``Rejected`` for an id
        that is a member or was removed.
        """

    @abstractmethod
    def remove_replica(self, replica_id: int, *, timeout: float = DEFAULT_TIMEOUT) -> None:
        """Take a member out of the group, for good: its id is never let in again."""

    @abstractmethod
    def transfer_leadership(self, to: int, *, timeout: float = DEFAULT_TIMEOUT) -> None:
        """Let another voter lead. Raises ``Rejected`` if it did not take over in time."""

    # DiskKV

    def put(
        self, key: Text, value: Text, *, via: int | None = None, timeout: float = DEFAULT_TIMEOUT
    ) -> Result:
        """Set a key. Returns when the write is durable on a majority and applied."""
        return self._command(diskkv.put(key, value), via, timeout)

    def put_async(
        self, key: Text, value: Text, *, via: int | None = None, timeout: float = DEFAULT_TIMEOUT
    ) -> Future[Result]:
        """Set a key without waiting; have as many under way as you like."""
        return self.propose_async(diskkv.put(key, value), via=via, timeout=timeout)

    def delete(self, key: Text, *, via: int | None = None, timeout: float = DEFAULT_TIMEOUT) -> Result:
        """Remove a key. ``Result.value`` says whether it was there."""
        return self._command(diskkv.delete(key), via, timeout)

    def incr(
        self, key: Text, by: int = 1, *, via: int | None = None, timeout: float = DEFAULT_TIMEOUT
    ) -> Result:
        """Add to a number (a missing key counts as 0). ``Result.value`` is the new number."""
        return self._command(diskkv.incr(key, by), via, timeout)

    def compare_and_set(
        self,
        key: Text,
        expected: Text | None,
        value: Text,
        *,
        via: int | None = None,
        timeout: float = DEFAULT_TIMEOUT,
    ) -> Result:
        """Set a key if it holds ``expected`` (``None``: if it is missing). ``Result.value`` says whether."""
        return self._command(diskkv.compare_and_set(key, expected, value), via, timeout)

    def get(self, key: Text, *, via: int | None = None, timeout: float = DEFAULT_TIMEOUT) -> bytes | None:
        """The value of a key, ``None`` if it is missing. Linearizable: see ``read``."""
        value: bytes | None = self.read(diskkv.get(key), via=via, timeout=timeout)
        return value

    def stale_get(self, key: Text, *, via: int | None = None) -> bytes | None:
        """What this replica's own state says, asking nobody: maybe an old value."""
        value: bytes | None = self.stale_read(diskkv.get(key), via=via)
        return value

    def scan(
        self,
        prefix: Text = b"",
        *,
        start: Text = b"",
        limit: int = 100,
        via: int | None = None,
        timeout: float = DEFAULT_TIMEOUT,
    ) -> list[tuple[bytes, bytes]]:
        """Pairs in key order, from one point in time. Linearizable: see ``read``."""
        query = diskkv.scan(prefix, start, limit)
        pairs: list[tuple[bytes, bytes]] = self.read(query, via=via, timeout=timeout)
        return pairs

    def _command(self, command: bytes, via: int | None, timeout: float) -> Result:
        result = self.propose(command, via=via, timeout=timeout)
        if result.error is not None:
            raise Rejected(result.error)
        return result
