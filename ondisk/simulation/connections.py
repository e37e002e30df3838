"""Connections: two processes may run under one number, and each of the others is connected to one of them.

A connection stands for a number, and a newer one takes its place: so with a second process a number has two
*hosts*, and who speaks to it reaches the one that has called last. What the other one says is lost.
"""

from __future__ import annotations

_SECOND = 1000  # added to a number: the host of its second process


def second_of(member: int) -> int:
    """The host of the second process under this number. The first one's host is the number itself."""
    return member + _SECOND


def number_of(host: int) -> int:
    """The number under which the process on this host runs."""
    return host % _SECOND


class Connections:
    """Whom each host reaches under a number."""

    def __init__(self) -> None:
        self._reached: dict[tuple[int, int], int] = {}  # by calling host and number

    def reached(self, caller: int, number: int) -> int:
        """The host that this one reaches under a number."""
        return self._reached.get((caller, number), number)

    def connect(self, caller: int, host: int) -> None:
        """From now on this one is reached under its number."""
        self._reached[caller, number_of(host)] = host

    def hang_up(self, host: int) -> None:
        """Nobody reaches this one any more, if there is another one under its number."""
        self._reached = {pair: reached for pair, reached in self._reached.items() if reached != host}
