"""Two things that somebody does to a cluster at once: it may refuse one, and loses nothing and nobody."""

from __future__ import annotations

import itertools
import os
import random
import shutil
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path

import pytest

from ondisk import Cluster, import_snapshot
from ondisk.errors import ConfigurationError, OndiskError, WrongProcess
from ondisk.net.memory import MemoryNetwork
from ondisk.raft import Timing
from tests.interrupts import DEADLINE, Button, another_thread
from tests.lengths import short_and_long
from tests.waiting import wait_until

MEMBERS = 5  # two disks may be lost at once
TIMING = Timing(heartbeat=0.03, election_min=0.3, election_max=0.6, first_election=0.05)


class Group:
    """A cluster in memory, the writes that it has acknowledged, and what a person can do to it."""

    def __init__(self, path: Path, rng: random.Random) -> None:
        self.path = path
        self.data = path / "data"
        self.rng = rng
        self.fresh = itertools.count(MEMBERS + 1)
        self.keys = itertools.count()
        self.acknowledged: set[str] = set()
        self.restored: set[Path] = set()
        self.closed = False
        self.patience = 10.0  # seconds, of what waits for others
        self.open()
        self.put()
        self.backup = self.cluster.export_snapshot(self.cluster.wait_for_leader(), path / "backup").path

    def open(self) -> None:
        self.network = MemoryNetwork()
        first = range(1, MEMBERS + 1) if not self.data.exists() else None
        try:
            self.cluster = Cluster(self.data, members=first, network=self.network, timing=TIMING)
        except ConfigurationError as error:
            assert "hold an import" in str(error) and self.restored
            for folder in self.restored:
                shutil.rmtree(folder)
            self.open()

    def put(self) -> None:
        key = f"key {next(self.keys)}"
        self.cluster.put(key, "x", timeout=2)
        self.acknowledged.add(key)

    def any_member(self) -> int:
        return self.rng.choice(self.cluster.members)

    # What is done to it

    def rebuild(self) -> None:
        self.cluster.rebuild(self.any_member(), timeout=self.patience)

    def add(self) -> None:
        self.cluster.add_replica(next(self.fresh), timeout=self.patience)

    def remove(self) -> None:
        self.cluster.remove_replica(self.any_member())

    def restart(self) -> None:
        member = self.any_member()
        self.cluster.stop(member)
        self.cluster.start(member)

    def crash(self) -> None:
        member = self.any_member()
        self.cluster.crash(member)
        self.cluster.start(member)

    def transfer(self) -> None:
        self.cluster.transfer_leadership(self.any_member())

    def isolate(self) -> None:
        self.cluster.network.isolate(self.any_member())

    def export(self) -> None:
        self.cluster.export_snapshot(self.any_member(), self.path / "exported")

    def restore(self) -> None:
        """A snapshot into one of the directories, by mistake."""
        member = self.any_member()
        self.cluster.stop(member)
        self.restored.add(self.data / f"replica-{member}")
        import_snapshot(self.backup, self.data, members=self.cluster.members, replica_ids=[member])
        self.cluster.start(member)

    def rename(self) -> None:
        """A directory is somewhere else for a moment."""
        folder = self.data / f"replica-{self.any_member()}"
        aside = folder.with_name(f"{folder.name} aside")
        with suppress(FileNotFoundError):
            folder.rename(aside)
            time.sleep(self.rng.random() / 10)
            if folder.exists():  # somebody has begun a new one
                shutil.rmtree(aside)
            else:
                aside.rename(folder)

    def fork(self) -> None:
        if not (child := os.fork()):
            code = 1
            try:
                self.cluster.get("key 0")
            except WrongProcess:
                code = 0
            finally:
                os._exit(code)
        assert os.waitpid(child, 0)[1] == 0

    def close(self) -> None:
        self.cluster.close()
        self.closed = True

    # What somebody does afterwards

    def repair(self) -> None:
        """Start what is stopped, rebuild what does not belong here, and say that it is whole again."""
        self.network.heal()
        if not any(status.running for status in self.cluster.status().values()):
            self.cluster.close()
            self.open()
        for member in self.cluster.members:
            with suppress(OndiskError):
                self.cluster.start(member)
        wait_until(lambda: all(map(self.is_well, self.cluster.members)), DEADLINE)

    def is_well(self, member: int) -> bool:
        with suppress(OndiskError):
            _, known = self.cluster._nodes[self.cluster.wait_for_leader()].configuration
            if member in known.removed:  # while it was not known whether that would happen
                self.cluster._forget(self.cluster._nodes[member])
            elif member not in known.all:
                self.cluster.add_replica(member, timeout=10)
            elif not self.cluster.status()[member].running or self.cluster.status()[member].error:
                self.cluster.rebuild(member, timeout=10)
            else:
                self.cluster.get("key 0", via=member, timeout=1)
                return member in known.voters
        return False

    def check(self) -> None:
        """Every acknowledged write is everywhere, and all have the same."""
        self.put()
        self.cluster.get("key 0")
        contents = []
        for member in self.cluster.members:
            self.cluster.get("key 0", via=member, timeout=10)
            pairs = self.cluster._nodes[member].scan(limit=10_000, timeout=10)
            contents.append({key.decode() for key, _ in pairs})
        assert all(content == contents[0] for content in contents)
        assert contents[0] >= self.acknowledged


ACTIONS = [
    Group.rebuild,
    Group.add,
    Group.remove,
    Group.restart,
    Group.crash,
    Group.transfer,
    Group.isolate,
    Group.export,
    Group.restore,
    Group.rename,
    Group.fork,
    Group.close,
]


def left() -> list[str]:
    """The threads of ours that there are."""
    names = [thread.name for thread in threading.enumerate()]
    return [name for name in names if name.startswith(("ondisk-", "shielded"))]


def at_once(group: Group, pair: list[Callable[[Group], None]], button: Button) -> None:
    """Both at once, with writes meanwhile, and now and then an interrupt; only errors that have a type."""
    ended = threading.Event()

    def do(action: Callable[[Group], None]) -> None:
        with suppress(OndiskError):
            action(group)

    def write() -> None:
        while not ended.wait(0.002):
            with suppress(OndiskError):
                group.put()

    def later() -> None:
        time.sleep(group.rng.random() / 20)
        do(pair[1])

    with ThreadPoolExecutor(2) as pool:
        began = time.monotonic()
        writing, other = pool.submit(write), pool.submit(later)
        try:
            if group.rng.random() < 0.3:
                button.during(lambda: do(pair[0]), 0.2)
            else:
                do(pair[0])
            other.result(DEADLINE)
            assert time.monotonic() < began + DEADLINE, "waited for what will never come"
        finally:
            ended.set()
        writing.result(DEADLINE)


def one_round(path: Path, seed: int) -> None:
    rng = random.Random(seed)
    pair = [rng.choice(ACTIONS), rng.choice(ACTIONS)]
    group = Group(path, rng)
    if Group.close in pair:
        group.patience = 2 * DEADLINE  # for a cluster that is closed nobody waits
    try:
        with another_thread() as do, Button(seed) as button:
            at_once(group, pair, button)
            if group.closed:  # and nothing was started behind its back
                wait_until(lambda: not left())
            do(group.repair)
            group.check()
            do(group.cluster.close)
            wait_until(lambda: not left())
            assert not group.network._endpoints
            group.open()
            group.check()
            do(group.cluster.close)
    except BaseException as error:
        error.add_note(f"seed {seed}: {pair[0].__name__} beside {pair[1].__name__}")
        group.cluster.close()
        raise
    shutil.rmtree(group.path)


@pytest.mark.parametrize("rounds", short_and_long(10, 300))
def test_two_things_done_at_once_lose_nothing_and_leave_nothing(tmp_path: Path, rounds: int) -> None:
    """After each pair every acknowledged write is everywhere, and the cluster closes and opens again."""
    for seed in range(rounds):
        one_round(tmp_path / str(seed), seed)
