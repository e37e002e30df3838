"""What needs no large state: a leader that goes, slow disks, stale reads, idle groups, the simulator."""

from __future__ import annotations

import contextlib
import itertools
import os
import time
from contextlib import closing
from typing import Any

import psutil

from benchmarks.instruments import Order, figure, lasting, progress
from benchmarks.worker import KEYS, VALUES, Ondisk, free_ports, gets, puts
from ondisk import Cluster
from ondisk.errors import NotDone, OutcomeUnknown
from ondisk.observe import wait_until, wait_until_level
from ondisk.raft import Timing
from ondisk.simulation.run import Setting, run_all
from ondisk.storage.store import Store

CRASHES, OTHER_WAYS = 34, 3  # trials in each round
SYNC_SECONDS = 0.005
IDLE_SECONDS = 5  # times the seconds for each figure
SEEDS = 6  # in each round, for each core


def failover(order: Order) -> None:
    """The leader goes: how long until the next put is acknowledged."""
    timeout = Timing().election_max
    for network in ("memory", "TCP"):
        ways = {"crashed": OTHER_WAYS, "asked to hand over": OTHER_WAYS}
        if network == "memory":
            ways["cut off"] = OTHER_WAYS
            if order.seconds >= 1:
                ways["crashed"] = CRASHES
        ports = free_ports(3) if network == "TCP" else []
        with closing(Ondisk(order.scratch / network, None, ports)) as subject:
            for number in range(order.rounds):
                progress(f"{network}: round {number + 1} of {order.rounds}")
                for way, times in ways.items():
                    for _ in range(times):
                        seconds = next_put(subject.cluster, way)
                        row = f"leader {way}, {network}"
                        figure(row, "ms to the next put", 1000 * seconds)
                        if way == "crashed" and network == "memory":
                            figure(row, "election timeouts", seconds / timeout)


def next_put(cluster: Cluster, way: str) -> float:
    """Seconds from when the leader begins to go until a put through another replica is acknowledged."""
    cluster.put("key", "before")
    wait_until_level(cluster)
    leader = cluster.wait_for_leader()
    other = next(member for member in cluster.members if member != leader)
    start = time.perf_counter()
    if way == "crashed":
        cluster.crash(leader)
    elif way == "cut off":
        cluster.network.isolate(leader)
    else:
        cluster.transfer_leadership(other)
    while True:
        with contextlib.suppress(NotDone, OutcomeUnknown):
            cluster.put("key", "after", via=other, timeout=0.05)
            break
    seconds = time.perf_counter() - start
    if way == "crashed":
        cluster.start(leader)
    elif way == "cut off":
        cluster.network.heal()
    wait_until(lambda: len({status.leader_id for status in cluster.status().values()}) == 1, "one leader")
    return seconds


def slow_disks(order: Order) -> None:
    """Every fsync takes 5 ms: what of that is hidden by group commit, and what is added to it."""
    from ondisk.lab import SlowDisk, slow  # where memory is measured, the lab is not to be in it

    disks = {member: SlowDisk() for member in (1, 2, 3)}
    subject = Ondisk(order.scratch / "cluster", None, [], disks=disks)
    with closing(subject), slow(disks, disks, SYNC_SECONDS):
        subject.cluster.wait_for_leader()
        for number in range(1, order.rounds + 1):
            progress(f"round {number} of {order.rounds}")
            one = puts(subject, 1, lasting(order.seconds))["p50_ms"]
            many = puts(subject, 256, lasting(order.seconds))["per_second"]
            figure("every fsync takes 5 ms", "one put: ms", one)
            figure("every fsync takes 5 ms", "in fsyncs", one / 1000 / SYNC_SECONDS)
            figure("every fsync takes 5 ms", "256 in flight: per s", many)
            figure("every fsync takes 5 ms", "of 256 a fsync", many * SYNC_SECONDS / 256)


def stale(order: Order) -> None:
    """Stale gets of a cluster, and gets of a RocksDB with the same data, in one thread, in turn."""
    with (
        closing(Store(order.scratch / "bare")) as bare,
        closing(Ondisk(order.scratch / "cluster", None, [])) as subject,
    ):
        batch = bare.batch()
        for key, value in zip(KEYS, VALUES, strict=True):
            batch.put(key, value)
        bare.write(batch)
        subject.cluster.wait_for_leader()
        puts(subject, 256, lambda _, count: count >= len(KEYS))
        wait_until_level(subject.cluster)
        database = bare._db  # without anything of ours around it
        for number in range(1, order.rounds + 1):
            progress(f"round {number} of {order.rounds}")
            ours = gets(subject.stale_get, 1, order.seconds)["per_second"]
            alone = gets(database.get, 1, order.seconds)["per_second"]
            figure("stale gets", "per s", ours)
            figure("stale gets", "bare rocksdict: per s", alone)
            figure("stale gets", "ratio", ours / alone)


IN_A_KERNEL = {
    "cluster": "from ondisk import Cluster, lab\ncluster = Cluster({folder!r})\ncluster.wait_for_leader()",
    "panel": "from IPython.display import display\npanel = lab.Panel(cluster)\ndisplay(panel)",
    "end": "panel.close()\ncluster.close()",
}


def idle(order: Order) -> None:
    """Three replicas in the kernel of a notebook that nobody asks anything, without and with a panel."""
    from jupyter_client.manager import start_new_kernel

    manager, client = start_new_kernel(kernel_name="python3")
    try:
        kernel = psutil.Process(manager.provisioner.pid)

        def execute(cell: str) -> None:
            reply = client.execute_interactive(
                IN_A_KERNEL[cell].format(folder=str(order.scratch / "cluster")),
                output_hook=lambda _: None,
                timeout=60,
            )
            if reply["content"]["status"] != "ok":
                raise RuntimeError("\n".join(reply["content"]["traceback"]))

        def measure(row: str) -> None:
            for number in range(1, order.rounds + 1):
                progress(f"{row}: round {number} of {order.rounds}")
                before, began = sum(kernel.cpu_times()[:2]), time.perf_counter()
                time.sleep(IDLE_SECONDS * order.seconds)
                took = time.perf_counter() - began
                figure(row, "% of a core", 100 * (sum(kernel.cpu_times()[:2]) - before) / took)

        execute("cluster")
        measure("three replicas")
        execute("panel")
        measure("three replicas and a panel")
        execute("end")
    finally:
        client.stop_channels()
        manager.shutdown_kernel(now=True)


def simulator(order: Order) -> None:
    """How fast virtual time passes, with a process on each core and every check on."""
    cores = os.cpu_count() or 1
    seeds = itertools.count()
    for number in range(1, order.rounds + 1):
        progress(f"round {number} of {order.rounds}")
        chosen = [next(seeds) for _ in range(SEEDS * cores if order.seconds >= 1 else cores)]
        began = time.perf_counter()
        reports: list[Any] = list(run_all(chosen, Setting(), jobs=cores))
        took = time.perf_counter() - began
        if violations := [report.violation for report in reports if report.rule is not None]:
            raise RuntimeError(f"the simulator found a violation: {violations[0]}")
        virtual = sum(report.seconds for report in reports)
        figure(f"{cores} processes", "virtual s/s", virtual / took)
        figure(f"{cores} processes", "faults/s", sum(len(report.faults) for report in reports) / took)
