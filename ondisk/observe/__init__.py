"""What can be watched, without holding anything up.

============  ==============================================================
``recorder``  samples of a whole cluster, messages, events, lag
============  ==============================================================

Imports ``cluster`` and what is below; imported by the lab and tests. Use the names below.

Invariant: who watches delays nobody, and keeps a bounded number of small records.
"""

from ondisk.observe.recorder import (
    MAX_IN_FLIGHT,
    STEP,
    Commits,
    Lag,
    LagRecorder,
    Note,
    Reading,
    Recorder,
    Seen,
    View,
    capture,
    changes,
    describe,
    wait_until,
    wait_until_level,
    without_repeats,
)

__all__ = [
    "MAX_IN_FLIGHT",
    "STEP",
    "Commits",
    "Lag",
    "LagRecorder",
    "Note",
    "Reading",
    "Recorder",
    "Seen",
    "View",
    "capture",
    "changes",
    "describe",
    "wait_until",
    "wait_until_level",
    "without_repeats",
]
