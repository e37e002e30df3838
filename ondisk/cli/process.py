"""The process of a replica: its log, its signals, its standard streams."""

from __future__ import annotations

import io
import logging
import os
import signal
import sys
from typing import Any


class _OneLine(logging.Formatter):
    """An exception as its message: a traceback is for ``--log-level debug``."""

    def formatException(self, ei: Any) -> str:
        return f"{ei[0].__name__}: {ei[1]}"


def log_to_stderr(level: str, *, timed: bool) -> None:
    """Say what is at least so important on stderr, and when."""
    make = logging.Formatter if level == "debug" else _OneLine
    what = "%(levelname)s: %(message)s"
    handler = logging.lastResort  # it looks up stderr each time, and a prompt replaces that
    assert handler is not None
    handler.setFormatter(
        make(f"%(asctime)s.%(msecs)03d {what}", "%Y-%m-%dT%H:%M:%S") if timed else make(what)
    )
    handler.setLevel(logging.NOTSET)
    logging.basicConfig(level=level.upper(), handlers=[handler])


def end(*_: object) -> None:
    """Leave, and try again in a second: the exception may land in a callback that swallows it."""
    signal.setitimer(signal.ITIMER_REAL, 1.0)
    sys.exit(0)


def keep_standard_streams() -> None:
    """Let no file of the database get a number under which a library may write to the terminal."""
    for number in range(3):
        try:
            os.fstat(number)
        except OSError:  # it was closed by who started this process
            os.open(os.devnull, os.O_RDWR)  # gets the lowest number that is free


def is_background_job() -> bool:
    """Whether reading from the terminal would stop this process: a shell has started it with ``&``."""
    try:
        return os.isatty(0) and os.tcgetpgrp(0) != os.getpgrp()
    except OSError:  # it is not the terminal that controls this process
        return False


def speak_utf8() -> None:
    """No input and no value may end the process, whatever bytes it has."""
    for stream, errors in ((sys.stdin, "surrogateescape"), (sys.stdout, "backslashreplace")):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(encoding="utf-8", errors=errors)
