"""The browser parts of the lab: JavaScript and CSS, as they are read. No build step, no network.

================  ==============================================================
``common.js``     what all share; it is put before each
``panel.js``      the picture of a group: cards, links, messages that move
``timeline.js``   a time with what happened in it: step, play, click to jump
``recording.js``  a page that plays a recording, with the two above
``panel.css``     how they look; ``recording.css``: the page around them
================  ==============================================================

Imports nothing; ``browser`` makes widgets of it, and ``pictures/recording`` a page.

Invariant: what comes from a cluster becomes text, never HTML.
"""

from __future__ import annotations

from pathlib import Path


def source(*names: str) -> str:
    """The text of these files, one after the other."""
    return "\n".join((Path(__file__).parent / name).read_text(encoding="utf-8") for name in names)
