"""Sessions as DiskKV stores them: with the data, in snapshots, and after a crash at any point."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator, Sequence
from itertools import pairwise
from pathlib import Path

import msgspec
import pytest

from ondisk import DiskKV, Entry, Result, diskkv, sessions
from ondisk.diskkv import delete, get, incr, put, scan
from ondisk.errors import (
    Corrupt,
    StorageError,
)
from ondisk.sessions import OUTDATED, UNKNOWN_SESSION, close, once, register
from ondisk.storage.store import Store
from ondisk.testing.crashing import Child, CrashingDisk, Point, scratch_directory
from tests.lengths import short_and_long
from tests.machines import apply, everything, opened, recover, saved, stored_sessions
from tests.stores import newest_wal, record_starts


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
