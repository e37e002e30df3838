"""The schedule of faults: each one begins at its time in a world, and ends when it has lasted long enough."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial

from ondisk.simulation.faults import Fault
from ondisk.simulation.host import BEGINNING
from ondisk.simulation.world import World

Begin = Callable[[int, Fault], None]  # the number of a fault in its schedule, and the fault


def begin_each(world: World, faults: Sequence[Fault], begin: Begin) -> None:
    """Let each fault begin at its time."""
    for number, fault in enumerate(faults):
        world.at(BEGINNING + fault.at, partial(begin, number, fault))


def end_later(world: World, number: int, fault: Fault, end: Callable[[], None]) -> None:
    """A fault has begun: end it when it has lasted long enough."""

    def ended() -> None:
        world.note("end", f"{number}: {fault.kind}")
        end()
        world.wake_all()

    world.after(fault.lasts, ended)
