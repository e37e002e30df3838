"""Sphinx makes the site: the book of docs/, the notebooks, the API from docstrings (``make site``).

The pages stay where they are, and as they read on a forge: a link to a file that is no page leads there.
"""

from __future__ import annotations

import re
import shutil
from importlib.metadata import version as version_of
from pathlib import Path

from sphinx.application import Sphinx

ROOT = Path(__file__).parents[2]
REPOSITORY = "https://github.com/ondisk-py/ondisk/blob/main"

project = "ondisk"
release = version = version_of("ondisk")
copyright = "the ondisk authors"
extensions = ["myst_nb", "sphinx.ext.autodoc", "sphinx.ext.viewcode", "sphinxcontrib.mermaid"]
root_doc = "README"
include_patterns = [
    "README.md",
    "CHANGELOG.md",
    "CONTRIBUTING.md",
    "TEACHING.md",
    "docs/*.md",
    "docs/site/api.md",
    "notebooks/*.ipynb",
    "tests/scenarios/README.md",
]
exclude_patterns = [".venv*", "_site", "example-data"]
html_theme = "furo"
html_title = f"ondisk {release}"
html_extra_path = sorted(str(page) for page in (ROOT / "docs/recordings").glob("*.html"))
nb_execution_mode = "off"  # the recordings show what moves; the notebooks are to be run
myst_heading_anchors = 4
myst_fence_as_directive = ["mermaid"]
# A recording is no page, and is to be opened, not downloaded.
myst_url_schemes = {"http": None, "https": None, "mailto": None, "recording": "{{path}}"}
autodoc_member_order = "bysource"

_LINK = re.compile(r"(?<=\]\()(?!https?://|mailto:)([^)\s#]*)(#[^)\s]*)?(?=\))")
_NAVIGATION = """

```{toctree}
:hidden:
:caption: The book

docs/README
BOOK
```

```{toctree}
:hidden:
:caption: The notebooks
:glob:

notebooks/*
```

```{toctree}
:hidden:
:caption: Reference

docs/site/api
TEACHING
CHANGELOG
CONTRIBUTING
```
"""


def _is_page(app: Sphinx, path: Path) -> bool:
    """Whether a file of the repository is a page of the site, or a picture that a page shows."""
    return (
        path.suffix in (".svg", ".png") or str(path.relative_to(ROOT).with_suffix("")) in app.env.found_docs
    )


def _link(app: Sphinx, page: Path, link: re.Match[str]) -> str:
    target = (page.parent / link[1]).resolve() if link[1] else page
    if target.suffix == ".ipynb" and _is_page(app, target):  # JupyterLab's names of headings are the headings
        return link[1] + re.sub(r"[^\w#-]", "", link[2] or "").lower()
    if not target.exists() or not target.is_relative_to(ROOT) or _is_page(app, target):
        return link[0]  # a link into nowhere stays one, for Sphinx to complain
    if target.parent.name == "recordings" and target.suffix == ".html":
        return "recording:" + "../" * (len(page.relative_to(ROOT).parents) - 1) + target.name
    return f"{REPOSITORY}/{target.relative_to(ROOT)}{link[2] or ''}"


def _pages_in_order() -> list[str]:
    """The pages of the book, in the order in which its first page names them."""
    first = ROOT / "docs/README.md"
    links = [(first.parent / link[1]).resolve() for link in _LINK.finditer(first.read_text())]
    pages = [path.relative_to(ROOT).with_suffix("") for path in links if path.suffix == ".md"]
    return list(dict.fromkeys(map(str, pages)))


def _read(app: Sphinx, name: str, source: list[str]) -> None:
    """Adapt the text of a page: links to files go to the forge, and the first page gets the navigation."""
    page = ROOT / app.env.doc2path(name)
    source[0] = _LINK.sub(lambda link: _link(app, page, link), source[0])
    if name == root_doc:
        source[0] += _NAVIGATION.replace("BOOK", "\n".join(_pages_in_order()))


def _name_the_first_page(app: Sphinx, error: Exception | None) -> None:
    if error is None:
        shutil.copy(app.outdir / f"{root_doc}.html", app.outdir / "index.html")


def setup(app: Sphinx) -> None:
    """Called by Sphinx."""
    app.connect("source-read", _read)
    app.connect("build-finished", _name_the_first_page)
