"""The simulator: see ``group.py``."""

from ondisk.simulation.faults import Fault, draw
from ondisk.simulation.group import Simulation
from ondisk.simulation.invariants import Violation

__all__ = ["Fault", "Simulation", "Violation", "draw"]
