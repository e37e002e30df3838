"""What a backup by copying gives: a copy of a busy directory opens at a state it once had, or is refused."""

from __future__ import annotations

import logging
import os
import random
import shutil
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from ondisk import Cluster, import_snapshot
from ondisk.errors import NoLeader, StorageError
from ondisk.inspect import inspect
from tests.lengths import short_and_long
from tests.waiting import wait_until

KEYS = 50


class Writer:
    """Writes 1, 2, 3, ... to 50 keys in turn: the largest tells what all of them must be."""

    def __init__(self, cluster: Cluster) -> None:
        self.acknowledged = 0
        self._cluster = cluster
        self._stopped = threading.Event()
        self._error: BaseException | None = None
        self._thread = threading.Thread(target=self._run, name="ondisk-writer")

    def _run(self) -> None:
        try:
            number, value = 0, "{} " + "x" * 300
            while not self._stopped.is_set():
                futures = []
                for _ in range(20):
                    number += 1
                    futures.append(
                        self._cluster.put_async(f"k{number % KEYS}", value.format(number), timeout=20)
                    )
                for future in futures:
                    future.result(20)
                self.acknowledged = number
                if number % 2000 == 0:
                    self._cluster.compact(1)
        except BaseException as error:
            self._error = error

    @property
    def goes_on(self) -> bool:
        return self._thread.is_alive()

    def __enter__(self) -> Writer:
        self._thread.start()
        wait_until(lambda: self.acknowledged > KEYS)
        return self

    def __exit__(self, *_: object) -> None:
        self._stopped.set()
        self._thread.join()
        assert self._error is None


def newest(cluster: Cluster) -> int:
    """The last number that was written, after a look that all those before it are there, and none after."""
    found = {key: int(value.split()[0]) for key, value in cluster.scan(limit=2 * KEYS)}
    last = max(found.values())
    assert found == {f"k{number % KEYS}".encode(): number for number in range(last - KEYS + 1, last + 1)}
    return last


def copy(source: Path, target: Path, chance: random.Random) -> None:
    """As ``cp -r`` does it, in any order: what is gone when its turn comes is left out."""
    target.mkdir()
    names = os.listdir(source)
    chance.shuffle(names)
    for name in names:
        if (source / name).is_dir():
            copy(source / name, target / name, chance)
        else:
            try:
                shutil.copyfile(source / name, target / name)
            except FileNotFoundError:
                assert not (source / name).exists()


@contextmanager
def many_files(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """RocksDB begins new ones all the time, so that a copy meets such moments."""
    monkeypatch.setattr("ondisk.storage.rocksdb.WRITE_BUFFER_BYTES", 64 << 10)
    logging.getLogger("ondisk").setLevel(logging.CRITICAL)
    try:
        yield
    finally:
        logging.getLogger("ondisk").setLevel(logging.NOTSET)


@pytest.mark.parametrize("rounds", short_and_long(15, 300))
def test_a_copy_of_a_busy_directory_opens_at_a_state_it_had_meanwhile_or_is_refused(
    make_cluster: Callable[..., Cluster], monkeypatch: pytest.MonkeyPatch, tmp_path: Path, rounds: int
) -> None:
    """And never, silently, at an older one than that at which the copy began."""
    opened = refused = 0
    with many_files(monkeypatch):
        cluster = make_cluster(members=(1,))
        with Writer(cluster) as writer:
            # So many, and until both have happened: on a slow disk most copies are in time.
            while (number := opened + refused) < rounds or not (opened and refused):
                assert writer.goes_on
                target = tmp_path / f"copy-{number}"
                target.mkdir()
                before = writer.acknowledged
                copy(cluster.data_dir / "replica-1", target / "replica-1", random.Random(number))
                damage = inspect(target).damage
                try:
                    with Cluster(target, members=(1,)) as again:
                        again.wait_for_leader()
                        assert newest(again) >= before
                        opened += 1
                        assert not damage, "a copy that opens was called damaged"
                except (StorageError, NoLeader):  # NoLeader: the log begins after the end of the state
                    refused += 1
                    assert damage, "what is refused was called whole"
                shutil.rmtree(target)


def test_a_copy_of_a_stopped_group_is_the_group(make_cluster: Callable[..., Cluster], tmp_path: Path) -> None:
    cluster = make_cluster()
    with Writer(cluster) as writer:
        wait_until(lambda: writer.acknowledged > 500)
    cluster.close()
    shutil.copytree(cluster.data_dir, tmp_path / "copy")
    assert inspect(tmp_path / "copy").damage == []
    with Cluster(tmp_path / "copy") as again:
        again.wait_for_leader()
        assert newest(again) == writer.acknowledged


def test_an_export_of_a_busy_group_is_a_state_it_had_meanwhile(
    make_cluster: Callable[..., Cluster], tmp_path: Path
) -> None:
    """This is what backups are made with."""
    cluster = make_cluster()
    leader = cluster.wait_for_leader()
    with Writer(cluster) as writer:
        before = writer.acknowledged
        cluster.export_snapshot(leader, tmp_path / "backup")
    assert inspect(tmp_path / "backup").damage == []
    import_snapshot(tmp_path / "backup", tmp_path / "again", members=[1])
    with Cluster(tmp_path / "again", members=[1]) as again:
        again.wait_for_leader()
        assert before <= newest(again) <= writer.acknowledged
