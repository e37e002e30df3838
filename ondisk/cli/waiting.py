"""What a replica waits for, said on stderr: for its group, for a leader, for a signal."""

from __future__ import annotations

import sys
import time

from ondisk.node import Node

_FIRST_LEADER_SECONDS = 10.0
_FIRST_WORD_SECONDS = 0.5  # in which the others may answer before it is said that they do not
_LOOK_SECONDS = 0.2


class Hints:
    """What the replica waits for, on stderr: each once, until it is something else."""

    def __init__(self) -> None:
        self._last: str | None = None

    def say(self, hint: str | None) -> None:
        if hint is not None and hint != self._last:
            print(hint, file=sys.stderr, flush=True)
        self._last = hint


def wait_for_leader(node: Node, hints: Hints) -> None:
    """Return when there is a leader, or no longer hope for one."""
    deadline = time.monotonic() + _FIRST_LEADER_SECONDS
    while (status := node.status).leader_id is None and status.running and time.monotonic() < deadline:
        hints.say(status.error or "waiting for a leader")
        time.sleep(0.02)


def wait_for_group(node: Node, hints: Hints) -> None:
    """At the first start: say who is missing, unless they are there in a moment."""
    deadline = time.monotonic() + _FIRST_WORD_SECONDS
    while not (status := node.status).group and status.running:
        if time.monotonic() > deadline:
            hints.say(status.error)
            return
        time.sleep(0.02)


def run_until_signal(node: Node, hints: Hints) -> None:
    """As a service: until a signal raises ``SystemExit`` here, or the replica ends by itself."""
    while (status := node.status).running:
        hints.say(status.error)
        time.sleep(_LOOK_SECONDS)
    if status.role == "removed":
        hints.say(status.error)
