"""The checker: on recorded histories with known verdicts, and beside one that tries every order."""

from __future__ import annotations

import csv
import subprocess
import sys
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from itertools import combinations, permutations
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from ondisk import diskkv
from ondisk.diskkv import DiskKV
from ondisk.linearizability import (
    KEY_VALUE,
    REGISTER,
    STRINGS,
    BadHistory,
    History,
    Model,
    Operation,
    Undecided,
    check,
    conflict,
    in_lines,
    main,
    read_history,
    write_history,
)
from ondisk.statemachine import Entry

RECORDED = Path(__file__).parents[2] / "shared" / "histories"
THOROUGHLY = settings(deadline=None, suppress_health_check=[HealthCheck.too_slow])

MODELS = {"key_value": KEY_VALUE, "register": REGISTER, "strings": STRINGS}


def verdicts() -> list[tuple[str, bool]]:
    if not RECORDED.is_dir():
        return []
    with (RECORDED / "verdicts.csv").open() as file:
        return [(row["file"], row["linearizable"] == "true") for row in csv.DictReader(file)]


recorded = pytest.mark.skipif(not RECORDED.is_dir(), reason=f"needs the recorded histories in {RECORDED}")


def op(
    name: str, *args: Any, call: float, end: float | None, result: Any = None, client: int = 1, key: str = "k"
) -> Operation:
    return Operation(client, name, key, args, call, end, result)


# Recorded histories


@recorded
@pytest.mark.parametrize(("name", "expected"), verdicts())
@pytest.mark.timeout(10)
def test_a_recorded_history_gets_its_known_verdict(name: str, expected: bool) -> None:
    """The order that is found explains the history, and the prefix that is found is bad, but not one end
    earlier.
    """
    history, about = read_history(RECORDED / name)
    model = MODELS[about]
    verdict = check(history, model)
    assert verdict.linearizable == expected
    if expected:
        for key, order in verdict.orders.items():
            assert explains(order, [each for each in history if each.key == key], model)
    else:
        assert is_smallest(verdict.prefix, verdict.answer, model)


@recorded
def test_there_are_56_recorded_histories_of_both_kinds() -> None:
    """The test above does not pass for want of files."""
    assert len(verdicts()) == 56
    assert 10 < sum(linearizable for _, linearizable in verdicts()) < 46


# Beside a checker that tries every order


def explains(order: Sequence[Operation], history: Sequence[Operation], model: Model) -> bool:
    """By definition: all that have ended are in it, nobody before one that ended before it, right answers."""
    if len(set(order)) != len(order) or not {each for each in history if each.end is not None} <= set(order):
        return False
    if not set(order) <= set(history):
        return False
    for earlier, later in combinations(order, 2):
        if later.end is not None and later.end < earlier.call:
            return False
    state: Any = model.initial
    for each in order:
        fits, state = model.step(state, each)
        if not fits:
            return False
    return True


def by_brute_force(history: Sequence[Operation], model: Model) -> bool:
    known = [each for each in history if each.end is not None]
    unknown = [each for each in history if each.end is None]
    return any(
        explains(order, history, model)
        for count in range(len(unknown) + 1)
        for happened in combinations(unknown, count)
        for order in permutations([*known, *happened])
    )


def is_smallest(prefix: Sequence[Operation], answer: Operation | None, model: Model) -> bool:
    """It is bad, and without its last end it is good."""
    assert answer is not None
    ends = [each.end for each in prefix if each.end is not None]
    assert answer in prefix
    assert answer.end == max(ends)
    without = without_answer(prefix, answer)
    return not check(prefix, model).linearizable and check(without, model).linearizable


VALUE = st.sampled_from(["", "1", "2", "word"])
MAYBE = st.none() | VALUE
CALLS: dict[str, list[tuple[str, tuple[st.SearchStrategy[Any], ...], st.SearchStrategy[Any]]]] = {
    "key_value": [
        ("get", (), MAYBE),
        ("put", (VALUE,), st.none()),
        ("delete", (), st.booleans()),
        ("incr", (st.sampled_from([1, 2, -1]),), st.integers(-1, 4)),
        ("compare_and_set", (MAYBE, VALUE), st.booleans()),
    ],
    "register": [
        ("read", (), MAYBE),
        ("write", (VALUE,), st.none()),
        ("cas", (VALUE, VALUE), st.booleans()),
    ],
    "strings": [
        ("get", (), st.sampled_from(["", "1", "2", "12", "21", "11"])),
        ("put", (VALUE,), st.none()),
        ("append", (st.sampled_from(["1", "2"]),), st.none()),
    ],
}


@st.composite
def histories(draw: st.DrawFn, about: str, most: int = 5) -> list[Operation]:
    """Few values and few times: contradictions, ties and overlaps are common."""
    made: list[Operation] = []
    for client in range(draw(st.integers(1, most))):  # all different: the brute force compares by value
        name, args, result = draw(st.sampled_from(CALLS[about]))
        call = draw(st.integers(0, 8))
        end = draw(st.none() | st.integers(0, 4).map(call.__add__))
        said = None if end is None else draw(result)
        made.append(Operation(client, name, "k", tuple(draw(each) for each in args), call, end, said))
    return made


@pytest.mark.parametrize("about", MODELS)
def test_the_verdict_is_that_of_trying_every_order(about: str) -> None:
    """With unknown outcomes, with operations that touch at equal times, for every model."""
    model, seen = MODELS[about], {True: 0, False: 0}

    @THOROUGHLY
    @given(histories(about))
    def compare(history: list[Operation]) -> None:
        verdict = check(history, model)
        assert verdict.linearizable == by_brute_force(history, model)
        seen[verdict.linearizable] += 1
        if verdict.linearizable:
            assert explains(verdict.orders["k"], history, model)
            return
        assert verdict.key == "k"
        assert explains(verdict.orders["k"], without_answer(verdict.prefix, verdict.answer), model)
        assert is_smallest(verdict.prefix, verdict.answer, model)

    compare()
    assert min(seen.values()) > 5, "both verdicts came up"


@st.composite
def explained_histories(draw: st.DrawFn, about: str) -> list[Operation]:
    """What clients see when one operation happens after the other: the n-th at time n, seen less exactly."""
    state: Any = MODELS[about].initial
    made: list[Operation] = []
    for time, (name, args, _) in enumerate(draw(st.lists(st.sampled_from(CALLS[about]), max_size=12))):
        call = time - draw(st.integers(0, 3))
        begun = Operation(time, name, "k", tuple(draw(each) for each in args), call, None)
        fits, after = MODELS[about].step(state, begun)
        if not fits:
            continue  # refused: incr of a word
        before, state = state, state if (never := draw(st.integers(0, 9)) == 0) else after
        if never or draw(st.integers(0, 4)) == 0:
            made.append(begun)
            continue
        result = {
            "get": before,
            "read": before,
            "delete": before is not None,
            "incr": int(after) if name == "incr" else None,
            "compare_and_set": bool(args) and before == begun.args[0],
            "cas": bool(args) and before == begun.args[0],
        }.get(name)
        made.append(begun._replace(end=time + draw(st.integers(0, 3)) + 0.5, result=result))
    return draw(st.permutations(made))


@pytest.mark.parametrize("about", MODELS)
def test_what_really_happened_is_never_called_a_contradiction(about: str) -> None:
    """Histories too long to try every order, and few values, so that different writes write the same."""

    @settings(THOROUGHLY, max_examples=500)
    @given(explained_histories(about))
    def look(history: list[Operation]) -> None:
        verdict = check(history, MODELS[about])
        assert verdict.linearizable
        assert explains(verdict.orders.get("k", ()), history, MODELS[about])

    look()


def without_answer(prefix: Sequence[Operation], answer: Operation | None) -> list[Operation]:
    """The prefix as it was before the answer, which may have been under way."""
    assert answer is not None
    return [each._replace(end=None, result=None) if each == answer else each for each in prefix]


@pytest.mark.parametrize("about", MODELS)
def test_a_conflict_needs_each_of_its_operations_and_no_other(about: str) -> None:
    """With the outcomes of all others unknown it is bad still; with one of its own unknown it is not."""
    model = MODELS[about]

    @THOROUGHLY
    @given(histories(about))
    def look(history: list[Operation]) -> None:
        verdict = check(history, model)
        if verdict.linearizable:
            return
        needed = conflict(verdict.prefix, model)
        assert needed
        assert verdict.answer in needed
        assert not by_brute_force(known_only(verdict.prefix, needed), model)
        for each in needed:
            fewer = [other for other in needed if other != each]
            assert by_brute_force(known_only(verdict.prefix, fewer), model)

    look()


def known_only(prefix: Sequence[Operation], known: Sequence[Operation]) -> list[Operation]:
    return [each if each in known else each._replace(end=None, result=None) for each in prefix]


@THOROUGHLY
@given(histories("key_value", most=3), histories("key_value", most=3))
def test_keys_are_decided_alone(one: list[Operation], other: list[Operation]) -> None:
    """Two keys are linearizable if each is; else the first contradiction in time is told."""
    other = [each._replace(key="other") for each in other]
    verdict, alone = check(one + other), {"k": check(one), "other": check(other)}
    bad = {key: each.answer.end for key, each in alone.items() if each.answer and each.answer.end is not None}
    assert verdict.linearizable == (not bad)
    if bad:
        assert verdict.key is not None
        assert bad[verdict.key] == min(bad.values())
        assert verdict.prefix == alone[verdict.key].prefix


# The rules, one by one


def test_a_stale_read_is_not_linearizable() -> None:
    """The textbook case, and what the verdict says about it."""
    blue = op("put", "blue", call=1, end=2)
    other = op("get", call=2.5, end=2.6, result="blue", client=2)
    green = op("put", "green", call=3, end=4)
    stale = op("get", call=5, end=6, result="blue", client=3)
    after = op("put", "red", call=7, end=8)
    verdict = check([after, stale, green, other, blue])
    assert not verdict.linearizable
    assert verdict.answer == stale
    assert verdict.prefix == (blue, other, green, stale)
    assert conflict(verdict.prefix) == (blue, green, stale)


def test_an_unknown_write_may_happen_long_after_its_call_and_never_before() -> None:
    """Or never."""
    lost = op("put", "lost", call=5, end=None)
    old = op("put", "old", call=1, end=2)

    def get(call: float, result: str | None) -> Operation:
        return op("get", call=call, end=call + 1, result=result)

    assert check([old, lost, get(6, "old")]).linearizable
    assert check([old, lost, get(6, "old"), get(900, "lost")]).linearizable
    assert not check([old, lost, get(3, "lost")]).linearizable
    assert not check([old, lost, get(6, "lost"), get(8, "old")]).linearizable


def test_an_unknown_increment_counts_at_most_once() -> None:
    """Two of them twice."""
    lost = op("incr", 1, call=1, end=None)
    again = op("incr", 1, call=2, end=None)
    two = op("get", call=5, end=6, result="2")
    assert not check([lost, two]).linearizable
    assert check([lost, again, two]).linearizable


@pytest.mark.parametrize("first", ["put", "incr"])
def test_which_unknown_operation_explained_an_answer_matters_later(first: str) -> None:
    """Either can have made the 1, but only the increment is left to make the 5."""
    calls = {"put": 1, "incr": 1} | {first: 0}
    history = [
        op("put", "1", call=calls["put"], end=None),
        op("incr", 1, call=calls["incr"], end=None),
        op("get", call=2, end=3, result="1"),
        op("put", "4", call=4, end=5),
        op("get", call=6, end=7, result="5"),
    ]
    assert check(history).linearizable
    assert not check([*history, op("get", call=8, end=9, result="1")]).linearizable


def test_operations_that_touch_are_concurrent_and_the_recorder_never_lets_them() -> None:
    """An equal time says nothing; the order of the recorder's calls says it all."""
    assert check([op("put", "a", call=1, end=2), op("get", call=2, end=3, result=None)]).linearizable
    history = History()
    put = history.begin(1, "put", "k", "a", at=1)
    history.ok(put, at=2)
    get = history.begin(2, "get", "k", at=2)
    history.ok(get, None, at=1.5)
    assert not check(history.operations).linearizable
    times = [each for operation in history.operations for each in (operation.call, operation.end or 0)]
    assert times == pytest.approx([1, 2, 2, 2])
    assert sorted(set(times)) == times


def test_an_operation_under_way_at_the_last_answer_is_part_of_the_prefix_without_its_end() -> None:
    """It was called, so it might explain the answer; what it said later is not known yet."""
    pending = op("put", "pending", call=1, end=9)
    bad = op("get", call=2, end=3, result="nonsense")
    later = op("put", "later", call=4, end=5)
    verdict = check([pending, bad, later])
    assert verdict.prefix == (pending._replace(end=None), bad)


def test_what_is_under_way_may_still_have_another_outcome() -> None:
    """Both answers together cannot be; but at the first one the second one was not known yet."""
    one = op("incr", 1, call=1, end=3, result=0)
    other = op("incr", -1, call=2, end=4, result=0)
    verdict = check([one, other])
    assert verdict.answer == other
    assert verdict.orders["k"] == (other._replace(end=None, result=None), one)


def test_a_write_of_what_is_there_already_may_be_needed_later() -> None:
    """Here the put changes nothing before the delete, and must come after it."""
    history = [
        op("put", "33", call=1, end=2),
        op("put", "33", call=3, end=5, client=1),
        op("delete", call=4, end=6, result=True, client=2),
        op("get", call=7, end=8, result="33", client=3),
    ]
    assert check(history).linearizable
    assert not check([*history, op("delete", call=9, end=10, result=False)]).linearizable


def test_a_search_that_becomes_too_large_says_so() -> None:
    """Unless another key has settled it."""
    many = [op("append", f"{number}", call=0, end=100 + number) for number in range(20)]
    many.append(op("get", call=200, end=201, result="nonsense"))
    with pytest.raises(Undecided, match=r"no verdict on key 'k' after 1,000 configurations"):
        check(many, STRINGS, limit=1_000)
    assert set(conflict(many[15:], STRINGS, limit=1)) == set(many[15:]), "nothing could be ruled out"
    assert conflict(many[15:], STRINGS) == (many[-1],)
    settled = op("get", call=0, end=1, result="nonsense", key="other")
    assert check([*many, settled], STRINGS, limit=1_000).key == "other"


def test_a_contradiction_stays_one_if_its_smallest_prefix_takes_too_long_to_find() -> None:
    """What was known later makes a search small; without it there are 256 sums to look at."""
    bad = op("get", call=0, end=1, result="nonsense")
    sums = [op("incr", 1 << n, call=0, end=2 + n, result=(2 << n) - 1) for n in range(8)]
    verdict = check([bad, *sums])
    assert (verdict.answer, len(verdict.prefix)) == (bad, 9)
    verdict = check([bad, *sums], limit=50)
    assert not verdict.linearizable
    assert verdict.prefix == (bad, *sums)
    assert verdict.answer == sums[-1]
    assert verdict.orders == {"k": ()}


def test_nothing_is_said_about_the_first_contradiction_if_it_was_not_found() -> None:
    """Here the last answer is innocent: without it they cannot be ordered either."""
    bad = op("get", call=0, end=1, result="nonsense")
    sums = [op("incr", 1 << n, call=0, end=2 + n, result=(2 << n) - 1) for n in range(8)]
    found, lost = check([bad, *sums]), check([bad, *sums], limit=50)
    assert (found.smallest, lost.smallest) == (True, False)
    assert "without the last" in in_lines(found) and ">>" in in_lines(found)
    assert "without the last" not in in_lines(lost) and ">>" not in in_lines(lost)
    assert "takes too long to find" in in_lines(lost)
    assert [line for line in in_lines(lost).splitlines() if line.startswith("*") and "nonsense" in line]


def test_one_answer_that_nothing_explains_is_the_smallest_contradiction() -> None:
    assert check([op("get", call=0, end=1, result="nonsense"), op("put", "v", call=5, end=6)]).smallest
    assert not check([op("put", "v", call=5, end=6)]).smallest


def test_a_number_of_thousands_of_digits_is_refused_like_any_other_that_is_too_large() -> None:
    """As a string it would be an error of Python."""
    huge = op("incr", 10**5000, call=1, end=None)
    assert check([huge, op("get", call=2, end=3, result=None)]).linearizable
    assert not check([op("incr", 10**5000, call=1, end=2, result=10**5000)]).linearizable


@pytest.mark.parametrize(
    ("model", "operation"),
    [
        (KEY_VALUE, op("read", call=1, end=2)),
        (KEY_VALUE, op("put", call=1, end=2)),
        (REGISTER, op("incr", 1, call=1, end=2)),
        (STRINGS, op("delete", call=1, end=2)),
        (KEY_VALUE, op("get", call=2, end=1)),
        (KEY_VALUE, op("get", call=float("nan"), end=1)),
    ],
)
def test_an_operation_that_is_none_is_refused(model: Model, operation: Operation) -> None:
    """It gets no verdict."""
    with pytest.raises(BadHistory):
        check([operation], model)


def test_nothing_at_all_is_linearizable() -> None:
    """There is nothing to explain."""
    assert check([]) == (True, {}, None, (), None)


@THOROUGHLY
@given(st.lists(st.sampled_from(["get", "put", "delete", "incr", "compare_and_set"]), max_size=12), st.data())
def test_the_model_answers_as_diskkv_does(names: list[str], data: st.DataObject) -> None:
    """One after the other there is one order, so any other answer would be a contradiction."""
    with open_machine() as machine:
        history: list[Operation] = []
        arguments = {name: args for name, args, _ in CALLS["key_value"]}
        for index, name in enumerate(names, 1):
            args = tuple(data.draw(each) for each in arguments[name])
            if name == "get":
                value = machine.lookup(diskkv.get("k"))
                result = None if value is None else value.decode()
            else:
                answered = machine.update([Entry(index, getattr(diskkv, name)("k", *args))])[0]
                if answered.error is not None:
                    continue
                result = answered.value
            history.append(Operation(1, name, "k", args, index, index, result))
    history = [each._replace(call=3 * each.call, end=3 * each.call + 1) for each in history]
    assert check(history).linearizable
    if history and history[-1].name != "put":
        wrong = {"incr": 99, "get": "wrong"}.get(history[-1].name, not history[-1].result)
        assert not check([*history[:-1], history[-1]._replace(result=wrong)]).linearizable


@contextmanager
def open_machine() -> Iterator[DiskKV]:
    """A ``DiskKV`` in a directory of its own."""
    with TemporaryDirectory() as folder:
        machine = DiskKV(Path(folder) / "state")
        machine.open()
        try:
            yield machine
        finally:
            machine.close()


# The recorder


def test_the_recorder_keeps_what_may_have_happened() -> None:
    """Answered, given up, under way; and not what certainly did not happen."""
    history = History()
    for number, name in enumerate(("done", "lost", "refused", "under way"), 1):
        assert history.begin("me", "put", b"\xff", name.encode(), at=number) == number
    history.ok(1, None, at=5)
    history.unknown(2, at=6)
    history.not_done(3)
    assert [(each.args[0], each.end) for each in history.operations] == [
        ("done", 5),
        ("lost", None),
        ("under way", None),
    ]
    assert history.operations[0].key == "\udcff"
    for again in (history.ok, history.unknown, history.not_done):
        with pytest.raises(BadHistory, match="operation 3 is not under way"):
            again(3)


def test_threads_record_into_one_history() -> None:
    """No operation is lost, and no two times are equal."""
    history = History()

    def work(client: int) -> None:
        for _ in range(500):
            history.ok(history.begin(client, "incr", "n", 1), 1)

    threads = [threading.Thread(target=partial(work, client)) for client in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    times = [each for operation in history.operations for each in (operation.call, operation.end)]
    assert len(times) == len(set(times)) == 4_000


# Files


@THOROUGHLY
@given(
    st.lists(histories("key_value").map(tuple), min_size=1, max_size=3),
    st.text(max_size=3) | st.binary(max_size=3).map(lambda key: key.decode(errors="surrogateescape")),
)
def test_a_file_that_was_written_reads_and_writes_the_same(many: list[list[Operation]], key: str) -> None:
    """Any key, even one that is no text."""
    operations = sorted(
        (each._replace(key=key) for some in many for each in some), key=lambda each: each.call
    )
    with TemporaryDirectory() as folder:
        one, other = Path(folder) / "one", Path(folder) / "other"
        write_history(one, operations)
        assert read_history(one) == (operations, "key_value")
        write_history(other, [each._replace(call=float(each.call)) for each in read_history(one)[0]])
        again = Path(folder) / "again"
        write_history(again, read_history(other)[0])
        assert again.read_bytes() == other.read_bytes()


GOOD = '{"client": 1, "name": "get", "key": "k", "args": [], "call": 1, "end": 2, "result": null}'


@pytest.mark.parametrize(
    ("line", "said"),
    [
        ("nonsense", "Expecting value"),
        ("[" * 5_000, ""),
        ("[1]", "Expected `object`"),
        (GOOD.replace("get", "read"), "Invalid enum value 'read'"),
        (GOOD.replace('"key": "k", ', ""), "missing required field `key`"),
        (GOOD.replace('"key"', '"more": 1, "key"'), "unknown field `more`"),
        (GOOD.replace("[]", '["v"]'), "Expected `array`"),
        (GOOD.replace("null", "3"), "Expected `str | null`, got `int`"),
        (GOOD.replace('"end": 2', '"end": 0'), "it ends before its call"),
        (GOOD.replace('"call": 1', '"call": NaN'), "a time is a number"),
        (GOOD.replace('"end": 2, "result": null', '"end": null, "result": "v"'), "Expected `null`"),
        (GOOD.replace("get", "delete"), "Expected `bool`"),
    ],
)
def test_a_bad_line_is_refused_with_its_number(tmp_path: Path, line: str, said: str) -> None:
    """Not guessed at, and not left out."""
    file = tmp_path / "history"
    file.write_text(f"{GOOD}\n\n{line}\n{GOOD}\n")
    with pytest.raises(BadHistory) as caught:
        read_history(file)
    assert str(caught.value).startswith(f"{file}:3: ")
    assert said in str(caught.value)


CALL = "INFO  jepsen.util - 1\t:invoke\t:read\tnil\n"
WRITE = "INFO  jepsen.util - 1\t:invoke\t:write\t4\n"


@pytest.mark.parametrize(
    ("text", "said"),
    [
        (CALL + "INFO  jepsen.util - 1\t:ok\t:wait\t1\n", "2: this is no event"),
        (CALL + CALL, "2: process 1 calls, and its call before has not ended"),
        ("INFO  jepsen.util - 1\t:ok\t:read\t1\n", "1: process 1 has not called this"),
        (CALL + "INFO  jepsen.util - 1\t:ok\t:write\t1\n", "2: process 1 has not called this"),
        ("INFO  jepsen.util - 1\t:invoke\t:cas\t1\n", "1: cas of 1"),
        ('{:process 0, :type :invoke, :f :put, :key "0", :value nil}\n', "1: put of nil"),
        ("", " there is no operation in it"),
        (CALL + "INFO  jepsen.util - 1\t:fail\t:read\t:timed-out\n", " there is no operation in it"),
        (CALL + "INFO  jepsen.util - 1\t:ok\t:read\t:timed-out\n", "2: ok of :timed-out"),
        (CALL + "INFO  jepsen.util - 1\t:ok\t:read\t[1 2]\n", "2: [1 2] is no answer to this read"),
        (WRITE + "INFO  jepsen.util - 1\t:ok\t:write\t5\n", "2: 5 is no answer to this write"),
        (WRITE + "INFO  jepsen.util - 1\t:ok\t:write\tnil\n", "2: nil is no answer to this write"),
        (WRITE.replace("4", ":timed-out"), "1: invoke of :timed-out"),
        (CALL.replace("nil", ":timed-out"), "1: invoke of :timed-out"),
        (
            '{:process 0, :type :invoke, :f :append, :key "0", :value "x y"}\n'
            '{:process 0, :type :ok, :f :append, :key "0", :value "x z"}\n',
            '2: "x z" is no answer to this append',
        ),
    ],
)
def test_a_bad_log_is_refused_with_its_line(tmp_path: Path, text: str, said: str) -> None:
    """Of both formats of others."""
    file = tmp_path / "history"
    file.write_text(text)
    with pytest.raises(BadHistory) as caught:
        read_history(file)
    assert str(caught.value).startswith(f"{file}:{said}")


def test_the_logs_of_others_are_read_as_they_are_meant(tmp_path: Path) -> None:
    """Done, refused, unknown, and certainly not done."""
    file = tmp_path / "etcd"
    events = [
        "1 :invoke :write 3", "2 :invoke :read nil", "1 :ok :write 3", "2 :ok :read 3",
        "1 :invoke :cas [3 4]", "2 :invoke :cas [8 9]", "1 :info :cas :timed-out", "2 :fail :cas [8 9]",
        "2 :invoke :read nil", "2 :fail :read :timed-out", "3 :invoke :write 5",
    ]  # fmt: skip
    file.write_text("".join("INFO  jepsen.util - " + event.replace(" :", "\t:") + "\n" for event in events))
    text = (
        file.read_text()
        .replace(":write ", ":write\t")
        .replace(":read ", ":read\t")
        .replace(":cas ", ":cas\t")
    )
    file.write_text(text)
    assert read_history(file) == (
        [
            Operation(1, "write", "", ("3",), 1, 3, None),
            Operation(2, "read", "", (), 2, 4, "3"),
            Operation(1, "cas", "", ("3", "4"), 5, None, None),
            Operation(2, "cas", "", ("8", "9"), 6, 8, False),
            Operation(3, "write", "", ("5",), 11, None, None),
        ],
        "register",
    )
    file.write_text(
        '{:process 0, :type :invoke, :f :append, :key "7", :value "x 0 0 y"}\n'
        '{:process 0, :type :ok, :f :append, :key "7", :value "x 0 0 y"}\n'
        '{:process 0, :type :invoke, :f :get, :key "7", :value nil}\n'
        '{:process 0, :type :ok, :f :get, :key "7", :value ""}\n'
    )
    assert read_history(file) == (
        [
            Operation(0, "append", "7", ("x 0 0 y",), 1, 2, None),
            Operation(0, "get", "7", (), 3, 4, ""),
        ],
        "strings",
    )


# The command line


@pytest.fixture
def files(tmp_path: Path) -> Iterator[tuple[str, str]]:
    put, stale = op("put", "v", call=1, end=2), op("get", call=3, end=4.5, result=None, client=2)
    write_history(tmp_path / "good", [put])
    write_history(tmp_path / "bad", [put, op("get", call=1, end=2.5, result="v"), stale])
    yield str(tmp_path / "good"), str(tmp_path / "bad")


def test_the_command_tells_the_verdict_and_shows_the_contradiction(
    files: tuple[str, str], capsys: pytest.CaptureFixture[str]
) -> None:
    """And its exit status is 0 only if everything is linearizable."""
    good, bad = files
    assert main([good]) == 0
    assert capsys.readouterr().out == f"{good}: linearizable\n"
    assert main([bad, good]) == 1
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == f"{bad}: not linearizable"
    assert "The first 3 operations on key 'k'" in lines[1]
    assert [line.split() for line in lines[3:]] == [
        ["client", "call", "end", "operation"],
        ["*", "1", "1", "2", "put('k',", "'v')", "→", "done"],
        ["1", "1", "2.5", "get('k')", "→", "'v'"],
        [">>", "2", "3", "4.5", "get('k')", "→", "nothing"],
        [f"{good}:", "linearizable"],
    ]


def test_the_command_says_in_a_line_what_it_cannot_read(tmp_path: Path, files: tuple[str, str]) -> None:
    """With exit status 2, as a process of its own, and it goes on with the other files."""
    (tmp_path / "damaged").write_bytes(b"\xff\xfe")
    missing, damaged = str(tmp_path / "missing"), str(tmp_path / "damaged")
    command = [sys.executable, "-W", "error", "-m", "ondisk.linearizability", missing, damaged, *files]
    ran = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    assert ran.returncode == 2
    assert ran.stderr == f"{missing}: No such file or directory\n{damaged}: not text in UTF-8\n"
    assert f"{files[0]}: linearizable" in ran.stdout
    assert f"{files[1]}: not linearizable" in ran.stdout
