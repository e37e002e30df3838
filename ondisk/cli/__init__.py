"""The ``ondisk`` command: one replica of a key-value store in a terminal. Three of them make a group.

============  ==============================================================
``command``   the command: what goes wrong is one line and a status
``serve``     ``ondisk``: opens a replica and serves it
``remote``    ``ondisk --endpoints ... get k``: one command for a group elsewhere
``beyond``    the same for transactions, watches, locks and digests
``operate``   the same for members, leader and logs
``answers``   what such a command prints as JSON
``inspect``   ``ondisk inspect``: prints what a stopped replica holds
``check``     ``ondisk check perf``: is this machine fast enough?
``console``   a line into a request, and its outcome into text
``words``     a line into words, and the rest of a line into a value
``input``     where lines come from: a person, a pipe, or nowhere; and the pager
``prompt``    the lines of a person: history, completion, colours
``waiting``   what is said while a replica waits for others
``process``   signals, standard streams and the log of the process
============  ==============================================================

After Dragonboat's ``ondisk`` example, whose flags and answers it keeps.

Imports ``node``, ``remote``, ``inspect``, ``perf`` and what is below. Imported by nobody but
``python -m ondisk``.

Invariant: whatever goes wrong is said in one line, and no stored value can move the cursor.
"""

import sys

try:
    import click  # noqa: F401
except ModuleNotFoundError as missing:
    print(f"error: {missing.name} is missing: pip install 'ondisk[cli]'", file=sys.stderr)
    raise SystemExit(2) from None

from ondisk.cli.command import main
from ondisk.cli.console import COMMANDS, USAGE, Console, show
from ondisk.cli.serve import run

__all__ = ["COMMANDS", "USAGE", "Console", "main", "run", "show"]
