"""The command line: what a line means, how real processes behave, what is said when it is used wrongly."""

from __future__ import annotations

import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest

from ondisk import Cluster, Node, ReplicaStatus
from ondisk.cli import COMMANDS, USAGE, Console, show
from ondisk.client import Client
from ondisk.errors import OndiskError, ReplicaStopped, StoreClosed, Timeout
from ondisk.network import MemoryNetwork
from tests.processes import Terminal, free_ports, wait_until

LAST_LINE_OF_USAGE = "\nexit\n"

# What a line means


@pytest.fixture
def node(tmp_path: Path) -> Iterator[Node]:
    """A group of one."""
    node = Node(1, [1], tmp_path, MemoryNetwork())
    node.start()
    yield node
    node.stop()


@pytest.fixture
def say(node: Node) -> Callable[[str], str]:
    """What a console on that node answers to a line."""
    return Console(node, lambda: [node.status]).execute


def test_get_answers_as_the_original_does(say: Callable[[str], str]) -> None:
    """``put`` then ``get``: the line that Dragonboat's example prints."""
    assert say("put greeting hello") == "ok"
    assert say("get greeting") == "query key: greeting, result: hello"
    assert say("stale greeting") == say("get --stale greeting") == say("get greeting")


def test_a_missing_key_is_not_an_empty_value(say: Callable[[str], str]) -> None:
    """An empty value ends the line, a missing one is ``(none)``."""
    assert say("put empty ''") == "ok"
    assert say("get empty") == "query key: empty, result: "
    assert say("get missing") == "query key: missing, result: (none)"


def test_words_are_quoted_as_in_a_shell(say: Callable[[str], str]) -> None:
    """Spaces inside quotes belong to the key or the value."""
    assert say("put \"two words\" 'x  y'") == "ok"
    assert say("get 'two words'") == "query key: two words, result: x  y"


def test_any_text_can_be_a_key_and_a_value(say: Callable[[str], str]) -> None:
    """Unicode comes back as it went in, also what is composed of several characters."""
    for text in ("grüße", "键", "👩‍🔬", "e\u0301", "\u200fשלום"):
        assert say(f"put {text} {text}") == "ok"
        assert say(f"get {text}") == f"query key: {text}, result: {text}"


def test_bytes_that_are_not_text_are_escaped(say: Callable[[str], str], node: Node) -> None:
    """They can be stored by a program, and must not break the terminal of who looks at them."""
    node.put("raw", b"a\xff\x1b[2Jb\n")
    assert say("get raw") == r"query key: raw, result: a\xff\x1b[2Jb\x0a"
    assert show("\x7f\x85ü".encode()) == r"\x7f\x85ü"


def test_text_that_cannot_be_encoded_is_refused(say: Callable[[str], str]) -> None:
    """Input that was not UTF-8 arrives as lone surrogates."""
    assert say("put k a\udcff") == "not done: the value is not valid text: surrogates not allowed"
    assert say("get k\udcff") == "not done: the key is not valid text: surrogates not allowed"


def test_delete_says_whether_the_key_was_there(say: Callable[[str], str]) -> None:
    """And the key is gone afterwards."""
    say("put k v")
    assert say("delete k") == "ok"
    assert say("get k") == "query key: k, result: (none)"
    assert say("delete k") == "ok (there was none)"


def test_incr_answers_the_new_number(say: Callable[[str], str]) -> None:
    """By one, by another number, and not on what is no number."""
    assert [say("incr n"), say("incr n 41"), say("incr n -2")] == ["1", "42", "40"]
    say("put word hello")
    assert say("incr word") == "not done: the value of b'word' is not a number"
    assert say(f"incr n {1 << 63}").startswith("not done: an increment is a whole number")


def test_scan_lists_keys_in_order(say: Callable[[str], str]) -> None:
    """All of them, those with a prefix, or the first few, and it says when it stopped early."""
    assert say("scan") == "(no keys)"
    for key in ("b", "a2", "a1"):
        say(f"put {key} v-{key}")
    assert say("scan") == "a1 = v-a1\na2 = v-a2\nb = v-b"
    assert say("scan a") == "a1 = v-a1\na2 = v-a2"
    assert say("scan '' 2") == "a1 = v-a1\na2 = v-a2\n(stopped at the limit of 2)"
    assert say("scan '' 0").startswith("not done: a scan's limit")


def test_status_is_an_aligned_table(say: Callable[[str], str], node: Node) -> None:
    """Each number stands under its name."""
    say("put k v")
    header, row = say("status").split("\n")
    shown = dict(zip(header.split(), row.split(), strict=True))
    status = node.status
    assert shown == {
        "id": "1",
        "role": "leader",
        "term": str(status.term),
        "leader": "1",
        "last": str(status.last_index),
        "durable": str(status.durable_index),
        "commit": str(status.commit_index),
        "applied": str(status.applied_index),
        "synced": shown["synced"],  # moves by itself
    }
    assert header.index("applied") == row.index(shown["applied"], header.index("applied"))


def test_status_shows_why_a_replica_failed() -> None:
    """One row for each replica, then the errors."""
    statuses = [ReplicaStatus(1, "follower", 2, 2), ReplicaStatus(2, "failed", error="disk full")]
    answer = Console(Refusing(OndiskError()), lambda: statuses).execute("status")
    assert [line.split()[:4] for line in answer.split("\n")[1:3]] == [
        ["1", "follower", "2", "2"],
        ["2", "failed", "0", "-"],
    ]
    assert answer.endswith("\nreplica 2: disk full")


def test_help_explains_every_command(say: Callable[[str], str]) -> None:
    """None is missing."""
    answer = say("help")
    assert all(command in answer for command in COMMANDS)
    assert "(none)" in answer and "outcome unknown" in answer


@pytest.mark.parametrize(
    "line",
    [
        "frobnicate",
        "put",
        "put k",
        "put k v w",
        "get",
        "get a b",
        "stale",
        "delete",
        "incr",
        "incr n x",
        "incr n 1.5",
        "incr n 1 2",
        "scan a b",
        "scan a 1 2",
        "status now",
        "PUT k v",
        "put k 'v",
        "put k v\\",
        "\x00",
    ],
)
def test_invalid_input_is_answered_with_the_usage(say: Callable[[str], str], line: str) -> None:
    """Nothing is done, the console goes on, and the usage begins as in the original."""
    answer = say(line)
    assert answer.startswith("invalid input: ") and answer.endswith(USAGE)
    assert USAGE.startswith("Usage - \nput key value\nget key\n")
    assert say("scan") == "(no keys)"


def test_an_empty_line_is_nothing(say: Callable[[str], str]) -> None:
    """Pressing Enter does no harm."""
    assert say("") == say("  \t\r\n") == ""


def test_exit_is_the_end_of_the_input(say: Callable[[str], str]) -> None:
    """The only line that raises."""
    with pytest.raises(EOFError):
        say("exit")


class Refusing(Client):
    """A client for whom everything goes wrong in the same way."""

    def __init__(self, error: OndiskError) -> None:
        self._error = error

    def propose_async(self, *_: Any, **__: Any) -> Any:
        raise self._error

    def read(self, *_: Any, **__: Any) -> Any:
        raise self._error

    def stale_read(self, *_: Any, **__: Any) -> Any:
        raise self._error


@pytest.mark.parametrize(
    ("error", "answer"),
    [
        (ReplicaStopped("it is stopped"), "not done: it is stopped"),
        (
            Timeout("too late"),
            "outcome unknown: too late: it may have happened, get the key before trying again",
        ),
        (StoreClosed("closed"), "error: closed"),
    ],
)
def test_an_error_says_whether_a_write_may_have_happened(error: OndiskError, answer: str) -> None:
    """In one line, whatever was asked."""
    console = Console(Refusing(error), list)
    for line in ("put k v", "get k", "stale k", "delete k", "incr k", "scan"):
        assert console.execute(line) == answer


def test_a_console_on_a_cluster_goes_through_its_leader(tmp_path: Path) -> None:
    """A console needs no more than a client: a cluster is one too."""
    with Cluster(tmp_path) as cluster:
        console = Console(cluster, lambda: cluster.status().values())
        assert console.execute("put k v") == "ok"
        assert console.execute("get k") == "query key: k, result: v"
        assert len(console.execute("status").split("\n")) == 4


# Three terminals


class Terminals:
    """Three replicas in three processes on one data directory, over TCP."""

    def __init__(self, cwd: Path) -> None:
        self.cwd = cwd
        self.members = ",".join(f"127.0.0.1:{port}" for port in free_ports(3))
        self._stack = ExitStack()

    def start(self, replica_id: int, *more: str, tty: bool = False) -> Terminal:
        arguments = ("--replica-id", str(replica_id), "--members", self.members, *more)
        return self._stack.enter_context(Terminal(*arguments, cwd=self.cwd, tty=tty))

    def close(self) -> None:
        self._stack.close()


@pytest.fixture
def terminals(tmp_path: Path) -> Iterator[Terminals]:
    """Where to start replicas; what still runs at the end is killed."""
    terminals = Terminals(tmp_path)
    yield terminals
    terminals.close()


@pytest.fixture
def three(terminals: Terminals) -> dict[int, Terminal]:
    """Three replicas that have printed their usage."""
    started = {i: terminals.start(i) for i in (1, 2, 3)}
    for terminal in started.values():
        terminal.expect(LAST_LINE_OF_USAGE)
    return started


def leader_of(terminal: Terminal) -> str:
    """Whom this replica takes for the leader: an id, or ``-``."""
    terminal.say("status")
    terminal.expect("synced\n")
    return terminal.expect("\n").split()[3]


def test_what_one_terminal_puts_the_others_get(three: dict[int, Terminal]) -> None:
    """Also as the very first thing, before a leader is elected."""
    assert three[1].ask("put k 'a b'") == "ok"
    assert three[2].ask("get k") == "query key: k, result: a b"
    assert three[3].ask("get k") == "query key: k, result: a b"
    assert three[2].ask("incr n 5") == "5"
    assert three[3].ask("incr n") == "6"
    assert three[1].ask("delete k") == "ok"
    assert three[3].ask("get k") == "query key: k, result: (none)"


def test_two_terminals_go_on_when_the_leader_is_killed(
    terminals: Terminals, three: dict[int, Terminal]
) -> None:
    """``kill -9``; what was acknowledged is still there, and the killed one catches up when it is back."""
    assert three[1].ask("put before 1") == "ok"
    leader = int(leader_of(three[1]))
    three.pop(leader).kill()
    one, other = three.values()
    wait_until(lambda: leader_of(one) not in ("-", str(leader)))
    assert one.ask("get before") == "query key: before, result: 1"
    assert one.ask("put after 2") == "ok"
    assert other.ask("get after") == "query key: after, result: 2"

    back = terminals.start(leader)
    back.expect(LAST_LINE_OF_USAGE)
    assert back.ask("get before") == "query key: before, result: 1"
    assert back.ask("get after") == "query key: after, result: 2"
    assert back.ask("put again 3") == "ok"
    assert one.ask("get again") == "query key: again, result: 3"


def test_the_data_is_there_after_all_were_closed(
    terminals: Terminals, three: dict[int, Terminal]
) -> None:
    """End of input in all three, then three new processes on the same directory."""
    assert three[1].ask("put k v") == "ok"
    for terminal in three.values():
        terminal.end_input()
    assert [terminal.wait() for terminal in three.values()] == [0, 0, 0]
    again = terminals.start(1, "--data-dir", "example-data")
    terminals.start(2)
    again.expect(LAST_LINE_OF_USAGE)
    assert again.ask("get k") == "query key: k, result: v"


def test_a_pipe_waits_for_the_first_leader_and_says_so(terminals: Terminals) -> None:
    """The command comes when there is no majority, and is answered when there is one."""
    first = terminals.start(1)
    first.expect(LAST_LINE_OF_USAGE)
    first.say("put k v")
    wait_until(lambda: "waiting for a leader" in first.errors)
    assert "ok" not in first.output
    terminals.start(2)
    first.expect("ok\n")


def test_without_a_majority_a_request_ends_within_its_deadline(
    terminals: Terminals, three: dict[int, Terminal]
) -> None:
    """It is answered by one line, and the next one is taken."""
    assert three[1].ask("put k v") == "ok"
    three[2].kill()
    three[3].kill()
    answer = three[1].ask("put k w")
    assert answer.startswith(("not done: ", "outcome unknown: "))
    assert three[1].ask("get k").startswith("not done: ")
    assert three[1].ask("stale k") == "query key: k, result: v"


def test_the_original_spelling_works(terminals: Terminals, tmp_path: Path) -> None:
    """``-replicaid`` and ``-addr``; a group of one needs nobody else."""
    (port,) = free_ports(1)
    address = f"127.0.0.1:{port}"
    with Terminal("-replicaid", "1", "-addr", address, "--members", "x:1", cwd=tmp_path) as alone:
        alone.expect(f"node address: {address}\nUsage - \nput key value\nget key\n")
        alone.expect(LAST_LINE_OF_USAGE)
        assert alone.ask("put k v") == "ok"


@pytest.mark.parametrize("by_variable", [False, True], ids=["flag", "environment"])
def test_a_shared_secret_admits_those_who_know_it(
    terminals: Terminals, monkeypatch: pytest.MonkeyPatch, by_variable: bool
) -> None:
    """Two that share it make a majority. The third, who does not, is heard by nobody."""
    (terminals.cwd / "secret").write_text("  sixteen letters or more\n")
    (terminals.cwd / "other").write_text("another secret, as long")
    first = terminals.start(1, "--secret-file", "secret")
    terminals.start(2, "--secret-file", "secret", by_variable=by_variable)
    stranger = terminals.start(3, "--secret-file", "other")
    first.expect(LAST_LINE_OF_USAGE)
    assert first.ask("put k v") == "ok"
    wait_until(lambda: "shared secret" in stranger.errors)
    stranger.expect(LAST_LINE_OF_USAGE)
    stranger.say("status")
    stranger.expect("synced\n")
    assert stranger.expect("\n").split()[3] == "-"
