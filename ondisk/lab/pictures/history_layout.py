"""Where the operations of a history are drawn: time runs to the right, in order but not to scale."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

from ondisk.lab.pictures.history_words import label
from ondisk.linearizability.history import Operation

_LEFT, _TOP, _ROW = 120, 58, 46
_GAP, _POINT = 20, 19  # pixels from one event to the next, and from one disc to the next
_LETTER = 7.0  # pixels, about


class Layout:
    """Where everything is, in pixels. A client has several rows if its operations overlap."""

    def __init__(self, operations: Sequence[Operation], order: Sequence[Operation]) -> None:
        events = [(each.call, 0, place) for place, each in enumerate(operations)]
        events += [(each.end, 1, place) for place, each in enumerate(operations) if each.end is not None]
        events.sort()  # at equal times the calls first, as for the checker
        called = {place: number for number, (_, is_end, place) in enumerate(events) if not is_end}

        rows: list[tuple[int | str, int]] = []  # of each operation
        busy: set[tuple[int | str, int]] = set()
        for _, is_end, place in events:
            client = operations[place].client
            if is_end:
                busy.remove(rows[place])
                continue
            rows.append(next((client, row) for row in range(len(busy) + 1) if (client, row) not in busy))
            busy.add(rows[place])
        clients = list(dict.fromkeys(client for client, _ in rows))
        self.rows = sorted(set(rows), key=lambda row: (clients.index(row[0]), row[1]))
        self._row = [self.rows.index(row) for row in rows]

        # An instant is after the call and after the instant before it; some lie between the same two events.
        instants: list[
            tuple[int, int, int]
        ] = []  # of which operation, after which event, the how manieth there
        after, number = -1, 0
        for operation in order:
            place = operations.index(operation)
            after, number = (called[place], 1) if called[place] > after else (after, number + 1)
            instants.append((place, after, number))
        crowd = Counter(after for _, after, _ in instants)

        # An event keeps clear of the discs before it, and a call of the text before it in its row.
        x, at = float(_LEFT), list[float]()
        text_until: dict[int, float] = {}
        for event, (_, is_end, place) in enumerate(events):
            x += max(_GAP, _POINT * (crowd[event - 1] + 1)) if event else 0
            if not is_end:
                row = self._row[place]
                x = max(x, text_until.get(row, 0) + 12)
                text_until[row] = x + _LETTER * len(label(operations[place]))
            at.append(x)
        self.right = max([*text_until.values(), x + _POINT * (crowd[len(events) - 1] + 1)]) + _GAP
        at.append(self.right)
        self.begins = [at[called[place]] for place in range(len(operations))]
        ends = {place: at[event] for event, (_, is_end, place) in enumerate(events) if is_end}
        self.ends = [ends.get(place) for place in range(len(operations))]
        self.instants = [
            (place, at[after] + (at[after + 1] - at[after]) * number / (crowd[after] + 1))
            for place, after, number in instants
        ]
        self.width = round(self.right) + 20
        self.bottom = _TOP + _ROW * len(self.rows)

    def y(self, place: int) -> int:
        """The middle of an operation's bar."""
        return self.middle(self._row[place])

    def middle(self, row: int) -> int:
        """The middle of a row's bars."""
        return _TOP + _ROW * row + 26
