"""The figures of a node as the text that Prometheus scrapes.

The names are etcd's with ``ondisk_`` in front where they mean the same, so that who has run etcd knows them.
Indexes and counts begin anew with the process, which ``rate()`` understands.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from importlib.metadata import version
from itertools import accumulate

from prometheus_client import CollectorRegistry, Metric, ProcessCollector, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily
from prometheus_client.registry import Collector

from ondisk.figures import BUCKETS, Histogram
from ondisk.node import Node

_VERSION = version("ondisk")  # read once: it stands in a file
CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"


def exposition(node: Node) -> bytes:
    """All figures of a node, and those of its process, in Prometheus' text format."""
    registry = CollectorRegistry(auto_describe=False)
    registry.register(_Figures(node))
    ProcessCollector(registry=registry)
    return generate_latest(registry)


class _Figures(Collector):
    """One look at a node."""

    def __init__(self, node: Node) -> None:
        self._node = node

    def collect(self) -> Iterator[Metric]:
        """Server, disk and network, as etcd divides them."""
        yield from self._server()
        yield from self._disk()
        yield from self._network()

    def _server(self) -> Iterator[Metric]:
        node, status, figures = self._node, self._node.status, self._node.figures
        info = GaugeMetricFamily(
            "ondisk_server_info", "Always 1; who this is.", labels=("replica", "group", "disk", "version")
        )
        info.add_metric((str(node.id), status.group, status.disk, _VERSION), 1)
        yield info
        yield _gauge("server_running", "Whether the replica takes requests: not failed.", status.running)
        yield _gauge("server_has_leader", "Whether a leader is known.", status.leader_id is not None)
        yield _gauge("server_is_leader", "Whether this replica leads.", status.role == "leader")
        yield _gauge("server_is_learner", "Whether it catches up.", node.id in status.learners)
        yield _gauge("server_voters", "The members that count.", len(status.voters))
        yield _gauge("server_term", "The term of Raft.", status.term)
        yield _counter("server_leader_changes_seen", "Leaders found.", figures.leader_changes)
        yield _counter("server_proposals_committed", "The commit index.", status.commit_index)
        yield _counter("server_proposals_applied", "The applied index.", status.applied_index)
        yield _gauge("server_proposals_pending", "Requests without an answer.", status.waiting)
        failed = figures.proposals_failed
        yield _counter("server_proposals_failed", "Writes that ended with an error here.", failed)
        yield _histogram("server_apply_duration", "To apply a batch of entries.", figures.apply)

    def _disk(self) -> Iterator[Metric]:
        status, figures = self._node.status, self._node.figures
        yield _histogram("disk_wal_fsync_duration", "To make the log durable.", figures.log_fsync)
        yield _histogram(
            "disk_backend_commit_duration", "To make the state machine durable.", figures.state_fsync
        )
        kept = status.last_index - status.first_index + 1
        yield _gauge("disk_log_entries", "Entries in the log: compaction drops them.", kept)
        yield _gauge("disk_directory_size_bytes", "The replica's directory.", _size(self._node.directory))

    def _network(self) -> Iterator[Metric]:
        node, status = self._node, self._node.status
        active = _to_peers("network_active_peers", "Whether a connection to this peer is there.")
        for peer in sorted({*status.voters, *status.learners} - {node.id}):
            active.add_metric((str(peer),), peer in node.connected)
        yield active
        round_trips = _to_peers("network_peer_round_trip_time_seconds", "To the peer, as the kernel sees it.")
        for peer, seconds in sorted(node.round_trips.items()):
            round_trips.add_metric((str(peer),), seconds)
        yield round_trips
        behind = _to_peers("server_follower_lag_entries", "Entries that it lacks, if this replica leads.")
        for peer, match in sorted(status.match_index.items()):
            behind.add_metric((str(peer),), max(0, status.last_index - match))
        yield behind
        sends = [each for each in status.streams if each.kind == "to"]
        takes = [each for each in status.streams if each.kind == "from"]
        yield _gauge("network_snapshot_send_inflights", "Snapshots being sent.", len(sends))
        yield _gauge("server_snapshot_apply_in_progress", "Snapshots being taken in.", len(takes))
        yield _gauge(
            "network_snapshot_bytes", "Of snapshots under way, so far.", sum(e.bytes for e in status.streams)
        )


def _gauge(name: str, what: str, value: float) -> Metric:
    return GaugeMetricFamily(f"ondisk_{name}", what, value=value)


def _counter(name: str, what: str, value: float) -> Metric:
    return CounterMetricFamily(f"ondisk_{name}", what, value=value)


def _to_peers(name: str, what: str) -> GaugeMetricFamily:
    return GaugeMetricFamily(f"ondisk_{name}", what, labels=("To",))  # with a capital, as in etcd


def _histogram(name: str, what: str, histogram: Histogram) -> Metric:
    bounds = [*map(str, BUCKETS), "+Inf"]
    buckets = list(zip(bounds, accumulate(histogram.counts), strict=True))
    return HistogramMetricFamily(f"ondisk_{name}_seconds", what, buckets=buckets, sum_value=histogram.seconds)


def _size(directory: os.PathLike[str]) -> int:
    """Of the files in it, in bytes; what vanishes meanwhile counts as nothing."""
    total = 0
    for folder, _, files in os.walk(directory):
        for file in files:
            try:
                total += os.lstat(os.path.join(folder, file)).st_size
            except OSError:
                continue
    return total
