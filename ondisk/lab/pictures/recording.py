"""A recording as one HTML file: it plays, steps and scrubs in any browser, without a kernel or a network.

It has the panel's own browser parts in it, and the pictures as compressed data.
"""

from __future__ import annotations

import base64
import gzip
import json
import math
from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from html import escape
from pathlib import Path
from typing import NamedTuple

from ondisk.lab.pictures.living import Plain, living_picture
from ondisk.lab.pictures.timeline import timeline
from ondisk.lab.static import source
from ondisk.observe import Note, Seen, View

_PARTS = {"panel": "panel.js", "timeline": "timeline.js"}
_NO_NETWORK = "default-src 'none'; script-src 'unsafe-inline'; style-src 'unsafe-inline'; img-src data:"


class Recording(NamedTuple):
    """What a page plays: ``pictures`` are those of ``living_picture``, in the order of their ``time``.

    ``line`` is what ``timeline`` says of it. ``captions`` explain: each is shown from its time on until the
    next one. ``origin`` says how it was made.
    """

    title: str
    pictures: Sequence[Plain]
    line: Plain
    captions: Sequence[Note] = ()
    origin: str = ""

    def html(self) -> str:
        """The page, which needs nothing but itself."""
        data = {
            "pictures": self.pictures,
            "line": self.line,
            "captions": [{"time": caption.time, "text": caption.text} for caption in self.captions],
        }
        text = json.dumps(data, ensure_ascii=False, separators=(",", ":"))
        packed = base64.b64encode(gzip.compress(text.encode(), mtime=0)).decode()
        return page(self.title, self.origin, packed)

    def save(self, path: str | Path) -> Path:
        """Write the page there, and return where it is."""
        path = Path(path)
        path.write_text(self.html(), encoding="utf-8")
        return path


def page(title: str, origin: str, packed: str) -> str:
    """The page around a recording: ``packed`` is its data, compressed, in base64."""
    parts = [
        f"const {name} = (() => {{\n{source(file).replace('export default', 'return')}}})();\n"
        for name, file in _PARTS.items()
    ]
    script = "".join([source("common.js"), *parts, source("recording.js")])
    title, origin = escape(title), escape(origin)
    return (
        '<!doctype html>\n<html lang="en">\n<meta charset="utf-8">\n'
        f'<meta http-equiv="Content-Security-Policy" content="{_NO_NETWORK}">\n'
        '<meta name="viewport" content="width=device-width">\n'
        f"<title>{title}</title>\n"
        f"<style>\n{source('panel.css', 'recording.css')}</style>\n"
        f'<main><h1>{title}</h1><p id="message">This page needs JavaScript.</p>'
        '<div id="line"></div><div id="caption" role="status"></div><div id="picture"></div>'
        '<details><summary>What happened</summary><ol id="events"></ol></details>'
        f"<footer>{origin}</footer></main>\n"
        f'<script type="text/plain" id="recording">{packed}</script>\n'
        f'<script type="module">\n{script}</script>\n</html>\n'
    )


def recording_of(
    title: str,
    views: Sequence[View],
    messages: Sequence[Seen],
    notes: Sequence[Note],
    *,
    captions: Sequence[Note] = (),
) -> Recording:
    """What a recorder has kept, the oldest first. There is at least one view."""
    first, last = views[0].time, views[-1].time
    pictures = list(without_repeats(list(_pictures(views, messages, notes))))
    return Recording(
        title, pictures, timeline(notes, first, last, first), captions, "Recorded by ondisk.lab."
    )


def _pictures(views: Sequence[View], messages: Sequence[Seen], notes: Sequence[Note]) -> Iterator[Plain]:
    for view, events in zip(views, under_way([view.time for view in views], messages), strict=True):
        said = [note for note in notes if note.time <= view.time][-1:]
        words = said[0].text if said else "Recorded"
        yield without_actions(living_picture(view, notes=said, events=events, recorded=words))


def under_way(times: Iterable[float], messages: Iterable[Seen]) -> Iterator[list[Seen]]:
    """For each of these rising times: the events of all messages under way since the one before."""
    of_message: dict[int, list[Seen]] = {}
    for event in messages:
        of_message.setdefault(event.number, []).append(event)
    later = deque(sorted(of_message.values(), key=lambda events: events[0].time))
    now: list[list[Seen]] = []
    before = -math.inf
    for time in times:
        while later and later[0][0].time <= time:
            now.append(later.popleft())
        now = [events for events in now if len(events) == 1 or events[-1].time >= before]
        yield [event for events in now for event in events]
        before = time


def without_actions(picture: Plain) -> Plain:
    """The same, and nothing can be done with it: it is the past."""
    return {
        **picture,
        **{part: [{**each, "actions": []} for each in picture[part]] for part in ("replicas", "links")},
    }


def without_repeats(pictures: Sequence[Plain]) -> Iterator[Plain]:
    """Those that differ from the one before by more than the time and heartbeats; and the last one."""
    shown: object = None
    for number, picture in enumerate(pictures):
        flights = [flight for flight in picture["flights"] if not flight["empty"]]
        look = {**picture, "time": 0, "words": "", "flights": flights}
        if look != shown or number == len(pictures) - 1:
            shown = look
            yield picture
