"""Clicks may arrive in a thread beside the kernel's own: ipykernel's default. Nothing may notice."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import ipywidgets as w

from ondisk import Cluster, lab
from ondisk.lab import LagPanel, Panel


def parts(widget: Any) -> Iterator[Any]:
    """A widget, and all in it."""
    yield widget
    for child in getattr(widget, "children", ()):
        yield from parts(child)


def test_whatever_is_pressed_in_another_thread_is_done_in_the_kernels_own(tmp_path: Path) -> None:
    """Each button and switch of the panel and of the lag: what is shown changes in one thread only."""

    async def main() -> None:
        with Cluster(tmp_path) as cluster:
            await asyncio.to_thread(cluster.wait_for_leader)
            panel, lag = Panel(cluster), LagPanel(cluster)
            here, elsewhere, changed = threading.get_ident(), set(), set()
            every = [*parts(panel.box), *parts(lag.box)]
            shown = [each for each in every if isinstance(each, w.HTML) or hasattr(each, "_esm")]

            def note(change: dict[str, Any]) -> None:
                changed.add(change["owner"])
                if threading.get_ident() != here:
                    elsewhere.add(type(change["owner"]).__name__)

            for each in shown:
                each.observe(note, "value")

            def press_all() -> None:
                for each in every:
                    if isinstance(each, w.Button):
                        each.click()
                    elif isinstance(each, w.ToggleButton | w.Checkbox):
                        each.value = not each.value
                        each.value = not each.value

            await asyncio.to_thread(press_all)
            await panel.idle()
            panel.close()
            lag.close()
            assert changed
            assert not elsewhere

    asyncio.run(main())


def test_a_prediction_that_is_compared_in_another_thread_is_shown() -> None:
    """It touches its own widgets only."""
    guess = lab.predict("Why, in a thread?", ["because", "no reason"])
    compared = guess.compare("because")
    guess.choice.value = "because"
    thread = threading.Thread(target=compared.now.click)
    thread.start()
    thread.join()
    assert "As you predicted" in compared.in_words()
