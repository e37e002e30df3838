"""Many runs in virtual time; one run twice; a violation found, reduced and told.

Eight seeds, and with ``--long`` two hundred, or those of ``ONDISK_SIMULATION_SEEDS=5000:6000``; ``make
soak`` runs thousands.
"""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import tempfile
import threading
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from statistics import median
from typing import Any

import psutil
import pytest

from ondisk.net.memory import MemoryNetwork
from ondisk.raft.messages import Message, Refused
from ondisk.replica import Replica
from ondisk.simulation.connections import ConnectedEndpoint, Connections, second_of
from ondisk.simulation.faults import KINDS, Fault, draw
from ondisk.simulation.group import Simulation
from ondisk.simulation.host import Host, PowerCut
from ondisk.simulation.hosts import Hosts
from ondisk.simulation.run import Setting, reduce, run, run_all
from ondisk.simulation.world import TraceEvent
from ondisk.testing.crashing import Point
from tests.digests import digest
from tests.lengths import short_and_long
from tests.waiting import wait_until

LONG_SEEDS = os.environ.get("ONDISK_SIMULATION_SEEDS", "0:200")


def seeds(text: str) -> range:
    first, _, end = text.partition(":")
    return range(int(first), int(end))


@pytest.mark.slow
@pytest.mark.timeout(1800)
@pytest.mark.parametrize("which", short_and_long("0:8", LONG_SEEDS))
def test_no_schedule_of_faults_violates_anything(which: str) -> None:
    """Sixty virtual seconds of faults each, three and five replicas; then all must agree."""
    counts: Counter[str] = Counter()
    violations = []
    virtual = 0.0
    for report in run_all(seeds(which), Setting(), jobs=os.cpu_count() or 1):
        counts.update(report.counts)
        virtual += report.seconds
        if report.rule is not None:
            violations.append(f"seed {report.seed}: {report.violation}")
    print(f"{virtual:.0f} virtual seconds, faults: {dict(counts)}")
    assert not violations and not counts["undecided"]
    assert virtual >= 60 * len(seeds(which))
    # Everything that can go wrong did, somewhere. What waits for an occasion counts only when it came.
    assert counts.keys() >= KINDS.keys() | {"snapshots"}


@pytest.mark.parametrize("seed", short_and_long(0, 1))
def test_the_same_seed_is_the_same_run_in_any_process(seed: int) -> None:
    """Event for event, whatever the hashes of strings are there."""
    first = digest(seed)
    for hashes in ("1", "2"):
        again = subprocess.run(
            [sys.executable, "-m", "tests.digests", str(seed)],
            cwd=Path(__file__).parents[1],
            env={**os.environ, "PYTHONHASHSEED": hashes},
            capture_output=True,
            text=True,
            check=True,
        )
        assert again.stdout.strip() == first
    assert digest(seed + 2) != first


@pytest.mark.parametrize("setting", [Setting(seconds=20), Setting(replicas=3, seconds=20, stock=True)])
def test_a_run_without_a_record_is_the_same_run(setting: Setting) -> None:
    recorded, bare = run(2, setting), run(2, setting, tracing=False)
    assert recorded.trace and not [line for line in bare.trace if line.kind != "violation"]
    assert bare._replace(trace=()) == recorded._replace(trace=())


def test_a_schedule_follows_from_its_seed_and_holds_every_kind_of_fault() -> None:
    with tempfile.TemporaryDirectory() as folder:
        schedules = [Simulation(seed, Path(folder)).faults for seed in range(40)]
        assert Simulation(7, Path(folder)).faults == schedules[7]
    assert {fault.kind for schedule in schedules for fault in schedule} == KINDS.keys()
    assert all(0 < fault.at < 60 for schedule in schedules for fault in schedule)
    assert len(str(schedules[0][0])) > 10


def test_a_violation_is_found_and_reduced_to_the_faults_that_do_it() -> None:
    """A log that is cleared at each restart needs a restart, and not much more."""
    setting = Setting(without=("restart-keeps-log",))
    report = run(0, setting)
    assert report.rule is not None and len(report.faults) > 20
    tries: list[int] = []
    reduced = reduce(report, setting, progress=lambda tried, left: tries.append(left))
    assert reduced.rule == report.rule
    assert len(reduced.faults) <= 3
    assert tries == sorted(tries, reverse=True)
    assert any(fault.kind.startswith("crash") or fault.kind == "disk error" for fault in reduced.faults)
    assert run(0, setting, reduced.faults).violation == reduced.violation
    assert run(0, Setting(), reduced.faults).rule is None  # with the safeguard the same faults do no harm


def test_two_leaders_and_a_lost_write_are_called_what_they_are() -> None:
    """Not every violation is the same one."""
    rules = {
        name: run(seed, Setting(without=(name,))).rule
        for name, seed in (("leader-syncs-too", 0), ("sync-before-compaction", 0), ("restart-keeps-log", 0))
    }
    assert rules == {
        "leader-syncs-too": "applied beyond the log",
        "sync-before-compaction": "compaction",
        "restart-keeps-log": "leader completeness",
    }


def test_a_calm_run_answers_everything_and_has_one_leader() -> None:
    report = run(3, Setting(seconds=10), faults=())
    assert report.rule is None
    assert report.history and all(operation.end is not None for operation in report.history)
    assert [line for line in report.trace if line.kind == "status" and "leader" in line.words]


# Each fault has its effect, while it lasts and no longer: here a calm run with one of them.


class Watched(Simulation):
    """Writes down what each step of a replica found, and how long its processor was busy with it."""

    def __init__(self, folder: Path, *faults: Fault) -> None:
        super().__init__(7, folder, replicas=5, seconds=10, schedule=faults)
        self.steps: list[tuple[float, int, float, float]] = []  # when, who, its clock, how long

    def step(self, host: Host) -> None:
        clock = host.clock()
        super().step(host)
        self.steps.append((self.elapsed, host.member, clock, host.busy_until - self.now))

    def of(self, member: int, first: float, last: float) -> list[tuple[float, float, float]]:
        return [(at, *rest) for at, who, *rest in self.steps if who == member and first <= at < last]

    def lines(self, kind: str, link: str, first: float, last: float) -> list[TraceEvent]:
        found = (line for line in self.trace if line.kind == kind and line.words.startswith(link + " "))
        return [line for line in found if first <= line.time < last]


@pytest.fixture
def watch(tmp_path: Path) -> Callable[..., Watched]:
    """Run these faults, from the second second to the sixth."""

    def watch(*faults: Fault) -> Watched:
        simulation = Watched(tmp_path / str(len(list(tmp_path.iterdir()))), *faults)
        simulation.directory.mkdir()
        simulation.run()
        return simulation

    return watch


def test_a_clock_that_is_wrong_is_wrong_while_the_fault_lasts(watch: Callable[..., Watched]) -> None:
    skewed = watch(Fault(2.0, "skew", 4.0, 1, 0, 0.9))
    for first, last, rate in ((0, 2, 1.0), (2, 6, 0.9), (6, 10, 1.0)):
        (began, shown, _), *_, (ended, shows, _) = skewed.of(2, first, last)
        assert (shows - shown) / (ended - began) == pytest.approx(rate)


def test_a_slow_disk_keeps_its_replica_busy(watch: Callable[..., Watched]) -> None:
    slow = watch(Fault(2.0, "slow disk", 4.0, 1, 0, 0.7))
    assert max(busy for _, _, busy in slow.of(2, 0, 2)) < 0.01
    assert max(busy for _, _, busy in slow.of(2, 2, 6)) > 0.7
    assert max(busy for _, _, busy in slow.of(2, 7, 10)) < 0.01
    assert max(busy for _, _, busy in slow.of(3, 2, 6)) < 0.01  # the others' are not


def test_a_paused_replica_takes_no_step(watch: Callable[..., Watched]) -> None:
    paused = watch(Fault(2.0, "pause", 4.0, 1))
    assert paused.of(2, 0, 2) and paused.of(2, 6, 10) and paused.of(3, 2, 6)
    assert not paused.of(2, 2, 6)


@pytest.mark.parametrize(
    ("fault", "links"),
    [
        (Fault(2.0, "stall", 4.0, 1, 2), ["2 -> 3"]),
        (Fault(2.0, "cut", 4.0, 1, 2), ["2 -> 3"]),
        (Fault(2.0, "partition", 4.0, 0b00100), ["2 -> 3", "3 -> 2"]),
        (Fault(2.0, "loss", 4.0, size=1.0), ["2 -> 3", "3 -> 2"]),
    ],
)
def test_nothing_arrives_on_a_link_that_is_taken_away(
    watch: Callable[..., Watched], fault: Fault, links: list[str]
) -> None:
    """Replica 2 leads, so there is always something to say."""
    taken = watch(fault)
    for link in links:
        assert taken.lines("delivered", link, 1, 2) and taken.lines("delivered", link, 6, 10)
        assert not taken.lines("delivered", link, 2.01, 6)  # what was on its way at the beginning arrives


def test_latency_is_how_long_messages_take(watch: Callable[..., Watched]) -> None:
    late = watch(Fault(2.0, "latency", 4.0, size=0.05))

    def typical(first: float, last: float) -> float:
        """From 2 to 3, where messages arrive in the order in which they were sent."""
        sent, arrived = late.lines("sent", "2 -> 3", 0, 10), late.lines("delivered", "2 -> 3", 0, 10)
        pairs = zip(sent, arrived, strict=False)
        return median(end.time - begin.time for begin, end in pairs if first <= begin.time < last)

    assert typical(0, 1.9) < 0.01 and typical(6, 10) < 0.01
    assert 0.02 < typical(2, 6) < 0.05


def test_a_damaged_chunk_is_refused_and_the_snapshot_is_sent_again(watch: Callable[..., Watched]) -> None:
    """With nothing left in the logs, who has lost its directory needs a snapshot."""
    compacted = [Fault(2.0, "compact", who=member) for member in range(5)]
    for damage in ((), (Fault(2.0, "damage", other=3),)):
        damaged = watch(*compacted, *damage, Fault(2.1, "wipe", who=2))
        rejected = [line for line in damaged.trace if line.words.endswith("stream rejected")]
        assert damaged.counts["damage"] == bool(rejected) == len(damage)
        assert damaged.counts["snapshots"] == 1


@pytest.mark.parametrize("kind", ["crash in a write", "disk error", "damage"])
def test_a_fault_that_waits_for_an_occasion_counts_only_when_that_has_come(
    watch: Callable[..., Watched], kind: str
) -> None:
    """Nobody sends a snapshot here, and who is without a processor writes nothing."""
    idle = watch(Fault(2.0, "pause", 4.0, 1), Fault(3.0, kind, 1.0, 1))
    assert [line.words for line in idle.trace if line.kind == "fault"] == ["0: pause", f"1: {kind}"]
    assert idle.counts[kind] == 0
    if kind != "damage":
        busy = watch(Fault(3.0, kind, 1.0, 1))
        assert busy.counts[kind] == 1
        assert [line for line in busy.trace if line.kind in ("crash", "failed") and "2" in line.words]


def in_three(tmp_path: Path, *faults: Fault) -> Simulation:
    """What has become of a calm run with these faults."""
    simulation = Simulation(7, tmp_path, seconds=10, schedule=faults)
    ended: list[Any] = []
    conclude = simulation._conclude

    def note_and_conclude() -> None:
        leader = simulation.leader
        assert leader is not None
        ended.append(leader.raft.members)
        conclude()

    simulation._conclude = note_and_conclude  # type: ignore[method-assign]
    simulation.run()
    simulation.members = ended[0]  # type: ignore[attr-defined]
    return simulation


def test_a_disk_loses_power_once_at_the_point_it_is_armed_for_counted_from_then(tmp_path: Path) -> None:
    """Armed anew it does so again; what happens on the way down, and on another thread, does not count."""
    world = Hosts[Replica](0, tmp_path, 1)
    disk = Host(1, world).disk

    def reach(*points: str) -> int:
        """How many of them it came through."""
        for number, point in enumerate(points):
            try:
                disk.reach(point)
            except PowerCut:
                return number
        return len(points)

    assert reach("write", "written", "write") == 3
    for _ in range(2):
        disk.arm(Point(2, "write"))
        elsewhere = threading.Thread(target=reach, args=("write", "write"))
        elsewhere.start()
        elsewhere.join()
        assert not disk.crashed
        assert reach("write", "written", "write", "write") == 2
        assert disk.crashed and reach("write", "write", "write") == 3
    disk.arm(Point(3))
    disk.mend()
    assert reach(*["write"] * 5) == 5 and not disk.crashed
    assert world.counts["crash in a write"] == 2


def test_of_two_processes_under_a_number_each_of_the_others_reaches_who_has_called_last() -> None:
    network, connections = MemoryNetwork(), Connections()
    first, second = 3, second_of(3)
    ends = {
        host: ConnectedEndpoint(host, network.attach(host), connections, lambda to, message: (message,))
        for host in (1, first, second)
    }
    words = {host: Refused(b"", str(host)) for host in ends}

    def heard(host: int) -> list[tuple[int, Message]]:
        return [(sender, message) for sender, _, message in ends[host].receive()]

    assert ends[1].connected() == {3} and ends[second].connected() == {1}
    for reached in (first, second, first):
        if reached == second:
            connections.connect(1, second)
        else:
            connections.hang_up(second)
        for host in (first, second):
            ends[host].send(1, words[host])
        ends[1].send(3, words[1])
        assert heard(1) == [(3, words[reached])]
        assert heard(reached) == [(1, words[1])] and not heard(first + second - reached)


@pytest.mark.parametrize("who", [0, 1, 2])
def test_a_second_process_with_another_disk_under_a_number_replaces_nobody(tmp_path: Path, who: int) -> None:
    """It speaks with the others while the first one does."""
    run = in_three(tmp_path, Fault(3.0, "twin", 4.0, who))
    assert run.counts["twin"] == 1
    assert any(line.kind == "delivered" and line.words.startswith("100") for line in run.trace)
    assert not run.members.replaced  # type: ignore[attr-defined]


@pytest.mark.parametrize("who", [0, 1, 2])
def test_a_copy_of_a_directory_that_is_opened_beside_it_is_refused(tmp_path: Path, who: int) -> None:
    """It has the disk that counts, and is no life that anybody knows."""
    run = in_three(tmp_path, Fault(3.0, "clone", 4.0, who))
    assert run.counts["clone"] == run.counts["clone opened"] == run.counts["second refused"] == 1
    assert any(line.kind == "delivered" and line.words.startswith("100") for line in run.trace)


def test_a_learner_begins_again_after_the_leader_has_counted_what_it_had(tmp_path: Path) -> None:
    """And is a voter in the end, with one of its two disks."""
    run = in_three(tmp_path, Fault(3.0, "learner again", 6.0))
    assert run.counts["learner began again"] == 1
    assert run.members.voters == (1, 2, 3, 4)  # type: ignore[attr-defined]


def test_a_replica_that_moves_is_known_at_its_new_address(tmp_path: Path) -> None:
    run = in_three(tmp_path, Fault(3.0, "move", 1.0, 1))
    assert run.members.addresses == {2: "127.0.0.1:20000"}  # type: ignore[attr-defined]


def test_draw_knows_no_other_chance_than_the_one_it_is_given() -> None:
    import random

    assert draw(random.Random(5), 60) == draw(random.Random(5), 60) != draw(random.Random(6), 60)


# Stock PySyncObj


STOCK = Setting(replicas=3, seconds=20, stock=True)
STOCK_SEED = 38


@pytest.mark.timeout(600)
def test_stock_pysyncobj_loses_an_acknowledged_write_and_few_faults_do_it() -> None:
    """On a seed that docs/simulation.md names; ours stands the same faults."""
    report = run(STOCK_SEED, STOCK)
    assert report.rule == "acknowledged write lost"
    reduced = reduce(report, STOCK, tries=100)
    assert reduced.rule == "acknowledged write lost"
    assert len(reduced.faults) <= 10
    print(*reduced.faults, sep="\n")
    assert run(report.seed, STOCK, reduced.faults).violation == reduced.violation
    assert run(report.seed, Setting(replicas=3, seconds=20), reduced.faults).rule is None


# The command


def command(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "ondisk.simulation", *arguments],
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )


def test_the_command_ends_with_the_numbers_of_seeds_and_violations() -> None:
    done = command("--seeds", "0:3", "--seconds", "10")
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines()[-1] == "3 seeds, 0 violations"


def test_the_command_tells_a_violation_with_the_fewest_faults_and_what_happened() -> None:
    done = command("--seeds", "0:2", "--without", "restart-keeps-log", "--first", "--jobs", "1")
    assert done.returncode == 1
    lines = done.stdout.splitlines()
    assert lines[-1] == "1 seeds, 1 violations"
    assert lines[0].startswith("seed 0: leader completeness")
    assert any("the same with" in line for line in lines)
    assert any("cut the power" in line or "disk" in line for line in lines)
    assert any(" violation " in line for line in lines)


def test_a_replay_shows_every_event() -> None:
    done = command("--replay", "8", "--seconds", "5")
    assert done.returncode == 0
    lines = done.stdout.splitlines()
    assert lines[-1] == "1 seeds, 0 violations"
    assert len(lines) > 200 and "start      replica 1" in lines[0]


@pytest.mark.parametrize(
    ("arguments", "complaint"),
    [
        (["--seeds", "x"], "neither a seed nor FIRST:END"),
        (["--seeds", "5:3"], "holds no seed"),
        (["--seeds", "7:7"], "holds no seed"),
        (["--seconds", "inf"], "no number of seconds"),
        (["--seconds", "nan"], "no number of seconds"),
        (["--seconds", "0"], "not in the range"),
        (["--without", "luck"], "'luck' is not one of"),
        (["--stock", "--without", "pre-vote"], "neither the safeguards"),
        (["--replay", "1", "--seeds", "0:3"], "--replay is about one run"),
        (["--replay", "1", "--first"], "--replay is about one run"),
    ],
)
def test_wrong_use_is_explained(arguments: list[str], complaint: str) -> None:
    done = command(*arguments)
    assert done.returncode == 2
    assert complaint in done.stderr


def patched(patch: str, *arguments: str) -> subprocess.CompletedProcess[str]:
    """The command, after this was done to it."""
    script = f"import sys\nfrom ondisk.simulation import __main__, run, verdict\n{patch}\n__main__.main()"
    return subprocess.run(
        [sys.executable, "-c", script, *arguments], capture_output=True, text=True, timeout=60, check=False
    )


UNDECIDABLE = """
def undecided(history):
    raise verdict.Undecided("too large")
verdict.check = undecided
"""


@pytest.mark.parametrize("arguments", [["--seeds", "0:2", "--jobs", "1"], ["--replay", "0"]])
def test_a_run_about_which_nothing_is_known_is_no_success(arguments: list[str]) -> None:
    done = patched(UNDECIDABLE, *arguments, "--seconds", "2")
    assert done.returncode == 2
    lines = done.stdout.splitlines()
    assert [line for line in lines if line.startswith("seed 0: undecided: ")]
    assert lines[-1].endswith(" seeds, 0 violations")


ONCE = """
real = run.run
def once(seed, setting, *, tracing=True):
    report = real(seed, setting, tracing=tracing)
    return report if tracing else report._replace(rule="luck", violation="luck: bad")
run.run = once
"""


def test_a_violation_that_happens_once_is_told_all_the_same() -> None:
    """The second run, which has a record, does not repeat it here."""
    done = patched(ONCE, "--seeds", "0:1", "--jobs", "1", "--seconds", "2")
    assert done.returncode == 1
    lines = done.stdout.splitlines()
    assert lines[0] == "seed 0: luck: bad" and "did not do it again" in lines[1]
    assert lines[-1] == "1 seeds, 1 violations"


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
@pytest.mark.parametrize("arguments", [["--jobs", "1"], ["--jobs", "2"], ["--replay", "1"]])
def test_a_run_that_is_told_to_end_leaves_no_directory(arguments: list[str], number: signal.Signals) -> None:
    """As a terminal does it: the signal is for all of its processes."""
    seeds = [] if "--replay" in arguments else ["--seeds", "0:100000"]
    whole = [sys.executable, "-m", "ondisk.simulation", "--seconds", "5000", *seeds, *arguments]
    with subprocess.Popen(whole, start_new_session=True, stdout=subprocess.DEVNULL) as running:
        try:
            processes = psutil.Process(running.pid)
            wait_until(lambda: directories(processes), 60)
            left = directories(processes)
            os.killpg(running.pid, number)
            assert running.wait(60) == 128 + number
        finally:
            if running.poll() is None:
                os.killpg(running.pid, signal.SIGKILL)
    assert left and not [path for path in left if path.exists()]


SIGNAL_WHERE_AN_EXCEPTION_IS_SWALLOWED = """
import os, signal
from ondisk.replica import Replica
real = Replica.step
def step(self):
    try:
        os.kill(os.getpid(), signal.{name})
    except BaseException:
        pass
    return real(self)
Replica.step = step
"""


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
@pytest.mark.parametrize("arguments", [["--seeds", "0:2", "--jobs", "1"], ["--replay", "0"]])
def test_a_run_ends_though_the_signal_comes_where_an_exception_is_swallowed(
    arguments: list[str], number: signal.Signals
) -> None:
    source = SIGNAL_WHERE_AN_EXCEPTION_IS_SWALLOWED.format(name=number.name)
    done = patched(source, *arguments, "--seconds", "2")
    assert done.returncode == 128 + number


def directories(process: psutil.Process) -> set[Path]:
    """Of the runs in it and below it."""
    found: set[Path] = set()
    for each in (process, *process.children(recursive=True)):
        with contextlib.suppress(psutil.Error):
            found |= {parent for file in each.open_files() for parent in Path(file.path).parents}
    return {path for path in found if path.name.startswith("ondisk-simulation-")}
