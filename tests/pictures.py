"""Pictures as tests read them: as elements and texts, without a browser."""

from __future__ import annotations

import re
from xml.etree import ElementTree as ET


def svg_of(html: str) -> ET.Element:
    """The picture itself; fails unless it is well formed."""
    found = re.search(r"<svg.*</svg>", html, re.DOTALL)
    assert found
    return ET.fromstring(found.group())


def texts(element: ET.Element) -> list[str]:
    return ["".join(text.itertext()) for text in element.iter("text")]
