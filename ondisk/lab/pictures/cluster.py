"""A cluster at one moment, in words and as a table; ``living`` has it as a picture."""

from __future__ import annotations

from ondisk.lab.pictures.drawing import table
from ondisk.observe import Lag, View
from ondisk.replica import ReplicaStatus

MARKS = {  # by the field of a status: the name, and what it means
    "last_index": ("last", "the newest entry in its log"),
    "durable_index": ("durable", "its log is synced to disk up to here"),
    "commit_index": ("commit", "what it knows to be committed"),
    "applied_index": ("applied", "its state machine holds the outcome up to here"),
    "synced_index": ("synced", "its state machine is synced to disk up to here"),
}


def in_words(view: View) -> str:
    """How every replica and the network are, as sentences: the alternative text of the picture."""
    said = [f"Cluster of {len(view.statuses)} replicas, {_leader(view)}"]
    for replica_id, status in sorted(view.statuses.items()):
        marks = ", ".join(f"{name} {getattr(status, field)}" for field, (name, _) in MARKS.items())
        error = f", error: {status.error}" if status.error else ""
        log = log_in_words(status)
        said.append(f"Replica {replica_id}: {status.role}, term {status.term}, {marks}, {log}{error}")
    if view.cut:
        said.append("Cut: " + ", ".join(f"{a} to {b}" for a, b in sorted(view.cut)))
    if view.stalled:
        said.append("Stalled: " + ", ".join(f"{a} to {b}" for a, b in sorted(view.stalled)))
    if view.elsewhere:
        return ". ".join([*said, "What is between them is not seen from here"]) + "."
    under_way = len(view.in_flight)
    said.append(f"Messages under way: {under_way}, latency {view.latency * 1000:.0f} ms")
    if view.paused:
        said.append("The network is paused")
    return ". ".join(said) + "."


def status_table(view: View, lags: dict[int, Lag] | None = None) -> str:
    """The same numbers, one row per replica; with ``lags`` also how far each is behind."""
    names = ["replica", "role", "term", "first", *(name for name, _ in MARKS.values()), "opened at"]
    names += ["behind", "behind (ms)"] if lags else []
    with_error = any(status.error for status in view.statuses.values())
    rows = []
    for replica_id, status in sorted(view.statuses.items()):
        row: list[object] = [replica_id, status.role, status.term, status.first_index]
        row += [getattr(status, field) for field in MARKS]
        row.append(status.opened_index)
        if lags:
            row += [lags[replica_id].entries, f"{lags[replica_id].milliseconds:.0f}"]
        rows.append([*row, *[status.error or ""] * with_error])
    return table([*names, *["error"] * with_error], rows, _leader(view), words={len(names)})


def _leader(view: View) -> str:
    return f"replica {view.leader_id} leads" if view.leader_id else "no leader"


def link_word(view: View, sender: int, receiver: int) -> str:
    """How a one-way link is: ok, cut, stalled, or down because one of its ends is."""
    if not all(view.statuses[end].running for end in (sender, receiver)):
        return "down"
    if view.elsewhere:
        return "not seen from here"
    if (sender, receiver) in view.cut:
        return "cut"
    return "stalled" if (sender, receiver) in view.stalled else "ok"  # that keeps what a cut one swallows


def log_in_words(status: ReplicaStatus) -> str:
    """Which entries the log of a replica still has."""
    first, last = status.first_index, status.last_index
    return f"log holds entries {first} to {last}" if first <= last else f"log is empty, next is entry {first}"
