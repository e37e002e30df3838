"""The newest entries of a log, in memory: a list that begins somewhere, and knows its size."""

from __future__ import annotations

import pytest

from ondisk.raft.tail import Tail
from tests.logs import entry


def tail(first: int = 5, last: int = 9, size: int = 0) -> Tail:
    return Tail(first, [entry(index, size=size) for index in range(first, last + 1)])


def indexes(it: Tail) -> list[int]:
    """What is there, if it says the same of itself."""
    found = [each.index for each in it]
    assert found == list(range(it.first, it.last_index + 1)) and len(it) == len(found)
    assert it.bytes == sum(len(each.command) for each in it)
    return found


def test_of_any_range_it_has_what_is_there() -> None:
    for it in (tail(), tail(5, 4)):
        for first in range(12):
            for last in range(12):
                found = [each.index for each in it.between(first, last)]
                assert found == [index for index in indexes(it) if first <= index <= last]


@pytest.mark.parametrize("index", range(5, 10))
def test_a_cut_takes_the_end_and_a_drop_the_beginning(index: int) -> None:
    cut, dropped = tail(), tail()
    cut.cut_from(index)
    assert indexes(cut) == list(range(5, index))
    cut.append([entry(index), entry(index + 1)])
    assert indexes(cut) == list(range(5, index + 2))
    dropped.drop_to(4)
    dropped.drop_to(index)
    assert indexes(dropped) == list(range(index + 1, 10)) and dropped.first == index + 1


@pytest.mark.parametrize(
    ("count", "entries", "kilobytes", "left"),
    [
        (4, 2, 99, 4),
        (5, 2, 99, 3),
        (4, 99, 3, 4),
        (7, 99, 3, 4),
        (1, 99, 0, 1),  # however large it is: the end of the log is asked for all the time
        (0, 0, 0, 0),
    ],
)
def test_the_older_half_is_forgotten_of_more_than_twice_as_many_or_as_much(
    count: int, entries: int, kilobytes: int, left: int
) -> None:
    it = tail(5, 4 + count, size=1000)
    it.trim(entries, 1000 * kilobytes + 20)
    assert indexes(it) == list(range(5 + count - left, 5 + count))
