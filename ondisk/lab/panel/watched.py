"""What a panel looks at: a cluster, with what is recorded of it and what was asked of it."""

from __future__ import annotations

from dataclasses import dataclass, field

from ondisk.cluster import Cluster
from ondisk.linearizability.history import History
from ondisk.observe import Recorder


@dataclass
class Watched:
    """Shared by the parts of one panel. The panel alone changes which cluster it is."""

    cluster: Cluster
    recorder: Recorder
    history: History = field(default_factory=History)
