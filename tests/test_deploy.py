"""The files of deploy/ are what they should be, and call ondisk as it can be called."""

from __future__ import annotations

import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml

from ondisk.cli import run

ROOT = Path(__file__).parents[1]
DEPLOY = ROOT / "deploy"
COMPOSE = yaml.safe_load((DEPLOY / "compose.yaml").read_text())
KUBERNETES = {
    each["kind"]: each for each in yaml.safe_load_all((DEPLOY / "kubernetes" / "ondisk.yaml").read_text())
}
UNIT = (DEPLOY / "systemd" / "ondisk.service").read_text()
CONTAINERFILE = (DEPLOY / "Containerfile").read_text()


def options(arguments: str, secret: Path) -> dict[str, Any]:
    """What the command makes of its arguments; the secret's file is another one here."""
    words = [re.sub(r".*/secrets?(/\w+)?$", str(secret), word) for word in shlex.split(arguments)]
    return run.make_context("ondisk", words).params


def commands() -> dict[str, str]:
    """The arguments in each file, for one replica."""
    (unit,) = re.findall(r"^ExecStart=\S+ -m ondisk (.*?[^\\])$", UNIT, re.MULTILINE | re.DOTALL)
    (entrypoint,) = re.findall(
        r'^ENTRYPOINT \["python", "-m", "ondisk", (.*)\]$', CONTAINERFILE, re.MULTILINE
    )
    image = " ".join(word.strip('" ') for word in entrypoint.split(","))
    container = KUBERNETES["StatefulSet"]["spec"]["template"]["spec"]["containers"][0]
    (pod,) = container["args"]
    return {
        "systemd": unit.replace("\\\n", " "),
        **{name: f"{image} {each['command']}" for name, each in COMPOSE["services"].items()},
        "kubernetes": pod.removeprefix("exec python -m ondisk ").replace("$((${HOSTNAME##*-} + 1))", "2"),
    }


@pytest.mark.parametrize("name", commands())
def test_each_file_starts_a_replica_as_the_command_line_allows(name: str, tmp_path: Path) -> None:
    """A service with a secret, data where its volume is, and figures."""
    (tmp_path / "s").write_text("sixteen bytes or more")
    found = options(commands()[name], tmp_path / "s")
    assert found["serve"] and found["secret_file"] and found["metrics"]
    assert 1 <= found["replica_id"] <= len(found["members"].split(",")) == 3
    if name != "systemd":
        assert found["data_dir"] == Path("/data")


def test_the_compose_file_has_three_replicas_with_a_volume_and_a_number_each() -> None:
    services = COMPOSE["services"]
    assert len(services) == 3
    for number, (name, each) in enumerate(sorted(services.items()), 1):
        assert f"--replica-id {number} " in each["command"] and f"{name}:63001" in each["command"]
        assert each["volumes"] == [f"data-{number}:/data"] and f"data-{number}" in COMPOSE["volumes"]
        assert set(each["secrets"]) <= COMPOSE["secrets"].keys()
        assert (DEPLOY / each["build"]["context"] / each["build"]["dockerfile"]).exists()


def test_the_stateful_set_hangs_together() -> None:
    """Names, ports and labels that one part gives and another one uses; all replicas begin at once."""
    assert KUBERNETES.keys() == {"Service", "PodDisruptionBudget", "StatefulSet"}
    service, group = KUBERNETES["Service"], KUBERNETES["StatefulSet"]["spec"]
    pod = group["template"]
    (container,) = pod["spec"]["containers"]
    labels = pod["metadata"]["labels"]
    assert group["serviceName"] == service["metadata"]["name"]
    assert labels == service["spec"]["selector"] == group["selector"]["matchLabels"]
    assert KUBERNETES["PodDisruptionBudget"]["spec"]["selector"]["matchLabels"] == labels
    assert service["spec"]["publishNotReadyAddresses"] and group["podManagementPolicy"] == "Parallel"
    ports = {each["containerPort"] for each in container["ports"]}
    assert ports == {each["port"] for each in service["spec"]["ports"]} == {63001, 9101}
    probes = {container[f"{what}Probe"]["httpGet"]["path"] for what in ("liveness", "readiness", "startup")}
    assert probes == {"/livez", "/readyz"}
    volumes = {each["name"] for each in pod["spec"]["volumes"]}
    volumes |= {each["metadata"]["name"] for each in group["volumeClaimTemplates"]}
    assert {each["name"] for each in container["volumeMounts"]} == volumes


def test_the_containerfile_copies_what_is_there_and_runs_as_nobody_special() -> None:
    for line in re.findall(r"^COPY (.+) \S+$", CONTAINERFILE, re.MULTILINE):
        assert all((ROOT / each).exists() for each in line.split())
    named = set(re.findall(r"^([A-Z]+) ", CONTAINERFILE, re.MULTILINE))
    assert named == {"FROM", "COPY", "RUN", "USER", "VOLUME", "ENTRYPOINT"}
    user = KUBERNETES["StatefulSet"]["spec"]["template"]["spec"]["securityContext"]["runAsUser"]
    assert f"--uid {user} " in CONTAINERFILE and f"USER {user}\n" in CONTAINERFILE


@pytest.mark.skipif(shutil.which("systemd-analyze") is None, reason="there is no systemd-analyze")
def test_systemd_understands_the_unit(tmp_path: Path) -> None:
    """With a Python that is there."""
    unit = tmp_path / "ondisk.service"
    unit.write_text(UNIT.replace("/opt/ondisk/bin/python", sys.executable))
    done = subprocess.run(
        ["systemd-analyze", "verify", "--recursive-errors=no", str(unit)],
        capture_output=True,
        text=True,
        check=False,
        timeout=60,
    )
    assert done.returncode == 0 and "ondisk.service" not in done.stderr, done.stderr
