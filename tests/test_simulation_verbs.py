"""Clients that transact, watch and lock in the simulator: silent as it is, and not without its safeguards."""

from __future__ import annotations

from collections import Counter

import pytest

from ondisk.simulation.run import Setting, run
from ondisk.simulation.safeguards import MACHINE_SAFEGUARDS
from tests.lengths import short_and_long

# The first seed on which the simulator finds out, by which rule, in 20 virtual seconds. It has not found out
# about "time-passes-once": a leader repeats a tick only after a second, and one tick counts a second at most,
# so what is counted twice hides in the margin. tests/test_keyleases.py shows it.
SEEDS = {"compacted-is-told": (2, "watch"), "tick-margin": (5, "one holder")}


@pytest.mark.parametrize("seeds", short_and_long(1, 20))
def test_whoever_transacts_watches_and_locks_is_told_what_is_true(seeds: int) -> None:
    """Under all faults; and they do it."""
    counts: Counter[str] = Counter()
    for seed in range(seeds):
        report = run(seed, Setting(seconds=20.0, verbs=True), tracing=False)
        assert report.rule is None, report.violation
        counts.update(report.counts)
    assert counts["watched"] > 50 * seeds and counts["locked"] > seeds


@pytest.mark.parametrize("name", SEEDS)
def test_the_simulator_finds_out(name: str) -> None:
    seed, rule = SEEDS[name]
    assert name in MACHINE_SAFEGUARDS
    assert run(seed, Setting(seconds=20.0, verbs=True, without=(name,)), tracing=False).rule == rule
