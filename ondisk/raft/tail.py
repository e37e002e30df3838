"""Tail: the newest entries of a log, in memory, so that sending and applying them does not read the disk."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from ondisk.raft.records import LogEntry


class Tail:
    """The entries from ``first`` to the end of the log. If there is none, the next one will be ``first``.

    Invariant: they follow each other without a gap, and ``bytes`` is the size of their commands.
    """

    def __init__(self, first: int, entries: Sequence[LogEntry] = ()) -> None:
        self.first = first
        self._entries = list(entries)
        self.bytes = _size(self._entries)

    def __len__(self) -> int:
        return len(self._entries)

    def __iter__(self) -> Iterator[LogEntry]:
        return iter(self._entries)

    @property
    def last_index(self) -> int:
        """Index of the last entry of the log."""
        return self.first + len(self._entries) - 1

    def __getitem__(self, index: int) -> LogEntry:
        """The entry at ``index``, which is here."""
        return self._entries[index - self.first]

    def between(self, first: int, last: int) -> list[LogEntry]:
        """Those of the entries ``first`` to ``last`` that are here."""
        return self._entries[max(first - self.first, 0) : max(last - self.first + 1, 0)]

    def newest(self, most: int) -> list[LogEntry]:
        """The last ``most`` of them, or fewer. Also from another thread: each says which one it is."""
        return self._entries[-most:]

    def start_of_last(self, entries: int, max_bytes: int) -> int:
        """Where the last ``entries`` begin, or fewer that have ``max_bytes``; at most all that are here."""
        size = 0
        for count, entry in enumerate(reversed(self._entries)):
            size += len(entry.command)
            if count >= entries or size > max_bytes:
                return entry.index + 1
        return self.first

    def append(self, entries: Sequence[LogEntry]) -> None:
        """Add entries at the end."""
        self._entries.extend(entries)
        self.bytes += _size(entries)

    def cut_from(self, index: int) -> None:
        """Remove the entry at ``index``, which is here, and all after it."""
        del self._entries[index - self.first :]
        self.bytes = _size(self._entries)

    def drop_to(self, index: int) -> None:
        """Remove what is here of the entries up to ``index``."""
        if index >= self.first:
            del self._entries[: index - self.first + 1]
            self.first = index + 1
            self.bytes = _size(self._entries)

    def trim(self, entries: int, max_bytes: int) -> None:
        """Forget the older half of more than twice as many, or as much; a single one stays."""
        if len(self._entries) > 2 * entries or self.bytes > 2 * max_bytes:
            self.drop_to(self.first + len(self._entries) // 2 - 1)


def _size(entries: Sequence[LogEntry]) -> int:
    return sum([len(entry.command) for entry in entries])
