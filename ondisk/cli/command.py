"""The command: whatever goes wrong becomes one line on stderr and an exit status."""

from __future__ import annotations

import logging
import os
import sys

import click

from ondisk.cli import beyond, operate  # noqa: F401  # their commands
from ondisk.cli.check import check_command
from ondisk.cli.inspect import inspect_command
from ondisk.cli.process import keep_standard_streams
from ondisk.cli.remote import remote
from ondisk.cli.serve import run
from ondisk.errors import ConfigurationError, OndiskError


def _is_remote(arguments: list[str]) -> bool:
    """Whether a group elsewhere is asked: endpoints are named, or a command that needs some."""
    if arguments[:1] and not arguments[0].startswith("-"):  # a replica is started with options only
        return True
    options = {each.split("=")[0] for each in arguments}
    is_replica = bool(options & {"--replica-id", "-replicaid"})
    return "--endpoints" in options or (not is_replica and bool(options & remote.commands.keys()))


def _everything() -> click.Group:
    """All commands and options in one, for the completion of a shell."""
    commands = {**remote.commands, "inspect": inspect_command, "check": check_command}
    params = {each.name: each for each in (*remote.params, *run.params)}
    return click.Group("ondisk", commands=commands, params=list(params.values()))


def main() -> None:
    """Run the command; whatever goes wrong becomes one line on stderr and an exit status."""
    keep_standard_streams()
    if "_ONDISK_COMPLETE" in os.environ:
        sys.exit(_everything().main(prog_name="ondisk"))
    command: click.Command = run
    arguments = sys.argv[1:]
    if arguments[:1] == ["inspect"]:
        command, arguments = inspect_command, arguments[1:]
    elif arguments[:1] == ["check"]:
        command, arguments = check_command, arguments[1:]
    elif _is_remote(arguments):
        command = remote
    try:
        sys.exit(command(arguments, standalone_mode=False))
    except click.Abort:  # Ctrl-C
        sys.exit(130)
    except click.ClickException as error:
        complaint, status = error.format_message(), error.exit_code
    except ConfigurationError as error:
        complaint, status = str(error), 2
    except Exception as error:
        logging.getLogger(__name__).debug("the end", exc_info=True)
        known = isinstance(error, OndiskError)
        complaint, status = str(error) if known else f"{type(error).__name__}: {error}", 1
    hint = " (see --help)" if status == 2 else ""
    print(f"error: {' '.join(complaint.split()).rstrip('.')}{hint}", file=sys.stderr)
    sys.exit(status)
