"""Notebooks in a real JupyterLab in a real browser: run them, then use what they show like a student."""

from __future__ import annotations

import json
import os
import re
import secrets
import shutil
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

NOTEBOOKS = Path(__file__).parent.parent / "notebooks"
CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser")
ARGUMENTS = [
    "--no-sandbox",
    "--disable-dev-shm-usage",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--no-first-run",
]

pytestmark = [
    pytest.mark.browser,
    pytest.mark.slow,
    pytest.mark.skipif(CHROMIUM is None, reason="no chromium on this machine"),
]


def wait_for(condition: Callable[[], Any], what: str, seconds: float) -> Any:
    deadline = time.monotonic() + seconds
    while not (found := condition()):
        assert time.monotonic() < deadline, f"not within {seconds:g} s: {what}"
        time.sleep(0.1)
    return found


class Lab:
    """JupyterLab as a child process on a free port of this machine only."""

    def __init__(self, folder: Path) -> None:
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            port = probe.getsockname()[1]
        self.url = f"http://127.0.0.1:{port}"
        self.token = secrets.token_hex(16)
        self.log = folder / "jupyterlab.log"
        root = folder / "root"
        shutil.copytree(NOTEBOOKS, root, ignore=shutil.ignore_patterns("example-data", ".ipynb*"))
        options = {
            "ServerApp.root_dir": root,
            "ServerApp.ip": "127.0.0.1",
            "ServerApp.port": port,
            "ServerApp.port_retries": 0,
            "ServerApp.open_browser": False,
            "ServerApp.allow_root": True,
            "LabApp.expose_app_in_browser": True,
            "LabApp.workspaces_dir": folder / "workspaces",
            "LabApp.user_settings_dir": folder / "settings",
        }
        command = [sys.executable, "-m", "jupyterlab"]
        command += [f"--{name}={value}" for name, value in options.items()]
        environment = {
            **os.environ,
            "JUPYTER_TOKEN": self.token,
            "JUPYTER_CONFIG_DIR": str(folder / "config"),
            "JUPYTER_RUNTIME_DIR": str(folder / "runtime"),
            "IPYTHONDIR": str(folder / "ipython"),
        }
        with self.log.open("w") as log:
            self.process = subprocess.Popen(
                command, stdin=subprocess.DEVNULL, stdout=log, stderr=log, env=environment
            )

    def ask(self, path: str, method: str = "GET") -> Any:
        headers = {"Authorization": f"token {self.token}"}
        request = urllib.request.Request(self.url + path, method=method, headers=headers)
        with urllib.request.urlopen(request, timeout=5) as answer:
            return json.loads(answer.read() or b"null")

    def answers(self) -> bool:
        assert self.process.poll() is None, self.log.read_text()
        try:
            return bool(self.ask("/api"))
        except OSError:
            return False

    def end_kernels(self) -> None:
        """They outlive the page, and would outlive the server."""
        for kernel in self.ask("/api/kernels"):
            self.ask(f"/api/kernels/{kernel['id']}", "DELETE")

    def close(self) -> None:
        try:
            self.end_kernels()
        finally:
            self.process.terminate()
            try:
                self.process.wait(20)
            except subprocess.TimeoutExpired:
                self.process.kill()
                self.process.wait()


@pytest.fixture(scope="module")
def lab(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Lab]:
    server = Lab(tmp_path_factory.mktemp("lab"))
    try:
        wait_for(server.answers, "JupyterLab answers", 60)
        yield server
    finally:
        server.close()


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    sync_api = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")
    with sync_api.sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=ARGUMENTS)
        yield browser
        browser.close()


@pytest.fixture
def page(lab: Lab, browser: Any, request: pytest.FixtureRequest) -> Iterator[Any]:
    """The notebook that the test names, open, with a kernel that waits."""
    notebook = request.node.get_closest_marker("notebook").args[0]
    page = browser.new_page(viewport={"width": 1400, "height": 1000})
    page.set_default_timeout(60_000)
    page.goto(f"{lab.url}/lab/tree/{notebook}?reset&token={lab.token}")
    page.wait_for_function("window.jupyterapp !== undefined")
    page.wait_for_function(
        """() => { const panel = window.jupyterapp.shell.currentWidget;
                   return panel?.sessionContext?.session?.kernel?.status === 'idle' }"""
    )
    yield page
    page.close()
    lab.end_kernels()


def run_all(page: Any) -> None:
    page.evaluate("window.jupyterapp.commands.execute('notebook:run-all-cells')", None)


def errors_in(page: Any) -> list[str]:
    found: list[str] = page.evaluate(
        """() => { const model = window.jupyterapp.shell.currentWidget.content.model.toJSON();
                   return model.cells.flatMap(cell => cell.outputs ?? [])
                               .filter(output => output.output_type === 'error')
                               .map(output => output.ename + ': ' + output.evalue) }"""
    )
    return found


def cells_not_run(page: Any) -> int:
    number: int = page.evaluate(
        """() => window.jupyterapp.shell.currentWidget.content.model.toJSON().cells
                       .filter(cell => cell.cell_type === 'code' && !cell.execution_count).length"""
    )
    return number


def number_of_cells(page: Any) -> int:
    number: int = page.evaluate("window.jupyterapp.shell.currentWidget.content.model.cells.length")
    return number


def run_cell(page: Any, beginning: str) -> None:
    """Run the one cell that begins with this text."""
    page.evaluate(
        """async beginning => {
             const notebook = window.jupyterapp.shell.currentWidget.content;
             notebook.activeCellIndex = notebook.widgets.findIndex(
               cell => cell.model.sharedModel.getSource().startsWith(beginning));
             await window.jupyterapp.commands.execute('notebook:run-cell'); }""",
        beginning,
    )


def everything_has_a_name(page: Any) -> None:
    """Every control and picture in an output tells what it is to whoever cannot see it.

    The handles of sliders are left out: ipywidgets gives them no name, and no way to set one.
    """
    from playwright.sync_api import expect

    elements = page.locator(".jp-OutputArea-output :is(button, input, select, img, svg):visible").all()
    assert elements
    for element in elements:
        expect(element).to_have_accessible_name(re.compile(r"\w"))


@pytest.mark.notebook("01-three-replicas.ipynb")
def test_put_and_get_work_in_the_panel_after_run_all_twice(page: Any) -> None:
    """Run All completes without an error, twice; then a typed value comes back through Put and Get."""
    for _ in range(2):
        run_all(page)
        assert errors_in(page) == []
        assert cells_not_run(page) == 0

    panel = page.locator(".jp-OutputArea-output").filter(has=page.get_by_role("button", name="Stale get"))
    panel.first.scroll_into_view_if_needed()
    panel = panel.first
    panel.get_by_label("Key").fill("fruit")
    panel.get_by_label("Value").fill("quince")
    panel.get_by_role("button", name="Put", exact=True).click()
    status = panel.get_by_role("status")
    status.get_by_text("put fruit = quince: done").wait_for()
    panel.get_by_role("button", name="Get", exact=True).click()
    status.get_by_text("get fruit: quince").wait_for()
    assert panel.get_by_role("img").get_attribute("aria-label").startswith("Cluster of 3 replicas")
    the_picture_lives(page, panel)


def the_picture_lives(page: Any, panel: Any) -> None:
    """It shows the data; its menus work by keyboard alone; messages move between two samples."""
    from playwright.sync_api import expect

    markup = "<img src=x onerror=alert(1)>"
    panel.get_by_label("Value").fill(markup)
    panel.get_by_role("button", name="Put", exact=True).click()
    for replica_id in (1, 2, 3):
        card = panel.get_by_role("group", name=f"Replica {replica_id}")
        card.get_by_text(f"put fruit = {markup}").wait_for()
        card.get_by_text(markup, exact=True).wait_for()
    assert panel.locator("img").count() == 0  # what came from outside is text

    cells = number_of_cells(page)
    card = panel.get_by_role("group", name="Replica 3")
    name = card.get_by_role("button", name=re.compile("^Replica 3:"))
    name.focus()
    for key in ("d", "d", "Enter"):  # two d delete a cell, unless JupyterLab is told that they are ours
        page.keyboard.press(key)
    assert number_of_cells(page) == cells
    expect(panel.get_by_role("menuitem", name="Stop")).to_be_focused()
    expect(panel.get_by_role("menuitem", name="Start")).to_have_attribute("aria-disabled", "true")
    page.keyboard.press("Escape")
    expect(name).to_be_focused()
    for key in ("Enter", "ArrowDown", "Enter"):
        page.keyboard.press(key)
    panel.get_by_role("status").get_by_text("crash 3: done").wait_for()
    expect(name).to_have_accessible_name("Replica 3: stopped")

    link = panel.get_by_role("button", name="Link 1 → 2 ok")
    link.click()
    panel.get_by_role("menuitem", name="Cut").click()
    panel.get_by_role("button", name="Link 1 → 2 cut").click()
    panel.get_by_role("menuitem", name="Heal").click()
    link.wait_for()

    latency = panel.get_by_role("slider").first
    latency.focus()
    for _ in range(12):
        page.keyboard.press("ArrowRight")
    # Ten samples a second would show a message of 0.6 s at seven places.
    page.wait_for_function(
        """() => {
             const seen = window.placesOfFlights ??= new WeakMap();
             return [...document.querySelectorAll('.flight')].some(each => {
               if (!seen.has(each)) seen.set(each, new Set());
               return seen.get(each).add(each.getAttribute('transform')).size > 12; }); }"""
    )


def choose(page: Any, replica_id: str, action: str) -> None:
    """Choose something in the menu of a replica."""
    page.get_by_role("button", name=re.compile(f"^Replica {replica_id}:")).click()
    page.get_by_role("menuitem", name=re.compile(f"^{action}\\b")).click()


@pytest.mark.notebook("02-replication-lag.ipynb")
def test_lag_moves_while_a_student_predicts_stalls_and_looks_back(page: Any) -> None:
    """Run All, then: a prediction is compared; a stall shows in the live picture; the record goes back."""
    run_all(page)
    assert errors_in(page) == []
    assert cells_not_run(page) == 0
    everything_has_a_name(page)

    run_cell(page, "stall = lab.predict(")
    page.get_by_role("listbox", name="Where is it after two seconds").select_option(
        "1 entry and 2,000 ms behind"
    )
    run_cell(page, "as_expected = ")
    page.get_by_text("Not what you predicted").first.wait_for()
    run_cell(page, "group = lab.predict(")
    question = page.get_by_role("textbox", name="how many of them share one fsync")
    question.fill("1,000")
    question.press("Enter")
    run_cell(page, "group.compare(")
    page.get_by_text("You predicted: 1,000").first.wait_for()

    lag = page.get_by_role("img", name="Replication lag during the last").first

    def lag_says(pattern: str) -> Any:
        return wait_for(lambda: re.search(pattern, lag.get_attribute("aria-label")), pattern, 60)

    follower = "2" if lag_says(r"Replica (\d), the leader")[1] == "1" else "1"
    write = page.get_by_role("button", name="Write 100 puts per second")
    write.click()
    choose(page, follower, "Stall")
    lag_says(rf"Replica {follower} is [1-9]\d\d entries and \d{{4,}} ms behind")
    choose(page, follower, "Reconnect")
    write.click()
    lag_says(rf"Replica {follower} is 0 entries and 0 ms behind")

    choose(page, follower, "Compact")
    page.get_by_text(f"compact {follower}: the log now begins after entry").wait_for()
    page.get_by_role("button", name="Back", exact=True).click()
    page.get_by_text(re.compile(r"Recorded \d+ s ago")).wait_for()
    page.get_by_role("button", name="Live", exact=True).click()
    page.get_by_text(re.compile(r"Recorded \d+ s ago")).wait_for(state="detached")
