"""The benchmark runs, measures everybody and cleans up. How fast anything is, is not tested."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import psutil
import pytest

from benchmarks import etcd, page
from benchmarks.report import AGAINST, BARS, LARGE, LOADS, SUBJECTS, is_asked
from tests.lengths import short_and_long

ROOT = Path(__file__).parents[1]
QUICK = ["snapshots", "streams", "compaction", "resident", "growth", "slow-disks", "stale", "shares"]


def start(*arguments: object, **options: Any) -> subprocess.Popen[str]:
    """The real command, as a user runs it."""
    command = [sys.executable, "-m", "benchmarks", *map(str, arguments)]
    return subprocess.Popen(
        command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, **options
    )


@pytest.mark.slow
@pytest.mark.parametrize(
    "subjects",
    short_and_long(["memory", "tcp", "processes", "one-thread", "stock", "stock-nobatch"], [*SUBJECTS]),
)
def test_every_subject_is_measured_under_every_load_and_the_conditions_are_printed(
    tmp_path: Path, subjects: list[str]
) -> None:
    data = tmp_path / "data"
    data.mkdir()
    given = ["--seconds", 0.2, "--rounds", 1, "--dir", data, "--json", tmp_path / "out"]
    with start(*given, "--only", *subjects) as command:
        output, progress = command.communicate()
    assert command.returncode == 0, output + progress
    measured = json.loads((tmp_path / "out").read_text())
    there = [name for name in subjects if name != "etcd" or etcd.missing() is None]
    [cells] = measured["rounds"]
    for load in LOADS:
        expected = {name for name in there if is_asked(SUBJECTS[name].kind, load)}
        assert cells[load].keys() == expected
        assert all(figure > 0 for cell in cells[load].values() for figure in cell.values())
    for what, value in measured["conditions"].items():
        assert value
        assert f"{what:18}  {value}" in output
    assert all(SUBJECTS[name].title in output for name in there)
    against_stock = 6 if "stock-processes" in there else 4  # two each: PySyncObj in as many processes
    assert len(measured["verdicts"]) == against_stock + sum(each.other in there for each in AGAINST)
    assert "never fsynced" in output
    assert "round 1 of 1" in progress
    page.main([str(tmp_path / "out"), str(tmp_path)])
    written = (tmp_path / "performance.md").read_text()
    assert all(f"| {verdict['subject']} | {verdict['bar']} |" in written for verdict in measured["verdicts"])
    assert f"puts, 256 at once: {SUBJECTS[subjects[0]].title} " in written  # what the picture shows, in words
    assert "<svg" in (tmp_path / "performance.svg").read_text()
    assert not list(data.iterdir())


def test_a_contestant_that_is_not_there_is_left_out_and_the_report_says_so(tmp_path: Path) -> None:
    """What can be measured without it is."""
    nothing = {**os.environ, "PATH": str(tmp_path)}
    given = ["--seconds", 0.1, "--rounds", 1, "--dir", tmp_path, "--only", "memory", "etcd"]
    with start(*given, env=nothing) as command:
        output, progress = command.communicate()
    assert command.returncode == 0, output + progress
    said = "etcd is not measured: no etcd and no go is installed"
    assert said in output and said in progress
    assert "Cluster in memory" in output and "etcd, three processes" not in output


@pytest.mark.slow
@pytest.mark.parametrize("which", short_and_long(QUICK, [*LARGE]))
def test_every_measurement_of_a_large_state_says_what_it_found_and_what_it_should_be(
    tmp_path: Path, which: list[str]
) -> None:
    """Some in the long run only: for its two restarts stock PySyncObj takes half a minute."""
    data = tmp_path / "data"
    data.mkdir()
    given = ["--keys", 2000, "--seconds", 0.1, "--rounds", 1, "--dir", data, "--json", tmp_path / "out"]
    with start(*given, "--only", *which) as command:
        output, progress = command.communicate()
    assert command.returncode == 0, output + progress
    measured = json.loads((tmp_path / "out").read_text())
    assert measured["large"].keys() == set(which)
    for name in which:
        assert f"{name}: {LARGE[name]}" in output
        assert f"{name}: load average" in progress
        for row, figures in measured["large"][name].items():
            assert row in output
            assert all(figures.values())
    page.main([str(tmp_path / "out"), str(tmp_path)])
    written = (tmp_path / "performance.md").read_text()
    assert all(f"{name}: {LARGE[name]}" in written for name in which)
    assert ("performance-curves.svg" in written) == (tmp_path / "performance-curves.svg").exists()
    assert ("replicas: 1 " in written) == ("curves" in which)  # what the picture shows, in words
    barred = {bar.measurement for bar in BARS if bar.measurement in which}
    judged = {verdict["subject"].split(",")[0] for verdict in measured["verdicts"]}
    assert judged - {"beside-etcd"} == barred
    assert not list(data.iterdir())


@pytest.mark.parametrize(
    ("only", "keys", "ready", "processes"),
    [("processes", 1, "round 1 ", 3), ("streams", 1000, "streams: memory: round 2 ", 1)],
)
def test_an_interrupted_run_reports_what_it_has_and_leaves_nothing_behind(
    only: str, keys: int, ready: str, processes: int, tmp_path: Path
) -> None:
    given = ["--seconds", 0.1, "--rounds", 1000, "--keys", keys, "--dir", tmp_path]
    with start(*given, "--only", only) as command:
        assert command.stderr is not None
        for line in command.stderr:
            if line.startswith(ready):
                break
        workers = psutil.Process(command.pid).children(recursive=True)
        assert len(workers) >= processes
        command.send_signal(signal.SIGINT)
        time.sleep(0.01)
        command.send_signal(signal.SIGINT)  # impatient
        output, _ = command.communicate()
    assert command.returncode == 130, output
    assert {**LARGE, **{name: subject.title for name, subject in SUBJECTS.items()}}[only] in output
    _, left = psutil.wait_procs(workers, timeout=20)  # they were told, and may need a moment
    assert not left
    assert not list(tmp_path.iterdir())
