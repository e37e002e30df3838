"""Curves: puts and gets over the size of a value, the replicas, the keys, and how many are in flight."""

from __future__ import annotations

import itertools
import os
import random
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing
from pathlib import Path

from benchmarks.instruments import Order, Pair, figure, pairs, progress
from benchmarks.worker import KEYS, VALUES, Ondisk, gets, puts

SIZES = (16, 128, 1 << 10, 16 << 10, 128 << 10, 1 << 20)  # bytes
REPLICAS = (1, 3, 5, 7)
IN_FLIGHT = (1, 4, 16, 64, 256, 1024, 4096)
KEYS_FROM = 1000  # and ten times as many, up to the keys of the order

LARGE_AT_ONCE = 16  # values of 1 MB, 16 of them, are as much as a window holds
AT_ONCE = 64
SAMPLE = 1000  # of the keys are asked for


def curves(order: Order) -> None:
    """What one sees when one thing changes and all else stays: 3 replicas in memory, 64 in flight."""
    _values(order)
    _replicas(order)
    _in_flight(order)
    _keys(order)


def _values(order: Order) -> None:
    with _group(order.scratch / "values") as subject:
        for size in SIZES:
            values = [os.urandom(size) for _ in range(4)]
            changed = zip(itertools.cycle(KEYS[:100]), itertools.cycle(values), strict=False)
            for _ in _rounds(order, f"values of {size:,} bytes"):
                found = puts(subject, LARGE_AT_ONCE, _for_all(LARGE_AT_ONCE, order.seconds), changed)
                figure(f"value, bytes: {size}", "puts/s", found["per_second"])
                figure(f"value, bytes: {size}", "MB/s", found["per_second"] * size / 1e6)


def _replicas(order: Order) -> None:
    for count in REPLICAS:
        with _group(order.scratch / f"replicas-{count}", count) as subject:
            _fill(subject)
            for _ in _rounds(order, f"{count} replicas"):
                _measure(f"replicas: {count}", subject, AT_ONCE, order)


def _in_flight(order: Order) -> None:
    with _group(order.scratch / "in-flight") as subject:
        _fill(subject)
        for at_once in IN_FLIGHT:
            for _ in _rounds(order, f"{at_once} in flight"):
                found = puts(subject, at_once, _for_all(at_once, order.seconds))
                figure(f"in flight: {at_once}", "puts/s", found["per_second"])
                figure(f"in flight: {at_once}", "put: p50 ms", found["p50_ms"])


def _keys(order: Order) -> None:
    """Each key is loaded once; then those that are put and asked for are drawn."""
    with _group(order.scratch / "keys") as subject:
        loaded = 0
        count = KEYS_FROM
        while count <= order.keys:
            progress(f"{count:,} keys are loaded")
            subject.bulk(_new(loaded, count))
            loaded = count
            drawn = random.Random(count).sample(range(count), SAMPLE)
            keys = [b"%016d" % number for number in drawn]
            for _ in _rounds(order, f"{count:,} keys"):
                _measure(f"keys: {count}", subject, AT_ONCE, order, keys)
            count *= 10


def _group(directory: Path, replicas: int = 3) -> closing[Ondisk]:
    subject = Ondisk(directory, None, [], replicas=replicas)
    subject.cluster.wait_for_leader()
    return closing(subject)


def _fill(subject: Ondisk) -> None:
    puts(subject, AT_ONCE, lambda _, count: count >= len(KEYS))


def _new(first: int, last: int) -> Iterator[Pair]:
    values = (value for _, value in pairs(last, last))
    return ((b"%016d" % number, value) for number, value in zip(range(first, last), values, strict=False))


def _for_all(at_once: int, seconds: float) -> Callable[[float, int], bool]:
    """At least as many as are begun together, however long they take."""
    return lambda took, count: took >= seconds and count >= at_once


def _rounds(order: Order, what: str) -> Iterator[int]:
    for number in range(1, order.rounds + 1):
        progress(f"{what}: round {number} of {order.rounds}")
        yield number


def _measure(row: str, subject: Ondisk, at_once: int, order: Order, keys: Sequence[bytes] = KEYS) -> None:
    keys = list(keys)
    changed = zip(itertools.cycle(keys), itertools.cycle(VALUES), strict=False)
    figure(row, "puts/s", puts(subject, at_once, _for_all(at_once, order.seconds), changed)["per_second"])
    figure(row, "get: p50 ms", gets(subject.read, 1, order.seconds, keys)["p50_ms"])
