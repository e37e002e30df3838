"""What only the notebooks need: the panel, the pictures, the predictions, the crashes, the exercises."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

from ondisk.lab.check import check, hint
from ondisk.lab.crash import Workload, crash, crash_everywhere, cut_wal
from ondisk.lab.crash_picture import crash_picture, crash_table, cut_picture, cut_table
from ondisk.observe import Recorder, wait_until, wait_until_level

if TYPE_CHECKING:
    from ondisk.lab.failures import Clients, RecordingClient, fail_the_leader, show_outages
    from ondisk.lab.faults import SlowDisk, slow, stall, undo_faults
    from ondisk.lab.history_picture import judge
    from ondisk.lab.lag import LagPanel, compare_absences, go_away
    from ondisk.lab.load import Load, measure_puts
    from ondisk.lab.panel import Panel
    from ondisk.lab.plots import plot_group_commit, plot_lag, plot_latencies
    from ondisk.lab.predict import Prediction
    from ondisk.lab.show import show_messages, show_status

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
    "hint",
    "judge",
    "measure_puts",
    "plot_group_commit",
    "plot_lag",
    "plot_latencies",
    "predict",
    "show_messages",
    "show_outages",
    "show_status",
    "slow",
    "stall",
    "undo_faults",
    "wait_until",
    "wait_until_level",
]

# Imported when the first of them is used: a child process that is going to be crashed needs no widgets, and
# neither does a machine without Jupyter.
_WITH_WIDGETS = {
    "Clients": "failures.Clients",
    "LagPanel": "lag.LagPanel",
    "Load": "load.Load",
    "Panel": "panel.Panel",
    "Prediction": "predict.Prediction",
    "RecordingClient": "failures.RecordingClient",
    "SlowDisk": "faults.SlowDisk",
    "compare_absences": "lag.compare_absences",
    "fail_the_leader": "failures.fail_the_leader",
    "go_away": "lag.go_away",
    "judge": "history_picture.judge",
    "measure_puts": "load.measure_puts",
    "plot_group_commit": "plots.plot_group_commit",
    "plot_lag": "plots.plot_lag",
    "plot_latencies": "plots.plot_latencies",
    "predict": "predict.Prediction",
    "show_messages": "show.show_messages",
    "show_outages": "failures.show_outages",
    "show_status": "show.show_status",
    "slow": "faults.slow",
    "stall": "faults.stall",
    "undo_faults": "faults.undo_faults",
}


def __getattr__(name: str) -> Any:
    if name not in _WITH_WIDGETS:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    found = {}  # all at once: importing a module such as predict sets an attribute of that name, too
    for each, place in _WITH_WIDGETS.items():
        module, attribute = place.split(".")
        found[each] = getattr(import_module(f"{__name__}.{module}"), attribute)
    globals().update(found)
    return found[name]
