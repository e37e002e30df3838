"""Watching from outside: figures, alive, ready, and the files that are made of their names."""

from __future__ import annotations

import json
import logging
import re
import socket
import subprocess
import sys
import threading
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from prometheus_client.parser import text_string_to_metric_families

from ondisk import Cluster, ConfigurationError, Node, NoLeader, PortInUse
from ondisk.figures import BUCKETS, Histogram
from ondisk.monitor import Monitor, exposition
from ondisk.net.memory import MemoryNetwork
from ondisk.net.tcp import TcpNetwork
from tests.processes import Terminal, free_ports
from tests.tcp import free_addresses
from tests.waiting import wait_until

ROOT = Path(__file__).parents[1]


def figures(text: str) -> dict[str, float]:
    """Of an exposition: samples by name, with the peer in brackets if there is one."""
    return {
        sample.name + (f"[{sample.labels['To']}]" if "To" in sample.labels else ""): sample.value
        for family in text_string_to_metric_families(text)
        for sample in family.samples
        if "le" not in sample.labels
    }


def ask(monitor: Monitor, path: str) -> tuple[int, str]:
    host, port = monitor.address
    try:
        with urllib.request.urlopen(f"http://{host}:{port}{path}", timeout=20) as answer:
            return answer.status, answer.read().decode()
    except urllib.error.HTTPError as error:
        with error:
            return error.code, error.read().decode()


@pytest.fixture(scope="module")
def scraped(tmp_path_factory: pytest.TempPathFactory) -> tuple[int, str]:
    """A group over TCP and 50 puts: its leader, and what that says."""
    directory = tmp_path_factory.mktemp("scraped")
    with Cluster(directory, network=TcpNetwork(free_addresses(3))) as cluster:
        leader = cluster.wait_for_leader()
        for number in range(50):
            cluster.put(f"k{number}", "v")
        return leader, exposition(cluster._nodes[leader]).decode()


def test_a_scrape_of_a_leader_tells_what_happened(scraped: tuple[int, str]) -> None:
    leader, text = scraped
    found = figures(text)
    assert found["ondisk_server_has_leader"] == found["ondisk_server_is_leader"] == 1
    assert found["ondisk_server_proposals_committed_total"] >= 50
    assert found["ondisk_server_proposals_applied_total"] >= 50
    assert found["ondisk_server_apply_duration_seconds_count"] >= 50
    assert found["ondisk_disk_wal_fsync_duration_seconds_count"] >= 50
    assert found["ondisk_disk_wal_fsync_duration_seconds_sum"] > 0
    assert found["ondisk_server_leader_changes_seen_total"] >= 1
    assert found["ondisk_disk_directory_size_bytes"] > 1000
    for peer in {1, 2, 3} - {leader}:
        assert found[f"ondisk_network_active_peers[{peer}]"] == 1
        assert found[f"ondisk_server_follower_lag_entries[{peer}]"] >= 0
        if sys.platform.startswith("linux"):
            assert 0 < found[f"ondisk_network_peer_round_trip_time_seconds[{peer}]"] < 10


def test_the_manual_names_the_figures_that_there_are(scraped: tuple[int, str]) -> None:
    there = {name for name in re.findall(r"^# TYPE ondisk_(\w+)", scraped[1], re.MULTILINE)}
    manual = (ROOT / "docs" / "monitoring.md").read_text().partition("## Figures")[2].partition("\n## ")[0]
    assert set(re.findall(r"^\| `(\w+)` \|", manual, re.MULTILINE)) == there


def expressions(found: Any) -> Iterator[str]:
    """Whatever is called ``expr``, however deep."""
    if isinstance(found, dict):
        yield from (value for name, value in found.items() if name == "expr")
    for each in found.values() if isinstance(found, dict) else found if isinstance(found, list) else ():
        yield from expressions(each)


@pytest.mark.parametrize("file", ["prometheus/alerts.yml", "grafana/ondisk.json"])
def test_alerts_and_dashboard_ask_for_figures_that_there_are(scraped: tuple[int, str], file: str) -> None:
    text = (ROOT / "deploy" / file).read_text()
    asked = list(expressions(json.loads(text) if file.endswith("json") else yaml.safe_load(text)))
    there = {sample.name for each in text_string_to_metric_families(scraped[1]) for sample in each.samples}
    assert len(asked) >= 8
    for expression in asked:
        named = set(re.findall(r"\b(?:ondisk|process)_\w+", expression))
        assert named and named <= there, expression


def test_the_manual_says_what_to_do_about_each_alert() -> None:
    rules = yaml.safe_load((ROOT / "deploy" / "prometheus" / "alerts.yml").read_text())
    named = [rule["alert"] for group in rules["groups"] for rule in group["rules"]]
    manual = (ROOT / "docs" / "monitoring.md").read_text()
    assert re.findall(r"^\| `(Ondisk\w+)`", manual, re.MULTILINE) == named


def test_a_group_without_a_majority_is_alive_and_not_ready(make_cluster: Callable[..., Cluster]) -> None:
    """And a scrape says so."""
    cluster = make_cluster()
    leader = cluster.wait_for_leader()
    with Monitor(cluster._nodes[leader]) as monitor:
        assert ask(monitor, "/readyz") == (200, "ok\n")
        assert "[+]linearizable_read ok\nreadyz check passed\n" in ask(monitor, "/readyz?verbose")[1]
        for other in {1, 2, 3} - {leader}:
            cluster.stop(other)
        wait_until(lambda: figures(ask(monitor, "/metrics")[1])["ondisk_server_has_leader"] == 0)
        assert figures(ask(monitor, "/metrics")[1])["ondisk_server_proposals_failed_total"] == 0
        with pytest.raises(NoLeader):
            cluster.put_async("k", "v", via=leader, timeout=0.1).result(20)  # nobody cancels it before
        wait_until(lambda: figures(ask(monitor, "/metrics")[1])["ondisk_server_proposals_failed_total"] == 1)
        assert figures(ask(monitor, "/metrics")[1])[f"ondisk_network_active_peers[{leader % 3 + 1}]"] == 0
        code, why = ask(monitor, "/readyz")
        assert code == 503 and "[-]leader failed: no leader is known\n[-]linearizable_read failed: " in why
        assert ask(monitor, "/livez") == (200, "ok\n")
        assert ask(monitor, "/livez?verbose") == (200, "[+]running ok\nlivez check passed\n")


def test_a_leader_that_is_cut_off_is_not_ready_before_it_knows(make_cluster: Callable[..., Cluster]) -> None:
    """It leads, as far as it knows, for an election timeout: what counts is whether a majority answers."""
    cluster = make_cluster()
    leader = cluster.wait_for_leader()
    with Monitor(cluster._nodes[leader]) as monitor:
        cluster.network.partition({leader}, {1, 2, 3} - {leader})
        assert ask(monitor, "/readyz")[0] == 503


def test_a_failed_replica_is_not_alive(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    node = Node(1, [1], tmp_path, MemoryNetwork())
    with Monitor(node) as monitor:
        assert ask(monitor, "/livez") == (
            503,
            "[-]running failed: stopped: it was closed\nlivez check failed\n",
        )
        with node:
            node.wait_for_leader()
            node.reject("its disk is gone")
            assert ask(monitor, "/livez")[1].startswith("[-]running failed: failed: its disk is gone\n")
            assert ask(monitor, "/readyz")[0] == 503
            assert figures(ask(monitor, "/metrics")[1])["ondisk_server_running"] == 0


def test_who_asks_for_something_else_is_told_what_there_is(tmp_path: Path) -> None:
    node = Node(1, [1], tmp_path, MemoryNetwork())
    with Monitor(node) as monitor:
        assert ask(monitor, "/") == (404, "there are /metrics, /livez and /readyz\n")
        with pytest.raises(PortInUse, match="cannot listen on 127"):
            Monitor(node, monitor.address)
        with socket.create_connection(monitor.address) as sock:  # hangs up without a word
            sock.sendall(b"GET /met")
    with pytest.raises(ConfigurationError):
        Monitor(node, ("203.0.113.1", 1))
    assert not [each for each in threading.enumerate() if each.name.startswith("ondisk-monitor")]


def test_a_histogram_counts_each_in_the_first_bucket_that_is_large_enough() -> None:
    histogram = Histogram()
    for seconds in (0.0, BUCKETS[0], BUCKETS[0] * 1.01, BUCKETS[-1] * 2):
        histogram.observe(seconds)
    assert (histogram.counts[0], histogram.counts[1], histogram.counts[-1]) == (2, 1, 1)
    assert sum(histogram.counts) == 4


def test_leaders_are_counted_when_nothing_is_logged(make_cluster: Callable[..., Cluster]) -> None:
    """And one that leads again counts again."""
    logging.getLogger("ondisk.events").setLevel(logging.ERROR)
    try:
        cluster = make_cluster()
        leader = cluster.wait_for_leader()
        (other, *_) = {1, 2, 3} - {leader}
        wait_until(lambda: cluster._nodes[other].figures.leader_changes >= 1)
        before = cluster._nodes[other].figures.leader_changes
        cluster.transfer_leadership(other)
        wait_until(lambda: cluster._nodes[other].figures.leader_changes > before)
    finally:
        logging.getLogger("ondisk.events").setLevel(logging.NOTSET)


def test_a_service_answers_while_it_serves(tmp_path: Path) -> None:
    port, metrics = free_ports(2)
    arguments = f"--replica-id 1 --members 127.0.0.1:{port} --metrics 127.0.0.1:{metrics}".split()
    with Terminal(*arguments, cwd=tmp_path) as terminal:
        terminal.ready()
        assert terminal.ask("put k v") == "ok"
        with urllib.request.urlopen(f"http://127.0.0.1:{metrics}/metrics", timeout=20) as answer:
            assert figures(answer.read().decode())["ondisk_server_is_leader"] == 1
        terminal.end_input()
        assert terminal.wait() == 0


def test_without_the_extra_it_says_what_to_install(tmp_path: Path) -> None:
    program = (
        "import sys; sys.modules['prometheus_client'] = None\n"
        f"sys.argv = ['ondisk', '--replica-id', '1', '--members', '127.0.0.1:{free_ports(1)[0]}', '--serve',"
        " '--metrics', 'localhost:1']; from ondisk.cli import main; main()"
    )
    done = subprocess.run(
        [sys.executable, "-c", program], cwd=tmp_path, capture_output=True, text=True, check=False, timeout=60
    )
    assert done.returncode == 2
    assert "error: ondisk.monitor needs prometheus-client: pip install 'ondisk[metrics]'" in done.stderr
