"""The exercises of notebook 2: how far behind, and what a put waits for."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

from ondisk.lab.exercises.answers import Wrong, near, number
from ondisk.lab.exercises.check import exercise
from ondisk.observe import Commits, Reading

_REPLICA = 2


def _readings(*seen: tuple[float, int, int]) -> list[Reading]:
    """From (seconds, commit index, what replica 2 has applied). The lags are for the reader to find."""
    return [Reading(time, commit, {1: commit, _REPLICA: applied}, {}) for time, commit, applied in seen]


_CASES = {
    "a replica has applied all there is, and nothing is written any more": _readings(
        (10.0, 5, 5), (10.5, 6, 6), (12.0, 6, 6)
    ),
    "one entry is missing, after a time without puts": _readings((20.0, 5, 5), (23.0, 6, 5), (23.25, 6, 5)),
    "entry after entry is committed, and none of them arrives": _readings(
        (30.0, 5, 5), (30.5, 6, 5), (31.0, 7, 5), (31.5, 8, 5)
    ),
    "the replica has caught up half-way": _readings(
        (40.0, 5, 5), (40.5, 6, 5), (41.0, 8, 5), (41.5, 9, 5), (42.0, 9, 7)
    ),
    "the replica was behind, caught up with everything, and then missed something new": _readings(
        (50.0, 5, 4), (50.5, 6, 6), (51.0, 8, 6), (51.25, 9, 6)
    ),
}


@exercise(
    "2.1",
    points=2,
    hints=[
        "Begin with the last reading: which is the first entry that the replica has not applied there?",
        "Somebody saw that entry committed for the first time. Go through the readings from the oldest on.",
        "The first reading whose commit_index is above the replica's last applied index tells since when. "
        "Is there none, nothing is missing.",
    ],
)
def milliseconds_behind(answer: Callable[[Sequence[Reading], int], Any]) -> str | None:
    """``answer`` takes readings and a replica's id."""
    for case, readings in _CASES.items():
        commits = Commits()
        for reading in readings:
            commits.see(reading.commit_index, reading.time)
        right = commits.lag(readings[-1].applied[_REPLICA], readings[-1].time).milliseconds
        found = answer(list(readings), _REPLICA)
        if isinstance(found, int | float) and right and math.isclose(found * 1000, right):
            return "That is seconds. Milliseconds are asked for."
        _compare(found, right, case, tolerance=0.001)
    return None


@exercise(
    "2.2",
    points=2,
    hints=[
        "All disks write at the same time: the leader's entries leave before its own fsync is over.",
        "How many followers, with the leader, are a majority?",
        "Of n replicas a majority has n // 2 + 1, so the leader needs n // 2 followers: the fastest ones. "
        "It waits for the slowest of those, and for its own disk.",
    ],
)
def commit_latency(answer: Callable[[float, list[float]], Any]) -> str | None:
    """``answer`` takes the leader's fsync and those of the followers, in ms."""
    cases: list[tuple[str, float, list[float]]] = [
        ("three replicas with equal disks", 5, [5, 5]),
        ("the leader's disk is slow", 20, [1, 1]),
        ("one of two followers has a slow disk", 1, [20, 2]),
        ("both followers have slow disks", 1, [20, 30]),
        ("there are five replicas, all different", 1, [40, 3, 20, 10]),
        ("there are four replicas", 1, [2, 10, 40]),
        ("a replica is alone", 7, []),
    ]
    for case, leader, followers in cases:
        needed = sorted(followers)[: (1 + len(followers)) // 2]
        _compare(answer(leader, list(followers)), max([leader, *needed]), case)
    return None


def _compare(found: Any, right: float, case: str, *, tolerance: float = 0.0) -> None:
    """``Wrong`` if the reader's function has not returned the right number of milliseconds."""
    if found in (None, ...):
        raise Wrong("Your function returns no number yet.")
    if not math.isclose(found, right, abs_tol=tolerance):
        raise Wrong(f"You return {found:g}, and that is not right where {case}.")


@exercise(
    "2.3",
    hints=[
        "How long does one put take, at the very least? Which fsyncs happen at the same time?",
        "The leader's fsync and a follower's, at once: 5 ms. While one put waits, 49 others wait with it.",
        "50 puts are answered every 5 ms, at best. How many is that in a second?",
    ],
)
def puts_per_second(answer: object) -> str | None:
    """``answer`` is a number: 5 ms for an fsync, 50 puts under way."""
    alone = "So it is when every put has its fsyncs to itself. Here they are shared."
    return near(
        number(answer, "A number is asked for, without a unit."),
        10_000,
        [(5_000, "The followers write while the leader does."), (100, alone), (200, alone)],
        large="No. Nobody can be answered that fast.",
        small="No. More is possible.",
    )


@exercise(
    "2.4",
    points=2,
    hints=[
        "Milliseconds grow by themselves while something is missing. Entries grow when something is written.",
        "Cut a follower off, write very little, and wait.",
        "lag.recorder.begin(), cluster.network.isolate(follower), one put, await asyncio.sleep(1.5), "
        "cluster.network.reconnect(follower); then give lag.recorder.readings.",
    ],
)
def old_but_few(answer: Sequence[Reading]) -> str | None:
    """``answer`` are the readings of an experiment."""
    lags = [lag for reading in answer for lag in reading.lags.values()]
    if not any(lag.entries for lag in lags):
        return "Nobody was behind in these readings, by a single entry."
    if any(lag.milliseconds > 1_000 and lag.entries <= 3 for lag in lags):
        return None
    if not any(lag.milliseconds > 1_000 for lag in lags):
        longest = max(lag.milliseconds for lag in lags)
        return f"Nobody was more than 1,000 ms behind: {longest:.0f} ms is the most in these readings."
    fewest = min(lag.entries for lag in lags if lag.milliseconds > 1_000)
    return f"Somebody was more than 1,000 ms behind, but by {fewest} entries or more."
