"""What only the notebooks need: the panel, the pictures, the predictions."""

from ondisk.lab.faults import undo_faults
from ondisk.lab.panel import Panel
from ondisk.lab.predict import Prediction
from ondisk.lab.show import show_messages, show_status
from ondisk.observe import Recorder, wait_until, wait_until_level

predict = Prediction

__all__ = [
    "Panel",
    "Prediction",
    "Recorder",
    "predict",
    "show_messages",
    "show_status",
    "undo_faults",
    "wait_until",
    "wait_until_level",
]
