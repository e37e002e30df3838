"""Widgets with a browser part of their own: plain data goes there, and what is clicked comes back."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import anywidget
import traitlets

from ondisk.lab.pictures.living import Plain
from ondisk.lab.static import source


class _Drawn(anywidget.AnyWidget):
    """Draws its ``state``. ``value`` is the same in words."""

    _css = source("panel.css")

    state = traitlets.Dict().tag(sync=True)
    value = traitlets.Unicode()

    def show(self, plain: Plain) -> None:
        """Draw it, and say its ``words``."""
        if plain != self.state:
            self.value = plain["words"]
            self.state = plain

    def on_act(self, act: Callable[[str, Any], None]) -> None:
        """Call ``act`` with the name of an action, and with what it is for: a replica, a link, a time."""

        def hear(_: object, content: object, __: object) -> None:
            if isinstance(content, dict) and isinstance(content.get("do"), str):
                act(content["do"], content.get("on"))

        self.on_msg(hear)


class LivingPicture(_Drawn):
    """Draws what ``living_picture`` says."""

    _esm = source("common.js", "panel.js")

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
        super().show(plain)


class Timeline(_Drawn):
    """Draws what ``timeline`` says. ``on_act`` hears ``go`` with a time, and the names of its buttons."""

    _esm = source("common.js", "timeline.js")
