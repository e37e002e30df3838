"""Every fault of ``mutants.py`` can still be made, and the test that it names notices it."""

from __future__ import annotations

import pytest

from tests.lengths import LONG
from tests.mutants import MUTANTS, ROOT, Mutant, check


@pytest.mark.parametrize("mutant", MUTANTS, ids=lambda mutant: mutant.name)
def test_the_text_that_a_fault_changes_stands_once_in_its_file(mutant: Mutant) -> None:
    assert (ROOT / "ondisk" / mutant.file).read_text(encoding="utf-8").count(mutant.old) == 1


@pytest.mark.parametrize("mutant", [pytest.param(mutant, id=mutant.name, marks=LONG) for mutant in MUTANTS])
def test_a_fault_is_noticed(mutant: Mutant) -> None:
    assert check(mutant) is None
