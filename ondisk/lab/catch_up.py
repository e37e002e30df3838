"""A replica that catches up, as notebook 4 watches it: the experiment with its live picture."""

from __future__ import annotations

from ondisk.cluster import Cluster
from ondisk.lab.display import Output
from ondisk.lab.experiments import lagging
from ondisk.lab.experiments.lagging import Moment, kill_while_recovering, leave_behind, stamp
from ondisk.lab.pictures.catch_up import catch_up_picture, plot_catch_up
from ondisk.lab.pictures.drawing import Picture

__all__ = ["Watch", "kill_while_recovering", "leave_behind", "stamp"]


class Watch(lagging.Watch):
    """Shows a picture where ``with`` stands, which changes while its cell awaits."""

    def __init__(self, cluster: Cluster, replica_id: int, *, old: str, new: str, expected: int) -> None:
        """``expected`` is how many bytes a snapshot has, for the picture."""
        output = Output()

        def draw(moment: Moment) -> None:
            output.show(catch_up_picture(moment, replica_id, expected).html)

        super().__init__(cluster, replica_id, old=old, new=new, saw=draw)

    def plot(self) -> Picture:
        """What arrived and what was answered, over time."""
        return plot_catch_up(self.moments, self.replica_id)

    until_fed = lagging.Watch.until_caught_up  # as notebooks called it that somebody may have copied
