"""``ondisk --endpoints a:63001,b:63001 get k``: one command for a group that runs elsewhere, and a status.

A new command is a function under ``@command``, here, in ``beyond.py`` (verbs that go beyond single keys) or
in ``operate.py`` (what an operator does to the group); what it prints as JSON is a class of ``answers.py``.
"""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import click
import msgspec

from ondisk.cli import answers
from ondisk.cli.answers import data
from ondisk.cli.console import MISTAKEN, UNKNOWN, WITHOUT_EFFECT, Console, show
from ondisk.cli.input import carry_out, typed_lines
from ondisk.cli.process import log_to_stderr, speak_utf8
from ondisk.cli.serve import certificates, read_secret, tls_option, version_option
from ondisk.client import DEFAULT_TIMEOUT
from ondisk.diskkv import MAX_SCAN_ITEMS, MAX_VALUE_BYTES
from ondisk.dump import dump as write_dump
from ondisk.dump import load as read_dump
from ondisk.errors import (
    Compacted,
    ConfigurationError,
    NoLeader,
    OndiskError,
    OutcomeUnknown,
    Unreachable,
)
from ondisk.remote import RemoteClient, Via, connect

NO, UNREACHABLE = 5, 6  # exit statuses, beside those of the console

_FAILURES: list[tuple[type[OndiskError], int, str]] = [
    (ConfigurationError, MISTAKEN, "error"),
    (Unreachable, UNREACHABLE, "cannot connect"),
    (OutcomeUnknown, UNKNOWN, "outcome unknown"),
    (NoLeader, WITHOUT_EFFECT, "not done"),
    (Compacted, NO, "compacted"),
    (OndiskError, WITHOUT_EFFECT, "refused"),
]

LOCAL = "localhost:63001,localhost:63002,localhost:63003"


class Session:
    """What all commands share: the client, how long they wait, and how they print."""

    def __init__(self, connect: Callable[[], RemoteClient], timeout: float, output: str) -> None:
        self.timeout = timeout
        self.output = output
        self._connect = connect
        self._client: RemoteClient | None = None

    @property
    def client(self) -> RemoteClient:
        """Connects when it is asked for first."""
        if self._client is None:
            self._client = self._connect()
        return self._client

    def close(self) -> None:
        if self._client is not None:
            self._client.close()

    def say(self, answer: msgspec.Struct, text: str) -> None:
        """Print an answer, as JSON if that is wanted."""
        print(msgspec.json.encode(answer).decode() if self.output == "json" else text, flush=True)

    def failed(self, error: OndiskError) -> int:
        """Say what went wrong, on stderr and, if JSON is wanted, as an object; return the status."""
        unknown = isinstance(error, OutcomeUnknown)
        status, what = next((status, what) for kind, status, what in _FAILURES if isinstance(error, kind))
        print(f"{what}: {' '.join(str(error).split())}", file=sys.stderr)
        if self.output == "json":
            name = type(error).__name__
            self.say(answers.Failure(name, str(error), "unknown" if unknown else "not done"), "")
        return status


def _output_option(function: Any) -> Any:
    return click.option(
        "-o", "--output", type=click.Choice(["text", "json"]), help="How to print it.  [default: text]"
    )(function)


@click.group(
    name="ondisk",
    invoke_without_command=True,
    context_settings={"help_option_names": ["-h", "--help"], "show_default": True},
)
@version_option
@click.option(
    "--endpoints",
    metavar="HOST:PORT,...",
    envvar="ONDISK_ENDPOINTS",
    show_envvar=True,
    default=LOCAL,
    help="Where the replicas are; some of them are enough.",
)
@click.option(
    "--secret-file",
    type=click.Path(exists=True, dir_okay=False, path_type=Path),
    envvar="ONDISK_SECRET_FILE",
    show_envvar=True,
    help="Holds the secret of the group. Required beyond loopback.",
)
@tls_option("--tls-cert", "With a group that speaks TLS: the certificate of this side, in PEM.")
@tls_option("--tls-key", "Its key.")
@tls_option("--tls-ca", "The authority that has signed the certificates of the replicas.")
@click.option("--timeout", type=click.FloatRange(0), default=DEFAULT_TIMEOUT, help="Seconds to wait.")
@_output_option
@click.pass_context
def remote(
    context: click.Context,
    endpoints: str,
    secret_file: Path | None,
    tls_cert: Path | None,
    tls_key: Path | None,
    tls_ca: Path | None,
    timeout: float,
    output: str | None,
) -> None:
    """Ask a group that runs elsewhere. Without a command: a prompt.

    The status says what became of it: 0 it was done, 2 wrong use, 3 it had no effect, 4 nobody knows, 5 the
    answer is no (the key is missing, or holds something else), 6 no replica could be reached.
    """
    log_to_stderr("warning", timed=False)
    speak_utf8()
    secret = read_secret(secret_file) if secret_file else None
    tls = certificates(tls_cert, tls_key, tls_ca)
    session = context.obj = Session(
        lambda: connect(endpoints, secret=secret, tls=tls), timeout, output or "text"
    )
    context.call_on_close(session.close)
    if context.invoked_subcommand is None:
        try:
            context.exit(_prompt(session.client))
        except OndiskError as error:
            context.exit(session.failed(error))


def command(function: Callable[..., int | None]) -> click.Command:
    """A command of ``remote``, whose first argument is the session, and which returns its status if not 0."""

    def run(session: Session, *arguments: Any, output: str | None, **options: Any) -> int:
        session.output = output or session.output
        try:
            return function(session, *arguments, **options) or 0
        except OndiskError as error:
            return session.failed(error)
        except BrokenPipeError:  # `| head`: who reads has read enough
            os.dup2(os.open(os.devnull, os.O_WRONLY), 1)  # what is buffered goes there
            return 0

    run.__doc__ = function.__doc__
    run.__click_params__ = getattr(function, "__click_params__", [])  # type: ignore[attr-defined]
    return remote.command(function.__name__.rstrip("_"))(click.pass_obj(_output_option(run)))


via_option = click.option("--via", metavar="ID|HOST:PORT", help="The only replica to ask.")


def named(via: str | None) -> Via:
    """Whom ``--via`` names: a number is that of a replica."""
    return int(via) if via is not None and via.isdecimal() else via


@command
@click.argument("key")
@click.argument("value")
def put(session: Session, key: str, value: str) -> None:
    """Set KEY to VALUE; `-` reads it from standard input, byte for byte."""
    stored = sys.stdin.buffer.read(MAX_VALUE_BYTES + 1) if value == "-" else value
    session.client.put(key, stored, timeout=session.timeout)
    session.say(answers.Put(key), "ok")


@command
@click.argument("key")
@click.option("--stale", is_flag=True, help="What one replica has now, maybe old.")
@click.option("--raw", is_flag=True, help="The bytes of the value as they are, and nothing else.")
@via_option
def get(session: Session, key: str, stale: bool, raw: bool, via: str | None) -> int:
    """Print the value of KEY. The status is 5 if it is missing."""
    ask = session.client.stale_get if stale else session.client.get
    value = ask(key, via=named(via), timeout=session.timeout)
    if value is None and (raw or session.output == "text"):
        print("not found", file=sys.stderr)
    elif value is not None and raw:
        sys.stdout.buffer.write(value)
        sys.stdout.buffer.flush()
    else:
        session.say(answers.Get(key, None if value is None else data(value)), show(value or b""))
    return NO if value is None else 0


@command
@click.argument("key")
def delete(session: Session, key: str) -> None:
    """Remove KEY. It is no mistake if there is none."""
    deleted = session.client.delete(key, timeout=session.timeout).value
    session.say(answers.Delete(key, deleted), "ok" if deleted else "ok (there was none)")


@command
@click.argument("key")
@click.argument("by", type=int, default=1)
def incr(session: Session, key: str, by: int) -> None:
    """Add BY to a number, and print the new one. A negative BY stands behind `--`."""
    number = session.client.incr(key, by, timeout=session.timeout).value
    session.say(answers.Incr(key, number), str(number))


@command
@click.argument("key")
@click.argument("words", nargs=-1, metavar="[EXPECTED] VALUE")
@click.option("--missing", is_flag=True, help="Set it if it is missing: then there is no EXPECTED.")
def cas(session: Session, key: str, words: tuple[str, ...], missing: bool) -> int:
    """Set KEY to VALUE if it holds EXPECTED. The status is 5 if it does not."""
    if len(words) != (1 if missing else 2):
        raise click.UsageError("cas KEY EXPECTED VALUE, or cas --missing KEY VALUE")
    expected, value = (None if missing else words[0]), words[-1]
    swapped = session.client.compare_and_set(key, expected, value, timeout=session.timeout).value
    session.say(answers.Cas(key, swapped), "ok" if swapped else "no: it holds something else, or nothing")
    return 0 if swapped else NO


@command
@click.argument("prefix", default="")
@click.option("--from", "start", default="", metavar="KEY", help="From this key on.")
@click.option("--limit", type=click.IntRange(1, MAX_SCAN_ITEMS), default=100, help="So many at most.")
@via_option
def scan(session: Session, prefix: str, start: str, limit: int, via: str | None) -> None:
    """Print the keys that begin with PREFIX, in order, and their values."""
    pairs = session.client.scan(prefix, start=start, limit=limit, via=named(via), timeout=session.timeout)
    more = len(pairs) == limit
    text = [f"{show(key)} = {show(value)}" for key, value in pairs] or ["(no keys)"]
    text += [f"(stopped at the limit of {limit})"] if more else []
    found = [answers.Pair(data(key), data(value)) for key, value in pairs]
    session.say(answers.Scan(found, more), "\n".join(text))


@command
@click.argument("file", type=click.Path(path_type=Path))
@click.argument("prefix", default="")
@click.option("--resume", is_flag=True, help="Go on with a file in which an earlier dump has ended.")
def dump(session: Session, file: Path, prefix: str, resume: bool) -> None:
    """Write all pairs whose keys begin with PREFIX into a new FILE, as lines of JSON."""
    found = write_dump(session.client, file, prefix=prefix, resume=resume)
    session.say(answers.Dump(*found), f"{found.pairs:,} pairs, sha256 {found.sha256}")


@command
@click.argument("file", type=click.Path(path_type=Path))
@click.option("--skip", type=click.IntRange(0), default=0, help="So many pairs, which are stored already.")
def load(session: Session, file: Path, skip: int) -> None:
    """Set all pairs of a dump. If it fails, it says how many are stored."""
    found = read_dump(session.client, file, skip=skip)
    session.say(answers.Load(found), f"{found:,} pairs")


@command
def status(session: Session) -> int:
    """Show every replica that answers. The status is 6 if none does."""
    found = session.client.status(timeout=session.timeout)
    unreachable = session.client.unreachable()
    replicas = [
        answers.Replica(
            each.id,
            each.role,
            each.term,
            each.leader_id,
            each.last_index,
            each.commit_index,
            each.applied_index,
            each.group,
            each.disk,
            each.error,
        )
        for each in found.values()
    ]
    text = Console(session.client, found.values).execute("status") if found else ""
    lines = [text, *(f"no answer from {name} ({why})" for name, why in unreachable.items())]
    session.say(answers.Status(replicas, list(unreachable)), "\n".join(filter(None, lines)))
    return 0 if found else UNREACHABLE


@command
def members(session: Session) -> None:
    """Show who belongs to the group, and where."""
    found = session.client.members(timeout=session.timeout)
    rows = [
        answers.Member(each, kind, found.addresses.get(each, ""))  # type: ignore[arg-type]
        for kind, ids in (("voter", found.voters), ("learner", found.learners))
        for each in ids
    ]
    text = "\n".join(f"{each.id} {each.kind} {each.address}".rstrip() for each in rows)
    session.say(answers.Members(found.group.hex(), rows), text or "(none: it belongs to no group)")


@command
def health(session: Session) -> int:
    """Read through each endpoint, and say how long it took. The status is 5 unless all are healthy."""
    found = []
    for endpoint in session.client.endpoints:
        began, error = time.monotonic(), None
        try:
            session.client.get("health", via=endpoint, timeout=session.timeout)
        except OndiskError as failure:
            error = str(failure)
        took = round(1000 * (time.monotonic() - began), 1)
        found.append(answers.Health(endpoint, error is None, took, error))
    text = [
        f"{each.endpoint} is healthy: {each.milliseconds} ms"
        if each.healthy
        else f"{each.endpoint} is unhealthy: {each.error}"
        for each in found
    ]
    session.say(answers.Healths(found), "\n".join(text))
    return 0 if all(each.healthy for each in found) else NO


def _prompt(client: RemoteClient) -> int:
    """Lines in, answers out, as at the prompt of a replica."""
    console = Console(client, lambda: client.status().values())
    typed = sys.stdin.isatty() and sys.stdout.isatty()
    carry_out(console, typed_lines("ondisk> ") if typed else sys.stdin, typed=typed)
    return 0 if typed else console.exit_status
