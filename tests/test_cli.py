"""The command line: what a line means, how real processes behave, what is said when it is used wrongly."""

from __future__ import annotations

import os
import re
import shlex
import signal
import socket
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import IO, Any

import pytest

from ondisk import Cluster, Node, ReplicaStatus
from ondisk.cli import COMMANDS, USAGE, Console, run, show
from ondisk.client import Client
from ondisk.errors import ConfigurationError, OndiskError, ReplicaStopped, StoreClosed, Timeout
from ondisk.net.memory import MemoryNetwork
from ondisk.snapshot.transfer import Progress
from tests.processes import Terminal, free_ports
from tests.waiting import wait_until

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
    assert say("incr word").startswith("not done: the value of b'word' is not a number")
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
    assert (
        shown
        == {
            "id": "1",
            "role": "leader",
            "term": str(status.term),
            "leader": "1",
            "last": str(status.last_index),
            "durable": str(status.durable_index),
            "commit": str(status.commit_index),
            "applied": str(status.applied_index),
            "synced": shown["synced"],  # moves by itself
            "group": status.group[:8],
            "disk": status.disk[:8],
        }
    )
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


def test_status_shows_snapshots_under_way() -> None:
    """With whom, of which entry, and how far."""
    under_way = (Progress("to", 3, 1000, 5_000_000), Progress("export", 0, 999, 10))
    statuses = [ReplicaStatus(1, "leader", 2, 1, transfers=under_way)]
    answer = Console(Refusing(OndiskError()), lambda: statuses).execute("status")
    assert answer.endswith(
        "\nsnapshot of entry 1000 to replica 3: 5,000,000 bytes so far"
        "\nsnapshot of entry 999 export: 10 bytes so far"
    )


def test_status_of_a_replica_without_a_group_says_what_it_waits_for(tmp_path: Path) -> None:
    """It has a disk, no group, and an error that names who is missing."""
    node = Node(1, [1, 2, 3], tmp_path, MemoryNetwork())
    node.start()
    try:
        console = Console(node, lambda: [node.status], node)
        _, row, error = console.execute("status").split("\n")
        assert row.split()[-2:] == ["-", node.status.disk[:8]]
        assert error.startswith("replica 1: waiting for replicas 2, 3: ")
        assert console.execute("members") == "(none: it belongs to no group)"
    finally:
        node.stop()


def test_found_makes_a_group_of_those_who_are_there(tmp_path: Path) -> None:
    """Two of three: they found it, and the third one is none of its members."""
    network = MemoryNetwork()
    nodes = [Node(i, [1, 2, 3], tmp_path, network) for i in (1, 2)]
    for node in nodes:
        node.start()
    try:
        first, second = (Console(node, lambda node=node: [node.status], node) for node in nodes)  # type: ignore[misc]
        assert first.execute("found 2 3").startswith("error: replica 1 is not among the members")
        assert (
            first.execute("found 1 2") == "ok: the group is founded when all of 1, 2 are there (see status)"
        )
        wait_until(lambda: second.execute("members") == "voters: 1, 2")
        assert second.execute("put k v") == "ok"
        assert first.execute("found 1 2").startswith("error: ")  # it belongs to one now
    finally:
        for node in nodes:
            node.stop()


def test_found_is_about_one_replica(say: Callable[[str], str]) -> None:
    """A console without one of its own does not know whom to tell."""
    assert say("found 1 2").startswith("invalid input: ")


def test_replace_says_what_to_do_next(tmp_path: Path) -> None:
    """And after that has been done, the replica is fed and counts."""
    network = MemoryNetwork()
    nodes = {i: Node(i, [1, 2, 3], tmp_path, network) for i in (1, 2, 3)}
    for node in nodes.values():
        node.start()
    try:
        console = Console(nodes[1], lambda: [nodes[1].status], nodes[1])
        wait_until(lambda: nodes[1].status.leader_id)
        assert console.execute("put k v") == "ok"
        nodes[3].stop()
        answer = console.execute("replace 3")
        assert answer.startswith("ok: ") and "delete its directory replica-3" in answer
        assert console.execute("members") == "voters: 1, 2; learners: 3"
        nodes[3].erase()
        nodes[3].start()
        wait_until(lambda: console.execute("members") == "voters: 1, 2, 3")
        assert console.execute("replace 4").startswith("not done: replica 4 is not a member")
    finally:
        for node in nodes.values():
            node.stop()


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
        "add 4",
        "add 4 nowhere",
        "add four localhost:1",
        "remove",
        "transfer x",
        "move 1",
        "move 1 nowhere",
        "replace",
        "replace x",
        "found",
        "found 1 x",
        "export",
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

    add_replica = remove_replica = move_replica = replace_replica = transfer_leadership = propose_async

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

    def start(self, replica_id: int, *more: str, environment: dict[str, str] | None = None) -> Terminal:
        arguments = ("--replica-id", str(replica_id), "--members", self.members, *more)
        return self._stack.enter_context(Terminal(*arguments, cwd=self.cwd, environment=environment))

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
    terminal.expect("disk\n")
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


def test_a_fourth_terminal_joins_and_the_first_one_is_removed(
    terminals: Terminals, three: dict[int, Terminal]
) -> None:
    """It waits until it is added, by any member. Who was removed is told so, and its id stays out."""
    assert three[1].ask("put k v") == "ok"
    address = f"127.0.0.1:{free_ports(1)[0]}"
    fourth = terminals.start(4, "--addr", address, "--join")
    fourth.expect(LAST_LINE_OF_USAGE)
    wait_until(lambda: f"waiting until a member is told: add 4 {address}" in fourth.errors)
    assert three[2].ask(f"add 4 {address}").startswith("ok")
    assert fourth.ask("get k") == "query key: k, result: v"
    wait_until(lambda: fourth.ask("members").startswith("voters: 1 ("))
    at = dict(enumerate([*terminals.members.split(","), address], 1))
    everybody = "voters: " + ", ".join(f"{i} ({at[i]})" for i in (1, 2, 3, 4))
    wait_until(lambda: fourth.ask("members") == everybody)
    wait_until(lambda: three[3].ask("transfer 4") == "ok")  # it has two seconds, and the machine may be busy
    wait_until(lambda: leader_of(three[3]) == "4")

    assert fourth.ask("remove 1") == "ok"
    wait_until(lambda: fourth.ask("members") == "voters: " + everybody.partition(", ")[2])
    wait_until(lambda: "removed from the group" in three[1].ask("put x y"))
    assert three[2].ask(f"add 1 {address}").startswith("not done: replica 1 was removed")
    assert three[2].ask("put k w") == "ok"

    fourth.end_input()
    assert fourth.wait() == 0
    again = terminals.start(4, "--addr", address)
    again.expect(LAST_LINE_OF_USAGE)
    assert again.ask("get k") == "query key: k, result: w"


def test_an_exported_snapshot_is_imported_by_every_member(
    terminals: Terminals, three: dict[int, Terminal]
) -> None:
    """Into other directories: a copy of the group as it was."""
    assert three[1].ask("put k v") == "ok"
    assert three[2].ask("get k") == "query key: k, result: v"
    assert re.fullmatch(r"ok: the log begins after entry \d+", three[2].ask("compact"))
    assert re.fullmatch(r"ok: the state after entry \d+, [\d,]+ bytes", three[2].ask("export snapshot"))
    assert three[1].ask("put k later") == "ok"
    for terminal in three.values():
        terminal.kill()
    for member in (1, 2, 3):
        importing = terminals.start(member, "--data-dir", "copy", "--import-snapshot", "snapshot")
        assert importing.wait() == 0
        assert importing.output.startswith(f"replica {member} holds the state after entry ")
    copies = [terminals.start(member, "--data-dir", "copy") for member in (1, 2, 3)]
    for copy in copies:
        copy.expect(LAST_LINE_OF_USAGE)
        assert copy.ask("get k") == "query key: k, result: v"


def test_the_data_is_there_after_all_were_closed(terminals: Terminals, three: dict[int, Terminal]) -> None:
    """End of input in all three, then three new processes on the same directory."""
    assert three[1].ask("put k v") == "ok"
    for terminal in three.values():  # a new replica may vote once it knows of a commit: see docs/safety.md
        assert terminal.ask("get k") == "query key: k, result: v"
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
    wait_until(lambda: "waiting for replicas 2, 3: " in first.errors)
    terminals.start(2)
    wait_until(lambda: "waiting for replica 3: " in first.errors)
    assert "ok" not in first.output
    terminals.start(3)
    first.expect("ok\n")
    assert first.errors.count("waiting for replicas 2, 3: ") == 1  # it is not said again and again


@pytest.mark.slow
def test_without_a_majority_a_request_ends_within_its_deadline(
    terminals: Terminals, three: dict[int, Terminal]
) -> None:
    """It is answered by one line, and the next one is taken."""
    assert three[1].ask("put k v") == "ok"
    assert three[1].ask("get k") == "query key: k, result: v"  # it has applied it, even as a follower
    three[2].kill()
    three[3].kill()
    answer = three[1].ask("put k w")
    assert answer.startswith(("not done: ", "outcome unknown: "))
    assert three[1].ask("get k").startswith("not done: ")
    assert three[1].ask("stale k") == "query key: k, result: v"


def test_the_original_spelling_works(tmp_path: Path) -> None:
    """``-replicaid`` and ``-addr``; a group of one needs nobody else."""
    (port,) = free_ports(1)
    address = f"127.0.0.1:{port}"
    with Terminal("-replicaid", "1", "-addr", address, "--members", "x:1", cwd=tmp_path) as alone:
        alone.expect(f"node address: {address}\nUsage - \nput key value\nget key\n")
        alone.expect(LAST_LINE_OF_USAGE)
        assert alone.ask("put k v") == "ok"


def test_a_shared_secret_admits_those_who_know_it(terminals: Terminals) -> None:
    """Two that share it, by flag and by variable, make a majority. Nobody listens to the third."""
    (terminals.cwd / "secret").write_text("  sixteen letters or more\n")
    (terminals.cwd / "same").write_text("sixteen letters or more")
    (terminals.cwd / "other").write_text("another secret, as long")
    first = terminals.start(1, "--secret-file", "secret")
    terminals.start(2, environment={"ONDISK_SECRET_FILE": "same"})
    stranger = terminals.start(3, "--secret-file", "other")
    first.expect(LAST_LINE_OF_USAGE)
    wait_until(lambda: first.ask("found 1 2").startswith("ok: "))
    assert first.ask("put k v") == "ok"
    wait_until(lambda: "shared secret" in stranger.errors)
    stranger.expect(LAST_LINE_OF_USAGE)
    assert leader_of(stranger) == "-"


# The end


@pytest.fixture
def alone(tmp_path: Path) -> Iterator[Callable[..., Terminal]]:
    """Start a group of one, which needs nobody else to answer."""
    (port,) = free_ports(1)
    with ExitStack() as stack:

        def start(*more: str, tty: bool = False) -> Terminal:
            arguments = ("--replica-id", "1", "--members", f"127.0.0.1:{port}", *more)
            terminal = stack.enter_context(Terminal(*arguments, cwd=tmp_path, tty=tty))
            terminal.expect("\nexit")
            terminal.expect("\n")
            return terminal

        yield start


@pytest.mark.parametrize(
    ("close", "status"),
    [
        (lambda terminal: terminal.end_input(), 0),
        (lambda terminal: terminal.say("exit"), 0),
        (lambda terminal: terminal.signal(signal.SIGTERM), 0),
        (lambda terminal: terminal.signal(signal.SIGINT), 130),
    ],
    ids=["end of input", "exit", "SIGTERM", "SIGINT"],
)
def test_every_way_to_end_it_closes_cleanly(
    alone: Callable[..., Terminal], close: Callable[[Terminal], None], status: int
) -> None:
    """The port and the directory are free at once, the data is there, and nothing was complained about."""
    terminal = alone()
    assert terminal.ask("put k v") == "ok"
    close(terminal)
    assert terminal.wait() == status
    assert terminal.errors.replace("waiting for a leader\n", "").strip() == ""
    assert alone().ask("stale k") == "query key: k, result: v"


def test_a_file_of_commands_is_carried_out(tmp_path: Path) -> None:
    """Each line of a pipe is a command, the last one also without a newline; no prompt is printed."""
    (port,) = free_ports(1)
    done = ondisk(
        "--replica-id", "1", "--members", f"localhost:{port}", cwd=tmp_path, text="put a 1\n\nget a"
    )
    assert done.returncode == 0
    assert done.stdout == f"node address: localhost:{port}\n{USAGE}\nok\nquery key: a, result: 1\n"


def test_input_that_is_not_text_ends_nothing(alone: Callable[..., Terminal]) -> None:
    """A line of wrong bytes is refused, the next one is carried out."""
    terminal = alone()
    terminal.type(b"put k \xff\n")
    assert terminal.expect("\n").startswith("not done: the value is not valid text")
    terminal.type(b"\xff\n")
    assert terminal.expect("\n") == r"invalid input: '\udcff'"
    terminal.expect(LAST_LINE_OF_USAGE)
    assert terminal.ask("put k v") == "ok"


# A service


def test_a_service_reads_no_input(tmp_path: Path) -> None:
    """With standard input closed, empty, or full of commands: it runs until it is told to end."""
    (tmp_path / "commands").write_text("exit\n")
    for feed in ("<&-", "</dev/null", "<commands"):
        (port,) = free_ports(1)
        with Service(f"--replica-id 1 --members 127.0.0.1:{port} --serve {feed}", tmp_path) as service:
            service.expect(f"node address: 127.0.0.1:{port}\n")
            with pytest.raises(subprocess.TimeoutExpired):
                service.wait(0.7)
            assert service.end(signal.SIGTERM) == (0, "", "")


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_service_ends_cleanly(tmp_path: Path, number: int) -> None:
    """Status 0 for the signals of an init system and of a person; what was written is there again."""
    (port,) = free_ports(1)
    alone = f"--replica-id 1 --members 127.0.0.1:{port}"
    assert ondisk(*alone.split(), cwd=tmp_path, text="put k v").stdout.endswith("\nok\n")
    with Service(f"{alone} --serve <&-", tmp_path) as service:
        service.expect("node address: ")
        assert service.end(number)[0::2] == (0, "")
    assert "result: v" in ondisk(*alone.split(), cwd=tmp_path, text="get k").stdout


def test_services_say_who_is_missing_and_make_a_group(tmp_path: Path) -> None:
    """On stderr, for the journal. Two services and a person at the third one are a group."""
    members = ",".join(f"127.0.0.1:{port}" for port in free_ports(3))
    with ExitStack() as stack:
        one, two = (
            stack.enter_context(Service(f"--replica-id {i} --members {members} --serve <&-", tmp_path))
            for i in (1, 2)
        )
        third = stack.enter_context(Terminal("--replica-id", "3", "--members", members, cwd=tmp_path))
        third.expect(LAST_LINE_OF_USAGE)
        assert third.ask("put k v") == "ok"
        assert two.end(signal.SIGTERM)[0] == 0
        assert third.ask("get k") == "query key: k, result: v"
        status, _, errors = one.end(signal.SIGTERM)
        assert status == 0 and "waiting for replica" in errors and "a group is founded when all" in errors


def test_a_service_whose_disk_fails_ends_with_status_1(tmp_path: Path) -> None:
    """An init system cannot see a status, but it sees an exit."""
    (port,) = free_ports(1)
    alone = f"--replica-id 1 --members 127.0.0.1:{port}"
    code = (
        "import sys; from ondisk import cli, diskkv\n"
        "def fail(*_): raise OSError('the disk is gone')\n"
        "diskkv.DiskKV.sync = fail; diskkv.DiskKV.update = fail\n"
        "cli.main()"
    )
    assert ondisk(*alone.split(), cwd=tmp_path, text="put k v").returncode == 0
    done = subprocess.run(
        [sys.executable, "-c", code, *alone.split(), "--serve"],
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        cwd=tmp_path,
        timeout=60,
        check=False,
        env={**os.environ, "PYTHONPATH": str(Path(__file__).parent.parent)},
    )
    assert done.returncode == 1, done
    assert "error: replica 1 failed: OSError: the disk is gone" in done.stderr
    assert "Traceback" not in done.stderr


def test_a_closed_standard_input_needs_serve(tmp_path: Path) -> None:
    """Status 2 and one line; nothing is left in the directory. An empty input is just the end of it."""
    (port,) = free_ports(1)
    alone = f"--replica-id 1 --members 127.0.0.1:{port}"
    with Service(f"{alone} <&-", tmp_path) as closed:
        assert closed.wait() == 2
        assert closed.output == ""
        assert (
            closed.errors
            == "error: standard input is closed: to run as a service, give --serve (see --help)\n"
        )
    assert list(tmp_path.iterdir()) == []
    with Service(f"{alone} </dev/null", tmp_path) as empty:
        assert empty.wait() == 0


def test_no_file_gets_the_number_of_a_closed_standard_stream(tmp_path: Path) -> None:
    """What a library writes to the terminal must not land in the database."""
    (port,) = free_ports(1)
    alone = f"--replica-id 1 --members 127.0.0.1:{port} --serve"
    with Service(f"{alone} <&- >&- 2>&-", tmp_path) as service:
        folder = Path(f"/proc/{service.pid}/fd")
        if not folder.exists():
            pytest.skip("this system does not tell which files a process has open")
        wait_until(lambda: list(tmp_path.glob("example-data/replica-1/state/*")))
        assert [os.readlink(folder / str(number)) for number in range(3)] == ["/dev/null"] * 3
        assert service.end(signal.SIGTERM)[0] == 0


def test_bind_is_where_it_listens_and_addr_what_it_tells(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The network is given both; without ``--bind`` it is not told about one."""
    told: list[tuple[Any, Any]] = []

    def network(addresses: Any, **options: Any) -> Any:
        told.append((addresses, options))
        raise ConfigurationError("enough")

    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("ondisk.cli.serve.TcpNetwork", network)
    for more in ([], ["--bind", "0.0.0.0:7000"]):
        arguments = ["--replica-id", "2", "--members", "a:1,b:2", "--addr", "c:3", *more]
        with pytest.raises(ConfigurationError, match="enough"):
            run.main(arguments, standalone_mode=False)
    addresses = {1: ("a", 1), 2: ("c", 3)}
    assert told == [
        (addresses, {"secret": None}),
        (addresses, {"secret": None, "bind": {2: ("0.0.0.0", 7000)}}),
    ]


class Service:
    """``python -m ondisk ARGUMENTS`` as a shell starts it, with its redirections. A context manager."""

    def __init__(self, arguments: str, cwd: Path) -> None:
        cwd.mkdir(exist_ok=True)
        self._output, self._errors = (tempfile.TemporaryFile() for _ in range(2))  # noqa: SIM115
        self._process = subprocess.Popen(
            ["sh", "-c", f"exec {shlex.quote(sys.executable)} -m ondisk {arguments}"],
            stdin=subprocess.PIPE,  # open, and nobody says anything: what is to be had is in the redirection
            stdout=self._output,
            stderr=self._errors,
            cwd=cwd,
            env={**os.environ, "PYTHONPATH": str(Path(__file__).parent.parent)},
            start_new_session=True,
        )
        self.pid = self._process.pid

    @staticmethod
    def _text(file: IO[bytes]) -> str:
        return os.pread(file.fileno(), 1 << 20, 0).decode()

    @property
    def output(self) -> str:
        return self._text(self._output)

    @property
    def errors(self) -> str:
        return self._text(self._errors)

    def expect(self, text: str) -> None:
        """Wait until it has printed this."""
        wait_until(lambda: text in self.output or self._process.poll() is not None)
        assert text in self.output, (self.output, self.errors)

    def wait(self, seconds: float = 20.0) -> int:
        """Wait for its end; return its exit status."""
        return self._process.wait(seconds)

    def end(self, number: int) -> tuple[int, str, str]:
        """Send a signal; return the exit status, what was printed after the first line, and the errors."""
        self._process.send_signal(number)
        return self.wait(), self.output.partition("\n")[2], self.errors

    def __enter__(self) -> Service:
        return self

    def __exit__(self, *_: object) -> None:
        self._process.kill()
        self._process.wait()
        for file in (self._process.stdin, self._output, self._errors):
            assert file is not None
            file.close()


# A person at a terminal


def test_a_terminal_has_a_prompt_completion_and_history(alone: Callable[..., Terminal]) -> None:
    """Tab completes a command; the arrow up brings back the last line."""
    terminal = alone(tty=True)
    terminal.expect("replica 1>")
    terminal.type("pu")
    terminal.expect("pu")
    terminal.type("\t")
    terminal.expect("t")
    terminal.type("k v\r")
    terminal.expect("ok")
    terminal.expect("replica 1>")
    terminal.type("incr n\r")
    terminal.expect("1\r\n")
    terminal.expect("replica 1>")
    terminal.type("\x1b[A")
    terminal.expect("incr n")
    terminal.type("\r")
    terminal.expect("2\r\n")


def test_ctrl_c_forgets_the_line_and_then_ends(alone: Callable[..., Terminal]) -> None:
    """As in a shell; on an empty line it closes the replica."""
    terminal = alone(tty=True)
    terminal.expect("replica 1>")
    terminal.type("put k never")
    terminal.expect("never")
    terminal.type("\x03")
    terminal.expect("replica 1>")
    terminal.type("get k\r")
    terminal.expect("result: (none)")
    terminal.expect("replica 1>")
    terminal.type("\x03")
    assert terminal.wait() == 130
    assert "Traceback" not in terminal.output + terminal.errors


@pytest.mark.parametrize(
    "close",
    [lambda terminal: terminal.end_input(), lambda terminal: terminal.signal(signal.SIGTERM)],
    ids=["Ctrl-D", "SIGTERM"],
)
def test_a_prompt_ends_cleanly(alone: Callable[..., Terminal], close: Callable[[Terminal], None]) -> None:
    """With status 0, and without a word."""
    terminal = alone(tty=True)
    terminal.expect("replica 1>")
    close(terminal)
    assert terminal.wait() == 0
    assert "Traceback" not in terminal.output + terminal.errors


# Wrong use


def ondisk(*arguments: str, cwd: Path, text: str = "") -> subprocess.CompletedProcess[str]:
    """Run the command to its end."""
    return subprocess.run(
        [sys.executable, "-m", "ondisk", *arguments],
        input=text,
        capture_output=True,
        text=True,
        cwd=cwd,
        timeout=60,
        check=False,
    )


def complaint(done: subprocess.CompletedProcess[str], status: int) -> str:
    """The one line on stderr of a run that failed with this status, and said nothing else."""
    assert (done.returncode, done.stdout) == (status, ""), done
    assert done.stderr.startswith("error: ") and done.stderr.count("\n") == 1, done.stderr
    return done.stderr


@pytest.mark.parametrize(
    ("arguments", "hint"),
    [
        ("--replica-id 1 --frobnicate", "--frobnicate"),
        ("", "--replica-id"),
        ("--replica-id one", "one"),
        ("--replica-id 0", "0"),
        ("--replica-id 1 more", "more"),
        ("--replica-id 4", "--addr HOST:PORT"),
        ("--replica-id 1 --addr nowhere", "localhost:63001"),
        ("--replica-id 1 --bind nowhere", "localhost:63001"),
        ("--replica-id 1 --members a:1,b", "'b' is not an address"),
        ("--replica-id 1 --members localhost:1,localhost:1", "same address"),
        ("--replica-id 1 --members 192.0.2.1:1,192.0.2.2:1", "shared secret is required"),
        ("--replica-id 1 --secret-file missing", "missing"),
        ("--replica-id 1 --secret-file short", "at least 16 bytes"),
        ("--replica-id 1 --secret-file /dev/zero", "a device"),
        ("--replica-id 1 --log-level loud", "'warning'"),
    ],
)
def test_wrong_use_is_told_in_one_line(tmp_path: Path, arguments: str, hint: str) -> None:
    """Status 2, nothing on stdout, and nothing is left in the directory."""
    (tmp_path / "short").write_text("  too short  \n")
    line = complaint(ondisk(*arguments.split(), cwd=tmp_path), 2)
    assert hint in line and line.endswith("(see --help)\n")
    assert [path.name for path in tmp_path.iterdir()] == ["short"]


def test_a_secret_in_a_fifo_is_refused_at_once(tmp_path: Path) -> None:
    """Nobody may ever write into it, and a service would wait without a word."""
    os.mkfifo(tmp_path / "fifo")
    line = complaint(ondisk("--replica-id", "1", "--secret-file", "fifo", cwd=tmp_path), 2)
    assert "--secret-file" in line and "a FIFO" in line


def test_a_used_port_names_the_port_and_its_holder(tmp_path: Path) -> None:
    """At once, with status 1."""
    (port,) = free_ports(1)
    with socket.create_server(("127.0.0.1", port)):
        line = complaint(ondisk("--replica-id", "1", "--members", f"127.0.0.1:{port}", cwd=tmp_path), 1)
    assert f"127.0.0.1:{port}" in line and f"process {os.getpid()}" in line


def test_a_held_directory_names_its_holder(alone: Callable[..., Terminal], tmp_path: Path) -> None:
    """The same replica twice, on another port."""
    holder = alone()
    (port,) = free_ports(1)
    line = complaint(ondisk("--replica-id", "1", "--addr", f"127.0.0.1:{port}", cwd=tmp_path), 1)
    assert "replica-1 is in use by" in line and str(holder.pid) in line
    assert holder.ask("put k v") == "ok"


def test_an_unusable_data_directory_is_named(tmp_path: Path) -> None:
    """A file stands where the directory should be."""
    (tmp_path / "file").touch()
    (port,) = free_ports(1)
    line = complaint(
        ondisk("--replica-id", "1", "--addr", f"127.0.0.1:{port}", "--data-dir", "file", cwd=tmp_path), 1
    )
    assert "file/replica-1" in line and "cannot be used as a data directory" in line


def test_missing_libraries_are_named_with_the_command_that_brings_them(tmp_path: Path) -> None:
    """``click`` and ``prompt_toolkit`` are an extra."""
    for name in ("click", "prompt_toolkit"):
        code = f"import sys; sys.modules[{name!r}] = None; import ondisk.__main__"
        done = subprocess.run(
            [sys.executable, "-c", code], capture_output=True, text=True, cwd=tmp_path, check=False
        )
        assert complaint(done, 2) == f"error: {name} is missing: pip install 'ondisk[cli]'\n"


def test_a_reader_that_goes_away_is_no_accident(tmp_path: Path) -> None:
    """As with ``| head -1``: the next answer finds nobody, and the replica closes without a word."""
    (port,) = free_ports(1)
    reader, writer = os.pipe()
    os.close(reader)
    done = subprocess.run(
        [sys.executable, "-m", "ondisk", "--replica-id", "1", "--members", f"127.0.0.1:{port}"],
        stdin=subprocess.DEVNULL,
        stdout=writer,
        stderr=subprocess.PIPE,
        cwd=tmp_path,
        timeout=60,
        check=False,
    )
    os.close(writer)
    assert (done.returncode, done.stderr) == (1, b"")
