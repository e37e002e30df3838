"""A line into words, and the rest of a line into a value: what is typed is stored, character by character.

A word ends at a blank. One that begins with a quote ends at the same quote: nothing is special between single
quotes; between double ones a backslash makes ``\\"`` and ``\\\\``. A quote inside a word is a character as
any other, and so is a backslash: ``it's``, ``C:\\temp``, ``{"a":1}``.
"""

from __future__ import annotations

import re

_BLANKS = " \t\r\n"
# Possessive (++), so that a line without its second quote takes time in proportion to its length.
_WORD = re.compile(
    r"""'(?P<single>[^']*+)'|"(?P<double>(?:[^"\\]++|\\.)*+)"|(?P<plain>[^ \t\r\n'"][^ \t\r\n]*+)""", re.S
)
_ESCAPED = re.compile(r'\\(["\\])')


def first_word(text: str) -> tuple[str, str]:
    """The first word, and what follows the blanks behind it. Raises ``ValueError`` for half a quote."""
    text = text.strip(_BLANKS)
    if not text:
        return "", ""
    if (found := _WORD.match(text)) is None:
        raise ValueError(f"{text[0]} begins what nothing ends: quote it with the other kind of quotes")
    rest = text[found.end() :]
    if rest and rest[0] not in _BLANKS:
        raise ValueError(f"{text[0]} ends before the word does: quote all of it")
    if found["double"] is not None:
        word = _ESCAPED.sub(r"\1", found["double"])
    else:
        word = found["plain"] or found["single"] or ""
    return word, rest.lstrip(_BLANKS)


def words(text: str) -> list[str]:
    """All words. Raises ``ValueError``."""
    found = []
    while text := text.strip(_BLANKS):
        word, text = first_word(text)
        found.append(word)
    return found


def value(text: str) -> str:
    """All of a text, as it is; or what its quotes hold, if it is quoted. Raises ``ValueError``."""
    text = text.strip(_BLANKS)
    if text[:1] not in ("'", '"'):
        return text
    word, rest = first_word(text)
    if rest:
        raise ValueError("a value that begins with a quote ends with it: quote all of it")
    return word
