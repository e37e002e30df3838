"""What all tests share: no test may leave a thread behind."""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from xdist.scheduler import LoadScopeScheduling

from ondisk import Cluster, DiskKV, sessions
from ondisk.simulation.safeguards import SAFEGUARDS, replica_without
from ondisk.testing.crashing import ram_disk
from tests.engine import Engine
from tests.machines import opened
from tests.scenario import Compare
from tests.virtual import Late, World

TOGETHER = (
    "tests/test_browser.py",  # one JupyterLab and one browser
    "tests/test_large_state.py",  # the loaded states
    "tests/test_safeguards.py::test_some_test_fails_without_it",  # one process for all of them
)
ROOM_BYTES = 6 << 30  # a run of all tests leaves 1 GB, and three runs are kept


def pytest_addoption(parser: pytest.Parser) -> None:
    """``--without NAME``: take a safeguard from every replica in virtual time; some test must notice."""
    parser.addoption("--without", choices=sorted(SAFEGUARDS))
    parser.addoption(
        "--update-scenarios", action="store_true", help="write scenarios and counterexamples anew"
    )
    parser.addoption("--long", action="store_true", help="run the tests marked long, and no others")


def pytest_configure(config: pytest.Config) -> None:
    """Put the weaker replica in its place, and make this process a parent like any other.

    A shell starts a background job (``make test &``) with SIGINT ignored, and children inherit that. They do
    not inherit a handler: a program that is executed begins with the default again, a kernel of Jupyter too.
    And the tests start a thousand processes, which need not compile the package one after the other. In a
    short run they do not wait for a disk either, where there is a RAM disk; the long run has a real one.
    """
    if (name := config.getoption("--without")) is not None:
        World.replica_type = replica_without([name])
    if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
        signal.signal(signal.SIGINT, signal.default_int_handler)
    os.environ.pop("PYTHONDONTWRITEBYTECODE", None)
    if not config.getoption("--long") and (memory := ram_disk(ROOM_BYTES)) is not None:
        os.environ.setdefault("PYTEST_DEBUG_TEMPROOT", memory)


def pytest_xdist_auto_num_workers(config: pytest.Config) -> int:
    """Five workers for a directory of tests: two cores, and half of the time the tests wait for something.

    What is named is run in this process, where a debugger works.
    """
    return 5 if all(Path(argument).is_dir() for argument in config.args) else 0


class Scheduling(LoadScopeScheduling):
    """One test after the other for each worker, and to the same one those that share something expensive.

    (The marks that xdist has for this set an attribute that pytest 9.2 does not have any more.)
    """

    def _split_scope(self, nodeid: str) -> str:
        return next((together for together in TOGETHER if nodeid.startswith(together)), nodeid)


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config: pytest.Config, log: object) -> Scheduling:
    """How the tests are dealt to the workers."""
    return Scheduling(config, log)  # type: ignore[arg-type]


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Run either what is long or everything else. What is slow begins first, so that no worker ends late."""
    wanted: list[pytest.Item] = []
    others: list[pytest.Item] = []
    for item in items:
        is_long = item.get_closest_marker("long") is not None
        (wanted if is_long == config.getoption("--long") else others).append(item)
    config.hook.pytest_deselected(items=others)
    items[:] = sorted(wanted, key=lambda item: item.get_closest_marker("slow") is None)


@pytest.fixture(autouse=True)
def no_thread_is_left() -> Iterator[None]:
    """Every test closes what it starts: no thread of ours may outlive it."""
    before = threading.enumerate()  # of a group that the tests of a file share
    yield
    after = [thread for thread in threading.enumerate() if thread not in before]
    left = [thread.name for thread in after if thread.name.startswith("ondisk-")]
    assert not left, f"threads left behind: {left}"


@pytest.fixture
def make_world(tmp_path: Path) -> Iterator[Callable[..., World]]:
    """Make worlds of replicas in virtual time, closed at the end."""
    worlds: list[World] = []

    def make(**options: object) -> World:
        world = World(tmp_path / f"world-{len(worlds)}", **options)  # type: ignore[arg-type]
        worlds.append(world)
        return world

    yield make
    for world in worlds:
        world.close()


@pytest.fixture
def world(make_world: Callable[..., World]) -> World:
    """Three replicas in virtual time."""
    return make_world()


@pytest.fixture
def make_engine(tmp_path: Path) -> Iterator[Callable[..., Engine]]:
    """Make engines of Raft alone, each with a log that is closed at the end."""
    engines: list[Engine] = []

    def make(voters: int = 3, **options: object) -> Engine:
        engines.append(Engine(tmp_path / f"{len(engines)}", voters, **options))  # type: ignore[arg-type]
        return engines[-1]

    yield make
    for engine in engines:
        engine.log.close()


@pytest.fixture
def compare(request: pytest.FixtureRequest) -> Compare:
    """Compare what is on file with what happens; with ``--update-scenarios``, write it anew."""

    def compare(path: Path, text: str) -> None:
        if request.config.getoption("--update-scenarios"):
            path.write_text(text, encoding="utf-8")
        assert path.read_text(encoding="utf-8") == text, f"{path.name}: --update-scenarios writes it anew"

    return compare


@pytest.fixture
def kv(tmp_path: Path) -> Iterator[DiskKV]:
    """A new, open machine."""
    machine = opened(tmp_path / "kv")
    yield machine
    machine.close()


@pytest.fixture
def make_cluster(tmp_path: Path) -> Iterator[Callable[..., Cluster]]:
    """Open clusters below the test's directory, closed at the end."""
    clusters: list[Cluster] = []

    def make(name: str = "data", **options: object) -> Cluster:
        cluster = Cluster(tmp_path / name, **options)  # type: ignore[arg-type]
        clusters.append(cluster)
        return cluster

    yield make
    for cluster in clusters:
        cluster.close()


@pytest.fixture
def late(tmp_path: Path) -> Iterator[Callable[..., Late]]:
    """Make a world of which some of the first members are started later: ``late(3)``."""
    worlds: list[Late] = []

    def make(*late: int, members: int = 3, seed: int = 1) -> Late:
        worlds.append(Late(tmp_path / f"late-{len(worlds)}", members, seed, late=late))
        return worlds[-1]

    yield make
    for world in worlds:
        world.close()


@pytest.fixture
def cluster(make_cluster: Callable[..., Cluster]) -> Cluster:
    """Three replicas with a leader."""
    cluster = make_cluster()
    cluster.wait_for_leader()
    return cluster


@pytest.fixture
def room_for(monkeypatch: pytest.MonkeyPatch) -> Callable[[int], None]:
    """Say how many sessions there may be."""
    return lambda count: monkeypatch.setattr(sessions, "MAX_SESSIONS", count)
