"""Cases: what is explored, within which bounds, and which rule each shows the need of."""

from __future__ import annotations

from dataclasses import dataclass

from ondisk.simulation.model.explorer import Model
from ondisk.simulation.model.founding import Founding
from ondisk.simulation.model.leases import Leases
from ondisk.simulation.model.lives import Lives
from ondisk.simulation.model.raft import Raft
from ondisk.simulation.model.reads import Reads


@dataclass(frozen=True)
class Case:
    """Bounds to explore within, and the rules of which they show the need."""

    name: str
    model: Model
    rules: tuple[str, ...] = ()
    long: bool = False  # takes more than some seconds


CASES = (
    Case("first start, two directories for 2, one round", Founding(twins="2", rounds=1), ("F2", "F3")),
    Case("first start, two directories for 2", Founding(twins="2", rounds=3), ("F4", "F4-round"), long=True),
    Case("first start, 3 lost twice", Founding(loses="33")),
    Case("first start, 2 and 3 lost", Founding(loses="23"), long=True),
    Case("first start, two for 2, and 3 lost", Founding(twins="2", loses="3"), ("F2-last",), long=True),
    Case("first start, told to found with 1", Founding(shorter="1"), ("F5",)),
    Case("first start, told to found with 1 and 2", Founding(shorter="12")),
    Case("first start, not all imported", Founding(seeds=("s", "s", ""), loses="3"), ("I1",)),
    Case("rebuild of who founded alone", Founding(grown=True, loses="1"), ("F6",)),
    Case("elections", Raft(stands=((2, "2"), (3, "2"), (3, "3")), writes=0), ("E3",)),
    Case("lost disks", Raft(loses="123", losses=2)),
    Case("the leader of another group", Raft(stranger=True), ("O1",)),
    Case(
        "3 replaced, while its disk lives",
        Raft(replaces="3", twins="3", changes=2, stands=((2, "2"),)),
        ("O2", "C3", "C4"),
    ),
    Case("3 replaced, three terms", Raft(replaces="3", twins="3", changes=2, parts=False), long=True),
    Case(
        "3 replaced, with two new disks",
        Raft(replaces="3", twins="33", changes=2, stands=((2, "2"),), parts=False),
        long=True,
    ),
    Case(
        "3 lost and replaced",
        Raft(replaces="3", loses="3", losses=1, changes=2, parts=False),
        ("C2",),
        long=True,
    ),
    Case("3 lost and replaced, in parts", Raft(replaces="3", loses="3", losses=1, changes=2), long=True),
    Case(
        "2 and 3 lost and replaced",
        Raft(replaces="23", loses="23", losses=2, changes=3, writes=0, stands=((2, "2"),), parts=False),
    ),
    Case("2 or 3 removed", Raft(removes="23", loses="3", losses=1, changes=2, writes=0), ("C1",)),
    Case(
        "one of four removed, a fifth added",
        Raft("1234", learner="5", removes="1", changes=2, writes=0, parts=False),
        ("C1-term",),
        long=True,
    ),
    Case("the version before, 3 lost", Raft(legacy=True, loses="3", losses=1), ("L1",)),
    Case(
        "the version before, five get an identity",
        Raft("12345", True, identify="123", changes=1, writes=0, stands=((2, "4"),)),
        ("L2",),
    ),
    Case("the version before, 3 comes later", Raft(legacy=True, identify="12", changes=2)),
    Case(
        "the version before, 3 lost while it was away",
        Raft(legacy=True, identify="12", replaces="3", loses="3", losses=1, changes=3, stands=((2, "2"),)),
        long=True,
    ),
    Case("a read of who was deposed", Reads(), ("E1", "O2")),
    Case(
        "reads by a lease",
        Leases(),
        ("R1", "R1-vote", "R2", "R2-sent", "R3", "R4", "R5"),
        long=True,
    ),
    Case("copies", Lives(), ("O4",)),
)

# What no rule keeps away. The model finds each of these with all rules on, and docs/protocol.md says so.
LIMITS = (
    Case("two directories for 2 and for 3 at the first start", Founding(twins="23", rounds=2), long=True),
    Case(
        "who founded alone is lost by hand, and starts as it did",
        Founding(grown=True, loses="1", by_hand=True),
    ),
    Case("1 has voted, is lost, and is told to found alone", Founding(shorter="1", loses="1")),
    Case("an old copy of 3 is put back, and who could refuse it is away", Raft(copies="3")),
)

# Rules without which every state of the model is still safe (it has none of them), and what they are for.
NOT_FOR_SAFETY = {
    "F1": "It says what F2 must know. All must vote for a roster, so another list founds nothing alone.",
    "O3": "A disk that was replaced counts for nothing (O2), but it would disturb elections, and never know.",
    "W1": "Who joins without being a learner counts for nothing (O2), but nobody would send it anything.",
    "W2": "It says when to ask for a change, and C1 to C4 make any change safe. Who lives keeps its place.",
    "C5": "Another disk under an old number is another voter. But people and addresses mean the first one.",
    "E2": "It needs a clock, and reads rest on none (E1): a leader that was frozen only delays.",
    "E4": "With the other rules nobody acknowledges what the leader lacks. It shows copies O4 cannot see.",
    "L3": "A disk that is named early counts for what it has acknowledged (C3). It could only be missing.",
}
