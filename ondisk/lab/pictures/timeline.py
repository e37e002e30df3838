"""One timeline as plain data: when something happened, and which moment is shown.

The browser part (``static/timeline.js``) draws it. A ``Note`` is a mark on it, and its kind decides about the
mark's shape.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from ondisk.lab.pictures.living import Plain
from ondisk.observe import Note

SPEEDS = {0.05: "a twentieth", 0.25: "a quarter", 0.5: "half", 1.0: "once", 4.0: "four times"}
KINDS = {  # what a mark stands for
    "request": "a request",
    "answer": "an answer",
    "election": "an election",
    "replica": "a replica stops or starts",
    "link": "a link",
    "fault": "a fault",
    "violation": "a violation",
    "": "something else",
}
_MOST_MARKS = 200


def timeline(
    notes: Sequence[Note],
    first: float,
    last: float,
    at: float | None,
    *,
    playing: bool = False,
    speed: float = 1.0,
    live: bool = False,
    bands: Iterable[tuple[float, float]] = (),
    band: str = "",
) -> Plain:
    """Times are in seconds of one clock. ``at`` is the moment that is shown; ``None``: it is now.

    ``live``: it can be gone back to now. ``bands`` are times during which something held, and ``band`` says
    what. Of very many notes the newest are drawn.
    """
    marks = [
        {"time": note.time, "kind": note.kind, "text": note.text}
        for note in notes
        if first <= note.time <= last
    ]
    return {
        "first": first,
        "last": max(first, last),
        "at": at,
        "marks": marks[-_MOST_MARKS:],
        "bands": [[since, until] for since, until in bands],
        "band": band,
        "playing": playing,
        "live": live,
        "speed": speed,
        "speeds": [[value, name] for value, name in SPEEDS.items()],
        "words": f"{len(marks)} things happened in {last - first:.1f} s",
    }
