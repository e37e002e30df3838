"""A file of one line that says what it is: ``ondisk-current 1 db-000002 1f0c9a57``.

Its kind, the version of its format, what it holds, and a checksum of all that. However the rest changes in
later versions, the kind and the version stay in front and the checksum at the end: so an older version
tells a file that it does not know from one that is damaged.
"""

from __future__ import annotations

import zlib
from pathlib import Path

from ondisk.errors import Corrupt, UnknownVersion


def encode(kind: str, version: int, content: str) -> bytes:
    """The line, with its end."""
    line = f"{kind} {version} {content}"
    return f"{line} {zlib.crc32(line.encode()):08x}\n".encode()


def decode(path: Path, stored: bytes, kind: str, newest: int) -> str:
    """What a line of this kind holds. Raises ``UnknownVersion`` or ``Corrupt``, with the path."""
    line, _, checksum = stored.decode("ascii", "replace").rpartition(" ")
    found, _, rest = line.partition(" ")
    version, _, content = rest.partition(" ")
    if found != kind or checksum != f"{zlib.crc32(line.encode()):08x}\n" or not version.isdecimal():
        raise Corrupt(f"{path}: is damaged: it does not hold {kind}, a version and a checksum")
    check_version(path, int(version), newest)
    return content


def check_version(place: Path | str, version: int, newest: int) -> None:
    """Raise ``UnknownVersion`` for a format that is not known here."""
    if not 1 <= version <= newest:
        raise UnknownVersion(
            f"{place}: has version {version}, which is not known here, only versions up to {newest}. It was "
            f"written by a later ondisk: use that one. Nothing was changed"
        )
