"""Scrape: what puts lose while somebody asks for ``/metrics``, scraped so often that it can be measured."""

from __future__ import annotations

import threading
import time
from contextlib import closing
from urllib.request import urlopen

from benchmarks.instruments import Order, figure, lasting, progress
from benchmarks.worker import KEYS, Ondisk, puts

AT_ONCE = 64
EVERY = 0.05  # seconds from the end of one scrape to the next one
WINDOWS = 8  # in each round, half of them with scrapes


def scrape(order: Order) -> None:
    """In turn with and without; the loss is divided by how many scrapes a second there were.

    Whoever scrapes is a thread of this process: its work counts, too.
    """
    from ondisk.monitor import Monitor  # of an extra

    with closing(Ondisk(order.scratch / "cluster", None, [])) as subject:
        leader = subject.cluster.wait_for_leader()
        puts(subject, 256, lambda _, count: count >= len(KEYS))
        with Monitor(subject.cluster._node(leader)) as monitor, _Scraper(monitor.address) as scraper:
            for number in range(1, order.rounds + 1):
                progress(f"round {number} of {order.rounds}")
                rates: dict[bool, float] = {True: 0.0, False: 0.0}
                scrapes = 0
                spent = 0.0
                for window in range(WINDOWS):
                    scraped = window % 4 in (0, 3)  # so that a drift counts for both
                    before, began = scraper.count, time.perf_counter()
                    if scraped:
                        scraper.go.set()
                    rates[scraped] += puts(subject, AT_ONCE, lasting(order.seconds))["per_second"]
                    scraper.go.clear()
                    if scraped:
                        scrapes += scraper.count - before
                        spent += time.perf_counter() - began
                lost = 100 * (1 - rates[True] / rates[False])
                row = f"{AT_ONCE} puts in flight"
                figure(row, "puts/s", rates[False] / (WINDOWS / 2))
                figure(row, "scrapes/s", scrapes / spent)
                figure(row, "% lost with them", lost)
                figure(row, "% lost to one a second", lost / (scrapes / spent))


class _Scraper:
    def __init__(self, address: tuple[str, int]) -> None:
        self._url = f"http://{address[0]}:{address[1]}/metrics"
        self.count = 0
        self.go = threading.Event()
        self._closed = False
        self._thread = threading.Thread(target=self._run, name="scraper")

    def _run(self) -> None:
        while not self._closed:
            if self.go.wait(EVERY):
                with urlopen(self._url, timeout=10) as answer:
                    answer.read()
                self.count += 1
                time.sleep(EVERY)

    def __enter__(self) -> _Scraper:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._closed = True
        self._thread.join()
