"""Real processes and real threads under load, while something keeps breaking them.

Several clients put, get, increment, compare and delete for some seconds, with ``--long`` for three minutes or
``ONDISK_NEMESIS_SECONDS``: two thirds of it through three processes that are killed, stopped and cut off from
each other, one third through the threads of a ``Cluster``. What the clients saw must have an order that
explains it, and what was acknowledged must be there in the end. A failure names its seed, and the file with
the history.
"""

from __future__ import annotations

import contextlib
import itertools
import os
import random
import signal
import socket
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest

from ondisk import Cluster
from ondisk.errors import StoreClosed
from ondisk.linearizability import History, check, write_history
from tests.lengths import short_and_long
from tests.processes import Outcome, Server, carry_out, free_ports
from tests.proxy import Proxy
from tests.waiting import wait_until

LONG_SECONDS = float(os.environ.get("ONDISK_NEMESIS_SECONDS", "180"))
SEED = int(os.environ.get("ONDISK_NEMESIS_SEED", random.randrange(1 << 32)))
CLIENTS = 6
REPLICAS = (1, 2, 3)
NEW_KEYS_EVERY = 4.0  # seconds: the check of one key takes longer than in proportion to its operations

Ask = Callable[..., Outcome]
"""``ask(replica, name, key, *arguments)``."""


class Load:
    """Clients, each in a thread: one request after the other, through any replica, all of it on record."""

    def __init__(self, ask: Ask, seed: int) -> None:
        self.history = History()
        self.outcomes: Counter[str] = Counter()
        self.kept: dict[str, str] = {}  # keys that were put once, with success
        self.keys: set[str] = set()
        self.broken: list[BaseException] = []
        self._ask = ask
        self._begun = time.monotonic()
        self._lock = threading.Lock()
        self._numbers = itertools.count(1)
        self._ids = itertools.count(1)
        self._over = threading.Event()
        self._threads = [
            threading.Thread(
                target=self._run, args=(random.Random(f"{seed} {number}"),), name=f"client-{number}"
            )
            for number in range(CLIENTS)
        ]
        for thread in self._threads:
            thread.start()

    def _run(self, rng: random.Random) -> None:
        client = next(self._ids)
        seen: dict[str, Any] = {}
        try:
            while not self._over.is_set():
                name, key, arguments = self._request(rng, seen)
                outcome, result = self.ask(client, rng.choice(REPLICAS), name, key, *arguments)
                if outcome == "ok" and name == "get":
                    seen[key] = result
                if outcome == "unknown":  # it may still be under way, and a client does one after the other
                    client = next(self._ids)
                if outcome != "ok":
                    self._over.wait(0.02)
        except BaseException as error:
            self.broken.append(error)

    def _request(self, rng: random.Random, seen: dict[str, Any]) -> tuple[str, str, list[Any]]:
        number = str(next(self._numbers))  # no two puts are alike, and each value can be incremented
        if rng.random() < 0.05:
            return "put", f"kept-{number}", [number]
        key = f"{int((time.monotonic() - self._begun) / NEW_KEYS_EVERY)}-{rng.choice('abcd')}"
        self.keys.add(key)
        name = rng.choices(("get", "put", "incr", "compare_and_set", "delete"), (6, 3, 3, 3, 1))[0]
        arguments = {
            "put": [number],
            "incr": [rng.choice((1, -1, 1000))],
            "compare_and_set": [seen.get(key), number],
        }
        return name, key, arguments.get(name, [])

    def ask(self, client: int, replica: int, name: str, key: str, *arguments: Any) -> Outcome:
        """Ask, and note it in the history."""
        number = self.history.begin(client, name, key, *arguments)
        outcome, result = self._ask(replica, name, key, *arguments)
        if outcome == "ok":
            self.history.ok(number, result)
        elif outcome == "unknown" and name != "get":
            self.history.unknown(number)
        else:  # a get without an answer tells nothing
            self.history.not_done(number)
        with self._lock:
            self.outcomes[f"{name} {outcome}"] += 1
            if outcome == "ok" and key.startswith("kept-") and name == "put":
                self.kept[key] = arguments[0]
        return outcome, result

    def stop(self) -> None:
        self._over.set()
        for thread in self._threads:
            thread.join()

    def look_at_everything(self) -> None:
        """Get each key through each replica, as one more client: that is part of the history, too.

        All is well by now, but a machine may have other work to do: who is not answered asks again.
        """
        client = next(self._ids)
        for replica in REPLICAS:
            for key in sorted(self.keys | self.kept.keys()):
                wait_until(lambda key=key, replica=replica: self._see(client, replica, key), 60)

    def _see(self, client: int, replica: int, key: str) -> bool:
        outcome, result = self.ask(client, replica, "get", key)
        lost = outcome == "ok" and key in self.kept and result != self.kept[key]
        assert not lost, f"{key} is lost on replica {replica}"
        return outcome == "ok"


def test_the_last_look_asks_again_whom_nothing_answered_and_finds_what_is_lost() -> None:
    """Each time is an operation of its own."""
    asked: Counter[tuple[int, str]] = Counter()
    values = {"kept-1": "1", "a": None}

    def ask(replica: int, name: str, key: str, *arguments: Any) -> Outcome:
        if name != "get" or key not in values:
            return "not_done", None
        asked[replica, key] += 1
        return ("unknown", None) if asked[replica, key] < 3 else ("ok", values[key])

    load = Load(ask, SEED)
    load.stop()
    load.keys, load.kept = {"a"}, {"kept-1": "1"}
    load.look_at_everything()
    looks = [(replica, key) for replica in REPLICAS for key in ("a", "kept-1")]
    assert asked == dict.fromkeys(looks, 3)
    assert [each.key for each in load.history.operations if each.end is not None] == ["a", "kept-1"] * 3
    assert len(load.history.operations) == len(looks)  # a get without an answer tells nothing
    values["kept-1"] = None
    with pytest.raises(AssertionError, match="kept-1 is lost on replica 1"):
        load.look_at_everything()


class Nemesis:
    """Begins a fault now and then, and ends it after a while; up to three at a time."""

    def __init__(self, rng: random.Random) -> None:
        self.rng = rng
        self.faults: Counter[str] = Counter()
        self._ends: list[tuple[float, Callable[[], None]]] = []

    def run(self, seconds: float, choose: Callable[[], None], load: Load) -> None:
        """For so long, and until there were faults of three kinds, and writes in spite of them."""
        until = time.monotonic() + seconds
        while time.monotonic() < until or len(self.faults) < 3 or not load.kept:
            assert not load.broken
            if len(self._ends) < 3:
                choose()
            pause = time.monotonic() + self.rng.uniform(0.1, 1.0)
            while time.monotonic() < pause:
                self._end(time.monotonic())
                time.sleep(0.02)
        self._end(float("inf"))

    def for_a_while(self, kind: str, end: Callable[[], None], longest: float) -> None:
        """Count a fault that has begun, and remember how it ends."""
        self.faults[kind] += 1
        self._ends.append((time.monotonic() + self.rng.uniform(0.1, longest), end))

    def _end(self, now: float) -> None:
        due = [end for when, end in self._ends if when <= now]
        self._ends = [(when, end) for when, end in self._ends if when > now]
        for end in due:
            end()


@contextlib.contextmanager
def judged(load: Load, nemesis: Nemesis, path: Path, seed: int) -> Iterator[None]:
    """After the block: stop the clients, and decide about the history. It is saved if anything fails."""
    try:
        try:
            yield
        finally:
            load.stop()
        load.look_at_everything()
        begun = time.monotonic()
        verdict = check(load.history.operations)
        took = time.monotonic() - begun
        assert verdict.linearizable, f"not linearizable: key {verdict.key}"
        assert load.broken == []
    except BaseException as error:
        write_history(path, load.history.operations)
        error.add_note(f"seed {seed}; look at it with: python -m ondisk.linearizability {path}")
        raise
    print(f"seed {seed}; faults: {dict(nemesis.faults)}")
    print(f"{sum(load.outcomes.values())} requests: {dict(sorted(load.outcomes.items()))}")
    print(f"{len(load.kept)} kept, {len(load.keys)} other keys; linearizable, checked in {took:.1f} s")


# Processes


class Processes:
    """Three replicas as processes, with a proxy of ours on each line between two of them."""

    def __init__(self, directory: Path, nemesis: Nemesis) -> None:
        self._directory = directory
        self._nemesis = nemesis
        self.addresses = {i: ("127.0.0.1", port) for i, port in zip(REPLICAS, free_ports(3), strict=True)}
        self._stack = contextlib.ExitStack()
        self.lines = {
            (caller, called): self._stack.enter_context(Proxy(self.addresses[called]))
            for caller, called in ((2, 1), (3, 1), (3, 2))
        }
        self.servers: dict[int, Server] = {}
        self._harmed: set[object] = set()  # replicas and lines that have a fault now
        for replica in REPLICAS:
            self.start(replica)

    def start(self, replica: int) -> None:
        seen = dict(self.addresses)
        for (caller, called), line in self.lines.items():
            if caller == replica:
                seen[called] = line.address
        former = self.servers.pop(replica, None)
        if former is not None:
            former.__exit__()
        self.servers[replica] = Server(replica, seen, self._directory)

    def ask(self, replica: int, name: str, key: str, *arguments: Any) -> Outcome:
        server = self.servers.get(replica)
        return ("not_done", None) if server is None else server.ask(name, key, *arguments)

    # Faults

    def break_something(self) -> None:
        rng = self._nemesis.rng
        kind = rng.choice(
            ("kill", "kill", "kill all", "stop", "stop", "cut", "cut", "stall", "delay", "reset")
        )
        replica, line = rng.choice(REPLICAS), rng.choice(list(self.lines))
        if kind in ("kill", "stop"):
            self.break_replica(kind, replica)
        elif kind == "kill all" and not self._harmed.intersection(REPLICAS):
            self._nemesis.faults[kind] += 1
            for each in REPLICAS:
                self.break_replica("kill", each)
        elif kind != "kill all" and line not in self._harmed:
            self.break_line(kind, line)

    def break_replica(self, kind: str, replica: int) -> None:
        if replica in self._harmed:
            return
        self._harmed.add(replica)
        server = self.servers[replica]
        server.signal(signal.SIGKILL if kind == "kill" else signal.SIGSTOP)

        def end() -> None:
            self._harmed.discard(replica)
            if kind == "kill":
                self.start(replica)
            else:
                server.signal(signal.SIGCONT)

        self._nemesis.for_a_while(kind, end, longest=3.0)

    def break_line(self, kind: str, pair: tuple[int, int]) -> None:
        line, rng = self.lines[pair], self._nemesis.rng
        ways = rng.choice(([line.there], [line.back], [line.there, line.back]))
        self._harmed.add(pair)
        for way in ways:
            if kind == "cut":
                way.cut = True
            elif kind == "stall":
                way.passes = False
            elif kind == "delay":
                way.delay = rng.choice((0.005, 0.05, 0.3))
        if kind == "reset":
            line.reset()

        def end() -> None:
            line.heal()
            self._harmed.discard(pair)

        which = "" if kind == "reset" else " one way" if len(ways) == 1 else " both ways"
        self._nemesis.for_a_while(f"{kind}{which}", end, longest=4.0)

    # The end

    def all_well(self) -> None:
        """Everything is healed and everybody runs: wait until each replica answers."""
        for replica in REPLICAS:
            wait_until(lambda replica=replica: self.up(replica), 60)
            wait_until(lambda replica=replica: self.ask(replica, "get", "all well")[0] == "ok", 60)

    def up(self, replica: int) -> bool:
        if not self.servers[replica].running:  # somebody's outgoing connection had its port
            self.start(replica)
        return self.servers[replica].ready.wait(5)

    def close(self) -> None:
        for server in self.servers.values():
            server.signal(signal.SIGCONT)
            server.__exit__()
        self._stack.close()


def no_exception(directory: Path) -> None:
    """What the replicas wrote to stderr are warnings."""
    for replica in REPLICAS:
        assert "Traceback" not in (text := (directory / f"errors-{replica}").read_text()), text


@contextlib.contextmanager
def nothing_left() -> Iterator[None]:
    """No process, thread or file that was not there before."""
    me = psutil.Process()
    before = {child.pid for child in me.children()}, {thread.name for thread in threading.enumerate()}
    files = me.num_fds()
    yield
    assert ({child.pid for child in me.children()}, {t.name for t in threading.enumerate()}) == before
    assert me.num_fds() == files


@pytest.mark.slow
@pytest.mark.timeout(LONG_SECONDS + 300)
@pytest.mark.parametrize("seconds", short_and_long(18.0, LONG_SECONDS))
def test_processes_that_are_killed_stopped_and_cut_off_stay_linearizable(
    tmp_path: Path, seconds: float
) -> None:
    """SIGKILL and a restart, SIGSTOP and SIGCONT, lines that lose, stall, dawdle or break."""
    nemesis = Nemesis(random.Random(SEED))
    with nothing_left():
        processes = Processes(tmp_path, nemesis)
        try:
            processes.all_well()
            load = Load(processes.ask, SEED)
            with judged(load, nemesis, tmp_path / "history.json", SEED):
                nemesis.run(seconds * 2 / 3, processes.break_something, load)
                processes.all_well()
            assert [server.end() for server in processes.servers.values()] == [0, 0, 0]
        finally:
            processes.close()
    no_exception(tmp_path)
    no_debris(tmp_path)
    for address in processes.addresses.values():
        with socket.create_server(address):  # nobody has the port any more
            pass
    assert load.kept and len(nemesis.faults) > 2


def no_debris(directory: Path) -> None:
    """One database for each replica, and nothing of a snapshot that was not finished."""
    for replica in REPLICAS:
        state = directory / f"replica-{replica}" / "state"
        left = [path.name for path in state.iterdir() if path.name not in ("owner", "current", "belongs-to")]
        assert len(left) == 1, left


# Threads


class Threads:
    """The faults of a cluster whose network is in memory."""

    def __init__(self, cluster: Cluster, nemesis: Nemesis) -> None:
        self._cluster = cluster
        self._nemesis = nemesis
        self._down: set[int] = set()

    def ask(self, replica: int, name: str, key: str, *arguments: Any) -> Outcome:
        try:
            return carry_out(self._cluster, name, key, list(arguments), via=replica)
        except StoreClosed:
            assert name == "get"  # the replica crashed while it looked
            return "not_done", None

    def break_something(self) -> None:
        rng, network = self._nemesis.rng, self._cluster.network
        one, other, _ = rng.sample(REPLICAS, 3)
        match rng.choice(("crash", "crash", "crash all", "isolate", "cut", "stall", "latency")):
            case "crash":
                self.crash(one)
            case "crash all":
                for replica in REPLICAS:
                    self.crash(replica)
            case "isolate":
                network.isolate(one)
                self._nemesis.for_a_while("isolate", lambda: network.reconnect(one), longest=4.0)
            case "cut":
                network.cut((one, other))
                self._nemesis.for_a_while("cut one way", lambda: network.heal((one, other)), longest=4.0)
            case "stall":
                network.stall((one, other))
                self._nemesis.for_a_while("stall", lambda: network.heal((one, other)), longest=4.0)
            case "latency":
                network.set_latency(rng.choice((0.002, 0.02, 0.1)))
                self._nemesis.for_a_while("latency", lambda: network.set_latency(0.0), longest=3.0)

    def crash(self, replica: int) -> None:
        if replica in self._down:
            return
        self._down.add(replica)
        self._cluster.crash(replica)

        def end() -> None:
            self._cluster.start(replica)
            self._down.discard(replica)

        self._nemesis.for_a_while("crash", end, longest=3.0)

    def all_well(self) -> None:
        self._cluster.network.heal()
        for replica in REPLICAS:
            wait_until(lambda replica=replica: self.ask(replica, "get", "all well")[0] == "ok", 60)


@pytest.mark.slow
@pytest.mark.timeout(LONG_SECONDS + 300)
@pytest.mark.parametrize("seconds", short_and_long(18.0, LONG_SECONDS))
def test_threads_that_crash_and_lose_their_network_stay_linearizable(tmp_path: Path, seconds: float) -> None:
    """A crash here is a power cut: what was never synced is lost."""
    nemesis = Nemesis(random.Random(SEED))
    with Cluster(tmp_path / "warm"):  # what RocksDB keeps for the whole process is there from now on
        pass
    with nothing_left():
        with Cluster(tmp_path) as cluster:
            threads = Threads(cluster, nemesis)
            threads.all_well()
            load = Load(threads.ask, SEED)
            with judged(load, nemesis, tmp_path / "history.json", SEED):
                nemesis.run(seconds / 3, threads.break_something, load)
                threads.all_well()
        no_debris(tmp_path)
    assert load.kept and len(nemesis.faults) > 2
