"""Points: ``grade("3.2")`` looks again at what ``check("3.2", ...)`` was shown, and raises if it is wrong.

It looks in a process of its own, which imports ``ondisk`` anew: what was overwritten in the kernel has no
part in it, what the answer prints is not heard, and one without an end costs its own points and no others.

    locked cell:  lab.grade("3.2")      the answer, pickled  ->  child: decide(...)  ->  points, or NotRight

What it cannot do: the answer's own code runs in that child, beside what decides. Who knows Python well enough
can forge a verdict there, as under any grader that runs what was handed in; ``TEACHING.md`` says what helps.
"""

from __future__ import annotations

import json
import os
import secrets
import signal
import subprocess
import sys
from contextlib import suppress
from html import escape
from pathlib import Path

import cloudpickle

from ondisk.lab.exercises import check

_TO_BEGIN = 20.0  # seconds that the child may take besides

# With -I neither the environment nor a file in this folder says what is imported: the first argument does.
_CHILD = "import sys; sys.path.insert(0, sys.argv[1]); from ondisk.lab.exercises.referee import main; main()"


class NotRight(AssertionError):
    """An answer that gets no points. Its text says why."""


class Points(float):
    """Points that were given. It is shown as a plain number, which is what nbgrader looks for in a cell."""

    def __new__(cls, points: float, why: str) -> Points:
        """``why`` stands beside them."""
        return super().__new__(cls, points)

    def __init__(self, points: float, why: str) -> None:
        self.why = why

    def _repr_html_(self) -> str:
        return f"<div><b>{self:g} points.</b> {escape(self.why)}</div>"


def grade(number: str, *, seconds: float = check.SECONDS) -> Points:
    """The points for the last answer to an exercise, all that it is worth.

    Raises ``NotRight`` if it is wrong, missing, or takes more than ``seconds``; ``LookupError`` for an
    exercise that does not exist.
    """
    points, why = _decide_in_a_child(number, check.last_answer(number), seconds)
    if not points:
        raise NotRight(f"No points for exercise {number}. {why}")
    return Points(points, f"Exercise {number}: {why}")


def _decide_in_a_child(number: str, answer: tuple[object, ...], seconds: float) -> tuple[float, str]:
    token = secrets.token_hex()  # what merely looks like a verdict is none
    try:
        order = f"{token} {number} {seconds}\n".encode() + cloudpickle.dumps(answer)
    except Exception as error:
        return 0, f"Your answer cannot be handed over. {type(error).__name__}: {error}"
    root = Path(check.__file__).parents[3]
    child = subprocess.Popen(
        [sys.executable, "-I", "-c", _CHILD, str(root)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        start_new_session=True,  # so that its own children end with it
    )
    try:
        said, _ = child.communicate(order, timeout=seconds + _TO_BEGIN)
    except subprocess.TimeoutExpired:
        return 0, f"Your answer took more than {seconds:g} s. Does it come to an end?"
    finally:
        _end(child)
    verdict = said.partition(token.encode())[2]
    if not verdict:
        return 0, f"Your answer ended the process that looked at it (exit code {child.returncode})."
    points, text = json.loads(verdict)
    return points, text


def _end(child: subprocess.Popen[bytes]) -> None:
    """With all that it has started."""
    with suppress(ProcessLookupError):
        os.killpg(child.pid, signal.SIGKILL)
    child.communicate()


def main() -> None:
    """In the child: read the order from standard input, write the verdict to standard output."""
    token, number, seconds = sys.stdin.buffer.readline().decode().split()
    said = os.dup(1)
    nowhere = os.open(os.devnull, os.O_WRONLY)
    os.dup2(nowhere, 1)
    answer = cloudpickle.loads(sys.stdin.buffer.read())
    found = check.decide(number, answer, float(seconds))
    points = check.points(number) if found.right else 0
    os.write(said, token.encode() + json.dumps([points, found.text]).encode())
