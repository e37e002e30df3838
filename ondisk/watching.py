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
_NOW = (1 << 63) - 1  # nothing comes after it, and the answer says how far the log has come


class Reader(Protocol):
    """What a watch needs of a ``Client``."""

    def read(self, query: Any, *, via: int | str | None = ..., timeout: float = ...) -> Any:
        """A linearizable read."""


class Place:
    """How far a watch has come: what it asks next, and what is new in the answer. It knows nobody to ask."""

    def __init__(self, query: Changes, from_index: int | None) -> None:
        """``None``: from now on, which is what the first answer says."""
        self._query = query
        self._after = _NOW if from_index is None else max(0, from_index - 1)

    @property
    def question(self) -> Changes:
        """What comes after all that was told."""
        return msgspec.structs.replace(self._query, after=self._after)

    def take_in(self, page: Page) -> tuple[Changed, ...]:
        """The answer to ``question``; what is new in it, in order."""
        self._after = page.through if self._after == _NOW else max(self._after, page.through)
        return page.entries

    @property
    def next_index(self) -> int:
        """To go on from, in another watch."""
        return self._after + 1


class Watch(Iterator[Changed]):
    """An endless iterator of ``Changed``. For one caller at a time; to end it, drop it."""

    def __init__(
        self, reader: Reader, query: Changes, from_index: int | None, *, via: int | str | None, timeout: float
    ) -> None:
        """Made by ``Client.watch``."""
        self._reader = reader
        self._via = via
        self._timeout = timeout
        self._told = deque[Changed]()
        self._place = Place(query, from_index)
        if from_index is None:
            self._place.take_in(self._ask())
        self.next_index = self._place.next_index  # to go on from, in another watch

    def poll(self) -> list[Changed]:
        """What is new, without waiting for it: all that one question brings, or nothing.

        Raises ``Compacted``, or after ``timeout`` what kept everybody from answering: then it can be asked
        again.
        """
        if not self._told:
            self._told.extend(self._place.take_in(self._ask()))
        told = list(self._told)
        self._told.clear()
        self.next_index = self._place.next_index
        return told

    def __next__(self) -> Changed:
        """The next change, as soon as there is one. Raises as ``poll`` does."""
        while not self._told:
            self._told.extend(self.poll())
            if not self._told:
                pause(POLL_SECONDS)
        changed = self._told.popleft()
        self.next_index = changed.index + 1 if self._told else self._place.next_index
        return changed

    def _ask(self) -> Page:
        deadline = time.monotonic() + self._timeout
        while True:
            try:
                page: Page = self._reader.read(
                    self._place.question, via=self._via, timeout=max(0.0, deadline - time.monotonic())
                )
                return page
            except (NoLeader, ReplicaStopped):  # an election, or a replica that comes back
                if time.monotonic() >= deadline:
                    raise
                pause(POLL_SECONDS)
