"""Reach: whether who speaks under a number is heard by the leader of a group, and hears it."""

from __future__ import annotations

import os
import random
import time

from ondisk.interrupts.shielded import still_wanted
from ondisk.net.endpoint import Endpoint
from ondisk.raft.messages import Origin, ReadIndexRejection, ReadIndexRequest, ReadIndexResponse

_LOOK = 0.05  # seconds between two looks whether the leader is connected by now


def reaches_leader(
    endpoint: Endpoint, leader: int, group: bytes, *, seconds: float, ask_again: float
) -> bool:
    """Ask ``leader`` for its read index, and say whether it has answered within so many seconds.

    It answers when a majority has confirmed that it leads (Raft thesis, 6.4). So an answer shows that both
    directions work, and that there is somebody to catch up from. A connection alone shows neither.

    The question comes from a disk that does not exist, which promises and acknowledges nothing. ``ask_again``
    is longer than an election timeout: a leader that hears a new disk twice in that time, and the old one not
    at all, takes the old one for lost (docs/protocol.md, W2).
    """
    endpoint.introduce(Origin(group, os.urandom(16), 0, 0))
    request = random.SystemRandom().getrandbits(62)  # no answer to an earlier question is taken for this one
    deadline, ask_at = time.monotonic() + seconds, 0.0
    while (now := time.monotonic()) < deadline:
        if now >= ask_at and endpoint.send(leader, ReadIndexRequest(request)):
            ask_at = now + ask_again
        still_wanted()
        endpoint.wait(_LOOK)
        for sender, _, message in endpoint.receive():
            if sender != leader or not isinstance(message, ReadIndexResponse | ReadIndexRejection):
                continue
            if message.request == request:
                return isinstance(message, ReadIndexResponse)
    return False
