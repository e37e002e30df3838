"""Worlds whose clients read by leases: no stale read within the bound on clocks, and one beyond it."""

from __future__ import annotations

import os
from collections import Counter
from itertools import pairwise
from pathlib import Path

import pytest

from ondisk.simulation import Simulation
from ondisk.simulation.faults import LEASE_KINDS
from ondisk.simulation.leases import CLOCK_DRIFT, STORIES
from ondisk.simulation.run import Setting, run, run_all
from tests.lengths import short_and_long

BEYOND = 6 * CLOCK_DRIFT


@pytest.mark.slow
@pytest.mark.timeout(1800)
@pytest.mark.parametrize("which", short_and_long((0, 4), (0, 60)))
def test_within_the_bound_no_read_is_stale(which: tuple[int, int]) -> None:
    """And all that is true in other worlds is true in these."""
    counts: Counter[str] = Counter()
    violations = []
    for report in run_all(range(*which), Setting(drift=CLOCK_DRIFT), jobs=os.cpu_count() or 1):
        counts.update(report.counts)
        if report.rule is not None:
            violations.append(f"seed {report.seed}: {report.violation}")
    assert violations == []
    assert counts.keys() >= STORIES.keys()
    assert not counts["undecided"]


def test_beyond_the_bound_a_client_reads_what_is_stale() -> None:
    """The replicas keep to all rules, and are told less than the clocks do."""
    report = run(6, Setting(drift=BEYOND), tracing=False)
    assert report.rule == "linearizability"
    assert run(6, Setting(drift=CLOCK_DRIFT), tracing=False).rule is None


def test_the_clocks_of_a_world_keep_its_bound(tmp_path: Path) -> None:
    """Those of the other faults, too: whatever runs at the same time, no two differ by more."""
    for drift in (CLOCK_DRIFT, BEYOND):
        rates = {1.0}
        for seed in range(40):
            faults = Simulation(seed, tmp_path, drift=drift).faults
            rates |= {fault.size for fault in faults if fault.kind == "skew"}
        assert 1 + 0.9 * drift < max(rates) / min(rates) <= (1 + drift) * 1.001


def test_the_other_faults_of_a_seed_are_those_of_a_world_without_leases(tmp_path: Path) -> None:
    plain, leases = Simulation(3, tmp_path), Simulation(3, tmp_path, drift=CLOCK_DRIFT)
    assert set(plain.faults) < set(leases.faults)
    added = [fault for fault in leases.faults if fault not in plain.faults]
    assert {fault.kind for fault in added} <= {"skew", *LEASE_KINDS}
    assert all(first.at <= then.at for first, then in pairwise(leases.faults))
    assert all(len(str(fault)) > 10 for fault in added)
    assert plain.timing.clock_drift is None and leases.timing.clock_drift == CLOCK_DRIFT
