"""Watching: every change once, in the order of the log, whatever happens to replicas and connections.

A watch asks, again and again, for what comes after the last index that it has told. Nothing is kept for it at
the replicas: so it goes on at any of them, and a program that was restarted goes on from the index that it
wrote down. If the history has been compacted meanwhile it says so.

What one entry has changed comes together. So who stores an entry's index with what came of it, in one step,
handles each change exactly once::

    for changed in client.watch("orders/", from_index=stored + 1):
        handle(changed.pairs, changed.index)
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Iterator
from typing import Any, Protocol

import msgspec

from ondisk.errors import NoLeader, ReplicaStopped
from ondisk.interrupts.shielded import pause
from ondisk.verbs.changes import Changed, Changes, Page

POLL_SECONDS = 0.05  # between two questions, as long as there is nothing new


class Reader(Protocol):
    """What a watch needs of a ``Client``."""

    def read(self, query: Any, *, via: int | str | None = ..., timeout: float = ...) -> Any:
        """A linearizable read."""


class Watch(Iterator[Changed]):
    """An endless iterator of ``Changed``. For one caller at a time; to end it, drop it."""

    def __init__(
        self, reader: Reader, query: Changes, from_index: int | None, *, via: int | str | None, timeout: float
    ) -> None:
        """Made by ``Client.watch``."""
        self._reader = reader
        self._query = query
        self._via = via
        self._timeout = timeout
        self._told = deque[Changed]()
        if from_index is None:
            self._after = self._ask(msgspec.structs.replace(query, after=(1 << 63) - 1)).through
        else:
            self._after = max(0, from_index - 1)
        self.next_index = self._after + 1  # to go on from, in another watch

    def poll(self) -> list[Changed]:
        """What is new, without waiting for it: all that one question brings, or nothing.

        Raises ``Compacted``, or after ``timeout`` what kept everybody from answering: then it can be asked
        again.
        """
        if not self._told:
            page = self._ask(msgspec.structs.replace(self._query, after=self._after))
            self._told.extend(page.entries)
            self._after = max(self._after, page.through)
        told = list(self._told)
        self._told.clear()
        self.next_index = self._after + 1
        return told

    def __next__(self) -> Changed:
        """The next change, as soon as there is one. Raises as ``poll`` does."""
        while not self._told:
            self._told.extend(self.poll())
            if not self._told:
                pause(POLL_SECONDS)
        changed = self._told.popleft()
        self.next_index = changed.index + 1 if self._told else self._after + 1
        return changed

    def _ask(self, query: Changes) -> Page:
        deadline = time.monotonic() + self._timeout
        while True:
            try:
                page: Page = self._reader.read(
                    query, via=self._via, timeout=max(0.0, deadline - time.monotonic())
                )
                return page
            except (NoLeader, ReplicaStopped):  # an election, or a replica that comes back
                if time.monotonic() >= deadline:
                    raise
                pause(POLL_SECONDS)
