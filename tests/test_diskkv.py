"""DiskKV: right answers for any bytes, and errors that are results."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ondisk import diskkv
from ondisk.diskkv import (
    MAX_KEY_BYTES,
    MAX_SCAN_ITEMS,
    MAX_VALUE_BYTES,
    DiskKV,
    Get,
    Scan,
    compare_and_set,
    delete,
    get,
    incr,
    put,
    put_many,
    scan,
)
from ondisk.errors import InvalidCommand
from ondisk.statemachine import Entry, Result
from tests.kvcommands import INT64_MAX, INT64_MIN, ODD_KEYS, anything, commands, malformed, packed
from tests.machines import apply, everything, opened

# Commands and queries


@pytest.mark.parametrize("value", [b"", b"\0", bytes(range(256)), b"v" * MAX_VALUE_BYTES], ids=range(4))
def test_any_bytes_are_a_key_and_a_value(kv: DiskKV, value: bytes) -> None:
    """What was put under a key comes back under that key and no other, also after a reopening."""
    for key in ODD_KEYS:
        before = everything(kv)
        assert kv.lookup(get(key)) is None
        assert apply(kv, put(key, value)) == [Result()]
        assert everything(kv) == {**before, key: value}
    for _ in range(2):
        assert [kv.lookup(get(key)) for key in ODD_KEYS] == [value] * len(ODD_KEYS)
        assert list(everything(kv)) == sorted(ODD_KEYS)
        kv.close()
        assert kv.open() == len(ODD_KEYS)
    for key in ODD_KEYS:
        assert apply(kv, delete(key), delete(key)) == [Result(True), Result(False)]
        assert kv.lookup(get(key)) is None
    assert everything(kv) == {}


def test_text_is_taken_as_utf8(kv: DiskKV) -> None:
    """A ``str`` and its UTF-8 bytes are the same key; texts that only look alike are not."""
    apply(kv, put("ключ 🗝️", "значение"), put("e\u0301", "two"), put("\u00e9", "one"))
    assert kv.lookup(get("ключ 🗝️".encode())) == "значение".encode()
    assert kv.lookup(get("e\u0301")) == b"two"
    assert kv.lookup(get("\u00e9")) == b"one"
    assert put("é", "ü") == put("é".encode(), "ü".encode())
    assert kv.lookup(Get("\u00e9")) == b"one"  # type: ignore[arg-type]
    assert len(kv.lookup(Scan("ключ"))) == 1  # type: ignore[arg-type]


def test_a_missing_key_is_none_and_an_empty_value_is_empty(kv: DiskKV) -> None:
    """``None`` and ``b""`` never stand for each other."""
    apply(kv, put("empty", ""))
    assert kv.lookup(get("empty")) == b""
    assert kv.lookup(get("missing")) is None
    assert apply(kv, compare_and_set("empty", None, "x")) == [Result(False)]
    assert apply(kv, compare_and_set("missing", "", "x")) == [Result(False)]
    assert apply(kv, compare_and_set("missing", None, "")) == [Result(True)]
    assert apply(kv, compare_and_set("missing", "", "x")) == [Result(True)]
    assert apply(kv, delete("empty")) == [Result(True)]


def test_the_index_is_not_a_user_key(kv: DiskKV) -> None:
    """A user's key of the same name neither sees nor changes the stored index."""
    apply(kv, put("applied_index", "junk"), put(diskkv._APPLIED_INDEX, b"\xff" * 8))
    apply(kv, delete(diskkv._APPLIED_INDEX))
    assert everything(kv) == {}
    kv.close()
    assert kv.open() == 3


def test_incr_counts_within_64_bits(kv: DiskKV) -> None:
    """A missing key counts as 0; a step beyond the range, or on something else, changes nothing."""
    assert apply(kv, incr("n"), incr("n", 41), incr("n", -50)) == [
        Result(1), Result(42), Result(-8)
    ]  # fmt: skip
    assert kv.lookup(get("n")) == b"-8"
    assert apply(kv, incr("top", INT64_MAX), incr("low", INT64_MIN)) == [
        Result(INT64_MAX),
        Result(INT64_MIN),
    ]
    not_numbers = [b"", b"x", b"1.5", b"1_000", b" 1", b"0x10", "١".encode(), b"9" * 20]
    not_numbers += [b"9" * MAX_VALUE_BYTES, b"--1", b"1\n", b"nan"]
    apply(kv, *(put(b"not %d" % number, data) for number, data in enumerate(not_numbers)))
    before = everything(kv)
    results = apply(
        kv,
        incr("top"),
        incr("low", -1),
        *(incr(b"not %d" % number) for number in range(len(not_numbers))),
    )
    assert all(result.value is None and result.error for result in results)
    assert {result.error for result in results[:2]} == {
        f"the value of {key!r} would leave the range of 64 bits" for key in (b"top", b"low")
    }
    assert everything(kv) == before


def test_commands_of_a_batch_see_each_other(kv: DiskKV) -> None:
    """A batch answers exactly as its commands would one by one."""
    commands = [
        put("k", "1"), incr("k"), compare_and_set("k", "2", "7"), compare_and_set("k", "2", "8"),
        delete("k"), delete("k"), incr("k", 5), compare_and_set("k", None, "x"), b"junk",
        put("k", "y"), incr("k"), compare_and_set("k", "y", "z"),
    ]  # fmt: skip
    together = apply(kv, *commands)
    kept = everything(kv)
    apply(kv, delete("k"))
    assert [apply(kv, command)[0] for command in commands] == together
    assert everything(kv) == kept == {b"k": b"z"}


def test_many_are_put_in_one_step_the_last_value_of_a_key(kv: DiskKV) -> None:
    """Later commands of the batch see them, and they replace what earlier ones have set or deleted."""
    many = put_many([("a", "1"), ("b", b"2"), ("a", "3"), ("", "")])
    results = apply(kv, put("a", "0"), delete("b"), many, incr("a"), put_many([]))
    assert results == [Result(), Result(False), Result(), Result(4), Result()]
    assert everything(kv) == {b"": b"", b"a": b"4", b"b": b"2"}


@pytest.mark.parametrize(
    ("bad", "error"),
    [
        ({b"k" * (MAX_KEY_BYTES + 1): b"v"}, "the key has 65,537 bytes; at most 65,536 are allowed"),
        (
            {b"k": b"v" * (MAX_VALUE_BYTES + 1)},
            "the value has 1,048,577 bytes; at most 1,048,576 are allowed",
        ),
    ],
)
def test_of_many_that_are_put_none_is_if_one_is_too_long(
    kv: DiskKV, bad: dict[bytes, bytes], error: str
) -> None:
    """Whoever encoded them has not looked; every replica does."""
    assert apply(kv, diskkv.encode_pairs({b"a": b"1", **bad, b"z": b"1"})) == [Result(error=error)]
    assert everything(kv) == {}
    with pytest.raises(InvalidCommand):
        put_many(bad.items())


@pytest.mark.parametrize("make", [put, compare_and_set, get, delete, incr, scan])
@pytest.mark.parametrize("wrong", [None, 5, 1.5, bytearray(b"k"), ["k"], memoryview(b"k"), "\ud800"])
def test_a_key_of_the_wrong_type_is_a_clear_error(make: Callable[..., Any], wrong: object) -> None:
    """``InvalidCommand`` names the key and the type; nothing is guessed."""
    rest = {put: ("v",), compare_and_set: (None, "v")}.get(make, ())
    with pytest.raises(InvalidCommand, match=r"key is str or bytes|key is not valid text"):
        make(wrong, *rest)


@pytest.mark.parametrize(
    "make",
    [
        lambda: put("k", None),
        lambda: put("k", 7),
        lambda: compare_and_set("k", 7, "v"),
        lambda: compare_and_set("k", "v", None),
        lambda: put("k", "\ud800"),
        lambda: incr("k", "1"),
        lambda: incr("k", 1.0),
        lambda: incr("k", True),
        lambda: incr("k", 2**63),
        lambda: incr("k", 10**5000),
        lambda: scan("k", limit=0),
        lambda: scan("k", limit=-1),
        lambda: scan("k", limit=MAX_SCAN_ITEMS + 1),
        lambda: scan("k", limit=10**5000),
        lambda: scan("k", limit=1.5),
        lambda: scan("k", start=None),
        lambda: put("k", b"v" * (MAX_VALUE_BYTES + 1)),
        lambda: put("k", "é" * (MAX_VALUE_BYTES // 2 + 1)),
        lambda: put(b"k" * (MAX_KEY_BYTES + 1), "v"),
        lambda: get(b"k" * (MAX_KEY_BYTES + 1)),
    ],
)
def test_a_wrong_argument_is_a_clear_error_when_the_command_is_made(
    make: Callable[[], object],
) -> None:
    """Wrong types and sizes are ``InvalidCommand`` with a short text, before anything happens."""
    with pytest.raises(InvalidCommand) as raised:
        make()
    assert 10 < len(str(raised.value)) < 120


@pytest.mark.parametrize(
    "query",
    [None, b"k", "k", put("k", "v"), Get(5), Get(None), Scan(5), Scan(limit=0),  # type: ignore[arg-type]
     Scan(limit=MAX_SCAN_ITEMS + 1), Scan(start=None), Scan(limit="5"), Get(bytearray(b"k"))],  # type: ignore[arg-type]
)  # fmt: skip
def test_a_query_that_makes_no_sense_is_a_clear_error(kv: DiskKV, query: Any) -> None:
    """Queries made by hand are checked like those made by ``get`` and ``scan``."""
    with pytest.raises(InvalidCommand):
        kv.lookup(query)


def test_sizes_are_checked_on_every_replica_too(kv: DiskKV) -> None:
    """A command made by hand with too large parts is an error ``Result`` and changes nothing."""
    long_key, long_value = b"k" * (MAX_KEY_BYTES + 1), b"v" * (MAX_VALUE_BYTES + 1)
    results = apply(
        kv,
        packed(["put", long_key, b"v"]),
        packed(["put", b"k", long_value]),
        packed(["delete", long_key]),
        packed(["incr", long_key, 1]),
        packed(["cas", long_key, None, b"v"]),
        packed(["cas", b"k", None, long_value]),
    )
    assert all("at most" in (result.error or "") for result in results)
    assert everything(kv) == {}


# Malformed commands


@pytest.fixture(scope="module")
def replicas(tmp_path_factory: pytest.TempPathFactory) -> Iterator[list[DiskKV]]:
    """Two machines that are given the same entries."""
    machines = [opened(tmp_path_factory.mktemp("kv") / str(number)) for number in range(2)]
    yield machines
    for machine in machines:
        machine.close()


@anything
@given(batch=st.lists(commands | malformed, max_size=8))
def test_a_malformed_command_is_the_same_result_everywhere(
    replicas: list[DiskKV], batch: list[bytes]
) -> None:
    """Any bytes are one ``Result`` each, the same on every replica, however they are batched."""
    first = replicas[0]._applied + 1
    entries = [Entry(index, command) for index, command in enumerate(batch, first)]
    together = replicas[0].update(entries)
    one_by_one = [result for entry in entries for result in replicas[1].update([entry])]
    assert together == one_by_one and len(together) == len(batch)
    assert everything(replicas[0]) == everything(replicas[1])


@pytest.mark.parametrize(
    "command",
    [
        b"",
        b"\x91" * 100_000,
        packed(["put", b"k", b"v"])[:1].replace(b"\x93", b"\x94")
        + packed(["put", b"k", b"v"])[1:] + b"\x91" * 100_000 + b"\xc0",
        b"\x93\xa3put" + b"\x91" * 100_000,
        b"\x93\xa3put\xc4\x01k" + b"\x81\xa0" * 100_000,
        b"\xdd\xff\xff\xff\xff",
        b"\x93\xa3put\xc6\xff\xff\xff\xff",
        b"\x81" + b"\xa3put" + b"\xc0",
        packed(["put", "k", "v"]),
        packed(["put", b"k"]),
        packed(["put", b"k", b"v", b"w"]),
        packed(["put", b"k", None]),
        packed(["incr", b"k", 2**64 - 1]),
        packed(["incr", b"k", "1"]),
        packed(["nonsense", b"k"]),
        packed([b"put", b"k", b"v"]),
        packed({"type": "put", "key": b"k", "value": b"v"}),
        b"\x93\xa3\xff\xff\xff\xc4\x01k\xc4\x01v",
        packed(["put", b"k", b"v"]) + b"\0",
    ],
)  # fmt: skip
def test_a_hostile_command_is_an_error_result_and_changes_nothing(kv: DiskKV, command: bytes) -> None:
    """Deep nesting, huge lengths and wrong shapes are refused; the index still counts them."""
    results = apply(kv, put("a", "1"), command, put("b", "2"))
    assert results[0] == results[2] == Result()
    assert results[1].value is None and results[1].error and len(results[1].error) < 200
    assert everything(kv) == {b"a": b"1", b"b": b"2"}
    kv.close()
    assert kv.open() == 3


# Scans


@anything
@given(
    keys=st.sets(st.binary(max_size=3) | st.sampled_from([b"", b"a", b"a\xff", b"\xff\xff"])),
    prefix=st.binary(max_size=2) | st.sampled_from([b"a", b"\xff"]),
    start=st.binary(max_size=3),
    limit=st.integers(1, 8),
)
def test_a_scan_is_sorted_and_has_exactly_what_was_asked(
    replicas: list[DiskKV], keys: set[bytes], prefix: bytes, start: bytes, limit: int
) -> None:
    """The first ``limit`` keys with that prefix from ``start`` on, in byte order."""
    machine = replicas[0]
    old = [delete(key) for key in everything(machine)]
    for replica in replicas:
        apply(replica, *old, *(put(key, key + b"!") for key in sorted(keys)))
    wanted = sorted(key for key in keys if key.startswith(prefix) and key >= start)[:limit]
    assert machine.lookup(scan(prefix, start, limit)) == [(key, key + b"!") for key in wanted]
