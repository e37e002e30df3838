"""The command line: how real processes behave in terminals, and what is said when it is used wrongly."""

from __future__ import annotations

import os
import re
import signal
import socket
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from ondisk import __version__
from tests.processes import Terminal, free_ports
from tests.terminals import (
    Terminals,
    alone,
    complaint,
    leader_of,
    ondisk,
    terminals,
    three,
)
from tests.waiting import wait_until

__all__ = ["alone", "terminals", "three"]  # fixtures


# Three terminals


def test_what_one_terminal_puts_the_others_get(three: dict[int, Terminal]) -> None:
    """Also as the very first thing, before a leader is elected."""
    assert three[1].ask("put k 'a b'") == "ok: a b"
    assert three[2].ask("get k") == "query key: k, result: a b"
    assert three[3].ask("get k") == "query key: k, result: a b"
    assert three[2].ask("incr n 5") == "5"
    assert three[3].ask("incr n") == "6"
    assert three[1].ask("delete k") == "ok"
    assert three[3].ask("get k") == "query key: k, not found"


def test_two_terminals_go_on_when_the_leader_is_killed(
    terminals: Terminals, three: dict[int, Terminal]
) -> None:
    """``kill -9``; what was acknowledged is still there, and the killed one catches up when it is back."""
    assert three[1].ask("put before 1") == "ok"
    leader = int(leader_of(three[1]))
    rows = {member: {row[0]: row for row in three[member].status()} for member in three}
    assert all(rows[member].keys() == {"1", "2", "3"} for member in three)
    assert all(rows[member][str(leader)][1] == "leader" for member in three)
    assert all(row[4] != "-" for row in rows[leader].values())  # it knows how far they are
    assert {row[1] for member in three for row in rows[member].values()} == {"leader", "follower", "voter"}
    three.pop(leader).kill()
    one, other = three.values()
    wait_until(lambda: leader_of(one) not in ("-", str(leader)))
    assert [row[1] for row in one.status() if row[0] == str(leader)] == ["away"]
    assert one.ask("get before") == "query key: before, result: 1"
    assert one.ask("put after 2") == "ok"
    assert other.ask("get after") == "query key: after, result: 2"

    back = terminals.start(leader)
    back.ready()
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
    fourth.ready()
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
    assert three[2].ask(f"add 1 {address}").startswith("refused: replica 1 was removed")
    assert three[2].ask("put k w") == "ok"

    fourth.end_input()
    assert fourth.wait() == 0
    again = terminals.start(4, "--addr", address)
    again.ready()
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
        copy.ready()
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
    again.ready()
    assert again.ask("get k") == "query key: k, result: v"


def test_a_pipe_waits_for_the_first_leader_and_says_so(terminals: Terminals) -> None:
    """The command comes when there is no majority, and is answered when there is one."""
    first = terminals.start(1)
    first.ready()
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
        alone.expect(f"node address: {address}\n")
        assert alone.ask("put k v") == "ok"


def test_a_shared_secret_admits_those_who_know_it(terminals: Terminals) -> None:
    """Two that share it, by flag and by variable, make a majority. Nobody listens to the third."""
    (terminals.cwd / "secret").write_text("  sixteen letters or more\n")
    (terminals.cwd / "same").write_text("sixteen letters or more")
    (terminals.cwd / "other").write_text("another secret, as long")
    first = terminals.start(1, "--secret-file", "secret")
    terminals.start(2, environment={"ONDISK_SECRET_FILE": "same"})
    stranger = terminals.start(3, "--secret-file", "other")
    first.ready()
    wait_until(lambda: first.ask("found 1 2").startswith("ok: "))
    assert first.ask("put k v") == "ok"
    wait_until(lambda: "shared secret" in stranger.errors)
    stranger.ready()
    assert leader_of(stranger) == "-"


# The end


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
    assert done.stdout == f"node address: localhost:{port}\nok\nquery key: a, result: 1\n"


@pytest.mark.parametrize(
    ("lines", "status"), [("putt a 1\nput a 1", 2), ("putt\nput a b\nincr a\nget a", 3)], ids=["2", "3"]
)
def test_a_script_sees_that_a_command_failed(tmp_path: Path, lines: str, status: int) -> None:
    """All lines are carried out, each is answered by one, and the worst one gives the status."""
    (port,) = free_ports(1)
    done = ondisk("--replica-id", "1", "--members", f"localhost:{port}", cwd=tmp_path, text=lines)
    assert done.returncode == status
    assert done.stdout.count("\n") == lines.count("\n") + 2
    assert done.stderr.replace("waiting for a leader\n", "") == ""


def test_the_version_is_that_of_the_package(tmp_path: Path) -> None:
    """One line, status 0, and nothing is opened."""
    done = ondisk("--version", cwd=tmp_path)
    assert (done.returncode, done.stdout) == (0, f"ondisk {__version__}\n")
    assert list(tmp_path.iterdir()) == []


def test_input_that_is_not_text_ends_nothing(alone: Callable[..., Terminal]) -> None:
    """A line of wrong bytes is refused, the next one is carried out."""
    terminal = alone()
    terminal.type(b"put k \xff\n")
    assert terminal.expect("\n").startswith("refused: the value is not valid text")
    terminal.type(b"\xff\n")
    assert terminal.expect("\n") == r"invalid input: there is no command '\udcff' (help lists them)"
    assert terminal.ask("put k v") == "ok"


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
    terminal.expect("1\r\n(")
    terminal.expect(" ms)\r\n")  # how long it took
    terminal.expect("replica 1>")
    terminal.type("\x1b[A")
    terminal.expect("incr n")
    terminal.type("\r")
    terminal.expect("2\r\n")


def test_history_outlives_the_process_and_is_for_nobody_else(
    alone: Callable[..., Terminal], tmp_path: Path
) -> None:
    """The arrow up brings back the last line of the process before; without a place for it nothing fails."""
    first = alone(tty=True)
    first.expect("replica 1>")
    first.type("incr n 41\r")
    first.expect("\n41\r\n")
    first.expect("replica 1>")
    first.end_input()
    assert first.wait() == 0
    history = tmp_path / "ondisk" / "history"
    assert history.stat().st_mode & 0o777 == 0o600
    second = alone(tty=True)
    second.expect("replica 1>")

    def brought_back() -> bool:
        second.type("\x1b[A")
        return "incr n 41" in second.output

    wait_until(brought_back)  # it is read beside the prompt
    second.type("\r")
    second.expect("82\r\n")
    second.kill()
    history.unlink()
    history.mkdir()
    third = alone(tty=True)
    third.expect("replica 1>")
    third.type("incr n 1\r")
    third.expect("83\r\n")


def test_ctrl_c_forgets_the_line_and_then_ends(alone: Callable[..., Terminal]) -> None:
    """As in a shell; on an empty line it closes the replica."""
    terminal = alone(tty=True)
    terminal.expect("replica 1>")
    terminal.type("put k never")
    terminal.expect("never")
    terminal.type("\x03")
    terminal.expect("replica 1>")
    terminal.type("get k\r")
    terminal.expect("not found")
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


def test_a_damaged_replica_says_what_to_do(tmp_path: Path) -> None:
    """Not only which file it is."""
    (port,) = free_ports(1)
    alone = ("--replica-id", "1", "--members", f"127.0.0.1:{port}")
    assert ondisk(*alone, cwd=tmp_path, text="put k v").returncode == 0
    (tmp_path / "example-data" / "replica-1" / "state" / "current").write_bytes(b"")
    line = complaint(ondisk(*alone, cwd=tmp_path), 1)
    assert "replica-1/state/current" in line and "`replace 1` at the prompt of another replica" in line


def test_missing_libraries_are_named_with_the_command_that_brings_them(tmp_path: Path) -> None:
    """They are an extra."""
    code = "import sys; sys.modules['click'] = None; import ondisk.__main__"
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, cwd=tmp_path, check=False
    )
    assert complaint(done, 2) == "error: click is missing: pip install 'ondisk[cli]'\n"


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
