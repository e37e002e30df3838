"""What the measurements have in common: what they are told, how they tell what they find, instruments."""

from __future__ import annotations

import itertools
import json
import random
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple

import psutil

VALUE_BYTES = 128
Pair = tuple[bytes, bytes]


class Order(NamedTuple):
    """What to measure. ``prepared`` is shared by all measurements of one run, ``scratch`` is for this one."""

    measure: str
    keys: int
    rounds: int
    seconds: float
    prepared: Path
    scratch: Path


def figure(row: str, column: str, value: float) -> None:
    print(json.dumps([row, column, value]), flush=True)


def progress(text: str) -> None:
    print(json.dumps(text), flush=True)


def pairs(keys: int, seed: int) -> Iterator[Pair]:
    """Each key once, in scattered order, and so again and again; the values do not compress."""
    rng = random.Random(seed)
    for number in itertools.count():
        yield b"%016d" % (number * 982_451_653 % keys), rng.randbytes(VALUE_BYTES)


def resident() -> float:
    """Resident memory of this process, in MB."""
    rss: int = psutil.Process().memory_info().rss
    return rss / 1e6


class Peak:
    """The highest value of something while a ``with`` lasts."""

    def __init__(self, measure: Callable[[], float], every: float = 0.005) -> None:
        self._measure = measure
        self._every = every
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._run)

    def __enter__(self) -> Peak:
        self.before = self.highest = self._measure()
        self._thread.start()
        return self

    def _run(self) -> None:
        while not self._ended.wait(self._every):
            self.highest = max(self.highest, self._measure())

    def __exit__(self, *_: object) -> None:
        self._ended.set()
        self._thread.join()
        self.highest = max(self.highest, self._measure())

    @property
    def growth(self) -> float:
        return self.highest - self.before


def timed(do: Callable[[], object]) -> float:
    """Seconds that a call takes."""
    start = time.perf_counter()
    do()
    return time.perf_counter() - start


def lasting(seconds: float) -> Callable[[float, int], bool]:
    """When puts have gone on for so long."""
    return lambda took, _: took >= seconds
