"""What a panel looks at: a cluster, with what is recorded of it and what was asked of it."""

from __future__ import annotations

from dataclasses import dataclass, field

from ondisk.cluster import Cluster
from ondisk.linearizability.history import History
from ondisk.observe import Looker, Recorder


@dataclass
class Watched:
    """Shared by the parts of one panel. The panel alone changes which cluster it is."""

    cluster: Cluster
    recorder: Recorder = field(init=False)
    looker: Looker = field(init=False)
    history: History = field(default_factory=History)

    def __post_init__(self) -> None:
        self.turn_to(self.cluster)

    def turn_to(self, cluster: Cluster) -> None:
        """Watch this one from now on."""
        self.cluster, self.looker = cluster, Looker(cluster)
        self.recorder = Recorder(cluster, looker=self.looker)
