"""What holds for a state of a million keys: memory, lookups, puts, and the cost of compaction.

Without ``--long`` for a tenth of them, and without the puts beside a stream, which would end too soon.

Each measurement runs in a process of its own, which the benchmark has too: see ``benchmarks/large.py``. How
fast anything is depends on the machine, and is not tested; what is compared ran side by side.
"""

from __future__ import annotations

import statistics
from collections.abc import Callable

import pytest

from benchmarks.__main__ import Large
from benchmarks.report import Figures
from tests.lengths import LONG, short_and_long

Measure = Callable[..., Figures]

pytestmark = pytest.mark.slow
many_keys = pytest.mark.parametrize("keys", short_and_long(100_000, 1_000_000))


@pytest.fixture(scope="module")
def measure(tmp_path_factory: pytest.TempPathFactory) -> Measure:
    """Run one measurement; the loaded states are shared by all."""
    shared = tmp_path_factory.mktemp("large")

    def run(name: str, keys: int, *, rounds: int) -> Figures:
        order = {
            "measure": name,
            "keys": keys,
            "rounds": rounds,
            "seconds": keys / 1_000_000,
            "prepared": str(shared / "prepared"),
            "scratch": str(shared / name),
        }
        large = Large(order, shared / f"{name}.log")
        figures: Figures = {}
        try:
            large.read(figures, print)
        finally:
            large.close()
        assert not (shared / name).exists()
        return figures

    return run


@many_keys
def test_a_state_is_saved_and_recovered_in_bounded_memory_while_lookups_go_on(
    measure: Measure, keys: int
) -> None:
    figures = measure("snapshots", keys, rounds=1)
    for row in ("save", "recover", "recover, asked meanwhile"):
        assert max(figures[row]["memory grew MB"]) <= 64
    assert figures["recover, asked meanwhile"]["wrong lookups"] == [0]
    assert figures["recover, asked meanwhile"]["lookups"][0] >= 10


@pytest.mark.parametrize("keys", [pytest.param(1_000_000, marks=LONG)])
def test_puts_go_on_in_bounded_memory_while_a_state_is_exported_or_streamed(
    measure: Measure, keys: int
) -> None:
    figures = measure("streams", keys, rounds=1)
    assert len(figures) == 8
    for figure in figures.values():
        assert max(figure["memory grew MB"]) <= 64
        assert max(figure["ratio"]) >= 0.2  # one round on whatever machine: the benchmark has the real bar


@many_keys
def test_compaction_costs_the_same_whatever_the_size_of_the_state(measure: Measure, keys: int) -> None:
    figures = measure("compaction", keys, rounds=3)
    small, large = figures[f"{keys // 1000:,} keys"], figures[f"{keys:,} keys"]
    assert 0 < statistics.median(small["entries dropped"]) < 1.1 * statistics.median(large["entries dropped"])
    assert statistics.median(large["ms"]) <= 2 * statistics.median(small["ms"])  # rather hundreds of times
    assert large["record bytes"][0] < 4096


@many_keys
def test_three_replicas_of_a_million_keys_fit_into_450_megabytes(measure: Measure, keys: int) -> None:
    [figures] = measure("resident", keys, rounds=1).values()
    assert max(figures["MB resident at most"]) <= 450
