"""The adapter for Maelstrom: its protocol, from recorded messages, and three nodes on a network like its."""

from __future__ import annotations

import heapq
import itertools
import json
import os
import random
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from ondisk.linearizability import KEY_VALUE, History, check
from ondisk.maelstrom import Adapter
from tests.lengths import short_and_long

# As Maelstrom writes them, and its documentation shows them.
RECORDED = """
{"id":0,"src":"c0","dest":"n1","body":{"type":"init","node_id":"n1","node_ids":["n1"],"msg_id":1}}
{"id":2,"src":"c6","dest":"n1","body":{"key":0,"type":"read","msg_id":1}}
{"id":4,"src":"c6","dest":"n1","body":{"key":0,"value":3,"type":"write","msg_id":2}}
{"id":6,"src":"c6","dest":"n1","body":{"key":0,"type":"read","msg_id":3}}
{"id":8,"src":"c7","dest":"n1","body":{"key":0,"from":1,"to":4,"type":"cas","msg_id":1}}
{"id":10,"src":"c7","dest":"n1","body":{"key":0,"from":3,"to":4,"type":"cas","msg_id":2}}
{"id":12,"src":"c7","dest":"n1","body":{"key":9,"from":3,"to":4,"type":"cas","msg_id":3}}
{"id":14,"src":"c8","dest":"n1","body":{"key":{"b":1,"a":[2]},"value":{"y":null,"x":"ä"},"type":"write","msg_id":1}}
{"id":16,"src":"c8","dest":"n1","body":{"key":{"a":[2],"b":1},"type":"read","msg_id":2}}
{"id":18,"src":"c8","dest":"n1","body":{"type":"txn","msg_id":3}}
{"id":20,"src":"c8","dest":"n1","body":{"type":"write","key":1,"msg_id":4}}
"""
ANSWERS = [
    ("c0", 1, "init_ok", None),
    ("c6", 1, "error", 20),
    ("c6", 2, "write_ok", None),
    ("c6", 3, "read_ok", 3),
    ("c7", 1, "error", 22),
    ("c7", 2, "cas_ok", None),
    ("c7", 3, "error", 20),
    ("c8", 1, "write_ok", None),
    ("c8", 2, "read_ok", {"y": None, "x": "ä"}),
    ("c8", 3, "error", 10),
    ("c8", 4, "error", 12),
]


def test_recorded_messages_are_answered_over_standard_input_and_output(tmp_path: Path) -> None:
    """One at a time, as a client of Maelstrom asks; and a second life knows what the first has stored."""
    first, *rest = RECORDED.strip().splitlines()
    assert talk([first, *rest], tmp_path / "data") == ANSWERS
    again = talk(
        [first, json.dumps({"src": "c1", "dest": "n1", "body": {"type": "read", "key": 0, "msg_id": 7}})],
        tmp_path / "data",
    )
    assert again[-1] == ("c1", 7, "read_ok", 4)


def talk(lines: list[str], directory: Path) -> list[tuple[str, int, str, Any]]:
    """What the adapter answers to each line: to whom, to which message, its type, and value or code."""
    process = subprocess.Popen(
        [sys.executable, "-m", "ondisk.maelstrom", str(directory)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    assert process.stdin is not None and process.stdout is not None
    answers = []
    with process:
        for line in lines:
            process.stdin.write(line + "\n")
            process.stdin.flush()
            answer = json.loads(process.stdout.readline())
            body = answer["body"]
            assert answer["src"] == "n1"
            answers.append(
                (answer["dest"], body["in_reply_to"], body["type"], body.get("value", body.get("code")))
            )
        process.stdin.close()
        assert process.wait(20) == 0
    return answers


class Network:
    """Three adapters in virtual time, on a network that delays, reorders, loses and cuts, as Maelstrom's."""

    def __init__(self, directory: Path, seed: int) -> None:
        self.now = 1000.0
        self.rng = random.Random(seed)
        self.cut: set[frozenset[str]] = set()
        self.answers: list[dict[str, Any]] = []
        self._order = itertools.count()
        self._under_way: list[tuple[float, int, dict[str, Any]]] = []
        self._null = os.open(os.devnull, os.O_WRONLY)
        self.names = ["n1", "n2", "n3"]
        self.nodes = {
            name: Adapter(
                directory / name,
                self.send,
                wake=self._null,
                clock=lambda: self.now,
                rng=random.Random(f"{seed} {name}"),
            )
            for name in self.names
        }
        for name, node in self.nodes.items():
            node.receive(
                {
                    "src": "c0",
                    "dest": name,
                    "body": {"type": "init", "msg_id": 1, "node_id": name, "node_ids": self.names},
                }
            )

    def send(self, message: dict[str, Any]) -> None:
        between_nodes = message["dest"] in self.nodes and message["src"] in self.nodes
        if between_nodes and self.rng.random() < 0.02:
            return
        latency = self.rng.expovariate(200.0)  # 5 ms in the mean, and some much longer
        heapq.heappush(self._under_way, (self.now + latency, next(self._order), message))

    def run(self, seconds: float) -> None:
        """Let time pass."""
        end = self.now + seconds
        while self.now < end:
            self.now = min(end, self.now + 0.002)
            while self._under_way and self._under_way[0][0] <= self.now:
                message = heapq.heappop(self._under_way)[2]
                if frozenset((message["src"], message["dest"])) in self.cut:
                    continue
                if (node := self.nodes.get(message["dest"])) is not None:
                    node.receive(message)
                else:
                    self.answers.append({**message, "at": self.now})
            for node in self.nodes.values():
                node.step()

    def close(self) -> None:
        for node in self.nodes.values():
            node.close()
        os.close(self._null)


@pytest.mark.parametrize("seeds", short_and_long(range(2), range(2, 12)))
def test_what_clients_of_three_nodes_see_is_linearizable(tmp_path: Path, seeds: range) -> None:
    """Reads, writes and compare-and-set of a few keys, while links are cut; most of it succeeds."""
    for seed in seeds:
        done = clients_on(Network(tmp_path / str(seed), seed))
        assert done > 100


def clients_on(network: Network) -> int:
    """Nine clients, three to each node; how many operations have succeeded."""
    history = History()
    rng = network.rng
    message_ids = itertools.count(2)
    waiting: dict[str, tuple[int, str]] = {}
    succeeded = 0
    for turn in range(300):
        if turn % 60 == 30:
            alone = rng.choice(network.names)
            network.cut = {frozenset((alone, other)) for other in network.names if other != alone}
        elif turn % 60 == 0:
            network.cut = set()
        for number in range(9):
            client = f"c{number + 1}"
            if client in waiting:
                continue
            body, called = request(rng, history, client, network.now)
            waiting[client] = called
            node = network.nodes[network.names[number % 3]]
            node.receive({"src": client, "dest": node.name, "body": {**body, "msg_id": next(message_ids)}})
        network.run(0.05)
        for answer in network.answers:
            if answer["dest"] == "c0":
                continue
            called_number, kind = waiting.pop(answer["dest"])
            succeeded += conclude(history, called_number, kind, answer["body"], answer["at"])
        network.answers.clear()
    for called_number, _ in waiting.values():
        history.unknown(called_number, network.now)
    network.close()
    verdict = check(history.operations, KEY_VALUE)
    assert verdict.linearizable, verdict
    return succeeded


def request(
    rng: random.Random, history: History, client: str, now: float
) -> tuple[dict[str, Any], tuple[int, str]]:
    """A body for Maelstrom's lin-kv, and the call in the history."""
    key, kind = rng.randrange(3), rng.choice(["read", "write", "cas"])
    one, other = rng.randrange(4), rng.randrange(4)
    if kind == "read":
        return {"type": "read", "key": key}, (history.begin(client, "get", str(key), at=now), kind)
    if kind == "write":
        number = history.begin(client, "put", str(key), str(one), at=now)
        return {"type": "write", "key": key, "value": one}, (number, kind)
    number = history.begin(client, "compare_and_set", str(key), str(one), str(other), at=now)
    return {"type": "cas", "key": key, "from": one, "to": other}, (number, kind)


def conclude(history: History, number: int, kind: str, body: dict[str, Any], now: float) -> bool:
    """Write down an answer, and say whether it was none of an outage."""
    code = body.get("code")
    if code == 13:
        history.unknown(number, now)
    elif code == 11:
        history.not_done(number)
    elif kind == "read":
        history.ok(number, None if code == 20 else str(body["value"]), now)
    elif kind == "write":
        history.ok(number, None, now)
    else:
        history.ok(number, code is None, now)
    return code not in (11, 13)
