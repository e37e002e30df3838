"""The console: what a line means, and what is answered."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from ondisk import Cluster, Node, ReplicaStatus
from ondisk.cli import COMMANDS, USAGE, Console, show
from ondisk.client import Client
from ondisk.errors import OndiskError, ReplicaStopped, StoreClosed, Timeout
from ondisk.net.memory import MemoryNetwork
from ondisk.snapshot.streaming import StreamProgress
from tests.waiting import wait_until


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
    under_way = (StreamProgress("to", 3, 1000, 5_000_000), StreamProgress("export", 0, 999, 10))
    statuses = [ReplicaStatus(1, "leader", 2, 1, streams=under_way)]
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
    """And after that has been done, the replica catches up and counts."""
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
