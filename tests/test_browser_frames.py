"""What the panel costs while it is open: frames of the browser, and memory of the browser and the kernel.

Everything is a ratio, because a machine that has something else to do draws less. ``ONDISK_PANEL_MINUTES``
says how long the panel stays open; what was measured is printed, and kept in the folder of the screenshots.

How many frames there are is asserted with ``ONDISK_FRAMES=1`` alone, for a machine that does nothing else:
beside other tests the browser gets half of the processor one second, and all of it the next.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import psutil
import pytest

from tests.lengths import LONG
from tests.test_browser import CHROMIUM, Lab, browser, lab, page
from tests.test_browser_panel import open_panel

__all__ = ["browser", "lab", "page"]  # fixtures

pytestmark = [
    pytest.mark.browser,
    pytest.mark.skipif(CHROMIUM is None, reason="no chromium on this machine"),
    pytest.mark.notebook("01-three-replicas.ipynb"),
    *LONG,
]

MINUTES = float(os.environ.get("ONDISK_PANEL_MINUTES", "0.1"))
ALONE = "ONDISK_FRAMES" in os.environ
OF_SIXTY = 50 / 60  # of the frames that an empty page draws
PUTS = 200  # a second

# How many frames a second, and in how many of those with a message under way a message has moved.
COUNT_FRAMES = """async seconds => {
  const places = new WeakMap();
  let frames = 0, busy = 0, moved = 0;
  const began = await new Promise(requestAnimationFrame);
  for (let now = began; now < began + seconds * 1000; frames += 1) {
    now = await new Promise(requestAnimationFrame);
    let [any, goes] = [false, false];
    for (const each of document.querySelectorAll('.flight')) {
      if (each.style.display === 'none') continue;
      const place = each.getAttribute('transform');
      any ||= places.has(each);
      goes ||= places.has(each) && places.get(each) !== place;
      places.set(each, place);
    }
    busy += any;
    moved += goes;
    var ended = now;
  }
  return { rate: 1000 * frames / (ended - began), busy, moved }; }"""


def in_kernel(page: Any, code: str) -> None:
    """Run it in the notebook's kernel, beside the cells."""
    status = page.evaluate(
        """async code => {
             const { kernel } = window.jupyterapp.shell.currentWidget.sessionContext.session;
             return (await kernel.requestExecute({ code }).done).content.status; }""",
        code,
    )
    assert status == "ok"


def begin_puts(page: Any, per_second: float) -> None:
    in_kernel(page, f"load = lab.Load(cluster, per_second={per_second}).start()")


def test_messages_move_in_every_frame_while_the_kernel_is_busy(page: Any, browser: Any) -> None:
    """With 200 puts a second a message moves in each frame, and there are 50 where an empty page has 60."""
    open_panel(page)
    begin_puts(page, PUTS)
    page.wait_for_function("document.querySelectorAll('.flight').length > 3")
    empty = browser.new_page()
    rates = []
    for _ in range(3):  # by turns: what else the machine does slows both
        for each in (empty, page):
            each.bring_to_front()
            rates.append(each.evaluate(COUNT_FRAMES, 2))
    empty.close()
    idle, panel = sum(each["rate"] for each in rates[::2]), [each for each in rates[1::2]]
    print([{name: round(value, 1) for name, value in each.items()} for each in rates])
    busy, moved = sum(each["busy"] for each in panel), sum(each["moved"] for each in panel)
    if ALONE:
        assert sum(each["rate"] for each in panel) >= OF_SIXTY * idle
        assert busy >= 60
    assert busy
    assert moved >= 0.95 * busy
    in_kernel(page, "load.stop(); load.wait(); assert load.done > 200, load")


def kernel_of(lab: Lab) -> psutil.Process:
    children = psutil.Process(lab.process.pid).children(recursive=True)
    (kernel,) = [each for each in children if "ipykernel_launcher" in " ".join(each.cmdline())]
    return kernel


@pytest.mark.timeout(1800 + 60 * MINUTES)
def test_an_open_panel_takes_no_more_and_more_memory(page: Any, lab: Lab, tmp_path: Path) -> None:
    """With 200 puts a second. Nodes and listeners of the page are the sharpest signs of what is kept.

    The kernel's memory rises and falls with RocksDB's memtables: the least of the late ones is compared.
    """
    panel = open_panel(page)
    kernel = kernel_of(lab)
    begin_puts(page, PUTS)
    chrome = page.context.new_cdp_session(page)
    chrome.send("Performance.enable")
    folder = Path(os.environ.get("ONDISK_SCREENSHOTS", tmp_path))
    folder.mkdir(parents=True, exist_ok=True)
    curve: list[dict[str, float]] = []
    with (folder / "memory.csv").open("w") as table:
        print("minute,kernel MB,browser MB,nodes,listeners,cpu s", file=table)
        for number in range(9):
            page.wait_for_timeout(MINUTES * 60_000 / 8 if number else 2_000)
            chrome.send("HeapProfiler.collectGarbage")
            now = {m["name"]: m["value"] for m in chrome.send("Performance.getMetrics")["metrics"]}
            seen = {
                "kernel": kernel.memory_info().rss / 1e6,
                "browser": now["JSHeapUsedSize"] / 1e6,
                "nodes": now["Nodes"],
                "listeners": now["JSEventListeners"],
            }
            curve.append(seen)
            cpu = sum(kernel.cpu_times()[:2])
            line = [
                f"{number * MINUTES / 8:.2f}",
                *(f"{value:.1f}" for value in seen.values()),
                f"{cpu:.1f}",
            ]
            print(",".join(line), file=table, flush=True)
    print((folder / "memory.csv").read_text())
    assert panel.locator(".flight").count() < 200
    early, late = curve[2:5], curve[5:]
    for name, most in (("nodes", 1.1), ("listeners", 1.1), ("browser", 1.1), ("kernel", 1.05)):
        assert min(each[name] for each in late) <= most * max(each[name] for each in early), name
