"""The host of one replica in virtual time: its clock, disk, processor and power supply, which may fail."""

from __future__ import annotations

import errno
import threading
from collections.abc import Callable
from functools import partial
from typing import TYPE_CHECKING, NoReturn

from ondisk.testing.crashing import CrashingDisk

if TYPE_CHECKING:
    from ondisk.simulation.world import World

_STEP_SECONDS = 0.0002  # processor time of a step
BEGINNING = 1000.0  # the first moment, in seconds


class PowerCut(BaseException):
    """Ends the step in the middle of which the power failed."""


class SkewedClock:
    """A clock that does not run at the same speed as the others, and never backwards."""

    def __init__(self, time: Callable[[], float], shows: float) -> None:
        self._time = time
        self._since = time()
        self._shown = shows
        self.rate = 1.0

    def __call__(self) -> float:
        """Its own seconds."""
        return self._shown + (self._time() - self._since) * self.rate

    def run_at(self, rate: float) -> None:
        """From now on one second of the others is ``rate`` seconds here."""
        self._shown, self._since = self(), self._time()
        self.rate = rate


class SimulatedDisk(CrashingDisk):
    """A real disk whose syncs may take long, and that may fail or lose its power at one of its points."""

    def __init__(self, host: Host) -> None:
        super().__init__(None, self._cut_power)
        self.sync_seconds = 0.0
        self.fail_in: int | None = None  # so many points from now there is an error
        self.failed = False
        self.surviving = 0.0  # the part of what was not synced that outlives a power cut
        self._host = host
        self._thread = threading.get_ident()

    def sync(self, flush: Callable[[], None]) -> None:
        flush()
        if threading.get_ident() == self._thread:  # work in the background keeps nobody waiting
            self._host.be_busy(self.sync_seconds)

    def survivors(self, unsynced: int) -> int:
        return int(self.surviving * unsynced)

    def reach(self, point: str) -> None:
        if threading.get_ident() != self._thread:
            return
        if self.fail_in is not None:
            self.fail_in -= 1
            if self.fail_in < 0:
                self.fail_in = None
                self.arm(None)
                self.failed = True
                self._host.world.counts["disk error"] += 1
                raise OSError(errno.EIO, "Input/output error", point)
        super().reach(point)

    def _cut_power(self, point: str) -> NoReturn:
        self._host.world.counts["crash in a write"] += 1
        self._host.cut_power()
        raise PowerCut(point)

    def mend(self) -> None:
        """Nothing is wrong with it any more."""
        self.arm(None)
        self.fail_in = None
        self.failed = False
        self.sync_seconds = 0.0


class Host:
    """Where one replica runs: a clock, a disk, a processor, and a power supply."""

    def __init__(self, member: int, world: World) -> None:
        self.member = member
        self.world = world
        self.clock = SkewedClock(lambda: world.now, BEGINNING + 100 * world.rng("clock", member).random())
        self.disk = SimulatedDisk(self)
        self.busy_until = 0.0
        self.paused = False
        self.lives = 0  # how often it was started
        self.wake_at: float | None = None
        self._turn = 0

    def begin_life(self) -> None:
        """A process is started here: nothing is wrong any more."""
        self.lives += 1
        self.paused = False
        self.disk.mend()

    def be_busy(self, seconds: float) -> None:
        """Nothing else happens here for so long, and what is sent leaves only then."""
        now = self.world.now
        self.busy_until = (self.busy_until if self.busy_until > now else now) + seconds

    def cut_power(self) -> None:
        """What was not synced is lost."""
        self.world.crash(self.member)

    def wake(self, at: float) -> None:
        """Take a step at this time, or earlier."""
        at = max(at, self.busy_until)
        if self.wake_at is not None and self.wake_at <= at:
            return
        self.wake_at = at
        self._turn += 1
        self.world.at(at, partial(self._take_turn, self._turn))

    def _take_turn(self, turn: int) -> None:
        if turn != self._turn:
            return  # an earlier one was asked for since
        self.wake_at = None
        if self.paused:
            return
        if self.busy_until > self.world.now:
            self.wake(self.busy_until)
            return
        self.be_busy(_STEP_SECONDS)
        self.world.step(self)
