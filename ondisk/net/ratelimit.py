"""A rate-limited log: what others cause from outside cannot fill it."""

from __future__ import annotations

import logging
import time

REPEAT_SECONDS = 60.0


class RateLimitedLog:
    """Warnings of one replica, each about something, and each once in ``REPEAT_SECONDS``."""

    def __init__(self, logger: logging.Logger, replica_id: int, most: int) -> None:
        """``most`` lines in ``REPEAT_SECONDS`` about what anybody from outside can cause."""
        self._logger = logger
        self._id = replica_id
        self._most = most
        self._said: dict[tuple[str, str], float] = {}

    def outside(self, about: str, key: str, text: str, *values: object) -> None:
        """Log what anybody can cause, unless ``key`` was said about the same, or there is too much of it."""
        self._log((about, key), text, values, most=self._most)

    def own(self, about: str, text: str, *values: object) -> None:
        """Log what only members and this machine cause: no crowd may keep it out of the log."""
        self._log((about, text), text, values)

    def _log(
        self, what: tuple[str, str], text: str, values: tuple[object, ...], most: float = float("inf")
    ) -> None:
        now = time.monotonic()
        recently = {what: when for what, when in self._said.items() if now - when < REPEAT_SECONDS}
        if what not in recently and len(recently) < most:
            recently[what] = now
            self._logger.warning("replica %d " + text, self._id, *values)
        self._said = recently
