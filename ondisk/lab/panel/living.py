"""The living picture: a widget that sends plain data to its browser part and hears what is clicked there."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import anywidget
import traitlets

from ondisk.lab.pictures.living import Plain

_STATIC = Path(__file__).parent / "static"


class LivingPicture(anywidget.AnyWidget):
    """Draws what ``living_picture`` says. ``value`` is the same in words."""

    _esm = _STATIC / "panel.js"
    _css = _STATIC / "panel.css"

    state = traitlets.Dict().tag(sync=True)
    value = traitlets.Unicode()

    def __init__(self) -> None:
        """Empty as yet."""
        super().__init__()
        self._sent: Plain = {}

    def show(self, plain: Plain) -> None:
        """Draw it, unless nothing but the time has changed since the last one."""
        timeless = {**plain, "time": 0.0}
        if timeless == self._sent:
            return
        self._sent = timeless
        self.value = plain["words"]
        self.state = plain

    def on_act(self, act: Callable[[str, Any], None]) -> None:
        """Call ``act`` with the name of an action, and with the replica or the link (two) that it is for."""

        def hear(_: object, content: object, __: object) -> None:
            if isinstance(content, dict) and isinstance(content.get("do"), str):
                act(content["do"], content.get("on"))

        self.on_msg(hear)
