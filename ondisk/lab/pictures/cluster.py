"""A cluster at one moment: links with messages under way above, a card for each replica below."""

from __future__ import annotations

from ondisk.lab.pictures import cards
from ondisk.lab.pictures.cards import Bars, Mark
from ondisk.lab.pictures.drawing import (
    clip,
    disc,
    line,
    lines,
    moved,
    svg,
    table,
    text,
)
from ondisk.observe import Lag, Seen, View
from ondisk.replica import ReplicaStatus

_MARKS = {  # by the field of a status
    "last_index": Mark("last", "last", "the newest entry in its log"),
    "durable_index": Mark("durable", "durable", "its log is synced to disk up to here"),
    "commit_index": Mark("commit", "commit", "what it knows to be committed"),
    "applied_index": Mark("applied", "applied", "its state machine holds the outcome up to here"),
    "synced_index": Mark("synced", "synced", "its state machine is synced to disk up to here"),
}
_OF_THE_LOG = ("last_index", "durable_index")

_CARD_WIDTH, _CARD_HEIGHT, _GAP, _EDGE = 264, 190, 12, 6
_LANE = 27  # pixels between two directions of a link


def cluster_picture(view: View) -> str:
    """The whole cluster."""
    ids = sorted(view.statuses)
    centre = {
        replica_id: _EDGE + _CARD_WIDTH // 2 + place * (_CARD_WIDTH + _GAP)
        for place, replica_id in enumerate(ids)
    }
    levels = _levels(len(ids))
    height_of_links = 24 + (max(levels.values(), default=-1) + 1) * 2 * _LANE
    width = len(ids) * (_CARD_WIDTH + _GAP) - _GAP + 2 * _EDGE
    height = height_of_links + _CARD_HEIGHT + 34
    low, high = _window(view)

    parts = [line("faint", x, 6, x, height_of_links + 4) for x in centre.values()]
    for (i, j), level in levels.items():
        bottom = height_of_links - 8 - level * 2 * _LANE
        for sender, receiver, y in ((ids[i], ids[j], bottom - _LANE), (ids[j], ids[i], bottom)):
            parts.append(_lane(view, sender, receiver, centre[sender], centre[receiver], y))
    for replica_id in ids:
        card = _card(view.statuses[replica_id], low, high)
        parts.append(moved(centre[replica_id] - _CARD_WIDTH // 2, height_of_links + 4, card))
    parts.append(_legend(height - 12, low, high, view))
    words = in_words(view)
    return svg(words.split(".")[0], words, width, height, parts)


def in_words(view: View) -> str:
    """Everything the picture shows, as sentences: its alternative text."""
    said = [f"Cluster of {len(view.statuses)} replicas, {_leader(view)}"]
    for replica_id, status in sorted(view.statuses.items()):
        marks = ", ".join(f"{mark.name} {getattr(status, field)}" for field, mark in _MARKS.items())
        error = f", error: {status.error}" if status.error else ""
        log = _log_in_words(status)
        said.append(f"Replica {replica_id}: {status.role}, term {status.term}, {marks}, {log}{error}")
    if view.cut:
        said.append("Cut: " + ", ".join(f"{a} to {b}" for a, b in sorted(view.cut)))
    under_way = len(view.in_flight)
    said.append(f"Messages under way: {under_way}, latency {view.latency * 1000:.0f} ms")
    if view.paused:
        said.append("The network is paused")
    return ". ".join(said) + "."


def status_table(view: View, lags: dict[int, Lag] | None = None) -> str:
    """The same numbers, one row per replica; with ``lags`` also how far each is behind."""
    names = ["replica", "role", "term", "first", *(mark.name for mark in _MARKS.values()), "opened at"]
    names += ["behind", "behind (ms)"] if lags else []
    with_error = any(status.error for status in view.statuses.values())
    rows = []
    for replica_id, status in sorted(view.statuses.items()):
        row: list[object] = [replica_id, status.role, status.term, status.first_index]
        row += [getattr(status, field) for field in _MARKS]
        row.append(status.opened_index)
        if lags:
            row += [lags[replica_id].entries, f"{lags[replica_id].milliseconds:.0f}"]
        rows.append([*row, *[status.error or ""] * with_error])
    return table([*names, *["error"] * with_error], rows, _leader(view), words={len(names)})


def _leader(view: View) -> str:
    return f"replica {view.leader_id} leads" if view.leader_id else "no leader"


def _legend(y: int, low: int, high: int, view: View) -> str:
    paused = "paused; " if view.paused else ""
    x = _EDGE + 8
    return (
        disc(x, y - 4, 6)
        + text(x + 12, y, "message")
        + disc(x + 86, y - 4, 3.5, "ring")
        + text(x + 96, y, "heartbeat or its answer")
        + text(
            x + 262,
            y,
            f"{paused}latency {view.latency * 1000:.0f} ms; the bars show entries {low} to {high}",
        )
    )


# Links


def _levels(count: int) -> dict[tuple[int, int], int]:
    """Give each pair of places a level of its own wherever their links would overlap; short ones lowest."""
    levels: dict[tuple[int, int], int] = {}
    pairs = [(i, j) for i in range(count) for j in range(i + 1, count)]
    for i, j in sorted(pairs, key=lambda pair: pair[1] - pair[0]):
        level = 0
        while any(used == level and i < b and a < j for (a, b), used in levels.items()):
            level += 1
        levels[i, j] = level
    return levels


def _link_word(view: View, sender: int, receiver: int) -> str:
    if not all(view.statuses[end].running for end in (sender, receiver)):
        return "down"
    if (sender, receiver) in view.cut:
        return "cut"
    return "stalled" if (sender, receiver) in view.stalled else "ok"  # that keeps what a cut one swallows


def _lane(view: View, sender: int, receiver: int, x1: int, x2: int, y: int) -> str:
    right = 1 if x2 > x1 else -1
    word = _link_word(view, sender, receiver)
    style = "line" if word == "ok" else "line off" if word == "down" else "line off bad"
    start, end = x1 + right * 94, x2 - right * 8
    name = f"{sender} → {receiver} {word}"
    parts = [
        text(
            x1 + right * 8,
            y + 4,
            name,
            "small bad" if "bad" in style else "small",
            "start" if right > 0 else "end",
        ),
        line(style, start, y, end, y),
        lines("line", [(end - right * dx, y + dy) for dx, dy in ((7, -4), (0, 0), (7, 4))]),
    ]
    labelled: list[float] = []
    for message in view.in_flight:
        if (message.sender, message.receiver) != (sender, receiver):
            continue
        x = start + (end - start) * (0.06 + 0.88 * _progress(view, message))
        title = f"{message.sender} to {message.receiver}: {message.label}"
        parts.append(disc(x, y, 3.5, "ring", title) if message.empty else disc(x, y, 6, "mark", title))
        if not message.empty and all(abs(x - other) > 120 for other in labelled):
            labelled.append(x)
            near_end = max(min(x, max(start, end) - 58), min(start, end) + 58)
            parts.append(text(near_end, y - 8, message.label, "small halo", "middle"))
    return "".join(parts)


def _progress(view: View, message: Seen) -> float:
    """How much of its way a message has behind it, 0 to 1."""
    if view.latency <= 0:
        return 0.5
    return min(1.0, max(0.0, (view.time - message.time) / view.latency))


# A card


def _window(view: View) -> tuple[int, int]:
    """The entries that all log bars show: from just below the oldest mark to the newest entry."""
    statuses = view.statuses.values()
    high = max(status.last_index for status in statuses)
    low = min(min(getattr(status, field) for field in _MARKS) for status in statuses)
    return max(0, min(low, high - 8)), max(high, 8)


def _card(status: ReplicaStatus, low: int, high: int) -> str:
    # To the left room for a name, to the right for a number of six digits.
    bars = Bars(low, high, 76, _CARD_WIDTH - 72, _CARD_WIDTH, height=20)
    parts = [cards.frame(status.id, status.role, status.term, _CARD_WIDTH, _CARD_HEIGHT)]
    for row, (field, mark) in enumerate(_MARKS.items()):
        # The log begins where it was compacted; the state holds the outcome from the first entry on.
        begins_after = status.first_index - 1 if field in _OF_THE_LOG else None
        parts.append(bars.bar(row, mark, getattr(status, field), begins_after))
    parts.append(text(14, _CARD_HEIGHT - 36, _log_in_words(status)))
    y = _CARD_HEIGHT - 16
    if status.error:
        parts.append(text(14, y, f"error: {clip(status.error, 35)}", "small bad", title=status.error))
    elif status.waiting:
        parts.append(text(14, y, f"unanswered requests: {status.waiting}"))
    return "".join(parts)


def _log_in_words(status: ReplicaStatus) -> str:
    first, last = status.first_index, status.last_index
    return f"log holds entries {first} to {last}" if first <= last else f"log is empty, next is entry {first}"
