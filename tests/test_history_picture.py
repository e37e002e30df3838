"""The picture of a history, as text."""

from __future__ import annotations

import re
from itertools import pairwise
from typing import Any
from xml.etree import ElementTree as ET

from hypothesis import HealthCheck, given, settings

from ondisk.lab.pictures.history import MAX_OPERATIONS, history_picture
from ondisk.lab.pictures.history_words import label
from ondisk.linearizability import Operation, check, conflict
from tests.pictures import svg_of, texts
from tests.test_linearizability import histories


def op(
    client: int | str, name: str, *args: Any, call: float, end: float | None, result: Any = None
) -> Operation:
    return Operation(client, name, "colour", args, call, end, result)


STALE = [
    op("you", "put", "blue", call=1, end=2),
    op("you", "put", "green", call=3, end=4),
    op("lost", "put", "red", call=2.5, end=None),
    op(2, "get", call=2.6, end=5.5, result="red"),
    op(3, "get", call=5, end=6, result="blue"),
    op(3, "get", call=7, end=8, result="green"),
]
GOOD = [
    op(1, "put", "<blue> & more", call=1, end=9),
    op(2, "put", "green", call=2, end=4),
    op(2, "get", call=3, end=5, result="green"),
    op(3, "get", call=6, end=8, result="<blue> & more"),
    op(3, "incr", 1, call=7, end=None),
]


def classes(picture: ET.Element, name: str) -> list[ET.Element]:
    return [each for each in picture.iter() if name in each.get("class", "").split()]


def test_the_verdict_is_said_in_the_picture_in_its_description_and_in_the_table() -> None:
    """Nothing is said by colour alone, and text from outside cannot break the picture."""
    for history, said in ((STALE, "Not linearizable"), (GOOD, "Linearizable")):
        shown = history_picture(history, check(history))
        drawn = svg_of(shown.html)
        description = drawn.find("desc")
        assert description is not None
        assert description.text == drawn.get("aria-label") == repr(shown) == shown.words
        assert shown.words.startswith(said)
        assert said in texts(drawn)[0]
        assert f"<caption>{said}" in shown.html
        ET.fromstring(re.findall(r"<table>.*</table>", shown.html)[0])


def test_the_order_is_numbered_and_each_number_stands_within_its_operation() -> None:
    """From left to right, after the call, before the end."""
    verdict = check(GOOD)
    drawn = svg_of(history_picture(GOOD, verdict).html)
    discs = [(float(each.get("cx", "")), each.get("cy")) for each in classes(drawn, "mark") if each.get("cy")]
    discs = discs[: len(verdict.orders["colour"])]  # the last one is in the legend
    assert [each.text for each in classes(drawn, "number")] == ["1", "2", "3", "4"]
    assert discs == sorted(discs)
    bars = [
        (float(bar.get("x", "")), float(bar.get("width", "")), float(bar.get("y", "")))
        for bar in drawn.iter("rect")
    ]
    for x, y in discs:
        assert any(left < x < left + width and float(y or 0) == top + 8 for left, width, top in bars)
    assert "client 2: put green (number 1 in the order)" in history_picture(GOOD, verdict).words


def test_no_answer_is_accused_if_it_takes_too_long_to_find_the_first_one() -> None:
    """There is no cross, and nothing is said about the first operations."""
    bad = op(1, "get", call=0, end=1, result="nonsense")
    sums = [op(n, "incr", 1 << n, call=0, end=2 + n, result=(2 << n) - 1) for n in range(8)]
    for limit, found in ((10_000, True), (50, False)):
        shown = history_picture([bad, *sums], check([bad, *sums], limit=limit))
        drawn = svg_of(shown.html)
        crosses = [each for each in drawn.iter("path") if "m0 -12l-12 12" in each.get("d", "")]
        assert (len(crosses), "the first 9" in shown.words) == ((2, True) if found else (0, False))
        assert ("takes too long to find" in shown.html) != found
        assert classes(drawn, "badfill")


def test_a_contradiction_is_marked_by_shapes_and_words() -> None:
    """A cross at the answer, triangles at what it contradicts; what came later is not in the picture."""
    shown = history_picture(STALE, check(STALE))
    drawn = svg_of(shown.html)
    crosses = [each for each in drawn.iter("path") if "m0 -12l-12 12" in each.get("d", "")]
    triangles = classes(drawn, "badfill")
    assert (len(crosses), len(triangles)) == (2, 3), "one of each is in the legend"
    assert "client 3: get → blue (no order explains this answer)" in shown.words
    assert "you: put blue (part of the contradiction)" in shown.words
    assert "client 3: get → green" not in shown.words
    assert [each.text for each in classes(drawn, "bold")][1:] == [
        "you", "lost", "client 2", "client 3", "put blue", "put green", "get → blue"
    ]  # fmt: skip
    assert not classes(drawn, "number")


def test_an_unknown_outcome_has_an_open_end() -> None:
    """Three sides of a box, up to the right edge, and a question mark; not known yet counts as unknown."""
    drawn = svg_of(history_picture(STALE, check(STALE)).html)
    bars = {each.findtext("text"): each for each in drawn.iter("g")}
    assert bars["put red → ?"].find("rect") is None
    outline = bars["put red → ?"].find("path")
    assert outline is not None
    assert re.fullmatch(r"M(\d+) \d+H\d+v16H\1", outline.get("d", ""))
    assert "lost: put red → ? (outcome unknown)" in history_picture(STALE, check(STALE)).words
    happened = [*STALE[2:3], op(2, "get", call=3, end=4, result="red")]
    assert "outcome unknown: it happened, number 1" in history_picture(happened, check(happened)).words


def test_no_text_runs_into_another_one_in_its_row() -> None:
    """Long values, many short operations of one client, and operations of one client that overlap."""
    history = [op(1, "put", f"a rather long value {n}", call=n, end=n + 0.5) for n in range(12)]
    history += [op(1, "get", call=n + 0.1, end=n + 0.2, result=f"a rather long value {n}") for n in range(12)]
    drawn = svg_of(history_picture(history, check(history)).html)
    rows: dict[str, list[tuple[float, int]]] = {}
    for text in classes(drawn, "small")[:-1]:
        if "number" not in text.get("class", ""):
            rows.setdefault(text.get("y", ""), []).append((float(text.get("x", "")), len(text.text or "")))
    assert len(rows) == 2
    for row in rows.values():
        row.sort()
        assert all(x + 6 * length < after for (x, length), (after, _) in pairwise(row))


def test_a_long_history_is_cut_and_says_so() -> None:
    """What contradicts is drawn however long ago it was."""
    many = [op(1, "put", f"{n}", call=2 * n, end=2 * n + 1) for n in range(100)]
    shown = history_picture(many, check(many))
    assert len(list(svg_of(shown.html).iter("rect"))) == MAX_OPERATIONS
    assert "60 later operations are in the table only" in texts(svg_of(shown.html))
    assert shown.html.count("<tr>") == 101
    bad = [*many, op(2, "get", call=300, end=301, result="3")]
    shown = history_picture(bad, check(bad))
    marked = conflict(bad)
    assert {"put 3", "get → 3"} <= {label(each) for each in marked}
    drawn = {each.findtext("text") for each in svg_of(shown.html).iter("g")}
    assert {label(each) for each in marked} <= drawn
    assert len(drawn) <= MAX_OPERATIONS + len(marked)


def test_it_shows_the_key_that_is_asked_for() -> None:
    """Else the one with the contradiction, else the one with the most operations."""
    other = [each._replace(key="other") for each in GOOD]
    for history, key, expected in (
        (STALE + other, None, "Not linearizable: no order explains the first 5 operations on 'colour'"),
        (STALE + other, "other", "Linearizable: an order explains all 5 operations on 'other'"),
        (GOOD[1:3] + other, None, "Linearizable: an order explains all 5 operations on 'other'"),
        ([], None, "Linearizable: an order explains all 0 operations"),
    ):
        assert history_picture(history, check(history), key=key).words.startswith(expected)


def test_values_are_shortened_and_named() -> None:
    """Nothing, the empty string and what cannot be shown look different."""
    labels = [
        label(op(1, "get", call=1, end=2)),
        label(op(1, "get", call=1, end=2, result="")),
        label(op(1, "put", "\x00\udcff" + "v" * 50, call=1, end=2)),
        label(op(1, "compare_and_set", None, "v", call=1, end=2, result=False)),
        label(op(1, "delete", call=1, end=2, result=True)),
        label(op(1, "incr", 1, call=1, end=2, result=1)),
    ]
    assert labels == [
        "get → nothing",
        "get → (empty)",
        "put \ufffd\ufffdvvvvvvvvvvvvv…",
        "compare_and_set nothing, v → no",
        "delete → yes",
        "incr 1 → 1",
    ]


@settings(deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(histories("key_value"))
def test_any_history_can_be_drawn(history: list[Operation]) -> None:
    """Well formed, each operation in it, the discs in order and apart."""
    verdict = check(history)
    shown = history_picture(history, verdict)
    drawn = svg_of(shown.html)
    operations = history if verdict.linearizable else verdict.prefix
    assert len(list(drawn.iter("g"))) == len(operations)
    numbers = [int(each.text or "") for each in classes(drawn, "number")]
    assert numbers == list(range(1, len(numbers) + 1))
    assert len(numbers) == (len(verdict.orders["k"]) if verdict.linearizable else 0)
    places = [float(each.get("x", "")) for each in classes(drawn, "number")]
    assert all(x + 17 < after for x, after in pairwise(places)), "no disc covers another one"
