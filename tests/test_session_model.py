"""Sessions against a model: any commands have the outcome that a dictionary would give."""

from __future__ import annotations

from typing import Any, NamedTuple

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ondisk import Entry, Result, sessions
from ondisk.diskkv import incr
from ondisk.sessions import OUTDATED, UNKNOWN_SESSION, close, once, register
from ondisk.testing.crashing import scratch_directory
from tests.machines import everything, opened, recover, saved, stored_sessions


class Model:
    """What a machine with sessions must do, written down again as simply as possible."""

    def __init__(self, room: int) -> None:
        self.room = room
        self.numbers: dict[bytes, int] = {}
        self.sessions: dict[int, list[Any]] = {}  # id: index of last use, sequence, result

    def _incr(self, key: bytes) -> Result:
        self.numbers[key] = self.numbers.get(key, 0) + 1
        return Result(self.numbers[key])

    def apply(self, index: int, step: Step) -> Result:
        if step.kind == "plain":
            return self._incr(step.key)
        if step.kind == "register":
            if len(self.sessions) == self.room:
                del self.sessions[min(self.sessions, key=lambda session: self.sessions[session][0])]
            self.sessions[index] = [index, 0, Result()]
            return Result(index)
        if step.kind == "close":
            return Result(self.sessions.pop(step.session, None) is not None)
        if step.session not in self.sessions:
            return Result(error=UNKNOWN_SESSION)
        found = self.sessions[step.session]
        found[0] = index
        if step.sequence > found[1]:
            found[1:] = step.sequence, self._incr(step.key)
        return found[2] if step.sequence == found[1] else Result(error=OUTDATED)


class Step(NamedTuple):
    kind: str
    session: int = 1
    sequence: int = 1
    key: bytes = b"a"

    def command(self) -> bytes:
        match self.kind:
            case "register":
                return register()
            case "close":
                return close(self.session)
            case "once":
                return once(self.session, self.sequence, incr(self.key))
        return incr(self.key)


kinds = st.sampled_from(["register", "register", "once", "once", "once", "once", "close", "plain"])
steps = st.builds(Step, kinds, st.integers(1, 12), st.integers(1, 4), st.sampled_from([b"a", b"b"]))
between = st.sampled_from(["nothing", "nothing", "reopen", "crash", "snapshot"])


@settings(max_examples=60, deadline=None, derandomize=True, database=None)
@given(plan=st.lists(st.tuples(st.lists(steps, min_size=1, max_size=8), between), max_size=6))
def test_any_commands_have_the_outcome_of_the_model(plan: list[tuple[list[Step], str]]) -> None:
    """However they are batched, and whatever happens between two batches."""
    log: list[Entry] = []
    with pytest.MonkeyPatch.context() as patch, scratch_directory() as folder:
        patch.setattr(sessions, "MAX_SESSIONS", 3)
        model, machine, one_by_one = Model(3), opened(folder / "kv"), opened(folder / "one by one")
        for number, (batch, then) in enumerate(plan):
            entries = [Entry(index, step.command()) for index, step in enumerate(batch, len(log) + 1)]
            expected = [model.apply(entry.index, step) for entry, step in zip(entries, batch, strict=True)]
            log += entries
            assert machine.update(entries) == expected
            assert [result for entry in entries for result in one_by_one.update([entry])] == expected
            if then == "snapshot":
                fresh = opened(folder / f"{number}")
                recover(fresh, saved(machine))
                machine.close()
                machine = fresh
            elif then != "nothing":
                machine.crash() if then == "crash" else machine.close()
                rest = log[machine.open() :]
                if rest:
                    machine.update(rest)
            for each in (machine, one_by_one):
                assert everything(each) == {key: b"%d" % n for key, n in model.numbers.items()}
                assert stored_sessions(each) == {
                    session: (sequence, result) for session, (_, sequence, result) in model.sessions.items()
                }
        machine.close()
        one_by_one.close()
