"""A group that runs elsewhere, to be watched from here: what its replicas say of themselves, over TCP.

A thread asks them, one look after the other, and leaves a ``View``: so who draws it waits for nobody. Between
its replicas nothing can be seen from here, and nothing can be done to them.
"""

from __future__ import annotations

import threading
import time
from contextlib import suppress

from ondisk import diskkv
from ondisk.errors import OndiskError
from ondisk.interrupts.shielded import shielded
from ondisk.observe.contents import Looker, as_text
from ondisk.observe.every import LooksEvery
from ondisk.observe.view import View
from ondisk.remote import RemoteClient
from ondisk.replica import Inside, ReplicaStatus
from ondisk.statemachine import OnDiskStateMachine
from ondisk.storage.store import Sizes

_PATIENCE = 0.5  # seconds for a look: who says nothing for so long is shown as away


class GroupElsewhere(LooksEvery):
    """The replicas that a client reaches. A context manager; the client is not closed with it."""

    @shielded
    def __init__(self, client: RemoteClient, *, every: float = 0.1) -> None:
        """Look at once, and then every so many seconds. Raises ``NoLeader`` if nobody answers."""
        self.client = client
        self.looker = _LooksOverTcp(client)
        self._members = client.members()
        self._last: dict[int, ReplicaStatus] = {}  # of each, when it answered last
        self._looking = threading.Lock()
        self._view = self._look()
        self._look_every(every, self.look, "ondisk-watching-elsewhere")

    @property
    def members(self) -> tuple[int, ...]:
        """Who belonged to the group when this began."""
        return tuple(sorted({*self._members.voters, *self._members.learners}))

    @property
    def leader_id(self) -> int | None:
        """Who leads, as the newest look has shown."""
        return self._view.leader_id

    def view(self) -> View:
        """What the newest look has shown."""
        return self._view

    @shielded
    def look(self) -> None:
        """Look now."""
        with self._looking:
            self._view = self._look()

    def _look(self) -> View:
        found = self.client.status(timeout=_PATIENCE)
        self._last |= found
        why = self._why_not()
        statuses = {
            each: found.get(each)
            or self._last.get(each, ReplicaStatus(each, "stopped"))._replace(role="stopped", error=why)
            for each in self.members
        }
        leaders = [status for status in found.values() if status.role == "leader"]
        leader = max(leaders, key=lambda status: status.term, default=None)
        now = time.monotonic()
        self.looker.insides.answer = frozenset(found)
        contents = self.looker.look(statuses, now)
        return View(now, statuses, leader.id if leader else None, contents=contents, elsewhere=True)

    def _why_not(self) -> str:
        reasons = ", ".join(f"{name}: {why}" for name, why in self.client.unreachable().items())
        return "it does not answer" + (f" ({reasons})" if reasons else "")


class _LooksOverTcp(Looker):
    """As a ``Looker``, of replicas that are asked over TCP. How large their tables are they do not say."""

    def __init__(self, client: RemoteClient) -> None:
        self.insides = _Insides(client)
        super().__init__(self.insides)
        self._client = client

    def _ask(
        self, replica_id: int, keys: tuple[bytes, ...]
    ) -> tuple[tuple[tuple[str, str | None], ...], Sizes | None]:
        said = []
        for key in keys:
            if len(key) <= diskkv.MAX_KEY_BYTES:
                value = self._client.stale_get(key, via=replica_id, timeout=_PATIENCE)
                said.append((as_text(key), None if value is None else as_text(value)))
        return tuple(said), None


class _Insides:
    """What a ``Looker`` asks of a group."""

    def __init__(self, client: RemoteClient) -> None:
        self._client = client
        self.answer = frozenset[int]()  # those that do, so that nobody waits for the others

    def inside(self, replica_id: int, entries: int) -> Inside:
        if replica_id in self.answer:
            with suppress(OndiskError):
                found = self._client.inside(replica_id, timeout=_PATIENCE)
                return found._replace(entries=found.entries[-entries:])
        return Inside()

    def machine(self, replica_id: int) -> OnDiskStateMachine:
        raise NotImplementedError("it is elsewhere")
