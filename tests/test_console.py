"""The console: what a line means, and what is answered."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from ondisk import Cluster, Node, ReplicaStatus
from ondisk.cli import COMMANDS, USAGE, Console, show
from ondisk.client import Client
from ondisk.errors import Discarded, OndiskError, Rejected, ReplicaStopped, StoreClosed, Timeout
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


def test_a_missing_key_looks_like_no_value(say: Callable[[str], str]) -> None:
    """An empty value ends the line, and no value makes a line like the one for a missing key."""
    assert say("put empty ''") == "ok: an empty value"
    assert say("get empty") == "query key: empty, result: "
    assert say("put odd not found") == "ok: not found"
    assert say("get odd") == "query key: odd, result: not found"
    assert say("get missing") == "query key: missing, not found"


VALUES = [
    ("v", "v"),
    ("  two  words  ", "two  words"),
    ('{"a":1}', '{"a":1}'),
    ('{"a": "b c"}  ', '{"a": "b c"}'),
    (r"C:\temp\new", r"C:\temp\new"),
    ("ends with \\", "ends with \\"),
    ("it's", "it's"),
    ("5' 3\"", "5' 3\""),
    ("' padded '", " padded "),
    ("''", ""),
    ("'C:\\\"temp\"'", 'C:\\"temp"'),
    (r'"say \"hi\", and \\ or \n"', r'say "hi", and \ or \n'),
    ("--file", "--file"),
    ("键 \u00a0 e\u0301", "键 \u00a0 e\u0301"),
]


def test_a_value_is_the_rest_of_the_line_as_it_is_typed(say: Callable[[str], str], node: Node) -> None:
    """Quotes, backslashes and blanks are kept, unless the value is quoted; what was stored is said."""
    for typed, stored in VALUES:
        answer = say(f"PUT 'the key' {typed}\r\n")
        assert node.get("the key") == stored.encode()
        assert answer in ("ok", f"ok: {show(stored.encode()) or 'an empty value'}")
        assert say("get 'the key'") == f"query key: the key, result: {stored}"


def test_half_a_quote_is_refused(say: Callable[[str], str]) -> None:
    """Rather than stored: nobody knows what was meant."""
    for line in ("put k 'v", 'put k "v\\"', "put k 'a' and 'b'", "put k 'a'b", "put 'k v", "get 'k'k"):
        assert say(line).startswith("invalid input: ") and "quote" in say(line)
    assert say("scan") == "(no keys)"


def test_a_long_line_takes_time_in_proportion_to_its_length(say: Callable[[str], str], node: Node) -> None:
    """A megabyte in quotes and out of them; with something quadratic this test does not end."""
    for value in ("x" * 1_000_000, '{"' * 500_000, "\\" * 1_000_000):
        assert say(f"put k {value}") == f"ok: {value[:60]}... (1,000,000 bytes)"
        assert node.get("k") == value.encode()
    assert say("put k '" + "x" * 1_000_000 + "'").startswith("ok: xxx")
    for half in ("'", '"', '"\\'):
        answer = say(f"put k {half}" + "x " * 500_000)
        assert answer.startswith("invalid input: ") and len(answer) < 300
    assert len(say("x" * 1_000_000)) < 300


def test_a_value_is_read_from_a_file(say: Callable[[str], str], node: Node, tmp_path: Path) -> None:
    """Byte for byte; a file that cannot be read, or is too large for a command, stores nothing."""
    data = bytes(range(256)) * 4096
    (tmp_path / "a file").write_bytes(data)
    assert say(f"put --file '{tmp_path}/a file' k").endswith("... (1,048,576 bytes)")
    assert node.get("k") == data
    (tmp_path / "large").write_bytes(bytes(3 << 20))
    assert say(f"put --file {tmp_path}/large k").startswith("refused: ")
    assert say(f"put --file {tmp_path}/missing k").startswith(f"error: {tmp_path}/missing: cannot be read")
    assert say("put --file /dev/zero k").startswith("error: /dev/zero: is a device")
    assert say("put --file k").startswith("invalid input: usage: put key value, or put --file path key")
    assert node.get("k") == data
    assert say("put '--file' v") == "ok"
    assert node.get("--file") == b"v"


def test_an_export_replaces_no_file_unless_told_to(tmp_path: Path, node: Node) -> None:
    """The first one is kept."""
    say = Console(node, lambda: [node.status], node).execute
    file = tmp_path / "backup"
    file.write_text("mine")
    assert say(f"export {file}") == f"error: {file} is there already: export --force replaces it"
    assert file.read_text() == "mine"
    assert say(f"export --force {file}").startswith("ok: the state after entry ")
    assert file.read_bytes() != b"mine"


def test_the_worst_line_counts_for_the_exit_status(node: Node) -> None:
    """Misspelt, without effect, unknown: each is worse than the one before, and none is forgotten."""
    console = Console(node, lambda: [node.status])
    for line, status in (("put k v", 0), ("get missing", 0), ("", 0), ("putt", 2), ("incr k", 3), ("get", 3)):
        console.execute(line)
        assert console.exit_status == status, line
    console = Console(Refusing(Timeout("too late")), list)
    console.execute("put k v")
    console.execute("frobnicate")
    assert console.exit_status == 4


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
    assert say("put k a\udcff") == "refused: the value is not valid text: surrogates not allowed"
    assert say("get k\udcff") == "refused: the key is not valid text: surrogates not allowed"


def test_delete_says_whether_the_key_was_there(say: Callable[[str], str]) -> None:
    """And the key is gone afterwards."""
    say("put k v")
    assert say("delete k") == "ok"
    assert say("get k") == "query key: k, not found"
    assert say("delete k") == "ok (there was none)"


def test_incr_answers_the_new_number(say: Callable[[str], str]) -> None:
    """By one, by another number, and not on what is no number."""
    assert [say("incr n"), say("incr n 41"), say("incr n -2")] == ["1", "42", "40"]
    say("put word hello")
    assert say("incr word").startswith("refused: the value of b'word' is not a number")
    assert say(f"incr n {1 << 63}").startswith("refused: an increment is a whole number")


def test_scan_lists_keys_in_order(say: Callable[[str], str]) -> None:
    """All of them, those with a prefix, or the first few, and it says when it stopped early."""
    assert say("scan") == "(no keys)"
    for key in ("b", "a2", "a1"):
        say(f"put {key} v-{key}")
    assert say("scan") == "a1 = v-a1\na2 = v-a2\nb = v-b"
    assert say("scan a") == "a1 = v-a1\na2 = v-a2"
    assert say("scan '' 2") == "a1 = v-a1\na2 = v-a2\n(stopped at the limit of 2)"
    assert say("scan '' 0").startswith("refused: a scan's limit")
    assert say("scan --from a2") == "a2 = v-a2\nb = v-b"
    assert say("scan --from a2 a 1") == "a2 = v-a2\n(stopped at the limit of 1)"


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
        assert console.execute("replace 4").startswith("refused: replica 4 is not a member")
    finally:
        for node in nodes.values():
            node.stop()


def test_help_explains_every_command(say: Callable[[str], str]) -> None:
    """None is missing."""
    answer = say("help")
    assert all(command in answer for command in COMMANDS)
    assert "refused" in answer and "outcome unknown" in answer
    assert say("?") == say("HELP") == answer


def test_help_on_a_command_is_about_that_one(say: Callable[[str], str]) -> None:
    """All its forms, and no others."""
    assert [line.split("  ")[0] for line in say("help put").split("\n")] == [
        "put key value",
        "put --file path key",
    ]
    assert say("help quit") == say("help exit")
    assert say("help frobnicate").startswith("invalid input: there is no command 'frobnicate'")


@pytest.mark.parametrize(
    "line",
    [
        "frobnicate",
        "put",
        "put k",
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
        "scan --from k a 1 2",
        "put --file",
        "put --file a",
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
        "put 'k v",
        "help get put",
        "\x00",
    ],
)
def test_invalid_input_is_answered_with_the_usage_of_that_command(node: Node, line: str) -> None:
    """In one line. Nothing is done, and the console goes on."""
    say = Console(node, lambda: [node.status], node).execute
    answer = say(line)
    assert answer.startswith("invalid input: ") and "\n" not in answer
    command = line.split(maxsplit=1)[0] if line.strip("\0") else ""
    if command not in {name.split()[0] for name in COMMANDS}:
        assert "there is no command" in answer
    else:
        assert f"usage: {next(usage for usage in COMMANDS if usage.startswith(command))}" in answer
    assert say("scan") == "(no keys)"


def test_the_usage_begins_as_in_the_original() -> None:
    """That of Dragonboat's example."""
    assert USAGE.startswith("Usage - \nput key value\nget key\n")


def test_an_empty_line_is_nothing(say: Callable[[str], str]) -> None:
    """Pressing Enter does no harm."""
    assert say("") == say("  \t\r\n") == ""


def test_exit_is_the_end_of_the_input(say: Callable[[str], str]) -> None:
    """The only line that raises, under each of its names."""
    for line in ("exit", "quit", "Exit", " QUIT "):
        with pytest.raises(EOFError):
            say(line)


class Refusing(Client):
    """A client for whom everything goes wrong in the same way."""

    def __init__(self, error: OndiskError) -> None:
        self._error = error

    def propose_async(self, *_: Any, **__: Any) -> Any:
        raise self._error

    add_replica = remove_replica = move_replica = replace_replica = transfer_leadership = propose_async

    def read(self, *_: Any, **__: Any) -> Any:
        raise self._error

    read_async = stale_read = read


@pytest.mark.parametrize(
    ("error", "answer"),
    [
        (ReplicaStopped("it is stopped"), "not done: it is stopped"),
        (
            Timeout("too late"),
            "outcome unknown: too late: it may have happened, get the key before trying again",
        ),
        (Rejected("it makes no sense"), "refused: it makes no sense"),
        (Discarded("a new leader"), "not done: a new leader"),
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


def test_a_prompt_from_elsewhere_says_what_only_that_of_a_replica_has() -> None:
    console = Console(Refusing(Rejected("")), list)
    for line in ("compact", "export file", "found 1 2"):
        assert console.execute(line).endswith("is about one replica, and only the prompt of that one has it")
