"""The site is made, without a warning, and has what it promises."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import pytest

from tests.lengths import LONG

pytestmark = [*LONG, pytest.mark.skipif(shutil.which("make") is None, reason="make is not installed")]

ROOT = Path(__file__).parents[1]


def test_the_site_is_made_without_a_warning(tmp_path: Path) -> None:
    """In a copy: a broken link, or a docstring that Sphinx cannot read, is an error."""
    here = tmp_path / "copy"
    shutil.copytree(ROOT, here, ignore=shutil.ignore_patterns(".*", "_site", "example-data", "__pycache__"))
    made = subprocess.run(
        ["make", "site"], cwd=here, capture_output=True, text=True, timeout=600, check=False
    )
    if "No matching distribution" in made.stderr or "Temporary failure in name resolution" in made.stderr:
        pytest.skip("the packages of the site cannot be had")
    assert made.returncode == 0, made.stdout + made.stderr
    pages = {str(page.relative_to(here / "_site")) for page in (here / "_site").rglob("*.html")}
    assert pages >= {"index.html", "docs/safety.html", "docs/site/api.html", "put.html"}
    assert {f"notebooks/{path.stem}.html" for path in (ROOT / "notebooks").glob("*.ipynb")} <= pages
    assert "compare_and_set" in (here / "_site/docs/site/api.html").read_text()
