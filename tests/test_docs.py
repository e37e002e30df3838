"""The documents name tests: each of them exists."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from tests.mutants import MUTANTS

ROOT = Path(__file__).parent.parent


@pytest.mark.parametrize("document", sorted((ROOT / "docs").glob("*.md")), ids=lambda path: path.name)
def test_every_test_that_a_document_names_exists(document: Path) -> None:
    """A table of promises is worth as much as its tests."""
    sources = [*(ROOT / "tests").glob("*.py"), *(ROOT / "ondisk" / "testing").glob("*.py")]
    defined = set(re.findall(r"def (test_\w+)", "".join(path.read_text() for path in sources)))
    files = {path.stem for path in sources}
    named = set(re.findall(r"\b(test_\w+)\b(?!\.\.\.)", document.read_text()))
    assert named <= defined | files


def test_the_table_of_faults_is_the_list_that_can_be_run() -> None:
    """And each fault can still be made: the text that it changes is there, once."""
    table = (ROOT / "docs" / "mutations.md").read_text()
    rows = re.findall(r"^\| `(.+?)` \| (.+?) \|", table, re.MULTILINE)
    assert rows == [(mutant.file, mutant.name) for mutant in MUTANTS]
    for mutant in MUTANTS:
        assert (ROOT / "ondisk" / mutant.file).read_text().count(mutant.old) == 1, mutant.name
        assert all(name in table for name in mutant.test.split("::")), mutant.name


def test_every_message_that_the_manual_quotes_is_said() -> None:
    """Who sees a message looks for its words. Numbers and names in it are filled in."""
    literals = "".join(path.read_text() for path in (ROOT / "ondisk").rglob("*.py"))
    said = re.sub(r'"\s*\n\s*f?"', "", literals)  # a sentence over two lines
    said = re.sub(r"\{[^{}]*\}", "#", said)
    quoted = re.findall("“(.+?)”", (ROOT / "docs" / "operating.md").read_text())
    assert len(quoted) > 15
    for message in quoted:
        words = re.split(r"\[[\d, ]+\]|\d+(?:, \d+)*", message)
        for part in filter(None, (word.strip() for word in words)):
            assert part in said or part.replace("replicas", "replica#") in said, message


def test_every_name_of_the_glossary_is_in_the_code() -> None:
    """Whoever looks a term up finds the place."""
    code = "".join(path.read_text(encoding="utf-8") for path in (ROOT / "ondisk").rglob("*.py"))
    rows = re.findall(r"^\| .* \| `(\w+)` \|$", (ROOT / "docs" / "glossary.md").read_text(), re.MULTILINE)
    assert len(rows) > 30
    assert [name for name in rows if not re.search(rf"\b{name}\b", code)] == []


@pytest.mark.parametrize("document", sorted((ROOT / "docs").glob("*.md")), ids=lambda path: path.name)
def test_every_file_that_a_document_links_exists(document: Path) -> None:
    links = re.findall(r"\]\(([^)#:]+)(?:#[^)]*)?\)", document.read_text(encoding="utf-8"))
    assert [link for link in links if not (document.parent / link).exists()] == []
