"""The calls of one database: refused when it is closed, waited for while it closes, their errors typed.

Readers take no lock (see ``rocksdb``). A call is short, and closing tries until the last one has ended; a
walk over the data lasts as long as somebody likes, so walks under way are known here.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Generator, Iterator
from pathlib import Path
from types import FrameType

from rocksdict import DbClosedError, RdictIter

from ondisk.errors import StoreClosed
from ondisk.interrupts.shielded import has_ended
from ondisk.storage.errors import typed
from ondisk.storage.rocksdb import LENT_SECONDS

_TOO_LATE = (DbClosedError, RuntimeError, AttributeError, IndexError)  # what a call meets that comes so


class Calls:
    """``with`` this: a call of RocksDB, whose errors become typed ones. (A class, as the cheapest way.)"""

    def __init__(self, path: Path) -> None:
        """No call is let in before ``open`` is set."""
        self.path = path
        self.open = False
        self.walks: dict[int, Walk] = {}  # under way, by their id

    def check_open(self) -> None:
        """Raise ``StoreClosed`` when it is closed."""
        if not self.open:
            raise StoreClosed(f"{self.path}: closed")

    def __enter__(self) -> None:
        self.check_open()

    def __exit__(self, kind: object, error: BaseException | None, trace: object) -> None:
        if error is not None:
            self.raise_typed(error)

    def typed(self, error: Exception) -> Exception:
        """What to raise for an error of a call: a typed one, if it is the disk's or came of closing."""
        if isinstance(error, _TOO_LATE) and not self.open:
            return StoreClosed(f"{self.path}: closed")
        return typed(error, self.path)

    def raise_typed(self, error: BaseException | None) -> None:
        """Raise the typed error in place of this one, if there is one and it is another."""
        if isinstance(error, Exception) and (other := self.typed(error)) is not error:
            raise other from None

    def wait_for_walks(self) -> None:
        """Return when no walk is under way. None may begin any more."""
        while self.walks:
            for walk in tuple(self.walks.values()):
                if walk.abandoned:
                    walk.leave()
                else:
                    time.sleep(LENT_SECONDS)


_Box = list[RdictIter]  # one, or none any more


def _walk(box: _Box, start: bytes, backwards: bool) -> Generator[tuple[bytes, bytes]]:
    # No variable holds the iterator: this frame may outlive it, in a traceback.
    if backwards:
        box[0].seek_to_last()
    else:
        box[0].seek(start)
    while box[0].valid():
        yield box[0].key(), box[0].value()
        if backwards:
            box[0].prev()
        else:
            box[0].next()
    box[0].status()  # a damaged block looks like the end


class Walk:
    """``with`` this, a function walks over the data, and the database stays open until it has ended.

    An interrupt may keep it from saying that it has. So ``wait_for_walks`` looks at the function, too.
    """

    def __init__(self, calls: Calls, make: Callable[[], RdictIter], start: bytes, backwards: bool) -> None:
        self._calls = calls
        self._make = make
        self._box: _Box = []
        self._walker: FrameType | None = None
        self._pairs: Generator[tuple[bytes, bytes]] = _walk(self._box, start, backwards)

    @property
    def abandoned(self) -> bool:
        """Whether the function that walked has ended."""
        return self._walker is None or has_ended(self._walker)

    def __enter__(self) -> Iterator[tuple[bytes, bytes]]:
        self._walker = sys._getframe(1)
        try:
            # In this order: ``close`` says that it closes, and then looks for walks.
            self._calls.walks[id(self)] = self
            self._box.append(self._make())
            self._calls.check_open()
        except Exception as error:
            self.leave()
            raise self._calls.typed(error) from None
        return self._pairs

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: object) -> None:
        self.leave()
        self._calls.raise_typed(error)

    def leave(self) -> None:
        """Let go of the iterator. A second call does nothing."""
        self._box.clear()
        self._pairs.close()
        self._walker = None
        self._calls.walks.pop(id(self), None)
