"""A history with its verdict, in words: operations, what is to be said of each, and of all of them."""

from __future__ import annotations

from collections.abc import Sequence

from ondisk.lab.pictures.drawing import clip
from ondisk.linearizability.history import Operation


def label(operation: Operation) -> str:
    """``put blue``, ``get → nothing``, ``incr 1 → ?``; its key is named elsewhere."""
    said = f"{operation.name} {', '.join(map(shortened, operation.args))}".strip()
    if operation.end is None:
        return f"{said} → ?"
    if operation.name in ("get", "read") or operation.result is not None:
        return f"{said} → {shortened(operation.result)}"
    return said


def shortened(value: object) -> str:
    """Without what cannot be shown, and not too long."""
    if value is None or isinstance(value, bool):
        return {None: "nothing", True: "yes", False: "no"}[value]
    return clip("".join(letter if letter.isprintable() else "�" for letter in str(value)) or "(empty)", 16)


def client_name(client: int | str) -> str:
    """A number is made into words."""
    return f"client {client}" if isinstance(client, int) else client


def headline(key: str, count: int, bad: bool, begins: bool) -> str:
    """The verdict. ``begins``: what contradicts is said to begin with the last of these operations."""
    on = f" on {shortened(key)!r}" if key else ""  # a register has no name
    if bad:
        return f"Not linearizable: no order explains the {'first ' if begins else ''}{count} operations{on}"
    return f"Linearizable: an order explains all {count} operations{on}"


def remark(
    operation: Operation, order: Sequence[Operation], marked: Sequence[Operation], answer: Operation | None
) -> str:
    """A place in the order, or a part in the contradiction, and whether the outcome is known."""
    if operation in marked:
        return "no order explains this answer" if operation == answer else "part of the contradiction"
    number = f"number {order.index(operation) + 1} in the order" if operation in order else ""
    if operation.end is not None:
        return number
    return f"outcome unknown{': it happened, ' + number if number else ''}"


def in_words(title: str, operations: Sequence[Operation], remarks: Sequence[str]) -> str:
    """Everything the picture shows, as sentences: its alternative text."""
    sentences = [
        f"{client_name(operation.client)}: {label(operation)}{f' ({said})' if said else ''}"
        for operation, said in zip(operations, remarks, strict=True)
    ]
    return f"{title}. In the order of their calls: {'; '.join(sentences)}."


def times(operation: Operation, operations: Sequence[Operation]) -> tuple[str, str]:
    """Since the first call; in seconds, if the clock counts seconds."""
    began = operations[0].call
    end = "never" if operation.end is None else f"{operation.end - began:.3f}"
    return f"{operation.call - began:.3f}", end
