"""The exercises of notebook 1: the way of a put, and what an error promises."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from ondisk.lab.exercises.answers import function, names, near, number
from ondisk.lab.exercises.check import exercise


@exercise(
    "1.1",
    hints=[
        "Through the leader it takes one round trip. What has to happen before, and what afterwards?",
        "The command has to reach the leader, and the leader's answer the follower.",
        "Four messages, one after the other: propose, append_entries, response, and the answer.",
    ],
)
def a_put_through_a_follower(answer: object) -> str | None:
    """``answer`` is a number of ms."""
    return near(
        number(answer, "Give a number of ms, without the unit."),
        400,
        [
            (200, "So long it takes through the leader. This client has asked a follower."),
            (300, "The leader has the majority by then. Who tells the follower, which tells the client?"),
            (500, "The followers hear of the commit later, but nobody waits for that."),
            (0.4, "That is in seconds."),
        ],
        large="No. It is not that many messages, one after the other.",
        small="No. More messages than that follow one another.",
    )


@exercise(
    "1.2",
    points=2,
    hints=[
        "How many are a majority of n? So many must be left.",
        "A majority of n is n // 2 + 1: more than half.",
        "n - (n // 2 + 1) may be stopped. Of four it is one, as of three.",
    ],
)
def how_many_may_be_stopped(answer: object) -> str | None:
    """``answer`` takes a number of replicas, and returns how many of them may be stopped."""
    may_stop = function(answer, "may_stop")
    for replicas in (3, 5, 4, 1, 2, 7, 6):
        said: Any = may_stop(replicas)
        if said is None or said is ...:
            return "Your function returns no number yet."
        left = replicas - said
        if 2 * left <= replicas:
            return f"Of {replicas} you stop {said}. Those that are left are no majority: puts wait."
        if 2 * (left - 1) > replicas:
            return f"Of {replicas} you stop {said}. One more could be stopped."
    return None


_ERRORS = ("NoLeader", "OutcomeUnknown", "NotDone", "Timeout")


@exercise(
    "1.3",
    hints=[
        "After which of them is it certain that the write did not happen, and never will?",
        "The table under *Lose the majority* has two rows: one may try again, the other must read first.",
        "NoLeader is a NotDone. Timeout is an OutcomeUnknown.",
    ],
)
def when_to_try_again(answer: Iterable[str]) -> str | None:
    """``answer`` names errors."""
    named = names(answer, _ERRORS, "{} is not one of the four.")
    if "Timeout" in named:
        return "Nobody answered in time. That does not say that nothing happened."
    if "OutcomeUnknown" in named:
        return "It may still happen: whoever sends incr again may have added twice."
    if named != {"NoLeader", "NotDone"}:
        return "There is an error more after which nothing happened, and nothing will."
    return None
