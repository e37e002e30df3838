"""What only the notebooks need.

======================  =======================================================================
``panel/``              a cluster to be clicked on
``lag``                 the lag of its replicas, live
``player``              a simulated run, step by step, back and forth
``predict``             the reader's answer before an experiment
``sizes``               notebook 4: what is measured in bytes, drawn
``catch_up``            notebook 4: a replica that catches up, watched
``runs``                notebook 6: many runs of the simulator, with a bar that moves
``classroom``           a class: notebooks for nbgrader and otter-grader, and a table of submissions
``course``              how far a learner is: the map of the course, and what was predicted wrongly
``exercises/``          what is asked, and how an answer is looked at
``display``             pictures as the output of a cell
``widgets``             what all widgets do alike
``playing``             a record that is played, at some speed
``browser``             widgets with a browser part of their own
``static``              those browser parts: JavaScript and CSS
``pictures/``           values go in, SVG comes out
``experiments/``        what is made to happen; values come out
``learner``             what one learner has done, in one file
``raft_paper``          figure 2 of the Raft paper, to be read beside it
``raft_paper_replica``  the same in a real replica, and in the simulator
======================  =======================================================================

Imports everything else; nothing else imports it, nor ipywidgets, matplotlib or IPython. Inside, experiments
know no picture, pictures no widget, and neither knows what stands above it.

Invariant: a server can use ondisk without Jupyter, and a cell can be run twice.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

from ondisk.lab.exercises.check import check, hint
from ondisk.lab.experiments.crash import Workload, crash, crash_everywhere, cut_wal
from ondisk.lab.pictures.crash import crash_picture, crash_table, cut_picture, cut_table
from ondisk.observe import Recorder, wait_until, wait_until_level

if TYPE_CHECKING:
    from ondisk.lab.course import progress, summary
    from ondisk.lab.display import show_messages, show_status
    from ondisk.lab.exercises.referee import grade
    from ondisk.lab.experiments.absence import go_away
    from ondisk.lab.experiments.clients import Clients, RecordingClient
    from ondisk.lab.experiments.failures import fail_the_leader
    from ondisk.lab.experiments.faults import SlowDisk, slow, stall, undo_faults
    from ondisk.lab.experiments.leases import lease_on_a_slow_clock, measure_reads, what_contradicts
    from ondisk.lab.experiments.load import Load, measure_puts
    from ondisk.lab.lag import LagPanel
    from ondisk.lab.panel import Panel
    from ondisk.lab.pictures.costs import plot_group_commit, plot_latencies
    from ondisk.lab.pictures.failures import show_outages
    from ondisk.lab.pictures.history import judge
    from ondisk.lab.pictures.lag_plot import compare_absences, plot_lag
    from ondisk.lab.pictures.reads import show_reads
    from ondisk.lab.predict import Prediction

    predict = Prediction

__all__ = [
    "Clients",
    "LagPanel",
    "Load",
    "Panel",
    "Prediction",
    "Recorder",
    "RecordingClient",
    "SlowDisk",
    "Workload",
    "check",
    "compare_absences",
    "crash",
    "crash_everywhere",
    "crash_picture",
    "crash_table",
    "cut_picture",
    "cut_table",
    "cut_wal",
    "fail_the_leader",
    "go_away",
    "grade",
    "hint",
    "judge",
    "lease_on_a_slow_clock",
    "measure_puts",
    "measure_reads",
    "plot_group_commit",
    "plot_lag",
    "plot_latencies",
    "predict",
    "progress",
    "show_messages",
    "show_outages",
    "show_reads",
    "show_status",
    "slow",
    "stall",
    "summary",
    "undo_faults",
    "wait_until",
    "wait_until_level",
    "what_contradicts",
]

# Imported when the first of them is used: a child process that is going to be crashed needs no widgets, and
# neither does a machine without Jupyter.
_WITH_WIDGETS = {
    "Clients": "experiments.clients.Clients",
    "LagPanel": "lag.LagPanel",
    "Load": "experiments.load.Load",
    "Panel": "panel.Panel",
    "Prediction": "predict.Prediction",
    "RecordingClient": "experiments.clients.RecordingClient",
    "SlowDisk": "experiments.faults.SlowDisk",
    "compare_absences": "pictures.lag_plot.compare_absences",
    "fail_the_leader": "experiments.failures.fail_the_leader",
    "go_away": "experiments.absence.go_away",
    "grade": "exercises.referee.grade",
    "judge": "pictures.history.judge",
    "lease_on_a_slow_clock": "experiments.leases.lease_on_a_slow_clock",
    "measure_puts": "experiments.load.measure_puts",
    "measure_reads": "experiments.leases.measure_reads",
    "plot_group_commit": "pictures.costs.plot_group_commit",
    "plot_lag": "pictures.lag_plot.plot_lag",
    "plot_latencies": "pictures.costs.plot_latencies",
    "predict": "predict.Prediction",
    "progress": "course.progress",
    "show_messages": "display.show_messages",
    "show_outages": "pictures.failures.show_outages",
    "show_reads": "pictures.reads.show_reads",
    "show_status": "display.show_status",
    "slow": "experiments.faults.slow",
    "stall": "experiments.faults.stall",
    "summary": "course.summary",
    "undo_faults": "experiments.faults.undo_faults",
    "what_contradicts": "experiments.leases.what_contradicts",
}


def __getattr__(name: str) -> Any:
    if name not in _WITH_WIDGETS:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    found = {}  # all at once: importing a module such as predict sets an attribute of that name, too
    for each, place in _WITH_WIDGETS.items():
        module, _, attribute = place.rpartition(".")
        found[each] = getattr(import_module(f"{__name__}.{module}"), attribute)
    globals().update(found)
    return found[name]
