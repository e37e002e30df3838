"""Rounds: what a leader sends is numbered, and an answer is evidence as of when its question was sent."""

from __future__ import annotations

from collections import deque


class Rounds:
    """The numbers of what a leader has sent, and the times.

    Invariant: the times of the last ``keep`` seconds are known, and none is later than it was. An answer that
    was stalled for long says that its sender followed this leader *then* (docs/protocol.md, E1).
    """

    def __init__(self, keep: float) -> None:
        """``keep`` in seconds: older answers are no evidence for anything."""
        self.newest = 0
        self._keep = keep
        self._sent_at: deque[tuple[int, float]] = deque()  # the oldest first

    def __len__(self) -> int:
        """How many times are known."""
        return len(self._sent_at)

    def begin(self, now: float) -> None:
        """What is sent from now on has another number."""
        self.newest += 1
        self._sent_at.append((self.newest, now))
        while len(self._sent_at) > 1 and self._sent_at[1][1] < now - self._keep:
            self._sent_at.popleft()

    def sent_at(self, number: int) -> float:
        """When this round was sent; long ago, if that is forgotten."""
        oldest, _ = self._sent_at[0] if self._sent_at else (0, 0.0)
        position = number - oldest
        return self._sent_at[position][1] if 0 <= position < len(self._sent_at) else float("-inf")

    def forget_times(self) -> None:
        """A new term of office: nothing of an earlier one is evidence. The numbers go on."""
        self._sent_at.clear()
