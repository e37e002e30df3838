"""Every command of docs/operating.md is run as it is written, but for the addresses."""

from __future__ import annotations

import re
import shlex
import shutil
import subprocess
import sys
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest

from ondisk import Cluster, Node
from ondisk.cli.console import COMMANDS
from ondisk.net.memory import MemoryNetwork
from tests.lengths import LONG
from tests.processes import Terminal, free_ports
from tests.waiting import wait_until

MANUAL = (Path(__file__).parents[1] / "docs" / "operating.md").read_text()

# What each test below runs.
GROUP = [
    "(umask 077; head -c 32 /dev/urandom | base64 > secret)",
    "python -m ondisk --replica-id 1 --secret-file secret --members a:63001,b:63001,c:63001",
    "python -m ondisk --endpoints a:63001,b:63001,c:63001 --secret-file secret",
    "help",
    "help put",
    'put j {"a": 1}',
    "put k ' '",
    "put --file path key",
    "scan",
    "status",
    "members",
    "--replica-id 4 --addr d:63001 --join",
    "add 4 d:63001",
    "transfer 2",
    "replace 3",
    "move 3 d:63001",
    "export backup",
    "compact",
    "remove 1",
    "exit",
    "python -m ondisk --replica-id 1 --import-snapshot backup",
]
TLS = [
    "python -m ondisk --replica-id 1 --secret-file secret --members a:63001,b:63001,c:63001 "
    "--tls-cert a.pem --tls-key a-key.pem --tls-ca ca.pem",
]
ALONE = [
    "python -m ondisk check perf /var/lib/ondisk",
    "python -m ondisk --replica-id 1 < commands",
    "found 1 2",
]
IN_PYTHON = [
    "cluster.add_replica(4)",
    "cluster.remove_replica(1)",
    "cluster.transfer_leadership(2)",
    "cluster.status()[1].voters",
    "cluster.status()[3].error",
    'cluster.export_snapshot(1, "backup")',
    "cluster.rebuild(2)",
    "cluster.rebuild(3)",
    'node.move_replica(3, "d:63001")',
    "node.found([1, 2])",
    "node.hand_over()",
    "node.stop()",
]
NOT_HERE = {
    "systemctl restart ondisk",  # there is no systemd in a test
    "export --force",  # is how `export FILE` is told to replace one
}


def said() -> set[str]:
    """The commands of the manual: lines of a shell, lines at the prompt, and expressions in Python."""
    shell = "\n".join(re.findall(r"```sh\n(.*?)```", MANUAL, re.DOTALL)).replace("\\\n", " ")
    lines = {" ".join(line.partition("  #")[0].split()) for line in shell.splitlines()}
    in_text = re.sub(r"```.*?```", "", MANUAL, flags=re.DOTALL)
    spans = {span for span in re.findall(r"`([^`\n]+)`", in_text) if not span.endswith(("(...)", "[...]"))}
    for span in spans:
        words = span.split()
        usages = [usage.split() for usage in COMMANDS if usage.split()[0] == words[0]]
        needed = [len([each for each in usage if each[0] != "[" and each != "..."]) for usage in usages]
        at_prompt = bool(usages) and len(words) >= min(needed)
        with_arguments = span.startswith("python -m ondisk ") or (span.startswith("--") and len(words) > 2)
        in_python = re.match(r"(cluster|node)\.\w+(\(|\b.*\()", span) is not None
        if at_prompt or with_arguments or in_python:
            lines.add(span)
    beginnings = ("python", "(umask", "systemctl")
    names = {usage.split()[0] for usage in COMMANDS}
    return {
        line
        for line in lines
        if line.startswith((*beginnings, "cluster.", "node.", "--replica-id")) or line.split(" ")[0] in names
    }


def test_every_command_of_the_manual_is_run_by_a_test_of_this_file() -> None:
    run = {*GROUP, *TLS, *ALONE, *IN_PYTHON}
    assert said() == run | NOT_HERE


def as_long(test: Callable[..., None]) -> Callable[..., None]:
    """Real processes, for what other tests have shown one by one."""
    for mark in LONG:
        test = mark(test)
    return test


class Steps:
    """A list of commands that is worked off: each must stand in it as it is written."""

    def __init__(self, commands: list[str], cwd: Path, addresses: dict[str, str]) -> None:
        self.left = list(commands)
        self._cwd = cwd
        self._addresses = addresses

    def take(self, command: str) -> str:
        """The command, with the addresses of this test."""
        self.left.remove(command)
        return re.sub(r"\b[a-d]:63001", lambda found: self._addresses[found[0]], command)

    def shell(self, command: str, feed: str = "", **instead: str) -> str:
        """Run it in a shell, with this Python, to its end; it has to succeed. What it said on stdout.

        ``instead``: what stands where a word of it was.
        """
        line = self.take(command).replace("python ", f"{shlex.quote(sys.executable)} ")
        for old, new in instead.items():
            line = line.replace(old, new)
        done = subprocess.run(
            ["sh", "-c", line],
            cwd=self._cwd,
            input=feed,
            capture_output=True,
            text=True,
            timeout=120,
            check=False,
        )
        assert done.returncode == 0, done
        return done.stdout


def started(stack: ExitStack, line: str, cwd: Path, replica_id: int) -> Terminal:
    """A replica in a terminal, from a line that starts replica 1."""
    line = line.removeprefix("python -m ondisk ").replace("--replica-id 1", f"--replica-id {replica_id}")
    return stack.enter_context(Terminal(*shlex.split(line), cwd=cwd))


@pytest.fixture
def addresses() -> dict[str, str]:
    """Four hosts, all on loopback."""
    return {f"{host}:63001": f"127.0.0.1:{port}" for host, port in zip("abcd", free_ports(4), strict=True)}


def voters(terminal: Terminal) -> str:
    """As ``members`` tells them."""
    return terminal.ask("members").partition(";")[0]


@as_long
def test_a_group_from_its_first_start_to_an_import(tmp_path: Path, addresses: dict[str, str]) -> None:
    """Started, used, grown, mended, and brought back from a backup."""
    steps = Steps(GROUP, tmp_path, addresses)
    (tmp_path / "path").write_bytes(b"\x00\xff")
    steps.shell(GROUP[0])
    assert (tmp_path / "secret").stat().st_mode & 0o777 == 0o600
    start = steps.take(GROUP[1])
    with ExitStack() as stack:
        one, two, three = (started(stack, start, tmp_path, number) for number in (1, 2, 3))
        for each in (one, two, three):
            each.ready()

        def step(command: str) -> str:
            return one.ask(steps.take(command))

        # What a person types

        assert step('put j {"a": 1}').startswith("ok")
        assert one.ask("get j") == 'query key: j, result: {"a": 1}'
        assert step("put k ' '").startswith("ok")
        assert one.ask("get k") == "query key: k, result:  "
        assert step("put --file path key") == "ok: \\x00\\xff"
        assert one.ask("get key") == "query key: key, result: \\x00\\xff"
        for command, last in (
            ("help", "get the key before you try again.\n"),
            ("help put", "what a file holds\n"),
            ("scan", "key = \\x00\\xff\n"),
        ):
            one.say(steps.take(command))
            one.expect(last)
        steps.take("status")
        assert len(one.status()) == 3
        assert step("members").startswith("voters: 1 (")
        assert steps.shell(GROUP[2], "members\n").startswith("voters: 1 (")
        assert step("transfer 2") == "ok"

        # Other members

        joins = steps.take("--replica-id 4 --addr d:63001 --join") + start.partition("--replica-id 1")[2]
        four = started(stack, joins, tmp_path, 4)
        wait_until(lambda: "waiting until a member is told: add 4 " in four.errors)
        assert step("add 4 d:63001").startswith("ok: it catches up")
        wait_until(lambda: "4 (" in voters(one))
        three.end_input()
        assert three.wait() == 0
        assert step("replace 3").startswith("ok: its disk counts no more.")
        shutil.rmtree(tmp_path / "example-data" / "replica-3")
        started(stack, start, tmp_path, 3)
        wait_until(lambda: "3 (" in voters(one))
        addresses["d:63001"] = f"127.0.0.1:{free_ports(1)[0]}"  # a second machine of that name
        assert step("move 3 d:63001").startswith("ok")
        assert f"3 ({addresses['d:63001']})" in voters(one)

        # The state on disk

        assert step("export backup").startswith("ok: the state after entry ")
        assert step("compact").startswith("ok: the log begins after entry ")
        assert two.ask(steps.take("remove 1")) == "ok"
        two.say(steps.take("exit"))
        assert two.wait() == 0
    assert steps.shell(GROUP[-1]).startswith("replica 1 holds the state after entry ")
    assert steps.left == []
    shutil.rmtree(tmp_path / "example-data" / "replica-4")  # it belongs to the old group
    (imports,) = re.findall(r"```python\n(.*?)```", MANUAL, re.DOTALL)
    subprocess.run([sys.executable, "-c", imports], cwd=tmp_path, check=True, timeout=60)
    with Cluster(tmp_path / "example-data") as cluster:
        assert cluster.get("j") == b'{"a": 1}'


@as_long
@pytest.mark.skipif(shutil.which("openssl") is None, reason="there is no openssl")
def test_a_group_with_tls(tmp_path: Path, addresses: dict[str, str]) -> None:
    """With the certificates of the manual; the names are addresses here, as it says for those."""
    steps = Steps(TLS, tmp_path, addresses)
    (tmp_path / "secret").write_text("of sixteen bytes or more")
    new = re.search(r"```sh\n(new=.*?)```", MANUAL, re.DOTALL)
    assert new is not None
    script = new[1].replace("DNS:$host", "IP:127.0.0.1")
    subprocess.run(["sh", "-ec", script], cwd=tmp_path, check=True, capture_output=True, timeout=60)
    start = steps.take(TLS[0])
    with ExitStack() as stack:
        replicas = []
        for number, host in enumerate("abc", 1):
            own = start.replace(" a.pem", f" {host}.pem").replace(" a-key.pem", f" {host}-key.pem")
            replicas.append(started(stack, own, tmp_path, number))
        for replica in replicas:
            replica.ready()
        assert replicas[0].ask("put k v") == "ok"
        assert replicas[2].ask("get k") == "query key: k, result: v"
    assert steps.left == []


@as_long
def test_a_check_a_file_of_commands_and_a_group_that_somebody_founds(
    tmp_path: Path, addresses: dict[str, str]
) -> None:
    steps = Steps(ALONE, tmp_path, addresses)
    briefly = ". --seconds 1 || test $? = 1"  # a slow disk is no fault
    assert "an fsync takes" in steps.shell(ALONE[0], **{"/var/lib/ondisk": briefly})
    (tmp_path / "commands").write_text("put k v\nget k\n")
    alone = f"--members 127.0.0.1:{free_ports(1)[0]} --data-dir alone <"
    assert steps.shell(ALONE[1], **{"<": alone}).endswith("ok\nquery key: k, result: v\n")
    with ExitStack() as stack:
        start = f"--replica-id 1 --members {','.join([*addresses.values()][:3])}"
        one, two = (started(stack, start, tmp_path, number) for number in (1, 2))
        one.ready()
        two.ready()
        assert one.ask(steps.take("found 1 2")).startswith("ok: the group is founded when all of 1, 2 are")
        assert two.ask("put k v") == "ok"
    assert steps.left == []


@as_long
def test_the_same_in_python(
    make_cluster: Callable[..., Cluster], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    cluster = make_cluster()
    leader = cluster.wait_for_leader()
    cluster.put("k", "v")
    names: dict[str, Any] = {"cluster": cluster, "node": cluster._nodes[leader]}
    left = list(IN_PYTHON)

    def step(expression: str) -> Any:
        left.remove(expression)
        return eval(expression, names)

    step("cluster.transfer_leadership(2)")
    assert step("cluster.status()[1].voters") == (1, 2, 3)
    assert step("cluster.status()[3].error") is None
    step("cluster.add_replica(4)")
    step('node.move_replica(3, "d:63001")')
    assert step('cluster.export_snapshot(1, "backup")').bytes == (tmp_path / "backup").stat().st_size
    step("cluster.rebuild(3)")
    step("cluster.rebuild(2)")
    step("cluster.remove_replica(1)")
    assert cluster.members == (2, 3, 4) and cluster.get("k") == b"v"
    network, few = MemoryNetwork(), tmp_path / "few"
    with Node(1, [1, 2, 3], few, network) as node, Node(2, [1, 2, 3], few, network) as other:
        names["node"] = node
        step("node.found([1, 2])")
        other.wait_for_leader()
        step("node.hand_over()")
        step("node.stop()")
    assert left == []
