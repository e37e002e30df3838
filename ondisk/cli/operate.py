"""What an operator does to a group from elsewhere: its members, its leader, its logs."""

from __future__ import annotations

import click

from ondisk.cli import answers
from ondisk.cli.remote import Session, command, named, via_option
from ondisk.errors import ConfigurationError
from ondisk.net.addresses import parse_address

_id = click.argument("replica_id", metavar="ID", type=click.IntRange(1))


def _checked(_: click.Context, __: click.Parameter, address: str) -> str:
    try:
        parse_address(address)
    except ConfigurationError as error:
        raise click.BadParameter(str(error)) from None
    return address


_address = click.argument("address", metavar="HOST:PORT", callback=_checked)


@command
@_id
@_address
def add(session: Session, replica_id: int, address: str) -> None:
    """Make a new replica a member. Start it with --join; it catches up, and counts when it has."""
    session.client.add_replica(replica_id, address, timeout=session.timeout)
    session.say(answers.Changed(replica_id), "ok: it catches up from now on, and counts when it has")


@command
@_id
@_address
def move(session: Session, replica_id: int, address: str) -> None:
    """Say where a member is from now on, also while it is away."""
    session.client.move_replica(replica_id, address, timeout=session.timeout)
    session.say(answers.Changed(replica_id), "ok")


@command
@_id
def remove(session: Session, replica_id: int) -> None:
    """Take a member out, for good: its id is never let in again."""
    session.client.remove_replica(replica_id, timeout=session.timeout)
    session.say(answers.Changed(replica_id), "ok")


@command
@_id
def replace(session: Session, replica_id: int) -> None:
    """Take the disk of a member for lost: it never counts again."""
    session.client.replace_replica(replica_id, timeout=session.timeout)
    text = f"ok: its disk counts no more. Delete its directory, and start replica {replica_id} again"
    session.say(answers.Changed(replica_id), text)


@command
@_id
def transfer(session: Session, replica_id: int) -> None:
    """Let another member lead."""
    session.client.transfer_leadership(replica_id, timeout=session.timeout)
    session.say(answers.Changed(replica_id), "ok")


@command
@via_option
def compact(session: Session, via: str | None) -> None:
    """Drop the log of one replica (--via) up to what its state holds."""
    if via is None:
        raise click.UsageError("say which replica: --via ID")
    index = session.client.compact(named(via), timeout=session.timeout)
    session.say(answers.Compact(index), f"ok: the log begins after entry {index}")
