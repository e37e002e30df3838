"""Faults as data: what goes wrong in a run, when, for how long and to whom.

A schedule is drawn before the run from its seed alone and depends on nothing that happens in it. So a fault
can be taken out and the rest stays what it was, which is how a schedule that breaks something is reduced to
the few faults that do it (``reduce`` in ``run.py``).
"""

from __future__ import annotations

import random
from collections.abc import Callable, Mapping
from typing import NamedTuple

LEADER = 0  # as ``who``: whoever leads at that time


class Fault(NamedTuple):
    """Something that goes wrong ``at`` a time (virtual seconds since the beginning) and ``lasts`` so long.

    ``who`` and ``other`` pick replicas among those that are there at the time: 0 is the leader, other numbers
    count the members. ``size`` is how bad it is; what it measures depends on the kind.
    """

    at: float
    kind: str
    lasts: float = 0.0
    who: int = 0
    other: int = 0
    size: float = 0.0

    def __str__(self) -> str:
        words = (KINDS.get(self.kind) or LEASE_KINDS[self.kind]).words.format(
            who=_name(self.who),
            other=_name(self.other),
            size=self.size,
            groups=_groups(self.who),
            passing=self.other,
        )
        ends = f" for {self.lasts:.2f} s" if self.lasts else ""
        return f"{self.at:6.2f} s: {words}{ends}"


def _name(who: int) -> str:
    return "the leader" if who == LEADER else f"member {who}"


def _groups(mask: int) -> str:
    return "the leader from the others" if mask == LEADER else f"the members by the bits of {mask:05b}"


class Kind(NamedTuple):
    """A kind of fault: how often it is drawn, compared with others, and how to draw one."""

    weight: float
    words: str
    lasts: tuple[float, float] = (0.0, 0.0)
    size: Callable[[random.Random], float] = lambda rng: 0.0


def between(low: float, high: float) -> Callable[[random.Random], float]:
    return lambda rng: low + (high - low) * rng.random()


def one_of(*choices: float) -> Callable[[random.Random], float]:
    return lambda rng: choices[int(rng.random() * len(choices))]


KINDS: Mapping[str, Kind] = {
    "crash": Kind(
        4,
        "cut the power of {who}, and {size:.0%} of its unsynced bytes survive",
        (0.05, 6.0),
        one_of(0, 0, 0.5, 1),
    ),
    "crash in a write": Kind(
        2, "cut the power of {who} between two steps of a write", (0.05, 4.0), between(0, 3)
    ),
    "disk error": Kind(1, "the disk of {who} fails in a write", (0.05, 4.0), between(0, 4)),
    "crash all": Kind(0.5, "cut the power of all", (0.05, 2.0), one_of(0, 0.5)),
    "pause": Kind(2, "{who} gets no processor", (0.05, 4.0)),
    "partition": Kind(4, "part {groups}", (0.2, 8.0)),
    "cut": Kind(3, "lose all from {who} to {other}", (0.2, 8.0)),
    "stall": Kind(2, "hold back all from {who} to {other}", (0.2, 4.0)),
    "loss": Kind(1, "lose {size:.0%} of all messages", (0.2, 6.0), one_of(0.02, 0.1, 0.3)),
    "latency": Kind(2, "messages take up to {size:.3f} s", (0.5, 6.0), one_of(0.001, 0.02, 0.06, 0.25)),
    "slow disk": Kind(2, "each sync of {who} takes {size:.3f} s", (0.2, 5.0), one_of(0.01, 0.1, 0.7)),
    "skew": Kind(1, "the clock of {who} runs at {size:.2f} of its speed", (2.0, 20.0), between(0.9, 1.1)),
    "burst": Kind(4, "{size:.0f} puts at once, by way of {who}", size=one_of(5, 20, 60)),
    "compact": Kind(3, "compact the log of {who}"),
    "transfer": Kind(1, "hand leadership to {other}"),
    "damage": Kind(0.5, "damage a chunk of a snapshot, the next one after {passing} others"),
    "wipe": Kind(0.6, "lose the directory of {who}, which comes back empty", (0.0, 3.0)),
    "lose state": Kind(0.5, "lose the state of {who}, but not its log"),
    "join": Kind(0.7, "add a replica"),
    "remove": Kind(0.7, "remove {who}"),
    "copy": Kind(0.5, "copy the directory of {who}, and put the copy back later", (0.5, 10.0)),
    "aside": Kind(
        0.4, "let {who} begin with an empty directory, and put the old one back later", (0.5, 10.0)
    ),
    "swap": Kind(0.4, "swap the directories of {who} and {other}", (0.1, 3.0)),
    "stranger": Kind(0.4, "put a directory of another group in the place of that of {who}", (0.2, 5.0)),
    "late answers": Kind(
        0.6,
        "what the leader hears is {size:.1f} s late, and then nobody hears it",
        (3.5, 5.0),
        between(1.2, 1.9),
    ),
    "move": Kind(0, "start {who} again at another address", (0.0, 2.0)),
    "twin": Kind(0, "start another process as {who}, with an empty directory", (1.0, 6.0)),
    "clone": Kind(0, "start another process as {who}, with a copy of its directory", (2.0, 8.0)),
    "learner again": Kind(
        0,
        "add a replica that begins again with an empty directory, and put the first one back later",
        (3.0, 8.0),
    ),
    "late start": Kind(0, "start {who} for the first time later than the others", (0.1, 8.0)),
}

# Only where clients read by leases: ``leases`` says how often.
LEASE_KINDS: Mapping[str, Kind] = {
    "left behind": Kind(0, "nobody hears the leader any more, and it hears nobody", (2.5, 3.5)),
    "hang up": Kind(0, "all connections to the leader end, and it hears nobody", (2.5, 3.5)),
    "restart around": Kind(
        0,
        "all but the leader lose power for {size:.2f} s, and it hears nobody",
        (2.5, 3.5),
        between(0.01, 0.1),
    ),
    "late entries": Kind(
        0,
        "nobody hears the leader until somebody stands, and soon after that it hears nobody",
        (4.0, 5.0),
    ),
    "late handover": Kind(
        0,
        "{other} is told to lead, and hears it {size:.2f} s later, when the leader hears nobody any more",
        (5.0, 6.0),
        between(0.0, 3.0),
    ),
}

# What goes wrong at nearly the same time, and whether it happens to the same replica.
PAIRS: tuple[tuple[str, str, bool], ...] = (
    ("wipe", "wipe", False),
    ("wipe", "crash", False),
    ("wipe", "crash", True),
    ("wipe", "crash all", False),
    ("wipe", "pause", True),
    ("pause", "wipe", False),
    ("pause", "wipe", True),
    ("partition", "wipe", False),
    ("cut", "wipe", False),
    ("stall", "wipe", False),
    ("slow disk", "wipe", False),
    ("wipe", "compact", False),
    ("wipe", "transfer", False),
    ("join", "wipe", False),
    ("join", "wipe", True),
    ("remove", "wipe", False),
    ("remove", "crash", False),
    ("wipe", "join", False),
    ("wipe", "remove", False),
    ("lose state", "wipe", False),
    ("wipe", "copy", False),
    ("copy", "wipe", False),
    ("copy", "partition", True),
    ("aside", "crash", False),
    ("aside", "partition", False),
    ("stranger", "crash", False),
    ("swap", "crash", False),
)
_PAIRED = 0.1  # the part of the times at which two things go wrong
# What is so particular that it would not meet by chance: each of these is in some of the runs, once.
PARTICULAR = ("move", "twin", "clone", "learner again")
_PARTICULAR = 0.3  # the part of the runs
_LATE = 0.15  # the part of the replicas that are started late for the first time


def draw(rng: random.Random, seconds: float, kinds: Mapping[str, Kind] = KINDS) -> tuple[Fault, ...]:
    """A schedule for so many virtual seconds: a fault every 1.3 s or so, some in pairs."""
    pairs = [pair for pair in PAIRS if pair[0] in kinds and pair[1] in kinds]
    faults = _at_the_beginning(rng, kinds) if pairs else []
    at = 0.5
    while True:
        at += 0.3 * rng.random() if rng.random() < 0.5 else 5.0 * rng.random()
        if at >= seconds - 0.001:
            faults += _particular(rng, seconds, kinds)
            return tuple(sorted(faults, key=lambda fault: fault.at))
        if pairs and rng.random() < _PAIRED:
            first, second, same = pairs[int(rng.random() * len(pairs))]
            faults.append(_draw_one(rng, first, kinds[first], at))
            then = min(at + 0.8 * rng.random(), seconds - 0.001)
            who = faults[-1].who if same else _someone(rng)
            faults.append(_draw_one(rng, second, kinds[second], then)._replace(who=who))
        else:
            name = _any_kind(rng, kinds)
            faults.append(_draw_one(rng, name, kinds[name], at))


def _at_the_beginning(rng: random.Random, kinds: Mapping[str, Kind]) -> list[Fault]:
    """Before there is a group: who is not there yet, and what happens to those that are."""
    faults = []
    for member in range(1, 6):
        if rng.random() < _LATE:
            late = _draw_one(rng, "late start", kinds["late start"], 0.001)
            faults.append(late._replace(who=member))
    while rng.random() < 0.4:
        name = _any_kind(rng, kinds)
        faults.append(_draw_one(rng, name, kinds[name], 0.002 + 0.5 * rng.random() ** 2))
    return faults


def _particular(rng: random.Random, seconds: float, kinds: Mapping[str, Kind]) -> list[Fault]:
    """Drawn after all others, which so are what they were without them."""
    return [
        _draw_one(rng, name, kinds[name], (0.05 + 0.9 * rng.random()) * seconds)
        for name in PARTICULAR
        if name in kinds and rng.random() < _PARTICULAR
    ]


def _draw_one(rng: random.Random, name: str, kind: Kind, at: float) -> Fault:
    low, high = kind.lasts
    who = LEADER if rng.random() < 0.4 else _someone(rng)
    lasts = low + (high - low) * rng.random() ** 2
    size = kind.size(rng)
    return Fault(round(at, 3), name, round(lasts, 3), who, _someone(rng), round(size, 3))


def _any_kind(rng: random.Random, kinds: Mapping[str, Kind]) -> str:
    drawn = rng.random() * sum(kind.weight for kind in kinds.values())
    for name, kind in kinds.items():
        drawn -= kind.weight
        if drawn < 0:
            return name
    return name  # a rounding error away


def _someone(rng: random.Random) -> int:
    return 1 + int(rng.random() * 31)
