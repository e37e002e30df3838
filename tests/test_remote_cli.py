"""``ondisk --endpoints ... get k``: answers, JSON and statuses as docs/clients.md says them."""

from __future__ import annotations

import io
import json
import os
import re
import shlex
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any
from unittest.mock import Mock

import jsonschema
import msgspec
import pytest

from ondisk import Compacted, RemoteClient, cli
from ondisk.cli import answers, beyond, remote
from ondisk.cli.command import main  # noqa: F401  # all commands
from ondisk.locks import Held
from tests.remote import Group, client, group
from tests.tcp import SECRET, free_addresses

__all__ = ["client", "group"]  # fixtures

DOCS = Path(__file__).parents[1] / "docs"
DOCUMENT = (DOCS / "clients.md").read_text(encoding="utf-8")
SCHEMA_FILE = DOCS / "answers.schema.json"
SCHEMA: dict[str, Any] = json.loads(SCHEMA_FILE.read_text(encoding="utf-8")) if SCHEMA_FILE.exists() else {}

Run = Callable[..., tuple[int, str, str]]


@pytest.fixture
def secret_file(tmp_path: Path) -> Path:
    file = tmp_path / "secret"
    file.write_bytes(SECRET)
    return file


@pytest.fixture
def run(
    group: Group,
    secret_file: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsysbinary: pytest.CaptureFixture[bytes],
) -> Run:
    """Run a command in this process; returns its status and what it printed."""
    monkeypatch.setattr(remote, "log_to_stderr", lambda *_, **__: None)
    monkeypatch.setenv("ONDISK_ENDPOINTS", ",".join(group.endpoints.values()))
    monkeypatch.setenv("ONDISK_SECRET_FILE", str(secret_file))

    def run(*arguments: str, stdin: bytes = b"") -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", ["ondisk", *arguments])
        monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(stdin)))
        with pytest.raises(SystemExit) as ended:
            cli.main()
        out, err = capsysbinary.readouterr()
        return int(ended.value.code or 0), out.decode("latin-1"), err.decode()

    return run


def test_the_commands_of_the_document_run_as_they_are_written(
    run: Run, tmp_path: Path, group: Group, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With the redirections of a shell, and a file that no text could be."""
    block, members = re.findall(r"```sh\n(.*?)```", DOCUMENT[DOCUMENT.index("## One command") :], re.DOTALL)
    (transaction,) = re.findall(r"```\n(equals .*?)```", DOCUMENT, re.DOTALL)
    (tmp_path / "transaction").write_text(transaction)
    (tmp_path / "file").write_bytes(b"\x00\xff\n")
    lines = [line.partition("  #")[0].strip() for line in (block + members).splitlines()]
    commands = [line for line in lines if line.startswith("ondisk")]
    assert {shlex.split(line)[1] for line in commands} >= set(remote.remote.commands)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(beyond, "_somebody_reads", iter([True, False]).__next__)
    for line in [line for line in commands if line in block]:
        line = line.replace("$ONDISK_ENDPOINTS", ",".join(group.endpoints.values()))
        words = shlex.split(line)[1:]
        stdin, target = b"put prompt 1\nget prompt\nmembers\n", None
        if "<" in words:
            stdin, words = Path(words[-1]).read_bytes(), words[:-2]
        if ">" in words:
            target, words = Path(words[-1]), words[:-2]
        status, out, err = run(*words, stdin=stdin)
        if words[:2] == ["incr", "n"]:
            assert out == "5\n"
        if words[0] == "txn":
            assert out.splitlines() == ["then", "from ok", "to ok"]
        if words[0] == "watch":
            assert re.search(r"^\d+ from = 70$", out, re.MULTILINE)
        assert (status, err) in ((0, ""), (5, ""), (5, "not found\n")), (line, err)
        if target is not None:
            target.write_bytes(out.encode("latin-1"))
            assert out == "\x00\xff\n"
    assert out.splitlines()[:2] == ["ok", "query key: prompt, result: 1"]
    assert out.splitlines()[2].startswith(f"voters: 1 ({group.endpoints[1]}), 2 (")


OBJECTS: list[tuple[str, type[msgspec.Struct], list[str], int]] = [
    ("put", answers.Put, ["put", "json/k", "v"], 0),
    ("get", answers.Get, ["get", "json/k"], 0),
    ("get", answers.Get, ["get", "json/missing"], 5),
    ("incr", answers.Incr, ["incr", "json/n", "--", "-7"], 0),
    ("cas", answers.Cas, ["cas", "json/k", "v", "w"], 0),
    ("cas", answers.Cas, ["cas", "json/k", "v", "w"], 5),
    ("cas", answers.Cas, ["cas", "--missing", "json/new", "w"], 0),
    ("scan", answers.Scan, ["scan", "json/", "--from", "json/k", "--limit", "1"], 0),
    ("watch", answers.Watch, ["watch", "json/new", "--from", "1"], 0),
    ("txn", answers.Txn, ["txn"], 0),
    ("lock", answers.Lock, ["lock", "json/lock", "--", "true"], 0),
    ("digest", answers.Digests, ["digest", "json/"], 0),
    ("delete", answers.Delete, ["delete", "json/k"], 0),
    ("dump", answers.Dump, ["dump", "all.jsonl"], 0),
    ("load", answers.Load, ["load", "all.jsonl"], 0),
    ("status", answers.Status, ["status"], 0),
    ("members", answers.Members, ["members"], 0),
    ("health", answers.Healths, ["health"], 0),
    ("the members and the leader", answers.Changed, ["add", "9", "localhost:1"], 0),
    ("the members and the leader", answers.Changed, ["move", "9", "localhost:2"], 0),
    ("the members and the leader", answers.Changed, ["remove", "9"], 0),
    ("the members and the leader", answers.Changed, ["transfer", "2"], 0),
    ("compact", answers.Compact, ["compact", "--via", "1"], 0),
    ("what failed", answers.Failure, ["replace", "9"], 3),
    ("what failed", answers.Failure, ["incr", "json/new"], 3),
]


def test_each_object_has_the_fields_of_the_document_and_no_others(
    run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In this order: each command finds what the one before has left."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(beyond, "_somebody_reads", iter([True, False]).__next__)
    table = dict(re.findall(r"^\| `?([a-z ]+?)`? \| (`.*) \|$", DOCUMENT, re.MULTILINE))
    for name, kind, command, expected in OBJECTS:
        option = ["-o", "json"]  # before the command or behind it
        status, out, _ = (
            run(*command, *option) if name == "put" else run(*option, *command, stdin=b"\n\nget json/k")
        )
        assert status == expected, command
        assert out.count("\n") == 1 and out.endswith("\n")
        decoded = msgspec.json.decode(out, type=kind)
        found: dict[str, Any] = msgspec.json.decode(out)
        assert msgspec.to_builtins(decoded) == found  # so there is no field that the class does not have
        assert names_of(found) == re.findall(r"`([a-z0-9_]+)`", table[name]), name
        jsonschema.validate(found, {**SCHEMA, "$ref": f"#/$defs/{kind.__name__}"})
    assert {kind for _, kind, _, _ in OBJECTS} >= {
        each
        for each in vars(answers).values()
        if isinstance(each, type) and issubclass(each, msgspec.Struct) and "of ``" not in str(each.__doc__)
    } - {msgspec.Struct, answers.Base64, answers.Health}


def test_the_schema_is_that_of_the_answers() -> None:
    """``python -m tests.test_remote_cli`` writes it."""
    assert schema() == SCHEMA


def schema() -> dict[str, Any]:
    """Of every object, by its name."""
    kinds = [
        each
        for each in vars(answers).values()
        if isinstance(each, type) and issubclass(each, msgspec.Struct) and each is not msgspec.Struct
    ]
    _, found = msgspec.json.schema_components(kinds, ref_template="#/$defs/{name}")
    return {"$schema": "https://json-schema.org/draft/2020-12/schema", "$defs": found}


def names_of(found: dict[str, Any]) -> list[str]:
    """The fields, and those of what is in a list, in order."""
    names = []
    for name, value in found.items():
        names.append(name)
        if isinstance(value, list) and value and isinstance(value[0], dict):
            names += value[0]
    return names


@pytest.mark.parametrize(
    ("arguments", "expected", "says"),
    [
        (["get", "status/missing"], 5, "not found"),
        (["get", "k", "--via", "9"], 6, "cannot connect: none of the endpoints is 9"),
        (["--endpoints", "localhost:1", "--timeout", "0.2", "put", "k", "v"], 6, "cannot connect"),
        (["--endpoints", "nowhere", "get", "k"], 2, "is not an address"),
        (["--endpoints", "localhost:1", "--secret-file", "/dev/null", "get", "k"], 2, "/dev/null"),
        (["nonsense"], 2, "No such command 'nonsense'"),
        (["cas", "k", "v"], 2, "cas KEY EXPECTED VALUE"),
        (["put", "k"], 2, "Missing argument"),
        (["nonsense", "--endpoints", "localhost:1"], 2, "No such command 'nonsense'"),
        (["put", "k", "-"], 3, "refused: the value has 1,048,577 bytes"),
        (["put", "", "empty"], 0, ""),
        (["lock", "status/lock", "--", "sh", "-c", "exit 7"], 7, ""),
        (["lock", "status/lock", "--", "sh", "-c", "kill -9 $$"], 137, ""),
        (["lock", "status/lock", "--", "no-such-command"], 127, "error: no-such-command: No such file"),
        (["lock", "status/lock"], 2, "Missing argument 'COMMAND...'"),
        (["add", "9", "nowhere"], 2, "is not an address"),
        (["transfer", "8"], 3, "refused"),
        (["compact"], 2, "say which replica"),
    ],
)
def test_a_status_says_what_became_of_it(run: Run, arguments: list[str], expected: int, says: str) -> None:
    status, out, err = run(*arguments, stdin=bytes((1 << 20) + 1))
    assert status == expected
    assert says in err and err.count("\n") == bool(err)
    assert out == ("ok\n" if expected == 0 else "")


@pytest.mark.parametrize(
    ("text", "expected", "says"),
    [
        ("exists txn/missing\n\nput txn/k v\n\ndelete txn/missing\nput txn/k w x\nget txn/k", 5, "w x"),
        ("equals txn/k 'w x'\n\nget txn/k", 0, "w x"),
        ("missing txn/k", 5, ""),
        ("equals txn/k", 2, "'equals txn/k' is none of equals, exists, missing, unchanged"),
        ("exists txn/k more", 2, "is none of"),
        ("\n\nexists txn/k", 2, "is none of put, delete, get"),
        ("unchanged txn/k soon", 2, "invalid literal"),
        ("\n\n\nget txn/k", 2, "three blocks"),
        ("\nput txn/k v\ndelete txn/k", 3, "writes a key once"),
    ],
)
def test_a_transaction_has_three_blocks(run: Run, text: str, expected: int, says: str) -> None:
    run("put", "txn/k", "w x")
    status, out, err = run("txn", stdin=text.encode())
    assert (status, says in out + err) == (expected, True), (out, err)


def test_a_watch_says_that_what_came_before_is_compacted(
    run: Run, client: RemoteClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(RemoteClient, "watch", Mock(side_effect=Compacted("up to entry 7")))
    assert run("watch", "--from", "1") == (5, "", "compacted: up to entry 7\n")


@pytest.mark.parametrize("end", ["SIGTERM", "SIGINT", "a closed pipe"])
def test_a_watch_ends_in_order(group: Group, client: RemoteClient, secret_file: Path, end: str) -> None:
    """Every change that it was told of is a whole line, and nothing else is said."""
    endpoints = ",".join(group.endpoints.values())
    options = ["--endpoints", endpoints, "--secret-file", str(secret_file), "-o", "json"]
    command = [sys.executable, "-m", "ondisk", *options, "watch", f"end/{end}", "--from", "1"]
    client.put(f"end/{end}", "v")
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None and process.stderr is not None
        told = json.loads(process.stdout.readline())
        assert told["pairs"] == [{"key": f"end/{end}", "value": "v"}]
        if end == "a closed pipe":
            process.stdout.close()  # while nothing is written
        else:
            process.send_signal(signal.Signals[end])
        assert process.wait(30) == (130 if end == "SIGINT" else 0)
        assert process.stderr.read().strip() == ""  # of a Ctrl-C the end of the line


def test_a_command_runs_while_nobody_else_holds_the_lock(
    run: Run, client: RemoteClient, tmp_path: Path
) -> None:
    tokens = []
    for _ in range(2):
        status, out, err = run(
            "lock", "held", "--", "sh", "-c", f"echo $ONDISK_LOCK_TOKEN > {tmp_path}/token"
        )
        assert (status, out, err) == (0, "", "")
        tokens.append(int((tmp_path / "token").read_text()))
    with client.lock("held", ttl=20, timeout=20) as held:
        status, _, err = run("lock", "held", "--wait", "0.5", "--", "touch", str(tmp_path / "ran"))
        assert status == 3 and "is held by somebody else" in err
    assert tokens[0] < tokens[1] < held.token
    assert not (tmp_path / "ran").exists()


def test_a_lock_that_is_lost_ends_the_command(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Held, "left", 0.0)
    status, _, err = run("lock", "lost", "--", "sleep", "60")
    assert status == 128 + signal.SIGTERM
    assert err == "the lock lost may be lost: the command is told to end\n"


def test_a_signal_reaches_the_command_and_the_lock_is_released(
    run: Run, client: RemoteClient, tmp_path: Path
) -> None:
    """The command ends as it likes, and its status is told."""
    script = f"trap 'exit 9' TERM; kill -TERM {os.getpid()}; while :; do sleep 0.01; done"
    assert run("lock", "signal", "--", "sh", "-c", script)[0] == 9
    assert client.get("signal") is None


def test_a_digest_says_who_holds_something_else(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    """And asks again if somebody writes between two of them."""
    run("put", "digest/k", "v")
    assert run("digest", "digest/")[1].endswith("\nthe same\n")
    real, calls = RemoteClient.digest, list[object]()

    def damaged(client: RemoteClient, prefix: str, **options: Any) -> Any:
        calls.append(options["index"])
        if len(calls) == 2:
            raise Compacted("somebody has written")
        found = real(client, prefix, **options)
        return msgspec.structs.replace(found, hash=f"{len(calls)}")

    monkeypatch.setattr(RemoteClient, "digest", damaged)
    status, out, _ = run("digest", "digest/")
    assert status == 5 and out.endswith("\nNOT the same\n")
    assert len(calls) == 5 and calls[0] is calls[2] is None and calls[3] == calls[4] is not None


def test_no_value_moves_the_cursor_unless_its_bytes_are_asked_for(run: Run) -> None:
    run("put", "cursor", "-", stdin=b"\x1b[2J\r")
    assert run("get", "cursor")[1] == "\\x1b[2J\\x0d\n"
    assert run("get", "cursor", "--raw")[1] == "\x1b[2J\r"
    run("put", "cursor", "-", stdin=b"\xff")
    assert msgspec.json.decode(run("get", "cursor", "-o", "json")[1])["value"] == {"base64": "/w=="}


def test_endpoints_that_do_not_answer_are_named(run: Run, group: Group) -> None:
    (port,) = free_addresses(1).values()
    nobody = f"localhost:{port[1]}"
    endpoints = f"{group.endpoints[1]},{nobody}"
    status, out, _ = run("--endpoints", endpoints, "status")
    assert status == 0 and f"no answer from {nobody} (Connection refused)" in out
    status, out, _ = run("--endpoints", endpoints, "health")
    assert status == 5 and f"{group.endpoints[1]} is healthy" in out and f"{nobody} is unhealthy" in out


def test_a_shell_completes_commands_and_options(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("_ONDISK_COMPLETE", "bash_complete")
    for words, found in (
        ("ondisk ge", "get"),
        ("ondisk get --st", "--stale"),
        ("ondisk ins", "inspect"),
    ):
        monkeypatch.setenv("COMP_WORDS", words)
        monkeypatch.setenv("COMP_CWORD", str(len(words.split()) - 1))
        assert f"plain,{found}" in run()[1].splitlines()


if __name__ == "__main__":
    SCHEMA_FILE.write_text(json.dumps(schema(), indent=1) + "\n", encoding="utf-8")
