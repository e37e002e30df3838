"""Sessions: a command that is sent twice counts once, whatever happens between the two.

The rules alone, then stored by ``DiskKV`` (reopened, crashed at every point, its log cut anywhere), then in
groups: in virtual time where the moment matters, and on a real ``Cluster``.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from ondisk import Cluster, Entry, Result, diskkv, sessions
from ondisk.diskkv import incr
from ondisk.errors import (
    Corrupt,
)
from ondisk.sessions import OUTDATED, RESULT_NOT_KEPT, UNKNOWN_SESSION, Sessions, close, once, register


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
    make_cluster: Callable[..., Cluster], monkeypatch: pytest.MonkeyPatch
) -> None:
    """It was applied, so this must be no ``NotDone``."""
    apply = diskkv._apply

    def talkative(*args: Any, **named: Any) -> Result:
        result = apply(*args, **named)
        return Result(bytes(2000)) if result.value == 7 else result

    monkeypatch.setattr(diskkv, "_apply", talkative)
    cluster = make_cluster()
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
