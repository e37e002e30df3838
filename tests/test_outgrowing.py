"""The recipes of docs/outgrowing.md, as they are written, under load."""

from __future__ import annotations

import base64
import json
import re
import shutil
import subprocess
import threading
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from ondisk import Cluster, Node
from ondisk.net.memory import MemoryNetwork
from tests.processes import free_ports
from tests.waiting import wait_until

RECIPES = re.findall(
    r"```python\n(.*?)```", (Path(__file__).parents[1] / "docs" / "outgrowing.md").read_text(), re.DOTALL
)


def recipe(number: int) -> dict[str, Any]:
    names: dict[str, Any] = {}
    exec(RECIPES[number], names)
    return names


@contextmanager
def writers(put: Callable[[str, str], object], count: int) -> Iterator[dict[str, str]]:
    """Write until the end; what was acknowledged, key and value."""
    acknowledged: dict[str, str] = {}
    over = threading.Event()

    def write(writer: int) -> None:
        number = 0
        while not over.is_set():
            put(f"{writer}-{number}", str(number))
            acknowledged[f"{writer}-{number}"] = str(number)
            number += 1

    threads = [threading.Thread(target=write, args=(writer,)) for writer in range(count)]
    for thread in threads:
        thread.start()
    try:
        yield acknowledged
    finally:
        over.set()
        for thread in threads:
            thread.join()


def test_a_group_moves_under_load_and_no_acknowledged_write_is_lost(
    make_cluster: Callable[..., Cluster], tmp_path: Path
) -> None:
    old = make_cluster()
    old.wait_for_leader()
    put = old.put

    def late_put(key: str, value: str) -> object:
        """So that some are under way, and not proposed yet, when the gate is closed."""
        threading.Event().wait(0.02)
        return put(key, value)

    old.put = late_put  # type: ignore[method-assign, assignment]
    gate = recipe(0)["Gate"](old)
    with Node(1, [1], tmp_path / "new", MemoryNetwork()) as new:
        new.wait_for_leader()
        with writers(gate.put, 4) as acknowledged:
            wait_until(lambda: len(acknowledged) > 100)
            complete = gate.move(new, tmp_path / "moved")
            wait_until(lambda: len(acknowledged) > complete.pairs + 100)
        assert complete.pairs >= 100
        found = {key.decode(): value.decode() for key, value in new.scan(limit=10_000)}
        assert found == acknowledged
        assert len(old.scan(limit=10_000)) == complete.pairs


@pytest.fixture
def etcd(tmp_path: Path) -> Iterator[str]:
    """A real one, alone; where its HTTP gateway is."""
    if (program := shutil.which("etcd")) is None:
        pytest.skip("there is no etcd: apt install etcd-server")
    client, peer = (f"http://127.0.0.1:{port}" for port in free_ports(2))
    with (tmp_path / "etcd.log").open("wb") as log:
        process = subprocess.Popen(
            [
                *(program, "--data-dir", str(tmp_path / "etcd"), "--initial-cluster", f"default={peer}"),
                *("--listen-client-urls", client, "--advertise-client-urls", client),
                *("--listen-peer-urls", peer, "--initial-advertise-peer-urls", peer),
            ],
            stdout=log,
            stderr=log,
        )
    try:
        wait_until(lambda: is_healthy(client))
        yield client
    finally:
        process.kill()
        process.wait()


def is_healthy(url: str) -> bool:
    try:
        with urllib.request.urlopen(f"{url}/health", timeout=5) as answer:
            return "true" in answer.read().decode()
    except (urllib.error.URLError, OSError):
        return False


def test_a_group_moves_into_a_real_etcd_under_load(
    make_cluster: Callable[..., Cluster], etcd: str, tmp_path: Path
) -> None:
    """All pairs, byte for byte, and what is written after the move, too."""
    there = {b"\xff": b"\x00", "ä".encode(): b"", **{f"k{n:03}".encode(): b"v%d" % n for n in range(250)}}
    old = make_cluster()
    old.put_many(there.items())
    gate, into = recipe(0)["Gate"](old), recipe(1)
    with writers(gate.put, 4) as acknowledged:
        wait_until(lambda: len(acknowledged) > 100)
        complete = gate.move(into["Etcd"](etcd), tmp_path / "all", into["load_into_etcd"])
        wait_until(lambda: len(acknowledged) + len(there) > complete.pairs + 20)
    everything = json.dumps({"key": "AA==", "range_end": "AA=="}).encode()
    with urllib.request.urlopen(f"{etcd}/v3/kv/range", everything, timeout=20) as answer:
        found = json.load(answer)["kvs"]
    written = {key.encode(): value.encode() for key, value in acknowledged.items()}
    assert {
        base64.b64decode(kv["key"]): base64.b64decode(kv.get("value", "")) for kv in found
    } == there | written
