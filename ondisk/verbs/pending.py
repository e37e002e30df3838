"""Pending: what the entries of one update have changed so far. Later ones see it; nothing is stored yet."""

from __future__ import annotations

from collections.abc import Iterable

from ondisk.storage.store import Store
from ondisk.verbs import keyleases
from ondisk.verbs.changes import Recording

Data = dict[bytes, bytes | None]  # what keys hold now; ``None``: they are gone


class Pending:
    """The data, what is recorded of them, and the leases."""

    def __init__(self, store: Store, recording: Recording, leases: keyleases.Batch) -> None:
        self.store = store
        self.data: Data = {}
        self.recording = recording
        self.leases = leases

    def get(self, key: bytes) -> bytes | None:
        """What a key holds, as the next entry sees it."""
        return self.data[key] if key in self.data else self.store.get(key)

    def record(self, index: int, change: bytes, keys: Iterable[bytes]) -> None:
        """Entry ``index`` has made this change, of these keys: they are under no lease any more."""
        self.recording.add(index, change)
        if self.leases.keys:
            self.leases.detach(keys)
