"""The notebooks that one builds in, and on request all of them, in a real JupyterLab: twice, and looked at.

``ONDISK_NOTEBOOKS=all pytest --long tests/test_browser_notebooks.py`` takes every notebook, a quarter of an
hour. Screenshots of each are kept in the folder that ``ONDISK_SCREENSHOTS`` names. JupyterLab runs with the
comm threads that it has by default, as on a hub that knows nothing of ``binder/overrides.json``: messages of
widgets come to the kernel in a thread of their own.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.lengths import LONG
from tests.test_browser import (
    CHROMIUM,
    NOTEBOOKS,
    Lab,
    browser,
    cells_not_run,
    errors_in,
    everything_has_a_name,
    page,
    run_all,
    wait_for,
)
from tests.test_browser_panel import THEMES, shot, show_in

__all__ = ["browser", "page", "shot"]  # fixtures

BUILT_IN = ["07-your-own-state-machine.ipynb", "08-your-own-raft.ipynb"]
ALL = sorted(path.name for path in NOTEBOOKS.glob("0*.ipynb"))
COMM_THREADS = '{"commsOverSubshells": "perCommTarget"}'

pytestmark = [
    pytest.mark.browser,
    pytest.mark.skipif(CHROMIUM is None, reason="no chromium on this machine"),
    *LONG,
]


@pytest.fixture(scope="module")
def lab(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Lab]:
    """With the comm threads of JupyterLab's own default, whatever this environment overrides."""
    folder = tmp_path_factory.mktemp("lab")
    settings = folder / "settings/@jupyterlab/apputils-extension/kernels-settings.jupyterlab-settings"
    settings.parent.mkdir(parents=True)
    settings.write_text(COMM_THREADS)
    server = Lab(folder)
    try:
        wait_for(server.answers, "JupyterLab answers", 60)
        yield server
    finally:
        server.close()


def _each() -> list[Any]:
    asked_for = ALL if os.environ.get("ONDISK_NOTEBOOKS") == "all" else BUILT_IN
    return [pytest.param(name, id=name[:2], marks=pytest.mark.notebook(name)) for name in asked_for]


@pytest.mark.parametrize("notebook", _each())
def test_it_runs_twice_and_what_it_shows_is_for_everybody(
    page: Any, shot: Callable[[str], None], notebook: str
) -> None:
    """No error in any cell; each control and picture has a name; axe finds nothing in either theme."""
    axe = pytest.importorskip("axe_playwright_python.sync_playwright").Axe()
    kernel = "window.jupyterapp.shell.currentWidget.sessionContext.session.kernel"
    assert page.evaluate(f"{kernel}.supportsSubshells && {kernel}.commsOverSubshells") == "perCommTarget"
    for _ in range(2):
        run_all(page)
        assert errors_in(page) == []
        assert cells_not_run(page) == 0
    everything_has_a_name(page)
    for theme in THEMES:
        show_in(page, theme)
        shot(f"{Path(notebook).stem} {theme}")
        found = axe.run(page, context=".jp-OutputArea-output").response["violations"]
        assert [(each["id"], each["nodes"][0]["html"]) for each in found if each["impact"] != "minor"] == []
