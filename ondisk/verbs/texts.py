"""Texts: keys and values as they are stored, and how long they may be."""

from __future__ import annotations

from ondisk.errors import InvalidCommand

MAX_KEY_BYTES = 64 << 10
MAX_VALUE_BYTES = 1 << 20

Text = str | bytes


def as_bytes(text: Text, what: str, limit: int) -> bytes:
    """UTF-8 of a ``str``, or the ``bytes`` themselves. Raises ``InvalidCommand`` with what is wrong."""
    if type(text) is bytes and len(text) <= limit:
        return text
    if isinstance(text, str):
        try:
            text = text.encode()
        except UnicodeEncodeError as error:
            raise InvalidCommand(f"the {what} is not valid text: {error.reason}") from None
    if not isinstance(text, bytes):
        raise InvalidCommand(f"a {what} is str or bytes, not {type(text).__name__}")
    if len(text) > limit:
        raise InvalidCommand(too_long(what, text, limit))
    return text


def too_long(what: str, text: bytes, limit: int) -> str:
    """What to say of a text that has more bytes than it may have."""
    return f"the {what} has {len(text):,} bytes; at most {limit:,} are allowed"


def as_key(key: Text) -> bytes:
    """A key as it is stored. Raises ``InvalidCommand``."""
    return as_bytes(key, "key", MAX_KEY_BYTES)


def as_value(value: Text) -> bytes:
    """A value as it is stored. Raises ``InvalidCommand``."""
    return as_bytes(value, "value", MAX_VALUE_BYTES)
