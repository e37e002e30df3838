"""Three real processes over TCP, killed without warning: nothing acknowledged is lost."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.lengths import short_and_long
from tests.processes import Terminal, free_ports


@pytest.fixture
def start(tmp_path: Path) -> Iterator[Callable[[int], Terminal]]:
    """Start replica 1, 2 or 3 in a process of its own; all share one data directory."""
    members = ",".join(f"127.0.0.1:{port}" for port in free_ports(3))
    running: list[Terminal] = []

    def start(replica_id: int) -> Terminal:
        terminal = Terminal("--replica-id", str(replica_id), "--members", members, cwd=tmp_path)
        running.append(terminal)
        return terminal

    yield start
    for terminal in running:
        terminal.__exit__()


def put(terminal: Terminal, key: str, value: str) -> None:
    """Put until it is acknowledged: a put may fail while a leader is elected."""
    for _ in range(10):
        if terminal.ask(f"put {key} {value}") == "ok":
            return
    raise AssertionError(f"{key} was never acknowledged; {terminal.errors}")


def everything(terminal: Terminal) -> dict[str, str]:
    """What a linearizable scan through this replica finds."""
    terminal.say("scan '' 10000\nget end-of-scan")
    lines = terminal.expect("query key: end-of-scan").splitlines()
    terminal.expect("\n")
    return dict(line.split(" = ") for line in lines if " = " in line)


def test_one_process_is_killed_and_the_others_go_on(start: Callable[[int], Terminal]) -> None:
    """Whichever it is, also the leader; it comes back and has everything."""
    terminals = {replica: start(replica) for replica in (1, 2, 3)}
    for terminal in terminals.values():
        terminal.ready()
    put(terminals[1], "k0", "v")
    for victim in (1, 2, 3):
        terminals[victim].kill()
        others = [replica for replica in (1, 2, 3) if replica != victim]
        for other in others:
            put(terminals[other], f"without-{victim}-through-{other}", "v")
        terminals[victim] = start(victim)
        terminals[victim].ready()
    found = [everything(terminals[replica]) for replica in (1, 2, 3)]
    assert found[0] == found[1] == found[2]
    assert len(found[0]) == 7


@pytest.mark.slow
@pytest.mark.timeout(600)
@pytest.mark.parametrize("rounds", short_and_long(3, 20))
def test_all_three_are_killed_during_a_load_and_every_acknowledged_put_is_there(
    start: Callable[[int], Terminal], rounds: int
) -> None:
    """SIGKILL to all three at once, again and again, with puts under way through each of them."""
    acknowledged: dict[str, str] = {}
    rng = random.Random(1)
    for round_number in range(rounds):
        terminals = {replica: start(replica) for replica in (1, 2, 3)}
        for terminal in terminals.values():
            terminal.ready()
        put(terminals[rng.choice((1, 2, 3))], f"first-{round_number}", "v")
        acknowledged[f"first-{round_number}"] = "v"
        before = {replica: len(terminal.output) for replica, terminal in terminals.items()}
        for replica, terminal in terminals.items():
            terminal.type("".join(f"put {round_number}-{replica}-{n} {n}\n" for n in range(2000)))
        wanted = rng.randrange(5, 60)
        busiest = terminals[rng.choice((1, 2, 3))]
        for _ in range(wanted):
            busiest.expect("ok\n")
        for terminal in terminals.values():
            terminal.signal(9)
        for replica, terminal in terminals.items():
            terminal.wait()
            answers = terminal.output[before[replica] :].splitlines()
            acknowledged |= {
                f"{round_number}-{replica}-{n}": str(n) for n, answer in enumerate(answers) if answer == "ok"
            }
    terminals = {replica: start(replica) for replica in (1, 2, 3)}
    for terminal in terminals.values():
        terminal.ready()
    put(terminals[1], "last", "v")
    found = [everything(terminals[replica]) for replica in (1, 2, 3)]
    assert found[0] == found[1] == found[2]
    assert acknowledged.items() <= found[0].items()
    assert len(acknowledged) > rounds * 5
