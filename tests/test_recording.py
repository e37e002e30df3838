"""A recording is one page that needs nothing but itself: a browser plays it, and the keyboard does it all."""

from __future__ import annotations

import base64
import gzip
import json
import re
import runpy
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from ondisk import ReplicaStatus
from ondisk.lab.pictures.recording import Recording, recording_of
from ondisk.lab.pictures.timeline import SPEEDS, timeline
from ondisk.observe import Note, Seen, View
from tests.test_browser import ARGUMENTS, CHROMIUM

KEPT = Path(__file__).parent.parent / "docs/recordings"
STATUSES = {
    1: ReplicaStatus(1, "leader", 4, 1, 17, 17, 16, 16, 12, 3),
    2: ReplicaStatus(2, "follower", 4, 1, 17, 16, 15, 14, 14, 3),
    3: ReplicaStatus(3, "follower", 4, 1, 17, 16, 15, 14, 14, 3),
}
CRASHED = {**STATUSES, 3: STATUSES[3]._replace(role="stopped")}
SENT = Seen(7, 10.2, "sent", 1, 2, "append_entries", "append_entries 17..17", 17, 17, 16)
HEARTBEAT = Seen(8, 10.3, "sent", 1, 2, "heartbeat", "heartbeat, commit 16", empty=True)
VIEW = View(10.0, STATUSES, 1)
VIEWS = [
    VIEW,
    replace(VIEW, time=10.3, in_flight=(HEARTBEAT,)),
    replace(VIEW, time=10.5),
    replace(VIEW, time=11.0, statuses=CRASHED),
    replace(VIEW, time=14.0, statuses=CRASHED),
]
MESSAGES = [SENT, SENT._replace(time=10.4, kind="lost")]
NOTES = [
    Note(10.1, "put k = </script><script>alert(1)</script>", "request"),
    Note(11.0, "replica 3: follower -> stopped, term 4", "replica"),
]


def recorded() -> Recording:
    captions = [Note(10.0, "Three replicas."), Note(11.0, "One of them <b>stops</b>.")]
    return recording_of("Some & <any> run", VIEWS, MESSAGES, NOTES, captions=captions)


def packed(html: str) -> Any:
    found = re.search(r'id="recording">([^<]*)<', html)
    assert found is not None
    return json.loads(gzip.decompress(base64.b64decode(found[1])))


def test_a_page_holds_all_it_needs_and_asks_nobody() -> None:
    """No address but the name of SVG; what came from the cluster is data, never a part of the page."""
    html = recorded().html()
    assert re.findall(r"https?://[^\s\"']+", html) == ["http://www.w3.org/2000/svg"]
    assert "default-src 'none'" in html
    assert "alert(1)" not in html
    assert "Some &amp; &lt;any&gt; run" in html
    assert html == recorded().html()
    data = packed(html)
    assert data["line"]["marks"][0]["text"] == NOTES[0].text
    assert len(html) < 60_000


def test_a_picture_is_kept_where_something_changed_and_a_message_under_way_is_in_each() -> None:
    """Heartbeats alone are no change. Nothing can be done with the past."""
    pictures = recorded().pictures
    assert [picture["time"] for picture in pictures] == [10.0, 10.3, 10.5, 11.0, 14.0]
    flights = {picture["time"]: [each["n"] for each in picture["flights"]] for picture in pictures}
    assert flights == {10.0: [], 10.3: [7, 8], 10.5: [7], 11.0: [], 14.0: []}
    first, then = pictures[1]["flights"][0], pictures[2]["flights"][0]
    assert (first["done"], first["lost"], then["done"], then["lost"]) == (False, False, True, True)
    assert first["due"] == 10.4
    assert all(each["actions"] == [] for each in pictures[0]["replicas"] + pictures[0]["links"])
    again = recording_of("A run", [VIEW, replace(VIEW, time=10.05), *VIEWS[1:]], MESSAGES, NOTES)
    assert len(again.pictures) == len(pictures)


def test_a_timeline_has_what_happened_within_it() -> None:
    line = timeline(NOTES, 10.5, 14.0, None, bands=[(11, 12)])
    assert [mark["kind"] for mark in line["marks"]] == ["replica"]
    assert line["at"] is None and line["bands"] == [[11, 12]]
    assert [speed for speed, _ in line["speeds"]] == list(SPEEDS)


# In a browser


@pytest.fixture
def page() -> Iterator[Any]:
    """Of a browser without a network."""
    if CHROMIUM is None:
        pytest.skip("no chromium on this machine")
    sync_api = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")
    with sync_api.sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=ARGUMENTS)
        context = browser.new_context(offline=True, viewport={"width": 1000, "height": 700})
        context.set_default_timeout(30_000)
        yield context.new_page()
        browser.close()


@pytest.mark.browser
@pytest.mark.slow
def test_a_file_is_stepped_scrubbed_and_played_to_its_end_by_keyboard(page: Any, tmp_path: Path) -> None:
    from playwright.sync_api import expect

    errors: list[str] = []
    page.on("pageerror", lambda error: errors.append(str(error)))
    page.on("console", lambda message: errors.append(message.text) if message.type == "error" else None)
    page.goto(recorded().save(tmp_path / "recording.html").as_uri())
    slider = page.get_by_role("slider", name="Moment")
    third, caption = page.get_by_role("group", name="Replica 3"), page.locator("#caption")
    third.get_by_role("button", name="Replica 3: follower").wait_for()
    expect(caption).to_have_text("Three replicas.")

    page.keyboard.press("Tab")
    expect(page.get_by_role("button", name="Previous event")).to_be_focused()
    for _ in range(6):
        page.keyboard.press("Tab")
    expect(slider).to_be_focused()
    page.keyboard.press("ArrowRight")
    expect(slider).to_have_attribute("aria-valuenow", "0.300")
    page.get_by_text("append_entries 17..17").wait_for()
    page.keyboard.press("PageUp")
    expect(slider).to_have_attribute("aria-valuetext", re.compile("stopped, term 4"))
    third.get_by_role("button", name="Replica 3: stopped").wait_for()
    expect(caption).to_have_text("One of them <b>stops</b>.")
    page.keyboard.press("Home")
    third.get_by_role("button", name="Replica 3: follower").wait_for()

    page.get_by_role("combobox", name="Speed").select_option("four times")
    slider.focus()
    page.keyboard.press(" ")
    third.get_by_role("button", name="Replica 3: stopped").wait_for()
    expect(slider).to_have_attribute("aria-valuenow", "4.000")
    expect(page.get_by_role("button", name="Play")).to_have_attribute("aria-pressed", "false")
    page.keyboard.press("Home")
    page.get_by_text("What happened").press("Enter")
    page.get_by_role("button", name="1.000 s: replica 3").press("Enter")
    third.get_by_role("button", name="Replica 3: stopped").wait_for()
    assert errors == []


@pytest.mark.browser
@pytest.mark.slow
def test_each_recording_that_is_kept_opens_explains_and_ends(page: Any) -> None:
    from playwright.sync_api import expect

    for path in sorted(KEPT.glob("*.html")):
        page.goto(path.as_uri())
        slider, caption = page.get_by_role("slider", name="Moment"), page.locator("#caption")
        expect(caption).not_to_be_empty()
        first = caption.text_content()
        slider.press("End")
        expect(slider).to_have_attribute("aria-valuenow", str(slider.get_attribute("aria-valuemax")))
        expect(caption).not_to_have_text(first)


def test_the_recordings_that_are_kept_are_small_and_have_the_present_page() -> None:
    """Else: make recordings ARGS=--pages."""
    make = runpy.run_path(str(KEPT / "make.py"))
    assert {path.name for path in KEPT.glob("*.html")} == make["RECORDINGS"].keys()
    for path in KEPT.glob("*.html"):
        html = path.read_text(encoding="utf-8")
        assert make["with_the_present_page"](html) == html
        assert path.stat().st_size <= make["MOST_BYTES"]


# A run of the simulator


def simulation(*arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "ondisk.simulation", *arguments]
    return subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)


def test_a_violation_that_the_simulator_found_is_written_as_a_page(tmp_path: Path) -> None:
    """Up to the moment in which it was found. For many runs it is refused."""
    path = tmp_path / "violation.html"
    arguments = ["--jobs", "1", "--no-reduce", "--without", "restart-keeps-log", "--html", str(path)]
    refused = simulation("--seeds", "0", *arguments)
    assert refused.returncode == 2 and "--replay SEED, or --first" in refused.stderr
    done = simulation("--seeds", "0", "--first", *arguments)
    assert done.returncode == 1, done.stderr
    data = packed(path.read_text())
    marks, pictures = data["line"]["marks"], data["pictures"]
    assert marks[-1]["kind"] == "violation"
    assert {"fault", "replica", "election"} <= {mark["kind"] for mark in marks}
    assert pictures[-1]["time"] == marks[-1]["time"] == data["line"]["last"]
    assert any(cell["text"].startswith("put ") for each in pictures for cell in each["replicas"][0]["cells"])
    assert data["line"]["bands"]
    assert path.stat().st_size < 300_000
