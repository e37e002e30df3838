"""``ondisk inspect``: prints what a stopped replica holds."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path

import click

from ondisk.inspect import inspect, print_inspection


@click.command(name="ondisk inspect", context_settings={"help_option_names": ["-h", "--help"]})
@click.argument("path", type=click.Path(path_type=Path))
@click.option("-o", "--output", type=click.Choice(["text", "json"]), default="text", help="How to print it.")
def inspect_command(path: Path, output: str) -> int:
    """Print what a stopped replica holds, and compare all checksums. Nothing is changed.

    PATH is its directory, a data directory with several, or an exported snapshot. The status is 1 if anything
    is damaged.
    """
    found = inspect(path)
    if output == "json":
        print(json.dumps({**asdict(found), "damaged": bool(found.damage)}, indent=2))
    else:
        print_inspection(found)
    return 1 if found.damage else 0
