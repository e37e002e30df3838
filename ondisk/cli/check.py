"""``ondisk check perf``: whether this machine's disk and loopback are fast enough."""

from __future__ import annotations

import json
import signal
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import click

from ondisk.perf import SECONDS, Performance, Tell, check_perf


@click.command(
    name="ondisk check", context_settings={"help_option_names": ["-h", "--help"], "show_default": True}
)
@click.argument("what", type=click.Choice(["perf"]))
@click.argument("path", type=click.Path(path_type=Path))
@click.option("--seconds", type=click.FloatRange(1, 3600), default=SECONDS, help="How long to measure.")
@click.option("-o", "--output", type=click.Choice(["text", "json"]), default="text", help="How to print it.")
def check_command(what: str, path: Path, seconds: float, output: str) -> int:
    """perf: measure this machine's disk and loopback, and say what election timeout they support.

    PATH is a directory on the disk that data is to be kept on. Everything is done in a temporary directory in
    it. The status is 1 if something is too slow. Ctrl-C ends it, and leaves nothing behind.
    """
    _end_once()
    with _progress() as tell:
        found = check_perf(path, seconds=seconds, tell=tell)
    if output == "json":
        print(json.dumps(found.as_json(), indent=2))
    else:
        _print(found, seconds)
    return 0 if found.ok else 1


def _end_once() -> None:
    """A signal ends it, also if it was started with Ctrl-C ignored; a second one would leave files behind."""
    numbers = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)

    def end(*_: object) -> None:
        for number in numbers:
            signal.signal(number, signal.SIG_IGN)
        raise KeyboardInterrupt

    for number in numbers:
        signal.signal(number, end)


@contextmanager
def _progress() -> Iterator[Tell]:
    """On stderr: a bar on a terminal, and elsewhere a line for each part."""
    if sys.stderr.isatty():
        bar: Any
        with click.progressbar(length=1000, file=sys.stderr) as bar:

            def draw(what: str, done: float) -> None:
                bar.label = f"{what:16}"
                bar.update(round(1000 * done) - bar.pos)

            yield draw
    else:
        last = ""

        def say(what: str, done: float) -> None:
            nonlocal last
            if what != last:
                print(f"{100 * done:3.0f} %  {what}", file=sys.stderr, flush=True)
            last = what

        yield say


def _print(found: Performance, seconds: float) -> None:
    print(f"{found.directory} ({found.file_system}), {seconds:g} s, load average {found.load_average:.2f}")
    for finding in found.findings:
        print(f"{'ok  ' if finding.ok else 'SLOW'}  {finding.text}")
    print("PASS: a group can live here" if found.ok else "FAIL: see above")
