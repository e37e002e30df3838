"""Is there an order that explains what clients saw? ``python -m ondisk.linearizability HISTORY...``

===========  ==================================================================
``checker``  the search for the order
``history``  what clients saw: recorded, or read from a file
===========  ==================================================================

Imports ``errors`` and ``interrupts``; imported by the simulator, the lab and tests. Use the names below.

Invariant: a history is called linearizable only with an order in hand that explains every answer.
"""

from ondisk.linearizability.checker import (
    KEY_VALUE,
    LIMIT,
    MODELS,
    REGISTER,
    STRINGS,
    Model,
    Undecided,
    Verdict,
    check,
    conflict,
    in_lines,
    main,
)
from ondisk.linearizability.history import BadHistory, Format, History, Operation, read_history, write_history

__all__ = [
    "KEY_VALUE",
    "LIMIT",
    "MODELS",
    "REGISTER",
    "STRINGS",
    "BadHistory",
    "Format",
    "History",
    "Model",
    "Operation",
    "Undecided",
    "Verdict",
    "check",
    "conflict",
    "in_lines",
    "main",
    "read_history",
    "write_history",
]
