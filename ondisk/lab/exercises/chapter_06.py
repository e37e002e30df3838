"""The exercises of notebook 6: simulation."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence

from ondisk.lab.exercises.answers import function, near, number
from ondisk.lab.exercises.check import exercise
from ondisk.lab.experiments.exposure import BUSY, STOCK, crash_the_leader, trace_with_an_exposure
from ondisk.lab.experiments.trace import Member, Moment, Trace, Tracer
from ondisk.simulation.faults import Fault
from ondisk.simulation.run import run

# 6.1

_PART, _GROUPS = 0.004, 50


@exercise(
    "6.1",
    hints=[
        "How many crashes does it take until one of them hits, on average?",
        "One crash in 250 hits. How many crashes do all the groups together have in a year?",
        "50 groups have 600 crashes of a leader in a year. Divide.",
    ],
)
def years_until_a_write_is_lost(answer: object) -> str | None:
    """``answer`` is a number of years."""
    right = 1 / _PART / 12 / _GROUPS
    return near(
        number(answer),
        right,
        [
            (right * 12, "That is in months."),
            (right * _GROUPS, "So long would a single group wait. There are 50."),
            (1 / _PART, "So many crashes it takes. How long do all groups together need for them?"),
            (1 / right, "So many writes are lost in a year. How long does one take?"),
        ],
        large="It is too long.",
        small="It is too short.",
        tolerance=0.05,
    )


# 6.2: when to cut the power

_FIRST_SEED = 4


@exercise(
    "6.2",
    hints=[
        "Press Next exposure in the player. What does the line above the cards say?",
        "Cut the power while only the leader has what is committed: not before, and not after.",
        "mine.exposures() has the times. Take one of some length, and a moment in the middle of it.",
    ],
)
def a_moment_that_loses_an_acknowledged_write(answer: object) -> str | None:
    """``answer`` is when the power of the leader is cut, in virtual seconds."""
    at = number(answer, "Give a time in virtual seconds.")
    seed = trace_of_6_2().report.seed
    tracer = Tracer(until=at)
    report = run(seed, STOCK, [*BUSY, crash_the_leader(at)], tracer)
    if report.rule == "acknowledged write lost":
        return None
    holders = tracer.moments[-1].holders if tracer.moments else ()
    if len(holders) < 2:
        return "Nothing acknowledged was lost, though few had it. Try a moment nearby."
    return (
        f"Nothing was lost. When the power was cut, replicas {' and '.join(map(str, holders))} had what was "
        "committed in their logs, and at least one of them was left."
    )


def trace_of_6_2() -> Trace:
    """The run that exercise 6.2 is about, without the crash."""
    return trace_with_an_exposure(_FIRST_SEED)


film_of_6_2 = trace_of_6_2  # as notebooks called it that somebody may have copied


# 6.3: an invariant


def _moment(
    committed: int, durable: Sequence[int], voters: Iterable[int], down: Sequence[int] = ()
) -> Moment:
    members = tuple(
        Member(number, "down" if number in down else "follower", 1, index, index, min(index, committed))
        for number, index in enumerate(durable, 1)
    )
    return Moment(1.0, 1, members, committed, tuple(voters))


_MOMENTS = (
    (_moment(5, (5, 5, 2), (1, 2, 3)), False, "Entry 5 is in two of three logs."),
    (_moment(5, (5, 4, 2), (1, 2, 3)), True, "Entry 5 is in one of three logs."),
    (_moment(5, (9, 9, 2), (1, 2, 3)), False, "Entry 5 is in two of three logs, which go on to entry 9."),
    (
        _moment(5, (5, 5, 2, 2), (1, 2, 3, 4)),
        True,
        "Entry 5 is in two of four logs. Two of four are no majority.",
    ),
    (
        _moment(5, (5, 5, 2), (1, 2, 3), down=(2,)),
        False,
        "Replica 2 is down, and the entry is on its disk: it will be there when it starts.",
    ),
    (
        _moment(5, (5, 2, 2, 5), (1, 2, 3)),
        True,
        "Replica 4 has the entry, and is no voter: it counts for nothing.",
    ),
    (_moment(0, (0, 0, 0), (1, 2, 3)), False, "Nothing is committed, so nothing can be lost."),
)


@exercise(
    "6.3",
    points=2,
    hints=[
        "Count the members whose id is in moment.voters and whose log reaches moment.committed.",
        "member.durable says how far a log reaches. Whether the replica is up does not matter.",
        "It is exposed if twice that number is at most len(moment.voters).",
    ],
)
def says_when_too_few_have_what_is_committed(answer: object) -> str | None:
    """``answer`` takes a moment and says whether something committed is exposed."""
    exposed = function(answer, "exposed")
    for moment, right, why in _MOMENTS:
        said = exposed(moment)
        if not isinstance(said, bool):
            return f"Return True or False, not {said!r}."
        if said is not right:
            return f"{why} You say {said}."
    return None


# 6.4: the fewest faults

_SCHEDULE = tuple(Fault(float(number), "crash") for number in range(1, 31))
_MOST_CALLS = 1000


class _Counted:
    """Says whether faults break it, so many times and no more."""

    def __init__(self, breaks: Callable[[set[int]], bool]) -> None:
        self._breaks = breaks
        self._left = _MOST_CALLS

    def __call__(self, faults: Iterable[Fault]) -> bool:
        self._left -= 1
        if self._left < 0:
            raise RuntimeError(f"more than {_MOST_CALLS} runs, and no end")
        return self._breaks({int(fault.at) for fault in faults})


@exercise(
    "6.4",
    points=3,
    hints=[
        "Leave out one fault. If the rest still breaks it, go on with the rest.",
        "After one was left out another may have become needless: begin again from the first.",
        "It is done when no single one can be left out. Never return what you have not tried.",
    ],
)
def finds_the_fewest_faults(answer: object) -> str | None:
    """``answer`` takes faults, and a function that says whether such a list breaks it; it returns few."""
    fewest = function(answer, "fewest")
    for words, breaks in (
        ("Fault 12 alone is enough", lambda times: 12 in times),
        ("Faults 3 and 28 together do it", lambda times: {3, 28} <= times),
        ("Faults 5, 6 and 7 together do it", lambda times: {5, 6, 7} <= times),
        # Once 9 is gone 2 is needless: whoever passes over the list once keeps 2.
        (
            "Fault 20 does it, with 2 if 9 is there",
            lambda times: 20 in times and (9 not in times or 2 in times),
        ),
    ):
        tried = _Counted(breaks)
        left = fewest(list(_SCHEDULE), tried)
        if left is None:
            return "Your function returned nothing."
        times = {int(fault.at) for fault in left}
        if not breaks(times):
            return f"{words}. You return {sorted(times)}, which does not break it."
        for each in sorted(times):
            if breaks(times - {each}):
                return f"{words}. You return {sorted(times)}, and {each} can be left out."
    return None
