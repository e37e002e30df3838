"""``ondisk check perf``: it measures, says what follows, can be stopped, and leaves nothing behind."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from ondisk import perf
from ondisk.errors import ConfigurationError, NoLeader, StorageError
from ondisk.perf import Latency, Performance, check_perf, verdict
from ondisk.raft import Timing

ROOT = Path(__file__).parents[1]
QUICK = Latency(1000, 5000.0, 0.2, 2.0, 9.0)
GOOD = Performance("/data", "ext4", 0.1, QUICK, 300.0, QUICK, QUICK, QUICK)


def start(*arguments: object) -> subprocess.Popen[str]:
    command = [sys.executable, "-m", "ondisk", "check", *map(str, arguments)]
    return subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def test_a_short_check_measures_everything_and_cleans_up(tmp_path: Path) -> None:
    with start("perf", tmp_path, "--seconds", 2, "-o", "json") as command:
        output, progress = command.communicate()
    found = json.loads(output)
    assert command.returncode == (0 if found["ok"] else 1), progress
    assert found["directory"] == str(tmp_path) and found["failure"] is None
    for name in ("fsync", "loopback", "put", "puts_in_flight"):
        latency = found[name]
        assert latency["operations"] > 0 and latency["per_second"] > 0
        assert 0 < latency["p50_ms"] <= latency["p99_ms"] <= latency["worst_ms"]
    assert found["write_mb_per_second"] > 0
    assert found["ok"] == all(finding["ok"] for finding in found["findings"])
    assert [line[7:] for line in progress.splitlines()] == list(perf._SHARES)
    assert not list(tmp_path.iterdir())


def test_the_verdict_is_one_line_for_each_finding(tmp_path: Path) -> None:
    with start("perf", tmp_path, "--seconds", 1) as command:
        output, _ = command.communicate()
    first, *findings, last = output.splitlines()
    assert first.startswith(f"{tmp_path} (")
    assert len(findings) >= 6 and {line[:6] for line in findings} <= {"ok    ", "SLOW  "}
    assert last.startswith("PASS") == (command.returncode == 0)
    assert last.startswith("FAIL") == (command.returncode == 1)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
@pytest.mark.parametrize("part", ["fsync", "puts in flight"])
def test_a_check_that_is_stopped_leaves_nothing_behind(tmp_path: Path, number: int, part: str) -> None:
    """Also if whoever stops it is impatient."""
    with start("perf", tmp_path, "--seconds", 3600 if part == "fsync" else 2) as command:
        assert command.stderr is not None
        assert any(line[7:].strip() == part for line in command.stderr)
        assert list(tmp_path.iterdir())
        while command.poll() is None:
            command.send_signal(number)
            time.sleep(0.002)
        output, _ = command.communicate()
    assert command.returncode == 130
    assert output == ""
    assert not list(tmp_path.iterdir())


def fifo(path: Path) -> Path:
    os.mkfifo(path / "fifo")
    return path / "fifo"


@pytest.mark.parametrize(
    ("make", "complaint"),
    [
        (lambda path: path / "nowhere", "there is no such directory"),
        (lambda path: Path(__file__), "is no directory"),
        (fifo, "is no directory"),
        (lambda path: "a\0b", "it is not a path"),
        (lambda path: "x" * 5000, "it is longer than"),
        (lambda path: 5, "it is not a path"),
    ],
)
def test_a_path_that_makes_no_sense_is_refused(
    tmp_path: Path, make: Callable[[Path], Any], complaint: str
) -> None:
    with pytest.raises(ConfigurationError, match=complaint):
        check_perf(make(tmp_path), seconds=1)


@pytest.mark.parametrize("seconds", [0, -1, float("nan"), float("inf"), 4000, "5", None])
def test_a_time_that_makes_no_sense_is_refused(tmp_path: Path, seconds: Any) -> None:
    with pytest.raises(ConfigurationError, match="from 0 to 3600 seconds"):
        check_perf(tmp_path, seconds=seconds)


@pytest.mark.parametrize(
    ("arguments", "complaint"),
    [
        (["perf"], "Missing argument 'PATH'"),
        ([], "Missing argument"),
        (["health", "."], "'health' is not 'perf'"),
        (["perf", "/nowhere"], "/nowhere: there is no such directory"),
        (["perf", ".", "--seconds", "0"], "0.0 is not in the range"),
    ],
)
def test_wrong_use_is_one_line_and_status_2(arguments: list[str], complaint: str) -> None:
    with start(*arguments) as command:
        output, errors = command.communicate()
    assert (command.returncode, output) == (2, "")
    assert complaint in errors and errors.count("\n") == 1


def test_a_disk_that_is_nearly_full_is_not_made_full(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(perf, "FREE_BYTES", 1 << 60)
    with pytest.raises(StorageError, match="MB are free"):
        check_perf(tmp_path, seconds=1)
    assert not list(tmp_path.iterdir())


def test_replicas_that_do_not_work_here_are_a_finding(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What was measured before is told all the same."""

    def refuse(*_: object, **__: object) -> None:
        raise NoLeader("nobody leads")

    monkeypatch.setattr(perf, "Cluster", refuse)
    found = check_perf(tmp_path, seconds=0.5)
    assert found.fsync is not None and found.put is None
    assert not found.ok
    assert "three replicas did not work here: NoLeader: nobody leads" in [
        each.text for each in found.findings
    ]


# The verdict


def texts(found: Performance, *, ok: bool) -> list[str]:
    return [finding.text for finding in verdict(found) if finding.ok == ok]


def changed(**figures: Any) -> Performance:
    return Performance(**{**vars(GOOD), **figures})


def test_a_good_machine_passes() -> None:
    assert texts(GOOD, ok=False) == []
    assert texts(GOOD, ok=True)[0] == "an fsync takes 0.20 ms, p99 2.00 ms: 0.2 % of election_min (1 s)"


@pytest.mark.parametrize(
    ("figures", "complaint"),
    [
        ({"fsync": QUICK._replace(p99_ms=10.1)}, "an fsync takes 0.20 ms, p99 10 ms: 1 % of election_min"),
        ({"fsync": QUICK._replace(worst_ms=451.0)}, r"Timing(election_min=1.1, election_max=2.2)"),
        ({"write_mb_per_second": 10.0}, "a replica needs 100 s to take in 1 GB"),
        ({"loopback": QUICK._replace(p99_ms=51.0)}, "a round trip on loopback takes"),
        ({"put": QUICK._replace(p99_ms=101.0)}, "a put to three replicas takes"),
        ({"puts_in_flight": QUICK._replace(per_second=999.0)}, "999 puts/s"),
        ({"file_system": "tmpfs"}, "the directory is in memory (tmpfs)"),
    ],
)
def test_what_is_too_slow_is_named_and_nothing_else_is(figures: dict[str, Any], complaint: str) -> None:
    [text] = texts(changed(**figures), ok=False)
    assert complaint in text


@pytest.mark.parametrize("worst_ms", [0.1, 40.0, 450.0, 451.0, 3000.0])
def test_the_timing_that_is_advised_is_one_that_the_same_disk_passes(worst_ms: float) -> None:
    found = changed(fsync=QUICK._replace(worst_ms=worst_ms))
    assert (worst_ms > 450) == bool(texts(found, ok=False))
    assert found.fsync is not None
    needed = perf.least_election_timeout(found.fsync, Timing())
    assert all(each.ok for each in verdict(found, Timing(election_min=needed, election_max=2 * needed)))


def test_a_busy_machine_is_mentioned_and_no_reason_to_fail() -> None:
    assert "the machine is busy" in texts(changed(load_average=1e6), ok=True)[0]
