"""Stepping: the thread that lets a replica take its steps, until it is ended, or nobody holds its owner."""

from __future__ import annotations

import threading
import weakref

from ondisk.events import Events
from ondisk.net.clock import Clock, since_boot
from ondisk.net.endpoint import Endpoint
from ondisk.net.tcp import TcpEndpoint
from ondisk.replica import Replica
from ondisk.serving import Serving
from ondisk.snapshot.background import start_thread
from ondisk.ticking import Ticker


class Stepper:
    """A replica, its endpoint and their thread. What goes on in there does not keep the owner alive."""

    def __init__(
        self,
        owner: object,
        replica: Replica,
        endpoint: Endpoint,
        events: Events,
        clock: Clock = since_boot,
    ) -> None:
        self.replica = replica
        # Only over TCP there are clients that host no replica.
        self.serving = Serving(replica, endpoint, clock) if isinstance(endpoint, TcpEndpoint) else None
        self._ticker = Ticker(replica, clock)
        self._events = events
        self._owner = weakref.ref(owner)
        self.endpoint = endpoint
        self._ending = False
        self._started = False
        self.thread = threading.Thread(target=self._run, name=f"ondisk-{replica.id}", daemon=True)

    def start(self) -> None:
        """Begin. Raises ``ResourceError``."""
        _steppers.add(self)
        start_thread(self.thread)
        self._started = True

    @property
    def goes_on(self) -> bool:
        """Whether the replica takes steps, and will."""
        return self.replica.running and self.thread.is_alive() and not self._ending

    @property
    def is_dropped(self) -> bool:
        """Whether nobody holds the owner any more: it will end by itself."""
        return self._owner() is None

    def end(self, *, crash: bool) -> None:
        """Return when the replica has stopped, or crashed. After an interrupt another call does the rest."""
        self._ending = True
        self.endpoint.wake()
        if self._started:
            self.thread.join()
        if crash:
            self.replica.crash()
        else:
            self.replica.close()
        self._events.look(self.replica.status, frozenset())
        self.forget()

    def end_soon(self) -> None:
        """Of one that is dropped: return when it has let go of its directory."""
        if self.thread is not threading.current_thread():
            self.endpoint.wake()
            self.thread.join()

    def forget(self) -> None:
        """It has ended, or goes on in the parent of this process."""
        _steppers.discard(self)

    def _run(self) -> None:
        try:
            self._step()
        finally:
            if self.serving is not None:
                self.serving.close()
            self.forget()

    def _step(self) -> None:
        replica, serving = self.replica, self.serving
        try:
            while not self._ending:
                if serving is not None:
                    serving.take()
                seconds = replica.step()
                if serving is not None:
                    serving.flush()
                self._events.look(replica.status, replica.raft.connected)
                if not replica.running:  # it failed, and its status says why
                    return
                self._ticker.look()
                self.endpoint.wait(seconds)
                if self.is_dropped:  # no hook of the garbage collector tells: those can be torn
                    replica.close()
                    return
        except BaseException as error:  # whatever it is: without its thread the replica does nothing any more
            if not replica.running:
                raise
            replica.fail(error)


_steppers: set[Stepper] = set()


def wait_for_dropped() -> None:
    """Return when all that were dropped while they ran have let go of their directories."""
    for stepper in tuple(_steppers):
        if stepper.is_dropped:
            stepper.end_soon()
