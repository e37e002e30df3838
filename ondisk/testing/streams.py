"""The two ends of a snapshot's stream, in memory, with faults."""

from __future__ import annotations

from collections.abc import Callable


class Writer:
    """Keeps what is written; raises ``error`` instead of taking byte number ``after``."""

    def __init__(self, error: Exception | None = None, after: int = 0) -> None:
        self.data = bytearray()
        self._error = error
        self._after = after

    def write(self, data: bytes) -> None:
        if self._error is not None and len(self.data) + len(data) > self._after:
            raise self._error
        self.data += data


class Reader:
    """Hands out what was written; raises ``error`` when byte number ``place`` is asked for.

    In the middle it calls ``pause``, and remembers in ``paused_well`` whether that returned true.
    """

    def __init__(
        self,
        data: bytes,
        error: Exception | None = None,
        place: int = 0,
        pause: Callable[[], bool] | None = None,
    ) -> None:
        self._data = data
        self._error = error
        self._place = place
        self._at = 0
        self._pause = pause
        self.paused_well = False

    def read(self, size: int) -> bytes:
        if self._error is not None and self._at + size > self._place:
            raise self._error
        if self._pause is not None and self._at + size > len(self._data) // 2:
            self.paused_well = self._pause()
            self._pause = None
        data = self._data[self._at : self._at + size]
        self._at += len(data)
        return data
