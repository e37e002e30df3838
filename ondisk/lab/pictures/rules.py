"""The rules of a simulated run, in words: what is checked, and what can be taken away."""

from __future__ import annotations

from ondisk.lab.pictures.drawing import Picture, words_table
from ondisk.simulation.safeguards import SAFEGUARDS

# In this order every one of them is checked in every run; the names are those of the violations.
INVARIANTS = {
    "election safety": "In one term at most one replica leads.",
    "one vote": "Nobody votes for two candidates in one term, power cut or not.",
    "log matching": "Two logs that agree on index and term of an entry agree on all entries before it.",
    "leader completeness": "Whoever begins to lead has every committed entry.",
    "state machine safety": "At one index no two replicas apply different commands.",
    "durable majority": "What anybody takes for committed is on the disks of a majority, synced.",
    "applied beyond the log": "Nothing is applied before it is durable in the log.",
    "order": "Entries are applied in order, none twice and none left out.",
    "gap": "Nobody commits an entry that it does not have.",
    "compaction": "A log has dropped only what its state machine holds durably.",
    "replica failed": "No replica stops without a fault of its disk.",
    "a replica that cannot start": "After every power cut a replica starts again from its own disk.",
    "one group": "All that count for each other belong to one group.",
    "one disk": "An answer counts only from the disk that the members name for its number.",
    "newest life": "An old copy of a directory counts for nothing.",
    "fresh evidence": "Who leads has heard from a majority what was asked within an election timeout.",
    "living disk": "No disk is replaced that has just answered.",
    "checked changes": "Members change only while a majority of the new voters is there, caught up.",
    "one leader in a lease": "While a leader has a lease, nobody leads a newer term.",
    "progress": "Once all faults have ended, everybody agrees within a minute.",
    "equality": "In the end all replicas hold the same keys and values.",
    "linearizability": "Some order of the requests explains every answer that a client got.",
}
AT_THE_END = ("one leader in a lease", "progress", "equality", "linearizability")


def show_invariants() -> Picture:
    """What is checked, and when."""
    rows = [
        (name, "at the end" if name in AT_THE_END else "at every step", sentence)
        for name, sentence in INVARIANTS.items()
    ]
    return words_table("What must never be violated", ("rule", "checked", "it says"), rows)


def show_safeguards() -> Picture:
    """What can be taken away: ``Setting(without=(name,))``. Those of leases need clients that use them."""
    rows = [(name, safeguard.rule) for name, safeguard in SAFEGUARDS.items() if safeguard.drift is None]
    return words_table("Safeguards", ("name", "it says"), rows)
