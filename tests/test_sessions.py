"""Sessions: a command that is sent twice counts once, whatever happens between the two.

The rules alone, then stored by ``DiskKV`` (reopened, crashed at every point, its log cut anywhere), then in
groups: in virtual time where the moment matters, and on a real ``Cluster``.
"""

from __future__ import annotations

import io
import os
import shutil
import threading
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future
from itertools import pairwise
from pathlib import Path
from typing import Any, NamedTuple

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ondisk import Cluster, DiskKV, Entry, Node, Result, client, diskkv, import_snapshot, sessions
from ondisk.client import Client
from ondisk.diskkv import delete, get, incr, put, scan
from ondisk.errors import (
    CommandTooLarge,
    ConfigurationError,
    Corrupt,
    NoLeader,
    NotDone,
    OutcomeUnknown,
    Rejected,
    ReplicaStopped,
    SessionExpired,
    SessionExpiredNotDone,
    SessionExpiredUnknown,
    StorageError,
    Timeout,
    Unfinished,
)
from ondisk.lab.experiments.naive import OneBatch
from ondisk.raft.messages import AppendEntriesResponse, Message, Outcomes, TransferLeadership
from ondisk.replica import Replica
from ondisk.replica.replica import MAX_COMMAND_BYTES
from ondisk.sessions import OUTDATED, RESULT_NOT_KEPT, UNKNOWN_SESSION, Sessions, close, once, register
from ondisk.storage.store import Store
from ondisk.testing.crashing import Child, CrashingDisk, Point, scratch_directory
from tests.lengths import short_and_long
from tests.machines import apply, everything, opened
from tests.stores import newest_wal, record_starts
from tests.virtual import World

FOREVER = float("inf")


@pytest.fixture
def room_for(monkeypatch: pytest.MonkeyPatch) -> Callable[[int], None]:
    """Say how many sessions there may be."""
    return lambda count: monkeypatch.setattr(sessions, "MAX_SESSIONS", count)


# The rules


class Table:
    """A machine without a disk: it stores what it is told to, and notes which commands are applied."""

    def __init__(self) -> None:
        self.stored: dict[bytes, bytes] = {}
        self.sessions = Sessions()
        self.applied: list[bytes] = []
        self.index = 0

    def update(self, *commands: bytes, reload: bool = True) -> list[Result]:
        batch, results = self.sessions.batch(), []
        for command in commands:
            self.index += 1
            results.append(batch.answer(Entry(self.index, command), self._apply))
        for key, record in batch.records():
            if record is None:
                self.stored.pop(key, None)
            else:
                self.stored[key] = record
        batch.commit()
        if reload:  # what is stored is all that there is
            self.sessions = Sessions(self.stored.items())
        return results

    def _apply(self, command: bytes) -> Result:
        self.applied.append(command)
        return Result(command)


def test_a_session_is_named_after_the_entry_that_registered_it() -> None:
    """So no two have the same name, and every replica knows it."""
    table = Table()
    table.index = 41
    assert table.update(register(), register()) == [Result(42), Result(43)]
    assert table.update(register()) == [Result(44)]


def test_a_number_that_was_seen_is_answered_and_not_applied() -> None:
    """In the same batch, in a later one, and after others have been answered."""
    table = Table()
    (session, other) = (result.value for result in table.update(register(), register()))
    first, second = once(session, 1, b"first"), once(session, 2, b"second")
    assert table.update(first, first) == [Result(b"first")] * 2
    assert table.update(once(other, 1, b"other"), first) == [Result(b"other"), Result(b"first")]
    assert table.update(second) + table.update(second) == [Result(b"second")] * 2
    assert table.applied == [b"first", b"other", b"second"]


def test_a_number_decides_and_not_the_command() -> None:
    """Whoever uses a number twice gets the first answer."""
    table = Table()
    table.update(register(), once(1, 1, b"a"))
    assert table.update(once(1, 1, b"b")) == [Result(b"a")]
    assert table.applied == [b"a"]


def test_a_lower_number_is_refused_and_a_higher_one_need_not_be_the_next() -> None:
    """A copy that arrives after the session has gone on changes nothing."""
    table = Table()
    table.update(register(), once(1, 7, b"seven"))
    assert table.update(once(1, 6, b"six"), once(1, 1, b"one")) == [Result(error=OUTDATED)] * 2
    assert table.update(once(1, 9, b"nine"), once(1, 8, b"eight")) == [
        Result(b"nine"),
        Result(error=OUTDATED),
    ]
    assert table.update(once(1, 9, b"nine")) == [Result(b"nine")]
    assert table.applied == [b"seven", b"nine"]


def test_a_session_that_is_not_known_applies_nothing() -> None:
    """Never there, closed in an earlier batch, closed in this one."""
    table = Table()
    table.update(register(), register())
    assert table.update(once(3, 1, b"x"), close(3)) == [Result(error=UNKNOWN_SESSION), Result(False)]
    assert table.update(close(1), once(1, 1, b"x"), close(1)) == [
        Result(True), Result(error=UNKNOWN_SESSION), Result(False)
    ]  # fmt: skip
    assert table.update(once(1, 1, b"x"), once(2, 1, b"y")) == [Result(error=UNKNOWN_SESSION), Result(b"y")]
    assert table.applied == [b"y"]
    assert list(table.stored) == [(2).to_bytes(8, "big")]


@pytest.mark.parametrize("together", [True, False], ids=["one batch", "a batch each"])
@pytest.mark.parametrize("reload", [True, False], ids=["loaded again", "in memory"])
def test_the_least_recently_used_session_makes_room(
    room_for: Callable[[int], None], together: bool, reload: bool
) -> None:
    """By the index of the last entry that named it, be it a new command or the same again."""
    room_for(3)
    table = Table()
    commands = [
        register(), register(), register(),  # 1 2 3
        once(1, 1, b"1"),  # 2 3 1
        once(2, 1, b"2"),  # 3 1 2
        once(1, 1, b"1"),  # 3 2 1: asked again, it is used
        register(),  # 2 1 7
        once(3, 1, b"3"),  # too late
        register(),  # 1 7 9
        once(2, 2, b"2"),  # too late
        once(1, 2, b"one"),  # 7 9 1
        register(),  # 9 1 12
        once(7, 1, b"7"),  # too late
        once(9, 1, b"9"),  # 1 12 9
        register(),  # 12 9 15
        once(1, 3, b"1"),  # too late
    ]  # fmt: skip
    if together:
        results = table.update(*commands)
    else:
        results = [table.update(command, reload=reload)[0] for command in commands]
    refused = [place for place, result in enumerate(results, 1) if result.error == UNKNOWN_SESSION]
    assert refused == [8, 10, 13, 16]
    assert table.applied == [b"1", b"2", b"one", b"9"]
    assert sorted(int.from_bytes(key, "big") for key in table.stored) == [9, 12, 15]


def test_there_are_never_more_sessions_than_allowed(room_for: Callable[[int], None]) -> None:
    """Also when a batch registers many times as many, or the limit was higher before."""
    room_for(10)
    table = Table()
    table.update(*[register()] * 35)
    assert len(table.stored) == 10
    table.update(close(30), register(), register())
    assert len(table.stored) == 10
    room_for(4)
    table.update(register())
    assert sorted(int.from_bytes(key, "big") for key in table.stored) == [35, 37, 38, 39]


def test_thousands_of_registrations_in_one_batch_cost_little() -> None:
    """A full table, and a batch that replaces all of it, and itself once more."""
    table = Table()
    for _ in range(3):
        results = table.update(*[register()] * 3 * sessions.MAX_SESSIONS)
    assert len(table.stored) == sessions.MAX_SESSIONS
    assert int.from_bytes(min(table.stored), "big") == results[-sessions.MAX_SESSIONS].value


def test_a_result_that_is_too_large_is_never_answered() -> None:
    """Not even the first time: it would be another answer than the one to the copy."""
    table = Table()
    table.update(register())
    small, large = b"v" * (sessions.MAX_RESULT_BYTES - 5), b"v" * sessions.MAX_RESULT_BYTES
    assert table.update(once(1, 1, small), once(1, 1, small)) == [Result(small)] * 2
    assert table.update(once(1, 2, large), once(1, 2, large)) == [Result(error=RESULT_NOT_KEPT)] * 2
    assert table.applied == [small, large]
    assert sessions._small(Result(1 << 63)) == Result(1 << 63)
    assert sessions._small(Result(1 << 64)) == Result(error=RESULT_NOT_KEPT)
    assert max(map(len, table.stored.values())) < sessions.MAX_RESULT_BYTES + 50


def test_a_command_whose_result_is_not_kept_is_not_said_to_be_undone(
    make_cluster: Callable[..., Cluster],
) -> None:
    """It was applied, so this must be no ``NotDone``."""

    class Talkative(DiskKV):
        def _apply(self, command: bytes, changes: dict[bytes, bytes | None]) -> Result:
            result = super()._apply(command, changes)
            return Result(bytes(2000)) if result.value == 7 else result

    cluster = make_cluster(state_machine=Talkative)
    with cluster.session(timeout=10) as session:
        assert session.incr("n", 7) == Result(error=RESULT_NOT_KEPT)
    assert cluster.get("n") == b"7"


def test_the_bytes_of_an_envelope_and_of_a_record_stay_as_they_are() -> None:
    """They stand in logs and databases that later versions must read."""
    assert register() == b"\xc1session\x01\x91\xa8register"
    assert close(300) == b"\xc1session\x01\x92\xa5close\xcd\x01\x2c"
    assert once(300, 2, incr("n")) == (
        b"\xc1session\x01\x94\xa4once\xcd\x01\x2c\x02\xc4\x0a\x93\xa4incr\xc4\x01n\x01"
    )
    table = Table()
    table.update(register(), once(1, 5, b"v"))
    assert table.stored == {b"\0\0\0\0\0\0\0\x01": b"\x94\x01\x02\x05\x92\xc4\x01v\xc0"}


@pytest.mark.parametrize("wrong", ["n", None, bytearray(b"n")])
def test_a_command_that_is_not_bytes_is_refused_when_the_envelope_is_made(wrong: Any) -> None:
    """As ``propose`` does."""
    with pytest.raises(TypeError, match="a command is bytes"):
        once(1, 1, wrong)


def test_damaged_records_are_reported() -> None:
    """A session that cannot be read is not one that never was."""
    for record in (
        b"",
        b"\x90",
        b"\x94\x02\x01\x01\x92\xc0\xc0",
        b"\x94\x01\x01\x01\x93\xc0\xc0\xc0",
        b"junk",
    ):
        with pytest.raises(Corrupt, match="record of a session"):
            Sessions([(bytes(8), record)])


# Stored by DiskKV


def stored_sessions(machine: DiskKV) -> dict[int, tuple[int, Result]]:
    """What the database holds of each session: sequence and result."""
    found = machine._open_store.meta_items(diskkv._SESSION)
    records = {key[len(diskkv._SESSION) :]: sessions._records.decode(record) for key, record in found}
    return {int.from_bytes(key, "big"): (record.sequence, record.result) for key, record in records.items()}


def saved(machine: DiskKV) -> bytes:
    """A snapshot, as bytes."""
    view, stream = machine.prepare_snapshot(), io.BytesIO()
    machine.save_snapshot(view, stream, threading.Event())  # type: ignore[arg-type]
    view.close()
    return stream.getvalue()


def recover(machine: DiskKV, snapshot: bytes) -> int:
    return machine.recover_from_snapshot(io.BytesIO(snapshot), threading.Event())


def test_a_session_outlives_reopening_power_cuts_and_snapshots(tmp_path: Path, kv: DiskKV) -> None:
    """The same number is answered, and nothing applied, whatever has happened since."""
    again = once(1, 1, incr("n", 5))
    assert apply(kv, register(), again) == [Result(1), Result(5)]
    kv.close()
    kv.open()
    assert apply(kv, again) == [Result(5)]
    kv.sync()
    apply(kv, once(1, 2, incr("n")))
    kv.crash()
    kv.open()
    assert apply(kv, again, once(1, 2, incr("n")), again) == [Result(5), Result(6), Result(error=OUTDATED)]
    with scratch_directory() as folder:
        other = opened(folder / "other")
        apply(other, register(), register(), once(2, 1, incr("n", 100)))
        recover(other, saved(kv))
        assert apply(other, once(1, 2, incr("n")), once(2, 1, incr("n"))) == [
            Result(6), Result(error=UNKNOWN_SESSION)
        ]  # fmt: skip
        assert everything(other) == everything(kv) == {b"n": b"6"}
        other.close()
        other.open()
        assert apply(other, once(1, 2, incr("n")), once(1, 3, incr("n"))) == [Result(6), Result(7)]
        other.close()


def test_sessions_never_show_in_lookups(kv: DiskKV) -> None:
    """A user's key of the same name is another thing."""
    name = diskkv._SESSION + (1).to_bytes(8, "big")
    apply(kv, register(), once(1, 1, put("k", "v")))
    assert everything(kv) == {b"k": b"v"}
    assert kv.lookup(get(name)) is None and kv.lookup(scan(diskkv._SESSION)) == []
    apply(kv, put(name, "junk"), put(diskkv._SESSION, "junk"), delete(name))
    kv.close()
    kv.open()
    assert apply(kv, once(1, 1, put("k", "w"))) == [Result()]
    assert everything(kv) == {b"k": b"v", diskkv._SESSION: b"junk"}


def test_a_database_and_a_snapshot_from_before_sessions_open_without_any(tmp_path: Path, kv: DiskKV) -> None:
    """Without sessions all is stored as it was before there were any."""
    apply(kv, put("k", "v"))
    assert kv._open_store.meta_items(b"applied") == [(b"applied_index", (1).to_bytes(8, "big"))]
    assert kv._open_store.meta_items(b"session") == []
    other = opened(tmp_path / "other")
    apply(other, register())
    recover(other, saved(kv))
    assert stored_sessions(other) == {}
    assert apply(other, once(1, 1, incr("n")), register(), once(3, 1, incr("n"))) == [
        Result(error=UNKNOWN_SESSION), Result(3), Result(1)
    ]  # fmt: skip
    other.close()


def test_the_commands_of_today_are_no_envelopes() -> None:
    """And have the bytes that they always had."""
    commands = put("k", "v"), delete("k"), incr("n"), diskkv.compare_and_set("k", None, "v")
    assert commands == tuple(
        map(
            msgspec.msgpack.encode,
            (["put", b"k", b"v"], ["delete", b"k"], ["incr", b"n", 1], ["cas", b"k", None, b"v"]),
        )
    )
    assert not any(map(sessions.is_envelope, (*commands, b"", b"\xc1", b"\xc1sessio")))


def test_an_error_is_a_result_like_any_other(kv: DiskKV) -> None:
    """What failed is not tried again under the same number, even if it would succeed now."""
    apply(kv, register(), put("n", "x"))
    (failed,) = apply(kv, once(1, 1, incr("n")))
    assert failed.error and "not a number" in failed.error
    assert apply(kv, delete("n"), once(1, 1, incr("n"))) == [Result(True), failed]
    assert everything(kv) == {}


def malformed_envelopes() -> Iterator[bytes]:
    for whole in (register(), close(1), once(1, 2, incr("n"))):
        yield from (whole[:length] for length in range(len(b"\xc1session"), len(whole)))
        yield whole + b"\0"
        yield whole.replace(b"\x01", b"\x02", 1)  # another version
    head = b"\xc1session\x01"
    for fields in (
        ["once", 0, 2, b""], ["once", -1, 2, b""], ["once", 2**64 - 1, 2, b""], ["once", 1, 0, b""],
        ["once", 1, 2.0, b""], ["once", 1, 2, "text"], ["once", 1, 2, None], ["once", 1, 2, b"", 4],
        ["close", None], ["close", 0], ["register", 1], ["nonsense"], [], {}, 5, "register",
    ):  # fmt: skip
        yield head + msgspec.msgpack.encode(fields)
    yield head + b"\x94\xa4once\x01" + b"\x91" * 100_000
    yield head + b"\x94\xa4\xff\xff\xff\xff"


def test_a_malformed_envelope_is_an_error_result_and_changes_nothing(kv: DiskKV) -> None:
    """Cut short anywhere, of another version, nested, or made to do harm."""
    apply(kv, register(), once(1, 1, incr("n")))
    before = everything(kv), stored_sessions(kv)
    for envelope in malformed_envelopes():
        assert sessions.is_envelope(envelope)
        (result,) = apply(kv, envelope)
        assert result.value is None and result.error and result.error.startswith("malformed command"), (
            envelope
        )
        assert len(result.error) < 200
    assert (everything(kv), stored_sessions(kv)) == before
    (result,) = apply(kv, once(1, 2, once(1, 3, incr("n"))))  # an envelope in an envelope is no command
    assert result.error and result.error.startswith("malformed command")
    assert everything(kv) == before[0]


def test_a_refused_update_leaves_sessions_as_they_were(kv: DiskKV, monkeypatch: pytest.MonkeyPatch) -> None:
    """Entries in a wrong order, and a disk that fails: nothing of the batch is remembered."""
    apply(kv, register())
    with pytest.raises(StorageError):
        kv.update([Entry(5, once(1, 1, incr("n"))), Entry(6, close(1)), Entry(7, register()), Entry(7, b"")])
    with monkeypatch.context() as patch:

        def fail(*_: object) -> None:
            raise StorageError("full")

        patch.setattr(Store, "write", fail)
        with pytest.raises(StorageError):
            apply(kv, once(1, 1, incr("n")), close(1), register())
    assert everything(kv) == {}
    assert apply(kv, once(1, 1, incr("n")), close(7), close(4)) == [Result(1), Result(False), Result(False)]


def test_a_damaged_record_is_reported_at_open_and_in_a_snapshot(tmp_path: Path, kv: DiskKV) -> None:
    """Neither is it served, nor does it take the place of a sound state."""
    apply(kv, register())
    store = kv._open_store
    batch = store.batch()
    store.put_meta(batch, diskkv._SESSION + (1).to_bytes(8, "big"), b"junk")
    store.write(batch)
    other = opened(tmp_path / "other")
    apply(other, put("k", "v"))
    with pytest.raises(Corrupt, match="record of a session"):
        recover(other, saved(kv))
    assert everything(other) == {b"k": b"v"}
    other.close()
    kv.close()
    with pytest.raises(Corrupt, match=r"db-000001.*record of a session"):
        kv.open()


# A model: sessions as a dictionary


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


# Crashes

SESSIONS = 3  # entries 1 to 3 register them
COMMANDS = 30


def log_of_sessions() -> list[Entry]:
    """Each session increments a counter of its own in turn; every third command comes twice."""
    commands = [register() for _ in range(SESSIONS)]
    for number in range(COMMANDS):
        session, sequence = number % SESSIONS + 1, number // SESSIONS + 1
        commands += [once(session, sequence, incr(f"n{session}"))] * (2 if number % 3 == 1 else 1)
    return [Entry(index, command) for index, command in enumerate(commands, 1)]


def assert_data_and_records_agree(machine: DiskKV) -> None:
    """Each counter has been incremented as often as the record of its session says."""
    data = everything(machine)
    for session, (sequence, result) in stored_sessions(machine).items():
        counted = int(data.get(b"n%d" % session, b"0"))
        assert counted == sequence, (
            f"session {session} has {sequence} in its record and {counted} in the data"
        )
        assert result == (Result(sequence) if sequence else Result())
    assert set(data) <= {b"n%d" % session for session in stored_sessions(machine)}


def assert_completed(machine: DiskKV, opened_index: int) -> None:
    """The log hands over the rest, clients send their last command again, and all is counted once."""
    log = log_of_sessions()
    if rest := log[opened_index:]:
        machine.update(rest)
    last = COMMANDS // SESSIONS
    again = [once(session, last, incr(f"n{session}")) for session in range(1, SESSIONS + 1)]
    assert apply(machine, *again) == [Result(last)] * SESSIONS
    assert everything(machine) == {b"n%d" % session: b"%d" % last for session in range(1, SESSIONS + 1)}


class RecordLater(DiskKV):
    """What not to do: the records of the sessions in a batch of their own, after the data and the index."""

    def update(self, entries: Sequence[Entry]) -> list[Result]:
        store = self._open_store
        put_meta, later = store.put_meta, store.batch()
        store.put_meta = (  # type: ignore[method-assign]
            lambda batch, key, value: put_meta(
                later if key.startswith(diskkv._SESSION) else batch, key, value
            )
        )
        try:
            results = super().update(entries)
        finally:
            del store.put_meta  # type: ignore[method-assign]
        store.write(later)
        return results


def torn(machine: DiskKV, path: Path) -> Iterator[tuple[int, DiskKV, int]]:
    """Apply the log in small batches, then open it with its write-ahead log cut, at many lengths."""
    log, at = log_of_sessions(), 0
    machine.open()
    for size in (1, 2, 5, 1, 3) * 4:
        if entries := log[at : at + size]:
            machine.update(entries)
        at += size
    assert at >= len(log)
    killed = Path(shutil.copytree(path, path.with_name("killed")))
    machine.close()
    wal = newest_wal(killed)
    whole = wal.stat().st_size
    lengths = {*range(0, whole, 61), whole}
    for start, end in pairwise([*record_starts(wal), whole]):
        lengths |= {start, start + 1, (start + end) // 2, end - 1}
    for length in sorted(lengths):
        cut = Path(shutil.copytree(killed, path.with_name("cut")))
        os.truncate(newest_wal(cut), length)
        left = DiskKV(cut)
        yield length, left, left.open()
        left.close()
        shutil.rmtree(cut)


def test_a_log_cut_anywhere_leaves_counters_and_records_that_agree() -> None:
    """At each length: and when the rest is handed over and every client asks again, all is counted once."""
    with scratch_directory() as folder:
        indexes = set()
        for _, machine, index in torn(DiskKV(folder / "kv"), folder / "kv"):
            assert_data_and_records_agree(machine)
            assert_completed(machine, index)
            indexes.add(index)
        assert len(indexes) > 10


def test_records_in_a_batch_of_their_own_are_caught_in_between() -> None:
    """The same search finds the machine that would count a command twice."""
    with scratch_directory() as folder:
        wrong = 0
        for _, machine, index in torn(RecordLater(folder / "kv"), folder / "kv"):
            try:
                assert_data_and_records_agree(machine)
                assert_completed(machine, index)
            except AssertionError:
                wrong += 1
        assert wrong, "no length shows it"


def live(disk: CrashingDisk, path: Path, snapshot: bytes) -> None:
    """A machine's life; with a snapshot it ends with its recovery."""
    log = log_of_sessions()
    machine = DiskKV(path, disk=disk)
    disk.power_cut = machine.crash
    machine.open()
    for first in (0, 4, 8, 15):
        machine.update(log[first : {0: 4, 4: 8, 8: 15, 15: 18}[first]])
        if first == 4:
            machine.sync()
        if first == 8:
            machine.prepare_snapshot().close()
    if snapshot:
        recover(machine, snapshot)
    else:
        machine.close()
        machine = DiskKV(path, disk=disk)
        disk.power_cut = machine.crash
        machine.open()
        machine.update(log[18:])
        machine.sync()
    disk.reach("the end")


@pytest.mark.parametrize("step", short_and_long(7, 1))
@pytest.mark.parametrize("ending", ["reopened", "recovered"])
def test_a_crash_at_any_point_leaves_counters_and_records_that_agree(
    tmp_path: Path, ending: str, step: int
) -> None:
    """Killed, or without power: at every step of creation, updates, a snapshot, a reopening, a recovery."""
    snapshot = b""
    if ending == "recovered":
        other = opened(tmp_path / "other")
        other.update(log_of_sessions()[:33])
        snapshot = saved(other)
        other.close()
    with scratch_directory() as folder, Child() as child:
        points = child.run(live, folder / "whole", snapshot).points
        assert len(points) > 20
        for how in ("kill", "power cut"):
            for occurrence in range(1, len(points) + 1, step):
                path = folder / f"{how} {occurrence}"
                ended = child.run(live, path, snapshot, crash=Point(occurrence, how=how))  # type: ignore[arg-type]
                assert ended.crashed == points[occurrence - 1]
                machine = DiskKV(path)
                index = machine.open()
                assert_data_and_records_agree(machine)
                assert_completed(machine, index)
                machine.close()
                shutil.rmtree(path)


# In a group, in virtual time


class WorldClient(Client):
    """A client in virtual time: whoever waits for an answer lets time pass."""

    def __init__(self, world: World, monkeypatch: pytest.MonkeyPatch) -> None:
        self.world = world
        self.each_tick: Callable[[], object] = lambda: None

        class Time:
            monotonic = staticmethod(lambda: world.now)
            sleep = staticmethod(self._run)

        monkeypatch.setattr(client, "time", Time)

    def propose_async(
        self, command: bytes, *, via: int | None = None, timeout: float = client.DEFAULT_TIMEOUT
    ) -> Future[Result]:
        running = [replica for replica in self.world.replicas.values() if replica.log is not None]
        leader = self.world.leader
        if via is not None and via not in self.world.members:
            raise ConfigurationError(f"there is no replica {via}")
        replica = leader or next(iter(running), None) if via is None else self.world.replicas.get(via)
        if replica is None:
            raise ReplicaStopped("not running")
        future = replica.propose(command, self.world.now + timeout)

        def wait(seconds: float = 0.0) -> Result:
            self._run(seconds, future.done)
            if not future.done():
                raise TimeoutError
            return Future.result(future, 0)

        future.result = wait  # type: ignore[assignment, method-assign]
        return future

    def _run(self, seconds: float, condition: Callable[[], bool] = lambda: False) -> None:
        until = self.world.now + seconds
        while self.world.now < until and not condition():
            self.world.tick()
            self.each_tick()

    def read(self, *_: Any, **__: Any) -> Any:
        raise NotImplementedError

    stale_read = add_replica = remove_replica = transfer_leadership = read
    replace_replica = move_replica = read


@pytest.fixture
def group(world: World, monkeypatch: pytest.MonkeyPatch) -> WorldClient:
    """A client of three replicas, one of which leads."""
    world.elect()
    return WorldClient(world, monkeypatch)


def crash_before_the_answer(group: WorldClient) -> Replica:
    """The leader will crash when it has applied a follower's command and before it tells. Returns another."""
    world, leader = group.world, group.world.elect()
    answered: list[int] = []

    def lose(sender: int, _: int, message: Message) -> Iterable[Message]:
        if isinstance(message, Outcomes) and sender == leader.id:
            answered.extend(outcome.request for outcome in message.outcomes if outcome.result is not None)
            return []
        return [message]

    def crash() -> None:
        if answered and leader.id in world.replicas:
            world.crash(leader.id)

    world.edit, group.each_tick = lose, crash
    return world.replicas[world.others(leader.id)[0]]


def settle(group: WorldClient) -> dict[bytes, bytes]:
    """Heal and start everything; return what all replicas hold."""
    world = group.world
    world.edit, group.each_tick = None, lambda: None
    world.network.heal()
    for member in world.members:
        if member not in world.replicas:
            world.start(member)
    world.run_until(world.converged)
    return world.assert_equal()


def attempts(world: World) -> int:
    """How many entries of the leader's log hold ``incr("n")``, in an envelope or not."""
    log = world.elect().log
    assert log is not None
    return sum(incr("n") in entry.command for entry in log.entries(1, log.last_index))


def test_without_a_session_a_command_repeated_by_hand_counts_twice(group: WorldClient) -> None:
    """The leader crashed after the commit and before the answer: so sessions are good for something."""
    follower = crash_before_the_answer(group)
    with pytest.raises(OutcomeUnknown):
        group.incr("n", via=follower.id, timeout=20)
    assert group.incr("n", timeout=20) == Result(2)
    assert settle(group) == {b"n": b"2"}


def test_in_a_session_the_same_counts_once(group: WorldClient) -> None:
    """The retry goes through another leader, by itself, and gets the answer of the first attempt."""
    session = group.session()
    follower = crash_before_the_answer(group)
    former = group.world.leader
    assert session.incr("n", via=follower.id, timeout=20) == Result(1)
    assert former is not group.world.leader
    assert session.incr("n", timeout=20) == Result(2)
    assert settle(group) == {b"n": b"2"}


def test_another_replica_can_finish_what_one_has_begun(group: WorldClient) -> None:
    """``resume`` through a replica that has not heard of the first attempt."""
    session = group.session()
    follower = crash_before_the_answer(group)
    leader = group.world.leader
    assert leader is not None
    with pytest.raises(Timeout, match=r"resume\(\)"):
        session.incr("n", via=follower.id, timeout=0.1)
    (other,) = set(group.world.members) - {leader.id, follower.id}
    assert session.resume(via=other, timeout=20) == Result(1)
    assert settle(group) == {b"n": b"1"}


def test_a_leader_deposed_after_its_command_reached_the_others_counts_it_once(group: WorldClient) -> None:
    """The followers' acknowledgements are lost; the next leader commits the entry, and the retry."""
    world = group.world
    session = group.session()
    leader = world.elect()
    sent_at = world.now

    def lose(_: int, to: int, message: Message) -> Iterable[Message]:
        return [] if to == leader.id and isinstance(message, AppendEntriesResponse) else [message]

    def isolate() -> None:
        if world.now > sent_at + 0.1:
            world.network.isolate(leader.id)

    world.edit, group.each_tick = lose, isolate
    assert session.incr("n", timeout=30) == Result(1)
    assert world.leader is not leader
    assert attempts(world) == 2, "the first attempt was not committed"
    assert settle(group) == {b"n": b"1"}


def test_a_command_that_was_lost_is_applied_by_the_retry(group: WorldClient) -> None:
    """Once is also not never: the leader was cut off, and nobody else had the entry."""
    session = group.session()
    leader = group.world.elect()
    group.world.network.isolate(leader.id)
    assert session.incr("n", timeout=30) == Result(1)
    assert group.world.leader is not leader
    assert settle(group) == {b"n": b"1"}


def test_a_replica_fed_by_a_stream_knows_the_sessions_and_may_lead(group: WorldClient) -> None:
    """The log is compacted, a follower is wiped, gets a snapshot, leads, and is asked again."""
    world = group.world
    session = group.session()
    for number in range(1, 11):
        assert session.incr("n") == Result(number)
    world.run_until(world.converged)
    for replica in world.replicas.values():
        future = replica.compact()
        world.run_until(future.done)
    leader = world.elect()
    wiped = world.others(leader.id)[0]
    world.wipe(wiped)
    world.run(3)
    assert session.incr("n", timeout=20) == Result(11)
    world.run_until(world.converged)
    assert world.replicas[wiped].log.base_index > 0, "it was fed by the log alone"
    change = world.elect().propose_change(TransferLeadership(wiped), FOREVER)
    world.run_until(change.done)
    assert world.elect().id == wiped
    again = group.propose(once(session.id, session._sequence, incr("n")))
    assert again == Result(11)
    assert group.propose(once(session.id, session._sequence - 1, incr("n"))) == Result(error=OUTDATED)
    assert session.incr("n") == Result(12)
    assert settle(group) == {b"n": b"12"}


@pytest.mark.parametrize("end", [World.crash, World.stop], ids=["power cut", "stopped"])
def test_a_restart_of_all_replicas_forgets_no_session(
    group: WorldClient, end: Callable[[World, int], None]
) -> None:
    """The command was applied, nobody heard of it, and all three end."""
    world = group.world
    session = group.session()
    follower = crash_before_the_answer(group)
    with pytest.raises(OutcomeUnknown):
        session.incr("n", via=follower.id, timeout=0.1)
    for member in tuple(world.replicas):
        end(world, member)
    world.edit, group.each_tick = None, lambda: None
    for member in world.members:
        world.start(member)
    assert session.resume(timeout=20) == Result(1)
    assert session.incr("n") == Result(2)
    assert settle(group) == {b"n": b"2"}


@pytest.mark.parametrize("seed", [0, 1, 2])
def test_every_call_counts_once_while_replicas_crash_and_links_break(
    make_world: Callable[..., World], monkeypatch: pytest.MonkeyPatch, seed: int
) -> None:
    """Three clients in turn; a counter is the number of their calls, and each call got the next number."""
    world = make_world(seed=seed)
    group = WorldClient(world, monkeypatch)
    rng = world.rng

    def trouble() -> None:
        chance = rng.random()
        running = [member for member in world.members if member in world.replicas]
        if chance < 0.01 and len(running) == 3:
            world.crash(rng.choice(running))
        elif chance < 0.02:
            world.network.isolate(rng.choice(world.members))
        elif chance < 0.03:
            world.network.heal()
        elif chance < 0.04 and len(running) < 3:
            world.start(({*world.members} - {*running}).pop())

    def lose(_: int, __: int, message: Message) -> Iterable[Message]:
        return [] if isinstance(message, Outcomes) and rng.random() < 0.3 else [message]

    world.elect()
    opened_sessions = [group.session(timeout=60) for _ in range(3)]
    world.edit, group.each_tick = lose, trouble
    for number in range(1, 31):
        via = rng.choice((None, *world.members))
        assert opened_sessions[number % 3].incr("n", via=via, timeout=300) == Result(number)
    assert settle(group) == {b"n": b"30"}
    assert attempts(world) > 30, "no attempt was committed twice: this proves nothing"


# What a user of a session sees


def test_a_new_command_is_refused_while_one_is_unfinished(group: WorldClient) -> None:
    """Whoever answers ``OutcomeUnknown`` by another ``incr`` is told, and does not count twice."""
    session = group.session()
    world = group.world
    leader = world.elect()
    world.network.isolate(leader.id)
    with pytest.raises(Timeout):
        session.incr("n", via=leader.id, timeout=0.5)
    for _ in range(2):
        with pytest.raises(Unfinished):
            session.incr("n", timeout=20)
        with pytest.raises(Timeout):
            session.resume(via=leader.id, timeout=0.5)
    with pytest.raises(OutcomeUnknown, match=r"no replica 9.*resume\(\)"):
        session.resume(via=9)
    assert session.resume(timeout=20) == Result(1)
    with pytest.raises(Rejected, match="no command"):
        session.resume()
    assert session.incr("n") == Result(2)
    assert settle(group) == {b"n": b"2"}


def test_what_was_never_proposed_is_not_done_and_need_not_be_resumed(group: WorldClient) -> None:
    """No leader until the deadline; the next command goes on, and the first one never happens."""
    session = group.session()
    world = group.world
    for member in world.members:
        world.network.isolate(member)
    world.run(5)
    with pytest.raises(NoLeader):
        session.incr("n", timeout=2)
    with pytest.raises(ConfigurationError):
        session.incr("n", via=9)
    before = world.now
    with pytest.raises(CommandTooLarge):
        session.propose(b"x" * MAX_COMMAND_BYTES)
    assert world.now == before, "what can never succeed was tried again"
    world.network.heal()
    assert session.incr("n", 10, timeout=20) == Result(10)
    numbers = [group.propose(once(session.id, number, b"")) for number in (3, 4)]
    assert numbers == [Result(error=OUTDATED), Result(10)], "a number was used for two commands"
    assert settle(group) == {b"n": b"10"}


def test_a_session_that_was_pushed_out_says_whether_the_command_may_have_happened(
    group: WorldClient, room_for: Callable[[int], None]
) -> None:
    """``NotDone`` for the first attempt; unknown if there was an earlier one, and then never again."""
    room_for(1)
    session = group.session()
    follower = crash_before_the_answer(group)
    with pytest.raises(OutcomeUnknown):
        session.incr("n", via=follower.id, timeout=0.1)
    other = group.session(timeout=20)
    with pytest.raises(SessionExpired) as unknown:
        session.resume(timeout=20)
    assert isinstance(unknown.value, SessionExpiredUnknown | OutcomeUnknown)
    assert not isinstance(unknown.value, NotDone)
    with pytest.raises(SessionExpired) as not_done:
        session.incr("n", timeout=20)
    assert isinstance(not_done.value, SessionExpiredNotDone) and isinstance(not_done.value, NotDone)
    assert other.incr("n") == Result(2)
    assert settle(group) == {b"n": b"2"}


def test_a_closed_session_is_forgotten_and_takes_no_command(group: WorldClient) -> None:
    """Closing twice does nothing, and so does closing what has expired."""
    with group.session() as session:
        assert session.put("k", "v") == Result()
        assert session.compare_and_set("k", "v", "w") == Result(True)
        assert session.delete("k") == Result(True)
        session.put("n", "x")
        with pytest.raises(Rejected, match="not a number"):
            session.incr("n")
        assert session.delete("n") == Result(True)
    session.close()
    with pytest.raises(SessionExpiredNotDone, match="closed"):
        session.put("k", "v")
    assert group.propose(once(session.id, 99, put("k", "v"))) == Result(error=UNKNOWN_SESSION)
    lost = group.session()
    group.propose(close(lost.id))
    lost.close()
    assert settle(group) == {}


def test_a_session_closed_with_an_unfinished_command_leaves_its_outcome_unknown(group: WorldClient) -> None:
    """Nothing can find out any more."""
    session = group.session()
    follower = crash_before_the_answer(group)
    with pytest.raises(OutcomeUnknown):
        session.incr("n", via=follower.id, timeout=0.1)
    session.close(timeout=20)
    with pytest.raises(SessionExpiredUnknown):
        session.resume()


def test_an_interrupted_call_can_be_resumed(group: WorldClient) -> None:
    """Ctrl-C says nothing about the command that was under way."""
    session = group.session()
    began = group.world.now

    def interrupt() -> None:
        if group.world.now > began + 0.006:
            raise KeyboardInterrupt

    group.each_tick = interrupt
    with pytest.raises(KeyboardInterrupt):
        session.incr("n")
    group.each_tick = lambda: None
    with pytest.raises(Unfinished):
        session.incr("n")
    assert session.resume() == Result(1)
    assert settle(group) == {b"n": b"1"}


# On a real cluster


def test_a_stream_of_calls_counts_exactly_while_leaders_crash(make_cluster: Callable[..., Cluster]) -> None:
    """Several clients, each with a session: the counter is the number of calls that were answered."""
    cluster = make_cluster()
    cluster.wait_for_leader()
    acknowledged: list[int] = []
    errors: list[BaseException] = []
    stop = threading.Event()

    def count() -> None:
        try:
            with cluster.session(timeout=20) as session:
                while not stop.is_set():
                    number = session.incr("n", timeout=60).value
                    assert isinstance(number, int)
                    acknowledged.append(number)
        except BaseException as error:
            errors.append(error)

    threads = [threading.Thread(target=count, name="ondisk-test") for _ in range(3)]
    for thread in threads:
        thread.start()
    try:
        for _ in range(3):
            enough = len(acknowledged) + 40
            while len(acknowledged) < enough and not errors:
                threads[0].join(0.005)
            leader = cluster.wait_for_leader()
            cluster.crash(leader)
            enough = len(acknowledged) + 20
            while len(acknowledged) < enough and not errors:
                threads[0].join(0.005)
            cluster.start(leader)
    finally:
        stop.set()
        for thread in threads:
            thread.join(90)
    assert not errors
    assert len(acknowledged) > 150
    assert sorted(acknowledged) == list(range(1, len(acknowledged) + 1))
    assert cluster.get("n", timeout=20) == b"%d" % len(acknowledged)


def test_an_exported_snapshot_brings_the_sessions_along(
    make_cluster: Callable[..., Cluster], tmp_path: Path
) -> None:
    """What the old group answered, the new one answers."""
    cluster = make_cluster()
    cluster.wait_for_leader()
    session = cluster.session()
    assert session.incr("n", via=2) == Result(1)
    cluster.export_snapshot(cluster.wait_for_leader(), tmp_path / "backup")
    cluster.close()
    import_snapshot(tmp_path / "backup", tmp_path / "new", members=[1])
    new = make_cluster("new", members=[1])
    new.wait_for_leader()
    assert new.propose(once(session.id, 1, incr("n"))) == Result(1)
    assert new.get("n") == b"1"


def test_a_node_offers_sessions_as_a_cluster_does(make_cluster: Callable[..., Cluster]) -> None:
    """And one session is used by one caller at a time."""
    cluster = make_cluster()
    cluster.wait_for_leader()
    node: Node = cluster._nodes[3]
    with node.session(timeout=20) as session:
        assert session.incr("n") == Result(1)
        assert session.incr("n", via=3) == Result(2)
        with session._turn, pytest.raises(Unfinished, match="another call"):
            session.incr("n", timeout=0.05)
    node.stop()
    with pytest.raises(ReplicaStopped):
        node.session(timeout=0.1)


def test_a_machine_without_sessions_says_so_and_is_asked_nothing(
    make_cluster: Callable[..., Cluster],
) -> None:
    """An envelope would be an odd command to it."""
    cluster = make_cluster(state_machine=OneBatch)
    cluster.wait_for_leader()
    cluster.incr("n")
    applied = cluster.status()[cluster.wait_for_leader()].applied_index
    with pytest.raises(ConfigurationError, match="OneBatch offers no sessions"):
        cluster.session()
    assert cluster.status()[cluster.wait_for_leader()].applied_index == applied
