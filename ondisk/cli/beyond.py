"""The commands that go beyond single keys: ``txn``, ``watch``, ``lock`` and ``digest``. After etcdctl's."""

from __future__ import annotations

import os
import select
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from typing import TypeVar

import click
import msgspec

from ondisk.cli import answers
from ondisk.cli.answers import data
from ondisk.cli.console import show
from ondisk.cli.remote import NO, Session, command, named, via_option
from ondisk.cli.words import first_word, value
from ondisk.errors import Compacted, InvalidCommand, OndiskError
from ondisk.locks import Held
from ondisk.verbs import txn as transactions
from ondisk.verbs.changes import Changed
from ondisk.verbs.digest import Digest

_PATIENCE = 30.0  # seconds in which nobody may answer: an election takes two
_LOOK_SECONDS = 0.05
_ROUNDS = 10  # in which all replicas are asked for one index, while others write
_NOT_FOUND, _NOT_EXECUTABLE, _KILLED = 127, 126, 128  # the statuses of a shell

_T = TypeVar("_T")


@command
def txn(session: Session) -> int:
    """Compare, then do one thing or the other, in one step. The status is 5 if it was the other.

    Standard input has three blocks with a blank line between them: comparisons, what is done if all of them
    hold, and what is done if not. A comparison is `equals KEY VALUE`, `exists KEY`, `missing KEY` or
    `unchanged KEY INDEX`; what is done is `put KEY VALUE`, `delete KEY` or `get KEY`.
    """
    blocks = _blocks(sys.stdin.read())
    try:
        compare = [_part(line, _COMPARISONS) for line in blocks[0]]
        then, otherwise = ([_part(line, _OPERATIONS) for line in block] for block in blocks[1:])
    except InvalidCommand:  # a key that is too long, say
        raise
    except ValueError as error:
        raise click.UsageError(str(error)) from None
    answer = session.client.txn(compare, then, otherwise, timeout=session.timeout)
    found = [data(each) if isinstance(each, bytes) else each for each in answer.answers]
    lines = ["then" if answer.succeeded else "else"]
    for operation, what in zip(then if answer.succeeded else otherwise, answer.answers, strict=True):
        if isinstance(operation, transactions.GetKey):
            said = "not found" if what is None else f"= {show(bytes(what))}"
        else:
            said = "ok (there was none)" if what is False else "ok"
        lines.append(f"{show(operation.key)} {said}")
    session.say(answers.Txn(answer.succeeded, answer.index, found), "\n".join(lines))
    return 0 if answer.succeeded else NO


_COMPARISONS: dict[str, Callable[[str, str], transactions.Compare]] = {
    "equals": lambda key, rest: transactions.equals(key, value(rest)),
    "exists": lambda key, rest: _alone(transactions.exists(key), rest),
    "missing": lambda key, rest: _alone(transactions.missing(key), rest),
    "unchanged": lambda key, rest: transactions.unchanged(key, int(rest)),
}
_OPERATIONS: dict[str, Callable[[str, str], transactions.Operation]] = {
    "put": lambda key, rest: transactions.put(key, value(rest)),
    "delete": lambda key, rest: _alone(transactions.delete(key), rest),
    "get": lambda key, rest: _alone(transactions.get(key), rest),
}
_WITH_MORE = ("equals", "unchanged", "put")


def _blocks(text: str) -> tuple[list[str], list[str], list[str]]:
    """The three blocks; those that are not there are empty. Raises ``UsageError`` for a fourth."""
    blocks: list[list[str]] = [[]]
    for line in text.splitlines():
        if line.strip():
            blocks[-1].append(line)
        else:
            blocks.append([])
    if any(blocks[3:]):
        raise click.UsageError("there are three blocks: comparisons, then, else")
    compare, then, otherwise = (*blocks, [], [])[:3]
    return compare, then, otherwise


def _part(line: str, makers: dict[str, Callable[[str, str], _T]]) -> _T:
    """One line. Raises ``ValueError`` with what it should have been."""
    name, rest = first_word(line)
    key, more = first_word(rest)
    if name.lower() not in makers or not rest or bool(more) != (name.lower() in _WITH_MORE):
        raise ValueError(f"{line.strip()!r:.60} is none of {', '.join(makers)}, with a key and what it needs")
    return makers[name.lower()](key, more)


def _alone(part: _T, rest: str) -> _T:
    assert not rest
    return part


@command
@click.argument("prefix", default="")
@click.option(
    "--from", "from_index", type=click.IntRange(1), help="From this index on.  [default: from now on]"
)
@via_option
def watch(session: Session, prefix: str, from_index: int | None, via: str | None) -> None:
    """Print each change of a key that begins with PREFIX, once, in order, with its index, until it is ended.

    With `-o json` a line for each index. To go on after the last line, say --from that index and 1. The
    status is 5 if the history does not go back so far. It ends with 0 when it is told to (SIGTERM), or when
    nobody reads any more.
    """
    with _ended_by(signal.SIGTERM):
        watched = session.client.watch(
            prefix, from_index, via=named(via), timeout=max(session.timeout, _PATIENCE)
        )
        while _somebody_reads():
            for changed in watched.poll():
                session.say(*_told(changed))


def _told(changed: Changed) -> tuple[msgspec.Struct, str]:
    pairs = [
        answers.Change(data(key), None if value is None else data(value)) for key, value in changed.pairs
    ]
    lines = [
        f"{changed.index} {show(key)} " + ("deleted" if value is None else f"= {show(value)}")
        for key, value in changed.pairs
    ]
    return answers.Watch(changed.index, pairs), "\n".join(lines)


def _somebody_reads() -> bool:
    """Wait a moment; whether the other end of a pipe is still there."""
    looked = select.poll()
    looked.register(1, 0)  # errors only
    return not any(
        event & (select.POLLERR | select.POLLNVAL) for _, event in looked.poll(1000 * _LOOK_SECONDS)
    )


class _Ended(BaseException):
    """A signal came."""


@contextmanager
def _ended_by(*numbers: signal.Signals) -> Iterator[None]:
    """What is inside ends, well, when one of these signals comes."""

    def end(*_: object) -> None:
        raise _Ended

    before = {number: signal.signal(number, end) for number in numbers}
    try:
        yield
    except _Ended:
        pass
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


@command
@click.argument("prefix", default="")
def digest(session: Session, prefix: str) -> int:
    """Compare what the replicas hold under PREFIX, by hash. The status is 5 unless all hold the same.

    Each is asked for what it holds as of one index. It reads everything: about a second for 1 GB.
    """
    for left in reversed(range(_ROUNDS)):
        try:
            found = _digests(session, prefix)
            break
        except Compacted:  # somebody has written meanwhile
            if not left:
                raise
    same = len({each.hash for each in found}) == 1 and not any(each.error for each in found)
    lines = [
        f"{each.endpoint}: {each.error}"
        if each.error is not None
        else f"{each.endpoint} {each.hash} {each.count:,} keys, {each.bytes:,} bytes, at index {each.index}"
        for each in found
    ]
    session.say(answers.Digests(found, same), "\n".join([*lines, "the same" if same else "NOT the same"]))
    return 0 if same else NO


def _digests(session: Session, prefix: str) -> list[answers.Digest]:
    """What each endpoint says, as of the index of the first that answers. Raises ``Compacted``."""
    index: int | None = None
    rows = []
    for endpoint in session.client.endpoints:
        found, error = Digest(0, "", 0, 0), None
        try:
            found = session.client.digest(
                prefix, index=index, via=endpoint, timeout=max(_PATIENCE, session.timeout)
            )
            index = found.index
        except Compacted:
            raise
        except OndiskError as failure:
            error = " ".join(str(failure).split())
        rows.append(answers.Digest(endpoint, found.index, found.hash, found.count, found.bytes, error))
    return rows


@command
@click.argument("name")
@click.argument("command", nargs=-1, required=True, type=click.UNPROCESSED)
@click.option("--ttl", type=click.FloatRange(1), default=10.0, help="Seconds that it outlives this process.")
@click.option("--wait", type=click.FloatRange(0.5), help="Seconds to wait for it.  [default: for ever]")
def lock(session: Session, name: str, command: Sequence[str], ttl: float, wait: float | None) -> int:
    """Hold the lock NAME while COMMAND runs; its status is that of the command.

    Write `--` before the command. It finds the fencing token in ONDISK_LOCK_TOKEN: a number that is larger
    than that of each earlier holder. If the lock is lost, because nobody answered for so long, the command is
    told to end (SIGTERM).
    """
    patience = {} if wait is None else {"timeout": wait}
    with session.client.lock(name, ttl=ttl, **patience) as held:
        if session.output == "json":
            session.say(answers.Lock(name, held.token), "")
        return _run_while(held, name, command)


def _run_while(held: Held, name: str, command: Sequence[str]) -> int:
    """Run the command, and pass on what this process is told. Returns its status, as a shell has it."""
    environment = {**os.environ, "ONDISK_LOCK_NAME": name, "ONDISK_LOCK_TOKEN": str(held.token)}
    told: list[int] = []  # signals that the command has to hear of
    numbers = (signal.SIGTERM, signal.SIGHUP, signal.SIGINT)
    before = {number: signal.signal(number, lambda number, _: told.append(number)) for number in numbers}
    try:
        child = subprocess.Popen(command, env=environment)
        lost = False
        while True:
            with suppress(subprocess.TimeoutExpired):
                status = child.wait(_LOOK_SECONDS)
                return status if status >= 0 else _KILLED - status
            while told:
                if (number := told.pop()) != signal.SIGINT:  # of which the terminal tells the command, too
                    child.send_signal(number)
            if not held.left and not lost:
                lost = True
                print(f"the lock {name} may be lost: the command is told to end", file=sys.stderr)
                child.terminate()
    except OSError as error:
        print(f"error: {command[0]}: {error.strerror}", file=sys.stderr)
        return _NOT_FOUND if isinstance(error, FileNotFoundError) else _NOT_EXECUTABLE
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
