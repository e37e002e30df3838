"""The panel in a real JupyterLab: for those who use no mouse, no eyes, little room or no motion.

Screenshots are kept in the folder that ``ONDISK_SCREENSHOTS`` names, else in that of the test.
"""

from __future__ import annotations

import os
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.lengths import LONG
from tests.test_browser import CHROMIUM, browser, errors_in, lab, page, wait_for

__all__ = ["browser", "lab", "page"]  # fixtures

pytestmark = [
    pytest.mark.browser,
    pytest.mark.skipif(CHROMIUM is None, reason="no chromium on this machine"),
    pytest.mark.notebook("01-three-replicas.ipynb"),
    *LONG,
]

THEMES = ("JupyterLab Light", "JupyterLab Dark")


@pytest.fixture
def shot(page: Any, tmp_path: Path) -> Callable[[str], None]:
    folder = Path(os.environ.get("ONDISK_SCREENSHOTS", tmp_path))
    folder.mkdir(parents=True, exist_ok=True)

    def take(name: str) -> None:
        page.screenshot(path=folder / f"{name}.png")

    return take


def open_panel(page: Any) -> Any:
    """Run the notebook up to its panel."""
    page.evaluate(
        """async () => {
             const notebook = window.jupyterapp.shell.currentWidget.content;
             notebook.activeCellIndex = 1 + notebook.widgets.findIndex(
               cell => cell.model.sharedModel.getSource().includes('lab.Panel('));
             await window.jupyterapp.commands.execute('notebook:run-all-above'); }"""
    )
    assert errors_in(page) == []
    panel = page.locator(".ondisk-panel").first
    panel.get_by_role("group", name="Replica 3").wait_for()
    panel.scroll_into_view_if_needed()
    return panel


def show_in(page: Any, theme: str) -> None:
    """Return when JupyterLab has this theme."""
    page.evaluate("name => window.jupyterapp.commands.execute('apputils:change-theme', {theme: name})", theme)
    wanted = str("Light" in theme).lower()
    page.wait_for_function(f"document.body.dataset.jpThemeLight === '{wanted}'")
    page.locator("#jupyterlab-splash").wait_for(state="detached")


def test_axe_finds_nothing_serious_or_moderate_in_either_theme(
    page: Any, shot: Callable[[str], None]
) -> None:
    """In the panel with everything shown, a menu open, and a replica cut off."""
    axe = pytest.importorskip("axe_playwright_python.sync_playwright").Axe()
    panel = open_panel(page)
    for name in ("Table", "Messages of the last request", "Verdict on what I asked"):
        panel.get_by_role("button", name=name, exact=True).click()
    panel.get_by_role("button", name="Put", exact=True).click()
    panel.get_by_role("status").get_by_text(": done").first.wait_for()
    for action in ("Cut off", ""):
        panel.get_by_role("button", name=re.compile("^Replica 1:")).click()
        if action:
            page.get_by_role("menuitem", name=re.compile(f"^{action}")).click()
    for theme in THEMES:
        show_in(page, theme)
        shot(theme)
        found = axe.run(page, context=".ondisk-panel").response["violations"]
        assert [(each["id"], each["nodes"][0]["html"]) for each in found if each["impact"] != "minor"] == []


def test_it_fits_wherever_it_is(page: Any, shot: Callable[[str], None]) -> None:
    """Nothing is cut off or scrolls sideways; cards without room side by side stand one below the other."""
    panel = open_panel(page)
    page.evaluate("window.jupyterapp.commands.execute('application:toggle-left-area')")
    room = page.locator(".ondisk-living").first

    def fits() -> bool:
        wide, needed = room.evaluate("each => [each.clientWidth, each.scrollWidth]")
        return bool(needed <= wide)

    for width in (1366, 1000, 683, 500):
        page.set_viewport_size({"width": width, "height": 900})
        wait_for(fits, f"it fits into {width}", 20)
        tops = {panel.get_by_role("group", name=f"Replica {i}").bounding_box()["y"] for i in (1, 2, 3)}
        assert len(tops) == (3 if room.evaluate("each => each.clientWidth") <= 470 else 1)
        shot(f"width-{width}")


def test_it_fits_a_laptop_and_stays_whole_at_twice_the_size(page: Any, shot: Callable[[str], None]) -> None:
    """On 1366 x 768 it is no higher than what is seen of the notebook; enlarged nothing of it is cut off."""
    page.set_viewport_size({"width": 1366, "height": 768})
    panel = open_panel(page)
    seen = page.locator(".jp-WindowedPanel-outer").first

    def height(element: Any) -> float:
        return float(element.evaluate("each => each.clientHeight"))

    wait_for(lambda: 0 < height(panel) <= height(seen), "it is no higher than the notebook's part", 20)
    shot("laptop")
    page.set_viewport_size({"width": 683, "height": 384})  # what a laptop has at 200 %
    page.evaluate("window.jupyterapp.commands.execute('application:toggle-left-area')")
    cut_off = """panel => {
      const edge = panel.closest('.jp-OutputArea').getBoundingClientRect();
      return [...panel.querySelectorAll('button, input, select, .card, [role=slider]')]
        .filter(each => each.checkVisibility())
        .filter(each => { const { left, right } = each.getBoundingClientRect();
                          return left < edge.left - 1 || right > edge.right + 1; })
        .map(each => each.outerHTML.slice(0, 200)); }"""
    wait_for(lambda: panel.evaluate(cut_off) == [], "nothing is cut off", 20)
    panel.scroll_into_view_if_needed()
    shot("laptop-twice-the-size")


def test_with_forced_colours_everything_has_an_edge(page: Any, shot: Callable[[str], None]) -> None:
    """What is told by colours is told by lines and words, too; axe finds nothing there either."""
    axe = pytest.importorskip("axe_playwright_python.sync_playwright").Axe()
    page.emulate_media(forced_colors="active", reduced_motion="reduce")
    panel = open_panel(page)
    panel.get_by_role("button", name="Put", exact=True).click()
    panel.get_by_role("status").get_by_text(": done").first.wait_for()
    panel.get_by_role("button", name=re.compile("^Replica \\d: leader")).click()
    page.get_by_role("menuitem", name=re.compile("^Cut off")).click()
    panel.get_by_role("status").get_by_text(": done").first.wait_for()
    panel.get_by_role("button", name=re.compile("^Link 1 → 2 cut|^Link 3 → 1 cut")).first.wait_for()
    shot("forced-colours")
    looks = panel.evaluate(
        """panel => {
             const place = document.createElement('div');
             place.className = 'row gone a-place';
             panel.querySelector('.card').append(place);
             const look = (selector, name) => {
               const each = panel.querySelector(selector);
               return each && getComputedStyle(each)[name]; };
             return {
               leader: parseFloat(look('.card.leads', 'borderTopWidth')),
               other: parseFloat(look('.card:not(.leads)', 'borderTopWidth')),
               durable: look('.card .row.durable', 'borderTopStyle'),
               gone: look('.a-place', 'borderTopColor'),
               back: look('.card', 'backgroundColor'),
               rail: look('.rail', 'backgroundColor'),
               handle: look('.handle', 'borderTopColor'),
               slider: parseFloat(look('.noUi-target', 'borderTopWidth')),
               button: parseFloat(look('.jupyter-button', 'borderTopWidth')) }; }"""
    )
    assert looks["leader"] > looks["other"] > 0
    assert looks["durable"] == "solid"
    assert looks["gone"] == looks["back"]
    assert looks["back"] not in (looks["rail"], looks["handle"])
    assert looks["button"] > 0 < looks["slider"]
    panel.get_by_role("button", name=re.compile("^Replica 1:")).click()  # a menu
    chosen = page.get_by_role("menuitem", name=re.compile("^Stop"))
    assert chosen.evaluate("each => getComputedStyle(each).outlineStyle") == "solid"
    shot("forced-colours-menu")
    found = axe.run(page, context=".ondisk-panel").response["violations"]
    assert [(each["id"], each["nodes"][0]["html"]) for each in found if each["impact"] != "minor"] == []


def test_who_wants_less_motion_sees_stills(page: Any) -> None:
    """A message of a second is at as many places as there are samples, not at sixty."""
    page.emulate_media(reduced_motion="reduce", forced_colors="active")
    panel = open_panel(page)
    latency = panel.get_by_role("slider", name="Latency (s)")
    latency.focus()
    for _ in range(20):
        page.keyboard.press("ArrowRight")
    panel.get_by_role("button", name="Put", exact=True).click()
    places = page.evaluate(
        """async () => {
             const seen = new Map(), until = performance.now() + 4000;
             while (performance.now() < until) {
               for (const each of document.querySelectorAll('.flight')) {
                 if (!seen.has(each)) seen.set(each, new Set());
                 seen.get(each).add(each.getAttribute('transform'));
               }
               await new Promise(requestAnimationFrame);
             }
             return Math.max(...[...seen.values()].map(each => each.size)); }"""
    )
    assert 1 <= places <= 16


def test_by_keyboard_alone_i_cut_off_the_leader_and_saw_why(page: Any, shot: Callable[[str], None]) -> None:
    """From the first cell: run, put, cut off who leads, see another one elected, go back to the reason."""
    from playwright.sync_api import expect

    page.locator(".jp-Notebook .jp-Cell").first.wait_for()
    page.evaluate("window.jupyterapp.commands.execute('notebook:enter-command-mode')")
    panel = page.locator(".ondisk-panel").first
    cells = 0
    while not panel.count():
        cells += 1
        assert cells < 40
        page.keyboard.press("Shift+Enter")
        page.wait_for_function(
            "window.jupyterapp.shell.currentWidget.sessionContext.session.kernel.status === 'idle'"
        )
    panel.get_by_role("group", name="Replica 3").wait_for()
    shot("1-the-panel")

    def tab_to(element: Any, key: str = "Tab") -> None:
        for _ in range(80):
            if element.evaluate("each => each === document.activeElement"):
                return
            page.keyboard.press(key)
        raise AssertionError(f"{key} does not come to {element}")

    tab_to(panel.get_by_role("button", name="Put", exact=True))
    page.keyboard.press("Enter")
    panel.get_by_role("status").get_by_text(": done").first.wait_for()
    shot("2-a-put")

    leader = panel.get_by_role("button", name=re.compile("^Replica \\d: leader"))
    old = re.findall(r"\d", leader.inner_text())[0]
    tab_to(panel.get_by_role("button", name=re.compile(f"^Replica {old}:")))
    page.keyboard.press("Enter")
    chosen = page.get_by_role("menuitem", name=re.compile("^Cut off"))
    tab_to(chosen, "ArrowDown")
    shot("3-what-can-be-done")
    page.keyboard.press("Enter")
    panel.get_by_role("button", name=re.compile(f"^Replica [^{old}]: leader")).wait_for()
    shot("4-another-one-leads")

    line = panel.get_by_role("slider", name="Moment")
    tab_to(line)
    # The newest is that another one leads, or that the old one has noticed that it does not any more.
    expect(line).to_have_attribute("aria-valuetext", re.compile("-> leader|leader ->"))
    for _ in range(12):
        if re.search(r"link .* cut$", line.get_attribute("aria-valuetext") or ""):
            break
        page.keyboard.press("PageDown")
        page.wait_for_timeout(300)
    expect(line).to_have_attribute("aria-valuetext", re.compile("link .* cut$"))
    panel.get_by_role("button", name=re.compile(f"^Replica {old}: leader")).wait_for()
    shot("5-why")
