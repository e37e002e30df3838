"""Notebook 01 in a real JupyterLab in a real browser: run it all, then use the panel like a student."""

from __future__ import annotations

import json
import os
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
NAME = "01-three-replicas.ipynb"
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

    def close(self) -> None:
        try:
            for kernel in self.ask("/api/kernels"):  # they outlive the page, and would outlive the server
                self.ask(f"/api/kernels/{kernel['id']}", "DELETE")
        finally:
            self.process.terminate()
            try:
                self.process.wait(20)
            except subprocess.TimeoutExpired:
                self.process.kill()
                self.process.wait()


@pytest.fixture
def lab(tmp_path: Path) -> Iterator[Lab]:
    server = Lab(tmp_path)
    try:
        wait_for(server.answers, "JupyterLab answers", 60)
        yield server
    finally:
        server.close()


@pytest.fixture
def page(lab: Lab) -> Iterator[Any]:
    sync_api = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")
    with sync_api.sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=ARGUMENTS)
        try:
            page = browser.new_page(viewport={"width": 1400, "height": 1000})
            page.set_default_timeout(60_000)
            page.goto(f"{lab.url}/lab/tree/{NAME}?reset&token={lab.token}")
            page.wait_for_function("window.jupyterapp !== undefined")
            page.get_by_role("heading", name="1. Three replicas").wait_for()
            page.wait_for_function(
                """() => { const panel = window.jupyterapp.shell.currentWidget;
                           return panel?.sessionContext?.session?.kernel?.status === 'idle' }"""
            )
            yield page
        finally:
            browser.close()


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
