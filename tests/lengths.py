"""How much a test repeats: little in every run, the whole number in a run of its own, ``pytest --long``."""

from __future__ import annotations

from typing import Any

import pytest

LONG = [pytest.mark.long, pytest.mark.slow, pytest.mark.timeout(1800)]


def short_and_long(short: object, long: object) -> list[Any]:
    """Values for ``parametrize``: one for ``make test``, and one for ``make test-long``."""
    return [pytest.param(short, id="short"), pytest.param(long, id="long", marks=LONG)]
