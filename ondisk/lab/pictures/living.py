"""The picture of the panel as plain data: all that its browser part draws, in words, numbers and lists.

Nothing here knows a widget or a pixel, and everything can be written as JSON. The browser part
(``static/panel.js``) decides where things are, and moves messages between two of these.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from ondisk.lab.pictures.cluster import MARKS, in_words, link_word, log_in_words
from ondisk.observe import Contents, Lag, Note, Seen, SeenEntry, View
from ondisk.replica import ReplicaStatus

CELLS = 5  # the newest entries of the group, one below the other, the same ones in each card
_MOST_FLIGHTS = 80
_MOST_NOTES = 3
_A_MOMENT = 300  # milliseconds
_NOTHING = Contents()
ELSEWHERE = "this group runs elsewhere, and is only watched"

Plain = dict[str, Any]


def living_picture(
    view: View,
    *,
    notes: Sequence[Note] = (),
    events: Iterable[Seen] = (),
    recorded: str = "",
    rate: float = 1.0,
    up_to: int | None = None,
    lags: Mapping[int, Lag] | None = None,
) -> Plain:
    """The cluster at one moment. Times are in seconds of the cluster's clock, and so is ``time``.

    ``notes`` are what has happened, ``events`` those of messages that may have come and gone since the last
    picture; ``recorded`` says that this is the past, and is empty if it is not.
    ``rate`` is how fast the time goes on until the next picture: 0 for a still. ``up_to`` is the last place
    of the logs that is shown; without it that of the longest log. ``lags``: a value
    is called old only if its replica has been behind for a moment: under load each is, by some milliseconds.
    """
    ids = sorted(view.statuses)
    high = up_to or max((status.last_index for status in view.statuses.values()), default=0)
    window = range(max(1, high - CELLS + 1), max(CELLS, high) + 1)
    newest = _newest_values(view)
    late = {each for each in ids if lags is None or lags[each].milliseconds > _A_MOMENT}
    words = in_words(view)
    return {
        "time": view.time,
        "rate": 0.0 if view.paused else rate,
        "recorded": recorded,
        "paused": view.paused,
        "latency": view.latency,
        "words": f"{recorded} {words}" if recorded else words,
        "replicas": [
            _replica(view, view.statuses[each], window, newest if each in late else {}) for each in ids
        ],
        "links": [_link(view, a, b) for a in ids for b in ids if a != b],
        "flights": _flights(view, events),
        "notes": [note.text for note in notes[-_MOST_NOTES:]],
    }


# Replicas


def _replica(view: View, status: ReplicaStatus, window: range, newest: dict[str, str | None]) -> Plain:
    contents = view.contents.get(status.id, _NOTHING)
    entries = {entry.index: entry for entry in contents.entries}
    seen = status.running or contents.applied_index == status.applied_index  # or it went on, unseen
    return {
        "id": status.id,
        "role": status.role,
        "term": status.term,
        "leads": status.role == "leader",
        "runs": status.running,
        "bad": status.role == "failed",
        "note": _note(view, status, contents),
        "electionAt": contents.election_at,
        "marks": [
            {"name": name, "at": getattr(status, field), "meaning": meaning}
            for field, (name, meaning) in MARKS.items()
        ],
        "log": log_in_words(status),
        "cells": [_cell(status, index, entries.get(index)) for index in window],
        "values": [_value(status, key, value, newest) for key, value in contents.values] if seen else [],
        "disk": _disk(status, contents) if seen else [],
        "actions": _replica_actions(view, status),
    }


def _note(view: View, status: ReplicaStatus, contents: Contents) -> str:
    """What is special about it now; empty if nothing is."""
    if status.error:
        return f"error: {status.error}"
    if status.role == "candidate":
        needed = len(status.voters or view.statuses) // 2 + 1
        return f"has {len(contents.votes)} of {needed} votes that it needs"
    if contents.prevotes:
        needed = len(status.voters or view.statuses) // 2 + 1
        return f"pre-votes: {len(contents.prevotes)} of {needed}"
    if not status.running:
        return "down: this is what was seen last"
    around = [(a, b) for a, b in view.cut if status.id in (a, b)]
    if len(around) == 2 * (len(view.statuses) - 1) > 0:
        return "cut off from all others"
    if any(status.id in link for link in view.stalled):
        return "stalled: its messages wait"
    if status.waiting:
        return f"unanswered requests: {status.waiting}"
    return ""


def _cell(status: ReplicaStatus, index: int, entry: SeenEntry | None) -> Plain:
    """One place of the log: an entry, or the word why there is none."""
    if not status.first_index <= index <= status.last_index:
        why = "not here" if index > status.last_index else "compacted"
        return {"index": index, "there": False, "text": why, "words": f"Entry {index}: {why}."}
    if entry is None:  # it was appended between the two looks
        entry = SeenEntry(index, status.term, "not seen")
    marks = {
        "durable": index <= status.durable_index,
        "committed": index <= status.commit_index,
        "applied": index <= status.applied_index,
        "synced": index <= status.synced_index,
    }
    said = ["durable" if marks["durable"] else "not durable yet"]
    said += [name for name in ("committed", "applied") if marks[name]]
    said += ["in the synced state"] if marks["synced"] else []
    words = f"Entry {index}, term {entry.term}: {entry.words}. Here it is {', '.join(said)}."
    return {"index": index, "there": True, "term": entry.term, "text": entry.words, "words": words, **marks}


def _newest_values(view: View) -> dict[str, str | None]:
    """What the state that has applied most says."""
    statuses = [status for status in view.statuses.values() if view.contents.get(status.id, _NOTHING).values]
    if not statuses:
        return {}
    return dict(view.contents[max(statuses, key=lambda status: status.applied_index).id].values)


def _value(status: ReplicaStatus, key: str, value: str | None, newest: dict[str, str | None]) -> Plain:
    shown = "no such key" if value is None else value
    old = newest.get(key, value) != value
    words = f"In the state of replica {status.id}, {key} is {shown if value is not None else 'missing'}"
    return {"key": key, "value": shown, "old": old, "words": words + (": that is old." if old else ".")}


def _disk(status: ReplicaStatus, contents: Contents) -> list[Plain]:
    """The parts of the state's RocksDB."""
    sizes = contents.sizes
    if sizes is None:
        return []
    unsynced = status.applied_index - status.synced_index
    tables = {0: "no table", 1: "1 table"}.get(sizes.tables, f"{sizes.tables} tables")
    return [
        {
            "name": f"WAL {_bytes(sizes.log_bytes)}",
            "words": "The write-ahead log of RocksDB: recent writes, in order. "
            + (
                f"The outcomes of {unsynced} entries are not synced yet; after a power cut the Raft log, "
                "which is, hands them over again."
                if unsynced > 0
                else "All that was applied is synced."
            ),
            "whole": unsynced <= 0,
        },
        {
            "name": f"memtable {sizes.memtable:,}",
            "words": f"The memtable: {sizes.memtable:,} writes in memory, sorted, and in no table yet.",
            "whole": True,
        },
        {
            "name": f"{tables} {_bytes(sizes.table_bytes)}" if sizes.tables else tables,
            "words": f"On disk {tables}, {sizes.table_bytes:,} bytes: sorted, and never changed.",
            "whole": True,
        },
    ]


def _bytes(size: int) -> str:
    for unit in ("B", "kB"):
        if size < 1000:
            return f"{size:.0f} {unit}"
        size //= 1000
    return f"{size:,} MB"


# What can be done, or why not


def _action(do: str, name: str, meaning: str, why_not: str = "") -> Plain:
    return {"do": do, "name": name, "meaning": meaning, "not": why_not}


def _replica_actions(view: View, status: ReplicaStatus) -> list[Plain]:
    through = _action("via", "Ask through it", "the next requests go to this replica")
    if view.elsewhere:
        return [through, _action("stop", "Break it", "", ELSEWHERE)]
    others = [other for other in view.statuses if other != status.id]
    links = {(status.id, other) for other in others} | {(other, status.id) for other in others}
    down = "" if status.running else "it is down"
    cut = "it is cut off already" if links and links <= view.cut else ""
    stalled = "it is stalled already" if links and links <= view.stalled else ""
    whole = "" if links & (view.cut | view.stalled) else "none of its links is cut or stalled"
    return [
        _action("stop", "Stop", "cleanly", down),
        _action("crash", "Crash", "a power cut: what is not synced is lost", down),
        _action("start", "Start", "from its own disk", "it runs" if status.running else ""),
        _action("cut_off", "Cut off", "its links lose everything", cut),
        _action("stall", "Stall", "its links hold everything, lose nothing", stalled),
        _action("reconnect", "Reconnect", "its links work again", whole),
        _action("compact", "Compact", "drop the log that its synced state makes needless", down),
        through,
    ]


def _link(view: View, sender: int, receiver: int) -> Plain:
    pair = (sender, receiver)
    word = link_word(view, sender, receiver)
    bad = pair in view.cut or pair in view.stalled
    if view.elsewhere:
        return {
            "from": sender,
            "to": receiver,
            "word": word,
            "actions": [_action("cut", "Break it", "", ELSEWHERE)],
        }
    return {
        "from": sender,
        "to": receiver,
        "word": word,
        "actions": [
            _action("cut", "Cut", "lose everything on it", "it is cut" if pair in view.cut else ""),
            _action(
                "stall", "Stall", "hold everything on it", "it is stalled" if pair in view.stalled else ""
            ),
            _action("heal", "Heal", "let it work again", "" if bad else "it works"),
        ],
    }


# Messages


def _flights(view: View, events: Iterable[Seen]) -> list[Plain]:
    """Messages with their departure and arrival: those under way, and those that came and went since."""
    arrived: dict[int, Seen] = {}
    sent = {seen.number: seen for seen in view.in_flight}
    for event in events:
        if event.kind == "sent":
            sent.setdefault(event.number, event)
        else:
            arrived[event.number] = event
    flights = []
    for number in sorted(sent)[-_MOST_FLIGHTS:]:
        seen, end = sent[number], arrived.get(number)
        over = end is not None and end.time <= view.time
        flights.append(
            {
                "n": number,
                "from": seen.sender,
                "to": seen.receiver,
                "text": seen.label,
                "empty": seen.empty,
                "sent": seen.time,
                "due": end.time if end else seen.time + view.latency,
                "lost": over and end is not None and end.kind == "lost",
                "held": (seen.sender, seen.receiver) in view.stalled,
                "done": over,
            }
        )
    return flights
