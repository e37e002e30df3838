"""Payments on a cluster of ledgers, while its replicas lose their power one after the other."""

from __future__ import annotations

import logging
import random
import threading
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

from ondisk.cluster import Cluster
from ondisk.errors import NotDone, OndiskError
from ondisk.lab.experiments.ledger import Accounts, Balances, deposit, transfer
from ondisk.observe import wait_until, wait_until_level

_ACCOUNTS = tuple("abcdefgh")
_EACH = 100  # in an account at first
_CLIENTS = 8
_ANSWER_WITHIN = 1.5  # seconds
_PAY_FOR = 0.3  # seconds between two power cuts
TOTAL = _EACH * len(_ACCOUNTS)


class Paid(NamedTuple):
    """What came of it. ``answers`` counts them: ``moved``, ``refused``, ``not done``, ``unknown``."""

    answers: Counter[str]
    crashes: int
    balances: dict[int, dict[str, int]]  # by replica
    stopped: dict[int, str]  # replicas that had to stop, and why

    @property
    def totals(self) -> dict[int, int]:
        """What all accounts hold together, by replica."""
        return {replica: sum(accounts.values()) for replica, accounts in self.balances.items()}


@contextmanager
def _quiet() -> Iterator[None]:
    logger = logging.getLogger("ondisk")
    level = logger.level
    logger.setLevel(logging.CRITICAL + 1)
    try:
        yield
    finally:
        logger.setLevel(level)


def pay(directory: Path | str, machine: type[Accounts], *, crashes: int) -> Paid:
    """Three replicas in a new directory, eight accounts of 100, eight clients that pay at random, and so many
    power cuts, the leader's among them. Each replica is started again at once. What replicas complain of is
    in the outcome, and not printed.
    """
    answers: Counter[str] = Counter()
    enough = threading.Event()

    def client(number: int, cluster: Cluster) -> Counter[str]:
        draw, counted = random.Random(number), Counter[str]()
        while not enough.is_set():
            giver, taker = draw.sample(_ACCOUNTS, 2)
            try:
                result = cluster.propose(transfer(giver, taker, draw.randint(1, 60)), timeout=_ANSWER_WITHIN)
                counted["refused" if result.error else "moved"] += 1
            except NotDone:
                counted["not done"] += 1
                enough.wait(0.05)
            except OndiskError:
                counted["unknown"] += 1
        return counted

    with _quiet(), Cluster(directory, state_machine=machine) as cluster, ThreadPoolExecutor(_CLIENTS) as pool:
        for account in _ACCOUNTS:
            cluster.propose(deposit(account, _EACH))
        paying = [pool.submit(client, number, cluster) for number in range(_CLIENTS)]
        try:
            for crash in range(crashes):
                enough.wait(_PAY_FOR)
                victim = cluster.leader_id if crash % 2 == 0 else crash % 3 + 1
                cluster.crash(victim or 1)
                cluster.start(victim or 1)
            enough.wait(_PAY_FOR)
        finally:
            enough.set()
        for each in paying:
            answers.update(each.result())
        running = sum(status.running for status in cluster.status().values())
        if 2 * running > len(cluster.members):  # else nobody can lead, and there is nothing to wait for
            wait_until(lambda: cluster.leader_id is not None, "there is a leader")
            wait_until_level(cluster)
        stopped = {
            replica: status.error or "" for replica, status in cluster.status().items() if not status.running
        }
        balances = {
            replica: cluster.machine(replica).lookup(Balances())
            for replica, status in cluster.status().items()
            if status.running
        }
    return Paid(answers, crashes, balances, stopped)
