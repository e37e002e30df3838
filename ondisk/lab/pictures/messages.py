"""Messages between replicas: time runs down, replicas stand side by side."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from ondisk.lab.pictures.drawing import cross, disc, framed, line, polygon, svg, text
from ondisk.observe import Seen

_LEFT, _COLUMN, _ROW, _TOP = 130, 180, 24, 44
MAX_ROWS = 60


def message_diagram(events: Sequence[Seen], ids: Iterable[int]) -> str:
    """Who told whom what, and what that means; one row per event, so time is in order but not to scale.

    ``events`` as from ``Recorder.messages``. At most ``MAX_ROWS`` rows, the first ones.
    """
    shown, more = list(events[:MAX_ROWS]), len(events) - MAX_ROWS
    if not shown:
        return framed("<p>No messages yet.</p>")
    columns = {replica_id: _LEFT + place * _COLUMN for place, replica_id in enumerate(sorted(ids))}
    meaning_at = max(columns.values()) + 36
    width, bottom = meaning_at + 330, _TOP + len(shown) * _ROW
    height = bottom + 26
    began = shown[0].time
    parts = []
    for replica_id, x in columns.items():
        parts.append(line("faint", x, 28, x, bottom))
        parts.append(text(x, 18, f"replica {replica_id}", "bold", "middle"))
    ends = {event.number: row for row, event in enumerate(shown) if event.kind != "sent"}
    labels = []
    # Of older entries the diagram does not know who has heard of what.
    older = min((event.first - 1 for event in shown if event.name == "append_entries"), default=1 << 63)
    known = dict.fromkeys(columns, (older, 0))
    said: set[str] = set()
    before = ""
    for row, event in enumerate(shown):
        y = _TOP + row * _ROW
        when = f"{(event.time - began) * 1000:.0f} ms"
        if when != before:
            parts.append(text(60, y + 4, when, anchor="end"))
            before = when
        meaning = _meaning(event, known)
        if meaning and meaning not in said:
            said.add(meaning)
            labels.append(text(meaning_at, y + 4, meaning))
        if event.kind != "sent":
            continue
        end = ends.get(event.number)
        x1, x2 = columns[event.sender], columns[event.receiver]
        y2 = bottom if end is None else _TOP + end * _ROW
        lost = end is not None and shown[end].kind == "lost"
        parts.append(_arrow(x1, y, x2, y2, lost=lost, arrived=end is not None))
        right = 1 if x2 > x1 else -1
        label = event.label + (" — lost" if lost else " — under way" if end is None else "")
        style = "small halo bad" if lost else "small halo"
        labels.append(text(x1 + right * 10, y - 3, label, style, "start" if right > 0 else "end"))
    if more > 0:
        labels.append(text(_LEFT, height - 6, f"{more} later events are not shown", ""))
    words = "Messages. " + "; ".join(_sentence(event, began) for event in shown) + "."
    return svg("Messages between the replicas", words, width, height, [*parts, *labels])


def _arrow(x1: int, y1: int, x2: int, y2: int, *, lost: bool, arrived: bool) -> str:
    begin = disc(x1, y1, 3)
    if lost:
        x, y = x1 + 0.4 * (x2 - x1), y1 + 0.4 * (y2 - y1)
        return line("line off bad", x1, y1, x, y) + begin + cross(x, y, half=5, width=2)
    if not arrived:
        return line("line off", x1, y1, x2, y2) + begin
    length = ((x2 - x1) ** 2 + (y2 - y1) ** 2) ** 0.5 or 1.0
    ux, uy = (x2 - x1) / length, (y2 - y1) / length
    wings = [(x2 - 8 * ux + side * 4 * uy, y2 - 8 * uy - side * 4 * ux) for side in (1, -1)]
    head = polygon("line", [(x2, y2), *wings], ' style="fill:currentColor"')
    return line("line", x1, y1, x2, y2) + head + begin


def _meaning(event: Seen, known: dict[int, tuple[int, int]]) -> str:
    """What the event proves about the replicas.

    No message leaves before its sender's log is durable, so a message tells what is on disk. ``known`` is
    the newest commit index, and leadership check, that each replica was seen to know.
    """
    sender, receiver, last = event.sender, event.receiver, event.last
    sent = event.kind == "sent"
    if event.kind == "lost":
        return f"{receiver} will never see this one"
    if event.name == "append_entries" and sent:
        return f"{sender} has {_entries(event)} durable in its log"
    if event.name == "response" and sent:
        return f"{sender} " + (
            f"still follows {receiver}" if event.empty else f"has entry {last} durable in its log"
        )
    if event.name in ("heartbeat", "append_entries"):
        who = sender if sent else receiver
        commit, round_ = known[who]
        known[who] = max(commit, event.commit), max(round_, event.round)
        if event.commit > commit:
            done = "has committed and applied" if sent else "may apply"
            return f"{who} {done} everything up to entry {event.commit}"
        if event.round > round_ and sent:
            return f"{sender} asks {receiver}: do I still lead?"
    if event.name == "propose" and not sent:
        return f"the command has reached replica {receiver}"
    if event.name == "outcomes" and not sent:
        return f"replica {receiver} can answer its client"
    if event.name == "read_index_response" and not sent:
        return f"{receiver} may answer once it has applied entry {last}"
    return ""


def _entries(event: Seen) -> str:
    if event.first == event.last:
        return f"entry {event.first}"
    return f"entries {event.first} to {event.last}"


def _sentence(event: Seen, began: float) -> str:
    return (
        f"{(event.time - began) * 1000:.0f} ms: {event.label} from {event.sender} to "
        f"{event.receiver} {event.kind}"
    )
