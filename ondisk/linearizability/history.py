"""Histories: who asked for what, when, and what came back; recorded from threads, or read from a file.

A *history* is what clients saw of a system, and nothing of its inside (Herlihy and Wing, 1990). Each of its
operations lasts from its call to its end, so operations overlap. Whether there is an order that explains
them all is decided in ``linearizability/checker.py``.

Three kinds of files can be read:

* ours: JSON, an operation a line, in the order of the calls (``write_history`` writes it);
* logs of Jepsen's register test, as of etcd: ``INFO  jepsen.util - 0  :invoke  :write  4``;
* key-value histories as porcupine's tests have them: ``{:process 0, :type :invoke, :f :append, ...}``.
"""

from __future__ import annotations

import json
import math
import re
import time
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, Literal, NamedTuple

import msgspec

from ondisk.errors import OndiskError
from ondisk.interrupts.shielded import Turn

Format = Literal["key_value", "register", "strings"]
"""What a file is about, which is the name of the model that decides about it."""


class BadHistory(OndiskError, ValueError):
    """A file, or a call of the recorder, that makes no history."""


class Operation(NamedTuple):
    """One call of one client.

    ==================  ==========================  ===========================================
    name                args                        result
    ==================  ==========================  ===========================================
    get                 ()                          the value, ``None`` if the key is missing
    put                 (value,)                    ``None``
    delete              ()                          whether it was there
    incr                (by,)                       the new number
    compare_and_set     (expected or None, value)   whether it did
    append              (value,)                    ``None``
    read, write, cas    as get, put and compare_and_set, of a register
    ==================  ==========================  ===========================================

    ``call`` and ``end`` are seconds, or anything else that grows. ``end=None`` is an *unknown outcome*: it
    may take effect at any time after its call, or never. What certainly had no effect is no operation.
    Keys and values are ``str``: bytes are decoded with ``surrogateescape``, so that JSON can hold them all.
    """

    client: int | str
    name: str
    key: str
    args: tuple[Any, ...]
    call: float
    end: float | None
    result: Any = None

    def __str__(self) -> str:
        said = ", ".join(_quoted(each) for each in (self.key, *self.args))
        outcome = "unknown" if self.end is None else "done" if self.result is None else _quoted(self.result)
        if self.end is not None and self.name in ("get", "read"):
            outcome = _quoted(self.result)
        return f"{self.name}({said}) → {outcome}"


def _quoted(value: object) -> str:
    return "nothing" if value is None else ascii(value) if isinstance(value, str) else str(value)


class History:
    """Records operations while they happen, from any thread.

        number = history.begin(client, "put", "k", "v")  # before the request is sent
        history.ok(number, None)                         # after the answer has come

    ``at`` is the time, ``time.monotonic()`` if not given. Two calls here may be given the same time, or (from
    two threads that have read the clock before) times in the wrong order; the order of the calls is exact, so
    a time that is not after the one before is moved up to the next number there is. Thus no two are equal.
    """

    def __init__(self) -> None:
        self._lock = Turn()
        self._operations: dict[int, Operation] = {}
        self._under_way: set[int] = set()
        self._begun = 0
        self._newest = -math.inf

    def begin(
        self, client: int | str, name: str, key: str | bytes, *args: Any, at: float | None = None
    ) -> int:
        """A client calls. The number is for the call that tells the outcome."""
        with self._lock:
            self._begun += 1
            texts = tuple(_text(each) for each in args)
            self._operations[self._begun] = Operation(client, name, _text(key), texts, self._time(at), None)
            self._under_way.add(self._begun)
            return self._begun

    def ok(self, number: int, result: Any = None, at: float | None = None) -> None:
        """The answer has come."""
        with self._lock:
            self._end(number)
            done = self._operations[number]._replace(end=self._time(at), result=_text(result))
            self._operations[number] = done

    def unknown(self, number: int, at: float | None = None) -> None:
        """The client has given up, and the operation may still happen, at any time: it has no end."""
        with self._lock:
            self._end(number)
            self._time(at)

    def not_done(self, number: int) -> None:
        """It certainly has not happened and never will: it is dropped."""
        with self._lock:
            self._end(number)
            del self._operations[number]

    def _end(self, number: int) -> None:
        try:
            self._under_way.remove(number)
        except KeyError:
            raise BadHistory(f"operation {number} is not under way") from None

    def _time(self, at: float | None) -> float:
        now = time.monotonic() if at is None else at
        self._newest = max(now, math.nextafter(self._newest, math.inf))
        return self._newest

    @property
    def operations(self) -> tuple[Operation, ...]:
        """All of them, by call. What is under way has no known outcome yet."""
        with self._lock:
            return tuple(self._operations.values())


def _text(value: Any) -> Any:
    return value.decode(errors="surrogateescape") if isinstance(value, bytes) else value


# Files


def read_history(path: Path | str) -> tuple[list[Operation], Format]:
    """The operations of a file by call, and what they are about.

    Raises ``BadHistory``, with the file and the line, for what cannot be read. So does a file without any
    operation: a verdict about nothing would be believed.
    """
    try:
        lines = Path(path).read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else "not text in UTF-8"
        raise BadHistory(f"{path}: {reason}") from None
    first = next((line for line in lines if line.strip()), "")
    if first.startswith("INFO"):
        return _read_events(path, lines, _ETCD), "register"
    if first.startswith("{:"):
        return _read_events(path, lines, _STRINGS), "strings"
    if not first:
        raise BadHistory(f"{path}: there is no operation in it")
    return sorted(_read_json(path, lines), key=lambda operation: operation.call), "key_value"


def write_history(path: Path | str, operations: Iterable[Operation]) -> None:
    """Write key-value operations as JSON, one a line. What ``read_history`` reads is written the same."""
    lines = "".join(json.dumps(operation._asdict()) + "\n" for operation in operations)
    Path(path).write_text(lines, encoding="utf-8")


class _Line(msgspec.Struct, forbid_unknown_fields=True):
    """An operation as JSON."""

    client: int | str
    name: Literal["get", "put", "delete", "incr", "compare_and_set"]
    key: str
    args: tuple[Any, ...]
    call: float
    end: float | None
    result: Any


_TYPES: dict[str, tuple[Any, Any]] = {  # of the args, of the result
    "get": (tuple[()], str | None),
    "put": (tuple[str], None),
    "delete": (tuple[()], bool),
    "incr": (tuple[int], int),
    "compare_and_set": (tuple[str | None, str], bool),
}


def _read_json(path: Path | str, lines: Sequence[str]) -> list[Operation]:
    operations = []
    for number, line in enumerate(lines, 1):
        if not line.strip():
            continue
        try:
            # Not msgspec's own JSON: it refuses the lone surrogates that bytes become.
            read = msgspec.convert(json.loads(line), _Line)
            arguments, result = _TYPES[read.name]
            msgspec.convert(read.args, arguments)
            msgspec.convert(read.result, None if read.end is None else result)
            if not all(math.isfinite(each) for each in (read.call, read.end) if each is not None):
                raise ValueError("a time is a number")
            if read.end is not None and read.end < read.call:
                raise ValueError("it ends before its call")
        except (ValueError, RecursionError) as error:  # both JSON's and msgspec's errors are ValueErrors
            raise BadHistory(f"{path}:{number}: {error}") from None
        operations.append(Operation(*msgspec.structs.astuple(read)))
    return operations


_ETCD = re.compile(
    r"INFO +jepsen\.util - (?P<process>\d+)\s+:(?P<type>invoke|ok|fail|info)\s+:(?P<name>read|write|cas)\s+"
    r"(?P<value>nil|-?\d+|\[-?\d+ -?\d+\]|:timed-out)\s*"
)
_STRINGS = re.compile(
    r"\{:process (?P<process>\d+), :type :(?P<type>invoke|ok|fail|info), :f :(?P<name>get|put|append), "
    r':key "(?P<key>[^"]*)", :value (?P<value>nil|"[^"]*")\}\s*'
)


def _read_events(path: Path | str, lines: Sequence[str], pattern: re.Pattern[str]) -> list[Operation]:
    """Calls and outcomes are lines of their own here, and the time is the number of the line."""
    history = History()
    under_way: dict[str, tuple[int, str, str | None, list[str | None]]] = {}
    for at, line in enumerate(lines, 1):
        if not line.strip():
            continue
        event = pattern.fullmatch(line)
        if event is None:
            raise BadHistory(f"{path}:{at}: this is no event: {line:.60}")
        process, kind, name, key = (
            event["process"],
            event["type"],
            event["name"],
            event.groupdict().get("key"),
        )
        values = [None if value == "nil" else value for value in re.findall(r'[^\[\]" ]+', event["value"])]
        if pattern is _STRINGS:  # a string may have spaces, and be empty
            values = [None if event["value"] == "nil" else event["value"][1:-1]]
        timed_out = event["value"] == ":timed-out"
        if timed_out and kind not in ("info", "fail"):
            raise BadHistory(f"{path}:{at}: {kind} of :timed-out")
        if kind == "invoke":
            if process in under_way:
                raise BadHistory(f"{path}:{at}: process {process} calls, and its call before has not ended")
            arguments = () if name in ("read", "get") else values
            if len(arguments) != _ARGUMENTS[name] or None in arguments:
                raise BadHistory(f"{path}:{at}: {name} of {event['value']}")
            number = history.begin(int(process), name, key or "", *arguments, at=at)
            under_way[process] = number, name, key, values
            continue
        number, *begun, called_with = under_way.pop(process, (0, "", None, []))
        if begun != [name, key]:
            raise BadHistory(f"{path}:{at}: process {process} has not called this")
        if kind == "info":
            history.unknown(number, at)
        elif kind == "ok":
            if len(values) != 1 if name in ("read", "get") else values != called_with:
                raise BadHistory(f"{path}:{at}: {event['value']} is no answer to this {name}")
            result = values[0] if name in ("read", "get") else True if name == "cas" else None
            history.ok(number, result, at)
        elif name == "cas" and not timed_out:
            history.ok(number, False, at)  # it was refused because the register held something else
        else:
            history.not_done(number)
    if not history.operations:
        raise BadHistory(f"{path}: there is no operation in it")
    return list(history.operations)


_ARGUMENTS = {"read": 0, "get": 0, "write": 1, "put": 1, "append": 1, "cas": 2}
