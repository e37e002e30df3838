"""``ondisk --endpoints ... get k``: answers, JSON and statuses as docs/clients.md says them."""

from __future__ import annotations

import io
import re
import shlex
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgspec
import pytest

from ondisk import cli
from ondisk.cli import answers, remote
from tests.remote import Group, group
from tests.tcp import SECRET, free_addresses

__all__ = ["group"]  # fixtures

DOCUMENT = (Path(__file__).parents[1] / "docs" / "clients.md").read_text(encoding="utf-8")

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
    (block,) = re.findall(r"## One command\n\n```sh\n(.*?)```", DOCUMENT, re.DOTALL)
    (tmp_path / "file").write_bytes(b"\x00\xff\n")
    lines = [line.partition("  #")[0].strip() for line in block.splitlines()]
    commands = [line for line in lines if line.startswith("ondisk")]
    assert {shlex.split(line)[1] for line in commands} >= set(remote.remote.commands)
    monkeypatch.chdir(tmp_path)
    for line in commands:
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
        assert (status, err) in ((0, ""), (5, ""), (5, "not found\n")), line
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
    ("delete", answers.Delete, ["delete", "json/k"], 0),
    ("dump", answers.Dump, ["dump", "all.jsonl"], 0),
    ("load", answers.Load, ["load", "all.jsonl"], 0),
    ("status", answers.Status, ["status"], 0),
    ("members", answers.Members, ["members"], 0),
    ("health", answers.Healths, ["health"], 0),
    ("what failed", answers.Failure, ["incr", "json/new"], 3),
]


def test_each_object_has_the_fields_of_the_document_and_no_others(
    run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In this order: each command finds what the one before has left."""
    monkeypatch.chdir(tmp_path)
    table = dict(re.findall(r"^\| `?([a-z ]+?)`? \| (`.*) \|$", DOCUMENT, re.MULTILINE))
    for name, kind, command, expected in OBJECTS:
        option = ["-o", "json"]  # before the command or behind it
        status, out, _ = run(*command, *option) if name == "put" else run(*option, *command)
        assert status == expected, command
        assert out.count("\n") == 1 and out.endswith("\n")
        decoded = msgspec.json.decode(out, type=kind)
        found: dict[str, Any] = msgspec.json.decode(out)
        assert msgspec.to_builtins(decoded) == found  # so there is no field that the class does not have
        assert names_of(found) == re.findall(r"`([a-z0-9_]+)`", table[name]), name
    assert {kind for _, kind, _, _ in OBJECTS} >= {
        each
        for each in vars(answers).values()
        if isinstance(each, type) and issubclass(each, msgspec.Struct) and "of ``" not in str(each.__doc__)
    } - {msgspec.Struct, answers.Base64, answers.Health}


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
        (["cas", "k", "v"], 2, "cas KEY EXPECTED VALUE"),
        (["put", "k"], 2, "Missing argument"),
        (["nonsense", "--endpoints", "localhost:1"], 2, "No such command 'nonsense'"),
        (["put", "k", "-"], 3, "refused: the value has 1,048,577 bytes"),
        (["put", "", "empty"], 0, ""),
    ],
)
def test_a_status_says_what_became_of_it(run: Run, arguments: list[str], expected: int, says: str) -> None:
    status, out, err = run(*arguments, stdin=bytes((1 << 20) + 1))
    assert status == expected
    assert says in err and err.count("\n") == bool(err)
    assert out == ("ok\n" if expected == 0 else "")


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
