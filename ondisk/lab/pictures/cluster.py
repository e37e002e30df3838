"""Pictures of a cluster, as text: a ``View`` goes in, SVG or HTML comes out. No widget, no browser.

Meaning never rests on colour alone: roles, links and lost messages are named in words, marks differ in
shape and carry their number, and every picture says its values again as text for those who cannot see it.
Colours come from JupyterLab's theme, so that light and dark both work.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from html import escape

from ondisk.observe import Lag, Seen, View
from ondisk.replica import ReplicaStatus

_MARKS = (
    ("last", "last_index", "the newest entry in its log"),
    ("durable", "durable_index", "its log is synced to disk up to here"),
    ("commit", "commit_index", "what it knows to be committed"),
    ("applied", "applied_index", "its state machine holds the outcome up to here"),
    ("synced", "synced_index", "its state machine is synced to disk up to here"),
)
_OF_THE_LOG = ("last", "durable")

STYLE = """<style>
.ondisk { overflow-x: auto; color: var(--jp-ui-font-color1, #212121); }
.ondisk svg { display: block; font: 13px var(--jp-ui-font-family, system-ui, sans-serif); }
.ondisk svg text { fill: var(--jp-ui-font-color1, #212121); }
.ondisk svg .small { font-size: 12px; }
.ondisk svg .bold { font-weight: bold; }
.ondisk svg .halo { paint-order: stroke; stroke: var(--jp-layout-color0, #fff); stroke-width: 4px;
  stroke-linejoin: round; }
.ondisk svg .line { stroke: var(--jp-ui-font-color2, #616161); fill: none; }
.ondisk svg .faint { stroke: var(--jp-border-color1, #bdbdbd); fill: none; }
.ondisk svg .card { stroke: var(--jp-ui-font-color2, #616161); fill: var(--jp-layout-color1, #fff); }
.ondisk svg .leader { stroke: var(--jp-brand-color1, #1976d2); stroke-width: 3px; }
.ondisk svg .off { stroke-dasharray: 6 4; }
.ondisk svg .bad { stroke: var(--jp-error-color1, #d32f2f); }
.ondisk svg text.bad, .ondisk svg .badfill { stroke: none; fill: var(--jp-error-color1, #d32f2f); }
.ondisk svg text.bad.halo { stroke: var(--jp-layout-color0, #fff); }
.ondisk svg .mark { fill: var(--jp-brand-color1, #1976d2); stroke: none; }
.ondisk svg .ring { fill: var(--jp-layout-color0, #fff); stroke: var(--jp-brand-color1, #1976d2);
  stroke-width: 2px; }
.ondisk table { border-collapse: collapse; font-size: 13px; margin: 4px 0; }
.ondisk th, .ondisk td { padding: 2px 9px; text-align: right; white-space: nowrap;
  border-bottom: 1px solid var(--jp-border-color2, #e0e0e0); }
.ondisk td.words { text-align: left; white-space: normal; }
.ondisk caption { text-align: left; font-weight: bold; padding: 2px 0; }
</style>"""


@dataclass(frozen=True)
class Picture:
    """Something to look at, as the value of a cell. As text it is its own description."""

    html: str
    words: str

    def _repr_html_(self) -> str:
        return self.html

    def __repr__(self) -> str:
        return self.words


def svg(title: str, words: str, width: int, height: int, parts: Sequence[str]) -> str:
    """A picture that says its values again as text, for those who cannot see it. Sizes in pixels."""
    return (
        f'{STYLE}<div class="ondisk"><svg role="img" aria-label="{escape(words)}" width="{width}" '
        f'height="{height}" viewBox="0 0 {width} {height}"><title>{escape(title)}</title>'
        f"<desc>{escape(words)}</desc>{''.join(parts)}</svg></div>"
    )


# The cluster

_CARD_WIDTH, _CARD_HEIGHT, _GAP, _EDGE = 264, 190, 12, 6
_LANE = 27  # pixels between two directions of a link


def cluster_picture(view: View) -> str:
    """The whole cluster: links with messages under way above, one card per replica below."""
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

    parts = [
        f'<line class="faint" x1="{x}" y1="6" x2="{x}" y2="{height_of_links + 4}"/>' for x in centre.values()
    ]
    for (i, j), level in levels.items():
        bottom = height_of_links - 8 - level * 2 * _LANE
        for sender, receiver, y in ((ids[i], ids[j], bottom - _LANE), (ids[j], ids[i], bottom)):
            parts.append(_lane(view, sender, receiver, centre[sender], centre[receiver], y))
    for replica_id in ids:
        x = centre[replica_id] - _CARD_WIDTH // 2
        status = view.statuses[replica_id]
        parts.append(f'<g transform="translate({x},{height_of_links + 4})">{_card(status, low, high)}</g>')
    parts.append(_legend(height - 12, low, high, view))
    words = in_words(view)
    return svg(words.split(".")[0], words, width, height, parts)


def in_words(view: View) -> str:
    """Everything the picture shows, as sentences: its alternative text."""
    leader = f"replica {view.leader_id} leads" if view.leader_id else "no leader"
    said = [f"Cluster of {len(view.statuses)} replicas, {leader}"]
    for replica_id, status in sorted(view.statuses.items()):
        marks = ", ".join(f"{name} {getattr(status, field)}" for name, field, _ in _MARKS)
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


def _window(view: View) -> tuple[int, int]:
    """The entries that all log bars show: from just below the oldest mark to the newest entry."""
    statuses = view.statuses.values()
    high = max(status.last_index for status in statuses)
    low = min(min(getattr(status, field) for _, field, _ in _MARKS) for status in statuses)
    return max(0, min(low, high - 8)), max(high, 8)


def _link_word(view: View, sender: int, receiver: int) -> str:
    if not all(view.statuses[end].running for end in (sender, receiver)):
        return "down"
    if (sender, receiver) in view.cut:
        return "cut"
    return "held" if (sender, receiver) in view.held else "ok"  # a cut link swallows, a stalled one keeps


def _lane(view: View, sender: int, receiver: int, x1: int, x2: int, y: int) -> str:
    right = 1 if x2 > x1 else -1
    word = _link_word(view, sender, receiver)
    style = "line" if word == "ok" else "line off" if word == "down" else "line off bad"
    start, end = x1 + right * 86, x2 - right * 8
    anchor = "start" if right > 0 else "end"
    arrow = " ".join(f"{end - right * dx},{y + dy}" for dx, dy in ((7, -4), (0, 0), (7, 4)))
    parts = [
        f'<text class="small{" bad" if "bad" in style else ""}" x="{x1 + right * 8}" y="{y + 4}" '
        f'text-anchor="{anchor}">{sender} → {receiver} {word}</text>',
        f'<line class="{style}" x1="{start}" y1="{y}" x2="{end}" y2="{y}"/>',
        f'<polyline class="line" points="{arrow}"/>',
    ]
    labelled: list[float] = []
    for message in view.in_flight:
        if (message.sender, message.receiver) != (sender, receiver):
            continue
        x = start + (end - start) * (0.06 + 0.88 * _progress(view, message))
        parts.append(_dot(message, x, y))
        if not message.empty and all(abs(x - other) > 120 for other in labelled):
            labelled.append(x)
            near_end = max(min(x, max(start, end) - 58), min(start, end) + 58)
            parts.append(
                f'<text class="small halo" x="{near_end:.0f}" y="{y - 8}" text-anchor="middle">'
                f"{escape(message.label)}</text>"
            )
    return "".join(parts)


def _progress(view: View, message: Seen) -> float:
    """How much of its way a message has behind it, 0 to 1."""
    if view.latency <= 0:
        return 0.5
    return min(1.0, max(0.0, (view.time - message.time) / view.latency))


def _dot(message: Seen, x: float, y: int) -> str:
    title = f"<title>{message.sender} to {message.receiver}: {escape(message.label)}</title>"
    if message.empty:
        return f'<circle class="ring" cx="{x:.0f}" cy="{y}" r="3.5">{title}</circle>'
    return f'<circle class="mark" cx="{x:.0f}" cy="{y}" r="6">{title}</circle>'


def _card(status: ReplicaStatus, low: int, high: int) -> str:
    style = {"leader": "card leader", "failed": "card off bad", "stopped": "card off"}
    parts = [
        f'<rect class="{style.get(status.role, "card")}" x="2" y="2" width="{_CARD_WIDTH - 4}" '
        f'height="{_CARD_HEIGHT - 4}" rx="8"/>',
        f'<text class="bold" x="14" y="24">Replica {status.id}: {escape(status.role)}</text>',
        f'<text x="{_CARD_WIDTH - 14}" y="24" text-anchor="end">term {status.term}</text>',
    ]
    left, right = 76, _CARD_WIDTH - 72  # room for a name, and for a number of six digits

    def place(index: int) -> float:
        return left + (right - left) * (min(max(index, low), high) - low) / (high - low)

    for row, (name, field, meaning) in enumerate(_MARKS):
        y = 46 + row * 20
        index = getattr(status, field)
        x = place(index)
        # The log begins where it was compacted; the state holds the outcome from the first entry on.
        start = place(status.first_index - 1) if name in _OF_THE_LOG else left
        parts.append(
            f"<g><title>{name}: {meaning}</title>"
            f'<text class="small" x="14" y="{y + 4}">{name}</text>'
            f'<line class="faint" x1="{left}" y1="{y}" x2="{right}" y2="{y}"/>'
            f'<line class="line" stroke-width="3" x1="{start:.1f}" y1="{y}" x2="{x:.1f}" y2="{y}"/>'
            f"{_bracket(start, y) if start > left else ''}"
            f"{_shape(name, x, y)}"
            f'<text class="small" x="{_CARD_WIDTH - 14}" y="{y + 4}" text-anchor="end">{index}</text>'
            f"</g>"
        )
    parts.append(f'<text class="small" x="14" y="{_CARD_HEIGHT - 36}">{_log_in_words(status)}</text>')
    y = _CARD_HEIGHT - 16
    if status.error:
        short = status.error if len(status.error) < 36 else status.error[:34] + "…"
        parts.append(
            f'<text class="small bad" x="14" y="{y}">error: {escape(short)}'
            f"<title>{escape(status.error)}</title></text>"
        )
    elif status.waiting:
        parts.append(f'<text class="small" x="14" y="{y}">unanswered requests: {status.waiting}</text>')
    return "".join(parts)


def _log_in_words(status: ReplicaStatus) -> str:
    first, last = status.first_index, status.last_index
    return f"log holds entries {first} to {last}" if first <= last else f"log is empty, next is entry {first}"


def _bracket(x: float, y: int) -> str:
    """Here the log begins: what came before was dropped."""
    return f'<path class="line" d="M{x + 4:.1f} {y - 7}h-4v14h4"/>'


def _shape(name: str, x: float, y: int) -> str:
    """A mark of its own for each kind of index: bar, square, diamond, disc, triangle."""
    points = {
        "last": ((-2, -7), (2, -7), (2, 7), (-2, 7)),
        "durable": ((-5, -5), (5, -5), (5, 5), (-5, 5)),
        "commit": ((0, -7), (7, 0), (0, 7), (-7, 0)),
        "synced": ((0, -6), (6, 5), (-6, 5)),
    }.get(name)
    if points is None:
        return f'<circle class="mark" cx="{x:.1f}" cy="{y}" r="5.5"/>'
    corners = " ".join(f"{x + dx:.1f},{y + dy}" for dx, dy in points)
    return f'<polygon class="mark" points="{corners}"/>'


def _legend(y: int, low: int, high: int, view: View) -> str:
    more = "paused; " if view.paused else ""
    latency = f"{more}latency {view.latency * 1000:.0f} ms; the bars show entries {low} to {high}"
    x = _EDGE + 8
    return (
        f'<circle class="mark" cx="{x}" cy="{y - 4}" r="6"/>'
        f'<text class="small" x="{x + 12}" y="{y}">message</text>'
        f'<circle class="ring" cx="{x + 86}" cy="{y - 4}" r="3.5"/>'
        f'<text class="small" x="{x + 96}" y="{y}">heartbeat or its answer</text>'
        f'<text class="small" x="{x + 262}" y="{y}">{latency}</text>'
    )


# The same numbers as a table


def status_table(view: View, lags: dict[int, Lag] | None = None) -> str:
    """One row per replica, all numbers; with ``lags`` also how far each is behind."""
    names = [
        "replica", "role", "term", "first", "last", "durable", "commit", "applied", "synced", "opened at"
    ]  # fmt: skip
    if lags:
        names += ["behind", "behind (ms)"]
    with_error = any(status.error for status in view.statuses.values())
    head = "".join(f'<th scope="col">{name}</th>' for name in [*names, *["error"] * with_error])
    rows = []
    for replica_id, status in sorted(view.statuses.items()):
        cells: list[object] = [status.role, status.term, status.first_index]
        cells += [getattr(status, field) for _, field, _ in _MARKS]
        cells.append(status.opened_index)
        if lags:
            cells += [lags[replica_id].entries, f"{lags[replica_id].milliseconds:.0f}"]
        row = f'<th scope="row">{replica_id}</th>'
        row += "".join(f"<td>{escape(str(cell))}</td>" for cell in cells)
        if with_error:
            row += f'<td class="words">{escape(status.error or "")}</td>'
        rows.append(f"<tr>{row}</tr>")
    leader = f"replica {view.leader_id} leads" if view.leader_id else "no leader"
    return (
        f'{STYLE}<div class="ondisk"><table><caption>{leader}</caption><thead><tr>{head}</tr></thead>'
        f"<tbody>{''.join(rows)}</tbody></table></div>"
    )


def table(head: Sequence[str], rows: Iterable[Sequence[object]], caption: str) -> str:
    """A plain table; the first cell of a row names it."""
    titles = "".join(f'<th scope="col">{escape(name)}</th>' for name in head)
    body = "".join(
        f'<tr><th scope="row">{escape(str(name))}</th>'
        + "".join(f"<td>{escape(str(cell))}</td>" for cell in cells)
        + "</tr>"
        for name, *cells in rows
    )
    return (
        f'{STYLE}<div class="ondisk"><table><caption>{escape(caption)}</caption>'
        f"<thead><tr>{titles}</tr></thead><tbody>{body}</tbody></table></div>"
    )


# Messages: time runs down, replicas stand side by side

_LEFT, _COLUMN, _ROW = 130, 180, 24
MAX_ROWS = 60


def message_diagram(events: Sequence[Seen], ids: Iterable[int]) -> str:
    """Who told whom what, and what that means; one row per event, so time is in order but not to scale.

    ``events`` as from ``Recorder.messages``. At most ``MAX_ROWS`` rows, the first ones.
    """
    shown, more = list(events[:MAX_ROWS]), len(events) - MAX_ROWS
    if not shown:
        return f'{STYLE}<div class="ondisk"><p>No messages yet.</p></div>'
    columns = {replica_id: _LEFT + place * _COLUMN for place, replica_id in enumerate(sorted(ids))}
    meaning_at = max(columns.values()) + 36
    width, bottom = meaning_at + 330, 44 + len(shown) * _ROW
    height = bottom + 26
    began = shown[0].time
    parts = []
    for replica_id, x in columns.items():
        parts.append(f'<line class="faint" x1="{x}" y1="28" x2="{x}" y2="{bottom}"/>')
        parts.append(f'<text class="bold" x="{x}" y="18" text-anchor="middle">replica {replica_id}</text>')
    ends = {event.number: row for row, event in enumerate(shown) if event.kind != "sent"}
    labels = []
    # Of older entries the diagram does not know who has heard of what.
    older = min((event.first - 1 for event in shown if event.name == "append_entries"), default=1 << 63)
    known = dict.fromkeys(columns, (older, 0))
    said: set[str] = set()
    before = ""
    for row, event in enumerate(shown):
        y = 44 + row * _ROW
        when = f"{(event.time - began) * 1000:.0f} ms"
        if when != before:
            parts.append(f'<text class="small" x="60" y="{y + 4}" text-anchor="end">{when}</text>')
            before = when
        meaning = _meaning(event, known)
        if meaning and meaning not in said:
            said.add(meaning)
            labels.append(f'<text class="small" x="{meaning_at}" y="{y + 4}">{escape(meaning)}</text>')
        if event.kind != "sent":
            continue
        end = ends.get(event.number)
        x1, x2 = columns[event.sender], columns[event.receiver]
        y2 = bottom if end is None else 44 + end * _ROW
        lost = end is not None and shown[end].kind == "lost"
        parts.append(_arrow(x1, y, x2, y2, lost=lost, arrived=end is not None))
        toward = 1 if x2 > x1 else -1
        suffix = " — lost" if lost else " — under way" if end is None else ""
        labels.append(
            f'<text class="small halo{" bad" if lost else ""}" x="{x1 + toward * 10}" y="{y - 3}" '
            f'text-anchor="{"start" if toward > 0 else "end"}">{escape(event.label)}{suffix}</text>'
        )
    if more > 0:
        labels.append(f'<text x="{_LEFT}" y="{height - 6}">{more} later events are not shown</text>')
    words = "Messages. " + "; ".join(_sentence(event, began) for event in shown) + "."
    return svg("Messages between the replicas", words, width, height, [*parts, *labels])


def _arrow(x1: int, y1: int, x2: int, y2: int, *, lost: bool, arrived: bool) -> str:
    dot = f'<circle class="mark" cx="{x1}" cy="{y1}" r="3"/>'
    if lost:
        x, y = x1 + 0.4 * (x2 - x1), y1 + 0.4 * (y2 - y1)
        return (
            f'<line class="line off bad" x1="{x1}" y1="{y1}" x2="{x:.0f}" y2="{y:.0f}"/>{dot}'
            f'<path class="line bad" stroke-width="2" d="M{x - 5:.0f} {y - 5:.0f}l10 10m0 -10l-10 10"/>'
        )
    length = ((x2 - x1) ** 2 + (y2 - y1) ** 2) ** 0.5 or 1.0
    ux, uy = (x2 - x1) / length, (y2 - y1) / length
    head = " ".join(
        f"{x2 - 8 * ux + side * 4 * uy:.1f},{y2 - 8 * uy - side * 4 * ux:.1f}" for side in (1, -1)
    )
    if not arrived:
        return f'<line class="line off" x1="{x1}" y1="{y1}" x2="{x2}" y2="{y2}"/>{dot}'
    return (
        f'<line class="line" x1="{x1}" y1="{y1}" x2="{x2}" y2="{y2}"/>'
        f'<polygon class="line" style="fill:currentColor" points="{x2},{y2} {head}"/>{dot}'
    )


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
    if event.name == "reply" and sent and event.success:
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
    if event.name == "read_index" and not sent and last:
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
