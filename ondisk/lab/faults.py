"""Back to a healthy cluster, whatever was done to it before."""

from __future__ import annotations

from ondisk.cluster import Cluster
from ondisk.observe import wait_until_level


def undo_faults(cluster: Cluster) -> int:
    """Resume, heal, end the latency, start every replica; return the leader when all are level.

    An experiment that begins so can be run at any time, and again.
    """
    network = cluster.network
    network.resume()
    network.set_latency(0)
    network.heal()
    for replica_id in cluster.members:
        cluster.start(replica_id)
    cluster.wait_for_leader()
    wait_until_level(cluster)
    return cluster.wait_for_leader()
