"""What all widgets of the lab do alike: close with all their parts, say themselves as text, speak aloud."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import ipywidgets as w


class Shown:
    """Something with widgets in a ``box``: show it as the last value of a cell."""

    box: Any = None

    def in_words(self) -> str:
        """What it shows, as text: for those who cannot see it, and for front ends without widgets."""
        raise NotImplementedError

    def _repr_mimebundle_(self, **options: Any) -> Any:
        bundle = dict(self.box._repr_mimebundle_(**options) or {})
        bundle["text/plain"] = self.in_words()
        return bundle


def button(name: str, tooltip: str, width: str) -> Any:
    """A button that does nothing yet."""
    return w.Button(description=name, tooltip=tooltip, layout=w.Layout(width=width))


def toggle(name: str, tooltip: str, width: str, *, value: bool = False) -> Any:
    """A button that stays pressed until it is pressed again."""
    return w.ToggleButton(value=value, description=name, tooltip=tooltip, layout=w.Layout(width=width))


def slider(name: str, tooltip: str, most: int, label_width: str) -> Any:
    """Whole numbers from 1 on."""
    return w.IntSlider(
        1,
        min=1,
        max=most,
        description=name,
        tooltip=tooltip,
        layout=w.Layout(width="420px"),
        style={"description_width": label_width},
    )


def row(widgets: Iterable[Any]) -> Any:
    """Widgets side by side, in several lines where there is not enough room."""
    return w.HBox(list(widgets), layout=w.Layout(flex_flow="row wrap"))


def spoken(html: str, style: str = "") -> str:
    """HTML that is read out when it changes."""
    styled = f' style="{style}"' if style else ""
    return f'<div role="status" aria-live="polite"{styled}>{html}</div>'


def close_widgets(widget: Any) -> None:
    """Close a widget with all its children, layouts and styles: ipywidgets keeps each until it is closed."""
    for child in getattr(widget, "children", ()):
        close_widgets(child)
    for part in (getattr(widget, "style", None), widget.layout, widget):
        if part is not None:
            part.close()
