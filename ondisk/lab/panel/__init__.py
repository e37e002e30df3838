"""A cluster to be clicked on: put, get and every fault at the press of a button, with a live picture.

============  =====================================================================
``panel``     the panel itself: which cluster, since when, until when
``controls``  the widgets, and where they are
``screen``    what is shown: the cluster now or recorded, messages, the verdict
``requests``  what is asked of the cluster, and the history that it makes
``faults``    what is done to the cluster: crash, cut off, stall, pause
``answers``   what was answered; at most so many requests wait
``watched``   the cluster with its recorder and its history, for all of them
============  =====================================================================

Imports ``pictures``, one experiment (``faults``) and the library; imported by the notebooks.

Invariant: only the kernel's own asyncio loop touches a widget. One task polls the cluster and sets the
picture if it changed; a button starts a task that awaits the answer, so that the kernel stays free. What may
block (a read, a stop) runs in one of a few threads, which know nothing of widgets.
"""

from ondisk.lab.panel.panel import Panel

__all__ = ["Panel"]
