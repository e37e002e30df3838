"""Simulation: real replicas, logs and state machines in virtual time, under a schedule of faults.

What is simulated is what lies around them: the network, the clocks, the power supply, and how long a sync
takes. The disk below is a real one, with real RocksDB, and what a power cut takes away is taken from the
real files.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from ondisk.raft import Timing
from ondisk.replica import Replica
from ondisk.simulation import inject, inject_directories, inject_processes, leases, verdict
from ondisk.simulation.checked import CheckedHosts
from ondisk.simulation.clients import Client, SessionClient
from ondisk.simulation.faults import KINDS, Fault, Kind, draw
from ondisk.simulation.host import BEGINNING
from ondisk.simulation.machine import PaddedKV
from ondisk.simulation.operator import Operator
from ondisk.simulation.schedule import begin_each, end_later
from ondisk.simulation.verbs import Holders, Locker, Transactor, Watcher
from ondisk.verbs.changes import Changed

SECONDS = 60.0
_CLIENTS = 4
_TRANSACTORS, _FIRST_TRANSACTOR = 2, 100  # their numbers begin beyond those of the others
_WATCHERS = 2
_LOCKERS = 3


class Simulation(CheckedHosts):
    """One run: some replicas of ``DiskKV``, clients, an operator, and a schedule of faults that end.

    When the faults have ended everybody must agree within a minute and hold what was acknowledged, and the
    history that the clients saw must be linearizable.
    """

    def __init__(
        self,
        seed: int,
        directory: Path,
        *,
        replicas: int = 3,
        seconds: float = SECONDS,
        schedule: Sequence[Fault] | None = None,
        replica_type: type[Replica] = Replica,
        drift: float | None = None,
        kinds: Mapping[str, Kind] = KINDS,
        verbs: bool = False,
        machine_type: type[PaddedKV] = PaddedKV,
        observe: Callable[[CheckedHosts], None] | None = None,
    ) -> None:
        """``directory`` is a new one, best on a RAM disk. ``schedule`` is drawn from the seed if not given,
        of these ``kinds`` of faults.

        With a ``drift`` clients read by leases, and one clock counts at most so much more in a second than
        another. With ``verbs`` some transact, watch and lock, and leaders say in the log that time passes.
        What the replicas are told is ``leases.CLOCK_DRIFT``. ``observe`` is called after each step
        of a replica.
        """
        super().__init__(seed, directory, replicas=replicas, replica_type=replica_type, observe=observe)
        self.seconds = seconds
        self.by_leases = drift is not None
        self.with_verbs = verbs
        self.machine_type = machine_type
        if schedule is None:
            schedule = draw(self.rng("faults"), seconds, kinds)
            if drift is not None:
                schedule = sorted((*schedule, *leases.draw(self.rng("leases"), seconds, drift)))
        self.faults = tuple(schedule)
        if self.by_leases:
            self.timing = Timing(clock_drift=leases.CLOCK_DRIFT)
        self._watchers: list[Watcher] = []
        self._lockers: list[Locker] = []
        self._operator = Operator(self)
        self._begin = {
            **inject.BEGIN,
            **inject_directories.BEGIN,
            **inject_processes.BEGIN,
            **leases.BEGIN,
            **self._operator.begin,
        }

    def run(self) -> None:
        """Let it happen. Raises ``Violation``."""
        with self.showing_violations():
            late = {self.pick_first(fault.who) for fault in self.faults if fault.kind == "late start"}
            for member in self.first_members:
                if member not in late:
                    self.start(member)
            self.clients = [
                *(
                    Client(number, self, self, self.history, leases=self.by_leases)
                    for number in range(_CLIENTS)
                ),
                SessionClient(0, self, self, self.history),
            ]
            if self.with_verbs:
                self._begin_verbs()
            begin_each(self, self.faults, self.begin)
            self.advance(BEGINNING + self.seconds)
            self._calm_down()
            for client in (*self.clients, *self._watchers, *self._lockers):
                client.stop()
            self.advance(self.now + 5.0)
            self._conclude()
            if self.violation is not None:
                raise self.violation

    def _begin_verbs(self) -> None:
        told: dict[tuple[int, int], Changed] = {}
        holders: Holders = {}
        numbers = range(_FIRST_TRANSACTOR, _FIRST_TRANSACTOR + _TRANSACTORS)
        self.clients += [Transactor(number, self, self, self.history) for number in numbers]
        self._watchers = [Watcher(number, self, self, self.history, told) for number in range(_WATCHERS)]
        self._lockers = [Locker(number, self, self, self.history, holders) for number in range(_LOCKERS)]

    def begin(self, number: int, fault: Fault) -> None:
        """Begin a fault, if there is anything to do, and see to its end."""
        end = self._begin[fault.kind](self, number, fault)
        if end is None:
            return
        self.note("fault", f"{number}: {fault.kind}")
        if fault.kind not in inject.ARMED:
            self.counts[fault.kind] += 1
        if callable(end):
            end_later(self, number, fault, end)

    def _calm_down(self) -> None:
        verdict.end_all_faults(self)
        verdict.wait_for_agreement(self)

    def _conclude(self) -> None:
        for watcher in self._watchers:
            while self.violation is None and not watcher.see(self.replicas[min(self.replicas)], limit=1000):
                pass
        verdict.conclude(self)

    # What the operator is told

    def on_refused(self, member: int) -> None:
        """The operator looks after its directory."""
        self._operator.repair_later(member)

    def on_loss(self) -> None:
        """The operator sees whether too much is lost."""
        self._operator.look_at_losses()

    def on_import(self, member: int) -> None:
        """The operator sees whether it comes to a group."""
        self._operator.look_at_import_later(member)
