"""What a panel looks at: a cluster, with what is recorded of it and what was asked of it."""

from __future__ import annotations

from dataclasses import dataclass, field

from ondisk.client import Client
from ondisk.cluster import Cluster
from ondisk.linearizability.history import History
from ondisk.observe import GroupElsewhere, Looker, Recorder


@dataclass
class Watched:
    """Shared by the parts of one panel. The panel alone changes which cluster it is."""

    cluster: Cluster | GroupElsewhere
    recorder: Recorder = field(init=False)
    looker: Looker = field(init=False)
    history: History = field(default_factory=History)

    def __post_init__(self) -> None:
        self.turn_to(self.cluster)

    def turn_to(self, cluster: Cluster | GroupElsewhere) -> None:
        """Watch this one from now on."""
        self.cluster = cluster
        if isinstance(cluster, GroupElsewhere):
            self.looker = cluster.looker
            self.recorder = Recorder(cluster)
        else:
            self.looker = Looker(cluster)
            self.recorder = Recorder(cluster, looker=self.looker)

    @property
    def client(self) -> Client:
        """Whom to ask."""
        return self.cluster.client if isinstance(self.cluster, GroupElsewhere) else self.cluster

    @property
    def mine(self) -> Cluster:
        """The cluster, for what can be done to one in this process only."""
        assert isinstance(self.cluster, Cluster)
        return self.cluster
