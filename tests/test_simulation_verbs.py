"""Clients that transact, watch and lock in the simulator: silent as it is, and not without its safeguards."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import pytest

from ondisk import diskkv
from ondisk.simulation.run import Setting, run
from ondisk.simulation.safeguards import MACHINE_SAFEGUARDS, machine_without
from ondisk.simulation.verbs import VerbsKV
from ondisk.verbs import keyleases, txn
from tests.lengths import short_and_long
from tests.machines import apply

# The first seed on which the simulator finds out, by which rule, in 20 virtual seconds. Not about
# "time-passes-once": a leader repeats a tick after a second, and measures it from when it saw the last one
# applied. So what one leader counts twice hides in the margin: it takes two former ones, see below.
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


@pytest.mark.parametrize("without", [(), ("time-passes-once",)])
def test_ticks_of_former_leaders_take_no_lock_away(tmp_path: Path, without: tuple[str, ...]) -> None:
    """Two have measured the same second and lost their office; their ticks come behind a new lock."""
    machine = machine_without(without, VerbsKV)(tmp_path / "state")
    machine.open()
    try:
        apply(machine, keyleases.grant(60.0))  # somebody for whom time passes
        (granted,) = apply(machine, keyleases.advance(0, 250), keyleases.grant(1.0))[1:]
        assert isinstance(granted.value, int)
        locked = txn.txn([txn.missing("lock")], [txn.put("lock", "mine", lease=granted.value)])
        assert txn.answer(apply(machine, locked)[0].value).succeeded
        apply(machine, keyleases.advance(0, keyleases.MAX_TICK), keyleases.advance(0, keyleases.MAX_TICK))
        assert (machine.lookup(diskkv.get("lock")) is not None) is (not without)
    finally:
        machine.close()
