"""What all tests share: no test may leave a thread behind."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from ondisk import Cluster, DiskKV
from ondisk.simulation.safeguards import SAFEGUARDS, replica_without
from tests.machines import opened
from tests.virtual import World


def pytest_addoption(parser: pytest.Parser) -> None:
    """``--without NAME``: take a safeguard from every replica in virtual time; some test must notice."""
    parser.addoption("--without", choices=sorted(SAFEGUARDS))


def pytest_configure(config: pytest.Config) -> None:
    """Put the weaker replica in its place."""
    if (name := config.getoption("--without")) is not None:
        World.replica_type = replica_without([name])


@pytest.fixture(autouse=True)
def no_thread_is_left() -> Iterator[None]:
    """Every test closes what it starts: no thread of ours may outlive it."""
    yield
    left = [thread.name for thread in threading.enumerate() if thread.name.startswith("ondisk-")]
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
