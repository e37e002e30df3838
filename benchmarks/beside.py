"""A large state in etcd and then in three replicas: how it is loaded, starts again, and fits into memory."""

from __future__ import annotations

import shutil
import time
from contextlib import closing
from itertools import islice
from pathlib import Path

from benchmarks import etcd
from benchmarks.instruments import Order, figure, pairs, progress, resident, timed
from benchmarks.worker import Ondisk, free_ports
from ondisk.observe import wait_until

RESTARTS = 3
AT_ONCE = 256
ANSWERS_WITHIN = 600.0  # seconds


def beside_etcd(order: Order) -> None:
    """Memory with all keys, and a start of all three until the first linearizable get."""
    if (reason := etcd.missing()) is not None:
        progress(f"etcd is not measured: {reason}")
    else:
        _etcd(order)
    _ours(order)


def _etcd(order: Order) -> None:
    order.scratch.mkdir(exist_ok=True)
    etcd.build(order.scratch)
    ports = free_ports(3), free_ports(3)
    directory = order.scratch / "etcd"

    def start() -> etcd.Etcd:
        return etcd.Etcd(directory, *ports)

    group = start()
    try:
        wait_until(lambda: group.look()["ready"], "etcd has a leader", 60)
        progress(f"etcd takes in {order.keys:,} keys")
        seconds = timed(lambda: group.measure("load", AT_ONCE, order.keys))
        figure("etcd", "loaded: keys/s", order.keys / seconds)
        figure("etcd", "a member: MB resident", max(group.resident()) / 1e6)
        for number in range(1, RESTARTS + 1):
            progress(f"etcd starts again: {number} of {RESTARTS}")
            group.close()
            began = time.perf_counter()
            group = start()
            wait_until(group.answers, "etcd answers", ANSWERS_WITHIN)
            figure("etcd", "starts again: s", time.perf_counter() - began)
    finally:
        group.close()
        shutil.rmtree(directory, ignore_errors=True)


def _ours(order: Order) -> None:
    directory: Path = order.scratch / "cluster"
    before = resident()
    progress(f"three replicas take in {order.keys:,} keys")
    with closing(Ondisk(directory, None, [])) as subject:
        subject.cluster.wait_for_leader()
        seconds = timed(lambda: subject.cluster.put_many(islice(pairs(order.keys, order.keys), order.keys)))
        figure("ondisk", "loaded: keys/s", order.keys / seconds)
        figure("ondisk", "three replicas: MB resident", resident())
        figure("ondisk", "before: MB resident", before)
    for number in range(1, RESTARTS + 1):
        progress(f"three replicas start again: {number} of {RESTARTS}")
        began = time.perf_counter()
        with closing(Ondisk(directory, None, [])) as subject:
            subject.cluster.get(b"%016d" % 0, timeout=60)
            figure("ondisk", "starts again: s", time.perf_counter() - began)
