"""The benchmark runs, measures everybody and cleans up. How fast anything is, is not tested."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest

from benchmarks.report import LOADS, SUBJECTS

ROOT = Path(__file__).parents[1]


def start(*arguments: object) -> subprocess.Popen[str]:
    """The real command, as a user runs it."""
    command = [sys.executable, "-m", "benchmarks", *map(str, arguments)]
    return subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


@pytest.mark.slow
def test_every_subject_is_measured_under_every_load_and_the_conditions_are_printed(tmp_path: Path) -> None:
    data = tmp_path / "data"
    data.mkdir()
    with start("--seconds", 0.2, "--rounds", 1, "--dir", data, "--json", tmp_path / "out") as command:
        output, progress = command.communicate()
    assert command.returncode == 0, output + progress
    measured = json.loads((tmp_path / "out").read_text())
    [cells] = measured["rounds"]
    for load in LOADS:
        expected = {
            name for name in SUBJECTS if SUBJECTS[name].kind == "ondisk" or not load.startswith("get")
        }
        assert cells[load].keys() == expected
        assert all(cell["per_second"] > 0 and cell["p50_ms"] > 0 for cell in cells[load].values())
    for what, value in measured["conditions"].items():
        assert value
        assert f"{what:18}  {value}" in output
    assert all(subject.title in output for subject in SUBJECTS.values())
    assert len(measured["verdicts"]) == 6
    assert "never fsynced" in output
    assert "round 1 of 1" in progress
    assert not list(data.iterdir())


def test_an_interrupted_run_reports_what_it_has_and_leaves_nothing_behind(tmp_path: Path) -> None:
    with start("--seconds", 0.1, "--rounds", 1000, "--only", "processes", "--dir", tmp_path) as command:
        assert command.stderr is not None
        for line in command.stderr:
            if line.startswith("round 1 "):
                break
        workers = psutil.Process(command.pid).children(recursive=True)
        assert len(workers) == 3
        command.send_signal(signal.SIGINT)
        time.sleep(0.01)
        command.send_signal(signal.SIGINT)  # impatient
        output, _ = command.communicate()
    assert command.returncode == 130, output
    assert "Node, three processes" in output
    assert not any(worker.is_running() for worker in workers)
    assert not list(tmp_path.iterdir())
